"""The numbers of a sweep, with or without the theory's prediction, and their file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from innerloop.runs.arrays import read_sealed, write_sealed
from innerloop.runs.errors import InputError
from innerloop.studies.linear_regression.settings import Settings

Array = NDArray[np.float64]

FORMAT = "innerloop.studies.linear_regression/2"
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

_GRID = ("tasks", "samples", "inner_lrs")
_AXES: dict[str, tuple[str, ...]] = {
    "maml_better_before": _GRID,
    "maml_better_after": _GRID,
    "drs_risk_before": _GRID,
    "maml_risk_before": _GRID,
    "drs_risk_after": _GRID,
    "maml_risk_after": _GRID,
    "drs_excess_before_quantiles": (*_GRID, "quantiles"),
    "maml_excess_before_quantiles": (*_GRID, "quantiles"),
    "drs_excess_after_quantiles": (*_GRID, "quantiles"),
    "maml_excess_after_quantiles": (*_GRID, "quantiles"),
    "least_risk_before": (),
    "least_risk_after": ("samples", "inner_lrs"),
}
_PREDICTED_AXES: dict[str, tuple[str, ...]] = {
    "better_before": _GRID,
    "better_after": _GRID,
    "crossover": ("samples", "inner_lrs"),
    "error_before": _GRID,
    "error_after": _GRID,
}


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the theory expects of a sweep, from the law of the tasks alone.

    Members:
        better_before: [tasks, samples, inner_lrs], probability that MAML has the lower risk before
            any update (Result 10a, Result 10 for many tasks).
        better_after: [tasks, samples, inner_lrs], the same after the update.
        crossover: [samples, inner_lrs], number of tasks M* from which on MAML has the lower
            expected risk after the update (Result 9); infinite where it never has, NaN where it
            lies below the number of tasks from which Result 9 is used.
        error_before, error_after: [tasks, samples, inner_lrs], standard errors of the first two;
            NaN where they come from Result 10.
    """

    better_before: Array
    better_after: Array
    crossover: Array
    error_before: Array
    error_after: Array


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Results of a sweep; axes follow the lists in `settings`.

    Means over trials are simulated values of expectations that can be infinite: MAML's with
    M <= 2 for any N, pooled least squares' with M = 1 (Result 13). Quantiles always exist.

    Members:
        settings: what was asked for.
        maml_better_before: [tasks, samples, inner_lrs], fraction of trials in which MAML's
            estimate has the lower risk before any update.
        maml_better_after: the same after one gradient step of that rate on N fresh samples.
        drs_risk_before, maml_risk_before: mean risk of each estimate before any update, same axes.
        drs_risk_after, maml_risk_after: after the update.
        drs_excess_before_quantiles, ...: [tasks, samples, inner_lrs, 5], quantiles at `QUANTILES`
            of the risk above the least possible.
        least_risk_before: the least risk of any parameter before the update.
        least_risk_after: [samples, inner_lrs], after it.
        prediction: the theory's counterpart, once computed.
    """

    settings: Settings
    maml_better_before: Array
    maml_better_after: Array
    drs_risk_before: Array
    maml_risk_before: Array
    drs_risk_after: Array
    maml_risk_after: Array
    drs_excess_before_quantiles: Array
    maml_excess_before_quantiles: Array
    drs_excess_after_quantiles: Array
    maml_excess_after_quantiles: Array
    least_risk_before: float
    least_risk_after: Array
    prediction: Prediction | None = None

    def to_npz(self, path: str | Path) -> None:
        """Write everything to one NumPy file (.npz), which appears whole or not at all.

        Beside the arrays it holds `tasks`, `samples`, `inner_lrs` and `quantiles` (the values along
        the axes) and `about`, a JSON text with the settings, the axes of every array and a digest
        of everything.
        """
        settings = self.settings
        arrays: dict[str, Any] = {
            "tasks": np.array(settings.tasks),
            "samples": np.array(settings.samples),
            "inner_lrs": np.array(settings.inner_lrs),
            "quantiles": np.array(QUANTILES),
        }
        axes = dict(_AXES)
        arrays.update({name: np.asarray(getattr(self, name)) for name in _AXES})
        if self.prediction is not None:
            for name, of in _PREDICTED_AXES.items():
                arrays[f"predicted_{name}"] = getattr(self.prediction, name)
                axes[f"predicted_{name}"] = of
        about = {"settings": settings.as_dict(), "axes": axes}
        write_sealed(Path(path), FORMAT, about, arrays)


def load(path: str | Path) -> Sweep:
    """The sweep in a file that `Sweep.to_npz` wrote, exactly as it was.

    Raises:
        InputError (a ValueError): there is no such file, it cannot be read, is not one of these, is
            damaged or was changed, or is of another version.
    """
    named = f"result file {str(path)!r}"
    about, arrays = read_sealed(Path(path), FORMAT, named, "run the study again to make one")
    fields = {field.name for field in dataclasses.fields(Settings)}
    stored = about.get("settings")
    if not isinstance(stored, dict) or set(stored) != fields:
        raise InputError(f"{named} does not hold the settings of a study")
    settings = Settings(**stored)
    sizes = {
        **{name: len(getattr(settings, name)) for name in _GRID},
        "quantiles": len(QUANTILES),
    }
    wanted = dict(_AXES)
    if "predicted_crossover" in arrays:
        wanted.update({f"predicted_{name}": axes for name, axes in _PREDICTED_AXES.items()})
    for name, axes in wanted.items():
        shape = tuple(sizes[axis] for axis in axes)
        array = arrays.get(name)
        if array is None or array.shape != shape or array.dtype != np.float64:
            raise InputError(f"{named} lacks {name} with shape {list(shape)}, float64")
    prediction = None
    if "predicted_crossover" in arrays:
        prediction = Prediction(**{n: arrays[f"predicted_{n}"].copy() for n in _PREDICTED_AXES})
    values: dict[str, Any] = {name: arrays[name].copy() for name in _AXES}
    values["least_risk_before"] = float(values["least_risk_before"])
    return Sweep(settings, **values, prediction=prediction)
