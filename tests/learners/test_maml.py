"""MAML, FOMAML and ANIL against a hand-written autograd loop and against the torch back end.

Tolerance 1e-11 relative in float64: a few hundred roundings of 1e-16 each, times the loop's
conditioning.
"""

from __future__ import annotations

import pytest
import torch
from learner_cases import (
    assert_close,
    class_net,
    classification,
    gated_net,
    gradients,
    loop_losses,
    regression,
    sine_net,
)
from torch import nn
from torch.nn import functional as F

import innerloop as il

TOLERANCE = 1e-11
CASES = {
    "regression": (sine_net, regression, "mse", "fused"),
    "classification": (class_net, classification, "cross_entropy", "fused"),
    "any module": (gated_net, regression, "mse", "torch"),
}


def constant(rate):
    """The loop's form of one rate."""
    return lambda name, step: rate


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_those_of_the_textbook_loop(case, steps, order):
    make, data, loss, backend = CASES[case]
    net = make()
    support, query = data(seed=1), data(rows=7, seed=2)
    learner = il.MAML(
        net,
        inner_lr=0.2,
        steps=steps,
        order=order,
        loss=loss,
        backend="torch" if backend == "torch" else "auto",
    )
    assert learner.backend == backend
    value = learner(support, query)
    value.backward()
    actual = gradients(net)

    expected = torch.stack(
        loop_losses(
            net, support, query, inner_lr=constant(0.2), steps=steps, order=order, loss=loss
        )
    ).mean()
    expected.backward()
    wanted = gradients(net)
    if case == "any module":
        wanted["unused"] = torch.zeros(3, dtype=torch.float64)
    assert (value - expected).abs().item() <= TOLERANCE * expected.abs().item()
    assert_close(actual, wanted, TOLERANCE)


@pytest.mark.parametrize("case", ["regression", "classification"])
def test_fused_equals_torch_back_end_with_counts_weights_and_task_weights(case):
    make, data, loss, _ = CASES[case]
    net = make()
    generator = torch.Generator().manual_seed(5)
    count = torch.tensor([2, 5, 1, 4])
    weight = torch.rand(4, 7, generator=generator, dtype=torch.float64)
    task_weight = torch.rand(4, generator=generator, dtype=torch.float64)
    support, query = (*data(rows=5, seed=1), count), (*data(rows=7, seed=2), None, weight)
    found = {}
    for backend in ("fused", "torch"):
        learner = il.MAML(net, inner_lr=0.2, steps=2, loss=loss, backend=backend)
        learner(support, query, task_weight=task_weight).backward()
        found[backend] = gradients(net)
    assert_close(found["fused"], found["torch"], TOLERANCE)


def test_orders_differ_where_there_is_curvature_and_agree_where_there_is_none():
    (x, y), query = regression(seed=1), regression(seed=2)
    far = (x, y + 100)  # huber is linear there, so a linear network has no curvature
    for net, support, loss, same in (
        (sine_net(), (x, y), "mse", False),
        (nn.Linear(2, 1).double(), (x, y), "huber", False),
        (nn.Linear(2, 1).double(), far, "huber", True),
    ):
        found = []
        for make in (il.MAML, il.FOMAML):
            make(net, inner_lr=0.2, steps=2, loss=loss)(support, query).backward()
            found.append(torch.cat([g.flatten() for g in gradients(net).values()]))
        distance = ((found[0] - found[1]).norm() / found[0].norm()).item()
        assert distance < TOLERANCE if same else distance > 1e-2


def test_reduction_none_gives_each_task_and_the_same_gradient():
    net = sine_net()
    support, query = regression(seed=1), regression(rows=3, seed=2)
    learner = il.MAML(net, inner_lr=0.2, steps=2)
    losses = learner(support, query, reduction="none")
    assert losses.shape == (4,)
    losses.mean().backward()
    each = gradients(net)
    mean = learner(support, query)
    mean.backward()
    torch.testing.assert_close(losses.mean(), mean, rtol=1e-13, atol=0)
    assert_close(gradients(net), each, TOLERANCE)


