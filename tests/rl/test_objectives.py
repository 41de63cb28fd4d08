"""The operations on policies' objectives in float64, against definitions written out here row by
row and their autograd derivatives, and against the closed forms of the gradients.

Tolerance: float64 sums in another order; ratios reach e^20 and noise of size 1e-6 multiplies errors
by 1e12, so 1e-9 relative to the largest entry, and 1e-6 in the cases below the floor."""

import math
from functools import partial

import pytest
import torch

import innerloop as il
from helpers import assert_close, randn_like
from innerloop.rl.algorithms import entropy

T, N, D, K = 3, 7, 4, 2
CLIP = 0.3
LOSSES = ("pg_loglik", "pg_ratio", "pg_clipped", "kl")


def problem(case="plain", seed=0, tasks=T, rows=N, activation="tanh", dtype=torch.float64):
    """(model, params, batch) with ratios on both sides of the clip and advantages of both signs."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, scale=1.0):
        return scale * torch.randn(shape, generator=generator, dtype=torch.float64)

    floor = -1.0 if case == "floor" else math.log(1e-6)
    model = il.GaussianMLP([D, 5, 4, K], activation, min_log_std=floor)
    params = model.init(generator, torch.float64)
    params["log_std"] = draw(K, scale=0.3)
    if case == "floor":
        params["log_std"] = torch.tensor([-1.5, 0.2], dtype=torch.float64)
    if case == "tiny noise":
        params["log_std"] = torch.tensor([-20.0, -13.9], dtype=torch.float64)
    x = draw(tasks, rows, D)
    mean = draw(tasks, rows, K, scale=0.5)
    log_std = draw(tasks, K, scale=0.2)
    action = mean + log_std.exp()[:, None] * draw(tasks, rows, K)
    advantage = draw(tasks, rows)
    count = weight = None
    if case == "large z":
        action = action * 4
    if case == "zero advantages":
        advantage[:, ::2] = 0
    if case in ("ragged", "both"):
        count = torch.tensor([rows, 1, rows - 2][:tasks])
    if case in ("weighted", "both"):
        weight = torch.rand(tasks, rows, generator=generator, dtype=torch.float64)
        weight[:, 1] = 0
    batch = il.PolicyBatch(x, action, advantage, mean, log_std, count, weight)
    if case == "shared log_std":
        batch = batch._replace(log_std=log_std[0])
    if count is not None or weight is not None:
        batch = spoiled(batch)
    cast = {name: leaf.to(dtype) for name, leaf in params.items()}
    moved = [v if v is None or v.dtype == torch.int64 else v.to(dtype) for v in batch]
    return model, cast, il.PolicyBatch(*moved)


def spoiled(batch):
    """The same rows in use; those that are not hold NaN and inf."""
    used = torch.ones(batch.advantage.shape, dtype=torch.bool)
    if batch.count is not None:
        used &= torch.arange(used.shape[1]) < batch.count[:, None]
    if batch.weight is not None:
        used &= batch.weight != 0
    wide = used[..., None]
    weight = batch.weight
    if weight is not None and batch.count is not None:
        past = torch.arange(used.shape[1]) >= batch.count[:, None]
        weight = torch.where(past, torch.nan, weight)
    return batch._replace(
        x=torch.where(wide, batch.x, torch.nan),
        action=torch.where(wide, batch.action, torch.inf),
        advantage=torch.where(used, batch.advantage, torch.nan),
        mean=torch.where(wide, batch.mean, -torch.inf),
        weight=weight,
    )


CASES = ["plain", "floor", "tiny noise", "ragged", "weighted", "both", "large z"]
CASES += ["zero advantages", "shared log_std"]


def written_out(params, batch, model, loss, t):
    """The objective of one task, a row at a time, by torch.distributions."""
    rows = batch.x.shape[1] if batch.count is None else int(batch.count[t])
    s = torch.maximum(params["log_std"], torch.tensor(model.min_log_std, dtype=torch.float64))
    s = torch.where(params["log_std"] >= model.min_log_std, params["log_std"], s.detach())
    old = batch.log_std[t] if batch.log_std.ndim == 2 else batch.log_std
    total = torch.zeros((), dtype=torch.float64)
    for i in range(rows):
        w = 1.0 / rows if batch.weight is None else batch.weight[t, i]
        if w == 0:
            continue
        h = batch.x[t, i]
        layers = model.network.layers
        for layer in layers:
            h = params[layer.weight] @ h + params[layer.bias]
            if layer is not layers[-1]:
                h = {"tanh": torch.tanh, "relu": torch.relu}[layer.activation](h)
        new = torch.distributions.Normal(h, s.exp())
        recorded = torch.distributions.Normal(batch.mean[t, i], old.exp())
        advantage, action = batch.advantage[t, i], batch.action[t, i]
        log_pi = new.log_prob(action).sum()
        ratio = (log_pi - recorded.log_prob(action).sum()).exp()
        if loss == "kl":
            value = torch.distributions.kl_divergence(recorded, new).sum()
        elif loss == "pg_loglik":
            value = -advantage * log_pi
        elif loss == "pg_ratio":
            value = -advantage * ratio
        else:
            value = -torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
        total = total + w * value
    return total


def written(model, batch, loss, t, params):
    """`written_out` with the parameters last."""
    return written_out(params, batch, model, loss, t)


def derivatives(function, params, vector):
    """(value, gradient, Hessian times vector) by autograd."""
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
    value = function(leaves)

    def grad(y, create_graph=False):
        found = torch.autograd.grad(
            y, list(leaves.values()), create_graph=create_graph, allow_unused=True
        )
        return {
            name: torch.zeros_like(leaf) if g is None else g
            for (name, leaf), g in zip(leaves.items(), found, strict=True)
        }

    first = grad(value, create_graph=True)
    slope = sum((first[name] * vector[name]).sum() for name in leaves)
    second = (
        grad(slope) if slope.requires_grad else {k: torch.zeros_like(v) for k, v in leaves.items()}
    )
    return value.detach(), {k: v.detach() for k, v in first.items()}, second


def stacked(parts):
    """[{name: tensor}] over tasks as {name: [T, ...]}."""
    return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}


def losses(params, batch, model, loss):
    """Each task's objective [T]."""
    options = {"model": model, "loss": loss, "clip": CLIP}
    return il.meta_loss(params, batch, batch, inner_lr=0.0, steps=0, **options)


