"""The raw torch ops over the native extension: schemas, shape rules, autograd formulas,
registration.

Every op takes plain tensors and the text of a Plan. Each has an autograd formula: the true one for
`meta_loss`, one that raises for the others, so that no path can drop a gradient silently.
`_autograd.py` adds what torch.func and forward mode need: torch's library has no place for a jvp,
so that an op called by itself does not see tangents. Nothing here checks arguments;
`functional/` has done so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from innerloop import _kernels
from innerloop._arguments import Arguments
from innerloop._params import Side
from innerloop._plan import Plan, parse_plan

# raised in a backward pass, where nobody knows which of them was called
_META_LOSS = "meta_loss (which MAML and JointTraining call)"
DOUBLE_BACKWARD = (
    f"{_META_LOSS}: only first derivatives in params and inner_lr are provided by the fused "
    'operations; use backend="torch" for higher ones'
)
CONSTANT = (
    "{op}: its results are constants; differentiate meta_loss, which has first derivatives in "
    'params and inner_lr, or use backend="torch"'
)
NO_DATA_GRAD = (
    f"{_META_LOSS}: the fused operation has no derivatives in x, y and weight; "
    'use backend="torch", which has them'
)
NO_BACKWARD = (
    "{op}: the fused operation cannot be differentiated; use meta_loss for meta-gradients, "
    'or backend="torch"'
)


# ---------------------------------------------------------------- as torch's dispatcher calls them


def _predict(params: Sequence[Tensor], x: Tensor, plan: str) -> Tensor:
    return _kernels.predict(parse_plan(plan), Arguments(params, support=Side(x, None)))  # type: ignore[arg-type]


def _loss_and_grad(
    params: Sequence[Tensor], x: Tensor, y: Tensor, count: Any, weight: Any, plan: str
) -> tuple[Tensor, Tensor]:
    given = Arguments(params, support=Side(x, y, count, weight))
    return _kernels.loss_and_grad(parse_plan(plan), given)


def _hvp(
    params: Sequence[Tensor],
    vector: Sequence[Tensor],
    x: Tensor,
    y: Tensor,
    count: Any,
    weight: Any,
    plan: str,
) -> Tensor:
    given = Arguments(params, support=Side(x, y, count, weight), vector=vector)
    return _kernels.hvp(parse_plan(plan), given)


def _fisher_product(
    params: Sequence[Tensor],
    vector: Sequence[Tensor],
    x: Tensor,
    y: Tensor,
    count: Any,
    weight: Any,
    plan: str,
) -> Tensor:
    given = Arguments(params, support=Side(x, y, count, weight), vector=vector)
    return _kernels.fisher_product(parse_plan(plan), given)


def _adapt(
    params: Sequence[Tensor],
    rates: Tensor,
    x: Tensor,
    y: Tensor,
    count: Any,
    weight: Any,
    plan: str,
) -> tuple[Tensor, Tensor]:
    return _kernels.adapt(parse_plan(plan), Arguments(params, rates, Side(x, y, count, weight)))


def _meta_loss(
    params: Sequence[Tensor],
    rates: Tensor,
    support_x: Tensor,
    support_y: Tensor,
    support_count: Any,
    support_weight: Any,
    query_x: Tensor,
    query_y: Tensor,
    query_count: Any,
    query_weight: Any,
    plan: str,
) -> Tensor:
    support = Side(support_x, support_y, support_count, support_weight)
    query = Side(query_x, query_y, query_count, query_weight)
    return _kernels.meta_loss(parse_plan(plan), Arguments(params, rates, support, query))


def _meta_grad(
    params: Sequence[Tensor],
    rates: Tensor,
    support_x: Tensor,
    support_y: Tensor,
    support_count: Any,
    support_weight: Any,
    query_x: Tensor,
    query_y: Tensor,
    query_count: Any,
    query_weight: Any,
    task_weight: Any,
    plan: str,
) -> tuple[Tensor, ...]:
    """With a tensor [T, 0] in the place of step-wise losses that were not asked for."""
    support = Side(support_x, support_y, support_count, support_weight)
    query = Side(query_x, query_y, query_count, query_weight)
    given = Arguments(params, rates, support, query, task_weight)
    out = _kernels.meta_grad(parse_plan(plan), given)
    return tuple(out.loss.new_empty((len(out.loss), 0)) if v is None else v for v in out)


def _mean_meta_loss(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The weighted sum of the losses, and of the arguments of meta_grad the losses and the
    gradients."""
    loss, _, _, grads, rate_grad = _meta_grad(*arguments)
    return weighted_total(loss, arguments[-2]), loss, grads, rate_grad


