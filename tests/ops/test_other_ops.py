"""adapt, hvp, loss_and_grad and predict: the fused operations against the reference.

Tolerances as in test_meta_grad.py.
"""

import pytest
import torch

import innerloop as il
from helpers import assert_close
from problems import (
    LOSSES,
    linear_tasks,
    normal,
    random_problem,
    random_problem_away_from_kinks,
)


def inner_options(problem):
    """Returns the options that adapt takes."""
    return {
        k: problem.options[k] for k in ("inner_lr", "steps", "loss", "adapt_params", "stepwise")
    }


def random_vector(problem, seed):
    """Returns a direction whose leaves are shared or per task."""
    generator = torch.Generator().manual_seed(seed)
    vector = {}
    for i, (name, shape) in enumerate(problem.model.shapes.items()):
        front = (problem.tasks,) if (i + seed) % 3 else ()
        vector[name] = normal(generator, *front, *shape)
    return vector


def narrow(tree, dtype):
    """Returns a dict of tensors in another dtype."""
    return {k: v.to(dtype) for k, v in tree.items()}


def run_all(problem, vector, backend):
    """Returns the results of every operation but meta_grad on the support batch."""
    shared = {"model": problem.model, "backend": backend}
    loss = problem.options["loss"]
    x = torch.nan_to_num(problem.support.x)
    losses, grads = il.loss_and_grad(problem.params, problem.support, loss=loss, **shared)
    return {
        "adapt": il.adapt(problem.params, problem.support, **inner_options(problem), **shared),
        "hvp": il.hvp(problem.params, problem.support, vector, loss=loss, **shared),
        "losses": losses,
        "grads": grads,
        "predict": il.predict(problem.params, x, **shared),
    }


def compare(problem, dtype, tolerance, seed):
    """Asserts that the fused results in `dtype` equal the float64 reference."""
    vector = random_vector(problem, seed)
    expected = run_all(problem, vector, "torch")
    actual = run_all(problem.to(dtype), narrow(vector, dtype), "fused")
    for name, want in expected.items():
        assert_close(actual[name], want, tolerance, name)


@pytest.mark.parametrize("seed", range(500, 540))
def test_float64_sweep(seed):
    compare(random_problem(seed), torch.float64, 1e-11, seed)


@pytest.mark.parametrize("seed", range(600, 630))
def test_float32_sweep(seed):
    compare(random_problem_away_from_kinks(seed), torch.float32, 1e-5, seed)


@pytest.mark.parametrize("activation", il.models.ACTIVATIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_each_activation_with_each_loss(activation, loss):
    problem = random_problem(53, activation=activation, loss=loss, depth=3, tasks=5, steps=2)
    compare(problem, torch.float64, 1e-11, 1)


@pytest.mark.parametrize("tasks", [0, 1, 16, 17, 35])
@pytest.mark.parametrize("rows", [0, 1, 6])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_counts(tasks, rows, share):
    problem = random_problem(
        59, tasks=tasks, rows=rows, per_task=share, activation="tanh", widths=[4, 9, 3], steps=2
    )
    compare(problem, torch.float64, 1e-11, 2)


def test_adapt_expands_what_it_does_not_change():
    problem = random_problem(
        61,
        depth=2,
        adapt_params=["1.weight"],
        rates="number",
        steps=2,
        per_task=0.0,
        stepwise=False,
        tasks=4,
    )
    adapted = il.adapt(
        problem.params,
        problem.support,
        model=problem.model,
        backend="fused",
        **inner_options(problem),
    )
    name = "0.weight"
    torch.testing.assert_close(
        adapted[name], problem.params[name].expand(4, *problem.params[name].shape), rtol=0, atol=0
    )
    assert not torch.equal(adapted["1.weight"][0], problem.params["1.weight"])


def test_hvp_is_symmetric_and_linear_in_the_vector():
    problem = random_problem(
        67, activation="tanh", depth=3, loss="cross_entropy", tasks=3, ragged=False, weighted=False
    )
    u, v = random_vector(problem, 1), random_vector(problem, 2)

    def product(vector):
        return il.hvp(
            problem.params,
            problem.support,
            vector,
            model=problem.model,
            loss="cross_entropy",
            backend="fused",
        )

    def dot(a, b):
        return sum((a[k] * b[k]).reshape(3, -1).sum(1) for k in a)

    wide = [
        {
            k: x if x.ndim > len(problem.model.shapes[k]) else x.expand(3, *x.shape)
            for k, x in vector.items()
        }
        for vector in (u, v)
    ]
    assert_close(dot(wide[0], product(v)), dot(wide[1], product(u)), 1e-11)
    summed = product({k: wide[0][k] + 2 * wide[1][k] for k in u})
    assert_close(summed, {k: product(u)[k] + 2 * product(v)[k] for k in u}, 1e-11)


def test_hvp_of_a_linear_model_is_the_second_moment():
    problem = linear_tasks(71, tasks=6, rows=7, features=4)
    x = problem.support.x
    vector = {"0.weight": torch.randn(1, 4, generator=torch.Generator().manual_seed(3)).double()}
    product = il.hvp(
        {"0.weight": torch.zeros(1, 4).double()},
        problem.support,
        vector,
        model=problem.model,
        loss="half_mse",
        backend="fused",
    )["0.weight"]
    assert_close(product[:, 0], (x.mT @ x / 7) @ vector["0.weight"][0], 1e-12)


def test_vector_names_and_shapes_are_checked():
    problem = random_problem(73, depth=2, bias=True)
    vector = random_vector(problem, 0)
    options = {"model": problem.model, "loss": problem.options["loss"]}
    missing = {k: v for k, v in vector.items() if k != "0.bias"}
    with pytest.raises(ValueError, match=r"hvp: vector must hold '0.bias'"):
        il.hvp(problem.params, problem.support, missing, **options)
    with pytest.raises(TypeError, match=r"hvp: vector must have the dtype of params"):
        il.hvp(problem.params, problem.support, narrow(vector, torch.float32), **options)
