"""Runs benchmarks: `python benchmarks/run.py CASE... [--device cuda] [--baseline NAME...]`.

The only entry of this folder. Every case and thread count is measured in its own pinned process;
one run writes one JSON file with the command that made it, complete after every measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import baselines
import routines
import untimed
from cases.names import CASE_NAMES
from measure import environment, worker

RESULTS = Path(__file__).resolve().parent / "results"
QUICK_CASES = ("sinusoid", "sinusoid-5", "omniglot-fc-5", "wide", "hvp")
QUICK_RIVALS = ("torch_func", "autograd_loop")  # need nothing installed, and nothing compiled


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parse = argparse.ArgumentParser(
        prog="benchmarks/run.py",
        description="Times innerloop against its rivals; results are checked before timing.",
        epilog="; ".join(
            f"{device}: cases {', '.join(CASE_NAMES[device])}; "
            f"routines {', '.join(routines.NAMES_ON[device])}"
            for device in CASE_NAMES
        )
        + "; quick = a table of this machine in two minutes, from "
        + f"{', '.join(QUICK_CASES)} against {' and '.join(QUICK_RIVALS)}"
        + "; all = the cases; everything = cases and routines"
        + f"; without times, with options of their own: {', '.join(untimed.NAMES)}"
        + "; merge FOLDER = keep the files of first_contact.sh",
    )
    parse.add_argument("case", nargs="*", metavar="CASE", help="cases or routines to measure")
    parse.add_argument(
        "--baseline",
        nargs="+",
        metavar="NAME",
        default=None,
        help=f"rivals beside innerloop (default: all): {', '.join(baselines.NAMES[1:])}, none",
    )
    parse.add_argument("--device", choices=tuple(CASE_NAMES), default="cpu")
    parse.add_argument("--quick", action="store_true", help="few repeats, first settings only")
    parse.add_argument(
        "--threads",
        default=None,
        help="thread counts, comma-separated (default 2, or all if fewer; with a GPU all)",
    )
    parse.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parse.add_argument("--seed", type=int, default=0)
    parse.add_argument(
        "--out",
        type=Path,
        default=None,
        help="result file (default: results/NAME-TIME.json; quick runs are only printed)",
    )
    parse.add_argument(
        "--once",
        action="store_true",
        help="measure nothing: call innerloop a few times in this process, for a profiler",
    )
    parse.add_argument(
        "--resume",
        action="store_true",
        help="keep what the file of --out holds already and measure the rest",
    )
    parse.add_argument(
        "--table",
        action="store_true",
        help="write tables and the figure from the result files (with --quick: quick ones too)",
    )
    return parse


def chosen(names: list[str], device: str) -> list[str]:
    """Cases and routines meant by the positional arguments, in order, once each."""
    known = (*CASE_NAMES[device], *routines.NAMES_ON[device])
    groups = {"all": CASE_NAMES[device], "everything": known}
    expanded: list[str] = []
    for name in names:
        if name not in known and name not in groups:
            raise SystemExit(
                f"run.py: CASE must be one of {', '.join(known)}, all or everything on {device} "
                f"(got {name!r})"
            )
        expanded += [each for each in groups.get(name, (name,)) if each not in expanded]
    return expanded


def rivals(names: list[str] | None, device: str) -> tuple[str, ...]:
    """Baselines to run: innerloop first, then those asked for."""
    known = baselines.NAMES_ON[device]
    if names is None:
        return known
    for name in names:
        if name != "none" and name not in known:
            raise SystemExit(
                f"run.py: --baseline must be one of {', '.join(known[1:])} or none on {device} "
                f"(got {name!r})"
            )
    return tuple(name for name in known if name.startswith("innerloop") or name in names)


def thread_counts(text: str | None, device: str) -> list[int]:
    """Thread counts of `--threads`, each between 1 and the number of processors."""
    if text is None:
        available = len(os.sched_getaffinity(0))
        return [available if device == "cuda" else min(2, available)]
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = [0]
    available = len(os.sched_getaffinity(0))
    if any(not 1 <= count <= available for count in counts):
        raise SystemExit(
            f"run.py: --threads must be numbers from 1 to {available}, comma-separated "
            f"(got {text!r})"
        )
    return counts


def check_device(device: str) -> None:
    """Ends with the reason if the device cannot be measured here."""
    if device == "cuda":
        reason = worker.cuda_reason()
        if reason:
            raise SystemExit(f"run.py: --device cuda: nothing was run: {reason}")


def kept_runs(target: Path | None, dtype: str, device: str) -> list[dict[str, Any]]:
    """The runs of a device and dtype that a result file to be continued holds."""
    if target is None:
        raise SystemExit("run.py: --resume needs the file to continue: --out FILE")
    if not target.exists():
        return []
    runs: list[dict[str, Any]] = json.loads(target.read_text())["runs"]

    def fits(here: dict[str, Any]) -> bool:
        return (here["dtype"], here.get("device", "cpu")) == (dtype, device)

    return [run for run in runs if fits(run["environment"])]


def is_of(run: dict[str, Any], name: str, threads: int) -> bool:
    """Whether a run measured this case or routine with that many threads."""
    return bool(run.get("case", run["kind"]) == name and run["environment"]["threads"] == threads)


def save(document: dict[str, Any], target: Path) -> None:
    """Writes the result file in one step."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(partial, target)


