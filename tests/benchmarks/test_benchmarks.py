"""The benchmark code: cases, operation counts, timing, tables, and agreement of what it times."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"

pytestmark = [
    pytest.mark.skipif(not FOLDER.is_dir(), reason="benchmarks/ is not part of this checkout"),
    # torch 2.13 raises it from inside its own jvp.
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning"),
]


def small_case(name: str, tasks: int = 3) -> Any:
    from cases.nine import CASES

    return replace(CASES[name], tasks=tasks)


CASE_NAMES = [
    "sinusoid",
    "sinusoid-5",
    "sinusoid-1000",
    "omniglot-fc",
    "omniglot-fc-5",
    "linear",
    "wide",
    "hvp",
    "hvp-omniglot",
]


def test_names_agree_everywhere() -> None:
    from cases.cuda import CASES_ON
    from cases.names import CASE_NAMES as listed

    assert list(listed["cpu"]) == CASE_NAMES
    assert {device: tuple(cases) for device, cases in CASES_ON.items()} == listed


@pytest.mark.parametrize("name", CASE_NAMES)
def test_problem_has_the_shapes_of_its_case(name: str) -> None:
    from cases.nine import make_problem

    case = small_case(name)
    problem = make_problem(case)
    classes = case.loss == "cross_entropy"
    for (x, y), rows in ((problem.support, case.support), (problem.query, case.query)):
        assert x.shape == (3, rows, case.widths[0])
        assert x.dtype == torch.float32
        assert y.shape == ((3, rows) if classes else (3, rows, case.widths[-1]))
        assert y.dtype == (torch.int64 if classes else torch.float32)
    lead = (3,) if case.quantity == "hvp" else ()
    assert {k: tuple(v.shape) for k, v in problem.params.items()} == {
        k: (*lead, *shape) for k, shape in case.shapes().items()
    }
    assert (problem.vector is not None) == (case.quantity == "hvp")


def test_problem_repeats_with_its_seed_and_in_either_precision() -> None:
    from cases.nine import make_problem

    case = small_case("wide")
    first, again, other = make_problem(case), make_problem(case), make_problem(case, seed=1)
    wide = make_problem(case, torch.float64)
    assert torch.equal(first.support[0], again.support[0])
    assert not torch.equal(first.support[0], other.support[0])
    assert torch.equal(first.support[0].double(), wide.support[0])


@pytest.mark.parametrize("name", CASE_NAMES)
def test_operation_counts(name: str) -> None:
    from cases import flops
    from cases.nine import CASES

    case = CASES[name]
    assert 0 < flops.structured(case) <= flops.nominal(case)
    assert flops.nominal(replace(case, tasks=2 * case.tasks)) == 2 * flops.nominal(case)


def test_operation_count_by_hand() -> None:
    from cases import flops
    from cases.nine import CASES

    # One linear layer 16-1, 16 + 16 rows, one step: support gradient 2 products, its tangent 2,
    # query gradient 2, each of 2 * 16 * 16 * 1 operations.
    one = 2 * 16 * 16
    assert flops.nominal(replace(CASES["linear"], tasks=1)) == 6 * one


@pytest.mark.slow
@pytest.mark.ci
def test_rivals_are_timed_in_processes_of_their_own() -> None:
    from measure.speed import measure_case
    from measure.worker import Request

    found = measure_case(Request("sinusoid", 1, ("innerloop", "torch_func"), quick=True))
    assert found["fastest_library"] is None  # eager torch.func is none
    for rival in found["rivals"].values():
        assert 0 < rival["disagreement"] < 1e-4
        assert rival["samples"] == len(rival["samples_s"]) >= 3
        assert rival["min_s"] <= rival["median_s"]
    assert found["rivals"]["innerloop"]["backend"] == "fused"
    assert found["rivals"]["torch_func"]["ratio"]["median"] > 0


def test_rival_that_disagrees_or_dies_says_so(tmp_path: Path) -> None:
    from cases.nine import CASES, make_problem
    from cases.reference import reference
    from measure.rival import RivalDied, RivalProcess, save_expected
    from measure.worker import Request

    right = reference(make_problem(CASES["sinusoid"], seed=0))
    save_expected([2 * array for array in right], tmp_path / "wrong.npz")
    request = Request("sinusoid", 1, quick=True)
    process = RivalProcess(request, "innerloop", tmp_path / "wrong.npz")
    report = process.prepare()
    assert report["disagrees"]
    assert "against the float64 reference" in report["failed"]
    with pytest.raises(RivalDied, match="before it was ready"):
        process.estimate()
    process.close()


@pytest.mark.parametrize("name", ["sinusoid-5", "omniglot-fc", "linear", "hvp"])
def test_rivals_written_in_torch_agree_with_the_reference(name: str) -> None:
    """The eager rivals in float64: independent ways to the same numbers."""
    import baselines
    from cases.nine import make_problem
    from cases.reference import disagreement, numbers, reference

    problem = make_problem(small_case(name), torch.float64)
    expected = reference(problem, tasks_at_once=2)
    for rival in ("torch_func", "autograd_loop", "higher"):
        module = baselines.load(rival)
        if module.missing() is not None or module.unfit(problem.case, "cpu") is not None:
            continue
        for formulation, build in module.formulations(problem).items():
            assert disagreement(numbers(build()()), expected) < 1e-12, (rival, formulation)


@pytest.mark.parametrize("name", ["sinusoid-5", "wide", "linear", "hvp", "hvp-omniglot"])
def test_handwritten_rival_agrees_with_the_reference(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The functions behind the compiled rival, run eagerly."""
    from baselines import bmm_baseline, compiled
    from cases.nine import make_problem
    from cases.reference import disagreement, reference

    def eager(function: Any, arguments: Any, names: list[str]) -> Any:
        return function(*arguments)

    monkeypatch.setattr(compiled, "compiled_call", eager)
    problem = make_problem(small_case(name), torch.float64)
    losses, leaves = bmm_baseline.formulations(problem)["batched"]()
    found = [] if losses is None else [losses.numpy()]
    found += [leaves[leaf].numpy() for leaf in problem.case.shapes()]
    assert disagreement(found, reference(problem)) < 1e-12


