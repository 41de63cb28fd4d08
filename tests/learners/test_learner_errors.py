"""Errors begin with the name of what was called, and an argument that other libraries call
something else is answered with ours."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

import innerloop as il
from innerloop import _calling, functional

X, Y = torch.ones(4, 5, 2), torch.ones(4, 5, 3)
CLASSES = torch.zeros(4, 5, dtype=torch.int64)


def net():
    """A network that either back end takes."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))


class Mine(il.MAML):
    """A user's own class."""


class Pooled(il.JointTraining):
    """Another."""


LEARNERS = {
    "MAML": il.MAML,
    "JointTraining": il.JointTraining,
    "Mine": Mine,
    "Pooled": Pooled,
}
BAD_SIDES = {
    "no tuple": X,
    "list of tasks": [(X[0], Y[0])] * 4,
    "no tensor": (X, None),
    "rank": (X[0, 0], Y[0, 0]),
    "features": (X[..., :1], Y),
    "inputs dtype": (X.double(), Y),
    "targets": (X, Y[..., :2]),
    "target rows": (X, Y[:, :3]),
    "target kind": (X, Y.long()),
    "target dtype": (X, Y.double()),
    "device": (X, Y.to("meta")),
    "count kind": (X, Y, [1, 2, 3, 4]),
    "count dtype": (X, Y, torch.ones(4)),
    "count shape": (X, Y, torch.ones(3).long()),
    "count range": (X, Y, torch.tensor([1, 2, 9, 4])),
    "weight shape": (X, Y, None, torch.ones(4)),
    "weight dtype": (X, Y, None, torch.ones(4, 5).double()),
    "sparse": (X.to_sparse(), Y),
}


@pytest.mark.parametrize("backend", ["fused", "torch"])
@pytest.mark.parametrize("bad", BAD_SIDES)
@pytest.mark.parametrize("name", LEARNERS)
def test_learners_speak_their_own_name(name, bad, backend):
    side = BAD_SIDES[bad]
    learner = LEARNERS[name](net(), inner_lr=0.1, steps=1, backend=backend)
    calls = {
        name: lambda: learner(side, side),
        f"{name}.adapt": lambda: learner.adapt(side),
        f"{name}.evaluate": lambda: learner.evaluate(side, side),
    }
    if bad == "features" and backend == "torch":
        pytest.skip("torch's own text")
    if bad in ("count range", "weight dtype") and name in ("JointTraining", "Pooled"):
        del calls[name]  # (all rows count; weights are converted)
    for called, call in calls.items():
        with pytest.raises((TypeError, ValueError, NotImplementedError)) as error:
            call()
        text = str(error.value)
        assert text.startswith(f"{called}: "), text
        assert "meta_" not in text
        assert error.value.__suppress_context__ or error.value.__context__ is None


def test_joint_training_speaks_of_the_rows_that_it_was_given():
    learner = il.JointTraining(net())
    with pytest.raises(ValueError, match=r"support x must have shape .*\(got \[4, 5, 1\]\)"):
        learner((X[..., :1], Y), (X[..., :1], Y))


@pytest.mark.parametrize("backend", ["fused", "torch"])
def test_errors_found_in_the_data_or_by_torch_have_names_too(backend):
    wrong = (X, torch.full((4, 5), 7))
    options = {"loss": "cross_entropy", "backend": backend}
    learner = il.MAML(net(), inner_lr=0.1, steps=1, **options)
    params, model = dict(net().named_parameters()), net()
    calls = {
        "MAML": lambda: learner(wrong, wrong),
        "MAML.adapt": lambda: learner.adapt(wrong),
        "MAML.evaluate": lambda: learner.evaluate(wrong, wrong),
        "loss_and_grad": lambda: il.loss_and_grad(params, wrong, model=model, **options),
    }
    for called, call in calls.items():
        if backend == "torch":  # torch's own text, unless the model is a description
            with pytest.raises((IndexError, RuntimeError)):
                call()
            continue
        with pytest.raises(ValueError, match=rf"^{called}: target class must lie in \[0, 3\)"):
            call()


def test_adapted_networks_speak_their_own_name():
    adapted = il.MAML(net(), inner_lr=0.1, steps=1).adapt((X, Y))
    with pytest.raises(ValueError, match=r"^Adapted: x must have shape"):
        adapted(X[..., :1])
    with pytest.raises(ValueError, match=r"^Adapted.module: task must lie in \[0, 4\)"):
        adapted.module(7)
    with pytest.raises(TypeError, match=r"^Adapted.module: unexpected argument 'tasks'"):
        adapted.module(tasks=1)


