"""Curvature of tasks: known Hessians, every method, certified families, any model."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import innerloop as il
from innerloop.bounds import Quantity, constants

HUGE = torch.full((1, 3), 1e200, dtype=torch.float64)
METHODS = ["two-sided", "squared", "power"]


def dense_hessian(function, params):
    """Returns the Hessian [P, P] of function(params) in float64."""
    names, shapes = list(params), [v.shape for v in params.values()]
    flat = torch.cat([v.double().reshape(-1) for v in params.values()])

    def whole(vector):
        parts = torch.split(vector, [s.numel() for s in shapes])
        return function({k: p.reshape(s) for k, p, s in zip(names, parts, shapes, strict=True)})

    return torch.func.jacrev(torch.func.jacrev(whole))(flat)


def spectra(model, params, batch, loss):
    """Returns the eigenvalues [T, P] of every task's Hessian, by automatic differentiation."""
    return torch.stack(
        [
            torch.linalg.eigvalsh(
                dense_hessian(
                    lambda p, t=t: il.reference.loss_and_grad(
                        p, tuple(v[t : t + 1].double() if v.is_floating_point() else v[t : t + 1]
                                 for v in batch), model=model, loss=loss
                    )[0][0],
                    params,
                )
            )
            for t in range(len(batch[0]))
        ]
    ).numpy()  # fmt: skip


def curved_problem(seed=0, tasks=4, rows=6, scale=1.5):
    generator = torch.Generator().manual_seed(seed)
    model = il.MLP([2, 5, 1], activation="tanh")
    params = {k: scale * v for k, v in model.init(generator).items()}
    x = torch.randn(tasks, rows, 2, generator=generator)
    y = 2 * torch.randn(tasks, rows, 1, generator=generator)
    return model, params, (x, y)


def test_linear_tasks_have_the_given_curvature():
    """Rows sqrt(N) Q^(1/2) make the Hessian of half_mse exactly Q."""
    rng = np.random.default_rng(0)
    matrices = []
    for _ in range(5):
        root = rng.normal(size=(4, 4))
        matrices.append(root @ root.T)
    x = torch.from_numpy(np.stack([2.0 * np.linalg.cholesky(q).T for q in matrices]))  # N = 4
    model = il.MLP([4, 1], bias=False)
    found = constants.curvature(model, model.init(), (x, torch.zeros(5, 4)), loss="half_mse")
    exact = np.linalg.eigvalsh(np.stack(matrices))
    np.testing.assert_allclose(found.largest, exact[:, -1], rtol=1e-9)
    np.testing.assert_allclose(found.smallest, exact[:, 0], rtol=1e-6, atol=1e-9)
    assert found.L_plus >= exact.max()
    assert found.L_plus.origin.measured == pytest.approx(exact.max())
    assert found.L_plus.confidence == 1.0  # four products exhaust four dimensions
    assert found.kappa(0.1) >= 1 - 0.1 * exact.min()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("per_task", [False, True])
def test_networks_lie_within_the_bounds(method, per_task):
    model, params, batch = curved_problem()
    exact = spectra(model, params, batch, "mse")
    if per_task:
        params = {k: v.expand(4, *v.shape).clone() for k, v in params.items()}
    found = constants.curvature(model, params, batch, method=method, eps=0.1, delta=1e-3)
    tolerance = 1e-9 * np.abs(exact).max()
    assert (found.largest <= exact[:, -1] + tolerance).all()
    assert (found.smallest >= exact[:, 0] - tolerance).all()
    assert (found.largest_upper >= exact[:, -1]).all()
    assert (found.smallest_lower <= exact[:, 0]).all()
    norm = np.abs(exact).max()
    assert norm <= found.L <= 1.35 * norm
    assert found.ell > 0.1  # the problem is not convex
    assert found.L_plus.trust == "certified"
    assert 0.999 <= found.L_plus.confidence <= 1.0
    certified = np.abs(exact - found.largest[:, None]).min(1) <= found.largest_residual + 1e-9
    assert certified.all()


def test_one_run_is_as_tight_as_squares_at_a_quarter_of_the_price():
    model, params, batch = curved_problem(seed=3)
    one, three = (constants.curvature(model, params, batch, method=m, eps=0.1) for m in METHODS[:2])
    assert 3.5 * one.products < three.products
    assert (one.largest_upper <= three.largest_upper).all()
    assert (one.smallest_lower >= 1.05 * three.smallest_lower).all()


