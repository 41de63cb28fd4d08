"""Tasks from the columns of a table; whatever is wrong with them is said in one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from innerloop.compare.config import Config
from innerloop.compare.tables import Tasks
from innerloop.runs.errors import InputError

MOST_INTEGER_CLASSES = 10


def tasks_of_frame(frame: pd.DataFrame, config: Config, source: str) -> Tasks:
    """Tasks of a table: one per value of the task column, in order of first appearance."""
    if not config.task or not config.target:
        raise InputError(
            f"--task and --target are needed for {source}; "
            f"its columns are {', '.join(frame.columns)}"
        )
    for option, column in (
        ("--task", config.task),
        ("--target", config.target),
        *(("--features", name) for name in config.features),
        *(("--log", name) for name in config.log),
    ):
        _check_column(frame, column, option, source)
    if config.task == config.target:
        raise InputError(f"--task and --target must be different columns (got {config.task!r})")
    features = config.features or tuple(
        name for name in frame.columns if name not in (config.task, config.target)
    )
    if not features:
        raise InputError(f"no feature columns are left in {source} beside task and target")
    for name in (config.task, config.target):
        if name in features:
            raise InputError(f"--features must not hold the task or the target (got {name!r})")
    for name in config.log:
        if name not in (*features, config.target):
            raise InputError(f"--log must name features or the target (got {name!r})")
    notes: list[str] = []
    _check_missing(frame, (config.task, *features, config.target))
    order, names = pd.factorize(frame[config.task])
    columns = [_numeric(frame, name, config) for name in features]
    x = np.column_stack(columns).astype(np.float64)
    loss, reason = _detect_loss(frame[config.target], config)
    notes.append(reason)
    y: NDArray[np.float64] | NDArray[np.int64]
    classes: tuple[str, ...] = ()
    if loss == "cross_entropy":
        y, classes = _classes(frame[config.target])
    else:
        y = _numeric(frame, config.target, config).astype(np.float64)[:, None]
    rows = np.argsort(order, kind="stable")
    return Tasks(
        source=source,
        names=tuple(str(name) for name in names),
        x=x[rows],
        y=y[rows],
        start=np.concatenate([[0], np.cumsum(np.bincount(order))]).astype(np.int64),
        features=features,
        target=_shown(config.target, config),
        loss=loss,
        classes=classes,
        notes=tuple(notes),
    )


def _shown(name: str, config: Config) -> str:
    return f"log {name}" if name in config.log else name


def _check_column(frame: pd.DataFrame, column: str, option: str, source: str) -> None:
    if column in frame.columns:
        return
    lowered = {name.lower(): name for name in frame.columns}
    close = difflib.get_close_matches(column.lower(), list(lowered), n=3, cutoff=0.6)
    if close:
        hint = "did you mean " + " or ".join(repr(lowered[name]) for name in close) + "?"
    else:
        hint = "its columns are " + ", ".join(frame.columns)
    raise InputError(f"{option}: {source} has no column {column!r}; {hint}")


def _rows(mask: NDArray[np.bool_]) -> str:
    """The first few row numbers (from 1, header not counted) at which a condition holds."""
    where = np.flatnonzero(mask) + 1
    shown = ", ".join(str(row) for row in where[:5])
    more = f" and {len(where) - 5} more" if len(where) > 5 else ""
    return f"row{'s' if len(where) > 1 else ''} {shown}{more}"


def _check_missing(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    for name in columns:
        missing = frame[name].isna().to_numpy(dtype=bool)
        if missing.any():
            raise InputError(
                f"column {name!r} has missing values in {_rows(missing)} "
                "(data rows counted from 1); fill or remove them first"
            )


def _numeric(frame: pd.DataFrame, name: str, config: Config) -> NDArray[np.float64]:
    """A column as finite numbers, after its logarithm if asked."""
    values = pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    bad = np.isnan(values)
    if bad.any():
        example = frame[name].to_numpy()[int(np.flatnonzero(bad)[0])]
        remedy = (
            "use --loss cross_entropy for classes"
            if name == config.target
            else "leave the column out with --features"
        )
        raise InputError(
            f"column {name!r} must be numeric (got {str(example)!r} in {_rows(bad)}); {remedy}"
        )
    if np.isinf(values).any():
        raise InputError(f"column {name!r} must be finite (infinite in {_rows(np.isinf(values))})")
    if name in config.log:
        if (values <= 0).any():
            raise InputError(
                f"--log: column {name!r} must be positive (it is not in {_rows(values <= 0)})"
            )
        return np.asarray(np.log(values))
    return np.asarray(values)


def _detect_loss(column: pd.Series, config: Config) -> tuple[str, str]:
    """The loss that suits a target, and a sentence that says why."""
    if config.loss != "auto":
        return config.loss, f"loss: {config.loss} (as asked)"
    if config.target in config.log:
        return "mse", "loss: mse (logarithm of the target)"
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        numbers = pd.to_numeric(column, errors="coerce")
        if pd.api.types.is_bool_dtype(column) or numbers.isna().mean() > 0.5:
            return "cross_entropy", "loss: cross_entropy (the target is not a number)"
        return "mse", "loss: mse (the target is a number)"
    values = column.unique()
    if len(values) <= MOST_INTEGER_CLASSES and np.all(np.mod(values.astype(np.float64), 1) == 0):
        return "cross_entropy", (
            f"loss: cross_entropy (the target has {len(values)} distinct whole values; "
            "--loss mse treats it as a number)"
        )
    return "mse", "loss: mse (the target is a number)"


def _classes(column: pd.Series) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    codes, values = pd.factorize(column, sort=True)
    return codes.astype(np.int64), tuple(str(value) for value in values)
