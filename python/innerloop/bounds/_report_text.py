"""The report in plain words."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING

from innerloop.bounds._standing import Standing, Trust
from innerloop.bounds.constants._estimate import distinguishable

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
    start = _gradient(report, "maml")
    both = f"({_METHODS['drs']} {certificate['drs']:.3g}, MAML {certificate['maml']:.3g})"
    if not distinguishable(report.problem.measured["gradient2_maml_start"]):
        lines.append(
            _wrap(
                f"At {budget:.4g} samples the bounds do not decide. The squared MAML gradient at "
                f"the start is estimated as {start}, so no certificate {both} can be seen to "
                "promise more than standing still would give. Draw more tasks."
            )
        )
    elif not speaking:
        when = "; ".join(f"{_METHODS[m]} {_from(report.informative[m])}" for m in _METHODS)
        lines.append(
            _wrap(
                f"At {budget:.4g} samples the bounds do not decide. The squared MAML gradient at "
                f"the start is {start} already, and both certificates are above that {both}: "
                f"they promise less than standing still would give. They start to say something: "
                f"{when}."
            )
        )
    else:
        lines.append(
            _wrap(
                f"With {budget:.4g} samples {_METHODS[better]} has the smaller certificate for the "
                f"MAML objective: mean squared gradient at most {certificate[better]:.3g}, against "
                f"{certificate[other]:.3g} for {_METHODS[other]} and {start} at the start."
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
    lines.append(_wrap(f"Standing of these numbers: {_standing(report.trust)}."))
    return "\n".join(lines)


def _gradient(report: Report, method: str) -> str:
    """Returns the squared gradient of an objective at the start, as the estimate that it is."""
    seen = report.problem.measured[f"gradient2_{method}_start"]
    text = f"{seen:.3g} (standard error {seen.origin.standard_error:.2g})"
    return text if distinguishable(seen) else f"{text}, not distinguishable from 0"


def _standing(trust: Trust) -> str:
    """Returns the standing of all certificates, and on what they rest."""
    estimated = ", ".join(trust.named("plug-in"))
    broken = ", ".join(trust.named("heuristic"))
    given = ", ".join(trust.named("assumed"))
    said: dict[Standing, str] = {
        "certified": "CERTIFIED",
        "assumed": "ASSUMED, not certified: they hold if the constants you gave hold",
        "plug-in": f"PLUG-IN, not certified: they rest on estimates ({estimated})",
        "heuristic": "HEURISTIC, not certified: an assumption is known to fail, so that these are "
        f"no bounds, whatever the constants are ({broken} do not exist here)",
    }
    return said[trust.standing] + (f"; your word stands for {given}" if given else "")


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
    found = report.comparison
    lines = [
        "CERTIFICATES  for the run-averaged E|MAML gradient|^2 (Results 21-27)",
        f"  {'samples':>10} {'MAML updates':>13} {'joint training':>15} {'MAML':>11}",
    ]
    for row in report.budgets:
        lines.append(f"  {row.budget:>10.3g} {row.updates:>13,} {row.drs:>15.4g} {row.maml:>11.4g}")
    for certificate in (found.drs, found.maml):
        method = certificate.method
        lines.append(
            _wrap(
                f"{_METHODS[method]}: smoothness {certificate.smoothness:.4g}, initial gap "
                f"{certificate.gap:.4g}, gradient variance {certificate.variance:.4g} a task; its "
                f"own squared gradient at the start is {_gradient(report, method)}",
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
    factor = report.sampling_factor
    if math.isinf(factor):
        lines.append(_wrap(f"the tasks drawn do not determine it: {factor.reason}", "  "))
    elif factor > 1.0:
        lines.append(
            _wrap(
                "two standard errors of the variance components move it by a factor of up to "
                f"{factor:.3g} either way; the looseness of the bounds comes on top",
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
    found = report.comparison
    if not report.looseness:
        return ""
    lines = ["HOW LOOSE  (what the certificate uses over the same quantity measured)"]
    for key, ratio in report.looseness.items():
        name, _, method = key.partition("_")
        seen, used = report.problem.measured[key], getattr(getattr(found, method), name)
        text = f"{name} of {_METHODS[method]}: {used:.4g}, {ratio:.3g} times the {seen:.4g} "
        if seen.origin.side == "lower bound":
            text += f"that was met, which may be less than the truth: {seen.origin.how}"
        else:
            text += f"(standard error {seen.origin.standard_error:.2g}) that was measured"
        lines.append(_wrap(text, "  "))
    return "\n".join(lines)


def _constants(report: Report) -> str:
    """Returns a table of every constant with its standing."""
    lines = ["CONSTANTS"]
    for name, estimate in report.problem.estimates.items():
        error = estimate.origin.standard_error
        shown = f"{float(estimate):.4g}" + (f" ± {error:.2g}" if error is not None else "")
        word = f"{estimate.standing}, {estimate.origin.side}"
        lines.append(f"  {name:<14}{shown:<18}{word:<23}{_MEANINGS[name]}")
    return "\n".join(lines)


def _reading(report: Report) -> str:
    """Returns how to read all this."""
    texts: dict[Standing, str] = {
        "certified": "Every constant above is proved for this problem.",
        "assumed": "Assumed means: all constants above are yours. The certificates hold if the "
        "constants do, for all tasks and wherever training goes; nothing here checks that.",
        "plug-in": "Plug-in means: measured on the tasks drawn and at the points named, used as if "
        "it held for all tasks and everywhere in between. A plug-in certificate is an informed "
        "guess, not a guarantee.",
        "heuristic": "Heuristic means: the formulas ask for smooth losses, and these are not. The "
        "numbers order nothing for certain, and no better constants would change that.",
    }
    return _wrap(
        f"HOW TO READ THIS  {texts[report.standing]} The certificates bound how small gradients "
        "get, not how low the risk; they are worst-case (smoothness and variance are typically "
        "many times too large), and comparing two upper bounds predicts their order, not that of "
        "the methods. To know which method wins on your data, train both: innerloop compare does."
    )
