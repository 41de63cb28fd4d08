"""Chooses how a rival runs on a problem: its fastest formulation and settings, measured here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from cases.nine import Problem
from measure.timing import HOST, Clock, rough_seconds, seconds_of


@dataclass(frozen=True)
class Tuned:
    """The call to time, how it was chosen and what each trial cost."""

    call: Callable[[], Any]
    choice: str
    first_call_s: float
    trials: list[dict[str, Any]]


class NothingRan(RuntimeError):
    """Every formulation and setting of a rival failed."""


def tune(module: ModuleType, problem: Problem, quick: bool, clock: Clock = HOST) -> Tuned:
    """The fastest way a rival has for a problem, by `clock`.

    First every formulation at the plain settings, then the other settings of the best one. With
    `quick`, only the first formulation that runs, at the plain settings. Failures are recorded.
    """
    trials: list[dict[str, Any]] = []
    best: tuple[float, Tuned] | None = None

    def attempt(formulation: str, setting: str, options: dict[str, Any]) -> None:
        nonlocal best
        trial: dict[str, Any] = {"formulation": formulation, "setting": setting}
        trials.append(trial)
        try:
            call = formulations[formulation](**options)
            _, trial["first_call_s"] = seconds_of(call, clock)
            alone = len(formulations) == 1 and len(settings) == 1
            rough = trial["first_call_s"] if alone else rough_seconds(call, clock=clock)
            trial["rough_s"] = rough
        except Exception as error:  # a rival's own failure, whatever it is, is its result
            trial["error"] = f"{type(error).__name__}: {error}"[:300]
            return
        if best is None or trial["rough_s"] < best[0]:
            tuned = Tuned(call, f"{formulation}; {setting}", trial["first_call_s"], trials)
            best = (trial["rough_s"], tuned)

    formulations = module.formulations(problem)
    settings = dict(module.settings(problem.device))
    plain, options = next(iter(settings.items()))
    for formulation in formulations:
        attempt(formulation, plain, options)
        if quick and best is not None:
            break
    if not quick and best is not None:
        chosen = best[1].choice.split("; ")[0]
        for setting, options in list(settings.items())[1:]:
            attempt(chosen, setting, options)
    if best is None:
        raise NothingRan("; ".join(trial["error"] for trial in trials))
    return best[1]
