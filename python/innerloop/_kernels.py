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
from innerloop._arguments import Arguments
from innerloop._plan import Plan

# why the CPU kernels cannot be called; empty when they can
UNAVAILABLE = _native.reason()


class MetaGradOutputs(NamedTuple):
    """loss [T]; support_loss [T, S]; query_loss [T, S + 1] if stepwise; grads leaf after leaf,
    each [...] if shared and [T, ...] if per task: in one row, or a list; rate_grad shaped as the
    flat rates."""

    loss: Tensor
    support_loss: Tensor
    query_loss: Tensor | None
    grads: Any
    rate_grad: Tensor


# ---------------------------------------------------------------- where to run


# an extension module, its own plan of the call, and what ends every call of it: the number of
# threads on the CPU, (device, stream, allocate, facts, allow_tf32) on a GPU
Target = tuple[ModuleType, Any, Any]


def native_plan(plan: Plan, module: ModuleType) -> Any:
    """Returns what a module has made of a plan."""
    found = plan.native.get(module)
    if found is None:
        found = plan.native[module] = module.Plan(**plan.native_arguments())
    return found


def _cpu_target(plan: Plan, x: Tensor) -> Target:
    """Returns the CPU kernels, with torch's number of threads."""
    module = _native.native()
    return module, native_plan(plan, module), torch.get_num_threads()


def _cuda_target(plan: Plan, x: Tensor) -> Target:
    """Returns the CUDA kernels, on the current stream of the device of `x`."""
    module = _native.cuda()
    place = device_place(x.device, plan.options.execution.allow_tf32)
    return module, native_plan(plan, module), place


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


TARGETS: dict[str, Callable[[Plan, Tensor], Target]] = {"cpu": _cpu_target, "cuda": _cuda_target}


def _target(plan: Plan, x: Tensor) -> Target:
    """Returns where a call of the tensor `x` runs."""
    return TARGETS["cuda" if x.is_cuda else "cpu"](plan, x)


# ---------------------------------------------------------------- kernels


def predict(plan: Plan, given: Arguments) -> Tensor:
    """Returns outputs [T, N, K]."""
    x = given.support.x
    module, native, place = _target(plan, x)
    out = x.new_empty(x.shape[0], x.shape[1], plan.outputs)
    module.predict(native, given.params, x, out, place)
    return out


def loss_and_grad(plan: Plan, given: Arguments) -> tuple[Tensor, Tensor]:
    """Returns losses [T] and gradients [T, P]."""
    x = given.support.x
    module, native, place = _target(plan, x)
    tasks = x.shape[0]
    loss, grad = x.new_empty(tasks), x.new_empty(tasks, plan.parameters)
    module.loss_and_grad(native, given.params, given.support, loss, grad, place)
    return loss, grad


def hvp(plan: Plan, given: Arguments) -> Tensor:
    """Returns Hessian-vector products [T, P]."""
    x = given.support.x
    module, native, place = _target(plan, x)
    out = x.new_empty(x.shape[0], plan.parameters)
    module.hvp(native, given.params, given.vector, given.support, out, place)
    return out


def fisher_product(plan: Plan, given: Arguments) -> Tensor:
    """Returns products with the Gauss-Newton matrix of the objective [T, P]."""
    x = given.support.x
    module, native, place = _target(plan, x)
    out = x.new_empty(x.shape[0], plan.parameters)
    module.metric(native, given.params, given.vector, given.support, out, place)
    return out


def linearize(
    name: str, plan: Plan, given: Arguments
) -> Callable[[Sequence[Tensor]], Tensor] | None:
    """Returns the function vector -> product [T, P] of "hvp" or "fisher_product" that keeps what
    does not depend on the vector; None where kernels do not."""
    x = given.support.x
    module, native, place = _target(plan, x)
    if not hasattr(module, "Linearization"):
        return None
    linear = module.Linearization(
        native, list(given.params), given.support, is_metric=name == "fisher_product"
    )

    def product(vector: Sequence[Tensor]) -> Tensor:
        out = x.new_empty(x.shape[0], plan.parameters)
        linear.product(vector, out, place)
        return out

    return product


def adapt(plan: Plan, given: Arguments) -> tuple[Tensor, Tensor]:
    """Returns adapted parameters [T, P] ([T, S + 1, P] if stepwise) and support losses [T, S]."""
    x = given.support.x
    module, native, place = _target(plan, x)
    tasks, steps = x.shape[0], plan.options.inner.steps
    shape = (tasks, steps + 1) if plan.options.stepwise else (tasks,)
    out, support_loss = x.new_empty(*shape, plan.parameters), x.new_empty(tasks, steps)
    module.adapt(native, given.params, given.rates, given.support, out, support_loss, place)
    return out, support_loss


def meta_loss(plan: Plan, given: Arguments) -> Tensor:
    """Returns query losses after the inner loops [T]."""
    x = given.support.x
    module, native, place = _target(plan, x)
    loss = x.new_empty(x.shape[0])
    module.meta_grad(
        native, given.params, given.rates, given.support, given.query, None,
        loss, None, None, None, None, place,
    )  # fmt: skip
    return loss


def meta_grad(plan: Plan, given: Arguments) -> MetaGradOutputs:
    """Returns the losses and the gradient of sum_t task_weight_t loss_t (1/T if None), in a row."""
    flat = given.support.x.new_empty(sum([value.numel() for value in given.params]))
    return _meta_grad(plan, given, flat)


def meta_grad_by_leaf(plan: Plan, given: Arguments) -> MetaGradOutputs:
    """Returns the same, with a gradient for each leaf: faster than a row that is cut."""
    return _meta_grad(plan, given, [_contiguous_like(value) for value in given.params])


def _contiguous_like(value: Tensor) -> Tensor:
    """Returns an uninitialised tensor of the same shape whose numbers lie one by one."""
    if value.is_contiguous():
        return torch.empty_like(value)
    return torch.empty_like(value, memory_format=torch.contiguous_format)


def split(flat: Tensor, params: Sequence[Tensor]) -> list[Tensor]:
    """Returns what lies in a row leaf by leaf, each shaped as its parameter."""
    parts = flat.split_with_sizes([value.numel() for value in params])
    return [
        part if value.ndim == 1 else part.view(value.shape)
        for part, value in zip(parts, params, strict=True)
    ]


def _meta_grad(plan: Plan, given: Arguments, grads: Tensor | list[Tensor]) -> MetaGradOutputs:
    """Calls the kernel, which fills `grads`."""
    x = given.support.x
    module, native, place = _target(plan, x)
    tasks, steps = x.shape[0], plan.options.inner.steps
    out = MetaGradOutputs(
        x.new_empty(tasks),
        x.new_empty(tasks, steps),
        x.new_empty(tasks, steps + 1) if plan.options.stepwise else None,
        grads,
        _contiguous_like(given.rates),
    )
    module.meta_grad(
        native, given.params, given.rates, given.support, given.query, given.task_weight, *out,
        place,
    )  # fmt: skip
    return out


KERNELS: dict[str, Callable[[Plan, Arguments], Any]] = {
    "predict": predict,
    "loss_and_grad": loss_and_grad,
    "hvp": hvp,
    "fisher_product": fisher_product,
    "adapt": adapt,
    "meta_loss": meta_loss,
    "meta_grad": meta_grad,
}
