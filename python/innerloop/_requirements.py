"""Says in one line that PyTorch is missing or too old. Imported before anything that needs it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NoReturn

OLDEST = (2, 4)


def _is_command() -> bool:
    """Says whether this process is the command `innerloop` or `python -m innerloop`."""
    if sys.argv[:1] == ["-m"]:  # so far: the package is imported before the module is found
        return any(text.partition(".")[0] == "innerloop" for text in sys.orig_argv[1:])
    return Path(sys.argv[0]).stem == "innerloop" if sys.argv else False


def _stop(error: type[ImportError], problem: str, remedy: str) -> NoReturn:
    """Raises the error; ends a command with its line alone."""
    text = f"innerloop needs PyTorch {OLDEST[0]}.{OLDEST[1]} or later ({problem}): {remedy}"
    if _is_command():
        sys.exit(text)
    raise error(text, name="torch") from None


try:
    import torch
except ModuleNotFoundError as missing:
    if missing.name != "torch":
        raise
    _stop(ModuleNotFoundError, "there is no torch", "pip install torch")

_version = re.match(r"(\d+)\.(\d+)", torch.__version__)
if _version is not None and (int(_version[1]), int(_version[2])) < OLDEST:
    _stop(ImportError, f"this is {torch.__version__}", "pip install --upgrade torch")
