"""Easy and hard tasks (Result 19) and the division of a label budget (Result 20)."""

import numpy as np
import pytest
from variants_problems import two_tasks

from innerloop.bounds import linear

TABLE = {
    0.1: [
        8.446485260770974, 10.049425160697881, 11.637142794192169, 14.820655517108797,
        22.80381863597234, 38.7938253973135,
    ],
    0.5: [
        30.499999999999936, 19.15199999999997, 18.925925925925903, 23.325000000000035,
        35.67100591715971, 56.02967863894145,
    ],
}  # fmt: skip


def isotropic():
    """Q = I in two dimensions, theta ~ (0, 0.8 I), noise variance 0.7."""
    return linear.centroid_law(np.eye(2), tau2=0.8, sigma2=0.7)


def test_check_values_of_two_kinds_of_tasks():
    found = linear.easy_hard(2, easy=2.0, hard=0.25, inner_lr=0.5, samples=10, distance2=5.0)
    assert found.joint_weight == pytest.approx(1 / 9, rel=1e-14)
    assert found.maml_weight == pytest.approx(0.242976835880, abs=5e-13)
    assert found.modelling_error == pytest.approx(0.01722724963340208, rel=1e-13)


@pytest.mark.parametrize("samples", [3, None])
@pytest.mark.parametrize("share", [0.5, 0.2])
def test_two_kinds_of_tasks_are_a_mixture(share, samples):
    centres = np.array([[0.0, 0.0, 0.0], [1.0, 2.0, -0.5]])
    easy, hard = (
        linear.centroid_law(r * np.eye(3), tau2=t, sigma2=0.4, centre=c).nodes()
        for r, t, c in ((1.5, 0.3, centres[0]), (0.4, 0.9, centres[1]))
    )
    law = linear.Mixture(
        np.concatenate([(1 - share) * easy.weights, share * hard.weights]),
        np.concatenate([easy.Q, hard.Q]),
        np.concatenate([easy.theta, hard.theta]),
        np.concatenate([easy.sigma2, hard.sigma2]),
    )
    found = linear.easy_hard(
        3, easy=1.5, hard=0.4, inner_lr=0.3, samples=samples, hard_share=share,
        distance2=((centres[1] - centres[0]) ** 2).sum(),
    )  # fmt: skip
    known = linear.modelling_error(law, inner_lr=0.3, samples=samples)
    assert found.modelling_error == pytest.approx(known, rel=1e-11)
    points = linear.minimisers(law, inner_lr=0.3, samples=samples)
    np.testing.assert_allclose(points.drs, found.joint_weight * centres[1], rtol=1e-12)
    np.testing.assert_allclose(points.maml, found.maml_weight * centres[1], rtol=1e-12)


def test_easy_tasks_solved_by_one_step_have_no_say():
    found = linear.easy_hard(4, easy=2.0, hard=0.25, inner_lr=0.5, distance2=3.0)
    assert found.maml_weight == 1.0
    closed = 0.25 * found.hard_curvature * (2.0 / 2.25) ** 2 * 3.0
    assert found.modelling_error == pytest.approx(closed, rel=1e-14)
    assert "Result 19" in found.explain()


def test_easy_hard_broadcasts():
    rates = np.linspace(-0.2, 0.6, 5)
    found = linear.easy_hard(2, easy=2.0, hard=0.25, inner_lr=rates, samples=[[2], [20]])
    assert found.modelling_error.shape == (2, 5)
    one = linear.easy_hard(2, easy=2.0, hard=0.25, inner_lr=rates[3], samples=20)
    assert found.modelling_error[1, 3] == one.modelling_error


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_check_values_of_the_allocation(rate):
    budget = 10**6
    rows = 2 * np.array([1, 2, 3, 5, 10, 20])
    found = linear.allocate_labels(isotropic(), budget, inner_lr=rate, test_inner_lr=0.0, rows=rows)
    np.testing.assert_allclose(budget * found.excess, TABLE[rate], rtol=1e-12)
    assert found.best_rows == (2 if rate == 0.1 else 6)
    assert found.best_tasks == budget // found.best_rows
    assert (found.modelling_error == 0.0).all()


def test_default_candidates_find_the_same_optimum():
    found = linear.allocate_labels(isotropic(), 5000, inner_lr=0.5, test_inner_lr=0.0)
    assert found.best_rows == 6
    assert found.tasks.min() >= 20.0
    assert (np.diff(found.rows) > 0.0).all()
    assert (found.rows % 2 == 0).all()
    assert f"{5000 // 6} tasks of 6 labels" in found.explain()


def test_joint_training_wants_one_label_per_task():
    found = linear.allocate_labels(
        isotropic(), 4000, inner_lr=0.3, test_inner_lr=0.3, test_samples=5, method="drs"
    )
    assert found.best_rows == 1
    assert (np.diff(found.excess) > 0.0).all()


def test_allocation_is_the_expansion():
    law = two_tasks()
    found = linear.allocate_labels(
        law, 4000, inner_lr=0.1, test_inner_lr=0.4, test_samples=8, rows=[8]
    )
    known = linear.expansion(law, inner_lr=0.1, samples=4, test_inner_lr=0.4, test_samples=8)
    assert found.modelling_error[0] == pytest.approx(known.maml_limit, rel=1e-11)
    assert found.constant[0] == pytest.approx(known.maml, rel=1e-11)
    joint = linear.allocate_labels(
        law, 4000, inner_lr=0.1, test_inner_lr=0.4, test_samples=8, rows=[8], method="drs"
    )
    assert joint.modelling_error[0] == pytest.approx(known.drs_limit, rel=1e-11)
    assert joint.constant[0] == pytest.approx(known.drs, rel=1e-11)
    assert joint.best_excess == pytest.approx(known.drs_limit + known.drs / 500, rel=1e-11)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear.easy_hard(2, easy=0.0, hard=1.0, inner_lr=0.1), "easy must be positive"),
        (lambda: linear.easy_hard(2, easy=1, hard=1, inner_lr=0.1, distance2=-1.0), "distance2"),
        (lambda: linear.easy_hard(2, easy=1, hard=1, inner_lr=0.1, hard_share=1.0), "hard_share"),
        (lambda: linear.easy_hard(0, easy=1, hard=1, inner_lr=0.1), "at least 1"),
        (lambda: linear.easy_hard(2, easy=1, hard=1, inner_lr=np.inf), "finite"),
        (lambda: linear.easy_hard(2, easy=2.0, hard=2.0, inner_lr=0.5), "mean curvature.*Result 3"),
    ],
)
def test_bad_arguments_of_easy_hard(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "sgd"}, "method must be"),
        ({"rows": [3]}, "rows must be even"),
        ({"rows": [2000]}, "budget must pay for one task"),
        ({"budget": 30.0}, "budget must pay for 20 tasks"),
        ({"budget": np.nan}, "finite"),
        ({"test_samples": 0}, "test_samples"),
        ({"inner_lr": np.nan}, "inner_lr"),
    ],
)
def test_bad_arguments_of_allocation(change, message):
    given = {"budget": 1000, "inner_lr": 0.1, "test_inner_lr": 0.0} | change
    with pytest.raises(ValueError, match=message):
        linear.allocate_labels(isotropic(), **given)
