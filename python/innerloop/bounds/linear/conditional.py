"""The exact probability that joint training ends worse than MAML, for any number of tasks: an
average over random trainings of a normal probability in closed form (Result 10a).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
import torch

from innerloop.bounds import _arguments
from innerloop.bounds._arguments import Array
from innerloop.bounds._quantities import hands_on
from innerloop.bounds._results import Assumption, Record, quantity
from innerloop.bounds.linear.laws import PublishedLaw, TaskLaw
from innerloop.bounds.linear.quadratic import post_update
from innerloop.bounds.linear.risk import law_assumptions, population, rate_and_samples
from innerloop.bounds.linear.trainings import CHUNK, Given, apply, is_regular, normals, trainings

DRAWS = 8192
NOISE = Assumption("the noise is normal")
INDEPENDENT = Assumption("tasks and their samples are independent")
MOST_TASKS = 2**28  # of all trainings of one N
_PAIRS = 4  # antithetic pairs of noise vectors of a training


@dataclasses.dataclass(frozen=True)
class ExactProbability(Record):
    """A probability estimated by averaging its exact conditional values over random trainings.

    Members:
        value: the estimate; a Quantity for single arguments, a float64 array otherwise.
        standard_error: of the estimate, in its shape.
        draws: trainings behind each value, in its shape.
    """

    value: Any
    standard_error: Any
    draws: Any

    def explain(self) -> str:
        """The estimate with its standard error."""
        if np.ndim(self.value) == 0:
            return f"{self.value.explain()}\n  standard error {self.standard_error:.2g}"
        return f"{self.value}\nstandard errors {self.standard_error} (Result 10a)"


@hands_on
def exact_probability_drs_worse(
    law: TaskLaw,
    *,
    inner_lr: Any,
    samples: Any = None,
    tasks: Any,
    after_update: bool = True,
    draws: int = DRAWS,
    seed: int = 0,
) -> ExactProbability:
    """Returns the probability that joint training's estimate has the larger risk, for any M and N.

    Nothing is approximated: tasks and inputs of whole trainings are drawn, and given them the
    probability is that of a quadratic form in normal variables. `probability_drs_worse` calls this
    where its normal approximation is out of range.

    Args:
        law: the task law; tasks are drawn by its `sample`.
        inner_lr, samples: rate and N of training and test; None for N = infinity.
        tasks: M >= 1. All three broadcast. Rates and numbers of tasks share their draws.
        after_update: compare risks after one inner step (True) or before any update.
        draws: trainings for M <= 32, rounded up to a multiple of 1024; beyond, as many as make
            32 draws tasks, but an eighth at least. Standard errors are at most
            0.5 / sqrt(trainings), typically half of that.
        seed: of the draws, a whole number of at least 0. A value depends on the law, the rate, N,
            M, draws and seed alone.

    Returns:
        ExactProbability.

    Raises:
        TypeError: not real numbers.
        ValueError: E Q or E A is not positive definite (Result 3), a count out of range, NaN, or
            more than 2^28 tasks to draw for one N.

    Cost:
        O(p^3) for every task drawn: for one rate about 0.4 microseconds with p = 1, 2 with p = 2
        and 4 with p = 4; further rates cost a tenth of the first, and O(p^3) per training.

    Assumes:
        Inputs and noise are normal given the task, and noise is independent of inputs (D4). Tasks
        are independent. Checked: E Q and E A are positive definite.

    Source:
        Result 10a (this project's own; docs/theory/linear.md has the proof).

    >>> from innerloop.bounds import linear
    >>> law = linear.published_law(p=1, beta=2.0)
    >>> found = linear.exact_probability_drs_worse(law, inner_lr=1.0, samples=1, tasks=3)
    >>> 0.30 < found.value < 0.314, found.standard_error < 0.003
    (True, True)
    """
    name = "exact_probability_drs_worse"
    rate, count = rate_and_samples(inner_lr, samples, name)
    m = _arguments.counts(tasks, function=name, name="tasks")
    trainings_ = checked_draws(draws, name)
    start = checked_seed(seed, name)
    rate, count, m = np.broadcast_arrays(rate, count, m)
    cells = exact_cells(law, rate.ravel(), count.ravel(), m.ravel(), trainings_, start, name)
    view = int(after_update)
    value, error = (part[view].reshape(m.shape) for part in (cells.value, cells.error))
    number = np.array([draws_for(float(size), trainings_) for size in m.ravel()])
    return ExactProbability(
        quantity(
            value,
            name="probability that joint training has the larger risk",
            source="Result 10a",
            assumptions=exact_assumptions(law, float(error.max()), int(number.min())),
        ),
        error if m.ndim else float(error),
        number.reshape(m.shape) if m.ndim else int(number[0]),
    )


def checked_draws(draws: Any, function: str) -> int:
    """A number of trainings."""
    made = _arguments.counts(draws, function=function, name="draws", at_most=MOST_TASKS)
    if made.ndim:
        raise ValueError(f"{function}: draws must be one number (got shape {made.shape})")
    return int(made)


def checked_seed(seed: Any, function: str) -> int:
    """A seed of random numbers."""
    made = _arguments.counts(seed, function=function, name="seed", at_least=0)
    if made.ndim:
        raise ValueError(f"{function}: seed must be one number (got shape {made.shape})")
    return int(made)


def exact_assumptions(law: TaskLaw, error: float, draws: int) -> tuple[Assumption, ...]:
    """What an exact probability rests on."""
    given = law_assumptions(law, NOISE, INDEPENDENT)
    if isinstance(law, PublishedLaw):  # its risks have a closed form in any dimension
        given = tuple(item for item in given if item.standing != "estimated")
    what = f"an average over {draws} drawn trainings, with a standard error of {error:.2g}"
    return (*given, Assumption(what, "checked"))


def draws_for(tasks: float, draws: int) -> int:
    """Trainings of so many tasks, a multiple of CHUNK."""
    wanted = min(max(32.0 * draws / tasks, draws / 8.0), draws)
    return CHUNK * math.ceil(wanted / CHUNK)


class Cells(NamedTuple):
    """Probabilities before (0) and after (1) the update, and their standard errors, [2, cells]."""

    value: Array
    error: Array


def exact_cells(
    law: TaskLaw, rates: Array, samples: Array, tasks: Array, draws: int, seed: int, function: str
) -> Cells:
    """Both probabilities of every cell (rate, N, M), [cells] each."""
    cells = Cells(*np.empty((2, 2, len(rates))))
    for n in np.unique(samples):
        here = np.flatnonzero(samples == n)
        sizes_of = {a: tuple(np.unique(tasks[here][rates[here] == a])) for a in rates[here]}
        for sizes in sorted(set(sizes_of.values())):
            group = sorted(a for a, own in sizes_of.items() if own == sizes)
            found = _grid(law, group, float(n), [int(m) for m in sizes], draws, seed, function)
            for cell in here:
                if rates[cell] in group:
                    i, j = group.index(rates[cell]), sizes.index(tasks[cell])
                    cells.value[:, cell] = found.value[:, i, j]
                    cells.error[:, cell] = found.error[:, i, j]
    return cells


class _Risk(NamedTuple):
    """Hessian [p, p] and minimiser [p] of a risk."""

    hessian: Array
    minimiser: Array


def _grid(
    law: TaskLaw,
    rates: list[float],
    samples: float,
    tasks: list[int],
    draws: int,
    seed: int,
    function: str,
) -> Cells:
    """The probabilities [2, rates, tasks] and their errors at one N, for ascending M."""
    at = population(law, np.array(rates), np.asarray(samples), function)
    before = _Risk(post_update(law).joint, at.drs)
    risks = [(before, _Risk(*pair)) for pair in zip(at.curvature, at.maml, strict=True)]
    numbers = np.array([draws_for(m, draws) for m in tasks])
    total = float(np.diff([0.0, *tasks]) @ numbers)  # in float64: a product may exceed 64 bits
    if total > MOST_TASKS:
        raise ValueError(
            f"{function}: tasks must be so few that at most {MOST_TASKS} are drawn "
            f"(got {max(tasks)} tasks, {numbers[-1]} times); ask for fewer draws, or take "
            "probability_drs_worse, whose normal approximation serves many tasks"
        )
    regular = is_regular(law, samples)
    sums, squares = np.zeros((2, 2, len(rates), len(tasks)))
    for chunk in range(int(numbers.max()) // CHUNK):
        served = [m for m, number in zip(tasks, numbers, strict=True) if number > chunk * CHUNK]
        noise = normals(law.p, _PAIRS, chunk, seed)
        trained = trainings(law, rates, samples, served, chunk=chunk, seed=seed, regular=regular)
        for place, given in enumerate(trained):
            for view, risk in enumerate(risks[place]):
                values = _worse(given, risk, noise)
                sums[view, place, : len(served)] += values.sum(axis=1)
                squares[view, place, : len(served)] += (values**2).sum(axis=1)
    mean = sums / numbers
    variance = np.maximum(squares / numbers - mean**2, 0.0) / (numbers - 1.0)
    # A probability of 0 or 1 in every training is known to about one training.
    return Cells(mean, np.sqrt(variance + 1.0 / numbers**2))


def _worse(given: Given, risk: _Risk, noise: Array) -> Array:
    """P(joint training's risk is the larger one | tasks, inputs, g and -g), [K, R], averaged over
    the noise vectors g [pairs, p, R].

    With X and U the joint estimate's distance from the minimiser and the gap, the risks differ by
    U'H (2 X + U) / -2, and X is normal given g while U is fixed.
    """
    total = np.zeros(given.gap.shape[1:])
    centre = given.joint - risk.minimiser[:, None, None]
    for vector in noise[:, :, None]:  # [p, 1, R]
        along, moved = apply(given.gap_root, vector), apply(given.pull, vector)
        for sign in (1.0, -1.0):
            gap = given.gap + sign * along
            push = np.tensordot(risk.hessian, gap, 1)
            middle = (push * (centre + sign * moved + gap / 2.0)).sum(axis=0)
            spread = (push * apply(given.left, push)).sum(axis=0)
            root = np.sqrt(np.maximum(spread, 0.0))
            clear = root > 1e-12 * np.abs(middle)
            score = np.where(clear, -middle / np.where(clear, root, 1.0), 0.0)
            chance = torch.special.ndtr(torch.from_numpy(score)).numpy()
            total += np.where(clear, chance, middle < 0.0)
    return np.asarray(total / (2.0 * len(noise)))
