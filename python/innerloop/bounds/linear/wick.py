"""Expectations of words in the empirical second-moment matrix of Gaussian rows (Result 1).

Qh = X'X / N has two legs per factor. E[C0 Qh C1 ... Qh Ck] is a sum over the pairings of the 2k
legs: a pair is a factor Q, walking through the word from pair to pair gives one open product and
closed ones (traces), and every connected group of factors gives one power of N. `wick` does this
for any matrices C; `reduce_word` does it once per word for C made of powers of Q and D = I - rate Q
and at most one free matrix B, which is all that the averages of Results 7-11 need. It works with
centred factors Qh - Q, so that nothing cancels where an inner step solves a direction (D near 0).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from innerloop.bounds import _arguments
from innerloop.bounds._arguments import Array
from innerloop.bounds.linear import sizes
from innerloop.bounds.linear.moments import sandwich_moment

# A walk is a sequence of (segment, transposed); segments number the C matrices.
Walk = tuple[tuple[int, bool], ...]
Kind = Literal["power", "left", "right", "trace"]

_MOST_FACTORS = 7  # 135135 pairings


def wick(Q: Any, between: Sequence[Any], samples: Any, *, kurtosis: Any = None) -> Array:
    """Returns E[C0 Qh C1 Qh ... Qh Ck] for Qh = X'X / N, rows of X independent N(0, Q).

    Args:
        Q: [..., p, p], covariance of the rows; leading axes are a batch.
        between: the k + 1 matrices C0..Ck, each [..., p, p] or None for the identity.
        samples: N, [...] or a number; None for infinity (Qh = Q).
        kurtosis: as for `sandwich_moment`; words of at most two factors only.

    Returns:
        [..., p, p] float64.

    Raises:
        TypeError: not real numbers.
        ValueError: no matrix, more than 7 factors, a shape that does not fit, Q no covariance
            matrix, N below 1.
        NotImplementedError: a kurtosis with more than two factors; Result 36 estimates such
            averages from data.

    Cost:
        (2k - 1)!! walks, sharing their beginnings: 105 for k = 4, 10395 for k = 6 (about 0.3 s for
        one Q); a few matrix products each, over the batch.

    Assumes:
        Rows are independent and N(0, Q); with a kurtosis, Q^(1/2) times independent entries.
        Checked: Q is a covariance matrix.

    Source:
        Result 1 (Isserlis 1918; classical).

    >>> q = [[2.0, 0.5], [0.5, 1.0]]
    >>> wick(q, [None] * 5, 5).round(6)
    array([[127.876,  48.384],
           [ 48.384,  31.108]])
    """
    q = sizes.covariances(Q, function="wick", name="Q")
    n = _arguments.counts(samples, function="wick", name="samples", none=np.inf)
    if not 1 <= len(between) <= _MOST_FACTORS + 1:
        raise ValueError(
            f"wick: between must have 1 to {_MOST_FACTORS + 1} matrices (got {len(between)})"
        )
    p = q.shape[-1]
    matrices = []
    for i, item in enumerate(between):
        c = np.eye(p) if item is None else sizes.array(item, function="wick", name=f"C{i}")
        if c.ndim < 2 or c.shape[-2:] != (p, p):
            raise ValueError(f"wick: C{i} must have shape [..., {p}, {p}] (got {c.shape})")
        matrices.append(c)
    factors = len(matrices) - 1
    if kurtosis is not None and factors >= 2:
        if factors > 2:
            raise NotImplementedError(
                "wick: a kurtosis is known for words of at most two factors; "
                "linear.estimate estimates longer ones from data (Result 36)"
            )
        inner = sandwich_moment(q, matrices[1], n, kurtosis=kurtosis)
        return np.asarray(matrices[0] @ inner @ matrices[2])
    with np.errstate(over="ignore", invalid="ignore"):
        made = _sum_of_walks(q, matrices, n)
    sizes.check_finite(made, "wick", "the expectation")
    return made


def _sum_of_walks(q: Array, matrices: list[Array], n: Array) -> Array:
    """The sum over pairings, grouped by open walk."""
    factors = len(matrices) - 1
    flipped = [np.swapaxes(c, -1, -2) for c in matrices]
    after_pair = {
        (i, turned): q @ c
        for turned, group in ((False, matrices), (True, flipped))
        for i, c in enumerate(group)
    }
    products: dict[Walk, Array] = {}
    traces: dict[Walk, Array] = {}

    def product(walk: Walk) -> Array:
        found = products.get(walk)
        if found is None:
            step = after_pair[walk[-1]]
            found = step if len(walk) == 1 else product(walk[:-1]) @ step
            products[walk] = found
        return found

    def trace(walk: Walk) -> Array:
        found = traces.get(walk)
        if found is None:
            found = np.asarray(np.trace(product(walk), axis1=-2, axis2=-1))
            traces[walk] = found
        return found

    weights: dict[Walk, Array] = {}
    for path, loops, groups in walks(factors, ()):
        weight = n ** float(groups - factors) if groups < factors else np.ones_like(n)
        for loop in loops:
            weight = weight * trace(loop)
        weights[path] = weights[path] + weight if path in weights else weight
    total = np.zeros_like(q)
    for path, weight in weights.items():
        tail = product(path[1:]) if len(path) > 1 else np.eye(q.shape[-1])
        total = total + weight[..., None, None] * tail
    return np.asarray(matrices[0] @ total)


Walks = list[tuple[Walk, list[Walk], int]]


def walks(open_factors: int, trace_factors: tuple[int, ...], centred: bool = False) -> Walks:
    """Every pairing of a word times traces of words, as (open walk, closed walks, groups).

    Centred factors Qh - Q have no pairing of a factor's two legs with each other.

    Segments are numbered through: 0..open_factors around and between the factors of the open word,
    then for each trace one segment after each of its factors (the last closes the circle). A walk
    lists the segments it passes; before each one but the first of the open walk stands a factor Q.
    Kept between calls up to six factors; seven take 100 MB.
    """
    if open_factors + sum(trace_factors) <= 6:
        return _kept_walks(open_factors, trace_factors, centred)
    return _all_walks(open_factors, trace_factors, centred)


def _all_walks(open_factors: int, trace_factors: tuple[int, ...], centred: bool) -> Walks:
    """What `walks` returns."""
    leaving: dict[int, tuple[int, bool, int]] = {}  # leg -> (segment, transposed, next leg or -1)
    for i in range(open_factors):
        leaving[2 * i + 1] = (i + 1, False, 2 * i + 2 if i + 1 < open_factors else -1)
        leaving[2 * i] = (i, True, 2 * i - 1)
    first, segment = open_factors, open_factors + 1
    for length in trace_factors:
        for i in range(length):
            follower = (i + 1) % length
            leaving[2 * (first + i) + 1] = (segment + i, False, 2 * (first + follower))
            leaving[2 * (first + follower)] = (segment + i, True, 2 * (first + i) + 1)
        first, segment = first + length, segment + length
    found = []
    for mate in _pairings(2 * first, centred):
        unseen = set(range(2 * first))
        path = ((0, False), *_walk(0, mate, leaving, unseen)) if open_factors else ((0, False),)
        loops = []
        while unseen:
            loops.append(_walk(min(unseen), mate, leaving, unseen))
        found.append((path, loops, _groups(mate)))
    return found


_kept_walks = lru_cache(maxsize=64)(_all_walks)


def _walk(
    leg: int, mate: Sequence[int], leaving: dict[int, tuple[int, bool, int]], unseen: set[int]
) -> Walk:
    """Follows pairs and segments from `leg` to the end of the word or back to the start."""
    passed = []
    start = leg
    while True:
        arrived = mate[leg]
        unseen -= {leg, arrived}
        segment, transposed, leg = leaving[arrived]
        passed.append((segment, transposed))
        if leg in (-1, start):
            return tuple(passed)


def _pairings(legs: int, centred: bool) -> Iterator[list[int]]:
    """Every perfect matching of the legs, as the partner of each leg."""
    mate = [-1] * legs

    def extend() -> Iterator[list[int]]:
        if -1 not in mate:
            yield list(mate)
            return
        first = mate.index(-1)
        for other in range(first + 1, legs):
            if mate[other] == -1 and not (centred and other == first ^ 1):
                mate[first], mate[other] = other, first
                yield from extend()
                mate[first] = mate[other] = -1

    yield from extend()


def _groups(mate: Sequence[int]) -> int:
    """Connected groups of factors: circles made of pairs and of the two legs of a factor."""
    unseen = set(range(len(mate) // 2))
    groups = 0
    while unseen:
        groups += 1
        leg = start = 2 * min(unseen)
        while True:
            unseen.discard(leg // 2)
            leg = mate[leg ^ 1]
            if leg == start:
                break
    return groups


# Q^a (I - rate Q)^b as (a, b); all of these commute.
Power = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Term:
    """count * rate^rate_power / N^sample_power * prod_k tr(P_k) * (a matrix).

    The P are powers of Q and D = I - rate Q. The matrix is `left` ("power"), left B right ("left"),
    left B' right ("right") or tr(right B) left ("trace").
    """

    kind: Kind
    left: Power
    right: Power
    traces: tuple[Power, ...]
    rate_power: int
    sample_power: int
    count: int


@lru_cache(maxsize=256)
def reduce_word(word: str) -> tuple[Term, ...]:
    """The expectation of a word as powers of Q and D, traces of such powers and one free matrix.

    With Qh = Q + C and S = D - rate C every word is a sum of words in the centred C, and only
    pairings between different factors are left: no term is larger than the scatter that it
    describes.

    Args:
        word: letters h (Qh), S (I - rate Qh), Q, B and b (B transposed; at most one of the two in
            all). After each "|" follows a word whose trace multiplies the first; "|SS" alone is
            tr(S^2) times the identity.

    Returns:
        The terms, merged. E[SQS] is `reduce_word("SQS")`; every Qh is the same matrix.
    """
    merged: Counter[tuple[Kind, Power, Power, tuple[Power, ...], int, int]] = Counter()
    for plain, rate_power in _centred(word):
        parts = plain.split("|")
        pieces = [part.split("c") for part in parts]
        segments = [_segment(text) for text in pieces[0]]
        constants = []
        for piece in pieces[1:]:
            if len(piece) == 1:
                constants.append(_segment(piece[0]))
            else:
                segments += [_segment(text) for text in [*piece[1:-1], piece[-1] + piece[0]]]
        lengths = tuple(len(piece) - 1 for piece in pieces[1:] if len(piece) > 1)
        factors = len(pieces[0]) - 1 + sum(lengths)
        for path, loops, groups in walks(len(pieces[0]) - 1, lengths, centred=True):
            matrix = _along(path, segments, first_pair=False)
            closed = constants + [_along(loop, segments, first_pair=True) for loop in loops]
            traces = sorted(left for left, slot, _ in closed if not slot)
            slots = [_product(left, right) for left, slot, right in closed if slot]
            left, slot, right = matrix
            kind: Kind = "left" if slot == "B" else "right" if slot else "power"
            if slots:
                kind, right = "trace", slots[0]
            key = (kind, left, right, tuple(traces), rate_power, factors - groups)
            merged[key] += (-1) ** rate_power
    return tuple(Term(*key, count) for key, count in sorted(merged.items()) if count)


def _centred(word: str) -> list[tuple[str, int]]:
    """The word with each h replaced by Q or c, each S by D or c, and how many S became c."""
    options = {"h": (("Q", 0), ("c", 0)), "S": (("D", 0), ("c", 1))}
    done = [("", 0)]
    for letter in word:
        choices = options.get(letter, ((letter, 0),))
        done = [(text + more, power + up) for text, power in done for more, up in choices]
    return done


Segment = tuple[Power, str, Power]


def _product(*powers: Power) -> Power:
    """The powers' product."""
    return sum(a for a, _ in powers), sum(b for _, b in powers)


def _segment(text: str) -> Segment:
    """Letters Q, D, B, b as (power before the free matrix, which one, power after)."""
    place = max(text.find("B"), text.find("b"))
    before, slot, after = (text, "", "") if place < 0 else text.partition(text[place])
    return (before.count("Q"), before.count("D")), slot, (after.count("Q"), after.count("D"))


def _along(walk: Walk, segments: list[Segment], *, first_pair: bool) -> Segment:
    """The product of the segments of a walk with a factor Q before each (but maybe the first)."""
    left, slot, right = (0, 0), "", (0, 0)
    for step, (index, transposed) in enumerate(walk):
        pair = (1 if step or first_pair else 0, 0)
        before, own, after = segments[index]
        if transposed:
            before, own, after = (after, own.swapcase(), before) if own else (before, "", after)
        if slot:
            right = _product(right, pair, before)
        else:
            left, slot, right = _product(left, pair, before), own, after
    return left, slot, right
