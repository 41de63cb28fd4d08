"""The constants of assumptions B1-B7 that every bound for smooth non-convex risks is made of."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from innerloop.bounds._assumptions import Condition
from innerloop.bounds._carrying import trust_of
from innerloop.bounds._quantities import Tracked, given, tracked
from innerloop.bounds._results import Assumption, Quantity, Record, quantity
from innerloop.bounds._standing import CERTAIN, Standing, weakest

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

    A constant keeps the standing of the number given for it, and hands it on to every result whose
    formula mentions it, whether or not it decides the value. Plain numbers are the caller's word
    ("assumed"); `plug_in` marks estimates; "certified" are the constants that `Family.constants`
    and `linear_constants` prove, each in its own place and as they were returned.

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

    Members:
        standing: the standing of each constant that is given, by name.

    Raises:
        TypeError: a constant is not a number.
        ValueError: a constant is negative, NaN or infinite.

    Source:
        Assumptions B1-B7 of docs/theory/nonconvex.md.

    >>> c = Constants(L_plus=1.0, ell=0.5, rho=2.0)
    >>> c.L, c.standing_of("rho")
    (1.0, 'assumed')
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
    standing: dict[str, Standing] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        standing = {}
        for name in MEANINGS:
            value = getattr(self, name)
            if value is None and name not in ("L_plus", "ell"):
                continue
            made = _constant(name, value)
            object.__setattr__(self, name, made)
            standing[name] = made.standing
        object.__setattr__(self, "standing", standing)
        if self.L <= 0.0:
            raise ValueError("Constants: L_plus or ell must be positive (got 0 and 0)")

    @property
    def L(self) -> float:
        """Bound on the operator norm of a task's Hessian."""
        made: float = quantity(
            np.maximum(self.L_plus, self.ell), name="L", source="the larger of L_plus and ell"
        )
        return made

    def standing_of(self, name: str) -> Standing:
        """How far constant `name`, which must be given, can be trusted."""
        return self.standing[name]

    def known(self) -> dict[str, Quantity]:
        """The constants that are given, by name."""
        return {name: getattr(self, name) for name in self.standing}

    def scaled(self, **factors: float) -> Constants:
        """A copy whose named constants, which must be given, are multiplied by the factors.

        A certified constant becomes the caller's word: nobody proved the product.
        """
        known = self.known()
        for name in factors:
            if name not in known:
                raise ValueError(f"Constants: {name} must be given to be scaled")
        changes: dict[str, Any] = {name: known[name] * by for name, by in factors.items()}
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The numbers and, by name, their standings, ready for JSON."""
        numbers = {
            name: None if name not in self.standing else self.known()[name].item()
            for name in MEANINGS
        }
        return {**numbers, "standing": dict(self.standing)}

    def explain(self) -> str:
        """Each constant with its meaning and standing in plain words."""
        return "\n".join(
            f"{name:14s} {value:<12.6g} {self.standing_of(name):10s} {MEANINGS[name]}"
            for name, value in self.known().items()
        )


def _constant(name: str, value: Any) -> Quantity:
    """A constant with the standing of what was given for it."""
    try:
        if isinstance(value, (str, bytes, bool, np.bool_)):
            raise TypeError("text and truth values are none")
        number = float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"Constants: {name} must be a number (got {value!r})") from error
    if not 0.0 <= number < math.inf:
        raise ValueError(
            f"Constants: {name} must be finite and at least 0 (got {number:g}); "
            "leave an unknown constant out"
        )
    word = given(value, name).standing
    if word == "certified" and value.name != name:
        word = (
            "assumed"  # it was proved as something else: that it bounds this is the caller's word
        )
    source = getattr(value, "source", "") or "given by the caller"
    return Quantity(number, name=name, source=source, standing=word, rests_on={name: word})


class Numbers:
    """The constants as arrays that formulas compute with: what is read from it marks the result.

    Attributes are those of `Constants`: tracked arrays without axes, or None.
    """

    def __init__(self, constants: Constants) -> None:
        self._constants = constants

    def __getattr__(self, name: str) -> Any:
        """A constant; None if it is not given."""
        value = getattr(self._constants, name)
        return None if value is None else tracked(value, CERTAIN)

    @property
    def L(self) -> Any:
        """Bound on the operator norm of a task's Hessian."""
        return np.maximum(self.L_plus, self.ell)