@pytest.mark.parametrize("name", ["sinusoid", "omniglot-fc-5", "hvp"])
def test_innerloop_agrees_with_the_reference(name: str) -> None:
    from baselines import innerloop_baseline
    from cases.nine import make_problem
    from cases.reference import disagreement, numbers, reference

    if innerloop_baseline.missing() is not None:
        pytest.skip(f"innerloop: {innerloop_baseline.missing()}")
    problem = make_problem(small_case(name), torch.float64)
    call = innerloop_baseline.formulations(problem)["functional"]()
    assert disagreement(numbers(call()), reference(problem)) < 1e-11


def test_disagreement_sees_each_array() -> None:
    from cases.reference import disagreement

    big, small = np.full(1000, 1e6), np.full(2, 1e-6)
    assert disagreement([big, small], [big, small]) == 0.0
    assert disagreement([big, 2 * small], [big, small]) == pytest.approx(1.0)
    assert disagreement([big], [big, small]) == float("inf")
    assert disagreement([np.full(2, np.nan)], [small]) == float("inf")


def test_timing_checks_before_it_times_and_pairs_rounds() -> None:
    from measure import timing

    counts = {"right": 0, "wrong": 0}

    def rival(name: str, value: float) -> Any:
        def call() -> float:
            counts[name] += 1
            return value

        return call

    effort = timing.Effort(rounds=6, block_s=1e-4, budget_s=0.1, settle_s=1e-5)
    results = timing.time_rivals(
        {"right": rival("right", 1.0), "wrong": rival("wrong", 2.0)},
        disagreement=lambda value: abs(value - 1.0),
        tolerance=1e-6,
        effort=effort,
    )
    assert isinstance(results["wrong"], timing.Disagreement)
    assert counts["wrong"] == 1
    right = results["right"]
    assert isinstance(right, timing.Timing)
    assert len(right.samples_s) == 6
    assert all(sample > 0 for sample in right.samples_s)
    summary = right.summary()
    assert summary["q1_s"] <= summary["median_s"] <= summary["q3_s"]
    assert counts["right"] > 6
    assert timing.paired_ratio([2.0, 4.0, 9.0, 7.0], [1.0, 2.0, 3.0])["median"] == 2.0


def test_straight_line_is_found_and_bends_are_reported() -> None:
    from routines.line import straight_line

    sizes = [1, 10, 100, 1000]
    straight = straight_line(sizes, [3.0 + 2.0 * size for size in sizes])
    assert straight["fixed_s"] == pytest.approx(3.0)
    assert straight["each_s"] == pytest.approx(2.0)
    assert straight["worst_deviation"] < 1e-9
    assert straight_line(sizes, [size**2 for size in sizes])["worst_deviation"] > 0.3