def tolerance(case):
    return 1e-6 if case == "tiny noise" else 1e-9


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", CASES)
def test_value_gradient_and_hessian_product(case, loss):
    for seed in range(2):
        model, params, batch = problem(case, seed)
        if case == "tiny noise" and loss in ("pg_ratio", "pg_clipped"):
            continue  # every ratio is 0 or infinite: see the overflow below
        vector = randn_like(params, 5)
        tasks = range(T)
        found = [
            derivatives(partial(written, model, batch, loss, t), params, vector) for t in tasks
        ]
        options = {"model": model, "loss": loss, "clip": CLIP}
        value, grad = il.loss_and_grad(params, batch, **options)
        torch.testing.assert_close(
            value, torch.stack([part[0] for part in found]), rtol=tolerance(case), atol=1e-12
        )
        torch.testing.assert_close(losses(params, batch, model, loss), value, rtol=1e-12, atol=0)
        assert_close(grad, stacked([part[1] for part in found]), tolerance(case))
        product = il.hvp(params, batch, vector, **options)
        assert_close(product, stacked([part[2] for part in found]), tolerance(case))


def test_clip_cuts_both_sides():
    """The cases above hold rows beyond the clip on both sides, of advantages of both signs."""
    model, params, batch = problem()
    kinds = set()
    for t in range(T):
        for i in range(N):
            one = il.PolicyBatch(*(v[t : t + 1] for v in batch[:5]))
            one = il.PolicyBatch(*(v[:, i : i + 1] for v in one[:4]), one.log_std)
            of_one = one._replace(advantage=torch.ones_like(one.advantage))
            ratio = -losses(params, of_one, model, "pg_ratio").item()
            _, grad = il.loss_and_grad(params, one, model=model, loss="pg_clipped", clip=CLIP)
            positive = bool(one.advantage > 0)
            outside = ratio > 1 + CLIP if positive else ratio < 1 - CLIP
            kinds.add((positive, outside))
            assert bool((grad["2.bias"] == 0).all()) == outside
    assert len(kinds) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_overflowing_ratios(dtype):
    """A ratio above all numbers is clipped where the clip applies, is infinite where it does not,
    and counts for nothing where the advantage is 0."""
    model, params, batch = problem(dtype=dtype)
    params["log_std"][:] = -3.0
    far = batch._replace(mean=batch.mean + 1e4, action=batch.mean * 0 + batch.x[..., :K] * 0)
    shown = {}
    for sign in (1.0, 0.0, -1.0):
        one = far._replace(advantage=torch.full_like(far.advantage, sign))
        shown[sign] = il.loss_and_grad(params, one, model=model, loss="pg_clipped", clip=CLIP)
    torch.testing.assert_close(shown[1.0][0], torch.full((T,), -1.3, dtype=dtype))
    assert (shown[0.0][0] == 0).all()
    for sign in (1.0, 0.0):
        assert all((leaf == 0).all() for leaf in shown[sign][1].values())
    assert (shown[-1.0][0] == torch.inf).all()
    zero = far._replace(advantage=torch.zeros_like(far.advantage))
    value, grad = il.loss_and_grad(params, zero, model=model, loss="pg_ratio")
    assert (value == 0).all()
    assert all((leaf == 0).all() for leaf in grad.values())


