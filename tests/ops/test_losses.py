"""What `loss=` takes: every loss of torch, against a plain autograd loop over tasks in float64
(tolerance 1e-10: rounding alone), fused or not, or one error that names the remedy."""

from __future__ import annotations

import functools
import inspect
import re
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import loss as torch_losses
from torch.overrides import TorchFunctionMode

import innerloop as il
from helpers import assert_close
from innerloop import objectives
from loss_cases import (
    CASES,
    FUNCTIONS,
    loop_gradient,
    ragged,
    weighted,
)

F64 = torch.float64
PRESENT = [case for case in CASES if case.exists]
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{text}:UserWarning")
    # the first two are torch's; the third is right where torch.vmap refuses a loss
    for text in ("There is a performance drop", "reduction. 'mean' divides", ".*runs task by task")
]
MSE = CASES[0]


def check(net, loss, support, query, backend, *, truth=None, steps=2, order=2, tolerance=1e-10):
    """Compares meta_grad, meta_loss and MAML with the loop of `truth` (the loss itself if None)."""
    if truth is None:
        truth = loss
    expected, grads = loop_gradient(net, truth, support, query, steps=steps, order=order)
    options = {"inner_lr": 0.2, "steps": steps, "order": order, "loss": loss, "backend": backend}
    params = dict(net.named_parameters())
    found = il.meta_grad(params, support, query, model=net, **options)
    assert found.backend == backend
    assert_close(found.loss, expected, tolerance, "meta_grad loss")
    assert_close(found.grad, grads, tolerance, "meta_grad")
    losses = il.meta_loss(params, support, query, model=net, **options)
    again = torch.autograd.grad(losses.mean(), list(params.values()), allow_unused=True)
    assert_close(losses, expected, tolerance, "meta_loss loss")
    assert_close(dict(zip(params, again, strict=True)), grads, tolerance, "meta_loss")
    learner = il.MAML(net, **options)
    net.zero_grad()
    learner(support, query).backward()
    assert_close({k: p.grad for k, p in params.items()}, grads, tolerance, "MAML")


# ---------------------------------------------------------------- torch's losses


def two_tensors(function):
    """Says whether a function can be called with two tensors."""
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    return True


def test_every_loss_of_torch_is_in_the_table_or_refused():
    """A loss that a new torch brings must be put into the table."""
    kinds = {
        name: kind
        for name, kind in vars(torch_losses).items()
        if isinstance(kind, type)
        and issubclass(kind, nn.Module)
        and kind.__module__ == torch_losses.__name__
        and not name.startswith("_")
        and name != "NLLLoss2d"  # deprecated
    }
    assert len(kinds) > 15
    listed = {case.kind for case in CASES}
    for name, kind in kinds.items():
        if two_tensors(functools.partial(kind.forward, None)):
            assert name in listed, name
            continue
        with pytest.raises(TypeError, match=r"must take the outputs and targets .*wrap it"):
            objectives.resolve("op", kind())
    functions = {
        name: function
        for name, function in vars(F).items()
        if inspect.isfunction(function)
        and not name.startswith("_")
        and (name.endswith("_loss") or "target" in inspect.signature(function).parameters)
    }
    assert len(functions) > 15
    for name, function in functions.items():
        if two_tensors(function):
            assert function in FUNCTIONS.values(), name
            continue
        with pytest.raises(TypeError, match=r"must take the outputs and targets .*wrap it"):
            objectives.resolve("op", function)


def agrees(case, loss, truth=None, order=2):
    """Checks one loss with one case's data on both back ends, or on the one that has it."""
    net, (support, query) = case.net(), case.sides()
    means_name = case.name is not None and getattr(loss, "reduction", "mean") == "mean"
    chosen = il.backend_for(net, loss=loss).backend
    if case.target not in ("ignored", "probabilities"):
        assert chosen in (("fused",) if means_name else ("batched", "torch"))
    takes = chosen == "batched" and case.kind != "LinearCrossEntropyLoss"  # it has variables
    for backend in (*["fused"] * means_name, *["batched"] * takes, "torch"):
        check(net, loss, support, query, backend, truth=truth, order=order)


@pytest.mark.parametrize("case", PRESENT, ids=str)
def test_torch_losses(case):
    agrees(case, case.make(), order=1 if case.once else 2)


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("reduction", ["sum", "none", "batchmean"])
@pytest.mark.parametrize("case", PRESENT, ids=str)
def test_torch_losses_with_other_reductions(case, reduction, order):
    check_reduction(case, reduction, order)


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("case", [CASES[0], CASES[8], CASES[11], CASES[15]], ids=str)
def test_some_torch_losses_with_other_reductions(case, reduction):
    check_reduction(case, reduction, 2)