@pytest.mark.parametrize("name", ["FOMAML", "ANIL", "MetaSGD"])
def test_relatives_of_maml_speak_their_own_name(name):
    make = getattr(il, name)
    for bad in ({"loss": "l1"}, {"backend": "gpu"}, {"steps": -1}, {"inner_lr": "0.1"}):
        with pytest.raises((TypeError, ValueError), match=rf"^{name}: "):
            make(net(), **{"inner_lr": 0.1, "steps": 1, **bad})


def test_what_users_code_raises_is_left_alone():
    class Failing(nn.Module):
        def __init__(self, error):
            super().__init__()
            self.weight, self.error = nn.Parameter(torch.ones(1)), error

        def forward(self, x):
            raise self.error

    for error in (ValueError("boom"), TypeError("f() got an unexpected keyword argument 'lr'")):
        module = Failing(error)
        learner = il.MAML(module, inner_lr=0.1, steps=1, backend="torch")
        before = error.args
        with pytest.raises(type(error)) as raised:
            learner((X, Y), (X, Y))
        assert raised.value is error
        assert error.args == before


# ---------------------------------------------------------------- arguments

LEARNER = il.MAML(net(), inner_lr=0.1, steps=1)
JOINT = il.JointTraining(net(), inner_lr=0.1)
CALLABLES = {
    **{name: getattr(il, name) for name in ("MAML", "FOMAML", "ANIL", "MetaSGD", "JointTraining")},
    **{
        name: getattr(functional, name)
        for name in functional.__all__
        if inspect.isfunction(getattr(functional, name))
    },
    "MAML.forward": LEARNER.forward,
    "MAML.adapt": LEARNER.adapt,
    "MAML.evaluate": LEARNER.evaluate,
    "JointTraining.forward": JOINT.forward,
    "JointTraining.adapt": JOINT.adapt,
}


def test_all_public_operations_are_here():
    assert {"meta_grad", "meta_loss", "mean_meta_loss", "adapt", "hvp", "predict"} < set(CALLABLES)


@pytest.mark.parametrize("name", CALLABLES)
def test_names_of_other_libraries_are_answered_with_ours(name):
    function = CALLABLES[name]
    label = name.removesuffix(".forward")
    known = inspect.signature(function).parameters
    tried = 0
    for ours, others in _calling._ELSEWHERE.items():
        for other in others.split():
            if ours in known and other not in known:
                tried += 1
                with pytest.raises(TypeError) as error:
                    function(**{other: 1})
                text = f"{label}: unexpected argument {other!r}; did you mean "
                guesses = [k for k, v in _calling._ELSEWHERE.items() if other in v.split()]
                assert str(error.value) in [f"{text}{guess}?" for guess in guesses]
    assert tried > 2 or name in ("predict", "backend_for")
    with pytest.raises(
        TypeError, match=rf"^{label}: unexpected argument 'qqq'; the arguments are "
    ):
        function(qqq=1)


