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
from innerloop.studies.sinusoid.summary import Spread, over_runs, rows, spread
from innerloop.studies.sinusoid.training import initial_state, network, unflatten
from innerloop.studies.sinusoid.units import ORACLE
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
    trained[ORACLE] = initial_state(SETTINGS, ORACLE).theta
    measured = measure(SETTINGS, trained)
    test = measured.test
    known = np.stack([test.amplitude, test.phase], 1)[:, None].repeat(7, 1)
    x = torch.from_numpy(np.concatenate([test.query[0].numpy(), known], 2).astype(np.float32))
    leaves = unflatten(network(SETTINGS, ORACLE), trained[ORACLE])
    model = torch.nn.Sequential(
        *(torch.nn.Linear(3, 6), torch.nn.ReLU(), torch.nn.Linear(6, 5), torch.nn.ReLU()),
        torch.nn.Linear(5, 1),
    )
    torch.nn.utils.vector_to_parameters(
        torch.cat([a.flatten() for a in leaves.values()]), model.parameters()
    )
    wanted = (model(x).detach() - test.query[1]).square().mean(dim=(1, 2))
    np.testing.assert_allclose(measured.oracle, wanted, rtol=1e-4)
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
    measured = measure(
        settings,
        {**{m: theta(0) for m in METHODS}, ORACLE: initial_state(SETTINGS, ORACLE).theta},
    )
    assert measured.picked_rate[MAML][1:] == [0.001] * ADAPT_STEPS
    assert np.isfinite(measured.picked_errors[MAML]).all()


def one_run(errors: dict[str, np.ndarray]) -> list:
    return over_runs([rows(errors, 0.95)], 0.95)


ONE = dataclasses.replace(SETTINGS, runs=1)
TOLD = Spread(0.02, 0.02, 0.02)


@pytest.mark.parametrize(
    ("shift", "answer"), [(-1.0, MAML_BETTER), (1.0, JOINT_BETTER), (0.0, UNDECIDED)]
)
def test_verdict_of_one_run_follows_the_paired_intervals(shift: float, answer: str) -> None:
    rng = np.random.default_rng(4)
    base = rng.exponential(size=(200, ADAPT_STEPS + 1)) + 2.0
    errors = {method: base + 0.1 * rng.standard_normal(base.shape) for method in METHODS}
    errors[MAML] = errors[MAML] + shift
    errors[MAML][:, 0] = base[:, 0]
    made = one_run(errors)
    verdict = conclude(ONE, made, made, TOLD, "The bounds say nothing.")
    assert verdict.answer == answer
    assert verdict.reasons[-1] == "The bounds say nothing."
    text = " ".join(verdict.reasons)
    change = mean_interval((errors[MAML] - errors[JOINT])[:, 1], 0.95)
    assert f"{change.mean:+.3g} (95% interval {change.low:+.3g} to {change.high:+.3g}, ov" in text
    assert f"of MAML is {errors[MAML][:, 1].mean():.3g}, of" in text
    assert "has 0.02." in text
    assert "diverges" not in text
    assert "not about other seeds" in text


def test_runs_decide_where_there_are_several() -> None:
    """Intervals over tasks are narrow in every run, but the runs disagree."""
    rng = np.random.default_rng(5)
    runs = []
    for shift in (-1.0, 1.2, -0.8):
        base = rng.exponential(size=(400, ADAPT_STEPS + 1)) + 3.0
        runs.append(rows({JOINT: base, "fomaml": base, MAML: base + shift}, 0.95))
        assert abs(runs[-1][1].change[MAML].low) > 0.5
    made = over_runs(runs, 0.95)
    assert made[1].mean[MAML] == spread([run[1].error[MAML].mean for run in runs])
    assert made[1].median[MAML].high == max(run[1].median[MAML] for run in runs)
    wanted = mean_interval(np.array([run[1].change[MAML].mean for run in runs]), 0.95)
    assert made[1].change[MAML] == wanted
    settings = dataclasses.replace(SETTINGS, runs=3)
    verdict = conclude(settings, made, made, TOLD, "")
    assert verdict.answer == UNDECIDED
    assert "(median of 3 runs, least to largest)" in " ".join(verdict.reasons)


def test_tasks_that_diverge_are_counted_and_said() -> None:
    errors = {method: np.full((200, ADAPT_STEPS + 1), 2.0) for method in METHODS}
    errors[MAML] *= np.linspace(0.5, 0.1, 200)[:, None]
    fine = rows(errors, 0.95)
    errors[MAML] = errors[MAML].copy()
    errors[MAML][:3, 10] = (1e11, math.inf, math.nan)
    broken = rows(errors, 0.95)
    assert broken[10].failed == {"joint": 0, "fomaml": 0, "maml": 3}
    assert broken[9].failed[MAML] == 0
    made = over_runs([broken], 0.95)
    verdict = conclude(ONE, made, made, TOLD, "")
    assert verdict.answer == MAML_BETTER  # one step is what MAML is trained for
    text = " ".join(verdict.reasons)
    assert "MAML diverges on 3 of 30 test tasks" in text
    worst_last = np.sort(np.append(errors[MAML][3:, 10], [np.inf] * 3))
    assert broken[10].median[MAML] == pytest.approx(worst_last[99:101].mean())
    assert f"after 10 steps it is {broken[10].median[MAML]:.3g} (median over tasks)" in text
    both = over_runs([broken, fine], 0.95)[10]
    assert both.failed[MAML] == 3
    assert math.isinf(both.mean[MAML].high)
    assert both.mean[MAML].low == fine[10].error[MAML].mean
    changes = [run[10].median[MAML] - 2.0 for run in (broken, fine)]
    assert both.change[MAML] == mean_interval(np.array(changes), 0.95)


def test_spreads_of_runs() -> None:
    assert spread([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert spread([1.0, math.nan]) == Spread(math.inf, 1.0, math.inf)
    assert spread([math.inf, math.nan]) == Spread(math.inf, math.inf, math.inf)
