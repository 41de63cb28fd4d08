"""The calibration of the model of cost: its grid, its twin of the model, the fit, the regret.

The emulation plans as the CUDA module does; times are made up.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from innerloop import _native
from innerloop.schedule import H100, DeviceFacts

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
HERTZ, LAUNCH_S = 1.5e9, 3e-6
SMALL = DeviceFacts(46, 65536, 65536)

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="benchmarks/ is not part of this checkout"
)


@pytest.fixture(autouse=True)
def planning(module, monkeypatch):
    """The emulation in the place of the CUDA module, benchmarks/ on the import path."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(_native, "cuda", lambda: module)
    module.fix_schedule("auto", 0, 0)
    yield
    module.fix_schedule("auto", 0, 0)
    assert str(FOLDER) in sys.path


def cases():
    """The cases of the benchmarks."""
    from cuda_cases import CUDA_CASES

    return CUDA_CASES


@pytest.mark.parametrize("facts", [H100, SMALL], ids=["h100", "small"])
def test_twin_estimates_what_the_model_does(facts):
    import cost_model
    from routines.calibration import grid

    for case in cases().values():
        entries = list(grid(case, facts=facts))
        assert entries
        for entry in entries:
            if entry["strategy"] in cost_model.MODELLED:
                assert cost_model.cycles(case, entry, facts) == pytest.approx(entry["cycles"])


def test_grid_has_each_schedule_once():
    from routines.calibration import grid, identity

    entries = [identity(entry) for entry in grid(cases()["sinusoid"], facts=H100)]
    assert len(set(entries)) == len(entries) > 20
    assert {entry[0] for entry in entries} >= {"resident", "streamed"}
    assert {entry[1] for entry in grid_of_one_task()} == {1}


def grid_of_one_task():
    """The grid of a case with a single task."""
    from routines.calibration import grid, identity

    return [identity(e) for e in grid(replace(cases()["sinusoid"], tasks=1), facts=H100)]


def measured(names, constants):
    """Rows of the routine with the times that a card with other constants would show."""
    import cost_model
    from routines.calibration import measured_row

    rows = []
    for name in names:
        case = cases()[name]

        def seconds(entry, best, case=case):
            return LAUNCH_S + cost_model.cycles(case, entry, H100, constants) / HERTZ

        rows.append(measured_row(case, seconds, facts=H100))
    return rows


def test_fit_recovers_constants_and_the_regret_they_save():
    import cost_model
    from routines.calibration import summary

    truth = cost_model.Constants(400.0, 3.0, 80.0, 1.5)
    names = ("sinusoid", "sinusoid-16384", "omniglot-fc", "linear-million", "wide", "hvp")
    found = summary(measured(names, truth), H100, HERTZ, LAUNCH_S)
    assert found["fitted_misses_by"] < 1.02
    fitted = cost_model.Constants(**found["fitted"])
    assert fitted.phase_cycles == pytest.approx(truth.phase_cycles, rel=0.05)
    assert fitted.streamed_factor == pytest.approx(truth.streamed_factor, rel=0.05)
    for row in found["rows"]:
        assert row["regret"] >= 1.0
        assert row["entries"][0]["seconds"] > 0
    resident = {row["case"]: row["regret_fitted"] for row in found["rows"]}
    assert resident["sinusoid"] == pytest.approx(1.0, abs=0.02)


def test_constants_without_evidence_stay_bounded():
    import cost_model

    found = cost_model.fitted(lambda constants: constants.thread_cycles)
    assert cost_model.Constants().thread_cycles / 64.1 < found.thread_cycles < 1
    assert found.phase_cycles == cost_model.Constants().phase_cycles


def test_schedules_that_fail_are_kept_with_their_reason():
    from routines.calibration import identity, measured_row

    case = cases()["sinusoid"]

    def seconds(entry, best):
        if entry["strategy"] == "streamed":
            raise RuntimeError("CUDA out of memory")
        return 1e-5 * entry["threads"]

    row = measured_row(case, seconds, facts=H100)
    failed = [entry for entry in row["entries"] if "failed" in entry]
    assert failed
    assert row["best"][2] == 32
    assert row["regret"] == row["entries"][0]["seconds"] / 3.2e-4
    assert row["chosen"] == identity(row["entries"][0])
    with pytest.raises(RuntimeError, match="sinusoid: no schedule ran: broken"):
        measured_row(case, broken, facts=H100)


def broken(entry, best):
    """A card on which nothing runs."""
    raise RuntimeError("broken")
