"""Certified constants of one-layer families against dense grids."""

import math

import numpy as np
import pytest

from innerloop.bounds import constants


def test_logistic():
    found = constants.logistic_constants(3.0)
    assert (found.G, found.L_plus, found.ell, found.L) == (3.0, 2.25, 0.0, 2.25)
    z = np.linspace(-8, 8, 400001)
    s = 1 / (1 + np.exp(-z))
    third = np.abs(s * (1 - s) * (1 - 2 * s)).max() * 27
    assert third <= found.rho * (1 + 1e-12)
    assert found.rho == pytest.approx(third, rel=1e-8)


@pytest.mark.parametrize("target", [0.0, 0.5, 1.0, 2.0])
def test_tanh(target):
    radius = 1.7
    found = constants.tanh_constants(radius, target)
    u = np.linspace(-9, 9, 200001)
    t = np.tanh(u)
    s = 1 - t * t
    y = target * np.array([[-1.0], [0.3], [1.0]])
    first = (t - y) * s
    second = s * (1 - 3 * t * t + 2 * t * y)
    third = s * (-2 * t * (1 - 3 * t * t + 2 * t * y) + s * (-6 * t + 2 * y))
    exact = [
        (found.G, np.abs(first).max() * radius),
        (found.L_plus, second.max() * radius**2),
        (found.ell, -second.min() * radius**2),
        (found.rho, np.abs(third).max() * radius**3),
    ]
    for value, grid in exact:
        assert grid <= value * (1 + 1e-12)
        assert value == pytest.approx(grid, rel=1e-7)
    assert max(found.L_plus, found.ell) == found.L
    assert found.G.trust == "certified"
    assert found.G.confidence == 1.0


def test_known_names_and_words():
    found = constants.tanh_constants(1.0)
    assert float(found.G) == pytest.approx(32 / 27, rel=1e-12)
    known = found.known()
    assert known["sigma_g"] == found.G
    assert known["rho_s"] == found.rho
    assert "certified upper bound" in found.explain()


@pytest.mark.parametrize("radius", [0.0, -1.0, math.inf, math.nan])
def test_bad_radius(radius):
    for family in (constants.logistic_constants, constants.tanh_constants):
        with pytest.raises(ValueError, match="radius must be positive"):
            family(radius)


def test_bad_target():
    with pytest.raises(ValueError, match="target must be"):
        constants.tanh_constants(1.0, -0.1)
