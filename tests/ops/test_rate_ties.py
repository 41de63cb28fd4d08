"""Rates whose shape fits the steps and the elements of their parameter: what they mean, in every
operation and on every back end, against the same rates with both axes.

Tolerance: the same inner loops, with rates that other kernels read, in float64.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import innerloop as il
from helpers import needs_compile
from innerloop import functional, reference

S = 3  # steps, and the length of both biases
TASKS = 4
F64 = torch.float64
NETS = {"fused": nn.Tanh, "batched": nn.ELU, "torch": nn.Tanh}


def made(backend, seed=0):
    """Returns a network with parameters, and rows."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, S), NETS[backend](), nn.Linear(S, S)).double()
    rows = [torch.randn(TASKS, n, k, dtype=F64) for n in (5, 6) for k in (4, S)]
    params = {k: v.detach() for k, v in net.named_parameters()}
    return net, params, rows[:2], rows[2:]


def rates(*shape):
    """Returns rates of these shapes."""
    return 0.05 + 0.2 * torch.rand(shape, dtype=F64)


def per_step():
    return {k: rates(S) for k in ("0.weight", "0.bias", "2.weight", "2.bias")}


def per_element(params):
    return {k: rates(*v.shape) for k, v in params.items()}


# what a dict of rates holds, and whether its rates [S] of leaves [S] are per step
DECIDED = {
    "all per step": (lambda p: per_step(), True),
    "one per step": (lambda p: {**per_step(), "0.weight": 0.1, "2.weight": rates(S)}, True),
    "one with both axes": (
        lambda p: {**dict.fromkeys(p, 0.1), "2.bias": rates(S), "0.weight": rates(S, S, 4)},
        True,
    ),
    "a tie written out": (
        lambda p: {**dict.fromkeys(p, 0.1), "2.bias": rates(S), "0.bias": rates(S, S)},
        True,
    ),
    "all per element": (per_element, False),
    "one per element": (
        lambda p: {**dict.fromkeys(p, rates()), "2.bias": rates(S), "2.weight": rates(S, S)},
        False,
    ),
}
UNDECIDED = {
    "nothing else": lambda p: {"2.bias": rates(S)},
    "numbers": lambda p: {"0.weight": 0.1, "0.bias": rates(), "2.bias": rates(S)},
    "ties alone": lambda p: {"0.bias": rates(S), "2.bias": rates(S)},
    "both kinds": lambda p: {"0.weight": rates(S), "2.weight": rates(S, S), "2.bias": rates(S)},
}


def with_both_axes(given, params, stepped):
    """Returns the same rates as [S, *shape]."""
    found = {}
    for name, rate in given.items():
        shape = tuple(params[name].shape)
        rate = torch.as_tensor(rate, dtype=F64)
        if rate.shape == (S,) and (stepped or shape != (S,)):
            rate = rate.reshape(S, *[1] * len(shape))
        found[name] = rate.expand(S, *shape)
    return found


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("backend", list(NETS))
@pytest.mark.parametrize("case", list(DECIDED))
def test_a_tie_means_what_the_rest_of_the_dict_means(case, backend, order):
    net, params, support, query = made(backend)
    make, stepped = DECIDED[case]
    given = make(params)
    options = {"model": net, "steps": S, "backend": backend}
    long = with_both_axes(given, params, stepped)
    found = il.meta_grad(params, support, query, inner_lr=given, order=order, **options)
    expected = il.meta_grad(params, support, query, inner_lr=long, order=order, **options)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-10, atol=1e-12)
    assert list(found.inner_lr_grad) == list(given)
    for name, rate in given.items():  # d(long) / d(given) sums over what was repeated
        rate = torch.as_tensor(rate, dtype=F64).requires_grad_()
        spread = with_both_axes({name: rate}, params, stepped)[name]
        (summed,) = torch.autograd.grad(spread, rate, expected.inner_lr_grad[name])
        torch.testing.assert_close(found.inner_lr_grad[name], summed, rtol=1e-10, atol=1e-12)
    adapted = il.adapt(params, support, inner_lr=given, **options)
    torch.testing.assert_close(
        adapted, il.adapt(params, support, inner_lr=long, **options), rtol=1e-12, atol=1e-14
    )
    definition = reference.meta_grad(
        params, support, query, model=net, inner_lr=given, steps=S, order=order
    )
    torch.testing.assert_close(found.loss, definition.loss, rtol=1e-10, atol=0)
    torch.testing.assert_close(found.inner_lr_grad, definition.inner_lr_grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", list(NETS))
@pytest.mark.parametrize("case", list(DECIDED))
def test_autograd_reaches_tied_rates_in_the_form_given(case, backend):
    net, params, support, query = made(backend)
    drawn = DECIDED[case][0](params)
    given = {k: torch.as_tensor(v, dtype=F64).clone().requires_grad_() for k, v in drawn.items()}
    options = {"model": net, "steps": S, "backend": backend, "inner_lr": given}
    expected = il.meta_grad(params, support, query, **options).inner_lr_grad
    for total in (
        il.meta_loss(params, support, query, **options).mean(),
        functional.mean_meta_loss(params, support, query, **options),
    ):
        grads = torch.autograd.grad(total, list(given.values()))
        torch.testing.assert_close(
            dict(zip(given, grads, strict=True)), expected, rtol=1e-10, atol=1e-12
        )


@pytest.mark.parametrize("backend", list(NETS))
@pytest.mark.parametrize("case", list(UNDECIDED))
def test_a_tie_that_nothing_decides_is_per_element(case, backend):
    net, params, support, query = made(backend)
    given = UNDECIDED[case](params)
    options = {"model": net, "steps": S, "backend": backend, "adapt_params": list(given)}
    calls = {
        "meta_grad": lambda r: il.meta_grad(params, support, query, inner_lr=r, **options).loss,
        "meta_loss": lambda r: il.meta_loss(params, support, query, inner_lr=r, **options),
        "MAML": lambda r: il.MAML(
            net, inner_lr=r, steps=S, adapt_params=list(given), backend=backend
        )(support, query, reduction="none"),
        "reference": lambda r: (
            reference.meta_grad(
                params, support, query, model=net, inner_lr=r, steps=S, adapt_params=list(given)
            ).loss
        ),
    }
    ties = [k for k, v in given.items() if getattr(v, "shape", None) == params[k].shape == (S,)]

    def written_out(stepped):
        clear = {k: given[k][:, None] if stepped else given[k] for k in ties}
        return {**given, **{k: v.expand(S, S) for k, v in clear.items()}}

    for call in calls.values():
        found, other = call(given), call(written_out(True))
        torch.testing.assert_close(found, call(written_out(False)), rtol=1e-12, atol=0)
        assert not torch.allclose(found, other, rtol=1e-6)


@pytest.mark.parametrize("backend", list(NETS))
def test_one_step_has_no_ties(backend):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), NETS[backend](), nn.Linear(3, 1)).double()
    params = {k: v.detach() for k, v in net.named_parameters()}
    rows = torch.randn(TASKS, 5, 2, dtype=F64), torch.randn(TASKS, 5, 1, dtype=F64)
    options = {"model": net, "steps": 1, "backend": backend}
    for given in (
        {"2.bias": rates(1)},
        {"2.bias": rates(1), "2.weight": rates(1, 3), "0.bias": rates(1)},
        {"2.bias": rates(1), "2.weight": rates(1)},
        {"2.bias": rates(1), "0.bias": rates(3)},
    ):
        names = list(given)
        found = il.meta_grad(params, rows, rows, inner_lr=given, adapt_params=names, **options)
        long = {k: given[k].expand(1, *params[k].shape) for k in names}
        expected = il.meta_grad(params, rows, rows, inner_lr=long, adapt_params=names, **options)
        torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=0)
        for k, grad in found.inner_lr_grad.items():
            assert grad.shape == given[k].shape
            torch.testing.assert_close(grad.sum(), expected.inner_lr_grad[k].sum())


