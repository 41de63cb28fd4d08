"""The float64 answers of the cases, computed once on the card while the kernels are built."""

from __future__ import annotations

from typing import Any

from contact import place
from contact.record import WORK, present_sources


def run() -> None:
    """Those of every case, cheap ones first, each in a file of its own."""
    from cases.cuda import CUDA_CASES

    for name in CUDA_CASES:
        expected(name)


def expected(name: str) -> list[Any]:
    """The answer of a case: from its file, or computed and kept."""
    import numpy as np

    from cases.reference import reference
    from measure.rival import save_expected

    path = WORK / "references" / f"{present_sources()}-{name}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npz")
        save_expected(reference(place.problem_of(name)), partial)
        partial.replace(path)
        place.free()
    with np.load(path) as stored:
        return [stored[key] for key in stored.files]
