"""Result 11: finite-sample guarantees, their constants, and the exact fourth moments."""

import itertools
import math

import numpy as np
import pytest
from linear_problems import (
    GUARANTEE_DRS,
    GUARANTEE_MAML,
    KAPPA_H_DRS,
    KAPPA_W_DRS,
    KAPPA_W_MAML,
    STEP,
    TRACE_DRS,
    TRACE_MAML,
    W1,
    draw_sides,
    random_mixture,
    scores,
)
from scipy.integrate import trapezoid

from innerloop.bounds import linear
from innerloop.bounds.linear import exponential, fourth
from innerloop.bounds.linear.scores import estimators

BOTH = ["drs", "maml"]


def test_check_values():
    joint = linear.guarantee_constants(W1, method="drs", **STEP)
    maml = linear.guarantee_constants(W1, method="maml", **STEP)
    assert joint.kappa_weight == pytest.approx(KAPPA_W_DRS, rel=1e-13)
    assert joint.kappa_hessian == pytest.approx(KAPPA_H_DRS, rel=1e-13)
    assert joint.score_trace == pytest.approx(TRACE_DRS, rel=1e-13)
    assert maml.kappa_weight == pytest.approx(KAPPA_W_MAML, rel=1e-13)
    assert maml.score_trace == pytest.approx(TRACE_MAML, rel=1e-13)
    assert (maml.offset, maml.kappa_hessian) == (0.0, 1.0)
    for method, expected in (("drs", GUARANTEE_DRS), ("maml", GUARANTEE_MAML)):
        got = linear.guarantee(W1, method=method, **STEP, tasks=800, delta=0.1)
        assert got == pytest.approx(expected, rel=1e-13)
        assert got.reason is None
    assert "kappa_weight" in joint.explain()


def test_vacuous_bounds_say_why():
    bound = linear.guarantee(W1, method="maml", **STEP, tasks=31, delta=0.1)
    assert bound == math.inf
    assert "Result 11 needs more than 31.8" in bound.reason
    assert linear.guarantee(W1, method="maml", **STEP, tasks=32, delta=0.1) < math.inf
    grid = linear.guarantee(W1, method="drs", **STEP, tasks=[2, 10, 18, 19, 50], delta=0.1)
    np.testing.assert_array_equal(np.isinf(grid), [True, True, True, False, False])


def test_shapes_and_monotonicity():
    rates = np.array([0.1, 0.3])[:, None, None]
    tasks, deltas = np.array([100, 400, 1600])[:, None], np.array([0.01, 0.1])
    for method in BOTH:
        grid = linear.guarantee(
            W1, method=method, inner_lr=rates, samples=5, tasks=tasks, delta=deltas
        )
        assert grid.shape == (2, 3, 2)
        assert (np.diff(grid, axis=1) < 0.0).all()  # more tasks, smaller bound
        assert (np.diff(grid, axis=2) < 0.0).all()  # less certain, smaller bound
        best = linear.guarantee(
            W1, method=method, inner_lr=rates, samples=5, tasks=tasks, delta=deltas, split=None
        )
        assert (best <= grid * (1 + 1e-12)).all()
        moment = linear.score_fourth_moment(W1, method=method, inner_lr=rates, samples=5)
        known = linear.guarantee(
            W1, method=method, inner_lr=rates, samples=5, tasks=tasks, delta=deltas,
            fourth_moment=moment,
        )  # fmt: skip
        assert (known <= grid).all()
        assert (known[:, -1, 0] < 0.5 * grid[:, -1, 0]).all()


def test_sharp_form_is_tighter():
    # Never larger over random laws; useful with fewer tasks; and for many tasks the lower tail's
    # exponent has kappa_W - 1 (a variance) in place of kappa_W (a second moment).
    rng = np.random.default_rng(5)
    tasks, deltas = np.array([5, 20, 40, 100, 1000])[:, None], np.array([1e-6, 0.01, 0.3])
    for trial in range(30):
        law = random_mixture(rng, 1 + trial % 3)
        for method in BOTH:
            step = {"method": method, "inner_lr": rng.uniform(-1.0, 1.0), "samples": 1 + trial % 7}
            plain = linear.guarantee(law, **step, tasks=tasks, delta=deltas)
            sharp = linear.guarantee(law, **step, tasks=tasks, delta=deltas, sharp=True)
            assert (sharp <= plain).all()
    few = linear.guarantee(W1, method="drs", **STEP, tasks=18, delta=0.1, sharp=True)
    assert few < math.inf
    assert few.source == "Result 11a"
    none = linear.guarantee(W1, method="drs", **STEP, tasks=4, delta=0.1, sharp=True)
    assert none == math.inf
    assert "Result 11 needs more" in none.reason
    for method, kappa in (("drs", KAPPA_W_DRS), ("maml", KAPPA_W_MAML)):
        margin, many = 0.01, 500000
        _, failure = linear.expected_excess_bound(
            W1, method=method, **STEP, tasks=many, margin=margin, sharp=True
        )
        exponent = -np.log(failure / 2.0) / many
        assert exponent == pytest.approx(margin**2 / (2.0 * (kappa - 1.0)), rel=0.02)


