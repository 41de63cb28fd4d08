"""The native kernels as NumPy sees them: settings in, arrays out. Random numbers depend on the
seed, the dimension, (M, N), the trial and the task alone: not on the device, threads, instruction
level, the other rates or cells, or how trials are cut into calls.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from innerloop import _native
from innerloop.studies.linear_regression.risks import Risk, risk
from innerloop.studies.linear_regression.settings import Cell, Settings

Array = NDArray[np.float64]


class Trials(NamedTuple):
    """Excess risks (above the least possible) of both estimators in every trial.

    Members:
        drs_before: [trials], pooled least squares before any update.
        maml_before: [trials, inner_lrs].
        drs_after: [trials, inner_lrs], after the update with that rate.
        maml_after: [trials, inner_lrs].
        drs: [trials, p], the estimates themselves, where asked for.
        maml: [trials, inner_lrs, p].
    """

    drs_before: Array
    maml_before: Array
    drs_after: Array
    maml_after: Array
    drs: Array | None
    maml: Array | None


class Tasks(NamedTuple):
    """Tasks of some trials and what the estimators see of their data.

    Members:
        theta: [trials, tasks, p], regression vectors.
        sigma2: [trials, tasks], noise variances.
        Q: [trials, tasks, p, p], input covariances.
        gram: [trials, tasks, 2, p, p], X'X / N of support and query.
        moment: [trials, tasks, 2, p], X'y / N of support and query.
    """

    theta: Array
    sigma2: Array
    Q: Array
    gram: Array
    moment: Array


def risks_of(settings: Settings, samples: int) -> list[Risk]:
    """The risk before the update, then after it at every inner rate."""
    rates = (0.0, *settings.inner_lrs)
    return [risk(settings.p, settings.beta, rate, samples) for rate in rates]


class _Call(NamedTuple):
    """One call of a kernel: (p, N, beta, key), sizes, rates [R] and risks [1 + R, 2]."""

    law: Any
    tasks: int
    first: int
    trials: int
    rates: Array
    risks: Array
    threads: int
    estimates: bool

    def shapes(self) -> list[tuple[int, ...]]:
        """Of the excess risks, and of the estimates if they are wanted."""
        rates, p = len(self.rates), self.law[0]
        estimates = [(self.trials, 1 + rates, p)] if self.estimates else []
        return [(self.trials, 1 + 3 * rates), *estimates]


def run_trials(
    settings: Settings,
    cell: Cell,
    *,
    first: int = 0,
    trials: int | None = None,
    threads: int = 1,
    estimates: bool = False,
    device: torch.device | str = "cpu",
) -> Trials:
    """Trials first, first + 1, ... of one cell, by the native kernel.

    Args:
        settings: law, rates, seed; `settings.trials` unless `trials` is given.
        cell: (M, N).
        first: number of the first trial.
        trials: how many.
        threads: workers of the CPU; they do not change a bit.
        estimates: also return the estimates.
        device: the CPU, or a CUDA device, which does not change a bit either.

    Raises:
        RuntimeError: the native extension is missing, or CUDA reports an error.
    """
    where = torch.device(device)
    rates = np.array(settings.inner_lrs, dtype=np.float64)
    call = _Call(
        _law(settings, cell),
        cell.tasks,
        first,
        settings.trials if trials is None else trials,
        rates,
        np.array([each[1:] for each in risks_of(settings, cell.samples)], dtype=np.float64),
        threads,
        estimates,
    )
    excess, *theta = _RUNNERS[where.type](call, where)
    number = len(rates)
    return Trials(
        excess[:, 0],
        excess[:, 1 : 1 + number],
        excess[:, 1 + number : 1 + 2 * number],
        excess[:, 1 + 2 * number :],
        theta[0][:, 0] if theta else None,
        theta[0][:, 1:] if theta else None,
    )


def _run_on_cpu(call: _Call, device: torch.device) -> list[Array]:
    """The arrays of `call.shapes()`."""
    out = [np.empty(shape) for shape in call.shapes()]
    addresses = [array.ctypes.data for array in out]
    _native.native().regression_trials(
        call.law,
        call.tasks,
        call.first,
        call.trials,
        len(call.rates),
        call.rates.ctypes.data,
        call.risks.ctypes.data,
        addresses[0],
        addresses[1] if call.estimates else 0,
        call.threads,
    )
    return out


def _run_on_cuda(call: _Call, device: torch.device) -> list[Array]:
    """The same on the current stream of a GPU."""
    index = torch.cuda.current_device() if device.index is None else device.index
    stream = torch.cuda.current_stream(index).cuda_stream
    return launch_trials(_native.cuda(), call, device, (index, stream))


def launch_trials(
    module: ModuleType, call: _Call, device: torch.device, place: tuple[int, int]
) -> list[Array]:
    """The same by a module such as innerloop._cuda, on (device, stream), with torch's memory."""

    def memory(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.float64, device=device)

    number = len(call.rates)
    out = [memory(shape) for shape in call.shapes()]
    module.regression_trials(
        call.law,
        call.tasks,
        call.first,
        call.trials,
        number,
        torch.from_numpy(call.rates).to(device),
        torch.from_numpy(call.risks).to(device),
        out[0],
        out[1] if call.estimates else None,
        memory((module.regression_scratch(call.law, call.tasks, call.trials, number),)),
        *place,
    )
    return [tensor.cpu().numpy() for tensor in out]


_RUNNERS: dict[str, Callable[[_Call, torch.device], list[Array]]] = {
    "cpu": _run_on_cpu,
    "cuda": _run_on_cuda,
}


def draw_tasks(
    settings: Settings, cell: Cell, *, first: int = 0, trials: int = 1, threads: int = 1
) -> Tasks:
    """The tasks that `run_trials` works on, with the sufficient statistics of their data."""
    p, lead = settings.p, (trials, cell.tasks)
    made = Tasks(
        np.empty((*lead, p)),
        np.empty(lead),
        np.empty((*lead, p, p)),
        np.empty((*lead, 2, p, p)),
        np.empty((*lead, 2, p)),
    )
    addresses = [array.ctypes.data for array in made]
    _native.native().regression_tasks(
        _law(settings, cell), cell.tasks, first, trials, *addresses, threads
    )
    return made


def _law(settings: Settings, cell: Cell) -> Any:
    return settings.p, cell.samples, settings.beta, settings.key(cell)
