"""Result 10a: the exact law against simulation, linear algebra and closed forms."""

import math

import numpy as np
import pytest
from linear_problems import W1, random_mixture
from scipy import integrate, stats

from innerloop.bounds import linear
from innerloop.bounds.linear.conditional import _Risk, _worse
from innerloop.bounds.linear.normal import _in_more_dimensions
from innerloop.bounds.linear.trainings import _features, _given, _Sums, is_regular, trainings

ONE = linear.Mixture([1.0], [[[1.0]]], [[0.7]], [0.5])
TWO = linear.Mixture([0.4, 0.6], [[[1.0]], [[2.5]]], [[0.2], [1.0]], [0.5, 0.1])


def published_tasks(rng, count, p, beta):
    """Q, theta and sigma2 of the published law, drawn by its definition."""
    theta = rng.uniform(0.0, beta, (count, p))
    frames = np.linalg.qr(rng.standard_normal((count, p, p)))[0]  # signs do not change Q
    return (
        (frames * theta[:, None, :]) @ np.swapaxes(frames, 1, 2),
        theta,
        rng.uniform(0.0, beta, count),
    )


def mixture_tasks(rng, count, law):
    drawn = law.sample(rng, count)
    return drawn.Q, drawn.theta, drawn.sigma2


def simulated(draw, rng, risk, p, rate, samples, tasks, trials):
    """The share of trials in which joint training ends worse: rows are drawn one by one and both
    methods are least squares on stacked rows. Nothing of the library is used.
    """
    q, theta, sigma2 = draw(rng, trials * tasks)
    root = np.linalg.cholesky(q)
    rows, targets = [], []
    for _ in range(2):
        x = rng.standard_normal((trials * tasks, samples, p)) @ np.swapaxes(root, 1, 2)
        noise = rng.standard_normal((trials * tasks, samples)) * np.sqrt(sigma2)[:, None]
        rows.append(x)
        targets.append(np.einsum("tni,ti->tn", x, theta) + noise)
    step = np.eye(p) - rate * np.swapaxes(rows[0], 1, 2) @ rows[0] / samples
    moment = np.einsum("tni,tn->ti", rows[0], targets[0]) / samples
    design = rows[1] @ step
    aim = targets[1] - rate * np.einsum("tni,ti->tn", rows[1], moment)
    solved = []
    for x, y in (
        (np.concatenate(rows, axis=1), np.concatenate(targets, axis=1)),
        (design, aim),
    ):
        x, y = x.reshape(trials, -1, p), y.reshape(trials, -1, 1)
        solved.append((np.linalg.pinv(x) @ y)[..., 0])
    hessian, minimiser = risk
    excess = [
        np.einsum("ti,ij,tj->t", d, hessian, d) for d in (point - minimiser for point in solved)
    ]
    return (excess[0] > excess[1]).mean()


def published_risk(p, beta, rate, samples):
    """Hessian and minimiser after the step, by averaging A over a large grid of tasks (p = 1)."""
    assert p == 1
    points, mass = np.polynomial.legendre.leggauss(40)
    q, w = beta * (points + 1.0) / 2.0, mass / 2.0
    a = q - 2.0 * rate * q**2 + rate**2 * q**3 * (1.0 + 2.0 / samples)
    return np.array([[w @ a]]), np.array([w @ (a * q) / (w @ a)])


def mixture_risk(law, rate, samples):
    weights, q, theta, _ = law.nodes()
    trace = np.trace(q @ q, axis1=1, axis2=2)[:, None, None]
    a = q - 2.0 * rate * q @ q + rate**2 * (q @ q @ q * (1.0 + 1.0 / samples) + trace * q / samples)
    hessian = np.einsum("g,gij->ij", weights, a)
    return hessian, np.linalg.solve(hessian, np.einsum("g,gij,gj->i", weights, a, theta))


def z_score(found, frequency, trials):
    spread = frequency * (1.0 - frequency) / trials + 0.25 / trials**2
    return (found.value - frequency) / math.sqrt(found.standard_error**2 + spread)


