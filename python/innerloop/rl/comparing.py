"""`tradeoff`: which of two algorithms is better, and how surely, from a handful of seeds each."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from innerloop.rl import _checks

RULES = ("welch", "published")

Array = NDArray[np.float64]


def tradeoff(
    drs: ArrayLike,
    drs_se: ArrayLike,
    maml: ArrayLike,
    maml_se: ArrayLike,
    *,
    rule: str = "welch",
) -> Array:
    """Returns how surely joint training (DRS) is better than MAML, in [-1, 1]: +1 where DRS is.

    The value is 1 - 2 p with the sign of the better mean, p from Welch's one-sided test over seeds.
    The variance of an algorithm is that over its seeds plus the mean squared standard error within
    a seed:

        s^2 = var over seeds + mean of se^2,   v = s^2 / S,   t = (mean - mean') / sqrt(v + v'),
        nu = (v + v')^2 / (v^2 / (S - 1) + v'^2 / (S' - 1)),   value = 2 F_nu(t) - 1

    with F_nu the distribution function of Student's t. 0.9 means p = 0.05.

    Args:
        drs: [S, ...] returns (more is better), S seeds on the first axis, S at least 2; what
            follows (checkpoints, updates) is compared entry by entry.
        drs_se: [S, ...], standard error of each of them within its seed.
        maml, maml_se: [S', ...] likewise; S' may differ from S.
        rule: "welch", or "published" for the rule of the paper's public code, whose variance over
            seeds divides by S and whose nu has S where S^2 belongs, so that it is S times too
            small: its values are too close to 0.

    Returns:
        [...] float64. Where no variance is left it is the sign of the difference.

    Raises:
        ValueError: shapes do not fit, there are fewer than two seeds, a number is not finite, or a
            standard error is negative.
        TypeError: something else than real numbers.
        ModuleNotFoundError: SciPy is missing; the text says what to install.

    Cost: O(S) for each entry.

    Source: Welch 1947; Gao and Sener 2020, figures on meta reinforcement learning.

    Example:
        >>> drs, maml = [10.0, 11.0, 12.0], [1.0, 2.0, 3.0]
        >>> float(tradeoff(drs, [0.1] * 3, maml, [0.1] * 3).round(3))
        1.0
    """
    op = "rl.tradeoff"
    _checks.choice(op, "rule", rule, RULES)
    special = _checks.package(op, "scipy.special", "cli")
    ours, ours_var, count = _moments(op, "drs", drs, drs_se, rule)
    theirs, theirs_var, other = _moments(op, "maml", maml, maml_se, rule)
    if ours.shape != theirs.shape:
        _checks.refuse(
            op, "drs and maml", "agree in shape behind the seeds", f"{ours.shape}, {theirs.shape}"
        )
    total = ours_var / count + theirs_var / other
    power = 1 if rule == "published" else 2
    # relative to the larger variance, since squares of small ones leave the range of numbers
    scale = np.where(total > 0, total, 1.0)
    spread = sum(
        np.square(var / scale) / n**power / (n - 1)
        for var, n in ((ours_var, count), (theirs_var, other))
    )
    difference = ours - theirs
    known = total > 0
    nu = np.where(known, np.square(total / scale), 1.0) / np.where(known, spread, 1.0)
    t = difference / np.sqrt(scale)
    # the small tail keeps its digits, and exchanged arguments give exactly the opposite
    size = np.where(known, 1.0 - 2.0 * special.stdtr(nu, -np.abs(t)), 1.0)
    sure: Array = np.sign(difference) * size
    return sure


def _moments(
    op: str, name: str, values: ArrayLike, errors: ArrayLike, rule: str
) -> tuple[Array, Array, int]:
    """Returns mean and variance over the first axis, and its length."""
    found = np.asarray(values)
    if found.ndim == 0 or len(found) < 2:
        _checks.refuse(op, name, "hold at least two seeds on its first axis", found.shape)
    found = _checks.array(op, name, found, found.shape, "[S, ...]")
    error = _checks.array(op, f"{name}_se", errors, found.shape, f"{name}'s shape")
    for argument, array in ((name, found), (f"{name}_se", error)):
        if not np.isfinite(array).all():
            _checks.refuse(op, argument, "be finite", float(array[~np.isfinite(array)][0]))
    if (error < 0).any():
        _checks.refuse(op, f"{name}_se", "be at least 0", float(error.min()))
    ddof = 0 if rule == "published" else 1
    variance: Array = found.var(0, ddof=ddof) + np.square(error).mean(0)
    mean: Array = found.mean(0)
    return mean, variance, len(found)
