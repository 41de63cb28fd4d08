"""The constants of assumptions B1-B7 that every bound for smooth non-convex risks is made of."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from innerloop.bounds._arguments import Array
from innerloop.bounds._results import Assumption, Record

ConstantStanding = Literal["certified", "plug-in"]

MEANINGS = {
    "L_plus": "largest eigenvalue of a task's Hessian",
    "ell": "minus the smallest eigenvalue of a task's Hessian, at least 0",
    "rho": "Lipschitz constant of a task's Hessian",
    "G": "norm of a task's gradient",
    "G2": "root mean square over tasks of the gradient norms",
    "mean_gradient": "norm of the gradient of the joint objective",
    "sigma_g": "gradient noise of one sample (root mean square)",
    "sigma_H": "Hessian noise of one sample (root mean square, Frobenius norm)",
    "sigma_gamma": "spread of the tasks' gradients (root mean square)",
    "sigma_Hgamma": "spread of the tasks' Hessians (root mean square, operator norm)",
    "L_plus_s": "largest eigenvalue of the Hessian of one sample's loss",
    "ell_s": "minus the smallest eigenvalue of the Hessian of one sample's loss, at least 0",
    "rho_s": "Lipschitz constant of the Hessian of one sample's loss",
    "gap_drs": "joint objective at the start minus its infimum",
    "gap_maml": "MAML objective at the start minus its infimum",
}

_CONDITIONS = {
    "B1": ("every risk is bounded below and the initial gap is known", ("gap_drs", "gap_maml")),
    "B2": ("eigenvalues of every task's Hessian lie in [-ell, L_plus]", ("L_plus", "ell")),
    "B3": ("every task's Hessian is rho-Lipschitz", ("rho",)),
    "B4": ("gradients of the tasks are bounded by G (or, over tasks, by G2)", ("G", "G2")),
    "B5g": ("gradients differ between tasks by at most sigma_gamma (rms)", ("sigma_gamma",)),
    "B5H": ("Hessians differ between tasks by at most sigma_Hgamma (rms)", ("sigma_Hgamma",)),
    "B6g": ("one sample's gradient has noise at most sigma_g (rms)", ("sigma_g",)),
    "B6H": ("one sample's Hessian has noise at most sigma_H (rms)", ("sigma_H",)),
    "B7": (
        "B2 and B3 hold for (almost) every sample with L_plus_s, ell_s and rho_s",
        ("L_plus_s", "ell_s", "rho_s"),
    ),
}


@dataclasses.dataclass(frozen=True)
class Constants(Record):
    """What is known about a family of tasks on a region of parameters.

    Each constant is a bound that holds at every point of the region (the points visited, their
    adapted points and the segments between them). None means unknown: a result that needs it says
    so, and a result that can do without does.

    Args:
        L_plus, ell: curvature interval [-ell, L_plus] of the tasks' risks (B2), both at least 0.
        rho: Lipschitz constant of the Hessians (B3).
        G: bound on every task's gradient norm (B4).
        G2: bound on the root mean square over tasks of these norms; `G` if not given.
        mean_gradient: bound on the norm of the joint objective's gradient; `G2` if not given.
        sigma_gamma, sigma_Hgamma: spread of gradients and Hessians over tasks (B5).
        sigma_g, sigma_H: noise of one sample's gradient and Hessian, in every task (B6).
        L_plus_s, ell_s, rho_s: the same as L_plus, ell, rho for every single sample's loss (B7).
        gap_drs: R_drs at the starting point minus its infimum, or minus any lower bound of it.
        gap_maml: the same for the MAML objective; Result 22 derives it from `gap_drs` if needed.
        standing: "certified" for constants that analysis guarantees on the region, "plug-in" for
            estimates; one word for all of them or a mapping from names to words (others: plug-in).

    Raises:
        TypeError: a constant is not a number.
        ValueError: a constant is negative, NaN or infinite; an unknown name or word in `standing`.

    Source:
        Assumptions B1-B7 of docs/theory/nonconvex.md.

    >>> Constants(L_plus=1.0, ell=0.5, rho=2.0).L
    1.0
    """

    L_plus: float
    ell: float
    rho: float | None = None
    G: float | None = None
    G2: float | None = None
    mean_gradient: float | None = None
    sigma_gamma: float | None = None
    sigma_Hgamma: float | None = None
    sigma_g: float | None = None
    sigma_H: float | None = None
    L_plus_s: float | None = None
    ell_s: float | None = None
    rho_s: float | None = None
    gap_drs: float | None = None
    gap_maml: float | None = None
    standing: ConstantStanding | Mapping[str, ConstantStanding] = "plug-in"

    def __post_init__(self) -> None:
        for name in MEANINGS:
            value = getattr(self, name)
            if value is None and name not in ("L_plus", "ell"):
                continue
            try:
                number = float(value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise TypeError(f"Constants: {name} must be a number (got {value!r})") from error
            if not 0.0 <= number < math.inf:
                raise ValueError(
                    f"Constants: {name} must be finite and at least 0 (got {number:g}); "
                    "leave an unknown constant out"
                )
            object.__setattr__(self, name, number)
        if self.L <= 0.0:
            raise ValueError("Constants: L_plus or ell must be positive (got 0 and 0)")
        object.__setattr__(self, "standing", _standing_of(self.standing))

    @property
    def L(self) -> float:
        """Bound on the operator norm of a task's Hessian."""
        return max(self.L_plus, self.ell)

    def standing_of(self, name: str) -> ConstantStanding:
        """Whether constant `name` is certified or a plug-in estimate."""
        assert isinstance(self.standing, Mapping)
        return self.standing[name]

    def known(self) -> dict[str, float]:
        """The constants that are given, by name."""
        return {name: getattr(self, name) for name in MEANINGS if getattr(self, name) is not None}

    def scaled(self, **factors: float) -> Constants:
        """A copy whose named constants, which must be given, are multiplied by the factors."""
        known = self.known()
        for name in factors:
            if name not in known:
                raise ValueError(f"Constants: {name} must be given to be scaled")
        changes: dict[str, Any] = {name: known[name] * by for name, by in factors.items()}
        return dataclasses.replace(self, **changes)

    def explain(self) -> str:
        """Each constant with its meaning and standing in plain words."""
        return "\n".join(
            f"{name:14s} {value:<12.6g} {self.standing_of(name):10s} {MEANINGS[name]}"
            for name, value in self.known().items()
        )