@pytest.mark.parametrize("backend", ["fused", "torch"])
@pytest.mark.parametrize("case", ["all per step", "all per element", "one with both axes"])
def test_ties_under_vmap(case, backend):
    net, params, support, query = made(backend)
    draws = [DECIDED[case][0](params) for _ in range(2)]
    draws = [{k: torch.as_tensor(v, dtype=F64) for k, v in draw.items()} for draw in draws]

    def loss(given):
        return il.meta_loss(
            params, support, query, model=net, inner_lr=given, steps=S, backend=backend
        )

    stacked = {k: torch.stack([draw[k] for draw in draws]) for k in draws[0]}
    found = torch.vmap(loss)(stacked)
    expected = torch.stack([loss(draw) for draw in draws])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    grads = torch.vmap(torch.func.grad(lambda given: loss(given).sum()))(stacked)
    for i, draw in enumerate(draws):
        one = torch.func.grad(lambda given: loss(given).sum())(draw)
        torch.testing.assert_close({k: v[i] for k, v in grads.items()}, one, rtol=1e-9, atol=1e-12)


@pytest.fixture
def compiled():
    """Returns a function compiled whole, from an empty cache."""
    torch.compiler.reset()
    return lambda function: torch.compile(function, backend="eager", fullgraph=True)


@pytest.mark.slow
@pytest.mark.ci
@needs_compile
@pytest.mark.parametrize("backend", ["fused", "torch"])
def test_ties_and_numbers_under_compile(backend, compiled):
    net, params, support, query = made(backend)

    def loss(given):
        return il.meta_loss(
            params, support, query, model=net, inner_lr=given, steps=S, backend=backend
        ).mean()

    fast = compiled(loss)
    for case in ("all per step", "all per element"):
        given = {k: v.requires_grad_() for k, v in DECIDED[case][0](params).items()}
        found, expected = fast(given), loss(given)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
        for grads in zip(
            *(torch.autograd.grad(each, list(given.values())) for each in (found, expected)),
            strict=True,
        ):
            torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)
    for number in (0.1, 0.2, 0.3):  # a symbol from the second on
        torch.testing.assert_close(fast(number), loss(number), rtol=1e-12, atol=0)


@pytest.mark.parametrize("backend", ["fused", "batched", "torch"])
def test_a_rate_that_is_no_number_is_refused(backend):
    net, params, support, query = made(backend)
    options = {"model": net, "steps": S, "backend": backend}
    nan = float("nan")
    for given, name in (
        (nan, "inner_lr"),
        ({**dict.fromkeys(params, 0.1), "2.bias": nan}, r"inner_lr\['2.bias'\]"),
    ):
        for call in (
            lambda r: il.meta_grad(params, support, query, inner_lr=r, **options),
            lambda r: il.adapt(params, support, inner_lr=r, **options),
            lambda r: il.MAML(net, inner_lr=r, steps=S, backend=backend),
            lambda r: il.MAML(net, inner_lr=0.1, steps=S, backend=backend)(
                support, query, inner_lr=r
            ),
        ):
            with pytest.raises(ValueError, match=f"{name} must be a number \\(got nan\\)"):
                call(given)
