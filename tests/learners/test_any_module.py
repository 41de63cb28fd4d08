"""Modules outside the fused family, and parameters that are frozen, unused, tied or not floating
point."""

from __future__ import annotations

import pytest
import torch
from learner_cases import assert_close, gated_net, gradients, loop_losses, regression, sine_net
from torch import Tensor, nn

import innerloop as il


def rate(name, step):
    """The rate of every test here."""
    return 0.2


def expected_gradients(net, support, query, **options):
    """Gradients of the textbook loop."""
    torch.stack(loop_losses(net, support, query, inner_lr=rate, **options)).mean().backward()
    return gradients(net)


def test_the_fall_back_is_visible():
    net = gated_net()
    learner = il.MAML(net, inner_lr=0.2, steps=1)
    assert learner.backend == "torch"
    assert "Gated" in learner.explain()

    class Unseen(type(net)):
        """A class that has not warned yet."""

    net.__class__ = Unseen
    x = regression()
    text = r"Unseen runs on the torch back end .*call 5 of its forward pass, addcmul, is not one"
    with pytest.warns(il.FallbackWarning, match=text) as caught:
        learner(x, x)
    assert caught[0].filename == __file__  # the user's line, not one of ours


@pytest.mark.parametrize("backend", ["fused", "torch"])
def test_frozen_parameters_stay_constant(backend):
    net = sine_net()
    support, query = regression(seed=1), regression(rows=3, seed=2)
    net[0].requires_grad_(False)
    learner = il.MAML(net, inner_lr=0.2, steps=2, backend=backend)
    assert learner.adapted_names == ("2.weight", "2.bias", "4.weight", "4.bias")
    assert "frozen (no meta-gradient): 0.weight, 0.bias" in learner.explain()
    learner(support, query).backward()
    assert net[0].weight.grad is None
    actual = gradients(net)
    expected = expected_gradients(net, support, query, steps=2, adapted=learner.adapted_names)
    assert_close(actual, expected, 1e-11)
    assert torch.equal(learner.adapt(support).params["0.weight"][2], net[0].weight)


@pytest.mark.parametrize("backend", ["fused", "torch"])
def test_frozen_later_or_named_parameters_adapt_without_a_meta_gradient(backend):
    net = sine_net()
    support, query = regression(seed=1), regression(rows=3, seed=2)
    later = il.MAML(net, inner_lr=0.2, steps=2, backend=backend)
    net[0].requires_grad_(False)
    named = il.MAML(
        net, inner_lr=0.2, steps=2, backend=backend, adapt_params=list(later.adapted_names)
    )
    found = []
    for learner in (later, named):
        assert not torch.equal(learner.adapt(support).params["0.weight"][2], net[0].weight)
        learner(support, query).backward()
        found.append(gradients(net))
        assert "0.weight" not in found[-1]
    net[0].requires_grad_(True)
    expected = expected_gradients(net, support, query, steps=2)
    expected = {k: v for k, v in expected.items() if not k.startswith("0.")}
    for grads in found:
        assert_close(grads, expected, 1e-11)


def test_all_frozen_is_refused_unless_names_are_given():
    net = sine_net().requires_grad_(False)
    with pytest.raises(ValueError, match=r"have a parameter that requires grad .*adapt_params"):
        il.MAML(net, inner_lr=0.2, steps=1)
    learner = il.MAML(net, inner_lr=0.2, steps=1, adapt_params=["4.weight"])
    assert not learner(regression(seed=1), regression(seed=2)).requires_grad


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_unused_parameters_get_zero_gradients(reduction):
    net = gated_net()
    learner = il.MAML(net, inner_lr=0.2, steps=2, learn_inner_lr="per_tensor", backend="torch")
    learner(regression(seed=1), regression(seed=2), reduction=reduction).mean().backward()
    assert torch.equal(net.unused.grad, torch.zeros(3, dtype=torch.float64))
    assert all(p.grad is not None for p in learner.parameters())
    assert learner.rates.get_parameter("unused").grad.item() == 0


