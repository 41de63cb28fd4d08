"""`innerloop.bounds.report` along both training runs: what the non-convex bounds certify here."""

from __future__ import annotations

import dataclasses
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


@dataclasses.dataclass(frozen=True)
class Certificates:
    """What the bounds say along the runs of `CERTIFIED`.

    Args:
        reports: by method.
        missing: why a method has no report, where training or inner steps run so far off that the
            constants leave the range of the formulas.
    """

    reports: dict[str, Report]
    missing: dict[str, str]


def certify(settings: Settings, trained: dict[str, torch.Tensor]) -> Certificates:
    """One report for joint training and one for MAML, for the samples that training used.

    The constants are maxima over the shared start, the method's trained network, and the points
    that inner steps reach from both.
    """
    model = network(settings)

    def sampler(count: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        waves = draw_waves(rng, count, settings.shots, 2 * settings.shots)
        x, y = zip(waves.support, waves.query, strict=True)
        return torch.cat(x, 1), torch.cat(y, 1)

    made = Certificates({}, {})
    for method in CERTIFIED:
        try:
            made.reports[method] = report(
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
        except (ValueError, OverflowError) as error:
            made.missing[method] = str(error.args[-1])
    return made


def certificates_document(certificates: Certificates) -> dict[str, Any]:
    """All numbers of the reports, by the method whose run they rest on."""
    return {
        **{method: made.to_dict() for method, made in certificates.reports.items()},
        **{method: {"missing": reason} for method, reason in certificates.missing.items()},
    }


def write_certificates(folder: Path, certificates: Certificates) -> Path:
    """The full texts as one file; returns its path."""
    parts = [
        f"Along the run of {LABELS[method]}\n\n{made.explain()}\n"
        for method, made in certificates.reports.items()
    ]
    parts += [f"{_missing(method, reason)}\n" for method, reason in certificates.missing.items()]
    content = ("\n" + "=" * 96 + "\n\n").join(parts).encode()
    write_bytes(folder / FILE, content)
    return folder / FILE


def _missing(method: str, reason: str) -> str:
    return (
        f"The non-convex bounds of innerloop.bounds cannot be evaluated along the run of "
        f"{LABELS[method]} ({reason})."
    )


def certificates_sentence(settings: Settings, certificates: Certificates) -> str:
    """What the bounds make of the budget that training used."""
    if certificates.missing:
        return " ".join(_missing(method, why) for method, why in certificates.missing.items())
    reports = certificates.reports
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
