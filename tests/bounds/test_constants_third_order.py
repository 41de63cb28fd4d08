"""rho: exact third derivatives, dense search on a small network, secants, and bad input."""

import json

import numpy as np
import pytest
import torch

import innerloop as il
from innerloop.bounds import constants


def sigmoid_third(z):
    """Returns |third derivative of log(1 + e^z)|."""
    s = torch.sigmoid(z)
    return (s * (1 - s) * (1 - 2 * s)).abs()


def test_one_row_of_logistic_loss_is_exact():
    """D^3 is phi'''(z) x x x, whose norm is |phi'''| ||x||^3."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 1, 3, generator=generator, dtype=torch.float64)
    weight = torch.randn(1, 3, generator=generator, dtype=torch.float64)
    found = constants.third_order(
        il.MLP([3, 1], bias=False), {"0.weight": weight}, (x, torch.ones(8, 1)),
        loss="bce_with_logits",
    )  # fmt: skip
    z = (x @ weight.T)[:, 0, 0]
    exact = (sigmoid_third(z) * x[:, 0].norm(dim=1) ** 3).numpy()
    np.testing.assert_allclose(found.values, exact, rtol=1e-6, atol=1e-9)
    assert found.rho == pytest.approx(2 * exact.max(), rel=1e-6)
    assert found.rho.origin.measured == pytest.approx(exact.max(), rel=1e-6)
    assert found.rho.origin.side == "inflated"


def test_orthogonal_rows_take_the_largest():
    """A sum of orthogonal third powers has the norm of its largest term; local maxima of all the
    others trap single starts."""
    sizes = torch.tensor([1.0, 1.5, 1.7, 2.0], dtype=torch.float64)
    x = torch.diag(sizes)[None]
    weight = torch.full((1, 4), 0.4, dtype=torch.float64)
    model, batch = il.MLP([4, 1], bias=False), (x, torch.zeros(1, 4))
    found = constants.third_order(
        model, {"0.weight": weight}, batch, loss="bce_with_logits", starts=16
    )
    exact = float((sigmoid_third(0.4 * sizes) * sizes**3).max()) / 4
    assert found.values[0] == pytest.approx(exact, rel=1e-6)


def test_small_network_agrees_with_a_dense_search():
    generator = torch.Generator().manual_seed(1)
    model = il.MLP([1, 2, 1], activation="tanh")
    params = model.init(generator, dtype=torch.float64)
    x = torch.randn(1, 5, 1, generator=generator, dtype=torch.float64)
    y = torch.randn(1, 5, 1, generator=generator, dtype=torch.float64)
    shapes = [v.shape for v in params.values()]

    def loss(vector):
        parts = torch.split(vector, [s.numel() for s in shapes])
        leaves = {k: p.reshape(s) for k, p, s in zip(params, parts, shapes, strict=True)}
        return il.reference.loss_and_grad(leaves, (x, y), model=model)[0][0]

    flat = torch.cat([v.reshape(-1) for v in params.values()])
    tensor = torch.func.jacrev(torch.func.jacrev(torch.func.jacrev(loss)))(flat)
    directions = torch.randn(4000, len(flat), generator=generator, dtype=torch.float64)
    for _ in range(60):
        directions = directions / directions.norm(dim=1, keepdim=True)
        images = torch.einsum("abc,na,nb->nc", tensor, directions, directions)
        values = (images * directions).sum(1)
        directions = values.sign()[:, None] * images + values.abs()[:, None] * directions
    exact = float(values.abs().max())
    found = constants.third_order(model, params, (x, y), starts=8, iterations=60)
    assert found.values[0] == pytest.approx(exact, rel=1e-5)
    few = constants.third_order(model, params, (x, y), starts=1, iterations=1)
    assert few.values[0] < exact


def test_quadratics_have_none_and_kinks_are_named():
    x = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    linear = il.MLP([2, 1])
    found = constants.third_order(linear, linear.init(), (x, x[..., :1]))
    assert found.values.max() < 1e-8
    assert found.rho.reason is None
    bent = il.MLP([2, 3, 1], activation="relu")
    found = constants.third_order(bent, bent.init(), (x, x[..., :1]), starts=1, iterations=2)
    assert found.rho.standing == "heuristic"
    assert "relu activations break B2 and B3" in found.rho.reason
    assert "relu activations break B2 and B3" in found.explain()


def test_secants_bound_from_below():
    """Between two points of one row of logistic loss the Hessian changes by |phi''| x x."""
    x = torch.tensor([[[2.0]], [[0.5]]], dtype=torch.float64)
    model = il.MLP([1, 1], bias=False)
    points = torch.tensor([0.0, 0.3, 0.3, 1.0], dtype=torch.float64)
    stacked = {"0.weight": points.reshape(4, 1, 1)}
    listed = [{"0.weight": p.reshape(1, 1)} for p in points]
    batch = (x, torch.ones(2, 1))
    found = constants.secant_rho(model, stacked, batch, loss="bce_with_logits")
    again = constants.secant_rho(model, listed, batch, loss="bce_with_logits")
    np.testing.assert_array_equal(found.values, again.values)
    s = torch.sigmoid(points[:, None] * x[:, 0, 0])
    bend = (s * (1 - s)) * x[:, 0, 0] ** 2
    with np.errstate(invalid="ignore"):
        exact = (bend.diff(dim=0).abs() / points.diff()[:, None]).nan_to_num(0.0)
    np.testing.assert_allclose(found.values, exact, rtol=1e-9, atol=1e-12)
    assert found.values.max() <= constants.logistic_constants(2.0).rho
    json.dumps(found.to_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"starts": 0}, "starts must be"),
        ({"iterations": 0}, "iterations must be"),
        ({"shift": -1.0}, "shift must be"),
        ({"step": 0.0}, "step must be positive"),
        ({"inflation": 0.5}, "inflation must be"),
        ({"inflation": float("nan")}, "inflation must be"),
    ],
)
def test_bad_input(change, message):
    model = il.MLP([1, 1])
    x = torch.ones(1, 1, 1)
    with pytest.raises(ValueError, match=message):
        constants.third_order(model, model.init(), (x, x), **change)


def test_bad_runs():
    model = il.MLP([1, 1])
    x = torch.ones(1, 1, 1)
    with pytest.raises(ValueError, match="at least two points"):
        constants.secant_rho(model, [model.init()], (x, x))
    with pytest.raises(ValueError, match="must have one length"):
        constants.secant_rho(
            model, {"0.weight": torch.ones(2, 1, 1), "0.bias": torch.ones(3, 1)}, (x, x)
        )
