"""The numbers of this package: floats that say whether they are certified, and how they arose."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from innerloop.bounds._quantities import computed
from innerloop.bounds._results import Assumption, Quantity, plain, quantity
from innerloop.bounds._standing import Standing, Trust, weakest

WithinScope = Literal["certified", "assumed", "plug-in"]
ESTIMATED = Trust("plug-in", frozenset())
Side = Literal["upper bound", "lower bound", "unbiased", "exact", "inflated", "maximum"]


@dataclasses.dataclass(frozen=True)
class Origin:
    """How an estimate arose.

    Args:
        trust: "certified" if the statement in `scope` holds with the stated confidence whatever
            the model and the data are; "assumed" if a caller vouches for it; "plug-in" if it holds
            for what was sampled only.
        side: on which side of the true constant the value lies: "upper bound", "lower bound",
            "unbiased", "exact", "inflated" (a lower bound times a factor) or "maximum" (the
            largest of sampled values, hence below the supremum).
        scope: what the statement is about, such as "these 16 tasks at these parameters".
        how: the method in one sentence.
        confidence: probability with which a certified statement holds; None where it has none.
        measured: the raw number before any inflation; None if it is the value itself.
        standard_error: of an unbiased estimate; None for bounds.
        cost: work spent, such as {"hvps": 560}: full-batch products or gradients, over all tasks.
    """

    trust: WithinScope
    side: Side
    scope: str
    how: str
    confidence: float | None = None
    measured: float | None = None
    standard_error: float | None = None
    cost: dict[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raw numbers are estimates wherever they are taken from here."""
        for name in ("measured", "standard_error"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, computed(value, ESTIMATED))


class Estimate(Quantity):
    """A float that carries its `Origin` besides what every `Quantity` carries.

    `trust` says what the number is worth within its scope, `standing` what it is worth as a
    constant of a bound, which asks for all tasks and all parameters visited: an upper bound that is
    certified for the tasks drawn is a plug-in there. So the standing is "plug-in" unless the maker
    says otherwise or a caller vouches for the number.

    Example:
        >>> origin = Origin("certified", "upper bound", "4 tasks", "the largest of 4 norms")
        >>> made = Estimate(2.0, name="gradient bound G", source="B4", origin=origin)
        >>> made / 4, made.trust, made.standing, (made / 4).standing
        (0.5, 'certified', 'plug-in', 'plug-in')
    """

    origin: Origin

    def __new__(
        cls,
        value: float,
        *,
        name: str,
        source: str,
        origin: Origin,
        assumptions: tuple[Assumption, ...] = (),
        reason: str | None = None,
        standing: Standing | None = None,
        rests_on: Mapping[str, Standing] | None = None,
    ) -> Estimate:
        """Makes the number."""
        word: Standing = "assumed" if origin.trust == "assumed" else "plug-in"
        made = super().__new__(
            cls,
            value,
            name=name,
            source=source,
            assumptions=assumptions,
            reason=reason,
            standing=standing or word,
            rests_on=rests_on,
        )
        assert isinstance(made, Estimate)
        made.origin = origin
        return made

    @property
    def trust(self) -> WithinScope:
        """What the number is worth within its scope: "certified", "assumed" or "plug-in"."""
        return self.origin.trust

    @property
    def confidence(self) -> float | None:
        """Probability with which a certified statement holds; None where there is none."""
        return self.origin.confidence

    def explain(self) -> str:
        """The number, its standing, its method and its assumptions in plain words."""
        origin = self.origin
        sure = f", confidence {origin.confidence:.6g}" if origin.confidence is not None else ""
        lines = [
            f"{self.name} = {float(self):.6g}  ({self.source})",
            f"  {origin.trust} {origin.side}{sure}, for {origin.scope}",
            f"  {origin.how}",
        ]
        if self.standing != origin.trust:
            lines.append(f"  in a bound: {self._standing_in_words()}")
        if origin.measured is not None:
            lines.append(f"  measured: {origin.measured:.6g}")
        if origin.standard_error is not None:
            lines.append(f"  standard error: {origin.standard_error:.3g}")
        if origin.cost:
            lines.append("  cost: " + ", ".join(f"{v} {k}" for k, v in origin.cost.items()))
        if self.reason is not None:
            lines.append(f"  {self.reason}")
        lines += [f"  {item.standing}: {item.text}" for item in self.assumptions]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Everything the number carries, ready for JSON."""
        return {**super().to_dict(), "origin": plain(self.origin)}

    def as_plug_in(self, scope: str, how: str | None = None) -> Estimate:
        """The same number used for more than it is certified for: what `scope` says.

        An upper bound of what was examined becomes a maximum over samples.
        """
        upper = self.origin.side == "upper bound"
        return Estimate(
            float(self),
            name=self.name,
            source=self.source,
            origin=dataclasses.replace(
                self.origin,
                trust="plug-in",
                side="maximum" if upper else self.origin.side,
                scope=scope,
                how=self.origin.how if how is None else how,
                confidence=None,
            ),
            assumptions=self.assumptions,
            reason=self.reason,
            standing=weakest(["plug-in", self.standing]),
        )

    def broken(self, why: str) -> Estimate:
        """The same number where the assumption that it belongs to is known to fail."""
        if self.standing == "heuristic":
            return self
        return Estimate(
            float(self),
            name=self.name,
            source=self.source,
            origin=self.origin,
            assumptions=self.assumptions,
            reason=f"{self.reason}; {why}" if self.reason else why,
            standing="heuristic",
        )


def measured_array(values: Any, name: str, source: str) -> Any:
    """Numbers measured one by one (per task, per step), as the estimates that they are."""
    return quantity(values, name=name, source=source, standing="plug-in")


def distinguishable(estimate: Estimate) -> bool:
    """Whether an unbiased estimate lies more than two standard errors above 0."""
    error = estimate.origin.standard_error
    return float(estimate) > 2.0 * (error or 0.0)
