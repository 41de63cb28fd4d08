"""Tasks from the columns of a table; whatever is wrong with them is said in one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from innerloop.compare.config import Config
from innerloop.compare.encoding import Columns, Faults, encode, numeric, rows_text
from innerloop.compare.tables import Tasks
from innerloop.runs.errors import InputError

MOST_INTEGER_CLASSES = 10


def tasks_of_frame(
    frame: pd.DataFrame, config: Config, source: str, unclear: Mapping[str, str] | None = None
) -> Tasks:
    """Tasks of a table: one per value of the task column, in order of first appearance.

    Args:
        source: what a message calls the table.
        unclear: by column, why its numbers could be meant in two ways.

    Raises:
        InputError: an option names no column, or columns cannot be used; all of these at once.
    """
    features = _features(frame, config, source)
    frame = frame.reset_index(drop=True)[[config.task, *features, config.target]]
    faults = Faults()
    for name, why in (unclear or {}).items():
        if name in features or name == config.target:
            faults.add(name, why, "write numbers with points alone")
    frame, notes = _complete_rows(frame, config, faults)
    if config.drop_small:
        frame, note = _large_tasks(frame, config)
        notes += note
    columns = Columns()
    for name in features:
        encode(frame[name].dropna(), columns, faults, log=name in config.log)
    target = frame[config.target].dropna()
    loss, reason = _detect_loss(target, config)
    classes: tuple[str, ...] = ()
    y: NDArray[np.float64] | NDArray[np.int64] | None
    if loss == "cross_entropy":
        y, classes = _classes(target)
    else:
        remedy = "use --loss cross_entropy for classes"
        y = numeric(target, faults, log=config.target in config.log, remedy=remedy)
    faults.check()
    assert y is not None
    order, names = pd.factorize(frame[config.task])
    rows = np.argsort(order, kind="stable")
    return Tasks(
        source=source,
        names=tuple(str(name) for name in names),
        x=np.column_stack(columns.values)[rows],
        y=(y if classes else y[:, None])[rows],
        start=np.concatenate([[0], np.cumsum(np.bincount(order))]).astype(np.int64),
        features=tuple(columns.names),
        target=_shown(config.target, config),
        loss=loss,
        classes=classes,
        notes=(reason, *notes, *columns.notes),
    )


def _features(frame: pd.DataFrame, config: Config, source: str) -> tuple[str, ...]:
    """The columns to predict from, after a check of every option that names columns."""
    if not config.task or not config.target:
        raise InputError(
            f"--task and --target are needed for {source}; "
            f"its columns are {', '.join(map(repr, frame.columns))}"
        )
    for option, column in (
        ("--task", config.task),
        ("--target", config.target),
        *(("--features", name) for name in config.features),
        *(("--exclude", name) for name in config.exclude),
        *(("--log", name) for name in config.log),
    ):
        _check_column(frame, column, option, source)
    for option, names in (("--features", config.features), ("--log", config.log)):
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"{option} must name each column once (got {twice!r} twice)")
    if config.task == config.target:
        raise InputError(f"--task and --target must be different columns (got {config.task!r})")
    for name in (config.task, config.target):
        for option, given in (("--features", config.features), ("--exclude", config.exclude)):
            if name in given:
                raise InputError(f"{option} must not hold the task or the target (got {name!r})")
    others = [name for name in frame.columns if name not in (config.task, config.target)]
    features = tuple(n for n in config.features or others if n not in config.exclude)
    if not features:
        raise InputError(f"no feature columns are left in {source} beside task and target")
    for name in config.log:
        if name not in (*features, config.target):
            raise InputError(f"--log must name features or the target (got {name!r})")
    return features


def _complete_rows(
    frame: pd.DataFrame, config: Config, faults: Faults
) -> tuple[pd.DataFrame, list[str]]:
    """The rows without missing values if asked for them; otherwise all, with the faults noted."""
    missing = frame.isna()
    if config.drop_missing:
        kept = frame[~missing.any(axis=1)]
        if not len(kept):
            raise InputError(
                "--drop-missing leaves no row: every one lacks a value; leave columns out with "
                "--exclude"
            )
        count = len(frame) - len(kept)
        whole = f"left out {count} of {len(frame)} rows with missing values"
        return kept, [whole] if count else []
    for name in frame.columns[missing.any()]:
        mask = missing[name].to_numpy()
        is_needed = name in (config.task, config.target)
        faults.add_missing(name, rows_text(frame.index[mask]), float(mask.mean()), is_needed)
    return frame, []


def _large_tasks(frame: pd.DataFrame, config: Config) -> tuple[pd.DataFrame, list[str]]:
    """The rows of tasks with more rows than the support takes, unless there is no such task."""
    rows = frame[config.task].map(frame[config.task].value_counts())
    kept = frame[(rows > config.shots).to_numpy()]
    count = frame[config.task].nunique() - kept[config.task].nunique()
    if not count or not len(kept):
        return frame, []
    tasks = "1 task" if count == 1 else f"{count} tasks"
    return kept, [f"left out {tasks} with at most {config.shots} rows"]


def _shown(name: str, config: Config) -> str:
    return f"log {name}" if name in config.log else name


def _check_column(frame: pd.DataFrame, column: str, option: str, source: str) -> None:
    if column in frame.columns:
        return
    lowered = {name.strip().lower(): name for name in frame.columns}
    close = difflib.get_close_matches(column.strip().lower(), list(lowered), n=3, cutoff=0.6)
    if close:
        hint = "did you mean " + " or ".join(repr(lowered[name]) for name in close) + "?"
    else:
        hint = "its columns are " + ", ".join(map(repr, frame.columns))
    raise InputError(f"{option}: {source} has no column {column!r}; {hint}")


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
