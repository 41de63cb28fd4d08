"""Fused means the real forward: whatever changes what a call of a module computes, the learner's
results are those of the torch back end, or the module is not fused and says so.

`changed_forwards.py` generates the modules: every kind of layer crossed with every way of changing
it, in a learner built before the change and in one built after it. The property (fused implies
equal) holds whatever may be fused; that today hardly any of them is has a test of its own. The
torch back end is compared with a textbook loop that calls the module itself. Tolerance 1e-11
relative to the whole gradient: float64, a few hundred operations.
"""

from __future__ import annotations

import sys
from types import BuiltinFunctionType, FunctionType

import pytest
import torch
from changed_forwards import KINDS, WAYS, part_of
from learner_cases import gradients, loop_losses
from torch import nn
from torch.nn import functional as F

import innerloop as il
from innerloop import _real_forward, _torch_calls
from innerloop._chain import _KINDS

pytestmark = [
    pytest.mark.filterwarnings("ignore:innerloop.*:innerloop.FallbackWarning"),
    pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*spectral_norm.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]

CASES = [(way, kind) for way in WAYS for kind in WAYS[way][1]]
# one kind of layer for each way, another one each time
QUICK = [(way, kinds[i % len(kinds)]) for i, (way, (_, kinds)) in enumerate(WAYS.items())]
# ways whose forward pass is read and fused as what it is
READ = ("registry",)
# ways that leave the values of a forward pass as they are, at first or for ever
SAME_VALUES = ("backward", "weight_norm")


def cases():
    """Every way with every kind; all but one kind a way are slow."""
    return [
        pytest.param(*case, id=" - ".join(case), marks=() if case in QUICK else pytest.mark.slow)
        for case in CASES
    ]


def build(kind):
    """The network of a kind in float64, and the part of it that is meant."""
    torch.manual_seed(0)
    make, place = KINDS[kind]
    net = make().double()
    return net, part_of(net, place), place


