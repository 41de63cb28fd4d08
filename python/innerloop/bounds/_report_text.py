"""The report in plain words."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING

from innerloop.bounds.constants._estimate import Estimate

if TYPE_CHECKING:
    from innerloop.bounds._report import Report

_MEANINGS = {
    "L_plus": "largest curvature of a task",
    "ell": "most negative curvature of a task",
    "rho": "change of a task's Hessian per distance",
    "L_plus_s": "largest curvature of one sample",
    "ell_s": "most negative curvature of one sample",
    "rho_s": "change of one sample's Hessian",
    "G": "largest gradient of a task",
    "G2": "gradient of a task, rms over tasks",
    "mean_gradient": "gradient of the joint objective",
    "sigma_g": "gradient noise of one sample, rms",
    "sigma_H": "Hessian noise of one sample, rms",
    "sigma_gamma": "spread of the tasks' gradients, rms",
    "sigma_Hgamma": "spread of the tasks' Hessians, rms",
    "gap_drs": "joint objective at the start, above 0",
    "gap_maml": "MAML objective at the start, above 0",
}
_METHODS = {"drs": "joint training", "maml": "MAML"}
_WIDTH = 96


def describe(report: Report) -> str:
    """Returns the report as paragraphs of text, the answer first."""
    parts = [
        _title(report),
        _answer(report),
        _caveats(report),
        _certificates(report),
        _crossover(report),
        _drivers(report),
        _looseness(report),
        _constants(report),
        _reading(report),
    ]
    return "\n\n".join(part for part in parts if part)


def _wrap(text: str, indent: str = "") -> str:
    """Returns text broken into lines, each with the indent and the later ones with two more."""
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_on_hyphens=False,
    )


def _title(report: Report) -> str:
    """Returns what was examined."""
    s, c = report.problem.setting, report.comparison.setting
    return "\n".join(
        [
            "MAML or joint training? What the bounds say",
            _wrap(
                f"{s['parameters']} parameters, loss {s['loss']}; inner loop: {s['steps']} "
                f"step{'s' if s['steps'] > 1 else ''} of {s['inner_lr']:g} on {s['samples']} rows, "
                f"judged on {s['queries']}; {c['batch']} tasks per update"
            ),
            f"constants from {s['tasks']} tasks of {s['rows']} rows at {s['points']} "
            f"point{'s' if s['points'] > 1 else ''} of the run",
        ]
    )


def _answer(report: Report) -> str:
    """Returns the verdict, no stronger than what stands behind it."""
    found = report.comparison
    budget = float(found.setting["budget"])
    certificate = {"drs": found.drs.maml, "maml": found.maml.maml}
    better = found.better
    other = "drs" if better == "maml" else "maml"
    lines = ["ANSWER"]
    speaking = [method for method in _METHODS if report.says_something(method)]
    start = max(0.0, report.problem.measured["gradient2_maml_start"])
    if not speaking:
        when = "; ".join(f"{_METHODS[m]} {_from(report.informative[m])}" for m in _METHODS)
        lines.append(
            _wrap(
                f"At {budget:.4g} samples the bounds do not decide. The squared MAML gradient at "
                f"the start is {start:.3g} already, and both certificates are above that "
                f"({_METHODS['drs']} {certificate['drs']:.3g}, MAML {certificate['maml']:.3g}): "
                f"they promise less than standing still would give. They start to say something: "
                f"{when}."
            )
        )
    else:
        lines.append(
            _wrap(
                f"With {budget:.4g} samples {_METHODS[better]} has the smaller certificate for the "
                f"MAML objective: mean squared gradient at most {certificate[better]:.3g}, against "
                f"{certificate[other]:.3g} for {_METHODS[other]} and {start:.3g} at the start."
            )
        )
        if len(speaking) == 1:
            (silent,) = (method for method in _METHODS if method not in speaking)
            lines.append(
                _wrap(
                    f"The certificate of {_METHODS[silent]} says nothing here: it is above the "
                    f"value at the start ({_from(report.informative[silent])} it would not be)."
                )
            )
    lines.append(_crossing(report))
    standing = "CERTIFIED" if report.certified else "PLUG-IN, not certified"
    lines.append(f"Standing of these numbers: {standing}.")
    return "\n".join(lines)


def _crossing(report: Report) -> str:
    """Returns the predicted crossover in a sentence, with a warning where it decides nothing."""
    crossing, setting = report.crossover, report.comparison.setting
    update = setting["batch"] * (setting["samples"] + setting["queries"])
    if crossing < update:
        return "MAML has the smaller certificate at every budget of an update or more."
    if math.isinf(crossing):
        return "Joint training keeps the smaller certificate at large budgets."
    text = (
        "Predicted crossover of the certificates: joint training is ahead below about "
        f"{crossing:.3g} samples, MAML beyond"
    )
    if crossing < min(report.informative.values()):
        text += ", where neither says anything yet: not a prediction to act on"
    return _wrap(f"{text}.")


def _from(samples: float) -> str:
    """Returns from when on, in words."""
    return f"from {samples:.3g} samples on" if math.isfinite(samples) else "at no budget"


def _caveats(report: Report) -> str:
    """Returns what is known to be violated or missing."""
    return "\n".join(_wrap(f"! {text}") for text in report.problem.caveats)


def _certificates(report: Report) -> str:
    """Returns both certificates over a range of budgets, and their ingredients."""
    found, measured = report.comparison, report.problem.measured
    lines = [
        "CERTIFICATES  upper bounds on the run-averaged E|MAML gradient|^2 (Results 21-27)",
        f"  {'samples':>10} {'MAML updates':>13} {'joint training':>15} {'MAML':>11}",
    ]
    for row in report.budgets:
        lines.append(
            f"  {row.budget:>10.3g} {row.updates:>13.4g} {row.drs:>15.4g} {row.maml:>11.4g}"
        )
    for certificate in (found.drs, found.maml):
        method = certificate.method
        start = max(0.0, measured[f"gradient2_{method}_start"])
        lines.append(
            _wrap(
                f"{_METHODS[method]}: smoothness {certificate.smoothness:.4g}, initial gap "
                f"{certificate.gap:.4g}, gradient variance {certificate.variance:.4g} a task; its "
                f"own squared gradient is {start:.3g} at the start",
                "  ",
            )
        )
    offset = found.crossover.offset**2
    lines.append(
        _wrap(
            f"joint training's certificate tends to {offset:.3g} for large budgets: the modelling "
            "term (and the bias of finite supports), which no number of updates removes",
            "  ",
        )
    )
    return "\n".join(lines)


def _crossover(report: Report) -> str:
    """Returns the crossover with what limits it."""
    crossing = report.comparison.crossover
    lines = ["CROSSOVER  (Result 29)"]
    if crossing.budget.reason is not None:
        return "\n".join([*lines, _wrap(crossing.budget.reason, "  ")])
    lines.append(
        f"  at {crossing.budget:.4g} samples both certificates are {crossing.level:.3g}; "
        f"guaranteed below {crossing.guaranteed:.3g}"
    )
    if len(crossing.crossings) > 1:
        shown = ", ".join(f"{value:.3g}" for value in crossing.crossings)
        lines.append(f"  the certificates cross more than once: at {shown}; the last one counts")
    if crossing.budget < min(report.informative.values()):
        lines.append(
            _wrap(
                "both certificates promise less than standing still there, so it orders two bounds "
                "that say nothing yet",
                "  ",
            )
        )
    if math.isfinite(report.sampling_factor) and report.sampling_factor > 1.0:
        lines.append(
            _wrap(
                "two standard errors of the variance components move it by a factor of up to "
                f"{report.sampling_factor:.3g} either way; the looseness of the bounds comes on "
                "top",
                "  ",
            )
        )
    return "\n".join(lines)


def _drivers(report: Report) -> str:
    """Returns which constants dominate."""
    found = report.comparison
    rows = [
        ("joint training's certificate", found.drs.elasticities),
        ("MAML's certificate", found.maml.elasticities),
        ("the crossover", found.elasticities),
    ]
    lines = ["WHAT DOMINATES  (change in per cent for one per cent more of a constant)"]
    for what, weights in rows:
        if weights:
            leading = list(weights.items())[:4]
            shown = ", ".join(f"{name} {slope:+.2f}" for name, slope in leading)
            lines.append(f"  {what}: {shown}")
    return "\n".join(lines)


def _looseness(report: Report) -> str:
    """Returns how much larger the ingredients are than what was measured."""
    if not report.looseness:
        return ""
    lines = ["HOW LOOSE  (ingredient of the certificate over the same quantity measured)"]
    for key, ratio in report.looseness.items():
        name, _, method = key.partition("_")
        seen = report.problem.measured[key]
        lines.append(f"  {name} of {_METHODS[method]}: {ratio:.3g} times the measured {seen:.4g}")
    return "\n".join(lines)


def _constants(report: Report) -> str:
    """Returns a table of every constant with its standing."""
    lines = ["CONSTANTS"]
    for name, estimate in report.problem.estimates.items():
        error = estimate.origin.standard_error
        shown = f"{float(estimate):.4g}" + (f" ± {error:.2g}" if error is not None else "")
        lines.append(f"  {name:<14}{shown:<18}{_standing(estimate):<22}{_MEANINGS[name]}")
    return "\n".join(lines)


def _standing(estimate: Estimate) -> str:
    """Returns "certified" or "plug-in" with the side of the estimate."""
    if estimate.trust == "certified":
        return "certified"
    return f"plug-in, {estimate.origin.side}"


def _reading(report: Report) -> str:
    """Returns how to read all this."""
    text = (
        "The constants above are certified, and so are the certificates, given that training "
        "stays where the constants hold."
        if report.certified
        else "Plug-in means: measured on the tasks drawn and at the points named, used as if it "
        "held for all tasks and everywhere in between. A plug-in certificate is an informed guess, "
        "not a guarantee."
    )
    return _wrap(
        f"HOW TO READ THIS  {text} The certificates bound how small gradients get, not how low "
        "the risk; they are worst-case (smoothness and variance are typically many times too "
        "large), and comparing two upper bounds predicts their order, not that of the methods. "
        "To know which method wins on your data, train both: innerloop compare does."
    )
