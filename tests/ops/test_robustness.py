"""Odd and bad calls, many calls, several threads, a fork: a right answer or one clear exception,
never a crash."""

import os
import random
import resource
import threading

import pytest
import torch

import innerloop as il
from helpers import assert_close
from problems import random_problem

EXPECTED = (ValueError, TypeError, NotImplementedError, RuntimeError, MemoryError)


def spoil(draw, value):
    """Returns a tensor changed in some way that may or may not be legal."""
    if not isinstance(value, torch.Tensor):
        return value
    generator = torch.Generator().manual_seed(draw.randrange(2**31))
    ways = [
        lambda v: v[:0],
        lambda v: v[..., :0],
        lambda v: v.unsqueeze(draw.randrange(v.ndim + 1)),
        lambda v: v.transpose(0, -1) if v.ndim else v,
        lambda v: v.flip(0) if v.ndim else v,
        lambda v: torch.cat([v, v]) if v.ndim else v,
        lambda v: v.to(draw.choice([torch.float16, torch.int32, torch.complex64, torch.bool])),
        lambda v: torch.full_like(v, draw.choice([0, 1, -1, 10**9])),
        lambda v: (
            v.clone().fill_(float(draw.choice(["nan", "inf", "-inf", "1e30"])))
            if v.is_floating_point()
            else v - 2**40
        ),
        lambda v: v.to("meta"),
        lambda v: v.expand(3, *v.shape),
        lambda v: v[:1].expand(2**40, *v.shape[1:]) if v.ndim else v,
        lambda v: v[::2] if v.ndim else v,
        lambda v: torch.as_strided(v, v.shape, [0] * v.ndim),
        lambda v: v.clone().requires_grad_() if v.is_floating_point() else v,
        lambda v: v + torch.randn(v.shape, generator=generator).to(v.dtype) * 1e3,
        lambda v: None,
        lambda v: "tensor",
    ]
    try:
        return draw.choice(ways)(value)
    except (RuntimeError, IndexError):  # torch cannot change this one that way
        return value


def odd_call(seed):
    """Makes one call with up to two arguments spoilt; a result must equal the reference's when that
    has one."""
    draw = random.Random(seed)
    problem = random_problem(seed, tasks=draw.choice([0, 1, 3, 17]), activation="tanh")
    params, options = dict(problem.params), dict(problem.options)
    sides = [list(problem.support), list(problem.query)]
    for _ in range(draw.randrange(3)):
        target = draw.choice(["params", "side", "side", "option"])
        if target == "params":
            name = draw.choice(list(params))
            params[name] = spoil(draw, params[name])
        elif target == "side":
            side, member = draw.choice(sides), draw.randrange(4)
            side[member] = spoil(draw, side[member])
        else:
            name = draw.choice(list(options))
            values = [options[name], 10**6, -1, "mse", None, [], {}, 0.5, True, float("nan")]
            options[name] = spoil(draw, draw.choice(values))
            if name == "steps" and options[name] == 10**6:
                options[name] = 7
    outcomes, silent = [], False
    for backend in ("fused", "torch"):
        try:
            outcomes.append(
                il.meta_grad(
                    params, *map(tuple, sides), model=problem.model, backend=backend, **options
                )
            )
        except EXPECTED as error:
            outcomes.append(None)
            silent = silent or not str(error)
    assert not silent
    fused, reference = outcomes
    if fused is None or reference is None or fused.loss.is_meta:
        return
    finite = all(bool(v.isfinite().all()) for v in (reference.loss, *reference.grad.values()))
    if finite and float(reference.loss.abs().sum()) < 1e6:
        try:
            assert_close(fused.loss, reference.loss, 1e-9)
            # a saturated unit's derivative 1 - h^2 is rounding: judge leaves beside the largest
            assert_close(fused.grad, reference.grad, 1e-9, floor=0.1)
        except AssertionError:
            if not is_chaotic(reference, params, sides, problem.model, options):
                raise


def is_chaotic(reference, params, sides, model, options):
    """Whether rounding the parameters alone moves the reference further than the test allows: huge
    inputs make some inner loops amplify rounding errors a hundred million times."""
    rounded = {name: value * (1 + 2**-51) for name, value in params.items()}
    moved = il.meta_grad(rounded, *map(tuple, sides), model=model, backend="torch", **options)
    pairs = [(moved.loss, reference.loss)]
    pairs += [(moved.grad[name], reference.grad[name]) for name in reference.grad]
    return any(float((a - b).norm()) > 1e-10 * float(b.norm()) for a, b in pairs)


@pytest.mark.filterwarnings("ignore")
def test_odd_calls():
    for seed in range(400):
        odd_call(seed)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("block", range(100))
def test_many_odd_calls(block):
    for seed in range(1000 * (block + 1), 1000 * (block + 2)):
        odd_call(seed)


def resident_bytes():
    """Returns the memory that the process has touched and not given back."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux's /proc")
@pytest.mark.parametrize("differentiable", [False, True])
def test_memory_does_not_grow(differentiable):
    problem = random_problem(
        1,
        widths=[8, 32, 32, 4],
        tasks=16,
        steps=2,
        rates="element",
        activation="tanh",
        loss="mse",
        adapt_params=None,
        task_weight=None,
        stepwise=False,
    )
    params = {k: v.clone().requires_grad_(differentiable) for k, v in problem.params.items()}
    options = {**problem.options, "model": problem.model}
    for name in ("task_weight", "stepwise"):
        options.pop(name)

    def step():
        if differentiable:
            il.meta_loss(params, problem.support, problem.query, **options).mean().backward()
        else:
            il.meta_grad(params, problem.support, problem.query, **options)

    for _ in range(100):
        step()
    before = resident_bytes()
    for _ in range(1000):
        step()
    assert resident_bytes() - before < 4e6  # one leaked gradient a call would be 40 MB


def test_several_python_threads_at_once():
    problems = [random_problem(s, tasks=9, steps=2) for s in range(4)]
    expected = [p.call(il.meta_grad, backend="fused") for p in problems]
    wrong = []

    def work(index):
        try:
            for _ in range(30):
                result = problems[index].call(il.meta_grad, backend="fused")
                for name, grad in expected[index].grad.items():
                    if not torch.equal(result.grad[name], grad):
                        wrong.append((index, name))
        except Exception as error:
            wrong.append((index, error))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_fork():
    torch.set_num_threads(2)
    problem = random_problem(5, tasks=33, steps=2)
    before = problem.call(il.meta_grad, backend="fused")
    child = os.fork()
    if child == 0:
        after = problem.call(il.meta_grad, backend="fused")
        same = all(torch.equal(after.grad[k], v) for k, v in before.grad.items())
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
