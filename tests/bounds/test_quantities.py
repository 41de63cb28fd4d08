"""Numbers with a standing: what a computation uses decides what its result is worth, and the result
is still a float, an array, JSON and pickle."""

from __future__ import annotations

import copy
import json
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from innerloop import bounds
from innerloop.bounds import Assumption, Quantities, Quantity, plug_in
from innerloop.bounds._quantities import CERTAIN, Tracked, computed, quantity, tracked
from innerloop.bounds._standing import STANDINGS, weakest

NUMBERS = st.floats(-50, 50, allow_nan=False)
WORDS = st.sampled_from(STANDINGS)


def number(value, name, word):
    return Quantity(value, name=name, source="test", standing=word)


@st.composite
def leaves(draw):
    """(operand, plain value, names used): a float, a quantity or an array of one of them."""
    value = draw(NUMBERS)
    kind = draw(st.sampled_from(["plain", "int", "single", "several", "zero"]))
    if kind == "int":
        return round(value), round(value), {}
    if kind == "plain":
        return value, value, {}
    name, word = draw(st.sampled_from("abcdef")), draw(WORDS)
    used = {} if word == "certified" else {(name, word)}
    if kind == "several":
        values = np.array([value, draw(NUMBERS), 0.0])
        return quantity(values, name=name, source="test", standing=word), values, (word, used)
    value = 0.0 if kind == "zero" else value
    return number(value, name, word), value, (word, used)


UNARY = {
    "negative": (lambda x: -x, lambda x: -x),
    "absolute": (abs, np.abs),
    "sqrt": (lambda x: np.sqrt(np.abs(x)), lambda x: np.sqrt(np.abs(x))),
    "exp": (lambda x: np.exp(x / 100.0), lambda x: np.exp(x / 100.0)),
    "square": (lambda x: x**2, lambda x: x**2),
    "positive part": (lambda x: np.maximum(x, 0.0),) * 2,
    "choice": (lambda x: np.where(np.asarray(True), x, 1.0),) * 2,
    "sum": (np.sum,) * 2,
    "stacked": (lambda x: np.stack([x, x]).max(),) * 2,
}
BINARY = {
    "add": (lambda x, y: x + y,) * 2,
    "subtract": (lambda x, y: x - y,) * 2,
    "multiply": (lambda x, y: x * y,) * 2,
    "divide": (lambda x, y: x / (1.0 + abs(y)),) * 2,
    "power": (lambda x, y: (1.0 + abs(x)) ** (y / 50.0),) * 2,
    "maximum": (np.maximum,) * 2,
    "minimum": (np.minimum,) * 2,
    "hypot": (np.hypot,) * 2,
    "where": (lambda x, y: np.where(y > 0, x, y),) * 2,
    "where, condition only": (lambda x, y: np.where(np.maximum(y, 0.0) > 0, x, 2.0) + 0.0 * y,) * 2,
}


@st.composite
def computations(draw, depth=3):
    """(tracked result, plain result, standings used, ...) of a random expression."""
    if depth == 0 or draw(st.booleans()):
        operand, plain, used = draw(leaves())
        return operand, plain, [used] if used else []
    if draw(st.booleans()):
        made, expected, used = draw(computations(depth - 1))
        ours, theirs = UNARY[draw(st.sampled_from(sorted(UNARY)))]
        return ours(made), theirs(expected), used
    first, one, used = draw(computations(depth - 1))
    second, other, more = draw(computations(depth - 1))
    ours, theirs = BINARY[draw(st.sampled_from(sorted(BINARY)))]
    return ours(first, second), theirs(one, other), used + more


@settings(max_examples=400, deadline=None)
@given(computations())
def test_a_result_is_worth_the_weakest_of_what_was_used(made):
    result, plain, used = made
    np.testing.assert_array_equal(np.asarray(result), np.asarray(plain))
    if not used:
        assert not isinstance(result, (Quantity, Tracked))
        return
    assert isinstance(result, Quantity if np.ndim(plain) == 0 else Quantities)
    assert result.standing == weakest(word for word, _ in used)
    names = {name for _, pairs in used for name, _ in pairs}
    assert set(result.rests_on) == names
    for name, word in result.rests_on.items():
        assert word == weakest(own for _, pairs in used for key, own in pairs if key == name)


