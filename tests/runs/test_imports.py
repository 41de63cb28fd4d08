"""Which part of the package may import which: read from the syntax trees of all its files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import innerloop

PACKAGE = Path(innerloop.__file__).parent
COMMANDS = (
    "innerloop.compare",
    "innerloop.studies.linear_regression",
    "innerloop.studies.meta_rl",
    "innerloop.studies.sinusoid",
)
ENTRIES = ("innerloop.cli", "innerloop.studies.command")  # these list the commands


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(source: str, module: str, is_package: bool) -> Iterator[str]:
    """Dotted names that a file imports, wherever in it, also by importlib and by relative names."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")
                above = above[: len(above) - node.level + is_package]
                base = ".".join([*above, *base.split(".")] if base else above)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func
            called = called.id if isinstance(called, ast.Name) else called
            first = node.args[0]
            if called in ("import_module", "__import__") and isinstance(first, ast.Constant):
                yield str(first.value)


ARROWS = {
    module_name(path): set(
        imports_of(path.read_text(encoding="utf-8"), module_name(path), path.stem == "__init__")
    )
    for path in sorted(PACKAGE.rglob("*.py"))
}


def within(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def crossing(of: str, into: str) -> list[str]:
    """The imports by which modules of one part reach into another."""
    return [
        f"{module} imports {name}"
        for module in ARROWS
        if within(module, of)
        for name in reached(module, into)
    ]


def reached(module: str, part: str) -> list[str]:
    """What one module imports from a part."""
    return sorted(name for name in ARROWS[module] if within(name, part))


def test_runs_imports_no_command() -> None:
    for part in ("compare", "studies", "cli"):
        assert not crossing("innerloop.runs", f"innerloop.{part}")


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_use_runs_and_not_each_other(command: str) -> None:
    assert crossing(command, "innerloop.runs")
    for other in COMMANDS:
        if other != command:
            assert not crossing(command, other)


def test_only_commands_use_runs_and_only_entries_use_commands() -> None:
    """A new package of commands must be listed above, or this fails."""
    for module in ARROWS:
        if not any(within(module, part) for part in (*COMMANDS, "innerloop.runs")):
            assert not reached(module, "innerloop.runs"), module
            if module not in ENTRIES:
                assert not [name for part in COMMANDS for name in reached(module, part)], module


@pytest.mark.parametrize(
    "source",
    [
        "import innerloop.compare.config",
        "from innerloop.compare import config",
        "from innerloop import compare",
        "from .. import compare",
        "from ..compare.config import Config",
        "def f():\n    import innerloop.compare as c",
        "if TYPE_CHECKING:\n    from innerloop.compare.config import Config",
        "import importlib\nimportlib.import_module('innerloop.compare.config')",
        "__import__('innerloop.compare')",
    ],
)
def test_every_way_to_import_is_seen(source: str) -> None:
    names = imports_of(source, "innerloop.runs.store", is_package=False)
    assert any(within(name, "innerloop.compare") for name in names)
