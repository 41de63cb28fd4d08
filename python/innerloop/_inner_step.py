"""Which inner step a forward pass belongs to, for layers that differ from step to step."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Place(threading.local):
    """Where this thread is.

    Members:
        step: the inner step, from 0.
        was_asked: whether somebody has asked since it was set to False.
    """

    def __init__(self) -> None:
        # of each thread's own from the start: torch.compile guards which attributes there are
        self.step = 0
        self.was_asked = False


HERE = Place()


def inner_step() -> int:
    """Returns the inner step that the forward pass around it belongs to.

    The pass over the support rows before the update of step s is one of step s, and so is a pass
    with the parameters that this update gave: query rows are measured in the last step, S - 1.
    Before any step, and outside of innerloop's operations, it is 0, or what `at_step` says.

    Ask in `forward`, at each pass; whatever depends on the answer may differ from step to step,
    on the batched and the torch back end.

    Example:
        >>> inner_step()
        0
    """
    HERE.was_asked = True
    return HERE.step


@contextmanager
def at_step(step: int) -> Iterator[None]:
    """Makes the forward passes within it those of an inner step: of a module itself, of `predict`,
    `hvp` and `loss_and_grad`, and before the first step of an inner loop. Of this thread alone.

    Args:
        step: from 0.

    Example:
        >>> with at_step(3):
        ...     inner_step()
        3
    """
    before = HERE.step
    HERE.step = step
    try:
        yield
    finally:
        HERE.step = before


def last_step(steps: int) -> int:
    """Returns the step that a pass after so many updates belongs to."""
    return steps - 1 if steps else HERE.step
