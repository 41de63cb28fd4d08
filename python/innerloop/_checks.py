"""Argument checks: each condition is raised in one place, before any work. They read shapes, never
data."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from innerloop._params import InnerLr, LeafShape, is_number

if TYPE_CHECKING:
    from innerloop.objectives import Objective

BACKENDS = ("auto", "fused", "batched", "torch")
MAX_STEPS = 2**24  # more would be no inner loop; sizes made of steps stay far from overflow
_DTYPES = (torch.bfloat16, torch.float32, torch.float64)
_LARGEST = {dtype: torch.finfo(dtype).max for dtype in _DTYPES}
_PLAIN = (Tensor, nn.Parameter)
PLAIN_REMEDY = 'unwrap it, or use backend="torch"'


def _value_error(
    op: str, argument: str, requirement: str, got: object, remedy: str = ""
) -> NoReturn:
    """Raises the ValueError of one argument."""
    raise ValueError(_text(op, argument, requirement, got, remedy))


def _type_error(
    op: str, argument: str, requirement: str, got: object, remedy: str = ""
) -> NoReturn:
    """Raises the TypeError of one argument."""
    raise TypeError(_text(op, argument, requirement, got, remedy))


def _text(op: str, argument: str, requirement: str, got: object, remedy: str) -> str:
    """Returns `op: argument must requirement (got value); remedy`."""
    return f"{op}: {argument} must {requirement} (got {got})" + (f"; {remedy}" if remedy else "")


def kind(value: object) -> str:
    """Returns the name of a value's type."""
    return type(value).__name__


def _sizes(tensor: Tensor) -> list[int]:
    """Returns a tensor's shape as a plain list, for messages."""
    return list(tensor.shape)


def check_not_negative(op: str, argument: str, value: object) -> float:
    """Checks that an option is a finite number and not negative, and returns it."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number:
        _type_error(op, argument, "be a number", repr(value))
    if not value:
        return 0.0  # also of a symbol under torch.compile, which plans cannot hold
    number = plain_number(value)  # type: ignore[arg-type]
    if not 0 <= number < math.inf:
        _value_error(op, argument, "be finite and not negative", repr(value))
    return number


def plain_number(value: float) -> float:
    """Returns a number as a float, and what torch.compile holds as a symbol as the number that it
    stands for, since plans cannot hold symbols: other numbers are compiled anew."""
    if not torch.compiler.is_compiling():
        return float(value)
    return float.fromhex(float(value).hex())


def check_policy(op: str, argument: str, batch: object, model: Any, objective: Objective) -> bool:
    """Checks that a policy objective meets a policy and its rows, and nothing else does. Returns
    whether it is one."""
    is_policy = getattr(model, "min_log_std", None) is not None
    if objective.is_policy and not is_policy:
        _type_error(op, "model", f"be an innerloop.GaussianMLP for {objective.name}", kind(model))
    if is_policy and not objective.is_policy:
        names = "pg_loglik, pg_ratio, pg_clipped or kl"
        _value_error(op, "loss", f"be {names} for a GaussianMLP", repr(objective.name))
    if not is_policy:
        return False
    if type(batch).__name__ not in ("PolicyBatch", "PolicyRows"):
        wanted = f"be an innerloop.PolicyBatch for {objective.name}"
        _type_error(op, argument, wanted, kind(batch))
    return True


def check_policy_batch(op: str, argument: str, batch: Any, outputs: int) -> None:
    """Checks the members of a PolicyBatch that are a policy's targets; reads shapes only."""
    check_rows(op, f"{argument} x", batch.x)
    tasks, rows = batch.x.shape[:2]
    shapes = {
        "action": [tasks, rows, outputs],
        "advantage": [tasks, rows],
        "mean": [tasks, rows, outputs],
        "log_std": [tasks, outputs],
    }
    for name, wanted in shapes.items():
        value = getattr(batch, name)
        check_tensor(op, f"{argument} {name}", value)
        shape = list(value.shape)
        if shape != wanted and not (name == "log_std" and shape == [outputs]):
            _value_error(op, f"{argument} {name}", f"have shape {wanted}", shape)
        check_float(op, f"{argument} {name}", value, batch.x.dtype, "x")
        check_device(op, f"{argument} {name}", value, batch.x.device, "x")


def refuse_kl(op: str, coefficient: object) -> NoReturn:
    """Raises for a KL of what is no policy."""
    _value_error(op, "kl_coefficient", "be 0 unless the model is a GaussianMLP", repr(coefficient))


