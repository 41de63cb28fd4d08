"""Under torch.compile: one tensor in several places, and options that change from call to call."""

from itertools import product

import pytest
import torch

import innerloop as il
from helpers import assert_close, needs_compile, sweep
from innerloop.functional import mean_meta_loss

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*Function.* should not be instantiated:DeprecationWarning"
)
MODEL = il.MLP([1, 3, 1])
OPTIONS = {"model": MODEL, "inner_lr": 0.1, "steps": 2, "backend": "fused"}
OPERATIONS = {
    "meta_grad": il.meta_grad,
    "meta_loss": il.meta_loss,
    "mean_meta_loss": mean_meta_loss,
}


def drawn(seed, *shape):
    """Returns standard normal float64 numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def params():
    """Returns parameters that require grad."""
    return {k: drawn(i, *s).requires_grad_() for i, (k, s) in enumerate(MODEL.shapes.items())}


X, Y, W = drawn(10, 2, 4, 1), drawn(11, 2, 4, 1), drawn(12, 2, 4).abs()
COUNT = torch.tensor([4, 3])
# (support, query) in which tensors stand in more than one place
REPEATED = {
    "one batch on both sides": ((X, Y), (X, Y)),
    "one weighted batch on both sides": ((X, Y, None, W), (X, Y, None, W)),
    "one counted batch on both sides": ((X, Y, COUNT), (X, Y, COUNT)),
    "one x": ((X, Y), (X, Y + 1)),
    "one tensor for all": ((X, X), (X, X)),
    "views of one tensor": ((X[:, :2], Y[:, :2]), (X[:, 1:], Y[:, 1:])),
}


def outcome(result, given):
    """Returns a result with its gradients in the parameters."""
    if isinstance(result, torch.Tensor):
        return result, torch.autograd.grad(result.sum(), list(given.values()))
    return result.loss, tuple(result.grad.values())


def compiled(function, **how):
    """Returns a function as torch.compile makes it, without its code generator."""
    torch.compiler.reset()
    return torch.compile(function, backend="aot_eager", fullgraph=True, **how)


@needs_compile
@pytest.mark.parametrize(
    ("name", "places"),
    sweep(
        product(OPERATIONS, REPEATED),
        [
            (name, places)
            for name, places in product(OPERATIONS, REPEATED)
            if name == "meta_loss" or places in ("one x", "views of one tensor")
        ],
    ),
)
def test_one_tensor_may_stand_in_several_places(name, places):
    def call(given, support, query):
        return OPERATIONS[name](given, support, query, **OPTIONS)

    given = params()
    got = outcome(compiled(call)(given, *REPEATED[places]), given)
    want = outcome(call(given, *REPEATED[places]), given)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, 1e-12)


@needs_compile
@pytest.mark.parametrize("name", OPERATIONS, ids=str)
def test_one_tensor_may_be_two_parameters(name):
    def call(bias):
        tied = {**fixed, "0.weight": bias[:, None], "0.bias": bias}
        loss = OPERATIONS[name](tied, (X, Y), (X, Y), **OPTIONS)
        return loss.loss if name == "meta_grad" else loss

    fixed = {k: v.detach() for k, v in params().items()}
    given = {"": drawn(20, 3).requires_grad_()}
    got, want = compiled(call)(given[""]), call(given[""])
    assert_close(got, want, 1e-12)
    if name != "meta_grad":
        for a, b in zip(outcome(got, given), outcome(want, given), strict=True):
            assert_close(a, b, 1e-12)


VARIED = {
    "order": (1, 2, 1),
    "steps": (1, 3, 0),
    "inner_lr": (0.1, 0.2, 1),
    "loss": ("mse", "huber", "mse"),
    "adapt_params": (None, ("0.weight",), ["0.bias"]),
    "backend": ("fused", "auto"),
    "momentum": (0.5, 0.6, 0.0),
    "weight_decay": (0.1, 0.2, 0),
}
FIRST = [("order", True), ("inner_lr", True), ("inner_lr", None), ("loss", True)]


@needs_compile
@pytest.mark.filterwarnings("ignore:.*grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(("option", "dynamic"), sweep(product(VARIED, [True, None]), FIRST))
def test_options_may_change_from_call_to_call(option, dynamic):
    change_from_call_to_call("meta_loss", option, dynamic)


@needs_compile
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(("option", "dynamic"), list(product(VARIED, [True, None])))
@pytest.mark.parametrize("name", ["meta_grad", "mean_meta_loss"])
def test_options_of_other_operations_may_change(name, option, dynamic):
    change_from_call_to_call(name, option, dynamic)


def change_from_call_to_call(name, option, dynamic):
    def call(given, value):
        return OPERATIONS[name](given, (X, Y), (Y, X), **{**OPTIONS, option: value})

    given = params()
    fast = compiled(call, dynamic=dynamic)
    for value in VARIED[option]:
        got, want = outcome(fast(given, value), given), outcome(call(given, value), given)
        for a, b in zip(got, want, strict=True):
            assert_close(a, b, 1e-11)


@needs_compile
@pytest.mark.parametrize("name", OPERATIONS, ids=str)
def test_forward_mode_is_right_or_refused_when_compiled(name):
    def call(given):
        out = OPERATIONS[name](given, (X, Y), (Y, X), **OPTIONS)
        return out if isinstance(out, torch.Tensor) else out.loss

    given = {k: v.detach() for k, v in params().items()}
    tangents = {k: torch.ones_like(v) for k, v in given.items()}
    fast = compiled(lambda p, v: torch.func.jvp(call, (p,), (v,))[1])
    try:
        got = fast(given, tangents)
    except Exception:
        return
    assert name != "meta_grad"
    assert_close(got, torch.func.jvp(call, (given,), (tangents,))[1], 1e-11)
