"""Result 36: errors and crossover from data alone, against loops, exact values and simulation."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings

import numpy as np
import pytest
import torch

from innerloop.bounds.linear import empirical, equations, estimate
from innerloop.bounds.linear.sizes import OutOfRange

# The two-task example W1 of docs/theory.md at inner rate 0.3, N = 5, and its exact values.
Q = np.array([[[2.0, 0.5], [0.5, 1.0]], [[0.5, -0.2], [-0.2, 1.5]]])
THETA = np.array([[1.0, -1.0], [0.5, 2.0]])
NOISE = np.sqrt([0.5, 1.0])
ROOT = np.linalg.cholesky(Q)
EXACT = {"modelling_error": 0.05856618506, "drs": 0.61587348075, "maml": 1.58416883341}
CROSSOVER = 16.533351995608
# Standard deviations of one estimate from M = 400 tasks, found by simulation.
SPREAD = {"modelling_error": 0.0179, "drs": 0.0570, "maml": 0.1396}


def example(seed: int, tasks: int, rows: int = 5, same_curvature: bool = False) -> tuple:
    """Support and query sets of `tasks` random tasks of W1."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 2, tasks)
    root = np.broadcast_to(ROOT[0], (tasks, 2, 2)) if same_curvature else ROOT[kind]
    x = np.einsum("tij,tnj->tni", root, rng.standard_normal((tasks, 2 * rows, 2)))
    y = np.einsum("tni,ti->tn", x, THETA[kind])
    y += NOISE[kind][:, None] * rng.standard_normal(y.shape)
    return x[:, :rows], y[:, :rows], x[:, rows:], y[:, rows:]


def numbers(found: object) -> np.ndarray:
    return np.array([getattr(found, name) for name in EXACT])


def test_equations_are_the_normal_equations_of_every_task() -> None:
    rng = np.random.default_rng(3)
    sx, qx = rng.standard_normal((6, 4, 3)), rng.standard_normal((6, 7, 3))
    sy, qy = rng.standard_normal((6, 4, 2)), rng.standard_normal((6, 7, 2))
    count = np.array([7, 1, 3, 7, 5, 2])
    drs = equations.drs_equations(sx, sy, qx, qy, count)
    maml = equations.maml_equations(sx, sy, qx, qy, count, inner_lr=0.4, steps=3)
    for t, used in enumerate(count):
        x = np.concatenate([sx[t], qx[t, :used]])
        y = np.concatenate([sy[t], qy[t, :used]])
        np.testing.assert_allclose(drs.left[t], x.T @ x / len(x), rtol=1e-12)
        np.testing.assert_allclose(drs.right[t], x.T @ y / len(x), rtol=1e-12, atol=1e-14)
        for k in range(2):
            # Half the gradient of the query risk after three steps is affine in theta. Two outputs
            # share the mean, so each has half the rate.
            def gradient(theta: np.ndarray, t: int = t, used: int = used, k: int = k) -> np.ndarray:
                hessian = sx[t].T @ sx[t] / 4
                matrix, adapted = np.eye(3), theta
                for _ in range(3):
                    residual = hessian @ adapted - sx[t].T @ sy[t, :, k] / 4
                    adapted = adapted - 0.2 * residual
                    matrix = (np.eye(3) - 0.2 * hessian) @ matrix
                x, y = qx[t, :used], qy[t, :used, k]
                return matrix.T @ x.T @ (x @ adapted - y) / used

            at_zero = gradient(np.zeros(3))
            columns = np.column_stack([gradient(unit) - at_zero for unit in np.eye(3)])
            np.testing.assert_allclose(maml.right[t, :, k], -at_zero, rtol=1e-11, atol=1e-13)
            np.testing.assert_allclose(maml.left[t], columns, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("seed", "located"), [(1, False), (6, True)])
