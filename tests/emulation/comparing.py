"""Results on emulated blocks against the float64 reference."""

import torch

import innerloop as il
from helpers import assert_close


def compare(problem, dtype=torch.float64, tolerance=1e-11, **changes):
    """Asserts that meta_grad on emulated blocks equals the float64 reference."""
    expected = problem.call(il.meta_grad, backend="torch", **changes)
    actual = problem.to(dtype).call(il.meta_grad, backend="fused", **changes)
    for name in ("loss", "grad", "inner_lr_grad", "support_loss", "query_loss"):
        want, got = getattr(expected, name), getattr(actual, name)
        if want is None:
            assert got is None
        elif name == "inner_lr_grad" and dtype is torch.float32:
            # inner products, which cancel: the largest shows the size of what did
            assert_close(got, want, 20 * tolerance, name, floor=1.0)
        else:
            assert_close(got, want, tolerance, name)


def compare_without_query_gradient(problem, **adapt_options):
    """Asserts the same of adapt and meta_loss."""
    common = {"model": problem.model, "loss": problem.options["loss"]}
    inner = {k: problem.options[k] for k in ("inner_lr", "steps", "adapt_params")}

    def results(backend):
        options = {**inner, **common, "backend": backend}
        adapted = il.adapt(problem.params, problem.support, **adapt_options, **options)
        loss = il.meta_loss(problem.params, problem.support, problem.query, **options)
        return adapted, loss

    for name, got, want in zip(
        ("adapted", "loss"), results("fused"), results("torch"), strict=True
    ):
        assert_close(got, want, 1e-11, name)
