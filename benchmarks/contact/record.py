"""The files of a visit: few, flat, whole after every write, and each result with the sources that
it was measured on."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from measure.environment import ROOT

FORMAT = "first-contact-1"
# Which steps lie in which file.
FILES = {
    "machine": ("card", "build"),
    "smoke": ("smoke",),
    "ours": ("ours",),
    "rivals": ("rivals",),
    "checks": ("tests", "alone", "memcheck", "racecheck", "synccheck"),
    "tuning": ("schedules", "ncu"),
}
STEPS = tuple(step for steps in FILES.values() for step in steps)
# running: not ended by itself, whatever ended it; skipped: it was not begun
STATES = ("running", "done", "failed", "skipped")
# What is of no interest elsewhere: builds, logs, references.
WORK = Path(os.environ.get("FIRST_CONTACT_WORK") or ROOT / "build/contact")

# What a result depends on. Files and commits are compared by it, so no git is needed to measure.
SOURCES = ("CMakeLists.txt", "cmake", "csrc", "python", "benchmarks", "tests/cuda")
SOURCES += ("tests/helpers.py", "tests/problems.py", "tests/tf32_products.py")
SUFFIXES = (".txt", ".cmake", ".map", ".h", ".cpp", ".cu", ".py", ".sh")


def counts(path: str) -> bool:
    """Whether a file under SOURCES is one of the sources."""
    generated = path.startswith("benchmarks/results/") or ".egg-info/" in path
    return path.endswith(SUFFIXES) and not generated


def digest(blobs: Iterable[tuple[str, str]]) -> str:
    """One number for a set of files, given as (path, git's number of the content)."""
    lines = sorted(f"{blob} {path}\n" for path, blob in blobs if counts(path))
    return hashlib.sha1("".join(lines).encode()).hexdigest()[:12]


@lru_cache(maxsize=1)
def present_sources() -> str:
    """The digest of the files here."""
    blobs = []
    for source in SOURCES:
        path = ROOT / source
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            name = file.relative_to(ROOT).as_posix()
            if counts(name) and file.is_file():
                content = file.read_bytes()
                blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                blobs.append((name, blob))
    return digest(blobs)


def sources_of(commit: str, root: Path = ROOT) -> str:
    """The digest of a commit's files."""
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-tree", "-r", "-z", commit, "--", *SOURCES],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    blobs = []
    for entry in filter(None, listed.split("\0")):
        facts, path = entry.split("\t", 1)
        blobs.append((path, facts.split()[2]))
    return digest(blobs)


# ---------------------------------------------------------------- files


def file_of(folder: Path, step: str) -> Path:
    """The file in which a step's result lies."""
    name = next(name for name, steps in FILES.items() if step in steps)
    return folder / f"{name}.json"


def read(folder: Path, step: str) -> dict[str, Any]:
    """What is recorded of a step on the present sources; empty if nothing is."""
    path = file_of(folder, step)
    if not path.exists():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text())["steps"].get(step, {})
    except (ValueError, KeyError, AttributeError):
        return {}  # cut off by a failing disk: measured again
    return found if found.get("sources") == present_sources() else {}


def write(folder: Path, step: str, entry: dict[str, Any]) -> None:
    """Puts a step's entry into its file, in one step; the others there stay."""
    path = file_of(folder, step)
    WORK.mkdir(parents=True, exist_ok=True)
    with (WORK / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the rivals compile beside other steps
        try:
            steps = dict(json.loads(path.read_text())["steps"])
        except (OSError, ValueError, KeyError, TypeError):
            steps = {}
        steps[step] = {"sources": present_sources(), **entry}
        partial = path.with_suffix(".partial")
        text = json.dumps({"format": FORMAT, "steps": steps}, indent=1) + "\n"
        for folder_of_machine in (ROOT, WORK, sys.prefix):  # in traces of errors
            text = text.replace(f"{folder_of_machine}/", "")
        partial.write_text(text)
        os.replace(partial, path)


def now() -> str:
    """The time as the files say it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class Step:
    """A step that is being taken: `result` is what it has found so far, also in an earlier visit
    that was cut off."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        before = read(folder, name)
        self.result: dict[str, Any] = before.get("result", {})
        self._entry = {"state": "running", "started": now()}
        self._save()

    def put(self, key: str, value: Any) -> None:
        """Adds a piece of the result, which is in the file when this returns."""
        self.result[key] = value
        self._save()

    def _save(self) -> None:
        write(self.folder, self.name, {**self._entry, "result": self.result})


def close(folder: Path, name: str, state: str, reason: str = "", seconds: int = 0) -> None:
    """Ends a step: whatever it found stays."""
    entry = {**read(folder, name)}
    if state == "skipped" and entry.get("result"):
        return  # what an earlier visit found says more
    write(
        folder,
        name,
        {**entry, "state": state, "reason": reason, "seconds": seconds, "ended": now()},
    )


def is_done(folder: Path, name: str) -> bool:
    """Whether a step needs no second visit."""
    return read(folder, name).get("state") == "done"
