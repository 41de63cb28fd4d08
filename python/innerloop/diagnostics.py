"""The environment report: what is installed, which kernels this machine runs, why others are not
there, and how to ask for them."""

from __future__ import annotations

import os
import platform
from importlib import metadata, util
from typing import Any

import numpy
import torch

from innerloop import _native

EXTRAS = {  # of pyproject.toml, by what their code imports
    "cli": ("typer", "rich", "pandas", "pyarrow", "scipy", "matplotlib"),
    "rl": ("gymnasium", "mujoco"),
    "metaworld": ("metaworld",),
    "safetensors": ("safetensors",),
    "tensorboard": ("tensorboard",),
    "video": ("imageio", "imageio_ffmpeg"),
    "cluster": ("submitit",),
}
HOW_TO_ASK = (
    "Which kernels a call takes:  il.backend_for(module), learner.explain()",
    'To have these or an error:   backend="fused"',
    "Another instruction level:   INNERLOOP_SIMD=baseline (avx2, avx512) in the environment",
    "To build the CUDA kernels:   INNERLOOP_CUDA=ON pip install . (AUTO: for GPUs that are here)",
)


def environment() -> dict[str, Any]:
    """Returns the facts that decide how the fused operations run here.

    Returns:
        {name: value} in reading order; "fused" is "yes" or the reason why not.

    Example:
        >>> environment()["torch"] == torch.__version__
        True
    """
    facts: dict[str, Any] = {
        "innerloop": _version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "CUDA in torch": torch.version.cuda or "no",
        "numpy": numpy.__version__,
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processors": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "OpenMP in torch": "yes" if torch.backends.openmp.is_available() else "no",
        "fused CPU kernels": "yes" if _native.is_available() else f"no: {_native.reason()}",
    }
    if _native.is_available():
        cpu = _native.native()
        facts["SIMD levels"] = ", ".join(cpu.simd_levels())
        facts["SIMD level in use"] = cpu.simd_level()
        for name, value in cpu.build_info().items():
            facts[f"build: {name}"] = value
    reason = _native.cuda_reason()
    facts["fused CUDA kernels"] = f"no: {reason}" if reason else "yes"
    if _native.has_cuda_module():
        for name, value in _native.cuda().build_info().items():
            facts[f"build: CUDA {name}"] = value
    for extra, modules in EXTRAS.items():
        missing = [name for name in modules if util.find_spec(name) is None]
        remedy = f'pip install "innerloop[{extra}]"'
        facts[f"extra: {extra}"] = (
            f"no: {', '.join(missing)} missing; {remedy}" if missing else "yes"
        )
    return facts


def report() -> str:
    """Returns the environment as aligned text, one fact a line, then how to have other kernels.

    Example:
        >>> report().splitlines()[0].startswith("innerloop")
        True
    """
    facts = environment()
    width = max(len(name) for name in facts)
    lines = [f"{name:<{width}}  {value}" for name, value in facts.items()]
    return "\n".join([*lines, "", *HOW_TO_ASK])


def _version() -> str:
    """Returns the installed version, or says that the package runs from a source tree."""
    try:
        return metadata.version("innerloop")
    except metadata.PackageNotFoundError:
        return "source tree (not installed)"