def test_estimate_is_the_formula_of_the_result(seed: int, located: bool) -> None:
    data = example(seed, 30)
    found = estimate(*data, inner_lr=0.3)
    drs = equations.drs_equations(*(a if a.ndim == 3 else a[..., None] for a in data))
    maml = equations.maml_equations(
        *(a if a.ndim == 3 else a[..., None] for a in data), inner_lr=0.3, steps=1
    )
    tasks, size = 30, 2
    mean_d, mean_m = drs.left.mean(axis=0), maml.left.mean(axis=0)
    theta_d = np.linalg.solve(mean_d, drs.right.mean(axis=0)[:, 0])
    theta_m = np.linalg.solve(mean_m, maml.right.mean(axis=0)[:, 0])
    np.testing.assert_allclose(found.theta_drs, theta_d, rtol=1e-12)
    np.testing.assert_allclose(found.theta_maml, theta_m, rtol=1e-12)
    psi_d, psi_m, spread, shift = (np.zeros((2, 2)) for _ in range(4))
    shift = np.zeros(2)
    for w_d, z_d, w_m, z_m in zip(drs.left, drs.right, maml.left, maml.right, strict=True):
        score_d, score_m = z_d[:, 0] - w_d @ theta_d, z_m[:, 0] - w_m @ theta_m
        psi_d += np.outer(score_d, score_d) / (tasks - size)
        psi_m += np.outer(score_m, score_m) / (tasks - size)
        influence = np.linalg.solve(mean_d, score_d) - np.linalg.solve(mean_m, score_m)
        spread += np.outer(influence, influence) / (tasks - size)
        shift -= np.linalg.solve(mean_d, w_d @ np.linalg.solve(mean_d, score_d)) / tasks
    inverse_d = np.linalg.inv(mean_d)
    gap = theta_d - theta_m
    drs_constant = np.trace(mean_m @ inverse_d @ psi_d @ inverse_d) / 2 + gap @ mean_m @ shift
    maml_constant = np.trace(np.linalg.solve(mean_m, psi_m)) / 2
    error = gap @ mean_m @ gap / 2 - np.trace(mean_m @ spread) / (2 * tasks)
    wanted = [error, drs_constant, maml_constant]
    np.testing.assert_allclose(numbers(found), wanted, rtol=1e-10)
    crossing = (maml_constant - drs_constant) / error
    scatter = [
        np.linalg.eigvals(np.linalg.solve(mean, np.mean(w @ np.linalg.inv(mean) @ w, axis=0))).max()
        for mean, w in ((mean_d, drs.left), (mean_m, maml.left))
    ]
    assert found.fewest_tasks == math.ceil(5.0 * max(scatter))
    assert located == (crossing >= found.fewest_tasks)
    if located:
        assert found.crossover == pytest.approx(crossing, rel=1e-10)
    else:
        assert math.isnan(found.crossover)
        assert f"crossover M* below {found.fewest_tasks} tasks" in found.explain()


def test_heavy_tails_leave_the_crossover_open() -> None:
    # Inputs with a Student distribution of two degrees of freedom have no variance.
    rng = np.random.default_rng(0)
    slope = rng.uniform(0.5, 1.5, (60, 1))
    for heavy in (False, True):
        x = rng.standard_t(2, (60, 10)) if heavy else rng.standard_normal((60, 10))
        y = slope * x + 0.5 * rng.standard_normal((60, 10))
        x = x[..., None]
        found = estimate(x[:, :5], y[:, :5], x[:, 5:], y[:, 5:], inner_lr=0.5)
        assert (found.fewest_tasks > 60) == heavy
        if heavy:
            assert math.isnan(found.crossover)
            assert "heavy tails" in found.explain()
            assert "crossover M*" not in found.explain()


def half_square_variance(data: tuple) -> float:
    """Variance of half the squared length, in MAML's metric, of a Gaussian with the covariance of
    the two estimates' difference.
    """
    drs = equations.drs_equations(*shaped(data))
    maml = equations.maml_equations(*shaped(data), inner_lr=0.3, steps=1)
    tasks = len(drs.left)
    influence = 0.0
    for sign, part in ((1.0, drs), (-1.0, maml)):
        average = np.mean(part.left, axis=0)
        theta = np.linalg.solve(average, np.mean(part.right, axis=0))
        scores = part.right - part.left @ theta
        influence = influence + sign * np.stack([np.linalg.solve(average, s) for s in scores])
    rows = influence[..., 0]
    covariance = rows.T @ rows / (tasks - rows.shape[1]) / tasks
    product = np.mean(maml.left, axis=0) @ covariance
    return 0.5 * float(np.trace(product @ product))


def shaped(data: tuple) -> list:
    return [a if a.ndim == 3 else a[..., None] for a in data]


def test_the_variance_does_not_vanish_where_the_estimates_agree() -> None:
    # The squared distance has no slope there, which is all that a jackknife sees.
    drs, maml = (
        equations.Equations(np.tile(np.eye(2), (40, 1, 1)), np.zeros((40, 2, 1))) for _ in range(2)
    )
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((40, 2, 1))
    maml = maml._replace(right=noise - noise.mean(axis=0))
    found = empirical.from_equations(drs, maml, inner_lr=0.1, steps=1)
    covariance = noise[..., 0].T @ noise[..., 0] / 38 / 40
    least = np.sqrt(0.5 * np.trace(covariance @ covariance))
    assert found.standard_errors["modelling_error"] > 0.9 * least


