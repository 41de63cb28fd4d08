"""The loops in examples/ are the algorithms of `train`, bit for bit; and short."""

import importlib.util
from pathlib import Path

import pytest
import torch

from innerloop import rl

pytest.importorskip("mujoco", reason="needs innerloop[rl]")

FOLDER = Path(__file__).parents[2] / "examples"
LOOPS = {
    "rl_drs_ppo": ("drs-ppo", {}),
    "rl_promp": ("promp", {"learning_rate": 1e-2}),
    "rl_drs_trpo": ("drs-trpo", {}),
    "rl_trpo_maml": ("trpo-maml", {}),
}


def main(name):
    """An example's main function."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.mark.parametrize("name", LOOPS)
def test_loop_is_the_algorithm(name, capsys):
    algorithm, settings = LOOPS[name]
    sizes = {"tasks": 3, "rollouts": 2, "horizon": 15}
    given = [f"--{key}={value}" for key, value in {**sizes, "iterations": 3, "seed": 7}.items()]
    params = main(name)(given)
    assert capsys.readouterr().out.count("return") == 3
    with rl.make("HalfCheetahRandVel", **sizes) as env:
        expected = rl.train(env, algorithm, iterations=3, seed=7, **settings).params
    for key, leaf in expected.items():
        assert torch.equal(leaf, params[key]), key


@pytest.mark.parametrize("name", LOOPS)
def test_loop_is_short(name):
    assert len((FOLDER / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 80


def test_your_environment(capsys):
    returns = main("rl_your_environment")(["--iterations", "1", "--horizon", "10"])
    assert returns.shape == (2, 20, 2)
    assert "promp: return" in capsys.readouterr().out
