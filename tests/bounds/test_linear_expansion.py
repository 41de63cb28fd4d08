"""Results 8 and 9: expansions, train-test mismatch, the crossover."""

import json
import math

import numpy as np
import pytest
from linear_problems import (
    BIAS_DRS,
    C_DRS,
    C_MAML,
    CROSSOVER,
    GAP,
    MISMATCH_DRS,
    MISMATCH_MAML,
    Q1,
    Q2,
    STEP,
    W1,
    WEIGHTED_SCORE_DRS,
    draw_sides,
    random_mixture,
    scores,
)

from innerloop.bounds import linear

# p, beta, rate, N; modelling error, c of joint training, c of MAML, M*.
PUBLISHED = [
    (1, 2.0, 0.3, 5, 0.004838072763028506, 0.06924888888888896, 0.22531614355253785,
     32.25814540374025),
    (1, 1.0, 0.5, 25, 0.0007528931066297613, 0.007387592592592597, 0.019141841558768663,
     15.612108628265439),
    (1, 2.0, 0.1, 25, 0.000991138009079377, 0.09166145185185197, 0.11910640186019504,
     27.690341563871048),
    (2, 2.0, 0.3, 10, 0.0028403842159917154, 0.21294074074074082, 0.34044540562740255,
     44.88993572376394),
]  # fmt: skip


def test_check_values():
    found = linear.expansion(W1, **STEP)
    assert found.drs == pytest.approx(C_DRS, rel=1e-13)
    assert found.maml == pytest.approx(C_MAML, rel=1e-13)
    assert found.drs_limit == pytest.approx(GAP, rel=1e-13)
    assert found.maml_limit == 0.0
    np.testing.assert_allclose(found.drs_bias, BIAS_DRS, rtol=1e-13)
    mean_weight = (Q1 + Q2) / 2.0  # the bias is minus its inverse times E[W Wb^-1 psi]
    np.testing.assert_allclose(-mean_weight @ found.drs_bias, WEIGHTED_SCORE_DRS, rtol=1e-12)
    assert linear.crossover(W1, **STEP) == pytest.approx(CROSSOVER, rel=1e-12)
    moved = linear.expansion(W1, inner_lr=0.1, samples=4, test_inner_lr=0.4, test_samples=8)
    assert (moved.drs_limit, moved.drs) == pytest.approx(MISMATCH_DRS, rel=1e-13)
    assert (moved.maml_limit, moved.maml) == pytest.approx(MISMATCH_MAML, rel=1e-13)


@pytest.mark.parametrize("case", PUBLISHED, ids=lambda case: f"p{case[0]}-{case[1]}-{case[2]}")
def test_published_law(case):
    p, beta, rate, samples, gap, drs, maml, crossing = case
    law = linear.published_law(p=p, beta=beta)
    found = linear.expansion(law, inner_lr=rate, samples=samples)
    assert found.drs_limit == pytest.approx(gap, rel=1e-12)
    assert found.drs == pytest.approx(drs, rel=1e-12)
    assert found.maml == pytest.approx(maml, rel=2e-12)
    assert linear.crossover(law, inner_lr=rate, samples=samples) == pytest.approx(
        crossing, rel=2e-12
    )


