"""Every instruction level gives the same answers, and INNERLOOP_SIMD chooses among them.

Tolerances, relative to each leaf's norm: the levels differ in the order of sums and in fused
multiply-adds only, so float64 agrees to 1e-12 and float32, away from kinks, to 2e-6 (some 15
roundings).
"""

import os
import subprocess
import sys

import pytest
import torch

import innerloop as il
from helpers import assert_close, randn_like
from innerloop import _native
from problems import random_problem, random_problem_away_from_kinks

LEVELS = ("baseline", "avx2", "avx512")
STRATEGIES = ("lanes", "rows")


def results(problem):
    """Returns {operation: tensors} of every fused operation on one problem."""
    full = problem.call(il.meta_grad, backend="fused")
    common = {"model": problem.model, "loss": problem.options["loss"], "backend": "fused"}
    inner = {k: problem.options[k] for k in ("inner_lr", "steps", "adapt_params")}
    vector = {k: v / 3 for k, v in randn_like(problem.params, 3).items()}
    x, y, count, _ = problem.query
    clean = torch.nan_to_num(x)
    loss, grad = il.loss_and_grad(problem.params, problem.query, **common)
    return {
        "loss": full.loss,
        "grad": full.grad,
        "inner_lr_grad": full.inner_lr_grad,
        "support_loss": full.support_loss,
        "adapt": il.adapt(problem.params, problem.support, **inner, **common),
        "loss_and_grad": {"loss": loss, **grad},
        "hvp": il.hvp(problem.params, (x, y, count), vector, **common),
        "predict": il.predict(problem.params, clean, model=problem.model, backend="fused"),
    }


def compare(cpu, problem, level, tolerance):
    """Asserts that one level with either layout agrees with the baseline's."""
    if level not in cpu.simd_levels():
        pytest.skip(f"this machine or build lacks {level}")
    for strategy in STRATEGIES:
        cpu.set_strategy(strategy)
        cpu.set_simd_level("baseline")
        expected = results(problem)
        cpu.set_simd_level(level)
        for name, actual in results(problem).items():
            # rates have inner products as gradients: the largest shows the size of what cancels
            floor = 1.0 if name == "inner_lr_grad" else 1e-2
            assert_close(actual, expected[name], tolerance, f"{strategy} {name}", floor=floor)


@pytest.mark.parametrize("seed", range(16))
@pytest.mark.parametrize("level", LEVELS[1:])
def test_float64_agrees(cpu_settings, level, seed):
    compare(cpu_settings, random_problem(seed), level, 1e-12)


@pytest.mark.parametrize("seed", range(100, 116))
@pytest.mark.parametrize("level", LEVELS[1:])
def test_float32_agrees(cpu_settings, level, seed):
    problem = random_problem_away_from_kinks(seed).to(torch.float32)
    compare(cpu_settings, problem, level, 2e-6)


@pytest.mark.parametrize("level", LEVELS)
def test_strategies_agree(cpu_settings, level):
    """Tasks in lanes and rows in lanes are two layouts of one algorithm."""
    if level not in cpu_settings.simd_levels():
        pytest.skip(f"this machine or build lacks {level}")
    cpu_settings.set_simd_level(level)
    problem = random_problem(5, tasks=19, steps=3, depth=3)
    cpu_settings.set_strategy("lanes")
    expected = results(problem)
    cpu_settings.set_strategy("rows")
    for name, actual in results(problem).items():
        assert_close(actual, expected[name], 1e-12, name, floor=1e-2)


def python(code, **environment):
    """Returns the finished run of a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )


def chosen_level(variable):
    """Returns the level that the extension takes; alone, since torch has no part in it."""
    code = (
        "import importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('_cpu', {_native.native().__file__!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "print(module.simd_level())"
    )
    return python(code, INNERLOOP_SIMD=variable).stdout.strip()


def test_levels_are_ascending_and_the_widest_is_the_default():
    levels = _native.native().simd_levels()
    assert levels == [name for name in LEVELS if name in levels]
    assert levels[0] == "baseline"
    assert chosen_level("") == levels[-1]


@pytest.mark.parametrize("level", _native.native().simd_levels() if _native.is_available() else [])
def test_environment_chooses_the_level(level):
    assert chosen_level(level) == level


def test_environment_with_an_unknown_level_is_reported():
    """The report names variable, value and choices; operations fall back visibly."""
    code = (
        "import torch, innerloop as il\nfrom innerloop.diagnostics import report\n"
        "print(report())\nmodel = il.MLP([1, 1])\nprint(il.backend_for(model))\n"
        "il.predict(model.init(), torch.ones(1, 1, 1), model=model, backend='fused')"
    )
    run = python(code, INNERLOOP_SIMD="avx9")
    (line,) = [row for row in run.stdout.splitlines() if row.startswith("fused CPU kernels")]
    assert "INNERLOOP_SIMD must be one of baseline" in line
    assert "(got avx9)" in line
    assert "backend='batched'" in run.stdout
    assert run.stderr.splitlines()[-1].startswith("NotImplementedError: predict: backend")
    assert "INNERLOOP_SIMD must be one of" in run.stderr.splitlines()[-1]


def test_setting_an_unknown_level_or_strategy_raises(cpu_settings):
    with pytest.raises(ValueError, match=r"set_simd_level: name must be one of baseline.*got sse9"):
        cpu_settings.set_simd_level("sse9")
    with pytest.raises(ValueError, match=r"strategy must be auto, lanes or rows \(got columns\)"):
        cpu_settings.set_strategy("columns")