def check_reduction(case, reduction, order):
    """Checks a loss with another reduction: exact, or refused because it gives no value per row."""
    if (case.once and order == 2) or (reduction == "batchmean" and case.kind != "KLDivLoss"):
        pytest.skip("torch has none")
    if case.kind == "LinearCrossEntropyLoss" and reduction == "none":
        pytest.skip("torch has none")
    loss = case.make(reduction=reduction)
    net, (support, query) = case.net(), case.sides()
    if loss(net(support[0][0]), support[1][0]).ndim < 2:
        agrees(case, loss, order=order)
        return
    with pytest.raises(ValueError, match=r"one value per row \[6\] \(got shape \[6, 3\]\); take"):
        il.MAML(net, inner_lr=0.2, steps=1, loss=loss, backend="torch")(support, query)


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_functions_of_torch(kind):
    case = next(case for case in CASES if case.kind == kind)
    agrees(case, FUNCTIONS[kind], order=1 if case.once else 2)


@pytest.mark.parametrize("case", [c for c in PRESENT if c.once], ids=str)
def test_losses_without_second_derivative_are_refused_by_name(case):
    net, (support, query) = case.net(), case.sides()
    with pytest.raises(RuntimeError, match=r"meta_grad: torch has no second derivative .*order=1"):
        il.meta_grad(
            dict(net.named_parameters()),
            support,
            query,
            model=net,
            inner_lr=0.2,
            steps=1,
            loss=case.make(),
            backend="torch",
        )


def of_rows(case):
    """Returns a case's loss as a function with a value for each row."""
    single = case.make(reduction="none")
    return lambda z, y: single(z, y).reshape(len(y), -1).mean(1)


NAMED_CASES = [case for case in PRESENT if case.name is not None]


@pytest.mark.parametrize("form", [ragged, weighted])
@pytest.mark.parametrize("case", NAMED_CASES, ids=str)
def test_torch_losses_that_mean_a_name_take_counts_and_weights(case, form):
    net, (support, query) = case.net(), case.sides()
    support, query = form(support), form(query)
    for backend in ("fused", "torch"):
        truth = case.make() if form is ragged else of_rows(case)
        check(net, case.make(), support, query, backend, truth=truth)


@pytest.mark.parametrize("case", [c for c in PRESENT if c.name is None], ids=str)
def test_other_torch_losses_see_the_rows_in_use_alone(case):
    net, (support, query) = case.net(), case.sides()
    order = 1 if case.once else 2
    check(net, case.make(), ragged(support), ragged(query), "torch", order=order)


@pytest.mark.parametrize("case", [c for c in PRESENT if c.name is None], ids=str)
def test_other_torch_losses_with_weights_need_values_of_rows(case):
    net, (support, query) = case.net(), case.sides()
    support, query = weighted(support), weighted(query)
    order = 1 if case.once else 2
    if case.target == "ignored" and case.kind == "CrossEntropyLoss":
        check(net, case.make(), support, query, "torch", truth=of_rows(case))
        return
    with pytest.raises(ValueError, match=r"must return one value per row .*reduction=.none"):
        il.MAML(net, inner_lr=0.2, steps=1, loss=case.make(), backend="torch")(support, query)
    if case.kind != "LinearCrossEntropyLoss":
        check(net, of_rows(case), support, query, "torch", order=order)


def test_ignored_rows_count_for_nothing():
    """Rows of class -100 are left out on the torch back end and refused by the kernels."""
    case = next(case for case in CASES if case.target == "ignored")
    net, (support, query) = case.net(), case.sides()
    for loss in (nn.CrossEntropyLoss(), F.cross_entropy):
        learner = il.MAML(net, inner_lr=0.2, steps=1, loss=loss)
        with pytest.raises(
            ValueError, match=r'MAML: target class .*backend="torch" \(class -100\)'
        ):
            learner(support, query)
        learner = il.MAML(net, inner_lr=0.2, steps=1, loss=loss, backend="torch")
        accuracy = learner.evaluate(support, query, steps=0).accuracy[:, 0]
        with torch.no_grad():
            right = net(query[0]).argmax(2) == query[1]
        assert_close(accuracy, right.sum(1) / (query[1] != -100).sum(1), 1e-6)
        counted = learner.evaluate(support, (*query, torch.full((4,), 3)), steps=0).accuracy[:, 0]
        assert_close(counted, right[:, :3].sum(1) / (query[1][:, :3] != -100).sum(1), 1e-6)
    model = il.MLP([2, 3])
    wrong, params = (support[0], torch.full_like(support[1], 3)), model.init(dtype=F64)
    options = {"model": model, "backend": "torch"}
    with pytest.raises(ValueError, match=r"batch y must hold classes in \[0, 3\) \(got 3\)"):
        il.loss_and_grad(params, wrong, loss=loss, **options)
    with pytest.raises(ValueError, match=r"batch y must hold classes .*\(got -100\)"):
        il.loss_and_grad(params, support, loss="cross_entropy", **options)


