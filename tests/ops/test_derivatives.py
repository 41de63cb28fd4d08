"""No derivative vanishes: every operation, in every argument, by every way of torch to
differentiate. The result is right, or an exception names the back end that has it.

Expected are Jacobian and Hessian by torch.func of the torch back end, in float64; the tolerance is
its rounding, and that of finite differences where torch's own checks decide.
"""

from functools import cache

import pytest
import torch
from as_functions import OPERATIONS, drawn, function
from ways import WAYS, Case

from helpers import assert_close

REFUSAL = 'backend="torch"'
PAIRS = [(name, variable) for name, made in OPERATIONS.items() for variable in made.variables]
pytestmark = [
    pytest.mark.filterwarnings("ignore::innerloop.FallbackWarning"),
    pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*is deprecated.*:DeprecationWarning"),
]


@cache
def expected(name, variable):
    """Returns J, and H of u . f, by the torch back end; and (u, v)."""
    f, z = function(name, variable, "torch")
    J = torch.func.jacrev(f)(z)
    u, v = drawn(50, len(J)), drawn(52, len(z))
    H = torch.func.jacrev(torch.func.jacrev(lambda z: u @ f(z)))(z)
    return J.detach(), H.detach(), u, v


def taken(name, variable, how, backend):
    """Returns what a way of differentiating returns, or its exception; and what it must return."""
    J, H, u, v = expected(name, variable)
    f, z = function(name, variable, backend)
    case = Case(f, z, u, v)
    want = WAYS[how].want(case, J, H)
    try:
        return WAYS[how].take(case), want
    except Exception as error:
        return error, want


def right(got, want):
    """Asserts that there is a result, and that it is right."""
    if isinstance(got, Exception):
        raise got
    assert_close(got.to(want.dtype), want, 1e-9)


def refused(got, want):
    """Asserts that there is an exception which names the back end that has the derivative."""
    assert isinstance(got, Exception), f"not refused: {got} for {want}"
    assert REFUSAL in str(got), f"{type(got).__name__}: {got}"


def applies(name, how):
    """Says whether a way can see an operation whose results are constants to autograd, or whose
    order 1 is no derivative that differences could confirm."""
    if OPERATIONS[name].constant and WAYS[how].records:
        return False
    return not (name == "meta_loss, order 1" and "gradcheck" in how)


def cases(pairs):
    """Returns the parameters (name, variable, how) of pairs, and ways that go with them."""
    return [
        pytest.param(name, variable, how, id=f"{name}-{variable}-{how}".replace(" ", "_"))
        for name, variable in pairs
        for how in WAYS
        if applies(name, how)
    ]


# linearize traces calls of modules, so that what the learner would call is not the module's own
TRACED = {(name, "func_linearize") for name in ("JointTraining", "MAML", "MAML, none")}


def check_fused(name, variable, how):
    """Asserts that a first derivative is right where the kernels have one, and the others
    refused; or right, where a second one follows from what they have."""
    got, want = taken(name, variable, how, "fused")
    operation = OPERATIONS[name]
    if variable not in operation.fused or (name, how) in TRACED:
        refused(got, want)
    elif WAYS[how].order == 1 or (variable in operation.twice and not isinstance(got, Exception)):
        right(got, want)
    else:
        refused(got, want)


QUICK = [
    *((name, "params") for name in ("meta_loss", "mean_meta_loss", "meta_grad", "adapt")),
    ("mean_meta_loss", "task_weight"),
    ("JointTraining", "params"),
    ("meta_loss", "support x"),
]
REST = [pair for pair in PAIRS if pair not in QUICK]


@pytest.mark.parametrize(("name", "variable", "how"), cases(QUICK))
def test_fused(name, variable, how):
    check_fused(name, variable, how)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variable", "how"), cases(REST))
def test_fused_in_every_argument(name, variable, how):
    check_fused(name, variable, how)
