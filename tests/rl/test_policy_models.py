"""Descriptions of Gaussian policies and their parameters."""

import copy
import math
import pickle

import pytest
import torch

import innerloop as il


def test_leaves_are_an_mlps_and_log_std_last():
    model = il.GaussianMLP([17, 64, 64, 6])
    network = il.MLP([17, 64, 64, 6], activation="tanh")
    assert model.names == (*network.names, "log_std")
    assert dict(model.shapes) == {**network.shapes, "log_std": (6,)}
    assert model.parameters == network.parameters + 6 == 5708
    assert (model.inputs, model.outputs) == (17, 6)
    assert model.network == network
    assert model.min_log_std == math.log(1e-6)
    assert list(model.init()) == list(model.names)


def test_init_is_glorot_uniform():
    params = il.GaussianMLP([300, 200, 4]).init(torch.Generator().manual_seed(0))
    for name, value in params.items():
        if name.endswith("weight"):
            bound = math.sqrt(6 / sum(value.shape))
            assert value.abs().max() <= bound
            assert value.abs().max() > 0.99 * bound
            # variance bound^2 / 3; standard error of a uniform's variance: sqrt(4 / 45 / n) bound^2
            error = 5 * bound**2 * math.sqrt(4 / 45 / value.numel())
            assert abs(value.var().item() - bound**2 / 3) < error
            assert abs(value.mean().item()) < 5 * bound / math.sqrt(3 * value.numel())
        else:
            assert (value == 0).all()


def test_init_repeats_itself_in_the_dtype_asked_for():
    model = il.GaussianMLP([3, 5, 2], activation="relu")
    first, second = (model.init(torch.Generator().manual_seed(1), torch.float64) for _ in range(2))
    for name in model.names:
        assert first[name].dtype is torch.float64
        assert torch.equal(first[name], second[name])


@pytest.mark.parametrize(
    "model",
    [il.GaussianMLP([3, 2]), il.GaussianMLP((3, 4, 2), "relu", min_log_std=-2.0)],
    ids=repr,
)
def test_copies_are_equal(model):
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        eval(repr(model), vars(il)),
    ):
        assert other == model
        assert hash(other) == hash(model)
        assert other.min_log_std == model.min_log_std
    assert model != il.GaussianMLP([3, 4, 2], min_log_std=-3.0)
    assert model != model.network


def test_never_changes():
    model = il.GaussianMLP([3, 2])
    with pytest.raises(AttributeError, match="GaussianMLP is immutable"):
        model.min_log_std = 0.0
    with pytest.raises(TypeError):
        model.shapes["log_std"] = (3,)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (([3],), "input and an output"),
        (([3, 0],), "positive integers"),
        (([3, 2], "sine"), "activation must be one of"),
        (([3, 2], "tanh", float("nan")), "min_log_std must be finite"),
        (([3, 2], "tanh", -math.inf), "min_log_std must be finite"),
    ],
)
def test_refuses(arguments, text):
    widths, activation, floor = (*arguments, *("tanh", -1.0)[len(arguments) - 1 :])
    with pytest.raises(ValueError, match=text):
        il.GaussianMLP(widths, activation, min_log_std=floor)