@pytest.mark.parametrize("backend", ["fused", "torch"])
@pytest.mark.parametrize("loss", [nn.MSELoss(), F.huber_loss, nn.BCEWithLogitsLoss(), nn.L1Loss()])
def test_targets_that_torch_would_broadcast_are_refused(loss, backend):
    """[N] against [N, 1] is [N, N] for torch. Names take it as [N, 1]."""
    model = il.MLP([2, 1])
    params, x, y = model.init(dtype=F64), torch.ones(4, 5, 2, dtype=F64), torch.rand(4, 5).double()
    il.loss_and_grad(params, (x, y), model=model, loss="mse", backend=backend)
    net = nn.Linear(2, 1).double()
    for shape in (y, y[..., None, None]):
        with pytest.raises(ValueError, match=r"loss_and_grad: .*y must have"):
            il.loss_and_grad(params, (x, shape), model=model, loss=loss, backend=backend)
        with pytest.raises(ValueError, match=r"loss_and_grad: .*y must have"):
            il.loss_and_grad(
                dict(net.named_parameters()), (x, shape), model=net, loss=loss, backend=backend
            )
    squeezed = nn.Sequential(net, nn.Flatten(0))
    il.loss_and_grad(
        dict(squeezed.named_parameters()), (x, y), model=squeezed, loss=loss, backend="torch"
    )


# ---------------------------------------------------------------- fused means the real thing


class Doubled(nn.MSELoss):
    """Not what its base class says."""

    def forward(self, input, target):
        return 2 * super().forward(input, target)


def with_forward(loss):
    """Gives an instance another forward, as wrappers do."""
    inner = loss.forward
    loss.forward = lambda z, y: 2 * inner(z, y)


def double_output(module, *rest):
    """A forward hook."""
    return 2 * rest[-1]


def double_input(module, inputs):
    """A forward pre-hook."""
    return (2 * inputs[0], inputs[1])


@contextmanager
def replaced(owner, name, value):
    """Sets an attribute for a while."""
    own = name in vars(owner)
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


@contextmanager
def hooked(handle):
    """Keeps a hook for a while."""
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def nothing(_=None):
    """Changes nothing."""
    yield


