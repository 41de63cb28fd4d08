"""The certified families and their exact enumeration against independent computations."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from innerloop.bounds.nonconvex import LogisticLoss, TanhRegression
from innerloop.bounds.nonconvex.attack import random_family
from innerloop.bounds.nonconvex.enumeration import exact_moments, supports

KINDS = ("tanh", "logistic")


def family_of(kind, seed=0):
    return random_family(kind, np.random.default_rng([seed, 77]))


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_are_those_of_the_loss(kind):
    family = family_of(kind)
    u = np.linspace(-3.0, 3.0, 31)[:, None, None] + np.zeros_like(family.y)
    h = 1e-5
    for function, derivative in ((family.loss, family.slope), (family.slope, family.curvature)):
        difference = (function(u + h) - function(u - h)) / (2 * h)
        np.testing.assert_allclose(derivative(u), difference, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_suprema_are_reached_and_not_exceeded(kind):
    family = family_of(kind)
    u = np.linspace(-9.0, 9.0, 180_001)[:, None, None]
    most = family.suprema()
    curvature = family.curvature(u)
    third = np.abs(np.diff(curvature, axis=0)) / 1e-4
    for found, bound, loss in (
        (np.abs(family.slope(u)), most.slope, 2e-4),
        (curvature, most.above, 1e-6),
        (-curvature, most.below, 1e-3),
        (third, most.third, 1e-6),
    ):
        largest = found.max(axis=0)
        assert (largest <= bound * (1 + 1e-9) + 1e-12).all()
        assert (largest >= bound * (1 - loss) - 1e-12).all() or kind == "logistic"


def test_logistic_suprema_are_reached_in_the_limit():
    family = LogisticLoss(np.ones((1, 1, 1)), np.ones((1, 1)))
    u = np.array([[[-40.0]], [[0.0]], [[np.log(2.0 + np.sqrt(3.0))]]])
    assert abs(family.slope(u)[0]).item() == 1.0
    assert family.curvature(u)[1].item() == 0.25
    h = 1e-4
    third = (family.curvature(u + h) - family.curvature(u - h))[2].item() / (2 * h)
    assert abs(third) == pytest.approx(family.suprema().third.item(), rel=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_certified_constants_hold_at_random_points(kind):
    for seed in range(8):
        family = family_of(kind, seed)
        rng = np.random.default_rng(seed)
        sure = family.constants()
        for point in rng.normal(0.0, 2.0, (20, family.x.shape[-1])):
            here = family.constants(at=point)
            for name, value in here.known().items():
                if name != "mean_gradient":
                    assert value <= getattr(sure, name) * (1 + 1e-9) + 1e-12, name
            spectrum = np.linalg.eigvalsh(family.hessians(point[None]))
            assert spectrum.max() <= sure.L_plus
            assert spectrum.min() >= -sure.ell
            single = family.curvature(family.scores(point[None])) * (family.x**2).sum(-1)
            assert single.max() <= sure.L_plus_s
            assert single.min() >= -sure.ell_s


@pytest.mark.parametrize("kind", KINDS)
def test_values_at_points_are_plain_averages(kind):
    family = family_of(kind, 3)
    point = np.random.default_rng(0).standard_normal(family.x.shape[-1])
    here = family.constants(at=point)
    slopes = family.gradients(point[None])
    spread = sum(
        w * np.sum((g - family.weights @ slopes) ** 2)
        for w, g in zip(family.weights, slopes, strict=True)
    )
    assert here.sigma_gamma == pytest.approx(np.sqrt(spread))
    noise = []
    for g in range(len(slopes)):
        each = family.slope(family.scores(point[None]))[g][:, None] * family.x[g]
        noise.append(family.chances[g] @ ((each - slopes[g]) ** 2).sum(-1))
    assert here.sigma_g == pytest.approx(np.sqrt(max(noise)))
    started = family.constants(start=point)
    assert started.gap_drs == pytest.approx(family.weights @ family.risks(point[None]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("samples", [None, 1, 2])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_mean_gradient_is_the_gradient_of_the_objective(kind, samples, steps):
    family = family_of(kind, 1)
    point = np.random.default_rng(2).standard_normal(family.x.shape[-1])
    options = {"inner_lr": 0.3, "samples": samples, "steps": steps}
    h = 1e-5
    difference = [
        (
            exact_moments(family, point + h * unit, **options).value
            - exact_moments(family, point - h * unit, **options).value
        )
        / (2 * h)
        for unit in np.eye(len(point))
    ]
    np.testing.assert_allclose(
        exact_moments(family, point, **options).gradient, difference, atol=2e-9
    )


def test_moments_are_those_of_a_plain_loop_over_ordered_samples():
    """One gradient for every ordered support and query, weighted and summed one by one."""
    family = family_of("tanh", 4)
    point = np.random.default_rng(1).standard_normal(family.x.shape[-1])
    tasks, atoms = family.y.shape
    a, samples, queries = 0.4, 2, 1
    mean, square = 0.0, 0.0
    for g in range(tasks):
        alone = dataclasses.replace(
            family,
            x=family.x[g : g + 1],
            y=family.y[g : g + 1],
            chances=family.chances[g : g + 1],
            weights=np.ones(1),
        )
        for drawn in itertools.product(range(atoms), repeat=samples):
            share = np.bincount(drawn, minlength=atoms)[None] / samples
            turn = np.eye(len(point)) - a * alone.hessians(point[None], share)[0]
            moved = point - a * alone.gradients(point[None], share)[0]
            for query in itertools.product(range(atoms), repeat=queries):
                seen = np.bincount(query, minlength=atoms)[None] / queries
                gradient = turn @ alone.gradients(moved[None], seen)[0]
                chance = family.weights[g] * np.prod(family.chances[g][[*drawn, *query]])
                mean = mean + chance * gradient
                square += chance * gradient @ gradient
    found = exact_moments(family, point, inner_lr=a, samples=samples, queries=queries)
    np.testing.assert_allclose(found.gradient, mean, rtol=1e-12)
    assert found.variance == pytest.approx(square - mean @ mean, rel=1e-10)


def test_supports_have_probability_one():
    family = family_of("tanh", 5)
    for samples in (None, 1, 2, 3):
        frequency, chances = supports(family, samples)
        np.testing.assert_allclose(chances.sum(0), 1.0)
        average = (chances[..., None] * frequency).sum(0)
        np.testing.assert_allclose(average, family.chances, rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TanhRegression(np.ones((1, 2, 1)), np.ones((1, 3))), "y must have shape"),
        (
            lambda: TanhRegression(np.ones((1, 2, 1)), np.ones((1, 2)), np.ones((1, 2))),
            "chances must be probabilities",
        ),
        (
            lambda: LogisticLoss(np.ones((2, 1, 1)), np.ones((2, 1)), None, [1.0, 1.0]),
            "weights must be probabilities",
        ),
        (lambda: LogisticLoss(np.ones((1, 1, 1)), np.zeros((1, 1))), "y must be -1 or 1"),
        (
            lambda: exact_moments(
                family_of("tanh"),
                np.zeros(family_of("tanh").x.shape[-1]),
                inner_lr=0.1,
                samples=1,
                steps=2,
                hessian="separate",
            ),
            "steps = 1",
        ),
    ],
)
def test_bad_families_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_one_task_alone_has_no_spread():
    family = TanhRegression(np.ones((1, 2, 1)), np.array([[0.2, -0.4]]))
    assert family.constants().sigma_gamma == 0.0
    assert family.constants().sigma_Hgamma == 0.0
