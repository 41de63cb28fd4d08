"""`innerloop.bounds.report` along both training runs: what the non-convex bounds certify here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from innerloop.bounds import Report, report
from innerloop.runs.files import write_bytes
from innerloop.runs.methods import JOINT, LABELS, MAML
from innerloop.studies.sinusoid.settings import LOSS, Settings
from innerloop.studies.sinusoid.training import initial_state, network, unflatten
from innerloop.studies.sinusoid.waves import draw_waves

FILE = "certificates.txt"
CERTIFIED = (JOINT, MAML)
TASKS = 64


def certify(settings: Settings, trained: dict[str, torch.Tensor]) -> dict[str, Report]:
    """One report for joint training and one for MAML, for the samples that training used.

    The constants are maxima over the shared start, the method's trained network, and the points
    that inner steps reach from both.
    """
    model = network(settings)

    def sampler(count: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        waves = draw_waves(rng, count, settings.shots, 2 * settings.shots)
        x, y = zip(waves.support, waves.query, strict=True)
        return torch.cat(x, 1), torch.cat(y, 1)

    return {
        method: report(
            model,
            unflatten(model, initial_state(settings).theta),
            sampler,
            inner_lr=settings.inner_lr,
            samples=settings.shots,
            queries=settings.shots,
            steps=settings.steps,
            loss=LOSS,
            tasks=TASKS,
            batch=settings.meta_batch,
            budget=float(settings.iterations * settings.meta_batch * 2 * settings.shots),
            trajectory=[unflatten(model, trained[method])],
            seed=settings.seed,
        )
        for method in CERTIFIED
    }


def certificates_document(reports: dict[str, Report]) -> dict[str, Any]:
    """All numbers of the reports, by the method whose run they rest on."""
    return {method: made.to_dict() for method, made in reports.items()}


def write_certificates(folder: Path, reports: dict[str, Report]) -> Path:
    """The full texts as one file; returns its path."""
    parts = [
        f"Along the run of {LABELS[method]}\n\n{made.explain()}\n"
        for method, made in reports.items()
    ]
    content = ("\n" + "=" * 96 + "\n\n").join(parts).encode()
    write_bytes(folder / FILE, content)
    return folder / FILE


def certificates_sentence(settings: Settings, reports: dict[str, Report]) -> str:
    """What the bounds make of the budget that training used."""
    samples = settings.iterations * settings.meta_batch * 2 * settings.shots
    budget = f"{samples:.2g}".replace("e+0", "e")
    vacuous = [LABELS[method] for method, made in reports.items() if made.vacuous]
    if vacuous:
        return (
            f"The non-convex bounds of innerloop.bounds do not decide at {budget} samples: with "
            f"the constants met by {' and by '.join(vacuous)} they cannot be seen to fall below "
            "the gradient at the start."
        )
    better = {made.comparison.better for made in reports.values()}
    if len(better) > 1:
        return (
            f"The non-convex bounds disagree at {budget} samples, depending on whose run is used."
        )
    standing = " and ".join(sorted({made.standing for made in reports.values()}))
    return (
        f"At {budget} samples the smaller ({standing}) certificate is that of "
        f"{'MAML' if better == {'maml'} else 'joint training'}."
    )
