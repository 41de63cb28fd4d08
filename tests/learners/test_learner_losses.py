"""Losses of learners: torch's and callables in training, adaptation and evaluation, kept with the
learner, and read anew at every call."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import innerloop as il
from helpers import assert_close
from loss_cases import CASES, F64, Case, label, loop_losses, ragged, value, weighted

TOLERANCE = 1e-10
VALUES = Case("MSELoss", "values")
CLASSES = Case("CrossEntropyLoss", "classes")
RATE = {"inner_lr": 0.2, "steps": 2}


def quartic(z: Tensor, y: Tensor) -> Tensor:
    """One number for a task, which is no mean over rows."""
    return (z - y).pow(4).sum().sqrt()


def quartic_rows(z: Tensor, y: Tensor) -> Tensor:
    """A value for each row."""
    return (z - y).pow(4).mean(1)


class Learned(nn.Module):
    """A loss with a parameter and a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.tensor(1.5, dtype=F64))
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0], dtype=F64))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Returns one number."""
        return (self.scale * (z - y).square() + 1).pow(self.power).mean()


def rows_of(side, t):
    """Returns the rows in use of one task."""
    x, y, count = (*side, None)[:3]
    n = x.shape[1] if count is None else int(count[t])
    return x[t, :n], y[t, :n]


@pytest.mark.filterwarnings("ignore::innerloop.FallbackWarning")
@pytest.mark.parametrize("form", ["equal", "ragged"])
@pytest.mark.parametrize(
    ("case", "loss"),
    [
        (VALUES, "mse"),
        (VALUES, nn.MSELoss()),
        (VALUES, F.smooth_l1_loss),
        (VALUES, nn.HuberLoss(delta=0.5)),
        (VALUES, quartic),
        (VALUES, quartic_rows),
        (CLASSES, nn.CrossEntropyLoss()),
        (CLASSES, nn.CrossEntropyLoss(label_smoothing=0.1)),
    ],
    ids=label,
)
def test_joint_training(case, loss, form):
    """The loss of all rows of a task together, whatever the loss."""
    net, (support, query) = case.net(), case.sides()
    if form == "ragged":
        support, query = ragged(support), ragged(query, roll=1)
    plain = F.mse_loss if loss == "mse" else loss
    expected = []
    for t in range(4):
        x, y = (
            torch.cat(parts) for parts in zip(rows_of(support, t), rows_of(query, t), strict=True)
        )
        expected.append(value(plain, net(x), y))
    learner = il.JointTraining(net, loss=loss)
    found = learner(support, query, reduction="none")
    assert_close(found, torch.stack(expected), TOLERANCE)
    learner(support, query).backward()
    grads = torch.autograd.grad(torch.stack(expected).mean(), list(net.parameters()))
    named = dict(zip(dict(net.named_parameters()), grads, strict=True))
    assert_close({k: p.grad for k, p in net.named_parameters()}, named, TOLERANCE)


@pytest.mark.filterwarnings("ignore::innerloop.FallbackWarning")
def test_joint_training_with_weights():
    """A side's weights count as its share of the rows."""
    net, (support, query) = VALUES.net(), VALUES.sides()
    support = weighted(support)
    by_name = il.JointTraining(net, loss="mse")(support, query, reduction="none")
    by_rows = il.JointTraining(net, loss=lambda z, y: (z - y).square().mean(1))
    assert_close(by_rows(support, query, reduction="none"), by_name, TOLERANCE)
    with pytest.raises(ValueError, match=r"JointTraining: the loss quartic must return one value"):
        il.JointTraining(net, loss=quartic)(support, query)


@pytest.mark.filterwarnings("ignore::innerloop.FallbackWarning")
@pytest.mark.parametrize("learner_kind", [il.MAML, il.JointTraining])
@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.HuberLoss(delta=0.5), quartic, quartic_rows])
def test_adapt_and_evaluate(loss, learner_kind):
    net, (support, query) = VALUES.net(), VALUES.sides()
    support, query = ragged(support), ragged(query)
    learner = learner_kind(net, loss=loss, **RATE)
    found = learner.evaluate(support, query, steps=3)
    expected = [loop_losses(net, loss, support, query, steps=s) for s in range(4)]
    assert_close(found.loss, torch.stack(expected, 1), TOLERANCE)
    assert found.accuracy is None
    adapted = learner.adapt(support)
    outputs = adapted(query[0])
    for t in range(4):
        single = adapted.module(t)(query[0][t, : query[2][t]])
        assert_close(outputs[t, : query[2][t]], single.detach(), TOLERANCE)
        last = value(loss, single, query[1][t, : query[2][t]])
        assert_close(last, expected[2][t], TOLERANCE)


@pytest.mark.filterwarnings("ignore::innerloop.FallbackWarning")
@pytest.mark.parametrize(
    "case", [case for case in CASES if case.kind == "CrossEntropyLoss"], ids=label
)
def test_accuracy_with_torchs_cross_entropy(case):
    net, (support, query) = case.net(), case.sides()
    learner = il.MAML(net, loss=case.make(), backend="torch", **RATE)
    found = learner.evaluate(support, query)
    if case.target == "probabilities":
        assert found.accuracy is None
        return
    ignored = case.options.get("ignore_index", -100)
    for step in range(3):
        right = learner.adapt(support, steps=step)(query[0]).argmax(2) == query[1]
        used = query[1] != ignored
        share = (right & used).sum(1) / used.sum(1)
        assert_close(found.accuracy[:, step], share, 1e-6)


