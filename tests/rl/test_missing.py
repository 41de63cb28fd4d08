"""Without the extras: importing works, using says in one line what to install."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks an interpreter")

ALL = ["mujoco", "gymnasium", "metaworld"]
DATA = """
import numpy as np
zeros = np.zeros((5, 2, 3))
data = rl.Rollouts(np.zeros((5, 2, 3, 4)), zeros, zeros > 0, np.zeros((2, 3, 4)))
assert rl.advantages(data).shape == (5, 2, 3)
assert not {'mujoco', 'gymnasium', 'metaworld'} & set(sys.modules)
"""
CASES = {  # what is run, and what cannot be found meanwhile
    "hopper": ("rl.make('HopperRandParams')", ["mujoco", "gymnasium"]),
    "cheetah": ("rl.make('HalfCheetahRandVel')", ["mujoco"]),
    "ML10": ("rl.make('ML10')", ["metaworld"]),
    "ML1": ("rl.make('ML1-Push')", ALL),
    "gymnasium": ("rl.from_gymnasium(int, sample_tasks=int, set_task=int)", ["gymnasium"]),
    "misspelt": ("rl.make('HoperRandParams')", ALL),
    "data": (DATA, ALL),
}
PROGRAM = """
import json, os, sys, traceback
hidden = set({all!r})
class Hider:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hider())
import innerloop
from innerloop import rl
for case, (code, names) in {cases!r}.items():
    child = os.fork()
    if child == 0:
        hidden.clear()
        hidden.update(names)
        said = ""
        try:
            exec(code)
        except Exception:
            said = traceback.format_exc()
        print(json.dumps([case, said]), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def said():
    """{case: the traceback that it ends with}, each in a fork of an interpreter that has imported
    innerloop.rl without the extras."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(all=ALL, cases=CASES)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    return dict(json.loads(line) for line in run.stdout.splitlines())


@pytest.mark.parametrize(
    ("case", "extra"),
    [
        ("hopper", "rl"),
        ("cheetah", "rl"),
        ("ML10", "metaworld"),
        ("ML1", "metaworld"),
        ("gymnasium", "rl"),
    ],
)
def test_one_line_says_what_to_install(case, extra, said):
    last = said[case].splitlines()[-1]
    assert last.endswith(f' is missing; run pip install "innerloop[{extra}]"')
    assert "During handling" not in said[case]


def test_a_misspelt_name_is_told_first(said):
    assert "did you mean 'HopperRandParams'?" in said["misspelt"].splitlines()[-1]


def test_data_needs_no_extra(said):
    assert said["data"] == ""
