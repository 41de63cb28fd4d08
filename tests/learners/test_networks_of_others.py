"""Networks as people write them, from their published definitions, at small sizes: where each of
them runs, and that its losses and meta-gradients are those of a plain loop in float64.

Sources: learn2learn (CNN4, ResNet-12, WRN-28); kjunelee/MetaOptNet (ResNet-12); torchmeta (views
with a tuple); R2D2 (Bertinetto et al. 2019: filters that grow); cbfinn/maml (weights in a dict);
the examples of higher (a sequence with its own Flatten); CAVIA (Zintgraf et al. 2019: context
parameters); SIREN (Sitzmann et al. 2020); FiLM (Perez et al. 2018); squeeze and excitation (Hu et
al. 2018).
"""

from __future__ import annotations

import itertools

import pytest
import torch
from learner_cases import loop_losses
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import innerloop as il
from helpers import assert_close

pytestmark = pytest.mark.filterwarnings("ignore:innerloop.*:innerloop.FallbackWarning")

CLASSES = 3


# ---------------------------------------------------------------- residual networks


def conv3x3(inputs, outputs, stride=1):
    """A convolution without a bias."""
    return nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)


class ResidualBlock(nn.Module):
    """Three convolutions with norms, a shortcut, and a pool; dropout of images, which is off."""

    def __init__(self, inputs, outputs, drop_rate=0.0):
        super().__init__()
        self.conv1, self.bn1 = conv3x3(inputs, outputs), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv3x3(outputs, outputs), nn.BatchNorm2d(outputs)
        self.conv3, self.bn3 = conv3x3(outputs, outputs), nn.BatchNorm2d(outputs)
        self.relu, self.maxpool = nn.LeakyReLU(0.1), nn.MaxPool2d(2)
        self.downsample = nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel_size=1, bias=False), nn.BatchNorm2d(outputs)
        )
        self.drop_rate = drop_rate
        self.batches_seen = 0

    def forward(self, x):
        """Returns the block's outputs, and counts the calls."""
        self.batches_seen += 1
        residual = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            residual = self.downsample(x)
        out += residual
        out = self.maxpool(self.relu(out))
        return F.dropout(out, p=self.drop_rate, training=self.training, inplace=True)


class ResNet12(nn.Module):
    """Four such blocks and a mean over the image."""

    def __init__(self, sizes=(3, 4, 4, 5), *, keep_avg_pool=True):
        super().__init__()
        self.layer1 = ResidualBlock(3, sizes[0])
        self.layer2 = ResidualBlock(sizes[0], sizes[1])
        self.layer3 = ResidualBlock(sizes[1], sizes[2])
        self.layer4 = ResidualBlock(sizes[2], sizes[3])
        self.avgpool = nn.AdaptiveAvgPool2d(1) if keep_avg_pool else nn.Identity()
        self.classifier = nn.Linear(sizes[3], CLASSES)

    def forward(self, x):
        """Returns the logits."""
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return self.classifier(self.avgpool(x).view(x.size(0), -1))


class WideBlock(nn.Module):
    """Norm and relu before each convolution; the first pair also before the shortcut."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1, self.relu1 = nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2, self.relu2 = nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        self.conv2 = conv3x3(outputs, outputs)
        self.equal = inputs == outputs
        self.shortcut = (
            None if self.equal else nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
        )

    def forward(self, x):
        """Returns the block's outputs."""
        if not self.equal:
            x = self.relu1(self.bn1(x))
        else:
            out = self.relu1(self.bn1(x))
        out = self.relu2(self.bn2(self.conv1(out if self.equal else x)))
        out = self.conv2(out)
        return torch.add(x if self.equal else self.shortcut(x), out)


class WideResNet(nn.Module):
    """Blocks of two widths, a norm, and a pool over all of the image."""

    def __init__(self):
        super().__init__()
        self.conv1 = conv3x3(3, 3)
        self.blocks = nn.Sequential(WideBlock(3, 4, 1), WideBlock(4, 4, 1), WideBlock(4, 6, 2))
        self.bn1, self.relu = nn.BatchNorm2d(6), nn.ReLU(inplace=True)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x):
        """Returns the logits."""
        out = self.relu(self.bn1(self.blocks(self.conv1(x))))
        out = F.avg_pool2d(out, out.size(-1))
        return self.fc(out.view(-1, 6))


# ---------------------------------------------------------------- convolutional networks


class ModuleListConv4(nn.Module):
    """Blocks of growing width in a list, and leaky relus by a function that works in place."""

    def __init__(self, widths=(3, 4, 6, 8)):
        super().__init__()
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        inputs = 3
        for width in widths:
            self.convs.append(nn.Conv2d(inputs, width, 3, padding=1))
            self.norms.append(nn.BatchNorm2d(width, track_running_stats=False))
            inputs = width
        self.head = nn.Linear(widths[-1], CLASSES)

    def forward(self, x):
        """Returns the logits."""
        for i, (conv, bn) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = F.leaky_relu_(bn(conv(x)), negative_slope=0.1)
            if i < 4:
                x = F.max_pool2d(x, kernel_size=2)
        return self.head(x.reshape((x.size(0), -1)))


