"""NVIDIA's tools over our kernels: the sanitizers on the smoke set, the profiler on two cases."""

from __future__ import annotations

import csv
import io
import os
import re
import subprocess
import sys
from typing import Any

from contact.record import Step
from measure.environment import RUN

SANITIZERS = ("memcheck", "racecheck", "synccheck")
PROFILED = ("sinusoid-1000", "wide")
END_S = 20.0  # for a sanitizer to start Python, to let the last cell end, and to say what it saw
SECTIONS = ("SpeedOfLight", "Occupancy", "LaunchStats", "WarpStateStats", "MemoryWorkloadAnalysis")
ERRORS = re.compile(r"ERROR SUMMARY: (\d+) errors?")
HAZARDS = re.compile(r"RACECHECK SUMMARY: (\d+) hazards? displayed \((\d+) errors?, (\d+) warn")
PASSED = re.compile(r"^cell .*'ok': True", re.MULTILINE)
COMMAND = [sys.executable, str(RUN), "contact"]


def captured_output(command: list[str], limit_s: float, **variables: str) -> tuple[int, str]:
    """(status, output) of a command; 124 if it had to be ended, with what it had said till then."""
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=limit_s,
            env={**os.environ, **variables},
        )
        return done.returncode, done.stdout.decode(errors="replace")
    except subprocess.TimeoutExpired as late:
        return 124, (late.stdout or b"").decode(errors="replace")


def sanitize(step: Step, limit_s: float) -> None:
    """Runs the smoke set under the sanitizer of the step's name. Every tensor has an allocation of
    its own, or torch's allocator would hide what lies behind it."""
    command = ["compute-sanitizer", "--tool", step.name, "--print-limit", "20"]
    watched = [*COMMAND, "under-a-tool", str(limit_s - END_S)]
    status, text = captured_output(
        [*command, *watched], limit_s, PYTORCH_NO_CUDA_MEMORY_CACHING="1"
    )
    for key, value in read_sanitizer(status, text).items():
        step.put(key, value)
    print(text[-20_000:])
    if "errors" not in step.result:
        raise SystemExit(f"{step.name} ended with status {status} and without a summary")


def read_sanitizer(status: int, text: str) -> dict[str, Any]:
    """What a sanitizer's output says: errors, warnings, cells that passed, the first complaints."""
    found: dict[str, Any] = {"status": status, "cells": len(PASSED.findall(text))}
    if hazards := HAZARDS.search(text):
        found |= {"errors": int(hazards.group(2)), "warnings": int(hazards.group(3))}
    elif errors := ERRORS.search(text):
        found["errors"] = int(errors.group(1))
    lines = [line for line in text.splitlines() if line.startswith("=========")]
    if found.get("errors") or found.get("warnings"):
        found["complaints"] = lines[:60]
    return found


def profile(step: Step, limit_s: float) -> None:
    """Counters of the tasks' kernel in two cases."""
    for case in PROFILED:
        if step.result.get(case, {}).get("metrics"):
            continue
        command = ["ncu", "--clock-control", "none", "--csv", "--page", "details"]
        command += [part for section in SECTIONS for part in ("--section", section)]
        command += ["-k", "regex:task_kernel", "-s", "1", "-c", "1"]
        status, text = captured_output([*command, *COMMAND, "once", case], limit_s / len(PROFILED))
        step.put(case, {"status": status, "metrics": read_profile(text), "said": text[-1500:]})
    if not any(found["metrics"] for found in step.result.values()):
        raise SystemExit("ncu read no counters")


def read_profile(text: str) -> dict[str, str]:
    """{section, metric: value with its unit} of ncu's CSV, which other output may precede."""
    start = text.find('"ID"')
    if start < 0:
        return {}
    rows = csv.DictReader(io.StringIO(text[start:]))
    return {
        f"{row['Section Name']}, {row['Metric Name']}": " ".join(
            (row["Metric Value"], row["Metric Unit"] or "")
        ).strip()
        for row in rows
        if row.get("Metric Value") and row.get("Metric Name")
    }


def once(case: str) -> None:
    """Calls a case three times and does nothing else."""
    from baselines import innerloop_baseline
    from contact import place
    from measure.device_timing import EventClock

    call = next(iter(innerloop_baseline.formulations(place.problem_of(case)).values()))()
    EventClock().block(call, 3)
