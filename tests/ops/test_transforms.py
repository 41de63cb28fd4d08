"""torch.func, torch.compile, layouts and modes: the fused operations are right there, or raise."""

import pytest
import torch
import torch._dynamo.testing

import innerloop as il
from helpers import assert_close, needs_compile, needs_compile_of_all_operations
from innerloop.functional import mean_meta_loss
from problems import make_batch, random_problem

# torch 2.13's own tracing of autograd.Function
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")

ENTRIES = {
    "meta_loss": lambda *args, **options: il.meta_loss(*args, **options).mean(),
    "mean_meta_loss": mean_meta_loss,
}


@pytest.fixture
def problem():
    """A small smooth problem with a rate for every step."""
    return random_problem(
        3,
        widths=[3, 5, 2],
        activation="tanh",
        loss="mse",
        rates="steps",
        steps=2,
        tasks=4,
        per_task=0.0,
        adapt_params=None,
        order=2,
        ragged=True,
        weighted=False,
    )


def entry(problem, name, backend="fused", **changes):
    """Returns a scalar loss as a function of (params, inner_lr)."""
    options = {"model": problem.model, "steps": 2, "loss": "mse", "backend": backend}

    def loss(params, inner_lr, support=problem.support, query=problem.query):
        return ENTRIES[name](params, support, query, inner_lr=inner_lr, **{**options, **changes})

    return loss


def stacked(tree, size, seed=0):
    """Returns [B, ...] variations of a dict or tensor."""
    generator = torch.Generator().manual_seed(seed)

    def vary(value):
        noise = torch.randn((size, *value.shape), generator=generator, dtype=value.dtype)
        return value + 0.1 * noise

    return {k: vary(v) for k, v in tree.items()} if isinstance(tree, dict) else vary(tree)


def at(tree, index):
    """Returns one slice of a stacked dict or tensor."""
    return {k: v[index] for k, v in tree.items()} if isinstance(tree, dict) else tree[index]


def expected_grads(problem):
    """Returns the reference's gradients in params and rates."""
    result = il.meta_grad(
        problem.params,
        problem.support,
        problem.query,
        model=problem.model,
        inner_lr=problem.options["inner_lr"],
        steps=2,
        backend="torch",
    )
    return result.grad, result.inner_lr_grad


@pytest.mark.parametrize("name", ENTRIES)
def test_func_grad(problem, name):
    rates = problem.options["inner_lr"]
    grads, rate_grad = torch.func.grad(entry(problem, name), argnums=(0, 1))(problem.params, rates)
    want, want_rates = expected_grads(problem)
    assert_close(grads, want, 1e-11)
    assert_close(rate_grad, want_rates, 1e-11)


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize("which", ["params", "inner_lr", "both"])
def test_vmap_of_the_loss_and_of_its_gradient(problem, name, which):
    size = 3
    rates = problem.options["inner_lr"]
    params_axis = 0 if which in ("params", "both") else None
    rates_axis = 0 if which in ("inner_lr", "both") else None
    params = stacked(problem.params, size) if params_axis == 0 else problem.params
    inner_lr = stacked(rates, size) if rates_axis == 0 else rates
    loss = entry(problem, name)
    gradient = torch.func.grad(loss, argnums=(0, 1))
    losses = torch.vmap(loss, in_dims=(params_axis, rates_axis))(params, inner_lr)
    grads, rate_grads = torch.vmap(gradient, in_dims=(params_axis, rates_axis))(params, inner_lr)
    for i in range(size):
        p = at(params, i) if params_axis == 0 else params
        r = inner_lr[i] if rates_axis == 0 else inner_lr
        assert_close(losses[i], loss(p, r), 1e-12)
        want, want_rates = gradient(p, r)
        assert_close(at(grads, i), want, 1e-11)
        assert_close(rate_grads[i], want_rates, 1e-11)


