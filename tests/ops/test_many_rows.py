"""Tasks with thousands of rows, which the row engine passes part by part, so that what a pass
leaves for the next one stays near: every operation against the reference, and its memory.

Tolerances, relative to each leaf's norm: float64 1e-11, float32 2e-5 (sums of thousands of rows).
"""

import pytest
import torch

import innerloop as il
from helpers import assert_close, randn_like, sweep
from problems import LOSSES, RATES, random_problem

MEMBERS = ("loss", "grad", "inner_lr_grad", "support_loss", "query_loss")
SHAPES = {"widths": [5, 24, 16, 3], "tasks": 3, "rows": 2600, "query_rows": 2203}
SEVERAL_PARTS = 2600  # rows; at least four parts of the networks here, the last one shorter


@pytest.fixture(autouse=True)
def strategy(cpu_settings):
    """The engine that cuts."""
    cpu_settings.set_strategy("rows")


def compare(problem, tolerance=1e-11, dtype=torch.float64, **changes):
    """Asserts that the fused meta_grad equals the float64 reference."""
    expected = problem.call(il.meta_grad, backend="torch", **changes)
    actual = problem.to(dtype).call(il.meta_grad, backend="fused", **changes)
    for name in MEMBERS:
        want, got = getattr(expected, name), getattr(actual, name)
        if want is None:
            assert got is None
        else:
            floor = 1e-4 if name != "inner_lr_grad" else 1.0
            assert_close(got, want, tolerance, name, floor=floor)


@pytest.mark.parametrize("seed", sweep(range(40), range(12)))
def test_meta_grad(seed):
    compare(random_problem(seed, **SHAPES))


@pytest.mark.parametrize(
    ("rows", "query_rows"), [(2600, 3), (3, 2600), (2600, 2600), (0, 2600), (2600, 0)]
)
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_one_side_may_be_short(rows, query_rows, steps):
    shapes = SHAPES | {"rows": rows, "query_rows": query_rows, "steps": steps}
    compare(random_problem(50, **shapes, loss="mse", activation="tanh", rates="leaf"))


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("order", [1, 2])
def test_each_form_of_rates(rates, order):
    compare(random_problem(51, **SHAPES, rates=rates, order=order, steps=3, activation="tanh"))


@pytest.mark.parametrize("options", [{"momentum": 0.7}, {"weight_decay": 0.1}])
def test_steps_that_are_built(options):
    compare(random_problem(52, **SHAPES, steps=3, rates="steps", activation="gelu"), **options)


@pytest.mark.parametrize("names", [["0.weight"], ["0.bias"], ["4.weight"], ["0.weight", "4.bias"]])
@pytest.mark.parametrize("per_task", [0.0, 1.0])
def test_some_leaves_adapt(names, per_task):
    problem = random_problem(
        53, **SHAPES, steps=2, rates="number", activation="silu", bias=True, per_task=per_task
    )
    present = list(problem.params)
    chosen = [name for name in names if name in present] or present[:1]
    compare(problem, adapt_params=chosen)


@pytest.mark.parametrize("loss", LOSSES)
def test_float32(loss):
    problem = random_problem(54, **SHAPES, steps=2, loss=loss, rates="leaf", activation="tanh")
    compare(problem, 2e-5, torch.float32)


@pytest.mark.parametrize("seed", range(60, 72))
def test_operations_without_an_inner_loop(seed):
    problem = random_problem(seed, **SHAPES)
    vector = randn_like(problem.params, seed)
    results = []
    for backend in ("torch", "fused"):
        options = {"model": problem.model, "loss": problem.options["loss"], "backend": backend}
        loss, grad = il.loss_and_grad(problem.params, problem.support, **options)
        product = il.hvp(problem.params, problem.support, vector, **options)
        results.append({"loss": loss, "grad": grad, "hvp": product})
    for name, want in results[0].items():
        assert_close(results[1][name], want, 1e-11, name)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("stepwise", [False, True])
def test_adapted_parameters_without_gradients(steps, stepwise):
    problem = random_problem(55, **SHAPES, steps=steps, rates="steps", activation="tanh")
    options = {name: problem.options[name] for name in ("inner_lr", "steps", "loss")}
    results = [
        il.adapt(
            problem.params,
            problem.support,
            model=problem.model,
            backend=backend,
            stepwise=stepwise,
            **options,
        )
        for backend in ("torch", "fused")
    ]
    assert_close(results[1], results[0], 1e-11)


