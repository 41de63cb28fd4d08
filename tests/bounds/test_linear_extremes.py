"""Closed forms of ridge regression at extreme arguments, against 1300 digits."""

from decimal import Decimal, localcontext

import numpy as np
import pytest

from innerloop.bounds import linear

SCALES = [1.1e-300, 1e-160, 1e-17, 1e-16, 1e-3, 1.0, 7.0, 1e3, 1e16, 1e160, 9e299]
ASPECTS = [*SCALES, 1.0 - 1e-9, 1.0 + 1e-9, np.nextafter(1.0, 2.0), 2.0, 0.5]


def ridge(aspect, penalty):
    """m, -lambda^2 m' and c (m + lambda m') with 1300 digits."""
    c, pull = Decimal(float(aspect)), Decimal(float(penalty))
    middle = 1 - c + pull
    root = (middle * middle + 4 * c * pull).sqrt()
    m = (root - middle) / (2 * c * pull)
    slope = -(c * m * m + m) / root
    return m, -pull * pull * slope, c * (m + pull * slope)


@pytest.mark.parametrize("aspect", ASPECTS)
def test_isotropic_ridge_keeps_its_digits(aspect):
    found = linear.isotropic_ridge_limit(aspect, np.array(SCALES))
    with localcontext() as context:
        context.prec = 1300
        for place, penalty in enumerate(SCALES):
            exact = ridge(aspect, penalty)
            got = (found.stieltjes[place], found.hessian[place], found.noise[place])
            for value, wanted in zip(got, exact, strict=True):
                if wanted < Decimal("1e-307"):
                    assert 0.0 <= value < 1e-306
                else:
                    assert abs(Decimal(float(value)) / wanted - 1) < Decimal("1e-14")


def test_the_example_that_failed():
    assert linear.isotropic_ridge_limit(2.0, 1e-16).noise == pytest.approx(1.0, rel=1e-15)
