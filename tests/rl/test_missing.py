"""Without the extras: importing works, using says in one line what to install."""

import subprocess
import sys

import pytest

HIDE = """
import sys
class Hider:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hider())
import innerloop
from innerloop import rl
"""


def python(code, *hide):
    """The finished run of an interpreter that cannot find some packages."""
    return subprocess.run(
        [sys.executable, "-c", HIDE.format(names=hide) + code],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


@pytest.mark.parametrize(
    ("code", "hidden", "extra"),
    [
        ("rl.make('HopperRandParams')", ["mujoco", "gymnasium"], "rl"),
        ("rl.make('HalfCheetahRandVel')", ["mujoco"], "rl"),
        ("rl.make('ML10')", ["metaworld"], "metaworld"),
        ("rl.make('ML1-Push')", ["mujoco", "gymnasium", "metaworld"], "metaworld"),
        ("rl.from_gymnasium(int, sample_tasks=int, set_task=int)", ["gymnasium"], "rl"),
    ],
)
def test_one_line_says_what_to_install(code, hidden, extra):
    run = python(code, *hidden)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].endswith(
        f' is missing; run pip install "innerloop[{extra}]"'
    )
    assert "During handling" not in run.stderr


def test_a_misspelt_name_is_told_first():
    run = python("rl.make('HoperRandParams')", "mujoco", "gymnasium", "metaworld")
    assert "did you mean 'HopperRandParams'?" in run.stderr.splitlines()[-1]


def test_data_needs_no_extra():
    code = """
import numpy as np
zeros = np.zeros((5, 2, 3))
data = rl.Rollouts(np.zeros((5, 2, 3, 4)), zeros, zeros > 0, np.zeros((2, 3, 4)))
assert rl.advantages(data).shape == (5, 2, 3)
assert not {'mujoco', 'gymnasium', 'metaworld'} & set(sys.modules)
"""
    run = python(code, "mujoco", "gymnasium", "metaworld")
    assert (run.returncode, run.stderr) == (0, "")
