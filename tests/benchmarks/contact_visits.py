"""Files of a first visit to a GPU, with made-up numbers."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

SOURCES = "0123456789ab"
SPREAD = {"median_s": 2e-5, "q1_s": 1.9e-5, "q3_s": 2.2e-5, "min_s": 1.8e-5, "samples": 5}


def step(result: dict[str, Any], state: str = "done", **changes: Any) -> dict[str, Any]:
    """A step's record as a visit writes it."""
    times = {"started": "2026-01-02T00:00:00Z", "ended": "2026-01-02T00:00:09Z", "seconds": 9}
    return {"sources": SOURCES, **times, "state": state, "reason": "", "result": result, **changes}


def visit() -> dict[str, dict[str, Any]]:
    """The steps of each file of a complete visit, with made-up numbers."""
    limits = {"gemm_gflops": 40_000.0, "fma_gflops": 50_000.0, "copy_gbytes_per_s": 2500.0}
    cells = {
        "meta_grad | free | float32 | small": {"error": 3e-7, "equal": True, "ok": True},
        "meta_grad | 3 x 40 | float32 | small": {"error": 5e-7, "equal": True, "ok": True},
        "meta_grad | free | float64 | small": {"error": 2e-15, "equal": True, "ok": True},
        "hvp | free | float32 | small": {"error": 0.5, "equal": True, "ok": False},
        "hvp | free | float32 | wide inputs": {"unfit": "RuntimeError: do not fit"},
        "hvp | 3 x 40 | float32 | small": {"failed": "RuntimeError: launch failed"},
    }
    # 50 million operations take 1 µs at 50 TFLOP/s, 2500 bytes 1 ns
    counts = {"describe": "a network", "flops": 50_000_000, "least_bytes": 2500}
    ours = {
        "sinusoid": {
            **counts,
            "schedule": {"threads": 64},
            "disagreement": 4e-7,
            "plain": {**SPREAD, "median_s": 1e-4},
            "graph": SPREAD,
        },
        "wide": {**counts, "failed": "RuntimeError: it failed"},
    }
    rivals = {
        "sinusoid": {
            "bmm": {**SPREAD, "median_s": 5e-5, "choice": "batched"},
            "jax_jit": {**SPREAD, "median_s": 8e-5, "choice": "jit"},
            "torch_compile": {"failed": "not compiled in time"},
        }
    }
    tests = {
        "complete": True,
        "files": {
            "test_cuda_operations.py": {"passed": 90, "failed": 2, "skipped": 7},
            "test_cuda_regression.py": {"passed": 40},
        },
        "failures": [{"test": "tests/cuda/test_cuda_operations.py::test_x", "text": "no"}],
    }
    clean = {"status": 0, "cells": 50, "errors": 0}
    return {
        "machine": {
            "card": step(
                {
                    "name": "A Card 80GB",
                    "capability": "9.0",
                    "commit": None,
                    "environment": {"gpu": {"limits": limits}},
                }
            ),
            "build": step({"architecture": "90", "_cuda_s": 50.0}),
        },
        "smoke": {"smoke": step(cells)},
        "ours": {"ours": step(ours)},
        "rivals": {"rivals": step(rivals)},
        "checks": {
            "tests": step(tests),
            "alone": step({"complete": True, "files": {}, "failures": []}),
            "memcheck": step(clean),
            "racecheck": step({**clean, "errors": 3, "warnings": 1}),
        },
        "tuning": {
            "schedules": step(
                {"sinusoid": {"schedules": [{"schedule": {"threads": 64}, **SPREAD}]}}
            ),
        },
    }


def put(folder: Path, files: dict[str, dict[str, Any]]) -> Path:
    """Writes a visit's files."""
    from contact.record import FORMAT

    folder.mkdir(exist_ok=True)
    for name, steps in files.items():
        text = json.dumps({"format": FORMAT, "steps": steps})
        (folder / f"{name}.json").write_text(text)
    return folder


def merged(folder: Path, results: Path, commit: str | None = "abcdef012345") -> list[Path]:
    from contact.merge import merge

    return merge(folder, results, lambda sources: commit)


def git(folder: Path, *arguments: str) -> str:
    """Runs git in a folder."""
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", "-C", str(folder), *author, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