def batch(seed):
    """One side of two tasks; the inputs have an axis more, which Flatten takes away."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, 2, generator=generator, dtype=torch.float64)
    return x, torch.sin(x.sum(2, keepdim=True) + 2)


SUPPORT, QUERY = batch(1), batch(2)
OPTIONS = {"inner_lr": 0.3, "steps": 2}


def results(learner, net):
    """Loss, meta-gradient, adapted parameters and predictions of a learner."""
    loss = learner(SUPPORT, QUERY)
    loss.backward()
    found = {f"gradient {k}": v for k, v in gradients(net).items()}
    adapted = learner.adapt(SUPPORT)
    found |= {f"adapted {k}": v for k, v in adapted.params.items()}
    return found | {"loss": loss.detach(), "outputs": adapted(QUERY[0])}


def assert_same(actual, expected):
    """Compares results leaf by leaf, gradients relative to the whole gradient."""
    assert set(actual) == set(expected)
    whole = torch.stack([v.norm() for k, v in expected.items() if k.startswith("gradient")]).norm()
    for name, want in expected.items():
        scale = whole if name.startswith("gradient") else want.norm()
        error = (actual[name] - want).norm()
        assert error <= 1e-11 * scale, f"{name}: {error:.1e} of {scale:.1e}"


def textbook(net):
    """Loss and meta-gradient of a plain loop that calls the module."""
    losses = loop_losses(net, SUPPORT, QUERY, inner_lr=lambda name, step: 0.3, steps=2)
    loss = torch.stack(losses).mean()
    loss.backward()
    return {f"gradient {k}": v for k, v in gradients(net).items()} | {"loss": loss.detach()}


def refused(way, kind):
    """Says whether the torch back end cannot run a changed module: function modes, which it needs,
    would run a replaced function of torch twice, and torch.func forgets classes of parameters."""
    function = KINDS[kind][1].function
    replaced = way == "function of torch" and isinstance(getattr(*function), FunctionType)
    return replaced or way == "weight of another class"


@pytest.mark.parametrize(("way", "kind"), cases())
def test_fused_results_are_those_of_the_changed_module(way, kind):
    net, part, place = build(kind)
    x = QUERY[0][0]
    unchanged, names = net(x).detach(), [k for k, _ in net.named_parameters()]
    before = il.MAML(net, **OPTIONS)
    assert before.backend == "fused"
    results(before, net)
    runs = not refused(way, kind)
    with WAYS[way][0](part, place):
        if not any(word in way for word in SAME_VALUES):
            assert not torch.equal(net(x).detach(), unchanged)
        loop = textbook(net)
        asked = il.MAML(net, **OPTIONS, backend="torch")
        learners = [il.MAML(net, **OPTIONS)]
        if [k for k, _ in net.named_parameters()] == names:
            learners.append(before)
        expected = results(asked, net) if runs else loop
        assert_same({k: expected[k] for k in loop}, loop)
        for learner in (asked, *learners):
            if runs or learner.backend == "fused":
                found = results(learner, net)
                assert_same({k: found[k] for k in expected}, expected)
            else:
                with pytest.raises(NotImplementedError, match=r"in place of one|of its own"):
                    learner(SUPPORT, QUERY)


@pytest.mark.parametrize(("way", "kind"), cases())
def test_changed_modules_are_not_fused_today(way, kind):
    if any(word in way for word in READ) or (way, kind) == (
        "subclass, __iter__",
        "outer Sequential",
    ):
        pytest.skip("it is read, and fused rightly")
    net, part, place = build(kind)
    learner = il.MAML(net, **OPTIONS)
    asked = il.MAML(net, **OPTIONS, backend="fused")
    params = {k: v.detach() for k, v in net.named_parameters()}
    with WAYS[way][0](part, place):
        assert learner.backend == il.backend_for(net).backend != "fused"
        assert "cannot be fused: " in learner.explain()
        if dict(net.named_parameters()).keys() == params.keys():
            refusal = NotImplementedError, r"cannot be fused: .*use backend="
        else:
            refusal = ValueError, "make a new learner"
        with pytest.raises(refusal[0], match=refusal[1]):
            asked(SUPPORT, QUERY)
        with pytest.raises(NotImplementedError, match="cannot be fused: "):
            il.predict(params, QUERY[0], model=net, backend="fused")
        with pytest.raises(NotImplementedError, match="cannot be fused: "):
            il.MLP.from_module(net)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_taken_back_is_forgotten(kind):
    net, part, place = build(kind)
    learner = il.MAML(net, **OPTIONS)
    expected = results(learner, net)
    undone = [way for way in WAYS if "hook" in way or way.startswith(("class", "nn.", "function"))]
    for way in undone:
        if kind in WAYS[way][1]:
            with WAYS[way][0](part, place):
                assert learner.backend != "fused", way
            assert learner.backend == "fused", way
    assert_same(results(learner, net), expected)


def test_a_refusal_names_the_layer_and_the_reason():
    for way, kind, text in (
        ("instance, forward", "Sequential", r"layer '2' \(Sequential\).* own forward, set on the"),
        ("subclass, __iter__", "Sequential", r"layer '2' \(OwnSequential\).* own __iter__\(\)"),
        ("hook", "GELU", r"layer '1' \(GELU\) cannot be fused: its forward hooks"),
        ("backward pre-hook", "GELU", r"layer '1' \(GELU\) cannot be fused: its backward hooks"),
        ("global hook", "GELU", "forward hooks of all modules"),
        ("class, forward", "GELU", r"layer '1' \(GELU\).*torch.nn.modules.activation.GELU.forward"),
        ("function of torch", "Tanh", r"layer '1' \(Tanh\).* torch.tanh is not torch's own"),
        ("function mode", "Tanh", "function mode Mode"),
        ("subclass, forward", "Dropout(0)", "only torch.nn.Dropout itself"),
        ("parametrisation", "Linear", r"layer '0' \(ParametrizedLinear\).*parametrised"),
    ):
        net, part, place = build(kind)
        with WAYS[way][0](part, place), pytest.raises(NotImplementedError, match=text):
            il.MLP.from_module(net)


# ---------------------------------------------------------------- what does not matter


def with_methods(net):
    """A subclass that a call does not ask for anything."""

    class Net(nn.Sequential):
        """A network with a name."""

        def __init__(self, *parts):
            super().__init__(*parts)
            self.title = "net"

        def extra_repr(self):
            """Shows the name."""
            return self.title

        @property
        def width(self):
            """A number."""
            return len(self)

        def features(self, x):
            """Returns something."""
            return self[0](x)

    return Net(*net)


def set_extras(net):
    """Sets attributes, a buffer and a method."""
    net.note, net[1].layer_name, net[0].count = "x", "tanh", torch.zeros(3)
    net[0].register_buffer("seen", torch.zeros(2))
    net.features = lambda x: x
    return net


def observe_state(net):
    """Registers hooks that see no values."""
    net.register_state_dict_pre_hook(lambda *a: None)
    net._register_state_dict_hook(lambda *a: None)
    net[0].register_load_state_dict_post_hook(lambda *a: None)
    net[0].weight.register_hook(lambda grad: grad)
    return net


def hook_and_remove(net):
    """Registers hooks and takes them away."""
    net[0].register_forward_hook(lambda *a: None).remove()
    net[0].register_full_backward_hook(lambda *a: None).remove()
    nn.modules.module.register_module_forward_hook(lambda *a: None).remove()
    return net


def parametrise_and_remove(net):
    """Parametrises and takes it back."""
    nn.utils.parametrizations.weight_norm(net[0])
    nn.utils.parametrize.remove_parametrizations(net[0], "weight")
    return net


HARMLESS = {
    "subclass with methods": with_methods,
    "attributes": set_extras,
    "hooks of state": observe_state,
    "hooks taken away": hook_and_remove,
    "parametrisation taken away": parametrise_and_remove,
    "requires_grad": lambda net: net.requires_grad_(True),
    "frozen": lambda net: [net[0].requires_grad_(False), net][1],
    "replaced by the like": lambda net: [setattr(net, "1", nn.Tanh()), net][1],
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_changes_no_values_stays_fused(name):
    net, _, _ = build("Tanh")
    learner = il.MAML(HARMLESS[name](net), **OPTIONS)
    assert learner.backend == "fused"
    assert_same(results(learner, net), results(il.MAML(net, **OPTIONS, backend="torch"), net))


def test_methods_of_torch_that_no_call_uses_may_be_replaced(monkeypatch):
    for cls in (nn.Linear, nn.Module, nn.Sequential):
        monkeypatch.setattr(cls, "reset_parameters", lambda self: None, raising=False)
        monkeypatch.setattr(cls, "summary", lambda self: "", raising=False)
    net, _, _ = build("Tanh")
    assert il.MAML(net, **OPTIONS).backend == "fused"
    with torch.device("cpu"):  # a function mode of torch's own
        assert il.MAML(net, **OPTIONS).backend == "fused"


def test_patches_of_one_kind_leave_the_others_fused(monkeypatch):
    monkeypatch.setattr(F, "gelu", lambda x, approximate: 2 * x)
    monkeypatch.setattr(nn.SiLU, "forward", lambda self, x: 2 * x)
    for kind in KINDS:
        net, _, _ = build(kind)
        expected = "torch" if kind in ("GELU", "SiLU") else "fused"
        assert il.MAML(net, **OPTIONS).backend == expected, kind


def test_a_method_of_tensors_that_flatten_needs_is_watched(monkeypatch):
    net, _, _ = build("Flatten")
    learner = il.MAML(net, **OPTIONS)
    assert learner.backend == "fused"
    monkeypatch.setattr(torch.Tensor, "flatten", lambda self, *axes: self.reshape(-1))
    assert learner.backend == il.backend_for(net).backend == "torch"


# ---------------------------------------------------------------- other changes between calls


def later_changes():
    """Changes of a network between two calls of its learner that leave its kind as it was."""

    def swap(net):
        net[1] = nn.Sigmoid()

    def slope(net):
        net[1].negative_slope = 0.7

    def weight(net):
        net[0].weight = nn.Parameter(2 * net[0].weight.detach())

    def order(net):
        first = net._modules.pop("1")
        net._modules["1"] = first  # now the last one

    def width(net):
        net[0], net[2][0] = nn.Linear(2, 5).double(), nn.Linear(5, 3).double()

    def registry(net):
        net.__dict__["_modules"] = {**net._modules, "1": nn.Sigmoid()}

    def parameters(net):
        net[0].__dict__["_parameters"] = {
            k: nn.Parameter(2 * v.detach()) for k, v in net[0]._parameters.items()
        }

    def attribute(net):
        net.note = [torch.ones(2), torch.ones(2)]

    return {
        "another activation": ("Tanh", swap),
        "another slope": ("LeakyReLU", slope),
        "another weight": ("Tanh", weight),
        "another order": ("Tanh", order),
        "another registry": ("Tanh", registry),
        "another dict of parameters": ("Tanh", parameters),
        "another width": ("Tanh", width),
        "attribute": ("Tanh", attribute),
    }


@pytest.mark.parametrize("name", later_changes())
def test_changes_between_calls_are_noticed(name):
    kind, change = later_changes()[name]
    net, _, _ = build(kind)
    learner, asked = (il.MAML(net, **OPTIONS, backend=b) for b in ("auto", "torch"))
    adapted = learner.adapt(SUPPORT)
    results(learner, net)
    change(net)
    assert_same(results(learner, net), results(asked, net))
    if name in ("another activation", "another slope", "another order"):
        expected = il.predict(adapted.params, QUERY[0], model=net, backend="torch")
        torch.testing.assert_close(adapted(QUERY[0]), expected, rtol=1e-12, atol=0)


def test_a_parameter_that_goes_is_missed():
    net, _, _ = build("Tanh")
    learners = [il.MAML(net, **OPTIONS, backend=backend) for backend in ("fused", "torch")]
    net[2][0].bias = net[0].bias  # now the same, so that there is one parameter less
    for learner in learners:
        with pytest.raises((ValueError, NotImplementedError), match=r"2\.0\.bias"):
            learner(SUPPORT, QUERY)


def test_another_module_in_the_learner_is_noticed():
    net, _, _ = build("Tanh")
    learner = il.MAML(net, **OPTIONS)
    results(learner, net)
    learner.module = build("ReLU")[0]
    expected = results(il.MAML(learner.module, **OPTIONS, backend="torch"), learner.module)
    assert_same(results(learner, learner.module), expected)


# ---------------------------------------------------------------- the rule misses nothing


def called(function):
    """The Python functions and the built-in ones that a call runs, by a profiler's account."""
    found = []

    def note(frame, event, argument):
        if event == "call":
            found.append(frame.f_code)
        elif event == "c_call" and isinstance(argument, BuiltinFunctionType):
            found.append(argument)

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_function_that_a_call_runs_is_watched(kind):
    _, part, place = build(kind)
    inputs = 2 if kind in ("Linear", "Flatten", "outer Sequential") else 3
    rows = torch.ones(2, inputs, dtype=torch.float64)
    ran = called(lambda: part(rows))
    kinds = [_KINDS[type(inner)] for inner in part.modules()]
    places = [_real_forward._MODULE, *(p for watched in kinds for p in watched.places)]
    values = [value for p in places for value in p.values.values()]
    codes = [value.__code__ for value in values if isinstance(value, FunctionType)]
    # the first computes nothing; members of the class that _VF hands on cannot be replaced
    exempt = (
        torch._C._get_tracing_state,
        torch._C._get_cudnn_enabled,  # a flag, which layer_norm asks for
        torch._C._VariableFunctions.dropout,
    )
    flag = vars(type(torch.backends.cudnn))["enabled"]
    codes.append(type(flag).__get__.__code__)
    assert place.cls.forward.__code__ in ran
    for function in ran:
        if not isinstance(function, BuiltinFunctionType):
            assert function in codes or function.co_filename == __file__, function
        elif str(function.__module__).startswith("torch"):
            assert any(function is value for value in (*values, *exempt)), function


