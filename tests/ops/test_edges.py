"""Numbers at the edges: kinks met exactly, logits that overflow exp, NaN, slopes of either sign,
and data that the kernels refuse; in both layouts, against the reference.

Tolerance 1e-11, as in test_meta_grad.py.
"""

import pytest
import torch

import innerloop as il
from helpers import assert_close

F64 = torch.float64


@pytest.fixture(params=["lanes", "rows"], autouse=True)
def strategy(request, cpu_settings):
    """Each test runs in both layouts."""
    cpu_settings.set_strategy(request.param)


def drawn(*shape):
    """Returns normal numbers that depend on the shape alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=F64)


def compare(model, params, support, query, **options):
    """Asserts that fused results equal the reference's; returns them."""
    given = {"model": model, "inner_lr": 0.1, "steps": 2, **options}
    fused = il.meta_grad(params, support, query, backend="fused", **given)
    plain = il.reference.meta_grad(params, support, query, **given)
    assert_close(fused.loss, plain.loss, 1e-11)
    assert_close(fused.grad, plain.grad, 1e-11)
    return fused


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_activations_at_their_kink(activation):
    """Rows of zeros without biases: every z is exactly 0, where torch's derivative is the left
    one."""
    model = il.MLP([3, 4, 2], activation)
    params = model.init(torch.Generator().manual_seed(0), dtype=F64)
    params["0.bias"] = torch.zeros(4, dtype=F64)
    x, y = drawn(5, 6, 3), drawn(5, 6, 2)
    x[:, ::2] = 0
    compare(model, params, (x, y), (x, y), steps=1)


def test_huber_at_its_kinks():
    """Residuals of exactly 1 and -1: value and slope are the same from both sides."""
    model = il.MLP([1, 1], bias=False)
    params = {"0.weight": torch.ones(1, 1, dtype=F64)}
    x = torch.tensor([2.0, -1.0, 0.5], dtype=F64).expand(6, 3)[..., None]
    for residual in (1.0, -1.0):
        compare(model, params, (x, x - residual), (x, x - residual), loss="huber", order=1)


@pytest.mark.parametrize("slope", [-0.5, 0.0, 1.5])
def test_leaky_slopes(slope):
    model = il.MLP([3, 5, 5, 2], "leaky_relu", negative_slope=slope)
    params = model.init(torch.Generator().manual_seed(0), dtype=F64)
    compare(model, params, (drawn(9, 4, 3), drawn(9, 4, 2)), (drawn(9, 5, 3), drawn(9, 5, 2)))


@pytest.mark.parametrize("loss", ["cross_entropy", "bce_with_logits"])
def test_logits_beyond_the_range_of_exp(loss):
    model = il.MLP([3, 4])
    params = {k: 3000 * v for k, v in model.init(torch.Generator().manual_seed(0), F64).items()}
    x, y = drawn(5, 6, 3), drawn(5, 6, 4)
    if loss == "cross_entropy":
        y = y.argmax(2)
    result = compare(model, params, (x, y), (x, y), loss=loss)
    assert torch.isfinite(result.loss).all()
    assert float(result.loss.max()) > 100


@pytest.mark.parametrize("activation", il.models.ACTIVATIONS)
def test_nan_is_not_hidden(activation):
    model = il.MLP([3, 4, 2], activation)
    params = model.init(torch.Generator().manual_seed(0), dtype=F64)
    x, y = drawn(5, 6, 3), drawn(5, 6, 2)
    x[2, 1, 0] = float("nan")
    result = il.meta_grad(params, (x, y), (x, y), model=model, inner_lr=0.1, steps=1)
    assert result.loss.isnan().tolist() == [task == 2 for task in range(5)]


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("wrong", [-1, 2, 2**40])
def test_classes_that_do_not_exist(wrong, side):
    model = il.MLP([3, 2])
    params, x = model.init(dtype=F64), drawn(5, 4, 3)
    batches = [(x, torch.zeros(5, 4, dtype=torch.int64)) for _ in range(2)]
    options = {"model": model, "inner_lr": 0.1, "steps": 1, "loss": "cross_entropy"}
    il.meta_grad(params, *batches, **options)
    batches[side][1][4, 3] = wrong
    with pytest.raises(ValueError, match=r"lie in \[0, 2\)"):
        il.meta_grad(params, *batches, **options)


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("wrong", [-1, 5, 2**40])
def test_counts_that_do_not_exist(wrong, side):
    model = il.MLP([3, 2])
    params, x, y = model.init(dtype=F64), drawn(5, 4, 3), drawn(5, 4, 2)
    batches = [(x, y, torch.full((5,), 4)) for _ in range(2)]
    options = {"model": model, "inner_lr": 0.1, "steps": 1}
    il.meta_grad(params, *batches, **options)
    batches[side][2][4] = wrong
    with pytest.raises(ValueError, match="count"):
        il.meta_grad(params, *batches, **options)
