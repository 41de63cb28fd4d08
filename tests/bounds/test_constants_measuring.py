"""What a report measures beside its bounds, with the errors it states, and what it says of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import innerloop as il
from innerloop import bounds
from innerloop.bounds.constants.measuring import _moments
from innerloop.bounds.constants.points import _root
from innerloop.bounds.constants.variance import variance_components

MODEL = il.MLP([1, 1], bias=False)


def flat(made):
    """The text without line breaks."""
    return " ".join(str(made).split())


def rows(seed, count=12, size=3, mean=0.0):
    generator = torch.Generator().manual_seed(seed)
    return mean + torch.randn(count, size, generator=generator, dtype=torch.float64)


def test_moments_and_their_jackknife_are_those_of_leaving_tasks_out_one_by_one():
    data = rows(0, mean=0.3)
    found = _moments("drs", data, "here")

    def both(part):
        variance = part.var(0).sum()
        return [(part.mean(0).square().sum() - variance / len(part)).item(), variance.item()]

    without = np.array([both(torch.cat([data[:k], data[k + 1 :]])) for k in range(len(data))])
    errors = np.sqrt((len(data) - 1) / len(data) * ((without - without.mean(0)) ** 2).sum(0))
    for estimate, value, error in zip(found, both(data), errors, strict=True):
        assert estimate == pytest.approx(value, rel=1e-12)
        assert estimate.origin.standard_error == pytest.approx(error, rel=1e-9)
        assert (estimate.standing, estimate.origin.side) == ("plug-in", "unbiased")


@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_the_squared_gradient_has_no_bias_and_an_honest_error(mean):
    """500 repetitions; means within 5 standard errors (1e-6), errors within 25 % in rms. At 0,
    where the estimate has no first-order term, the jackknife states sqrt 2 times the spread."""
    found = [_moments("drs", rows(seed, mean=mean), "here")[0] for seed in range(500)]
    values = np.array([float(each) for each in found])
    errors = np.array([float(each.origin.standard_error) for each in found])
    assert abs(values.mean() - 3 * mean**2) < 5 * values.std() / math.sqrt(500)
    stated = math.sqrt((errors**2).mean()) / (math.sqrt(2.0) if mean == 0.0 else 1.0)
    assert stated == pytest.approx(values.std(), rel=0.25)
    if mean == 0.0:
        assert (values < 0).mean() > 0.3  # a negative outcome is an outcome


def opposed(count, generator):
    """Regression tasks whose gradients at 0 cancel on average: the joint gradient is 0 there."""
    x = torch.randn(count, 8, 1, generator=generator, dtype=torch.float64)
    return x, torch.randn(count, 1, 1, generator=generator, dtype=torch.float64) * x


ZERO = {"0.weight": torch.zeros(1, 1, dtype=torch.float64)}


def test_a_gradient_that_is_not_distinguishable_from_zero_is_not_called_zero():
    """Over many draws: negative ones are printed as they are, with their error, and nothing is
    concluded from them."""
    negative = 0
    for seed in range(6):
        made = bounds.report(
            MODEL, ZERO, opposed, inner_lr=0.1, samples=4, tasks=12, probes=1, seed=seed
        )
        start = made.problem.measured["gradient2_maml_start"]
        error = start.origin.standard_error
        negative += start < 0
        text = flat(made)
        assert f"{start:.3g} (standard error {error:.2g})" in text
        if start > 2 * error:
            continue
        assert "not distinguishable from 0, so no certificate" in text
        assert "is 0 already" not in text
        assert made.vacuous
        for budget in made.informative.values():
            assert math.isinf(budget)
            assert "not distinguishable from 0" in budget.explain()
    assert negative >= 1


def test_a_gradient_that_is_clear_is_printed_with_its_error():
    made = bounds.report(
        MODEL, {"0.weight": torch.full((1, 1), 5.0)}, opposed, inner_lr=0.1, samples=4, tasks=64,
        probes=1,
    )  # fmt: skip
    start = made.problem.measured["gradient2_maml_start"]
    assert start > 2 * start.origin.standard_error
    assert f"{start:.3g} (standard error {start.origin.standard_error:.2g})" in flat(made)
    assert "not distinguishable from 0, so" not in flat(made)
    assert math.isfinite(made.informative["maml"])


def test_smoothness_is_measured_where_it_is_not_along_one_chord():
    """Half squared error of a linear model: the joint objective's smoothness is the top eigenvalue
    of the mean second moment, which a chord in another direction misses by far."""
    scale = torch.tensor([4.0, 0.1], dtype=torch.float64)

    def stretched(count, generator):
        x = scale * torch.randn(count, 30, 2, generator=generator, dtype=torch.float64)
        return x, torch.randn(count, 1, 1, generator=generator, dtype=torch.float64) * x[..., :1]

    model = il.MLP([2, 1], bias=False)
    start = {"0.weight": torch.zeros(1, 2, dtype=torch.float64)}
    end = {"0.weight": torch.tensor([[0.0, 1.0]], dtype=torch.float64)}
    made = bounds.report(
        model, start, stretched, inner_lr=0.01, samples=10, queries=20, tasks=20,
        loss="half_mse", trajectory=[end], probes=1,
    )  # fmt: skip
    x, _ = stretched(20, torch.Generator().manual_seed(0))
    moment = torch.einsum("tni,tnj->tij", x, x) / 30
    exact = torch.linalg.eigvalsh(moment.mean(0))[-1].item()
    seen = made.problem.measured["smoothness_drs"]
    assert seen == pytest.approx(exact, rel=1e-6)
    assert seen.origin.side == "lower bound"
    chord = float(seen.origin.how.split("chord of the run (")[1].split(")")[0])
    assert chord < 0.02 * exact
    assert 1.0 <= made.looseness["smoothness_drs"] < 3.0
    ratio, used = made.looseness["smoothness_drs"], made.comparison.drs.smoothness
    assert f"smoothness of joint training: {used:.4g}, {ratio:.3g} times the {seen:.4g} " in flat(
        made
    )
    assert "which may be less than the truth: 10 power steps at 2 points" in flat(made)


def test_smoothness_of_maml_that_is_measured_is_a_lower_bound_near_the_truth():
    """Quadratic tasks: the MAML objective of fixed supports has the mean of A Q A as Hessian."""
    model = il.MLP([2, 1], bias=False)
    start = {"0.weight": torch.zeros(1, 2, dtype=torch.float64)}

    def tasks(count, generator):
        x = torch.randn(count, 12, 2, generator=generator, dtype=torch.float64)
        return x, x[..., :1] - x[..., 1:]

    made = bounds.constants.problem_constants(
        model, start, tasks, inner_lr=0.1, samples=6, tasks=10, loss="half_mse", probes=0
    )
    x, _ = tasks(10, torch.Generator().manual_seed(0))
    support, query = (
        torch.einsum("tni,tnj->tij", part, part) / 6 for part in (x[:, :6], x[:, 6:12])
    )
    turn = torch.eye(2, dtype=torch.float64) - 0.1 * support
    exact = torch.linalg.eigvalsh((turn.mT @ query @ turn).mean(0))[-1].item()
    assert 0.9 * exact <= made.measured["smoothness_maml"] <= exact * (1 + 1e-9)


def test_a_root_that_is_not_clear_of_zero_has_no_error_of_first_order():
    clear = 0
    for seed in range(8):
        x, y = opposed(10, torch.Generator().manual_seed(seed))
        found = variance_components(MODEL, {"0.weight": torch.full((1, 1), 0.3)}, (x, y), probes=0)
        for name, square in (("sigma_gamma", found.sigma_gamma2), ("mean", found.gradient2)):
            root = _root(name, square)
            error = square.origin.standard_error
            assert root == pytest.approx(math.sqrt(max(0.0, square)))
            if square > 2 * error:
                clear += 1
                assert root.origin.standard_error == pytest.approx(float(error / (2 * root)))
                assert root.reason is None
            else:
                assert root.origin.standard_error is None
                assert "is not clear of 0" in root.reason
    assert 0 < clear < 16


def test_the_sampling_factor_does_not_skip_what_is_least_known():
    """A component that is estimated as 0 has the largest relative error of all, not none."""

    def same(count, generator):
        x = torch.randn(count, 8, 1, generator=generator, dtype=torch.float64)
        return x, torch.randn(count, 8, 1, generator=generator, dtype=torch.float64)

    unclear = 0
    for seed in range(4):
        made = bounds.report(
            MODEL, ZERO, same, inner_lr=0.1, samples=4, tasks=8, probes=2, seed=seed
        )
        if not 0.0 < made.crossover < math.inf:
            continue
        names = [
            name
            for name, each in made.problem.estimates.items()
            if each.origin.side == "unbiased"
            and not name.startswith("gap")
            and each.origin.standard_error is None
        ]
        if names:
            unclear += 1
            assert math.isinf(made.sampling_factor)
            assert all(name in made.sampling_factor.reason for name in names)
            assert "the tasks drawn do not determine it" in flat(made)
    assert unclear >= 1
