"""Networks by families of layers for the tests of the batched back end: every layer that it has, in
the surroundings in which it is used."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrizations


def norm(channels, dims=2, **options):
    """Batch norm with the statistics of each pass."""
    kind = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}[dims]
    return kind(channels, track_running_stats=False, **options)


class Residual(nn.Module):
    """Two convolutions with a shortcut of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding=1), norm(4)
        self.second, self.group = nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.GroupNorm(2, 4)
        self.short, self.last = nn.Conv2d(2, 4, 1), nn.Linear(4, 3)

    def forward(self, x):
        """Returns three outputs."""
        h = self.group(self.second(F.silu(self.norm(self.first(x)))))
        h = torch.tanh(h + self.short(x))
        return self.last(h.mean(dim=(2, 3)))


class Twice(nn.Module):
    """One layer used twice, under two names, with an identity shortcut."""

    def __init__(self):
        super().__init__()
        self.first = self.again = nn.Linear(4, 4)
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        """Returns three outputs."""
        h = torch.tanh(self.first(x))
        h = h + F.elu(self.again(h))
        return self.last(h)


class Written(nn.Module):
    """Weights in a dict, used by products, sums and entries of them."""

    def __init__(self):
        super().__init__()
        shapes = {"in": (4, 5), "bias": (5,), "both": (2, 5, 5), "shift": (2, 1, 5), "out": (3, 5)}
        self.weights = nn.ParameterDict(
            {name: nn.Parameter(0.5 * torch.randn(shape)) for name, shape in shapes.items()}
        )
        self.gain, self.heat = nn.Parameter(torch.rand(5)), nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        """Returns three outputs."""
        w = self.weights
        h = torch.tanh(x @ w["in"] + w["bias"])
        h = torch.sigmoid(torch.matmul(h, w["both"][0]) - w["shift"][0])
        h = self.gain * torch.cos(F.linear(h, w["both"][-1])) + w["shift"][1]
        h = w["bias"] - torch.addmm(w["bias"], h, w["both"][1].t())
        return self.heat * h.mm(w["out"].T)


class Arithmetic(nn.Module):
    """Sums and products of results and numbers, of the same and of other shapes."""

    def __init__(self):
        super().__init__()
        self.conv, self.gate = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 4, 1)
        self.squeeze, self.last = nn.Linear(4, 4), nn.Linear(5, 3)

    def forward(self, x):
        """Returns three outputs."""
        a, b = self.conv(x), torch.sigmoid(self.gate(x) * 2 - 0.3)
        h = 1 - (a * b - torch.add(a, b, alpha=0.5)) / 2
        share = torch.sigmoid(self.squeeze(h.mean((2, 3))))
        h = h * share.unsqueeze(2).unsqueeze(-1)
        h = h - h.mean(1, keepdim=True)
        h += h.sum(dim=(1, 3), keepdim=True) * 0.1
        h = -torch.square(h) + (0.3 * h) ** 2
        h *= 0.5
        rows = torch.cat([h.mean((2, 3)), a.sum((1, 2, 3)).unsqueeze(1) * 0.01], dim=1)
        return self.last(rows)


class Series(nn.Module):
    """A signal whose channels come last, through convolutions, with what goes in joined to what
    comes out."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv1d(2, 3, 3, padding=1), nn.Conv1d(5, 3, 2)
        self.last = nn.Linear(3, 3)

    def forward(self, x):
        """Returns three outputs."""
        h = x.transpose(1, 2)
        h = torch.cat((F.silu(self.first(h)), h), 1)
        h = torch.tanh(self.second(h)).permute(0, 2, 1)
        return self.last(h.mean(1)).unsqueeze(1).squeeze(1)


class Pieces(nn.Module):
    """Entries and pieces of what comes out, as networks of signals and with gates have them."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 2), nn.Conv1d(2, 6, 2, dilation=2)
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        """Returns three outputs."""
        a, b = self.first(x).chunk(2, dim=1)
        h = (a * torch.sigmoid(b))[..., 1:, :-1]
        a, b = torch.split(self.second(h[:, :, -1])[:, None], (2, 4), 2)
        h = torch.tanh(b[:, 0, ::2, -1]) * a.squeeze(1)[:, :, -1]
        return self.last(torch.cat([h, h[:, -1:], a[:, 0, :1, 0]], 1))


