"""Properties of the fused operations that hold for every input, searched by hypothesis."""

import torch
from hypothesis import given
from hypothesis import strategies as st

import innerloop as il
from helpers import assert_close
from problems import LOSSES, SMOOTH, random_problem

SEEDS = st.integers(0, 10**6)
FUSED = {"backend": "fused"}


def smooth_problem(seed, **fixed):
    """Returns a random problem with a smooth activation."""
    options = {"activation": SMOOTH[seed % len(SMOOTH)], **fixed}
    return random_problem(seed, **options)


def select(problem, index):
    """Returns (params, support, query) of some of the tasks."""
    params = {
        k: v[index] if v.ndim > len(problem.model.shapes[k]) else v
        for k, v in problem.params.items()
    }
    sides = [
        il.Batch(*(None if v is None else v[index] for v in b))
        for b in (problem.support, problem.query)
    ]
    return params, *sides


@given(SEEDS)
def test_permuting_tasks_permutes_losses_and_keeps_the_gradient(seed):
    problem = smooth_problem(seed, task_weight=None)
    order = torch.randperm(problem.tasks, generator=torch.Generator().manual_seed(seed))
    before = problem.call(il.meta_grad, **FUSED)
    after = il.meta_grad(*select(problem, order), model=problem.model, **problem.options, **FUSED)
    assert_close(after.loss, before.loss[order], 1e-12)
    for name, grad in before.grad.items():
        per_task = problem.params[name].ndim > len(problem.model.shapes[name])
        assert_close(after.grad[name], grad[order] if per_task else grad, 1e-11, name)
    assert_close(after.inner_lr_grad, before.inner_lr_grad, 1e-11)


@given(SEEDS, st.integers(0, 19))
def test_gradient_is_additive_over_tasks(seed, cut):
    problem = smooth_problem(seed, per_task=0.0)
    weight = torch.linspace(-1, 2, problem.tasks, dtype=torch.float64)
    options = {**problem.options, "model": problem.model, **FUSED}
    whole = problem.call(il.meta_grad, task_weight=weight, **FUSED)
    total = None
    for index in (slice(None, cut), slice(cut, None)):
        part = il.meta_grad(*select(problem, index), **{**options, "task_weight": weight[index]})
        grads = part.grad
        total = grads if total is None else {k: total[k] + v for k, v in grads.items()}
    assert_close(total, whole.grad, 1e-11)


@given(SEEDS, st.integers(0, 4))
def test_zero_rate_is_joint_training(seed, steps):
    problem = smooth_problem(seed, adapt_params=None)
    joint = problem.call(il.meta_grad, inner_lr=0.0, steps=0, stepwise=False, **FUSED)
    for order in (1, 2):
        frozen = problem.call(
            il.meta_grad, inner_lr=0.0, steps=steps, order=order, stepwise=False, **FUSED
        )
        assert_close(frozen.loss, joint.loss, 1e-12)
        assert_close(frozen.grad, joint.grad, 1e-11)


@given(SEEDS)
def test_no_adapted_leaf_is_joint_training(seed):
    problem = smooth_problem(seed, rates="number", adapt_params=[])
    joint = problem.call(il.meta_grad, inner_lr=0.0, steps=0, stepwise=False, **FUSED)
    frozen = problem.call(il.meta_grad, stepwise=False, **FUSED)
    assert_close(frozen.grad, joint.grad, 1e-12)
    assert frozen.inner_lr_grad == 0


@given(SEEDS)
def test_joint_gradient_is_the_mean_of_loss_and_grad(seed):
    problem = smooth_problem(seed, per_task=0.0)
    joint = problem.call(
        il.meta_grad,
        inner_lr=0.0,
        steps=0,
        task_weight=None,
        stepwise=False,
        adapt_params=None,
        **FUSED,
    )
    losses, grads = il.loss_and_grad(
        problem.params, problem.query, model=problem.model, loss=problem.options["loss"], **FUSED
    )
    assert_close(joint.loss, losses, 1e-12)
    assert_close(joint.grad, {k: g.mean(0) for k, g in grads.items()}, 1e-11)


@given(SEEDS)
def test_orders_agree_where_the_adapted_part_has_no_curvature(seed):
    """Adapting the last bias alone: far outside huber's quadratic part the loss is linear in it."""
    problem = smooth_problem(
        seed,
        loss="huber",
        bias=True,
        rates="number",
        ragged=False,
        weighted=False,
        steps=3,
        depth=2,
    )
    last = problem.model.layers[-1].bias
    far = problem.support._replace(y=torch.full_like(problem.support.y, 1e3))
    results = [
        il.meta_grad(
            problem.params,
            far,
            problem.query,
            model=problem.model,
            order=order,
            **{
                **{k: v for k, v in problem.options.items() if k != "order"},
                "adapt_params": [last],
            },
            **FUSED,
        )
        for order in (1, 2)
    ]
    assert_close(results[0].grad, results[1].grad, 1e-12)
    assert_close(results[0].inner_lr_grad, results[1].inner_lr_grad, 1e-12)


@given(SEEDS, st.sampled_from(LOSSES))
def test_step_wise_losses_are_the_losses_of_fewer_steps(seed, loss):
    problem = smooth_problem(seed, loss=loss, rates="number", stepwise=True, steps=3)
    full = problem.call(il.meta_grad, **FUSED)
    for steps in range(4):
        short = problem.call(il.meta_grad, steps=steps, stepwise=False, **FUSED)
        assert_close(full.query_loss[:, steps], short.loss, 1e-12)
        assert_close(full.support_loss[:, :steps], short.support_loss, 1e-12)


@given(SEEDS)
def test_adapting_in_two_halves_equals_adapting_once(seed):
    problem = smooth_problem(seed, rates="number", steps=4)
    options = {
        "model": problem.model,
        "inner_lr": problem.options["inner_lr"],
        **FUSED,
        "loss": problem.options["loss"],
        "adapt_params": problem.options["adapt_params"],
    }
    once = il.adapt(problem.params, problem.support, steps=4, **options)
    half = il.adapt(problem.params, problem.support, steps=1, **options)
    assert_close(il.adapt(half, problem.support, steps=3, **options), once, 1e-12)


@given(SEEDS)
def test_equal_weights_are_the_mean(seed):
    problem = smooth_problem(seed, ragged=False, weighted=False)
    sides = [
        b._replace(weight=torch.full(b.x.shape[:2], 1 / b.x.shape[1], dtype=torch.float64))
        for b in (problem.support, problem.query)
    ]
    plain = problem.call(il.meta_grad, **FUSED)
    weighted = il.meta_grad(problem.params, *sides, model=problem.model, **problem.options, **FUSED)
    assert_close(weighted.grad, plain.grad, 1e-11)
