"""Inner solvers that are affine in theta, and the risk after them: the template of Results 14-16.

On N support rows with second moments Qh and noise e = X'(y - X theta_t) / N, a solver with transfer
matrix T maps d = theta - theta_t to d' = S d + T e with S = I - T Qh. Gradient steps, a matrix rate
and a ridge pull differ in T only.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from innerloop.bounds import _arguments
from innerloop.bounds._arguments import Array
from innerloop.bounds.linear import sizes
from innerloop.bounds.linear.averages import Averages, averages
from innerloop.bounds.linear.designs import SOBOL, Designs, designs
from innerloop.bounds.linear.laws import Nodes, TaskLaw
from innerloop.bounds.linear.quadratic import post_update

# Largest number of matrix entries in one temporary array.
_BLOCK = 1 << 21
# Gradient steps for which E[S Q S] is a word of at most six factors.
_MOST_WICK_STEPS = 3
MOST_STEPS = 10_000
# What a part of an average may come to, of the rest or of one, without being drawn.
_NEGLIGIBLE = 1e-3
# Designs that are drawn for ratios of averages, at least, and of a rare kind that decides.
_FEWEST_DRAWN, _FEWEST_RARE = 256, 100.0
# Least penalty of a ridge as a multiple of the largest eigenvalue of Q (the largest is its inverse)
# and the least one where designs are drawn.
_LEAST_PENALTY, _LEAST_SAMPLED_PENALTY = 1e-30, 1e-6


class Maps(NamedTuple):
    """An inner solver at given designs Qh, each [..., p, p].

    Members:
        transfer: T.
        keep: S = I - T Qh.
        residual: I - Qh T.
    """

    transfer: Array
    keep: Array
    residual: Array


class InnerRule:
    """An inner solver with transfer matrix T(Qh).

    Members:
        degree: degree of T as a polynomial in Qh; None if it is not one.
    """

    @property
    def degree(self) -> int | None:
        """Degree of T in Qh, or None."""
        raise NotImplementedError

    def maps(self, design: Array) -> Maps:
        """T, S and I - Qh T for second moments Qh [..., p, p], each without cancellation."""
        raise NotImplementedError

    def smallest(self, largest: float, p: int, samples: float) -> float:
        """The second moment, as a multiple of `largest`, the largest eigenvalue of any Q, down to
        which averages over designs of `samples` rows must be resolved; 1 for polynomials.

        Raises:
            ValueError: the rule is out of the range in which averages are accurate.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class GradientSteps(InnerRule):
    """`steps` gradient steps of size `inner_lr` on the same support rows.

    T = inner_lr (I + B + ... + B^(steps - 1)) with B = I - inner_lr Qh, and S = B^steps.

    Args:
        inner_lr: alpha, any sign.
        steps: K, from 0 to 10000.

    Raises:
        TypeError, ValueError: not a finite number, or not a whole number of steps in range.

    Source:
        Result 14(a).
    """

    inner_lr: float
    steps: int = 1

    def __post_init__(self) -> None:
        sizes.array(self.inner_lr, function="GradientSteps", name="inner_lr", ndim=0)
        steps = _arguments.counts(
            self.steps, function="GradientSteps", name="steps", at_least=0, at_most=MOST_STEPS
        )
        sizes.array(steps, function="GradientSteps", name="steps", ndim=0)

    @property
    def degree(self) -> int:
        """K - 1."""
        return max(int(self.steps) - 1, 0)

    def smallest(self, largest: float, p: int, samples: float) -> float:
        """1."""
        sizes.check_steps(float(self.inner_lr), largest, "GradientSteps")
        return 1.0

    def maps(self, design: Array) -> Maps:
        """The geometric sum by Horner's rule, and the power."""
        identity = np.eye(design.shape[-1])
        shrink = identity - float(self.inner_lr) * design
        total, keep = np.zeros_like(design), np.broadcast_to(identity, design.shape)
        for _ in range(int(self.steps)):
            total = identity + shrink @ total
            keep = shrink @ keep
        return Maps(float(self.inner_lr) * total, keep, keep)