@pytest.mark.filterwarnings("ignore::innerloop.FallbackWarning")
def test_losses_of_torch_are_read_at_every_call():
    net, (support, query) = VALUES.net(), VALUES.sides()
    loss = nn.HuberLoss()
    learner = il.MAML(net, loss=loss, **RATE)
    assert learner.backend == "fused"
    learner(support, query)  # remembered as checked
    for change, backend in (("delta", 0.5), "fused"), (("reduction", "sum"), "batched"):
        setattr(loss, *change)
        assert learner.backend == backend
        assert "HuberLoss(" in learner.explain()
        assert "delta=0.5" in learner.explain()
        found = learner(support, query, reduction="none")
        assert_close(found, loop_losses(net, loss, support, query), TOLERANCE)
    loss.delta, loss.reduction = 1.0, "mean"
    assert learner.backend == "fused"
    handle = loss.register_forward_hook(lambda module, inputs, output: 3 * output)
    assert learner.backend == "batched"
    found = learner(support, query, reduction="none")
    assert_close(found, loop_losses(net, loss, support, query), TOLERANCE)
    handle.remove()
    assert_close(
        learner(support, query, reduction="none"), loop_losses(net, loss, support, query), TOLERANCE
    )


def test_explain_names_both_reasons():
    net = nn.Sequential(nn.Linear(2, 3), nn.ELU())
    text = il.MAML(net, loss=quartic, **RATE).explain()
    assert text.startswith("MAML: loss quartic, 2 inner steps, order 2\nback end: batched, ")
    assert "ELU" in text
    assert "; the loss quartic has no kernel" in text
    assert "loss mse" in il.MAML(VALUES.net(), loss=nn.MSELoss(), **RATE).explain()
    learned = il.JointTraining(net, loss=Learned()).explain()
    assert learned.endswith("learned with the loss: power")


@pytest.mark.filterwarnings("ignore::innerloop.FallbackWarning")
@pytest.mark.parametrize("order", [1, 2])
def test_parameters_of_a_loss_are_learned(order):
    net, (support, query), loss = VALUES.net(), VALUES.sides(), Learned()
    learner = il.MAML(net, loss=loss, order=order, **RATE)
    assert {id(p) for p in learner.parameters()} == {id(p) for p in (*net.parameters(), loss.power)}
    learner(support, query).backward()
    found = {**{k: p.grad for k, p in net.named_parameters()}, "power": loss.power.grad}
    variables = [*net.parameters(), loss.power]
    expected = torch.autograd.grad(
        loop_losses(net, loss, support, query, order=order).mean(), variables
    )
    assert_close(found, dict(zip(found, expected, strict=True)), TOLERANCE)


@pytest.mark.filterwarnings("ignore::innerloop.FallbackWarning")
@pytest.mark.parametrize(
    ("case", "loss"),
    [
        (VALUES, Learned()),
        (VALUES, nn.MSELoss()),
        (VALUES, F.huber_loss),
        (VALUES, quartic),
        (CLASSES, nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]).double())),
    ],
    ids=label,
)
def test_copies_and_checkpoints(case, loss):
    (support, query), learner = case.sides(), il.MAML(case.net(), loss=loss, **RATE)
    expected = learner(support, query)
    for clone in (copy.deepcopy(learner), pickle.loads(pickle.dumps(learner))):
        assert torch.equal(clone(support, query), expected)
        assert clone.explain() == learner.explain()
    own = loss.state_dict() if isinstance(loss, nn.Module) else {}
    state = learner.state_dict()
    assert [k for k in state if k.startswith("loss.")] == [f"loss.{k}" for k in own]
    other = il.MAML(case.net(), loss=copy.deepcopy(loss), **RATE)
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            tensor.mul_(0.5)
    other.load_state_dict(state)
    assert torch.equal(other(support, query), expected)


@pytest.mark.filterwarnings("ignore::innerloop.FallbackWarning")
def test_tensors_of_a_loss_move_with_the_learner():
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
    learner = il.MAML(CLASSES.net().float(), loss=loss, **RATE).double()
    assert loss.weight.dtype is F64
    support, query = CLASSES.sides()
    expected = loop_losses(learner.module, loss, support, query)
    assert_close(learner(support, query, reduction="none"), expected, TOLERANCE)


def test_bounds_take_torchs_losses_and_refuse_callables():
    from innerloop import bounds

    model = il.MLP([1, 4, 1], "tanh")

    def sampler(tasks, generator):
        x = torch.randn(tasks, 6, 1, generator=generator, dtype=F64)
        return x, torch.sin(x)

    options = {"inner_lr": 0.1, "samples": 2, "tasks": 4, "probes": 2}
    params = model.init(torch.Generator().manual_seed(0), dtype=F64)
    named = bounds.report(model, params, sampler, loss="mse", **options)
    torchs = bounds.report(model, params, sampler, loss=nn.MSELoss(), **options)
    assert named.to_dict() == torchs.to_dict()
    with pytest.raises(ValueError, match=r"loss must be one of .*never negative"):
        bounds.report(model, params, sampler, loss=quartic, **options)
