"""One unit of work: train one method at one setting on one split, then measure it on validation
and test tasks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import innerloop as il
from innerloop.compare import episodes as ep
from innerloop.compare.config import Config
from innerloop.compare.errors import InputError
from innerloop.compare.tables import Tasks

JOINT, FIRST_ORDER, MAML = "joint", "fomaml", "maml"
METHODS = (JOINT, FIRST_ORDER, MAML)
EXACT_PARAMETER_LIMIT = 512
CHECKPOINTS = 8
UNSTABLE_SHARE = 0.01
_CHUNK_ELEMENTS = 4_000_000
_CHUNK_ITERATIONS = 32

Params = dict[str, torch.Tensor]


class Unit(NamedTuple):
    """A piece of work that depends on nothing but the configuration and the data; joint training
    has rate 0, steps 0.
    """

    split: int
    method: str
    rate: float
    steps: int

    @property
    def name(self) -> str:
        """A readable key, unique within a run."""
        setting = "" if self.method == JOINT else f"/rate={self.rate!r}/steps={self.steps}"
        return f"split={self.split}/{self.method}{setting}"


def all_units(config: Config) -> list[Unit]:
    """Every unit of a run, split by split."""
    return [
        unit
        for split in range(config.splits)
        for unit in (
            Unit(split, JOINT, 0.0, 0),
            *(
                Unit(split, method, rate, steps)
                for method in (FIRST_ORDER, MAML)
                for steps in config.steps
                for rate in config.inner_lrs
            ),
        )
    ]


class Problem:
    """Data, model and settings shared by all units, with the episodes of the most recent split
    kept.
    """

    def __init__(self, tasks: Tasks, config: Config) -> None:
        self.tasks = tasks
        self.config = config
        self.model = il.MLP(
            [tasks.x.shape[1], *config.hidden, tasks.outputs], activation=config.activation
        )
        self.shapes: dict[str, tuple[int, ...]] = dict(self.model.shapes)
        self.parameters = sum(math.prod(shape) for shape in self.shapes.values())
        # Half the squared error makes an inner step theta - rate * X'(X theta - y) / N.
        self.loss = "half_mse" if tasks.loss == "mse" else "cross_entropy"
        self.exact = (
            tasks.loss == "mse" and not config.hidden and self.parameters <= EXACT_PARAMETER_LIMIT
        )
        wanted = (
            config.dtype if config.dtype != "auto" else ("float32" if config.hidden else "float64")
        )
        self.dtype: torch.dtype = getattr(torch, wanted)
        self.backend, self.backend_reason = self._choose_backend()
        self._split: tuple[int, SplitData] | None = None

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
        the
    judged setting is tested: `final_tasks` are what the tested parameters were trained on, and give
    the scale of `final_data`. An exact solution is cheap, so it is redone on all known (training
    and validation) tasks; a network keeps its first phase. `known` and `test` are on the final
    scale.
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
        self.draws = config.draws
        longest = int(tasks.counts.max()) - tasks.fixed_support
        if tasks.fixed_support and longest <= config.max_query:
            self.draws = 1
        self.training = self._fixed(self.data, self.parts.training, ep.Stream.TRAINING, config)
        self.validation = self._fixed(
            self.data, self.parts.validation, ep.Stream.VALIDATION, config
        )
        self.known = self._fixed(self.final_data, known, ep.Stream.KNOWN, config)
        self.test = self._fixed(self.final_data, self.parts.test, ep.Stream.TEST, config)

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


def run_unit(problem: Problem, unit: Unit) -> dict[str, Any]:
    """The numbers of one unit, as JSON types (null for a risk that is not finite).

    Returns:
        `trained` and `why` (training reached a usable point), `iterations`, `touches` (samples
        that entered a gradient), and `curves`: for each inner rate used at test time, the
        `validation` and `test` risks after 0..K adaptation steps, whether adaptation is `stable`
        on known tasks, and for classes the error rates. Joint training has one curve per rate of
        the grid, MAML one at its own rate.
    """
    data = problem.split_data(unit.split)
    rates = problem.config.inner_lrs if unit.method == JOINT else (unit.rate,)
    trained = _fit_exactly(problem, data, unit) if problem.exact else _descend(problem, data, unit)
    return {
        "trained": trained.why is None,
        "why": trained.why,
        "iterations": trained.iterations,
        "touches": trained.touches,
        "curves": [_curve(problem, data, trained, rate) for rate in rates],
    }


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


def _fit_exactly(problem: Problem, data: SplitData, unit: Unit) -> Trained:
    """A linear model's solution on the training tasks, and on all known tasks."""
    rows = ep.all_rows(data.data, data.parts.training)
    fitted, why, touches = stationary_point(problem, unit, rows, data.training)
    if why is None:
        rows = ep.all_rows(data.final_data, data.final_tasks)
        final, why, touches = stationary_point(problem, unit, rows, data.known)
        if why is None:
            return Trained([fitted], [final], None, 0, touches)
    return Trained([], [], why, 0, touches)