def simulated_excess(law, step, test, tasks, trials, seed):
    """Excess post-update risks [2, trials] of both estimates, and the estimates less their
    targets.
    """
    rng = np.random.default_rng(seed)
    centre = linear.minimisers(law, **step)
    best = linear.minimisers(law, **test).maml
    low = linear.risk(law, best, **test)
    found, moves = [], []
    for _ in range(trials // 100):
        drawn = law.sample(rng, 100 * tasks)
        sides = draw_sides(rng, drawn, step["samples"])
        pairs = scores(drawn, sides, step["inner_lr"], centre.drs, centre.maml)
        for (weight, psi), target in zip(pairs, (centre.drs, centre.maml), strict=True):
            w = weight.reshape(100, tasks, law.p, law.p).mean(axis=1)
            move = np.linalg.solve(w, psi.reshape(100, tasks, law.p).mean(axis=1)[..., None])
            moves.append(move[..., 0])
            found.append(linear.risk(law, target + move[..., 0], **test) - low)
    shape = (trials // 100, 2, 100)
    return (
        np.swapaxes(np.reshape(found, shape), 0, 1).reshape(2, -1),
        np.moveaxis(np.reshape(moves, (*shape, law.p)), 1, 0).reshape(2, -1, law.p),
    )


@pytest.mark.parametrize("test", [STEP, {"inner_lr": 0.4, "samples": 8}], ids=["same", "other"])
def test_against_simulation(test):
    # 400 tasks: the next term is of order 1 / M^2, well below a standard error. 4.5 s.e. on two
    # numbers: false alarm 1.4e-5.
    excess, _ = simulated_excess(W1, STEP, test, 400, 1500, seed=11)
    found = linear.expansion(
        W1, **STEP, test_inner_lr=test["inner_lr"], test_samples=test["samples"]
    )
    error = excess.std(axis=1) / np.sqrt(excess.shape[1])
    assert (np.abs(excess.mean(axis=1) - np.array(found.at(400))) < 4.5 * error).all()


@pytest.mark.slow
@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("rate", [-0.4, 0.5])
def test_random_laws_against_simulation(p, rate):
    # Excess and bias, 4.5 s.e. on at most 8 numbers a case: false alarm 5e-5.
    law = random_mixture(np.random.default_rng(p), p)
    step = {"inner_lr": rate, "samples": 4}
    excess, moves = simulated_excess(law, step, step, 300, 10000, seed=p)
    found = linear.expansion(law, **step)
    error = excess.std(axis=1) / np.sqrt(excess.shape[1])
    assert (np.abs(excess.mean(axis=1) - np.array(found.at(300))) < 4.5 * error).all()
    error = moves.std(axis=1) / np.sqrt(moves.shape[1])
    bias = np.stack([found.drs_bias, found.maml_bias]) / 300
    assert (np.abs(moves.mean(axis=1) - bias) < 4.5 * error).all()


def test_biases_scale_with_the_solutions():
    # b is a length in parameter space: doubling theta doubles it, scaling x leaves units alone.
    weights, q, theta, _ = W1.nodes()
    plain = linear.Mixture(weights, q, theta, [0.0, 0.0])
    double = linear.Mixture(weights, q, 2.0 * theta, [0.0, 0.0])
    wide = linear.Mixture(weights, 4.0 * q, theta / 2.0, [0.0, 0.0])  # x doubled, theta halved
    a, b = linear.expansion(plain, **STEP), linear.expansion(double, **STEP)
    c = linear.expansion(wide, inner_lr=0.3 / 4.0, samples=5)
    for name in ("drs_bias", "maml_bias"):
        np.testing.assert_allclose(getattr(b, name), 2.0 * getattr(a, name), rtol=1e-12)
        np.testing.assert_allclose(getattr(c, name), 0.5 * getattr(a, name), rtol=1e-12)
    assert c.maml == pytest.approx(a.maml, rel=1e-12)


def test_crossover_cases():
    assert linear.crossover(W1, inner_lr=0.0, samples=5) == math.inf
    never = linear.crossover(W1, inner_lr=0.0, samples=5)
    assert "no modelling error" in never.reason
    # A negative rate shrinks MAML's variance below joint training's when solutions scatter little.
    law = random_mixture(np.random.default_rng(0), 2)
    rates = np.linspace(-2.0, 2.0, 41)
    found = linear.expansion(law, inner_lr=rates, samples=5)
    crossing = linear.crossover(law, inner_lr=rates, samples=5)
    cheaper = found.maml <= found.drs
    assert (crossing[cheaper] == 0.0).all()
    plain = ~cheaper & (found.drs_limit > 0.0)
    m = crossing[plain]
    np.testing.assert_allclose(
        found.drs_limit[plain] + found.drs[plain] / m, found.maml[plain] / m, rtol=1e-10
    )
    same = linear.Mixture([1.0], [[[1.0]]], [[1.0]], [0.0])
    neither = linear.crossover(same, inner_lr=0.0, samples=5)  # no error on either side
    assert math.isnan(neither)
    assert "neither wins" in neither.reason


def test_shapes_and_reports():
    rates, sizes = np.array([0.1, 0.3])[:, None], np.array([3, 5, 9])
    grid = linear.expansion(W1, inner_lr=rates, samples=sizes)
    assert grid.drs.shape == grid.maml_limit.shape == (2, 3)
    assert grid.maml_bias.shape == (2, 3, 2)
    assert grid.at(np.array([100, 200])[:, None, None])[0].shape == (2, 2, 3)
    one = linear.expansion(W1, **STEP)
    assert grid.maml[1, 1] == one.maml
    assert "Result 8" in one.explain()
    assert "constants" in grid.explain()
    assert json.loads(json.dumps(one.to_dict()))["maml"]["value"] == pytest.approx(C_MAML)
    with pytest.raises(ValueError, match="tasks must be whole numbers"):
        one.at(0)
    with pytest.raises(ValueError, match="test_samples must be whole"):
        linear.expansion(W1, **STEP, test_samples=0)
    infinite = linear.expansion(W1, **STEP, test_inner_lr=0.3, test_samples=math.inf)
    assert infinite.maml_limit > 0.0


EMPTY = {
    "crossover": linear.crossover,
    "expansion": linear.expansion,
    "risk": lambda law, **step: linear.risk(law, [0.0, 0.0], **step),
    "modelling_error": linear.modelling_error,
    "modelling_error_bound": linear.modelling_error_bound,
    "minimisers": linear.minimisers,
    "tasks_needed": linear.tasks_needed,
    "score_covariances": linear.score_covariances,
    "coarse_rates": linear.coarse_rates,
    "probability_drs_worse": lambda law, **step: linear.probability_drs_worse(law, tasks=5, **step),
    "guarantee": lambda law, **step: linear.guarantee(
        law, method="drs", tasks=5, delta=0.1, **step
    ),
    "analyse": lambda law, **step: linear.analyse(law, tasks=5, **step),
}


@pytest.mark.parametrize("name", EMPTY)
def test_no_rate_and_no_samples_are_refused_by_name(name):
    call = EMPTY[name]
    for empty in ([], np.zeros((0,)), np.zeros((2, 0))):
        with pytest.raises(ValueError, match=rf"{name}: inner_lr must hold at least one number"):
            call(W1, inner_lr=empty, samples=5)
        with pytest.raises(ValueError, match=rf"{name}: samples must hold at least one number"):
            call(W1, inner_lr=0.3, samples=empty)


def test_nor_are_those_of_the_test_empty():
    for given in ("test_inner_lr", "test_samples"):
        with pytest.raises(ValueError, match=f"expansion: {given} must hold at least one number"):
            linear.expansion(W1, inner_lr=0.3, samples=5, **{given: []})


@pytest.mark.parametrize("name", EMPTY)
@pytest.mark.parametrize("truth", [True, np.True_, [True], np.ones(2, bool)], ids=repr)
def test_truth_values_are_no_counts(name, truth):
    with pytest.raises(TypeError, match=f"{name}: samples must be real numbers .dtype bool."):
        EMPTY[name](W1, inner_lr=0.3, samples=truth)
    if np.ndim(truth) == 0:
        with pytest.raises(TypeError, match=f"{name}: inner_lr must be real numbers .dtype bool."):
            EMPTY[name](W1, inner_lr=truth, samples=5)
