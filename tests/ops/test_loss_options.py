"""Torch's losses with options, fused: sweeps against the torch back end, whose rows are torch's
functions (`test_losses.py` holds those to plain loops), and what the options may be. Tolerance in
float64: rounding alone."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import innerloop as il
from helpers import assert_close, needs_compile_of_modules, sweep
from innerloop import objectives
from loss_cases import OPTIONS, optioned, weights
from problems import random_problem

F64 = torch.float64
TOLERANCE = 1e-10


def compare(problem, tolerance=TOLERANCE, **changes):
    """Compares meta_grad with the torch back end."""
    expected = problem.call(il.meta_grad, backend="torch", **changes)
    found = problem.call(il.meta_grad, backend="fused", **changes)
    for part in ("loss", "grad", "inner_lr_grad", "support_loss", "query_loss"):
        want, got = getattr(expected, part), getattr(found, part)
        if want is not None:
            assert_close(got, want, tolerance, part)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", OPTIONS)
def test_sweep(name, seed):
    compare(optioned(name, 1000 * (1 + seed) + len(name)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200))
@pytest.mark.parametrize("name", OPTIONS)
def test_long_sweep(name, seed):
    compare(optioned(name, 9000 + seed))


@pytest.mark.parametrize("name", OPTIONS)
def test_other_operations(name):
    problem = optioned(name, 31, tasks=9, steps=2, widths=[3, 5, 4], per_task=0.5, rows=6)
    batch, options = problem.query, {"model": problem.model, "loss": problem.options["loss"]}
    vector = {k: torch.cos(v) for k, v in problem.params.items()}
    inner = {"inner_lr": 0.1, "steps": 2}
    found, wanted = (
        {
            "loss": il.loss_and_grad(problem.params, batch, **options, backend=backend),
            "hvp": il.hvp(problem.params, batch, vector, **options, backend=backend),
            "adapt": il.adapt(problem.params, batch, **options, **inner, backend=backend),
        }
        for backend in ("fused", "torch")
    )
    assert_close(found["loss"][0], wanted["loss"][0], TOLERANCE)
    assert_close(found["loss"][1], wanted["loss"][1], TOLERANCE)
    assert_close(found["hvp"], wanted["hvp"], TOLERANCE)
    assert_close(found["adapt"], wanted["adapt"], TOLERANCE)


@pytest.mark.parametrize("name", OPTIONS)
def test_batched(name):
    """The same in batched operations, which have no kernels."""
    problem = optioned(name, 77, tasks=5, steps=2, widths=[3, 5, 4], ragged=True, weighted=False)
    problem.options["adapt_params"] = None
    problem.options["inner_lr"] = 0.1
    expected = problem.call(il.meta_grad, backend="torch")
    found = problem.call(il.meta_grad, backend="batched")
    assert found.backend == "batched"
    assert_close(found.loss, expected.loss, TOLERANCE)
    assert_close(found.grad, expected.grad, TOLERANCE)


@pytest.mark.parametrize("side", ["loss", "query_loss"])
def test_sides_with_options_of_their_own(side):
    problem = random_problem(5, loss="cross_entropy", tasks=6, steps=2, widths=[3, 4], rows=5)
    changes = {side: nn.CrossEntropyLoss(label_smoothing=0.4)}
    compare(
        problem, query_loss=changes.get("query_loss"), loss=changes.get("loss", "cross_entropy")
    )


# ---------------------------------------------------------------- at the edges


MODEL = il.MLP([2, 4, 3], "tanh")


def task(rows=5, tasks=4, dtype=F64):
    """Returns parameters and a batch with classes."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(tasks, rows, 2, generator=generator, dtype=dtype)
    y = torch.randint(3, (tasks, rows), generator=generator)
    return MODEL.init(generator, dtype=dtype), (x, y)


def both(params, batch, loss, **options):
    """Returns (loss, gradient) by the kernels, and of torch's loss itself by autograd."""
    found = il.loss_and_grad(params, batch, model=MODEL, loss=loss, backend="fused", **options)
    values, grads = [], []
    for x, y in zip(*batch, strict=True):
        leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
        h = torch.tanh(x @ leaves["0.weight"].T + leaves["0.bias"])
        value = loss(h @ leaves["1.weight"].T + leaves["1.bias"], y)
        values.append(value.detach())
        grads.append(torch.autograd.grad(value, list(leaves.values())))
    stacked = {k: torch.stack([g[i] for g in grads]) for i, k in enumerate(params)}
    return found, (torch.stack(values), stacked)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("backend", ["fused", "batched", "torch"])
