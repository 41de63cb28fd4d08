"""The raw torch ops over the native extension: schemas, kernels, shape rules and autograd formulas.

Every op takes plain tensors and the text of a Plan. Each has an autograd formula: the true one for
`meta_loss`, one that raises for the others, so that no path can drop a gradient silently.
`_autograd.py` adds what torch.func needs. Nothing here checks arguments; `functional.py` has done
so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from innerloop import _native
from innerloop._plan import Plan, parse_plan

Side = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
AnyPlan = Any  # a Plan, or its text when the call came through torch's dispatcher

# why the kernels cannot be called; empty when they can
UNAVAILABLE = _native.reason()

DOUBLE_BACKWARD = (
    "{op}: only first derivatives in params and inner_lr are provided by the fused operations; "
    'use backend="torch" for higher ones'
)
NO_BACKWARD = (
    "{op}: the fused operation cannot be differentiated; use meta_loss for meta-gradients, "
    'or backend="torch"'
)


class MetaGradOutputs(NamedTuple):
    """loss [T]; support_loss [T, S]; query_loss [T, S + 1] if stepwise; grads flat, leaf after
    leaf, each [...] if shared and [T, ...] if per task; rate_grad shaped as the flat rates."""

    loss: Tensor
    support_loss: Tensor
    query_loss: Tensor | None
    grads: Tensor
    rate_grad: Tensor


# ---------------------------------------------------------------- addresses


def _resolve(plan: AnyPlan) -> Plan:
    """Returns the plan, with its native model made."""
    found: Plan = plan if isinstance(plan, Plan) else parse_plan(plan)
    if found.native is None:
        found.native = _native.native().Model(*found.native_arguments())
    return found


def _leaf_addresses(
    plan: Plan, params: Sequence[Tensor]
) -> tuple[list[int], list[int], list[Tensor]]:
    """Returns addresses, task strides (0: shared) and the tensors to keep alive."""
    addresses, strides, kept = [], [], []
    for leaf, value in zip(plan.leaves, params, strict=True):
        if not value.is_contiguous() or value.is_neg():
            value = _dense(value)
        kept.append(value)
        addresses.append(value.data_ptr())
        strides.append(leaf.size if value.ndim > len(leaf.shape) else 0)
    return addresses, strides, kept


def _dense(value: Tensor) -> Tensor:
    """Returns the tensor as memory holds it when contiguous and not lazily negated."""
    if value.is_neg():
        value = value.resolve_neg()
    return value if value.is_contiguous() else value.contiguous()


def _side(
    x: Tensor, y: Tensor, count: Tensor | None, weight: Tensor | None
) -> tuple[tuple[int, int, int, int, int], list[Tensor]]:
    """Returns a side's (rows, x, y, weight, count) addresses and the tensors to keep alive."""
    x, y = _dense(x), _dense(y)
    kept = [x, y]
    weight_address = count_address = 0
    if weight is not None:
        weight = _dense(weight)
        weight_address = weight.data_ptr()
        kept.append(weight)
    if count is not None:
        count = _dense(count)
        count_address = count.data_ptr()
        kept.append(count)
    return (x.shape[1], x.data_ptr(), y.data_ptr(), weight_address, count_address), kept


def _rates(plan: Plan, inner_lr: Tensor) -> tuple[int, int, int, int, bool]:
    """Returns (address, task_stride, step_stride, leaf_stride, elementwise) of contiguous flat
    rates."""
    form = plan.options.rates
    width = {"model": 1, "leaf": len(plan.leaves), "element": plan.parameters}[form.unit]
    step_stride = width if form.per_step else 0
    task_stride = (plan.options.steps if form.per_step else 1) * width if form.per_task else 0
    leaf_stride = int(form.unit == "leaf")
    return inner_lr.data_ptr(), task_stride, step_stride, leaf_stride, form.unit == "element"


# ---------------------------------------------------------------- kernels on the CPU


