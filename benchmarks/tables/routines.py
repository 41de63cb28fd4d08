"""Tables of the other measurements, and of the machines everything was taken on."""

from __future__ import annotations

from collections.abc import Sequence

from tables.formatting import Run, markdown, megabytes, milliseconds, of_kind, times


def first_call(runs: Sequence[Run]) -> str:
    """Import, first call and second call of each rival."""
    rows = []
    for run in of_kind(runs, "first-call"):
        for row in run["rows"]:
            if "first_call_s" not in row:
                continue
            rows.append(
                [
                    f"`{row['case']}`, {run['environment']['threads']} thread(s)",
                    row["title"],
                    milliseconds(row["import_s"]) if row["import_s"] > 1e-4 else "-",
                    milliseconds(row["first_call_s"]),
                    milliseconds(row["second_call_s"]),
                ]
            )
    return markdown(["case", "", "import", "first call", "second call"], rows)


def overhead(runs: Sequence[Run]) -> str:
    """Microseconds per call of the smallest problem."""
    rows = []
    for run in of_kind(runs, "overhead"):
        for row in run["rows"]:
            if "median_s" in row:
                spread_text = f"{row['q1_s'] * 1e6:.3g} - {row['q3_s'] * 1e6:.3g}"
                median = f"{row['median_s'] * 1e6:.3g}"
                count = str(run["environment"]["threads"])
                rows.append([row["call"], count, median, spread_text])
    return markdown(["call", "threads", "median µs", "quartiles µs"], rows)


def kernels(runs: Sequence[Run]) -> str:
    """The whole call, the native call inside it, and what the machine's limits would allow."""
    rows = []
    for run in of_kind(runs, "kernels"):
        limits = run["environment"]
        for row in run["rows"]:
            whole, native = row["call"]["median_s"], row["native"]["median_s"]
            products = row["structured_flops"] / (limits["gemm_gflops"] * 1e9)
            memory = row["least_bytes"] / (limits["copy_gbytes_per_s"] * 1e9)
            rows.append(
                [
                    f"`{row['case']}`, {run['environment']['threads']} thread(s)",
                    milliseconds(whole),
                    milliseconds(native),
                    f"{(whole - native) / whole:.0%}",
                    milliseconds(products),
                    milliseconds(memory),
                ]
            )
    header = ["case", "call", "native call", "outside it", "at GEMM peak", "at copy bandwidth"]
    return markdown(header, rows)


def _sweep(runs: Sequence[Run], kind: str, unit: str) -> str:
    rows = []
    for run in of_kind(runs, kind):
        for row in run["rows"]:
            points = [p for p in row["points"] if "median_s" in p]
            shown = ", ".join(f"{p[kind]}: {milliseconds(p['median_s'])}" for p in points)
            line = row.get("line")
            fitted = "-"
            if line is not None:
                fixed, each = milliseconds(max(line["fixed_s"], 0)), milliseconds(line["each_s"])
                fitted = f"{fixed} + {each} per {unit}"
            deviation = "-" if line is None else f"{line['worst_deviation']:.0%}"
            where = f"`{row['case']}`, {run['environment']['threads']} thread(s)"
            rows.append([where, row["title"], shown, fitted, deviation])
    return markdown(["case", "", kind, "fitted line", "largest deviation"], rows)


def steps(runs: Sequence[Run]) -> str:
    """Time against the number of inner steps."""
    return _sweep(runs, "steps", "step")


def tasks(runs: Sequence[Run]) -> str:
    """Time against the number of tasks."""
    return _sweep(runs, "tasks", "task")


def memory(runs: Sequence[Run]) -> str:
    """Peak memory in fresh processes beside the workspace, the results and the formula."""
    rows = []
    for run in of_kind(runs, "memory"):
        where = f"{run['environment']['threads']} thread(s)"
        for row in run["rows"]:
            if "peak_bytes" not in row:
                continue
            layout = f", {row['strategy']}" if "strategy" in row else ""
            rows.append(
                [
                    f"`{row['case']}`, {row['steps']} steps, {where}",
                    row["title"] + layout,
                    megabytes(row["peak_bytes"]),
                    megabytes(row.get("workspace_bytes")),
                    megabytes(row.get("formula_bytes")),
                    megabytes(row["output_bytes"]),
                ]
            )
    return markdown(["case", "", "peak", "workspace", "formula", "results"], rows)


NETWORK_RIVALS = ("plain loop", "learn2learn", "torch.func", "torch back end")


