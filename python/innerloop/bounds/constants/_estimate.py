"""The numbers of this package: floats that say whether they are certified, and how they arose."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from innerloop.bounds._results import Assumption, Quantity, plain

Trust = Literal["certified", "plug-in"]
Side = Literal["upper bound", "lower bound", "unbiased", "exact", "inflated", "maximum"]


@dataclasses.dataclass(frozen=True)
class Origin:
    """How an estimate arose.

    Args:
        trust: "certified" if the statement in `scope` holds with the stated confidence whatever
            the model and the data are; "plug-in" if it holds for what was sampled only.
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

    trust: Trust
    side: Side
    scope: str
    how: str
    confidence: float | None = None
    measured: float | None = None
    standard_error: float | None = None
    cost: dict[str, int] = dataclasses.field(default_factory=dict)


class Estimate(Quantity):
    """A float that carries its `Origin` besides what every `Quantity` carries.

    Example:
        >>> origin = Origin("plug-in", "maximum", "4 tasks", "the largest of 4 norms")
        >>> made = Estimate(2.0, name="gradient bound G", source="B4", origin=origin)
        >>> made / 4, made.origin.trust
        (0.5, 'plug-in')
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
    ) -> Estimate:
        """Makes the number."""
        made = super().__new__(
            cls, value, name=name, source=source, assumptions=assumptions, reason=reason
        )
        assert isinstance(made, Estimate)
        made.origin = origin
        return made

    def __getnewargs_ex__(self) -> tuple[tuple[float], dict[str, Any]]:
        """What pickle and copy pass to the constructor."""
        value, others = super().__getnewargs_ex__()
        return value, {**others, "origin": self.origin}

    @property
    def trust(self) -> Trust:
        """ "certified" or "plug-in"."""
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
        )
