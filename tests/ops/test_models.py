"""MLP descriptions: names, shapes, what from_module takes and refuses, and how refusals read."""

import copy
import pickle

import pytest
import torch
from torch import nn

import innerloop as il
from helpers import assert_close
from innerloop import models
from innerloop._program import FUSED_ACTIVATIONS
from innerloop.models import ACTIVATIONS


def params_of(module):
    """Returns a module's parameters, detached."""
    return {k: v.detach() for k, v in module.named_parameters()}


def test_names_and_shapes_in_order():
    model = il.MLP([1, 40, 3])
    assert list(model.shapes.items()) == [
        ("0.weight", (40, 1)),
        ("0.bias", (40,)),
        ("1.weight", (3, 40)),
        ("1.bias", (3,)),
    ]
    assert list(il.MLP([1, 40, 3], bias=False).shapes) == ["0.weight", "1.weight"]
    assert (model.inputs, model.outputs, model.parameters) == (1, 3, 40 + 40 + 120 + 3)


def test_init_follows_linear_and_the_generator():
    model = il.MLP([9, 5, 2])
    params = model.init(torch.Generator().manual_seed(3), dtype=torch.float64)
    again = model.init(torch.Generator().manual_seed(3), dtype=torch.float64)
    torch.testing.assert_close(params, again, rtol=0, atol=0)
    assert params["0.weight"].abs().max() <= 1 / 3
    assert params["0.weight"].abs().max() > 0.2
    assert params["1.bias"].dtype is torch.float64


def test_descriptions_are_values():
    model = il.MLP([2, 3, 1], "leaky_relu", negative_slope=0.3)
    assert copy.deepcopy(model) == pickle.loads(pickle.dumps(model)) == model
    assert hash(il.MLP([2, 3, 1], "leaky_relu", negative_slope=0.3)) == hash(model)
    assert il.MLP([2, 3, 1]) != model
    assert models.from_key(model.key) == model
    with pytest.raises(AttributeError, match="immutable"):
        model.key = ""
    with pytest.raises(TypeError):
        model.shapes["0.weight"] = (1,)


@pytest.mark.parametrize(
    ("widths", "activation", "text"),
    [
        ([3], "relu", r"widths must name at least .* \(got \[3\]\)"),
        ([3, 0], "relu", r"widths must be positive integers \(got 0\)"),
        ([3, 2.5], "relu", r"widths must be positive integers \(got 2.5\)"),
        ([3, True], "relu", r"\(got True\)"),
        ([3, 2], "mish", r"activation must be one of .* \(got 'mish'\).*nn.Sequential takes"),
    ],
)
def test_bad_descriptions(widths, activation, text):
    with pytest.raises(ValueError, match=text):
        il.MLP(widths, activation)


