"""Modules that hold a layer or a parameter twice, that write to themselves in forward(), or fail
there; and a record of everything that a module holds, for comparison before and after."""

from __future__ import annotations

from collections import OrderedDict, deque

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A layer in float64."""
    return nn.Linear(inputs, outputs, bias, dtype=torch.float64)


def record(module: nn.Module) -> dict[str, tuple[str, object]]:
    """Everything that a module holds, by a label: an object that must be the same, a fact that must
    be equal, or a copy of a tensor's values."""
    found: dict[str, tuple[str, object]] = {
        "names": ("equal", [name for name, _ in module.named_parameters()])
    }
    for name, part in module.named_modules():
        found[f"{name}: type"] = "same", type(part)
        found[f"{name}: keys"] = "equal", list(part.__dict__)
        for key, value in part.__dict__.items():
            _note(found, f"{name}.{key}", value)
    return found


def _note(found: dict[str, tuple[str, object]], label: str, value: object) -> None:
    """Adds one value, and what is in it if it is a container."""
    found[label] = "same", value
    if isinstance(value, Tensor):
        found[f"{label}: values"] = "values", value.detach().clone()
        found[f"{label}: facts"] = "equal", (value.requires_grad, value.shape, value.dtype)
        found[f"{label}: graph"] = "same", value.grad_fn
    elif type(value) in (dict, OrderedDict):
        found[f"{label}: keys"] = "equal", list(value)
        for key, inner in value.items():
            _note(found, f"{label}[{key!r}]", inner)
    elif type(value) in (list, tuple, set, deque):
        found[f"{label}: length"] = "equal", len(value)
        for i, inner in enumerate(value):
            _note(found, f"{label}[{i}]", inner)


def assert_unchanged(before: dict[str, tuple[str, object]], module: nn.Module) -> None:
    """Compares a module with an earlier record of it."""
    after = record(module)
    assert list(after) == list(before)
    for label, (how, value) in before.items():
        now = after[label][1]
        if how == "same":
            assert now is value, label
        elif how == "equal":
            assert now == value, label
        else:
            assert torch.equal(now, value), label


# ---------------------------------------------------------------- held twice


class TwoNames(nn.Module):
    """The same layers under two names, as learn2learn's OmniglotCNN has them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(linear(2, 3), nn.Tanh())
        self.features = nn.Sequential(nn.Flatten(), self.body)
        self.head = linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns outputs."""
        return self.head(self.features(x))

    @staticmethod
    def formula(p: dict[str, Tensor], x: Tensor) -> Tensor:
        """The same as a function of the parameters."""
        h = torch.tanh(x @ p["body.0.weight"].T + p["body.0.bias"])
        return h @ p["head.weight"].T + p["head.bias"]


class UsedTwice(nn.Module):
    """One layer under two names, each of which is used."""

    def __init__(self) -> None:
        super().__init__()
        self.first = linear(2, 2)
        self.second = self.first
        self.head = linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns outputs."""
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))

    @staticmethod
    def formula(p: dict[str, Tensor], x: Tensor) -> Tensor:
        """The same as a function of the parameters."""
        h = torch.tanh(x @ p["first.weight"].T + p["first.bias"])
        h = torch.tanh(h @ p["first.weight"].T + p["first.bias"])
        return h @ p["head.weight"].T + p["head.bias"]


class Nested(nn.Module):
    """The same nn.Sequential in two others, and in a list and a dict of modules."""

    def __init__(self) -> None:
        super().__init__()
        inner = nn.Sequential(linear(2, 2), nn.Tanh())
        self.outer = nn.Sequential(nn.Sequential(inner), inner)
        self.listed = nn.ModuleList([inner[0]])
        self.named = nn.ModuleDict({"again": inner})
        self.head = linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns outputs."""
        return self.head(self.listed[0](self.named["again"](self.outer(x))))

    @staticmethod
    def formula(p: dict[str, Tensor], x: Tensor) -> Tensor:
        """The same as a function of the parameters."""
        weight, bias = p["outer.0.0.0.weight"], p["outer.0.0.0.bias"]
        for _ in range(3):
            x = torch.tanh(x @ weight.T + bias)
        return (x @ weight.T + bias) @ p["head.weight"].T + p["head.bias"]


