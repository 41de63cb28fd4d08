"""Checks that only learners need, each condition in one place; the functional layer checks the
rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from torch import Tensor, nn

from innerloop._checks.engine import check_device, check_tensor
from innerloop._checks.messages import kind, sizes, type_error, value_error
from innerloop._checks.network import check_initialised
from innerloop.learners.copies import function_that_holds

REDUCTIONS = ("mean", "none")
LEARNED_FORMS = ("per_step", "per_tensor", "per_parameter")


def check_module(op: str, module: object) -> None:
    """Checks that there are parameters to learn."""
    if not isinstance(module, nn.Module):
        remedy = "for an il.MLP and a dict of parameters use il.meta_loss or il.meta_grad"
        type_error(op, "module", "be a torch.nn.Module", kind(module), remedy)
    check_initialised(op, module)
    if not any(p.is_floating_point() for p in module.parameters()):
        value_error(op, "module", "have at least one floating-point parameter", "none")


def check_reduction(op: str, reduction: str, task_weight: Tensor | None) -> None:
    """Checks how task losses are put together."""
    if reduction not in REDUCTIONS:
        value_error(op, "reduction", "be 'mean' or 'none'", repr(reduction))
    if reduction == "none" and task_weight is not None:
        remedy = "multiply the losses by the weights yourself"
        value_error(op, "task_weight", "be None with reduction='none'", "a tensor", remedy)


def check_learned_form(op: str, learn: object, steps: int) -> None:
    """Checks which rates are to be learned."""
    if not isinstance(learn, bool) and learn not in LEARNED_FORMS:
        value_error(
            op,
            "learn_inner_lr",
            f"be False, True or one of {', '.join(LEARNED_FORMS)}",
            repr(learn),
        )
    if learn == "per_step" and steps == 0:
        value_error(op, "steps", "be at least 1 with learn_inner_lr='per_step'", steps)


def refuse_rate_form(op: str, learn: object, form: str, remedy: str) -> NoReturn:
    """Raises because the given rates are finer than the form that is to be learned."""
    value_error(op, "inner_lr", f"be no finer than learn_inner_lr={learn!r}", form, remedy)


def check_plain_rate(op: str, value: object) -> None:
    """Checks that a rate which the learner copies is not one that somebody means to learn."""
    if isinstance(value, Tensor) and value.requires_grad:
        value_error(
            op,
            "inner_lr",
            "not require grad, since the learner keeps a copy",
            "a tensor that does",
            "set learn_inner_lr, or pass the tensor as inner_lr= at each call",
        )


def check_some_adapted(op: str, adapted: tuple[str, ...], names: list[str]) -> None:
    """Checks that the inner loop changes something."""
    if not adapted:
        value_error(
            op,
            "module",
            "have a parameter that requires grad",
            f"{names}, all frozen",
            "name the ones that the inner loop changes in adapt_params",
        )


def check_same_parameters(op: str, params: Mapping[str, Tensor], known: frozenset[str]) -> None:
    """Checks that parameters have neither come nor gone since the learner was made: nobody said
    whether the inner loop changes new ones."""
    if params.keys() != known:
        new, gone = sorted(params.keys() - known), sorted(known - params.keys())
        value_error(
            op,
            "module",
            "have the parameters that it had when the learner was made",
            f"new: {', '.join(new) or 'none'}; gone: {', '.join(gone) or 'none'}",
            "make a new learner",
        )


def refuse_without_rate(op: str) -> NoReturn:
    """Raises because a learner that trains without an inner loop was not told how to adapt."""
    value_error(op, "inner_lr", "be given to adapt", "None", "pass it here or to the constructor")


def check_tasks(op: str, x: object, tasks: int) -> None:
    """Checks that new inputs have one set of rows for each adapted task."""
    check_tensor(op, "x", x)
    if isinstance(x, Tensor) and (x.ndim < 2 or x.shape[0] != tasks):
        value_error(
            op,
            "x",
            f"have shape [{tasks}, N, ...], one set of rows for each of the {tasks} adapted tasks",
            sizes(x),
        )


def check_task_index(op: str, task: int, tasks: int) -> None:
    """Checks the number of a task."""
    if not 0 <= task < tasks:
        value_error(op, "task", f"lie in [0, {tasks})", task)


def check_copies(op: str, module: nn.Module) -> None:
    """Checks that a copy of a module computes what the module does."""
    function = function_that_holds(module)
    if function:
        raise ValueError(
            f"{op}: the module cannot be copied: {function} is a function that holds a part of the "
            "module itself, and in a copy would go on to use that; call the adapted networks, "
            "adapted(x), or make the function a method"
        )


def leaves_rows_out(batch: Any) -> bool:
    """Says whether a batch has counts or weights of rows."""
    return isinstance(batch, (tuple, list)) and any(extra is not None for extra in batch[2:])


def check_head(op: str, head: str, inside: list[str], module: nn.Module) -> None:
    """Checks that the head has parameters."""
    if not inside:
        owners = sorted({name.rpartition(".")[0] for name, _ in module.named_parameters()})
        value_error(op, "head", f"name a submodule with parameters, such as {owners}", repr(head))


def check_same_rows(op: str, xs: Tensor, xq: Tensor, ys: Tensor, yq: Tensor) -> None:
    """Checks that support and query rows can be put one after another."""
    for name, s, q in (("x", xs, xq), ("y", ys, yq)):
        if s.ndim != q.ndim or s.shape[:1] != q.shape[:1] or s.shape[2:] != q.shape[2:]:
            value_error(
                op, f"query {name}", f"match support {name}, {sizes(s)}, but for rows", sizes(q)
            )
        if s.dtype is not q.dtype:
            type_error(op, f"query {name}", f"have the dtype of support {name}, {s.dtype}", q.dtype)
        check_device(op, f"query {name}", q, s.device, f"support {name}")
