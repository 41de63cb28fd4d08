"""learn2learn's MAML wrapper: clone, adapt, backward, one task after another.

Its 0.2.0 source build fails on recent Python versions because of compiled parts that MAML does not
use. Either install it, or unpack its source distribution and set LEARN2LEARN_SOURCE to the unpacked
folder: then only its `algorithms/maml.py` and what that imports are loaded.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from baselines.higher_baseline import module_of
from baselines.torch_func_baseline import LOSSES
from cases.nine import Case, Problem

TITLE = "learn2learn"
LIBRARY = False
SOURCE_VARIABLE = "LEARN2LEARN_SOURCE"


def maml_class() -> Any:
    """The MAML wrapper, from the installed package or from an unpacked source distribution."""
    source = os.environ.get(SOURCE_VARIABLE)
    if source is None:
        return importlib.import_module("learn2learn.algorithms.maml").MAML
    for name in ("learn2learn", "learn2learn.algorithms"):
        if name not in sys.modules:
            # A package without its __init__, which would import the parts that do not build.
            package = ModuleType(name)
            package.__path__ = [str(Path(source, *name.split(".")))]
            sys.modules[name] = package
    return importlib.import_module("learn2learn.algorithms.maml").MAML


def missing() -> str | None:
    """Why learn2learn cannot run here, or None."""
    try:
        maml_class()
    except ImportError as error:
        return f"import failed: {error} (see {SOURCE_VARIABLE} in docs/measuring.md)"
    return None


def unfit(case: Case, device: str) -> str | None:
    """MAML only."""
    return "has no Hessian-vector product" if case.quantity == "hvp" else None


def settings(device: str) -> dict[str, dict[str, Any]]:
    """Eager execution has no settings."""
    return {"eager": {}}


def _build(problem: Problem) -> Callable[[], Any]:
    case = problem.case
    maml = maml_class()(module_of(problem), lr=case.inner_lr, first_order=False)
    (xs, ys), (xq, yq) = problem.support, problem.query
    loss_of = LOSSES[case.loss]

    def call() -> Any:
        maml.zero_grad(set_to_none=True)
        losses = []
        for t in range(case.tasks):
            learner = maml.clone()
            for _ in range(case.steps):
                learner.adapt(loss_of(learner(xs[t]), ys[t]))
            query_loss = loss_of(learner(xq[t]), yq[t])
            losses.append(query_loss.detach())
            (query_loss / case.tasks).backward()
        return torch.stack(losses), [leaf.grad for leaf in maml.parameters()]

    return call


def formulations(problem: Problem) -> dict[str, Any]:
    """One formulation."""
    return {"clone and adapt": lambda: _build(problem)}
