"""SGD on finite families with exact gradient norms: what Results 25 and 30 are tested against."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import numpy as np

from innerloop.bounds._arguments import Array, scipy_module
from innerloop.bounds.nonconvex.bias import gradient_bias
from innerloop.bounds.nonconvex.constants import Constants
from innerloop.bounds.nonconvex.enumeration import exact_moments
from innerloop.bounds.nonconvex.families import Family
from innerloop.bounds.nonconvex.modelling import modelling_error_bound
from innerloop.bounds.nonconvex.sgd import best_rate, sgd_bound
from innerloop.bounds.nonconvex.smoothness import maml_smoothness
from innerloop.bounds.nonconvex.unbounded import adaptive_sgd_bound, relative_constants
from innerloop.bounds.nonconvex.variance import drs_variance, maml_variance

Method = Literal["drs", "maml", "maml, population", "maml, adaptive"]


class Outcome(NamedTuple):
    """A simulated mean over updates and runs, its standard error over runs, and its bound."""

    measured: float
    standard_error: float
    bound: float

    @property
    def ratio(self) -> float:
        """measured / bound."""
        return self.measured / self.bound


@dataclasses.dataclass(frozen=True)
class Setting:
    """Sizes of a simulated SGD run: N, N_o, K, B, T, runs and the inner rate."""

    inner_lr: float
    samples: int = 1
    queries: int = 1
    steps: int = 1
    batch: int = 2
    updates: int = 50
    runs: int = 40


def simulate(
    family: Family,
    method: Method,
    setting: Setting,
    rng: np.random.Generator,
    *,
    constants: Constants | None = None,
) -> Outcome:
    """Runs SGD on one objective and compares the mean squared gradient norm with Result 25.

    Args:
        family: the tasks; runs start at one random point.
        method: "drs"; "maml" (N-sample objective, unbiased); "maml, population" (biased, Result
            25 (d)); "maml, adaptive" (Result 30: steps follow the local smoothness, and the mean
            gradient norm itself is compared).
        setting: sizes.
        rng: draws everything.
        constants: instead of the family's certified constants.

    Returns:
        Outcome.

    Cost:
        `updates` times `runs` exact gradients.
    """
    start = rng.standard_normal(family.x.shape[-1])
    known = family.constants() if constants is None else constants
    size = None if method == "maml, population" else setting.samples
    exact: dict[str, Any] = {"inner_lr": setting.inner_lr, "samples": size, "steps": setting.steps}
    if method == "drs":
        exact = {"inner_lr": 0.0, "samples": None}
    gap = float(exact_moments(family, start, **exact).value)  # both losses are at least 0
    if method == "maml, adaptive":
        bound, step = _adaptive(family, known, setting, gap)
    else:
        bound, step = _constant(known, method, setting, gap)
    theta = np.tile(start, (setting.runs, 1))
    total = np.zeros(setting.runs)
    for _ in range(setting.updates):
        square = (exact_moments(family, theta, **exact).gradient ** 2).sum(-1)
        total += np.sqrt(square) if method == "maml, adaptive" else square
        theta = theta - step(theta)[:, None] * _draw(family, theta, method, setting, rng)
    total /= setting.updates
    error = float(total.std(ddof=1) / np.sqrt(setting.runs))
    return Outcome(float(total.mean()), error, bound)


def _constant(known: Constants, method: Method, setting: Setting, gap: float) -> Any:
    """Bound and step of Result 25 at its best constant rate."""
    inner: dict[str, Any] = {"inner_lr": setting.inner_lr, "steps": setting.steps}
    if method == "drs":
        smoothness: float = known.L
        variance = drs_variance(known, samples=setting.samples + setting.queries)
    else:
        size = None if method == "maml, population" else setting.samples
        smoothness = maml_smoothness(known, samples=size, **inner)
        variance = maml_variance(known, samples=setting.samples, queries=setting.queries, **inner)
    bias = None
    if method == "maml, population":
        bias = gradient_bias(known, inner_lr=setting.inner_lr, samples=setting.samples)
    given: dict[str, Any] = {
        "smoothness": smoothness,
        "gap": gap,
        "variance": variance,
        "updates": setting.updates,
        "batch": setting.batch,
        "bias": bias,
    }
    rate = float(best_rate(**given))
    return float(sgd_bound(**given)), lambda theta: np.full(len(theta), rate)


def _adaptive(family: Family, known: Constants, setting: Setting, gap: float) -> Any:
    """Bound and step of Result 30 with the best caution."""
    inner: dict[str, Any] = {
        "inner_lr": setting.inner_lr,
        "samples": setting.samples,
        "steps": setting.steps,
    }
    relative = relative_constants(known, queries=setting.queries, **inner)
    sizes: dict[str, Any] = {"gap": gap, "updates": setting.updates, "batch": setting.batch}
    bound = adaptive_sgd_bound(relative, **sizes)
    base, growth = relative.variance
    free = np.sqrt(base * setting.updates / (2.0 * gap * setting.batch * relative.least))
    caution = max(1.0 + growth / setting.batch, float(free))

    def step(theta: Array) -> Array:
        norms = np.linalg.norm(family.gradients(theta[:, None, :]), axis=-1)
        rms = np.sqrt(norms**2 @ family.weights)
        return np.asarray(1.0 / (caution * maml_smoothness(known, gradient_norm=rms, **inner)))

    return float(bound), step


def _draw(
    family: Family, theta: Array, method: Method, setting: Setting, rng: np.random.Generator
) -> Array:
    """One stochastic gradient per run, mean of `batch` random tasks: [runs, p]."""
    runs, p = theta.shape
    task = rng.choice(len(family.weights), runs * setting.batch, p=family.weights)
    sizes = (setting.samples, setting.queries)
    counts = [rng.multinomial(size, family.chances[task]) for size in sizes]
    # Every drawn task becomes a task of its own, so the family's code serves all of them at once.
    drawn = dataclasses.replace(
        family,
        x=family.x[task],
        y=family.y[task],
        chances=family.chances[task],
        weights=np.full(len(task), 1.0 / len(task)),
    )
    at = np.repeat(theta, setting.batch, axis=0)
    if method == "drs":
        slopes = drawn.gradients(at, (counts[0] + counts[1]) / sum(sizes))
        return np.asarray(slopes.reshape(runs, setting.batch, p).mean(1))
    support, query = (count / size for count, size in zip(counts, sizes, strict=True))
    jacobian = np.broadcast_to(np.eye(p), (len(task), p, p))
    for _ in range(setting.steps):
        jacobian = (np.eye(p) - setting.inner_lr * drawn.hessians(at, support)) @ jacobian
        at = at - setting.inner_lr * drawn.gradients(at, support)
    slopes = np.einsum("gpq,gp->gq", jacobian, drawn.gradients(at, query))
    return np.asarray(slopes.reshape(runs, setting.batch, p).mean(1))


def modelling_error(
    family: Family,
    inner_lr: float,
    rng: np.random.Generator,
    *,
    starts: int = 6,
    constants: Constants | None = None,
) -> Outcome:
    """The modelling error found by many minimisations, and its bound (Result 28).

    Candidates of both searches compete for both objectives, so that the two inequalities that the
    proof of the bound uses hold even if a search stops early.

    Args:
        family: the tasks.
        inner_lr: inner rate, any sign.
        rng: draws starting points.
        starts: starting points of each search.
        constants: instead of the family's certified constants.

    Returns:
        Outcome with standard error 0.

    Raises:
        ModuleNotFoundError: SciPy is not installed.

    Cost:
        2 `starts` BFGS minimisations in p dimensions.
    """
    optimize = scipy_module("optimize", function="modelling_error")
    known = family.constants() if constants is None else constants

    def objective(theta: Array, rate: float) -> tuple[float, Array]:
        made = exact_moments(family, theta, inner_lr=rate, samples=None)
        return float(made.value), made.gradient

    found = []
    for start in 2.0 * rng.standard_normal((starts, family.x.shape[-1])):
        for rate in (0.0, inner_lr):
            done = optimize.minimize(objective, start, args=(rate,), jac=True, method="BFGS")
            found.append(done.x)
    points = np.array(found)
    joint, maml = (
        exact_moments(family, points, inner_lr=rate, samples=None).value for rate in (0.0, inner_lr)
    )
    squares = (family.gradients(points[:, None, :]) ** 2).sum(-1) @ family.weights
    best_joint, best_maml = int(np.argmin(joint)), int(np.argmin(maml))
    bound = modelling_error_bound(
        known,
        inner_lr=inner_lr,
        square_at_maml=squares[best_maml],
        square_at_drs=squares[best_joint],
    )
    return Outcome(float(maml[best_joint] - maml[best_maml]), 0.0, float(bound))
