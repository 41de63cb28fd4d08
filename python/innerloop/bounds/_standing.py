"""How far a number can be trusted: four words, and what it takes over from those it is made of."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple, get_args

Standing = Literal["certified", "assumed", "plug-in", "heuristic"]
STANDINGS: tuple[Standing, ...] = get_args(Standing)
_RANK = {word: rank for rank, word in enumerate(STANDINGS)}

MEANINGS: dict[Standing, str] = {
    "certified": "proved for the problem that the constants describe",
    "assumed": "holds if the numbers you gave hold",
    "plug-in": "computed from estimates: an informed guess, not a bound",
    "heuristic": "an assumption behind it is known to fail: not a bound, whatever the constants",
}


class Trust(NamedTuple):
    """A standing and the named numbers that it rests on, each with its own standing."""

    standing: Standing
    grounds: frozenset[tuple[str, Standing]]

    @property
    def rests_on(self) -> dict[str, Standing]:
        """The grounds by name."""
        return dict(sorted(self.grounds))

    def named(self, standing: Standing) -> list[str]:
        """The names of the grounds with this standing."""
        return [name for name, own in sorted(self.grounds) if own == standing]


CERTAIN = Trust("certified", frozenset())


def weakest(standings: Iterable[Standing]) -> Standing:
    """The weakest of some standings; "certified" for none, since nothing was used that could fail.

    Raises:
        ValueError: a word that is no standing.
    """
    found: Standing = "certified"
    for word in standings:
        if word not in _RANK:
            raise ValueError(f"standing must be one of {', '.join(STANDINGS)} (got {word!r})")
        if _RANK[word] > _RANK[found]:
            found = word
    return found


def trust_in(standing: Standing, rests_on: Mapping[str, Standing]) -> Trust:
    """The trust of a number with this standing that uses these others: never above any of them."""
    return Trust(weakest([standing, *rests_on.values()]), frozenset(rests_on.items()))


def joined(trusts: Iterable[Trust]) -> Trust:
    """The trust of a number that uses all of these."""
    found = CERTAIN
    for trust in trusts:
        found = _both(found, trust)
    return found


@functools.lru_cache(maxsize=4096)
def _both(first: Trust, second: Trust) -> Trust:
    """The trust of a number that uses these two."""
    if first == second or second == CERTAIN:
        return first
    if first == CERTAIN:
        return second
    grounds = dict(first.grounds)
    for name, word in second.grounds:
        grounds[name] = weakest([word, grounds.get(name, word)])
    return trust_in(weakest([first.standing, second.standing]), grounds)


def in_words(trust: Trust) -> str:
    """The standing with its meaning, and the names of what makes it no stronger."""
    parts = [f"{trust.standing}: {MEANINGS[trust.standing]}"]
    whats: dict[Standing, str] = {
        "heuristic": "broken",
        "plug-in": "estimated",
        "assumed": "given",
    }
    for word, what in whats.items():
        names = trust.named(word)
        if names:
            parts.append(f"{what}: {', '.join(names)}")
    return "; ".join(parts)