def test_tasks_whose_classes_all_weigh_nothing_are_nan_as_for_torch(backend, smoothing):
    params, (x, y) = task()
    y[1] = 1
    loss = nn.CrossEntropyLoss(torch.tensor([1.0, 0.0, 2.0]).double(), label_smoothing=smoothing)
    assert torch.isnan(both(params, (x, y), loss)[1][0]).tolist() == [False, True, False, False]
    values, grads = il.loss_and_grad(params, (x, y), model=MODEL, loss=loss, backend=backend)
    assert torch.isnan(values).tolist() == [False, True, False, False]
    assert torch.isnan(grads["0.weight"][1]).all()
    assert not torch.isnan(grads["0.weight"][[0, 2, 3]]).any()
    # tasks without rows are 0 as for every loss
    none = il.loss_and_grad(
        params, (x, y, torch.zeros(4).long()), model=MODEL, loss=loss, backend=backend
    )
    assert not none[0].any()


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("delta", [1e-300, 1e-40, 1e-6, 1e6, 1e30, 1e300])
@pytest.mark.parametrize("kind", [nn.HuberLoss, nn.SmoothL1Loss])
def test_extreme_deltas(kind, delta, dtype):
    params, (x, _) = task(dtype=dtype)
    y = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(1)).to(dtype)
    loss = kind(**{"delta" if kind is nn.HuberLoss else "beta": delta})
    (value, grad), (expected, expected_grad) = both(params, (x, y), loss)
    tolerance = 1e-5 if dtype is torch.float32 else TOLERANCE
    if torch.isfinite(expected).all() and expected.any():
        assert_close(value, expected, tolerance)
        assert_close(grad, expected_grad, tolerance)
    else:
        assert kind is nn.HuberLoss or delta > 1e6


def test_differences_at_the_edge_and_of_zero():
    """As torch: an edge is outside, and the absolute value has no slope at 0."""
    model = il.MLP([1, 1], bias=False)
    x = torch.tensor([[[0.0], [0.5], [-0.5], [1.0]]], dtype=F64)
    one = {"0.weight": torch.ones(1, 1, dtype=F64)}
    for loss in (nn.HuberLoss(delta=0.5), nn.SmoothL1Loss(beta=0.5), nn.SmoothL1Loss(beta=0.0)):
        batch = (x, torch.zeros_like(x))
        for backend in ("fused", "batched"):
            options = {"model": model, "loss": loss}
            found = il.hvp(one, batch, one, **options, backend=backend)
            assert_close(found, il.hvp(one, batch, one, **options, backend="torch"), TOLERANCE)
            grad = il.loss_and_grad(one, batch, **options, backend=backend)[1]
            want = il.loss_and_grad(one, batch, **options, backend="torch")[1]
            assert_close(grad, want, TOLERANCE)


@pytest.mark.parametrize("smoothing", [0.0, 1e-9, 0.1])
@pytest.mark.parametrize("tasks", [1, 9])
def test_gradients_of_met_targets_keep_their_digits(tasks, smoothing):
    """Two classes of which one is sure, in float32: the gradient is that of float64."""
    model = il.MLP([1, 2], bias=False)
    for z in (5.0, 20.0, 40.0, 80.0):
        x = torch.full((tasks, 1, 1), z)
        y = torch.ones(tasks, 1).long()
        weight = torch.tensor([[0.0], [1.0]])
        for classes in ([3.0, 0.7], [0.0, 0.7]):
            grads = []
            for dtype in (torch.float32, F64):
                loss = nn.CrossEntropyLoss(
                    torch.tensor(classes, dtype=dtype), label_smoothing=smoothing
                )
                grads.append(
                    il.loss_and_grad(
                        {"0.weight": weight.to(dtype)},
                        (x.to(dtype), y),
                        model=model,
                        loss=loss,
                        backend="fused",
                    )[1]["0.weight"]
                )
            p = torch.sigmoid(torch.tensor(-z, dtype=F64))
            own, other = (1 - smoothing / 2) * 0.7, smoothing / 2 * classes[0]
            exact = z * (p * own - (1 - p) * other) / 0.7
            torch.testing.assert_close(grads[1][:, 0, 0], exact.expand(tasks), rtol=1e-12, atol=0)
            torch.testing.assert_close(
                grads[0][:, 0, 0].double(), exact.expand(tasks), rtol=1e-5, atol=0
            )


