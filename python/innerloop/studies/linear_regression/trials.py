"""The native kernel as NumPy sees it: settings in, arrays out. Random numbers depend on the seed,
the dimension, (M, N), the trial and the task alone: not on threads, instruction level, the other
rates or cells, or how trials are cut into calls.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from innerloop import _native
from innerloop.studies.linear_regression.risks import Risk, risk
from innerloop.studies.linear_regression.settings import Cell, Settings

Array = NDArray[np.float64]


class Trials(NamedTuple):
    """Excess risks (above the least possible) of both estimators in every trial.

    Members:
        drs_before: [trials], pooled least squares before any update.
        maml_before: [trials, inner_lrs].
        drs_after: [trials, inner_lrs], after the update with that rate.
        maml_after: [trials, inner_lrs].
        drs: [trials, p], the estimates themselves, where asked for.
        maml: [trials, inner_lrs, p].
    """

    drs_before: Array
    maml_before: Array
    drs_after: Array
    maml_after: Array
    drs: Array | None
    maml: Array | None


class Tasks(NamedTuple):
    """Tasks of some trials and what the estimators see of their data.

    Members:
        theta: [trials, tasks, p], regression vectors.
        sigma2: [trials, tasks], noise variances.
        Q: [trials, tasks, p, p], input covariances.
        gram: [trials, tasks, 2, p, p], X'X / N of support and query.
        moment: [trials, tasks, 2, p], X'y / N of support and query.
    """

    theta: Array
    sigma2: Array
    Q: Array
    gram: Array
    moment: Array


def risks_of(settings: Settings, samples: int) -> list[Risk]:
    """The risk before the update, then after it at every inner rate."""
    rates = (0.0, *settings.inner_lrs)
    return [risk(settings.p, settings.beta, rate, samples) for rate in rates]


def run_trials(
    settings: Settings,
    cell: Cell,
    *,
    first: int = 0,
    trials: int | None = None,
    threads: int = 1,
    estimates: bool = False,
) -> Trials:
    """Trials first, first + 1, ... of one cell, by the native kernel.

    Args:
        settings: law, rates, seed; `settings.trials` unless `trials` is given.
        cell: (M, N).
        first: number of the first trial.
        trials: how many.
        threads: workers; they do not change a bit.
        estimates: also return the estimates.

    Raises:
        RuntimeError: the native extension is missing.
    """
    count = settings.trials if trials is None else trials
    rates = np.array(settings.inner_lrs, dtype=np.float64)
    shapes = np.array([each[1:] for each in risks_of(settings, cell.samples)], dtype=np.float64)
    number = len(rates)
    excess = np.empty((count, 1 + 3 * number))
    theta = np.empty((count, 1 + number, settings.p)) if estimates else None
    _native.native().regression_trials(
        _law(settings, cell),
        cell.tasks,
        first,
        count,
        number,
        rates.ctypes.data,
        shapes.ctypes.data,
        excess.ctypes.data,
        0 if theta is None else theta.ctypes.data,
        threads,
    )
    return Trials(
        excess[:, 0],
        excess[:, 1 : 1 + number],
        excess[:, 1 + number : 1 + 2 * number],
        excess[:, 1 + 2 * number :],
        None if theta is None else theta[:, 0],
        None if theta is None else theta[:, 1:],
    )


def draw_tasks(
    settings: Settings, cell: Cell, *, first: int = 0, trials: int = 1, threads: int = 1
) -> Tasks:
    """The tasks that `run_trials` works on, with the sufficient statistics of their data."""
    p, lead = settings.p, (trials, cell.tasks)
    made = Tasks(
        np.empty((*lead, p)),
        np.empty(lead),
        np.empty((*lead, p, p)),
        np.empty((*lead, 2, p, p)),
        np.empty((*lead, 2, p)),
    )
    addresses = [array.ctypes.data for array in made]
    _native.native().regression_tasks(
        _law(settings, cell), cell.tasks, first, trials, *addresses, threads
    )
    return made


def _law(settings: Settings, cell: Cell) -> Any:
    return settings.p, cell.samples, settings.beta, settings.key(cell)
