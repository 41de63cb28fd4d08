"""Linear regression in the language of the non-convex bounds (Result 31)."""

from __future__ import annotations

from typing import Any

import numpy as np

from innerloop.bounds._arguments import array, counts, covariances
from innerloop.bounds._quantities import computed
from innerloop.bounds._results import Assumption, Quantity
from innerloop.bounds._standing import CERTAIN, Standing
from innerloop.bounds.nonconvex._checks import semidefinite
from innerloop.bounds.nonconvex.constants import Constants, bound


def linear_constants(
    weights: Any, Q: Any, theta: Any, sigma2: Any, *, at: Any, gap_drs: float | None = None
) -> Constants:
    """The constants of linear regression tasks with Gaussian inputs, at the given parameters.

    Task g: x ~ N(0, Q_g), y = theta_g . x + noise of variance sigma2_g, loss (y - theta . x)^2 / 2.
    L_plus = max eigenvalue, ell = rho = 0. Gradients are unbounded in theta and single samples have
    unbounded curvature, so G, G2, the spreads and the noises are those at the points `at` only,
    and B7 is left out.

    Args:
        weights: [G], positive, sum 1.
        Q: [G, p, p], theta: [G, p], sigma2: [G]: the tasks, as `linear.Mixture` takes them.
        at: [p] or [points, p], where B4-B6 shall hold; the maximum over the points is returned.
        gap_drs: initial gap of the joint objective, if it is needed later.

    Returns:
        Constants: L_plus, ell and rho certified for these tasks and all parameters; the others
        "assumed", since they hold if training stays at those points. gap_drs as it was given.

    Raises:
        ValueError: shapes that do not fit, Q not positive semidefinite, negative variances.

    Assumes:
        Inputs are Gaussian given the task and noise is independent of them (D4). Not B4 and B7,
        which fail for Gaussian inputs: the constants hold at the parameters given. Checked: the
        tasks are a mixture.

    Source:
        Result 31 (own); the noise terms are Gaussian fourth moments (Result 1).

    >>> c = linear_constants([1.0], [[[2.0]]], [[1.0]], [0.5], at=[0.0])
    >>> c.L_plus, c.rho, c.G, c.sigma_gamma
    (2.0, 0.0, 2.0, 0.0)
    """
    function = "linear_constants"
    share = array(weights, function=function, name="weights", ndim=1)
    curvature = covariances(Q, function=function, name="Q")
    centre = array(theta, function=function, name="theta", ndim=2)
    noise = array(sigma2, function=function, name="sigma2", ndim=1)
    points = np.atleast_2d(array(at, function=function, name="at"))
    tasks, p = centre.shape
    fits = share.shape == noise.shape == (tasks,) and curvature.shape == (tasks, p, p)
    if not fits or points.shape[-1] != p:
        raise ValueError(
            f"{function}: weights [G], Q [G, p, p], theta [G, p], sigma2 [G] and at [..., p] must "
            f"fit (got {share.shape}, {curvature.shape}, {centre.shape}, {noise.shape}, "
            f"{points.shape})"
        )
    if (share <= 0.0).any() or abs(share.sum() - 1.0) > 1e-9 or (noise < 0.0).any():
        raise ValueError(
            f"{function}: weights must be positive with sum 1 and sigma2 at least 0; D4 needs it"
        )
    away = points[:, None, :] - centre  # [points, G, p]
    gradients = np.einsum("gij,mgj->mgi", curvature, away)
    mean = np.einsum("g,mgi->mi", share, gradients)
    squares = (gradients**2).sum(-1)  # [points, G]
    spread = share * ((gradients - mean[:, None]) ** 2).sum(-1)
    trace = np.einsum("gii->g", curvature)
    power = np.einsum("gij,gij->g", curvature, curvature)
    risk = (away * gradients).sum(-1) + noise
    mean_curvature = np.einsum("g,gij->ij", share, curvature)
    apart = np.linalg.norm(curvature - mean_curvature, ord=2, axis=(1, 2))
    proved = {"L_plus": np.linalg.eigvalsh(curvature).max(), "ell": 0.0, "rho": 0.0}
    at_points = {
        "G": np.sqrt(squares.max()),
        "G2": np.sqrt((squares @ share).max()),
        "mean_gradient": np.linalg.norm(mean, axis=-1).max(),
        "sigma_gamma": np.sqrt(spread.sum(-1).max()),
        "sigma_Hgamma": np.sqrt(share @ apart**2),
        "sigma_g": np.sqrt((trace * risk + squares).max()),
        "sigma_H": np.sqrt((trace**2 + power).max()),
    }
    data = share, curvature, centre, noise, points  # which may be estimates themselves

    def named(name: str, value: Any, standing: Standing) -> Quantity:
        number = computed(float(value), CERTAIN, *data)
        return Quantity(number, name=name, source="Result 31", standing=standing)

    return Constants(
        **{name: named(name, value, "certified") for name, value in proved.items()},
        **{name: named(name, value, "assumed") for name, value in at_points.items()},
        gap_drs=gap_drs,
    )


def quadratic_smoothness(Q: Any, *, inner_lr: Any, steps: Any = 1) -> Any:
    """A bound on the smoothness of the MAML objective of quadratic tasks, population inner steps.

    It is max over tasks and eigenvalues l of l (1 - a l)^2K, which is at most L for
    0 <= a <= 2 / L; equal to it if the tasks share that eigenvector.

    Args:
        Q: [G, p, p] or [p, p], Hessians of the tasks.
        inner_lr: number or array, any sign.
        steps: inner steps K.

    Returns:
        Quantity or float64 array.

    Raises:
        ValueError: Q not positive semidefinite, or an argument is out of range.

    Assumes:
        Every task's risk is quadratic. Checked: Q holds positive semidefinite matrices.

    Source:
        Result 31 (own).

    >>> quadratic_smoothness([[2.0, 0.0], [0.0, 0.5]], inner_lr=0.25)
    0.5
    """
    function = "quadratic_smoothness"
    spectrum = np.linalg.eigvalsh(semidefinite(Q, function=function, name="Q")).ravel()
    rate = array(inner_lr, function=function, name="inner_lr")[..., None]
    depth = counts(steps, function=function, name="steps")[..., None]
    value = (spectrum * (1.0 - rate * spectrum) ** (2.0 * depth)).max(axis=-1)
    return bound(
        value,
        name="smoothness of the MAML objective of quadratic tasks",
        source="Result 31",
        assumptions=(Assumption("every task's risk is quadratic with Hessian Q", "assumed"),),
    )
