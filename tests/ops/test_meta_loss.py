"""meta_loss and mean_meta_loss: values, first derivatives and the refusal of second ones, in eager
mode."""

import pytest
import torch

import innerloop as il
from helpers import assert_close
from innerloop import _preparation
from innerloop.functional import mean_meta_loss
from problems import RATES, random_problem


def differentiable(problem):
    """Returns the params and rates as leaves that require grad, and the rates' tensors by name."""
    params = {k: v.clone().requires_grad_() for k, v in problem.params.items()}
    rates = problem.options["inner_lr"]
    if isinstance(rates, torch.Tensor):
        rates = rates.clone().requires_grad_()
        return params, rates, {"": rates}
    if isinstance(rates, dict):
        rates = {
            k: v.clone().requires_grad_() if isinstance(v, torch.Tensor) else v
            for k, v in rates.items()
        }
        return params, rates, {k: v for k, v in rates.items() if isinstance(v, torch.Tensor)}
    return params, rates, {}


def options_of(problem):
    """Returns what meta_loss takes of the options."""
    return {
        k: v for k, v in problem.options.items() if k not in ("stepwise", "task_weight", "inner_lr")
    }


def gradients(total, params, tensors):
    """Returns the gradients of a scalar by group."""
    leaves = [*params.values(), *tensors.values()]
    grads = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return {
        "params": dict(zip(params, grads, strict=False)),
        "rates": dict(zip(tensors, grads[len(params) :], strict=True)),
    }


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_values_and_gradients_equal_the_reference(rates, seed):
    problem = random_problem(seed, rates=rates, activation="tanh", steps=2)
    results = []
    for backend in ("fused", "torch"):
        params, inner_lr, tensors = differentiable(problem)
        losses = il.meta_loss(
            params,
            problem.support,
            problem.query,
            model=problem.model,
            inner_lr=inner_lr,
            backend=backend,
            **options_of(problem),
        )
        weight = torch.linspace(-1, 2, problem.tasks, dtype=torch.float64)
        results.append((losses.detach(), gradients((losses * weight).sum(), params, tensors)))
    assert_close(results[0][0], results[1][0], 1e-11, "loss")
    for group in ("params", "rates"):
        assert_close(results[0][1][group], results[1][1][group], 1e-11, group)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", [5, 6, 8])
def test_mean_meta_loss_equals_meta_grad(seed, weighted):
    problem = random_problem(seed, rates="element_steps", activation="tanh")
    weight = torch.linspace(0.5, 2, problem.tasks, dtype=torch.float64) if weighted else None
    params, inner_lr, tensors = differentiable(problem)
    total = mean_meta_loss(
        params,
        problem.support,
        problem.query,
        model=problem.model,
        inner_lr=inner_lr,
        task_weight=weight,
        backend="fused",
        **options_of(problem),
    )
    found = gradients(3.0 * total, params, tensors)
    expected = problem.call(il.meta_grad, backend="torch", task_weight=weight)
    wide = torch.full_like(expected.loss, 1 / problem.tasks) if weight is None else weight
    assert_close(total, (expected.loss * wide).sum(), 1e-11)
    assert_close(found["params"], {k: 3 * v for k, v in expected.grad.items()}, 1e-11)
    assert_close(found["rates"], {k: 3 * v for k, v in expected.inner_lr_grad.items()}, 1e-11)


def test_mean_meta_loss_without_gradient_equals_with():
    problem = random_problem(9, steps=2)
    plain = mean_meta_loss(
        problem.params,
        problem.support,
        problem.query,
        model=problem.model,
        inner_lr=problem.options["inner_lr"],
        backend="fused",
        **options_of(problem),
    )
    params, inner_lr, _ = differentiable(problem)
    tracked = mean_meta_loss(
        params,
        problem.support,
        problem.query,
        model=problem.model,
        inner_lr=inner_lr,
        backend="fused",
        **options_of(problem),
    )
    assert not plain.requires_grad
    torch.testing.assert_close(plain, tracked.detach(), rtol=0, atol=0)


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy", "bce_with_logits"])
def test_gradcheck(steps, loss):
    """Finite differences of torch: step 1e-6, so errors near 1e-10 in float64; order 2 only, since
    order 1 is not the derivative of the loss."""
    problem = random_problem(
        10,
        steps=steps,
        loss=loss,
        order=2,
        activation="tanh",
        depth=2,
        tasks=3,
        rows=3,
        query_rows=2,
        rates="element",
        adapt_params=None,
    )
    names = list(problem.params)
    options = options_of(problem)

    def function(*values):
        half = len(names)
        return il.meta_loss(
            dict(zip(names, values[:half], strict=True)),
            problem.support,
            problem.query,
            model=problem.model,
            backend="fused",
            inner_lr=dict(zip(names, values[half:], strict=True)),
            **options,
        )

    inputs = [v.clone().requires_grad_() for v in problem.params.values()]
    inputs += [v.clone().requires_grad_() for v in problem.options["inner_lr"].values()]
    assert torch.autograd.gradcheck(function, inputs, eps=1e-6, atol=1e-7, rtol=1e-6)


