"""Every operation with every kind of tensor in each argument: right, or one error that names it."""

import pytest
import torch
from as_functions import OPERATIONS, arguments, flat
from tensor_kinds import EITHER, EITHER_FLOATS, REFUSED, REFUSED_FLOATS, RIGHT, to_plain

SUPPORT = ("support x", "support y", "support count", "support weight")
QUERY = ("query x", "query y", "query count", "query weight")
TAKES = {
    "meta_grad": ("params", "inner_lr", *SUPPORT, *QUERY, "task_weight"),
    "meta_loss": ("params", "inner_lr", *SUPPORT, *QUERY),
    "mean_meta_loss": ("params", "inner_lr", *SUPPORT, *QUERY, "task_weight"),
    "adapt": ("params", "inner_lr", *SUPPORT),
    "hvp": ("params", "vector", *SUPPORT),
    "loss_and_grad": ("params", *SUPPORT),
    "predict": ("params", "support x"),
    "MAML": (*SUPPORT, *QUERY, "task_weight"),
    "JointTraining": (*SUPPORT, *QUERY, "task_weight"),
    "adapted network": ("query x",),
}
# a module that is not fused says itself what it takes
MODULES_OWN = {(name, kind) for name in TAKES for kind in ("complex", "bool")}


def outcome(name, given, backend):
    """Returns an operation's numbers as one vector, or its error."""
    try:
        out = OPERATIONS[name].call(given, backend)
        plain = [
            t.detach().as_subclass(torch.Tensor) for t in (out if type(out) is tuple else [out])
        ]
        return flat(plain)
    except Exception as error:
        return error


def replaced(argument, make):
    """Returns all arguments, one of which (or its first leaf) is made anew."""
    given = arguments(counts=True)
    value = given[argument]
    if isinstance(value, dict):
        first = next(iter(value))
        given[argument] = {**value, first: make(value[first])}
    else:
        given[argument] = make(value)
    return given


def kinds(argument, always, floats):
    """Returns the kinds that there are of an argument, with how they are made."""
    if "count" not in argument:
        return {**always, **floats}
    return {kind: make for kind, make in always.items() if kind != "uninitialised"}


def is_right(name, backend, argument, kind, got):
    """Says whether an outcome is that of a plain tensor with the numbers of a kind."""
    want = outcome(name, replaced(argument, lambda t: to_plain(kind, t)), backend)
    if isinstance(want, Exception) or isinstance(got, Exception):
        return type(want) is type(got)  # rows that a count does not leave, say
    return torch.allclose(got, want, rtol=1e-11, atol=1e-13, equal_nan=True)


def is_refused(name, backend, argument, kind, got):
    """Says whether an outcome is an error that names the argument."""
    if backend == "torch" and argument.endswith(" x") and (name, kind) in MODULES_OWN:
        return isinstance(got, Exception)
    label = argument.rpartition(" ")[2]
    return isinstance(got, (TypeError, ValueError, NotImplementedError)) and label in str(got)


CLASSES = {
    "right": (RIGHT, {}, (is_right,)),
    "right or refused": (EITHER, EITHER_FLOATS, (is_right, is_refused)),
    "refused": (REFUSED, REFUSED_FLOATS, (is_refused,)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["fused", "torch"])
@pytest.mark.parametrize("expected", CLASSES, ids=str)
@pytest.mark.parametrize("name", TAKES, ids=str)
def test_every_kind_in_every_argument(name, expected, backend):
    always, floats, accept = CLASSES[expected]
    wrong = []
    for argument in TAKES[name]:
        for kind, make in kinds(argument, always, floats).items():
            got = outcome(name, replaced(argument, make), backend)
            if not any(fits(name, backend, argument, kind, got) for fits in accept):
                wrong.append((argument, kind, got))
            if isinstance(getattr(got, "__context__", None), BufferError):
                wrong.append((argument, kind, got, "shows how memory was asked for"))
    assert not wrong


@pytest.mark.parametrize(
    "name", ["meta_grad", "meta_loss", "mean_meta_loss", "adapt", "hvp", "loss_and_grad", "MAML"]
)
def test_errors_about_one_argument_do_not_mention_the_kind_of_another(name):
    for argument in TAKES[name]:
        given = replaced(argument, RIGHT["trivial subclass"])
        given["support count"] = torch.tensor([3, 9])  # kernels find this while they read
        got = outcome(name, given, "fused")
        assert isinstance(got, ValueError), (argument, got)
        assert got.__context__ is None, (argument, got)


@pytest.mark.parametrize("backend", ["fused", "torch"])
@pytest.mark.parametrize("name", ["meta_loss", "mean_meta_loss"])
def test_data_of_inference_mode_is_recorded(name, backend):
    plain = arguments(counts=True)
    with torch.inference_mode():
        data = {k: v.clone() for k, v in plain.items() if k in (*SUPPORT, *QUERY)}
    found = []
    for given in (plain, {**plain, **data}):
        params = {k: v.clone().requires_grad_() for k, v in plain["params"].items()}
        total = OPERATIONS[name].call({**given, "params": params}, backend).sum()
        found.append(flat(torch.autograd.grad(total, list(params.values()))))
    assert torch.equal(found[0], found[1])
