"""What the theory expects of every cell of a sweep, from the law of the tasks alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from innerloop.bounds import linear
from innerloop.bounds.linear.conditional import DRAWS
from innerloop.bounds.linear.probability import predicted_cells
from innerloop.runs.errors import InputError
from innerloop.studies.linear_regression.result import Prediction
from innerloop.studies.linear_regression.settings import Settings

_SEED = 0  # of the theory's own random numbers; the sweep's seed plays no part


def predict(settings: Settings, progress: Callable[[float], None] | None = None) -> Prediction:
    """Predicted heat maps and crossovers on the sweep's grid.

    Args:
        settings: the grid; trials and seed play no part.
        progress: called with the share of the work that is done.

    Raises:
        InputError (a ValueError): so many tasks that only the normal approximation is affordable,
            and it does not hold.

    Source:
        Results 9, 10 and 10a of docs/theory.md. The probabilities are the exact law's up to 1024
        tasks, with a standard error; those that it draws have nothing in common with the sweep's
        trials. For p <= 4 the averages behind crossovers are exact; beyond, they come from a sample
        of tasks with a fixed seed.
    """
    law = linear.published_law(settings.p, settings.beta)
    tasks, rates = np.array(settings.tasks, dtype=np.float64), np.array(settings.inner_lrs)
    shape = len(tasks), len(settings.samples), len(rates)
    value, error = np.empty((2, *shape)), np.empty((2, *shape))
    crossover = np.empty(shape[1:])
    a, m = (axis.ravel() for axis in np.meshgrid(rates, tasks))  # [tasks, rates]
    for j, samples in enumerate(settings.samples):
        n = np.full(len(a), float(samples))
        try:
            found = predicted_cells(law, a, n, m, DRAWS, _SEED, "theory")
        except ValueError as refused:  # more tasks than either law takes
            raise InputError(f"{refused}; --no-theory leaves predictions out") from None
        value[:, :, j] = found.value.reshape(2, len(tasks), len(rates))
        error[:, :, j] = found.error.reshape(2, len(tasks), len(rates))
        for k, rate in enumerate(rates):
            crossover[j, k] = linear.crossover(law, inner_lr=rate, samples=samples)
        if progress is not None:
            progress((j + 1) / len(settings.samples))
    return Prediction(value[0], value[1], crossover, error[0], error[1])