def check_number(op: str, argument: str, value: object, low: float = -math.inf) -> float:
    """Checks that an option is a finite number above a bound."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        _type_error(op, argument, "be a number", repr(value))
    if not low < value < math.inf:
        wanted = "be finite" if low == -math.inf else f"be finite and above {low:g}"
        _value_error(op, argument, wanted, repr(value))
    return float(value)


def check_options(op: str, steps: int, order: int, backend: str) -> int:
    """Checks the options that are not tensors and returns `steps` as a plain int."""
    if type(steps) is not int or steps < 0:
        if not hasattr(steps, "__index__") or isinstance(steps, (bool, Tensor)):
            _type_error(op, "steps", "be an int", repr(steps))
        if steps < 0:
            _value_error(op, "steps", "be at least 0", steps)
    if steps > MAX_STEPS:
        _value_error(op, "steps", f"be at most {MAX_STEPS}", steps)
    if type(order) is not int or order not in (1, 2):
        _value_error(op, "order", "be 1 (first-order) or 2 (exact)", repr(order))
    if backend not in BACKENDS:
        _value_error(op, "backend", "be 'auto', 'fused', 'batched' or 'torch'", repr(backend))
    return operator.index(steps)


def check_choice(op: str, argument: str, value: object, choices: Sequence[str]) -> None:
    """Checks that an option is one of some names."""
    if value not in choices:
        _value_error(op, argument, f"be one of {', '.join(choices)}", repr(value))


def check_flag(op: str, argument: str, value: object) -> None:
    """Checks that an option is a truth value."""
    if value is not True and value is not False:
        _type_error(op, argument, "be True or False", repr(value))


def check_model(op: str, model: object) -> None:
    """Checks that the model is one of the two kinds."""
    if not isinstance(model, nn.Module) and not hasattr(model, "layers"):
        _type_error(op, "model", "be an innerloop.MLP or a torch.nn.Module", kind(model))


def check_network(op: str, module: object) -> None:
    """Checks that a module is one."""
    if not isinstance(module, nn.Module):
        _type_error(op, "module", "be a torch.nn.Module", kind(module))


def check_size(op: str, argument: str, value: object) -> None:
    """Checks that a size is a positive int."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        _value_error(op, argument, "be an int of at least 1", repr(value))


def refuse_bare_norm(op: str, module: nn.Module) -> NoReturn:
    """Raises because a module that is a norm itself cannot be replaced in place."""
    remedy = "make an innerloop.nn.PerStepBatchNorm"
    _value_error(op, "module", "hold its batch norms as parts", kind(module), remedy)


def check_tasks(op: str, tasks: object) -> list[tuple[Tensor, Tensor]]:
    """Returns tasks (x [N, ...], y [N, ...]) of any numbers of rows after checking that they can be
    stacked."""
    if not isinstance(tasks, Sequence) or isinstance(tasks, (str, Tensor)):
        _type_error(op, "tasks", "be a sequence of (x, y)", kind(tasks))
    found = list(tasks)
    if not found:
        _value_error(op, "tasks", "hold at least one task", "none")
    for t, task in enumerate(found):
        if not isinstance(task, (tuple, list)) or len(task) != 2:
            _type_error(op, f"tasks[{t}]", "be a tuple (x, y)", kind(task))
        for name, value, first in zip(("x", "y"), task, found[0], strict=True):
            argument = f"tasks[{t}] {name}"
            check_tensor(op, argument, value)
            if value.ndim == 0 or value.shape[0] != task[0].shape[0]:
                _value_error(op, argument, "have one row for each row of x", _sizes(value))
            if value.shape[1:] != first.shape[1:]:
                wanted = f"have rows of shape {_sizes(first)[1:]} as those of the first task"
                _value_error(op, argument, wanted, _sizes(value)[1:])
            check_device(op, argument, value, first.device, "the first task")
            if value.dtype is not first.dtype:
                _type_error(op, argument, f"be {first.dtype} as the first task's", value.dtype)
    return found


def check_tensor(op: str, argument: str, value: object) -> None:
    """Checks that a value is a dense tensor that lives in one piece."""
    if type(value) not in _PLAIN:
        if not (isinstance(value, Tensor) and issubclass(type(value), Tensor)):  # no proxy of one
            _type_error(op, argument, "be a tensor", kind(value))
        if hasattr(value, "device_mesh"):
            _type_error(op, argument, "be a local tensor", kind(value), "call .to_local() first")
        if is_lazy(value):
            remedy = "call its module once: that gives lazy parameters their shapes"
            _type_error(op, argument, "be initialised", kind(value), remedy)
    assert isinstance(value, Tensor)
    if _is_dense(value):
        return
    if value.is_quantized:
        _type_error(op, argument, "be a dense tensor", value.dtype, "call .dequantize() first")
    got = "nested" if value.is_nested else str(value.layout)
    _type_error(op, argument, "be a dense tensor", got, "pad the tasks and pass count")


