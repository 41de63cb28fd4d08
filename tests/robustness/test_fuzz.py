"""Random calls, most of them spoilt: a right answer or one clear exception, never a crash.

They run in subprocesses with limited memory; a crash or a hang is reported with the seed that
`python tests/robustness/fuzz.py 1 SEED 1` repeats.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).with_name("fuzz.py")
QUICK, FULL, CHUNK = 3000, 100_000, 5000


def fuzz(folder, calls, first, every):
    """Returns the outcomes of some calls; fails with the seed and reason of each bad one."""
    seed_file = folder / f"seed-{first}"
    seed_file.write_text("none")
    run = subprocess.run(
        [sys.executable, str(FUZZ), str(calls), str(first), str(every)],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
        env={**os.environ, "FUZZ_SEED_FILE": str(seed_file)},
    )
    if run.returncode:
        seed = seed_file.read_text().strip()
        pytest.fail(f"status {run.returncode} at seed {seed}:\n{run.stderr[-3000:]}")
    report = json.loads(run.stdout)
    assert report["calls"] == calls
    assert report["complaints"] == []
    return report["outcomes"]


def check_mixture(outcomes, calls):
    """Asserts that the calls were of every kind, so that the above means something."""
    assert outcomes["compared"] > calls / 100
    for kind in ("answer", "ValueError", "TypeError"):
        assert outcomes[kind] > calls / 20
    assert outcomes["NotImplementedError"] > 0


def test_random_calls(tmp_path):
    check_mixture(fuzz(tmp_path, QUICK, 0, 10), QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(10**6, 10**6 + FULL, CHUNK))
def test_many_random_calls(tmp_path, first):
    check_mixture(fuzz(tmp_path, CHUNK, first, 3), CHUNK)