def scalar_losses(problem):
    """Returns the two differentiable entry points as functions of params alone."""
    options = {
        **options_of(problem),
        "inner_lr": problem.options["inner_lr"],
        "model": problem.model,
        "backend": "fused",
    }
    return {
        "meta_loss": lambda p: il.meta_loss(p, problem.support, problem.query, **options).mean(),
        "mean_meta_loss": lambda p: mean_meta_loss(p, problem.support, problem.query, **options),
    }


@pytest.mark.parametrize("name", ["meta_loss", "mean_meta_loss"])
def test_double_backward_raises_and_create_graph_alone_does_not(name):
    problem = random_problem(12, activation="tanh", rates="number", steps=2)
    params, _, _ = differentiable(problem)
    loss = scalar_losses(problem)[name](params)
    grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
    other = (params["0.weight"] ** 2).sum()
    with pytest.raises(
        RuntimeError, match=r'^meta_loss .*: only first derivatives.*backend="torch"'
    ):
        torch.autograd.grad(sum(g.sum() for g in grads) + other, list(params.values()))


@pytest.mark.parametrize("name", ["meta_loss", "mean_meta_loss"])
def test_backward_twice_through_a_kept_graph(name):
    problem = random_problem(14, activation="tanh", rates="number", steps=2)
    params, _, _ = differentiable(problem)
    loss = scalar_losses(problem)[name](params)
    first = torch.autograd.grad(loss, list(params.values()), retain_graph=True)
    second = torch.autograd.grad(loss, list(params.values()))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_torch_backend_has_second_derivatives():
    problem = random_problem(
        15,
        activation="tanh",
        depth=2,
        rates="number",
        steps=1,
        tasks=2,
        adapt_params=None,
        loss="mse",
    )
    params, _, _ = differentiable(problem)
    loss = il.meta_loss(
        params,
        problem.support,
        problem.query,
        model=problem.model,
        inner_lr=problem.options["inner_lr"],
        backend="torch",
        **options_of(problem),
    )
    grads = torch.autograd.grad(loss.sum(), list(params.values()), create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in grads), list(params.values()))
    assert all(torch.isfinite(s).all() for s in second)


@pytest.mark.parametrize("side", ["support", "query"])
@pytest.mark.parametrize("member", ["x", "y", "weight"])
def test_gradients_of_the_data_are_refused_or_taken_by_torch(side, member):
    """Fused refuses; auto takes the torch back end and says so; without grad mode all is fused."""
    problem = random_problem(16, weighted=True, loss="mse")
    batch = getattr(problem, side)
    value = getattr(batch, member).clone().requires_grad_()
    setattr(problem, side, batch._replace(**{member: value}))
    options = {
        **options_of(problem),
        "model": problem.model,
        "inner_lr": problem.options["inner_lr"],
    }
    arguments = (problem.params, problem.support, problem.query)
    with torch.no_grad():
        il.meta_loss(*arguments, backend="fused", **options)
    with pytest.raises(
        NotImplementedError, match=rf'{side} {member} must not require grad.*"torch"'
    ):
        il.meta_loss(*arguments, backend="fused", **options)
    _preparation._WARNED.clear()
    with pytest.warns(il.FallbackWarning, match=f"{side} {member} is differentiated"):
        auto = il.meta_loss(*arguments, **options).sum()
    plain = il.meta_loss(*arguments, backend="torch", **options).sum()
    pairs = [torch.autograd.grad(loss, value)[0] for loss in (auto, plain)]
    assert_close(pairs[0], pairs[1], 1e-12)