def test_few_products_keep_their_confidence():
    """With k fixed the confidence is what k buys; the upper bound fails no more often than that."""
    model, params, _ = curved_problem(seed=1)
    x, y = (v[:1].expand(400, -1, -1) for v in curved_problem(seed=1)[2])
    exact = spectra(model, params, (x[:1], y[:1]), "mse")[0]
    found = constants.curvature(model, params, (x, y), products=6, eps=0.2, seed=5)
    failing = (found.largest_upper < exact[-1]).mean()
    allowed = 1 - found.L_plus.confidence
    assert 0 < allowed < 1
    assert failing <= allowed
    none = constants.curvature(model, params, (x, y), products=1, eps=0.2)
    assert none.L_plus.confidence == 0.0
    assert none.L_plus.trust == "plug-in"
    assert "too few" in none.L_plus.reason


def family(loss, seed):
    """Returns random one-layer tasks, their certified constants, and random parameters."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 8, 3, generator=generator, dtype=torch.float64)
    radius = float(x.norm(dim=2).max())
    if loss == "half_mse":
        module = nn.Sequential(nn.Linear(3, 1, bias=False), nn.Tanh())
        y = 2 * torch.rand(6, 8, 1, generator=generator, dtype=torch.float64) - 1
        known = constants.tanh_constants(radius)
    else:
        module = nn.Sequential(nn.Linear(3, 1, bias=False))
        y = torch.rand(6, 8, 1, generator=generator, dtype=torch.float64)
        known = constants.logistic_constants(radius)
    size = 3 * torch.rand((), generator=generator).item()
    weight = size * torch.randn(1, 3, generator=generator, dtype=torch.float64)
    return module, {"0.weight": weight}, (x, y), known


@pytest.mark.parametrize("loss", ["half_mse", "bce_with_logits"])
@pytest.mark.parametrize("seed", range(12))
def test_estimates_never_exceed_certified_suprema(loss, seed):
    module, params, batch, known = family(loss, seed)
    options = {"loss": loss, "seed": seed}
    found = constants.curvature(module, params, batch, **options)
    assert found.largest.max() <= known.L_plus
    assert -found.smallest.min() <= known.ell + 1e-12
    third = constants.third_order(module, params, batch, **options)
    assert third.values.max() <= known.rho * (1 + 1e-7)
    moved = {"0.weight": params["0.weight"] + 0.5}
    run = constants.secant_rho(module, [params, moved], batch, **options)
    assert run.values.max() <= known.rho * (1 + 1e-12)
    single = constants.sample_constants(module, params, batch, **options)
    assert single.rows == 48
    assert single.L_plus.origin.measured <= known.L_plus * (1 + 1e-12)
    assert single.ell.origin.measured <= known.ell + 1e-12
    assert single.rho.origin.measured <= known.rho * (1 + 1e-7)
    # a task's Hessian is an average of its samples' Hessians
    assert found.L.origin.measured <= single.L.origin.measured * (1 + 1e-12)
    assert single.L.trust == "plug-in"
    noise = constants.variance_components(module, params, batch, **options)
    assert noise.gradient_norm.max() <= known.G
    assert noise.G2 <= known.G**2


class Product(nn.Module):
    """A model that no description fits: runs on the torch back end."""

    def __init__(self):
        super().__init__()
        self.left = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.right = nn.Parameter(torch.tensor([0.5, -1.0]))
        self.register_buffer("scale", torch.tensor([2.0]))

    def forward(self, x):
        return self.scale * (x * self.left * self.right).sum(1, keepdim=True)


@pytest.mark.filterwarnings("ignore::innerloop.FallbackWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_module(dtype):
    module = Product()
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 3, 5, 2, generator=generator)
    y = y[..., :1]
    params = dict(module.named_parameters())
    found = constants.curvature(module, params, (x, y), dtype=dtype)
    wide = copy.deepcopy(module).double()
    exact = spectra(wide, {k: v.detach() for k, v in params.items()}, (x, y), "mse")
    accuracy = 1e-4 if dtype == torch.float32 else 1e-9
    np.testing.assert_allclose(found.largest, exact[:, -1], rtol=accuracy)
    np.testing.assert_allclose(found.smallest, exact[:, 0], rtol=accuracy, atol=accuracy)
    assert module.scale.dtype == torch.float32
    assert all(p.grad is None for p in module.parameters())


def test_cross_entropy_and_counts():
    generator = torch.Generator().manual_seed(0)
    model = il.MLP([3, 4, 3], activation="silu")
    x = torch.randn(2, 5, 3, generator=generator)
    y = torch.randint(3, (2, 5), generator=generator)
    params = model.init(generator)
    exact = spectra(model, params, (x, y), "cross_entropy")
    found = constants.curvature(model, params, (x, y), loss="cross_entropy")
    np.testing.assert_allclose(found.largest, exact[:, -1], rtol=1e-7)
    short = constants.curvature(model, params, (x, y, torch.tensor([5, 2])), loss="cross_entropy")
    assert short.largest[0] == pytest.approx(found.largest[0], rel=1e-9)
    assert short.largest[1] != pytest.approx(found.largest[1], rel=1e-3)


def test_groups_of_tasks_do_not_matter(monkeypatch):
    model, params, batch = curved_problem()
    whole = constants.curvature(model, params, batch)
    monkeypatch.setattr("innerloop.bounds.constants.hessian._BASIS", 1)
    parts = constants.curvature(model, params, batch)
    np.testing.assert_allclose(parts.largest, whole.largest, rtol=1e-9)


def test_records_speak_and_travel():
    model, params, batch = curved_problem()
    found = constants.curvature(model, params, batch, generator=torch.Generator().manual_seed(4))
    again = constants.curvature(model, params, batch, seed=4)
    assert found.L_plus == again.L_plus
    text = found.explain()
    for word in ("certified upper bound", "confidence", "Result 32", "plug-in", "cost"):
        assert word in text
    json.dumps(found.to_dict())
    moved = pickle.loads(pickle.dumps(found.L_plus))
    assert (moved, moved.origin, moved.name) == (found.L_plus, found.L_plus.origin, moved.name)
    assert copy.deepcopy(found.ell).origin == found.ell.origin
    assert found.L_plus.trust == "certified"  # for these tasks, here
    assert found.L_plus.standing == (found.L_plus * 2).standing == "plug-in"  # in any bound
    assert found.largest.standing == found.kappa(0.1).standing == "plug-in"
    assert type(found.L_plus * 2) is Quantity


def test_relu_has_no_curvature_that_a_bound_could_use():
    model = il.MLP([2, 4, 1], activation="relu")
    x = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    found = constants.curvature(model, model.init(), (x, x[..., :1]), eps=0.2)
    assert found.L_plus.trust == "certified"
    assert found.L_plus.standing == found.kappa(0.1).standing == "heuristic"
    assert "relu activations break B2 and B3" in found.explain()


def test_steps_too_few_for_any_confidence_bound_nothing():
    model, params, batch = curved_problem()
    found = constants.curvature(model, params, batch, products=1, eps=1e-4)
    assert found.L_plus.trust == "plug-in"
    assert found.L_plus.origin.side == "inflated"
    assert "too few for any confidence" in found.explain()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"eps": 0.5}, ValueError, r"eps must lie strictly in \(0, 0.5\)"),
        ({"delta": 1.0}, ValueError, "delta must lie"),
        ({"products": 0}, ValueError, "products must be an integer >= 1"),
        ({"products": True}, ValueError, "products must be an integer"),
        ({"method": "dense"}, ValueError, "method must be"),
        ({"loss": "l1"}, ValueError, "loss must be one of"),
        ({"dtype": torch.float16}, TypeError, "dtype must be"),
        ({"model": 3}, TypeError, "model must be an MLP or an nn.Module"),
        ({"batch": (torch.zeros(2, 3, 2),)}, TypeError, "batch must be"),
        ({"batch": ([[1.0]], [[1.0]])}, TypeError, "x must be a tensor"),
        ({"batch": (torch.zeros(0, 3, 2), torch.zeros(0, 3, 1))}, ValueError, "T, N >= 1"),
        ({"batch": (torch.full((1, 3, 2), float("nan")), torch.zeros(1, 3))}, ValueError, "finite"),
        ({"batch": (torch.zeros(1, 3, 2), HUGE)}, ValueError, "the loss must be finite"),
        ({"batch": (torch.zeros(1, 3, 4), torch.zeros(1, 3))}, ValueError, "to fit the model"),
    ],
)  # fmt: skip
def test_bad_input(change, error, message):
    model, params, batch = curved_problem()
    call = {"model": model, "params": params, "batch": batch, **change}
    with pytest.raises(error, match=message):
        constants.curvature(**call)