def require(numbers: Numbers, name: str, *, function: str, result: str) -> Any:
    """A constant that the result cannot do without.

    Raises:
        ValueError: it is not given.
    """
    value = getattr(numbers, name)
    if value is None:
        raise ValueError(
            f"{function}: constant {name} ({MEANINGS[name]}) must be given; {result} needs it"
        )
    return value


def rms_gradient(numbers: Numbers, *, function: str, result: str) -> Any:
    """The smallest given bound on the root mean square of the tasks' gradient norms.

    Raises:
        ValueError: neither G2 nor G is given.
    """
    known = [value for value in (numbers.G2, numbers.G) if value is not None]
    if not known:
        raise ValueError(f"{function}: constant G2 or G must be given; {result} needs it (B4)")
    return np.minimum(known[0], known[-1])


def mean_gradient(numbers: Numbers, *, function: str, result: str) -> Any:
    """The smallest given bound on the joint objective's gradient norm."""
    rms = rms_gradient(numbers, function=function, result=result)
    mean = numbers.mean_gradient
    return rms if mean is None else np.minimum(rms, mean)


def sample_curvature(numbers: Numbers, *, function: str, result: str) -> tuple[Any, Any]:
    """[L_plus_s, ell_s], widened to contain the tasks' own interval, which it must (B7)."""
    above = require(numbers, "L_plus_s", function=function, result=result)
    below = require(numbers, "ell_s", function=function, result=result)
    return np.maximum(above, numbers.L_plus), np.maximum(below, numbers.ell)


def sample_lipschitz(numbers: Numbers, *, function: str, result: str) -> Any:
    """rho_s, at least rho where that is given (B7)."""
    value, rho = require(numbers, "rho_s", function=function, result=result), numbers.rho
    return value if rho is None else np.maximum(value, rho)


def contraction(above: Any, below: Any, inner_lr: Any) -> Any:
    """kappa: the largest norm of I - inner_lr H over Hessians with spectrum in [-below, above]."""
    return np.maximum(np.abs(1.0 - inner_lr * above), np.abs(1.0 + inner_lr * below))


def task_kappa(numbers: Numbers, inner_lr: Any) -> Any:
    """kappa with the tasks' curvature."""
    return contraction(numbers.L_plus, numbers.ell, inner_lr)


_CONDITION_OF: dict[Standing, Condition] = {
    "certified": "checked",
    "assumed": "assumed",
    "plug-in": "estimated",
    "heuristic": "violated",
}


def conditions(constants: Constants, value: Any, *names: str) -> tuple[Assumption, ...]:
    """The named assumptions with the standing of those of their constants that `value` uses."""
    made = []
    trust = trust_of(value)
    assert trust is not None
    used = {name: number for name, number in constants.known().items() if name in trust.rests_on}
    for name in names:
        text, members = _CONDITIONS[name]
        given = {member: number for member, number in used.items() if member in members}
        word = weakest(number.standing for number in given.values()) if given else "assumed"
        label = name.rstrip("gH")
        values = ", ".join(f"{member} = {number:.6g}" for member, number in given.items())
        made.append(
            Assumption(f"{label}: {text}" + (f" ({values})" if values else ""), _CONDITION_OF[word])
        )
    return tuple(made)


def bound(
    value: Any,
    *,
    name: str,
    source: str,
    assumptions: tuple[Assumption, ...] = (),
    reason: str | None = None,
) -> Any:
    """`quantity` of a value that a formula computed: its trust must have come all the way."""
    assert isinstance(value, Tracked), f"{name}: the formula lost the standing of its constants"
    return quantity(value, name=name, source=source, assumptions=assumptions, reason=reason)


def overflow_reason(value: Any) -> str | None:
    """Why a bound is infinite, None if it is not."""
    if np.ndim(value) == 0 and math.isinf(float(value)):
        return "a power of kappa exceeds the floating-point range; the bound says nothing"
    return None