def _standing_of(
    given: ConstantStanding | Mapping[str, ConstantStanding],
) -> dict[str, ConstantStanding]:
    """One word for each constant."""
    words = dict.fromkeys(MEANINGS, given) if isinstance(given, str) else dict(given)
    for name, word in words.items():
        if name not in MEANINGS:
            raise ValueError(f"Constants: standing names an unknown constant {name!r}")
        if word not in ("certified", "plug-in"):
            raise ValueError(
                f'Constants: standing of {name} must be "certified" or "plug-in" (got {word!r})'
            )
    return {**dict.fromkeys(MEANINGS, "plug-in"), **words}


def require(constants: Constants, name: str, *, function: str, result: str) -> float:
    """A constant that the result cannot do without.

    Raises:
        ValueError: it is not given.
    """
    value: float | None = getattr(constants, name)
    if value is None:
        raise ValueError(
            f"{function}: constant {name} ({MEANINGS[name]}) must be given; {result} needs it"
        )
    return value


def rms_gradient(constants: Constants, *, function: str, result: str) -> float:
    """The smallest given bound on the root mean square of the tasks' gradient norms.

    Raises:
        ValueError: neither G2 nor G is given.
    """
    known = [value for value in (constants.G2, constants.G) if value is not None]
    if not known:
        raise ValueError(f"{function}: constant G2 or G must be given; {result} needs it (B4)")
    return min(known)


def mean_gradient(constants: Constants, *, function: str, result: str) -> float:
    """The smallest given bound on the joint objective's gradient norm."""
    rms = rms_gradient(constants, function=function, result=result)
    return rms if constants.mean_gradient is None else min(rms, constants.mean_gradient)


def sample_curvature(constants: Constants, *, function: str, result: str) -> tuple[float, float]:
    """[L_plus_s, ell_s], widened to contain the tasks' own interval, which it must (B7)."""
    above = require(constants, "L_plus_s", function=function, result=result)
    below = require(constants, "ell_s", function=function, result=result)
    return max(above, constants.L_plus), max(below, constants.ell)


def sample_lipschitz(constants: Constants, *, function: str, result: str) -> float:
    """rho_s, at least rho where that is given (B7)."""
    value = require(constants, "rho_s", function=function, result=result)
    return value if constants.rho is None else max(value, constants.rho)


def contraction(above: float, below: float, inner_lr: Array) -> Array:
    """kappa: the largest norm of I - inner_lr H over Hessians with spectrum in [-below, above]."""
    return np.asarray(np.maximum(np.abs(1.0 - inner_lr * above), np.abs(1.0 + inner_lr * below)))


def task_kappa(constants: Constants, inner_lr: Array) -> Array:
    """kappa with the tasks' curvature."""
    return contraction(constants.L_plus, constants.ell, inner_lr)


def conditions(constants: Constants, *names: str) -> tuple[Assumption, ...]:
    """The named assumptions with the standing of the constants they rest on."""
    made = []
    for name in names:
        text, members = _CONDITIONS[name]
        given = [member for member in members if getattr(constants, member) is not None]
        estimated = any(constants.standing_of(member) == "plug-in" for member in given)
        label = name.rstrip("gH")
        values = ", ".join(f"{member} = {getattr(constants, member):.6g}" for member in given)
        made.append(
            Assumption(
                f"{label}: {text}" + (f" ({values})" if values else ""),
                "estimated" if estimated else "assumed",
            )
        )
    return tuple(made)


def overflow_reason(value: Any) -> str | None:
    """Why a bound is infinite, None if it is not."""
    if np.ndim(value) == 0 and math.isinf(float(value)):
        return "a power of kappa exceeds the floating-point range; the bound says nothing"
    return None