def test_outputs_that_are_minus_infinite_do_not_matter_to_classes_of_no_share():
    model = il.MLP([1, 3], bias=True)
    params = {
        "0.weight": torch.zeros(3, 1, dtype=F64),
        "0.bias": torch.tensor([1.0, 2.0, -math.inf], dtype=F64),
    }
    x, y = torch.ones(1, 2, 1, dtype=F64), torch.tensor([[0, 1]])
    loss = nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 1.0], dtype=F64))
    value, _ = il.loss_and_grad(params, (x, y), model=model, loss=loss, backend="fused")
    assert_close(value[0], loss(params["0.bias"].expand(2, 3), y[0]), 1e-14)


# ---------------------------------------------------------------- tensors of the loss


def test_weights_that_change_in_place():
    """Numbers are read at each call: nothing is remembered of them, not by value either."""
    params, batch = task()
    first, second = (nn.CrossEntropyLoss(weights(3).clone()) for _ in range(2))
    options = {"model": MODEL, "inner_lr": 0.1, "steps": 2}

    def check(loss):
        for backend in ("fused", "batched", "torch"):
            found = il.meta_loss(params, batch, batch, loss=loss, backend=backend, **options)
            fresh = nn.CrossEntropyLoss(loss.weight.clone())
            want = il.meta_loss(params, batch, batch, loss=fresh, backend="torch", **options)
            assert_close(found, want, 1e-12)
        return want

    before = check(first)
    first.weight.mul_(torch.tensor([3.0, 1.0, 0.5], dtype=F64))
    after = check(first)
    assert (before - after).abs().max() > 1e-3
    assert_close(check(second), before, 1e-12)  # the numbers that `first` had
    learner = il.MAML(nn.Sequential(nn.Linear(2, 3)).double(), inner_lr=0.1, steps=1, loss=first)
    values = []
    for scale in (1.0, 5.0):
        first.weight[0] = scale
        values.append(learner(batch, batch))
    assert values[0] != values[1]


@pytest.mark.filterwarnings("ignore::innerloop.FallbackWarning")
def test_weights_that_are_learned_run_on_the_torch_back_end():
    params, batch = task()
    loss = nn.CrossEntropyLoss(nn.Parameter(weights(3)))
    options = {"model": MODEL, "inner_lr": 0.1, "steps": 2, "loss": loss}
    same = {**options, "loss": functools.partial(F.cross_entropy, weight=loss.weight)}
    assert il.meta_loss(params, batch, batch, **same).requires_grad
    choice = il.backend_for(MODEL, loss=loss)
    assert "its weight is differentiated" in choice.reason
    value = il.meta_loss(params, batch, batch, **options).sum()
    (grad,) = torch.autograd.grad(value, loss.weight)
    move = torch.tensor([1e-5, 0.0, 0.0], dtype=F64)
    ends = [
        il.meta_loss(
            params,
            batch,
            batch,
            **{**options, "loss": nn.CrossEntropyLoss(loss.weight.detach() + m)},
        ).sum()
        for m in (move, -move)
    ]
    assert_close(grad[0], (ends[0] - ends[1]) / 2e-5, 1e-6)
    with torch.no_grad():
        assert il.backend_for(MODEL, loss=loss).backend == "fused"
    with pytest.raises(NotImplementedError, match="its weight is differentiated"):
        il.meta_loss(params, batch, batch, **options, backend="fused")


def test_weights_that_a_transform_hides_are_not_fused():
    params, batch = task()
    options = {"model": MODEL, "inner_lr": 0.1, "steps": 1}
    scales = torch.stack([weights(3), 2 * weights(3, 1)])

    def losses(weight):
        loss = functools.partial(F.cross_entropy, weight=weight)
        return il.meta_loss(params, batch, batch, **options, loss=loss, backend="torch")

    found = torch.vmap(losses)(scales)
    for weight, got in zip(scales, found, strict=True):
        loss = nn.CrossEntropyLoss(weight)
        want = il.meta_loss(params, batch, batch, **options, loss=loss, backend="fused")
        assert_close(got, want, TOLERANCE)
    hidden = []
    torch.vmap(lambda w: hidden.append(objectives.resolve("", nn.CrossEntropyLoss(w)).reason) or w)(
        scales
    )
    assert hidden == ["the loss cannot be fused: a transform hides the numbers of its weight"]