@pytest.mark.parametrize("case", ["plain", "floor", "weighted"])
def test_closed_form_gradients(case):
    """dL/dmean_i = -c_i z_i e^-s and dL/dlog_std = -m sum_i c_i (z_i^2 - 1), by the head's bias."""
    model, params, batch = problem(case)
    s = params["log_std"].clamp(min=model.min_log_std)
    live = (params["log_std"] >= model.min_log_std).double()
    weight = (
        torch.full((T, N), 1 / N, dtype=torch.float64) if batch.weight is None else batch.weight
    )
    used = weight != 0
    mean = il.predict(params, torch.where(used[..., None], batch.x, 0), model=model)
    action = torch.where(used[..., None], batch.action, 0)
    recorded = torch.where(used[..., None], batch.mean, 0)
    advantage = torch.where(used, batch.advantage, 0)
    z = (action - mean) * (-s).exp()
    z_old = (action - recorded) * (-batch.log_std[:, None]).exp()
    ratio = (batch.log_std[:, None] - s + (z_old**2 - z**2) / 2).sum(2).exp()
    clipped = ((advantage > 0) & (ratio > 1 + CLIP)) | ((advantage < 0) & (ratio < 1 - CLIP))
    factors = {
        "pg_loglik": weight * advantage,
        "pg_ratio": weight * advantage * ratio,
        "pg_clipped": torch.where(clipped, 0, weight * advantage * ratio),
    }
    for loss, c in factors.items():
        _, grad = il.loss_and_grad(params, batch, model=model, loss=loss, clip=CLIP)
        c = torch.where(used, c, 0)[..., None].double()
        assert_close(grad["2.bias"], -(c * z * (-s).exp()).sum(1), 1e-9)
        assert_close(grad["log_std"], -live * (c * (z**2 - 1)).sum(1), 1e-9)


# ---------------------------------------------------------------- products


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("case", CASES)
def test_fisher_product_is_the_hessian_of_the_kl(case, activation):
    """Where recorded and present policy agree."""
    model, params, batch = problem(case, activation=activation)
    s = params["log_std"].clamp(min=model.min_log_std)
    x = torch.nan_to_num(batch.x)
    here = batch._replace(
        mean=il.predict(params, x, model=model), log_std=s.expand(T, -1).contiguous()
    )
    vector = randn_like(params, 3)
    product = il.fisher_product(params, here, vector, model=model)
    expected = [
        derivatives(lambda p, t=t: written_out(p, here, model, "kl", t), params, vector)[2]
        for t in range(T)
    ]
    assert_close(product, stacked(expected), tolerance(case))
    again = il.fisher_product(
        params, here, {k: v.expand(T, *v.shape) for k, v in vector.items()}, model=model
    )
    assert_close(again, product, 1e-14)


def test_fisher_matrix_is_symmetric_and_positive():
    model, params, batch = problem("weighted")
    a, b = randn_like(params, 1), randn_like(params, 2)
    fa, fb = (il.fisher_product(params, batch, v, model=model) for v in (a, b))
    for t in range(T):
        ab = sum(float((b[k] * fa[k][t]).sum()) for k in a)
        ba = sum(float((a[k] * fb[k][t]).sum()) for k in a)
        assert ab == pytest.approx(ba, rel=1e-12)
        assert sum(float((a[k] * fa[k][t]).sum()) for k in a) > 0


