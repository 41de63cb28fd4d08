"""From finished trainings to comparisons of two arms over seeds."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from innerloop import rl
from innerloop.runs.statistics import interquartile_mean, stratified_bootstrap
from innerloop.studies.meta_rl.settings import PAIRS, Settings
from innerloop.studies.meta_rl.units import ADAPTS, PUBLISHED, STEP_SIZE, Unit, all_units

Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Arm:
    """One algorithm under one test, on the seeds that are compared.

    Members:
        label: what figures and tables call it.
        steps: [C] of training.
        tested: [S, C, n, U + 1], returns on the n test tasks.
        returns, stderr: [S, C, U + 1], their mean over test tasks and its standard error.
        diverged: of the seeds, how many.
    """

    label: str
    steps: Array
    tested: Array
    diverged: int

    @property
    def returns(self) -> Array:
        """See above."""
        return mean_and_error(self.tested)[0]

    @property
    def stderr(self) -> Array:
        """See above."""
        return mean_and_error(self.tested)[1]


def mean_and_error(tested: Array) -> tuple[Array, Array]:
    """Mean over tasks [..., U + 1] of returns [..., n, U + 1], and its standard error."""
    count = tested.shape[-2]
    return tested.mean(-2), tested.std(-2, ddof=1) / np.sqrt(count)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """DRS against MAML on one environment, over the seeds that both have finished.

    Members:
        control: "" for the published settings, or which control replaces one side.
        seeds: how many.
        steps: [C].
        tradeoff: [C, U + 1], see `innerloop.rl.tradeoff`.
        difference, error: [C, U + 1], DRS minus MAML, mean over seeds and tasks, and its standard
            error: variances of the two means over seeds, and of the mean over tasks of the
            difference. Both sides meet the same test tasks, so what tasks have in common cancels;
            the trade-off, as published, does not know that and is paler.
    """

    environment: str
    pair: str
    control: str
    drs: Arm
    maml: Arm
    seeds: int
    steps: Array
    tradeoff: Array
    difference: Array
    error: Array

    def decided(self, errors: float = 2.0) -> NDArray[np.int64]:
        """[C, U + 1]: +1 where DRS is better by more than so many standard errors, -1 where MAML
        is, else 0."""
        sign = np.sign(self.difference).astype(np.int64)
        return np.where(np.abs(self.difference) > errors * self.error, sign, 0)


LABELS = {
    "drs-ppo": "DRS+PPO",
    "promp": "ProMP",
    "drs-trpo": "DRS+TRPO",
    "trpo-maml": "TRPO-MAML",
}


def comparisons(settings: Settings, results: dict[str, dict[str, Any]]) -> list[Comparison]:
    """All comparisons with at least two finished seeds, the published ones of an environment and
    pair before its controls."""
    units = all_units(settings)
    found = []
    for pair, (drs, maml) in PAIRS.items():
        for name in settings.environments:
            here = [u for u in units if (u.pair, u.environment) == (pair, name)]

            def runs(
                algorithm: str, control: str, test: str, here: list[Unit] = here
            ) -> dict[int, Unit]:
                return {
                    u.seed: u
                    for u in here
                    if (u.algorithm, u.control) == (algorithm, control)
                    and test in u.tests
                    and u.name in results
                }

            for control, (a, b) in {
                "": ((drs, "", PUBLISHED), (maml, "", PUBLISHED)),
                STEP_SIZE: ((drs, "", PUBLISHED), (maml, STEP_SIZE, PUBLISHED)),
                ADAPTS: ((drs, "", ADAPTS), (maml, "", PUBLISHED)),
            }.items():
                ours, theirs = runs(*a), runs(*b)
                seeds = sorted(ours.keys() & theirs.keys())
                if len(seeds) < 2:
                    continue
                left = _arm([ours[seed] for seed in seeds], results, a[2])
                right = _arm([theirs[seed] for seed in seeds], results, b[2])
                found.append(_compare(name, pair, control, left, right))
    return found


def _arm(units: list[Unit], results: dict[str, dict[str, Any]], test: str) -> Arm:
    held = [results[unit.name] for unit in units]
    label = LABELS[units[0].algorithm]
    if units[0].changed:
        value = next(iter(units[0].changed.values()))
        label += f", step size {value:g}"
    if test == ADAPTS:
        label += f", test rate {units[0].tests[test]:g}"
    return Arm(
        label,
        np.mean([result["steps"] for result in held], axis=0),
        np.array([result["returns"][test] for result in held]),
        sum(result["diverged"] is not None for result in held),
    )


def _compare(environment: str, pair: str, control: str, drs: Arm, maml: Arm) -> Comparison:
    seeds = len(drs.tested)
    difference, task_error = mean_and_error(drs.tested.mean(0) - maml.tested.mean(0))
    seed_variance = sum(arm.returns.var(0, ddof=1) for arm in (drs, maml))
    return Comparison(
        environment,
        pair,
        control,
        drs,
        maml,
        seeds,
        drs.steps,
        rl.tradeoff(drs.returns, drs.stderr, maml.returns, maml.stderr),
        difference,
        np.sqrt(seed_variance / seeds + np.square(task_error)),
    )


def update_gain(arm: Arm) -> tuple[float, float]:
    """What the updates at test time add at the last checkpoint, and its standard error.

    Episodes after an update have other noise than those before it, and the same for every seed:
    what is common to the seeds shows only in the scatter over tasks, which is counted too.
    """
    gain = arm.tested[:, -1, :, -1] - arm.tested[:, -1, :, 0]  # [S, n]
    seeds, tasks = gain.shape
    variance = gain.mean(1).var(ddof=1) / seeds + gain.mean(0).var(ddof=1) / tasks
    return float(gain.mean()), float(np.sqrt(variance))


def middle_and_interval(arm: Arm, level: float) -> tuple[Array, Array, Array]:
    """Interquartile mean over seeds [C, U + 1] and the ends of its bootstrap interval."""
    low, high = stratified_bootstrap(
        interquartile_mean, [arm.returns], level, np.random.default_rng(0)
    )
    return interquartile_mean(arm.returns), low, high


def middle_difference(made: Comparison, level: float) -> tuple[Array, Array, Array]:
    """The same of the difference DRS minus MAML; the two algorithms are the strata."""

    def difference(drs: Array, maml: Array) -> Array:
        return interquartile_mean(drs) - interquartile_mean(maml)

    strata = [made.drs.returns, made.maml.returns]
    low, high = stratified_bootstrap(difference, strata, level, np.random.default_rng(0))
    return difference(*strata), low, high
