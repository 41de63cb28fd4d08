"""Learned inner rates in every form, against the autograd loop, and rates for other numbers of
steps.

Tolerance as in test_maml.py.
"""

from __future__ import annotations

import pytest
import torch
from learner_cases import assert_close, gradients, loop_losses, regression, sine_net
from torch import nn

import innerloop as il

STEPS = 3


def shapes_of(form):
    """Shape of each learned rate of sine_net."""
    leaves = {k: tuple(p.shape) for k, p in sine_net().named_parameters()}
    return {
        True: {"value": ()},
        "per_step": {"value": (STEPS,)},
        "per_tensor": {k.replace(".", "/"): () for k in leaves},
        "per_parameter": {k.replace(".", "/"): s for k, s in leaves.items()},
    }[form]


@pytest.mark.parametrize("backend", ["fused", "torch"])
@pytest.mark.parametrize("form", [True, "per_step", "per_tensor", "per_parameter"])
def test_learned_rates_have_the_gradient_of_the_loop(form, backend):
    net = sine_net()
    support, query = regression(seed=1), regression(rows=3, seed=2)
    learner = il.MAML(net, inner_lr=0.2, steps=STEPS, learn_inner_lr=form, backend=backend)
    rates = dict(learner.rates.named_parameters())
    assert {k: tuple(p.shape) for k, p in rates.items()} == shapes_of(form)
    with torch.no_grad():
        for i, rate in enumerate(rates.values()):
            rate += 0.01 * (i + 1) * torch.arange(1, rate.numel() + 1).reshape(rate.shape).sin()
    learner(support, query).backward()
    actual = {k: p.grad.clone() for k, p in learner.named_parameters()}
    learner.zero_grad()

    def rate_of(name, step):
        if form is True:
            return rates["value"]
        return rates["value"][step] if form == "per_step" else rates[name.replace(".", "/")]

    torch.stack(loop_losses(net, support, query, inner_lr=rate_of, steps=STEPS)).mean().backward()
    assert_close(actual, {k: p.grad for k, p in learner.named_parameters()}, 1e-11)


def test_rates_are_trained_by_the_optimiser_and_can_become_negative():
    net = sine_net()
    learner = il.MetaSGD(net, inner_lr=1e-3)
    assert learner.steps == 1
    optimizer = torch.optim.SGD(learner.rates.parameters(), lr=1.0)
    frozen = [p.clone() for p in net.parameters()]
    for seed in range(5):
        optimizer.zero_grad()
        learner(regression(seed=seed), regression(seed=seed + 50)).backward()
        optimizer.step()
    assert any((rate < 0).any() for rate in learner.rates.parameters())
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), frozen, strict=True))


def test_rates_of_every_tensor_and_step():
    net = sine_net()
    given = {
        k: torch.linspace(0.1, 0.2, STEPS, dtype=torch.float64) for k, _ in net.named_parameters()
    }
    learner = il.MAML(net, inner_lr=given, steps=STEPS, learn_inner_lr="per_tensor")
    assert all(tuple(p.shape) == (STEPS,) for p in learner.rates.parameters())
    fixed = il.MAML(net, inner_lr=given, steps=STEPS)
    support, query = regression(seed=1), regression(seed=2)
    assert torch.equal(learner(support, query), fixed(support, query))
    assert list(fixed.rates.parameters()) == []
    each = il.MAML(net, inner_lr=given, steps=STEPS, learn_inner_lr="per_parameter")
    assert each.rates.current()["0.weight"].shape == (STEPS, 7, 2)
    torch.testing.assert_close(each(support, query), fixed(support, query), rtol=1e-13, atol=0)


@pytest.mark.parametrize("learn", [False, True])
def test_rates_per_step_are_cut_or_the_last_is_repeated(learn):
    net = sine_net()
    support, query = regression(seed=1), regression(rows=3, seed=2)
    given = torch.tensor([0.3, 0.2, 0.1], dtype=torch.float64)
    form = "per_step" if learn else False
    learner = il.MAML(net, inner_lr=given, steps=3, learn_inner_lr=form)
    for steps in (0, 1, 2, 3, 5):
        rates = [0.3, 0.2, 0.1, 0.1, 0.1]
        expected = torch.stack(
            loop_losses(net, support, query, inner_lr=lambda k, s, r=rates: r[s], steps=steps)
        )
        value = learner(support, query, steps=steps)
        torch.testing.assert_close(value, expected.mean(), rtol=1e-12, atol=0)
        measured = learner.evaluate(support, query, steps=steps)
        torch.testing.assert_close(measured.loss[:, -1], expected.detach(), rtol=1e-12, atol=0)


