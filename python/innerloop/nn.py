"""Helpers for modules that are to be adapted."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from innerloop import _checks


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
    _checks.check_network("per_pass_statistics", module)
    changed = []
    for name, part in module.named_modules():
        if isinstance(part, _NormBase) and (
            part.track_running_stats or part.running_mean is not None
        ):
            part.track_running_stats = False
            part.running_mean = part.running_var = part.num_batches_tracked = None
            changed.append(name)
    return tuple(changed)