def test_memory_formula_grows_with_steps_and_threads_but_not_with_tasks() -> None:
    from cases.nine import CASES
    from routines.memory import formula_bytes

    def bytes_of(tasks: int, steps: int, threads: int, strategy: str) -> int:
        case = replace(CASES["sinusoid-1000"], tasks=tasks, steps=steps)
        return formula_bytes(
            case.sizes(), case.widths, strategy=strategy, threads=threads, vector_bytes=64
        )

    for strategy in ("lanes", "rows"):
        one, two, three = (bytes_of(4096, steps, 1, strategy) for steps in (1, 2, 3))
        assert three - two == two - one > 0
        assert bytes_of(8192, 1, 1, strategy) == one
        assert one < bytes_of(4096, 1, 2, strategy) < 2 * one


def fabricated_run(case: str, ours_s: float, jax_s: float) -> dict[str, Any]:
    """A speed run as run.py writes it, with two rivals and made-up times."""

    def rival(title: str, library: bool, seconds: float) -> dict[str, Any]:
        middle = seconds / ours_s
        return {
            "title": title,
            "library": library,
            "median_s": seconds,
            "q1_s": seconds,
            "q3_s": seconds,
            "tasks_per_s": 25 / seconds,
            "disagreement": 1e-7,
            "peak_bytes": 1_000_000,
            "choice": "plain",
            "ratio": {"median": middle, "q1": middle, "q3": middle},
        }

    ours = {**rival("innerloop", False, ours_s), "backend": "fused"}
    return {
        "kind": "speed",
        "case": case,
        "describe": "a network",
        "flops": {"nominal": 10**6, "structured": 10**6},
        "rivals": {
            "innerloop": ours,
            "jax_jit": rival("JAX", True, jax_s),
            "autograd_loop": rival("loop", False, 0.25),
            "higher": {"title": "higher", "library": False, "skipped": "import failed"},
        },
        "fastest_library": "jax_jit",
        "environment": {
            "processor": {"model": "a processor"},
            "cpus_visible": 2,
            "threads": 2,
            "dtype": "float32",
            "versions": {"torch": "2.13.0", "jax": "0.10"},
            "innerloop_native": {"simd_level": "avx512"},
            "commit": "abc",
            "gemm_gflops": 100.0,
            "copy_gbytes_per_s": 10.0,
            "load_average": [0.1, 0.1, 0.1],
        },
    }


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder of result files: an older run, a newer one and a quick one."""
    for name, started, quick, jax_s in (
        ("old", "2026-01-01T00:00:00Z", False, 0.9),
        ("new", "2026-01-02T00:00:00Z", False, 0.005),
        ("quick", "2026-01-03T00:00:00Z", True, 0.7),
    ):
        document = {
            "format": 1,
            "command": f"python benchmarks/run.py {name}",
            "started": started,
            "quick": quick,
            "runs": [
                fabricated_run("sinusoid", 0.001, jax_s),
                fabricated_run("wide", 0.002, 0.001),
            ],
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    return tmp_path


def test_tables_come_from_the_newest_complete_runs(results: Path) -> None:
    from tables import pages

    runs = pages.newest_runs(results)
    assert {run["file"] for run in runs} == {"new.json"}
    document = "before\n<!-- table:speed -->\nold text\n<!-- /table:speed -->\nafter\n"
    filled = pages.fill(document, runs)
    assert "old text" not in filled
    assert filled.startswith("before\n")
    assert "after\n" in filled
    sinusoid, wide = (line for line in filled.splitlines() if line.startswith("| `"))
    assert "| 5× (5-5) |" in sinusoid
    assert "5 ms JAX" in sinusoid
    assert "250×" in sinusoid
    assert "0.5×" in wide
    assert pages.fill(filled, runs) == filled


def test_losses_are_listed(results: Path) -> None:
    from tables import pages, speed

    text = speed.losses(pages.newest_runs(results))
    assert text == "- `wide`, 2 thread(s), float32: slower than JAX (0.5×)."


def test_every_table_renders_and_unknown_markers_are_refused(results: Path) -> None:
    from tables import pages

    runs = pages.newest_runs(results)
    for name in pages.TABLES:
        assert isinstance(pages.fill(f"<!-- table:{name} --><!-- /table:{name} -->", runs), str)
    with pytest.raises(ValueError, match="marker must name"):
        pages.fill("<!-- table:nothing --><!-- /table:nothing -->", runs)


def test_documents_name_only_known_tables() -> None:
    from tables import pages

    for name in pages.DOCUMENTS:
        path = FOLDER.parent / name
        if path.exists():
            pages.fill(path.read_text(), [])


def test_figure_is_the_same_every_time(results: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from tables import figure, pages

    runs = pages.newest_runs(results)
    first, second = (figure.draw(runs, tmp_path / f"{n}.svg") for n in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_size > 2000


def test_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import run

    monkeypatch.setattr(run.environment, "thread_environment", lambda *_: {})  # for this process
    for arguments, text in (
        (["nothing"], "CASE must be one of"),
        (["sinusoid", "--baseline", "numpy"], "--baseline must be one of"),
        (["sinusoid", "--threads", "0"], "--threads must be numbers"),
        ([], "name at least one CASE"),
        (["sinusoid-16384"], "CASE must be one of .* on cpu"),
        (["memory", "--once"], "--once takes cases"),
    ):
        with pytest.raises(SystemExit, match=text):
            run.main(arguments)
    assert run.main(["sinusoid", "--once"]) == 0
    assert run.command_line(["sinusoid", "--out", "/a/b/c.json"]).endswith("--out c.json")


def test_quick_is_a_table_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Few cases, quick, against rivals that every installation has; nothing is written."""
    import run
    from measure import worker

    asked: list[worker.Request] = []

    def measure(request: worker.Request) -> dict[str, Any]:
        asked.append(request)
        made = fabricated_run(request.what, 1e-3, 3e-3)
        made["environment"]["load_average_after"] = [0.1, 0.1, 0.1]
        return made

    monkeypatch.setattr(worker, "measure", measure)
    monkeypatch.setattr(run, "save", lambda *_: pytest.fail("a file was written"))
    assert run.main(["quick"]) == 0
    assert [request.what for request in asked] == list(run.QUICK_CASES)
    assert all(request.quick for request in asked)
    assert {request.baselines for request in asked} == {("innerloop", *run.QUICK_RIVALS)}
    table = capsys.readouterr().out.partition("\n| case")[2].splitlines()
    assert table[0] == " | innerloop | JAX | faster | autograd loop | faster | higher | faster |"
    assert table[2] == "| `sinusoid`: a network | 1 ms | 3 ms | 3× | 250 ms | 250× | - | - |"
    assert table[-1].endswith("python benchmarks/run.py all")


