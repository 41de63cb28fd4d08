"""Joint training: the baseline that learns one network for all tasks and fine-tunes it on new
ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from innerloop import functional
from innerloop._calling import ERRORS, named
from innerloop._checks.engine import check_float
from innerloop._checks.rows import check_batch
from innerloop._choice import Model
from innerloop._operation import autocast_device, widen
from innerloop._params import Batch, BatchLike, InnerLr, Side
from innerloop._preparation import data_of, prepare, prepare_batch
from innerloop._ragged import in_front, rows_in_use
from innerloop._solver import in_words
from innerloop._storage import check_memory
from innerloop.learners import _checks as learner_checks
from innerloop.learners.learner import Learner
from innerloop.nn import PerStepBatchNorm
from innerloop.objectives import Loss, Objective


class JointTraining(Learner):
    """Wraps a network; calling it returns the mean loss over the rows of each task's support and
    query together.

    It sees the same data as MAML and has the same interface, so that the two can be compared
    fairly; there is no inner loop in training. `adapt` and `evaluate` fine-tune on the support
    rows.

    Args:
        module, loss, backend, allow_tf32: as in MAML.
        inner_lr: rates of fine-tuning; None if it is given to each `adapt` or `evaluate`.
        steps, momentum, nesterov, weight_decay: of fine-tuning; as in MAML.
        adapt_params: names of the parameters that fine-tuning changes; as in MAML.

    Raises:
        ValueError, TypeError, NotImplementedError: as MAML.

    Example:
        >>> import innerloop as il
        >>> learner, x = il.JointTraining(nn.Linear(2, 1), inner_lr=0.1), torch.ones(4, 5, 2)
        >>> learner((x, x[..., :1]), (x, x[..., :1])).backward()
    """

    @named
    def __init__(
        self,
        module: nn.Module,
        *,
        loss: Loss = "mse",
        inner_lr: InnerLr | None = None,
        steps: int = 1,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        adapt_params: Sequence[str] | None = None,
        backend: str = "auto",
        allow_tf32: bool = False,
    ) -> None:
        super().__init__(
            module,
            inner_lr=inner_lr,
            learn_inner_lr=False,
            steps=steps,
            order=1,
            loss=loss,
            query_loss=None,
            solver={"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay},
            adapt_params=adapt_params,
            backend=backend,
            allow_tf32=allow_tf32,
        )

    @named
    def forward(
        self,
        support: BatchLike,
        query: BatchLike,
        *,
        task_weight: Tensor | None = None,
        reduction: str = "mean",
    ) -> Tensor:
        """Returns the mean over tasks of the loss on support and query rows together.

        With n_s and n_q rows in use, a task's loss is (n_s support_loss + n_q query_loss) / (n_s +
        n_q): the mean over all rows, or what weights make of it on each side. A callable gets the
        rows of both sides together.

        Args, Returns: as MAML.

        Differentiability: as MAML.

        Cost: time O(T (N + Q) P); one copy of the rows, two with counts.
        """
        op = "JointTraining"
        learner_checks.check_reduction(op, reduction, task_weight)
        for name, part in self.module.named_modules():
            if isinstance(part, PerStepBatchNorm) and len(part.weight) > 1:
                raise NotImplementedError(
                    f"{op}: layer {name!r} (PerStepBatchNorm) must not have a scale for each inner "
                    f"step (got {len(part.weight)}), of which joint training would train the first "
                    "alone; innerloop.nn.per_pass_statistics(module) makes norms without steps"
                )
        support, query = self._batch(support), self._batch(query)
        model, params, objective, _ = self._model(support, query)
        like = next(p for p in params.values() if p.is_floating_point())
        if autocast_device() is not None:
            support, query = widen(support), widen(query)
        none, rows = _union(op, support, query, like.dtype)
        options: dict[str, Any] = {
            "model": model,
            "inner_lr": 0.0,
            "steps": 0,
            "loss": objective,
            "backend": self._backend,
            "allow_tf32": self._allow_tf32,
        }
        try:
            if reduction == "none":
                loss = functional.meta_loss(params, none, rows, **options)
            else:
                options["task_weight"] = task_weight
                loss = functional.mean_meta_loss(params, none, rows, **options)
        except ERRORS:
            try:
                self._check_sides(op, support, query, model, params, objective)
            except ERRORS as plainer:
                raise plainer from None
            raise
        return self._anchored(loss, model)

    def _check_sides(
        self,
        op: str,
        support: Any,
        query: Any,
        model: Model,
        params: dict[str, Tensor],
        objective: Objective,
    ) -> None:
        """Raises what is wrong with one side, in terms of the rows that the caller gave."""
        for name, batch in (("support", support), ("query", query)):
            parts = check_batch(op, name, batch)
            tasks, data = parts[0].shape[0], data_of(name, parts)
            ready = prepare(op, model, self._backend, params, tasks, data, (objective,))
            prepare_batch(op, name, parts, objective, ready)

    def _settings(self) -> str:
        name, words = self._objectives[0].name, in_words(**self._solver)
        return f"loss {name}, no inner loop in training, {self.steps} steps of fine-tuning{words}"


def _union(
    op: str, support: BatchLike, query: BatchLike, dtype: torch.dtype
) -> tuple[Batch, Batch]:
    """Returns an empty batch, and one with the rows of both, counted or weighted so that its loss
    is the joint one."""
    xs, ys, s_count, s_weight = check_batch(op, "support", support)
    xq, yq, q_count, q_weight = check_batch(op, "query", query)
    learner_checks.check_same_rows(op, xs, xq, ys, yq)
    check_memory(op, support=(xs, ys, s_count, s_weight), query=(xq, yq, q_count, q_weight))
    x, y = torch.cat([xs, xq], 1), torch.cat([ys, yq], 1)
    none = Batch(xs[:, :0], ys[:, :0])
    if all(v is None for v in (s_count, s_weight, q_count, q_weight)):
        return none, Batch(x, y)
    s_used = rows_in_use(Side(xs, ys, s_count, s_weight))
    q_used = rows_in_use(Side(xq, yq, q_count, q_weight))
    if s_weight is None and q_weight is None:
        rows, count = in_front(torch.cat([s_used, q_used], 1), Side(x, y))
        return none, Batch(rows.x, rows.y, count)
    for name, given in (("support weight", s_weight), ("query weight", q_weight)):
        if given is not None:
            check_float(op, name, given, dtype, "params")
    s_weight, s_number = _row_weights(s_used, s_weight, dtype)
    q_weight, q_number = _row_weights(q_used, q_weight, dtype)
    total = (s_number + q_number).clamp(min=1)  # [T, 1]
    weight = torch.cat([s_weight * (s_number / total), q_weight * (q_number / total)], 1)
    return none, Batch(x, y, None, weight)


def _row_weights(used: Tensor, weight: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns the weight of each row in its side's loss [T, N], 0 where the row is left out, and
    the number of rows in use [T, 1]."""
    number = used.sum(1, keepdim=True)
    if weight is None:
        return used.to(dtype) / number.clamp(min=1), number.to(dtype)
    return torch.where(used, weight, 0).to(dtype), number.to(dtype)
