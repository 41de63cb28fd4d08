"""Tables of the meta-RL study: verdicts, differences of returns, and what updates add."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tables.formatting import Run, markdown, of_kind

FORMAT = "innerloop.study.meta-rl/1"
KIND = "meta-rl"


def as_run(document: dict[str, Any], file: str) -> Run:
    """A study's results.json as a run."""
    return {
        **document,
        "kind": KIND,
        "environment": {"threads": 1, "dtype": "float32"},
        "file": file,
        "command": f"innerloop study meta-rl --preset {document['settings']['preset']}",
    }


def verdict(runs: Sequence[Run]) -> str:
    """What was run, and how often which side is better under the published settings and in each
    kind of control."""
    parts = []
    for run in of_kind(runs, KIND):
        settings = run["settings"]
        state = "all its trainings are finished" if run["complete"] else "**unfinished**"
        parts.append(
            f"`{run['command']}` ({state}): {', '.join(settings['environments'])}; "
            f"{settings['test_tasks']} test tasks; seeds per comparison below."
        )
        rows = []
        for control, title in (
            ("", "published settings"),
            ("step-size", "control: equal outer step size"),
            ("adapts", "control: DRS adapts with its partner's inner rate"),
        ):
            made = [each for each in run["tradeoff"] if each["control"] == control]
            signs = [sign for each in made for sign in _signs(each)]
            if signs:
                rows.append([title, *(str(signs.count(s)) for s in (1, -1, 0)), str(len(signs))])
        header = ["cells (family, pair, budget)", "DRS better", "MAML better"]
        parts.append(markdown([*header, "within two standard errors", "in all"], rows))
    return "\n\n".join(parts)


def differences(runs: Sequence[Run]) -> str:
    """Returns of DRS minus those of its partner at every checkpoint behind the start, bold beyond
    two standard errors."""
    parts = []
    for run in of_kind(runs, KIND):
        made = run["tradeoff"]
        steps = made[0]["steps"][1:] if made else []
        header = ["family", "difference", "seeds", *(_steps(each) for each in steps)]
        rows = []
        for each in made:
            assert each["steps"][1:] == steps, "one preset has one budget"
            sides = each["sides"]
            cells = [
                _bold(f"{difference:+.1f} ± {error:.1f}", sign)
                for difference, error, sign in zip(*_judged(each), _signs(each), strict=True)
            ]
            name = f"{sides['drs']} − {sides['maml']}"
            rows.append([each["environment"], name, str(each["seeds"]), *cells])
        parts.append(markdown(header, rows))
    return "\n\n".join(parts)


def gains(runs: Sequence[Run]) -> str:
    """What all updates at test time add to the return of the last checkpoint."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for run in of_kind(runs, KIND):
        for each in run["tradeoff"]:
            for side, (mean, error) in each["gain"].items():
                cell = _bold(f"{mean:+.1f} ± {error:.1f}", abs(mean) > 2 * error)
                where = (each["environment"], each["sides"][side], str(run["settings"]["updates"]))
                rows.setdefault(where, [*where, cell])
    return markdown(["family", "algorithm", "updates", "return"], list(rows.values()))


def _judged(made: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Differences and standard errors after one update (before any, if there is none) at every
    checkpoint behind the start."""
    update = min(1, len(made["difference"][0]) - 1)
    first, second = ([row[update] for row in made[name][1:]] for name in ("difference", "stderr"))
    return first, second


def _signs(made: dict[str, Any]) -> list[int]:
    """+1 where DRS is better by more than two standard errors, -1 where its partner is, else 0."""
    return [
        0 if abs(difference) <= 2 * error else 1 if difference > 0 else -1
        for difference, error in zip(*_judged(made), strict=True)
    ]


def _bold(text: str, told: object) -> str:
    return f"**{text}**" if told else text


def _steps(count: float) -> str:
    return f"{count / 1e6:g} M" if count >= 1e6 else f"{count / 1e3:g} k"
