"""Result 1: closed forms, the general pairing rule and its reduced form."""

import itertools

import numpy as np
import pytest
import torch
from linear_problems import CUBE_Q1, FOURTH_Q1, Q1, Q2, SANDWICH_Q1_B, V_Q1, B

from innerloop.bounds import linear
from innerloop.bounds.linear.fourth import _wishart_rule
from innerloop.bounds.linear.wick import reduce_word, walks


def test_closed_forms():
    close = {"rtol": 1e-14, "atol": 1e-13}
    np.testing.assert_allclose(linear.design_noise(Q1), V_Q1, **close)
    np.testing.assert_allclose(linear.sandwich_moment(Q1, B, 5), SANDWICH_Q1_B, **close)
    np.testing.assert_allclose(linear.cube_moment(Q1, 5), CUBE_Q1, **close)
    np.testing.assert_allclose(
        linear.square_moment(Q1, 5), linear.sandwich_moment(Q1, np.eye(2), 5), **close
    )
    # E[xx'Qxx'] is the one-sample sandwich.
    np.testing.assert_allclose(
        linear.sandwich_moment(Q1, Q1, 1) - Q1 @ Q1 @ Q1, linear.design_noise(Q1), **close
    )


def test_wick_has_the_checked_values():
    close = {"rtol": 1e-13, "atol": 1e-12}
    np.testing.assert_allclose(linear.wick(Q1, [None] * 5, 5), FOURTH_Q1, **close)
    np.testing.assert_allclose(linear.wick(Q1, [None] * 4, 5), CUBE_Q1, **close)
    np.testing.assert_allclose(linear.wick(Q1, [None, B, None], 5), SANDWICH_Q1_B, **close)
    np.testing.assert_allclose(linear.wick(Q1, [B, None], 5), np.array(B) @ Q1, **close)
    np.testing.assert_allclose(linear.wick(Q1, [B], 5), B, **close)


@pytest.mark.parametrize("count", range(1, 7))
def test_number_of_walks(count):
    assert len(walks(count, ())) == np.prod(np.arange(1, 2 * count, 2))


@pytest.mark.parametrize("order", [*range(7), pytest.param(7, marks=pytest.mark.slow)])
@pytest.mark.parametrize("samples", [1, 2, 7])
def test_one_dimension(order, samples):
    q = 1.7
    expected = q**order * linear.scalar_moments(order, samples)[-1]
    got = linear.wick([[q]], [None] * (order + 1), samples)[0, 0]
    # Up to 135135 terms of one sign are added one by one.
    assert got == pytest.approx(expected, rel=1e-13 if order < 6 else 1e-11)
    assert linear.scalar_moments(3, samples)[2] == pytest.approx(1 + 2 / samples)


@pytest.mark.parametrize("samples", [1, 3, 6])
@pytest.mark.parametrize("order", [2, 3, 4, 5, 6])
def test_wick_against_gauss_quadrature(order, samples):
    # Qh = L F F' L' with a product Gauss rule for F that is exact to degree 8: no sampling error.
    rng = np.random.default_rng(order)
    factors, shares = _wishart_rule(2, float(samples))
    between = rng.normal(size=(order + 1, 2, 2))
    rows = np.linalg.cholesky(Q2) @ factors
    hats = rows @ np.swapaxes(rows, 1, 2)
    product = np.broadcast_to(between[0], hats.shape)
    for c in between[1:]:
        product = product @ hats @ c
    expected = np.einsum("k,kij->ij", shares, product)
    got = linear.wick(Q2, list(between), samples)
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-10 * np.abs(expected).max())


def test_wick_against_simulation():
    # 10 random words of order 3 to 5 in 3 dimensions, 90 entries; 5 s.e. has false-alarm
    # probability 90 * 6e-7 = 5e-5 for normal averages.
    rng = np.random.default_rng(7)
    frame = rng.normal(size=(3, 3))
    q = frame @ frame.T / 6.0 + 0.1 * np.eye(3)
    x = rng.standard_normal((100000, 4, 3)) @ np.linalg.cholesky(q).T
    hats = np.swapaxes(x, 1, 2) @ x / 4
    worst = 0.0
    for trial in range(10):
        order = 3 + trial % 3
        between = rng.normal(size=(order + 1, 3, 3))
        product = np.broadcast_to(between[0], hats.shape)
        for c in between[1:]:
            product = product @ hats @ c
        error = product.std(axis=0) / np.sqrt(len(x))
        z = (product.mean(axis=0) - linear.wick(q, list(between), 4)) / error
        worst = max(worst, np.abs(z).max())
    assert worst < 5.0


