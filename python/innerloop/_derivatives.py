"""Says which derivatives torch may be about to take of a call: by autograd, by the transforms of
torch.func, or in forward mode, whose tangents travel unseen with ordinary tensors."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

NO_COMPILED_FORWARD = (
    "innerloop: forward-mode derivatives are not provided under torch.compile; leave the call "
    'outside of it, or use backend="torch"'
)


def transforms_active() -> bool:
    """Says whether a torch.func transform (vmap, grad, ...) is running."""
    return torch._C._are_functorch_transforms_active()


def forward_mode() -> bool:
    """Says whether a level of forward mode is entered (by anyone), so that tensors may have
    tangents."""
    return forward_ad._current_level >= 0


def wants_grad(tensors: Iterable[Tensor | None]) -> bool:
    """Says whether autograd would record an operation on these tensors."""
    if torch.is_grad_enabled():
        for value in tensors:
            if value is not None and value.requires_grad:
                return True
    return False


def have_tangents(tensors: Iterable[Tensor | None]) -> bool:
    """Says whether forward mode would carry tangents through an operation on these tensors.

    Raises:
        RuntimeError: torch.compile is tracing, whose tensors show no tangents. Unless told
            otherwise it then leaves the frame to eager execution.
    """
    if forward_ad._current_level < 0:
        return False
    if torch.compiler.is_compiling():
        raise RuntimeError(NO_COMPILED_FORWARD)
    if torch._C._is_fwd_grad_enabled():
        for value in tensors:
            if value is not None and forward_ad.unpack_dual(value).tangent is not None:
                return True
    return False


def is_differentiated(value: Tensor) -> bool:
    """Says whether a derivative in this tensor is wanted, under whatever transforms it lies."""
    if torch.is_grad_enabled() and value.requires_grad:
        return True
    if torch.compiler.is_compiling():
        return have_tangents(())  # raises in forward mode
    while True:
        wrapped = _functorch.is_functorch_wrapped_tensor(value)
        if not _functorch.is_batchedtensor(value) and have_tangents((value,)):
            return True
        if not wrapped:
            return False
        value = _functorch.get_unwrapped(value)
        if torch.is_grad_enabled() and value.requires_grad:
            return True


def is_batched(value: Tensor) -> bool:
    """Says whether a tensor stands for a batch of such: of torch.vmap, or of the older vmap inside
    torch.autograd (is_grads_batched, jacobian(vectorize=True))."""
    return _functorch.is_batchedtensor(value) or _functorch.is_legacy_batchedtensor(value)


# ---------------------------------------------------------------- running again in backward

_OTHER_LOSS = (
    "meta_loss (which MAML and JointTraining call): losses had other values when backward ran the "
    "inner loops again, so that there is no gradient of the former: a tensor was changed since, or "
    "the loss draws random numbers or depends on something else that changed; take the mean "
    '(mean_meta_loss, reduction="mean"), whose gradient comes from the same pass, or '
    'backend="torch"'
)
# how far losses may lie apart that two passes compute in another order, relative to the largest
_TOLERANCE = {torch.bfloat16: 0.1, torch.float32: 1e-4, torch.float64: 1e-9}


def check_same_losses(before: Tensor, after: Tensor) -> None:
    """Checks that a second pass gave the losses of the first; not while a CUDA graph is captured.

    Raises:
        RuntimeError: it did not.
    """
    if 0 in before.shape or (before.is_cuda and torch.cuda.is_current_stream_capturing()):
        return
    if torch.equal(before, after):
        return
    tolerance = _TOLERANCE[before.dtype] * before.abs().nan_to_num(0, 0, 0).amax()
    alike = (before == after) | (before.isnan() & after.isnan())
    if not bool((alike | ((after - before).abs() <= tolerance)).all()):
        raise RuntimeError(_OTHER_LOSS)


# ---------------------------------------------------------------- questions about autograd

# by function of torch, as it is called: what torch.func answers, or does, otherwise than autograd
_QUESTIONS: dict[Any, str] = {
    **{getattr(Tensor, k).__get__: k for k in ("requires_grad", "grad_fn", "is_leaf", "data")},
    **{getattr(Tensor, k): k for k in ("register_hook", "retain_grad", "detach_")},
    torch.detach_: "detach_",
}
# the folders of this package and of torch, whose own questions are about nothing that is computed
_INSIDE = (os.path.dirname(__file__) + os.sep, os.path.dirname(torch.__file__) + os.sep)


class _Questions(threading.local):
    """The last question that was refused in this thread, or error that was raised, lest somebody
    catches it; and the state of torch's generator after its last numbers."""

    def __init__(self) -> None:
        self.asked = ""
        self.state = b""

    def start(self) -> Callable[[], None]:
        """Forgets what other tasks asked, and brings torch's generator to a state that no seed
        leads to, so that a pass that seeds it shows. Returns what undoes that if nothing was
        drawn."""
        self.asked = ""
        if torch._C._len_torch_dispatch_stack():  # which would take notes of it
            self.state = _generator_state()
            return lambda: None
        with torch._C._DisableFuncTorch(), torch._C.DisableTorchFunction():
            before = torch.default_generator.get_state()
            try:
                torch.rand(1, device="cpu")
            except RuntimeError:  # the older vmap of vectorised jacobians refuses random numbers
                self.state = _generator_state()
                return lambda: None
        started = self.state = _generator_state()

        def undo() -> None:
            if self.asked or _generator_state() == started:
                with torch._C._DisableFuncTorch():
                    torch.default_generator.set_state(before)

        return undo


