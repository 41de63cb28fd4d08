"""What a visit found, for the terminal: the end of the output is what is sure to be read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from contact.record import STEPS, read
from tables.formatting import SHORT, milliseconds, ratio


def floor_seconds(case: dict[str, Any], limits: dict[str, Any]) -> float:
    """The least time of a case on a card: its operations at the rate of multiply-adds in registers
    (or of the library's product, if that is higher), or its bytes at that of a copy."""
    peak = max(limits.get("fma_gflops", 0.0), limits["gemm_gflops"]) * 1e9
    copied = limits["copy_gbytes_per_s"] * 1e9
    return max(float(case["flops"]) / peak, float(case["least_bytes"]) / copied)


def best_of(case: dict[str, Any]) -> float | None:
    """Seconds of our faster call, plain or in a graph."""
    timed = [case[way]["median_s"] for way in ("plain", "graph") if way in case]
    return min(timed, default=None)


def best_rival(rivals: dict[str, Any]) -> tuple[str, float] | None:
    """The fastest rival that was timed, and its seconds."""
    timed = {name: r["median_s"] for name, r in rivals.items() if "median_s" in r}
    return min(timed.items(), key=lambda pair: pair[1], default=None)


def lines(folder: Path) -> Iterator[str]:
    """The summary."""
    entries = {step: read(folder, step) for step in STEPS}
    results = {step: entry.get("result", {}) for step, entry in entries.items()}
    card = results["card"]
    limits = card.get("environment", {}).get("gpu", {}).get("limits")
    yield f"card: {card.get('name', 'not asked')}; commit {card.get('commit') or 'not known here'}"
    yield from _cases(results["ours"], results["rivals"], limits)
    yield from _smoke(results["smoke"])
    for name in ("tests", "alone"):
        if files := results[name].get("files"):
            yield f"{name}: {counted(files)}" + ("" if results[name]["complete"] else ", cut off")
    for tool in ("memcheck", "racecheck", "synccheck"):
        if "errors" in results[tool]:
            yield f"{tool}: {results[tool]['errors']} errors, {results[tool]['cells']} cells passed"
    if scheduled := _schedules(results["schedules"]):
        yield scheduled
    for step, entry in entries.items():
        if entry.get("state") != "done":
            reason = entry.get("reason") or ("cut off" if entry else "not begun")
            yield f"{step}: {entry.get('state', 'missing')}: {reason}"


def _cases(
    ours: dict[str, Any], rivals: dict[str, Any], limits: dict[str, Any] | None
) -> Iterator[str]:
    form = "{:16s} {:>9s} {:>9s} {:>9s} {:16s} {:>7s} {:>9s} {:>6s}"
    if ours:
        head = ("case", "plain", "graph", "rival", "", "faster", "floor", "share")
        yield form.format(*head).rstrip()
    for name, case in ours.items():
        if "failed" in case:
            yield f"{name:16s} {case['failed']}"
            continue
        ways = [milliseconds(case[w]["median_s"]) if w in case else "-" for w in ("plain", "graph")]
        best, rival = best_of(case), best_rival(rivals.get(name, {}))
        against, gain = ("-", ""), "-"
        if rival is not None and best is not None:
            against = milliseconds(rival[1]), SHORT[rival[0]]
            gain = ratio(rival[1] / best)
        floor, share = "-", "-"
        if limits is not None and best is not None:
            least = floor_seconds(case, limits)
            floor, share = milliseconds(least), f"{least / best:.1%}"
        yield form.format(name, *ways, *against, gain, floor, share)


def _smoke(cells: dict[str, Any]) -> Iterator[str]:
    if not cells:
        return
    good = sum(cell.get("ok", False) for cell in cells.values())
    unfit = sum("unfit" in cell for cell in cells.values())
    yield f"smoke: {good} of {len(cells) - unfit} cells right, {unfit} do not fit"
    wrong = [key for key, cell in cells.items() if not cell.get("ok") and "unfit" not in cell]
    for key in wrong[:8]:
        cell = cells[key]
        said = cell.get("failed") or f"error {cell['error']:.1e}, equal bits: {cell['equal']}"
        yield f"  {key}: {said[:160]}"


def counted(files: dict[str, dict[str, int]]) -> str:
    """Outcomes of all files together."""
    total: dict[str, int] = {}
    for counts in files.values():
        for outcome, count in counts.items():
            total[outcome] = total.get(outcome, 0) + count
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(total.items()))


def _schedules(cases: dict[str, Any]) -> str:
    regrets = []
    for found in cases.values():
        each_one = found.get("schedules", [])
        timed = [each["median_s"] for each in each_one if "median_s" in each]
        if len(timed) > 1 and "median_s" in each_one[0]:
            regrets.append(timed[0] / min(timed))
    if not regrets:
        return ""
    return f"schedules: the model's choice takes up to {max(regrets):.2f} times the best of three"