@pytest.mark.parametrize("seed", range(80, 86))
def test_layer_norms(seed):
    shapes = {name: value for name, value in SHAPES.items() if name != "widths"}
    compare(random_problem(seed, **shapes, norms=True, steps=2), 1e-10)


def policy_sides(seed, rows, ragged):
    """Returns a policy with parameters near it, and two sides of its rows in float64."""
    model = il.GaussianMLP([5, 16, 12, 2], min_log_std=-1.0)
    generator = torch.Generator().manual_seed(seed)
    params = {k: v.double() for k, v in model.init(generator).items()}

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    sides = []
    for _ in range(2):
        x = normal(3, rows, 5)
        mean = il.predict(params, x, model=model, backend="torch")
        action = mean + 0.7 * normal(3, rows, 2)
        count = torch.tensor([rows, rows - 1500, 40]) if ragged else None
        sides.append(
            il.PolicyBatch(
                x, action, normal(3, rows), mean + 0.1 * normal(3, rows, 2), normal(2), count, None
            )
        )
    return model, params, *sides


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("order", [1, 2])
def test_policy_objectives_and_products(ragged, order):
    model, params, support, query = policy_sides(0, SEVERAL_PARTS, ragged)
    vector = randn_like(params, 1)
    results = []
    for backend in ("torch", "fused"):
        options = {"model": model, "backend": backend}
        promp = il.meta_grad(
            params,
            support,
            query,
            loss="pg_ratio",
            query_loss="pg_clipped",
            inner_lr=0.1,
            steps=1,
            kl_coefficient=0.01,
            order=order,
            **options,
        )
        results.append(
            {
                "grad": promp.grad,
                "loss": promp.loss,
                "fisher": il.fisher_product(params, support, vector, **options),
                "kl": il.kl(params, support, **options),
                "constraint": il.meta_fisher_product(
                    params, support, query, vector, inner_lr=0.1, order=order, **options
                ),
            }
        )
        product = il.meta_fisher(params, support, query, inner_lr=0.1, order=order, **options)
        results[-1]["kept"] = product(vector)
    for name, want in results[0].items():
        assert_close(results[1][name], want, 1e-11, name)


def test_memory_of_a_pass_does_not_grow_with_rows():
    model = il.MLP([5, 24, 16, 3], activation="tanh")
    params = model.init(torch.Generator().manual_seed(0))
    taken = []
    for rows in (2000, 20_000):
        side = il.Batch(torch.randn(2, rows, 5), torch.randn(2, rows, 3))
        il.release_workspace()
        il.hvp(params, side, randn_like(params, 0), model=model, backend="fused")
        taken.append(il.workspace_bytes())
    # weights of rows and of their gradients, and losses, are kept of all rows
    assert taken[1] - taken[0] < 4 * 4 * 18_000 + (64 << 10)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.7}, {"weight_decay": 0.1}])
@pytest.mark.parametrize(("rows", "query_rows"), [(300, 20_000), (20_000, 300)])
def test_float32_keeps_its_digits(rows, query_rows, options):
    """However many rows a sum has: within five times the error of torch's own sums."""
    model = il.MLP([3, 16, 2], activation="tanh")
    errors = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        params = model.init(generator)
        x, xq = (torch.randn(2, n, 3, generator=generator) for n in (rows, query_rows))
        y, yq = (torch.randn(2, n, 2, generator=generator) for n in (rows, query_rows))

        def grad(dtype, backend, p=params, data=(x, y, xq, yq)):
            wide = {name: value.to(dtype) for name, value in p.items()}
            sides = [value.to(dtype) for value in data]
            shape = {"model": model, "inner_lr": 0.1, "steps": 2, "backend": backend}
            return il.meta_grad(wide, sides[:2], sides[2:], **shape, **options).grad

        want = grad(torch.float64, "torch")
        errors.append(
            [
                max(float((found[k].double() - want[k]).norm() / want[k].norm()) for k in want)
                for found in (grad(torch.float32, "fused"), grad(torch.float32, "torch"))
            ]
        )
    ours, torchs = (sum(each) for each in zip(*errors, strict=True))
    assert ours < 5 * torchs
