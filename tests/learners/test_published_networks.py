"""The convolutional networks of two public implementations of MAML, written from what they compute,
at small sizes: they run batched, unchanged but for `il.nn.per_pass_statistics`, and their losses
and meta-gradients are those of a plain loop in float64.

Sources: dragen1860/MAML-Pytorch (learner.py and the tables of its two training scripts);
AntreasAntoniou/HowToTrainYourMAMLPytorch (meta_neural_network_architectures.py).
"""

from __future__ import annotations

import pytest
import torch
from learner_cases import loop_losses
from torch import nn
from torch.nn import functional as F

import innerloop as il
from helpers import assert_close

CLASSES = 3
CHANNELS = 4


# ---------------------------------------------------------------- MAML-Pytorch

# kernel and stride of the convolutions, and of the pool after each (None: there is none)
MINI_IMAGENET = [((3, 1), (2, 2))] * 3 + [((3, 1), (2, 1))]
OMNIGLOT = [((3, 2), None)] * 3 + [((2, 1), None)]


def in_layers(table, inputs, features):
    """Convolution, relu, norm and pool in a row, with tracked norms."""
    layers: list[nn.Module] = []
    for (kernel, stride), pool in table:
        layers += [nn.Conv2d(inputs, CHANNELS, kernel, stride), nn.ReLU(inplace=True)]
        layers.append(nn.BatchNorm2d(CHANNELS))
        if pool is not None:
            layers.append(nn.MaxPool2d(*pool))
        inputs = CHANNELS
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, CLASSES))


class InOneList(nn.Module):
    """The same by functions, with all weights in one list, and the statistics that each pass fills
    and none reads in another."""

    def __init__(self, table, inputs, features):
        super().__init__()
        self.table = table
        self.weights, self.statistics = nn.ParameterList(), nn.ParameterList()
        for (kernel, _), _ in table:
            weight = torch.empty(CHANNELS, inputs, kernel, kernel)
            self.weights.append(nn.Parameter(nn.init.kaiming_normal_(weight)))
            self.weights.append(nn.Parameter(torch.zeros(CHANNELS)))
            self.weights.append(nn.Parameter(torch.ones(CHANNELS)))
            self.weights.append(nn.Parameter(torch.zeros(CHANNELS)))
            for start in (torch.zeros(CHANNELS), torch.ones(CHANNELS)):
                self.statistics.append(nn.Parameter(start, requires_grad=False))
            inputs = CHANNELS
        self.weights.append(nn.Parameter(nn.init.kaiming_normal_(torch.empty(CLASSES, features))))
        self.weights.append(nn.Parameter(torch.zeros(CLASSES)))

    def forward(self, x):
        """Returns the logits."""
        weights, filled = iter(self.weights), iter(self.statistics)
        for (_, stride), pool in self.table:
            x = F.conv2d(x, next(weights), next(weights), stride=stride, padding=0)
            x = F.relu(x, inplace=True)
            x = F.batch_norm(
                x, next(filled), next(filled), next(weights), next(weights), training=True
            )
            if pool is not None:
                x = F.max_pool2d(x, *pool, 0)
        return F.linear(x.view(x.size(0), -1), next(weights), next(weights))


# ---------------------------------------------------------------- HowToTrainYourMAML


class Convolution(nn.Module):
    """A convolution whose weights may be handed in."""

    def __init__(self, inputs, stride):
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(nn.init.xavier_normal_(torch.empty(CHANNELS, inputs, 3, 3)))
        self.bias = nn.Parameter(torch.zeros(CHANNELS))

    def forward(self, x, params=None):
        """Returns the outputs."""
        given = {"weight": self.weight, "bias": self.bias} if params is None else params
        return F.conv2d(x, given["weight"], given["bias"], self.stride, 1, 1, 1)


