"""What a trained learner gives: adapted networks and step-wise evaluation, without autograd
state."""

from __future__ import annotations

import contextlib
import gc

import pytest
import torch
from learner_cases import (
    class_net,
    classification,
    gated_net,
    loop_losses,
    regression,
    sine_net,
)
from torch import Tensor

import innerloop as il
from innerloop.learners import evaluation


def new_graph_tensors() -> dict[int, Tensor]:
    """Tensors that carry a graph, of those made since `gc.freeze()`, by identity."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), Tensor):
            with contextlib.suppress(RuntimeError):  # torch 2.4 keeps undefined tensors
                if thing.grad_fn is not None:
                    found[id(thing)] = thing
    return found


@pytest.mark.parametrize(("make", "backend"), [(sine_net, "fused"), (gated_net, "torch")])
def test_adapted_networks_are_those_of_the_loop(make, backend):
    net = make()
    support, query = regression(seed=1), regression(rows=3, seed=2)
    learner = il.MAML(net, inner_lr=0.2, steps=2, backend=backend)
    adapted = learner.adapt(support)
    assert adapted.backend == backend
    assert adapted.tasks == 4
    outputs = adapted(query[0])
    assert outputs.shape == (4, 3, 1)
    expected = torch.stack(loop_losses(net, support, query, inner_lr=lambda k, s: 0.2, steps=2))
    got = (outputs - query[1]).square().mean((1, 2))
    torch.testing.assert_close(got, expected.detach(), rtol=1e-12, atol=0)
    for t in range(4):
        single = adapted.module(t)
        assert type(single) is type(net)
        torch.testing.assert_close(single(query[0][t]), outputs[t], rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match=r"x must have shape \[4, N, ...\].*got \[3, 3, 2\]"):
        adapted(query[0][:3])
    with pytest.raises(ValueError, match=r"task must lie in \[0, 4\)"):
        adapted.module(4)


@pytest.mark.parametrize("backend", ["fused", "torch"])
def test_evaluation_measures_every_step(backend):
    net = class_net()
    support, query = classification(seed=1), classification(rows=9, seed=2)
    learner = il.MAML(net, inner_lr=0.5, steps=3, loss="cross_entropy", backend=backend)
    result = learner.evaluate(support, query)
    assert result.loss.shape == result.accuracy.shape == (4, 4)
    for steps in range(4):
        expected = torch.stack(
            loop_losses(
                net,
                support,
                query,
                inner_lr=lambda k, s: 0.5,
                steps=steps,
                loss="cross_entropy",
            )
        ).detach()
        torch.testing.assert_close(result.loss[:, steps], expected, rtol=1e-12, atol=0)
        outputs = learner.adapt(support, steps=steps)(query[0])
        right = (outputs.argmax(2) == query[1]).double().mean(1)
        assert torch.equal(result.accuracy[:, steps], right)
    torch.testing.assert_close(result.mean, result.loss.mean(0))
    half = 3.1824 * result.loss.std(0) / 2  # Student's t, 3 degrees of freedom
    torch.testing.assert_close(result.confidence, half, rtol=2e-3, atol=0)
    assert "accuracy" in str(result)
    assert len(str(result).splitlines()) == 4


def test_accuracy_counts_the_rows_in_use_alone():
    net = class_net()
    support, (x, y) = classification(seed=1), classification(rows=4, seed=2)
    learner = il.MAML(net, inner_lr=0.5, steps=1, loss="cross_entropy")
    count = torch.tensor([4, 2, 1, 3])
    result = learner.evaluate(support, (x, y, count))
    right = learner.adapt(support)(x).argmax(2) == y
    for t in range(4):
        assert result.accuracy[t, 1].item() == right[t, : count[t]].double().mean().item()
    x[1, 2:], y[1, 2:] = torch.nan, -5
    again = learner.evaluate(support, (x, y, count))
    assert torch.equal(again.accuracy, result.accuracy)
    assert torch.equal(again.loss, result.loss)


def test_evaluation_in_chunks_is_the_same(monkeypatch):
    net = sine_net()
    support, query = regression(tasks=7, seed=1), regression(tasks=7, rows=3, seed=2)
    learner = il.MAML(net, inner_lr=0.2, steps=2)
    count = torch.tensor([1, 2, 3, 4, 5, 0, 2])
    whole = learner.evaluate((*support, count), query)
    monkeypatch.setattr(evaluation, "_CHUNK_BYTES", 3 * 8 * 67)  # three tasks of 67 parameters
    torch.testing.assert_close(
        learner.evaluate((*support, count), query).loss, whole.loss, rtol=1e-13, atol=0
    )


@pytest.mark.parametrize(("make", "backend"), [(sine_net, "fused"), (gated_net, "torch")])
def test_adapt_and_evaluate_leave_no_graph(make, backend):
    net = make()
    support, query = regression(seed=1), regression(rows=3, seed=2)
    learner = il.MAML(net, inner_lr=0.2, steps=2, learn_inner_lr=True, backend=backend)
    gc.freeze()
    try:
        result, adapted = learner.evaluate(support, query), learner.adapt(support)
        outputs = adapted(query[0])
        assert not new_graph_tensors()
        with_graph = learner(support, query)
        assert id(with_graph) in new_graph_tensors()
        del with_graph
    finally:
        gc.unfreeze()
    held = [result.loss, result.mean, outputs, *adapted.params.values()]
    assert not any(t.requires_grad for t in held)
    assert all(p.grad is None for p in learner.parameters())
    before_step = adapted.params["out.weight" if backend == "torch" else "4.weight"].clone()
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    after = adapted.params["out.weight" if backend == "torch" else "4.weight"]
    assert torch.equal(after, before_step)


def test_no_tasks_and_one_task():
    net = sine_net()
    learner = il.MAML(net, inner_lr=0.2, steps=2)
    x, y = regression(tasks=0)
    assert learner.adapt((x, y))(x).shape == (0, 5, 1)
    assert learner.evaluate((x, y), (x, y)).loss.shape == (0, 3)
    assert learner((x, y), (x, y)).item() == 0
    x, y = regression(tasks=1)
    result = learner.evaluate((x, y), (x, y))
    assert result.confidence.isnan().all()
    assert result.mean.isfinite().all()


def test_student_quantiles():
    known = {1: 12.7062, 2: 4.30265, 3: 3.18245, 5: 2.57058, 30: 2.04227, 1000: 1.96234}
    for degrees, value in known.items():
        assert abs(evaluation.student_quantile(degrees) / value - 1) < 2e-3