def stepped(leaves, support, model, t, rate, loss, order):
    """One task's inner step, by autograd on the written-out objective."""
    value = written_out(leaves, support, model, loss, t)
    grads = torch.autograd.grad(value, list(leaves.values()), create_graph=True)
    if order == 1:
        grads = [g.detach() for g in grads]
    return {name: leaf - rate * g for (name, leaf), g in zip(leaves.items(), grads, strict=True)}


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    ("loss", "query_loss", "eta"),
    [
        ("pg_ratio", "pg_clipped", 0.0),
        ("pg_ratio", "pg_clipped", 0.7),
        ("pg_loglik", "pg_ratio", 0.0),
        ("pg_loglik", "kl", 0.3),
    ],
)
@pytest.mark.parametrize("case", ["plain", "floor", "both"])
def test_meta_gradient(case, loss, query_loss, eta, order):
    model, params, support = problem(case, 0)
    _, _, query = problem(case, 1)
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
    values = []
    for t in range(T):
        phi = stepped(leaves, support, model, t, 0.1, loss, order)
        value = written_out(phi, query, model, query_loss, t)
        values.append(value + eta * written_out(leaves, support, model, "kl", t))
    values = torch.stack(values)
    grads = torch.autograd.grad(values.mean(), list(leaves.values()))
    options = {"model": model, "inner_lr": 0.1, "steps": 1, "loss": loss}
    options |= {"query_loss": query_loss}
    options |= {"clip": CLIP, "kl_coefficient": eta, "order": order}
    found = il.meta_grad(params, support, query, **options)
    torch.testing.assert_close(found.loss, values.detach(), rtol=1e-9, atol=1e-12)
    assert_close(found.grad, dict(zip(leaves, grads, strict=True)), 1e-9)
    torch.testing.assert_close(il.meta_loss(params, support, query, **options), found.loss)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_adapt(steps):
    model, params, batch = problem("both")
    found = il.adapt(params, batch, model=model, inner_lr=0.1, steps=steps, loss="pg_ratio")
    for t in range(T):
        phi = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
        for _ in range(steps):
            phi = stepped(phi, batch, model, t, 0.1, "pg_ratio", 1)
        assert_close({k: v[t] for k, v in found.items()}, phi, 1e-9)


@pytest.mark.parametrize("case", ["plain", "floor", "weighted"])
def test_constraint_product_is_the_hessian_of_the_adapted_kl(case):
    """At the parameters that sampled the query rows, whose recorded policy is the adapted one."""
    rate = 0.1
    model, params, support = problem(case, 0)
    _, _, query = problem(case, 1)
    adapted = il.adapt(params, support, model=model, inner_lr=rate, steps=1, loss="pg_loglik")
    query = query._replace(
        mean=il.predict(adapted, torch.nan_to_num(query.x), model=model),
        log_std=adapted["log_std"].clamp(min=model.min_log_std),
    )
    vector = randn_like(params, 3)

    def mean_kl(p):
        parts = [
            written_out(stepped(p, support, model, t, rate, "pg_loglik", 2), query, model, "kl", t)
            for t in range(T)
        ]
        return torch.stack(parts).mean()

    expected = derivatives(mean_kl, params, vector)[2]
    options = {"model": model, "inner_lr": rate}
    found = il.meta_fisher_product(params, support, query, vector, **options)
    assert_close(found, expected, 1e-9)
    first = il.meta_fisher_product(params, support, query, vector, order=1, **options)
    fisher = il.fisher_product(adapted, query, vector, model=model)
    assert_close(first, {k: v.mean(0) for k, v in fisher.items()}, 1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_float32(loss):
    """Within rounding of float64: ratios up to 1e3 make it 1e-3."""
    model, params, batch = problem("both")
    _, params32, batch32 = problem("both", dtype=torch.float32)
    wide = il.loss_and_grad(params, batch, model=model, loss=loss)
    narrow = il.loss_and_grad(params32, batch32, model=model, loss=loss)
    assert narrow[0].dtype is torch.float32
    torch.testing.assert_close(narrow[0].double(), wide[0], rtol=1e-3, atol=1e-4)
    assert_close(narrow[1], wide[1], 1e-3)


def test_parameters_of_every_task():
    """Per-task leaves, shared ones, and mixtures."""
    model, params, batch = problem()
    own = {k: torch.stack([v + 0.1 * t for t in range(T)]) for k, v in params.items()}
    mixed = {k: own[k] if k.endswith("bias") else params[k] for k in params}
    for given in (own, mixed):
        value, grad = il.loss_and_grad(given, batch, model=model, loss="pg_loglik")
        for t in range(T):
            one = {k: v if v.ndim == len(model.shapes[k]) else v[t] for k, v in given.items()}
            alone = il.PolicyBatch(*(v[t : t + 1] for v in batch[:5]))
            expected = il.loss_and_grad(one, alone, model=model, loss="pg_loglik")
            torch.testing.assert_close(value[t : t + 1], expected[0], rtol=1e-12, atol=1e-13)
            assert_close({k: v[t : t + 1] for k, v in grad.items()}, expected[1], 1e-10)


def test_entropy():
    model, params, _ = problem("floor")
    s = params["log_std"].clamp(min=-1.0)
    expected = torch.distributions.Normal(torch.zeros(K).double(), s.exp()).entropy().sum()
    assert entropy(params, model) == pytest.approx(expected.item())