class Sines(nn.Module):
    """A network of sines, and other functions."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        """Returns three outputs."""
        h = torch.sin(3.0 * self.first(x))
        return self.last(torch.exp(-self.second(h).cos()))


class Quotients(nn.Module):
    """Powers, quotients, limits and norms of what comes out."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)
        self.heat = nn.Parameter(torch.linspace(0.5, 1.5, 6))

    def forward(self, x):
        """Returns three outputs."""
        h = self.first(x)
        h = torch.erf(h) / self.heat + torch.log1p(h.abs()) / (1 + h**2).sqrt()
        h = (0.3 / (1.5 + torch.atan(h))).clamp(0.1, 1).log() - torch.expm1(h).clamp_min(-0.5)
        h = F.normalize(h, dim=1) + h / h.norm(dim=-1, keepdim=True)
        h = self.second(h) * torch.rsqrt(1 + torch.linalg.vector_norm(h, dim=1, keepdim=True))
        h = (2 + h.abs()).pow(1.5).reciprocal() * F.normalize(h, p=1, dim=-1)
        return self.last(h) / 2


class Padded(nn.Module):
    """Images that are padded by each mode, enlarged, turned and shifted."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode="reflect")
        self.second = nn.Conv2d(3, 3, (2, 3), padding=1, padding_mode="circular")
        self.third = nn.Conv2d(3, 3, 3, padding=1, padding_mode="replicate")
        self.larger, self.last = nn.Upsample(scale_factor=2), nn.Linear(6, 3)

    def forward(self, x):
        """Returns three outputs."""
        h = torch.tanh(self.first(F.pad(x, (1, -1, 0, 1), value=1e9).clamp(max=0.5)))
        h = torch.tanh(self.second(h.flip(2).roll((1, -2), (2, 3)) + h.clone()))
        h = self.larger(torch.tanh(self.third(h)))
        h = F.interpolate(h, (3, 7)).repeat_interleave(2, 1) + F.pad(h, (-5, -4, -6, -5)).repeat(
            1, 2, 1, 1
        )
        return self.last(torch.stack([h.mean((2, 3)), h[..., 0, 0] ** 3], 2).narrow(2, 0, 2).sum(2))


class Attention(nn.Module):
    """Attention, written out and by torch's function, with two heads."""

    def __init__(self):
        super().__init__()
        self.first, self.mixed = nn.Linear(4, 12), nn.Linear(4, 12, bias=False)
        self.norm, self.last = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x):
        """Returns three outputs."""
        parts = [h.unflatten(-1, (2, 2)).transpose(1, 2) for h in self.first(x).chunk(3, -1)]
        h = F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        x = self.norm(x + h)
        query, key, value = self.mixed(x).unflatten(-1, (3, 4)).unbind(2)
        h = torch.softmax(torch.bmm(query, key.mT) / 2, -1) @ value
        return self.last((x + h).mean(1))


class Contracted(nn.Module):
    """Products that sum over axes: equations, vectors, matrices on either side, bilinear layers."""

    def __init__(self):
        super().__init__()
        shapes = {"mix": (3, 5), "each": (4, 5, 2), "left": (6, 3), "sides": (4, 3, 3), "v": (2,)}
        self.weights = nn.ParameterDict(
            {name: nn.Parameter(0.5 * torch.randn(shape)) for name, shape in shapes.items()}
        )
        self.pairs, self.last = nn.Bilinear(4, 4, 3), nn.Linear(3, 3)
        self.register_buffer("graph", torch.rand(4, 4))

    def forward(self, x):
        """Returns three outputs."""
        w = self.weights
        h = torch.tanh(torch.einsum("a c i, i j", x, w["mix"]))  # [N, 4, 5]
        h = self.graph @ h + torch.einsum("...i,...i->...i", h, h)
        scores = torch.einsum(h, [0, 1, 2], h, [0, 3, 2], [0, 1, 3])  # [N, 4, 4]
        h = torch.tanh(torch.einsum("bij,bjk->bik", scores, h))
        h = h.unsqueeze(2) @ w["each"]  # [N, 4, 1, 2]
        other = torch.einsum("ij,...jk->...ik", w["left"], w["sides"] @ x.unsqueeze(-1)).mean(1)
        return self.last(self.pairs((h @ w["v"]).flatten(1), x @ w["mix"][:, 0])) + other[:, :3, 0]


