"""What the theory expects of every cell of a sweep, from the law of the tasks alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from innerloop.bounds import linear
from innerloop.studies.linear_regression.result import Prediction
from innerloop.studies.linear_regression.settings import Settings


def predict(settings: Settings, progress: Callable[[float], None] | None = None) -> Prediction:
    """Predicted heat maps and crossovers on the sweep's grid.

    Args:
        settings: the grid; trials and seed play no part.
        progress: called with the share of the work that is done.

    Source:
        Results 9 and 10 of docs/theory.md. For p <= 4 the law's averages are exact; beyond, they
        come from a sample of tasks with a fixed seed.
    """
    law = linear.published_law(settings.p, settings.beta)
    tasks, rates = np.array(settings.tasks), np.array(settings.inner_lrs)
    shape = len(tasks), len(settings.samples), len(rates)
    before, after, crossover = np.empty(shape), np.empty(shape), np.empty(shape[1:])
    for j, samples in enumerate(settings.samples):
        for k, rate in enumerate(rates):
            for place, after_update in ((before, False), (after, True)):
                place[:, j, k] = linear.probability_drs_worse(
                    law, inner_lr=rate, samples=samples, tasks=tasks, after_update=after_update
                )
            crossover[j, k] = linear.crossover(law, inner_lr=rate, samples=samples)
            if progress is not None:
                progress((j * len(rates) + k + 1) / crossover.size)
    return Prediction(before, after, crossover)
