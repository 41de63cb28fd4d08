"""Random trainings: tasks and inputs are drawn, and given them both estimates are jointly normal
(Result 10a).

Trials are drawn in chunks and a trial's tasks in blocks, each with a generator of its own, so that
a trial's first M tasks are the same whatever else is asked for. Components stand on the first axes
of all arrays, tasks (T) or trials (R) on the last, along which every operation runs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from innerloop.bounds._arguments import Array
from innerloop.bounds.linear.laws import Nodes, PublishedLaw, TaskLaw

CHUNK = 1024  # trials
_LONGEST_BLOCK = 512  # tasks of a trial that are drawn together
_CACHED = 1 << 14  # matrix entries of one array of a block
# Where sampling hardly moves a step it can vanish, and rates do not share their sums.
_MANY_SAMPLES = 1e8
_TIED = 1e-10


class Given(NamedTuple):
    """Both estimates given tasks and inputs, in R trials at K numbers of tasks.

    With standard normal g [p] and h [p], joint training's estimate is joint + pull g + (a normal
    vector of covariance left, independent of g), and MAML's exceeds it by gap + gap_root g.

    Members:
        joint, gap: [p, K, R].
        gap_root, pull, left: [p, p, K, R]; gap_root is lower triangular.
    """

    joint: Array
    gap: Array
    gap_root: Array
    pull: Array
    left: Array


def trainings(
    law: TaskLaw,
    rates: list[float],
    samples: float,
    tasks: list[int],
    *,
    chunk: int,
    seed: int,
    regular: bool,
) -> Iterator[Given]:
    """One chunk of trials at each rate, for ascending numbers of tasks.

    Args:
        law: the task law; tasks are drawn by its `sample`.
        rates: MAML's training rates.
        samples: N, infinite for no sampling.
        tasks: M's, ascending, without repetition.
        chunk: number of the chunk.
        seed: of all random numbers.
        regular: what `is_regular` says.
    """
    apart = math.isinf(samples) or samples > _MANY_SAMPLES
    for group in [[rate] for rate in rates] if apart else [rates]:
        sums = _sums(law, group, samples, tasks, chunk, seed)
        for rate in group:
            yield _given(sums, rate, samples, np.array(tasks), regular)


def normals(p: int, count: int, chunk: int, seed: int) -> Array:
    """Standard normal vectors [count, p, CHUNK] for the noise of a chunk's trials."""
    return _generator(seed, 0, chunk, 0).standard_normal((count, p, CHUNK))


@dataclasses.dataclass
class _Sums:
    """Sums over a trial's tasks [..., K, R]. W is a task's weight, s the noise variance over N.

    MAML's are polynomials in rate - origin, given by their three coefficients; with one rate alone
    the second and third are absent. Solutions are measured from the trial's first task.

    Members:
        origin: the first rate.
        first: [p, R], theta of the first task.
        size: [K, R], sum of tr Qh2.
        joint, joint_moment, joint_noise: of W, W theta, s W of joint training.
        weight: of W of MAML.
        change, change_moment: of W - W_joint, formed without cancellation, and times theta.
        noise, more_noise: of s W and s S Qh2 Qh1 Qh2 S.
    """

    origin: float
    first: Array
    size: Array
    joint: Array
    joint_moment: Array
    joint_noise: Array
    weight: list[Array]
    change: list[Array]
    change_moment: list[Array]
    noise: list[Array]
    more_noise: list[Array]