@pytest.mark.parametrize("name", ENTRIES)
def test_vmap_over_data(problem, name):
    generator = torch.Generator().manual_seed(4)
    batches = [make_batch(generator, problem.model, "mse", 4, 5, ragged=True) for _ in range(3)]
    x, y, count = (torch.stack([b[i] for b in batches]) for i in range(3))
    loss = entry(problem, name)
    rates = problem.options["inner_lr"]

    def on_support(x, y, count):
        return torch.func.grad(loss)(problem.params, rates, (x, y, count))

    grads = torch.vmap(on_support, in_dims=(1, 0, 0))(x.movedim(0, 1), y, count)
    for i, batch in enumerate(batches):
        assert_close(at(grads, i), torch.func.grad(loss)(problem.params, rates, batch), 1e-11)


def test_vmap_twice(problem):
    loss = entry(problem, "meta_loss")
    params = stacked(problem.params, 2)
    rates = stacked(problem.options["inner_lr"], 3)
    gradient = torch.func.grad(loss)
    grads = torch.vmap(torch.vmap(gradient, in_dims=(None, 0)), in_dims=(0, None))(params, rates)
    for i in range(2):
        for j in range(3):
            assert_close(
                {k: v[i, j] for k, v in grads.items()}, gradient(at(params, i), rates[j]), 1e-11
            )


@pytest.mark.parametrize("per_task", [0.0, 1.0])
def test_vmap_of_operations_without_derivative(per_task):
    problem = random_problem(
        6,
        widths=[2, 4, 3],
        per_task=per_task,
        activation="silu",
        loss="mse",
        tasks=3,
        steps=2,
        stepwise=False,
    )
    shared = {"model": problem.model, "backend": "fused"}
    operations = {
        "adapt": lambda p: il.adapt(p, problem.support, inner_lr=0.1, steps=2, **shared),
        "hvp": lambda p: il.hvp(p, problem.support, problem.params, **shared),
        "loss_and_grad": lambda p: il.loss_and_grad(p, problem.support, **shared)[1],
        "predict": lambda p: {"": il.predict(p, problem.support.x.nan_to_num(), **shared)},
        "meta_grad": lambda p: (
            il.meta_grad(p, problem.support, problem.query, inner_lr=0.1, steps=2, **shared).grad
        ),
    }
    params = stacked(problem.params, 3)
    for name, operation in operations.items():
        mapped = torch.vmap(operation)(params)
        for i in range(3):
            assert_close(at(mapped, i), operation(at(params, i)), 1e-11, name)


@pytest.mark.parametrize("name", ENTRIES)
def test_second_derivatives_through_func_raise(problem, name):
    loss = entry(problem, name)
    rates = problem.options["inner_lr"]

    def slope(params):
        return sum(g.square().sum() for g in torch.func.grad(loss)(params, rates).values())

    def mapped_slope(params):
        wide = {k: v.expand(2, *v.shape) for k, v in params.items()}
        grads = torch.vmap(torch.func.grad(loss), in_dims=(0, None))(wide, rates)
        return sum(g.square().sum() for g in grads.values())

    for function in (slope, mapped_slope):
        with pytest.raises(RuntimeError, match="only first derivatives"):
            torch.func.grad(function)(problem.params)


def test_func_grad_of_an_operation_without_derivative_raises(problem):
    def total(params):
        adapted = il.adapt(
            params, problem.support, model=problem.model, inner_lr=0.1, steps=1, backend="fused"
        )
        return adapted["0.weight"].sum()

    with pytest.raises(RuntimeError, match="adapt: the fused operation cannot be differentiated"):
        torch.func.grad(total)(problem.params)


def test_func_grad_of_meta_grad_raises(problem):
    def total(params):
        return il.meta_grad(
            params,
            problem.support,
            problem.query,
            model=problem.model,
            inner_lr=0.1,
            steps=1,
            backend="fused",
        ).loss.sum()

    with pytest.raises(RuntimeError, match="meta_grad: its results are constants"):
        torch.func.grad(total)(problem.params)


@needs_compile
@pytest.mark.parametrize("name", ENTRIES)
def test_compile_fullgraph_forward_and_backward(problem, name):
    torch.compiler.reset()
    compiled = torch.compile(entry(problem, name), backend="aot_eager", fullgraph=True)
    params = {k: v.clone().requires_grad_() for k, v in problem.params.items()}
    rates = problem.options["inner_lr"].clone().requires_grad_()
    loss = compiled(params, rates)
    grads = torch.autograd.grad(loss, [*params.values(), rates])
    want, want_rates = expected_grads(problem)
    assert_close(dict(zip(params, grads, strict=False)), want, 1e-11)
    assert_close(grads[-1], want_rates, 1e-11)
    plain = entry(problem, name)(problem.params, problem.options["inner_lr"])
    assert_close(loss, plain, 1e-12)


