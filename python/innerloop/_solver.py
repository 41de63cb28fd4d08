"""How the inner loop moves parameters: a linear family of steps, as plain data, and which of them
the options of torch.optim.SGD are. The kernels run the same family (csrc/core/solver.h);
docs/math.md ("Solvers") derives its adjoint."""

from __future__ import annotations

import dataclasses

from innerloop._checks.messages import value_error
from innerloop._checks.options import check_flag, check_not_negative


@dataclasses.dataclass(frozen=True)
class Solver:
    """With G_s = g_s + decay phi_s and v_0 = 0:

    v_{s+1} = momentum v_s + G_s
    phi_{s+1} = phi_s - rate_s * (gradient_share G_s + velocity_share v_{s+1})
    """

    momentum: float = 0.0
    gradient_share: float = 1.0
    velocity_share: float = 0.0
    decay: float = 0.0
    text: str = dataclasses.field(init=False, compare=False)  # canonical

    def __post_init__(self) -> None:
        """Makes the text once: under torch.compile numbers may be symbols, which have none."""
        object.__setattr__(self, "text", ":".join(map(repr, self.numbers)))

    @classmethod
    def of(cls, text: str) -> Solver:
        """Returns what a text stands for."""
        return cls(*map(float, text.split(":")))

    @property
    def numbers(self) -> tuple[float, float, float, float]:
        """What the kernels are told."""
        return self.momentum, self.gradient_share, self.velocity_share, self.decay

    @property
    def has_velocity(self) -> bool:
        """Whether steps depend on those before."""
        return self.velocity_share != 0


GRADIENT_DESCENT = Solver()
# the arguments of `solver_of`, which are keywords wherever steps are taken
OPTIONS = ("momentum", "nesterov", "weight_decay")


def solver_of(op: str, *, momentum: float, nesterov: bool, weight_decay: float) -> Solver:
    """Returns the steps that options mean; `functional.meta_grad` says what each is.

    Raises:
        ValueError, TypeError: an option is not what it may be.
    """
    if nesterov is False and _is_zero(momentum) and _is_zero(weight_decay):
        return GRADIENT_DESCENT
    momentum = check_not_negative(op, "momentum", momentum)
    check_flag(op, "nesterov", nesterov)
    if nesterov and not momentum:
        value_error(op, "momentum", "be above 0 with nesterov=True", momentum)
    decay = check_not_negative(op, "weight_decay", weight_decay)
    if not momentum:
        return Solver(decay=decay)
    a, b = (1.0, momentum) if nesterov else (0.0, 1.0)
    return Solver(momentum, a, b, decay)


def _is_zero(value: object) -> bool:
    """Says whether a number is the usual one; also a symbol of torch.compile's."""
    return type(value) is float and value == 0


def in_words(*, momentum: float, nesterov: bool, weight_decay: float) -> str:
    """Returns what is not as usual: nothing, or a text that begins with a blank."""
    kind = "Nesterov momentum" if nesterov else "momentum"
    parts = [f"{kind} {momentum:g}"] if momentum else []
    parts += [f"weight decay {weight_decay:g}"] if weight_decay else []
    return f" with {' and '.join(parts)}" if parts else ""
