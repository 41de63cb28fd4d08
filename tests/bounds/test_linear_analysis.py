"""Results 12 and 13, and the one-call analysis."""

import json
import math
import sys

import numpy as np
import pytest
from linear_problems import (
    C_MAML,
    COARSE,
    COARSE_DRS,
    COARSE_MAML,
    CROSSOVER,
    GAP,
    STEP,
    W1,
    random_mixture,
)

from helpers import sweep
from innerloop.bounds import linear


def test_coarse_check_values():
    found = linear.coarse_rates(W1, **STEP)
    names = [
        "curvature", "drs_distance", "maml_distance", "drs_smallest", "maml_smallest",
        "step_square", "step_noise", "step_trace",
    ]  # fmt: skip
    np.testing.assert_allclose([getattr(found, name) for name in names], COARSE, rtol=1e-12)
    assert found.noise == 1.0
    assert found.drs == pytest.approx(COARSE_DRS, rel=1e-12)
    assert found.maml == pytest.approx(COARSE_MAML, rel=1e-12)
    assert "Result 12" in found.explain()


def test_coarse_rates_are_upper_bounds():
    # 45 random laws of dimension 1 to 3, rates of both signs, two N; then the published law, whose
    # suprema are bounds themselves.
    rng = np.random.default_rng(0)
    laws = [random_mixture(rng, 1 + k % 3, tasks=2 + k % 4) for k in range(45)]
    laws += [linear.published_law(p=p, beta=1.3) for p in (1, 2)]
    rates, sizes = np.array([-0.8, 0.2, 1.1])[:, None], np.array([1, 8])
    for law in laws:
        found = linear.coarse_rates(law, inner_lr=rates, samples=sizes)
        for method in ("drs", "maml"):
            exact = linear.guarantee_constants(
                law, method=method, inner_lr=rates, samples=sizes
            ).score_trace
            assert (exact <= getattr(found, method) * (1 + 1e-12)).all()


def test_coarse_rates_need_bounds():
    law = linear.from_sampler(lambda rng, size: W1.sample(rng, size)[1:], draws=5)
    with pytest.raises(TypeError, match="Result 12 needs them"):
        linear.coarse_rates(law, **STEP)
    with pytest.raises(ValueError, match="noise must be non-negative"):
        linear.joint_score_bound(
            p=1, curvature=1.0, noise=-1.0, distance=1.0, smallest=1.0, samples=5
        )
    with pytest.raises(ValueError, match="smallest must be"):
        linear.joint_score_bound(
            p=1, curvature=1.0, noise=1.0, distance=1.0, smallest=0.0, samples=5
        )


ONE = linear.Mixture([0.5, 0.5], [[[1.0]], [[2.0]]], [[0.0], [1.0]], [0.5, 0.5])
THREE = linear.Mixture([1.0], [np.diag([0.5, 1.0, 2.0])], [np.ones(3)], [1.0])
SINGULAR = linear.Mixture([0.5, 0.5], [np.eye(2), np.diag([1.0, 0.0])], np.ones((2, 2)), [1.0, 1.0])
NOISELESS = linear.Mixture([1.0], [[[1.0]]], [[1.0]], [0.0])
PUBLISHED, PUBLISHED_2, PUBLISHED_3 = (linear.published_law(p=p) for p in (1, 2, 3))
EXISTENCE = [
    # law, method, rate, N, M, finite
    (ONE, "maml", 0.3, 400, 1, False),
    (ONE, "maml", 0.3, 400, 2, False),
    (ONE, "maml", 0.3, 1, 3, True),
    (PUBLISHED, "maml", 0.3, 5, 2, False),
    (PUBLISHED, "maml", 0.3, 5, 3, True),
    (W1, "maml", 0.3, 5, 1, False),
    (W1, "maml", 0.3, 5, 2, True),
    (W1, "maml", 0.3, 2, 2, True),
    (W1, "maml", 0.3, 1, 1, False),
    (W1, "maml", 0.3, 1, 3, False),
    (W1, "maml", 0.3, 1, 4, True),
    (W1, "maml", -0.3, 4, 1, True),
    (W1, "maml", -0.3, 3, 1, False),
    (THREE, "maml", 0.3, 2, 1, False),
    (THREE, "maml", 0.3, 1, 1, True),
    (THREE, "drs", 0.3, 2, 1, False),
    (SINGULAR, "maml", 0.3, 5, 1, False),
    (SINGULAR, "maml", 0.3, 5, 4, None),
    (PUBLISHED, "maml", -0.3, 2, 2, True),
    (PUBLISHED, "maml", -0.3, 1, 2, False),
    (PUBLISHED, "maml", -0.3, 9, 1, False),
    (PUBLISHED_2, "maml", 0.3, 2, 2, True),
    (PUBLISHED_2, "maml", 0.3, 1, 2, False),
    (PUBLISHED_2, "maml", 0.3, 50, 1, False),
    (PUBLISHED_3, "maml", 0.3, 1, 1, True),
    (ONE, "maml", -0.3, 2, 1, False),
    (ONE, "maml", -0.3, 3, 1, True),
    (ONE, "maml", 0.0, 1, 3, True),
    (ONE, "drs", 0.3, 1, 1, False),
    (ONE, "drs", 0.3, 2, 1, True),
    (W1, "drs", 0.3, 1, 1, False),
    (W1, "drs", 0.3, 1, 2, True),
    (linear.published_law(p=4), "drs", 0.3, 1, 1, True),
    (linear.published_law(p=4), "drs", 0.3, 2, 1, False),
    (PUBLISHED_2, "drs", 0.3, 5, 1, False),
    (PUBLISHED_2, "drs", 0.3, 5, 2, True),
    (PUBLISHED, "drs", 0.3, 5, 1, False),
    (PUBLISHED, "drs", 0.3, 1, 2, True),
    (W1, "maml", 0.3, None, 1, True),
    (PUBLISHED_2, "maml", 0.3, None, 1, None),
    (NOISELESS, "drs", 0.3, 5, 5, True),
    (NOISELESS, "drs", 0.3, 1, 1, None),
]