class TiedLayers(nn.Module):
    """Two layers with one weight, which is also a buffer, and a bias that is another layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.first = linear(2, 2)
        self.second = linear(2, 2)
        self.second.weight = self.first.weight
        self.third = linear(2, 2, bias=False)
        self.third.bias = self.first.bias
        self.register_buffer("scale", self.first.weight)
        self.head = linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns outputs."""
        h = self.third(torch.tanh(self.second(torch.tanh(self.first(x)))))
        return self.head(torch.tanh(h) * self.scale[0])

    @staticmethod
    def formula(p: dict[str, Tensor], x: Tensor) -> Tensor:
        """The same as a function of the parameters."""
        weight = p["first.weight"]
        h = torch.tanh(x @ weight.T + p["first.bias"])
        h = torch.tanh(h @ weight.T + p["second.bias"])
        h = torch.tanh(h @ p["third.weight"].T + p["first.bias"])
        return (h * weight[0]) @ p["head.weight"].T + p["head.bias"]


class Transposed(nn.Module):
    """An autoencoder whose decoder has the encoder's weight, transposed as it is used."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = linear(2, 3)
        self.shift = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Returns outputs."""
        h = torch.tanh(self.encoder(x)) @ self.encoder.weight + self.shift
        return h.sum(-1, keepdim=True)

    @staticmethod
    def formula(p: dict[str, Tensor], x: Tensor) -> Tensor:
        """The same as a function of the parameters."""
        h = torch.tanh(x @ p["encoder.weight"].T + p["encoder.bias"]) @ p["encoder.weight"]
        return (h + p["shift"]).sum(-1, keepdim=True)


class SameMemory(nn.Module):
    """Two parameters over one memory: for autograd, and so here, two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first = linear(2, 2)
        self.head = linear(2, 1)
        self.head.weight = nn.Parameter(self.first.weight.data[:1])

    def forward(self, x: Tensor) -> Tensor:
        """Returns outputs."""
        return self.head(torch.tanh(self.first(x)))

    @staticmethod
    def formula(p: dict[str, Tensor], x: Tensor) -> Tensor:
        """The same as a function of the parameters."""
        h = torch.tanh(x @ p["first.weight"].T + p["first.bias"])
        return h @ p["head.weight"].T + p["head.bias"]


SHARED = [TwoNames, UsedTwice, Nested, TiedLayers, Transposed, SameMemory]


# ---------------------------------------------------------------- written to


class Writing(nn.Module):
    """A network of two layers that writes to itself; `write` says how."""

    def __init__(self, *, looped: bool = False) -> None:
        super().__init__()
        self.body = linear(2, 3)
        self.head = linear(3, 1)
        self.looped = looped
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))
        self.plain = torch.zeros(2)
        self.log: list[Tensor] = []
        self.table = {"first": 0, "second": 1}
        self.seen: set[int] = {7}
        self.recent: deque[int] = deque([1, 2], maxlen=2)

    def write(self, z: Tensor) -> None:
        """Changes nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns outputs; reads data in between, which vmap refuses, if asked to."""
        z = torch.tanh(self.body(x))
        self.write(z)
        if self.looped and z.sum().item() == 12345:
            z = 2 * z
        return self.head(z) + self.calls

    @staticmethod
    def formula(p: dict[str, Tensor], x: Tensor) -> Tensor:
        """The same as a function of the parameters, whatever was written before."""
        h = torch.tanh(x @ p["body.weight"].T + p["body.bias"])
        return h @ p["head.weight"].T + p["head.bias"]


class CountsInPlace(Writing):
    """Counts in a buffer, after it was read."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns outputs that depend on how often it was called."""
        out = super().forward(x)
        self.calls += 1
        return out