@pytest.mark.parametrize("warm", [False, True])
def test_gradients_of_the_task_weights_are_the_losses(warm):
    problem = random_problem(16, loss="mse", rates="number")
    weight = torch.ones(problem.tasks, dtype=torch.float64)
    options = {**options_of(problem), "inner_lr": 0.1, "model": problem.model, "backend": "fused"}
    arguments = (problem.params, problem.support, problem.query)
    if warm:
        mean_meta_loss(*arguments, task_weight=weight, **options)
    mean_meta_loss(*arguments, task_weight=weight.requires_grad_(), **options).backward()
    assert_close(weight.grad, il.meta_loss(*arguments, **options), 1e-12)


def test_remembered_calls_use_the_data_of_the_call():
    """The second call of a kind skips the checks; it must still read its own arguments."""
    options = {
        "steps": 2,
        "depth": 2,
        "tasks": 4,
        "rates": "scalar",
        "ragged": True,
        "order": 2,
        "activation": "tanh",
        "loss": "mse",
        "per_task": 0.0,
        "adapt_params": None,
        "widths": [2, 5, 1],
        "rows": 3,
        "query_rows": 3,
        "weighted": True,
    }
    for seed in range(4):
        problem = random_problem(seed, **options)
        fused, plain = (problem.call(il.meta_grad, backend=b) for b in ("fused", "torch"))
        assert_close(fused.grad, plain.grad, 1e-11)
        assert_close(fused.inner_lr_grad, plain.inner_lr_grad, 1e-11)