def test_task_weight_is_used_as_given():
    net = sine_net()
    support, query = regression(seed=1), regression(rows=3, seed=2)
    learner = il.MAML(net, inner_lr=0.2, steps=1)
    weight = torch.tensor([2.0, 0.0, 1.0, -0.5], dtype=torch.float64)
    losses = learner(support, query, reduction="none")
    total = learner(support, query, task_weight=weight)
    torch.testing.assert_close(total, (losses * weight).sum(), rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="task_weight must be None with reduction='none'"):
        learner(support, query, task_weight=weight, reduction="none")
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'none'"):
        learner(support, query, reduction="sum")


def test_steps_and_rate_can_be_overridden_per_call():
    net = sine_net()
    support, query = regression(seed=1), regression(rows=3, seed=2)
    learner = il.MAML(net, inner_lr=0.2, steps=1)
    other = il.MAML(net, inner_lr=0.05, steps=4)
    assert learner(support, query).item() != other(support, query).item()
    assert torch.equal(learner(support, query, steps=4, inner_lr=0.05), other(support, query))
    rate = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    learner(support, query, inner_lr=rate).backward()
    expected = il.meta_grad(
        dict(net.named_parameters()), support, query, model=net, inner_lr=0.1, steps=1
    )
    torch.testing.assert_close(rate.grad, expected.inner_lr_grad, rtol=1e-12, atol=0)


def test_parameters_are_the_modules_own():
    net = sine_net()
    learner = il.MAML(net, inner_lr=0.1, steps=1)
    assert learner.module is net
    assert [id(p) for p in learner.parameters()] == [id(p) for p in net.parameters()]
    before = net[0].weight.detach().clone()
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    learner(regression(seed=1), regression(seed=2)).backward()
    optimizer.step()
    assert not torch.equal(net[0].weight, before)


@pytest.mark.parametrize("head", [None, "4", "2"])
def test_anil_adapts_the_head_alone_and_learns_everything(head):
    net = sine_net()
    support, query = regression(seed=1), regression(rows=3, seed=2)
    learner = il.ANIL(net, inner_lr=0.2, steps=2, head=head)
    names = (f"{head or 4}.weight", f"{head or 4}.bias")
    assert learner.adapted_names == names
    learner(support, query).backward()
    actual = gradients(net)
    torch.stack(
        loop_losses(net, support, query, inner_lr=constant(0.2), steps=2, adapted=names)
    ).mean().backward()
    assert_close(actual, gradients(net), TOLERANCE)
    adapted = learner.adapt(support).params
    assert torch.equal(adapted["0.weight"], net[0].weight.expand(4, 7, 2))
    assert not torch.equal(adapted[names[0]][0], adapted[names[0]][1])


def test_anil_names_the_submodules_when_the_head_is_wrong():
    with pytest.raises(ValueError, match=r"head must name a submodule .*'0', '2', '4'.*'fc'"):
        il.ANIL(sine_net(), inner_lr=0.1, steps=1, head="fc")


def test_description_follows_changes_of_the_module():
    net = sine_net()
    support, query = regression(seed=1), regression(rows=3, seed=2)
    learner = il.MAML(net, inner_lr=0.2, steps=2)
    reference = il.MAML(net, inner_lr=0.2, steps=2, backend="torch")

    def check(backend):
        assert learner.backend == backend
        torch.testing.assert_close(
            learner(support, query), reference(support, query), rtol=1e-12, atol=0
        )

    check("fused")
    net[1] = nn.ReLU()
    check("fused")
    net[2] = nn.Linear(7, 3).double()
    net[4] = nn.Linear(3, 1).double()
    check("fused")
    net[2].bias = None
    learner, reference = (il.MAML(net, inner_lr=0.2, steps=2, backend=b) for b in ("auto", "torch"))
    check("fused")
    handle = net[2].register_forward_hook(lambda module, inputs, output: output * 2)
    with pytest.warns(il.FallbackWarning, match="forward hooks"):
        learner(support, query)
    check("torch")
    handle.remove()
    check("fused")
    handle = net[2].register_full_backward_hook(lambda module, grads, outputs: None)
    check_backend = learner.backend
    handle.remove()
    assert check_backend == "torch"