@dataclasses.dataclass(frozen=True, eq=False)
class MatrixRate(InnerRule):
    """One gradient step preconditioned by a matrix: T = rate.

    Args:
        rate: P [p, p], any matrix.

    Raises:
        TypeError, ValueError: not a finite square matrix.

    Source:
        Result 14(b).
    """

    rate: Any

    def __post_init__(self) -> None:
        rate = sizes.array(self.rate, function="MatrixRate", name="rate", ndim=2)
        if rate.shape[0] != rate.shape[1]:
            raise ValueError(f"MatrixRate: rate must be square (got shape {rate.shape})")
        object.__setattr__(self, "rate", rate)

    @property
    def degree(self) -> int:
        """0."""
        return 0

    def smallest(self, largest: float, p: int, samples: float) -> float:
        """1."""
        sizes.check_steps(np.asarray(self.rate), largest, "MatrixRate")
        return 1.0

    def maps(self, design: Array) -> Maps:
        """The rate itself."""
        if design.shape[-1] != len(self.rate):
            raise ValueError(
                f"MatrixRate: rate must have shape {design.shape[-2:]} to fit the tasks "
                f"(got {self.rate.shape})"
            )
        identity = np.eye(len(self.rate))
        transfer = np.broadcast_to(self.rate, design.shape)
        return Maps(transfer, identity - self.rate @ design, identity - design @ self.rate)


@dataclasses.dataclass(frozen=True)
class Ridge(InnerRule):
    """The exact minimiser of support risk + penalty / 2 ||u - theta||^2 (implicit MAML).

    T = (Qh + penalty I)^-1 and S = penalty T.

    Args:
        penalty: lambda, positive.

    Raises:
        TypeError, ValueError: not a positive finite number.

    Source:
        Result 16; inner problem of Rajeswaran, Finn, Kakade and Levine 2019.
    """

    penalty: float

    def __post_init__(self) -> None:
        value = sizes.array(self.penalty, function="Ridge", name="penalty", ndim=0)
        if value <= 0.0:
            raise ValueError(f"Ridge: penalty must be positive (got {value:g}); Result 16 needs it")

    @property
    def degree(self) -> None:
        """None: T is not a polynomial."""
        return None

    def maps(self, design: Array) -> Maps:
        """The inverse; S and I - Qh T are multiples of it."""
        penalty = float(self.penalty)
        transfer: Array = np.linalg.inv(design + penalty * np.eye(design.shape[-1])).astype(
            np.float64, copy=False
        )
        return Maps(transfer, penalty * transfer, penalty * transfer)

    def smallest(self, largest: float, p: int, samples: float) -> float:
        """Penalties far below Q make an average depend on rare designs, or leave float64."""
        relative = float(self.penalty) / largest if largest > 0.0 else np.inf
        least = _LEAST_PENALTY if p == 1 or np.isinf(samples) else _LEAST_SAMPLED_PENALTY
        if not least <= relative <= 1.0 / _LEAST_PENALTY:
            raise ValueError(
                f"Ridge: penalty must lie between {least:g} and {1.0 / _LEAST_PENALTY:g} times the "
                f"largest eigenvalue of Q, {largest:g} (got {self.penalty:g}): for less, averages "
                "over designs of several dimensions depend on designs that are too rare to be "
                "drawn; for more, the fit does not move"
            )
        return min(relative, 1.0)


class RuleMoments(NamedTuple):
    """What the risk after an inner solver needs, for each of G tasks.

    Members:
        hessian: [B, G, p, p], A = E[S' Q S].
        noise: [B, G], E tr(Q T Qh T') / N: the share of the noise variance that the solver lets in.
        averaged_by: how the averages over designs were taken.
    """

    hessian: Array
    noise: Array
    averaged_by: str