@settings(max_examples=100, deadline=None)
@given(computations(), st.integers(0, 5))
def test_no_way_out_and_in_raises_a_standing(made, way):
    """Copies, pickles, elements, lists and renamed numbers are worth what the number was."""
    result, _, used = made
    if not used:
        return
    ways = (
        lambda x: pickle.loads(pickle.dumps(x)),
        copy.deepcopy,
        copy.copy,
        lambda x: quantity(x, name="other", source="test", standing="certified"),
        lambda x: np.atleast_1d(x)[0],
        lambda x: quantity([x, x] if np.ndim(x) == 0 else x, name="several", source="test"),
    )
    again = ways[way](result)
    assert again.standing == result.standing
    assert again.rests_on == result.rests_on
    if np.ndim(result) == 0:
        renamed = Quantity(result, name="mine", source="me", standing="certified")
        assert renamed.standing == result.standing


def test_both_sides_of_a_maximum_count_and_a_factor_of_zero_too():
    sure, guess = number(2.0, "sure", "certified"), number(0.0, "guess", "plug-in")
    for made in (np.maximum(sure, guess), np.minimum(guess, sure), sure * guess, sure + guess,
                 np.where(True, sure, guess), np.hypot(sure, guess), sure**guess):  # fmt: skip
        assert made.standing == "plug-in"
        assert made.rests_on == {"guess": "plug-in"}


def test_everything_that_takes_a_float_takes_a_quantity():
    made = number(2.5, "x", "plug-in")
    assert isinstance(made, float)
    assert (repr(made), str(made), f"{made:.2f}") == ("2.5", "2.5", "2.50")
    assert json.loads(json.dumps({"x": made})) == {"x": 2.5}
    assert (made > 2, made == 2.5, made != 2.5, made < 1, bool(made)) == (True, True, False, False,
                                                                         True)  # fmt: skip
    assert type(made > 2) is bool
    assert (made == None, made == "a") == (False, False)  # noqa: E711
    assert (math.sqrt(made), float(made), int(made), round(made)) == (2.5**0.5, 2.5, 2, 2)
    assert type(float(made)) is float
    assert np.asarray(made).dtype == np.float64
    assert type(np.asarray(made)) is np.ndarray
    assert torch.tensor(made, dtype=torch.float64).item() == 2.5
    assert {made: 1}[2.5] == 1
    assert made.dtype == np.float64
    assert made.shape == ()
    assert isinstance(made, np.float64)
    assert (made.item(), made.tolist()) == (2.5, 2.5)
    assert divmod(made, 2) == (1.0, 0.5)
    with pytest.raises(ZeroDivisionError):
        made / 0.0
    with pytest.raises(TypeError):
        made + "a"
    assert sum([made, made]).standing == "plug-in"
    assert round(made, 1).standing == "plug-in"


@pytest.mark.parametrize(
    "method",
    ["round", "clip", "sum", "mean", "max", "copy", "ravel", "reshape", "astype", "repeat"],
)
def test_methods_of_numpy_scalars_keep_the_standing(method):
    arguments = {"clip": (0.0, 9.0), "reshape": (1, 1), "astype": (np.float32,), "repeat": (2,)}
    made = getattr(number(2.5, "x", "plug-in"), method)(*arguments.get(method, ()))
    expected = getattr(np.float64(2.5), method)(*arguments.get(method, ()))
    np.testing.assert_array_equal(np.asarray(made), np.asarray(expected))
    assert made.standing == "plug-in"