CHAINS = {
    "linear": lambda: nn.Linear(4, 2),
    "without bias": lambda: nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2)),
    "nested": lambda: nn.Sequential(
        nn.Sequential(nn.Linear(4, 5), nn.LeakyReLU(0.3)),
        nn.Identity(),
        nn.Dropout(0.0),
        nn.Sequential(nn.Sequential(nn.Linear(5, 2))),
    ),
    "activation last": lambda: nn.Sequential(
        nn.Linear(4, 3), nn.SiLU(), nn.Linear(3, 2), nn.Tanh()
    ),
    "no activation": lambda: nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)),
    "each kind": lambda: nn.Sequential(
        nn.Linear(4, 3),
        nn.Sigmoid(),
        nn.Linear(3, 3),
        nn.Softplus(),
        nn.Linear(3, 3),
        nn.GELU(),
        nn.Linear(3, 2),
        nn.ReLU(inplace=True),
    ),
    "dropout in eval mode": lambda: nn.Sequential(
        nn.Linear(4, 3), nn.Dropout(0.5), nn.Linear(3, 2)
    ).eval(),
    "flatten": lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 2)),
    "subclass": lambda: type("Net", (nn.Sequential,), {})(nn.Linear(4, 2)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_from_module_equals_the_module(name):
    torch.manual_seed(1)
    module = CHAINS[name]().double()
    model = il.MLP.from_module(module)
    params = params_of(module)
    assert list(model.shapes.items()) == [(k, tuple(v.shape)) for k, v in params.items()]
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    assert_close(
        il.predict(params, x, model=model, backend="fused"),
        module(x.flatten(0, 1)).detach().reshape(3, 5, 2),
        1e-12,
    )
    assert il.backend_for(module).backend == "fused"


def test_flatten_takes_any_trailing_shape():
    module = nn.Sequential(nn.Flatten(), nn.Linear(6, 2)).double()
    x = torch.randn(3, 5, 2, 3, dtype=torch.float64)
    out = il.predict(params_of(module), x, model=module, backend="fused")
    assert_close(out, module(x.flatten(0, 1)).detach().reshape(3, 5, 2), 1e-12)
    with pytest.raises(ValueError, match=r"x must have shape \[3, N, ...\] with 6 values a row"):
        il.predict(params_of(module), x[..., :2], model=module)


def shared_linear():
    """Returns a chain in which one parameter appears twice."""
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    return nn.Sequential(first, nn.ReLU(), second)


def hooked():
    """Returns a linear layer whose hook changes its output."""
    module = nn.Sequential(nn.Linear(2, 2))
    module[0].register_forward_hook(lambda m, i, o: o + 1)
    return module


class OwnForward(nn.Sequential):
    """A Sequential that does not run its parts in order."""

    def forward(self, x):
        return 2 * super().forward(x)


class OwnLinear(nn.Linear):
    """A Linear that is something else."""


REFUSED = {
    "Conv2d": (
        lambda: nn.Sequential(nn.Conv2d(1, 1, 3), nn.Flatten(), nn.Linear(4, 2)),
        "'0' .Conv2d.",
    ),
    "no Linear": (lambda: nn.Sequential(nn.Identity()), "no Linear layer"),
    "two activations": (
        lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Tanh()),
        "'2' .Tanh.*two activations",
    ),
    "leading activation": (
        lambda: nn.Sequential(nn.ReLU(), nn.Linear(2, 2)),
        "before the first layer",
    ),
    "dropout": (lambda: nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)), "'1' .Dropout.*random"),
    "tied": (shared_linear, "2.weight is the same parameter as 0.weight"),
    "hook": (hooked, "forward hooks"),
    "own forward": (lambda: OwnForward(nn.Linear(2, 2)), r"own forward\(\)"),
    "own Linear": (lambda: OwnLinear(2, 2), "not its subclasses"),
    "gelu tanh": (lambda: nn.Sequential(nn.Linear(2, 2), nn.GELU("tanh")), "approximate"),
    "softplus beta": (lambda: nn.Sequential(nn.Linear(2, 2), nn.Softplus(2.0)), "beta=1"),
    "flatten dims": (lambda: nn.Sequential(nn.Flatten(2), nn.Linear(2, 2)), "start_dim=1"),
    "sizes": (lambda: nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 2)), "gives 3 values"),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), "Linear"),
    "batch norm": (lambda: nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), "BatchNorm1d"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(2)), "LazyLinear"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_from_module_refuses(name):
    make, text = REFUSED[name]
    with pytest.raises(NotImplementedError, match=text) as refusal:
        il.MLP.from_module(make())
    assert 'backend="torch"' in str(refusal.value)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_on_the_batched_back_end(activation):
    model = il.MLP([3, 5, 2], activation=activation)
    params = {k: v.double() for k, v in model.init(torch.Generator().manual_seed(0)).items()}
    side = il.Batch(torch.randn(4, 6, 3).double(), torch.randn(4, 6, 2).double())
    found = [
        il.meta_grad(params, side, side, model=model, inner_lr=0.1, steps=2, backend=backend)
        for backend in ("batched", "torch")
    ]
    for name, value in found[0].grad.items():
        torch.testing.assert_close(value, found[1].grad[name], rtol=1e-10, atol=1e-12)
    assert set(FUSED_ACTIVATIONS) == set(ACTIVATIONS) - {"identity"}