def test_kurtosis_against_enumeration():
    # z = +-1 has kurtosis 1: all 2^4 sign patterns of N = 2 rows in 2 dimensions.
    values, vectors = np.linalg.eigh(Q1)
    root = (vectors * np.sqrt(values)) @ vectors.T
    total = np.zeros((2, 2))
    for signs in itertools.product((-1.0, 1.0), repeat=4):
        x = np.reshape(signs, (2, 2)) @ root
        hat = x.T @ x / 2
        total += hat @ np.array(B) @ hat / 16
    np.testing.assert_allclose(linear.sandwich_moment(Q1, B, 2, kurtosis=1.0), total, atol=1e-13)
    np.testing.assert_allclose(
        linear.wick(Q1, [B, B, B], 2, kurtosis=1.0), np.array(B) @ total @ B, atol=1e-12
    )


def test_batches_and_sizes_broadcast():
    q = np.stack([Q1, Q2])
    sizes = np.array([[1.0], [4.0], [np.inf]])
    got = linear.wick(q, [None, B, None, None], sizes)
    assert got.shape == (3, 2, 2, 2)
    for i, size in enumerate((1, 4, None)):
        for j in range(2):
            np.testing.assert_allclose(got[i, j], linear.wick(q[j], [None, B, None, None], size))
    np.testing.assert_allclose(got[2], q @ np.array(B) @ q @ q)


@pytest.mark.parametrize("word", ["SQSBSQS", "SQS|SbSQ", "hBSQS", "SShBhS", "QSbQS|Sh", "|SS|h"])
def test_reduced_words_equal_the_general_rule(word):
    # Traces are written as sums over unit vectors, so that one open word remains.
    rng = np.random.default_rng(3)
    free, rate, samples = rng.normal(size=(2, 2)), 0.4, 3
    got = np.zeros((2, 2))

    def power(exponents):
        kept = np.eye(2) - rate * Q1
        return np.linalg.matrix_power(Q1, exponents[0]) @ np.linalg.matrix_power(kept, exponents[1])

    for t in reduce_word(word):
        left, right = power(t.left), power(t.right)
        matrix = {
            "power": left,
            "left": left @ free @ right,
            "right": left @ free.T @ right,
            "trace": np.trace(right @ free) * left,
        }[t.kind]
        scale = t.count * rate**t.rate_power / samples**t.sample_power
        got += scale * np.prod([np.trace(power(k)) for k in t.traces]) * matrix
    factors, shares = _wishart_rule(2, float(samples))
    rows = np.linalg.cholesky(Q1) @ factors
    hats = rows @ np.swapaxes(rows, 1, 2)
    letters = {"h": hats, "S": np.eye(2) - rate * hats, "Q": Q1, "B": free, "b": free.T}
    first, *traces = word.split("|")
    value = np.broadcast_to(np.eye(2), hats.shape)
    for letter in first:
        value = value @ letters[letter]
    for text in traces:
        closed = np.broadcast_to(np.eye(2), hats.shape)
        for letter in text:
            closed = closed @ letters[letter]
        value = value * np.trace(closed, axis1=1, axis2=2)[:, None, None]
    np.testing.assert_allclose(got, np.einsum("k,kij->ij", shares, value), atol=1e-12)


def test_tensors_are_accepted():
    got = linear.design_noise(torch.tensor(Q1, dtype=torch.float32, requires_grad=True))
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, V_Q1)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: linear.wick(Q1, [None, None], 0), "samples must be whole numbers"),
        (lambda: linear.wick(Q1, [None, None], 1.5), "samples must be whole numbers"),
        (lambda: linear.wick(Q1, [None] * 9, 5), "1 to 8 matrices"),
        (lambda: linear.wick(Q1, [], 5), "1 to 8 matrices"),
        (lambda: linear.wick(Q1, [np.eye(3), None], 5), "C0 must have shape"),
        (lambda: linear.wick([[1.0, 2.0], [2.0, 1.0]], [None, None], 5), "positive semidefinite"),
        (lambda: linear.wick([[1.0, 2.0], [0.0, 1.0]], [None, None], 5), "symmetric"),
        (lambda: linear.wick([[np.nan]], [None, None], 5), "finite"),
        (lambda: linear.sandwich_moment(Q1, B, 5, kurtosis=0.5), "kurtosis must be at least 1"),
        (lambda: linear.sandwich_moment(Q1, np.eye(3), 5), "B must have shape"),
        (lambda: linear.design_noise([1.0]), "shape"),
    ],
)
def test_bad_input(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def test_kinds_of_input():
    with pytest.raises(TypeError, match="real numbers"):
        linear.design_noise([["a"]])
    with pytest.raises(TypeError, match="real numbers"):
        linear.design_noise(Q1 + 0j)
    with pytest.raises(NotImplementedError, match="Result 36"):
        linear.wick(Q1, [None] * 4, 5, kurtosis=4.0)
