"""Parts of modules that are to be adapted, and helpers for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from innerloop._checks.network import check_network, check_plain_norms, refuse_bare_norm
from innerloop._checks.options import check_size
from innerloop._inner_step import at_step, inner_step

__all__ = ["PerStepBatchNorm", "at_step", "inner_step", "per_pass_statistics", "per_step_norms"]


def per_pass_statistics(module: nn.Module) -> tuple[str, ...]:
    """Returns the names of the layers that it changed: from running statistics to those of each
    forward pass, as the original MAML has them.

    Batch and instance norms that track running statistics would fill them with every inner step of
    every task, so operations refuse them in training mode. This makes them, in place, what
    `track_running_stats=False` would have made them; weights and biases stay. They then use the
    statistics of the rows at hand in evaluation mode as well, and their buffers are gone from
    `state_dict()`.

    Args:
        module: the network, changed in place.

    Raises:
        TypeError: it is not an nn.Module.

    Source: Finn, Abbeel, Levine 2017, whose networks normalise by the batch at test time, too.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> per_pass_statistics(net)
        ('1',)
    """
    check_network("per_pass_statistics", module)
    changed = []
    for name, part in module.named_modules():
        if isinstance(part, _NormBase) and (
            part.track_running_stats or part.running_mean is not None
        ):
            part.track_running_stats = False
            part.running_mean = part.running_var = part.num_batches_tracked = None
            changed.append(name)
    return tuple(changed)


class PerStepBatchNorm(nn.Module):
    """A batch norm by the statistics of each forward pass, with a scale and a shift for each inner
    step. Passes after the last of these steps take the last one's.

    It takes rows [N, C, ...] of any number of axes. The query rows are measured with the parameters
    of the last step (see `inner_step`).

    Args:
        channels: C.
        steps: S, of the inner loop.
        eps: added to variances.

    Members:
        weight: [S, C], ones at first; `weight.requires_grad_(False)` for shifts alone.
        bias: [S, C], zeros at first.

    Raises:
        ValueError: channels or steps is below 1.

    Source: Antoniou, Edwards, Storkey 2019 (How to train your MAML), section 4, "per-step batch
    normalization weights and biases". The running statistics for each step that their code keeps
    are never read by it: it normalises by the batch, at test time as well.

    Example:
        >>> PerStepBatchNorm(8, steps=5).weight.shape
        torch.Size([5, 8])
    """

    def __init__(self, channels: int, steps: int, eps: float = 1e-5) -> None:
        super().__init__()
        check_size("PerStepBatchNorm", "channels", channels)
        check_size("PerStepBatchNorm", "steps", steps)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(steps, channels))
        self.bias = nn.Parameter(torch.zeros(steps, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the outputs [N, C, ...]."""
        at = min(inner_step(), len(self.weight) - 1)
        return F.batch_norm(
            x, None, None, self.weight[at], self.bias[at], training=True, eps=self.eps
        )

    def extra_repr(self) -> str:
        """Returns what it shows."""
        steps, channels = self.weight.shape
        return f"{channels}, steps={steps}, eps={self.eps}"


def per_step_norms(module: nn.Module, steps: int) -> tuple[str, ...]:
    """Returns the names of the layers that it replaced: each batch norm of torch by a
    `PerStepBatchNorm`, which begins with its scale and shift in every step.

    Args:
        module: the network, changed in place; before a learner or an optimiser is made of it.
        steps: S, of the inner loop.

    Raises:
        TypeError: it is not an nn.Module.
        ValueError: steps is below 1; the module is a batch norm itself, which cannot be replaced
            in place; or one of its batch norms has a forward, hooks or a parametrisation of its
            own, which would be lost. Nothing is changed then.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> per_step_norms(net, steps=5)
        ('1',)
        >>> net[1]
        PerStepBatchNorm(8, steps=5, eps=1e-05)
    """
    check_network("per_step_norms", module)
    check_size("per_step_norms", "steps", steps)
    if isinstance(module, _BatchNorm):
        refuse_bare_norm("per_step_norms", module)
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    check_plain_norms("per_step_norms", module)
    made: dict[nn.Module, PerStepBatchNorm] = {}
    changed = []
    for prefix, parent in list(module.named_modules()):
        for key, part in list(parent._modules.items()):
            if not isinstance(part, _BatchNorm):
                continue
            if part not in made:
                made[part] = _per_step(part, steps, like)
            setattr(parent, key, made[part])
            changed.append(f"{prefix}.{key}" if prefix else key)
    return tuple(changed)


def _per_step(part: _BatchNorm, steps: int, like: Tensor) -> PerStepBatchNorm:
    """Returns what replaces a batch norm."""
    new = PerStepBatchNorm(part.num_features, steps, part.eps).to(like.device, like.dtype)
    if part.weight is None:
        return new.requires_grad_(False)
    for own, old in ((new.weight, part.weight), (new.bias, part.bias)):
        own.requires_grad_(old.requires_grad)
        with torch.no_grad():
            own.copy_(old)
    return new
