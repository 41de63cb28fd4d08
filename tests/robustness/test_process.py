"""The operations inside a process: forks, threads, memory, and bits that depend on neither."""

import ctypes
import multiprocessing
import os
import subprocess
import sys
import threading

import pytest
import torch

import innerloop as il
from innerloop import _native
from problems import random_problem

CALL = """
import torch, innerloop as il
from innerloop import _native
torch.set_num_threads(2)
model = il.MLP([2, 16, 16, 1], activation="tanh")
params = model.init(torch.Generator().manual_seed(0))
x = torch.linspace(-1, 1, 64 * 10 * 2).reshape(64, 10, 2)
y = x.sum(2).sin()
def call():
    return il.meta_grad(params, (x, y), (x, y), model=model, inner_lr=0.1, steps=3, backend="fused")
"""


def python(code, timeout=180):
    """Returns the finished run of a fresh interpreter; it must succeed."""
    run = subprocess.run(
        [sys.executable, "-c", CALL + code],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def same_bits(a, b):
    """Says whether two results of meta_grad are equal bit by bit."""
    pairs = [(a.loss, b.loss), (a.support_loss, b.support_loss)]
    pairs += [(a.grad[k], b.grad[k]) for k in a.grad]
    if isinstance(a.inner_lr_grad, dict):
        pairs += [(a.inner_lr_grad[k], b.inner_lr_grad[k]) for k in a.inner_lr_grad]
    else:
        pairs.append((a.inner_lr_grad, b.inner_lr_grad))
    kinds = {torch.float32: torch.int32, torch.float64: torch.int64}
    return all(torch.equal(u.view(kinds[u.dtype]), v.view(kinds[v.dtype])) for u, v in pairs)


# ---------------------------------------------------------------- bits


@pytest.mark.parametrize("strategy", ["lanes", "rows", "auto"])
@pytest.mark.parametrize("seed", range(8))
def test_bits_do_not_depend_on_threads(cpu_settings, seed, strategy):
    """Also not from run to run: sums have one order, which the shapes fix."""
    cpu_settings.set_strategy(strategy)
    dtype = (torch.float32, torch.float64)[seed % 2]
    problem = random_problem(seed, tasks=(150, 19, 1, 33)[seed % 4]).to(dtype)
    results = []
    for threads in (1, 2, 3, 4, 2, 1):
        torch.set_num_threads(threads)
        results.append(problem.call(il.meta_grad, backend="fused"))
    assert all(same_bits(results[0], result) for result in results[1:])


def test_bits_do_not_depend_on_other_callers():
    """Eight Python threads at once, each with its own problem, get what each gets alone."""
    problems = [random_problem(seed, tasks=40) for seed in range(8)]
    torch.set_num_threads(2)
    alone = [problem.call(il.meta_grad, backend="fused") for problem in problems]
    barrier = threading.Barrier(len(problems))
    wrong = []

    def call(index):
        barrier.wait()
        for _ in range(100):
            result = problems[index].call(il.meta_grad, backend="fused")
            if not same_bits(result, alone[index]):
                wrong.append(index)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(problems))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


# ---------------------------------------------------------------- threads


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "GOMP_parallel"),
    reason="torch has no OpenMP with GNU's interface here",
)
def test_layers_work_on_the_threads_that_torch_has():
    """A pool beside OpenMP's would share every core with threads that spin."""
    code = """
import os
from torch import nn
norm = nn.BatchNorm2d(16, track_running_stats=False)
net = nn.Sequential(nn.Conv2d(3, 16, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(16 * 144, 2))
maml = il.MAML(net, inner_lr=0.1, steps=1, loss="cross_entropy")
data = torch.randn(4, 8, 3, 14, 14), torch.randint(2, (4, 8))
torch.randn(1 << 20).exp_()
before = set(os.listdir("/proc/self/task"))
maml(data, data)
print(maml.backend, len(before), len(set(os.listdir("/proc/self/task")) - before))
"""
    backend, had, new = python(code).split()
    assert backend == "batched"
    assert int(had) > 1
    assert int(new) == 0