@needs_compile
def test_compile_does_not_recompile_for_new_sizes_forever(problem):
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    loss = entry(problem, "meta_loss")
    compiled = torch.compile(loss, backend=counter, fullgraph=True, dynamic=True)
    generator = torch.Generator().manual_seed(8)
    rates = problem.options["inner_lr"]
    counts = []
    for tasks, rows in ((4, 5), (6, 3), (7, 9), (11, 4)):
        support = make_batch(generator, problem.model, "mse", tasks, rows)[:2]
        query = make_batch(generator, problem.model, "mse", tasks, rows + 1)[:2]
        got = compiled(problem.params, rates, support, query)
        assert_close(got, loss(problem.params, rates, support, query), 1e-12)
        counts.append(counter.frame_count)
    assert counts[-1] - counts[0] <= 1  # sizes that were equal by chance may be told apart once


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")
def test_compile_with_inductor(problem):
    torch.compiler.reset()

    def outer(params, rates):
        scaled = {k: v * 1.5 for k, v in params.items()}
        return entry(problem, "mean_meta_loss")(scaled, rates) + sum(
            v.square().sum() for v in params.values()
        )

    params = {k: v.clone().requires_grad_() for k, v in problem.params.items()}
    rates = problem.options["inner_lr"]
    grads = [
        torch.autograd.grad(function(params, rates), list(params.values()))
        for function in (outer, torch.compile(outer, fullgraph=True))
    ]
    assert_close(grads[1], grads[0], 1e-11)


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize("fullgraph", [False, True])
def test_compile_of_func_grad_is_right_or_raises(problem, name, fullgraph):
    torch.compiler.reset()
    compiled = torch.compile(
        torch.func.grad(entry(problem, name)), backend="aot_eager", fullgraph=fullgraph
    )
    try:
        grads = compiled(problem.params, problem.options["inner_lr"])
    except Exception:
        return
    assert_close(grads, expected_grads(problem)[0], 1e-11)


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("fullgraph", [False, True])
def test_double_backward_of_compiled_raises(problem, name, backend, fullgraph):
    torch.compiler.reset()
    compiled = torch.compile(entry(problem, name), backend=backend, fullgraph=fullgraph)
    params = {k: v.clone().requires_grad_() for k, v in problem.params.items()}
    loss = compiled(params, problem.options["inner_lr"])
    grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
    penalty = sum(g.square().sum() for g in grads)
    penalty += sum(p.square().sum() for p in params.values())  # there is a way back without g
    with pytest.raises(
        RuntimeError, match=r"only first derivatives|create_graph=False|double back"
    ):
        torch.autograd.grad(penalty, list(params.values()))


@needs_compile_of_all_operations
def test_compile_of_the_other_operations(problem):
    torch.compiler.reset()
    shared = {"model": problem.model, "backend": "fused"}

    def everything(params, x):
        adapted = il.adapt(params, problem.support, inner_lr=0.1, steps=2, **shared)
        losses, grads = il.loss_and_grad(adapted, problem.query, **shared)
        product = il.hvp(params, problem.query, grads, **shared)
        out = il.predict(adapted, x, **shared)
        step = il.meta_grad(params, problem.support, problem.query, inner_lr=0.1, steps=1, **shared)
        return adapted, losses, grads, product, out, step.grad, step.loss

    x = problem.query.x.nan_to_num()
    got = torch.compile(everything, backend="aot_eager", fullgraph=True)(problem.params, x)
    for a, b in zip(got, everything(problem.params, x), strict=True):
        assert_close(a, b, 1e-12)


