"""Training one method by Adam on the fused operations, stoppable after any iteration."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch

import innerloop as il
from innerloop.runs.adam import Adam
from innerloop.runs.methods import FIRST_ORDER, JOINT, MAML
from innerloop.studies.sinusoid.settings import LOSS, Settings
from innerloop.studies.sinusoid.units import ORACLE
from innerloop.studies.sinusoid.waves import Stream, generator, training_batches

Params = dict[str, torch.Tensor]


class Diverged(Exception):
    """Training reached a loss that is not finite; the text names the method."""


# The mean training loss is kept once per this many iterations.
TRACE_EVERY = 1000


@dataclasses.dataclass
class State:
    """Everything that training needs to go on.

    Args:
        done: finished iterations, which is also the position in the stream of tasks.
        theta, first, second: [P] float32, parameters and Adam's two moments.
        partial: sum of the training losses since the last entry of the trace.
        trace: mean training loss of each finished block of iterations.
    """

    done: int
    theta: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    partial: float
    trace: list[float]


def network(settings: Settings, method: str = MAML) -> il.MLP:
    """The network of the study; an oracle's has two more inputs."""
    widths = [3, *settings.widths[1:]] if method == ORACLE else settings.widths
    return il.MLP(widths, activation="relu")


def initial_state(settings: Settings, method: str = MAML) -> State:
    """The start that all methods share, or an oracle's."""
    seed = int(generator(settings.seed, Stream.INITIAL).integers(2**62))
    start = network(settings, method).init(generator=torch.Generator().manual_seed(seed))
    theta = torch.cat([leaf.detach().reshape(-1) for leaf in start.values()])
    return State(0, theta, torch.zeros_like(theta), torch.zeros_like(theta), 0.0, [])


def unflatten(model: il.MLP, theta: torch.Tensor) -> Params:
    """Views of a flat vector [P], named as the model names them."""
    parts = torch.split(theta, [math.prod(shape) for shape in model.shapes.values()])
    return {
        name: part.view(shape)
        for (name, shape), part in zip(model.shapes.items(), parts, strict=True)
    }


def train(
    settings: Settings,
    method: str,
    state: State,
    *,
    until: int,
    after_iteration: Callable[[State], None] | None = None,
) -> State:
    """Advances `state` in place to iteration `until` and returns it.

    Joint training takes the gradient on all 2 N rows of a task, MAML the meta-gradient of N query
    rows after the inner steps on N support rows; both meet the same tasks and rows. An oracle is
    trained as joint training is, with each task's amplitude and phase among its inputs.

    Raises:
        Diverged: the loss is no longer finite.
    """
    model = network(settings, method)
    params = unflatten(model, state.theta)
    adam = Adam(state.theta)
    adam.first, adam.second, adam.count = state.first, state.second, state.done
    options: dict[str, Any] = {
        "model": model,
        "inner_lr": settings.inner_lr,
        "steps": 0 if method in (JOINT, ORACLE) else settings.steps,
        "loss": LOSS,
        "order": 1 if method == FIRST_ORDER else 2,
    }
    for waves in training_batches(settings, state.done):
        if state.done >= until:
            break
        support, query = waves.support, waves.query
        if method == ORACLE:
            support, query = waves.informed(support), waves.informed(query)
        if method in (JOINT, ORACLE):
            query = (torch.cat([support[0], query[0]], 1), torch.cat([support[1], query[1]], 1))
            support = (support[0][:, :0], support[1][:, :0])
        result = il.meta_grad(params, support, query, **options)
        loss = float(result.loss.mean())
        if not math.isfinite(loss):
            raise Diverged(method)
        gradient = torch.cat([leaf.reshape(-1) for leaf in result.grad.values()])
        adam.step(gradient, settings.outer_lr)
        state.done += 1
        state.partial += loss
        if state.done % TRACE_EVERY == 0:
            state.trace.append(state.partial / TRACE_EVERY)
            state.partial = 0.0
        if after_iteration is not None:
            after_iteration(state)
    return state