class OwnFlatten(nn.Module):
    """A flatten from before torch had one."""

    def forward(self, x):
        """Returns rows with one axis."""
        return x.view(x.size(0), -1)


def in_sequence():
    """Convolutions, tracked norms with momentum 1, relus in place, pools."""
    layers = []
    for inputs in (1, 4, 4):
        layers += [
            nn.Conv2d(inputs, 4, 3),
            nn.BatchNorm2d(4, momentum=1, affine=True),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2, 2),
        ]
    return nn.Sequential(*layers, OwnFlatten(), nn.Linear(4, CLASSES))


class SqueezeExcite(nn.Module):
    """Channels weighted by what is in all of them, in three ways of taking the mean."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)
        self.fc1, self.fc2 = nn.Linear(4, 2), nn.Linear(2, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x):
        """Returns the logits."""
        h = F.gelu(self.norm(self.conv(x)))
        share = F.adaptive_avg_pool2d(h, 1).squeeze(-1).squeeze(-1)
        share = torch.sigmoid(self.fc2(F.relu(self.fc1(share))))
        h = h * share.view(-1, 4, 1, 1)
        return self.head(h.mean(3).mean(2) + h.mean(dim=[-1, -2]) - h.sum((2, 3)) / 36)


# ---------------------------------------------------------------- other networks


class WeightsInADict(nn.Module):
    """Products with weights that lie inputs first."""

    def __init__(self):
        super().__init__()
        sizes = [4, 7, 6, CLASSES]
        self.w = nn.ParameterDict()
        for i, (n, m) in enumerate(itertools.pairwise(sizes), 1):
            self.w[f"w{i}"] = nn.Parameter(0.5 * torch.randn(n, m))
            self.w[f"b{i}"] = nn.Parameter(torch.zeros(m))

    def forward(self, x):
        """Returns the logits."""
        h = F.relu(torch.matmul(x, self.w["w1"]) + self.w["b1"])
        h = F.relu(h @ self.w["w2"] + self.w["b2"])
        return torch.addmm(self.w["b3"], h, self.w["w3"])


class SkippingMLP(nn.Module):
    """What goes in joined to what comes out, dropout that is off, and a residual sum."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 5), nn.Linear(9, 9), nn.Linear(13, CLASSES)])
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        """Returns the logits."""
        h = torch.cat([F.elu(self.layers[0](x)), x], dim=1)
        h = h + self.scale * torch.tanh(self.layers[1](h))
        h = F.dropout(h, 0.5, training=self.training)
        return self.layers[2](torch.cat((h, x), dim=-1))


class SeriesNet(nn.Module):
    """Values over time, [N, L, C]: convolutions over time, dilated, and the last moments."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv1d(2, 4, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(4, 4, kernel_size=3, padding=2, dilation=2)
        self.norm, self.fc = nn.LayerNorm(4), nn.Linear(4, CLASSES)

    def forward(self, x):
        """Returns the logits."""
        h = x.permute(0, 2, 1)
        h = F.silu(self.conv1(h))
        h = F.silu(self.conv2(h)) + h
        h = self.norm(h.transpose(1, 2).contiguous())
        return self.fc(torch.mean(h, dim=1))


class Context(nn.Module):
    """Context parameters joined to the inputs."""

    def __init__(self):
        super().__init__()
        self.context = nn.Parameter(torch.zeros(2))
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, CLASSES)

    def forward(self, x):
        """Returns the logits."""
        x = torch.cat((x, self.context.expand(x.shape[0], -1)), dim=1)
        return self.fc2(F.relu(self.fc1(x)))


class Modulated(nn.Module):
    """Features scaled and shifted by parameters."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.gamma, self.beta = (
            nn.Parameter(torch.ones(1, 4, 1, 1)),
            nn.Parameter(torch.zeros(4, 1, 1)),
        )
        self.head = nn.Linear(36, CLASSES)

    def forward(self, x):
        """Returns the logits."""
        h = F.softplus(self.conv(x) * self.gamma + self.beta)
        return F.log_softmax(self.head(h.flatten(start_dim=1)), dim=1)


class Siren(nn.Module):
    """Sines with a frequency."""

    def __init__(self):
        super().__init__()
        self.net = nn.ModuleList([nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, CLASSES)])

    def forward(self, x):
        """Returns the values."""
        for layer in self.net[:-1]:
            x = torch.sin(5.0 * layer(x))
        return self.net[-1](x)


def chained():
    """A class whose forward is a chain of linear layers, with a list of them."""

    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 6)])
            self.out = nn.Linear(6, CLASSES)

        def forward(self, x):
            for layer in self.hidden:
                x = layer(x).relu_()
            return self.out(x)

    return Chain()