def test_layouts_that_are_not_contiguous(problem):
    def strange(value):
        if value.ndim < 2:
            return value.repeat_interleave(2, 0)[::2]
        return value.mT.contiguous().mT

    support = il.Batch(
        strange(problem.support.x), strange(problem.support.y), strange(problem.support.count)
    )
    params = {k: strange(v) for k, v in problem.params.items()}
    assert not params["0.weight"].is_contiguous()
    rates = strange(problem.options["inner_lr"])
    result = il.meta_grad(
        params,
        support,
        problem.query,
        model=problem.model,
        inner_lr=rates,
        steps=2,
        backend="fused",
    )
    want, want_rates = expected_grads(problem)
    assert_close(result.grad, want, 1e-11)
    assert_close(result.inner_lr_grad, want_rates, 1e-11)


def test_lazily_negated_and_expanded_inputs(problem):
    negated = {k: torch._neg_view(-v) for k, v in problem.params.items()}
    assert all(v.is_neg() and v.is_contiguous() for v in negated.values())
    query = problem.query._replace(x=torch._neg_view(-problem.query.x))
    rates = problem.options["inner_lr"]
    want, _ = expected_grads(problem)
    result = il.meta_grad(
        negated,
        problem.support,
        query,
        model=problem.model,
        inner_lr=rates,
        steps=2,
        backend="fused",
    )
    assert_close(result.grad, want, 1e-11)
    wide = {k: v.expand(4, *v.shape) for k, v in problem.params.items()}
    result = il.meta_grad(
        wide,
        problem.support,
        problem.query,
        model=problem.model,
        inner_lr=rates,
        steps=2,
        backend="fused",
    )
    assert_close({k: v.sum(0) for k, v in result.grad.items()}, want, 1e-11)


def test_inference_mode_and_no_grad(problem):
    params = {k: v.clone().requires_grad_() for k, v in problem.params.items()}
    expected = entry(problem, "mean_meta_loss")(problem.params, problem.options["inner_lr"])
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            loss = entry(problem, "mean_meta_loss")(params, problem.options["inner_lr"])
        assert not loss.requires_grad
        torch.testing.assert_close(loss.clone(), expected, rtol=0, atol=0)


def test_number_cache_survives_inference_mode(problem):
    with torch.inference_mode():
        il.adapt(problem.params, problem.support, model=problem.model, inner_lr=0.0625, steps=1)
    params = {k: v.clone().requires_grad_() for k, v in problem.params.items()}
    il.meta_loss(
        params,
        problem.support,
        problem.query,
        model=problem.model,
        inner_lr=0.0625,
        steps=1,
        backend="fused",
    ).sum().backward()


def test_fake_tensors_have_the_right_shapes(problem):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        params = {k: mode.from_tensor(v) for k, v in problem.params.items()}
        sides = [
            il.Batch(*(None if v is None else mode.from_tensor(v) for v in b))
            for b in (problem.support, problem.query)
        ]
        result = il.meta_grad(
            params,
            *sides,
            model=problem.model,
            inner_lr=0.1,
            steps=2,
            backend="fused",
            stepwise=True,
        )
        assert result.loss.shape == (4,)
        assert result.query_loss.shape == (4, 3)
        assert {k: v.shape for k, v in result.grad.items()} == {
            k: v.shape for k, v in problem.params.items()
        }
    real = il.adapt(problem.params, problem.support, model=problem.model, inner_lr=0.1, steps=1)
    assert type(real["0.weight"]) is torch.Tensor


def test_autocast_runs_in_float32(problem):
    single = problem.to(torch.float32)
    half = single.support._replace(
        x=single.support.x.nan_to_num().bfloat16(), y=single.support.y.nan_to_num().bfloat16()
    )
    wide = half._replace(x=half.x.float(), y=half.y.float())
    options = {"model": problem.model, "inner_lr": 0.1, "steps": 1}
    for backend in ("fused", "torch"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = il.meta_grad(single.params, half, single.query, backend=backend, **options)
        expected = il.meta_grad(single.params, wide, single.query, backend=backend, **options)
        assert result.loss.dtype is torch.float32
        torch.testing.assert_close(result.grad, expected.grad, rtol=0, atol=0)
    with pytest.raises(TypeError, match="support x must have the dtype of params"):
        il.meta_grad(single.params, half, single.query, **options)