@pytest.mark.parametrize(("tasks", "known"), [(3, 0.306), (50, 0.519)])
def test_the_cell_that_the_normal_approximation_misses(tasks, known):
    # alpha = 1, N = 1, p = 1: the normal approximation says .008 and .281.
    law, trials = linear.published_law(1, 2.0), 40000
    found = linear.exact_probability_drs_worse(law, inner_lr=1.0, samples=1, tasks=tasks)
    assert abs(found.value - known) < 4.0 * found.standard_error + 0.002
    frequency = simulated(
        lambda rng, count: published_tasks(rng, count, 1, 2.0),
        np.random.default_rng(1), published_risk(1, 2.0, 1.0, 1), 1, 1.0, 1, tasks, trials,
    )  # fmt: skip
    assert abs(z_score(found, frequency, trials)) < 4.5
    shown = linear.probability_drs_worse(law, inner_lr=1.0, samples=1, tasks=tasks)
    assert shown == found.value
    assert shown.source == "Result 10a"


CELLS = [(p, rate, n, m) for p in (1, 2, 3) for rate in (-0.3, 0.4, 1.0) for n in (1, 4)
         for m in (1, 2, 6)]  # fmt: skip


@pytest.mark.parametrize(
    "cell",
    [*CELLS[4::9], *(pytest.param(cell, marks=pytest.mark.slow) for cell in CELLS)],
)
def test_against_simulation_from_the_definition(cell):
    # Also fewer rows than parameters, where both methods take the solution of least norm. 4.5
    # standard errors: a false alarm of 7e-6 a cell.
    p, rate, samples, tasks = cell
    law, trials = random_mixture(np.random.default_rng(p), p, top=2.0), 20000
    found = linear.exact_probability_drs_worse(law, inner_lr=rate, samples=samples, tasks=tasks)
    frequency = simulated(
        lambda rng, count: mixture_tasks(rng, count, law),
        np.random.default_rng(7), mixture_risk(law, rate, samples), p, rate, samples, tasks, trials,
    )  # fmt: skip
    assert abs(z_score(found, frequency, trials)) < 4.5


@pytest.mark.parametrize(("rows", "tasks"), [(2, 1), (1, 2), (1, 1), (3, 2), (5, 4)])
def test_one_task_without_a_step_has_a_closed_form(rows, tasks):
    # E = 1/2 - E arctan(sqrt(F) / 2) / pi with F ~ F(n, n), n = M N; 1/3 for n = 2.
    n = rows * tasks
    law = stats.f(n, n)

    def inside(t):  # F = e^t
        return math.atan(math.exp(t / 2.0) / 2.0) * law.pdf(math.exp(t)) * math.exp(t)

    expected = 0.5 - integrate.quad(inside, -60.0, 60.0, limit=400)[0] / math.pi
    if n == 2:
        assert expected == pytest.approx(1.0 / 3.0, abs=1e-9)
    found = linear.exact_probability_drs_worse(ONE, inner_lr=0.0, samples=rows, tasks=tasks)
    assert abs(found.value - expected) < 4.5 * found.standard_error


def test_without_sampling_it_is_a_sum_over_counts():
    weights, q, theta, _ = (part.reshape(2, -1)[:, 0] for part in TWO.nodes())
    rate, tasks = 0.3, 7
    a = q * (1.0 - rate * q) ** 2
    target = weights @ (a * theta) / (weights @ a)
    expected = 0.0
    for k in range(tasks + 1):
        count = np.array([k, tasks - k])
        drs, maml = ((count * w) @ theta / (count @ w) for w in (q, a))
        worse = abs(drs - target) > abs(maml - target) + 1e-12
        expected += stats.binom.pmf(k, tasks, weights[0]) * worse
    found = linear.exact_probability_drs_worse(TWO, inner_lr=rate, tasks=tasks)
    assert abs(found.value - expected) < 4.5 * found.standard_error


@pytest.mark.parametrize("rate", [0.0, 0.3, 1e-9])
def test_ties_are_not_worse(rate):
    # One curvature and no sampling: both methods average the tasks' solutions.
    common = linear.centroid_law([[1.5, 0.2], [0.2, 0.7]], tau2=1.0, sigma2=0.0)
    assert linear.exact_probability_drs_worse(common, inner_lr=rate, tasks=5).value == 0.0
    assert linear.exact_probability_drs_worse(W1, inner_lr=0.0, tasks=5).value == 0.0
    exact = linear.Mixture([1.0], [[[1.0]]], [[0.7]], [0.0])  # both recover theta
    assert linear.exact_probability_drs_worse(exact, inner_lr=rate, samples=3, tasks=2).value == 0.0