def test_hooks_of_parameters_run():
    net, seen = sine_net(), []
    net[0].weight.register_hook(lambda grad: seen.append(grad.shape))
    il.MAML(net, inner_lr=0.2, steps=1)(regression(seed=1), regression(seed=2)).backward()
    assert seen == [net[0].weight.shape]


def test_bad_arguments_are_named():
    net = sine_net()
    with pytest.raises(TypeError, match=r"MAML: module must be a torch.nn.Module \(got MLP\)"):
        il.MAML(il.MLP([1, 1]), inner_lr=0.1, steps=1)
    with pytest.raises(ValueError, match=r"adapt_params must name parameters .*'9.weight'"):
        il.MAML(net, inner_lr=0.1, steps=1, adapt_params=["9.weight"])
    with pytest.raises(ValueError, match="loss must be one of"):
        il.MAML(net, inner_lr=0.1, steps=1, loss="l1")
    with pytest.raises(ValueError, match="steps must be at least 0"):
        il.MAML(net, inner_lr=0.1, steps=-1)
    with pytest.raises(ValueError, match="module must have at least one floating-point parameter"):
        il.MAML(nn.Sequential(nn.ReLU()), inner_lr=0.1, steps=1)
    with pytest.raises(NotImplementedError, match=r"fused.*Conv2d"):
        il.MAML(nn.Conv2d(1, 1, 3), inner_lr=0.1, steps=1, backend="fused")
    x, y = regression()
    with pytest.raises(ValueError, match=r"support x must have shape \[4, N, 2\]"):
        il.MAML(net, inner_lr=0.1, steps=1)((x[..., :1], y), (x, y))


class OfOnesOwn(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 7), nn.Linear(7, 1)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))


def test_explain_says_back_end_reason_and_parameters():
    text = il.ANIL(sine_net(), inner_lr=0.1, steps=1).explain()
    assert "back end: fused, CPU kernels for the network 2-7-5-1 (tanh, softplus)\n" in text
    assert "adapted in the inner loop: 4.weight, 4.bias\n" in text
    assert "not adapted: 0.weight, 0.bias, 2.weight, 2.bias" in text
    text = il.MAML(OfOnesOwn(), inner_lr=0.1, steps=1).explain()
    assert "back end: fused, CPU kernels for the network 2-7-1 (relu)\n" in text
    text = il.MAML(nn.Conv2d(1, 1, 3), inner_lr=0.1, steps=1).explain()
    assert "back end: batched" in text
    assert "Conv2d" in text
    asked = il.MAML(sine_net(), inner_lr=0.1, steps=1, backend="torch")
    assert 'backend="torch" was asked for' in asked.explain()


def heavy_ball(net, support, query, *, steps, rate, momentum):
    """Query cross entropies [T] after steps of a heavy ball on the support's squared errors."""
    losses = []
    for xs, ys, xq, yq in zip(*support, *query, strict=True):
        phi, velocity = dict(net.named_parameters()), {}
        for _ in range(steps):
            value = F.mse_loss(torch.func.functional_call(net, phi, (xs,)), ys)
            grads = torch.autograd.grad(value, list(phi.values()), create_graph=True)
            for name, g in zip(phi, grads, strict=True):
                velocity[name] = g + momentum * velocity.get(name, 0)
            phi = {name: value - rate * velocity[name] for name, value in phi.items()}
        losses.append(F.cross_entropy(torch.func.functional_call(net, phi, (xq,)), yq))
    return torch.stack(losses)


