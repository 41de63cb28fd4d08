"""Variance components: no bias, jackknife, robust means, and agreement with their definition."""

import json

import numpy as np
import pytest
import torch

import innerloop as il
from innerloop.bounds import constants

MODEL = il.MLP([2, 1], bias=False)
ZERO = {"0.weight": torch.zeros(1, 2)}
CENTRE = np.array([0.4, -0.3])
SPREAD2, NOISE2 = 0.5, 0.3
SCALES = np.array([1.0, 2.0])  # variances of x, by task


def draw(rng, tasks, rows):
    """Returns linear tasks x ~ N(0, s I), y = theta.x + noise with s and theta drawn by task."""
    s = rng.choice(SCALES, tasks)
    theta = CENTRE + np.sqrt(SPREAD2) * rng.normal(size=(tasks, 2))
    x = np.sqrt(s)[:, None, None] * rng.normal(size=(tasks, rows, 2))
    y = (x * theta[:, None]).sum(2) + np.sqrt(NOISE2) * rng.normal(size=(tasks, rows))
    return torch.from_numpy(x), torch.from_numpy(y)


def truth():
    """Returns the components at theta = 0 in closed form: a sample's gradient is -x y, its Hessian
    x x'. With p = 2: E|x|^2 (theta.x)^2 = 4 s^2 |theta|^2, E|x x' - s I|_F^2 = 6 s^2."""
    s, s2 = SCALES.mean(), (SCALES**2).mean()
    size = CENTRE @ CENTRE + 2 * SPREAD2  # E|theta|^2
    within = 3 * s2 * size + 2 * s * NOISE2
    mean = s**2 * (CENTRE @ CENTRE)
    between = s2 * size - mean
    return {
        "sigma_g2": within,
        "sigma_gamma2": between,
        "gradient2": mean,
        "G2": between + mean,
        "sigma_H2": 6 * s2,
        "sigma_Hgamma2": 2 * (s2 - s**2),
    }


@pytest.fixture(scope="module")
def repeated():
    """Estimates and standard errors of 300 independent data sets, [300] each."""
    rng = np.random.default_rng(0)
    names = list(truth())
    rows = []
    for k in range(300):
        found = constants.variance_components(
            MODEL, ZERO, draw(rng, 40, 3), loss="half_mse", probes=2, seed=k
        )
        parts = [getattr(found, n) for n in names]
        rows.append([(float(p), p.origin.standard_error) for p in parts])
    values = np.array(rows)
    return {n: values[:, i] for i, n in enumerate(names)}


@pytest.mark.parametrize("name", list(truth()))
def test_components_are_unbiased(repeated, name):
    """Within 4 standard errors of the mean of 300: false alarm below 1e-4 each."""
    values = repeated[name][:, 0]
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean() - truth()[name]) < 4 * error
    assert error < 0.05 * max(truth().values())


@pytest.mark.parametrize("name", list(truth()))
def test_jackknife_has_the_right_size(repeated, name):
    """The root mean squared standard error is the spread of the estimates, within the spread of a
    standard deviation of 300 values with moderate tails (20 % is about 4 of its errors)."""
    values, errors = repeated[name].T
    assert np.sqrt((errors**2).mean()) == pytest.approx(values.std(ddof=1), rel=0.2)


def naive(batch, probes):
    """Returns the components by their definition, from explicit gradients and Hessians."""
    x, y = batch[0].numpy(), batch[1].numpy()
    tasks, rows = y.shape

    def split(vectors):
        means = vectors.mean(1)
        msw = ((vectors - means[:, None]) ** 2).sum() / (tasks * (rows - 1))
        between = ((means - means.mean(0)) ** 2).sum() / (tasks - 1)
        return msw, between - msw / rows, (means.mean(0) ** 2).sum() - between / tasks

    g = split(-x * y[..., None])
    h = np.mean([split(x * (x @ z)[..., None]) for z in probes], axis=0)
    return g, h


