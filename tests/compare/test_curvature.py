"""Rates bounded by curvature, and what is said where fine-tuning diverges all the same."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from families import class_family, linear_family
from typer.testing import CliRunner

import innerloop as il
from innerloop.cli import build
from innerloop.compare import analysis as summary
from innerloop.compare.analysis import Analysis
from innerloop.compare.config import Config
from innerloop.compare.curvature import (
    default_rates,
    largest_curvature,
    newcomer_curvature,
    newcomer_inputs,
)
from innerloop.compare.frames import tasks_of_frame
from innerloop.compare.measuring import is_stable, raised
from innerloop.compare.problem import RATES, Problem
from innerloop.compare.tables import Tasks, check_tasks
from innerloop.compare.training import run_unit
from innerloop.compare.units import all_units
from innerloop.compare.verdict import (
    DIVERGES,
    MAML_BETTER,
    MOST_LINES,
    WIDTH,
    Verdict,
    conclude,
)
from innerloop.runs.methods import JOINT, MAML, METHODS


def frame_with_a_giant(factor: float = 12.0) -> pd.DataFrame:
    """Eleven like tasks and one, named giant, whose inputs are `factor` times as large: Grunfeld's
    panel of firms has this shape.
    """
    frame = linear_family(12, 20, seed=3, correlated=False, noise=0.3).astype({"task": object})
    giant = frame["task"] == 7
    frame.loc[giant, "x"] *= factor
    frame.loc[giant, "task"] = "giant"
    return frame


def tasks_of(frame: pd.DataFrame, config: Config) -> Tasks:
    return check_tasks(tasks_of_frame(frame, config, "table"), config)


def concluded(frame: pd.DataFrame, **settings: object) -> tuple[Analysis, Verdict]:
    config = Config(task="task", target="y", **settings)  # type: ignore[arg-type]
    problem = Problem(tasks_of(frame, config), config)
    units = {unit.name: run_unit(problem, unit) for unit in all_units(problem.config)}
    analysis = Analysis(problem.config, problem.tasks, units, problem.curvature)
    return analysis, conclude(analysis, "MSE")


@pytest.mark.parametrize("rows", [2, 7], ids=["fewer rows than parameters", "more"])
@pytest.mark.parametrize("outputs", [1, 3])
def test_curvature_is_the_largest_eigenvalue_of_the_hessian(rows: int, outputs: int) -> None:
    x = torch.randn(4, rows, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.zeros(4, rows, outputs, dtype=torch.float64)
    model = il.MLP([3, outputs])
    start = model.init(dtype=torch.float64)
    names, leaves = list(start), tuple(start.values())
    for task, found in enumerate(largest_curvature(x.numpy(), outputs)):

        def loss(flat: torch.Tensor, task: int = task) -> torch.Tensor:
            parts = torch.split(flat, [leaf.numel() for leaf in leaves])
            named = {n: p.view_as(v) for n, p, v in zip(names, parts, leaves, strict=True)}
            predicted = x[task] @ named["0.weight"].T + named["0.bias"]
            return 0.5 * (predicted - y[task]).square().mean()

        flat = torch.cat([leaf.detach().reshape(-1) for leaf in leaves])
        hessian = torch.autograd.functional.hessian(loss, flat)
        assert found == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-12)


def test_newcomers_are_on_the_scale_of_all_others() -> None:
    tasks = tasks_of(frame_with_a_giant(), Config(task="task", target="y"))
    found = newcomer_inputs(tasks)
    owner = np.repeat(np.arange(len(tasks.names)), tasks.counts)
    for task in range(len(tasks.names)):
        others = tasks.x[owner != task]
        wanted = (tasks.x[owner == task] - others.mean(axis=0)) / others.std(axis=0)
        np.testing.assert_allclose(found[owner == task], wanted, rtol=1e-10, atol=1e-12)
    curvature = newcomer_curvature(tasks, 5, 20, np.random.default_rng(0))
    giant = tasks.names.index("giant")
    assert curvature.argmax() == giant
    assert curvature[giant] > 10 * np.median(curvature)


def test_features_of_zero_and_one_are_not_blown_up() -> None:
    frame = linear_family(20, 10, seed=0, correlated=False).assign(
        rare=lambda f: (f["task"] == 3).astype(int), even=lambda f: f.index % 2
    )
    config = Config(task="task", target="y", draws=2)
    tasks = tasks_of(frame, config)
    assert tasks.binary.tolist() == [False, True, True]
    newcomers = newcomer_inputs(tasks)
    data = Problem(tasks, config).split_data(0).data
    for scaled in (newcomers, data.x.numpy()):
        assert np.ptp(scaled[:, 1]) <= 2.0
        assert np.ptp(scaled[:, 2]) == pytest.approx(2.0)


def test_a_column_that_only_one_task_varies_is_shifted() -> None:
    frame = linear_family(6, 8, seed=0, correlated=False).assign(
        z=lambda f: np.where(f["task"] == 2, np.arange(len(f)) % 3, 1)
    )
    tasks = tasks_of(frame, Config(task="task", target="y"))
    column = newcomer_inputs(tasks)[:, 1]
    assert np.isfinite(column).all()
    np.testing.assert_allclose(column[tasks.start[2] : tasks.start[3]] % 1.0, 0.0, atol=1e-12)


@pytest.mark.parametrize(
    ("curvature", "rates"),
    [
        ([2.1], (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)),
        ([1.9], (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)),
        ([2.0], (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)),  # rate 1 would just not converge
        ([2.1] * 99 + [300.0], (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)),
        ([2e9], (1e-11, 2e-11, 5e-11, 1e-10, 2e-10, 5e-10)),
    ],
    ids=["ordinary", "flatter", "at the limit", "one giant", "far away"],
)
def test_default_rates(curvature: list[float], rates: tuple[float, ...]) -> None:
    assert default_rates(np.array(curvature)) == rates


def test_default_rates_are_capped() -> None:
    rates = default_rates(np.array([1.0] * 99 + [1e12]))
    assert len(rates) == 12
    assert max(rates) == 1.0


def test_where_curvature_depends_on_the_parameters_rates_are_fixed() -> None:
    config = Config(task="unit", target="kind", outer_lrs=(0.1,))
    problem = Problem(tasks_of(class_family(8, 9, seed=1), config), config)
    assert problem.curvature is None
    assert problem.config.inner_lrs == RATES["cross_entropy"]


def test_a_rate_beyond_the_curvature_of_known_tasks_is_unstable_at_once() -> None:
    # The third condition: a support loss that has not risen yet does not make the rate stable.
    config = Config(task="task", target="y", inner_lrs=(0.1,), adapt_steps=2, draws=5)
    problem = Problem(tasks_of(frame_with_a_giant(1.0), config), config)
    data = problem.split_data(0)
    assert data.known_curvature is not None
    theta = torch.zeros(problem.parameters, dtype=problem.dtype)
    largest = float(data.known_curvature.max())
    assert is_stable(problem, data, theta, 1.9 / largest).tolist() == [True] * 3
    share = float(np.mean(2.2 / largest * data.known_curvature >= 2.0))
    assert is_stable(problem, data, theta, 2.2 / largest)[1] == (share <= 0.01)
    assert is_stable(problem, data, theta, 20.0 / largest).tolist() == [True, False, False]
    worse = raised(problem, theta, data.test, 100.0, data.draws)
    assert worse.shape == (len(data.parts.test), 3)
    assert not worse[:, 0].any()
    assert worse[:, 1:].all()


def test_a_giant_task_makes_fine_tuning_diverge_and_that_is_the_headline() -> None:
    analysis, verdict = concluded(frame_with_a_giant(), steps=(1,), splits=16, draws=5)
    found = analysis.divergence
    assert found is not None
    assert found.tasks[0] == "giant"
    assert found.after > 10 * found.before
    assert found.safe_rate is not None
    assert found.safe_rate * max(analysis.curvature) < 2.5  # type: ignore[arg-type]
    assert verdict.answer == DIVERGES
    assert verdict.headline == "Your fine-tuning diverges on new tasks."
    assert "'giant'" in verdict.text
    assert f"rates up to {found.safe_rate:g}" in verdict.action
    # Nothing that diverges is picked, in no row and by no method, and the numbers say so.
    for method in METHODS:
        assert not any(choice.raised for choice in analysis.picked_choices[method])
    for row in (analysis.picked, *analysis.by_adapt_steps):
        assert row.risk[JOINT].mean < 20
        assert row.risk[MAML].mean < 20
    said = " ".join((verdict.text, verdict.action, *analysis.notes()))
    for advice in ("adapt-steps", "takes about", "widen"):
        assert advice not in said
    assert len(verdict.lines()) <= MOST_LINES


def test_without_the_giant_the_same_tasks_do_not_diverge() -> None:
    analysis, verdict = concluded(frame_with_a_giant(1.0), steps=(1,), splits=16, draws=5)
    assert analysis.divergence is None
    assert verdict.answer != DIVERGES
    assert all(
        choice.rate <= max(analysis.config.inner_lrs) for choice in analysis.picked_choices[MAML]
    )


def test_little_harm_is_a_note_and_no_headline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "MOST_HARM", 1e9)
    monkeypatch.setattr(summary, "MOST_HARM_ONCE", 1e9)
    analysis, verdict = concluded(frame_with_a_giant(3.0), steps=(1,), splits=16, draws=5)
    assert any(choice.raised for choice in analysis.picked_choices[JOINT])
    assert analysis.divergence is None
    assert verdict.answer != DIVERGES
    (note,) = (note for note in analysis.notes() if note.startswith("joint training: in "))
    assert "raised the support loss of held-out tasks (such as 'giant')" in note


def test_zero_steps_are_what_is_left_when_every_rate_diverges() -> None:
    analysis, verdict = concluded(
        frame_with_a_giant(1.0), steps=(1,), splits=6, draws=4, inner_lrs=(50.0, 80.0)
    )
    for method in METHODS:
        assert {choice.adapt_steps for choice in analysis.picked_choices[method]} == {0}
    assert analysis.divergence is None  # zero steps are picked from the start
    assert "Fine-tuning does not pay" in verdict.text
    assert "without fine-tuning" in verdict.action


def test_test_tasks_do_not_change_what_is_advised() -> None:
    # One slope for all tasks and much noise: five rows of a task only mislead.
    rng = np.random.default_rng(2)
    frame = pd.DataFrame({"task": np.repeat(np.arange(16), 12), "x": rng.standard_normal(192)})
    frame["y"] = frame["x"] + 3.0 * rng.standard_normal(192)
    advised = set()
    for seed in range(8):
        analysis, verdict = concluded(frame, steps=(1,), splits=6, draws=4, seed=seed)
        if analysis.divergence is not None:
            continue
        picked = Counter((c.rate, c.adapt_steps) for c in analysis.picked_choices[JOINT])
        (rate, steps), _ = picked.most_common(1)[0]
        if verdict.answer == MAML_BETTER or "features" in verdict.action:
            continue
        before, after = (
            row.risk[JOINT].mean for row in (analysis.by_adapt_steps[0], analysis.picked)
        )
        tune = f"{steps} fine-tuning step{'s' * (steps > 1)} at rate {rate:g}"
        end = f", then {tune}"
        if after >= before:
            end = f"; validation tasks pick {tune}, test tasks tell against it"
        assert verdict.action == f"Do: joint training{end if steps else ', without fine-tuning'}."
        if steps and after >= before:
            assert f"has {before:.3g} without it, {after:.3g} as validation" in verdict.text
        advised.add((bool(steps), bool(after >= before)))
    # a case in which the test tasks disagree with what validation tasks pick is among them
    assert (True, True) in advised


def test_training_that_always_diverges_is_no_comparison() -> None:
    analysis, verdict = concluded(
        frame_with_a_giant(1.0), steps=(6,), splits=3, draws=2, inner_lrs=(1e29,)
    )
    assert analysis.picked.failed[MAML] == 3
    assert analysis.picked.failed[JOINT] == 0
    assert verdict.headline == "Undecided: training diverges at every setting of the grid."
    assert verdict.text == "That happens to MAML in 3 of 3 splits."
    assert "smaller --inner-lrs" in verdict.action


def test_the_command_says_it_first(tmp_path: Path) -> None:
    table = tmp_path / "firms.csv"
    frame_with_a_giant().to_csv(table, index=False)
    options = [table, "--task", "task", "--target", "y", "--steps", 1, "--splits", 16]
    options += ["--draws", 5, "--no-figures", "--out", tmp_path / "out"]
    done = CliRunner().invoke(build(), ["compare", *map(str, options)])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "Your fine-tuning diverges on new tasks."
    assert lines.index("") <= MOST_LINES
    assert all(len(line) <= WIDTH for line in lines[: lines.index("")])
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    assert document["verdict"]["answer"] == "diverges"
    assert document["verdict"]["divergence"]["tasks"][0] == "giant"
    assert len(document["data"]["curvature"]) == 12