def weighted_total(loss: Tensor, task_weight: Tensor | None) -> Tensor:
    """Returns sum_t w_t loss_t, with w_t = 1/T if None, as a 0-d tensor."""
    if task_weight is not None:
        return torch.dot(loss, task_weight)
    return loss.mean() if loss.shape[0] else loss.sum()


def call(name: str, plan: Plan, given: Arguments) -> Any:
    """Calls the op of an operation."""
    op, text = RAW[name], plan.text
    if name == "predict":
        return op(given.params, given.support.x, text)
    if name == "loss_and_grad":
        return op(given.params, *given.support, text)
    if name in ("hvp", "fisher_product"):
        return op(given.params, given.vector, *given.support, text)
    if name == "adapt":
        return op(given.params, given.rates, *given.support, text)
    sides = (*given.support, *given.query)
    if name == "meta_loss":
        return op(given.params, given.rates, *sides, text)
    return op(given.params, given.rates, *sides, given.task_weight, text)


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
    rates: Tensor,
    x: Tensor,
    y: Tensor,
    count: Any,
    weight: Any,
    plan: str,
) -> tuple[Tensor, Tensor]:
    found = parse_plan(plan)
    tasks, steps = x.shape[0], found.options.inner.steps
    shape = (tasks, steps + 1) if found.options.stepwise else (tasks,)
    return x.new_empty((*shape, found.parameters)), x.new_empty((tasks, steps))


def _meta_loss_fake(
    params: Sequence[Tensor], rates: Tensor, support_x: Tensor, *rest: Any
) -> Tensor:
    return support_x.new_empty((support_x.shape[0],))