class Doubling(TorchFunctionMode):
    """Doubles every loss."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        return 2 * found if func in FUNCTIONS.values() else found


def huge(z, y, *options, **more):
    """A replacement for a function of torch."""
    return (z - y).pow(4).mean()


ALTERATIONS = {
    "instance forward": lambda loss: nothing(with_forward(loss)),
    "forward hook": lambda loss: hooked(loss.register_forward_hook(double_output)),
    "forward pre-hook": lambda loss: hooked(loss.register_forward_pre_hook(double_input)),
    "global forward hook": lambda loss: hooked(
        nn.modules.module.register_module_forward_hook(lambda m, i, o: 2 * o if m is loss else None)
    ),
    "global pre-hook": lambda loss: hooked(
        nn.modules.module.register_module_forward_pre_hook(
            lambda m, i: (2 * i[0], i[1]) if m is loss else None
        )
    ),
    "class forward": lambda loss: replaced(type(loss), "forward", lambda self, z, y: huge(z, y)),
    "class call": lambda loss: replaced(type(loss), "__call__", lambda self, z, y: huge(z, y)),
    "option": lambda loss: replaced(loss, "reduction", "sum"),
    "function mode": lambda loss: Doubling(),
}
KINDS = ("MSELoss", "HuberLoss", "SmoothL1Loss", "L1Loss", "BCEWithLogitsLoss", "CrossEntropyLoss")


@pytest.mark.parametrize("alteration", ALTERATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_altered_loss_is_not_the_named_one(kind, alteration):
    case = next(case for case in CASES if case.kind == kind)
    if kind == "CrossEntropyLoss" and alteration.startswith("class"):
        pytest.skip("the replacement is not for classes")
    net, (support, query) = case.net(), case.sides()
    loss = case.make()
    assert il.backend_for(net, loss=loss).backend == "fused"
    before, _ = loop_gradient(net, loss, support, query)
    with ALTERATIONS[alteration](loss):
        assert il.backend_for(net, loss=loss).backend != "fused"
        changed, _ = loop_gradient(net, loss, support, query)
        assert not torch.allclose(before, changed)
        check(net, loss, support, query, "torch")
    if alteration != "instance forward":
        assert il.backend_for(net, loss=loss).backend == "fused"


@pytest.mark.parametrize("kind", KINDS)
def test_a_patched_function_of_torch_is_not_the_named_loss(kind):
    case = next(case for case in CASES if case.kind == kind)
    net, loss, function = case.net(), case.make(), FUNCTIONS[kind]
    with replaced(F, function.__name__, huge):
        for used in (loss, function, huge):
            assert il.backend_for(net, loss=used).backend == "batched"
        if kind != "CrossEntropyLoss":
            check(net, loss, *case.sides(), "torch", truth=huge)
    assert il.backend_for(net, loss=function).backend == "fused"


INNER = {  # what F's functions call
    "MSELoss": (torch._C._nn, "mse_loss"),
    "HuberLoss": (torch._C._nn, "huber_loss"),
    "SmoothL1Loss": (torch._C._nn, "smooth_l1_loss"),
    "L1Loss": (torch._C._nn, "l1_loss"),
    "BCEWithLogitsLoss": (torch, "binary_cross_entropy_with_logits"),
    "CrossEntropyLoss": (torch._C._nn, "cross_entropy_loss"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_patched_inner_function_of_torch_is_not_the_named_loss(kind):
    case = next(case for case in CASES if case.kind == kind)
    net, (support, query), (owner, name) = case.net(), case.sides(), INNER[kind]
    inner = getattr(owner, name)
    with replaced(owner, name, lambda *args, **options: 2 * inner(*args, **options)):
        for loss in (case.make(), FUNCTIONS[kind]):
            reason = il.backend_for(net, loss=loss).reason
            assert f"cannot be fused: {owner.__name__}.{name} is not torch's own" in reason
            check(net, loss, support, query, "torch")
    assert il.backend_for(net, loss=FUNCTIONS[kind]).backend == "fused"


@pytest.mark.parametrize("kind", ["full_backward_hook", "full_backward_pre_hook"])
def test_a_loss_with_backward_hooks_is_not_the_named_one(kind):
    loss = nn.MSELoss()
    hook = getattr(loss, f"register_{kind}")(lambda module, *grads: None)
    assert il.backend_for(MSE.net(), loss=loss).backend == "batched"
    hook.remove()
    assert il.backend_for(MSE.net(), loss=loss).backend == "fused"


OTHERS = {
    "subclass": (Doubled(), "Doubled"),
    "partial": (
        functools.partial(F.mse_loss, reduction="sum"),
        "partial(mse_loss, reduction='sum')",
    ),
    "lambda": (lambda z, y: (z - y).pow(4).mean(), "<lambda>"),
    "rows": (lambda z, y: (z - y).pow(4).mean(1), "<lambda>"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_callables_run_on_the_batched_back_end_and_say_so(name):
    loss, called = OTHERS[name]
    net, (support, query) = MSE.net(), MSE.sides()
    check(net, loss, support, query, "batched")
    check(net, loss, support, query, "torch")
    choice = il.backend_for(net, loss=loss)
    reason = f"batched operations over the tasks, since the loss {called} has no kernel"
    assert choice == ("batched", reason)
    with pytest.raises(NotImplementedError, match=r'MAML: backend "fused" .*the loss .*no kernel'):
        il.MAML(net, inner_lr=0.1, steps=1, loss=loss, backend="fused")
    assert f"back end: batched, {reason}" in (
        il.MAML(net, inner_lr=0.1, steps=1, loss=loss).explain()
    )


def test_the_fall_back_warns_once_and_names_the_loss():
    class Unseen(nn.Sequential):
        """A class that has not warned yet."""

    def quartic(z, y):
        return (z - y).pow(4).mean()

    (support, query), net = MSE.sides(), Unseen(*MSE.net(), nn.Softmax(0))
    learner = il.MAML(net, inner_lr=0.1, steps=1, loss=quartic)
    text = "Unseen runs on the torch back end .*the loss quartic has no kernel"
    with pytest.warns(il.FallbackWarning, match=text) as caught:
        learner(support, query)
    assert caught[0].filename == __file__
    learner(support, query)


def test_codes_are_those_of_the_kernels():
    """A loss whose code is another one's in C++ would be computed as that."""
    header = Path(__file__).parents[2] / "csrc/core/objectives/objective.h"
    body = header.read_text(encoding="utf-8").split("enum class ObjectiveKind")[1].split("}")[0]
    found = {name: int(code) for name, code in re.findall(r"k(\w+) = (\d+)", body)}
    other = {"loglik": "LogLikelihood"}  # of pg_loglik

    def enumerator(name):
        name = name.removeprefix("pg_")
        return other.get(name) or "".join(part.capitalize() for part in name.split("_"))

    assert found == {enumerator(name): code for name, code in objectives.CODES.items()}