class CountsAnew(Writing):
    """Puts another tensor in the place of a buffer."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns outputs that depend on how often it was called."""
        out = super().forward(x)
        self.calls = self.calls + 1
        return out


class Averages(Writing):
    """Keeps an average of what it saw, like batch normalisation."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns outputs that depend on what was seen before."""
        out = super().forward(x)
        with torch.no_grad():
            self.calls.mul_(0.9).add_(0.1 * out.mean())
        return out


class WritesAttributes(Writing):
    """Writes to attributes of every kind."""

    def write(self, z: Tensor) -> None:
        """Changes attributes, and what lists, dicts and sets among them hold."""
        self.last = z
        self.plain += 1
        self.log.append(z)
        self.table["third"] = z
        del self.table["first"]
        self.table["first"] = 3
        self.seen.add(8)
        self.recent.append(3)
        self.body.note = "seen"


class WritesStructure(Writing):
    """Changes its mode, parts, parameters, buffers and hooks."""

    def write(self, z: Tensor) -> None:
        """Changes what torch keeps about the module."""
        self.eval()
        self.extra = nn.Identity()
        self.register_buffer("later", z.detach())
        self.register_parameter("late", nn.Parameter(torch.zeros(1)))
        self.body.register_forward_hook(lambda module, given, result: 2 * result)
        body = self._modules.pop("body")
        self._modules["body"] = body  # now the last one
        bias = self.head.bias
        del self.head.bias
        self.head.bias = bias
        del self.log


class OneShot(Writing):
    """Has a hook that removes itself when it is called."""

    def __init__(self, *, looped: bool = False) -> None:
        super().__init__(looped=looped)

        def once(module, given, result):
            handle.remove()
            return result

        handle = self.body.register_forward_hook(once)


class BecomesAnother(Writing):
    """Changes its class in the first call, as lazy modules do."""

    def write(self, z: Tensor) -> None:
        """Changes the class of a part."""
        self.head.__class__ = type("Other", (nn.Linear,), {"forward": lambda self, x: 5 * x})
        self.head.__class__ = nn.Linear
        self.body.__class__ = type("Other", (nn.Linear,), {"forward": lambda self, x: 5 * x})


class WritesInput(Writing):
    """Changes its input in place."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns outputs."""
        return super().forward(x.mul_(2))

    @staticmethod
    def formula(p: dict[str, Tensor], x: Tensor) -> Tensor:
        """The same as a function of the parameters."""
        return Writing.formula(p, 2 * x)


WRITING = [
    Writing,
    CountsInPlace,
    CountsAnew,
    Averages,
    WritesAttributes,
    WritesStructure,
    OneShot,
    BecomesAnother,
    WritesInput,
]


# ---------------------------------------------------------------- torch's own layers with state


def around(layer: nn.Module, wide: int = 3) -> nn.Sequential:
    """A network with a layer in the middle."""
    return nn.Sequential(linear(2, 3), layer, nn.Tanh(), nn.Linear(wide, 1))


class Recurrent(nn.Module):
    """A recurrent layer, which keeps a list of its weights, run task by task."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(2, 3, batch_first=True, dtype=torch.float64)
        self.head = linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns outputs."""
        return self.head(self.gru(x[:, None, :].repeat(1, 2, 1))[0][:, -1])


LAYERS = {
    "plain": lambda: around(nn.Identity()),
    "dropout": lambda: around(nn.Dropout(0.3)),
    "batch_norm in eval mode": lambda: around(nn.BatchNorm1d(3, dtype=torch.float64)).eval(),
    "recurrent": Recurrent,
    "weight_norm": lambda: around(parametrizations.weight_norm(linear(3, 3))),
    "spectral_norm": lambda: around(parametrizations.spectral_norm(linear(3, 3))),
    "orthogonal": lambda: around(parametrizations.orthogonal(linear(3, 3))),
    "weight_norm of old": lambda: around(nn.utils.weight_norm(linear(3, 3))),
    "spectral_norm of old": lambda: around(nn.utils.spectral_norm(linear(3, 3))),
    "prune": lambda: around(prune.l1_unstructured(linear(3, 3), "weight", amount=4)),
}


