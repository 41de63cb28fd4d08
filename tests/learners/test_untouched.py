"""The user's module is never altered: whatever an operation runs, and wherever it fails, the
module's parameters, buffers, parts, modes, hooks and attributes are what they were; and layers and
parameters that are held twice have one gradient, the sum.

Results are compared with a plain autograd loop over tasks that runs formulas, no modules, in
float64; tolerance 1e-11 relative, as in test_maml.py.
"""

from __future__ import annotations

import copy
import sys
import threading
import warnings

import pytest
import torch
from learner_cases import regression
from stateful_modules import (
    LAYERS,
    NO_FUNCTION,
    SHARED,
    WRITING,
    Averages,
    CountsAnew,
    CountsInPlace,
    Failing,
    NoTensor,
    TwoNames,
    UsedTwice,
    Writing,
    WrongShape,
    assert_unchanged,
    linear,
    record,
)
from torch import nn

import innerloop as il
from innerloop import _stateless
from innerloop._tasks import loop_reason
from innerloop.functional import mean_meta_loss

pytestmark = [
    pytest.mark.filterwarnings("ignore:innerloop.*:innerloop.FallbackWarning"),
    pytest.mark.filterwarnings("ignore:.*_norm.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning"),
]

SUPPORT, QUERY = regression(tasks=3, rows=4, seed=1), regression(tasks=3, rows=4, seed=2)
RATE, STEPS = 0.2, 2