def predict_cpu(params: Sequence[Tensor], x: Tensor, plan: AnyPlan) -> Tensor:
    """Returns outputs [T, N, K]."""
    plan = _resolve(plan)
    x = _dense(x)
    addresses, strides, kept = _leaf_addresses(plan, params)
    tasks, rows = x.shape[0], x.shape[1]
    out = x.new_empty((tasks, rows, plan.outputs))
    _native.native().predict(
        plan.native,
        x.dtype is torch.float64,
        tasks,
        rows,
        addresses,
        strides,
        x.data_ptr(),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    del kept
    return out


def loss_and_grad_cpu(
    params: Sequence[Tensor],
    x: Tensor,
    y: Tensor,
    count: Tensor | None,
    weight: Tensor | None,
    plan: AnyPlan,
) -> tuple[Tensor, Tensor]:
    """Returns losses [T] and gradients [T, P]."""
    plan = _resolve(plan)
    addresses, strides, kept = _leaf_addresses(plan, params)
    side, kept_side = _side(x, y, count, weight)
    tasks = x.shape[0]
    loss = x.new_empty((tasks,))
    grad = x.new_empty((tasks, plan.parameters))
    _native.native().loss_and_grad(
        plan.native,
        x.dtype is torch.float64,
        plan.loss_code,
        plan.loss_parameter,
        tasks,
        addresses,
        strides,
        side,
        loss.data_ptr(),
        grad.data_ptr(),
        torch.get_num_threads(),
    )
    del kept, kept_side
    return loss, grad


def hvp_cpu(
    params: Sequence[Tensor],
    vector: Sequence[Tensor],
    x: Tensor,
    y: Tensor,
    count: Tensor | None,
    weight: Tensor | None,
    plan: AnyPlan,
) -> Tensor:
    """Returns Hessian-vector products [T, P]."""
    plan = _resolve(plan)
    addresses, strides, kept = _leaf_addresses(plan, params)
    vector_addresses, vector_strides, kept_vector = _leaf_addresses(plan, vector)
    side, kept_side = _side(x, y, count, weight)
    tasks = x.shape[0]
    out = x.new_empty((tasks, plan.parameters))
    _native.native().hvp(
        plan.native,
        x.dtype is torch.float64,
        plan.loss_code,
        plan.loss_parameter,
        tasks,
        addresses,
        strides,
        vector_addresses,
        vector_strides,
        side,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    del kept, kept_vector, kept_side
    return out


def adapt_cpu(
    params: Sequence[Tensor],
    inner_lr: Tensor,
    x: Tensor,
    y: Tensor,
    count: Tensor | None,
    weight: Tensor | None,
    plan: AnyPlan,
) -> tuple[Tensor, Tensor]:
    """Returns adapted parameters [T, P] ([T, S + 1, P] if stepwise) and support losses [T, S]."""
    plan = _resolve(plan)
    options = plan.options
    addresses, strides, kept = _leaf_addresses(plan, params)
    side, kept_side = _side(x, y, count, weight)
    inner_lr = _dense(inner_lr)
    tasks = x.shape[0]
    shape = (tasks, options.steps + 1) if options.stepwise else (tasks,)
    out = x.new_empty((*shape, plan.parameters))
    support_loss = x.new_empty((tasks, options.steps))
    _native.native().adapt(
        plan.native,
        x.dtype is torch.float64,
        plan.loss_code,
        plan.loss_parameter,
        tasks,
        options.steps,
        addresses,
        strides,
        options.adapt,
        _rates(plan, inner_lr),
        side,
        out.data_ptr(),
        options.stepwise,
        support_loss.data_ptr(),
        torch.get_num_threads(),
    )
    del kept, kept_side
    return out, support_loss


def _meta(
    params: Sequence[Tensor],
    inner_lr: Tensor,
    support: Side,
    query: Side,
    task_weight: Tensor | None,
    plan: Plan,
    with_grad: bool,
) -> MetaGradOutputs:
    """Runs the inner loops and, if asked, the way back. Without it only the first output counts."""
    options = plan.options
    addresses, strides, kept = _leaf_addresses(plan, params)
    support_side, kept_support = _side(*support)
    query_side, kept_query = _side(*query)
    inner_lr = _dense(inner_lr)
    if task_weight is not None:
        task_weight = _dense(task_weight)
    x = support[0]
    tasks, steps = x.shape[0], options.steps
    loss = x.new_empty((tasks,))
    support_loss = grads = rate_grad = loss
    query_loss = None
    grad_addresses: list[int] = []
    support_address = query_address = rate_address = 0
    if with_grad:
        support_loss = x.new_empty((tasks, steps))
        sizes = plan.sizes
        if any(strides):
            sizes = [
                tasks * size if s else size for size, s in zip(plan.sizes, strides, strict=True)
            ]
        grads = x.new_empty((sum(sizes),))
        rate_grad = torch.empty_like(inner_lr)
        support_address, rate_address = support_loss.data_ptr(), rate_grad.data_ptr()
        if options.stepwise:
            query_loss = x.new_empty((tasks, steps + 1))
            query_address = query_loss.data_ptr()
        base, width = grads.data_ptr(), x.element_size()
        for size in sizes:
            grad_addresses.append(base)
            base += width * size
    _native.native().meta_grad(
        plan.native,
        x.dtype is torch.float64,
        plan.loss_code,
        plan.loss_parameter,
        tasks,
        steps,
        options.order,
        addresses,
        strides,
        options.adapt,
        _rates(plan, inner_lr),
        support_side,
        query_side,
        0 if task_weight is None else task_weight.data_ptr(),
        loss.data_ptr(),
        support_address,
        query_address,
        grad_addresses,
        strides if with_grad else [],
        rate_address,
        torch.get_num_threads(),
    )
    del kept, kept_support, kept_query
    return MetaGradOutputs(loss, support_loss, query_loss, grads, rate_grad)


def meta_loss_cpu(
    params: Sequence[Tensor],
    inner_lr: Tensor,
    support_x: Tensor,
    support_y: Tensor,
    support_count: Tensor | None,
    support_weight: Tensor | None,
    query_x: Tensor,
    query_y: Tensor,
    query_count: Tensor | None,
    query_weight: Tensor | None,
    plan: AnyPlan,
) -> Tensor:
    """Returns query losses after the inner loops [T]."""
    support = (support_x, support_y, support_count, support_weight)
    query = (query_x, query_y, query_count, query_weight)
    return _meta(params, inner_lr, support, query, None, _resolve(plan), False).loss


def meta_grad_cpu(
    params: Sequence[Tensor],
    inner_lr: Tensor,
    support_x: Tensor,
    support_y: Tensor,
    support_count: Tensor | None,
    support_weight: Tensor | None,
    query_x: Tensor,
    query_y: Tensor,
    query_count: Tensor | None,
    query_weight: Tensor | None,
    task_weight: Tensor | None,
    plan: AnyPlan,
) -> MetaGradOutputs:
    """Returns the losses and the gradient of sum_t task_weight_t loss_t (1/T if None)."""
    support = (support_x, support_y, support_count, support_weight)
    query = (query_x, query_y, query_count, query_weight)
    return _meta(params, inner_lr, support, query, task_weight, _resolve(plan), True)


def _meta_grad_op(*arguments: Any) -> tuple[Tensor, ...]:
    """meta_grad with a tensor [T, 0] in the place of step-wise losses that were not asked for."""
    out = meta_grad_cpu(*arguments)
    return tuple(out.loss.new_empty((len(out.loss), 0)) if v is None else v for v in out)


def scale_grad(cotangent: Tensor, gradient: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """Returns a known gradient times a 0-d cotangent. It depends on `inputs`, in a way that has no
    formula."""
    return gradient * cotangent


# ---------------------------------------------------------------- shape rules


def _predict_fake(params: Sequence[Tensor], x: Tensor, plan: str) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1], parse_plan(plan).outputs))