def mean_scores(rng, law, step, tasks, trials):
    """Mean weights and scores of `trials` training sets, [(W, psi) of both methods]."""
    centre = linear.minimisers(law, **step)
    drawn = law.sample(rng, trials * tasks)
    pairs = scores(
        drawn, draw_sides(rng, drawn, step["samples"]), step["inner_lr"], centre.drs, centre.maml
    )
    p = law.p
    return [
        (w.reshape(trials, tasks, p, p).mean(axis=1), s.reshape(trials, tasks, p).mean(axis=1))
        for w, s in pairs
    ], (centre.drs, centre.maml)


@pytest.mark.parametrize("p", [1, 2])
def test_guarantees_hold(p):
    # Frequencies over 600 trainings must not exceed delta by more than 4 s.e.; in fact the bounds
    # are conservative and next to no violation is seen.
    rng = np.random.default_rng(p)
    laws = [random_mixture(rng, p) for _ in range(3)] + ([W1] if p == 2 else [])
    for law in laws:
        for rate, tasks in ((0.5, 60), (-0.4, 120)):
            step = {"inner_lr": rate, "samples": 4}
            pairs, targets = mean_scores(rng, law, step, tasks, 600)
            low = linear.risk(law, targets[1], **step)
            for method, (weight, psi), target in zip(BOTH, pairs, targets, strict=True):
                points = target + np.linalg.solve(weight, psi[..., None])[..., 0]
                excess = linear.risk(law, points, **step) - low
                moment = linear.score_fourth_moment(law, method=method, **step)
                ways = [
                    {"fourth_moment": known, "sharp": sharp}
                    for known, sharp in itertools.product((None, moment), (False, True))
                ]
                ways += [{"sharp": True, "exponential": True}] * (method == "drs")
                for delta in (0.3, 0.1):
                    for way in ways:
                        bound = linear.guarantee(
                            law, method=method, **step, tasks=tasks, delta=delta, **way
                        )
                        violated = (excess > bound).mean()
                        assert violated <= delta
                        assert violated <= 0.03


def test_exponential_moments_are_bounded():
    # Samples of exp(s |X|) - 1 - s |X| at exponents of up to half of where the bound ends; 4 s.e.
    rng = np.random.default_rng(8)
    for law in (W1, random_mixture(rng, 1), random_mixture(rng, 3)):
        pairs, targets = mean_scores(rng, law, STEP, 1, 100000)
        found = estimators(law, 0.3, 5.0, "test").drs
        inverse = np.linalg.inv(found.weight)
        trace = np.trace(inverse @ found.score)
        s, logs = exponential.log_moments(law, targets[0], 10.0, trace)
        norms = np.sqrt(np.einsum("ti,ij,tj->t", pairs[0][1], inverse, pairs[0][1]))
        for k in np.flatnonzero((s > 0.01 * s[-1]) & (s < 0.5 * s[-1])):
            values = np.expm1(s[k] * norms) - s[k] * norms
            error = values.std() / np.sqrt(len(values))
            assert values.mean() <= np.expm1(logs[k]) + 4.0 * error
            assert np.expm1(logs[k]) < 40.0 * values.mean()  # no empty statement


@pytest.mark.parametrize("n", [1, 3, 10])
def test_exponential_moments_by_hand(n):
    # One task, p = 1: X is normal times chi over n, and the bound takes its moments exactly.
    law = linear.Mixture([1.0], [[[2.0]]], [[1.0]], [0.7])
    s, logs = exponential.log_moments(law, np.array([1.0]), n, 0.7 / n)
    nodes, mass = np.polynomial.laguerre.laggauss(60)
    for k in np.flatnonzero(s < 0.4 * s[-1])[::10]:
        # |X| = sqrt(0.7) chi |z| / n, averaged over chi2 = 2 t, t ~ Gamma(n / 2), and over z
        z = np.linspace(0.0, 12.0, 6001)
        half_normal = 2.0 * np.exp(-(z**2) / 2.0) / np.sqrt(2.0 * np.pi)
        x = s[k] * np.sqrt(0.7 * 2.0 * nodes)[:, None] * z / n
        inner = trapezoid((np.expm1(x) - x) * half_normal, z, axis=1)
        expected = mass @ (nodes ** (n / 2.0 - 1.0) * inner) / math.gamma(n / 2.0)
        assert np.expm1(logs[k]) == pytest.approx(expected, rel=1e-3)