def test_torch_back_end_can_be_differentiated_twice():
    net = gated_net()
    support, query = regression(seed=1), regression(rows=3, seed=2)
    weight = net.out.weight

    def slope(loss):
        (grad,) = torch.autograd.grad(loss, weight, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), weight)[0]

    learner = il.MAML(net, inner_lr=0.2, steps=2, backend="torch")
    actual = slope(learner(support, query))
    expected = slope(torch.stack(loop_losses(net, support, query, inner_lr=rate, steps=2)).mean())
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-14)


class Tied(nn.Module):
    """Two uses of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = nn.Linear(2, 2)
        self.second.weight = self.first.weight
        self.out = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns outputs."""
        return self.out(torch.tanh(self.second(torch.tanh(self.first(x)))))


def test_tied_parameters_are_one_leaf():
    torch.manual_seed(0)
    net = Tied().double()
    support, query = regression(seed=1), regression(rows=3, seed=2)
    learner = il.MAML(net, inner_lr=0.2, steps=2, backend="torch")
    assert learner.adapted_names == (
        "first.weight",
        "first.bias",
        "second.bias",
        "out.weight",
        "out.bias",
    )
    learner(support, query).backward()
    actual = gradients(net)
    assert_close(actual, expected_gradients(net, support, query, steps=2), 1e-11)
    single = learner.adapt(support).module(1)
    assert single.second.weight is single.first.weight
    with pytest.raises(ValueError, match=r"adapt_params must name parameters .*'second.weight'"):
        il.MAML(net, inner_lr=0.2, steps=2, adapt_params=["second.weight"], backend="torch")


def test_a_sequential_with_tied_layers_is_not_fused():
    layer = nn.Linear(2, 2)
    net = nn.Sequential(layer, nn.Tanh(), layer)
    learner = il.MAML(net, inner_lr=0.2, steps=1)
    assert learner.backend == "batched"
    assert "is the same parameter as 0.weight" in learner.explain()


def test_a_sequential_with_a_parameter_of_its_own_is_not_fused():
    net = nn.Sequential(nn.Linear(2, 1)).double()
    net.register_parameter("scale", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    assert "it does not use its own scale" in il.MAML(net, inner_lr=0.2, steps=1).explain()
    il.MAML(net, inner_lr=0.2, steps=1, backend="torch")(regression(), regression()).backward()
    assert torch.equal(net.scale.grad, torch.zeros(2, dtype=torch.float64))


class Counting(nn.Module):
    """A module with an integer parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1)
        self.power = nn.Parameter(torch.tensor([2]), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns outputs of x to a power."""
        return self.linear(x**self.power)


def test_parameters_that_are_not_floating_point_are_constants():
    torch.manual_seed(0)
    net = Counting().double()
    assert net.power.dtype is torch.int64
    support, query = regression(seed=1), regression(rows=3, seed=2)
    learner = il.MAML(net, inner_lr=0.2, steps=2, learn_inner_lr="per_tensor", backend="torch")
    assert learner.adapted_names == ("linear.weight", "linear.bias")
    learner(support, query).backward()
    actual = gradients(net)
    expected = expected_gradients(net, support, query, steps=2, adapted=learner.adapted_names)
    assert_close(actual, expected, 1e-11)
    assert learner.adapt(support).module(0).power.item() == 2
    assert learner.evaluate(support, query).loss.shape == (4, 3)
    with pytest.raises(TypeError, match="adapt_params must name floating-point parameters"):
        il.MAML(net, inner_lr=0.2, steps=1, adapt_params=["power"], backend="torch")


def test_parameters_of_two_dtypes_or_half_precision_are_refused():
    net = sine_net()
    net[4].float()
    x = regression()
    with pytest.raises(TypeError, match=r"float32.*float64|float64.*float32"):
        il.MAML(net, inner_lr=0.2, steps=1)(x, x)
    x = regression(dtype=torch.float16)
    half = il.MAML(sine_net(torch.float16), inner_lr=0.2, steps=1)
    with pytest.raises(
        TypeError, match=r"float32 or float64 .*; bfloat16 runs on the batched back end"
    ):
        half(x, x)


# ---------------------------------------------------------------- modules with modes


def dropout_net(p):
    """A network with dropout."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Dropout(p), nn.Linear(16, 1)).double()


def test_dropout_is_fused_in_eval_mode_and_random_per_task_in_training_mode():
    net = dropout_net(0.5)
    x = regression(tasks=6, seed=1)
    same = tuple(part[:1].expand_as(part) for part in x)  # six copies of one task
    learner = il.MAML(net, inner_lr=0.2, steps=1, backend="auto")
    assert learner.backend == "torch"
    assert "random in training mode" in learner.explain()
    asked = il.MAML(net, inner_lr=0.2, steps=1, backend="torch")
    torch.manual_seed(3)
    losses = asked(same, same, reduction="none")
    assert losses.unique().numel() == 6  # each task draws its own masks
    torch.manual_seed(3)
    assert torch.equal(asked(same, same, reduction="none"), losses)
    losses.sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())
    learner.eval()
    assert learner.backend == "fused"
    plain = il.MAML(dropout_net(0.0), inner_lr=0.2, steps=1)
    torch.testing.assert_close(learner(same, same), plain(same, same), rtol=1e-12, atol=0)


def norm_net(**options):
    """A network with batch normalisation."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(2, 6, bias=False), nn.BatchNorm1d(6, **options), nn.Tanh(), nn.Linear(6, 1)
    ).double()