def _loss_and_grad_fake(
    params: Sequence[Tensor], x: Tensor, y: Tensor, count: Any, weight: Any, plan: str
) -> tuple[Tensor, Tensor]:
    tasks = x.shape[0]
    return x.new_empty((tasks,)), x.new_empty((tasks, parse_plan(plan).parameters))


def _hvp_fake(
    params: Sequence[Tensor],
    vector: Sequence[Tensor],
    x: Tensor,
    y: Tensor,
    count: Any,
    weight: Any,
    plan: str,
) -> Tensor:
    return x.new_empty((x.shape[0], parse_plan(plan).parameters))


def _adapt_fake(
    params: Sequence[Tensor],
    inner_lr: Tensor,
    x: Tensor,
    y: Tensor,
    count: Any,
    weight: Any,
    plan: str,
) -> tuple[Tensor, Tensor]:
    found = parse_plan(plan)
    tasks, steps = x.shape[0], found.options.steps
    shape = (tasks, steps + 1) if found.options.stepwise else (tasks,)
    return x.new_empty((*shape, found.parameters)), x.new_empty((tasks, steps))


def _meta_loss_fake(
    params: Sequence[Tensor], inner_lr: Tensor, support_x: Tensor, *rest: Any
) -> Tensor:
    return support_x.new_empty((support_x.shape[0],))


