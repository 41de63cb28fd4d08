"""The memory that the CPU kernels keep between calls: how much it is, and how to give it
back."""

from __future__ import annotations

from innerloop import _native


def workspace_bytes() -> int:
    """Returns the bytes of workspace that are kept for the next call in this process.

    Tensors are not part of it, but for what the layers of the batched back end have given back. The
    formula is in docs/memory.md.

    Example:
        >>> workspace_bytes() >= 0
        True
    """
    return int(_native.native().workspace_bytes()) if _native.is_available() else 0


def release_workspace() -> None:
    """Gives the kept workspace back to the system; the next call allocates anew.

    Example:
        >>> release_workspace()
        >>> workspace_bytes()
        0
    """
    if _native.is_available():
        _native.native().release_workspace()