def test_a_rate_per_step_never_turns_into_a_rate_per_element():
    # at 5 steps the rate [5] of the bias [5] would be ambiguous; it was given per step for 3 steps
    net = sine_net()
    support, query = regression(seed=1), regression(rows=3, seed=2)
    names = [k for k, _ in net.named_parameters()]
    given = {k: torch.tensor([0.3, 0.2, 0.1], dtype=torch.float64) for k in names}
    learner = il.MAML(net, inner_lr=given, steps=3)
    rates = [0.3, 0.2, 0.1, 0.1, 0.1]
    expected = torch.stack(
        loop_losses(net, support, query, inner_lr=lambda k, s: rates[s], steps=5)
    ).mean()
    torch.testing.assert_close(learner(support, query, steps=5), expected, rtol=1e-12, atol=0)


TIED = {"fused": nn.Tanh, "batched": nn.ELU, "torch": nn.Tanh}


def tied_net(backend, outputs=5):
    """Returns a network with biases [5] and [outputs]."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 5), TIED[backend](), nn.Linear(5, outputs)).double()


def tied_rows(outputs=5, seed=1):
    """Returns rows of both sides for `tied_net`."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(4, n, k) for n in (5, 3) for k in (2, outputs)]
    rows = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return rows[:2], rows[2:]