def _meta_grad_fake(
    params: Sequence[Tensor], inner_lr: Tensor, support_x: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    plan = parse_plan(rest[-1])
    tasks, steps = support_x.shape[0], plan.options.steps
    size: Any = 0
    for leaf, value in zip(plan.leaves, params, strict=True):
        size = size + (tasks * leaf.size if value.ndim > len(leaf.shape) else leaf.size)
    return (
        support_x.new_empty((tasks,)),
        support_x.new_empty((tasks, steps)),
        support_x.new_empty((tasks, steps + 1 if plan.options.stepwise else 0)),
        support_x.new_empty((size,)),
        support_x.new_empty(inner_lr.shape),
    )


# ---------------------------------------------------------------- autograd formulas


def _raise_no_backward(name: str) -> Callable[..., NoReturn]:
    """Returns the formula of an operation that has no derivative."""

    def backward(ctx: Any, *cotangents: Any) -> NoReturn:
        raise RuntimeError(NO_BACKWARD.format(op=name))

    return backward


def _raise_double_backward(ctx: Any, *cotangents: Any) -> NoReturn:
    """The formula of meta_grad: it is itself a derivative."""
    raise RuntimeError(DOUBLE_BACKWARD.format(op="meta_loss"))


def _meta_loss_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keeps the inputs alone."""
    params, *tensors, plan = inputs
    ctx.save_for_backward(*params, *tensors)
    ctx.plan = plan
    ctx.leaves = len(params)


def _meta_loss_backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
    """The vector-Jacobian product of meta_loss: one meta_grad weighted by the cotangent."""
    saved = ctx.saved_tensors
    params, tensors = list(saved[: ctx.leaves]), saved[ctx.leaves :]
    out = META_GRAD(params, *tensors, cotangent, ctx.plan)
    grads = split_grads(parse_plan(ctx.plan), params, out[3], tensors[1].shape[0])
    return (grads, out[4], *(None,) * len(tensors[1:]), None)


def split_grads(plan: Plan, params: Sequence[Tensor], flat: Tensor, tasks: int) -> list[Tensor]:
    """Returns the flat gradient leaf by leaf, [...] if shared and [T, ...] if per task."""
    sizes, shapes = plan.sizes, plan.shapes
    for i, (value, shape) in enumerate(zip(params, plan.shapes, strict=True)):
        if value.ndim > len(shape):
            if shapes is plan.shapes:
                sizes, shapes = list(sizes), list(shapes)
            sizes[i] *= tasks
            shapes[i] = (tasks, *shape)
    parts = flat.split_with_sizes(sizes)
    return [
        part if len(shape) == 1 else part.view(shape)
        for part, shape in zip(parts, shapes, strict=True)
    ]


# ---------------------------------------------------------------- registration

_LIBRARY = torch.library.Library("innerloop", "DEF")  # registrations live as long as this object
_SIDE = "Tensor {0}x, Tensor {0}y, Tensor? {0}count, Tensor? {0}weight"
_SIDES = f"{_SIDE.format('support_')}, {_SIDE.format('query_')}"


class _Op(NamedTuple):
    """One raw op: everything that is registered for it."""

    schema: str
    cpu: Callable[..., Any]
    fake: Callable[..., Any]
    backward: Callable[..., Any]
    setup_context: Callable[..., None] | None = None


_OPS = {
    "predict": _Op(
        "(Tensor[] params, Tensor x, str plan) -> Tensor",
        predict_cpu,
        _predict_fake,
        _raise_no_backward("predict"),
    ),
    "loss_and_grad": _Op(
        f"(Tensor[] params, {_SIDE.format('')}, str plan) -> (Tensor, Tensor)",
        loss_and_grad_cpu,
        _loss_and_grad_fake,
        _raise_no_backward("loss_and_grad"),
    ),
    "hvp": _Op(
        f"(Tensor[] params, Tensor[] vector, {_SIDE.format('')}, str plan) -> Tensor",
        hvp_cpu,
        _hvp_fake,
        _raise_no_backward("hvp"),
    ),
    "adapt": _Op(
        f"(Tensor[] params, Tensor inner_lr, {_SIDE.format('')}, str plan) -> (Tensor, Tensor)",
        adapt_cpu,
        _adapt_fake,
        _raise_no_backward("adapt"),
    ),
    "meta_loss": _Op(
        f"(Tensor[] params, Tensor inner_lr, {_SIDES}, str plan) -> Tensor",
        meta_loss_cpu,
        _meta_loss_fake,
        _meta_loss_backward,
        _meta_loss_setup,
    ),
    "meta_grad": _Op(
        f"(Tensor[] params, Tensor inner_lr, {_SIDES}, Tensor? task_weight, str plan)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        _meta_grad_op,
        _meta_grad_fake,
        _raise_double_backward,
    ),
    "scale_grad": _Op(
        "(Tensor cotangent, Tensor gradient, Tensor[] inputs) -> Tensor",
        scale_grad,
        lambda cotangent, gradient, inputs: torch.empty_like(gradient),
        _raise_double_backward,
    ),
}

for _name, _op in _OPS.items():
    _LIBRARY.define(_name + _op.schema)
    _LIBRARY.impl(_name, _op.cpu, "CPU")
    torch.library.register_fake(f"innerloop::{_name}", _op.fake, lib=_LIBRARY)
    torch.library.register_autograd(
        f"innerloop::{_name}", _op.backward, setup_context=_op.setup_context, lib=_LIBRARY
    )

# called directly; unlike the op, meta_grad gives None for what was not asked for
KERNELS = {**{name: op.cpu for name, op in _OPS.items()}, "meta_grad": meta_grad_cpu}
RAW = {name: getattr(torch.ops.innerloop, name).default for name in _OPS}
META_GRAD = RAW["meta_grad"]
SCALE_GRAD = RAW["scale_grad"]
