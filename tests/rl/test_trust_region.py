"""Conjugate gradients and the line search on problems with known answers."""

import math

import pytest
import torch

from innerloop import rl


def matrix(size, seed, condition=10.0):
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    return basis @ torch.diag(torch.logspace(0, math.log10(condition), size).double()) @ basis.T


def split(flat):
    return {"a": flat[:2], "b": flat[2:].reshape(1, -1)}


def joined(vector):
    return torch.cat([vector["a"], vector["b"].reshape(-1)])


@pytest.mark.parametrize("size", [3, 6, 10])
def test_solves_linear_systems(size):
    a = matrix(size, size)
    target = torch.randn(size, generator=torch.Generator().manual_seed(1)).double()
    found = rl.conjugate_gradient(lambda v: split(a @ joined(v)), split(target), iterations=size)
    torch.testing.assert_close(joined(found), torch.linalg.solve(a, target), rtol=1e-6, atol=1e-8)


def test_counts_its_products():
    calls = []

    def product(vector):
        calls.append(1)
        return split(matrix(10, 0, 1e3) @ joined(vector))

    target = split(torch.ones(10).double())
    for iterations in (0, 1, 4):
        calls.clear()
        rl.conjugate_gradient(product, target, iterations=iterations)
        assert len(calls) == iterations
    calls.clear()
    rl.conjugate_gradient(lambda v: (calls.append(1), v)[1], target)  # solved by the first
    assert len(calls) == 1
    zero = rl.conjugate_gradient(product, split(torch.zeros(10).double()))
    assert (joined(zero) == 0).all()


def test_step_solves_the_quadratic_problem():
    """Minimise g'x subject to x'Hx / 2 <= delta: x = -sqrt(2 delta / g'H^-1 g) H^-1 g."""
    h, g = matrix(6, 3), torch.arange(1.0, 7.0).double()
    delta = 0.02

    def evaluate(params):
        x = joined(params)
        return float(g @ x), float(x @ h @ x) / 2 * (1 - 1e-6)

    step = rl.trust_region_step(
        split(torch.zeros(6).double()),
        split(g),
        lambda v: split(h @ joined(v)),
        evaluate,
        max_kl=delta,
    )
    direction = torch.linalg.solve(h, g)
    expected = -math.sqrt(2 * delta / float(g @ direction)) * direction
    assert step.accepted
    assert step.tried == 1
    torch.testing.assert_close(joined(step.params), expected, rtol=1e-6, atol=1e-9)
    assert step.loss == pytest.approx(float(g @ expected), rel=1e-6)
    assert step.kl == pytest.approx(delta, rel=1e-5)


@pytest.mark.parametrize(
    ("allowed", "tried"), [(1.0, 1), (0.8, 2), (0.79, 3), (0.8**14, 15), (0.8**15, None)]
)
@pytest.mark.parametrize("limit", ["kl", "loss"])
def test_line_search(allowed, tried, limit):
    """The longest of the lengths 0.8^i, i < 15, that both conditions accept; else nothing moves."""
    start = {"a": torch.tensor([5.0], dtype=torch.float64)}
    full = math.sqrt(2 * 0.1 / (1 + 1e-8))

    def evaluate(params):
        length = (5.0 - float(params["a"])) / full
        fits = length <= allowed * (1 + 1e-12)
        if limit == "kl":
            return -length, 0.05 if fits else 0.2
        return (-length if fits else 1e-9), 0.05 * (length > 0)

    step = rl.trust_region_step(
        start, {"a": torch.ones(1).double()}, lambda v: v, evaluate, max_kl=0.1
    )
    assert step.accepted == (tried is not None)
    if tried is None:
        assert torch.equal(step.params["a"], start["a"])
        assert (step.tried, step.loss, step.kl) == (15, *evaluate(start))
    else:
        assert step.tried == tried
        assert float(step.params["a"]) == pytest.approx(5 - 0.8 ** (tried - 1) * full, rel=1e-9)


@pytest.mark.parametrize("broken", [math.nan, -1.0, 0.0])
def test_no_step_along_a_direction_without_curvature(broken):
    start = {"a": torch.ones(2)}
    step = rl.trust_region_step(
        start,
        {"a": torch.ones(2)},
        lambda v: {"a": broken * v["a"]},
        lambda p: (float(p["a"].sum()), 0.0),
        max_kl=0.1,
    )
    assert not step.accepted
    assert torch.equal(step.params["a"], start["a"])


def test_nan_is_not_accepted():
    step = rl.trust_region_step(
        {"a": torch.zeros(1)},
        {"a": torch.ones(1)},
        lambda v: v,
        lambda p: (math.nan, math.nan) if float(p["a"]) else (0.0, 0.0),
        max_kl=0.1,
    )
    assert not step.accepted