def networks(runs: Sequence[Run]) -> str:
    """Networks as public code has them: how much faster than each rival."""
    rows = []
    for run in of_kind(runs, "networks"):
        here = run["environment"]
        for row in run["rows"]:
            ours = row["rivals"]["innerloop"]
            cells = [f"{row['case']}, {here['threads']} thread(s)", row["backend"]]
            cells.append(f"{row['flops'] / 1e9:.3g} GFLOP")
            if "median_s" not in ours:
                rows.append([*cells, ours["failed"], *"-" * 8])
                continue
            rate = row["flops"] / ours["median_s"] / 1e9
            cells += [milliseconds(ours["median_s"]), f"{rate / here['gemm_gflops']:.0%}"]
            for rival in NETWORK_RIVALS:
                gain = row["rivals"].get(rival, {}).get("times")
                cells.append("-" if gain is None else f"{gain['median']:.1f}×")
            peaks = row["peak_bytes"]
            cells += [megabytes(peaks["innerloop"])]
            cells += [megabytes(row["formula_bytes"] if row["backend"] == "batched" else None)]
            cells += [megabytes(peaks["plain loop"])]
            rows.append(cells)
    header = ["network", "back end", "operations", "innerloop", "of the GEMM rate"]
    header += ["than the loop", "than learn2learn", "than torch.func", "than torch back end"]
    header += ["peak memory", "formula", "loop's"]
    return markdown(header, rows)


def policies(runs: Sequence[Run]) -> str:
    """What meta reinforcement learning computes: seconds, and how much faster than each rival."""
    rows = []
    for run in of_kind(runs, "policies"):
        where = f"{run['environment']['threads']} thread(s)"
        for row in run["rows"]:
            cells = [f"{row['operation']}, T={row['tasks']}, N={row['rows']}, {where}"]
            for name in ("innerloop", "autograd", "JAX"):
                rival = row["rivals"].get(name, {"failed": "-"})
                shown = milliseconds(rival["median_s"]) if "median_s" in rival else rival["failed"]
                cells.append(shown)
                if name != "innerloop":
                    gain = rival.get("times")
                    cells.append("-" if gain is None else times(gain["median"]))
            rows.append(cells)
    header = ["operation", "innerloop", "autograd, baddbmm", "faster", "JAX", "faster"]
    return markdown(header, rows)


def compile_first_order(runs: Sequence[Run]) -> str:
    """Which gradient each way of writing MAML returns under torch.compile."""
    rows = []
    found = {run["environment"]["dtype"]: run for run in of_kind(runs, "compile-first-order")}
    if not found:
        return ""
    wide, narrow = found["float64"], found["float32"]
    for row, other in zip(wide["rows"], narrow["rows"], strict=True):
        errors = [
            f"{r['error_to_full']:.2g}" if "error_to_full" in r else "-" for r in (row, other)
        ]
        same = row["gradient"] == other["gradient"]
        returned = row["gradient"] if same else f"{row['gradient']}; {other['gradient']} in float32"
        rows.append([row["way"], returned, *errors, str(len(row["warnings"]) or "none")])
    versions = wide["environment"]["versions"]
    header = ["", "returns", "error, float64", "error, float32", "warnings"]
    return (
        f"torch {versions['torch']}, Python {versions['python']}, a linear model with "
        f"{wide['parameters']} parameters and {wide['steps']} inner steps; the first-order "
        f"gradient differs from the full one by {wide['difference']:.2f} (relative).\n\n"
        + markdown(header, rows)
    )


def machine(runs: Sequence[Run]) -> str:
    """Where the numbers were taken: one row per result file and thread count."""
    rows: dict[tuple[str, ...], None] = {}
    for run in runs:
        if "gemm_gflops" not in run["environment"]:
            continue  # nothing in it is a timing, or it is one of a GPU
        here, versions = run["environment"], run["environment"]["versions"]
        native = here.get("innerloop_native") or {}
        row = (
            f"[`{run['file']}`](../benchmarks/results/{run['file']})",
            f"{here['processor']['model']}, {here['cpus_visible']} cores",
            str(here["threads"]),
            f"torch {versions['torch']}, jax {versions['jax']}",
            f"{here['commit'] or '-'} {native.get('simd_level', '')}".strip(),
            f"{here['gemm_gflops']:.0f} GFLOP/s, {here['copy_gbytes_per_s']:.0f} GB/s",
            "/".join(str(value) for value in here["load_average"]),
        )
        # The limits are measured anew in each process: the first one stands for the file.
        if not any(known[0] == row[0] and known[2] == row[2] for known in rows):
            rows[row] = None
    header = [
        "result file",
        "processor",
        "threads",
        "versions",
        "innerloop",
        "GEMM peak, copy",
        "load average",
    ]
    return markdown(header, [list(row) for row in sorted(rows)])