def stationary_point(
    problem: Problem,
    unit: Unit,
    rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    drawn: ep.Episodes,
) -> tuple[torch.Tensor, str | None, int]:
    """The exact stationary point of a linear model's training objective, whose gradient is affine
    in the parameters.

    The gradient at zero and at each unit vector gives that affine map; its minimum-norm root is
    refined once. A first-order MAML map with a direction of negative real part repels gradient
    descent: no training would end there.
    """
    size = problem.parameters
    if unit.method == JOINT:
        x, y, count = rows
        support: Any = (x[:, :0], y[:, :0])
        query: Any = (x, y, count)
        touches = int(count.sum())
    else:
        support = (drawn.support_x, drawn.support_y)
        query = (drawn.query_x, drawn.query_y, drawn.query_count)
        touches = drawn.support_x.shape[0] * drawn.support_x.shape[1] * unit.steps
        touches += int(drawn.query_count.sum())
    order = 1 if unit.method == FIRST_ORDER else 2

    def gradient(theta: NDArray[np.float64]) -> NDArray[np.float64]:
        result = problem.meta_grad(
            torch.from_numpy(theta).to(problem.dtype),
            support,
            query,
            rate=unit.rate,
            steps=unit.steps,
            order=order,
        )
        return np.concatenate([part.double().numpy().ravel() for part in result.grad.values()])

    offset = gradient(np.zeros(size))
    matrix = np.column_stack([gradient(column) - offset for column in np.eye(size)])
    if not np.isfinite(matrix).all():
        return torch.zeros(size), "training diverged", touches
    values = np.linalg.eigvals(matrix)
    if values.real.min() < -1e-9 * np.abs(values).max():
        return torch.zeros(size), "first-order training is unstable at this rate", touches
    inverse = np.linalg.pinv(matrix, rcond=1e-12)
    theta = -inverse @ offset
    theta -= inverse @ gradient(theta)
    return torch.from_numpy(theta).to(problem.dtype), None, touches


def training_iterations(problem: Problem, data: SplitData, steps: int) -> tuple[int, int]:
    """Meta-iterations that one sample budget buys with `steps` inner steps, and the touches of one
    iteration.

    A touch is one sample entering one gradient: N + Q per task for joint training, steps * N + Q
        for MAML.
    """
    config = problem.config
    support = data.data.fixed_support or config.shots
    rows = problem.tasks.counts[data.parts.training] - support
    query = float(np.minimum(rows, config.max_query).mean())
    ratio = (support + query) / (max(steps, 1) * support + query)
    batch = min(config.meta_batch, len(rows))
    return max(1, round(config.iterations * ratio)), round(
        batch * (max(steps, 1) * support + query)
    )


def _descend(problem: Problem, data: SplitData, unit: Unit) -> Trained:
    """Parameters at evenly spaced checkpoints of Adam with a cosine schedule; stops early if a
    gradient is not finite.
    """
    config = problem.config
    iterations, touches = training_iterations(problem, data, unit.steps)
    seed = ep.generator(config.seed, data.split, ep.Stream.INITIAL).integers(2**62)
    source = torch.Generator().manual_seed(int(seed))
    start = problem.model.init(generator=source, dtype=problem.dtype)
    theta = torch.cat([leaf.detach().reshape(-1) for leaf in start.values()])
    optimiser = torch.optim.Adam([theta], lr=config.outer_lr, foreach=False)
    order = 1 if unit.method == FIRST_ORDER else 2
    keep = {round(iterations * (i + 1) / CHECKPOINTS) for i in range(CHECKPOINTS)}
    kept: list[torch.Tensor] = []
    done = 0
    for done, batch in enumerate(data.training_batches(config, iterations), start=1):
        support: Any = (batch.support_x, batch.support_y)
        query: Any = (batch.query_x, batch.query_y, batch.query_count)
        if unit.method == JOINT:
            query = batch.pooled()
            support = (query[0][:, :0], query[1][:, :0])
        result = problem.meta_grad(
            theta, support, query, rate=unit.rate, steps=unit.steps, order=order
        )
        flat = torch.cat([leaf.reshape(-1) for leaf in result.grad.values()])
        if not bool(torch.isfinite(flat).all()):
            break
        theta.grad = flat
        optimiser.param_groups[0]["lr"] = (
            0.5 * config.outer_lr * (1.0 + math.cos(math.pi * (done - 1) / iterations))
        )
        optimiser.step()
        if done in keep:
            kept.append(theta.detach().clone())
    why = None if kept else "training diverged"
    return Trained(kept, kept, why, done, done * touches)