def test_remembered_calls_tell_their_arguments_apart():
    """Calls whose tensors have equal shapes but other roles must not pass for each other."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    model = il.MLP([2, 2, 2], "tanh")
    shared = {name: drawn(*shape) - 0.5 for name, shape in model.shapes.items()}
    wide = {name: drawn(2, *shape) - 0.5 for name, shape in model.shapes.items()}
    x, y, weight = drawn(2, 2, 2), drawn(2, 2, 2), drawn(2, 2)
    count, rate, task_weight = torch.tensor([1, 2]), drawn(2), drawn(2)
    sides = {
        "plain": (x, y),
        "swapped": (y, x),
        "count": (x, y, count),
        "weight": (x, y, None, weight),
        "both": (x, y, count, weight),
    }
    calls = [
        ((params, sides[s], sides[q]), {"inner_lr": lr, "task_weight": w})
        for params in (shared, wide)
        for s in sides
        for q in sides
        for lr in (0.3, rate[0], rate)
        for w in (None, task_weight)
    ]
    for _ in range(2):  # the second time every call is remembered
        for arguments, options in calls:
            options = {"model": model, "steps": 2, **options}
            fused = il.meta_grad(*arguments, backend="fused", **options)
            plain = il.meta_grad(*arguments, backend="torch", **options)
            assert_close(fused.loss, plain.loss, 1e-11)
            assert_close(fused.grad, plain.grad, 1e-11)
            assert_close(fused.inner_lr_grad, plain.inner_lr_grad, 1e-11)


class Sharded(torch.Tensor):
    """What the checks know a DTensor by."""

    device_mesh = "of several processes"


@pytest.mark.parametrize(
    "wrong", ["x", "y", "weight", "task_weight", "weight as count", "sharded x"]
)
def test_a_remembered_call_does_not_excuse_a_wrong_one_of_equal_shapes(wrong):
    model = il.MLP([2, 2], "tanh")
    params = model.init(torch.Generator().manual_seed(0))
    tensors = {"x": torch.ones(2, 2, 2), "y": torch.ones(2, 2, 2)}
    tensors |= {"weight": torch.ones(2, 2), "task_weight": torch.ones(2)}

    def call(x, y, weight, task_weight, count=None):
        return il.meta_grad(
            params,
            (x, y, count, weight),
            (x, y),
            model=model,
            inner_lr=0.1,
            steps=1,
            task_weight=task_weight,
            backend="fused",
        )

    call(**tensors)
    if wrong == "weight as count":
        with pytest.raises(TypeError, match="support count must be int64"):
            call(**{**tensors, "weight": None}, count=tensors["weight"])
    elif wrong == "sharded x":
        with pytest.raises(TypeError, match="support x must be a local tensor"):
            call(**{**tensors, "x": tensors["x"].as_subclass(Sharded)})
    else:
        with pytest.raises(NotImplementedError, match="must not require grad"):
            call(**{**tensors, wrong: tensors[wrong].clone().requires_grad_()})


def test_a_remembered_call_does_not_excuse_another_structure():
    model = il.MLP([2, 2], "tanh")
    params = model.init(torch.Generator().manual_seed(0))
    x, y, weight = torch.ones(2, 2, 2), torch.ones(2, 2, 2), torch.ones(2, 2)
    options = {"model": model, "inner_lr": 0.1, "steps": 1, "backend": "fused"}
    il.meta_grad(params, (x, y), (x, y, None, weight), **options)
    with pytest.raises(ValueError, match="hold the model's parameters only"):
        il.meta_grad({**params, "extra": x}, (x, y), (x, y, None, weight), **options)
    with pytest.raises(TypeError, match="support count must be int64"):
        il.meta_grad(params, (x, y, x, y), (None, weight), **options)
    deep = x.reshape(2, 2, 1, 2)
    flat = il.MLP.from_layers(model.layers, flattens=True)
    il.meta_grad(params, (deep, y), (deep, y), **{**options, "model": flat})
    with pytest.raises(ValueError, match=r"support x must have shape \[2, N, 2\]"):
        il.meta_grad(params, (deep, y), (deep, y), **options)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("inner_lr", (0.3, 0.7, -0.3)),
        ("loss", ("mse", "half_mse", "huber")),
        ("steps", (1, 2, 0)),
        ("order", (1, 2)),
        ("adapt_params", (None, ("0.weight",), ("0.bias",), ())),
        ("stepwise", (False, True)),
        ("model", [il.MLP([2, 3, 1], activation) for activation in ("tanh", "relu", "silu")]),
    ],
)
def test_remembered_calls_tell_their_options_apart(name, values):
    problem = random_problem(3, widths=[2, 3, 1], activation="tanh", loss="mse")
    given = {"model": problem.model, "inner_lr": 0.3, "steps": 2}
    for _ in range(2):
        for value in values:
            options = {**given, name: value}
            rows = (problem.params, problem.support, problem.query)
            fused = il.meta_grad(*rows, backend="fused", **options)
            plain = il.reference.meta_grad(*rows, **options)  # which remembers nothing
            assert_close(fused.loss, plain.loss, 1e-11)
            assert_close(fused.grad, plain.grad, 1e-11)
            assert (fused.query_loss is None) == (plain.query_loss is None)
            assert il.meta_grad(*rows, backend="torch", **options).backend == "torch"


def test_flattening_models_with_data_of_equal_shape():
    generator = torch.Generator().manual_seed(0)
    flat = il.MLP.from_module(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 2)))
    params = {k: torch.randn(s, generator=generator).double() for k, s in flat.shapes.items()}
    x = torch.randn(3, 4, 2, 3, generator=generator).double()
    y = torch.randn(3, 4, 2, generator=generator).double()
    results = [
        il.meta_grad(params, (data, y), (data, y), model=flat, inner_lr=0.1, steps=1).grad
        for data in (x, x.flatten(2), x)
    ]
    torch.testing.assert_close(results[1:], results[:1] * 2, rtol=0, atol=0)


def test_one_of_several_leaves_may_require_grad():
    problem = random_problem(18, activation="tanh", depth=2, rates="number", steps=1)
    params = dict(problem.params)
    params["1.weight"] = params["1.weight"].clone().requires_grad_()
    scalar_losses(problem)["meta_loss"](params).backward()
    expected = problem.call(il.meta_grad, backend="torch", task_weight=None)
    assert_close(params["1.weight"].grad, expected.grad["1.weight"], 1e-11)


@pytest.mark.parametrize("operation", ["adapt", "hvp", "loss_and_grad", "predict"])
def test_operations_without_derivative_raise_in_backward(operation):
    problem = random_problem(20, loss="mse", rates="number", steps=1, ragged=False)
    params, _, _ = differentiable(problem)
    shared = {"model": problem.model, "backend": "fused"}
    results = {
        "adapt": lambda: il.adapt(params, problem.support, inner_lr=0.1, steps=1, **shared)[
            "0.weight"
        ],
        "hvp": lambda: il.hvp(params, problem.support, problem.params, **shared)["0.weight"],
        "loss_and_grad": lambda: il.loss_and_grad(params, problem.support, **shared)[0],
        "predict": lambda: il.predict(params, problem.support.x, **shared),
    }
    total = results[operation]().sum() + params["0.weight"].sum()
    with pytest.raises(RuntimeError, match=rf"{operation}: the fused operation cannot be diff"):
        total.backward()
