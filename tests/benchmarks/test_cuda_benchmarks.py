"""What of the GPU benchmarks needs no GPU: cases, counts of bytes, clocks, rivals on the CPU."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from innerloop import _native

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"

pytestmark = [
    pytest.mark.skipif(not FOLDER.is_dir(), reason="benchmarks/ is not part of this checkout"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning"),
]
SIZES = {
    "sinusoid": (25, 1),
    "sinusoid-5": (25, 5),
    "sinusoid-1000": (1000, 1),
    "sinusoid-16384": (16384, 1),
    "omniglot-fc": (32, 1),
    "omniglot-fc-5": (32, 5),
    "omniglot-fc-512": (512, 1),
    "linear": (4096, 1),
    "linear-million": (1_000_000, 1),
    "wide": (64, 5),
    "wide-1024": (1024, 5),
    "policy": (40, 1),
    "hvp": (1000, 0),
    "hvp-omniglot": (32, 0),
}


def tiny(name: str) -> Any:
    """A case of the GPU with two tasks and few rows."""
    from cases.cuda import CUDA_CASES

    case = CUDA_CASES[name]
    return replace(case, tasks=2, support=min(case.support, 6), query=min(case.query, 7))


def test_cases_have_the_sizes_of_the_gpu() -> None:
    from cases.cuda import CUDA_CASES

    assert {n: (c.tasks, c.steps) for n, c in CUDA_CASES.items()} == SIZES
    policy = CUDA_CASES["policy"]
    assert (policy.widths, policy.activation) == ((17, 64, 64, 6), "tanh")
    assert (policy.support, policy.query) == (4000, 4000)


@pytest.mark.parametrize("name", ["linear-million", "wide-1024", "policy", "hvp"])
def test_torch_rivals_agree_at_tiny_sizes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, the compiled one run as it is."""
    import baselines
    from baselines import compiled
    from cases.nine import make_problem
    from cases.reference import disagreement, numbers, reference

    def eager(function: Any, arguments: Any, names: list[str]) -> Any:
        losses, leaves = function(*arguments)
        return lambda: (losses, [leaves[name] for name in names])

    monkeypatch.setattr(compiled, "compiled_call", eager)
    problem = make_problem(tiny(name), torch.float64)
    expected = reference(problem, tasks_at_once=1)
    for rival in ("innerloop", "torch_func", "torch_compile", "bmm", "autograd_loop"):
        module = baselines.load(rival)
        if module.missing() is not None:
            continue
        assert module.unfit(problem.case, "cuda") is None
        for formulation, build in module.formulations(problem).items():
            assert disagreement(numbers(build()()), expected) < 1e-11, (rival, formulation)


@pytest.mark.parametrize("name", ["sinusoid-5", "omniglot-fc-512", "policy", "hvp-omniglot"])
def test_jax_agrees_at_tiny_sizes(name: str) -> None:
    """In float32 on the CPU; 1e-4 is what is asked of every rival before it is timed."""
    import baselines
    from cases.nine import make_problem
    from cases.reference import disagreement, numbers, reference

    module = baselines.load("jax_jit")
    if module.missing() is not None:
        pytest.skip(f"JAX: {module.missing()}")
    problem = make_problem(tiny(name))
    expected = reference(problem)
    for formulation, build in module.formulations(problem).items():
        assert disagreement(numbers(build()()), expected) < 1e-4, formulation


def test_loops_and_graphs_are_left_out_where_they_do_not_fit() -> None:
    import baselines
    from cases.cuda import CUDA_CASES

    loop, graph = (baselines.load(name) for name in ("autograd_loop", "innerloop_graph"))
    assert "one task after another" in loop.unfit(CUDA_CASES["linear-million"], "cuda")
    assert loop.unfit(CUDA_CASES["linear-million"], "cpu") is None
    assert graph.unfit(CUDA_CASES["linear"], "cpu") == "CUDA graphs need a GPU"
    for name in ("innerloop_graph", "innerloop_tf32"):
        assert name in baselines.NAMES_ON["cuda"]
        assert name not in baselines.NAMES_ON["cpu"]
    assert baselines.facts("torch_func", "cuda")["library"]
    assert not baselines.facts("torch_func", "cpu")["library"]


