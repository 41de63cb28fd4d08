"""How large an inner rate may be: a step of rate a along a direction of curvature c multiplies the
error in it by 1 - a c, so gradient descent on a linear model diverges from a c = 2 on.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from innerloop.compare.tables import BINARY_SCALE, Tasks, in_reach

# From this product of rate and curvature on, every further step is worse than the one before.
DIVERGES_FROM = 2.0
# The largest default rate suits this share of the tasks, and the smallest suits all of them.
_MOST_TASKS = 0.9
_FEWEST_RATES, _MOST_RATES = 6, 12
_RUNGS = (1.0, 2.0, 5.0)

Array = NDArray[np.float64]


def largest_curvature(x: Array, outputs: int) -> Array:
    """[E]: the largest eigenvalue of each support set's Hessian, for a linear model with a bias
    under half the squared error (a mean over rows and outputs).

    Args:
        x: [E, N, D] support inputs; outputs: K.
    """
    design = np.concatenate([x, np.ones((*x.shape[:2], 1))], axis=2)
    small = design if design.shape[1] >= design.shape[2] else design.transpose(0, 2, 1)
    gram = small.transpose(0, 2, 1) @ small / (x.shape[1] * outputs)
    return np.asarray(np.linalg.eigvalsh(gram)[:, -1])


def newcomer_inputs(tasks: Tasks) -> Array:
    """[rows, D]: the inputs of each task on the scale of all other tasks, as a new task's would be.

    A column that does not vary in the others is only shifted.
    """
    inputs, _ = in_reach(tasks.x)
    centred = inputs - inputs.mean(axis=0)
    first = np.add.reduceat(centred, tasks.start[:-1], axis=0)
    second = np.add.reduceat(centred**2, tasks.start[:-1], axis=0)
    others = (len(centred) - tasks.counts)[:, None]
    mean = (first.sum(axis=0) - first) / others
    variance = (second.sum(axis=0) - second) / others - mean**2
    whole = centred.var(axis=0)
    scale = np.sqrt(np.where(variance > 1e-12 * whole, variance, 1.0))
    scale = np.where(tasks.binary, np.maximum(scale, BINARY_SCALE), scale)
    owner = np.repeat(np.arange(len(tasks.names)), tasks.counts)
    return np.asarray((centred - mean[owner]) / scale[owner])


def newcomer_curvature(tasks: Tasks, support: int, draws: int, rng: np.random.Generator) -> Array:
    """[T]: the largest curvature that `draws` random supports of each task have for a linear model
    fitted to all other tasks.
    """
    x = newcomer_inputs(tasks)
    found = np.zeros(len(tasks.names))
    for task, (first, last) in enumerate(zip(tasks.start[:-1], tasks.start[1:], strict=True)):
        count = last - first
        if tasks.fixed_support:
            rows = np.arange(support)[None, :]
        else:
            rows = np.argsort(rng.random((draws, count)), axis=1)[:, :support]
        found[task] = largest_curvature(x[first + rows], tasks.outputs).max()
    return found


def default_rates(curvature: Array) -> tuple[float, ...]:
    """Rates 1, 2, 5 times powers of ten from which to choose, in increasing order.

    The largest does not diverge on nine tasks in ten, the smallest has a factor of two to spare on
    every task.

    Args:
        curvature: [T], of each task.
    """
    top = _rung_below(DIVERGES_FROM / float(np.quantile(curvature, _MOST_TASKS)))
    safe = _rung_below(DIVERGES_FROM / 2.0 / float(curvature.max()))
    count = min(max(top - safe + 1, _FEWEST_RATES), _MOST_RATES)
    return tuple(_rate(top - count + 1 + index) for index in range(count))


def _rate(rung: int) -> float:
    """The number on a rung of the ladder ..., 0.5, 1, 2, 5, 10, ...; rung 0 is 1."""
    decade, place = divmod(rung, len(_RUNGS))
    return float(f"{_RUNGS[place]:g}e{decade}")


def _rung_below(value: float) -> int:
    """The highest rung whose number is less than `value`."""
    rung = len(_RUNGS) * (math.floor(math.log10(value)) + 1)
    while _rate(rung) >= value:
        rung -= 1
    return rung
