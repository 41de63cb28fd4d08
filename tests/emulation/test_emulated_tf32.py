"""Products on tensor cores: what `allow_tf32` does to results, and what it leaves alone.

Emulated warps round operands as the conversion on the device does and hold the instruction's
fragments lane by lane. The bound of one product is that of tf32_products.py.
"""

import pytest
import torch

import innerloop as il
from helpers import assert_close
from problems import random_problem_away_from_kinks
from tf32_products import assert_rounded_once, linear, predict


def counted(emulated, call):
    """Returns the result of a call and how many tensor instructions it ran."""
    before = emulated.tensor_instructions()
    result = call()
    return result, emulated.tensor_instructions() - before


@pytest.mark.parametrize("threads", [32, 64, 256])
@pytest.mark.parametrize("per_task", [True, False], ids=["per-task", "shared"])
@pytest.mark.parametrize(
    ("rows", "outputs", "inputs"), [(8, 8, 8), (16, 16, 8), (17, 9, 13), (33, 40, 24), (75, 10, 65)]
)
def test_error_of_one_product(emulated, rows, outputs, inputs, per_task, threads):
    emulated.fix_schedule(1, threads)
    parts = linear(inputs, outputs, rows, per_task=per_task)
    found, instructions = counted(emulated, lambda: predict(parts, allow_tf32=True))
    assert instructions > 0
    assert_rounded_once(found, parts)


@pytest.mark.parametrize("fixed", [(0, 0), (1, 33)], ids=["auto", "33 threads"])
def test_numbers_that_tf32_holds_are_multiplied_exactly(emulated, fixed):
    """Whatever lane holds which element: small integers leave nothing to rounding."""
    emulated.fix_schedule(*fixed)
    model, params, x = linear(19, 21, 23)
    whole = {k: (8 * v).round() for k, v in params.items()}
    parts = model, whole, (8 * x).round()
    found, instructions = counted(emulated, lambda: predict(parts, allow_tf32=True))
    assert (instructions > 0) == (fixed[1] == 0)  # only whole warps have tensor cores
    assert torch.equal(found, parts[2] @ whole["0.weight"].mT)


def test_off_unless_asked_and_never_in_float64(emulated):
    parts = linear(24, 24, 24)
    plain, instructions = counted(emulated, lambda: predict(parts))
    assert instructions == 0
    assert not torch.equal(plain, predict(parts, allow_tf32=True))
    model, params, x = parts
    wide = model, {k: v.double() for k, v in params.items()}, x.double()
    found, instructions = counted(emulated, lambda: predict(wide, allow_tf32=True))
    assert instructions == 0
    assert torch.equal(found, predict(wide))


def test_narrow_products_keep_float32(emulated):
    parts = linear(7, 30, 30)
    found, instructions = counted(emulated, lambda: predict(parts, allow_tf32=True))
    assert instructions == 0
    assert torch.equal(found, predict(parts))


@pytest.mark.parametrize("order", [1, 2])
def test_meta_gradients_stay_near(emulated, order):
    """Through an unroll: some times the rounding of one product (2^-11), relative to each leaf."""
    emulated.fix_schedule(2, 64)
    problem = random_problem_away_from_kinks(
        5, widths=[12, 24, 16, 9], tasks=3, rows=11, query_rows=18, steps=2, order=order,
        activation="tanh", loss="mse", rates="number", per_task=0.0, adapt_params=None,
    )  # fmt: skip
    expected = problem.call(il.meta_grad, backend="torch")
    narrow = problem.to(torch.float32)
    actual, instructions = counted(
        emulated, lambda: narrow.call(il.meta_grad, backend="fused", allow_tf32=True)
    )
    assert instructions > 0
    assert_close(actual.loss, expected.loss, 5e-3, "loss")
    assert_close(actual.grad, expected.grad, 5e-3, "grad")
    again = narrow.call(il.meta_grad, backend="fused", allow_tf32=True)
    assert all(torch.equal(again.grad[k], v) for k, v in actual.grad.items())


def test_every_operation_takes_it(emulated):
    model = il.MLP([12, 16, 8], "tanh")
    generator = torch.Generator().manual_seed(0)
    params = model.init(generator)
    x = torch.randn(2, 12, 12, generator=generator)
    y = torch.randn(2, 12, 8, generator=generator)
    inner = {"inner_lr": 0.1, "steps": 1}
    calls = {
        "meta_grad": lambda **o: il.meta_grad(params, (x, y), (x, y), **inner, **o).loss,
        "meta_loss": lambda **o: il.meta_loss(params, (x, y), (x, y), **inner, **o),
        "adapt": lambda **o: il.adapt(params, (x, y), **inner, **o)["0.weight"],
        "hvp": lambda **o: il.hvp(params, (x, y), params, **o)["0.weight"],
        "loss_and_grad": lambda **o: il.loss_and_grad(params, (x, y), **o)[1]["0.weight"],
        "predict": lambda **o: il.predict(params, x, **o),
    }
    for name, call in calls.items():
        both = [call(model=model, backend="fused", allow_tf32=flag) for flag in (False, True)]
        assert not torch.equal(*both), name
        torch.testing.assert_close(*both, rtol=5e-2, atol=5e-3)


def test_learners_pass_it_on(emulated):
    net = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.Tanh(), torch.nn.Linear(16, 8))
    generator = torch.Generator().manual_seed(0)
    side = torch.randn(2, 12, 12, generator=generator), torch.randn(2, 12, 8, generator=generator)
    found = {}
    for flag in (False, True):
        maml = il.MAML(net, inner_lr=0.1, steps=1, backend="fused", allow_tf32=flag)
        adapted = maml.adapt(side)
        joint = il.JointTraining(net, inner_lr=0.1, backend="fused", allow_tf32=flag)
        found[flag] = {
            "training": maml(side, side),
            "losses": maml(side, side, reduction="none"),
            "adaptation": adapted.params["0.weight"],
            "predictions": adapted(side[0]),
            "evaluation": maml.evaluate(side, side).loss,
            "joint": joint(side, side),
        }
    for name, plain in found[False].items():
        assert not torch.equal(plain, found[True][name]), name
        torch.testing.assert_close(plain, found[True][name], rtol=5e-2, atol=5e-3)