def _is_dense(value: Any) -> bool:
    """Says whether a tensor's numbers lie in memory one by one."""
    strided = value.layout is torch.strided
    return strided and not value.is_nested and not value.is_quantized


def check_float(op: str, argument: str, value: Tensor, dtype: torch.dtype, like: str) -> None:
    """Checks that a tensor has the one floating dtype of the call, and that the kernels know it."""
    if value.dtype is not dtype:
        _type_error(
            op, argument, f"have the dtype of {like}, {dtype}", value.dtype, "convert one of them"
        )
    if dtype not in _DTYPES:
        remedy = "convert it, or use torch.autocast; bfloat16 runs on the batched back end"
        _type_error(op, argument, "be float32 or float64", dtype, remedy)


def check_kernel_dtype(op: str, argument: str, like: Tensor) -> None:
    """Checks that there are kernels for a dtype that was checked to be one of torch's."""
    if like.dtype is torch.bfloat16:
        _type_error(op, argument, "be float32 or float64", like.dtype, "convert it")


def refuse_narrow(op: str, dtype: torch.dtype, reason: str) -> NoReturn:
    """Raises because a call in bfloat16 would not run on the batched back end."""
    remedy = "convert it, or use torch.autocast, which keeps the inner loop in float32"
    got = f"{dtype}, which the batched back end alone takes: {reason}"
    _type_error(op, "params", "be float32 or float64", got, remedy)


def check_device(op: str, argument: str, value: Tensor, device: torch.device, like: str) -> None:
    """Checks that a tensor lives where the parameters live."""
    if value.device != device:
        _value_error(op, argument, f"be on the device of {like}, {device}", value.device)


def check_params(
    op: str, argument: str, params: object, leaves: Sequence[LeafShape], tasks: int
) -> tuple[list[Tensor], Tensor]:
    """Returns the leaves in model order after checking names, shapes, dtype and device; and one
    that stands for the dtype and device of all."""
    if type(params) is not dict and not isinstance(params, Mapping):
        _type_error(op, argument, "be a dict of tensors", kind(params))
    assert isinstance(params, Mapping)
    found: list[Tensor] = []
    dtype: torch.dtype | None = None
    first: Tensor | None = None
    for leaf in leaves:
        value = params.get(leaf.name)
        if value is None:
            _value_error(op, argument, f"hold {leaf.name!r}", f"{list(params)}")
        if type(value) not in _PLAIN or not _is_dense(value):
            check_tensor(op, f"{argument}[{leaf.name!r}]", value)
        shape = value.shape
        if shape != leaf.shape and (
            len(shape) != len(leaf.shape) + 1 or shape != (tasks, *leaf.shape)
        ):
            _value_error(
                op,
                f"{argument}[{leaf.name!r}]",
                f"have shape {list(leaf.shape)} or, per task, {[tasks, *leaf.shape]}",
                _sizes(value),
            )
        if not leaf.is_floating:
            pass
        elif first is None or dtype is None:
            check_float(op, f"{argument}[{leaf.name!r}]", value, value.dtype, argument)
            first, dtype = value, value.dtype
        elif value.dtype is not dtype or value.device != first.device:
            check_float(
                op, f"{argument}[{leaf.name!r}]", value, dtype, f"{argument}[{leaves[0].name!r}]"
            )
            check_device(
                op,
                f"{argument}[{leaf.name!r}]",
                value,
                first.device,
                f"{argument}[{leaves[0].name!r}]",
            )
        found.append(value)
    if first is None:
        _value_error(op, argument, "hold at least one floating-point parameter", list(params))
    if len(params) != len(leaves):
        known = {leaf.name for leaf in leaves}
        extra = [name for name in params if name not in known]
        _value_error(op, argument, "hold the model's parameters only", f"also {extra}")
    return found, first