@pytest.mark.parametrize("case", EXISTENCE)
def test_existence(case):
    law, method, rate, samples, tasks, expected = case
    found = linear.mean_excess_exists(
        law, method=method, inner_lr=rate, samples=samples, tasks=tasks
    )
    assert found.finite is expected
    assert "Result 13" in found.explain()


def tail_exponent(weights, low, high):
    """Slope of log P(weight < e) between two quantile levels."""
    ordered = np.sort(weights)
    a, b = int(low * len(ordered)), int(high * len(ordered))
    return np.log(high / low) / np.log(ordered[b] / ordered[a])


def test_lower_tails_behind_existence():
    # P(mean W < e) behaves like e^(M / 2) for MAML with a positive rate, one dimension.
    rng = np.random.default_rng(0)
    for tasks in (1, 2, 3):
        drawn = ONE.sample(rng, 400000 * tasks).Q[:, 0, 0]
        support, query = (drawn * rng.chisquare(20, len(drawn)) / 20 for _ in range(2))
        weight = ((1.0 - 0.6 * support) ** 2 * query).reshape(-1, tasks).mean(axis=1)
        assert tail_exponent(weight, 0.001, 0.01) == pytest.approx(tasks / 2, rel=0.1)


# P(smallest squared singular value of the stacked rows < e) behaves like e^exponent, and the mean
# is finite for exponents above 1.
ROWS = [
    # law, method, rate, N, M, exponent
    (W1, "maml", 0.6, 10, 2, 1.5),
    (THREE, "maml", 0.6, 6, 1, 0.5),
    (THREE, "maml", 0.6, 2, 2, 1.0),
    (PUBLISHED_2, "maml", 0.6, 10, 2, 1.5),
    (PUBLISHED_3, "maml", 0.8, 2, 2, 1.0),
    (PUBLISHED_2, "drs", 0.0, 4, 1, 1.0),
    (PUBLISHED_3, "drs", 0.0, 1, 3, 2.0),
    (THREE, "drs", 0.0, 1, 2, 1.0),
]


@pytest.mark.parametrize("case", sweep([(row,) for row in ROWS], [(row,) for row in ROWS[5:]]))
def test_lower_tails_in_more_dimensions(case):
    law, method, rate, samples, tasks, exponent = case
    rng, trials = np.random.default_rng(1), 100000
    drawn = law.sample(rng, trials * tasks)
    sides = rng.standard_normal((2, trials * tasks, samples, law.p))
    support, query = sides @ np.swapaxes(np.linalg.cholesky(drawn.Q), 1, 2)
    if method == "maml":
        rows = query - rate / samples * query @ np.swapaxes(support, 1, 2) @ support
    else:
        rows = np.concatenate([support, query], axis=1)
    stacked = rows.reshape(trials, -1, law.p)
    smallest = np.linalg.svd(stacked, compute_uv=False)[:, -1] ** 2
    # 100 to 1000 trials: a standard error of 5 per cent, and the limit is not reached yet.
    assert tail_exponent(smallest, 1e-3, 1e-2) == pytest.approx(exponent, rel=0.2)
    finite = linear.mean_excess_exists(
        law, method=method, inner_lr=rate, samples=samples, tasks=tasks
    ).finite
    assert finite is (exponent > 1.0)


