"""A unit of work: exact solutions, sample budgets, stability, and independence of order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import class_family, linear_family

from innerloop.compare import episodes as ep
from innerloop.compare.config import Config
from innerloop.compare.descent import training_iterations
from innerloop.compare.exact import stationary_point
from innerloop.compare.frames import tasks_of_frame
from innerloop.compare.problem import Problem
from innerloop.compare.tables import check_tasks
from innerloop.compare.training import run_unit
from innerloop.compare.units import Unit, all_units
from innerloop.runs.errors import InputError
from innerloop.runs.methods import FIRST_ORDER, JOINT, MAML


def linear_problem(**settings: object) -> Problem:
    config = Config(
        **{"task": "task", "target": "y", "shots": 4, "draws": 3, "adapt_steps": 2, **settings}  # type: ignore[arg-type]
    )
    frame = linear_family(24, 10, seed=5, correlated=True, noise=0.3)
    return Problem(check_tasks(tasks_of_frame(frame, config, "table"), config), config)


def with_ones(x: torch.Tensor) -> np.ndarray:
    return np.concatenate([x.numpy(), np.ones((*x.shape[:-1], 1))], axis=-1)


def closed_form(drawn: ep.Episodes, rate: float, steps: int, order: int) -> np.ndarray:
    """Root of the meta-gradient from normal equations; a task maps theta to A theta + b."""
    size = drawn.support_x.shape[-1] + 1
    matrix, vector = np.zeros((size, size)), np.zeros(size)
    for sx, sy, qx, qy in zip(
        with_ones(drawn.support_x),
        drawn.support_y.numpy(),
        with_ones(drawn.query_x),
        drawn.query_y.numpy(),
        strict=True,
    ):
        hessian, moment = sx.T @ sx / len(sx), sx.T @ sy[:, 0] / len(sx)
        inner, shift = np.eye(size), np.zeros(size)
        for _ in range(steps):
            inner = inner - rate * hessian @ inner
            shift = shift - rate * hessian @ shift + rate * moment
        left = inner.T if order == 2 else np.eye(size)
        matrix += left @ qx.T @ qx @ inner / len(qx)
        vector += left @ qx.T @ (qy[:, 0] - qx @ shift) / len(qx)
    return np.linalg.solve(matrix, vector)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(("method", "order"), [(MAML, 2), (FIRST_ORDER, 1)])
def test_exact_solution_is_the_closed_form(method: str, order: int, steps: int) -> None:
    problem = linear_problem()
    data = problem.split_data(0)
    rows = ep.all_rows(data.data, data.parts.training)
    theta, why, _ = stationary_point(problem, Unit(0, method, 0.1, steps), rows, data.training)
    assert why is None
    np.testing.assert_allclose(
        theta.numpy(), closed_form(data.training, 0.1, steps, order), rtol=1e-9, atol=1e-11
    )


def test_joint_training_is_least_squares_with_equal_task_weights() -> None:
    problem = linear_problem()
    data = problem.split_data(1)
    x, y, count = rows = ep.all_rows(data.data, data.parts.training)
    theta, _, _ = stationary_point(problem, Unit(1, JOINT, 0.0, 0), rows, data.training)
    assert (count == 10).all()
    design = with_ones(x).reshape(-1, 2)
    expected = np.linalg.lstsq(design, y.numpy().reshape(-1), rcond=None)[0]
    np.testing.assert_allclose(theta.numpy(), expected, rtol=1e-9, atol=1e-11)


def test_ragged_tasks_weigh_the_same() -> None:
    config = Config(task="task", target="y", shots=4, draws=2)
    frame = linear_family(12, 10, seed=5, correlated=True, noise=0.3)
    frame = frame[(frame["task"] % 2 == 0) | (frame.index % 10 < 6)]
    problem = Problem(tasks_of_frame(frame, config, "table"), config)
    data = problem.split_data(0)
    x, y, count = rows = ep.all_rows(data.data, data.parts.training)
    assert sorted(set(count.tolist())) == [6, 10]
    theta, _, _ = stationary_point(problem, Unit(0, JOINT, 0.0, 0), rows, data.training)
    scale = np.concatenate([np.full(n, n**-0.5) for n in count.tolist()])
    kept = [(with_ones(x[t, :n]), y[t, :n, 0].numpy()) for t, n in enumerate(count.tolist())]
    design = np.concatenate([a for a, _ in kept]) * scale[:, None]
    target = np.concatenate([b for _, b in kept]) * scale
    expected = np.linalg.lstsq(design, target, rcond=None)[0]
    np.testing.assert_allclose(theta.numpy(), expected, rtol=1e-9, atol=1e-11)
    result = run_unit(problem, Unit(0, MAML, 0.1, 1))
    assert result["trained"]
    assert all(value is not None for value in result["curves"][0]["test"])


def test_unstable_first_order_training_is_refused() -> None:
    # Beyond 2 / curvature the first-order map has an eigenvalue below zero: descent runs away.
    result = run_unit(linear_problem(), Unit(0, FIRST_ORDER, 5.0, 1))
    assert not result["trained"]
    assert "unstable" in result["why"]
    assert result["curves"][0]["test"] == [None] * 3


def test_large_rates_are_flagged_as_unstable() -> None:
    problem = linear_problem(inner_lrs=(0.01, 3.0))
    slow, fast = run_unit(problem, Unit(0, JOINT, 0.0, 0))["curves"]
    assert slow["stable"] == [True, True, True]
    assert fast["stable"] == [True, False, False]


def test_units_do_not_depend_on_what_ran_before() -> None:
    problem = linear_problem(splits=2, inner_lrs=(0.1, 0.3), steps=(1,))
    units = all_units(problem.config)
    forward = {unit.name: run_unit(problem, unit) for unit in units}
    fresh = linear_problem(splits=2, inner_lrs=(0.1, 0.3), steps=(1,))
    backward = {unit.name: run_unit(fresh, unit) for unit in reversed(units)}
    assert forward == backward
    assert len(forward) == len(units) == 2 * (1 + 2 * 2)


def test_networks_get_equal_sample_touches() -> None:
    problem = linear_problem(hidden=(8,), iterations=300)
    data = problem.split_data(0)
    joint, one, five = (training_iterations(problem, data, steps) for steps in (0, 1, 5))
    assert joint[0] == one[0] == 300
    assert five[0] == round(300 * 10 / 26)
    assert five[0] * five[1] == pytest.approx(joint[0] * joint[1], rel=0.01)


@pytest.mark.parametrize("method", [JOINT, FIRST_ORDER, MAML])
def test_networks_learn(method: str) -> None:
    problem = linear_problem(
        hidden=(8,), iterations=80, activation="tanh", inner_lrs=(0.05,), steps=(1,)
    )
    unit = Unit(0, method, 0.0, 0, 0.01) if method == JOINT else Unit(0, method, 0.05, 1, 0.01)
    result = run_unit(problem, unit)
    assert result["trained"]
    assert result["iterations"] == 80
    # The task mean of the slope explains most of the variance; 1 is predicting the mean.
    assert result["curves"][0]["test"][0] < 0.6
    assert all(0 <= c < 4 for c in result["curves"][0]["checkpoint"])
    assert result == run_unit(
        linear_problem(
            hidden=(8,), iterations=80, activation="tanh", inner_lrs=(0.05,), steps=(1,)
        ),
        unit,
    )


def test_classes_report_risk_and_error() -> None:
    config = Config(
        task="unit",
        target="kind",
        shots=6,
        draws=2,
        adapt_steps=1,
        iterations=200,
        inner_lrs=(0.1,),
        steps=(1,),
    )
    problem = Problem(
        check_tasks(tasks_of_frame(class_family(16, 15, seed=2), config, "t"), config), config
    )
    assert problem.loss == "cross_entropy"
    assert not problem.exact
    curve = run_unit(problem, Unit(0, MAML, 0.1, 1, 0.03))["curves"][0]
    assert curve["test"][1] < 0.6  # log 3 = 1.1 is guessing
    assert curve["test_error"][1] < 0.25


def test_fused_backend_is_refused_clearly_when_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    import innerloop as il

    class Choice:
        backend, reason = "torch", "no kernels here"

    monkeypatch.setattr(il, "backend_for", lambda model: Choice)
    with pytest.raises(InputError, match="no kernels here"):
        linear_problem(backend="fused")