WRONG = {
    "count": (
        lambda: nn.CrossEntropyLoss(weights(4)),
        ValueError,
        r"the loss CrossEntropyLoss\(weight=...\) must hold weights for the 3 outputs .*\(got 4\)",
    ),
    "count of positives": (
        lambda: nn.BCEWithLogitsLoss(pos_weight=weights(2)),
        ValueError,
        r"must hold weights for the 3 outputs of the model \(got 2\)",
    ),
    "dtype": (
        lambda: nn.CrossEntropyLoss(weights(3).float()),
        TypeError,
        r"must hold weights of the dtype of params, torch.float64 \(got torch.float32\); .to\(\)",
    ),
    "integers": (
        lambda: nn.CrossEntropyLoss(torch.tensor([1, 2, 3])),
        TypeError,
        r"must hold weights of the dtype of params, torch.float64 \(got torch.int64\)",
    ),
}


@pytest.mark.parametrize("backend", ["auto", "fused", "batched", "torch"])
@pytest.mark.parametrize("name", WRONG)
def test_weights_that_do_not_fit(name, backend):
    make, kind, text = WRONG[name]
    params, (x, y) = task()
    if "positives" in name:
        y = F.one_hot(y, 3).double()
    options = {"model": MODEL, "loss": make(), "backend": backend}
    with pytest.raises(kind, match=f"loss_and_grad: {text}|loss_and_grad: the loss .*{text}"):
        il.loss_and_grad(params, (x, y), **options)
    with pytest.raises(kind, match=text):
        il.meta_grad(params, (x, y), (x, y), inner_lr=0.1, steps=1, **options)