def check_batch(op: str, argument: str, batch: object) -> tuple[Any, Any, Any, Any]:
    """Returns (x, y, count, weight) after checking that there are tensors where they must be."""
    if not isinstance(batch, (tuple, list)) or not 2 <= len(batch) <= 4:
        got = f"{kind(batch)} of length {len(batch)}" if hasattr(batch, "__len__") else kind(batch)
        is_list = isinstance(batch, list)
        remedy = "innerloop.batch(tasks) makes one of a list of (x, y)" if is_list else ""
        _type_error(op, argument, "be a tuple (x, y[, count[, weight]])", got, remedy)
    x, y = batch[0], batch[1]
    count = batch[2] if len(batch) > 2 else None
    weight = batch[3] if len(batch) > 3 else None
    check_rows(op, f"{argument} x", x)
    if type(y) not in _PLAIN or not _is_dense(y):
        check_tensor(op, f"{argument} y", y)
    if count is not None:
        check_count(op, f"{argument} count", count, x)
    if weight is not None:
        check_weight(op, f"{argument} weight", weight, x)
    return x, y, count, weight


def check_rows(op: str, argument: str, x: Any) -> None:
    """Checks that x is a tensor with a task and a row axis."""
    if type(x) not in _PLAIN or not _is_dense(x):
        check_tensor(op, argument, x)
    if x.ndim < 2:
        _value_error(op, argument, "have shape [T, N, ...]", _sizes(x))


def check_count(op: str, argument: str, count: object, x: Tensor) -> None:
    """Checks the row counts [T] of a batch."""
    check_tensor(op, argument, count)
    assert isinstance(count, Tensor)
    if count.dtype is not torch.int64:
        _type_error(op, argument, "be int64", count.dtype)
    if count.ndim != 1 or count.shape[0] != x.shape[0]:
        _value_error(op, argument, f"have shape [{x.shape[0]}], one per task", _sizes(count))
    check_device(op, argument, count, x.device, "x")


def check_weight(op: str, argument: str, weight: object, x: Tensor) -> None:
    """Checks the sample weights [T, N] of a batch."""
    check_tensor(op, argument, weight)
    assert isinstance(weight, Tensor)
    if weight.ndim != 2 or weight.shape != x.shape[:2]:
        _value_error(op, argument, f"have shape {list(x.shape[:2])}", _sizes(weight))
    if not weight.is_floating_point():
        _type_error(op, argument, "be floating point", weight.dtype)
    check_device(op, argument, weight, x.device, "x")


def check_inputs(
    op: str, argument: str, x: Tensor, tasks: int, features: int, flattens: bool
) -> None:
    """Checks x [T, N, D] (or [T, N, *any] with D values a row) against the task count and the
    model."""
    if flattens and x.ndim > 2:
        size = 1
        for n in x.shape[2:]:
            size *= n
        if x.shape[0] == tasks and size == features:
            return
        wanted = f"[{tasks}, N, ...] with {features} values a row"
    else:
        if x.ndim == 3 and x.shape[0] == tasks and x.shape[2] == features:
            return
        wanted = f"[{tasks}, N, {features}]"
    remedy = "" if flattens or x.ndim < 4 else "nn.Flatten() as first layer takes any shape"
    if x.ndim == 2 and x.shape[1] == features:
        remedy = "tasks are the first axis: x[None] for a single one"
    _value_error(op, argument, f"have shape {wanted} to fit the model", _sizes(x), remedy)


def check_targets(
    op: str, argument: str, y: Tensor, x: Tensor, objective: Objective, outputs: int
) -> None:
    """Checks y against x, the loss and the model's number of outputs (0: not known beforehand)."""
    rows = x.shape[:2]
    if objective.strict and outputs == 1 and y.shape == rows:
        wanted = f"have shape {[*rows, 1]} for torch's loss, which would broadcast it"
        _value_error(op, f"{argument} y", wanted, _sizes(y), "pass y[..., None]")
    if objective.rows is None:
        if y.shape[:2] != rows:
            _value_error(op, f"{argument} y", f"have shape [{rows[0]}, {rows[1]}, ...]", _sizes(y))
    elif objective.classes:
        if y.dtype is not torch.int64:
            _type_error(op, f"{argument} y", "be int64 classes for cross_entropy", y.dtype)
        if y.ndim != 2 or y.shape != rows:
            remedy = "for more of them a row pass a function that calls F.cross_entropy"
            _value_error(
                op,
                f"{argument} y",
                f"have shape {list(rows)} (classes)",
                _sizes(y),
                remedy if y.ndim > 2 and not outputs else "",
            )
    else:
        if not y.is_floating_point():
            remedy = 'loss="cross_entropy" is for classes'
            wanted = f"be floating point for {objective.name}"
            _type_error(op, f"{argument} y", wanted, y.dtype, remedy)
        shape = y.shape
        if outputs == 0:
            if shape[:2] != rows:
                _value_error(
                    op, f"{argument} y", f"have shape [{rows[0]}, {rows[1]}, ...]", _sizes(y)
                )
        elif objective.is_policy:
            pass  # made of a PolicyBatch, which was checked
        elif shape != (*rows, outputs) and not (outputs == 1 and shape == rows):
            _value_error(
                op, f"{argument} y", f"have shape {[*rows, outputs]} to fit the model", _sizes(y)
            )
    check_device(op, f"{argument} y", y, x.device, "x")


