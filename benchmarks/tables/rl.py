"""Tables of meta-RL: sampling beside gymnasium's vector environments, and iterations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tables.formatting import Run, markdown, milliseconds, of_kind, ratio


def rl(runs: Sequence[Run]) -> str:
    """Both tables, and what they were taken with."""
    found = of_kind(runs, "rl")
    if not found:
        return ""
    sizes, versions = found[0]["sizes"], found[0]["versions"]
    taken = (
        f"{sizes['tasks']} tasks × {sizes['rollouts']} rollouts × {sizes['horizon']} steps; MuJoCo "
        f"{versions['mujoco']}, gymnasium {versions['gymnasium']}; medians."
    )
    return "\n\n".join([_sampling(found), _iterations(found), taken])


def _sampling(runs: Sequence[Run]) -> str:
    """Thousands of control steps a second, and how many times those of gymnasium."""
    rows = []
    for run in runs:
        threads = run["environment"]["threads"]
        for row in run["sampling"]:
            seconds = row["seconds_per_step"]
            vectors = list(row["times"]["step"])
            share = row.get("physics_share")
            rows.append(
                [
                    f"{row['family']}, {threads} thread(s)",
                    *(_rate(seconds[name]) for name in ("step", "collect")),
                    *(
                        f"{_rate(seconds[name])} ({name.rpartition(' ')[2]})"
                        for name in (_best(row, vectors, "Async"), _best(row, vectors, "Sync"))
                    ),
                    ratio(row["times"]["step"][_best(row, vectors, "Async")]),
                    ratio(row["times"]["step"][row["best"]]),
                    "-" if share is None else f"{share['step']:.0%}, {share['collect']:.0%}",
                ]
            )
    header = ["thousand control steps a second", "`step`", "`collect`", "AsyncVectorEnv (lanes)"]
    header += ["SyncVectorEnv (lanes)", "`step` to Async", "to the best", "physics in either"]
    return markdown(header, rows)


def _best(row: dict[str, Any], vectors: Sequence[str], kind: str) -> str:
    """The fastest vector environment of a kind."""
    seconds = row["seconds_per_step"]
    return min(
        (name for name in vectors if name.startswith(kind)), key=lambda n: seconds[n]["median_s"]
    )


def _rate(spread: dict[str, Any]) -> str:
    """Thousands a second."""
    return f"{1e-3 / spread['median_s']:.3g}"


def _iterations(runs: Sequence[Run]) -> str:
    """Seconds of an iteration and of its parts."""
    rows = [
        [
            f"{row['algorithm']}, {row['family']}, {run['environment']['threads']} thread(s)",
            *(
                milliseconds(row[part]["median_s"])
                for part in ("seconds", "sampling_seconds", "learning_seconds")
            ),
        ]
        for run in runs
        for row in run["iterations"]
    ]
    return markdown(["an iteration", "in all", "sampling", "learning"], rows)