def command_line(arguments: list[str]) -> str:
    """The command as the result file records it, without this machine's folders."""
    shown = [os.path.basename(a) if os.path.isabs(a) else a for a in arguments]
    return shlex.join(["python", "benchmarks/run.py", *shown])


def main(arguments: list[str]) -> int:
    """Runs what the command line asks for and returns the exit status."""
    if arguments[:1] == ["contact"]:
        from contact import command

        return command.main(arguments[1:])
    if arguments[:1] == ["merge"]:
        from contact import merge

        return merge.main(arguments[1:])
    if arguments and arguments[0] in untimed.NAMES:
        return untimed.main(arguments[0], arguments[1:])
    options = parser().parse_args(arguments)
    in_short = options.case == ["quick"]
    if in_short:
        options.case, options.quick = list(QUICK_CASES), True
        options.baseline = options.baseline or list(QUICK_RIVALS)
    names = chosen(options.case, options.device)
    if not names and not options.table:
        raise SystemExit("run.py: name at least one CASE, or give --table (see --help)")
    counts = thread_counts(options.threads, options.device)
    rival_names = rivals(options.baseline, options.device)
    if names:
        check_device(options.device)
    if options.once:
        return _once(names, counts[0], options)
    target = options.out
    if target is None and names and not options.quick:
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        target = RESULTS / f"{options.case[0]}-{stamp}.json"
    document: dict[str, Any] = {
        "format": 1,
        "command": command_line(arguments),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "quick": options.quick,
        "runs": kept_runs(options.out, options.dtype, options.device) if options.resume else [],
    }
    busy = os.getloadavg()[0]
    if names and busy > 0.5:
        print(
            f"run.py: other programs keep {busy:.1f} processors busy and OpenMP barriers wait for "
            "a core: take numbers to publish on a quiet machine",
            file=sys.stderr,
        )
    failures = 0
    for name in names:
        for threads in counts:
            if any(is_of(run, name, threads) for run in document["runs"]):
                continue
            request = worker.Request(
                what=name,
                threads=threads,
                baselines=rival_names,
                quick=options.quick,
                device=options.device,
                dtype=options.dtype,
                seed=options.seed,
            )
            start = time.perf_counter()
            try:
                result = worker.measure(request)
            except worker.WorkerFailed as error:
                print(error, file=sys.stderr)
                failures += 1
                continue
            result["measured_in_s"] = round(time.perf_counter() - start, 1)
            document["runs"].append(result)
            document["finished"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            print(_report(result), flush=True)
            if target is not None:
                save(document, target)
    if in_short and document["runs"]:
        from tables import speed

        print(f"\n{speed.in_short(document['runs'])}")
    if target is not None and document["runs"]:
        print(f"written: {os.path.relpath(target)}")
    if options.table:
        from tables import pages

        for path in pages.update(environment.ROOT, RESULTS, include_quick=options.quick):
            print(f"updated: {os.path.relpath(path)}")
    return 1 if failures else 0


def _once(names: list[str], threads: int, options: argparse.Namespace) -> int:
    """Calls each case for a profiler; routines have no single call."""
    os.environ.update(environment.thread_environment(threads, options.device))
    from measure import rival

    for name in names:
        if name not in CASE_NAMES[options.device]:
            raise SystemExit(f"run.py: --once takes cases (got {name!r})")
        rival.once(
            worker.Request(
                name, threads, device=options.device, dtype=options.dtype, seed=options.seed
            )
        )
    return 0


def _report(result: dict[str, Any]) -> str:
    from tables import pages

    return pages.plain(result)


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "--worker":
        worker.serve(sys.argv[2], sys.argv[3])
    elif len(sys.argv) == 5 and sys.argv[1] == "--rival":
        from measure import rival

        rival.serve(*sys.argv[2:])
    else:
        sys.exit(main(sys.argv[1:]))