@pytest.mark.parametrize(("p", "samples", "tasks"), [(1, 1, 1), (2, 3, 2), (3, 1, 2), (3, 2, 4)])
def test_the_conditional_law_is_exact_linear_algebra(p, samples, tasks):
    # Means and covariances of both estimates given tasks and inputs, from stacked rows; three rates
    # share their sums.
    rng = np.random.default_rng(p + samples)
    law = random_mixture(rng, p, top=1.5)
    drawn, rates = law.sample(rng, tasks), [0.7, -0.4, 0.2]
    root = np.linalg.cholesky(drawn.Q)
    x = [rng.standard_normal((tasks, samples, p)) @ np.swapaxes(root, 1, 2) for _ in range(2)]
    sides = [np.moveaxis(np.swapaxes(s, 1, 2) @ s / samples, 0, -1)[:, :, None] for s in x]
    theta = (drawn.theta - drawn.theta[0]).T[:, None]
    features = _features(*sides, theta, drawn.sigma2[None] / samples, rates[0], True)
    size, joint, moment, noise, *rest = [f.sum(axis=-1)[..., None] for f in features]
    parts = [rest[3 * k : 3 * k + 3] for k in range(5)]
    sums = _Sums(rates[0], drawn.theta[0][:, None], size, joint, moment, noise, *parts)
    scale = np.repeat(drawn.sigma2, samples)
    for rate in rates:
        given = _given(sums, rate, float(samples), np.array([tasks]), True)
        step = np.eye(p) - rate * np.swapaxes(x[0], 1, 2) @ x[0] / samples
        spread = np.zeros((tasks * samples, tasks * samples))  # y2 - rate X2 X1'y1 / N, in y1
        for t in range(tasks):
            rows = slice(t * samples, (t + 1) * samples)
            spread[rows, rows] = -rate / samples * x[1][t] @ x[0][t].T
        maps = (
            np.linalg.pinv(np.concatenate([x[0].reshape(-1, p), x[1].reshape(-1, p)])),
            np.linalg.pinv((x[1] @ step).reshape(-1, p))
            @ np.concatenate([spread, np.eye(tasks * samples)], axis=1),
        )
        mean = np.concatenate([np.einsum("tni,ti->tn", s, drawn.theta).ravel() for s in x])
        variance = np.concatenate([scale, scale])
        drs, maml = (map_ @ mean for map_ in maps)
        close = {"rtol": 1e-8, "atol": 1e-9}
        np.testing.assert_allclose(given.joint[:, 0, 0], drs, **close)
        np.testing.assert_allclose(given.gap[:, 0, 0], maml - drs, **close)
        apart, pull = given.gap_root[..., 0, 0], given.pull[..., 0, 0]
        difference = maps[1] - maps[0]
        np.testing.assert_allclose(apart @ apart.T, difference * variance @ difference.T, **close)
        np.testing.assert_allclose(pull @ apart.T, maps[0] * variance @ difference.T, **close)
        np.testing.assert_allclose(
            pull @ pull.T + given.left[..., 0, 0], maps[0] * variance @ maps[0].T, **close
        )


def test_joint_training_is_independent_of_the_gap_if_noise_is_common():
    law = linear.Mixture([0.5, 0.5], W1.nodes().Q, W1.nodes().theta, [0.6, 0.6])
    (given,) = trainings(law, [0.3], 4.0, [3], chunk=0, seed=1, regular=is_regular(law, 4.0))
    assert np.abs(given.pull).max() < 1e-9 * np.sqrt(np.abs(given.left).max())


def test_the_conditional_probability_is_that_of_the_quadratic_form():
    # 24 trainings; the average over noise vectors against numerical inversion (Imhof 1961).
    (given,) = trainings(W1, [0.3], 4.0, [3], chunk=0, seed=2, regular=True)
    part = type(given)(*(array[..., :24] for array in given))
    hessian, minimiser = mixture_risk(W1, 0.3, 4)
    noise = np.random.default_rng(0).standard_normal((4000, 2, 24))
    values = np.array([_worse(part, _Risk(hessian, minimiser), g[None])[0] for g in noise])
    for r in range(24):
        a, b, rest = (part[k][..., 0, r] for k in (2, 3, 4))
        mean = np.concatenate([part.joint[:, 0, r], (part.joint + part.gap)[:, 0, r]])
        top = np.concatenate([b, b + a])
        covariance = top @ top.T + np.tile(rest, (2, 2))
        exact = _in_more_dimensions(
            hessian[None], (mean - np.tile(minimiser, 2))[None], covariance[None]
        )[0]
        error = values[:, r].std() / math.sqrt(len(values))
        assert abs(values[:, r].mean() - exact) < 4.5 * error + 1e-6


