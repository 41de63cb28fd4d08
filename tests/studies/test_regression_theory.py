"""Theory against simulation on the published law: where Result 10 says it holds, it does.

Accuracies are those docs/theory.md states for Result 10; the standard error of a frequency from
4000 trials is at most 0.008, and three of them are added.
"""

import dataclasses
import math

import numpy as np
import pytest

from innerloop import _native
from innerloop.bounds import linear
from innerloop.studies import linear_regression
from innerloop.studies.linear_regression.agreement import agreement, tabulate
from innerloop.studies.linear_regression.result import Prediction
from innerloop.studies.linear_regression.theory import predict

pytest.importorskip("scipy")
pytestmark = pytest.mark.skipif(not _native.is_available(), reason="needs the native extension")


@pytest.mark.parametrize(
    ("samples", "tasks", "accuracy"),
    [
        ([25, 100, 400], [100, 200, 400], 0.03),
        ([25, 100, 400], [25], 0.07),
        ([5], [100, 200, 400], 0.07),
        ([5], [25], 0.10),
    ],
)
@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_heat_maps(samples, tasks, accuracy, beta):
    result = linear_regression.sweep(
        beta=beta, tasks=tasks, samples=samples, inner_lrs=[0.1, 0.3, 0.5], trials=4000, seed=2
    )
    prediction = predict(result.settings)
    worst = np.abs(prediction.better_after - result.maml_better_after).max()
    assert worst < accuracy + 0.024
    worst = np.abs(prediction.better_before - result.maml_better_before).max()
    assert worst < accuracy + 0.024


@pytest.mark.parametrize("p", [2, 3])
def test_heat_maps_in_more_dimensions(p):
    result = linear_regression.sweep(
        p, tasks=[100, 400], samples=[25], inner_lrs=[0.3], trials=4000, seed=3
    )
    prediction = predict(result.settings)
    assert np.abs(prediction.better_after - result.maml_better_after).max() < 0.054
    assert np.abs(prediction.better_before - result.maml_better_before).max() < 0.054


@pytest.mark.parametrize(("p", "samples", "rate"), [(1, 25, 0.3), (2, 10, 0.3), (4, 30, 0.2)])
def test_mean_excess_follows_the_expansion(p, samples, rate):
    """limit + c / M of Result 8 at M = 400, within 4 standard errors and the next order, 5 c / M^2.

    The chance of a failure by chance is below 3e-4 in all.
    """
    tasks, trials = 400, 4000
    result = linear_regression.sweep(
        p, tasks=[tasks], samples=[samples], inner_lrs=[rate], trials=trials, seed=4
    )
    law = linear.published_law(p=p, beta=2.0)
    found = linear.expansion(law, inner_lr=rate, samples=samples)
    least = result.least_risk_after[0, 0]
    for name, constant, limit in (
        ("drs", float(found.drs), float(found.drs_limit)),
        ("maml", float(found.maml), float(found.maml_limit)),
    ):
        mean = getattr(result, f"{name}_risk_after")[0, 0, 0] - least
        low, high = getattr(result, f"{name}_excess_after_quantiles")[0, 0, 0, [1, 3]]
        error = (high - low) / math.sqrt(trials)  # of a law with tails like chi-square: generous
        assert abs(mean - limit - constant / tasks) < 4 * error + 5 * constant / tasks**2


def test_prediction_survives_its_file(tmp_path):
    result = linear_regression.sweep(tasks=[3, 9], samples=[2, 4], inner_lrs=[0.0, 0.4], trials=20)
    result = dataclasses.replace(result, prediction=predict(result.settings))
    assert math.isinf(result.prediction.crossover[0, 0])
    result.to_npz(tmp_path / "a.npz")
    loaded = linear_regression.load(tmp_path / "a.npz").prediction
    for field in dataclasses.fields(Prediction):
        stored, made = getattr(loaded, field.name), getattr(result.prediction, field.name)
        np.testing.assert_array_equal(stored, made)


def test_agreement_needs_a_prediction():
    result = linear_regression.sweep(tasks=[3], samples=[2], inner_lrs=[0.4], trials=20)
    with pytest.raises(ValueError, match="the sweep has no prediction"):
        agreement(result)


def test_agreement_of_a_known_gap():
    """A prediction that is off by a constant; one cell on the wrong side."""
    result = linear_regression.sweep(
        tasks=[25, 100], samples=[25], inner_lrs=[0.3], trials=400, seed=1
    )
    shifted = Prediction(
        result.maml_better_before + 0.125,
        result.maml_better_after - 0.25,
        np.zeros((1, 1)),
        *np.zeros((2, 2, 1, 1)),
    )
    regions = agreement(dataclasses.replace(result, prediction=shifted))
    assert [r.after_update for r in regions] == [True, True, False, False]
    np.testing.assert_allclose([r.mean for r in regions], [0.25, 0.25, 0.125, 0.125])
    assert [r.tasks for r in regions] == ["25", "100", "25", "100"]
    after = result.maml_better_after.ravel()
    assert [r.same_side for r in regions[:2]] == [float(value > 0.75) for value in after]
    assert [r.same_side for r in regions[2:]] == [1.0, 1.0]
    header, rows = tabulate(regions[2:], lambda region: f"{region.mean:.3f}")
    assert header == ["αβ", "N", "M = 25", "M = 100"]
    assert rows == [["0.6", "25", "0.125", "0.125"]]