@pytest.mark.parametrize("other", [np.float64(2), np.float32(2), np.int64(2), np.ones(2), 2, 2.0])
def test_operators_with_numpy_numbers_on_either_side(other):
    made = number(3.0, "x", "plug-in")
    three = np.float64(3.0)
    for result, expected in (
        (made * other, three * np.asarray(other)), (other * made, three * np.asarray(other)),
        (made - other, three - np.asarray(other)), (other - made, np.asarray(other) - three),
        (made / other, three / np.asarray(other)), (other / made, np.asarray(other) / three),
        (other**made, np.asarray(other) ** three),
    ):  # fmt: skip
        np.testing.assert_array_equal(np.asarray(result), expected)
        assert result.standing == "plug-in"


def test_everything_that_takes_an_array_takes_quantities():
    made = quantity([[1.0, 2.0], [3.0, 4.0]], name="x", source="test", standing="plug-in")
    assert isinstance(made, np.ndarray)
    assert type(np.asarray(made)) is np.ndarray
    assert made.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert (repr(made), str(made)) == (repr(np.asarray(made)), str(np.asarray(made)))
    assert made.name == made[0].name == made[1, 1].name == "x"
    assert (made + 1).name == ""
    assert torch.as_tensor(np.asarray(made)).sum().item() == 10.0
    for part in (
        made[0], made[0, 1], made[made > 2], made.T, made.ravel(), made.sum(), made.mean(0),
        made @ made, made.dot(made), made.max(), made.cumsum(), made.astype(np.float32),
        np.linalg.eigvals(made), np.linalg.norm(made), np.concatenate([made, np.ones((2, 2))]),
        np.einsum("ij,j->i", made, np.ones(2)), made > 2, next(iter(made)), np.sort(made),
        made.copy(), pickle.loads(pickle.dumps(made)), np.interp(1.5, [1.0, 2.0], made[0]),
        np.divmod(made, 2.0)[0], np.unique(made, return_index=True)[0], made.clip(1.5, 2.5),
    ):  # fmt: skip
        assert part.standing == "plug-in", part
    assert isinstance(made.sum(), Quantity)
    assert (made > 2).tolist() == [[False, False], [True, True]]
    single = number(2.0, "y", "plug-in")
    for compared in (single < np.ones(2), np.ones(2) < single, single == made, made != single):
        assert compared.dtype == bool
        assert compared.standing == "plug-in"


def test_what_is_written_into_an_array_marks_it():
    base = tracked(np.zeros(3), CERTAIN)
    base[1] = number(1.0, "x", "plug-in")
    assert base._trust.standing == "plug-in"
    plain = np.zeros(3)
    plain += number(1.0, "x", "plug-in")
    assert plain.standing == "plug-in"
    target = tracked(np.zeros(3), CERTAIN)
    np.add(target, number(1.0, "x", "heuristic"), out=target)
    assert target._trust.standing == "heuristic"
    np.add.at(target, [0], number(1.0, "y", "plug-in"))
    assert target._trust.rests_on == {"x": "heuristic", "y": "plug-in"}
    with pytest.raises(TypeError, match="copyto would lose the standing"):
        np.copyto(np.zeros(3), quantity(np.ones(3), name="x", source="test"))
    np.copyto(target, quantity(np.ones(3), name="z", source="test", standing="plug-in"))
    assert target._trust.rests_on == {"x": "heuristic", "y": "plug-in", "z": "plug-in"}


def test_formulas_compute_with_arrays_throughout():
    """A single number stays an array, so that overflow and division follow NumPy's rules."""
    base = tracked(2.0, CERTAIN)
    with np.errstate(all="ignore"):
        for made in (
            base / 0.0, base**5000.0, np.maximum(base, 1.0), np.sum(base), base > 1.0,
            np.where(base > 1.0, base, 3.0), number(3.0, "x", "plug-in") * base,
        ):  # fmt: skip
            assert type(made) is Tracked
        assert np.isinf(base / 0.0)
        assert np.isinf(base**5000.0)