def test_existence_takes_single_numbers():
    with pytest.raises(ValueError, match="single numbers"):
        linear.mean_excess_exists(ONE, method="drs", inner_lr=[0.1, 0.2], samples=5, tasks=3)
    with pytest.raises(ValueError, match="tasks must be whole"):
        linear.mean_excess_exists(ONE, method="drs", inner_lr=0.1, samples=5, tasks=0)


def test_analysis_gathers_the_results():
    found = linear.analyse(W1, **STEP, tasks=48)
    assert found.modelling_error == pytest.approx(GAP, rel=1e-13)
    assert found.crossover == pytest.approx(CROSSOVER, rel=1e-12)
    assert found.maml_statistical == pytest.approx(C_MAML / 48, rel=1e-13)
    assert found.drs_excess == pytest.approx(found.modelling_error + found.drs_statistical)
    assert found.drs_guarantee == linear.guarantee(W1, method="drs", **STEP, tasks=48, delta=0.1)
    assert found.drs_worse_after == linear.probability_drs_worse(W1, **STEP, tasks=48, draws=16384)
    assert found.verdict == "maml"
    text = found.explain()
    for part in ("Modelling error", "crossover is at about 16.5 tasks", "MAML is expected to win"):
        assert part in text
    assert "Caution" not in text
    data = json.loads(json.dumps(found.to_dict()))
    assert data["verdict"] == "maml"
    assert data["crossover"]["source"] == "Result 9"


LAWS = {
    "crossing": (W1, STEP),
    "none, joint wins": (linear.Mixture([1.0], [[[1.0]]], [[1.0]], [1.0]), STEP),
    "published": (PUBLISHED, {"inner_lr": 0.3, "samples": 5}),
    "far away": (W1, {"inner_lr": 0.3, "samples": 1}),
    "below": (W1, {"inner_lr": 0.3, "samples": None}),
}


@pytest.mark.parametrize("name", sweep(LAWS, ["published", "below"]))
def test_the_crossing_is_claimed_only_where_means_are_described(name):
    law, step = LAWS[name]
    fewest = linear.analyse(law, **step, tasks=1).fewest_tasks
    for tasks in sorted({1, max(fewest - 1, 1), fewest, 2 * fewest}):
        found = linear.analyse(law, **step, tasks=tasks)
        (line,) = (
            line
            for line in found.explain().split("\n")
            if "crossover" in line or "every number of tasks" in line
        )
        # no sentence about a winner speaks of fewer tasks than the theory of means
        assert f"from {fewest} tasks on" in line or f"from {fewest} on" in line
        if math.isfinite(found.crossover) and found.crossover > 0:
            assert line.endswith("nothing is said of fewer.")


def test_analysis_admits_what_it_cannot_say():
    few = linear.analyse(PUBLISHED, inner_lr=0.3, samples=5, tasks=2)
    assert few.verdict == "drs"
    assert few.maml_guarantee == math.inf
    text = few.explain()
    assert "Caution: the mean excess risk of MAML is infinite" in text
    assert "says nothing yet" in text
    assert "inf" in json.dumps(few.to_dict())
    assert (
        "every number of tasks"
        in linear.analyse(PUBLISHED, inner_lr=0.0, samples=5, tasks=50).explain()
    )
    population = linear.analyse(W1, inner_lr=0.3, tasks=50)
    assert "population step" in population.explain()
    assert population.samples == math.inf


def test_analysis_takes_single_numbers():
    with pytest.raises(ValueError, match="single numbers"):
        linear.analyse(W1, **STEP, tasks=[10, 20])
    with pytest.raises(ValueError, match="delta must lie"):
        linear.analyse(W1, **STEP, tasks=10, delta=2.0)


def test_analysis_without_scipy_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(ModuleNotFoundError, match=r"innerloop\[cli\]"):
        linear.probability_drs_worse(PUBLISHED, **STEP, tasks=10000)