def assert_is_the_loop(learner, rate_of, steps, adapted=None):
    """Compares a learner with the textbook loop of these rates, in values and gradients."""
    support, query = tied_rows(learner.module[2].out_features)
    named = dict(learner.named_parameters())
    learner.zero_grad()
    value = learner(support, query, steps=steps)
    value.backward()
    actual = {k: p.grad.clone() for k, p in named.items() if p.grad is not None}
    learner.zero_grad()
    losses = loop_losses(
        learner.module, support, query, inner_lr=rate_of, steps=steps, adapted=adapted
    )
    torch.stack(losses).mean().backward()
    torch.testing.assert_close(value, torch.stack(losses).mean(), rtol=1e-12, atol=0)
    for name, p in named.items():
        if p.grad is not None:
            torch.testing.assert_close(actual[name], p.grad, rtol=1e-9, atol=1e-13)
    measured = learner.evaluate(support, query, steps=steps).loss[:, -1]
    torch.testing.assert_close(measured, torch.stack(losses).detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("backend", list(TIED))
@pytest.mark.parametrize("steps", [5, 1])  # the lengths of the two biases
def test_one_learned_rate_per_tensor_and_step_where_a_bias_has_as_many_elements(steps, backend):
    net = tied_net(backend, outputs=1)
    given = {
        k: torch.linspace(0.1, 0.2, steps, dtype=torch.float64) * (i + 1)
        for i, k in enumerate(dict(net.named_parameters()))
    }
    learner = il.MAML(
        net, inner_lr=given, steps=steps, learn_inner_lr="per_tensor", backend=backend
    )
    assert {k: tuple(v.shape) for k, v in learner.rates.current().items()} == dict.fromkeys(
        given, (steps,)
    )
    for taken in (1, 2, steps, 7):
        rates = learner.rates.current()
        assert_is_the_loop(learner, lambda k, s, r=rates: r[k][min(s, steps - 1)], taken)
    fixed = il.MAML(net, inner_lr=given, steps=steps, backend=backend)
    each = il.MAML(
        net, inner_lr=given, steps=steps, learn_inner_lr="per_parameter", backend=backend
    )
    assert each.rates.current()["2.bias"].shape == (steps, 1)
    support, query = tied_rows(1)
    for taken in (1, steps, 5, 7):
        values = [m(support, query, steps=taken).detach() for m in (learner, fixed, each)]
        torch.testing.assert_close(values, [values[0]] * 3, rtol=1e-12, atol=0)
    twin = il.MAML(net, inner_lr=given, steps=steps, learn_inner_lr="per_tensor", backend=backend)
    with torch.no_grad():
        for p in learner.rates.parameters():
            p.mul_(0.5)
    twin.load_state_dict(learner.state_dict())
    assert torch.equal(twin(support, query), learner(support, query))


@pytest.mark.parametrize("backend", list(TIED))
@pytest.mark.parametrize("adapted", [None, ("2.bias",), ("0.bias", "2.bias")])
def test_one_learned_rate_per_element_where_there_are_as_many_steps(adapted, backend):
    net = tied_net(backend)
    learner = il.MAML(
        net,
        inner_lr=0.1,
        steps=5,
        learn_inner_lr="per_parameter",
        adapt_params=adapted,
        backend=backend,
    )
    with torch.no_grad():
        for p in learner.rates.parameters():
            p += 0.05 * torch.arange(p.numel(), dtype=torch.float64).reshape(p.shape).sin()
    rates = learner.rates.current()
    assert {k: v.shape for k, v in rates.items()} == {
        k: dict(net.named_parameters())[k].shape for k in rates
    }
    for taken in (1, 4, 5, 6):
        assert_is_the_loop(learner, lambda k, s: rates[k], taken, adapted)
    with torch.no_grad():  # in the structure of what was given to a fixed learner of both axes
        long = {k: v[None].expand(5, *v.shape).clone() for k, v in rates.items()}
    fixed = il.MAML(net, inner_lr=long, steps=5, adapt_params=adapted, backend=backend)
    support, query = tied_rows()
    torch.testing.assert_close(fixed(support, query), learner(support, query), rtol=1e-12, atol=0)


@pytest.mark.parametrize("backend", list(TIED))
@pytest.mark.parametrize("learn", [False, "per_parameter"])
def test_rates_keep_their_meaning_at_numbers_of_steps_that_tie_them(learn, backend):
    net = tied_net(backend)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return 0.1 + 0.1 * torch.rand(shape, generator=generator, dtype=torch.float64)

    # unmistakable at 3 steps, and contradictory at 5
    given = {"0.weight": draw(5, 2), "0.bias": draw(3), "2.weight": draw(3), "2.bias": draw(5)}
    per_step = ("0.bias", "2.weight")
    learner = il.MAML(net, inner_lr=given, steps=3, learn_inner_lr=learn, backend=backend)
    rates = learner.rates.current()
    for taken in (1, 3, 5, 6):
        assert_is_the_loop(
            learner, lambda k, s: rates[k][min(s, 2)] if k in per_step else rates[k], taken
        )


def test_a_tie_that_nothing_decides_is_per_element_unless_the_learned_form_decides():
    net = tied_net("fused")
    tied = {"2.bias": torch.linspace(0.1, 0.3, 5, dtype=torch.float64)}
    for learn in (False, "per_parameter", "per_tensor"):
        learner = il.MAML(
            net, inner_lr=tied, steps=5, learn_inner_lr=learn, adapt_params=["2.bias"]
        )
        rates = learner.rates.current()
        for taken in (3, 5, 6):

            def rate(k, s, rates=rates, per_step=learn == "per_tensor"):
                return rates[k][min(s, 4)] if per_step else rates[k]

            assert_is_the_loop(learner, rate, taken, ("2.bias",))


def test_learned_rates_follow_the_module_to_another_dtype():
    learner = il.MAML(sine_net(), inner_lr=0.1, steps=2, learn_inner_lr="per_tensor")
    learner.float()
    x, y = regression(dtype=torch.float32)
    learner((x, y), (x, y)).backward()
    assert all(p.grad.dtype is torch.float32 for p in learner.parameters())


def test_gradients_of_rates_in_first_order_and_zero_steps():
    net = sine_net()
    support, query = regression(seed=1), regression(rows=3, seed=2)
    learner = il.FOMAML(net, inner_lr=0.2, steps=2, learn_inner_lr=True)
    learner(support, query).backward()
    actual = learner.rates.value.grad.clone()
    learner.zero_grad()
    torch.stack(
        loop_losses(
            net,
            support,
            query,
            inner_lr=lambda k, s: learner.rates.value,
            steps=2,
            order=1,
        )
    ).mean().backward()
    torch.testing.assert_close(actual, learner.rates.value.grad, rtol=1e-11, atol=0)
    for backend in ("fused", "torch"):
        learner = il.MAML(net, inner_lr=0.2, steps=0, learn_inner_lr=True, backend=backend)
        learner(support, query).backward()
        assert learner.rates.value.grad.item() == 0


def test_bad_rates_are_named():
    net = nn.Linear(2, 1)
    per_element = {"weight": torch.ones(1, 2), "bias": torch.ones(1)}
    for learn, rate, text in (
        ("per_leaf", 0.1, "learn_inner_lr must be False, True or one of"),
        (True, torch.ones(2), "be no finer than learn_inner_lr=True.*use 'per_step'"),
        ("per_step", per_element, "be no finer than .*use 'per_tensor' or 'per_parameter'"),
        ("per_tensor", per_element, "be no finer than .*use 'per_parameter'"),
        (False, torch.tensor(0.1, requires_grad=True), "inner_lr must not require grad"),
        (False, torch.ones(3), r"inner_lr must have shape \[\] or \[2\]"),
        (False, {"weight": 0.1}, "have a rate for exactly the adapted parameters"),
    ):
        with pytest.raises(ValueError, match=text):
            il.MAML(net, inner_lr=rate, steps=2, learn_inner_lr=learn)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        il.MAML(net, inner_lr=0.1, steps=0, learn_inner_lr="per_step")


def test_a_given_rate_tensor_is_copied():
    rate = torch.tensor(0.2, dtype=torch.float64)
    net = sine_net()
    learner = il.MAML(net, inner_lr=rate, steps=1)
    before = learner(regression(seed=1), regression(seed=2)).item()
    rate.fill_(5)
    assert learner(regression(seed=1), regression(seed=2)).item() == before
    assert gradients(net) == {}
