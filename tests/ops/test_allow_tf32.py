"""`allow_tf32` on the CPU: accepted everywhere, without effect, and checked."""

import pytest
import torch

import innerloop as il

MODEL = il.MLP([12, 16, 8], "tanh")
INNER = {"inner_lr": 0.1, "steps": 1}
CALLS = {
    "meta_grad": lambda p, b, **o: il.meta_grad(p, b, b, **INNER, **o).grad["0.weight"],
    "meta_loss": lambda p, b, **o: il.meta_loss(p, b, b, **INNER, **o),
    "adapt": lambda p, b, **o: il.adapt(p, b, **INNER, **o)["0.weight"],
    "hvp": lambda p, b, **o: il.hvp(p, b, p, **o)["0.weight"],
    "loss_and_grad": lambda p, b, **o: il.loss_and_grad(p, b, **o)[1]["0.weight"],
    "predict": lambda p, b, **o: il.predict(p, b[0], **o),
}


@pytest.fixture
def data():
    """Parameters and a batch."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 12, 12, generator=generator)
    return MODEL.init(generator), (x, torch.randn(3, 12, 8, generator=generator))


@pytest.mark.parametrize("backend", ["fused", "torch"])
@pytest.mark.parametrize("name", CALLS)
def test_equal_bits_on_the_cpu(name, backend, data):
    plain, allowed = (
        CALLS[name](*data, model=MODEL, backend=backend, allow_tf32=flag) for flag in (False, True)
    )
    assert torch.equal(plain, allowed)


@pytest.mark.parametrize("name", CALLS)
def test_anything_but_a_truth_value_raises(name, data):
    with pytest.raises(TypeError, match=rf"{name}: allow_tf32 must be True or False \(got 'yes'\)"):
        CALLS[name](*data, model=MODEL, allow_tf32="yes")


def test_learners_check_it():
    net = torch.nn.Linear(2, 1)
    for make in (il.MAML, il.FOMAML, il.ANIL, il.MetaSGD, il.JointTraining):
        with pytest.raises(TypeError, match="allow_tf32 must be True or False"):
            make(net, inner_lr=0.1, steps=1, allow_tf32=1)


def test_plans_tell_it_apart():
    from innerloop._plan import find_plan, options_of_one, parse_plan
    from innerloop.objectives import FusedObjective

    mse = FusedObjective("mse")
    plans = [find_plan(MODEL, options_of_one(mse, flag)) for flag in (False, True)]
    assert plans[0].text != plans[1].text
    for plan in plans:
        assert parse_plan(plan.text).options == plan.options