def test_standing_without_words_is_what_the_assumptions_imply():
    for word, expected in (
        ("checked", "assumed"), ("assumed", "assumed"), ("estimated", "plug-in"),
        ("violated", "heuristic"),
    ):  # fmt: skip
        met = (Assumption("something", word),)
        assert Quantity(1.0, name="x", source="s", assumptions=met).standing == expected
        assert quantity([1.0], name="x", source="s", assumptions=met).standing == expected
        sure = Quantity(1.0, name="x", source="s", assumptions=met, standing="certified")
        assert sure.standing == {"assumed": "certified"}.get(expected, expected)
    with pytest.raises(ValueError, match="standing must be one of certified, assumed"):
        Quantity(1.0, name="x", source="s", standing="proved")


def test_a_number_says_what_it_rests_on():
    made = number(1.0, "a", "plug-in") * number(2.0, "b", "assumed") * number(3.0, "c", "heuristic")
    text = made.explain()
    assert text.splitlines()[0] == "computed = 6"
    assert "heuristic: an assumption behind it is known to fail" in text
    assert "broken: c; estimated: a; given: b" in text
    found = Quantity(made, name="z", source="s").to_dict()
    assert found["standing"] == "heuristic"
    assert found["rests_on"] == {"a": "plug-in", "b": "assumed", "c": "heuristic", "z": "assumed"}
    assert json.loads(json.dumps(found)) == found


def test_marking_an_estimate():
    assert plug_in(0.5).standing == "plug-in"
    assert plug_in(torch.tensor([0.5, 1.0])).standing == "plug-in"
    assert plug_in(number(0.5, "x", "heuristic")).standing == "heuristic"
    with pytest.raises(TypeError, match="plug_in: value must be real numbers"):
        plug_in("big")
    assert bounds.plug_in is plug_in


def test_a_number_of_unknown_origin_is_its_givers_word():
    assert computed(1.0).standing == "assumed"
    assert computed(1.0, 2.0, None).standing == "assumed"
    assert computed(1.0, CERTAIN).standing == "certified"


METHODS = {
    "mean": (),
    "std": (),
    "var": (),
    "sum": (),
    "prod": (),
    "max": (),
    "min": (),
    "take": (0,),
    "conj": (),
    "conjugate": (),
    "round": (1,),
    "cumsum": (),
    "clip": (0.0, 1.0),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("single", [False, True])
def test_methods_of_arrays_keep_the_standing(name, single):
    values = 0.75 if single else np.array([0.75, -2.0, 1.5])
    known = quantity(values, name="a", source="test", standing="plug-in")
    found = getattr(known, name)(*METHODS[name])
    plain = getattr(np.float64(values) if single else values, name)(*METHODS[name])
    assert isinstance(found, Quantity | Quantities)
    assert found.standing == "plug-in"
    np.testing.assert_array_equal(np.asarray(found), plain)


@pytest.mark.parametrize("name", ["mean", "std", "var", "take"])
def test_methods_along_an_axis_keep_the_standing(name):
    known = quantity(np.arange(6.0).reshape(2, 3), name="a", source="test", standing="heuristic")
    arguments = ([0],) if name == "take" else ()
    found = getattr(known, name)(*arguments, axis=1)
    assert found.standing == "heuristic"
    np.testing.assert_array_equal(
        np.asarray(found), getattr(np.arange(6.0).reshape(2, 3), name)(*arguments, axis=1)
    )


WRITES = {
    "element": lambda x, q: x.__setitem__(0, q),
    "fill": lambda x, q: x.fill(q),
    "put": lambda x, q: x.put([0], q),
    "view": lambda x, q: x[:2].__setitem__(0, q),
    "view of a view": lambda x, q: x[1:][:1].fill(q),
}


@pytest.mark.parametrize("name", WRITES)
def test_what_is_written_weakens_the_whole(name):
    array = quantity(np.ones(3), name="a", source="test", standing="certified")
    WRITES[name](array, number(2.0, "q", "plug-in"))
    assert array.standing == "plug-in"
    assert 2.0 in np.asarray(array)
