"""MAML without a split of each task's rows (Result 15)."""

import numpy as np
import pytest
from variants_problems import Q1, random_mixture, two_tasks

from innerloop.bounds import linear
from innerloop.bounds.linear.rules import GradientSteps, MatrixRate
from innerloop.bounds.linear.training import joint_training, sandwich, train


def test_check_values_of_train_train():
    found = linear.train_train(two_tasks(), inner_lr=0.3, samples=5)
    np.testing.assert_allclose(
        found.maml_target, [0.7821025319711317, 0.48599968041496877], rtol=1e-13
    )
    assert found.maml_limit == pytest.approx(0.0024164412426290072, rel=1e-11)
    assert found.maml == pytest.approx(0.8570194419069336, rel=1e-12)
    assert found.averaged_by == "Wick rule"


@pytest.mark.parametrize("rows", [2, 3, 10])
@pytest.mark.parametrize("p", [1, 2])
def test_wick_rule_and_product_rule_agree_without_a_split(p, rows):
    law = random_mixture(np.random.default_rng(p + 50), p)
    words = train(law, GradientSteps(0.4), rows, split=False, function="test")
    points = train(law, MatrixRate(0.4 * np.eye(p)), rows, split=False, function="test")
    assert points.averaged_by == "Gauss product rule"
    for name in ("target", "curvature", "scores", "shift"):
        expected = getattr(points, name)
        np.testing.assert_allclose(
            getattr(words, name), expected, rtol=1e-10, atol=1e-12 * np.abs(expected).max()
        )


def test_rate_zero_without_a_split_is_joint_training():
    law = random_mixture(np.random.default_rng(8), 3)
    whole = train(law, GradientSteps(0.0), 14, split=False, function="test")
    joint = joint_training(law, 14, "test")
    for name in ("target", "curvature", "scores", "shift"):
        np.testing.assert_allclose(getattr(whole, name), getattr(joint, name), rtol=1e-11)


def test_no_split_is_more_efficient_for_tasks_that_share_their_inputs():
    law = linear.centroid_law(Q1, tau2=0.8, sigma2=0.7)

    def variance(rate, rows, split):
        trained = train(law, GradientSteps(rate), rows, split=split, function="test")
        return np.trace(Q1 @ sandwich(trained)[0])

    # Values printed to two decimals.
    assert variance(0.0, 10, False) == pytest.approx(3.26, rel=1e-13)
    split = [variance(rate, 5, True) for rate in (-0.1, 0.0, 0.1, 0.2)]
    assert split == pytest.approx([4.34, 4.12, 4.49, 5.58], abs=5.001e-3)
    whole = [variance(rate, 10, False) for rate in (-0.1, 0.0, 0.1, 0.2)]
    assert whole == pytest.approx([3.95, 3.26, 2.80, 2.87], abs=5.001e-3)
    best = linear.efficiency_bound(Q1, sigma2=0.7, tau2=0.8, samples=5)
    assert np.trace(Q1 @ best.gls) == pytest.approx(2.59, abs=5.001e-3)
    assert min(whole) > np.trace(Q1 @ best.gls)


def test_independent_solutions_leave_no_bias():
    q = np.stack([Q1, np.diag([0.3, 2.0])])
    law = linear.centroid_law(q, tau2=0.8, sigma2=0.7, centre=[1.0, -2.0])
    found = linear.train_train(law, inner_lr=0.3, samples=5)
    np.testing.assert_allclose(found.maml_target, [1.0, -2.0], rtol=1e-12)
    assert found.maml_limit == 0.0
    assert found.drs_limit == 0.0


def test_test_side_of_train_train():
    law = two_tasks()
    same = linear.train_train(law, inner_lr=0.3, samples=5)
    named = linear.train_train(law, inner_lr=0.3, samples=5, test_inner_lr=0.3, test_samples=5)
    assert named.maml == same.maml
    other = linear.train_train(law, inner_lr=0.3, samples=5, test_inner_lr=0.4, test_samples=8)
    np.testing.assert_array_equal(other.maml_target, same.maml_target)
    point = linear.minimisers(law, inner_lr=0.4, samples=8).maml
    np.testing.assert_allclose(other.minimiser, point, rtol=1e-12)
    lost = linear.risk(law, other.maml_target, inner_lr=0.4, samples=8) - linear.risk(
        law, point, inner_lr=0.4, samples=8
    )
    assert other.maml_limit == pytest.approx(lost, rel=1e-10)


def test_train_train_broadcasts():
    law = two_tasks()
    found = linear.train_train(law, inner_lr=[0.1, 0.3], samples=[[5], [20], [80]])
    assert found.maml.shape == (3, 2)
    assert found.maml_target.shape == (3, 2, 2)
    one = linear.train_train(law, inner_lr=0.3, samples=20)
    assert found.maml[1, 1] == one.maml
    np.testing.assert_array_equal(found.crossover[1, 1], one.crossover)  # both may be NaN
    assert found.standard_error["maml"].shape == (3, 2)
    assert "Wick rule" in found.explain()
    assert len(found.to_dict()["maml"]) == 3


def test_many_rows_need_no_split():
    # With exact gradients inside, whether the outer rows are the same ones does not matter.
    law = two_tasks()
    whole = linear.train_train(law, inner_lr=0.3, samples=None)
    split = linear.rule_expansion(law, GradientSteps(0.3), samples=None)
    np.testing.assert_allclose(whole.maml_target, split.maml_target, rtol=1e-12)
    assert whole.maml == pytest.approx(split.maml, rel=1e-11)


def estimates(rng, law, rows, tasks, repeats, rate):
    """MAML's estimates [repeats, p] from Wishart second moments, without a split."""
    p = law.p
    found = np.empty((repeats, p))
    for index in range(repeats):
        drawn = law.sample(rng, tasks)
        x = rng.standard_normal((tasks, rows, p)) @ np.linalg.cholesky(drawn.Q).transpose(0, 2, 1)
        noise = rng.standard_normal((tasks, rows)) * np.sqrt(drawn.sigma2)[:, None]
        y = np.einsum("tni,ti->tn", x, drawn.theta) + noise
        second = x.transpose(0, 2, 1) @ x / rows
        keep = np.eye(p) - rate * second
        cross = np.einsum("tni,tn->ti", x, y) / rows
        w = keep @ second @ keep
        z = np.einsum("tij,tj->ti", keep @ keep, cross)
        found[index] = np.linalg.solve(w.sum(0), z.sum(0))
    return found


@pytest.mark.slow
def test_expected_excess_of_train_train_against_simulation():
    law, tasks = two_tasks(), 800
    found = linear.train_train(law, inner_lr=0.3, samples=5)
    points = estimates(np.random.default_rng(2), law, 10, tasks, 4000, 0.3)
    floor = linear.risk(law, found.minimiser, inner_lr=0.3, samples=5)
    excess = linear.risk(law, points, inner_lr=0.3, samples=5) - floor
    error = excess.std(ddof=1) / np.sqrt(len(excess))
    expected = found.maml_limit + found.maml / tasks
    # One comparison at 4.5 standard errors (probability 7e-6); the neglected term is of order
    # 1 / tasks^2, below half a standard error here.
    assert abs(excess.mean() - expected) < 4.5 * error
