"""What learners take beside batches: single tasks, lists of tasks by `il.batch`, and networks with
tracked statistics by `il.nn.per_pass_statistics`."""

from __future__ import annotations

import pytest
import torch
from learner_cases import class_net, gradients, loop_losses, sine_net
from torch import nn

import innerloop as il

OPTIONS = {"inner_lr": 0.2, "steps": 2}


def rows(number, seed, *shape):
    """Normal rows."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, *shape, generator=generator, dtype=torch.float64)


# ---------------------------------------------------------------- single tasks


@pytest.mark.parametrize("kind", [il.MAML, il.JointTraining])
def test_a_single_task_is_a_batch_of_one(kind):
    net = sine_net()
    options = OPTIONS if kind is il.MAML else {"inner_lr": 0.2}
    support, query = ((rows(n, n, 2), rows(n, n + 1, 1)) for n in (5, 6))
    learner = kind(net, **options)
    one = [tuple(v[None] for v in side) for side in (support, query)]
    losses = []
    for sides in ((support, query), one):
        loss = learner(*sides)
        loss.backward()
        losses.append((loss.detach(), gradients(net)))
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)
    adapted = learner.adapt(support)
    assert adapted.tasks == 1
    assert torch.equal(adapted(query[0]), learner.adapt(one[0])(one[1][0])[0])
    assert torch.equal(learner.evaluate(support, query).loss, learner.evaluate(*one).loss)


def test_single_tasks_of_classes_and_of_as_many_outputs_as_inputs():
    net = class_net()
    support, query = ((rows(n, n, 2, 3), torch.arange(n) % 3) for n in (5, 6))
    learner = il.MAML(net, **OPTIONS, loss="cross_entropy")
    one = [tuple(v[None] for v in side) for side in (support, query)]
    assert torch.equal(learner(support, query), learner(*one))
    square = nn.Sequential(nn.Linear(2, 2)).double()
    learner = il.MAML(square, **OPTIONS)
    x = rows(4, 1, 2)
    assert torch.equal(learner((x, x), (x, x)), learner((x[None], x[None]), (x[None], x[None])))


def test_counts_and_weights_of_a_single_task():
    learner = il.MAML(sine_net(), **OPTIONS)
    x, y = rows(5, 1, 2), rows(5, 2, 1)
    weight = torch.rand(5, dtype=torch.float64)
    count = torch.tensor(3)
    single = (x, y, count, weight)
    whole = (x[None], y[None], count[None], weight[None])
    assert torch.equal(learner(single, single), learner(whole, whole))


def test_batches_with_wrong_targets_are_not_taken_for_single_tasks():
    learner = il.MAML(sine_net(), **OPTIONS)
    x = rows(3, 1, 5, 2)  # [T, N, D]
    for y in (rows(3, 2, 4, 1), torch.zeros(3, 4, dtype=torch.int64)):
        with pytest.raises((TypeError, ValueError), match=r"MAML: support y must"):
            learner((x, y), (x, y))


def test_rows_that_are_numbers_stay_batches():
    class Scalar(nn.Module):
        """Takes one number a row."""

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, x):
            """Returns a multiple."""
            return self.scale * x[:, None]

    x = rows(3, 1, 4)  # [T, N]
    learner = il.MAML(Scalar(), **OPTIONS, backend="torch")
    assert learner((x, x), (x, x), reduction="none").shape == (3,)


# ---------------------------------------------------------------- lists of tasks


def test_batch_pads_and_counts():
    tasks = [(rows(n, n, 2), rows(n, n + 9, 1)) for n in (3, 5, 1)]
    whole = il.batch(tasks)
    assert whole.count.tolist() == [3, 5, 1]
    assert whole.x.shape == (3, 5, 2)
    for t, (x, y) in enumerate(tasks):
        assert torch.equal(whole.x[t, : len(x)], x)
        assert torch.equal(whole.y[t, : len(x)], y)
        assert not whole.x[t, len(x) :].any()
    net = sine_net()
    found = il.MAML(net, **OPTIONS)(whole, whole, reduction="none")
    for t, (x, y) in enumerate(tasks):
        side = (x[None], y[None])
        (expected,) = loop_losses(net, side, side, inner_lr=lambda k, s: 0.2, steps=2)
        torch.testing.assert_close(found[t], expected)


def test_batch_of_equal_tasks_has_no_count():
    whole = il.batch([(torch.ones(2, 3), torch.tensor([0, 1]))] * 2)
    assert whole.count is None
    assert whole.y.dtype is torch.int64


def wrong():
    """Lists that are no tasks, with the error of each."""
    x, y = torch.ones(2, 3), torch.ones(2)
    return {
        "empty": ([], ValueError, "at least one task"),
        "tensor": (x, TypeError, "a sequence of"),
        "no tuple": ([x], TypeError, r"tasks\[0\] must be a tuple"),
        "three": ([(x, y, y)], TypeError, r"tasks\[0\] must be a tuple"),
        "rows": ([(x, y), (x, torch.ones(3))], ValueError, r"tasks\[1\] y must have one row"),
        "shape": ([(x, y), (torch.ones(2, 4), y)], ValueError, r"rows of shape \[3\]"),
        "dtype": ([(x, y), (x.double(), y)], TypeError, r"float32 as the first"),
        "number": ([(x, y), (x, 3)], TypeError, "be a tensor"),
    }


@pytest.mark.parametrize("name", wrong())
def test_wrong_lists_are_refused(name):
    tasks, kind, text = wrong()[name]
    with pytest.raises(kind, match=f"batch: .*{text}"):
        il.batch(tasks)


# ---------------------------------------------------------------- tracked statistics


def tracked():
    """A network with tracked norms, one of them inside."""
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(2, 3, 3), nn.InstanceNorm2d(3, track_running_stats=True))
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), inner, nn.Flatten(), nn.Linear(12, 3)
    ).double()


def test_conversion_says_what_it_did_and_is_what_the_option_would_have_made():
    net = tracked()
    assert il.nn.per_pass_statistics(net) == ("1", "3.1")
    assert il.nn.per_pass_statistics(net) == ()
    fresh = nn.BatchNorm2d(2, track_running_stats=False).double()
    assert list(net[1].state_dict()) == list(fresh.state_dict())
    x = rows(4, 1, 2, 5, 5)
    for training in (True, False):
        net.train(training)
        torch.testing.assert_close(net[1](x), fresh(x))
    with pytest.raises(TypeError, match=r"per_pass_statistics: module must be a torch\.nn\.Module"):
        il.nn.per_pass_statistics("net")


def test_the_refusal_names_the_conversion_after_which_it_runs():
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3)
    ).double()
    side = rows(2, 1, 4, 1, 5, 5), torch.arange(8).reshape(2, 4) % 3
    with pytest.raises(NotImplementedError, match=r"innerloop\.nn\.per_pass_statistics\(module\)"):
        il.MAML(net, **OPTIONS, loss="cross_entropy")(side, side)
    il.nn.per_pass_statistics(net)
    learner = il.MAML(net, **OPTIONS, loss="cross_entropy")
    losses = learner(side, side, reduction="none")
    assert learner.backend == "batched"
    expected = loop_losses(
        net, side, side, inner_lr=lambda k, s: 0.2, steps=2, loss="cross_entropy"
    )
    torch.testing.assert_close(losses, torch.stack(expected))
