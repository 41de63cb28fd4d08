"""Task laws: exactness of the published law's nodes, mixtures, samplers, bad input."""

import gc
import weakref

import numpy as np
import pytest
import torch
from linear_problems import Q1, W1

from innerloop.bounds import linear
from innerloop.bounds.linear.averages import averages
from innerloop.bounds.linear.laws import TaskLaw, haar_rotations


@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_nodes_give_the_closed_form(p):
    law = linear.published_law(p=p, beta=1.4)
    assert law.exact
    closed, summed = law.low_order(), TaskLaw.low_order(law)
    for a, b in zip(closed, summed, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-12, atol=1e-12)
    assert law.nodes() is law.nodes()
    assert law.nodes().weights.sum() == pytest.approx(1.0, abs=1e-13)


@pytest.mark.parametrize("p", [2, 3, 4])
def test_rotation_rule_is_exact_to_degree_four(p):
    # Moments of diag products of U diag(l) U': E[(U' a)_1^2 (U' b)_1^2] = (1 + 2 (a.b)^2) / (p (p +
    # 2)) for unit a, b, and with a second column by symmetry (Isserlis on the sphere).
    law = linear.published_law(p=p, beta=1.0)
    weights, q, eigenvalues, _ = law.nodes()
    a, b = np.random.default_rng(p).normal(size=(2, p))
    got = weights @ (np.einsum("i,gij,j->g", a, q, a) * np.einsum("i,gij,j->g", b, q, b))
    same = (a @ a * (b @ b) + 2 * (a @ b) ** 2) / (p * (p + 2))
    other = ((p + 1) * a @ a * (b @ b) - 2 * (a @ b) ** 2) / ((p - 1) * p * (p + 2))
    square = (eigenvalues**2).sum(axis=1)
    cross = eigenvalues.sum(axis=1) ** 2 - square
    expected = weights @ (same * square + other * cross)
    assert got == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_nodes_against_samples(p):
    # One-slot words Q^2 d d' Q: p^2 entries, 5 s.e. (false alarm below 1e-5).
    law = linear.published_law(p=p, beta=2.0)
    drawn = law.sample(np.random.default_rng(p), 100000)

    def word(nodes):
        d = nodes.theta - 0.3
        left = np.einsum("gij,gj->gi", nodes.Q @ nodes.Q, d)
        return left[:, :, None] * np.einsum("gij,gj->gi", nodes.Q, d)[:, None, :]

    exact = np.einsum("g,gij->ij", law.nodes().weights, word(law.nodes()))
    values = word(drawn)
    z = (values.mean(axis=0) - exact) / values.std(axis=0) * np.sqrt(len(values))
    assert np.abs(z).max() < 5.0


def test_published_law_check_values():
    # Published check values: per-coordinate minimisers, then risks at both and at 0.
    cases = [
        (1, 2.0, 0.3, 5, 1.3333333333333333, 1.1870206489675514, 0.5744, 0.569561927237, 0.888),
        (2, 1.0, 0.3, 5, 0.5833333333333333, 0.5658196312904831, 0.278411805556, 0.278309204451,
         0.3854),
        (3, 1.0, 0.7, 2, 0.5555555555555555, 0.5686985596707819, 0.3546697530864197,
         0.35457647426554634, 0.5292222222222221),
    ]  # fmt: skip
    for p, beta, rate, samples, drs, maml, at_drs, at_maml, at_zero in cases:
        law = linear.published_law(p=p, beta=beta)
        step = {"inner_lr": rate, "samples": samples}
        found = linear.minimisers(law, **step)
        np.testing.assert_allclose(found.drs, drs, rtol=1e-13)
        np.testing.assert_allclose(found.maml, maml, rtol=1e-13)
        points = np.stack([found.drs, found.maml, np.zeros(p)])
        np.testing.assert_allclose(
            linear.risk(law, points, **step), [at_drs, at_maml, at_zero], rtol=2e-12
        )


def test_published_law_in_one_dimension():
    beta, rate, n = 1.7, 0.45, 3
    m = beta ** np.arange(6) / np.arange(1, 7)
    found = linear.minimisers(linear.published_law(1, beta), inner_lr=rate, samples=n)
    assert found.drs[0] == pytest.approx(2 * beta / 3)
    scale = rate**2 * (1 + 2 / n)
    expected = (m[2] - 2 * rate * m[3] + scale * m[4]) / (m[1] - 2 * rate * m[2] + scale * m[3])
    assert found.maml[0] == pytest.approx(expected, rel=1e-13)


def test_more_than_four_dimensions_are_sampled():
    law = linear.published_law(p=6, beta=1.0)
    assert not law.exact
    assert len(law.nodes().weights) == 20000
    assert np.array_equal(law.nodes().Q, linear.published_law(p=6, beta=1.0).nodes().Q)
    gap = linear.modelling_error(law, inner_lr=0.5, samples=4)
    assert any(item.standing == "estimated" for item in gap.assumptions)
    # Results 2-4 use the closed form, so they agree with the sample only up to its error.
    sampled = TaskLaw.low_order(law)
    assert np.abs(sampled.vectors - law.low_order().vectors).max() > 0.0
    np.testing.assert_allclose(sampled.vectors, law.low_order().vectors, rtol=0.05)