def check_loss(op: str, objective: Objective, outputs: int, like: Tensor) -> None:
    """Checks the tensors that a loss holds against the model's outputs (0: not known beforehand)
    and the dtype and device of the parameters."""
    if objective.outputs and outputs not in (0, objective.outputs):
        wanted = f"hold weights for the {outputs} outputs of the model"
        _value_error(op, f"the loss {objective.name}", wanted, f"{objective.outputs}")
    if objective.dtype is None:
        return
    if objective.dtype is not like.dtype:
        wanted, remedy = f"hold weights of the dtype of params, {like.dtype}", ".to() converts it"
        _type_error(op, f"the loss {objective.name}", wanted, objective.dtype, remedy)
    if like.device.type != "cpu":
        wanted = f"hold weights on the device of params, {like.device}"
        _value_error(op, f"the loss {objective.name}", wanted, "cpu", ".to() moves it")


def check_task_weight(op: str, weight: object, tasks: int, like: Tensor) -> None:
    """Checks the weights [T] of the tasks."""
    check_tensor(op, "task_weight", weight)
    assert isinstance(weight, Tensor)
    if weight.ndim != 1 or weight.shape[0] != tasks:
        _value_error(op, "task_weight", f"have shape [{tasks}], one per task", _sizes(weight))
    check_float(op, "task_weight", weight, like.dtype, "params")
    check_device(op, "task_weight", weight, like.device, "params")


def check_adapt_params(op: str, adapt_params: object, leaves: Sequence[LeafShape]) -> None:
    """Checks the names of the leaves that the inner loop changes."""
    if isinstance(adapt_params, str) or not isinstance(adapt_params, (Sequence, set, frozenset)):
        _type_error(op, "adapt_params", "be a sequence of names or None", repr(adapt_params))
    known = {leaf.name: leaf.is_floating for leaf in leaves}
    for name in adapt_params:
        if name not in known:
            _value_error(
                op, "adapt_params", f"name parameters of the model {list(known)}", repr(name)
            )
        if not known[name]:
            _type_error(op, "adapt_params", "name floating-point parameters", repr(name))


def check_inner_lr(
    op: str,
    inner_lr: InnerLr,
    leaves: Sequence[LeafShape],
    adapted: Sequence[str],
    steps: int,
    like: Tensor,
) -> None:
    """Checks the inner rates: their form, the names of a dict, shapes, dtype and device."""
    if is_number(inner_lr):
        _check_number(op, "inner_lr", inner_lr, like)
        return
    if isinstance(inner_lr, Tensor):
        check_tensor(op, "inner_lr", inner_lr)
        if inner_lr.ndim > 1 or (inner_lr.ndim == 1 and inner_lr.shape[0] != steps):
            _value_error(
                op,
                "inner_lr",
                f"have shape [] or [{steps}], one per step",
                _sizes(inner_lr),
                "pass a dict for rates per parameter",
            )
        check_float(op, "inner_lr", inner_lr, like.dtype, "params")
        check_device(op, "inner_lr", inner_lr, like.device, "params")
        return
    if not isinstance(inner_lr, Mapping):
        _type_error(op, "inner_lr", "be a number, a tensor or a dict of them", kind(inner_lr))
    if set(inner_lr) != set(adapted):
        _value_error(
            op,
            "inner_lr",
            f"have a rate for exactly the adapted parameters {list(adapted)}",
            list(inner_lr),
        )
    for leaf in leaves:
        if leaf.name in inner_lr:
            _check_leaf_rate(op, leaf, inner_lr[leaf.name], steps, like)


def _check_number(op: str, argument: str, value: Any, like: Tensor) -> None:
    """Checks that a rate given as a number is finite in the dtype of the call."""
    if _LARGEST.get(like.dtype, math.inf) < abs(value) < math.inf:
        _value_error(op, argument, f"fit {like.dtype}", value)