def test_exponential_tail_pays_a_logarithm():
    # With all the rest fixed, doubling the digits of delta doubles the tail's square at most.
    tasks, deltas = np.array([50, 800, 20000])[:, None], np.array([0.1, 1e-3, 1e-6, 1e-12])
    step = {"method": "drs", **STEP, "tasks": tasks, "delta": deltas}
    plain = linear.guarantee(W1, **step, sharp=True)
    tail = linear.guarantee(W1, **step, sharp=True, exponential=True)
    assert (tail <= plain).all()
    assert (np.diff(tail[1:], axis=1) > 0.0).all()
    assert tail[2, 3] < 1.6 * tail[2, 0]
    assert tail[1, 2] < 1e-3 * plain[1, 2]
    found = linear.guarantee(
        W1, method="drs", **STEP, tasks=800, delta=0.01, sharp=True, exponential=True
    )
    assert found.source == "Result 11b"
    assert found == pytest.approx(0.134, rel=0.01)
    far = linear.guarantee(
        W1, method="drs", inner_lr=0.3, tasks=800, delta=0.01, sharp=True, exponential=True
    )
    assert 0.0 < far < 0.14
    exact = linear.Mixture([1.0], [np.eye(2)], [np.ones(2)], [0.0])
    assert linear.guarantee(
        exact, method="drs", **STEP, tasks=800, delta=0.01, exponential=True
    ) == pytest.approx(0.0, abs=1e-20)


def test_exponential_needs_a_mixture_and_joint_training():
    step = {**STEP, "tasks": 800, "delta": 0.01, "exponential": True}
    with pytest.raises(ValueError, match="exponential must be False for MAML"):
        linear.guarantee(W1, method="maml", **step)
    with pytest.raises(ValueError, match="exponential needs a Mixture"):
        linear.guarantee(linear.published_law(), method="drs", **step)


def test_expectation_on_the_good_event():
    # The truncated mean against its bound, and the frequency of the event against its own.
    rng = np.random.default_rng(12)
    pairs, targets = mean_scores(rng, W1, STEP, 60, 2000)
    low = linear.risk(W1, targets[1], **STEP)
    found = estimators(W1, 0.3, 5.0, "test")
    for method, own, (weight, psi), target in zip(
        BOTH, (found.drs, found.maml), pairs, targets, strict=True
    ):
        for margin in (0.3, 0.5, 0.8):
            bound, failure = linear.expected_excess_bound(
                W1, method=method, **STEP, tasks=60, margin=margin
            )
            ratio = np.linalg.eigvals(np.linalg.solve(own.weight, weight)).real.min(axis=1)
            good = ratio >= 1.0 - margin
            points = target + np.linalg.solve(weight, psi[..., None])[..., 0]
            excess = linear.risk(W1, points, **STEP) - low
            assert (excess * good).mean() <= bound
            assert failure <= 1.0
            same, sharp = linear.expected_excess_bound(
                W1, method=method, **STEP, tasks=60, margin=margin, sharp=True
            )
            assert same == bound
            assert 1.0 - good.mean() <= sharp <= failure


def test_laplace_transform_step():
    # E exp(-s W) is at most exp(-s I + s^2 E W^2 / 2) for the whitened weight: the smallest
    # eigenvalue of the difference, with W averaged over 20000 drawn tasks.
    rng = np.random.default_rng(1)
    for law in (W1, random_mixture(rng, 2), random_mixture(rng, 3)):
        pairs, _ = mean_scores(rng, law, STEP, 1, 20000)
        for weight, _ in pairs:
            mean = weight.mean(axis=0)
            values, vectors = np.linalg.eigh(mean)
            half = (vectors / np.sqrt(values)) @ vectors.T
            white = half @ weight @ half
            own, frames = np.linalg.eigh(white)
            second = (white @ white).mean(axis=0)
            for s in (0.1, 0.5, 2.0):
                left = np.einsum("tij,tj,tkj->ik", frames, np.exp(-s * own), frames) / len(own)
                exponent, turn = np.linalg.eigh(-s * np.eye(law.p) + s**2 * second / 2.0)
                right = (turn * np.exp(exponent)) @ turn.T
                assert np.linalg.eigvalsh(right - left)[0] >= -1e-12


