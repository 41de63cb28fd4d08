"""What all units of a run share: data, model, backend, and the episodes of a split."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import innerloop as il
from innerloop.compare import episodes as ep
from innerloop.compare.config import AUTO, Config
from innerloop.compare.curvature import default_rates, largest_curvature, newcomer_curvature
from innerloop.compare.tables import Tasks
from innerloop.runs.errors import InputError
from innerloop.runs.methods import METHODS
from innerloop.runs.sizes import check_memory

EXACT_PARAMETER_LIMIT = 512
LINEAR_OUTER_RATES, NETWORK_OUTER_RATES = (0.01, 0.1), (0.003, 0.01)
LINEAR_SPLITS, NETWORK_SPLITS = 30, 10
# Where curvature is not known beforehand. Gradients of the cross-entropy are smaller than those of
# a squared error in units of variance.
RATES = {
    "mse": (0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    "cross_entropy": (0.05, 0.1, 0.2, 0.5, 1.0, 2.0),
}
MOST_UNITS = 1_000_000
_CHUNK_ITERATIONS = 32
_BYTES = 8  # of a number

Params = dict[str, torch.Tensor]


def is_quadratic(tasks: Tasks, config: Config) -> bool:
    """Whether the model is linear under squared error: its curvature depends on inputs alone."""
    return tasks.loss == "mse" and not config.hidden


def is_exact(tasks: Tasks, config: Config) -> bool:
    """Whether training objectives are quadratic and small enough to be solved."""
    parameters = (tasks.x.shape[1] + 1) * tasks.outputs
    return is_quadratic(tasks, config) and parameters <= EXACT_PARAMETER_LIMIT


def _ignored(tasks: Tasks, config: Config) -> str:
    """Which options differ from their defaults and change nothing, and why."""

    def given(*names: str) -> str:
        changed = [name for name in names if getattr(config, name) != getattr(Config, name)]
        return ", ".join("--" + name.replace("_", "-") for name in changed)

    reasons = {
        "there are no hidden layers": given("activation") if not config.hidden else "",
        "a linear model under squared error is solved exactly": given(
            "iterations", "meta_batch", "outer_lrs"
        )
        if is_exact(tasks, config)
        else "",
    }
    return "; ".join(f"{options} ({why})" for why, options in reasons.items() if options)


def _draws(tasks: int) -> int:
    """Draws per task such that all tasks together have about a thousand episodes."""
    return max(2, min(20, 1000 // tasks))


def draws_per_task(tasks: Tasks, config: Config) -> int:
    """Support/query draws of each task: one where the archive leaves nothing to draw."""
    longest = int(tasks.counts.max()) - tasks.fixed_support
    return 1 if tasks.fixed_support and longest <= config.max_query else config.draws


def resolved(tasks: Tasks, config: Config, curvature: NDArray[np.float64] | None) -> Config:
    """The configuration with what depends on the data filled in; `curvature` as of `Problem`."""
    exact = is_exact(tasks, config)
    outer = NETWORK_OUTER_RATES if config.hidden else LINEAR_OUTER_RATES
    rates = RATES[tasks.loss] if curvature is None else default_rates(curvature)
    return dataclasses.replace(
        config,
        loss=tasks.loss,
        inner_lrs=config.inner_lrs or rates,
        splits=config.splits
        if config.splits != AUTO
        else LINEAR_SPLITS
        if exact
        else NETWORK_SPLITS,
        outer_lrs=() if exact else config.outer_lrs or outer,
    )


def _curvature(tasks: Tasks, config: Config) -> NDArray[np.float64] | None:
    """[T]: each task's largest curvature as a new task, where inputs alone determine it."""
    if not is_quadratic(tasks, config):
        return None
    support = tasks.fixed_support or config.shots
    rng = ep.generator(config.seed, 0, ep.Stream.CURVATURE)
    return newcomer_curvature(tasks, support, config.draws, rng)


def _check_draws(tasks: Tasks, config: Config) -> None:
    """Refuse more draws than there is memory for."""
    rows = int(tasks.counts.max())
    episodes = len(tasks.names) * draws_per_task(tasks, config)
    row = 2 * (tasks.x.shape[1] + tasks.outputs) + 3  # on both scales, and where it was drawn
    check_memory({f"--draws {config.draws}": _BYTES * episodes * rows * row})


class Trained(NamedTuple):
    """The outcome of training: candidates (checkpoints, or one solution), and what is tested for
    each.

    `fitted` saw training tasks only, so validation tasks may judge it; `final` is what test tasks
    see: the same parameters, or the exact solution on training and validation tasks together. Both
    are empty when `why` states why there is nothing to use.
    """

    fitted: list[torch.Tensor]
    final: list[torch.Tensor]
    why: str | None
    iterations: int
    touches: int


