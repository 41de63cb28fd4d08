"""A network adapted to T tasks, as a function of new inputs."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from innerloop import functional
from innerloop._calling import named
from innerloop._dispatch import Model, choice_for
from innerloop.learners import _checks


class Adapted:
    """The adapted networks of T tasks. Calling it on x [T, N, ...] returns their outputs [T, N, K].

    Members:
        params: {name: [T, ...]}, constants.
        backend: "fused" or "torch", where its predictions run.
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
        model: Model,
        params: dict[str, Tensor],
        backend: str,
        allow_tf32: bool = False,
    ) -> None:
        self.params = params
        self.tasks = next(iter(params.values())).shape[0]
        self._module = module
        self._model = model
        self._backend = backend
        self._allow_tf32 = allow_tf32

    @property
    def backend(self) -> str:
        """Where predictions run."""
        if self._backend == "torch":
            return "torch"
        device = next(iter(self.params.values())).device
        return choice_for(self._model, device, self._backend).backend

    @named
    def __call__(self, x: Tensor) -> Tensor:
        """Returns the outputs [T, N, K] for x [T, N, ...]; no gradient flows through them."""
        _checks.check_tasks("Adapted", x, self.tasks)
        with torch.no_grad():
            out = functional.predict(
                self.params,
                x,
                model=self._model,
                backend=self._backend,
                allow_tf32=self._allow_tf32,
            )
        return out.detach()

    @named
    def module(self, task: int) -> nn.Module:
        """Returns a copy of the module with the parameters of one task, an ordinary nn.Module."""
        _checks.check_task_index("Adapted.module", task, self.tasks)
        single = copy.deepcopy(self._module)
        with torch.no_grad():
            for name, parameter in single.named_parameters():
                parameter.copy_(self.params[name][task])
        return single

    def __repr__(self) -> str:
        return f"Adapted(tasks={self.tasks}, backend={self.backend!r})"