def test_constants_against_simulation():
    # kappa_W and v through sample means over 120000 tasks: entries within 5 s.e.
    rng = np.random.default_rng(21)
    law = random_mixture(rng, 2)
    step = {"inner_lr": 0.6, "samples": 4}
    pairs, _ = mean_scores(rng, law, step, 1, 120000)
    found = estimators(law, 0.6, 4.0, "test")
    for method, own, (weight, psi) in zip(BOTH, (found.drs, found.maml), pairs, strict=True):
        constants = linear.guarantee_constants(law, method=method, **step)
        inverse = np.linalg.inv(own.weight)
        norms = np.einsum("ti,ij,tj->t", psi, inverse, psi)
        error = norms.std() / np.sqrt(len(norms))
        assert abs(norms.mean() - constants.score_trace) < 5.0 * error
        # Along the top eigenvector u of the whitened E[W Wb^-1 W]: its quadratic form is kappa_W.
        square = (weight @ inverse @ weight).mean(axis=0)
        values, vectors = np.linalg.eig(inverse @ square)
        u = vectors[:, np.argmax(values.real)].real
        forms = np.einsum("i,tij,jk,tkl,l->t", u, weight, inverse, weight, u, optimize=True)
        scale = u @ own.weight @ u
        error = forms.std() / np.sqrt(len(forms)) / scale
        assert abs(forms.mean() / scale - constants.kappa_weight) < 5.0 * error
        assert constants.kappa_weight >= 1.0


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_fourth_moment_needs_no_finer_rule(samples, monkeypatch):
    # The product rule is exact for the degree in question, so refining it changes nothing.
    step = {"inner_lr": 0.3, "samples": samples}
    plain = linear.score_fourth_moment(W1, method="maml", **step)
    monkeypatch.setattr(fourth, "_CHI", 7)
    monkeypatch.setattr(fourth, "_NORMAL", 12)
    monkeypatch.setattr(fourth, "_NOISE", 5)
    assert linear.score_fourth_moment(W1, method="maml", **step) == pytest.approx(plain, rel=1e-9)


def test_fourth_moments_against_simulation():
    # A mild case (small rate, N = 12), so that the eighth moments behind the error are finite and
    # moderate; 5 s.e. on 4 numbers.
    rng = np.random.default_rng(31)
    for p in (1, 2):
        law, step = random_mixture(rng, p), {"inner_lr": 0.3, "samples": 12}
        pairs, _ = mean_scores(rng, law, step, 1, 150000)
        found = estimators(law, 0.3, 12.0, "test")
        for method, own, (_, psi) in zip(BOTH, (found.drs, found.maml), pairs, strict=True):
            values = np.einsum("ti,ij,tj->t", psi, np.linalg.inv(own.weight), psi) ** 2
            error = values.std() / np.sqrt(len(values))
            exact = linear.score_fourth_moment(law, method=method, **step)
            assert abs(values.mean() - exact) < 5.0 * error


def test_fourth_moment_of_the_published_law_sees_all_noise_levels():
    # One dimension, joint training, by hand: sigma2 ~ U(0, beta) enters squared.
    law, n = linear.published_law(beta=1.0), 8
    q, mass = np.polynomial.legendre.leggauss(12)
    q, mass = (q + 1.0) / 2.0, mass / 2.0
    chi = linear.scalar_moments(4, n)
    away = q - 2.0 / 3.0
    # psi = qh d + e with e | qh ~ N(0, s qh / n)
    fourth_power = (
        chi[4] * q**4 * away**4
        + 6.0 * chi[3] * q**3 * away**2 * 0.5 / n
        + 3.0 * chi[2] * q**2 * (1.0 / 3.0) / n**2
    )
    expected = (mass @ fourth_power) / 0.25  # (E Q)^-2
    got = linear.score_fourth_moment(law, method="drs", inner_lr=0.2, samples=n // 2)
    assert got == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"method": "both"}, 'method must be "drs" or "maml"'),
        ({"delta": 0.0}, "delta must lie strictly between 0 and 1"),
        ({"delta": 1.0}, "delta must lie strictly"),
        ({"delta": np.nan}, "delta must lie strictly"),
        ({"split": 1.5}, "split must lie strictly"),
        ({"tasks": 0}, "tasks must be whole numbers"),
        ({"samples": 0}, "samples must be whole numbers"),
        ({"fourth_moment": np.nan}, "fourth_moment must be finite"),
    ],
)
def test_bad_input(change, text):
    arguments = {"method": "maml", **STEP, "tasks": 100, "delta": 0.1, **change}
    with pytest.raises(ValueError, match=text):
        linear.guarantee(W1, **arguments)


def test_fourth_moment_limits():
    law = random_mixture(np.random.default_rng(0), 3)
    assert linear.score_fourth_moment(law, method="drs", **STEP) > 0.0
    with pytest.raises(NotImplementedError, match="p <= 2"):
        linear.score_fourth_moment(law, method="maml", **STEP)


@pytest.mark.parametrize("moment", [0.0, -1.0])
def test_impossible_fourth_moments_are_refused(moment):
    law = linear.Mixture([1.0], [[[1.0]]], [[1.0]], [0.5])
    with pytest.raises(ValueError, match="fourth_moment must be positive"):
        linear.guarantee(
            law, method="drs", inner_lr=0.1, samples=5, tasks=100, delta=0.1, fourth_moment=moment
        )