class Looped(nn.Module):
    """A module that torch.vmap refuses, around another."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        """Returns what the other returns."""
        return self.inner(x) if x.sum().item() != 12345 else x


MAKERS = {cls.__name__: cls for cls in (*SHARED, *WRITING)}
MAKERS |= {name: (lambda make=make: make().double()) for name, make in LAYERS.items()}
MAKERS |= {
    f"{name}, task by task": lambda make=make: Looped(make())
    for name, make in MAKERS.items()
    if name != "recurrent"
}


GRAPHS = ("weight_norm of old", "prune")  # torch cannot copy these until they ran without autograd


def build(name):
    """A module by name."""
    torch.manual_seed(0)
    return MAKERS[name]()


def operations(backend):
    """Every operation that runs a module, as functions of one."""
    options = {"inner_lr": RATE, "steps": STEPS, "backend": backend}

    def own(net):
        return dict(net.named_parameters())

    def constants(net):
        return {k: v.detach() for k, v in net.named_parameters()}

    def per_task(net):
        return {k: v.detach().expand(3, *v.shape).clone() for k, v in net.named_parameters()}

    def adapt(net):
        adapted = il.MAML(net, **options).adapt(SUPPORT)
        adapted(QUERY[0])
        return adapted.module(1)

    return {
        "MAML": lambda net: il.MAML(net, **options)(SUPPORT, QUERY).backward(),
        "MAML, losses": lambda net: (
            il.MAML(net, **options)(SUPPORT, QUERY, reduction="none").sum().backward()
        ),
        "FOMAML": lambda net: il.FOMAML(net, **options)(SUPPORT, QUERY).backward(),
        "JointTraining": lambda net: il.JointTraining(net, backend=backend)(
            SUPPORT, QUERY
        ).backward(),
        "adapt": adapt,
        "evaluate": lambda net: il.MAML(net, **options).evaluate(SUPPORT, QUERY),
        "meta_grad": lambda net: il.meta_grad(
            constants(net), SUPPORT, QUERY, model=net, stepwise=True, **options
        ),
        "meta_loss": lambda net: il.meta_loss(own(net), SUPPORT, QUERY, model=net, **options),
        "mean_meta_loss": lambda net: mean_meta_loss(
            own(net), SUPPORT, QUERY, model=net, **options
        ).backward(),
        "functional adapt": lambda net: il.adapt(
            own(net), SUPPORT, model=net, stepwise=True, **options
        ),
        "hvp": lambda net: il.hvp(
            constants(net), SUPPORT, constants(net), model=net, backend=backend
        ),
        "loss_and_grad": lambda net: il.loss_and_grad(
            per_task(net), SUPPORT, model=net, backend=backend
        ),
        "predict": lambda net: il.predict(own(net), QUERY[0], model=net, backend=backend),
        "predict per task": lambda net: il.predict(
            per_task(net), QUERY[0], model=net, backend=backend
        ),
        "explain": lambda net: il.MAML(net, **options).explain() + str(il.backend_for(net)),
    }


OPERATIONS = list(operations("torch"))
FEW_OPERATIONS = ("MAML", "evaluate")
FEW_MODULES = ("TwoNames", "WritesStructure", "recurrent", "TiedLayers, task by task")


def module_cases():
    """Modules and operations; those far from both short lists are slow."""
    for name in MAKERS:
        for operation in OPERATIONS:
            quick = operation in FEW_OPERATIONS or name in FEW_MODULES
            marks = () if quick else pytest.mark.slow
            yield pytest.param(name, operation, id=f"{name} - {operation}", marks=marks)


def without_gradients(net):
    """Forgets gradients, which an operation may leave on purpose."""
    net.zero_grad(set_to_none=True)
    return net


@pytest.mark.parametrize(("name", "operation"), list(module_cases()))
def test_modules_are_what_they_were(name, operation):
    net = build(name)
    x = SUPPORT[0].clone()
    before = record(net)
    for backend in ("torch", "auto"):
        operations(backend)[operation](net)
        assert_unchanged(before, without_gradients(net))
    assert torch.equal(SUPPORT[0], x)
    assert record(net if name.startswith(GRAPHS) else copy.deepcopy(net)).keys() == before.keys()


@pytest.mark.parametrize("backend", ["torch", pytest.param("auto", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", MAKERS)
def test_equal_evaluations_are_equal(name, backend):
    net = build(name)
    learner = il.MAML(net, inner_lr=RATE, steps=STEPS, backend=backend)
    found = []
    for _ in range(3):
        torch.manual_seed(3)
        found.append(learner.evaluate(SUPPORT, QUERY).loss)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    fresh = il.MAML(build(name), inner_lr=RATE, steps=STEPS, backend=backend)
    torch.manual_seed(3)
    assert torch.equal(fresh.evaluate(SUPPORT, QUERY).loss, found[0])


# ---------------------------------------------------------------- right results


def loop(formula, params, steps=STEPS, rate=RATE):
    """Query losses of the textbook loop over tasks with a network that is a formula."""
    losses = []
    for xs, ys, xq, yq in zip(*SUPPORT, *QUERY, strict=True):
        phi = params
        for _ in range(steps):
            loss = (formula(phi, xs) - ys).square().mean()
            grads = torch.autograd.grad(
                loss, list(phi.values()), create_graph=True, materialize_grads=True
            )
            phi = {k: v - rate * g for (k, v), g in zip(phi.items(), grads, strict=True)}
        losses.append((formula(phi, xq) - yq).square().mean())
    return torch.stack(losses)


def expected(net, steps=STEPS):
    """Losses and mean meta-gradient of the loop."""
    params = {k: v.detach().clone().requires_grad_() for k, v in net.named_parameters()}
    losses = loop(net.formula, params, steps)
    grads = torch.autograd.grad(losses.mean(), list(params.values()), materialize_grads=True)
    return losses.detach(), dict(zip(params, grads, strict=True))


def assert_near(actual, wanted):
    """Compares two dicts of tensors relative to the size of all together."""
    assert list(actual) == list(wanted)
    whole = torch.stack([v.norm() for v in wanted.values()]).norm()
    for name, want in wanted.items():
        error = (actual[name] - want).norm()
        assert error <= 1e-11 * whole, f"{name}: {error:.1e} of {whole:.1e}"


@pytest.mark.parametrize("looped", [False, True], ids=["vmap", "task by task"])
@pytest.mark.parametrize("cls", [*SHARED, *WRITING], ids=lambda cls: cls.__name__)
def test_gradients_are_those_of_a_loop(cls, looped):
    torch.manual_seed(0)
    inner = cls()
    losses, grads = expected(inner)
    net = Looped(inner) if looped else inner
    prefix = "inner." if looped else ""
    learner = il.MAML(net, inner_lr=RATE, steps=STEPS, backend="torch")
    for _ in range(2):
        found = learner(SUPPORT, QUERY, reduction="none")
        found.mean().backward()
        torch.testing.assert_close(found.detach(), losses, rtol=1e-11, atol=0)
        assert_near({k.removeprefix(prefix): p.grad for k, p in net.named_parameters()}, grads)
        without_gradients(net)
    assert loop_reason(net) is not None or not looped
    result = il.meta_grad(
        {k: v.detach() for k, v in net.named_parameters()},
        SUPPORT,
        QUERY,
        model=net,
        inner_lr=RATE,
        steps=STEPS,
    )
    assert_near({k.removeprefix(prefix): v for k, v in result.grad.items()}, grads)


@pytest.mark.parametrize("cls", SHARED, ids=lambda cls: cls.__name__)
def test_adapted_copies_keep_what_is_shared(cls):
    torch.manual_seed(0)
    net = cls()
    adapted = il.MAML(net, inner_lr=RATE, steps=STEPS, backend="torch").adapt(SUPPORT)
    outputs = adapted(QUERY[0])
    for task in range(3):
        single = adapted.module(task)
        assert [k for k, _ in single.named_parameters()] == [k for k, _ in net.named_parameters()]
        torch.testing.assert_close(single(QUERY[0][task]), outputs[task], rtol=1e-12, atol=1e-14)
        phi = {k: v[task] for k, v in adapted.params.items()}
        wanted = net.formula(phi, QUERY[0][task])
        torch.testing.assert_close(outputs[task], wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "dropout"])
def test_vmap_and_the_loop_over_tasks_agree(name):
    torch.manual_seed(0)
    net = LAYERS[name]().double()
    torch.manual_seed(0)
    twin = Looped(LAYERS[name]().double())
    found = []
    for module in (net, twin):
        learner = il.MAML(module, inner_lr=RATE, steps=STEPS, backend="torch")
        loss = learner(SUPPORT, QUERY, reduction="none")
        loss.mean().backward()
        found.append((loss.detach(), [p.grad for p in module.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-13)


def test_wraps_of_parametrisations_are_not_remembered():
    torch.manual_seed(0)
    net = LAYERS["weight_norm"]().double()
    learner = il.MAML(net, inner_lr=RATE, steps=STEPS, backend="torch")
    wanted = learner.evaluate(SUPPORT, QUERY).loss
    with nn.utils.parametrize.cached():
        net(QUERY[0][0])
        assert torch.equal(learner.evaluate(SUPPORT, QUERY).loss, wanted)
        assert nn.utils.parametrize._cache
    assert not nn.utils.parametrize._cache_enabled


@pytest.mark.parametrize("cls", [CountsInPlace, CountsAnew, Averages], ids=lambda c: c.__name__)
def test_dropped_writes_to_buffers_are_told_once(cls):
    class Fresh(cls):
        """A class that has not warned yet."""

    learner = il.MAML(Fresh(), inner_lr=RATE, steps=STEPS, backend="torch")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        learner.evaluate(SUPPORT, QUERY)
        learner(SUPPORT, QUERY)
    told = [w for w in caught if "Fresh writes to its buffer 'calls'" in str(w.message)]
    assert len(told) == 1
    assert "what it writes is dropped" in str(told[0].message)
    assert (told[0].category, told[0].filename) == (il.FallbackWarning, __file__)


def test_inference_mode_runs_modules_too():
    net = build("CountsInPlace")
    learner = il.MAML(net, inner_lr=RATE, steps=STEPS, backend="torch")
    wanted = learner.evaluate(SUPPORT, QUERY).loss
    adapted = learner.adapt(SUPPORT)
    outputs = adapted(QUERY[0])
    with torch.inference_mode():
        assert torch.equal(learner(SUPPORT, QUERY, reduction="none", steps=0), wanted[:, 0])
        assert torch.equal(adapted(QUERY[0]), outputs)


# ---------------------------------------------------------------- no functions of their parameters


@pytest.mark.parametrize("operation", ["MAML", "meta_loss", "hvp", "loss_and_grad"])
@pytest.mark.parametrize("cls", NO_FUNCTION, ids=lambda cls: cls.__name__)
def test_modules_that_cannot_be_followed_are_refused_unaltered(cls, operation):
    torch.manual_seed(0)
    net = cls()
    before = record(net)
    with pytest.raises(RuntimeError, match=rf"^{operation}(\.\w+)?: model {NO_FUNCTION[cls]}"):
        operations("torch")[operation](net)
    assert_unchanged(before, without_gradients(net))


def test_facts_about_a_parameter_may_be_asked_from_anywhere():
    class Asks(nn.Module):
        """Looks at its parameters without computing with them."""

        def __init__(self):
            super().__init__()
            self.head = linear(2, 1)
            self.all = list(self.parameters())

        def forward(self, x):
            """Returns outputs."""
            first = self.all[0]
            assert first.shape == (1, 2)
            assert first.requires_grad
            return self.head(x.to(first.dtype).to(first.device)) * first.numel()

    learner = il.MAML(Asks(), inner_lr=RATE, steps=STEPS, backend="torch")
    learner(SUPPORT, QUERY).backward()


# ---------------------------------------------------------------- failures


def outcome(operation, net):
    """What an operation raises, or None."""
    try:
        operations("torch")[operation](net)
    except BaseException as error:
        return error
    return None


ERRORS = {
    "ValueError": ValueError("stop"),
    "RuntimeError": RuntimeError("stop"),
    "KeyboardInterrupt": KeyboardInterrupt("stop"),
    "SystemExit": SystemExit("stop"),
}


@pytest.mark.parametrize("looped", [False, True], ids=["vmap", "task by task"])
@pytest.mark.parametrize(
    "at", [0, 3, 5, *(pytest.param(at, marks=pytest.mark.slow) for at in (1, 2, 8))]
)
@pytest.mark.parametrize("error", ERRORS)
def test_errors_in_the_middle_leave_nothing_behind(error, at, looped):
    torch.manual_seed(0)
    net = Failing(ERRORS[error], at, looped=looped)
    before = record(net)
    for operation in FEW_OPERATIONS:
        net.countdown.left = at
        if looped and at == 5:
            net.countdown.left = 1000
            assert outcome(operation, net) is None  # so that the next call does not try vmap
            net.countdown.left = at
        raised = outcome(operation, net)
        assert raised is (net.error if net.countdown.left < 0 else None)
        assert_unchanged(before, without_gradients(net))
    net.countdown.left = 1000
    learner = il.MAML(net, inner_lr=RATE, steps=STEPS, backend="torch")
    torch.manual_seed(0)
    fresh = il.MAML(
        Failing(ERRORS[error], 1000, looped=looped), inner_lr=RATE, steps=STEPS, backend="torch"
    )
    assert torch.equal(learner(SUPPORT, QUERY), fresh(SUPPORT, QUERY))


@pytest.mark.parametrize("looped", [False, True], ids=["vmap", "task by task"])
@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("cls", [WrongShape, NoTensor])
def test_wrong_outputs_leave_nothing_behind(cls, at, looped):
    net = cls(ValueError(), at, looped=looped)
    before = record(net)
    for operation in ("MAML", "evaluate", "meta_grad", "hvp", "loss_and_grad"):
        net.countdown.left = at
        raised = outcome(operation, net)
        if net.countdown.left < 0:
            assert isinstance(raised, (ValueError, TypeError))
            assert "outputs" in str(raised)
        assert_unchanged(before, without_gradients(net))


def interrupted(net, line):
    """Runs an operation and raises KeyboardInterrupt at the n-th line that `_stateless` runs;
    returns whether that many were run."""
    left = [line]

    def watch(frame, event, argument):
        if frame.f_code.co_filename != _stateless.__file__:
            return None
        if event == "line":
            left[0] -= 1
            if left[0] < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        il.predict(dict(net.named_parameters()), QUERY[0], model=net, backend="torch")
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize(
    "name",
    [
        "UsedTwice",
        pytest.param("WritesAttributes", marks=pytest.mark.slow),
        pytest.param("weight_norm of old", marks=pytest.mark.slow),
    ],
)
def test_an_interrupt_at_any_line_leaves_nothing_behind(name):
    net = build(name)
    before = record(net)
    line = 0
    while interrupted(net, line):
        assert_unchanged(before, net)
        assert torch._C._len_torch_function_stack() == 0
        assert torch._C._autograd._saved_tensors_hooks_is_enabled()
        assert not nn.utils.parametrize._cache_enabled
        line += 1
    assert line > 100


# ---------------------------------------------------------------- threads


@pytest.mark.parametrize("looped", [False, True], ids=["vmap", "task by task"])
def test_threads_may_share_a_module_or_layers_of_it(looped):
    torch.manual_seed(0)
    first = UsedTwice()
    second = TwoNames()
    second.body[0] = first.first  # a layer of both
    second.head, first.head = linear(2, 1), linear(2, 1)
    nets = [Looped(first), Looped(second)] if looped else [first, second]
    nets = [*nets, nets[0], nets[1]]
    before = [record(net) for net in nets]
    learners = [il.MAML(net, inner_lr=RATE, steps=STEPS, backend="torch") for net in nets]
    wanted = [learner.evaluate(SUPPORT, QUERY).loss for learner in learners]
    errors = []

    def work(learner, want):
        for _ in range(5):
            found = learner.evaluate(SUPPORT, QUERY).loss
            copied = learner.adapt(SUPPORT).module(0)
            if not torch.equal(found, want) or len(list(copied.parameters())) < 4:
                errors.append(found)

    threads = [
        threading.Thread(target=work, args=pair) for pair in zip(learners, wanted, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for net, kept in zip(nets, before, strict=True):
        assert_unchanged(kept, net)


def test_an_operation_may_run_inside_the_forward_pass_of_its_own_module():
    class Reads(Writing):
        """Asks for its own predictions in forward()."""

        def forward(self, x):
            """Returns outputs and half of what an operation on the same module gives."""
            if self.training:
                self.eval()
                own = dict(self.named_parameters())
                return il.predict(own, x[None], model=self, backend="torch")[0]
            return super().forward(x)

    torch.manual_seed(0)
    net = Reads()
    before = record(net)
    _, grads = expected(net)
    il.MAML(net, inner_lr=RATE, steps=STEPS, backend="torch")(SUPPORT, QUERY).backward()
    assert_near({k: p.grad for k, p in net.named_parameters()}, grads)
    assert_unchanged(before, without_gradients(net))
