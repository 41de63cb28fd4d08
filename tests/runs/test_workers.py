"""Jobs in processes of their own: results, errors, deaths, and nobody left behind."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from helpers import IN_CI
from innerloop.runs.errors import InputError
from innerloop.runs.workers import run_in_processes


def write(name: str, folder: Path) -> None:
    (folder / name).write_text(str(os.getpid()))


def fail(kind: str) -> None:
    if kind == "expected":
        raise InputError("what the user gave")
    if kind == "unexpected":
        raise KeyError("a bug")
    if kind == "dead":
        os._exit(7)
    time.sleep(60)


def test_every_job_is_done_by_one_of_the_workers(tmp_path: Path) -> None:
    watched: list[int] = []
    jobs = [(name,) for name in "abcde"]
    done = list(run_in_processes(write, jobs, 2, lambda: watched.append(1), (), (tmp_path,)))
    assert sorted(done) == [0, 1, 2, 3, 4]
    assert watched
    pids = {(tmp_path / name).read_text() for name in "abcde"}
    assert 1 <= len(pids) <= 2
    assert str(os.getpid()) not in pids
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("kind", "error", "text"),
    [
        ("expected", InputError, "what the user gave"),
        pytest.param("unexpected", RuntimeError, r"Traceback(.|\n)*KeyError: 'a bug'", marks=IN_CI),
        ("dead", RuntimeError, "exit code 7: killed, or out of memory"),
    ],
    ids=["expected", "unexpected", "dead"],
)
def test_a_failure_is_raised_and_ends_the_others(
    kind: str, error: type[Exception], text: str
) -> None:
    jobs = [("sleep",), (kind,)]
    with pytest.raises(error, match=text):
        list(run_in_processes(fail, jobs, 2, lambda: None, (InputError,)))
    assert not multiprocessing.active_children()
