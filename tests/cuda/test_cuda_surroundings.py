"""The CUDA operations among streams, graphs, threads, torch.compile, several GPUs and little
memory."""

import gc
import subprocess
import sys
import threading

import pytest
import torch
from moving import on_gpu

import innerloop as il
from innerloop import _ops
from innerloop._params import RateForm
from innerloop._plan import Execution, InnerLoop, Options, find_plan
from innerloop._solver import GRADIENT_DESCENT
from innerloop.objectives import FusedObjective
from problems import random_problem

MODEL = il.MLP([3, 32, 2], "tanh")


def data(tasks=64, seed=0):
    """Returns parameters and two sides on the GPU."""
    generator = torch.Generator().manual_seed(seed)
    params = {k: v.cuda() for k, v in MODEL.init(generator).items()}
    sides = [
        (
            torch.randn(tasks, 10, 3, generator=generator).cuda(),
            torch.randn(tasks, 10, 2, generator=generator).cuda(),
        )
        for _ in range(2)
    ]
    return params, *sides


def step(params, support, query):
    """Returns one fused meta-gradient."""
    return il.meta_grad(
        params, support, query, model=MODEL, inner_lr=0.1, steps=3, loss="mse", backend="fused"
    )


def test_side_streams_do_not_meet():
    """Each stream's inputs are written on that stream after a long delay."""
    expected = [step(*data(seed=i)).grad["0.weight"] for i in range(4)]
    sources, results = [data(seed=i) for i in range(4)], []
    torch.cuda.synchronize()
    for source in sources:
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda._sleep(20_000_000)
            params, *sides = source
            moved = [tuple(v + 0 for v in side) for side in sides]
            results.append(step({k: v + 0 for k, v in params.items()}, *moved).grad["0.weight"])
    torch.cuda.synchronize()
    for got, want in zip(results, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_several_threads():
    expected = [step(*data(seed=i)).grad["0.weight"] for i in range(4)]
    results = [None] * 4

    def work(i):
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                results[i] = step(*data(seed=i)).grad["0.weight"]
            torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for got, want in zip(results, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize("threads", [0, 96])
def test_graph_replays_with_new_data(threads):
    params, support, query = data(seed=1)
    with il.fixed_plan(threads=threads):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step(params, support, query)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step(params, support, query)
        for seed in (2, 3):
            fresh = data(seed=seed)
            for name, value in fresh[0].items():
                params[name].copy_(value)
            for old, new in zip((*support, *query), (*fresh[1], *fresh[2]), strict=True):
                old.copy_(new)
            graph.replay()
            torch.testing.assert_close(
                captured.grad["0.weight"], step(*fresh).grad["0.weight"], rtol=0, atol=0
            )


FIRST_CALLS = """
import torch

import innerloop as il

model = il.MLP([3, 24, 2], "tanh")
generator = torch.Generator().manual_seed(0)
params = {k: v.cuda() for k, v in model.init(generator).items()}
x, y = (torch.randn(9, 5, n, generator=generator).cuda() for n in (3, 2))
vector = {k: v + 1 for k, v in params.items()}
fused = {"model": model, "backend": "fused"}
inner = {"inner_lr": torch.full((), 0.1, device="cuda"), "steps": 2, **fused}
calls = {
    "meta_grad": lambda: list(il.meta_grad(params, (x, y), (x, y), **inner).grad.values()),
    "adapt": lambda: list(il.adapt(params, (x, y), **inner).values()),
    "hvp": lambda: list(il.hvp(params, (x, y), vector, **fused).values()),
    "loss_and_grad": lambda: list(il.loss_and_grad(params, (x, y), **fused)[1].values()),
    "predict": lambda: [il.predict(params, x, **fused)],
}
torch.cuda.synchronize()
for operation, call in calls.items():
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    for leaf in captured:
        leaf.fill_(float("nan"))
    graph.replay()
    for got, want in zip(captured, call(), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)
    print(operation)
"""


def test_first_calls_of_a_process_inside_a_capture():
    """Nothing is left to be loaded, asked or set when a kernel is launched for the first time."""
    done = subprocess.run(
        [sys.executable, "-c", FIRST_CALLS],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.split()) == 5


def test_graph_of_a_training_step():
    net = torch.nn.Sequential(
        torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2)
    ).cuda()
    _, support, query = data(seed=4)
    maml = il.MAML(net, inner_lr=0.1, steps=2, backend="fused")
    optimiser = torch.optim.Adam(maml.parameters(), lr=1e-2, capturable=True)

    def train():
        optimiser.zero_grad(set_to_none=False)
        loss = maml(support, query)
        loss.backward()
        optimiser.step()
        return loss

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            train()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = train()
    graph.replay()
    first = loss.item()
    for _ in range(50):
        graph.replay()
    assert loss.item() < first


def test_compile_fullgraph():
    params, support, query = data(seed=5)
    leaves = {k: v.requires_grad_() for k, v in params.items()}

    def loss(leaves):
        return il.meta_loss(
            leaves, support, query, model=MODEL, inner_lr=0.1, steps=2, backend="fused"
        ).sum()

    expected = torch.autograd.grad(loss(leaves), list(leaves.values()))
    compiled = torch.compile(loss, fullgraph=True)
    actual = torch.autograd.grad(compiled(leaves), list(leaves.values()))
    for got, want in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", ["meta_grad", "meta_loss"])
def test_opcheck(name):
    params, support, query = data(tasks=5)
    form = RateForm(False, False, "model")
    inner, mse = (
        InnerLoop(2, 2, GRADIENT_DESCENT, (True,) * len(params), form),
        FusedObjective("mse"),
    )
    text = find_plan(MODEL, Options(mse, mse, inner, False, Execution())).text
    rates = torch.full((), 0.1, device="cuda")
    tensors = (*support, None, None, *query, None, None)
    weight = (None,) if name == "meta_grad" else ()
    torch.library.opcheck(_ops.RAW[name], (list(params.values()), rates, *tensors, *weight, text))


def test_devices_that_differ_are_named():
    params, support, query = data()
    with pytest.raises(ValueError, match=r"meta_grad: support x must be on the device of params"):
        step(params, tuple(v.cpu() for v in support), query)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_device_other_than_the_current_one():
    problem = random_problem(3, activation="tanh", norms=False)
    here = on_gpu(problem, torch.float64)
    expected = here.call(il.meta_grad, backend="fused")
    with torch.cuda.device(1):
        there = on_gpu(problem, torch.float64)
    assert torch.cuda.current_device() == 0
    actual = there.call(il.meta_grad, backend="fused")
    torch.testing.assert_close(actual.loss.cpu(), expected.loss.cpu(), rtol=0, atol=0)
    mixed = {k: v.to("cuda:1") for k, v in here.params.items()}
    with pytest.raises(ValueError, match="must be on the device of params, cuda:1"):
        il.meta_grad(mixed, here.support, here.query, model=here.model, **here.options)


@pytest.mark.alone
def test_out_of_memory_is_torchs_own_and_passes():
    params, support, query = data()
    expected = step(params, support, query).grad["0.weight"]
    free = torch.cuda.mem_get_info()[0]
    huge = il.MLP([4096, 4096], bias=False)
    weight = {"0.weight": torch.zeros(4096, 4096, device="cuda")}
    side = (torch.zeros(2, 1, 4096, device="cuda"), torch.zeros(2, 1, 4096, device="cuda"))
    rates = {"0.weight": torch.full((4096, 4096), 0.1, device="cuda")}
    steps = free // (4096 * 4096 * 4) + 8
    with pytest.raises(torch.cuda.OutOfMemoryError):
        il.meta_grad(weight, side, side, model=huge, inner_lr=rates, steps=steps, backend="fused")
    gc.collect()
    torch.cuda.empty_cache()
    torch.testing.assert_close(step(params, support, query).grad["0.weight"], expected)