@pytest.mark.parametrize("cls", _KINDS)
def test_every_name_that_a_call_looks_up_is_watched(cls):
    made = {
        nn.Linear: (2, 2),
        nn.LayerNorm: (2,),
        nn.Sequential: (nn.Identity(),),
        nn.Dropout: (0.0,),
    }
    seen = set()

    def read(self, name):
        seen.add(name)
        return object.__getattribute__(self, name)

    part = cls(*made.get(cls, ()))
    part.__class__ = type("Logging", (cls,), {"__getattribute__": read})
    seen.clear()
    part(torch.ones(2, 2))
    assert {"forward", "_call_impl", "_forward_hooks"} <= seen
    place = _KINDS[cls].places[0]
    watched = place.absent | place.values.keys()
    assert seen - {"__dict__", "__class__"} <= watched


@pytest.mark.parametrize("owner", [torch, F, torch.Tensor], ids=["torch", "functional", "Tensor"])
def test_a_replaced_function_is_not_called_by_batched_operations(owner, monkeypatch):
    """Whatever they look up by name: it would act when the module is read, and once more."""
    (watched,) = [w for w, _ in _torch_calls._watched() if w.namespace == vars(owner)]
    names = [*watched.values, *watched.absent]
    assert len(names) > 20
    assert _torch_calls.replaced() == ""
    for name in names:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, lambda *args: None)
            assert _torch_calls.replaced() == f"{watched.label}.{name} is not torch's own"
    assert _torch_calls.replaced() == ""


class Squashed(nn.Module):
    """A forward pass of its own, batched for the sake of its softmax."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(2, 3), nn.Linear(3, 1)

    def forward(self, x):
        """Returns one value a row."""
        return self.outer(torch.softmax(torch.tanh(self.inner(x.flatten(1))), -1))


def test_a_replaced_function_in_a_forward_of_ones_own_acts_once(monkeypatch):
    torch.manual_seed(0)
    net = Squashed().double()
    learner = il.MAML(net, **OPTIONS)
    plain = results(learner, net)
    assert learner.backend == "batched"
    original = torch.tanh
    monkeypatch.setattr(torch, "tanh", lambda x: 2 * original(x))
    expected = results(il.MAML(net, **OPTIONS, backend="torch"), net)
    assert not torch.equal(expected["loss"], plain["loss"])
    for each in (learner, il.MAML(net, **OPTIONS)):
        assert_same(results(each, net), expected)
        assert each.backend == "torch"
        assert "torch.tanh is not torch's own" in each.explain()
    with pytest.raises(NotImplementedError, match=r"torch\.tanh is not torch's own"):
        il.MAML(net, **OPTIONS, backend="batched")(SUPPORT, QUERY)
