"""What a sweep found, in plain words: who wins where, and whether theory says the same."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from innerloop.studies.linear_regression.agreement import Array, Region, clear
from innerloop.studies.linear_regression.result import Sweep


@dataclasses.dataclass(frozen=True)
class Verdict:
    """`headline` is one line, `reasons` are the sentences that support it."""

    headline: str
    reasons: list[str]


def conclude(sweep: Sweep, regions: list[Region]) -> Verdict:
    """Counts of the cells (M, N, alpha) that each method wins, at every rate but 0.

    Args:
        sweep: the finished sweep.
        regions: its agreement with the theory; empty without a prediction.
    """
    settings = sweep.settings
    rates = np.flatnonzero(np.array(settings.inner_lrs) != 0.0)
    at = rates if len(rates) else slice(None)
    after = _counts(sweep.maml_better_after[:, :, at], settings.trials)
    before = _counts(sweep.maml_better_before[:, :, at], settings.trials)
    headline = (
        f"After one gradient step MAML wins most trials in {after[0]} of {sum(after)} cells "
        f"(M, N, rate), pooled least squares in {after[1]}; {after[2]} are too close to call."
    )
    reasons = [
        f"Before any step it is {before[0]} against {before[1]}, with {before[2]} too close to "
        "call. A cell is called where the share of trials that MAML wins is further than two "
        f"standard errors of {settings.trials} trials from one half."
    ]
    if sweep.prediction is not None:
        named, called, gap, noise = fit(sweep, regions)
        normal = int(np.isnan(sweep.prediction.error_after).sum())
        law = "the exact law, Result 10a" + f"; Result 10 in {normal} cells" * (normal > 0)
        reasons.append(
            f"Theory ({law}) names the winner in {named} of {called} cells that are called, before "
            f"and after the step. Its probabilities and the shares differ by {gap:.4f} on average; "
            f"chance alone makes about {noise:.4f}."
        )
    return Verdict(headline, reasons)


def _counts(shares: Array, trials: int) -> tuple[int, int, int]:
    """Cells that MAML wins, that joint training wins, and others."""
    called = clear(shares, trials)
    won = int((called & (shares > 0.5)).sum())
    return won, int(called.sum()) - won, int((~called).sum())


class Fit(NamedTuple):
    """Theory against simulation in both maps: called cells in which theory names the winner, all
    called cells, the mean distance, and what that would be from chance alone.
    """

    named: int
    called: int
    mean: float
    noise: float


def fit(sweep: Sweep, regions: list[Region]) -> Fit:
    """The fit of a sweep that has a prediction."""
    assert sweep.prediction is not None
    simulated = np.stack([sweep.maml_better_before, sweep.maml_better_after])
    predicted = np.stack([sweep.prediction.better_before, sweep.prediction.better_after])
    called = clear(simulated, sweep.settings.trials)
    right = called & ((simulated > 0.5) == (predicted > 0.5))
    noise = sum(r.noise * r.cells for r in regions) / sum(r.cells for r in regions)
    mean = float(np.abs(simulated - predicted).mean())
    return Fit(int(right.sum()), int(called.sum()), mean, noise)