class Upsampled(nn.Module):
    """Transposed convolutions of one and two axes."""

    def __init__(self):
        super().__init__()
        self.first = nn.ConvTranspose2d(4, 6, (2, 3), stride=(1, 2), padding=(0, 1), groups=2)
        self.second = nn.ConvTranspose2d(6, 2, 2, 2, output_padding=1, bias=False, dilation=2)
        self.series = nn.ConvTranspose1d(2, 3, 3)

    def forward(self, x):
        """Returns three outputs."""
        h = torch.tanh(self.second(torch.tanh(self.first(x))))
        return self.series(h.mean(3)).mean(2)


class Masked(nn.Module):
    """Attention that looks back, masks from buffers and from numbers, and entries chosen by one."""

    def __init__(self):
        super().__init__()
        self.first, self.mixed, self.last = nn.Linear(4, 12), nn.Linear(4, 12), nn.Linear(4, 3)
        self.place = nn.Embedding(3, 4)
        self.register_buffer("later", torch.ones(3, 3).triu(1).bool())
        self.register_buffer("near", torch.rand(3, 3))

    def attended(self, layer, x, **options):
        """Attention of one head."""
        return F.scaled_dot_product_attention(*torch.tanh(layer(x)).chunk(3, -1), **options)

    def forward(self, x):
        """Returns three outputs."""
        x = x + self.place(torch.arange(x.shape[1]))
        h = x + self.attended(self.first, x, is_causal=True)
        h = h + self.attended(self.first, h, attn_mask=~self.later)
        h = h + self.attended(self.first, h, attn_mask=self.near)
        query, key, value = torch.tanh(self.mixed(h)).chunk(3, -1)
        scores = query @ key.mT / x.size(-1) ** 0.5
        shares = scores.masked_fill(self.later, -torch.inf).softmax(-1)
        early = torch.where(self.near[:, :1] < 0.5, value, h)
        h = torch.where(self.later[0], 2.0, early.transpose(1, 2)).transpose(1, 2) + shares @ value
        return self.last((h * torch.linspace(0, 1, 3, dtype=x.dtype)[:, None]).sum(1))


class Cells(nn.Module):
    """Recurrent cells in a loop, from states of every kind."""

    def __init__(self):
        super().__init__()
        self.plain, self.gated = nn.RNNCell(2, 3, nonlinearity="relu"), nn.GRUCell(3, 3, bias=False)
        self.long, self.own, self.last = nn.LSTMCell(3, 4), nn.Linear(7, 4), nn.Linear(8, 3)

    def forward(self, x):
        """Returns three outputs."""
        h, state, g = None, None, x.new_ones(x.size(0), 3)
        own = torch.zeros(len(x), 4, dtype=x.dtype)
        for at in range(x.shape[1]):
            h = self.plain(x[:, at], h)
            g = self.gated(h, g)
            state = self.long(g, state)
            own = torch.tanh(self.own(torch.cat([own, h], 1)))
        return self.last(torch.cat([state[1], own + torch.zeros_like(own)], 1))


class Recurrent(nn.Module):
    """Recurrent layers on sequences: several, in both directions, without bias."""

    def __init__(self):
        super().__init__()
        self.long = nn.LSTM(2, 3, num_layers=2, batch_first=True)
        self.gated = nn.GRU(3, 2, batch_first=True, bidirectional=True)
        self.plain = nn.RNN(4, 4, batch_first=True, bias=False)
        self.last = nn.Linear(11, 3)

    def forward(self, x):
        """Returns three outputs."""
        h, (_, c) = self.long(x)
        h, both = self.gated(h)
        _, last = self.plain(h)
        return self.last(torch.cat([h[:, -1], both[0], both[1], last.squeeze(0)[:, 1:]], 1)) + c[-1]


class Weights(nn.Module):
    """Weights that are computed: standardised, normalised by torch's parametrisation and as
    directions, masked, and a temperature that is an exponential."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.middle = parametrizations.weight_norm(nn.Linear(4, 5))
        self.directions = nn.Parameter(torch.randn(2, 3, 5))
        self.heat, self.shift = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.randn(4))
        self.register_buffer("mask", torch.arange(4) > 0)

    def forward(self, x):
        """Returns three outputs."""
        w = self.conv.weight
        w = w - w.mean(dim=(1, 2, 3), keepdim=True)
        w = w / (w.view(w.size(0), -1).std(dim=1).view(-1, 1, 1, 1) + 0.1).expand_as(w)
        h = torch.tanh(F.conv2d(x, w, self.conv.bias * self.mask))
        h = torch.tanh(self.middle(h.mean((2, 3))))
        one, other = F.normalize(self.directions, dim=-1).unbind(0)
        h = F.normalize(h) @ one.t() - F.linear(h, other) + self.shift[1:]
        return self.heat.exp() * h


class PlainBlock(nn.Module):
    """Convolution, norm, relu and pool, by functions."""

    def __init__(self, inputs, outputs, pool):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(inputs, outputs, 3, padding=1), norm(outputs)
        self.pool = pool

    def forward(self, x):
        """Returns the block's outputs."""
        return F.max_pool2d(F.relu(self.norm(self.conv(x)), inplace=True), *self.pool)


