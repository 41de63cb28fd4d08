"""Comparisons of two arms on made-up returns: which seeds count, what cancels, how often the
standard error is right, and what the report makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from innerloop.studies.meta_rl.document import results_document
from innerloop.studies.meta_rl.report import claim, make_report, markdown, verdict
from innerloop.studies.meta_rl.settings import Settings, preset_settings
from innerloop.studies.meta_rl.summary import Arm, Comparison, comparisons, update_gain
from innerloop.studies.meta_rl.units import PUBLISHED, all_units

TASKS = 30


def settings(seeds: int = 4, **given: Any) -> Settings:
    return preset_settings("tiny", seeds=seeds, checkpoints=2, test_tasks=TASKS, updates=1, **given)


def made_up(chosen: Settings, source: np.random.Generator, gain: float) -> dict[str, Any]:
    """Returns with effects of task, seed, and task by seed; ProMP's stay, DRS's gain."""
    task = 20 * source.standard_normal((1, TASKS, 1))
    found = {}
    for unit in all_units(chosen):
        seed = source.standard_normal((3, 1, 1))
        own = source.standard_normal((3, TASKS, 2))
        base = task + seed + own + gain * (unit.algorithm == "drs-ppo")
        tests = {test: base.tolist() for test in unit.tests}
        found[unit.name] = {"steps": [0, 10, 20], "returns": tests, "diverged": None}
    return found


def compared(gain: float, seed: int = 0, seeds: int = 4) -> Comparison:
    chosen = settings(seeds)
    return comparisons(chosen, made_up(chosen, np.random.default_rng(seed), gain))[0]


def test_what_tasks_have_in_common_cancels() -> None:
    one = compared(3.0)
    assert (one.decided() == 1).all()
    # error over seeds sqrt(2 / 4), and little beside it although tasks differ by 20
    assert np.median(one.error) == pytest.approx(np.sqrt(2 / 4), rel=0.4)
    assert (np.abs(one.tradeoff) < 0.9).all()  # the published map counts the tasks' spread


def test_updates_that_do_nothing_rarely_seem_to_help() -> None:
    """Noise that every seed shares, as the episodes after an update have it, is no gain."""
    seen = 0
    for seed in range(200):
        source = np.random.default_rng(seed)
        noise = source.standard_normal((1, 1, TASKS, 2)) + 0.1 * source.standard_normal(
            (5, 1, TASKS, 2)
        )
        mean, error = update_gain(Arm("", np.zeros(1), noise, 0))
        seen += abs(mean) > 2 * error
    assert 2 <= seen <= 20  # 5.5 % by Student's law


def test_two_standard_errors_are_rarely_exceeded_by_chance() -> None:
    found = [compared(0.0, seed, seeds=8).decided() for seed in range(100)]
    # Student's t with about 14 degrees of freedom: 6.5 %
    assert 0.02 < np.mean(np.abs(found)) < 0.11


def test_only_seeds_of_which_both_sides_are_done_count() -> None:
    chosen = settings()
    results = made_up(chosen, np.random.default_rng(0), 0.0)
    del results["HalfCheetahRandVel-promp-2"]
    del results["HalfCheetahRandVel-drs-ppo-3"]
    one = comparisons(chosen, results)[0]
    assert one.seeds == 2
    runs = results_document(chosen, results, "key")["runs"]
    assert [run["seed"] for run in runs] == [0, 0, 1, 1]
    mean = np.array(runs[0]["returns"]), np.array(runs[2]["returns"])
    np.testing.assert_allclose(one.drs.returns, mean)
    del results["HalfCheetahRandVel-promp-1"]
    left = comparisons(chosen, results)
    assert [made.control for made in left] == ["step-size"]  # which has seeds 0, 1 and 2
    assert "nothing can be said" in claim(left)


def test_words() -> None:
    chosen = settings()
    better = compared(9.0)
    assert "DRS is better in 2, MAML in 0, and 0 are within two standard errors" in claim([better])
    assert verdict([better]) == [
        "HalfCheetahRandVel, DRS+PPO against ProMP (4 seeds, after 1 update): DRS+PPO is better at "
        "10, 20 steps."
    ]
    worse = compared(-9.0)
    assert "DRS is better in 0, MAML in 2" in claim([worse])
    text = markdown(make_report(chosen, [better, worse], 3, Path("run"), drawn=True))
    assert "Unfinished: 3 of 12 trainings" in text
    assert "](tradeoff.svg)" in text
    rows = [line.split("|")[-2].strip() for line in text.splitlines() if line.startswith("| 20 ")]
    assert rows == ["DRS", "MAML"]
    assert PUBLISHED in text


@pytest.mark.parametrize("updates", [0, 1])
def test_without_updates_the_return_before_any_is_judged(updates: int) -> None:
    chosen = preset_settings("tiny", seeds=2, checkpoints=2, test_tasks=TASKS, updates=updates)
    results = made_up(chosen, np.random.default_rng(0), 9.0)
    for result in results.values():
        for test, held in result["returns"].items():
            result["returns"][test] = np.array(held)[:, :, : updates + 1].tolist()
    word = "after 1 update" if updates else "before any update"
    assert f"(2 seeds, {word})" in verdict(comparisons(chosen, results))[0]
    made = make_report(chosen, comparisons(chosen, results), 6, Path("run"), drawn=False)
    assert word in markdown(made)
    assert "svg" not in markdown(made)
