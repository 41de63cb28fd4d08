"""Synthetic task families for which theory says who should win."""

from __future__ import annotations

import numpy as np
import pandas as pd


def linear_family(
    tasks: int, rows: int, seed: int, *, correlated: bool, noise: float = 0.05
) -> pd.DataFrame:
    """One-dimensional linear tasks y = t x + noise.

    Correlated: x has variance t, t uniform on (0, 2), so solution and curvature agree, and MAML's
    optimum after one step differs from joint training's (law and moments: Gao and Sener 2020).
    Otherwise all tasks have variance 1 and both objectives have the same minimiser.
    """
    generator = np.random.default_rng(seed)
    slope = generator.uniform(0.0, 2.0, tasks)
    scale = np.sqrt(slope) if correlated else np.ones(tasks)
    x = generator.standard_normal((tasks, rows)) * scale[:, None]
    y = slope[:, None] * x + noise * generator.standard_normal((tasks, rows))
    return pd.DataFrame({"task": np.repeat(np.arange(tasks), rows), "x": x.ravel(), "y": y.ravel()})


def class_family(tasks: int, rows: int, seed: int) -> pd.DataFrame:
    """Two features and three classes whose centres are shifted a little from task to task."""
    generator = np.random.default_rng(seed)
    centres = np.array([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])
    parts = []
    for task in range(tasks):
        shift = 0.7 * generator.standard_normal(2)
        kind = np.arange(rows) % 3
        x = centres[kind] + shift + 0.6 * generator.standard_normal((rows, 2))
        parts.append(
            pd.DataFrame(
                {
                    "unit": f"u{task}",
                    "a": x[:, 0],
                    "b": x[:, 1],
                    "kind": np.array(["p", "q", "r"])[kind],
                }
            )
        )
    return pd.concat(parts, ignore_index=True)
