"""Result 36 on a table: the same estimators as the tool's own, and what it says about them."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from families import linear_family
from typer.testing import CliRunner

from innerloop.bounds.linear import estimate
from innerloop.cli import build
from innerloop.compare import episodes as ep
from innerloop.compare.analysis import Analysis
from innerloop.compare.config import Config
from innerloop.compare.exact import stationary_point
from innerloop.compare.frames import tasks_of_frame
from innerloop.compare.problem import Problem
from innerloop.compare.tables import check_tasks
from innerloop.compare.theory import Theory, estimate_theory, tasks_text, theory_document
from innerloop.compare.training import run_unit
from innerloop.compare.units import Unit, all_units
from innerloop.runs.methods import JOINT, MAML


def small_problem(ragged: bool = False, **settings: object) -> Problem:
    given = {
        "task": "task",
        "target": "y",
        "shots": 4,
        "draws": 3,
        "adapt_steps": 1,
        "splits": 2,
        "inner_lrs": (0.1, 0.3),
        "steps": (1, 2),
        **settings,
    }
    config = Config(**given)  # type: ignore[arg-type]
    frame = linear_family(24, 10, seed=5, correlated=True, noise=0.3)
    if ragged:
        frame = frame[(frame["task"] % 2 == 0) | (frame.index % 10 < 6)]
    return Problem(check_tasks(tasks_of_frame(frame, config, "table"), config), config)


def theory_of(problem: Problem) -> Theory:
    units = {unit.name: run_unit(problem, unit) for unit in all_units(problem.config)}
    theory = estimate_theory(problem, Analysis(problem.config, problem.tasks, units))
    assert theory is not None
    return theory


@pytest.mark.parametrize("ragged", [False, True])
def test_estimators_are_those_that_the_tool_trains(ragged: bool) -> None:
    problem = small_problem(ragged)
    theory = theory_of(problem)
    assert theory.tasks == 24
    assert theory.why is None
    everything = np.arange(24)
    data = ep.standardise(problem.tasks, everything, torch.float64)
    rows = ep.all_rows(data, everything)
    drawn = ep.draw_episodes(
        data,
        np.repeat(everything, 3),
        problem.config,
        ep.generator(problem.config.seed, 0, ep.Stream.THEORY),
    )
    for (steps, rate), found in theory.estimates.items():
        for unit, theta in (
            (Unit(0, JOINT, 0.0, 0), found.theta_drs),
            (Unit(0, MAML, rate, steps), found.theta_maml),
        ):
            solved, why, _ = stationary_point(problem, unit, rows, drawn)
            assert why is None
            np.testing.assert_allclose(theta[:, 0], solved.numpy(), rtol=1e-9, atol=1e-11)


def test_one_fixed_split_is_the_library_function(tmp_path: Path) -> None:
    # Archived episodes are never redrawn, so the table's numbers are those of `estimate` on the
    # standardised arrays with a column of ones.
    rng = np.random.default_rng(1)
    slope = rng.uniform(0, 2, (40, 1))
    x = rng.standard_normal((40, 9, 1)) * np.sqrt(slope)[..., None] + 1.0
    y = slope * x[..., 0] + 0.1 * rng.standard_normal((40, 9))
    np.savez(
        tmp_path / "t.npz",
        support_x=x[:, :4],
        support_y=y[:, :4],
        query_x=x[:, 4:],
        query_y=y[:, 4:],
    )
    options = ["--inner-lrs", "0.2", "--steps", 1, "--splits", 2, "--no-figures"]
    arguments = ["compare", tmp_path / "t.npz", *options, "--out", tmp_path / "out"]
    done = CliRunner().invoke(build(), list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    theory = json.loads((tmp_path / "out" / "results.json").read_text())["theory"]
    design = np.concatenate([(x - x.mean()) / x.std(), np.ones_like(x)], axis=-1)
    target = (y - y.mean()) / y.std()
    wanted = estimate(design[:, :4], target[:, :4], design[:, 4:], target[:, 4:], inner_lr=0.2)
    (got,) = theory["settings"]
    assert got["modelling_error"]["estimate"] == pytest.approx(2 * wanted.modelling_error)
    assert got["modelling_error"]["standard_error"] == pytest.approx(
        2 * wanted.standard_errors["modelling_error"]
    )
    assert got["statistical_error"]["joint"]["estimate"] == pytest.approx(2 * wanted.drs / 40)
    assert got["statistical_error"]["maml"]["estimate"] == pytest.approx(2 * wanted.maml / 40)
    assert got["crossover"]["low"] == pytest.approx(wanted.interval[0])
    assert theory["tasks"] == 40
    assert theory["sentence"].startswith("Theory (rate 0.2, 1 inner step")
    assert theory["sentence"] in " ".join(done.stdout.split())
    assert "Theory for M = 40 tasks, 1 inner step (Result 36)" in done.stdout


def test_sentences_fit_the_estimate() -> None:
    theory = theory_of(small_problem())
    found = theory.estimates[theory.setting]

    def say(crossover: float, low: float, high: float, tasks: int = 48, **changes: object) -> str:
        given: dict = {"fewest_tasks": 11, "heavy_tails": None, **changes}
        value = type(found.crossover)(crossover, name="n", source="s", reason="why not")
        changed = dataclasses.replace(
            found, tasks=tasks, crossover=value, interval=(low, high), **given
        )
        return dataclasses.replace(
            theory, tasks=tasks, estimates={theory.setting: changed}
        ).sentence()

    at = f"rate {theory.setting[1]:g}, {theory.setting[0]} inner step"
    at += "s" * (theory.setting[0] > 1)
    # Inside the interval, or outside it but not far, a sentence is rough.
    for ends in ((12.0, 90.0), (25.0, 40.0), (60.0, 90.0)):
        shown = f"{ends[0]:g} to {ends[1]:g}"
        assert say(30.2, *ends) == (
            f"Theory ({at}, roughly): MAML pays from 30 tasks on (95% interval {shown}); your 48 "
            "are too near to tell."
        )
    assert say(15.0, 12.0, 23.9) == (
        f"Theory ({at}): MAML pays from 15 tasks on (95% interval 12 to 24); you have 48."
    )
    assert "roughly" in say(15.0, 12.0, 24.1)
    assert say(200.0, 97.0, 400.0) == (
        f"Theory ({at}): joint training is ahead below 200 tasks (95% interval 97 to 400); you "
        "have 48."
    )
    assert "roughly" in say(200.0, 95.0, 400.0)
    assert "joint training is ahead below 97 tasks" in say(math.inf, 97.0, math.inf)
    # Below 20 tasks nothing is more than rough.
    assert "roughly" in say(3.0, 2.0, 6.0, tasks=19, fewest_tasks=2)
    assert "roughly" not in say(3.0, 2.0, 6.0, tasks=20, fewest_tasks=2)
    # Below the tasks from which the expansion is used no number is printed.
    low = say(math.nan, 3.0, 16.5, fewest_tasks=20)
    assert "pays from fewer than 20 tasks on" in low
    assert "(95% interval fewer than 20 to fewer than 20)" in low
    assert say(math.nan, 3.0, 90.0, fewest_tasks=49) == "Theory does not tell: why not."
    assert say(15.0, 12.0, 23.9, heavy_tails="fat") == "Theory does not tell: fat."
    assert "may pay from any number of tasks on" in say(30.0, 0.0, math.inf)
    # An interval without an upper end allows that MAML never pays.
    for low in (3.0, 12.0, 30.0, 60.0):
        for value in (36.0, 200.0, 0.0, -2.0, math.nan):
            open_end = say(value, low, math.inf, tasks=40)
            number = f"about {value:g} tasks" if value > 11 else "fewer than 11 tasks"
            shown = f"{low:g}" if low > 11 else "fewer than 11"
            assert open_end == (
                f"Theory ({at}) does not tell whether MAML ever pays; if it does, then from "
                f"{number} on (95% interval {shown} to infinity); you have 40."
            )
    assert "by its estimate it never does" in say(math.inf, 60.0, math.inf)
    assert "60 to infinity" in say(math.inf, 60.0, math.inf)
    assert "pays from fewer than" in say(0.0, 0.0, 30.0)
    assert tasks_text(225990.8, 20) == "2.3e5"
    assert [tasks_text(v, 20) for v in (0.0, 19.9, math.nan, 20.0)] == [
        "fewer than 20", "fewer than 20", "fewer than 20", "20",
    ]  # fmt: skip


def test_too_few_tasks_for_the_parameters() -> None:
    config = Config(
        task="task", target="y", shots=3, draws=2, splits=1, inner_lrs=(0.1,), steps=(1,)
    )
    frame = linear_family(6, 8, seed=1, correlated=True)
    rng = np.random.default_rng(0)
    for name in "abcd":
        frame[name] = rng.standard_normal(len(frame))
    problem = Problem(check_tasks(tasks_of_frame(frame, config, "table"), config), config)
    theory = theory_of(problem)
    assert theory.estimates == {}
    assert "6 parameters per output need at least 8 tasks" in theory.sentence()
    document = theory_document(theory)
    assert document is not None
    assert document["settings"] == []
    assert document["why_none"] is not None


def test_networks_have_no_such_theory() -> None:
    problem = small_problem(hidden=(4,), iterations=2, outer_lrs=(0.01,), steps=(1,), splits=1)
    units = {unit.name: run_unit(problem, unit) for unit in all_units(problem.config)}
    assert estimate_theory(problem, Analysis(problem.config, problem.tasks, units)) is None
    assert theory_document(None) is None


def test_rates_beyond_float64_are_said_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for rate in (1e9, 1e20, 1e30):
            theory = theory_of(small_problem(inner_lrs=(0.1, rate), steps=(1, 7)))
            for steps, given in theory.estimates:
                document = theory_document(dataclasses.replace(theory, setting=(steps, given)))
                assert document is not None
                json.dumps(document, allow_nan=False)
            assert (7, 1e30) not in theory.estimates
    theory = theory_of(small_problem(inner_lrs=(1e30,), steps=(7,)))
    assert theory.sentence() == (
        "Theory does not tell: at rate 1e+30 its numbers leave the range of float64."
    )
