"""Finds the compiled extensions, each once, and says why one cannot be used."""

from __future__ import annotations

import importlib
import re
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch  # (first, so that a missing torch is reported as such)
from torch import Tensor

_REMEDY = 'reinstall innerloop, or use backend="torch" which needs no extension'


@lru_cache(maxsize=2)
def _load(name: str) -> tuple[ModuleType | None, str]:
    """The module and "", or None and the reason."""
    try:
        return importlib.import_module(f"innerloop.{name}"), ""
    except ImportError as error:
        return None, f"innerloop.{name} could not be imported: {error}"
    except ValueError as error:  # INNERLOOP_SIMD names a level this machine lacks
        return None, str(error)


def is_available() -> bool:
    """Whether the fused CPU kernels can be called."""
    return _load("_cpu")[0] is not None


def reason() -> str:
    """Why they cannot be called; empty when they can."""
    return _load("_cpu")[1]


@lru_cache(maxsize=1)
def native() -> ModuleType:
    """The extension module of the CPU kernels.

    Raises:
        RuntimeError: it is missing or cannot be loaded; the text says why.
    """
    return _module("_cpu")


def cuda() -> ModuleType:
    """The extension module of the CUDA kernels, loaded at the first call.

    Raises:
        RuntimeError: it is missing or cannot be loaded; the text says why.
    """
    return _module("_cuda")


def _module(name: str) -> ModuleType:
    """Returns an extension module."""
    module, why = _load(name)
    if module is None:
        raise RuntimeError(f"{why}; {_REMEDY}")
    return module


def runs_directly(x: Any) -> bool:
    """Says whether execution is ordinary and eager on plain tensors, where the kernel itself is
    called (5 us less a call) instead of the op that torch dispatches."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or type(x) not in (Tensor, torch.nn.Parameter)
        or x.device.type not in ("cpu", "cuda")
    )


def has_cuda_module() -> bool:
    """Whether this installation has CUDA kernels, whatever the machine has."""
    return _load("_cuda")[0] is not None


@lru_cache(maxsize=64)
def cuda_reason(index: int | None = None) -> str:
    """Why the fused CUDA kernels cannot be called on a device (the current one if None); empty when
    they can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return "torch finds no usable NVIDIA GPU"
    module, why = _load("_cuda")
    if module is None:
        return f"{why}; CUDA kernels {_cuda_build()}" if is_available() else why
    built, driver = int(module.toolkit_version()), int(module.driver_version())
    if driver // 1000 < built // 1000:
        return (
            f"the kernels are built with CUDA {_version(built)} and the driver takes code for "
            f"CUDA {_version(driver)} at most; update the driver"
        )
    architectures = str(module.build_info()["architectures"])
    major, minor = torch.cuda.get_device_capability(index)
    if not has_code(architectures, (major, minor)):
        return (
            f"the kernels are built for {architectures} and {torch.cuda.get_device_name(index)} is "
            f"sm_{major}{minor}; install innerloop on this machine, or with INNERLOOP_CUDA=ON"
        )
    return ""


def has_code(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether a GPU of a compute capability runs what is built for `architectures`, in CMake's
    words: "80-real" is native code for later minor versions as well, "100-virtual" is PTX, from
    which the driver compiles for all that comes later, and "90" is both."""
    gpu = capability[0] * 10 + capability[1]
    for word in architectures.split():
        found = re.fullmatch(r"(\d+)([af]?)(-real|-virtual)?", word)
        if found is None:
            raise ValueError(f"has_code: {word!r} is no architecture of CMake's")
        number, only, kind = int(found[1]), found[2], found[3]
        generation = number // 10 == capability[0]
        if only == "a":  # features of this very GPU
            fits = gpu == number
        elif only == "f" or kind == "-real":
            fits = generation and gpu >= number
        else:
            fits = gpu >= number
        if fits:
            return True
    return False


def _cuda_build() -> str:
    """How the CUDA kernels were built, or why not: CMake's words (cmake/Cuda.cmake)."""
    return str(native().build_info()["cuda"])


def _version(number: int) -> str:
    """Returns CUDA's number of a version, such as 12080, as text."""
    return f"{number // 1000}.{number % 1000 // 10}"
