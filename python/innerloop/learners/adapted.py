"""A network adapted to T tasks, as a function of new inputs."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from innerloop import functional
from innerloop._calling import named
from innerloop._choice import Model, choice_for
from innerloop._inner_step import at_step
from innerloop._tasks import alone
from innerloop.learners import _checks
from innerloop.learners.description import Description


class Adapted:
    """The adapted networks of T tasks. Calling it on x [T, N, ...] returns their outputs [T, N, K].

    Members:
        params: {name: [T, ...]}, constants.
        backend: "fused", "batched" or "torch", where its predictions run.
        tasks: T.

    Example:
        >>> import innerloop as il
        >>> learner = il.MAML(nn.Linear(2, 1), inner_lr=0.1, steps=1)
        >>> adapted = learner.adapt((torch.ones(4, 5, 2), torch.ones(4, 5)))
        >>> adapted.params["weight"].shape
        torch.Size([4, 1, 2])
    """

    def __init__(
        self,
        module: nn.Module,
        params: dict[str, Tensor],
        backend: str,
        allow_tf32: bool = False,
        *,
        is_single: bool = False,
        step: int = 0,
    ) -> None:
        self.params = params
        self.tasks = next(iter(params.values())).shape[0]
        self._module = module
        self._description = Description()
        self._backend = backend
        self._allow_tf32 = allow_tf32
        self._is_single = is_single
        self._step = step  # that its passes belong to

    @property
    def backend(self) -> str:
        """Where predictions run."""
        if self._backend == "torch":
            return "torch"
        values = list(self.params.values())
        like = next((p for p in values if p.is_floating_point()), values[0])
        return choice_for(self._model(), like.device, like.dtype, self._backend).backend

    def _model(self) -> Model:
        """Returns what predicts: the module as it is now, described if that is possible."""
        if self._backend == "torch":
            return self._module
        return self._description.of(self._module)[0]

    @named
    def __call__(self, x: Tensor) -> Tensor:
        """Returns the outputs [T, N, K] for x [T, N, ...], or [N, K] for x [N, ...] if it was
        adapted to a single task. They have derivatives in x, any number
        of times, which the torch back end takes (`backend="fused"` refuses them); the parameters
        are constants."""
        if self._is_single and isinstance(x, Tensor):
            x = x.unsqueeze(0)
        _checks.check_tasks("Adapted", x, self.tasks)
        with at_step(self._step):
            outputs = functional.predict(
                self.params,
                x,
                model=self._model(),
                backend=self._backend,
                allow_tf32=self._allow_tf32,
            )
        return outputs[0] if self._is_single else outputs

    @named
    def module(self, task: int) -> nn.Module:
        """Returns a copy of the module with the parameters of one task, an ordinary nn.Module. One
        that asks for `il.nn.inner_step()` is called within `il.nn.at_step`.

        Raises:
            ValueError: a forward, hook or attribute of the module is a function that holds a part
                of it (in a closure, say), which would go on to use the part, not the copy.
        """
        _checks.check_task_index("Adapted.module", task, self.tasks)
        with alone():
            _checks.check_copies("Adapted.module", self._module)
            single = copy.deepcopy(self._module, _without_graphs(self._module))
        with torch.no_grad():
            for name, parameter in single.named_parameters():
                parameter.copy_(self.params[name][task])
        return single

    def __repr__(self) -> str:
        return f"Adapted(tasks={self.tasks}, backend={self.backend!r})"


def _without_graphs(module: nn.Module) -> dict[int, Any]:
    """Returns constants for the tensors among a module's attributes that carry a graph, which torch
    does not copy: old weight_norm and prune keep one of the weight, made anew in each pass."""
    held = (value for part in module.modules() for value in vars(part).values())
    return {
        id(value): value.detach().clone()
        for value in held
        if isinstance(value, Tensor) and not value.is_leaf
    }