REFUSED = {
    "delta": (lambda: nn.HuberLoss(delta=-1.0), "does not support non-positive"),
    "beta": (lambda: nn.SmoothL1Loss(beta=-0.5), "does not support negative"),
    "smoothing": (lambda: nn.CrossEntropyLoss(label_smoothing=1.5), "between 0.0 and 1.0"),
    "axes": (
        lambda: nn.CrossEntropyLoss(torch.ones(3, 1, dtype=F64)),
        r"weight tensor should be defined|dimension|1D",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_torch_refuses_torch_says(name):
    make, text = REFUSED[name]
    loss = make()
    params, (x, y) = task()
    if not isinstance(loss, nn.CrossEntropyLoss):
        y = F.one_hot(y, 3).double()
    options = {"model": MODEL, "loss": loss}
    with pytest.raises(NotImplementedError, match="backend"):
        il.loss_and_grad(params, (x, y), **options, backend="fused")
    with pytest.raises((RuntimeError, AssertionError), match=text):
        il.loss_and_grad(params, (x, y), **options, backend="torch")


def test_options_that_have_no_kernel_are_named():
    textual = nn.HuberLoss()
    textual.delta = "1"
    reasons = {
        "CrossEntropyLoss(ignore_index=-100)": nn.CrossEntropyLoss(weights(3), ignore_index=1),
        "HuberLoss(reduction='mean')": nn.HuberLoss(delta=0.3, reduction="sum"),
        "has shape [2, 3]": nn.BCEWithLogitsLoss(torch.ones(2, 3)),
        "its delta is str": textual,
        "no plain tensor": nn.CrossEntropyLoss(weights(3).to_sparse()),
        "is on meta": nn.CrossEntropyLoss(torch.ones(3, device="meta")),
        "has no kernel": nn.BCEWithLogitsLoss(torch.ones(2), pos_weight=torch.ones(3)),
    }
    for text, loss in reasons.items():
        assert text in objectives.resolve("", loss).reason, text


# ---------------------------------------------------------------- functions and surroundings


@pytest.mark.parametrize(
    ("function", "options", "kind"),
    [
        (F.huber_loss, {"delta": 0.4}, nn.HuberLoss),
        (F.smooth_l1_loss, {"beta": 0.4}, nn.SmoothL1Loss),
        (F.cross_entropy, {"label_smoothing": 0.4}, nn.CrossEntropyLoss),
        (F.cross_entropy, {}, nn.CrossEntropyLoss),
        (F.cross_entropy, {"weight": weights(3)}, nn.CrossEntropyLoss),
    ],
    ids=["huber", "smooth_l1", "smoothing", "none", "weight"],
)
def test_partial_functions_are_their_losses(function, options, kind):
    params, (x, y) = task()
    if function is not F.cross_entropy:
        y = F.one_hot(y, 3).double()
    loss = functools.partial(function, **options)
    assert il.backend_for(MODEL, loss=loss).backend == "fused"
    found = il.loss_and_grad(params, (x, y), model=MODEL, loss=loss, backend="fused")
    want = il.loss_and_grad(params, (x, y), model=MODEL, loss=kind(**options), backend="fused")
    assert torch.equal(found[0], want[0])
    for other in (
        functools.partial(function, reduction="sum", **options),
        functools.partial(function, size_average=True, **options),
    ):
        assert objectives.resolve("", other).reason


def test_probabilities_meet_the_options_of_the_loss():
    params, (x, _) = task()
    shares = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(1)).softmax(2).double()
    loss = nn.CrossEntropyLoss(weights(3), label_smoothing=0.3)
    logits = il.predict(params, x, model=MODEL)
    expected = torch.stack([loss(z, q) for z, q in zip(logits, shares, strict=True)])
    for backend in ("batched", "torch"):
        found, _ = il.loss_and_grad(params, (x, shares), model=MODEL, loss=loss, backend=backend)
        assert_close(found, expected, 1e-12)
    with pytest.raises(NotImplementedError, match="probabilities as targets"):
        il.loss_and_grad(params, (x, shares), model=MODEL, loss=loss, backend="fused")


def test_one_description_of_a_call_serves_all_calls():
    """Equal numbers are one object, for which a call is known; others are other plans."""
    made = [objectives.resolve("", nn.CrossEntropyLoss(weights(3))) for _ in range(2)]
    assert made[0] is made[1]
    assert made[0] is not objectives.resolve("", nn.CrossEntropyLoss(2 * weights(3)))
    assert objectives.FusedObjective.of(made[0].fused.text) == made[0].fused


@needs_compile_of_modules
@pytest.mark.filterwarnings("ignore::innerloop.FallbackWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(
    ("loss", "is_fused"),
    [
        (nn.CrossEntropyLoss(label_smoothing=0.25), True),
        (nn.CrossEntropyLoss(weights(3)), False),
    ],
    ids=["smoothing", "weight"],
)
def test_compiled(loss, is_fused):
    """Numbers of a tensor are not read under torch.compile: the torch back end takes the loss."""
    torch.manual_seed(0)
    net, (_, batch) = nn.Sequential(nn.Linear(2, 3)).double(), task()
    learner = il.MAML(net, inner_lr=0.2, steps=2, loss=loss)
    learner(batch, batch).backward()
    expected = {k: p.grad.clone() for k, p in net.named_parameters()}
    net.zero_grad()
    torch._dynamo.reset()
    torch.compile(learner, backend="aot_eager", fullgraph=True)(batch, batch).backward()
    assert_close({k: p.grad for k, p in net.named_parameters()}, expected, TOLERANCE)
    if not is_fused:
        fused = il.MAML(net, inner_lr=0.2, steps=2, loss=loss, backend="fused")
        torch._dynamo.reset()
        with pytest.raises(Exception, match=r"torch.compile does not read|NotImplementedError"):
            torch.compile(fused, backend="aot_eager", fullgraph=True)(batch, batch)


@needs_compile_of_modules
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("dynamic", sweep([True, None], [True]), ids=["dynamic", "by default"])
def test_compiled_with_options_that_change(dynamic):
    torch.manual_seed(0)
    x, y = torch.randn(3, 4, 2), torch.randn(3, 4, 1)
    learner = il.MAML(nn.Linear(2, 1), inner_lr=0.1, steps=2, loss=nn.HuberLoss(delta=0.3))
    torch._dynamo.reset()
    compiled = torch.compile(learner, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for delta in (0.3, 0.4, 0.5, 1.0):
        learner.loss.delta = delta
        torch.testing.assert_close(compiled((x, y), (x, y)), learner((x, y), (x, y)))
