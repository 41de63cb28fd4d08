"""What the sinusoid study measures, against NumPy and a plain loop."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from innerloop.runs.methods import JOINT, MAML, METHODS
from innerloop.runs.statistics import mean_interval
from innerloop.studies.sinusoid import measuring
from innerloop.studies.sinusoid.measuring import errors_after_steps, fits, measure
from innerloop.studies.sinusoid.settings import ADAPT_STEPS, Settings
from innerloop.studies.sinusoid.summary import Row, rows
from innerloop.studies.sinusoid.training import initial_state, network, unflatten
from innerloop.studies.sinusoid.verdict import JOINT_BETTER, MAML_BETTER, UNDECIDED, conclude
from innerloop.studies.sinusoid.waves import Stream, draw_waves, generator

SETTINGS = Settings(
    shots=4, hidden=(6, 5), test_tasks=30, validation_tasks=20, query_rows=7, rates=(0.001, 0.05)
)


def test_rows_pair_the_methods_by_task() -> None:
    rng = np.random.default_rng(2)
    errors = {method: rng.exponential(size=(25, ADAPT_STEPS + 1)) for method in METHODS}
    made = rows(errors, 0.95)
    assert [row.steps for row in made] == list(range(ADAPT_STEPS + 1))
    for row in made:
        for method in METHODS:
            assert row.median[method] == np.median(errors[method][:, row.steps])
            assert row.failed[method] == 0
        difference = errors[MAML][:, row.steps] - errors[JOINT][:, row.steps]
        assert row.change[MAML] == mean_interval(difference, 0.95)
        assert JOINT not in row.change


def theta(seed: int) -> torch.Tensor:
    return initial_state(dataclasses.replace(SETTINGS, seed=seed)).theta


def test_errors_are_those_of_a_plain_loop() -> None:
    model = network(SETTINGS)
    waves = draw_waves(generator(3, Stream.TEST), 4, 4, 7)
    got = errors_after_steps(SETTINGS, theta(0), waves.support, waves.query, 0.03)
    x = np.linspace(-5, 5, 9)
    curves = fits(SETTINGS, theta(0), waves, x)
    assert got.shape == (4, ADAPT_STEPS + 1)

    def forward(leaves: list[torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        for index in range(0, len(leaves), 2):
            inputs = torch.nn.functional.linear(inputs, leaves[index], leaves[index + 1])
            inputs = inputs.relu() if index + 2 < len(leaves) else inputs
        return inputs

    for task in range(4):
        for rate, steps_of in ((0.03, got[task]), (SETTINGS.inner_lr, None)):
            leaves = [leaf.clone().requires_grad_() for leaf in unflatten(model, theta(0)).values()]
            for step in range(ADAPT_STEPS + 1):
                if steps_of is None:
                    points = torch.from_numpy(x.astype(np.float32))[:, None]
                    wanted = forward(leaves, points).detach().numpy()[:, 0]
                    np.testing.assert_allclose(curves[task, step], wanted, rtol=2e-4, atol=2e-5)
                else:
                    error = (forward(leaves, waves.query[0][task]) - waves.query[1][task]).square()
                    assert steps_of[step] == pytest.approx(float(error.detach().mean()), rel=1e-4)
                loss = (forward(leaves, waves.support[0][task]) - waves.support[1][task]).square()
                grads = torch.autograd.grad(loss.mean(), leaves)
                leaves = [
                    (leaf - rate * g).detach().requires_grad_()
                    for leaf, g in zip(leaves, grads, strict=True)
                ]


def test_validation_tasks_pick_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_CHUNK", 7)
    trained = {method: theta(seed) for seed, method in enumerate(METHODS)}
    measured = measure(SETTINGS, trained)
    validation = draw_waves(generator(0, Stream.VALIDATION), 20, 4, 7)
    for method in METHODS:
        means = [
            errors_after_steps(
                SETTINGS, trained[method], validation.support, validation.query, rate
            ).mean(axis=0)
            for rate in SETTINGS.rates
        ]
        np.testing.assert_allclose(measured.validation[method], means, rtol=1e-12)
        for step in range(ADAPT_STEPS + 1):
            best = min(range(2), key=lambda index: means[index][step])
            assert measured.picked_rate[method][step] == SETTINGS.rates[best]
            there = errors_after_steps(
                SETTINGS,
                trained[method],
                measured.test.support,
                measured.test.query,
                SETTINGS.rates[best],
            )
            np.testing.assert_array_equal(measured.picked_errors[method][:, step], there[:, step])
        assert measured.errors[method].shape == (30, ADAPT_STEPS + 1)


def test_a_rate_that_diverges_is_not_picked() -> None:
    settings = dataclasses.replace(SETTINGS, rates=(1e4, 0.001))
    measured = measure(settings, {method: theta(0) for method in METHODS})
    assert measured.picked_rate[MAML][1:] == [0.001] * ADAPT_STEPS
    assert np.isfinite(measured.picked_errors[MAML]).all()


@pytest.mark.parametrize(
    ("shift", "answer"), [(-1.0, MAML_BETTER), (1.0, JOINT_BETTER), (0.0, UNDECIDED)]
)
def test_verdict_follows_the_paired_intervals(shift: float, answer: str) -> None:
    rng = np.random.default_rng(4)
    base = rng.exponential(size=(200, ADAPT_STEPS + 1)) + 2.0
    errors = {method: base + 0.1 * rng.standard_normal(base.shape) for method in METHODS}
    errors[MAML] = errors[MAML] + shift
    errors[MAML][:, 0] = base[:, 0]
    made: list[Row] = rows(errors, 0.95)
    verdict = conclude(SETTINGS, made, made, "The bounds say nothing.")
    assert verdict.answer == answer
    assert verdict.text.endswith("The bounds say nothing.")
    assert f"{made[1].error[MAML].mean:.3g} (95% interval" in verdict.text
    assert "diverges" not in verdict.text


def test_tasks_that_diverge_are_counted_and_said() -> None:
    errors = {method: np.full((200, ADAPT_STEPS + 1), 2.0) for method in METHODS}
    errors[MAML] *= np.linspace(0.5, 0.1, 200)[:, None]
    errors[MAML][:3, 10] = (1e11, math.inf, math.nan)
    made = rows(errors, 0.95)
    assert made[10].failed == {"joint": 0, "fomaml": 0, "maml": 3}
    assert made[9].failed[MAML] == 0
    verdict = conclude(SETTINGS, made, made, "")
    assert verdict.answer == MAML_BETTER  # one step is what MAML is trained for
    assert "MAML diverges on 3 of 30 test tasks" in verdict.text
    worst_last = np.sort(np.append(errors[MAML][3:, 10], [np.inf] * 3))
    assert made[10].median[MAML] == pytest.approx(worst_last[99:101].mean())
    assert f"medians of {made[10].median[MAML]:.3g} against 2." in verdict.text