def _meta_grad_fake(
    params: Sequence[Tensor], rates: Tensor, support_x: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    plan = parse_plan(rest[-1])
    tasks, steps = support_x.shape[0], plan.options.inner.steps
    size: Any = 0
    for leaf, value in zip(plan.leaves, params, strict=True):
        size = size + (tasks * leaf.size if value.ndim > len(leaf.shape) else leaf.size)
    return (
        support_x.new_empty((tasks,)),
        support_x.new_empty((tasks, steps)),
        support_x.new_empty((tasks, steps + 1 if plan.options.stepwise else 0)),
        support_x.new_empty((size,)),
        support_x.new_empty(rates.shape),
    )


def _mean_meta_loss_fake(*arguments: Any) -> tuple[Tensor, ...]:
    loss, _, _, grads, rate_grad = _meta_grad_fake(*arguments)
    return loss.new_empty(()), loss, grads, rate_grad


# ---------------------------------------------------------------- autograd formulas


def _raise_no_backward(name: str) -> Callable[..., NoReturn]:
    """Returns the formula of an operation that has no derivative."""

    def backward(ctx: Any, *cotangents: Any) -> NoReturn:
        raise RuntimeError(NO_BACKWARD.format(op=name))

    return backward


def _raise_double_backward(ctx: Any, *cotangents: Any) -> NoReturn:
    """The formula of meta_grad: it is itself a derivative."""
    raise RuntimeError(DOUBLE_BACKWARD)


def _meta_loss_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keeps the inputs alone."""
    params, *tensors, plan = inputs
    ctx.save_for_backward(*params, *tensors)
    ctx.plan = parse_plan(plan)


def _meta_loss_backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
    """The vector-Jacobian product of meta_loss."""
    leaves = len(ctx.plan.leaves)
    saved = ctx.saved_tensors  # once, as activation checkpointing wants it
    params, tensors = saved[:leaves], saved[leaves:]
    rates, x, y, count, weight, *query = tensors
    given = Arguments(params, rates, Side(x, y, count, weight), Side(*query))
    _, found = meta_loss_gradient(call, ctx.plan, given, cotangent)
    return (found.params, found.rates, *found.data(), None)


def _mean_meta_loss_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keeps the gradients, and what has one so that a second derivative meets `scale_grad`."""
    params, rates, *_, task_weight, _plan = inputs
    ctx.save_for_backward(*output[1:], task_weight, rates, *params)


def _mean_meta_loss_backward(ctx: Any, cotangent: Tensor, *ignored: Any) -> tuple[Any, ...]:
    """Scales the gradients; the other results are constants."""
    loss, grads, rate_grad, task_weight, rates, *params = ctx.saved_tensors
    inputs = [value for value in (task_weight, rates, *params) if value is not None]

    def scaled(gradient: Tensor) -> Tensor:
        product: Tensor = SCALE_GRAD(cotangent, gradient, inputs)
        return product

    weight_grad = None if task_weight is None else scaled(loss)
    sides = (None,) * (2 * len(Side._fields))
    return (_kernels.split(scaled(grads), params), scaled(rate_grad), *sides, weight_grad, None)


def meta_loss_gradient(
    call_op: Callable[[str, Plan, Arguments], Any], plan: Plan, given: Arguments, cotangent: Tensor
) -> tuple[Tensor, Arguments]:
    """Returns the losses and the gradient of sum_t cotangent_t loss_t: one meta_grad, by `call_op`,
    weighted by the cotangent."""
    out = call_op("meta_grad", plan, given._replace(task_weight=cotangent))
    return out[0], Arguments(_kernels.split(out[3], given.params), out[4])


# ---------------------------------------------------------------- registration

_PLAIN = (Tensor, torch.nn.Parameter)


def _from_dispatcher(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a kernel as torch's dispatcher calls it: with subclasses of tensors, read as what
    they hold."""

    def plain(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [plain(each) for each in value]
        if not isinstance(value, Tensor):
            return value
        return value if type(value) in _PLAIN else value.as_subclass(Tensor)

    def called(*arguments: Any) -> Any:
        return kernel(*(plain(value) for value in arguments))

    return called


_LIBRARY = torch.library.Library("innerloop", "DEF")  # registrations live as long as this object
_SIDE = "Tensor {0}x, Tensor {0}y, Tensor? {0}count, Tensor? {0}weight"
_SIDES = f"{_SIDE.format('support_')}, {_SIDE.format('query_')}"


class _Op(NamedTuple):
    """One raw op: everything that is registered for it."""

    schema: str
    kernel: Callable[..., Any]
    fake: Callable[..., Any]
    backward: Callable[..., Any]
    setup_context: Callable[..., None] | None = None


_OPS = {
    "predict": _Op(
        "(Tensor[] params, Tensor x, str plan) -> Tensor",
        _predict,
        _predict_fake,
        _raise_no_backward("predict"),
    ),
    "loss_and_grad": _Op(
        f"(Tensor[] params, {_SIDE.format('')}, str plan) -> (Tensor, Tensor)",
        _loss_and_grad,
        _loss_and_grad_fake,
        _raise_no_backward("loss_and_grad"),
    ),
    "hvp": _Op(
        f"(Tensor[] params, Tensor[] vector, {_SIDE.format('')}, str plan) -> Tensor",
        _hvp,
        _hvp_fake,
        _raise_no_backward("hvp"),
    ),
    "fisher_product": _Op(
        f"(Tensor[] params, Tensor[] vector, {_SIDE.format('')}, str plan) -> Tensor",
        _fisher_product,
        _hvp_fake,
        _raise_no_backward("fisher_product"),
    ),
    "adapt": _Op(
        f"(Tensor[] params, Tensor rates, {_SIDE.format('')}, str plan) -> (Tensor, Tensor)",
        _adapt,
        _adapt_fake,
        _raise_no_backward("adapt"),
    ),
    "meta_loss": _Op(
        f"(Tensor[] params, Tensor rates, {_SIDES}, str plan) -> Tensor",
        _meta_loss,
        _meta_loss_fake,
        _meta_loss_backward,
        _meta_loss_setup,
    ),
    "meta_grad": _Op(
        f"(Tensor[] params, Tensor rates, {_SIDES}, Tensor? task_weight, str plan)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        _meta_grad,
        _meta_grad_fake,
        _raise_double_backward,
    ),
    "mean_meta_loss": _Op(
        f"(Tensor[] params, Tensor rates, {_SIDES}, Tensor? task_weight, str plan)"
        " -> (Tensor, Tensor, Tensor, Tensor)",
        _mean_meta_loss,
        _mean_meta_loss_fake,
        _mean_meta_loss_backward,
        _mean_meta_loss_setup,
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
    for _device in ("CPU", "CUDA"):
        _LIBRARY.impl(_name, _from_dispatcher(_op.kernel), _device)
    torch.library.register_fake(f"innerloop::{_name}", _op.fake, lib=_LIBRARY)
    torch.library.register_autograd(
        f"innerloop::{_name}", _op.backward, setup_context=_op.setup_context, lib=_LIBRARY
    )

RAW = {name: getattr(torch.ops.innerloop, name).default for name in _OPS}
SCALE_GRAD = RAW["scale_grad"]
