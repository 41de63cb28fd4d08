"""Initial gaps and the smoothness met along a run."""

import json
import math

import numpy as np
import pytest
import torch

import innerloop as il
from innerloop.bounds import constants


def tasks(seed=0, count=30, rows=12):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, rows, 2, generator=generator, dtype=torch.float64)
    return x, torch.sin(x.sum(2, keepdim=True)) + 0.1


def test_gaps_are_the_objectives():
    model = il.MLP([2, 4, 1], activation="tanh")
    params = model.init(torch.Generator().manual_seed(0), dtype=torch.float64)
    x, y = tasks()
    support, query = (x[:, :4], y[:, :4]), (x[:, 4:], y[:, 4:])
    found = constants.initial_gaps(model, params, query, support=support, inner_lr=0.1, steps=2)
    options = {"model": model, "inner_lr": 0.1}
    for gap, steps in ((found.drs, 0), (found.maml, 2)):
        losses = il.meta_loss(params, support, query, steps=steps, **options)
        assert gap == pytest.approx(losses.mean().item(), rel=1e-12)
        error = losses.std(correction=1).item() / math.sqrt(30)
        assert gap.origin.standard_error == pytest.approx(error, rel=1e-9)
        assert gap.trust == "plug-in"
    assert constants.initial_gaps(model, params, query).maml is None
    assert "standard error" in found.explain()
    json.dumps(found.to_dict())


def test_gaps_refuse_what_has_no_lower_bound():
    model = il.MLP([2, 1])
    x = torch.ones(3, 2, 2)
    with pytest.raises(ValueError, match="never negative"):
        constants.initial_gaps(
            model, model.init(), (x, torch.full((3, 2), 1.5)), loss="bce_with_logits"
        )
    with pytest.raises(ValueError, match="at least 2 tasks"):
        constants.initial_gaps(model, model.init(), (x[:1], torch.ones(1, 2)))
    with pytest.raises(ValueError, match="after the inner loop must be finite"):
        constants.initial_gaps(
            model, model.init(), (x, torch.ones(3, 2)), support=(x, torch.ones(3, 2)),
            inner_lr=1e200, steps=3,
        )  # fmt: skip


def test_quadratic_shows_its_curvature():
    rng = np.random.default_rng(0)
    matrix = np.diag([3.0, 1.0])
    points = rng.normal(size=(40, 2))
    values = 0.5 * np.einsum("ji,ik,jk->j", points, matrix, points)
    found = constants.directional_smoothness(points, values, points @ matrix)
    step = np.diff(points, axis=0)
    exact = np.einsum("ji,ik,jk->j", step, matrix, step) / (step**2).sum(1)
    np.testing.assert_allclose(found.values, exact, rtol=1e-9)
    assert (found.secants >= found.values - 1e-9).all()
    assert found.largest <= 3.0 + 1e-9
    assert found.largest == pytest.approx(found.secants.max())
    assert found.largest.trust == "certified"
    assert found.largest.origin.side == "lower bound"
    assert "Result 35" in found.explain()


def test_steps_lost_in_rounding_are_left_out():
    found = constants.directional_smoothness(
        [[0.0], [1e-9], [1e-9], [1.0]], [1.0, 1.0, 1.0, 2.5], [[0.0], [1e-9], [1e-9], [3.0]]
    )
    assert np.isnan(found.values[:2]).all()
    assert found.values[2] == pytest.approx(3.0)
    assert found.secants[1] == 0.0


@pytest.mark.parametrize("maml", [False, True])
def test_a_run_stays_below_the_certified_smoothness(maml):
    """Logistic regression: L for the joint objective; Result 21 for MAML with N samples."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(6, 10, 2, generator=generator, dtype=torch.float64)
    y = (torch.rand(6, 10, generator=generator) < 0.5).double()
    known = constants.logistic_constants(float(x.norm(dim=2).max()))
    model = il.MLP([2, 1], bias=False)
    points = [
        {"0.weight": torch.randn(1, 2, generator=generator, dtype=torch.float64)} for _ in range(8)
    ]
    rate = 0.3
    options = {"loss": "bce_with_logits"}
    if maml:
        options |= {"support": (x[:, :5], y[:, :5]), "inner_lr": rate, "steps": 1}
    found = constants.smoothness_along(model, points, (x[:, 5:], y[:, 5:]), **options)
    bound = float(known.L)
    if maml:  # per-sample constants, so that N is arbitrary and the noise is at most 2 G
        kappa = max(1.0, abs(1 - rate * known.L_plus))
        bound = kappa**2 * known.L + rate * known.rho * known.G
    assert 0 < found.largest <= bound
    json.dumps(found.to_dict())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1.0]], [1.0], [[1.0]]), "J >= 1"),
        (([[1.0], [2.0]], [1.0, 2.0], [[1.0]]), "one shape"),
        (([[1.0], [2.0]], [1.0], [[1.0], [1.0]]), "values must have shape"),
        (([[1.0], [math.nan]], [1.0, 2.0], [[1.0], [1.0]]), "must be finite"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        constants.directional_smoothness(*arguments)
