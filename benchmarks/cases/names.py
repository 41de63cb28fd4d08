"""The cases of each device by name, in the order of the tables; run.py must not import torch."""

from __future__ import annotations

CASE_NAMES: dict[str, tuple[str, ...]] = {
    "cpu": (
        "sinusoid",
        "sinusoid-5",
        "sinusoid-1000",
        "omniglot-fc",
        "omniglot-fc-5",
        "linear",
        "wide",
        "hvp",
        "hvp-omniglot",
    ),
    "cuda": (
        "sinusoid",
        "sinusoid-5",
        "sinusoid-1000",
        "sinusoid-16384",
        "omniglot-fc",
        "omniglot-fc-5",
        "omniglot-fc-512",
        "linear",
        "linear-million",
        "wide",
        "wide-1024",
        "policy",
        "hvp",
        "hvp-omniglot",
    ),
}
