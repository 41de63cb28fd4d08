"""Every Python block of README.md and docs/ runs, and the memory formula holds.

The blocks of a page run in order in one namespace. A block that cannot run here (old code of
another library) has `<!-- not run: reason -->` on the line before it.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

import innerloop as il
from innerloop import _native, cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(<!-- not run: .+ -->\n)?^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run_page(page):
    """Executes the blocks of a page and returns their namespace."""
    text = page.read_text(encoding="utf-8")
    namespace = {"__name__": page.stem}
    for match in BLOCK.finditer(text):
        if match[1] is None:
            line = text[: match.start(2)].count("\n")
            source = "\n" * line + match[2]  # so that a traceback shows the page's own lines
            exec(compile(source, str(page), "exec"), namespace)
    return namespace


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page, capsys):
    if page.name == "meta-rl.md":
        pytest.importorskip("mujoco", reason="needs innerloop[rl]")
    torch.manual_seed(0)
    run_page(page)


def test_readme_replaces_the_loop_by_the_same_number_and_gradients():
    torch.manual_seed(0)
    page = run_page(ROOT / "README.md")
    net, support, query = page["net"], page["support"], page["query"]
    found = [p.grad for p in net.parameters()]
    loss = page["meta_loss"](net, list(zip(*support, *query, strict=True)))
    torch.testing.assert_close(page["maml"](support, query), loss)
    for a, b in zip(found, torch.autograd.grad(loss, tuple(net.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("library", ["higher", "torchopt"])
@pytest.mark.filterwarnings("ignore")
def test_old_loops_have_the_same_gradient(library):
    module = pytest.importorskip(library)
    text = (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8")
    setup, new = (match[2] for match in list(BLOCK.finditer(text))[:2])
    old = re.search(rf"<!-- not run: needs {library} -->\n```python\n(.*?)```", text, re.DOTALL)[1]
    found = []
    for source in (old, new):
        namespace = {library: module}
        exec(setup + source, namespace)
        found.append([p.grad for p in namespace["model"].parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_relative_links_lead_somewhere():
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if not target.startswith(("http:", "https:")):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


CALLS = {
    "sinusoid": ([1, 40, 40, 1], "relu", "mse", 64, 10, 10, 5),
    "many tasks": ([1, 40, 40, 1], "relu", "mse", 3000, 10, 10, 1),
    "curved": ([3, 24, 17, 2], "silu", "mse", 100, 4, 9, 3),
    "implicit": ([300, 64, 32, 5], "relu", "cross_entropy", 64, 5, 25, 3),
    "wide": ([64, 200, 10], "tanh", "cross_entropy", 40, 25, 30, 4),
    "in place": ([33, 1], "identity", "half_mse", 64, 9, 7, 1),
    "one task": ([8, 33, 1], "gelu", "huber", 1, 12, 12, 8),
}


@pytest.mark.skipif(not _native.is_available(), reason="needs the native extension")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("layout", ["lanes", "rows"])
@pytest.mark.parametrize("call", CALLS)
def test_memory_formula(call, layout, threads, capsys):
    widths, activation, loss, tasks, n, q, steps = CALLS[call]
    formula = run_page(ROOT / "docs" / "memory.md")["workspace"]
    model = il.MLP(widths, activation=activation)
    native = _native.native()
    vector = {"baseline": 16, "avx2": 32, "avx512": 64}[native.simd_level()] // 4

    def side(rows):
        x = torch.randn(tasks, rows, widths[0])
        if loss == "cross_entropy":
            return x, torch.randint(widths[-1], (tasks, rows))
        return x, torch.randn(tasks, rows, widths[-1])

    support, query, params = side(n), side(q), model.init()
    before = torch.get_num_threads()
    native.set_strategy(layout)
    try:
        torch.set_num_threads(threads)
        native.release_workspace()
        rates = dict.fromkeys(model.shapes, 0.01)
        il.meta_grad(params, support, query, model=model, inner_lr=rates, steps=steps, loss=loss)
        held = il.workspace_bytes()
    finally:
        torch.set_num_threads(before)
        native.set_strategy("auto")
    expected = formula(
        model,
        tasks=tasks,
        support=n,
        query=q,
        steps=steps,
        layout=layout,
        vector=vector,
        threads=threads,
        targets=1 if loss == "cross_entropy" else None,
    )
    assert abs(held / expected - 1) < 0.05, f"{held} bytes held, {expected} by the formula"


def written_commands(program):
    """(page, arguments) of the program's lines in the code blocks of all pages."""
    found = []
    for page in [*PAGES, ROOT / "benchmarks" / "README.md"]:
        if not page.exists():  # not part of an sdist
            continue
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        blocks = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
        for block in (block for language, block in blocks if not language):
            for line in re.findall(rf"^ *(?:\S+ )*?{program} (.*)$", block, re.MULTILINE):
                found.append((page.name, shlex.split(line, comments=True)))
    return found


def test_commands_in_pages_have_their_options():
    """Of `innerloop`: parsed as the program does it, and not run."""
    typer = pytest.importorskip("typer.main", reason="needs innerloop[cli]")
    commands = written_commands(r"(?:\.venv/bin/|-m )?innerloop")
    assert len(commands) > 15
    for page, arguments in commands:
        command, rest = typer.get_command(cli.build()), list(arguments)
        while hasattr(command, "commands"):
            assert rest[0] in command.commands, (page, arguments)
            command = command.commands[rest.pop(0)]
        assert not command.make_context("innerloop", rest).args, (page, arguments)


def test_benchmarks_in_pages_exist(monkeypatch):
    """Of `run.py`: cases, routines and options are its own."""
    folder = ROOT / "benchmarks"
    if not folder.is_dir():
        pytest.skip("benchmarks/ is not part of this checkout")
    monkeypatch.syspath_prepend(str(folder))
    import run
    import untimed

    commands = written_commands("benchmarks/run.py")
    assert len(commands) > 12
    for _page, arguments in commands:
        if arguments[0] in (*untimed.NAMES, "merge"):
            continue
        options = run.parser().parse_args(arguments)
        if options.case != ["quick"]:
            run.chosen(options.case, options.device)
            run.rivals(options.baseline, options.device)
