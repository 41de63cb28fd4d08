"""What people write without a thought: options set on a learner, a squeeze of one row's output,
sides of unequal numbers of tasks, networks that differentiate in their forward pass."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import innerloop as il


@pytest.mark.parametrize("name", ["inner_lr", "learn_inner_lr", "adapt_params"])
@pytest.mark.parametrize(
    "make", [il.MAML, il.ANIL, il.FOMAML, il.MetaSGD], ids=lambda m: m.__name__
)
def test_options_that_are_settled_cannot_be_set(make, name):
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    learner = make(network, inner_lr=0.1, steps=1)
    with pytest.raises(AttributeError, match=f"{name} cannot be set; "):
        setattr(learner, name, 5.0)
    assert not hasattr(learner, name)


class Squeezed(nn.Module):
    """Returns [N] of N rows, and a number of one row."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 1)

    def forward(self, x):
        return self.linear(x).squeeze()


@pytest.mark.filterwarnings("ignore:.*torch back end")
@pytest.mark.filterwarnings("ignore:Using a target size:UserWarning")
@pytest.mark.parametrize("one", ["support", "query", "both"])
@pytest.mark.parametrize("loss", ["mse", "huber", "bce_with_logits"])
def test_one_row_squeezed_is_one_output(loss, one):
    torch.manual_seed(0)
    network = Squeezed().double()
    rows = [1 if one in (side, "both") else 4 for side in ("support", "query")]
    support, query = ((torch.randn(2, n, 6).double(), torch.rand(2, n).double()) for n in rows)
    objective = {
        "mse": F.mse_loss,
        "huber": F.huber_loss,
        "bce_with_logits": F.binary_cross_entropy_with_logits,
    }[loss]
    total = 0.0
    for xs, ys, xq, yq in zip(*support, *query, strict=True):
        phi = dict(network.named_parameters())
        value = objective(F.linear(xs, phi["linear.weight"], phi["linear.bias"])[:, 0], ys)
        grads = torch.autograd.grad(value, list(phi.values()), create_graph=True)
        phi = {k: v - 0.1 * g for (k, v), g in zip(phi.items(), grads, strict=True)}
        z = F.linear(xq, phi["linear.weight"], phi["linear.bias"])[:, 0]
        total = total + objective(z, yq) / 2
    expected = torch.autograd.grad(total, list(network.parameters()))
    learner = il.MAML(network, inner_lr=0.1, steps=1, loss=loss)
    value = learner(support, query)
    torch.testing.assert_close(value, total.detach())
    torch.testing.assert_close(torch.autograd.grad(value, list(network.parameters())), expected)


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.ReLU()], ids=["batched", "fused"])
def test_sides_of_other_tasks_are_named(last):
    learner = il.MAML(nn.Sequential(nn.Linear(6, 2), last), inner_lr=0.1, steps=1)
    support, query = ((torch.randn(tasks, 5, 6), torch.randn(tasks, 5, 2)) for tasks in (3, 2))
    with pytest.raises(ValueError, match=r"query x must have (shape \[3, N, 6\]|3 tasks)"):
        learner(support, query)


class Energy(nn.Module):
    """Returns the derivative of an energy in its input."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 4), nn.Linear(4, 1)

    def forward(self, x):
        x = x.detach().requires_grad_()
        energy = self.last(torch.tanh(self.first(x))).sum()
        return torch.autograd.grad(energy, x, create_graph=True)[0]


@pytest.mark.filterwarnings("ignore:.*(torch back end|task by task)")
@pytest.mark.parametrize("enabled", [True, False])
def test_networks_that_differentiate_are_evaluated(enabled):
    torch.manual_seed(0)
    learner = il.MAML(Energy().double(), inner_lr=0.1, steps=2)
    batch = torch.randn(2, 4, 2).double(), torch.randn(2, 4, 2).double()
    expected = learner(batch, batch, reduction="none").detach()
    with torch.set_grad_enabled(enabled):
        found = learner.evaluate(batch, batch)
    assert not any(value.requires_grad for value in found if value is not None)
    torch.testing.assert_close(found.loss[:, -1], expected)


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.ReLU()], ids=["batched", "fused"])
def test_evaluations_of_data_with_gradients_are_constants(last):
    learner = il.MAML(nn.Sequential(nn.Linear(6, 2), last), inner_lr=0.1, steps=1)
    x, y = torch.randn(3, 5, 6, requires_grad=True), torch.randn(3, 5, 2, requires_grad=True)
    found = learner.evaluate((x, y), (x, y))
    assert not any(value.requires_grad for value in found if value is not None)