def _check_leaf_rate(op: str, leaf: LeafShape, value: object, steps: int, like: Tensor) -> None:
    """Checks one entry of a dict of rates."""
    argument = f"inner_lr[{leaf.name!r}]"
    if is_number(value):
        _check_number(op, argument, value, like)
        return
    if not isinstance(value, Tensor):
        _type_error(op, argument, "be a number or a tensor", kind(value))
    check_tensor(op, argument, value)
    if tuple(value.shape) not in ((), (steps,), leaf.shape, (steps, *leaf.shape)):
        shapes = f"[], [{steps}], {list(leaf.shape)} or {[steps, *leaf.shape]}"
        _value_error(op, argument, f"have shape {shapes}", _sizes(value))
    check_float(op, argument, value, like.dtype, "params")
    check_device(op, argument, value, like.device, "params")


def refuse_data_grad(op: str, argument: str) -> NoReturn:
    """Raises because a derivative is wanted in something that has none in the fused operations."""
    raise NotImplementedError(
        f"{op}: {argument} must not require grad or have a tangent (got one that does), since the "
        "fused operation has derivatives in params and inner_lr only; detach it or use "
        'backend="torch"'
    )


def refuse_memory(op: str, argument: str, value: Tensor, missing: int) -> NoReturn:
    """Raises because a tensor's storage does not hold its numbers."""
    got = f"shape {_sizes(value)} with storage that lacks {missing} bytes"
    _value_error(op, argument, "have its numbers in memory", got, "gather it before the call")


def refuse_kind(op: str, argument: str, kind: str) -> NoReturn:
    """Raises because a tensor holds its numbers in a way of its own."""
    _type_error(op, argument, "be a plain tensor", kind, PLAIN_REMEDY)


def refuse_functions(op: str, argument: str, kind: str) -> NoReturn:
    """Raises because a subclass of tensors changes what torch's functions do."""
    raise NotImplementedError(
        f"{op}: {argument} must be a plain tensor (got {kind}, which has functions of its own); "
        "torch.func does not call these; convert it: .as_subclass(torch.Tensor)"
    )


def check_statistics(op: str, module: nn.Module, *, selects_rows: bool) -> None:
    """Refuses normalisation whose statistics would be updated by an inner loop, or would not be
    those of the rows in use."""
    for name, part in module.named_modules():
        if not isinstance(part, _NormBase):
            continue
        tracked = part.running_mean is not None
        if tracked and part.training:
            raise NotImplementedError(
                f"{op}: layer {name!r} ({kind(part)}) must not update running statistics, which "
                "an inner loop would fill with every task's steps (got track_running_stats=True "
                "in training mode); innerloop.nn.per_pass_statistics(module) gives it the "
                "statistics of each forward pass, as in the original MAML, and .eval() its "
                "running statistics as constants"
            )
        if selects_rows and not tracked and not isinstance(part, _InstanceNorm):
            refuse_statistics(op, f"layer {name!r} ({kind(part)})")


def refuse_statistics(op: str, what: str) -> NoReturn:
    """Raises because statistics would be taken over rows that are left out."""
    raise NotImplementedError(
        f"{op}: {what} must not take statistics over rows that are left out (got count or weight); "
        "give tasks of equal size, or use nn.GroupNorm or nn.LayerNorm"
    )


def refuse_backend(op: str, reason: str, backend: str = "fused") -> NoReturn:
    """Raises because a back end was demanded and cannot be had."""
    raise NotImplementedError(
        f'{op}: backend "{backend}" must be available (got: {reason}); '
        'use backend="torch" or "auto"'
    ) from None


def check_indices(
    op: str, argument: str, y: Tensor, count: Tensor | None, classes: int, ignored: int | None
) -> None:
    """Reads data: checks classes and counts for the torch back end (the kernels check their
    own)."""
    if count is not None and bool(((count < 0) | (count > y.shape[1])).any()):
        _value_error(op, f"{argument} count", f"lie in [0, {y.shape[1]}]", count.tolist())
    if classes:
        used = torch.ones_like(y, dtype=torch.bool)
        if count is not None:
            used = torch.arange(y.shape[1], device=y.device) < count[:, None]
        if ignored is not None:
            used = used & (y != ignored)
        wrong = y[used & ((y < 0) | (y >= classes))]
        if len(wrong):
            _value_error(op, f"{argument} y", f"hold classes in [0, {classes})", wrong[0].item())
