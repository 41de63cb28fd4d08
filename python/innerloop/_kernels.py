"""The kernels as torch sees them: tensors in, tensors out, one native call each, where the
tensors are. Outputs are allocated here; nothing is checked, and nothing is known to torch's
dispatcher (`_ops.py` registers what is here)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from innerloop import _native
from innerloop._params import SideTensors
from innerloop._plan import Plan, parse_plan

AnyPlan = Any  # a Plan, or its text when the call came through torch's dispatcher

# why the CPU kernels cannot be called; empty when they can
UNAVAILABLE = _native.reason()


class MetaGradOutputs(NamedTuple):
    """loss [T]; support_loss [T, S]; query_loss [T, S + 1] if stepwise; grads flat, leaf after
    leaf, each [...] if shared and [T, ...] if per task; rate_grad shaped as the flat rates."""

    loss: Tensor
    support_loss: Tensor
    query_loss: Tensor | None
    grads: Tensor
    rate_grad: Tensor


# ---------------------------------------------------------------- where to run


class Target(NamedTuple):
    """An extension module, its description of the model, and what ends every call of it: the number
    of threads on the CPU, (device, stream, allocate, facts, allow_tf32) on a GPU."""

    module: ModuleType
    model: Any
    place: Any


def _native_model(plan: Plan, module: ModuleType) -> Any:
    """Returns the description of the plan's model that a module has made of it."""
    model = plan.native.get(module)
    if model is None:
        model = plan.native[module] = module.Model(*plan.native_arguments())
    return model


def _cpu_target(plan: Plan, x: Tensor) -> Target:
    """Returns the CPU kernels, with torch's number of threads."""
    module = _native.native()
    return Target(module, _native_model(plan, module), torch.get_num_threads())


def _cuda_target(plan: Plan, x: Tensor) -> Target:
    """Returns the CUDA kernels, on the current stream of the device of `x`."""
    module = _native.cuda()
    place = device_place(x.device, plan.options.allow_tf32)
    return Target(module, _native_model(plan, module), place)


def device_place(
    device: torch.device, allow_tf32: bool
) -> tuple[int, int, Callable[[int], int], None, bool]:
    """Returns (device, stream, allocate, None, allow_tf32): where the CUDA kernels run, and how
    they get scratch memory. Torch's allocator may hand the memory on when `allocate` is gone, to
    work that follows on the same stream."""
    kept = []

    def allocate(size: int) -> int:
        kept.append(torch.empty(size, dtype=torch.uint8, device=device))
        return kept[-1].data_ptr()

    index = torch.cuda.current_device() if device.index is None else device.index
    return index, torch.cuda.current_stream(device).cuda_stream, allocate, None, allow_tf32


_TARGETS: dict[str, Callable[[Plan, Tensor], Target]] = {"cpu": _cpu_target, "cuda": _cuda_target}


def _resolve(plan: AnyPlan, x: Tensor) -> tuple[Plan, Target]:
    """Returns the plan and where to run it."""
    found: Plan = plan if isinstance(plan, Plan) else parse_plan(plan)
    return found, _TARGETS[x.device.type](found, x)


def _rates(plan: Plan, inner_lr: Tensor) -> tuple[Tensor, int, int, int, bool]:
    """Returns the flat rates with their (task_stride, step_stride, leaf_stride, elementwise)."""
    form = plan.options.rates
    if form.unit == "model" and not form.per_task:
        return inner_lr, 0, int(form.per_step), 0, False
    width = {"model": 1, "leaf": len(plan.leaves), "element": plan.parameters}[form.unit]
    step_stride = width if form.per_step else 0
    task_stride = (plan.options.steps if form.per_step else 1) * width if form.per_task else 0
    return inner_lr, task_stride, step_stride, int(form.unit == "leaf"), form.unit == "element"


# ---------------------------------------------------------------- kernels


def predict(params: Sequence[Tensor], x: Tensor, plan: AnyPlan) -> Tensor:
    """Returns outputs [T, N, K]."""
    plan, target = _resolve(plan, x)
    tasks, rows = x.shape[0], x.shape[1]
    out = x.new_empty((tasks, rows, plan.outputs))
    target.module.predict(
        target.model,
        x.dtype is torch.float64,
        tasks,
        rows,
        params,
        x,
        out,
        target.place,
    )
    return out