# ---------------------------------------------------------------- forks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_works_in_a_forked_child():
    """The parent's pool exists and its threads do not: the child starts its own."""
    output = python(
        """
import os, sys
before = call()
pid = os.fork()
if pid == 0:
    torch.set_num_threads(2)
    same = all(torch.equal(call().grad[k], before.grad[k]) for k in params)
    os._exit(0 if same else 7)
_, status = os.waitpid(pid, 0)
after = call()
assert all(torch.equal(after.grad[k], before.grad[k]) for k in params)
print(os.waitstatus_to_exitcode(status))
"""
    )
    assert output.strip() == "0"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_works_after_a_fork_in_the_middle_of_calls():
    """Another thread may hold the pool's locks when the process forks."""
    output = python(
        """
import os, threading, warnings
warnings.simplefilter("ignore")  # Python 3.12 warns about forking with threads
stop = threading.Event()
def busy():
    while not stop.is_set():
        call()
threads = [threading.Thread(target=busy) for _ in range(3)]
for thread in threads:
    thread.start()
codes = []
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        _native.native().workspace_bytes()
        call()
        os._exit(0)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
stop.set()
for thread in threads:
    thread.join()
print(sum(codes))
"""
    )
    assert output.strip() == "0"


def child(connection):
    """Sends the sum of the losses of a small problem."""
    result = random_problem(3, tasks=20).call(il.meta_grad, backend="fused")
    connection.send(float(result.loss.sum()))
    connection.close()


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(
    "method", sorted({"fork", "spawn"} & {*multiprocessing.get_all_start_methods()})
)
def test_works_under_multiprocessing(method):
    """As in a data loader or a pool of workers."""
    torch.set_num_threads(2)
    expected = float(random_problem(3, tasks=20).call(il.meta_grad, backend="fused").loss.sum())
    context = multiprocessing.get_context(method)
    mine, theirs = context.Pipe()
    process = context.Process(target=child, args=(theirs,))
    process.start()
    assert mine.poll(120), "the child did not answer"
    assert mine.recv() == expected
    process.join(timeout=60)
    assert process.exitcode == 0


class Adapted(torch.utils.data.Dataset):
    """Items that a worker of a data loader computes with the operations."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        """The losses of one problem."""
        return random_problem(index, tasks=3).call(il.meta_grad, backend="fused").loss


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(
    "method", sorted({"fork", "spawn"} & {*multiprocessing.get_all_start_methods()})
)
def test_works_in_the_workers_of_a_data_loader(method):
    """Called before the workers start, in them, and on what they hand over in shared memory."""
    want = [Adapted()[i] for i in range(4)]
    loader = torch.utils.data.DataLoader(
        Adapted(), batch_size=None, num_workers=2, multiprocessing_context=method
    )
    got = list(loader)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    model = il.MLP([1, 2, 1])
    x = torch.stack(got)[..., None].to(torch.float32)
    assert il.predict(model.init(), x, model=model).shape == x.shape


# ---------------------------------------------------------------- memory


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads /proc/self/statm")
def test_memory_does_not_grow():
    """10 000 calls of several sizes after a warm-up: less than 2 MB more, and no bytes per call."""
    output = python(
        """
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
small = il.MLP([1, 4, 1])
leaves = small.init()
def round_of_calls(i):
    n = 1 + i % 7
    side = (x[:n, :, :1], y[:n])
    il.meta_grad(leaves, side, side, model=small, inner_lr=0.1, steps=i % 3)
    il.hvp(leaves, side, leaves, model=small)
    il.adapt(leaves, side, model=small, inner_lr=0.1, steps=1)
    try:
        il.predict(leaves, x, model=small)
    except ValueError:
        pass
    total = il.meta_loss(tracked, side, side, model=small, inner_lr=0.1, steps=1).sum()
    total.backward()
tracked = {k: v.clone().requires_grad_() for k, v in leaves.items()}
for i in range(300):
    round_of_calls(i)
call()
before = resident()
for i in range(2000):
    round_of_calls(i)
print(resident() - before, _native.native().workspace_bytes())
"""
    )
    grown, workspace = (int(word) for word in output.split())
    assert grown < 2 << 20
    assert workspace < 64 << 20


def test_workspace_is_kept_and_given_back():
    cpu = _native.native()
    cpu.release_workspace()
    assert cpu.workspace_bytes() == 0
    random_problem(1, tasks=9).call(il.meta_grad, backend="fused")
    assert cpu.workspace_bytes() > 0
    cpu.release_workspace()
    assert cpu.workspace_bytes() == 0