def test_batch_statistics_are_differentiated_exactly():
    net = norm_net(track_running_stats=False)
    support, query = regression(rows=6, seed=1), regression(rows=4, seed=2)
    learner = il.MAML(net, inner_lr=0.2, steps=2, backend="torch")
    learner(support, query).backward()
    assert_close(gradients(net), expected_gradients(net, support, query, steps=2), 1e-11)


def test_tracked_statistics_are_refused_in_training_and_constant_in_evaluation():
    net = norm_net()
    x = regression(rows=6)
    learner = il.MAML(net, inner_lr=0.2, steps=2, backend="torch")
    for call in (lambda: learner(x, x), lambda: learner.adapt(x), lambda: learner.evaluate(x, x)):
        with pytest.raises(NotImplementedError, match=r"'1' \(BatchNorm1d\).*track_running_stats"):
            call()
    assert net[1].num_batches_tracked == 0
    learner.eval()
    before = net[1].running_mean.clone()
    learner(x, x).backward()
    assert_close(gradients(net), expected_gradients(net, x, x, steps=2), 1e-11)
    assert torch.equal(net[1].running_mean, before)


def test_batch_statistics_do_not_mix_with_rows_left_out():
    net = norm_net(track_running_stats=False)
    x, y = regression(rows=6)
    count = torch.tensor([6, 3, 2, 6])
    for learner in (
        il.MAML(net, inner_lr=0.2, steps=2, backend="torch"),
        il.JointTraining(net, backend="torch"),
    ):
        with pytest.raises(NotImplementedError, match=r"statistics over rows.*left out.*LayerNorm"):
            learner((x, y, count), (x, y))
    layered = nn.Sequential(nn.Linear(2, 6), nn.LayerNorm(6), nn.Linear(6, 1)).double()
    losses = il.MAML(layered, inner_lr=0.2, steps=2, backend="torch")(
        (x, y, count), (x, y), reduction="none"
    )
    short = loop_losses(layered, (x[1:2, :3], y[1:2, :3]), (x[1:2], y[1:2]), inner_lr=rate, steps=2)
    torch.testing.assert_close(losses[1], short[0], rtol=1e-11, atol=0)


class Recurrent(nn.Module):
    """A module that torch.vmap cannot take."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Branches on data, row by row."""
        z = self.linear(x)
        return z if z.sum().item() > 0 else 2 * z


def test_modules_that_vmap_refuses_run_task_by_task():
    torch.manual_seed(0)
    net = Recurrent().double()
    support, query = regression(seed=1), regression(rows=3, seed=2)
    learner = il.MAML(net, inner_lr=0.2, steps=2, backend="torch")
    with pytest.warns(il.FallbackWarning, match="Recurrent runs task by task"):
        loss = learner(support, query)
    assert "tasks run one after another" in learner.explain()
    loss.backward()
    assert_close(gradients(net), expected_gradients(net, support, query, steps=2), 1e-11)
    assert learner.evaluate(support, query).loss.shape == (4, 3)
    assert not learner.adapt(support).params["linear.weight"].requires_grad
