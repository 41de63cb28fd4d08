"""The batched back end against the torch back end, in float64 and float32: families of layers x
options x orders, every operation. Tolerance 1e-10 in float64, relative to each leaf or, for leaves
that are what is left of cancelled terms (a bias before a batch norm), to a thousandth of the
largest; 3e-3 in float32, where relu and pools may take other branches, so with smooth networks."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import innerloop as il
from batched_networks import FAMILIES, WITH_BATCH_STATISTICS, build
from helpers import assert_close

pytestmark = [
    pytest.mark.filterwarnings("ignore:innerloop.*:innerloop.FallbackWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop"),  # torch.vmap of bilinear
]

TASKS = 3
FLOOR = 1e-3


def cubic(z, y):
    """A loss of one number."""
    return (z - y).abs().pow(3).mean()


def quartic_rows(z, y):
    """A loss of one value for each row."""
    return ((z - y) ** 4).sum(1)


LOSSES = {
    "mse": "mse",
    "half mse": "half_mse",
    "huber": "huber",
    "bce": "bce_with_logits",
    "cross entropy": "cross_entropy",
    "smoothed": nn.CrossEntropyLoss(label_smoothing=0.1),
    "l1": nn.L1Loss(),
    "cubic": cubic,
    "rows": quartic_rows,
}
CLASSES = ("cross entropy", "smoothed")
RATES = ("number", "scalar", "steps", "leaf", "leaf_steps", "element", "element_steps")
# one set of options for each family in the quick suite, others in the slow one
QUICK = {name: at for at, name in enumerate(FAMILIES)}
SEEDS = range(12)


def make_rates(generator, kind, steps, shapes):
    """Inner rates of one kind."""

    def rate(*shape):
        return 0.02 + 0.05 * torch.rand(shape, generator=generator, dtype=torch.float64)

    whole = {"number": lambda: float(rate()), "scalar": rate, "steps": lambda: rate(steps)}
    if kind in whole:
        return whole[kind]()
    forms = {
        "leaf": lambda shape: rate(),
        "leaf_steps": lambda shape: rate(steps),
        "element": lambda shape: rate(*shape),
        "element_steps": lambda shape: rate(steps, *shape),
    }
    return {name: forms[kind](shape) for name, shape in shapes.items()}


def problem(family, seed):
    """Arguments of meta_grad for a network of a family, every option drawn from the seed."""
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    net, shape = build(family, seed)
    loss = list(LOSSES)[seed % len(LOSSES)]
    solver = random.Random(f"{family} {seed}")
    query_loss = solver.choice([None, *LOSSES])
    ragged = family not in WITH_BATCH_STATISTICS and draw.random() < 0.6
    sides = []
    for rows, own in ((4, loss), (5, query_loss or loss)):
        x = torch.randn(TASKS, rows, *shape, generator=generator, dtype=torch.float64)
        if own in CLASSES:
            y = torch.randint(3, (TASKS, rows), generator=generator)
        else:
            y = torch.rand(TASKS, rows, 3, generator=generator, dtype=torch.float64)
        count = weight = None
        if ragged:
            count = torch.tensor([rows, 0, rows - 2])
            x[2, rows - 2 :] = float("nan")
            if own not in ("smoothed", "l1", "cubic") and draw.random() < 0.5:
                weight = torch.rand(TASKS, rows, generator=generator, dtype=torch.float64)
                weight[0, 1] = 0
        sides.append((x, y, count, weight))
    params = {}
    for name, value in net.named_parameters():
        params[name] = value.detach()
        if draw.random() < 0.4:
            noise = torch.randn(TASKS, *value.shape, generator=generator, dtype=torch.float64)
            params[name] = value.detach() + 0.1 * noise
    names = list(params)
    adapted = draw.choice([None, [k for k in names if draw.random() < 0.6] or names[-1:]])
    shapes = {k: net.get_parameter(k).shape for k in adapted or names}
    # 7 is the size of no leaf, so that rates of 7 steps are not taken for rates per element
    kind = draw.choice(RATES)
    steps = 7 if kind == "leaf_steps" else draw.choice([0, 1, 2, 3])
    options = {
        "model": net,
        "loss": LOSSES[loss],
        "query_loss": query_loss and LOSSES[query_loss],
        "momentum": solver.choice([0.0, 0.6]),
        "steps": steps,
        "order": draw.choice([1, 2, 2]),
        "inner_lr": make_rates(generator, kind, steps, shapes),
        "adapt_params": adapted,
    }
    task_weight = draw.choice([None, torch.rand(TASKS, generator=generator, dtype=torch.float64)])
    return params, *sides, options, task_weight


CASES = [
    pytest.param(name, seed, id=f"{name}-{seed}", marks=() if QUICK[name] % 12 == seed else slow)
    for slow in [pytest.mark.slow]
    for name in FAMILIES
    for seed in SEEDS
]


@pytest.mark.parametrize(("family", "seed"), CASES)
def test_all_operations_are_those_of_the_torch_back_end(family, seed):
    params, support, query, options, weight = problem(family, seed)
    more = {"task_weight": weight, "stepwise": True}
    found, wanted = (
        il.meta_grad(params, support, query, backend=backend, **options, **more)
        for backend in ("batched", "torch")
    )
    assert (found.backend, wanted.backend) == ("batched", "torch")
    for name in ("loss", "grad", "support_loss", "query_loss"):
        got, want = getattr(found, name), getattr(wanted, name)
        assert_close(got, want, 1e-10, name, floor=FLOOR)
    assert_close(found.inner_lr_grad, wanted.inner_lr_grad, 1e-10, "rates", floor=FLOOR)
    own = {k: options[k] for k in ("model", "loss")}
    generator = torch.Generator().manual_seed(seed)
    vector = {
        k: torch.randn(v.shape, generator=generator, dtype=v.dtype) for k, v in params.items()
    }
    adapting = {k: v for k, v in options.items() if k not in ("order", "query_loss")}
    for operation, arguments, keywords in (
        (il.hvp, (params, support, vector), own),
        (il.loss_and_grad, (params, support), own),
        (il.adapt, (params, support), adapting),
        (il.adapt, (params, support), {**adapting, "stepwise": True}),
        (il.predict, (params, torch.nan_to_num(query[0])), {"model": options["model"]}),
    ):
        got, want = (
            operation(*arguments, backend=backend, **keywords) for backend in ("batched", "torch")
        )
        assert_close(got, want, 1e-10, operation.__name__, floor=FLOOR)


SMOOTH = ("linear", "smooth", "row norms", "signal", "constant norm")


@pytest.mark.parametrize("family", SMOOTH)
def test_float32_is_as_exact_as_the_torch_back_end(family):
    net, shape = build(family, 3)
    generator = torch.Generator().manual_seed(5)
    sides = [
        (
            torch.randn(TASKS, rows, *shape, generator=generator),
            torch.randn(TASKS, rows, 3, generator=generator),
        )
        for rows in (4, 5)
    ]
    wide = [tuple(v.double() for v in side) for side in sides]
    options = {"inner_lr": 0.05, "steps": 2}
    params = {k: v.detach() for k, v in net.named_parameters()}
    exact = il.meta_grad(params, *wide, model=net, backend="torch", **options)
    net = net.float()
    params = {k: v.detach() for k, v in net.named_parameters()}
    found = il.meta_grad(params, *sides, model=net, backend="batched", **options)
    assert found.loss.dtype is torch.float32
    assert_close(found.grad, exact.grad, 1e-4, floor=1e-2)
    assert_close(found.loss, exact.loss, 1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
    net, shape = build("smooth")
    generator = torch.Generator().manual_seed(2)
    sides = []
    for rows in (4, 5):
        x = torch.randn(TASKS, rows, *shape, generator=generator, dtype=torch.float64)
        y = torch.rand(TASKS, rows, 3, generator=generator, dtype=torch.float64)
        if name in CLASSES:
            y = torch.randint(3, (TASKS, rows), generator=generator)
        sides.append((x, y))
    params = {k: v.detach() for k, v in net.named_parameters()}
    options = {"model": net, "inner_lr": 0.1, "steps": 2, "loss": LOSSES[name]}
    found, wanted = (
        il.meta_grad(params, *sides, backend=backend, **options) for backend in ("batched", "torch")
    )
    assert_close(found.grad, wanted.grad, 1e-10)


def test_log_probabilities_as_outputs_are_cross_entropy():
    net, shape = build("smooth")
    generator = torch.Generator().manual_seed(4)
    sides = [
        (
            torch.randn(TASKS, rows, *shape, generator=generator, dtype=torch.float64),
            torch.randint(3, (TASKS, rows), generator=generator),
        )
        for rows in (4, 5)
    ]
    found = []
    for model, loss in (
        (nn.Sequential(*net, nn.LogSoftmax(1)), F.nll_loss),
        (net, "cross_entropy"),
    ):
        params = {k: v.detach() for k, v in model.named_parameters()}
        options = {"inner_lr": 0.1, "steps": 3, "loss": loss, "backend": "batched"}
        found.append(il.meta_grad(params, *sides, model=model, **options))
    assert_close(found[0].grad, found[1].grad, 1e-10)
    assert_close(found[0].loss, found[1].loss, 1e-12)


@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1])
def test_sizes_of_ceiled_pools_are_those_of_torch(kernel, stride, padding):
    for pool in (nn.MaxPool1d, nn.AvgPool1d):
        net = nn.Sequential(nn.Conv1d(1, 1, 1), pool(kernel, stride, padding, ceil_mode=True))
        params = {k: v.detach() for k, v in net.named_parameters()}
        for size in range(3, 9):
            x = torch.randn(2, 3, 1, size)
            outputs = il.predict(params, x, model=net, backend="batched")
            torch.testing.assert_close(outputs, torch.stack([net(rows) for rows in x]).detach())


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("kind", ["number", "leaf_steps", "element"])
@pytest.mark.parametrize("family", ["wide", "conv4"])
def test_momentum_and_query_loss(family, kind, order):
    """Of "wide" with rates for leaves, the middle weights are never written out for each task."""
    net, shape = build(family, 1)
    generator = torch.Generator().manual_seed(order)
    x, z = (
        torch.randn(TASKS, rows, *shape, generator=generator, dtype=torch.float64)
        for rows in (3, 4)
    )
    y = torch.randn(TASKS, 3, 3, generator=generator, dtype=torch.float64)
    sides = (x, y), (z, torch.randint(3, (TASKS, 4), generator=generator))
    params = {k: v.detach() for k, v in net.named_parameters()}
    shapes = {k: v.shape for k, v in params.items()}
    rates = make_rates(generator, kind, 4, shapes)
    found = []
    for backend in ("batched", "torch"):
        leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
        options = {
            "model": net, "inner_lr": rates, "steps": 4, "momentum": 0.8, "order": order,
            "query_loss": "cross_entropy", "backend": backend,
        }  # fmt: skip
        whole = il.meta_grad(params, *sides, **options, stepwise=True)
        losses = il.meta_loss(leaves, *sides, **options)
        mean = il.functional.mean_meta_loss(leaves, *sides, **options)
        values = list(leaves.values())
        found.append(
            {
                "meta_grad": whole.grad,
                "rates": whole.inner_lr_grad,
                "losses": [whole.loss, whole.support_loss, whole.query_loss, losses, mean],
                "meta_loss": torch.autograd.grad(losses.square().sum(), values),
                "mean": torch.autograd.grad(mean, values),
            }
        )
    for name, value in found[0].items():
        assert_close(value, found[1][name], 1e-10, name, floor=FLOOR)


# ---------------------------------------------------------------- choices


@pytest.mark.parametrize("family", FAMILIES)
def test_auto_takes_it_where_there_are_no_kernels(family):
    net, shape = build(family)
    x = torch.randn(2, 2, *shape, dtype=torch.float64)
    il.predict({k: v.detach() for k, v in net.named_parameters()}, x, model=net)
    choice = il.backend_for(net)
    assert choice.backend == ("fused" if family == "linear" else "batched"), choice.reason
    learner = il.MAML(net, inner_lr=0.1, steps=1)
    assert learner.backend == choice.backend
    assert f"back end: {choice.backend}" in learner.explain()


def test_explain_says_why_it_is_not_fused():
    net, _ = build("pools")
    text = il.MAML(net, inner_lr=0.1, steps=1).explain()
    assert "batched operations over the tasks, since" in text
    assert "layer '0' (Conv2d) cannot be fused: there is no kernel" in text
    linear, _ = build("linear")
    text = il.MAML(linear, inner_lr=0.1, steps=1, loss=cubic).explain()
    assert "back end: batched" in text
    assert "the loss cubic has no kernel" in text


def test_what_it_cannot_take_is_refused_or_falls_back():
    net = nn.Sequential(nn.Linear(2, 2), nn.Softmax(0))
    x, y = torch.randn(2, 3, 2), torch.randn(2, 3, 2)
    params = {k: v.detach() for k, v in net.named_parameters()}
    with pytest.raises(NotImplementedError, match='backend "batched" must be available'):
        il.MAML(net, inner_lr=0.1, steps=1, backend="batched")((x, y), (x, y))
    with pytest.raises(NotImplementedError, match='backend "batched" must be available'):
        il.predict(params, x, model=net, backend="batched")
    net, shape = build("linear")
    x = torch.randn(TASKS, 4, *shape, dtype=torch.float64, requires_grad=True)
    y = torch.randn(TASKS, 4, 3, dtype=torch.float64)
    learner = il.MAML(net, inner_lr=0.1, steps=1, backend="batched")
    with pytest.raises(NotImplementedError, match="support x is differentiated"):
        learner((x, y), (x, y))
    auto = il.MAML(build("pools")[0], inner_lr=0.1, steps=1)
    x = torch.randn(TASKS, 4, 2, 8, 8, dtype=torch.float64, requires_grad=True)
    auto((x, y), (x, y)).backward()
    assert x.grad is not None


def learner_and_sides(family="pools", **options):
    """A learner with data for it."""
    net, shape = build(family)
    generator = torch.Generator().manual_seed(4)
    sides = [
        (
            torch.randn(TASKS, rows, *shape, generator=generator, dtype=torch.float64),
            torch.randn(TASKS, rows, 3, generator=generator, dtype=torch.float64),
        )
        for rows in (4, 5)
    ]
    return net, il.MAML(net, **{"inner_lr": 0.1, "steps": 2, **options}), sides


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("learn", [False, True, "per_step", "per_tensor", "per_parameter"])
def test_learners_have_the_gradients_of_the_torch_back_end(reduction, learn):
    found = []
    for backend in ("batched", "torch"):
        _, learner, sides = learner_and_sides(backend=backend, learn_inner_lr=learn)
        loss = learner(*sides, reduction=reduction)
        (loss if reduction == "mean" else (loss * torch.arange(1.0, TASKS + 1)).sum()).backward()
        found.append({k: p.grad for k, p in learner.named_parameters()})
    assert_close(*found, 1e-10, floor=FLOOR)


def test_task_weights_have_a_gradient():
    found = []
    for backend in ("batched", "torch"):
        _, learner, sides = learner_and_sides(backend=backend)
        weight = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64, requires_grad=True)
        learner(*sides, task_weight=weight).backward()
        found.append(weight.grad)
    assert_close(*found, 1e-10)


def test_second_derivatives_raise():
    net, learner, sides = learner_and_sides()
    for reduction in ("mean", "none"):
        loss = learner(*sides, reduction=reduction).sum()
        grads = torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
        with pytest.raises(RuntimeError, match="only first derivatives"):
            grads[0].sum().backward()
    params = dict(net.named_parameters())
    for operation in (il.adapt, il.loss_and_grad):
        more = {"inner_lr": 0.1, "steps": 1} if operation is il.adapt else {}
        result = operation(params, sides[0], model=net, **more)
        value = result[0] if isinstance(result, tuple) else result["0.weight"]
        with pytest.raises(RuntimeError, match="batched operation cannot be differentiated"):
            value.sum().backward()


def test_parameters_changed_between_forward_and_backward_are_noticed():
    net, learner, sides = learner_and_sides()
    loss = learner(*sides, reduction="none").sum()
    with torch.no_grad():
        next(net.parameters()).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_frozen_and_unused_parameters():
    net, _ = build("pools")
    net.register_parameter("unused", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    net[0].weight.requires_grad_(False)
    _, _, sides = learner_and_sides()
    learner = il.MAML(net, inner_lr=0.1, steps=1)
    assert learner.backend == "batched"
    learner(*sides).backward()
    assert net[0].weight.grad is None
    assert torch.equal(net.unused.grad, torch.zeros(2, dtype=torch.float64))


def test_integer_parameters_are_constant_in_every_step():
    net, _ = build("pools")
    net.register_parameter("number", nn.Parameter(torch.tensor([3, 4]), requires_grad=False))
    _, _, (support, _) = learner_and_sides()
    params = {k: v.detach() for k, v in net.named_parameters()}
    options = {"model": net, "inner_lr": 0.1, "steps": 2, "stepwise": True}
    found, wanted = (
        il.adapt(params, support, backend=backend, **options) for backend in ("batched", "torch")
    )
    assert found["number"].shape == (TASKS, 3, 2)
    assert_close(found, wanted, 1e-10, floor=FLOOR)


def test_parameters_of_a_loss_go_to_the_torch_back_end():
    class Scaled(nn.Module):
        """mse with a learned scale."""

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, z, y):
            """Returns the loss."""
            return F.mse_loss(z, y) * self.scale

    _, learner, sides = learner_and_sides(loss=Scaled())
    learner(*sides).backward()
    assert learner.loss.scale.grad is not None
    net, loss = learner.module, Scaled()
    params = {k: v.detach() for k, v in net.named_parameters()}
    options = {"model": net, "inner_lr": 0.1, "steps": 1, "query_loss": loss}
    il.meta_loss(params, *sides, **options).sum().backward()
    assert loss.scale.grad is not None
    with pytest.raises(NotImplementedError, match=r"the loss .*Scaled has variables of its own"):
        il.meta_loss(params, *sides, backend="batched", **options)


def test_sizes_of_zero():
    net, shape = build("pools")
    params = {k: v.detach() for k, v in net.named_parameters()}
    for tasks, rows in ((0, 3), (2, 0)):
        x = torch.randn(tasks, rows, *shape, dtype=torch.float64)
        y = torch.randn(tasks, rows, 3, dtype=torch.float64)
        options = {"model": net, "inner_lr": 0.1, "steps": 2}
        found, wanted = (
            il.meta_grad(params, (x, y), (x, y), backend=backend, **options)
            for backend in ("auto", "torch")
        )
        assert_close(found.loss, wanted.loss, 1e-12)
        assert_close(found.grad, wanted.grad, 1e-12)
        outputs = il.predict(params, x, model=net)
        assert outputs.shape == (tasks, rows, 3)


def test_results_do_not_depend_on_chunks_and_kept_steps(monkeypatch):
    from innerloop._batched import operations, unroll

    params, support, query, options, _ = problem("conv4", 1)
    options |= {"steps": 3, "order": 2, "inner_lr": 0.03}
    whole = il.meta_grad(params, support, query, backend="batched", **options)
    monkeypatch.setitem(operations._CHUNK_BYTES, "cpu", 1)
    monkeypatch.setattr(unroll, "_KEPT_BYTES", 0)
    parts = il.meta_grad(params, support, query, backend="batched", **options)
    assert_close(parts.grad, whole.grad, 1e-12, floor=FLOOR)
    assert_close(parts.loss, whole.loss, 1e-13)


def test_the_module_is_left_as_it_was():
    net, learner, sides = learner_and_sides("conv4")
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x = sides[0][0].clone()
    learner(*sides).backward()
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(sides[0][0], x)


@pytest.mark.parametrize("make", [il.JointTraining, il.ANIL, il.FOMAML, il.MetaSGD])
@pytest.mark.parametrize("family", ["conv4", "pools"])
def test_relatives_of_maml(make, family):
    found = []
    for backend in ("batched", "torch"):
        net, _, (support, query) = learner_and_sides(family)
        steps = {} if make is il.JointTraining else {"steps": 2}
        learner = make(net, inner_lr=0.05, backend=backend, **steps)
        learner(support, query).backward()
        adapted = learner.adapt(support)
        assert adapted.backend == backend
        found.append(
            {
                "grad": {k: p.grad for k, p in learner.named_parameters() if p.grad is not None},
                "adapted": adapted.params,
                "outputs": adapted(query[0]),
                "losses": learner.evaluate(support, query).loss,
            }
        )
    for name, value in found[0].items():
        assert_close(value, found[1][name], 1e-10, name, floor=FLOOR)


class HardsigmoidWritten(nn.Module):
    """What Hardsigmoid is, of which torch has no second derivative."""

    def forward(self, x):
        """Returns the formula."""
        return (x / 6 + 0.5).clamp(0, 1)


def test_hardsigmoid_is_its_formula():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Hardsigmoid(), nn.Linear(5, 3)).double()
    written = nn.Sequential(net[0], HardsigmoidWritten(), net[2])
    params = {k: v.detach() for k, v in net.named_parameters()}
    generator = torch.Generator().manual_seed(1)
    sides = [
        tuple(4 * torch.randn(2, 6, n, generator=generator, dtype=torch.float64) for n in (4, 3))
        for _ in range(2)
    ]
    options = {"inner_lr": 0.1, "steps": 2}
    found = il.meta_grad(params, *sides, model=net, backend="batched", **options)
    wanted = il.meta_grad(params, *sides, model=written, backend="torch", **options)
    assert_close(found.loss, wanted.loss, 1e-12)
    assert_close(found.grad, wanted.grad, 1e-10)
