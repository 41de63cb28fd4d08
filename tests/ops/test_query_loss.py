"""Query rows measured by another loss than the support's: against the reference, as functions."""

import pytest
import torch

import innerloop as il
from helpers import assert_close
from problems import make_batch, random_problem

ELEMENTWISE = ("mse", "half_mse", "huber", "bce_with_logits")


def pair(seed, loss, query_loss, **fixed):
    """Returns a problem with support targets for one loss and query targets for another."""
    problem = random_problem(
        seed, loss=loss, widths=[3, 6, 4], activation="tanh", steps=2, tasks=5, **fixed
    )
    generator = torch.Generator().manual_seed(seed)
    rows = problem.query.x.shape[1]
    problem.query = make_batch(generator, problem.model, query_loss, 5, rows)
    return problem


@pytest.mark.parametrize("loss", [*ELEMENTWISE, "cross_entropy"])
@pytest.mark.parametrize("query_loss", [*ELEMENTWISE, "cross_entropy"])
def test_every_pair(loss, query_loss):
    problem = pair(len(loss) + len(query_loss), loss, query_loss)
    results = {
        backend: problem.call(il.meta_grad, query_loss=query_loss, backend=backend, stepwise=True)
        for backend in ("fused", "batched", "torch")
    }
    for backend in ("fused", "batched"):
        for name in ("loss", "grad", "inner_lr_grad", "support_loss", "query_loss"):
            got, want = (getattr(results[b], name) for b in (backend, "torch"))
            assert_close(got, want, 1e-11, f"{backend} {name}")
        assert results[backend].backend == backend


def test_the_same_loss_twice_is_one_loss():
    problem = random_problem(4, loss="huber")
    one, two = problem.call(il.meta_grad), problem.call(il.meta_grad, query_loss="huber")
    assert all(torch.equal(one.grad[k], two.grad[k]) for k in one.grad)


def test_meta_loss_and_its_derivative():
    problem = pair(7, "mse", "cross_entropy", per_task=0.0)
    options = {"model": problem.model, "inner_lr": 0.1, "steps": 2, "query_loss": "cross_entropy"}
    found = {}
    for backend in ("fused", "batched", "torch"):
        leaves = {k: v.clone().requires_grad_() for k, v in problem.params.items()}
        loss = il.meta_loss(leaves, problem.support, problem.query, backend=backend, **options)
        found[backend] = loss, torch.autograd.grad(loss.sum(), list(leaves.values()))
    for backend in ("fused", "batched"):
        assert_close(found[backend], found["torch"], 1e-11, backend)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("backend", ["batched", "torch"])
def test_a_callable_beside_a_name(ragged, backend):
    problem = random_problem(9, loss="mse", ragged=ragged, weighted=False, per_task=0.0)

    def l1(z, y):
        return (z - y).abs().mean(1)

    sides = (problem.params, problem.support, problem.query)
    options = {k: v for k, v in problem.options.items() if k not in ("task_weight", "stepwise")}
    found = il.meta_loss(*sides, model=problem.model, query_loss=l1, backend=backend, **options)
    inner = {k: v for k, v in options.items() if k != "order"}
    adapted = il.adapt(
        problem.params, problem.support, model=problem.model, backend="torch", **inner
    )
    loss, _ = il.loss_and_grad(
        adapted, problem.query, model=problem.model, loss=l1, backend="torch"
    )
    torch.testing.assert_close(found, loss, rtol=1e-12, atol=1e-12)
    with pytest.raises(NotImplementedError, match="has no kernel"):
        problem.call(il.meta_grad, query_loss=l1, backend="fused")


def test_errors_name_the_argument():
    problem = random_problem(3)
    with pytest.raises(ValueError, match="meta_grad: query_loss must be one of"):
        problem.call(il.meta_grad, query_loss="mean")
    with pytest.raises(TypeError, match="meta_grad: query_loss must be one of"):
        problem.call(il.meta_grad, query_loss=3)
