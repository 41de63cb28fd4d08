"""The probability that joint training ends worse than MAML: predicted heat maps (Result 10)."""

from __future__ import annotations

from typing import Any

import numpy as np

from innerloop.bounds import _arguments
from innerloop.bounds._arguments import Array
from innerloop.bounds._quantities import hands_on
from innerloop.bounds._results import Assumption, Quantity, quantity
from innerloop.bounds.linear.conditional import (
    DRAWS,
    INDEPENDENT,
    Cells,
    checked_draws,
    checked_seed,
    draws_for,
    exact_assumptions,
    exact_cells,
)
from innerloop.bounds.linear.laws import TaskLaw
from innerloop.bounds.linear.normal import is_resolved, normal_cells
from innerloop.bounds.linear.risk import law_assumptions, rate_and_samples
from innerloop.bounds.linear.validity import FEWEST_NORMAL, fewest_for_normal

_NORMAL = Assumption(
    "both estimates are jointly normal around their biased means (for so many tasks within 0.03 of "
    "the exact law on the families compared)"
)
MOST_EXACT = 2**15  # tasks


@hands_on
def probability_drs_worse(
    law: TaskLaw,
    *,
    inner_lr: Any,
    samples: Any = None,
    tasks: Any,
    after_update: bool = True,
    draws: int = DRAWS,
    seed: int = 0,
) -> Any:
    """Returns the predicted probability that joint training's estimate has the larger risk.

    Both methods train on the same 2 N samples of each of M tasks. Over grids this is the published
    heat map: the fraction of trials in which MAML's estimate has the lower risk.

    Up to 1024 tasks it comes from the exact law (`exact_probability_drs_worse`), with a standard
    error that a single result states. With more tasks it is the normal approximation, from the
    number on that `tasks_needed` gives; up to that number, the exact law.

    Args:
        law: the task law.
        inner_lr, samples: rate and N of training and test; None for N = infinity.
        tasks: M >= 1. All three broadcast.
        after_update: compare risks after one inner step (True) or before any update.
        draws, seed: of the exact law, as for `exact_probability_drs_worse`.

    Returns:
        Quantity or float64 array in [0, 1]; the source is "Result 10a" (exact) or "Result 10".

    Raises:
        TypeError: not real numbers.
        ValueError: E Q or E A is not positive definite (Result 3), a count out of range, NaN; or
            more than 32768 tasks where the normal approximation does not hold yet.
        ModuleNotFoundError: the normal approximation for p = 1, or with singular covariances, needs
            SciPy (innerloop[cli]).

    Cost:
        That of the exact law; beyond it that of `expansion` per pair of rate and N, then for p = 1
        a closed form per cell, else an integral over about a thousand points per cell.

    Assumes:
        Inputs and noise are normal given the task, and noise is independent of inputs (D4). Tasks
        are independent. M is so large that both estimates are jointly normal, where the source is
        Result 10. Checked: E Q and E A are positive definite, and whether M is large enough for
        that, by the dispersions of `tasks_needed`.

    Source:
        Results 10 and 10a (this project's own). Normal approximation, p = 1: bivariate normal by
        Owen's T (Owen 1956). p > 1: the difference of risks is a quadratic form in normal
        variables; its characteristic function is inverted (Gil-Pelaez 1951; Imhof 1961). Singular
        covariances (few tasks without sampling noise) are averaged over a fixed lattice, to about
        1e-4.

    >>> from innerloop.bounds import linear
    >>> law = linear.published_law(p=1, beta=2.0)
    >>> value = linear.probability_drs_worse(law, inner_lr=0.3, samples=5, tasks=[2, 10000])
    >>> bool(0.34 < value[0] < 0.38), round(float(value[1]), 9)
    (True, 1.0)
    """
    name = "probability_drs_worse"
    rate, count = rate_and_samples(inner_lr, samples, name)
    m = _arguments.counts(tasks, function=name, name="tasks")
    trainings, start = checked_draws(draws, name), checked_seed(seed, name)
    rate, count, m = np.broadcast_arrays(rate, count, m)
    found = predicted_cells(law, rate.ravel(), count.ravel(), m.ravel(), trainings, start, name)
    view = int(after_update)
    if m.ndim:
        return found.value[view].reshape(m.shape)
    return as_quantity(law, found, view, float(m), trainings)


def predicted_cells(
    law: TaskLaw, rates: Array, samples: Array, tasks: Array, draws: int, seed: int, function: str
) -> Cells:
    """The probabilities of every cell (rate, N, M), [cells] each, by the exact law or by the normal
    approximation, whose `error` is NaN.
    """
    exact = tasks < FEWEST_NORMAL
    for cell in np.flatnonzero(~exact):
        a, n = float(rates[cell]), float(samples[cell])
        resolved = is_resolved(law, a, n, function)
        fewest = fewest_for_normal(law, a, n, function)
        exact[cell] = tasks[cell] < fewest or not resolved
        if exact[cell] and tasks[cell] > MOST_EXACT:
            why = f"holds from {fewest:.0f} tasks on" if resolved else "cannot tell both apart"
            raise ValueError(
                f"{function}: tasks must be at most {MOST_EXACT} (got {tasks[cell]:g}), since the "
                f"normal approximation {why} for inner_lr {a:g} and samples {n:g}; "
                "exact_probability_drs_worse takes more with fewer draws"
            )
    cells = Cells(*np.full((2, 2, len(tasks)), np.nan))
    for part, where in ((exact, True), (~exact, False)):
        if not part.any():
            continue
        place = rates[part], samples[part], tasks[part]
        if where:
            found = exact_cells(law, *place, draws, seed, function)
            cells.value[:, part], cells.error[:, part] = found
        else:
            for view in (0, 1):
                cells.value[view, part] = normal_cells(law, *place, bool(view), function)
    return cells


def as_quantity(law: TaskLaw, found: Cells, view: int, tasks: float, draws: int) -> Quantity:
    """A single predicted probability, with what it rests on."""
    value, error = float(found.value[view, 0]), float(found.error[view, 0])
    exact = not np.isnan(error)
    number = draws_for(tasks, draws)
    made = quantity(
        value,
        name="probability that joint training has the larger risk",
        source="Result 10a" if exact else "Result 10",
        assumptions=exact_assumptions(law, error, number)
        if exact
        else law_assumptions(law, INDEPENDENT, _NORMAL),
    )
    assert isinstance(made, Quantity)
    return made