def test_values_depend_on_their_own_cell_and_the_seed_alone():
    law = linear.published_law(2)
    rates, sizes, tasks = np.array([0.0, 0.3, 1.0])[:, None, None], [[1], [10]], [2, 25, 400]
    grid = linear.probability_drs_worse(law, inner_lr=rates, samples=sizes, tasks=tasks, draws=1024)
    assert grid.shape == (3, 2, 3)
    assert ((grid >= 0.0) & (grid <= 1.0)).all()
    cell = {"inner_lr": 0.3, "samples": 10, "tasks": 25, "draws": 1024}
    assert grid[1, 1, 1] == pytest.approx(linear.probability_drs_worse(law, **cell), abs=1e-9)
    assert linear.probability_drs_worse(law, **cell) == linear.probability_drs_worse(law, **cell)
    assert linear.probability_drs_worse(law, **cell, seed=1) != pytest.approx(grid[1, 1, 1])
    # Without an inner step the risks before and after are the same.
    before = linear.probability_drs_worse(
        law, inner_lr=0.0, samples=10, tasks=tasks, after_update=False, draws=1024
    )
    np.testing.assert_allclose(grid[0, 1], before, atol=1e-12)


def test_standard_errors_are_honest():
    cell = {"inner_lr": 0.6, "samples": 3, "tasks": 4, "draws": 1024}
    found = [
        linear.exact_probability_drs_worse(linear.published_law(1), **cell, seed=s)
        for s in range(60)
    ]
    spread = np.std([f.value for f in found], ddof=1)
    stated = np.mean([f.standard_error for f in found])
    assert 0.7 < spread / stated < 1.4  # chi with 59 degrees of freedom: 3.9 standard errors


def test_many_tasks_take_the_normal_approximation_where_it_holds():
    found = linear.probability_drs_worse(W1, inner_lr=0.1, samples=25, tasks=1100)
    assert found.source == "Result 10"
    exact = linear.exact_probability_drs_worse(W1, inner_lr=0.1, samples=25, tasks=1100, draws=2048)
    assert abs(found - exact.value) < 0.03 + 3.0 * exact.standard_error
    heavy = {"inner_lr": 1.0, "samples": 1}
    few = linear.probability_drs_worse(ONE, **heavy, tasks=1100, draws=1024)
    assert few.source == "Result 10a"
    rare = linear.Mixture([0.9999, 0.0001], [[[1.0]]] * 2, [[0.0], [10.0]], [0.1, 0.1])
    with pytest.raises(ValueError, match="exact_probability_drs_worse takes more"):
        linear.probability_drs_worse(rare, inner_lr=0.3, samples=5, tasks=100000)


def test_bad_input():
    step = {"inner_lr": 0.3, "samples": 5, "tasks": 3}
    for change in ({"tasks": 0}, {"draws": 0}, {"seed": -1}, {"samples": 1e300}, {"tasks": 2**53}):
        with pytest.raises(ValueError, match="exact_probability_drs_worse: "):
            linear.exact_probability_drs_worse(ONE, **{**step, **change})


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before the update", "after it"])
@pytest.mark.parametrize("samples", [1, 2, 5, 25], ids="N={}".format)
@pytest.mark.parametrize("p", [1, 2], ids="p={}".format)
def test_the_normal_approximation_where_it_begins(p, samples, after):
    """Within 0.03 of the exact law, as docs/theory/linear.md says, at the smallest number of tasks
    at which it is used."""
    law = linear.published_law(p=p, beta=2.0)
    compared = 0
    for rate in (0.05, 0.1, 0.2, 0.4, 0.6, 0.8):
        needed = linear.tasks_needed(law, inner_lr=rate, samples=samples).probabilities
        place = {"inner_lr": rate, "samples": samples, "tasks": max(float(needed), 1025.0)}
        if place["tasks"] > 20000:
            continue  # where the exact law takes long
        normal = linear.probability_drs_worse(law, **place, after_update=after)
        if normal.source != "Result 10":  # too close to tell both methods apart
            continue
        exact = linear.exact_probability_drs_worse(law, **place, after_update=after, draws=4096)
        assert abs(float(normal) - float(exact.value)) <= 0.03 + 3 * exact.standard_error, place
        compared += 1
    assert compared >= 2
