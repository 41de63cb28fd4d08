"""Each example runs with tiny settings and does what it says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "examples"


def run(name, *arguments):
    """Calls an example's main function."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(list(arguments))


def test_sinusoid(capsys):
    results = run("sinusoid", "--iterations", "60")
    assert set(results) == {"MAML", "FOMAML", "MetaSGD", "JointTraining"}
    assert all(result.loss.isfinite().all() for result in results.values())
    assert capsys.readouterr().out.count("(fused)") == 4


def test_omniglot_shaped(capsys):
    run("omniglot_shaped", "--iterations", "2", "--tasks", "4", "--repeats", "1")
    printed = capsys.readouterr().out
    assert "same meta-loss as the autograd loop: True" in printed
    assert "back end: fused" in printed


def test_any_module(capsys):
    result = run("any_module", "--iterations", "2", "--tasks", "2")
    assert result.accuracy.shape == (20, 3)
    assert "back end: batched" in capsys.readouterr().out


def test_maml_plus_plus(capsys):
    result = run("maml_plus_plus", "--iterations", "2", "--tasks", "2", "--channels", "4")
    assert result.accuracy.shape == (20, 4)
    assert "back end: batched" in capsys.readouterr().out
