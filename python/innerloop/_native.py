"""Finds the compiled extension once and says why when it cannot be used."""

from __future__ import annotations

import importlib
from functools import lru_cache
from types import ModuleType

import torch  # noqa: F401  (first, so that a missing torch is reported as such)


@lru_cache(maxsize=1)
def _load() -> tuple[ModuleType | None, str]:
    """The module and "", or None and the reason."""
    try:
        return importlib.import_module("innerloop._cpu"), ""
    except ImportError as error:
        return None, f"innerloop._cpu could not be imported: {error}"
    except ValueError as error:  # INNERLOOP_SIMD names a level this machine lacks
        return None, str(error)


def is_available() -> bool:
    """Whether the fused CPU kernels can be called."""
    return _load()[0] is not None


def reason() -> str:
    """Why they cannot be called; empty when they can."""
    return _load()[1]


def native() -> ModuleType:
    """The extension module.

    Raises:
        RuntimeError: it is missing or cannot be loaded; the text says why.
    """
    module, why = _load()
    if module is None:
        raise RuntimeError(
            f'{why}; reinstall innerloop, or use backend="torch" which needs no extension'
        )
    return module