@pytest.mark.parametrize("name", ["sinusoid-5", "hvp"])
def test_calls_to_capture_are_the_public_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs apart: what would be captured computes the case, tf32 or not."""
    import baselines
    from baselines import innerloop_graph_baseline, innerloop_tf32_baseline
    from cases.nine import make_problem
    from cases.reference import disagreement, numbers, reference

    problem = make_problem(tiny(name), torch.float64)
    for module in (innerloop_graph_baseline, innerloop_tf32_baseline):
        if module.missing() is not None:
            pytest.skip(f"innerloop: {module.missing()}")
        monkeypatch.setattr(module, "captured", lambda call: call)
        (build,) = module.formulations(problem).values()
        assert disagreement(numbers(build()()), reference(problem)) < 1e-11
    assert baselines.load("innerloop_tf32").TOLERANCE > 1e-4


def test_each_rival_has_settings_with_cuda_graphs() -> None:
    import baselines

    assert list(baselines.load("torch_func").settings("cuda")) == ["eager", "CUDA graph"]
    assert list(baselines.load("torch_compile").settings("cuda")) == [
        "reduce-overhead",
        "max-autotune",
    ]
    assert next(iter(baselines.load("bmm").settings("cuda"))) == "CUDA graph"
    assert "default" in baselines.load("jax_jit").settings("cuda")


def test_least_bytes_by_hand() -> None:
    from cases import traffic
    from cases.cuda import CUDA_CASES

    linear, hvp, fc = (CUDA_CASES[name] for name in ("linear", "hvp", "omniglot-fc"))
    # per task 32 rows of 16 inputs and a target, two losses; 16 weights in and 16 out
    assert traffic.least_bytes(linear) == 4096 * (32 * 17 + 2) * 4 + 2 * 16 * 4
    assert traffic.least_bytes(hvp) == 1000 * (10 * 2 + 3 * 1761) * 4
    # labels are int64
    assert traffic.least_bytes(fc) == (32 * 80 * (784 * 4 + 8) + 4 * (2 * fc.parameters() + 2 * 32))
    assert traffic.least_bytes(linear, 8) == 2 * traffic.least_bytes(linear)


def test_schedules_add_their_sums() -> None:
    from cases import traffic
    from cases.cuda import CUDA_CASES

    case = CUDA_CASES["omniglot-fc"]
    schedule = {"blocks": 10, "tasks_per_block": 3, "workspace_bytes": 1000}
    sums = 2 * 10 * case.parameters() * 4
    assert traffic.schedule_bytes(case, schedule) == traffic.least_bytes(case) + sums


def test_clock_waits_for_the_last_call_of_a_block() -> None:
    from measure.timing import Clock, LocalRival, seconds_of

    seen: list[int] = []
    calls = iter(range(1000))
    clock = Clock(seen.append)
    assert clock.block(lambda: next(calls), 5) > 0
    assert seen == [4]
    assert seconds_of(lambda: next(calls), clock)[0] == 5
    assert seen == [4, 5]
    LocalRival(lambda: next(calls), clock).block(3, 0.0)
    assert seen == [4, 5, 8]


def test_card_is_read_from_nvidia_smi() -> None:
    from measure import gpu

    line = "NVIDIA H100 80GB HBM3, 580.1, 345, 2619, 1980, 2619, 31, 71.5, 700.00, Disabled\n"
    found = gpu.parsed(line)
    assert found["name"] == "NVIDIA H100 80GB HBM3"
    assert (found["driver"], found["sm_mhz"], found["most_sm_mhz"]) == ("580.1", 345.0, 1980.0)
    assert gpu.parsed(line.replace("71.5", "[N/A]"))["watts"] is None


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_peak_kernel_is_multiply_adds(tmp_path: Path) -> None:
    """Eight chains per turn survive the compiler."""
    from measure import gpu

    source = tmp_path / "peak.cu"
    source.write_text(gpu.FMA_SOURCE)
    subprocess.run(
        ["nvcc", "-arch=sm_90", "-ptx", str(source), "-o", str(tmp_path / "peak.ptx")], check=True
    )
    chains = (tmp_path / "peak.ptx").read_text().count("fma.rn.f32")
    assert chains >= gpu.SUMS
    assert chains % gpu.SUMS == 0


@pytest.mark.skipif(not _native.cuda_reason(), reason="there is a GPU")
@pytest.mark.parametrize("what", ["sinusoid", "everything"])
def test_without_a_gpu_the_command_says_why(what: str, tmp_path: Path) -> None:
    import run

    target = tmp_path / "found.json"
    with pytest.raises(SystemExit, match="--device cuda: nothing was run: torch"):
        run.main([what, "--device", "cuda", "--out", str(target)])
    assert not target.exists()


def test_search_for_the_most_tasks() -> None:
    from routines.capacity import CALL_LIMIT_S, MOST_TASKS, is_full, search

    tried: list[int] = []

    def card(limit: int, slow: int = 1 << 30) -> Any:
        tried.clear()

        def seconds(tasks: int) -> float | None:
            tried.append(tasks)
            if tasks > limit:
                return None
            return 2 * CALL_LIMIT_S if tasks >= slow else 0.5

        return seconds

    found = search(card(1000))
    assert found["ended"] == "memory"
    assert found["tasks"] <= 1000 < found["full_at"] <= 1.13 * found["tasks"]
    assert search(card(10)) == {"tasks": 0, "seconds": 0.0, "full_at": 64, "ended": "memory"}
    assert search(card(1 << 40, slow=256))["tasks"] == 256
    assert tried == [64, 128, 256]
    assert search(card(1 << 40))["tasks"] == MOST_TASKS
    assert is_full(RuntimeError("CUDA out of memory. Tried to allocate"))
    assert is_full(ValueError("RESOURCE_EXHAUSTED: Out of memory while trying"))
    assert not is_full(ValueError("bad shape"))


def test_capacity_repeats_tasks() -> None:
    from cases.nine import make_problem
    from routines.capacity import repeated

    base = make_problem(tiny("omniglot-fc"))
    many = repeated(base, 5)
    assert many.case.tasks == 5
    assert many.support[0].shape == (5, 5, 784)
    assert torch.equal(many.query[1][3], base.query[1][1])


def test_memory_formula_counts_results_and_scratch() -> None:
    from cases.cuda import CUDA_CASES
    from routines.device_memory import formula_bytes

    case = CUDA_CASES["sinusoid-5"]
    # 25 losses, 125 support losses, 1761 gradients and one of the rate, each rounded up
    found = formula_bytes(case, {"scratch_bytes": 1000})
    assert found == 1024 + 512 + 512 + 7168 + 512


def test_resuming_keeps_runs_of_the_same_device(tmp_path: Path) -> None:
    import run

    here = {"threads": 16, "dtype": "float32"}
    found = [
        {"kind": "cuda-speed", "case": "linear", "environment": {**here, "device": "cuda"}},
        {"kind": "capacity", "environment": {**here, "device": "cuda"}},
        {"kind": "speed", "case": "linear", "environment": here},  # of before there were devices
    ]
    target = tmp_path / "found.json"
    target.write_text(json.dumps({"runs": found}))
    assert run.kept_runs(target, "float32", "cuda") == found[:2]
    assert run.kept_runs(target, "float32", "cpu") == found[2:]
    assert run.kept_runs(target, "float64", "cuda") == []
