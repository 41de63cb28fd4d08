"""JointTraining: the mean over the union of support and query rows, then fine-tuning."""

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


@pytest.mark.parametrize("backend", ["fused", "torch"])
def test_loss_is_the_mean_over_all_rows(backend):
    net = sine_net()
    support, query = regression(rows=5, seed=1), regression(rows=3, seed=2)
    learner = il.JointTraining(net, backend=backend)
    value = learner(support, query)
    value.backward()
    actual = gradients(net)
    x, y = (torch.cat(pair, 1) for pair in zip(support, query, strict=True))
    expected = F.mse_loss(net(x), y)
    expected.backward()
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    assert_close(actual, gradients(net), 1e-12)
    each = learner(support, query, reduction="none")
    torch.testing.assert_close(each, (net(x) - y).square().mean((1, 2)), rtol=1e-12, atol=0)


def test_classification_and_task_weight():
    net = class_net()
    support, query = classification(seed=1), classification(rows=3, seed=2)
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5], dtype=torch.float64)
    value = il.JointTraining(net, loss="cross_entropy")(support, query, task_weight=weight)
    expected = 0
    for t in range(4):
        x, y = (torch.cat([s[t], q[t]]) for s, q in zip(support, query, strict=True))
        expected = expected + weight[t] * F.cross_entropy(net(x), y)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("backend", ["fused", "torch"])
def test_counts_choose_the_rows_of_the_union(backend):
    net = sine_net()
    (xs, ys), (xq, yq) = regression(rows=5, seed=1), regression(rows=3, seed=2)
    s_count, q_count = torch.tensor([5, 2, 0, 0]), torch.tensor([1, 3, 2, 0])
    for t in range(4):
        xs[t, s_count[t] :] = torch.nan
        yq[t, q_count[t] :] = torch.nan
    learner = il.JointTraining(net, backend=backend)
    losses = learner((xs, ys, s_count), (xq, yq, q_count), reduction="none")
    for t in range(4):
        x = torch.cat([xs[t, : s_count[t]], xq[t, : q_count[t]]])
        y = torch.cat([ys[t, : s_count[t]], yq[t, : q_count[t]]])
        expected = F.mse_loss(net(x), y) if len(x) else losses.new_zeros(())
        torch.testing.assert_close(losses[t], expected, rtol=1e-12, atol=0)
    losses.mean().backward()
    assert all(g.isfinite().all() for g in gradients(net).values())


def test_weights_act_on_their_own_side():
    net = sine_net()
    (xs, ys), (xq, yq) = regression(rows=4, seed=1), regression(rows=2, seed=2)
    weight = torch.tensor([[0.5, 0.25, 0.0, 0.25]] * 4, dtype=torch.float64)
    losses = il.JointTraining(net)((xs, ys, None, weight), (xq, yq), reduction="none")
    s = (weight * (net(xs) - ys).square()[..., 0]).sum(1)
    q = (net(xq) - yq).square().mean((1, 2))
    torch.testing.assert_close(losses, (3 * s + 2 * q) / 5, rtol=1e-12, atol=0)


def test_fine_tuning_is_the_inner_loop():
    net = sine_net()
    support, query = regression(seed=1), regression(rows=3, seed=2)
    learner = il.JointTraining(net, inner_lr=0.1, steps=3)
    expected = torch.stack(
        loop_losses(net, support, query, inner_lr=lambda k, s: 0.1, steps=3)
    ).detach()
    result = learner.evaluate(support, query)
    torch.testing.assert_close(result.loss[:, 3], expected, rtol=1e-12, atol=0)
    outputs = learner.adapt(support)(query[0])
    torch.testing.assert_close((outputs - query[1]).square().mean((1, 2)), expected)


def test_adapting_needs_a_rate():
    support = regression()
    learner = il.JointTraining(sine_net())
    for call in (lambda: learner.adapt(support), lambda: learner.evaluate(support, support)):
        with pytest.raises(ValueError, match="inner_lr must be given to adapt"):
            call()
    assert learner.adapt(support, inner_lr=0.1, steps=2)(support[0]).shape == (4, 5, 1)
    assert learner.evaluate(support, support, steps=0).loss.shape == (4, 1)


def test_any_module_and_unused_parameters():
    net = gated_net()
    il.JointTraining(net, backend="torch")(regression(seed=1), regression(seed=2)).backward()
    assert torch.equal(net.unused.grad, torch.zeros(3, dtype=torch.float64))


def test_rows_must_fit_together():
    x, y = regression()
    with pytest.raises(ValueError, match="query x must match support x"):
        il.JointTraining(sine_net())((x, y), (x[..., :1], y))


def test_norms_for_each_step_are_refused():
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double()
    il.nn.per_step_norms(net, 3)
    learner = il.JointTraining(net, inner_lr=0.1, steps=3)
    with pytest.raises(NotImplementedError, match=r"layer '1' .* would train the first alone"):
        learner(regression(), regression(seed=2))