def _curve(problem: Problem, data: SplitData, trained: Trained, rate: float) -> dict[str, Any]:
    """Risks after 0..K adaptation steps at one rate.

    Each number of steps uses the checkpoint with the lowest validation risk, among those that are
    stable on the known (training and validation) tasks if there are any.
    """
    thetas = trained.fitted
    steps = problem.config.adapt_steps + 1
    validation = [_measure(problem, theta, data.validation, rate, data.draws) for theta in thetas]
    stable = [
        _measure(problem, theta, data.known, rate, data.draws).stable for theta in trained.final
    ]

    def order(checkpoint: int, k: int) -> tuple[bool, float]:
        risk = float(validation[checkpoint].risk[k])
        return not stable[checkpoint][k], risk if math.isfinite(risk) else math.inf

    best = [min(range(len(thetas)), key=lambda c: order(c, k), default=None) for k in range(steps)]
    used = {c for c in best if c is not None}
    test = {c: _measure(problem, trained.final[c], data.test, rate, data.draws) for c in used}

    def pick(of: Any, name: str) -> list[float | None]:
        return [
            None if c is None else _finite(float(getattr(of[c], name)[k]))
            for k, c in enumerate(best)
        ]

    curve: dict[str, Any] = {
        "rate": rate,
        "validation": pick(validation, "risk"),
        "test": pick(test, "risk"),
        "stable": [c is not None and bool(stable[c][k]) for k, c in enumerate(best)],
    }
    if not problem.exact:
        curve["checkpoint"] = best
    if problem.tasks.classes:
        curve["validation_error"] = pick(validation, "error")
        curve["test_error"] = pick(test, "error")
    return curve


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class Measured(NamedTuple):
    """Means over episodes after 0..K adaptation steps, each [K + 1].

    `risk` and `error` (zero for regression) are of the query rows. `stable` says that the support
    loss of at most one task in a hundred, averaged over its draws, is above its value before
    adaptation.
    """

    risk: NDArray[np.float64]
    error: NDArray[np.float64]
    stable: NDArray[np.bool_]


def _measure(
    problem: Problem, theta: torch.Tensor, episodes: ep.Episodes, rate: float, draws: int
) -> Measured:
    """Adapt to every episode's support at one rate and measure; a task's draws are consecutive."""
    steps = problem.config.adapt_steps
    params = problem.unflatten(theta)
    count, shots = episodes.support_x.shape[:2]
    size = max(1, _CHUNK_ELEMENTS // ((steps + 1) * problem.parameters))
    parts = []
    for first in range(0, count, size):
        part = slice(first, first + size)
        support = (episodes.support_x[part], episodes.support_y[part])
        query = (episodes.query_x[part], episodes.query_y[part], episodes.query_count[part])
        full = torch.full((support[0].shape[0],), shots)
        adapted = il.adapt(
            params,
            support,
            model=problem.model,
            inner_lr=rate,
            steps=steps,
            loss=problem.loss,
            stepwise=True,
            backend=problem.backend,
        )
        after = [{name: leaf[:, k] for name, leaf in adapted.items()} for k in range(steps + 1)]
        parts.append(
            np.stack(
                [
                    np.concatenate(
                        [
                            _episode_risks(problem, params_k, query),
                            _episode_risks(problem, params_k, (*support, full))[:1],
                        ]
                    )
                    for params_k in after
                ],
                axis=-1,
            )
        )
    risk, error, support_loss = np.concatenate(parts, axis=1)  # [3, E, K + 1]
    by_task = support_loss.reshape(-1, draws, steps + 1).mean(axis=1)
    lowered = by_task <= by_task[:, :1] * (1.0 + 1e-6)
    stable = lowered.mean(axis=0) >= 1.0 - UNSTABLE_SHARE
    return Measured(risk.mean(axis=0), error.mean(axis=0), stable)


def _episode_risks(
    problem: Problem, params: Params, rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> NDArray[np.float64]:
    """[2, E]: mean risk and error rate of each episode's rows under per-episode parameters."""
    x, y, count = rows
    predicted = il.predict(params, x, model=problem.model, backend=problem.backend)
    outputs = predicted.double().numpy()  # [E, Q, K]
    weight = (np.arange(x.shape[1])[None, :] < count.numpy()[:, None]) / count.numpy()[:, None]
    with np.errstate(over="ignore", invalid="ignore"):
        if not problem.tasks.classes:
            loss = np.mean((outputs - y.double().numpy()) ** 2, axis=-1)
            return np.stack([np.sum(loss * weight, axis=1), np.zeros(len(loss))])
        shifted = outputs - outputs.max(axis=-1, keepdims=True)
        chosen = np.take_along_axis(shifted, y.numpy()[..., None], axis=-1)[..., 0]
        loss = np.log(np.exp(shifted).sum(axis=-1)) - chosen
        wrong = outputs.argmax(axis=-1) != y.numpy()
        return np.stack([np.sum(loss * weight, axis=1), np.sum(wrong * weight, axis=1)])
