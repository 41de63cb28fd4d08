"""How straight a line is: a weighted least-squares fit and its largest relative deviation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def straight_line(x: Sequence[float], seconds: Sequence[float]) -> dict[str, float]:
    """Fits seconds = fixed + each * x with relative errors as weights.

    Relative weights let the small end of a range of several decades count as much as the large end.
    `worst_deviation` is the largest |measured / fitted - 1|.
    """
    positions, measured = np.asarray(x, dtype=float), np.asarray(seconds, dtype=float)
    design = np.stack([np.ones_like(positions), positions], axis=1) / measured[:, None]
    (fixed, each), *_ = np.linalg.lstsq(design, np.ones_like(measured), rcond=None)
    fitted = fixed + each * positions
    return {
        "fixed_s": float(fixed),
        "each_s": float(each),
        "worst_deviation": float(np.max(np.abs(measured / fitted - 1.0))),
    }