@pytest.mark.parametrize("backend", ["fused", "batched", "torch"])
def test_momentum_and_another_loss_for_the_query_rows(backend):
    net = class_net()
    x, y = classification(seed=1)
    support = x, F.one_hot(y, 3).double()
    query = classification(rows=7, seed=2)
    learner = il.MAML(
        net, inner_lr=0.2, steps=3, momentum=0.7, query_loss="cross_entropy", backend=backend
    )
    assert learner.backend == backend
    words = "loss mse, query loss cross_entropy, 3 inner steps with momentum 0.7, order 2"
    assert f"MAML: {words}" in learner.explain()
    found = {}
    for reduction in ("mean", "none"):
        learner(support, query, reduction=reduction).mean().backward()
        found[reduction] = gradients(net)
    expected = heavy_ball(net, support, query, steps=3, rate=0.2, momentum=0.7)
    expected.mean().backward()
    wanted = gradients(net)
    for grads in found.values():
        assert_close(grads, wanted, TOLERANCE)
    result = learner.evaluate(support, query)
    for steps in range(4):
        losses = heavy_ball(net, support, query, steps=steps, rate=0.2, momentum=0.7)
        torch.testing.assert_close(result.loss[:, steps], losses.detach(), rtol=1e-12, atol=0)
        right = learner.adapt(support, steps=steps)(query[0]).argmax(2) == query[1]
        assert torch.equal(result.accuracy[:, steps], right.double().mean(1))


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (il.MAML, {"steps": 2}),
        (il.FOMAML, {"steps": 2}),
        (il.ANIL, {"steps": 2}),
        (il.MetaSGD, {"steps": 2}),
        (il.JointTraining, {"steps": 2}),
    ],
    ids=["MAML", "FOMAML", "ANIL", "MetaSGD", "JointTraining"],
)
def test_relatives_have_momentum(make, options):
    net, support = sine_net(), regression(seed=1)
    learner = make(net, inner_lr=0.1, momentum=0.5, **options)
    assert "with momentum 0.5" in learner.explain()
    adapted = il.adapt(
        dict(net.named_parameters()), support, model=net, inner_lr=0.1, momentum=0.5,
        adapt_params=learner.adapted_names, **options,
    )  # fmt: skip
    assert_close(learner.adapt(support).params, adapted, TOLERANCE)
    with pytest.raises(ValueError, match=f"{make.__name__}: momentum must be finite"):
        make(net, inner_lr=0.1, momentum=-1.0, **options)


@pytest.mark.filterwarnings("ignore::innerloop.FallbackWarning")
def test_a_query_loss_without_kernel_leaves_adaptation_fused():
    net = sine_net()
    support, query = regression(seed=1), regression(rows=3, seed=2)
    scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    class Scaled(nn.Module):
        """Squared errors times a learned number."""

        def __init__(self):
            super().__init__()
            self.scale = scale

        def forward(self, z, y):
            """Returns the loss."""
            return self.scale * F.mse_loss(z, y)

    learner = il.MAML(net, inner_lr=0.1, steps=1, query_loss=Scaled())
    plain = il.MAML(net, inner_lr=0.1, steps=1)
    assert learner.backend == "batched"
    assert "Scaled has no kernel" in learner.explain()
    assert "learned with the loss: scale" in learner.explain()
    assert torch.equal(learner.adapt(support).params["0.weight"],
                       plain.adapt(support).params["0.weight"])  # fmt: skip
    loss = learner(support, query)
    loss.backward()
    torch.testing.assert_close(loss, 2 * plain(support, query), rtol=1e-12, atol=0)
    torch.testing.assert_close(scale.grad, loss.detach() / 2, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="MAML: query_loss must be one of"):
        il.MAML(net, inner_lr=0.1, steps=1, query_loss="mean")
