"""`allow_tf32` on a GPU: products on tensor cores within their bound, and float32 without it."""

import pytest
import torch
from moving import on_gpu

import innerloop as il
from helpers import assert_close
from problems import random_problem_away_from_kinks
from tf32_products import assert_rounded_once, linear, predict

needs_tensor_cores = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0),
    reason="tf32 needs compute capability 8.0",
)


def moved(parts):
    """Returns the parts of a product on the GPU."""
    model, params, x = parts
    return model, {k: v.cuda() for k, v in params.items()}, x.cuda()


@needs_tensor_cores
@pytest.mark.parametrize("per_task", [True, False], ids=["per-task", "shared"])
@pytest.mark.parametrize(
    ("rows", "outputs", "inputs"), [(8, 8, 8), (17, 9, 13), (33, 40, 24), (75, 10, 65)]
)
def test_error_of_one_product(rows, outputs, inputs, per_task, schedule):
    parts = moved(linear(inputs, outputs, rows, per_task=per_task))
    assert_rounded_once(predict(parts, allow_tf32=True), parts)


def test_float32_unless_asked():
    model, params, x = moved(linear(65, 40, 75))
    exact = x.double() @ params["0.weight"].double().mT
    found = predict((model, params, x))
    assert_close(found, exact, 1e-6, "outputs")


@needs_tensor_cores
@pytest.mark.parametrize("order", [1, 2])
def test_meta_gradients_stay_near(order, schedule):
    problem = random_problem_away_from_kinks(
        5, widths=[12, 24, 16, 9], tasks=3, rows=11, query_rows=18, steps=2, order=order,
        activation="tanh", loss="mse", rates="number", per_task=0.0, adapt_params=None,
    )  # fmt: skip
    expected = on_gpu(problem, torch.float64).call(il.meta_grad, backend="torch")
    actual = on_gpu(problem, torch.float32).call(il.meta_grad, backend="fused", allow_tf32=True)
    assert_close(actual.loss, expected.loss, 5e-3, "loss")
    assert_close(actual.grad, expected.grad, 5e-3, "grad")