def _sums(
    law: TaskLaw, rates: list[float], samples: float, tasks: list[int], chunk: int, seed: int
) -> _Sums:
    """The sums of one chunk of trials."""
    last, totals = tasks[-1], None
    first = np.empty((law.p, CHUNK))
    for block, (start, length) in enumerate(_blocks(last)):
        used = min(length, last - start)
        inside = [m - start for m in tasks if start < m < start + used]
        place = sum(m <= start for m in tasks)
        at_once = _trials_at_once(law.p, length)
        for part in range(CHUNK // at_once):
            rng = _generator(seed, 1 + block, chunk, part, samples)
            drawn, support, query = _draw(law, rng, at_once * length, samples)
            trials = slice(part * at_once, (part + 1) * at_once)
            theta = _by_trial(drawn.theta.T, at_once)  # [p, trials, length]
            if start == 0:
                first[:, trials] = theta[..., 0]
            features = _features(
                _by_trial(support, at_once)[..., :used],
                _by_trial(query, at_once)[..., :used],
                (theta - first[:, trials, None])[..., :used],
                _by_trial(drawn.sigma2, at_once)[..., :used] / samples,
                rates[0],
                len(rates) > 1,
            )
            if totals is None:
                shapes = [(*feature.shape[:-2], len(tasks), CHUNK) for feature in features]
                totals = [np.zeros(shape) for shape in shapes]
            for total, feature in zip(totals, features, strict=True):
                cut = np.moveaxis(np.add.reduceat(feature, [0, *inside], axis=-1), -1, -2)
                total[..., place : place + cut.shape[-2], trials] += cut
    assert totals is not None
    size, joint, joint_moment, joint_noise, *rest = [np.cumsum(total, axis=-2) for total in totals]
    step = len(rest) // 5
    parts = [rest[k * step : (k + 1) * step] for k in range(5)]
    return _Sums(rates[0], first, size, joint, joint_moment, joint_noise, *parts)


def _features(
    support: Array, query: Array, theta: Array, noise: Array, rate: float, several: bool
) -> list[Array]:
    """What `_Sums` sums, in its order; tasks are on the last axes."""
    step = -rate * support
    for i in range(len(step)):
        step[i, i] += 1.0
    seen = _product(query, step)
    turned, across = _product(support, seen), _product(query, support)
    joint = (support + query) / 2.0
    weight = [_product(step, seen)]
    change = [(query - support) / 2.0 - rate * (turned + across)]
    more = [_product(_t(seen), turned)]
    if several:
        bent = _product(support, across)  # Qh1 Qh2 Qh1
        weight += [turned + _t(turned), bent]
        change += weight[1:]
        mixed = _product(_t(across), turned)
        more += [mixed + _t(mixed), _product(bent, across)]
    return [
        np.trace(query),
        joint,
        apply(joint, theta),
        noise * joint,
        *weight,
        *change,
        *(apply(matrix, theta) for matrix in change),
        *(noise * matrix for matrix in weight),
        *(noise * matrix for matrix in more),
    ]


def _given(
    sums: _Sums, rate: float, samples: float, tasks: NDArray[np.int_], regular: bool
) -> Given:
    """The joint law at one rate, from the sums."""

    def at(parts: list[Array]) -> Array:
        shift = rate - sums.origin
        if len(parts) == 1:
            return parts[0]
        return np.asarray(parts[0] - shift * parts[1] + shift**2 * parts[2])

    p, rows = len(sums.first), samples * tasks
    ranks = np.minimum(p, 2.0 * rows), np.minimum(p, rows)
    weight, moment = at(sums.weight), at(sums.change_moment)
    first = sums.first[:, None]  # [p, 1, R]
    if regular and ranks[1].min() == p:
        # sum W_joint (theta - estimate) = 0, so that the gap needs W - W_joint alone.
        joint_inverse, inverse = _inverse(sums.joint), _inverse(weight)
        apart = apply(joint_inverse, sums.joint_moment)  # from the first task's solution
        back = apply(at(sums.change), apart)
        joint, gap = first + apart, apply(inverse, moment - back)
        size = np.sqrt((inverse**2).sum(axis=(0, 1))) * (_norm(moment) + _norm(back))
    else:
        joint_inverse = _pseudo_inverse(sums.joint, ranks[0], sums.size)
        inverse = _pseudo_inverse(weight, ranks[1], sums.size)
        joint = apply(joint_inverse, sums.joint_moment + apply(sums.joint, first))
        aimed = moment + sums.joint_moment + apply(weight, first)
        gap = apply(inverse, aimed) - joint
        size = _norm(gap + joint) + _norm(joint)
    heard = at(sums.noise) + rate**2 * at(sums.more_noise)
    joint_cov = _product(_product(joint_inverse, sums.joint_noise), joint_inverse) / 2.0
    cross = _product(_product(joint_inverse, at(sums.noise)), inverse) / 2.0
    maml_cov = _product(_product(inverse, heard), inverse)
    # Without noise, what is below rounding is a tie.
    tied = (np.trace(heard) == 0.0) & (_norm(gap) <= _TIED * size)
    root = factor(maml_cov - cross - _t(cross) + joint_cov)
    pull = _t(_forward(root, _t(cross) - joint_cov))
    left = joint_cov - _product(pull, _t(pull))
    return Given(joint, np.where(tied, 0.0, gap), root, pull, left)


def factor(matrices: Array) -> Array:
    """Lower triangular factors of positive semidefinite matrices [p, p, ...]; a pivot below
    rounding gives a column of zeros.
    """
    made = np.zeros_like(matrices)
    least = 1e-13 * np.trace(matrices)
    for j in range(len(matrices)):
        pivot = matrices[j, j] - (made[j, :j] ** 2).sum(axis=0)
        clear = pivot > least
        made[j, j] = np.sqrt(np.where(clear, pivot, 0.0))
        root = np.where(clear, made[j, j], np.inf)
        for i in range(j + 1, len(matrices)):
            made[i, j] = (matrices[i, j] - (made[i, :j] * made[j, :j]).sum(axis=0)) / root
    return made


def _forward(root: Array, right: Array) -> Array:
    """The lower triangular root's inverse times `right`, with rows of zeros at zero pivots."""
    made = np.zeros_like(right)
    for i in range(len(root)):
        rest = right[i] - (root[i, :i, None] * made[:i]).sum(axis=0)
        made[i] = rest / np.where(root[i, i] > 0.0, root[i, i], np.inf)
    return made


def _inverse(matrices: Array) -> Array:
    """Inverses of positive definite matrices [p, p, ...]."""
    if len(matrices) == 1:
        return np.asarray(1.0 / matrices)
    identity = np.zeros_like(matrices)
    for i in range(len(matrices)):
        identity[i, i] = 1.0
    below = _forward(factor(matrices), identity)
    return _product(_t(below), below)


def _pseudo_inverse(matrices: Array, ranks: Array, size: Array) -> Array:
    """What gives the solution of least norm with symmetric matrices [p, p, K, R], of which the
    numbers of rows allow ranks [K] at most; size is [K, R].
    """
    p = len(matrices)
    square = np.moveaxis((matrices + _t(matrices)) / 2.0, (0, 1), (-2, -1))
    values, vectors = np.linalg.eigh(square)
    least = np.maximum(1e-13 * values[..., -1], 1e-26 * size)
    kept = (values > least[..., None]) & (np.arange(p) >= p - ranks[:, None, None])
    inverse = np.where(kept, 1.0 / np.where(kept, values, 1.0), 0.0)
    made = (vectors * inverse[..., None, :]) @ np.swapaxes(vectors, -1, -2)
    return np.ascontiguousarray(np.moveaxis(made, (-2, -1), (0, 1)))


def is_regular(law: TaskLaw, samples: float) -> bool:
    """Whether rows enough make every task's weight nonsingular."""
    if math.isinf(samples):
        return False
    if isinstance(law, PublishedLaw):
        return True
    nodes = law.nodes()
    values = np.linalg.eigvalsh(nodes.Q[nodes.weights > 0.0])
    return bool((values[:, 0] > 1e-12 * values[:, -1]).all())


def _draw(
    law: TaskLaw, rng: np.random.Generator, count: int, samples: float
) -> tuple[Nodes, Array, Array]:
    """Tasks, and second moments [p, p, count] of their support and query."""
    drawn = law.sample(rng, count)
    q = np.ascontiguousarray(np.moveaxis(drawn.Q, 0, -1))
    if math.isinf(samples):
        return drawn, q, q
    root, sides = factor(q), []
    for _ in range(2):
        rows = _product(root, _bartlett(rng, count, law.p, samples))
        sides.append(_product(rows, _t(rows)) / samples)
    return drawn, sides[0], sides[1]


def _bartlett(rng: np.random.Generator, count: int, p: int, samples: float) -> Array:
    """Factors F [p, min(p, N), count] such that F F' has the law of N rows' Z'Z (Bartlett 1933)."""
    columns = int(min(p, samples))
    made = np.zeros((p, columns, count))
    for j in range(columns):
        made[j, j] = np.sqrt(2.0 * rng.standard_gamma((samples - j) / 2.0, count))
        made[j + 1 :, j] = rng.standard_normal((p - j - 1, count))
    return made


def _by_trial(values: Array, trials: int) -> Array:
    """The last axis split into trials and their tasks."""
    return values.reshape(*values.shape[:-1], trials, -1)


def _blocks(tasks: int) -> Iterator[tuple[int, int]]:
    """Blocks (start, length) that hold a trial's tasks: 1, 1, 2, 4, ... and then equal ones."""
    start, length = 0, 1
    while start < tasks:
        yield start, length
        start += length
        length = min(start, _LONGEST_BLOCK)


def _trials_at_once(p: int, length: int) -> int:
    """A power of two, at most a chunk."""
    fit = max(1, _CACHED // (p * p * length))
    return int(min(CHUNK, 1 << (fit.bit_length() - 1)))


def _generator(seed: int, *place: float) -> np.random.Generator:
    """The generator of one part of the random numbers."""
    words = [0 if math.isinf(word) else int(word) for word in place]
    return np.random.default_rng([seed, *words])


def _norm(vectors: Array) -> Array:
    """Lengths of vectors [p, ...]."""
    return np.asarray(np.sqrt((vectors**2).sum(axis=0)))


def _product(first: Array, second: Array) -> Array:
    """Products of matrices [p, r, ...] and [r, q, ...]."""
    made = first[:, 0, None] * second[0]
    for k in range(1, len(second)):
        made += first[:, k, None] * second[k]
    return np.asarray(made)


def apply(matrix: Array, vector: Array) -> Array:
    """Matrices [p, r, ...] times vectors [r, ...]."""
    made = matrix[:, 0] * vector[0]
    for k in range(1, len(vector)):
        made += matrix[:, k] * vector[k]
    return np.asarray(made)


def _t(matrix: Array) -> Array:
    """Transposes of matrices [p, r, ...]."""
    return np.swapaxes(matrix, 0, 1)