def test_resume_measures_only_what_the_file_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import run
    from measure import worker

    measured: list[tuple[str, int]] = []

    def measure(request: Any) -> dict[str, Any]:
        if (request.what, request.threads) in measured or len(measured) == fails_after:
            raise worker.WorkerFailed("stopped")
        measured.append((request.what, request.threads))
        made = fabricated_run(request.what, 1e-4, 3e-4)
        made["environment"].update(
            threads=request.threads, dtype=request.dtype, load_average_after=[0.1, 0.1, 0.1]
        )
        return made

    monkeypatch.setattr(worker, "measure", measure)
    target = tmp_path / "speed.json"
    command = ["sinusoid", "linear", "--threads", "1", "--out", str(target)]
    fails_after = 1
    assert run.main(command) == 1
    fails_after = -1
    assert run.main([*command, "--resume"]) == 0
    assert run.main([*command, "--resume"]) == 0
    assert measured == [("sinusoid", 1), ("linear", 1)]
    document = json.loads(target.read_text())
    assert [each["case"] for each in document["runs"]] == ["sinusoid", "linear"]
    assert document["command"].endswith("--resume")
    with pytest.raises(SystemExit, match="--out"):
        run.main(["sinusoid", "--threads", "1", "--resume"])


def noted(call: Any, outcomes: list[Any]) -> Any:
    """The call, with its outcomes kept."""
    return lambda: outcomes.append(call())


def test_native_call_repeats_what_the_public_call_does() -> None:
    from baselines import innerloop_baseline
    from cases.nine import make_problem
    from routines.kernels import native_call

    for name in ("sinusoid", "hvp"):
        problem = make_problem(small_case(name), torch.float64, 0)
        build = innerloop_baseline.formulations(problem)["functional"]
        outcomes: list[Any] = []
        repeat = native_call(noted(build(), outcomes))
        [(_, leaves)] = outcomes
        expected = [leaf.clone() for leaf in leaves]
        for leaf in leaves:
            leaf.fill_(float("nan"))
        repeat()
        assert len(outcomes) == 1
        torch.testing.assert_close(leaves, expected, rtol=0, atol=0)