def test_sentences_on_arguments():
    said = {
        "first_order": r"^MAML: unexpected argument 'first_order'; did you mean order=1\?$",
        "second_order": r"^MAML: unexpected argument 'second_order'; did you mean order=2\?$",
        "allow_unused": r"it is not needed: unused parameters get zero gradients",
        "innerlr": r"did you mean inner_lr\?",
        "shots": r"it is not needed: shots are the rows of a task, x \[tasks, rows, \.\.\.\]$",
        "n_way": r"it is not needed: classes are the outputs of the module$",
        "meta_batch_size": r"it is not needed: tasks are the first axis, x \[tasks, rows, ",
        "meta_lr": r"the outer loop is yours: torch\.optim\.Adam\(learner\.parameters\(\), lr=",
        "track_higher_grads": r"did you mean order=1\? adapt and evaluate keep no graph$",
    }
    for key, text in said.items():
        with pytest.raises(TypeError, match=text):
            il.MAML(net(), inner_lr=0.1, steps=1, **{key: True})
    with pytest.raises(TypeError, match=r"'first_order'; did you mean order=2\?"):
        il.MAML(net(), inner_lr=0.1, steps=1, first_order=False)
    with pytest.raises(TypeError, match=r"^FOMAML: unexpected argument 'first_order'; the arg"):
        il.FOMAML(net(), inner_lr=0.1, steps=1, first_order=True)
    with pytest.raises(TypeError, match=r"'lr'; did you mean inner_lr\?; unexpected .*'num_steps'"):
        il.MAML(net(), lr=0.1, num_steps=1)
    with pytest.raises(TypeError, match=r"^MAML: inner_lr, steps must be given$"):
        il.MAML(net())
    with pytest.raises(TypeError, match=r"^MAML: query must be given$"):
        LEARNER((X, Y))
    with pytest.raises(
        TypeError, match=r"^MAML: query must be given; a list .* innerloop\.batch\("
    ):
        LEARNER([(X[0], Y[0])])
    with pytest.raises(TypeError, match=r"^MAML: only module may be given without a name \(got 3"):
        il.MAML(net(), 0.1, 5)
    with pytest.raises(TypeError, match=r"^hvp: only params, batch, vector may .*model=\.\.\."):
        il.hvp({}, (X, Y), {}, net())
    with pytest.raises(TypeError, match=r"^MAML: multiple values for argument 'module'$"):
        il.MAML(net(), module=net(), inner_lr=0.1, steps=1)


@pytest.mark.parametrize("name", CALLABLES)
def test_signatures_stay_visible(name):
    parameters = inspect.signature(CALLABLES[name]).parameters
    assert not {p.kind for p in parameters.values()} & {
        inspect.Parameter.VAR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
    }
    assert CALLABLES[name].__doc__


def _adds_a_layer(module):
    module.append(nn.Linear(3, 3))


def _takes_a_layer(module):
    del module[2]


def _puts_two_for_one(module):
    module[2] = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))


def _adds_a_parameter(module):
    module[0].extra = nn.Parameter(torch.ones(2))


def _drops_a_bias(module):
    module[0].bias = None


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("learner", [il.MAML, il.JointTraining], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    ("change", "new", "gone"),
    [
        (_adds_a_layer, "3.bias, 3.weight", "none"),
        (_takes_a_layer, "none", "2.bias, 2.weight"),
        (_puts_two_for_one, "2.0.bias, 2.0.weight, 2.1.bias, 2.1.weight", "2.bias, 2.weight"),
        (_adds_a_parameter, "0.extra", "none"),
        (_drops_a_bias, "none", "0.bias"),
    ],
    ids=lambda value: getattr(value, "__name__", "").strip("_") or None,
)
def test_parameters_that_came_or_went(learner, backend, change, new, gone):
    """A learner says so rather than leave new parameters out of the inner loop."""
    module = net()
    made = learner(module, inner_lr=0.1, steps=1, loss="mse", backend=backend)
    change(module)
    with pytest.raises(ValueError, match=f"new: {new}; gone: {gone}.*make a new learner"):
        made((X, Y), (X, Y))


def test_a_layer_of_another_width_in_the_same_place():
    """The same names with other shapes are the new network."""
    module = net()
    made = il.MAML(module, inner_lr=0.1, steps=2, loss="mse")
    made((X, Y), (X, Y))
    module[0], module[2] = nn.Linear(2, 7), nn.Linear(7, 3)
    fresh = il.MAML(module, inner_lr=0.1, steps=2, loss="mse")
    assert made((X, Y), (X, Y)).item() == fresh((X, Y), (X, Y)).item()


@pytest.mark.parametrize(
    "module",
    [nn.LazyLinear(2), nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(2))],
    ids=["itself", "parts"],
)
def test_lazy_layers_are_to_be_called_first(module):
    params, x = dict(module.named_parameters()), torch.ones(2, 3, 4)
    calls = {
        "MAML": lambda: il.MAML(module, inner_lr=0.1, steps=1),
        "JointTraining": lambda: il.JointTraining(module),
        "backend_for": lambda: il.backend_for(module),
        "predict": lambda: il.predict(params, x, model=module),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=rf"^{name}: module must have its parameters .*Lazy"):
            call()


def test_explain_says_what_is_refused():
    learner = il.MAML(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)), inner_lr=0.1, steps=1)
    assert "refused: MAML: layer '1' (BatchNorm1d) must not update" in learner.explain()
    learner.eval()
    assert "back end: " in learner.explain()
