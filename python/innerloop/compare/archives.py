"""Tasks from the support and query arrays of an .npz file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from innerloop.compare.config import Config
from innerloop.compare.tables import Tasks
from innerloop.runs.arrays import read_arrays
from innerloop.runs.errors import InputError

WANTED = ("support_x", "support_y", "query_x", "query_y")


def tasks_of_archive(path: Path, config: Config) -> Tasks:
    """Tasks of support_x [T, N, D], support_y, query_x [T, Q, D], query_y; these draws are used as
    they are.
    """
    given = (config.task, config.target, config.features, config.exclude, config.log)
    if any(given) or config.drop_missing:
        raise InputError(
            "--task, --target, --features, --exclude, --log and --drop-missing are for tables, not "
            "for .npz files"
        )
    arrays = read_arrays(path, WANTED, f"table {str(path)!r}")
    classes, x, y = _npz_arrays(arrays, path.name, config)
    tasks, rows = x.shape[:2]
    return Tasks(
        source=path.name,
        names=tuple(f"task {index}" for index in range(tasks)),
        x=np.ascontiguousarray(x.reshape(tasks * rows, -1)),
        y=y.reshape(tasks * rows, *y.shape[2:]),
        start=np.arange(tasks + 1, dtype=np.int64) * rows,
        features=tuple(f"x{index}" for index in range(x.shape[2])),
        target="y",
        loss="cross_entropy" if classes else "mse",
        classes=classes,
        fixed_support=arrays["support_x"].shape[1],
        notes=(f"loss: {'cross_entropy' if classes else 'mse'} (from the type of support_y)",),
    )


def _npz_arrays(
    arrays: dict[str, NDArray[np.generic]], source: str, config: Config
) -> tuple[tuple[str, ...], NDArray[np.float64], NDArray[np.float64] | NDArray[np.int64]]:
    for name, array in arrays.items():
        if array.dtype.kind not in "fiu":
            raise InputError(f"{source}: {name} must be numeric (got {array.dtype})")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(f"{source}: {name} must be finite (it holds NaN or infinite values)")
    for side in ("support", "query"):
        x, y = arrays[f"{side}_x"], arrays[f"{side}_y"]
        if x.ndim != 3:
            raise InputError(f"{source}: {side}_x must have shape [T, N, D] (got {list(x.shape)})")
        if y.ndim not in (2, 3) or y.shape[:2] != x.shape[:2]:
            raise InputError(
                f"{source}: {side}_y must have shape {list(x.shape[:2])} or {[*x.shape[:2], 'K']} "
                f"(got {list(y.shape)})"
            )
    first, second = arrays["support_x"].shape, arrays["query_x"].shape
    if (first[0], first[2]) != (second[0], second[2]):
        raise InputError(
            f"{source}: support_x and query_x must agree in tasks and features "
            f"(got {list(first)} and {list(second)})"
        )
    if 0 in first or 0 in second:
        raise InputError(
            f"{source}: arrays must not be empty (got {list(first)} and {list(second)})"
        )
    features: NDArray[np.float64] = np.concatenate(
        [arrays["support_x"], arrays["query_x"]], axis=1
    ).astype(np.float64)
    if arrays["support_y"].shape[2:] != arrays["query_y"].shape[2:]:
        raise InputError(
            f"{source}: support_y and query_y must agree beyond their rows "
            f"(got {list(arrays['support_y'].shape)} and {list(arrays['query_y'].shape)})"
        )
    y = np.concatenate([arrays["support_y"], arrays["query_y"]], axis=1)
    integers = y.dtype.kind in "iu" and y.ndim == 2
    if config.loss == "cross_entropy" and not integers:
        raise InputError(
            f"{source}: support_y must be whole numbers [T, N] for cross_entropy (got {y.dtype})"
        )
    if integers and config.loss != "mse":
        values, codes = np.unique(y, return_inverse=True)
        return (
            tuple(str(value) for value in values),
            features,
            codes.reshape(y.shape).astype(np.int64),
        )
    targets: NDArray[np.float64] = y.astype(np.float64)
    return (), features, targets[..., None] if y.ndim == 2 else targets
