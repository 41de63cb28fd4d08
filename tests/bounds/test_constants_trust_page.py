"""docs/theory/trust.md names the standing of every public number of `innerloop.bounds`."""

import re
from pathlib import Path

import numpy as np
import pytest

from innerloop.bounds import constants, linear, nonconvex

PAGE = Path(__file__).parents[2] / "docs" / "theory" / "trust.md"
NAMED = set(re.findall(r"`([A-Za-z_0-9]+)`", PAGE.read_text(encoding="utf-8")))


@pytest.mark.parametrize("module", [linear, nonconvex, constants], ids=lambda m: m.__name__)
def test_every_public_function_has_a_standing(module):
    functions = {name for name in module.__all__ if name[0].islower()}
    assert sorted(functions - NAMED) == []


@pytest.mark.slow
def test_the_distance_of_predicted_heat_maps_is_what_was_measured():
    """The published grid with N >= 25 and M >= 25: p = 1, 2, 4, before and after the update."""
    pytest.importorskip("scipy")
    from innerloop.studies import linear_regression
    from innerloop.studies.linear_regression.theory import predict

    (row,) = (
        line
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `probability_drs_worse`")
    )
    everywhere, many = (float(found) for found in re.findall(r"\b0\.\d\d\d", row)[:2])
    sizes = (25, 50, 100, 150, 200, 250, 300, 350, 400)
    worst = {25: 0.0, 50: 0.0}
    for p in (1, 2, 4):
        found = linear_regression.sweep(p=p, beta=2.0, tasks=sizes, samples=sizes, trials=1000)
        predicted = predict(found.settings)
        for simulated, theory in (
            (found.maml_better_after, predicted.better_after),
            (found.maml_better_before, predicted.better_before),
        ):
            away = np.abs(simulated - theory)
            for least in worst:
                worst[least] = max(worst[least], away[[m >= least for m in sizes]].max())
    assert worst[25] == pytest.approx(everywhere, abs=0.0006)
    assert worst[50] == pytest.approx(many, abs=0.0006)