QUESTIONS = _Questions()


def asks_autograd(func: Any) -> bool:
    """Says whether a call that a function mode sees is about what autograd records of a tensor. To
    be called by the mode itself."""
    return func in _QUESTIONS and is_foreign(sys._getframe(2))


def refuse_question(func: Any) -> None:
    """Raises if a call is about what autograd records, while torch.func differentiates. To be
    called by the mode itself.

    Raises:
        RuntimeError: it would not do what it does in a loop over tasks.
    """
    if func in _QUESTIONS and transforms_active() and is_foreign(sys._getframe(2)):
        text = f"it uses {_QUESTIONS[func]} of a tensor, which is another thing under torch.func"
        QUESTIONS.asked = text
        raise RuntimeError(text)


# functions of torch that draw numbers, by name
_DRAWING = frozenset(
    [
        "alpha_dropout",
        "alpha_dropout_",
        "bernoulli",
        "bernoulli_",
        "cauchy_",
        "dropout",
        "dropout1d",
        "dropout2d",
        "dropout3d",
        "dropout_",
        "exponential_",
        "feature_alpha_dropout",
        "feature_alpha_dropout_",
        "feature_dropout",
        "feature_dropout_",
        "fractional_max_pool2d",
        "fractional_max_pool3d",
        "geometric_",
        "gumbel_softmax",
        "log_normal_",
        "multi_head_attention_forward",
        "multinomial",
        "native_dropout",
        "normal",
        "normal_",
        "poisson",
        "rand",
        "rand_like",
        "randint",
        "randint_like",
        "randn",
        "randn_like",
        "random_",
        "randperm",
        "rrelu",
        "rrelu_",
        "scaled_dot_product_attention",
        "uniform_",
    ]
)


def draws(func: Any) -> bool:
    """Says whether a function of torch draws random numbers, or may."""
    return getattr(func, "__name__", "") in _DRAWING


def _generator_state() -> bytes:
    """Returns the state of torch's own generator; nothing while a mode of torch makes tensors that
    hold no numbers."""
    try:
        with torch._C._DisableFuncTorch():
            return torch.default_generator.get_state().numpy().tobytes()
    except RuntimeError:
        return b""


def is_custom(func: Any) -> bool:
    """Says whether a call that a function mode sees is of a torch.autograd.Function, under
    torch.func."""
    return getattr(func, "__name__", "") == "custom_function_call"


def _is_of_tasks(value: Any) -> bool:
    """Says whether a tensor stands for those of several tasks, under whatever transforms it
    lies."""
    while isinstance(value, Tensor) and _functorch.is_functorch_wrapped_tensor(value):
        if _functorch.is_batchedtensor(value):
            return True
        value = _functorch.get_unwrapped(value)
    return False


def observed(func: Any, called: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Returns called(*args, **kwargs), which is how `func` is called in a pass, and keeps in mind
    what only a loop over tasks gives under torch.vmap: how an error is handled, which may be
    vmap's own or one task's, and numbers of a generator that the pass seeds.

    Raises:
        RuntimeError: the pass seeds random numbers.
    """
    if not transforms_active():
        return called(*args, **kwargs)
    if is_custom(func) and not any(map(_is_of_tasks, (*args, *kwargs.values()))):
        QUESTIONS.asked = "it has a function with a derivative of its own of what tasks share"
        raise RuntimeError(QUESTIONS.asked)
    drawing = draws(func)
    if drawing and (kwargs.get("generator") is not None or _generator_state() != QUESTIONS.state):
        QUESTIONS.asked = "it seeds the random numbers that it draws"
        raise RuntimeError(QUESTIONS.asked)
    try:
        return called(*args, **kwargs)
    except Exception:
        name = getattr(func, "__name__", func)
        QUESTIONS.asked = QUESTIONS.asked or f"it handles an error of {name}, of any task"
        raise
    finally:
        if drawing:
            QUESTIONS.state = _generator_state()


def is_foreign(frame: FrameType | None) -> bool:
    """Says whether code called a function of torch that is neither torch's nor this package's."""
    while frame is not None and frame.f_code.co_filename in _METHODS:
        frame = frame.f_back
    return frame is not None and not frame.f_code.co_filename.startswith(_INSIDE)


# where methods of tensors that are written in Python lie, and what hands them to function modes
_METHODS = (torch._tensor.__file__, torch.overrides.__file__)


class _PlainQuestions(TorchFunctionMode):
    """Raises where code is about what autograd records, or seeds random numbers."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any | None = None
    ) -> Any:
        """Looks at one call."""
        refuse_question(func)
        return observed(func, func, args, kwargs or {})


def plain_questions() -> AbstractContextManager[Any]:
    """Within it, calls about what autograd records raise RuntimeError under torch.func."""
    if torch.compiler.is_compiling() or not transforms_active():
        return nullcontext()
    return _PlainQuestions()
