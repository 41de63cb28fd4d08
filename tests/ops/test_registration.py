"""The raw ops as torch sees them: opcheck, plan texts, and formulas that raise."""

import pytest
import torch

import innerloop as il
from innerloop import _ops, _plan, _solver
from innerloop._params import RateForm
from innerloop.objectives import FusedObjective
from problems import random_problem


def arguments(name, dtype, tracked=False, per_task=0.0, form="number", stepwise=False):
    """Returns the arguments of one raw op."""
    problem = random_problem(
        21,
        widths=[3, 4, 2],
        activation="tanh",
        loss="mse",
        tasks=5,
        steps=2,
        per_task=per_task,
        rates=form,
        weighted=True,
        ragged=True,
        adapt_params=None,
    ).to(dtype)
    from innerloop._params import flatten_rates

    rates, rate_form = flatten_rates(
        problem.options["inner_lr"], problem.model.leaves, 2, dtype, torch.device("cpu")
    )
    rates = rates.clone()
    params = [v.clone() for v in problem.params.values()]
    if tracked:
        params, rates = [v.requires_grad_() for v in params], rates.requires_grad_()
    plan = _plan.find_plan(
        problem.model,
        _plan.Options(
            FusedObjective("mse"),
            FusedObjective("mse"),
            _plan.InnerLoop(2, 2, _solver.GRADIENT_DESCENT, (True,) * len(params), rate_form),
            stepwise,
            _plan.Execution(),
        ),
    ).text
    support, query = problem.support, problem.query
    weight = torch.rand(5, generator=torch.Generator().manual_seed(0)).to(dtype)
    return {
        "predict": (params, support.x.nan_to_num(), plan),
        "loss_and_grad": (params, *support, plan),
        "hvp": (params, [v.detach().clone() for v in params], *support, plan),
        "fisher_product": (params, [v.detach().clone() for v in params], *support, plan),
        "adapt": (params, rates, *support, plan),
        "meta_loss": (params, rates, *support, *query, plan),
        "meta_grad": (params, rates, *support, *query, weight, plan),
        "mean_meta_loss": (params, rates, *support, *query, weight, plan),
        "scale_grad": (weight.sum(), weight, [v.detach() for v in params]),
    }[name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", _ops.RAW)
def test_opcheck(name, dtype):
    torch.library.opcheck(_ops.RAW[name], arguments(name, dtype))


@pytest.mark.parametrize("per_task", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("form", ["steps", "leaf", "element_steps"])
@pytest.mark.parametrize("name", ["adapt", "meta_grad"])
def test_opcheck_of_layouts(name, form, per_task):
    torch.library.opcheck(
        _ops.RAW[name], arguments(name, torch.float64, per_task=per_task, form=form, stepwise=True)
    )


# torch 2.14's opcheck looks at the gradients of tensors that are no leaves
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_opcheck_of_the_differentiable_op():
    torch.library.opcheck(
        _ops.RAW["meta_loss"], arguments("meta_loss", torch.float64, tracked=True)
    )


def test_raw_meta_loss_has_its_true_gradient():
    args = arguments("meta_loss", torch.float64, tracked=True, form="element")
    loss = _ops.RAW["meta_loss"](*args)
    weight = arguments("meta_grad", torch.float64)[-2]
    grads = torch.autograd.grad((loss * weight).sum(), [*args[0], args[1]])
    out = _ops.RAW["meta_grad"](
        *(
            a.detach() if isinstance(a, torch.Tensor) else a
            for a in arguments("meta_grad", torch.float64, form="element")
        )
    )
    torch.testing.assert_close(torch.cat([g.flatten() for g in grads[:-1]]), out[3])
    torch.testing.assert_close(grads[-1], out[4])


DIFFERENTIABLE = {"meta_loss", "mean_meta_loss", "scale_grad"}


@pytest.mark.parametrize("name", sorted({*_ops.RAW} - DIFFERENTIABLE))
def test_raw_ops_without_derivative_raise_in_backward(name):
    out = _ops.RAW[name](*arguments(name, torch.float64, tracked=True))
    first = out if isinstance(out, torch.Tensor) else out[0]
    with pytest.raises(RuntimeError, match='backend="torch"'):
        first.sum().backward()


def test_scaled_gradient_refuses_a_second_derivative():
    cotangent, gradient, inputs = arguments("scale_grad", torch.float64)
    tracked = [v.clone().requires_grad_() for v in inputs]
    out = _ops.RAW["scale_grad"](cotangent, gradient, tracked)
    with pytest.raises(RuntimeError, match="only first derivatives"):
        out.sum().backward()


@pytest.mark.parametrize(
    "rates",
    [
        RateForm(False, False, "model"),
        RateForm(True, True, "element"),
        RateForm(False, True, "leaf"),
    ],
)
def test_plan_text_round_trip(rates):
    layers = il.MLP([3, 4, 2], "leaky_relu", negative_slope=0.123456789).layers
    model = il.MLP.from_layers([layers[0], layers[1]._replace(bias=None)])
    options = _plan.Options(
        FusedObjective("huber", (0.3,)),
        FusedObjective("mse"),
        _plan.InnerLoop(3, 1, _solver.Solver(0.9, 1.0, 0.9, 0.1), (True, False, True), rates),
        True,
        _plan.Execution(True),
    )
    plan = _plan.find_plan(model, options)
    fresh = _plan.parse_plan(plan.text)
    assert fresh.text == plan.text
    assert fresh.options == options
    assert fresh.native_arguments() == plan.native_arguments()
    assert _plan.find_plan(model, options) is plan


def test_op_in_a_fresh_process_needs_only_the_text():
    args = arguments("predict", torch.float64)
    before = _ops.RAW["predict"](*args)
    _plan._PLANS.clear()
    torch.testing.assert_close(_ops.RAW["predict"](*args), before, rtol=0, atol=0)