@pytest.mark.parametrize("groups", [1000, 5])
def test_jackknife_leaves_out_tasks(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = example(2, 23)
    monkeypatch.setattr(empirical, "MOST_GROUPS", groups)
    found = estimate(*data, inner_lr=0.3)
    used = min(groups, 23)
    kept = [np.arange(23) % used != group for group in range(used)]
    values = [numbers(estimate(*(a[k] for a in data), inner_lr=0.3)) for k in kept]
    centred = np.array(values) - np.mean(values, axis=0)
    variance = (centred**2).sum(axis=0) * (used - 1) / used
    variance[0] += half_square_variance(data)
    wanted = np.sqrt(variance)
    got = [found.standard_errors[name] for name in EXACT]
    np.testing.assert_allclose(got, wanted, rtol=1e-9)


@pytest.mark.parametrize("seed", range(30))
def test_interval_holds_every_undecided_number_of_tasks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    factor = rng.standard_normal((2, 2)) * rng.choice([0.1, 1.0], (2, 1))
    covariance = factor @ factor.T + 1e-6 * np.eye(2)
    gap, error = abs(rng.standard_normal()), rng.standard_normal()
    low, high = empirical.crossover_interval(gap, error, covariance, 2.0)
    grid = np.concatenate([[0.0], np.logspace(-4, 6, 4001)])
    contrast = np.stack([np.ones_like(grid), -grid], axis=1)
    deviation = np.sqrt(np.einsum("ni,ij,nj->n", contrast, covariance, contrast))
    undecided = grid[np.abs(gap - grid * error) <= 2.0 * deviation]
    if error < -2.0 * math.sqrt(covariance[1, 1]):  # counts as zero: no finite crossover
        assert high == math.inf
        assert low == (math.inf if gap > 2.0 * math.sqrt(covariance[0, 0]) else 0.0)
        return
    assert low == pytest.approx(undecided[0], rel=0.01, abs=2e-4)
    if math.isinf(high):
        assert undecided[-1] > 9e5
    else:
        assert high == pytest.approx(undecided[-1], rel=0.01, abs=2e-4)


def test_interval_in_special_cases() -> None:
    one = np.eye(2)
    # MAML's statistical error clearly smaller: ahead from the first task, whatever the rest.
    assert empirical.crossover_interval(-5.0, 1.0, one, 2.0) == (0.0, 0.0)
    assert empirical.crossover_interval(-5.0, -1.0, one, 2.0) == (0.0, 0.0)
    # Nothing known.
    assert empirical.crossover_interval(0.5, 0.5, one, 2.0) == (0.0, math.inf)
    # The gap is known, the modelling error is not: at least so many tasks, no upper end.
    low, high = empirical.crossover_interval(8.0, 1.0, one, 2.0)
    assert 0 < low < 8 < high == math.inf
    # Without noise the interval is the ratio.
    assert empirical.crossover_interval(6.0, 2.0, 0 * one, 2.0) == (3.0, 3.0)


def test_published_values_of_the_example() -> None:
    repetitions = 25
    found = np.mean([numbers(estimate(*example(s, 400), inner_lr=0.3)) for s in range(25)], axis=0)
    error = np.array(list(SPREAD.values())) / math.sqrt(repetitions)
    # Four standard errors: a false alarm of 6e-5 for each of the three.
    assert (np.abs(found - list(EXACT.values())) < 4 * error).all(), (found, error)


@pytest.mark.slow
def test_spread_and_coverage_on_the_example() -> None:
    repetitions = 150
    found = [estimate(*example(1000 + s, 400), inner_lr=0.3) for s in range(repetitions)]
    values = np.array([numbers(one) for one in found])
    spread = np.array(list(SPREAD.values()))
    error = spread / math.sqrt(repetitions)
    assert (np.abs(values.mean(axis=0) - list(EXACT.values())) < 4 * error).all()
    # Chi-square with 149 degrees of freedom: one standard error of a deviation is 5.8 %; MAML's
    # constant is skewed, so the limit is 30 %.
    deviation = values.std(axis=0, ddof=1)
    assert (np.abs(deviation / spread - 1.0) < 0.3).all()
    jackknife = np.mean([list(one.standard_errors.values()) for one in found], axis=0)
    assert (np.abs(jackknife / deviation - 1.0) < 0.3).all()
    covered = np.mean([one.interval[0] <= CROSSOVER <= one.interval[1] for one in found])
    # 95 % minus four binomial standard errors.
    assert covered > 0.95 - 4 * math.sqrt(0.95 * 0.05 / repetitions)


def test_no_modelling_error_without_varying_curvature() -> None:
    # With one curvature both methods have the same target: estimates scatter around zero and keep
    # their sign, and the interval of the crossover should have no upper end.
    found = [estimate(*example(s, 60, same_curvature=True), inner_lr=0.3) for s in range(30)]
    errors = np.array([one.modelling_error for one in found])
    negative = [one for one in found if one.modelling_error < 0]
    assert abs(errors.mean()) < 4 * errors.std(ddof=1) / math.sqrt(30)
    assert 5 <= len(negative) <= 28
    for one in negative:
        assert one.crossover == math.inf
        assert one.interval[1] == math.inf
        assert "not positive" in one.explain()
        assert json.loads(json.dumps(one.to_dict()))["crossover"]["value"] == "inf"
    # An upper end would be wrong; at 95 % eight of thirty have a probability below 1e-4.
    assert sum(math.isfinite(one.interval[1]) for one in found) < 8


def test_units_and_outputs() -> None:
    sx, sy, qx, qy = example(5, 40)
    one = estimate(sx, sy, qx, qy, inner_lr=0.3, steps=2)
    scaled = estimate(sx, 3 * sy, qx, 3 * qy, inner_lr=0.3, steps=2)
    np.testing.assert_allclose(numbers(scaled), 9 * numbers(one), rtol=1e-9)
    assert scaled.crossover == pytest.approx(one.crossover, rel=1e-9, nan_ok=True)
    assert scaled.interval == pytest.approx(one.interval, rel=1e-8)
    twice = [np.stack([y, y], axis=-1) for y in (sy, qy)]
    both = estimate(sx, twice[0], qx, twice[1], inner_lr=0.6, steps=2)
    np.testing.assert_allclose(numbers(both), numbers(one), rtol=1e-9)
    assert both.theta_maml.shape == (2, 2)
    assert one.theta_maml.shape == (2,)
    tensors = [torch.from_numpy(a) for a in (sx, sy, qx, qy)]
    again = estimate(*tensors, inner_lr=torch.tensor(0.3, dtype=torch.float64), steps=2)
    np.testing.assert_array_equal(numbers(again), numbers(one))


def test_what_an_estimate_says() -> None:
    found = estimate(*example(4, 100), inner_lr=0.3, level=0.9)
    text = found.explain()
    assert "From 100 tasks, inner rate 0.3, 1 inner step (Result 36)" in text
    assert "90% jackknife interval" in text
    assert "assumed: tasks are drawn independently" in text
    document = found.to_dict()
    json.dumps(document, allow_nan=False)
    assert document["maml"]["source"] == "Result 36"
    assert float(found.crossover) == pytest.approx(
        (found.maml - found.drs) / found.modelling_error, rel=1e-12
    )


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_rates_give_finite_numbers_or_a_refusal_and_no_warning(steps: int) -> None:
    data = example(4, 60)
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for exponent in range(0, 308, 7):
            try:
                found = estimate(*data, inner_lr=10.0**exponent, steps=steps)
            except OutOfRange:
                refused += 1
                continue
            assert not refused  # finite up to some rate
            assert np.isfinite(numbers(found)).all()
            assert np.isfinite(list(found.standard_errors.values())).all()
            assert not np.isnan(found.interval).any()
    assert 0 < refused < 44


@pytest.mark.parametrize("power", [-400, -300, 300, 400])
def test_the_interval_does_not_depend_on_units(power: int) -> None:
    rng = np.random.default_rng(power % 7)
    for _ in range(40):
        factor = rng.standard_normal((2, 2))
        covariance = factor @ factor.T
        gap, error = rng.standard_normal(2) * 3.0
        unit = 2.0**power
        wanted = empirical.crossover_interval(gap, error, covariance, 2.0)
        with np.errstate(all="raise"):
            scaled = (gap * unit, error * unit, covariance * unit * unit)
            assert empirical.crossover_interval(*scaled, 2.0) == wanted


def test_bad_data() -> None:
    sx, sy, qx, qy = example(0, 12)
    with pytest.raises(ValueError, match=r"M must be at least p \+ 2 = 4 .* \(got M = 3\)"):
        estimate(sx[:3], sy[:3], qx[:3], qy[:3], inner_lr=0.3)
    with pytest.raises(ValueError, match="estimate: query_y must have shape"):
        estimate(sx, sy, qx, qy[:, :4], inner_lr=0.3)
    with pytest.raises(ValueError, match="support_x must have shape"):
        estimate(sx[..., 0], sy, qx, qy, inner_lr=0.3)
    with pytest.raises(ValueError, match="query_x must have shape"):
        estimate(sx, sy, qx[:5], qy[:5], inner_lr=0.3)
    with pytest.raises(ValueError, match="query_x must have shape"):
        estimate(sx, sy, qx[:, :0], qy[:, :0], inner_lr=0.3)
    with pytest.raises(ValueError, match="support_y must be finite"):
        estimate(sx, np.where(sy > 1, np.nan, sy), qx, qy, inner_lr=0.3)
    with pytest.raises(ValueError, match="inner_lr must have 0 axes"):
        estimate(sx, sy, qx, qy, inner_lr=[0.1, 0.2])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="steps must be whole numbers of at least 1"):
        estimate(sx, sy, qx, qy, inner_lr=0.3, steps=0)
    with pytest.raises(ValueError, match="level must lie strictly between 0 and 1"):
        estimate(sx, sy, qx, qy, inner_lr=0.3, level=1.0)
    with pytest.raises(TypeError, match="support_x must be real numbers"):
        estimate(sx.astype(str), sy, qx, qy, inner_lr=0.3)
    flat = np.concatenate([sx, sx[..., :1]], axis=-1), np.concatenate([qx, qx[..., :1]], axis=-1)
    with pytest.raises(ValueError, match="average of DRS's equations must be positive definite"):
        estimate(flat[0], sy, flat[1], qy, inner_lr=0.3)
    only = np.arange(12)[:, None] == 7  # a column that is zero outside one task
    one = np.stack([sx[..., 0], sx[..., 1] * only], axis=-1)
    two = np.stack([qx[..., 0], qx[..., 1] * only], axis=-1)
    with pytest.raises(ValueError, match=r"without task 7 must be positive definite.*Result 36"):
        estimate(one, sy, two, qy, inner_lr=0.3)