def rule_designs(
    rule: InnerRule, Q: Array, samples: float, *, solves: int, extra: int = 0, seed: int = 0
) -> Designs:
    """Designs for functions of degree `solves` in S and `extra` more in Qh; tasks Q [G, p, p]."""
    degree = None if rule.degree is None else solves * (rule.degree + 1) + extra
    largest = float(np.linalg.eigvalsh(Q)[:, -1].max())
    smallest = rule.smallest(largest, Q.shape[-1], samples)
    found = designs(Q.shape[-1], samples, degree, tasks=len(Q), seed=seed, smallest=smallest)
    if found.rule != SOBOL:
        return found
    if solves > 2 and found.values.shape[1] < _FEWEST_DRAWN:
        raise ValueError(
            f"rule_designs: {len(Q)} tasks leave {found.values.shape[1]} drawn designs for each "
            f"average, and ratios of averages take {_FEWEST_DRAWN}: use fewer tasks, one gradient "
            "step, or samples=None"
        )
    if isinstance(rule, GradientSteps):
        _check_tail(found, solves * rule.steps, abs(rule.inner_lr) * largest)
    elif isinstance(rule, MatrixRate):
        _check_tail(found, solves, float(np.linalg.norm(rule.rate, 2)) * largest)
    elif isinstance(rule, Ridge):
        _check_rare(found, float(rule.penalty) / largest, ratios=solves > 2)
    return found


def _check_rare(points: Designs, penalty: float, *, ratios: bool) -> None:
    """Raises if averages of a ridge are decided by designs with a second moment near the penalty
    (relative to the largest eigenvalue of Q), which are hardly drawn.

    The smallest second moment of N rows in p dimensions is below s with a probability near
    (s N)^((N - p + 1) / 2), and there a solution is larger by 1 / s; `ratios` of averages compare
    that with the square of the penalty, averages with one.
    """
    rows, p = points.samples, points.values.shape[-1]
    chance = min((penalty * rows) ** (0.5 * (rows - p + 1.0)), 1.0) if rows >= p else 1.0
    drawn = chance * points.values.shape[0] * points.values.shape[1]
    if drawn < _FEWEST_RARE and chance / penalty > _NEGLIGIBLE * (penalty**2 if ratios else 1.0):
        raise ValueError(
            f"rule_moments: with a penalty of {penalty:.2g} times the largest eigenvalue of Q the "
            f"average over {rows:g} support rows is decided by designs of which {drawn:.1g} are "
            "drawn: use a larger penalty, or samples=None"
        )


def _check_tail(points: Designs, power: float, rate: float) -> None:
    """Raises if an average of |1 - rate z|^power over the largest second moment z is decided by
    values beyond those that were drawn, which no spread between randomisations shows.

    The largest z of N rows in p dimensions has a density that falls as exp(-N z / 2) times
    z^((N + p - 1) / 2); what lies beyond the largest drawn value is compared with what was drawn.
    """
    rows, p = points.samples, points.values.shape[-1]
    drawn = np.linalg.eigvalsh(points.values)[..., -1]
    beyond = np.geomspace(drawn.max(), 1e6 * drawn.max(), 2000)
    with np.errstate(divide="ignore"):
        logs = power * np.log(np.abs(1.0 - rate * beyond))
        bulk = power * np.log(np.abs(1.0 - rate * drawn))
    logs += 0.5 * rows * (1.0 - beyond) + 0.5 * (rows + p - 1.0) * np.log(beyond)
    average = float(np.logaddexp.reduce(bulk, axis=None)) - math.log(bulk.size)
    if logs.max() > math.log(_NEGLIGIBLE) + max(average, 0.0):
        at = float(beyond[logs.argmax()])
        raise ValueError(
            f"rule_moments: the average over {rows:g} support rows is decided by second moments "
            f"near {at:.2g} times their mean, and none beyond {drawn.max():.2g} is drawn: use "
            "fewer steps, a smaller inner_lr or more samples, or samples=None"
        )