class Problem:
    """Data, model and settings shared by all units, with the episodes of the most recent split
    kept.

    `curvature` [T] is the largest one of each task's supports on the scale of all other tasks; None
    where it depends on the parameters (networks, classes). `ignored` says which options were given
    that this model has no use for; empty if none.
    """

    def __init__(self, tasks: Tasks, config: Config) -> None:
        self.tasks = tasks
        self.ignored = _ignored(tasks, config)
        if config.draws == AUTO:
            config = dataclasses.replace(config, draws=_draws(len(tasks.names)))
        _check_draws(tasks, config)  # before any are made
        self.curvature = _curvature(tasks, config)
        self.config = config = resolved(tasks, config, self.curvature)
        self.model = il.MLP(
            [tasks.x.shape[1], *config.hidden, tasks.outputs], activation=config.activation
        )
        self.shapes: dict[str, tuple[int, ...]] = dict(self.model.shapes)
        self.parameters = sum(math.prod(shape) for shape in self.shapes.values())
        # Half the squared error makes an inner step theta - rate * X'(X theta - y) / N.
        self.loss = "half_mse" if tasks.loss == "mse" else "cross_entropy"
        self.exact = is_exact(tasks, config)
        self._check_sizes()
        wanted = (
            config.dtype if config.dtype != "auto" else ("float32" if config.hidden else "float64")
        )
        self.dtype: torch.dtype = getattr(torch, wanted)
        self.backend, self.backend_reason = self._choose_backend()
        self._split: tuple[int, SplitData] | None = None

    def _check_sizes(self) -> None:
        """Refuse settings that no machine could work off, or that this one has no memory for."""
        config = self.config
        grid = len(config.inner_lrs) * len(config.steps) * (len(METHODS) - 1) + 1
        units = config.splits * grid * max(1, len(config.outer_lrs))
        if units > MOST_UNITS:
            raise InputError(
                f"--splits {config.splits} gives {units} trainings, {units // config.splits} for "
                f"each split; at most {MOST_UNITS}: use fewer splits or a smaller grid"
            )
        widths = ",".join(map(str, config.hidden)) or "of a linear model"
        networks = self.parameters * (12 + 2 * config.adapt_steps)
        name = f"--hidden {widths} with --adapt-steps {config.adapt_steps}"
        check_memory({name: _BYTES * networks})

    def _choose_backend(self) -> tuple[str, str]:
        """The backend of every op of this run, and why."""
        wanted = self.config.backend
        if wanted == "torch":
            return wanted, "as asked"
        choice = il.backend_for(self.model)
        if wanted == "fused" and choice.backend != "fused":
            raise InputError(f"--backend fused cannot be used: {choice.reason}; use auto or torch")
        return choice.backend, choice.reason

    def unflatten(self, theta: torch.Tensor) -> Params:
        """Views of a flat vector [P], named as the model names them."""
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        parts = torch.split(theta, sizes)
        return {
            name: part.view(shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def meta_grad(
        self,
        theta: torch.Tensor,
        support: Any,
        query: Any,
        *,
        rate: float,
        steps: int,
        order: int = 2,
    ) -> Any:
        """`innerloop.meta_grad` at a flat parameter vector."""
        return il.meta_grad(
            self.unflatten(theta),
            support,
            query,
            model=self.model,
            inner_lr=rate,
            steps=steps,
            loss=self.loss,
            order=order,
            backend=self.backend,
        )

    def split_data(self, split: int) -> SplitData:
        """The episodes of a split; units of one split come one after another, so one is kept."""
        if self._split is None or self._split[0] != split:
            self._split = (split, SplitData(self, split))
        return self._split[1]


class SplitData:
    """Standardised data and the fixed episodes of one split, in two phases.

    First, settings are judged: trained on `training` tasks, measured on `validation` tasks. Then
    the judged setting is tested: `final_tasks` are what the tested parameters were trained on, and
    give the scale of `final_data`. An exact solution is cheap, so it is redone on all known
    (training and validation) tasks; a network keeps its first phase. `known` and `test` are on the
    final scale. `known_curvature` [E] is the largest one of each known episode's support, where
    inputs alone determine it.
    """

    def __init__(self, problem: Problem, split: int) -> None:
        config, tasks = problem.config, problem.tasks
        self.split = split
        self.parts = ep.make_split(len(tasks.names), split, config)
        known = np.concatenate([self.parts.training, self.parts.validation])
        self.data = ep.standardise(tasks, self.parts.training, problem.dtype)
        self.final_tasks, self.final_data = self.parts.training, self.data
        if problem.exact:
            self.final_tasks = known
            self.final_data = ep.standardise(tasks, known, problem.dtype)
        self.draws = draws_per_task(tasks, config)
        self.training = self._fixed(self.data, self.parts.training, ep.Stream.TRAINING, config)
        self.validation = self._fixed(
            self.data, self.parts.validation, ep.Stream.VALIDATION, config
        )
        self.known = self._fixed(self.final_data, known, ep.Stream.KNOWN, config)
        self.test = self._fixed(self.final_data, self.parts.test, ep.Stream.TEST, config)
        self.known_curvature: NDArray[np.float64] | None = None
        if is_quadratic(tasks, config):
            inputs = self.known.support_x.double().numpy()
            self.known_curvature = largest_curvature(inputs, tasks.outputs)

    def _fixed(
        self, data: ep.Scaled, tasks: NDArray[np.int64], stream: ep.Stream, config: Config
    ) -> ep.Episodes:
        rng = ep.generator(config.seed, self.split, stream)
        return ep.draw_episodes(data, np.repeat(tasks, self.draws), config, rng)

    def training_batches(self, config: Config, count: int) -> Iterator[ep.Episodes]:
        """`count` random meta-batches; iteration i is the same for every method and setting."""
        tasks = self.parts.training
        size = min(config.meta_batch, len(tasks))
        for chunk in range(math.ceil(count / _CHUNK_ITERATIONS)):
            rng = ep.generator(config.seed, self.split, ep.Stream.BATCHES, chunk)
            chosen = np.concatenate(
                [rng.permutation(tasks)[:size] for _ in range(_CHUNK_ITERATIONS)]
            )
            drawn = ep.draw_episodes(self.data, chosen, config, rng)
            for index in range(min(_CHUNK_ITERATIONS, count - chunk * _CHUNK_ITERATIONS)):
                part = slice(index * size, (index + 1) * size)
                yield ep.Episodes(
                    drawn.support_x[part],
                    drawn.support_y[part],
                    drawn.query_x[part],
                    drawn.query_y[part],
                    drawn.query_count[part],
                )