def loss_and_grad(
    params: Sequence[Tensor],
    x: Tensor,
    y: Tensor,
    count: Tensor | None,
    weight: Tensor | None,
    plan: AnyPlan,
) -> tuple[Tensor, Tensor]:
    """Returns losses [T] and gradients [T, P]."""
    plan, target = _resolve(plan, x)
    tasks = x.shape[0]
    loss = x.new_empty((tasks,))
    grad = x.new_empty((tasks, plan.parameters))
    target.module.loss_and_grad(
        target.model,
        x.dtype is torch.float64,
        plan.loss_code,
        plan.loss_parameter,
        tasks,
        params,
        (x.shape[1], x, y, count, weight),
        loss,
        grad,
        target.place,
    )
    return loss, grad


def hvp(
    params: Sequence[Tensor],
    vector: Sequence[Tensor],
    x: Tensor,
    y: Tensor,
    count: Tensor | None,
    weight: Tensor | None,
    plan: AnyPlan,
) -> Tensor:
    """Returns Hessian-vector products [T, P]."""
    plan, target = _resolve(plan, x)
    tasks = x.shape[0]
    out = x.new_empty((tasks, plan.parameters))
    target.module.hvp(
        target.model,
        x.dtype is torch.float64,
        plan.loss_code,
        plan.loss_parameter,
        tasks,
        params,
        vector,
        (x.shape[1], x, y, count, weight),
        out,
        target.place,
    )
    return out


def adapt(
    params: Sequence[Tensor],
    inner_lr: Tensor,
    x: Tensor,
    y: Tensor,
    count: Tensor | None,
    weight: Tensor | None,
    plan: AnyPlan,
) -> tuple[Tensor, Tensor]:
    """Returns adapted parameters [T, P] ([T, S + 1, P] if stepwise) and support losses [T, S]."""
    plan, target = _resolve(plan, x)
    options = plan.options
    tasks = x.shape[0]
    shape = (tasks, options.steps + 1) if options.stepwise else (tasks,)
    out = x.new_empty((*shape, plan.parameters))
    support_loss = x.new_empty((tasks, options.steps))
    target.module.adapt(
        target.model,
        x.dtype is torch.float64,
        plan.loss_code,
        plan.loss_parameter,
        tasks,
        options.steps,
        params,
        options.adapt,
        _rates(plan, inner_lr),
        (x.shape[1], x, y, count, weight),
        out,
        options.stepwise,
        support_loss,
        target.place,
    )
    return out, support_loss


def _meta(
    params: Sequence[Tensor],
    inner_lr: Tensor,
    support: SideTensors,
    query: SideTensors,
    task_weight: Tensor | None,
    plan: AnyPlan,
    with_grad: bool,
) -> MetaGradOutputs:
    """Runs the inner loops and, if asked, the way back. Without it only the first output counts."""
    x, query_x = support[0], query[0]
    plan, target = _resolve(plan, x)
    options = plan.options
    tasks, steps = x.shape[0], options.steps
    loss = x.new_empty((tasks,))
    support_loss = query_loss = grads = rate_grad = None
    if with_grad:
        support_loss = x.new_empty((tasks, steps))
        size = plan.parameters
        for value, leaf in zip(params, plan.leaves, strict=True):
            if value.ndim > len(leaf.shape):
                size += (tasks - 1) * leaf.size
        grads = x.new_empty((size,))
        rate_grad = x.new_empty(inner_lr.shape)
        if options.stepwise:
            query_loss = x.new_empty((tasks, steps + 1))
    target.module.meta_grad(
        target.model,
        x.dtype is torch.float64,
        plan.loss_code,
        plan.loss_parameter,
        tasks,
        steps,
        options.order,
        params,
        options.adapt,
        _rates(plan, inner_lr),
        (x.shape[1], *support),
        (query_x.shape[1], *query),
        task_weight,
        loss,
        support_loss,
        query_loss,
        grads,
        rate_grad,
        target.place,
    )
    if support_loss is None or grads is None or rate_grad is None:
        support_loss = grads = rate_grad = loss
    return MetaGradOutputs(loss, support_loss, query_loss, grads, rate_grad)


def meta_loss(
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
    return _meta(params, inner_lr, support, query, None, plan, False).loss


def meta_grad(
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
    return _meta(params, inner_lr, support, query, task_weight, plan, True)
