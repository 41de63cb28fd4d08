"""Where a visit computes, and how it times. A rehearsal without a GPU changes what stands here."""

from __future__ import annotations

import gc
import os
import sys
from typing import Any

DEVICE = "cuda"
BUDGET_S = 0.25  # of timing one call in one way
STAND_IN = "FIRST_CONTACT_STAND_IN"  # names the folder of a rehearsal


def enter() -> None:
    """To be called before anything else of a step: lets a rehearsal put its stand-ins in place."""
    if folder := os.environ.get(STAND_IN):
        sys.path.insert(0, folder)
        import stand_in  # type: ignore[import-not-found]

        stand_in.install()


def problem_of(name: str) -> Any:
    """The float32 problem of a case, on the device."""
    import torch

    from cases.cuda import CUDA_CASES
    from cases.nine import make_problem

    return make_problem(CUDA_CASES[name], torch.float32, 0, DEVICE)


def free() -> None:
    """Gives memory of what is not referred to any more back to the card."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()


def short(error: BaseException) -> str:
    """An error on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:400]