def normalised_weights():
    """Weights that torch computes anew at each use."""
    return nn.Sequential(
        parametrizations.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, CLASSES)
    )


def cosine():
    """A head of cosines."""

    class Cosine(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 5), nn.Tanh())
            self.weight = nn.Parameter(torch.randn(CLASSES, 5))

        def forward(self, x):
            return F.linear(F.normalize(self.body(x), dim=1), F.normalize(self.weight, dim=1))

    return Cosine()


# name: (the network, the shape of a row, where it runs, a part of the reason)
NETWORKS = {
    "ResNet-12": (ResNet12, (3, 16, 16), "batched", "convolution"),
    "WRN": (WideResNet, (3, 6, 6), "batched", "convolution"),
    "modules in lists": (ModuleListConv4, (3, 16, 16), "batched", "convolution"),
    "a sequence": (in_sequence, (1, 28, 28), "batched", "Conv2d"),
    "squeeze and excitation": (SqueezeExcite, (3, 8, 8), "batched", "convolution"),
    "weights in a dict": (WeightsInADict, (4,), "batched", "transpose, has no kernel"),
    "skip connections": (lambda: SkippingMLP().eval(), (4,), "batched", "elu has no kernel"),
    "a time series": (SeriesNet, (7, 2), "batched", "permute"),
    "context parameters": (Context, (4,), "batched", "spread has no kernel"),
    "modulation": (Modulated, (3, 8, 8), "batched", "convolution"),
    "sines": (Siren, (4,), "batched", "scale has no kernel"),
    "a chain": (chained, (4,), "fused", "CPU kernels"),
    "weight norm": (normalised_weights, (4,), "batched", "parametrised"),
    "cosines": (cosine, (4,), "batched", "has no kernel"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_run_where_expected_and_are_exact(name):
    make, shape, backend, reason = NETWORKS[name]
    torch.manual_seed(0)
    net = make().double()
    il.nn.per_pass_statistics(net)
    generator = torch.Generator().manual_seed(1)
    sides = []
    for rows in (6, 5):
        x = torch.randn(2, rows, *shape, generator=generator, dtype=torch.float64)
        sides.append((x, torch.randint(CLASSES, (2, rows), generator=generator)))
    learner = il.MAML(net, loss="cross_entropy", inner_lr=0.02, steps=2)
    losses = learner(*sides, reduction="none")
    losses.mean().backward()
    text = learner.explain()
    assert learner.backend == backend, text
    assert reason in text, text
    found = {k: p.grad for k, p in net.named_parameters() if p.grad is not None}
    expected = torch.stack(
        loop_losses(net, *sides, inner_lr=lambda k, s: 0.02, steps=2, loss="cross_entropy")
    )
    wanted = torch.autograd.grad(expected.mean(), list(net.parameters()))
    assert_close(losses, expected, 1e-12)
    assert_close(found, dict(zip(found, wanted, strict=True)), 1e-10, floor=1e-3)


class BiasedNorm(nn.Module):
    """A layer norm with a bias and no weight."""

    def __init__(self, written):
        super().__init__()
        self.bias, self.written = nn.Parameter(torch.linspace(-1, 1, 5)), written

    def forward(self, x):
        """Returns it by torch's function, or written out."""
        if self.written:
            return F.layer_norm(x, (5,)) + self.bias
        return F.layer_norm(x, (5,), None, self.bias)


# name: what torch differentiates twice wrongly (gradgradcheck fails), and the same written out
WRONG_TWICE = {
    "weight norm": lambda written: parametrizations.weight_norm(nn.Linear(5, 5)),
    "older weight norm": lambda written: nn.utils.weight_norm(nn.Linear(5, 5)),
    "layer norm": BiasedNorm,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("name", WRONG_TWICE)
def test_what_torch_differentiates_twice_wrongly_is_exact(name, backend):
    generator = torch.Generator().manual_seed(1)
    sides = []
    for rows in (6, 5):
        x = torch.randn(2, rows, 4, generator=generator, dtype=torch.float64)
        sides.append((x, torch.randint(CLASSES, (2, rows), generator=generator)))
    nets = []
    for written in (False, True):
        torch.manual_seed(0)
        parts = nn.Linear(4, 5), WRONG_TWICE[name](written), nn.Tanh(), nn.Linear(5, CLASSES)
        nets.append(nn.Sequential(*parts).double())
    learner = il.MAML(nets[0], loss="cross_entropy", inner_lr=0.5, steps=2, backend=backend)
    learner(*sides, reduction="none").mean().backward()
    found = {k: p.grad for k, p in nets[0].named_parameters()}
    expected = torch.stack(
        loop_losses(nets[1], *sides, inner_lr=lambda k, s: 0.5, steps=2, loss="cross_entropy")
    )
    wanted = torch.autograd.grad(expected.mean(), list(nets[1].parameters()))
    assert_close(found, dict(zip(found, wanted, strict=True)), 1e-10)
