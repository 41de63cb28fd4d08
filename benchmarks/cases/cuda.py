"""The cases taken on a GPU: those of the CPU, and larger ones."""

from __future__ import annotations

from dataclasses import replace

from cases.nine import CASES, Case


def _on_gpu(start: str, name: str = "", **changes: int) -> Case:
    """A case of the CPU's under its own or another name."""
    return replace(CASES[start], name=name or start, reported="", **changes)


CUDA_CASES: dict[str, Case] = {
    case.name: case
    for case in (
        _on_gpu("sinusoid"),
        _on_gpu("sinusoid-5"),
        _on_gpu("sinusoid-1000"),
        _on_gpu("sinusoid-1000", "sinusoid-16384", tasks=16384),
        _on_gpu("omniglot-fc"),
        _on_gpu("omniglot-fc-5"),
        _on_gpu("omniglot-fc", "omniglot-fc-512", tasks=512),
        _on_gpu("linear"),
        _on_gpu("linear", "linear-million", tasks=1_000_000),
        _on_gpu("wide"),
        _on_gpu("wide", "wide-1024", tasks=1024),
        # Sizes of a policy network adapted to as many samples as reinforcement learning collects.
        Case(
            name="policy",
            widths=(17, 64, 64, 6),
            loss="mse",
            tasks=40,
            support=4000,
            query=4000,
            steps=1,
            data="linear",
            activation="tanh",
            inner_lr=0.1,
        ),
        _on_gpu("hvp"),
        _on_gpu("hvp-omniglot"),
    )
}
CASES_ON: dict[str, dict[str, Case]] = {"cpu": CASES, "cuda": CUDA_CASES}