def rule_moments(law: TaskLaw, rule: InnerRule, samples: float, *, seed: int = 0) -> RuleMoments:
    """A and the noise share of each task after `rule` on N fresh rows (Results 14 and 16).

    Up to three gradient steps go by the Wick rule, exactly in any dimension; the rest by `designs`.
    """
    if isinstance(rule, GradientSteps) and rule.steps <= _MOST_WICK_STEPS:
        rule.smallest(post_update(law).largest, law.p, samples)
        return _step_moments(averages(law), rule, samples)
    nodes = law.nodes()
    points = rule_designs(rule, nodes.Q, samples, solves=2, seed=seed)
    hessian = np.empty((len(points.values), *nodes.Q.shape))
    noise = np.empty(hessian.shape[:2])
    for b, part, design in each_block(nodes.Q, points):
        q = nodes.Q[part, None]
        transfer, keep, _ = rule.maps(design)
        hessian[b, part] = mean(points, _t(keep) @ q @ keep)
        heard = q @ transfer @ design @ _t(transfer)
        noise[b, part] = mean(points, np.trace(heard, axis1=-2, axis2=-1))
    sizes.check_finite(hessian, "rule_moments", "the risk after the inner solver")
    return RuleMoments(hessian, noise / samples, points.rule)


def _step_moments(law: Averages, rule: GradientSteps, samples: float) -> RuleMoments:
    """`rule_moments` of a few gradient steps: words S..S Q S..S and tr(Q S^i Qh S^j)."""
    steps, alpha = int(rule.steps), float(rule.inner_lr)
    word = "S" * steps
    hessian = law.each({word + "Q" + word: 1.0}, alpha, samples)
    words = {"|Q" + "S" * i + "h" + "S" * j: 1.0 for i in range(steps) for j in range(steps)}
    noise = alpha**2 / samples * law.scalar(words, alpha, samples)
    return RuleMoments(hessian[None], noise[None], "Wick rule")


def each_block(Q: Array, points: Designs) -> Iterator[tuple[int, slice, Array]]:
    """(randomisation b, tasks, Qh [g, J, p, p]) in blocks that fit in memory."""
    count, p = Q.shape[:2]
    roots = covariance_roots(Q)[:, None]
    size = max(1, _BLOCK // (len(points.weights) * p * p))
    for b, standard in enumerate(points.values):
        for start in range(0, count, size):
            part = slice(start, start + size)
            yield b, part, roots[part] @ standard @ _t(roots[part])


def mean(points: Designs, values: Array) -> Array:
    """The weighted average of values [g, J, ...] over designs."""
    return np.asarray(np.einsum("j,gj...->g...", points.weights, values))


def covariance_roots(Q: Array) -> Array:
    """Symmetric square roots of covariances [..., p, p]."""
    values, vectors = np.linalg.eigh(Q)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :]) @ _t(vectors))


def checked_law(law: TaskLaw, function: str) -> None:
    """Raises TypeError unless `law` is a task law."""
    if not isinstance(law, TaskLaw):
        raise TypeError(f"{function}: law must be a task law (got {type(law).__name__})")


def checked_theta(law: TaskLaw, theta: Any, function: str) -> tuple[Nodes, Array]:
    """The nodes of the law and theta as [p]."""
    checked_law(law, function)
    point = sizes.array(theta, function=function, name="theta")
    if point.shape != (law.p,):
        raise ValueError(f"{function}: theta must have shape {(law.p,)} (got {point.shape})")
    return law.nodes(), point


def single_count(value: Any, function: str, name: str = "samples") -> float:
    """One number of rows; infinite for None."""
    made = _arguments.counts(value, function=function, name=name, none=np.inf)
    if made.ndim:
        raise ValueError(f"{function}: {name} must be one number (got shape {made.shape})")
    return float(made)


def over_tasks(nodes: Nodes, values: Array) -> Array:
    """The law's average of values [..., G, *rest], with G the axis after randomisations [B]."""
    return np.asarray(np.einsum("g,bg...->b...", nodes.weights, values))


def spread(values: Array) -> tuple[Array, Array]:
    """Mean over randomisations [B, ...] and its standard error (0 for a deterministic rule)."""
    count = len(values)
    if count == 1:
        return values[0], np.zeros_like(values[0])
    return values.mean(0), values.std(0, ddof=1) / np.sqrt(count)


def _t(matrix: Array) -> Array:
    """Transposes of the last two axes."""
    return np.swapaxes(matrix, -1, -2)
