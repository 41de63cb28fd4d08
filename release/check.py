"""Checks packages in clean environments: files of a release, and torch from the oldest on.

    python release/check.py wheels [PYTHON...]   sdist, a wheel of each Python, their tests
    python release/check.py torch [PYTHON]       tests with the oldest, a middle, the newest torch

PYTHON names an interpreter (default: this one). The oldest torch is the one that pyproject admits.
PyPI's torch for Linux on x86-64 is a CUDA build, gigabytes with what it needs: there, only builds
marked +cpu are taken, of an index in PIP_EXTRA_INDEX_URL or a folder in PIP_FIND_LINKS, and what
could not be had is said. `--cuda-builds` takes the others as well. A torch is tested by `tests/ops`
and `tests/learners`, of each test the first case and every tenth after it (reduced.py).

Needs Python 3.11, pip and a compiler; ends with status 1 if anything failed or no test was run.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SUITE = PROJECT["tool"]["cibuildwheel"]
TOOLS = ("build", "twine", "check-wheel-contents", "auditwheel")
ALONE = """
import glob, importlib.util, os, sys, sysconfig
folder = os.path.join(sysconfig.get_path("platlib"), "innerloop")
(path,) = glob.glob(os.path.join(folder, "_cpu.*.so"))
spec = importlib.util.spec_from_file_location("_cpu", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print("loads, level " + module.simd_level())
"""


class Failed(Exception):
    """A command that had to succeed; the text is the end of what it said."""


def run(*command: object, **variables: str) -> str:
    """Runs a command outside of the source tree; returns what it said."""
    hidden = ("PYTHONPATH", "CI", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    shown = shlex.join(str(part) for part in command)
    try:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=tempfile.gettempdir(),
            env={**kept, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    except OSError as error:
        raise Failed(f"{shown}: {error.strerror}") from error
    if done.returncode:
        raise Failed(f"{shown}: status {done.returncode}\n{done.stdout[-6000:]}")
    return done.stdout


def environment(folder: Path, python: str) -> Path:
    """A new environment of an interpreter; returns its own."""
    run(python, "-m", "venv", folder)
    return folder / "bin" / "python"


def oldest_torch() -> tuple[int, ...]:
    """What pyproject admits."""
    (floor,) = (need for need in PROJECT["project"]["dependencies"] if need.startswith("torch>="))
    return numbers(floor.removeprefix("torch>="))


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.partition("+")[0].split("."))


def torches(said: str, oldest: tuple[int, ...], any_build: bool) -> list[str]:
    """Versions to test of those that `pip index versions torch` lists, oldest first."""
    match = re.search(r"^Available versions: (.*)$", said, re.M)
    listed = match[1].split(", ") if match else []
    released = [text for text in listed if re.fullmatch(r"\d+(\.\d+)+(\+cpu)?", text)]
    if not any_build:
        released = [text for text in released if text.endswith("+cpu")]
    return sorted((text for text in released if numbers(text) >= oldest), key=numbers)


def available(python: Path, cuda_builds: bool) -> list[str]:
    """Versions of torch that the environment can have without CUDA, oldest first."""
    only_cpu = (platform.system(), platform.machine()) == ("Linux", "x86_64") and not cuda_builds
    try:
        said = run(python, "-m", "pip", "index", "versions", "torch")
    except Failed:  # none at all
        return []
    return torches(said, oldest_torch(), any_build=not only_cpu)


def three_of(versions: list[str]) -> list[str]:
    """The oldest, one in the middle, the newest."""
    return sorted({*versions[:1], *versions[len(versions) // 2 :][:1], *versions[-1:]}, key=numbers)


def suite(python: Path, *, reduced: bool) -> str:
    """Runs pyproject's test command, or the reduced suite; returns pytest's last line."""
    options = shlex.split(SUITE["test-command"].replace("{project}", str(ROOT)))[1:]
    if reduced:
        options = [option for option in options if not option.endswith("tests/packaging")]
        options += [str(ROOT / "tests" / "learners"), "-p", "reduced"]
    extra = {"PYTHONPATH": str(ROOT / "release")} if reduced else {}
    command = (python, "-m", "pytest", *options, "-p", "no:cacheprovider")
    return run(*command, **extra).strip().splitlines()[-1]


def wheel_of(python: Path, sdist: Path, folder: Path) -> Path:
    """Builds a wheel from the sdist, as pip does where none fits."""
    run(python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, sdist)
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(python: Path, wheel: Path, torch: str) -> None:
    run(python, "-m", "pip", "install", "-q", f"torch=={torch}", wheel, *SUITE["test-requires"])


def check_files(tools: Path, sdist: Path, wheel: Path) -> str:
    """Looks at metadata, contents and what the extension needs."""
    run(tools, "-m", "twine", "check", "--strict", sdist, wheel)
    run(tools.with_name("check-wheel-contents"), wheel)
    if platform.system() != "Linux":
        return "twine and check-wheel-contents pass"
    said = run(tools.with_name("auditwheel"), "show", wheel)
    tag = re.search(r'platform tag:\s*"([^"]+)"', said)
    return f"twine and check-wheel-contents pass; auditwheel: {tag[1] if tag else 'no tag'}"


def check_wheels(pythons: list[str], place: Path, cuda_builds: bool) -> list[str]:
    """The files, then each Python; returns one line each, the last ones of what was tested."""
    tools = environment(place / "tools", sys.executable)
    run(tools, "-m", "pip", "install", "-q", *TOOLS)
    run(tools, "-m", "build", "--sdist", "-o", place, ROOT)
    (sdist,) = place.glob("*.tar.gz")
    tested, failed = [], []
    for number, name in enumerate(pythons):
        folder = place / f"python{number}"
        try:
            tested += check_python(name, folder, tools, sdist, cuda_builds)
        except Failed as failure:
            failed.append(name)
            say(f"{name}: FAILED: {failure}")
    if failed:
        raise Failed(", ".join(failed))
    return tested


def check_python(name: str, folder: Path, tools: Path, sdist: Path, cuda_builds: bool) -> list[str]:
    """One Python: its wheel, the extension alone, the tests if there is a torch; returns a line on
    what was tested."""
    python = environment(folder / "environment", name)
    version = run(python, "-V").strip()
    wheel = wheel_of(python, sdist, folder / "wheel")
    say(f"{version}: {wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB")
    say(f"{version}: {check_files(tools, sdist, wheel)}")
    run(python, "-m", "pip", "install", "-q", "--no-deps", wheel)
    say(f"{version}: extension without torch: {run(python, '-c', ALONE).strip()}")
    versions = available(python, cuda_builds)
    if not versions:
        say(f"{version}: NOT TESTED: pip has no CPU build of torch for it here")
        return []
    torch = newest_that_installs(python, wheel, versions)
    line = f"{version}, torch {torch}: {suite(python, reduced=False)}"
    say(line)
    return [line]


def newest_that_installs(python: Path, wheel: Path, versions: list[str]) -> str:
    """Installs the newest torch that pip takes, of the last three that an index lists: it may have
    no file for this Python, or a constraint may refuse one. Returns its version."""
    failures = []
    for torch in versions[:-4:-1]:
        try:
            install(python, wheel, torch)
        except Failed as failure:
            failures.append(str(failure))
            say(f"torch {torch} cannot be installed here")
        else:
            return torch
    raise Failed(failures[0])


def check_torch(name: str, place: Path, cuda_builds: bool) -> list[str]:
    """One wheel with three torches; returns one line each."""
    first = environment(place / "python", name)
    versions = available(first, cuda_builds)
    floor = ".".join(map(str, oldest_torch()))
    if not versions or numbers(versions[0])[:2] != oldest_torch():
        say(f"NOT TESTED: torch {floor}: pip has no CPU build of it for {name} here")
    if len(versions) < 3:
        say(f"pip has these CPU builds of torch >= {floor}: {', '.join(versions) or 'none'}")
    run(first, "-m", "pip", "install", "-q", "build")
    run(first, "-m", "build", "--sdist", "-o", place, ROOT)
    (sdist,) = place.glob("*.tar.gz")
    wheel = wheel_of(first, sdist, place / "wheel")
    tested = []
    for wanted in three_of(versions):
        python, version = environment(place / f"torch-{wanted}", name), wanted
        if wanted == versions[-1]:
            version = newest_that_installs(python, wheel, versions)
        else:
            install(python, wheel, version)
        tested.append(f"torch {version}: {suite(python, reduced=True)}")
        say(tested[-1])
    return tested


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def main() -> int:
    """Takes the command line."""
    parser = argparse.ArgumentParser(
        "release/check.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("wheels", "torch"))
    parser.add_argument("python", nargs="*", default=[sys.executable], metavar="PYTHON")
    parser.add_argument("--cuda-builds", action="store_true", help="take CUDA builds of torch too")
    given = parser.parse_intermixed_args()
    # commands run elsewhere; a link in a virtual environment is not followed
    pythons = [os.path.abspath(name) if os.sep in name else name for name in given.python]
    if given.what == "torch" and len(pythons) != 1:
        parser.error("torch takes one PYTHON")
    with tempfile.TemporaryDirectory(prefix="innerloop-check-") as folder:
        place = Path(folder)
        try:
            if given.what == "wheels":
                tested = check_wheels(pythons, place, given.cuda_builds)
            else:
                tested = check_torch(pythons[0], place, given.cuda_builds)
        except Failed as failure:
            say(f"FAILED: {failure}")
            return 1
    if not tested:
        say("FAILED: no test was run")
    return 0 if tested else 1


if __name__ == "__main__":
    sys.exit(main())