def signed(module):
    """The module with weights of norms of both signs, and one of zero."""
    for part in module.modules():
        if isinstance(part, _NormBase) and part.weight is not None:
            with torch.no_grad():
                part.weight.copy_(torch.linspace(-1, 1, len(part.weight)))
                part.weight[0] = 0 if len(part.weight) > 4 else -0.5
    return module


def activations(*parts):
    """Linear layers with each activation between them."""
    layers = [nn.Linear(4, 5)]
    for part in parts:
        layers += [part, nn.Linear(5, 5)]
    return nn.Sequential(*layers, nn.Linear(5, 3))


def conv4():
    """Convolution, norm, relu, pool, twice, as the networks of few-shot classification."""
    return signed(
        nn.Sequential(
            PlainBlock(2, 5, (2,)), PlainBlock(5, 4, (3, 2, 1)), nn.Flatten(), nn.Linear(16, 3)
        )
    )


def strided():
    """Strided convolutions with norm and relu, and a mean."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        signed(norm(4)),
        nn.ReLU(),
        nn.Conv2d(4, 4, (2, 3), stride=(1, 2), padding=1, bias=False),
        norm(4, affine=False),
        nn.ReLU(),
        nn.AvgPool2d(2, stride=1),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


# name: (how it is made, the shape of a row)
FAMILIES = {
    "linear": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), (4,)),
    "wide": (
        lambda: nn.Sequential(
            nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 3), nn.ELU()
        ),
        (4,),
    ),
    "linear over an axis": (
        lambda: nn.Sequential(
            nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2), nn.Flatten(), nn.Linear(6, 3)
        ),
        (3, 4),
    ),
    "saturating": (
        lambda: activations(nn.Sigmoid(), nn.Hardtanh(-0.7, 0.6), nn.Hardswish(), nn.ReLU6()),
        (4,),
    ),
    "smooth": (
        lambda: activations(nn.SiLU(), nn.GELU(), nn.GELU("tanh"), nn.Softplus(2.0, 1.0)),
        (4,),
    ),
    "kinked": (
        lambda: activations(nn.ReLU(), nn.LeakyReLU(0.2), nn.ELU(0.7), nn.PReLU(), nn.PReLU(5)),
        (4,),
    ),
    "convolution": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, dilation=2, padding="same"),
            nn.Softplus(),
            nn.Conv2d(4, 6, (3, 2), stride=(2, 1), groups=2),
            nn.PReLU(6),
            nn.Flatten(),
            nn.Linear(72, 3),
        ),
        (2, 6, 7),
    ),
    "signal": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 3, dilation=2, padding=1, groups=2),
            nn.GroupNorm(2, 4),
            nn.SiLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(4, 4, 2, bias=False),
            nn.AdaptiveAvgPool1d(2),
            nn.Flatten(),
            nn.Linear(8, 3),
        ),
        (2, 9),
    ),
    "pools": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, (3, 2)),
            nn.LayerNorm([4, 6, 7]),
            nn.Tanh(),
            nn.AdaptiveMaxPool2d((3, 2)),
            nn.AvgPool2d(2, 1, 1, count_include_pad=False),
            nn.MaxPool2d(2, 1),
            nn.AdaptiveAvgPool2d((2, 1)),
            nn.Flatten(),
            nn.Linear(8, 3),
        ),
        (2, 8, 8),
    ),
    "ceiled pools": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            norm(4),
            nn.ReLU(),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(4, 4, 1),
            nn.MaxPool2d((2, 3), (3, 2), (1, 1), ceil_mode=True),
            nn.Softplus(),
            nn.AvgPool2d(2, ceil_mode=True),
            nn.AvgPool2d(2, 1, 1, ceil_mode=True, count_include_pad=False),
            nn.Flatten(),
            nn.Linear(24, 3),
        ),
        (2, 9, 11),
    ),
    "instance norm": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3),
            nn.InstanceNorm2d(4, affine=True),
            nn.SiLU(),
            nn.Conv2d(4, 3, 2),
            nn.InstanceNorm2d(3),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(27, 3),
        ),
        (2, 6, 6),
    ),
    "log softmax": (
        lambda: nn.Sequential(
            nn.Linear(4, 6),
            nn.LogSoftmax(1),
            nn.Tanh(),
            nn.Linear(6, 3),
            nn.LogSoftmax(-1),
            nn.Tanh(),
        ),
        (4,),
    ),
    "softmax": (
        lambda: nn.Sequential(
            nn.Conv1d(1, 2, 2),
            nn.Softmax(dim=2),
            nn.Conv1d(2, 3, 3),
            nn.Softmax(1),
            nn.Flatten(),
        ),
        (1, 4),
    ),
    "rms norm": (
        lambda: nn.Sequential(
            nn.Linear(4, 6),
            nn.RMSNorm(6),
            nn.Tanh(),
            nn.Unflatten(1, (2, 3)),
            nn.RMSNorm([2, 3], eps=0.1, elementwise_affine=False),
            nn.Flatten(),
            nn.Linear(6, 3),
        ),
        (4,),
    ),
    "smooth, too": (
        lambda: activations(nn.Mish(), nn.LogSigmoid(), nn.Softsign()),
        (4,),
    ),
    "shrinking": (
        lambda: activations(
            nn.Softshrink(0.1), nn.Hardshrink(0.05), nn.Tanhshrink(), nn.Threshold(-0.2, 0.3)
        ),
        (4,),
    ),
    "gates": (
        lambda: nn.Sequential(
            nn.Linear(4, 10),
            nn.GLU(),
            nn.Linear(5, 4),
            nn.Unflatten(1, (2, 2)),
            nn.GLU(1),
            nn.Flatten(),
            nn.Linear(2, 5),
            nn.AlphaDropout().eval(),
            nn.Linear(5, 3),
            nn.Softmin(dim=1),
        ),
        (4,),
    ),
    "quotients": (Quotients, (4,)),
    "padded": (Padded, (2, 5, 6)),
    "attention": (Attention, (3, 4)),
    "contractions": (Contracted, (4, 3)),
    "upsampled": (Upsampled, (4, 2, 3)),
    "masked": (Masked, (3, 4)),
    "cells": (Cells, (3, 2)),
    "recurrent": (Recurrent, (3, 2)),
    "computed weights": (Weights, (2, 5, 5)),
    "exponential": (lambda: activations(nn.CELU(0.5), nn.SELU()), (4,)),
    "sines": (Sines, (4,)),
    "pieces": (Pieces, (2, 4, 6)),
    "written": (Written, (4,)),
    "arithmetic": (Arithmetic, (2, 3, 4)),
    "series": (Series, (6, 2)),
    "row norms": (
        lambda: nn.Sequential(
            nn.Linear(4, 6),
            nn.LayerNorm(6),
            nn.Tanh(),
            nn.Linear(6, 6),
            nn.LayerNorm(6, elementwise_affine=False),
            nn.GroupNorm(3, 6),
            nn.Linear(6, 3),
        ),
        (4,),
    ),
    "constant norm": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3),
            nn.BatchNorm2d(3),
            nn.Tanh(),
            nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
            nn.Flatten(),
            nn.Linear(27, 3),
        ).eval(),
        (2, 5, 5),
    ),
    "batch norm": (
        lambda: nn.Sequential(
            nn.Linear(4, 6),
            signed(norm(6, 1)),
            nn.ReLU(),
            nn.Linear(6, 5),
            norm(5, 1, affine=False),
            nn.Tanh(),
            nn.Linear(5, 3),
        ),
        (4,),
    ),
    "conv4": (conv4, (2, 8, 8)),
    "strided": (strided, (2, 8, 8)),
    "residual": (Residual, (2, 5, 5)),
    "used twice": (Twice, (4,)),
}
WITH_BATCH_STATISTICS = ("batch norm", "conv4", "strided", "residual", "ceiled pools")


def build(name, seed=0, dtype=torch.float64):
    """A seeded network of a family, and the shape of a row."""
    make, shape = FAMILIES[name]
    torch.manual_seed(seed)
    net = make().to(dtype)
    for part in net.modules():
        if isinstance(part, _NormBase) and part.running_mean is not None:
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2.0)
    return net, shape
