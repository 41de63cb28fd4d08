"""Runs cells of the grid and puts their summaries together."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from innerloop import _native
from innerloop.runs.errors import InputError
from innerloop.runs.launch import usable_threads
from innerloop.studies.linear_regression.result import QUANTILES, Sweep
from innerloop.studies.linear_regression.settings import (
    BLOCK,
    INNER_LRS,
    SAMPLES,
    TASKS,
    Cell,
    Settings,
    seconds_per_trial,
)
from innerloop.studies.linear_regression.trials import risks_of, run_trials

Array = NDArray[np.float64]

# A native call takes about this long, so that Ctrl-C is heard.
_CALL_SECONDS = 0.2
# A GPU's call draws about this many tasks of p = 1: enough to fill it, with sums of some 64 MiB.
_LAUNCH_TASKS = 2**24


class Summary(NamedTuple):
    """What is kept of a cell. Columns of the last two: as `RegressionTrialsCall::excess`.

    Members:
        better_before: [inner_lrs], trials in which MAML has the lower risk before any update.
        better_after: [inner_lrs], after the update.
        mean: [1 + 3 inner_lrs], mean excess risks.
        quantiles: [5, 1 + 3 inner_lrs].
    """

    better_before: Array
    better_after: Array
    mean: Array
    quantiles: Array

    def pack(self) -> dict[str, Any]:
        """The summary as JSON types, to the last bit."""
        flat = np.concatenate([part.ravel() for part in self])
        return {"float64": base64.b64encode(flat.astype("<f8").tobytes()).decode()}


def unpack(record: Mapping[str, Any], rates: int) -> Summary:
    """The summary that `Summary.pack` wrote."""
    flat = np.frombuffer(base64.b64decode(record["float64"]), dtype="<f8").astype(np.float64)
    width = 1 + 3 * rates
    before, after, mean, quantiles = np.split(flat, np.cumsum([rates, rates, width]))
    return Summary(before, after, mean, quantiles.reshape(len(QUANTILES), width))


def sweep(
    p: int = 1,
    beta: float = 2.0,
    tasks: Sequence[int] = TASKS,
    samples: Sequence[int] = SAMPLES,
    inner_lrs: Sequence[float] = INNER_LRS,
    trials: int = 1000,
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[float], None] | None = None,
    device: torch.device | str = "cpu",
) -> Sweep:
    """How often, and by how much, MAML beats pooled least squares on every (M, N, alpha).

    Tasks: eigenvalues t ~ U(0, beta)^p of the inputs' covariance, which are also the regression
    vector, in a random orientation; noise variance U(0, beta). M tasks with N support and N query
    samples each train both methods.

    Args:
        p: dimension.
        beta: scale of the tasks.
        tasks: numbers M of training tasks.
        samples: numbers N of support (and of query) samples per task, and of samples for the
            gradient step on a test task.
        inner_lrs: rates alpha of that step in training and test; any sign.
        trials: repetitions of each (M, N); all rates of a cell share their trials.
        seed: of all random numbers.
        threads: worker threads of the CPU, torch's number by default. They do not change a bit.
        progress: called with the share of the work that is done.
        device: where to simulate: the CPU or a CUDA device. The kernels are made to give the same
            bits on both.

    Returns:
        Sweep, axes [tasks, samples, inner_lrs].

    Raises:
        InputError (a ValueError): a value outside its range, an empty grid, a repeated value, a
            device that cannot be used.
        RuntimeError: the native extension is missing, or CUDA reports an error.

    Cost:
        Proportional to trials * sum(tasks) * len(samples) * p^3, for p <= 4 about p^1.4, whatever
        the samples; rates are almost free.

    Source:
        K. Gao and O. Sener, NeurIPS 2020: tasks, estimators, grid. Results 2, 5 and 6 of
        docs/theory.md: risks in closed form.

    >>> r = sweep(tasks=[25], samples=[5], inner_lrs=[0.1, 0.3], trials=200)
    >>> r.maml_better_after.shape
    (1, 1, 2)
    """
    settings = Settings(p, beta, _tuple(tasks), _tuple(samples), _tuple(inner_lrs), trials, seed)
    workers = Workers(checked_device(device), checked_threads(threads))
    return assemble(settings, dict(simulate(settings, settings.cells(), workers, progress)))


class Workers(NamedTuple):
    """Where trials run: a device, and the CPU's threads."""

    device: torch.device
    threads: int


