"""Losses, gradients and Hessian-vector products of all tasks as flat [T, P] arrays: the only door
from the constants to the fused operations."""

from __future__ import annotations

import copy
import dataclasses
import math
import numbers
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from innerloop import functional
from innerloop._params import BatchLike, Params
from innerloop.models import MLP
from innerloop.objectives import Loss, resolve

Model = MLP | nn.Module
Trajectory = Sequence[Params]

NON_NEGATIVE = ("mse", "half_mse", "huber", "cross_entropy", "bce_with_logits")


@dataclasses.dataclass(frozen=True)
class Oracle:
    """One loss per task, at shared parameters [P] or at parameters of its own [T, P].

    Args:
        model, loss, backend: as `innerloop.meta_grad` takes them.
        params: floating leaves in `dtype`; each shared [...] or per task [T, ...].
        x, y: [T, N, ...] in `dtype` (integer classes stay).
        count, weight: None, or as in `innerloop.Batch`.
        shapes: shape of every floating leaf, in flat order.
        fixed: leaves that are not floating; they have no derivative.
    """

    model: Model
    params: dict[str, Tensor]
    x: Tensor
    y: Tensor
    count: Tensor | None
    weight: Tensor | None
    loss: Loss
    backend: str
    shapes: dict[str, tuple[int, ...]]
    fixed: dict[str, Tensor]

    @property
    def tasks(self) -> int:
        """T."""
        return self.x.shape[0]

    @property
    def rows(self) -> int:
        """N."""
        return self.x.shape[1]

    @property
    def size(self) -> int:
        """P."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of the call."""
        return next(iter(self.params.values())).dtype

    @property
    def batch(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """The data as the operations take them."""
        return self.x, self.y, self.count, self.weight

    def flat(self) -> Tensor:
        """Returns the parameters of every task, [T, P]."""
        parts = []
        for name, shape in self.shapes.items():
            leaf = self.params[name]
            per_task = leaf.ndim == len(shape) + 1
            parts.append(leaf.reshape(len(leaf) if per_task else 1, -1).expand(self.tasks, -1))
        return torch.cat(parts, dim=1)

    def tree(self, flat: Tensor) -> dict[str, Tensor]:
        """Returns [T, P] as leaves {name: [T, ...]}."""
        leaves, offset = {}, 0
        for name, shape in self.shapes.items():
            size = math.prod(shape)
            leaves[name] = flat[:, offset : offset + size].reshape(-1, *shape)
            offset += size
        return leaves

    def join(self, leaves: Mapping[str, Tensor]) -> Tensor:
        """Returns leaves {name: [T, ...]} as [T, P]."""
        return torch.cat([leaves[name].reshape(self.tasks, -1) for name in self.shapes], dim=1)

    def at(self, flat: Tensor) -> Oracle:
        """Returns the same losses at other parameters [T, P]."""
        return dataclasses.replace(self, params=self.tree(flat))

    def gradient(self) -> tuple[Tensor, Tensor]:
        """Returns the losses [T] and their gradients [T, P]."""
        losses, leaves = functional.loss_and_grad(
            {**self.params, **self.fixed},
            self.batch,
            model=self.model,
            loss=self.loss,
            backend=self.backend,
        )
        return losses.detach(), self.join(leaves).detach()

    def product(self, vector: Tensor) -> Tensor:
        """Returns each task's Hessian times its own vector, [T, P] -> [T, P]."""
        still = {name: torch.zeros_like(leaf) for name, leaf in self.fixed.items()}
        leaves = functional.hvp(
            {**self.params, **self.fixed},
            self.batch,
            {**self.tree(vector), **still},
            model=self.model,
            loss=self.loss,
            backend=self.backend,
        )
        return self.join(leaves).detach()

    def select(self, index: Tensor | slice) -> Oracle:
        """Returns the oracle of some tasks (repeats allowed)."""

        def pick(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[index]

        params = {
            name: leaf[index] if leaf.ndim > len(self.shapes[name]) else leaf
            for name, leaf in self.params.items()
        }
        return dataclasses.replace(
            self,
            params=params,
            x=self.x[index],
            y=self.y[index],
            count=pick(self.count),
            weight=pick(self.weight),
        )

    def rows_as_tasks(self, index: Tensor | None = None) -> Oracle:
        """Returns the oracle of single rows, each a task of its own: all T N of them, task by task,
        or those with the given numbers in that order."""
        if self.count is not None or self.weight is not None:
            raise ValueError(
                "constants: batch must have neither count nor weight where single rows are "
                "needed (got one); hand over (x, y) with equally many rows in every task"
            )
        if index is None:
            index = torch.arange(self.tasks * self.rows)
        index = index.to(self.x.device)
        task, row = index // self.rows, index % self.rows
        params = {
            name: leaf[task] if leaf.ndim > len(self.shapes[name]) else leaf
            for name, leaf in self.params.items()
        }
        return dataclasses.replace(
            self, params=params, x=self.x[task, row][:, None], y=self.y[task, row][:, None]
        )


def oracle(
    function: str,
    model: Model,
    params: Params,
    batch: BatchLike,
    *,
    loss: Loss,
    dtype: torch.dtype = torch.float64,
    backend: str = "auto",
) -> Oracle:
    """Returns the checked oracle of a call; `function` is the caller's name for errors."""
    objective = resolve(function, loss)
    if objective.reason or objective.name not in NON_NEGATIVE:
        raise ValueError(
            f"{function}: loss must be one of {', '.join(NON_NEGATIVE)}, or torch's of the same "
            f"meaning (got {objective.name}); the bounds rest on losses that are never negative, "
            "which cannot be seen from a function"
        )
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{function}: dtype must be float32 or float64 (got {dtype})")
    parts = tuple(batch)
    if not 2 <= len(parts) <= 4:
        raise TypeError(f"{function}: batch must be (x, y[, count[, weight]]) (got {len(parts)})")
    for name, leaf in [("x", parts[0]), ("y", parts[1]), *params.items()]:
        if not isinstance(leaf, Tensor):
            raise TypeError(f"{function}: {name} must be a tensor (got {type(leaf).__name__})")
        if leaf.is_floating_point() and not bool(leaf.isfinite().all()):
            raise ValueError(f"{function}: {name} must be finite (got a NaN or an infinity)")
    shapes, fixed = _leaves(model)

    def cast(value: Tensor | None) -> Tensor | None:
        if value is None:
            return None
        return value.detach().to(dtype) if value.is_floating_point() else value.detach()

    whole = {name: leaf.detach() for name, leaf in params.items()}
    x, y, count, weight = (*(cast(v) for v in parts), None, None)[:4]
    assert x is not None
    assert y is not None
    made = Oracle(
        model=_in_dtype(model, dtype),
        params={k: v.to(dtype) for k, v in whole.items() if k not in fixed},
        x=x,
        y=y,
        count=count,
        weight=weight,
        loss=loss,
        backend=backend,
        shapes=shapes,
        fixed={k: v for k, v in whole.items() if k in fixed},
    )
    if x.ndim < 2 or x.shape[0] == 0 or x.shape[1] == 0:
        raise ValueError(
            f"{function}: x must have shape [T, N, D] with T, N >= 1 (got {list(x.shape)})"
        )
    losses = functional.loss_and_grad(
        {**made.params, **made.fixed}, made.batch, model=made.model, loss=loss, backend=backend
    )[0]
    if not bool(losses.isfinite().all()):
        raise ValueError(f"{function}: the loss must be finite at params (got {losses.tolist()})")
    return made


def _leaves(model: Model) -> tuple[dict[str, tuple[int, ...]], set[str]]:
    """Returns the shapes of the floating leaves and the names of the others."""
    if isinstance(model, MLP):
        return dict(model.shapes), set()
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"constants: model must be an MLP or an nn.Module (got {type(model).__name__})"
        )
    named = dict(model.named_parameters())
    fixed = {name for name, leaf in named.items() if not leaf.is_floating_point()}
    return {k: tuple(v.shape) for k, v in named.items() if k not in fixed}, fixed


def _in_dtype(model: Model, dtype: torch.dtype) -> Model:
    """Returns the model, or a copy whose floating buffers have the dtype of the call."""
    if isinstance(model, MLP):
        return model
    if any(b.is_floating_point() and b.dtype != dtype for b in model.buffers()):
        return copy.deepcopy(model).to(dtype)
    return model


def check_count(function: str, name: str, value: object, least: int) -> int:
    """Returns an integer argument that is at least `least`, or raises."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or int(value) < least:
        raise ValueError(f"{function}: {name} must be an integer >= {least} (got {value!r})")
    return int(value)


def check_fraction(function: str, name: str, value: float, below: float = 1.0) -> float:
    """Returns a number strictly between 0 and `below`, or raises."""
    if not 0.0 < float(value) < below:
        raise ValueError(f"{function}: {name} must lie strictly in (0, {below:g}) (got {value!r})")
    return float(value)


def source_of(generator: torch.Generator | None, seed: int) -> torch.Generator:
    """Returns the generator, or a fresh CPU one with the seed."""
    return torch.Generator().manual_seed(seed) if generator is None else generator


def gaussian(generator: torch.Generator, oracle: Oracle) -> Tensor:
    """Returns one standard Gaussian direction per task, [T, P]."""
    draw = torch.randn(
        oracle.tasks,
        oracle.size,
        generator=generator,
        dtype=torch.float64,
        device=generator.device,
    )
    return draw.to(device=oracle.x.device, dtype=oracle.dtype)


def stacked(function: str, trajectory: Trajectory | Mapping[str, Tensor]) -> list[Params]:
    """Returns a trajectory, given as dicts or as one dict of [J, ...] leaves, as a list of dicts.

    A dict of stacked leaves is split along its first axis.
    """
    if isinstance(trajectory, Mapping):
        lengths = {len(leaf) for leaf in trajectory.values()}
        if len(lengths) != 1:
            raise ValueError(
                f"{function}: the leaves of trajectory must have one length (got {sorted(lengths)})"
            )
        return [{k: v[j] for k, v in trajectory.items()} for j in range(lengths.pop())]
    return list(trajectory)