@pytest.mark.parametrize("p", [2, 3, 5])
def test_haar_rotations(p):
    u = haar_rotations(np.random.default_rng(0), 20000, p)
    np.testing.assert_allclose(np.linalg.det(u), 1.0, atol=1e-12)
    np.testing.assert_allclose(
        u @ np.swapaxes(u, 1, 2), np.broadcast_to(np.eye(p), u.shape), atol=1e-12
    )
    assert np.abs(u.mean(axis=0)).max() < 5.0 / np.sqrt(20000 * p)  # 5 s.e. an entry
    assert np.abs((u**4).mean(axis=0) - 3 / (p * (p + 2))).max() < 5.0 * 0.4 / np.sqrt(20000)


def test_mixture_samples_its_tasks():
    drawn = W1.sample(np.random.default_rng(0), 10000)
    first = np.isclose(drawn.sigma2, 0.5)
    assert abs(first.mean() - 0.5) < 5 * 0.5 / 100  # 5 s.e.
    np.testing.assert_array_equal(drawn.Q[first][0], Q1)
    assert drawn.weights.sum() == pytest.approx(1.0)


def test_mixture_takes_tensors_and_ignores_order():
    nodes = W1.nodes()
    other = linear.Mixture(*(torch.from_numpy(v[::-1].copy()) for v in nodes))
    a, b = (linear.expansion(law, inner_lr=0.3, samples=5) for law in (W1, other))
    assert a.maml == pytest.approx(b.maml, rel=1e-14)


def test_sampler():
    def tasks(rng, size):
        drawn = W1.sample(rng, size)
        return drawn.Q, drawn.theta, drawn.sigma2

    law = linear.from_sampler(tasks, draws=40000, seed=1)
    assert not law.exact
    found = linear.expansion(law, inner_lr=0.3, samples=5)
    exact = linear.expansion(W1, inner_lr=0.3, samples=5)
    assert found.maml == pytest.approx(exact.maml, rel=0.05)
    assert len(law.sample(np.random.default_rng(0), 7).weights) == 7


@pytest.mark.parametrize(
    ("sampler", "error", "message"),
    [
        (None, TypeError, "sampler must be a function .* .got NoneType."),
        (W1, TypeError, "sampler must be a function .* .got Mixture."),
        *(
            (lambda rng, size, made=made: made, TypeError, f"must return three arrays, Q .*{got}.")
            for made, got in (
                (None, "got NoneType"),
                (1.0, "got float"),
                (np.ones((9, 1, 1)), "got ndarray"),
                ((np.ones((9, 1, 1)), np.ones((9, 1))), "got tuple of 2"),
                ([1, 2, 3, 4], "got list of 4"),
                ({"Q": 1, "theta": 2, "sigma2": 3}, "got dict"),
            )
        ),
        (lambda rng, size: W1.sample(rng, size), TypeError, "must return three .*got Nodes of 4"),
        (lambda rng, size: ("q", "t", "s"), TypeError, "from_sampler: Q must be real numbers"),
        (lambda rng, size: W1.sample(rng, size - 1)[1:], ValueError, "from_sampler: Q must have"),
    ],
)
def test_bad_samplers(sampler, error, message):
    with pytest.raises(error, match=message):
        linear.from_sampler(sampler, draws=9)


def test_kept_averages_die_with_the_law():
    law = linear.published_law(p=2)
    linear.expansion(law, inner_lr=0.3, samples=5)
    assert averages(law) is averages(law)
    gone = weakref.ref(law)
    del law
    gc.collect()
    assert gone() is None


MIXTURES = {
    "weights sum": (
        ([0.5, 0.6], np.eye(1)[None].repeat(2, 0), np.ones((2, 1)), [1, 1]),
        "sum to 1",
    ),
    "negative weight": (([1.5, -0.5], np.ones((2, 1, 1)), np.ones((2, 1)), [1, 1]), "sum to 1"),
    "indefinite": (([1.0], [[[1, 2], [2, 1]]], [[0, 0]], [1]), "Q of task 0 .*semidefinite"),
    "skew": (([1.0], [[[1, 2], [0, 1]]], [[0, 0]], [1]), "symmetric"),
    "negative noise": (([1.0], [[[1]]], [[0]], [-1.0]), "sigma2 of task 0"),
    "theta shape": (([1.0], [[[1]]], [[0, 1]], [1.0]), "theta must have shape"),
    "sigma2 shape": (([1.0], [[[1]]], [[0]], [1.0, 2.0]), "sigma2 must have shape"),
    "one axis": (([1.0], [[1]], [[0]], [1.0]), "3 axes"),
    "nan": (([1.0], [[[np.nan]]], [[0]], [1.0]), "finite"),
    "infinite": (([1.0], [[[1.0]]], [[np.inf]], [1.0]), "finite"),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_bad_mixtures(name):
    arguments, text = MIXTURES[name]
    with pytest.raises(ValueError, match=text):
        linear.Mixture(*arguments)


def test_bad_published_laws():
    for arguments in ({"p": 0}, {"p": 1.5}, {"beta": 0.0}, {"beta": -1.0}, {"beta": np.nan}):
        with pytest.raises(ValueError, match="published_law"):
            linear.published_law(**arguments)
    with pytest.raises(TypeError, match="published_law"):
        linear.published_law(p="two")
