"""Tables and roofline of GPU runs, made from fabricated result files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="benchmarks/ is not part of this checkout"
)
SCHEDULE = {
    "tasks_per_block": 1,
    "threads": 128,
    "blocks": 25,
    "workspace_bytes": 60_000,
    "scratch_bytes": 200_000,
    "cycles": 5e4,
}
ENVIRONMENT = {
    "device": "cuda",
    "processor": {"model": "a processor"},
    "cpus_visible": 16,
    "threads": 16,
    "dtype": "float32",
    "versions": {"torch": "2.13.0", "jax": "0.10"},
    "commit": "abc",
    "load_average": [0.1, 0.1, 0.1],
    "load_average_after": [0.1, 0.1, 0.1],
    "gpu": {
        "name": "A card",
        "driver": "1.2",
        "cuda": "13.0",
        "capability": "9.0",
        "state_before": {"sm_mhz": 345.0, "memory_mhz": 2619.0},
        "state_after": {"sm_mhz": 1980.0, "memory_mhz": None},
        "limits": {
            "gemm_gflops": 50_000.0,
            "tf32_gemm_gflops": 400_000.0,
            "fma_gflops": 60_000.0,
            "copy_gbytes_per_s": 3000.0,
            "eager_launch_s": 4e-6,
            "graph_launch_s": 3e-6,
            "dependent_kernel_s": 1e-6,
            "round_trip_s": 1.5e-5,
        },
    },
}


def rival(title: str, library: bool, seconds: float, **extra: Any) -> dict[str, Any]:
    """A timed rival against calls of ours that take 100 and 20 microseconds."""
    ratios = {
        key: dict.fromkeys(("median", "q1", "q3"), seconds / ours)
        for key, ours in (("ratio", 1e-4), ("ratio_to_graph", 2e-5))
    }
    return {
        "title": title,
        "library": library,
        "median_s": seconds,
        "q1_s": seconds,
        "q3_s": seconds,
        "disagreement": 1e-7,
        "peak_bytes": None,
        "choice": "plain",
        **ratios,
        **extra,
    }


def speed_run(case: str, library_s: float) -> dict[str, Any]:
    """A case as run.py writes it."""
    from cases import flops, traffic
    from cases.cuda import CUDA_CASES

    found = CUDA_CASES[case]
    kernels = [{"name": "task_kernel", "launches": 1.0, "seconds": 1.5e-5}]
    return {
        "kind": "cuda-speed",
        "case": case,
        "describe": found.describe(),
        "flops": {"nominal": flops.nominal(found), "structured": flops.structured(found)},
        "least_bytes": traffic.least_bytes(found),
        "rivals": {
            "innerloop": rival("innerloop", False, 1e-4, schedule=SCHEDULE, kernels=kernels),
            "innerloop_graph": rival("innerloop in a CUDA graph", False, 2e-5),
            "jax_jit": rival("JAX", True, library_s),
            "bmm": rival("bmm", False, 4e-5),
            "autograd_loop": {"title": "loop", "library": False, "skipped": "too many tasks"},
        },
        "fastest_library": "jax_jit",
        "environment": ENVIRONMENT,
        "measured_in_s": 10.0,
    }


@pytest.fixture
def runs(tmp_path: Path) -> list[dict[str, Any]]:
    """Runs of a GPU, as read from a result file."""
    from tables import pages

    memory = {"case": "wide", "steps": 5, "title": "innerloop", "peak_bytes": 2_000_000}
    capacity = {"case": "wide", "title": "JAX", "tasks": 5000, "seconds": 0.5, "ended": "memory"}
    document = {
        "format": 1,
        "command": "python benchmarks/run.py everything --device cuda",
        "started": "2026-01-02T00:00:00Z",
        "quick": False,
        "runs": [
            speed_run("sinusoid", 2.4e-4),
            speed_run("linear", 6e-5),
            speed_run("wide", 1e-5),
            {
                "kind": "device-memory",
                "rows": [{**memory, "formula_bytes": 1_900_000}, {"case": "wide", "failed": "x"}],
                "environment": ENVIRONMENT,
            },
            {"kind": "capacity", "rows": [capacity], "environment": ENVIRONMENT},
        ],
    }
    (tmp_path / "card.json").write_text(json.dumps(document))
    return pages.newest_runs(tmp_path)


def test_speed_table_counts_the_better_of_both_calls(runs: list[dict[str, Any]]) -> None:
    from tables import cuda

    sinusoid, linear, wide = cuda.speed(runs).splitlines()[2:]
    assert "| 0.1 ms | 20 µs | 15 µs | 0.24 ms JAX | 2.4× | 12× | 2× | - |" in sinusoid
    assert "| 0.6× | 3× | 2× |" in linear
    assert "| 0.1× | 0.5× | 2× |" in wide


def test_losses_are_listed(runs: list[dict[str, Any]]) -> None:
    from tables import cuda

    assert cuda.losses(runs).splitlines() == [
        "- `wide`: slower than JAX (0.5×).",
    ]


def test_limits_use_the_card_of_the_run(runs: list[dict[str, Any]]) -> None:
    from tables import cuda

    sinusoid = cuda.limits(runs).splitlines()[2]
    # 9.96 M operations in 20 µs are 498 GFLOP/s, of 60 000
    assert "| `sinusoid` | 10.0 M |" in sinusoid
    assert "| 498 | 1% | 1% |" in sinusoid
    machine = cuda.machine(runs)
    assert "A card, sm_90 | 1.2, 13.0 | 345/2619 to 1980/- | torch 2.13.0, jax 0.10" in machine
    assert "tf32 GEMM 400.0 TFLOP/s, copy 3,000 GB/s" in machine


def test_routines_have_their_tables(runs: list[dict[str, Any]]) -> None:
    from tables import cuda

    assert "| `wide`, 5 steps | innerloop | 2 MB | 1.9 MB |" in cuda.memory(runs)
    assert "| `wide` | JAX | 5,000 | 500 ms | memory is full |" in cuda.capacity(runs)


def test_cpu_tables_ignore_a_gpu(runs: list[dict[str, Any]]) -> None:
    from tables import pages

    for name, make in pages.TABLES.items():
        text = make(runs)
        if "cuda" not in name and name not in ("device-memory", "capacity"):
            assert "sinusoid" not in text, name
            assert "card.json" not in text, name
        assert "Not run" not in text, name


def test_without_results_nothing_is_claimed() -> None:
    from tables import pages

    for name in set(pages.TABLES) - {"cuda-evidence"}:  # which says it cell by cell
        if "cuda" in name or name in ("device-memory", "capacity"):
            assert pages.TABLES[name]([]).startswith("Not run:"), name


def test_terminal_output(runs: list[dict[str, Any]]) -> None:
    from tables import pages

    for run in runs:
        complete = {**run, "measured_in_s": 1.0}
        assert "GEMM 50000.0 GFLOP/s" in pages.plain(complete)


def test_roofline_has_a_point_for_each_case(runs: list[dict[str, Any]]) -> None:
    from tables import roofline

    found = {point["case"]: point for point in roofline.points(runs)}
    assert set(found) == {"sinusoid", "linear", "wide"}
    assert found["sinusoid"]["gflops"] == pytest.approx(9.96e6 / 2e-5 / 1e9)


def test_roofline_is_drawn_where_there_are_results(
    runs: list[dict[str, Any]], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    from tables import pages, roofline

    first, second = (roofline.draw(runs, tmp_path / f"{n}.svg") for n in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_size > 2000
    pages.update(tmp_path, tmp_path)
    assert (tmp_path / pages.ROOFLINE).exists()
