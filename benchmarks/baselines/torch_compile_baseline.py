"""torch.compile of the torch.func versions: inductor, several modes, the fastest counts."""

from __future__ import annotations

from typing import Any

from baselines import compiled, torch_func_baseline
from cases.nine import Case, Problem

TITLE = "torch.compile of torch.func"
LIBRARY = True


def missing() -> str | None:
    """torch is always there; a missing compiler shows as an error on the first call."""
    return None


def unfit(case: Case, device: str) -> str | None:
    """torch.compile covers every case."""
    return None


def settings(device: str) -> dict[str, dict[str, Any]]:
    """Compiler modes, the default first."""
    return compiled.SETTINGS[device]


def formulations(problem: Problem) -> dict[str, Any]:
    """The functions of the eager rival, compiled."""
    arguments = torch_func_baseline.arguments(problem)
    names = list(problem.case.shapes())
    return {
        name: lambda function=function, **options: compiled.compiled_call(
            function, arguments, names, **options
        )
        for name, function in torch_func_baseline.functions(problem.case).items()
    }