def test_agrees_with_the_definition_and_with_leaving_tasks_out():
    batch = draw(np.random.default_rng(3), 6, 4)
    # for p = 2 the four sign vectors give two values of |Hz|, each for z and -z
    found = constants.variance_components(MODEL, ZERO, batch, loss="half_mse", probes=1)
    g, _ = naive(batch, [np.ones(2)])
    candidates = [naive(batch, [z])[1] for z in (np.array([1.0, 1.0]), np.array([1.0, -1.0]))]
    got = [float(found.sigma_g2), float(found.sigma_gamma2), float(found.gradient2)]
    np.testing.assert_allclose(got, g, rtol=1e-10)
    hessian = [float(found.sigma_H2), float(found.sigma_Hgamma2)]
    assert any(np.allclose(hessian, c[:2], rtol=1e-10) for c in candidates)
    kept = [[j for j in range(6) if j != t] for t in range(6)]
    left = np.array([naive([v[k] for v in batch], [np.ones(2)])[0] for k in kept])
    errors = np.sqrt(5 / 6 * ((left - left.mean(0)) ** 2).sum(0))
    assert found.sigma_g2.origin.standard_error == pytest.approx(errors[0], rel=1e-9)
    assert found.sigma_gamma2.origin.standard_error == pytest.approx(errors[1], rel=1e-9)
    assert found.gradient2.origin.standard_error == pytest.approx(errors[2], rel=1e-9)
    np.testing.assert_allclose(
        found.gradient_norm, np.linalg.norm((-batch[0] * batch[1][..., None]).mean(1), axis=1)
    )


def test_groups_of_tasks_do_not_matter(monkeypatch):
    batch = draw(np.random.default_rng(4), 7, 3)
    whole = constants.variance_components(MODEL, ZERO, batch, loss="half_mse")
    monkeypatch.setattr("innerloop.bounds.constants.variance._VECTORS", 1)
    parts = constants.variance_components(MODEL, ZERO, batch, loss="half_mse")
    for name in truth():
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-10)


def test_median_of_means_shrugs_off_a_wild_task():
    rng = np.random.default_rng(5)
    x, y = draw(rng, 80, 3)
    y[0] *= 1e4
    wild, robust = (
        constants.variance_components(MODEL, ZERO, (x, y), loss="half_mse", method=method, blocks=8)
        for method in ("mean", "median_of_means")
    )
    assert wild.sigma_g2 > 1e4
    blocks = [
        constants.variance_components(MODEL, ZERO, (x[k : k + 10], y[k : k + 10]), loss="half_mse")
        for k in range(0, 80, 10)
    ]
    for name in ("sigma_g2", "sigma_gamma2", "gradient2"):
        assert getattr(robust, name) == pytest.approx(np.median([getattr(b, name) for b in blocks]))
    assert robust.sigma_g2 < 3 * truth()["sigma_g2"]
    assert "median over 8 blocks" in robust.explain()


def test_negative_outcomes_are_kept():
    """Tasks without any difference: the estimate of zero is negative about half of the time."""
    rng = np.random.default_rng(6)
    found = []
    for k in range(12):
        x = torch.from_numpy(rng.normal(size=(5, 3, 2)))
        y = torch.from_numpy(rng.normal(size=(5, 3)))
        made = constants.variance_components(MODEL, ZERO, (x, y), loss="half_mse", seed=k)
        found.append(made.sigma_gamma2)
    negative = [f for f in found if f < 0]
    assert 0 < len(negative) < 12
    assert "negative" in negative[0].explain()
    json.dumps(negative[0].to_dict())


def test_without_probes_and_for_a_network():
    model = il.MLP([1, 8, 2], activation="tanh")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 1, generator=generator)
    y = torch.randint(2, (4, 3), generator=generator)
    found = constants.variance_components(
        model, model.init(generator), (x, y), loss="cross_entropy", probes=0
    )
    assert found.sigma_H2 is None
    assert "sigma_H" not in found.explain()
    losses, grads = il.loss_and_grad(
        {k: v.double() for k, v in model.init(generator.manual_seed(0)).items()},
        (x.double(), y), model=model, loss="cross_entropy",
    )  # fmt: skip
    assert losses.shape == (4,)
    assert len(found.noise) == len(found.gradient_norm) == 4
    assert grads.keys() == model.shapes.keys()


@pytest.mark.parametrize(
    ("batch", "options", "message"),
    [
        ((torch.ones(2, 4, 2), torch.ones(2, 4)), {}, "at least 3 tasks of 2 rows"),
        ((torch.ones(4, 1, 2), torch.ones(4, 1)), {}, "at least 3 tasks of 2 rows"),
        ((torch.ones(4, 2, 2), torch.ones(4, 2), torch.tensor([1, 2, 2, 2])), {}, "neither count"),
        ((torch.ones(4, 2, 2), torch.ones(4, 2)), {"probes": -1}, "probes must be"),
        ((torch.ones(4, 2, 2), torch.ones(4, 2)), {"method": "median"}, "method must be"),
        (
            (torch.ones(4, 2, 2), torch.ones(4, 2)),
            {"method": "median_of_means", "blocks": 3},
            "blocks must be at most",
        ),
    ],
)
def test_bad_input(batch, options, message):
    with pytest.raises(ValueError, match=message):
        constants.variance_components(MODEL, ZERO, batch, **options)
