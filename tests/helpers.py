"""Comparisons that catch what absolute tolerances miss, finite differences, what needs a newer
torch, and processes that can be interrupted."""

import math
import signal

import pytest
import torch

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


def _needs(minor, what):
    reason = f"torch.compile of {what} needs torch 2.{minor}"
    return pytest.mark.skipif((2, minor) > TORCH, reason=reason)


# what dynamo can trace of the calls; docs/support.md says so
needs_compile = _needs(6, "the operations")
needs_compile_of_all_operations = _needs(9, "defaults that are named tuples")
needs_compile_of_modules = _needs(12, "the reading of a module")
needs_compile_of_unfused_modules = _needs(13, "the torch back end on a module")
needs_safe_attention = pytest.mark.skipif(
    TORCH < (2, 5), reason="attention to nothing is NaN in torch 2.4, 0 in newer ones and here"
)

# seconds that the quick suite does without: .ci/run has a step for them
IN_CI = (pytest.mark.slow, pytest.mark.ci)


def sweep(cases, quick):
    """Returns the cases of a sweep, of which the quick suite runs some."""
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)), marks=() if case in quick else IN_CI
        )
        for case in cases
    ]


def hear_interrupts():
    """For `preexec_fn`: a shell starts what runs in its background deaf to Ctrl-C, and children
    inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def norm(value):
    """Returns the Euclidean norm in float64."""
    return float(value.detach().double().norm())


def leaves_of(value):
    """Returns {label: tensor} of a tensor, a dict or a tuple of them; None is left out."""
    if isinstance(value, torch.Tensor):
        return {"": value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = {}
    for key, part in items:
        if part is not None:
            for inner, leaf in leaves_of(part).items():
                found[f"{key}{'.' if inner else ''}{inner}"] = leaf
    return found


def assert_close(actual, expected, tolerance, what="", floor=1e-4, scales=None):
    """Asserts leaf by leaf that ||actual - expected|| <= tolerance ||expected||, and that
    magnitudes agree row by row, so that a small gradient that is wrongly zero fails as well.

    A leaf (or row) whose expected norm is below `floor` times the largest leaf's (row's) is what is
    left of cancelled terms: it is held to that level instead of its own. `scales` gives the level
    of each leaf outright.
    """
    actual, expected = leaves_of(actual), leaves_of(expected)
    assert list(actual) == list(expected), what
    largest = max((norm(v) / math.sqrt(max(v.numel(), 1)) for v in expected.values()), default=0.0)
    for name, want in expected.items():
        got = actual[name]
        label = f"{what} {name}".strip()
        assert got.shape == want.shape, f"{label}: {list(got.shape)} for {list(want.shape)}"
        got, want = got.detach().double(), want.detach().double()
        assert torch.isfinite(got).all(), f"{label}: not finite"
        if want.numel() == 0:
            continue
        scale = max(norm(want), floor * largest * math.sqrt(want.numel()))
        if scales is not None:
            scale = norm(leaves_of(scales)[name])
        error = norm(got - want)
        assert error <= tolerance * scale, (
            f"{label}: relative error {error / max(scale, 1e-300):.2e} above {tolerance:.0e}"
        )
        if scales is not None:
            continue
        rows_want = want.reshape(want.shape[0], -1).norm(dim=1) if want.ndim > 1 else want.abs()
        rows_got = got.reshape(want.shape[0], -1).norm(dim=1) if want.ndim > 1 else got.abs()
        big = rows_want > 1e-2 * scale
        ratio = rows_got[big] / rows_want[big]
        slack = 100 * tolerance  # a row may be 1e-2 of the leaf that the tolerance is relative to
        assert bool((ratio - 1).abs().le(slack).all()), f"{label}: magnitudes differ, {ratio}"


def directional_difference(function, variables, direction, scale=1.0):
    """Returns the central difference of a scalar function of a dict of float64 tensors along a
    direction.

    The step balances truncation (step^2) and rounding (eps / step): step = eps^(1/3) = 6e-6, error
    near 1e-10.
    """
    step = torch.finfo(torch.float64).eps ** (1 / 3) * scale

    def moved(sign):
        return {k: v + sign * step * direction[k] for k, v in variables.items()}

    return (float(function(moved(1.0))) - float(function(moved(-1.0)))) / (2 * step)


def randn_like(variables, seed):
    """Returns a dict of standard normal tensors shaped like `variables`."""
    generator = torch.Generator().manual_seed(seed)
    return {
        k: torch.randn(v.shape, generator=generator, dtype=v.dtype) for k, v in variables.items()
    }


def inner_product(a, b):
    """Returns the sum over leaves of elementwise products."""
    return float(sum((a[k] * b[k]).sum() for k in a))