# ---------------------------------------------------------------- failing


class Countdown:
    """Says when it is time; what it remembers is not the module's."""

    def __init__(self, at: int) -> None:
        self.left = at

    def is_over(self) -> bool:
        """Counts one."""
        self.left -= 1
        return self.left < 0


class Failing(WritesAttributes):
    """Raises in the pass after `at` others, when it has written to itself."""

    def __init__(self, error: BaseException, at: int, *, looped: bool = False) -> None:
        super().__init__(looped=looped)
        self.again = self.body  # a second name
        self.error = error
        self.countdown = Countdown(at)

    def forward(self, x: Tensor) -> Tensor:
        """Returns outputs, or raises."""
        out = super().forward(self.again(x)[:, :2])
        if self.countdown.is_over():
            raise self.error
        return out


class WrongShape(Failing):
    """Returns too many outputs instead."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns outputs."""
        out = super(Failing, self).forward(self.again(x)[:, :2])
        return torch.cat([out, out], 1) if self.countdown.is_over() else out


class NoTensor(Failing):
    """Returns a list instead."""

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Returns outputs."""
        out = super(Failing, self).forward(self.again(x)[:, :2])
        return [out] if self.countdown.is_over() else out


# ---------------------------------------------------------------- no functions of their parameters


class InList(nn.Module):
    """Computes with a parameter that it keeps in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.body = linear(2, 2)
        self.tied = [self.body.weight]
        self.head = linear(2, 1)

    def other(self) -> Tensor:
        """The parameter, not by its attribute."""
        return self.tied[0]

    def forward(self, x: Tensor) -> Tensor:
        """Returns outputs."""
        return self.head(torch.tanh(self.body(x)) @ self.other())


class InClosure(InList):
    """Computes with a parameter that a function remembers."""

    def __init__(self) -> None:
        super().__init__()
        weight = self.body.weight
        self.other = lambda: weight


class AsView(InList):
    """Computes with a view of a parameter, made beforehand."""

    def __init__(self) -> None:
        super().__init__()
        self.transposed = self.body.weight.t()

    def other(self) -> Tensor:
        """The view."""
        return self.transposed


class InFunction(InList):
    """Hands a parameter from elsewhere on within a list."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns outputs."""
        both = torch.stack([self.tied[0], self.body.weight])
        return self.head(torch.tanh(self.body(x)) @ both[0])


class Renormalises(nn.Module):
    """Changes a parameter in place."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 2, max_norm=0.1, dtype=torch.float64)
        self.head = linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns outputs."""
        return self.head(self.table(x[:, 0].abs().long() % 5))


class Clips(nn.Module):
    """Changes a parameter in place, by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.head = linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns outputs."""
        with torch.no_grad():
            self.head.weight.clamp_(-0.1, 0.1)
        return self.head(x)


class Checkpointed(nn.Module):
    """Runs a part again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.body = linear(2, 3)
        self.head = linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns outputs."""
        return self.head(checkpoint(lambda z: torch.tanh(self.body(z)), x, use_reentrant=False))


class Scripted(nn.Module):
    """Has a part in TorchScript."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.jit.trace(linear(2, 3), torch.ones(1, 2, dtype=torch.float64))
        self.head = linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns outputs."""
        return self.head(self.body(x))


# what it says when it is refused
NO_FUNCTION = {
    InList: "must read its parameter 'body.weight' from the attribute",
    InClosure: "must read its parameter 'body.weight' from the attribute",
    AsView: "must read its parameter 'body.weight' from the attribute",
    InFunction: "must read its parameter 'body.weight' from the attribute",
    Renormalises: "must not change its parameter 'table.weight' in place",
    Clips: "must not change its parameter 'head.weight' in place",
    Checkpointed: "must not use activation checkpointing",
    Scripted: "must not be TorchScript",
}
