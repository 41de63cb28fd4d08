"""Mean squared errors of trained networks on new tasks after 0 to K fine-tuning steps."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import innerloop as il
from innerloop.runs.methods import METHODS
from innerloop.studies.sinusoid.settings import ADAPT_STEPS, LOSS, Settings
from innerloop.studies.sinusoid.training import network, unflatten
from innerloop.studies.sinusoid.units import ORACLE
from innerloop.studies.sinusoid.waves import Side, Stream, Waves, draw_waves, generator

Errors = NDArray[np.float64]
_CHUNK = 500


@dataclasses.dataclass(frozen=True)
class Measured:
    """Test errors of every method in one run.

    Args:
        test: the test tasks.
        errors: {method: [T, K + 1]} mean squared errors on the query rows after 0..K steps at the
            inner rate of training.
        picked_rate: {method: [K + 1]} fine-tuning rate with the lowest mean validation error after
            so many steps (the first of `rates` before any step).
        picked_errors: {method: [T, K + 1]} test errors at these rates.
        validation: {method: [rates, K + 1]} mean validation errors.
        oracle: [T], of the network that is told amplitude and phase.
    """

    test: Waves
    errors: dict[str, Errors]
    picked_rate: dict[str, list[float]]
    picked_errors: dict[str, Errors]
    validation: dict[str, Errors]
    oracle: Errors


def errors_after_steps(
    settings: Settings, theta: torch.Tensor, support: Side, query: Side, rate: float
) -> Errors:
    """[T, K + 1]: mean squared error of each task's query rows after 0..K steps on its support."""
    model = network(settings)
    params = unflatten(model, theta)
    parts = []
    for first in range(0, len(support[0]), _CHUNK):
        part = slice(first, first + _CHUNK)
        result = il.meta_grad(
            params,
            (support[0][part], support[1][part]),
            (query[0][part], query[1][part]),
            model=model,
            inner_lr=rate,
            steps=ADAPT_STEPS,
            loss=LOSS,
            order=1,
            stepwise=True,
        )
        assert result.query_loss is not None
        parts.append(result.query_loss.double().numpy())
    return np.concatenate(parts)


def measure(settings: Settings, trained: dict[str, torch.Tensor]) -> Measured:
    """Every method on the same validation and test tasks, those of the study's own seed.

    Args:
        trained: parameters [P] of one run, by method, with the oracle's.
    """
    validation, test = (
        draw_waves(generator(settings.seed, stream), tasks, settings.shots, settings.query_rows)
        for stream, tasks in (
            (Stream.VALIDATION, settings.validation_tasks),
            (Stream.TEST, settings.test_tasks),
        )
    )
    errors, rates, picked, judged = {}, {}, {}, {}
    for method in METHODS:
        theta = trained[method]

        def on(waves: Waves, rate: float, theta: torch.Tensor = theta) -> Errors:
            return errors_after_steps(settings, theta, waves.support, waves.query, rate)

        errors[method] = on(test, settings.inner_lr)
        means = np.stack([on(validation, rate).mean(axis=0) for rate in settings.rates])
        best = np.argmin(np.where(np.isfinite(means), means, np.inf), axis=0)
        at_rate: dict[int, Any] = {
            index: on(test, settings.rates[index]) for index in sorted(set(best.tolist()))
        }
        judged[method] = means
        rates[method] = [settings.rates[index] for index in best]
        picked[method] = np.stack(
            [at_rate[index][:, step] for step, index in enumerate(best.tolist())], axis=1
        )
    return Measured(
        test, errors, rates, picked, judged, oracle_errors(settings, trained[ORACLE], test)
    )


def oracle_errors(settings: Settings, theta: torch.Tensor, test: Waves) -> Errors:
    """[T]: mean squared error of each task's query rows by a network that is told the waves."""
    model = network(settings, ORACLE)
    x, y = test.informed(test.query)
    error = il.predict(unflatten(model, theta), x, model=model) - y
    return np.asarray(error.double().square().mean(dim=(1, 2)).numpy())


def fits(
    settings: Settings, theta: torch.Tensor, waves: Waves, x: NDArray[np.float64]
) -> NDArray[np.float64]:
    """[T, K + 1, X]: predictions at the points `x` [X] after 0..K steps on each task's support."""
    model = network(settings)
    adapted = il.adapt(
        unflatten(model, theta),
        waves.support,
        model=model,
        inner_lr=settings.inner_lr,
        steps=ADAPT_STEPS,
        loss=LOSS,
        stepwise=True,
    )
    tasks = len(waves.support[0])
    flat = {name: leaf.flatten(0, 1) for name, leaf in adapted.items()}
    points = torch.from_numpy(x.astype(np.float32))[None, :, None]
    repeated = points.expand(tasks * (ADAPT_STEPS + 1), -1, -1).contiguous()
    predicted = il.predict(flat, repeated, model=model)
    return np.asarray(predicted.double().numpy().reshape(tasks, ADAPT_STEPS + 1, len(x)))
