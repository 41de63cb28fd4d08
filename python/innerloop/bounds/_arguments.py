"""Checks of the arguments of `innerloop.bounds`: anything numeric in, float64 arrays out.

Every message starts with the name of the function the user called.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from innerloop.bounds._quantities import parted, tracked

Array = NDArray[np.float64]


def array(value: Any, *, function: str, name: str, ndim: int | None = None) -> Array:
    """`value` as a finite float64 array.

    Args:
        value: number, sequence, NumPy array or torch tensor (any device, any real dtype).
        function: the public function, for messages.
        name: the argument, for messages.
        ndim: required number of axes; None for any.

    Raises:
        TypeError: the values are not real numbers.
        ValueError: a value is NaN or infinite, or the number of axes is wrong.
    """
    made = _float64(value, function, name)
    if ndim is not None and made.ndim != ndim:
        raise ValueError(
            f"{function}: {name} must have {ndim} axes (got {made.ndim}, shape {made.shape})"
        )
    if not np.isfinite(made).all():
        raise ValueError(f"{function}: {name} must be finite (it has NaN or infinite entries)")
    return made


# Beyond it, float64 cannot count.
MOST = 2**53


def counts(
    value: Any,
    *,
    function: str,
    name: str,
    at_least: int = 1,
    at_most: int = MOST,
    none: float | None = None,
) -> Array:
    """`value` as whole numbers in float64; None becomes `none` (infinity for "population").

    Raises:
        TypeError: not real numbers, or None where None means nothing.
        ValueError: a value is not whole, below `at_least` or above `at_most`. Infinity passes where
            None does.
    """
    if value is None:
        if none is None:
            raise TypeError(f"{function}: {name} must be a whole number (got None)")
        return np.asarray(none, dtype=np.float64)
    made = _float64(value, function, name, kinds="iuf")
    whole = (made == np.floor(made)) & (made >= at_least)
    if none is not None:
        whole |= made == none
    if not whole.all():
        raise ValueError(
            f"{function}: {name} must be whole numbers of at least {at_least} "
            f"(got {_first(made, ~whole):.12g})"
        )
    many = (made > at_most) if none is None else (made > at_most) & (made != none)
    if many.any():
        raise ValueError(
            f"{function}: {name} must be at most {at_most} (got {_first(made, many):g})"
        )
    return made


def probability(value: Any, *, function: str, name: str) -> Array:
    """`value` in float64 with every entry strictly between 0 and 1.

    Raises:
        TypeError: not real numbers.
        ValueError: an entry outside (0, 1).
    """
    made = _float64(value, function, name)
    inside = (made > 0.0) & (made < 1.0)
    if not inside.all():
        raise ValueError(
            f"{function}: {name} must lie strictly between 0 and 1 (got {_first(made, ~inside):g})"
        )
    return made


def covariances(value: Any, *, function: str, name: str) -> Array:
    """`value` as symmetric positive semidefinite matrices [..., p, p], exactly symmetrised.

    Raises:
        TypeError: not real numbers.
        ValueError: not square, not symmetric or with a negative eigenvalue beyond rounding.
    """
    made = array(value, function=function, name=name)
    if made.ndim < 2 or made.shape[-1] != made.shape[-2] or made.shape[-1] == 0:
        raise ValueError(f"{function}: {name} must have shape [..., p, p] (got {made.shape})")
    flat = made.reshape(-1, *made.shape[-2:])
    scale = np.abs(flat).max(axis=(1, 2))
    skew = np.abs(flat - flat.transpose(0, 2, 1)).max(axis=(1, 2))
    if (skew > 1e-9 * scale).any():
        raise ValueError(
            f"{function}: {name} of task {int(np.argmax(skew > 1e-9 * scale))} must be symmetric"
        )
    flat = (flat + flat.transpose(0, 2, 1)) / 2.0
    low = np.linalg.eigvalsh(flat)[:, 0]
    if (low < -1e-10 * scale).any():
        task = int(np.argmin(low))
        raise ValueError(
            f"{function}: {name} of task {task} must be positive semidefinite, being a covariance "
            f"matrix (smallest eigenvalue {low[task]:.3g}); definition D4 needs it"
        )
    shaped: Array = flat.reshape(made.shape)
    return shaped


def positive_definite(matrix: Array, *, function: str, name: str, result: str) -> Any:
    """Smallest eigenvalues of symmetric `matrix` [..., p, p], all clearly positive.

    Raises:
        ValueError: the smallest eigenvalue is not above rounding; names `result`.
    """
    eigenvalues = np.linalg.eigvalsh(matrix)
    low, high = eigenvalues[..., 0], eigenvalues[..., -1]
    bad = ~(low > 1e-13 * high)
    if bad.any():
        raise ValueError(
            f"{function}: {name} must be positive definite (smallest eigenvalue "
            f"{_first(np.asarray(low), np.asarray(bad)):.3g}); {result} needs it"
        )
    return low


def scipy_module(name: str, *, function: str) -> ModuleType:
    """The SciPy submodule `name`, imported when first needed.

    Raises:
        ModuleNotFoundError: SciPy is not installed; the message says how to get it.
    """
    import importlib

    try:
        return importlib.import_module(f"scipy.{name}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'{function} needs SciPy, which comes with innerloop[cli]: pip install "innerloop[cli]"'
        ) from error


def _float64(value: Any, function: str, name: str, kinds: str = "biuf") -> Array:
    """`value` as float64, possibly with NaN or infinite entries, with the trust it carries.

    Arrays of truth values may be data; a single one is no number.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().resolve_conj().resolve_neg().numpy()
    bare, trust = parted(value)
    try:
        if np.ma.is_masked(bare):
            raise TypeError("some are masked")
        raw = np.asarray(bare)
        if raw.dtype.kind not in (kinds if raw.ndim else "iuf"):
            raise TypeError(f"dtype {raw.dtype}")
        made = raw.astype(np.float64)
        return made if trust is None else tracked(made, trust)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{function}: {name} must be real numbers ({error})") from error


def _first(values: Array, where: NDArray[np.bool_]) -> float:
    """The first entry of `values` selected by `where`."""
    return float(np.ravel(values)[np.argmax(np.ravel(where))])
