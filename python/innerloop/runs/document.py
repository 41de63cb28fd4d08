"""Parts of every JSON document that a command writes."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from typing import Any

import numpy as np
import scipy
import torch

import innerloop as il
from innerloop.runs.statistics import Interval


def versions() -> dict[str, str]:
    """Versions of everything that computes a number."""
    return {
        "innerloop": str(il.__version__),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def digest(document: dict[str, Any]) -> str:
    """A hexadecimal SHA-256 of a JSON document, independent of key order."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def finite(value: float) -> float | None:
    """The number, or None (null in JSON) if it is infinite or NaN."""
    number = float(value)
    return number if math.isfinite(number) else None


def interval_document(interval: Interval) -> dict[str, float | None]:
    """An interval as JSON types."""
    return {
        "mean": finite(interval.mean),
        "low": finite(interval.low),
        "high": finite(interval.high),
    }