def checked_device(device: torch.device | str) -> torch.device:
    """A device whose kernels can be called: the CPU, or CUDA."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = torch.device("meta")
    if found.type not in ("cpu", "cuda"):
        raise InputError(f"device must be cpu, cuda or cuda:<number> (got {str(device)!r})")
    if found.type == "cuda" and (reason := _cuda_reason(found.index)):
        raise InputError(
            f"device {str(found)!r} needs the fused CUDA kernels, which cannot be used: {reason}; "
            "the default, cpu, gives the same numbers"
        )
    return found


def _cuda_reason(index: int | None) -> str:
    """Why a CUDA device cannot be used; empty if it can."""
    reason = _native.cuda_reason()
    if not reason and index is not None:
        count = torch.cuda.device_count()
        return f"torch finds {count} GPU(s)" if index >= count else _native.cuda_reason(index)
    return reason


def checked_threads(threads: int | None) -> int:
    """A usable number of threads; torch's for None."""
    if threads is None:
        return torch.get_num_threads()
    if isinstance(threads, bool) or not isinstance(threads, int):
        raise InputError(f"threads must be a whole number of at least 1 (got {threads!r})")
    return usable_threads(threads, "threads")


def simulate(
    settings: Settings,
    cells: Iterable[Cell],
    workers: Workers,
    progress: Callable[[float], None] | None = None,
) -> Iterator[tuple[Cell, Summary]]:
    """Each cell with its summary, as they are finished.

    `progress` hears the share of these cells' work after every native call.
    """
    pending = list(cells)
    total = sum(cell.tasks for cell in pending) * settings.trials
    done = 0
    for cell in pending:
        columns: list[list[Array]] = []
        per_call = _trials_per_call(settings.p, cell.tasks, workers)
        for first in range(0, settings.trials, per_call):
            count = min(per_call, settings.trials - first)
            part = run_trials(
                settings,
                cell,
                first=first,
                trials=count,
                threads=workers.threads,
                device=workers.device,
            )
            columns.append(
                [part.drs_before[:, None], part.maml_before, part.drs_after, part.maml_after]
            )
            done += cell.tasks * count
            if progress is not None:
                progress(done / total)
        yield cell, _summarise(np.concatenate([np.concatenate(c, axis=1) for c in columns]))


def _trials_per_call(p: int, tasks: int, workers: Workers) -> int:
    """On the CPU a multiple of the kernel's block, at least one block per thread."""
    device, threads = workers
    if device.type == "cuda":
        return max(_LAUNCH_TASKS // (tasks * p**2), 1)
    blocks = int(_CALL_SECONDS / (seconds_per_trial(p, tasks) / threads) / BLOCK)
    return BLOCK * max(blocks, threads)


def _summarise(excess: Array) -> Summary:
    """Counts, means and quantiles; sums run over trials in order."""
    trials, width = excess.shape
    rates = (width - 1) // 3
    drs_before, maml_before = excess[:, :1], excess[:, 1 : 1 + rates]
    drs_after, maml_after = excess[:, 1 + rates : 1 + 2 * rates], excess[:, 1 + 2 * rates :]
    return Summary(
        np.sum(maml_before < drs_before, axis=0) / trials,
        np.sum(maml_after < drs_after, axis=0) / trials,
        np.add.reduce(excess, axis=0) / trials,
        np.quantile(excess, QUANTILES, axis=0),
    )


def assemble(settings: Settings, summaries: Mapping[Cell, Summary]) -> Sweep:
    """The result from the summaries of all cells."""
    rates = len(settings.inner_lrs)
    grid = (len(settings.tasks), len(settings.samples), rates)

    def gathered(part: Callable[[Summary], Array]) -> Array:
        flat = np.stack([part(summaries[cell]) for cell in settings.cells()])
        return flat.reshape(*grid[:2], *flat.shape[1:])

    risks = [risks_of(settings, samples) for samples in settings.samples]
    before = risks[0][0].least
    after = np.array([[each.least for each in row[1:]] for row in risks])
    mean = gathered(lambda s: s.mean)
    quantiles = np.moveaxis(gathered(lambda s: s.quantiles), 2, 3)  # [M, N, 1 + 3 R, levels]
    drs_before = slice(0, 1)
    parts = [slice(1 + k * rates, 1 + (k + 1) * rates) for k in range(3)]
    maml_before, drs_after, maml_after = parts

    def same_for_all_rates(values: Array) -> Array:
        return np.repeat(values, rates, axis=2)

    return Sweep(
        settings,
        gathered(lambda s: s.better_before),
        gathered(lambda s: s.better_after),
        before + same_for_all_rates(mean[:, :, drs_before]),
        before + mean[:, :, maml_before],
        after + mean[:, :, drs_after],
        after + mean[:, :, maml_after],
        same_for_all_rates(quantiles[:, :, drs_before]),
        quantiles[:, :, maml_before],
        quantiles[:, :, drs_after],
        quantiles[:, :, maml_after],
        before,
        after,
    )


def _tuple(values: Any) -> Any:
    """Arrays and lists as tuples; anything else is left for the checks to refuse."""
    return tuple(values) if hasattr(values, "__iter__") and not isinstance(values, str) else values
