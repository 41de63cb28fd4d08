"""The trade-off map against SciPy's Welch test, its sign, its limits, and the published rule."""

import re

import numpy as np
import pytest

from innerloop import rl

stats = pytest.importorskip("scipy.stats", reason="needs innerloop[cli]")

SOURCE = np.random.default_rng(0)
DRS = SOURCE.standard_normal((5, 4, 3)) + 1
MAML = 2 * SOURCE.standard_normal((7, 4, 3))


def test_without_errors_within_seeds_it_is_welchs_test():
    found = rl.tradeoff(DRS, np.zeros_like(DRS), MAML, np.zeros_like(MAML))
    p = stats.ttest_ind(DRS, MAML, axis=0, equal_var=False, alternative="greater").pvalue
    assert found.shape == (4, 3)
    np.testing.assert_allclose(found, 1 - 2 * p, rtol=0, atol=1e-12)


def test_errors_within_seeds_join_the_variance():
    errors = np.abs(SOURCE.standard_normal(DRS.shape)), np.abs(SOURCE.standard_normal(MAML.shape))
    found = rl.tradeoff(DRS, errors[0], MAML, errors[1])
    sides = [
        (x.mean(0), np.sqrt(x.var(0, ddof=1) + (e**2).mean(0)), len(x))
        for x, e in zip((DRS, MAML), errors, strict=True)
    ]
    (m, s, n), (m2, s2, n2) = sides
    test = stats.ttest_ind_from_stats(m, s, n, m2, s2, n2, equal_var=False, alternative="greater")
    np.testing.assert_allclose(found, 1 - 2 * test.pvalue, rtol=0, atol=1e-12)


def test_plus_one_means_that_drs_is_better():
    sure = rl.tradeoff([10.0, 11.0, 12.0], [0.1] * 3, [1.0, 2.0, 3.0], [0.1] * 3)
    assert sure.shape == ()
    assert 0.99 < sure < 1
    assert rl.tradeoff([1.0, 2.0, 3.0], [0.1] * 3, [10.0, 11.0, 12.0], [0.1] * 3) == -sure
    errors = np.abs(DRS)
    there, back = rl.tradeoff(DRS, errors, MAML, MAML**2), rl.tradeoff(MAML, MAML**2, DRS, errors)
    np.testing.assert_array_equal(there, -back)


def test_without_any_variance_the_sign_is_left():
    one, zero = np.ones((3, 3)), np.zeros((3, 3))
    assert rl.tradeoff(one, zero, one * [0, 1, 2], zero).tolist() == [1, 0, -1]


@pytest.mark.parametrize("scale", [1e-170, 1e-9, 1e9, 1e150])
def test_units_do_not_matter(scale):
    usual = rl.tradeoff(DRS, np.abs(DRS), MAML, np.abs(MAML))
    scaled = rl.tradeoff(scale * DRS, scale * np.abs(DRS), scale * MAML, scale * np.abs(MAML))
    if scale == 1e-170:  # squares are 0: nothing but the sign is left
        np.testing.assert_array_equal(scaled, np.sign(usual))
    else:
        np.testing.assert_allclose(scaled, usual, rtol=0, atol=1e-12)


def test_the_published_rule_is_paler():
    """Its nu is S times too small for equal variances: 1.6 for 8; 0.82 for 0.95 at t = 2.31."""
    drs, maml = np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    drs = drs + 2.31
    zeros = np.zeros(5)
    assert rl.tradeoff(drs, zeros, maml, zeros) == pytest.approx(0.95, abs=5e-4)
    # its variance divides by S: scaled so that t is 2.31 again
    shrunk = 2.31 * np.sqrt(4 / 5)
    found = rl.tradeoff(maml + shrunk, zeros, maml, zeros, rule="published")
    assert found == pytest.approx(2 * stats.t.cdf(2.31, 1.6) - 1, abs=1e-12)
    assert found == pytest.approx(0.82, abs=0.005)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([1.0], [0.0], [1.0, 2.0], [0.0, 0.0]), {}, "drs must hold at least two seeds"),
        (([1.0, 2.0], [0.0], [1.0, 2.0], [0.0, 0.0]), {}, "drs_se must have shape drs's shape"),
        (([1.0, np.nan], [0.0, 0.0], [1.0, 2.0], [0.0, 0.0]), {}, "drs must be finite (got nan)"),
        (([1.0, 2.0], [0.0, 0.0], [1.0, 2.0], [0.0, -1.0]), {}, "maml_se must be at least 0"),
        ((np.ones((2, 3)), np.ones((2, 3)), [1.0, 2.0], [0.0, 0.0]), {}, "agree in shape behind"),
        ((DRS, DRS, MAML, MAML), {"rule": "welsh"}, "did you mean 'welch'?"),
    ],
    ids=["one seed", "short", "nan", "negative", "shapes", "rule"],
)
def test_refusals(arguments, options, message):
    with pytest.raises(ValueError, match=re.escape(message)) as found:
        rl.tradeoff(*arguments, **options)
    assert str(found.value).startswith("rl.tradeoff: ")


def test_words_are_no_returns():
    with pytest.raises(TypeError, match="drs must hold real numbers"):
        rl.tradeoff(["a", "b"], [0.0, 0.0], [1.0, 2.0], [0.0, 0.0])