class Norm(nn.Module):
    """A batch norm by the statistics of each pass: a shift is learned, the scale is not, and there
    are running statistics that nothing reads."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(CHANNELS), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(CHANNELS))
        self.running_mean = nn.Parameter(torch.zeros(CHANNELS), requires_grad=False)
        self.running_var = nn.Parameter(torch.ones(CHANNELS), requires_grad=False)

    def forward(self, x):
        """Returns the outputs."""
        return F.batch_norm(x, None, None, self.weight, self.bias, training=True, momentum=0.1)


class Stages(nn.Module):
    """Norm (but for the first stage), convolution, leaky relu and pool, four times; a norm and the
    head. Without pools the convolutions are strided and a mean over the image ends them."""

    def __init__(self, inputs, *, pools):
        super().__init__()
        self.pools = pools
        self.stages = nn.ModuleDict()
        for i in range(4):
            stage = nn.ModuleDict({"conv": Convolution(inputs, 1 if pools else 2)})
            if i:
                stage["norm"] = Norm()
            self.stages[f"conv{i}"] = stage
            inputs = CHANNELS
        self.norm = Norm()
        self.weights = nn.Parameter(torch.randn(CLASSES, CHANNELS))
        self.bias = nn.Parameter(torch.zeros(CLASSES))

    def forward(self, x):
        """Returns the logits."""
        for stage in self.stages.values():
            if "norm" in stage:
                x = F.leaky_relu(stage["conv"](stage["norm"](x)))
            else:
                x = stage["conv"](F.leaky_relu(x))
            if self.pools:
                x = F.max_pool2d(x, kernel_size=(2, 2), stride=2, padding=0)
        x = F.leaky_relu(self.norm(x))
        if not self.pools:
            x = F.avg_pool2d(x, x.shape[2])
        return F.linear(x.view(x.shape[0], -1), self.weights, self.bias)


# ---------------------------------------------------------------- the comparison

# name: (the network, the shape of a row, the norms that are converted)
NETWORKS = {
    "layers, mini-ImageNet": (
        lambda: in_layers(MINI_IMAGENET, 3, CHANNELS), (3, 46, 46), ("2", "6", "10", "14"),
    ),
    "layers, Omniglot": (
        lambda: in_layers(OMNIGLOT, 1, CHANNELS), (1, 28, 28), ("2", "5", "8", "11"),
    ),
    "list, mini-ImageNet": (lambda: InOneList(MINI_IMAGENET, 3, CHANNELS), (3, 46, 46), ()),
    "list, Omniglot": (lambda: InOneList(OMNIGLOT, 1, CHANNELS), (1, 28, 28), ()),
    "stages, pools": (lambda: Stages(3, pools=True), (3, 28, 28), ()),
    "stages, strides": (lambda: Stages(1, pools=False), (1, 28, 28), ()),
}  # fmt: skip


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_losses_and_gradients_are_those_of_a_plain_loop(name, order):
    make, shape, tracked = NETWORKS[name]
    torch.manual_seed(0)
    net = make().double()
    generator = torch.Generator().manual_seed(1)
    sides = []
    for rows in (6, 5):
        x = torch.randn(2, rows, *shape, generator=generator, dtype=torch.float64)
        sides.append((x, torch.randint(CLASSES, (2, rows), generator=generator)))
    assert il.nn.per_pass_statistics(net) == tracked

    before = {name: value.clone() for name, value in net.state_dict().items()}
    options = {"inner_lr": 0.01, "steps": 2, "order": order}
    learner = il.MAML(net, loss="cross_entropy", backend="batched", **options)
    losses = learner(*sides, reduction="none")
    losses.mean().backward()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    found = {k: p.grad for k, p in net.named_parameters() if p.grad is not None}
    learned = [p for p in net.parameters() if p.requires_grad]
    expected = torch.stack(
        loop_losses(
            net, *sides, inner_lr=lambda name, step: 0.01, steps=2, order=order,
            loss="cross_entropy", adapted=learner.adapted_names,
        )
    )  # fmt: skip
    grads = torch.autograd.grad(expected.mean(), learned)
    assert_close(losses, expected, 1e-12)
    assert_close(found, dict(zip(found, grads, strict=True)), 1e-10, floor=1e-3)


class Filling(nn.Module):
    """Fills statistics by a function, and reads them in the same pass."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("var", torch.ones(3))

    def forward(self, x):
        """Returns the outputs."""
        h = F.batch_norm(self.linear(x), self.mean, self.var, training=True)
        return F.batch_norm(h, self.mean, self.var)


class Derived(nn.BatchNorm1d):
    """A norm of torch with a forward pass of its own."""

    def forward(self, x):
        """Returns the outputs."""
        return F.batch_norm(x, self.running_mean, self.running_var, training=True)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (Filling, "it reads running statistics that it updates"),
        (lambda: nn.Sequential(nn.Linear(2, 3), Derived(3)), "must not update running statistics"),
    ],
    ids=["read in the same pass", "of a norm of torch"],
)
def test_statistics_that_matter_are_not_left_out(make, text):
    x, y = torch.randn(2, 4, 2), torch.randn(2, 4, 3)
    with pytest.raises(NotImplementedError, match=text):
        il.MAML(make(), inner_lr=0.1, steps=1, backend="batched")((x, y), (x, y))