@pytest.mark.parametrize(
    ("interval", "tasks", "ahead"),
    [
        ((10.0, 49.0), 100, "maml"),
        ((10.0, 51.0), 100, None),
        ((201.0, 400.0), 100, "drs"),
        ((199.0, 400.0), 100, None),
        ((0.0, math.inf), 100, None),
        ((0.0, 0.0), 20, "maml"),
        ((0.0, 0.0), 19, None),
    ],
)
def test_ahead_is_told_far_outside_the_interval(
    interval: tuple[float, float], tasks: int, ahead: str | None
) -> None:
    found = estimate(*example(0, 60), inner_lr=0.3)
    found = dataclasses.replace(found, interval=interval, tasks=tasks, fewest_tasks=5)
    assert found.ahead == ahead
    assert dataclasses.replace(found, heavy_tails="fat").ahead is None
    assert dataclasses.replace(found, fewest_tasks=tasks + 1).ahead is None
    many = np.zeros(tasks // 5 + 1)
    assert dataclasses.replace(found, theta_drs=many).ahead is None


def test_heavy_tails_are_found_where_curvature_has_them() -> None:
    assert estimate(*example(0, 100), inner_lr=0.3).heavy_tails is None
    data = example(0, 100)
    larger = [np.concatenate([9.0 * part[:1], part[1:]]) for part in data]
    found = estimate(*larger, inner_lr=0.01)
    assert found.heavy_tails is not None
    assert "times the median curvature" in found.heavy_tails
    assert found.heavy_tails in found.explain()


def test_heavy_tails_without_a_single_giant() -> None:
    left = np.concatenate([np.full(180, 5.0), np.geomspace(5.5, 35.0, 20)])[:, None, None]
    right = np.random.default_rng(0).standard_normal((200, 1, 1))
    drs, maml = (equations.Equations(left, right + shift * left) for shift in (0.0, 0.1))
    said = str(empirical.from_equations(drs, maml, inner_lr=0.01, steps=1).heavy_tails)
    assert "fall off like a power (index 0.98)" in said
    fewer = [equations.Equations(*(part[::4] for part in e)) for e in (drs, maml)]
    assert empirical.from_equations(*fewer, inner_lr=0.01, steps=1).heavy_tails is None
