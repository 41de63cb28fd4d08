"""Independent random streams as pure functions of a seed and a place, so that numbers depend on no
order of calls."""

from __future__ import annotations

import numpy as np


def derived(seed: int, *place: int) -> int:
    """Returns the seed (63 bits) of one place below another seed: an iteration, a phase, a chunk.

    Args:
        seed: at least 0.
        place: numbers that name the place, each at least 0.

    Example:
        >>> derived(0, 1) == derived(0, 1), derived(0, 1) == derived(1, 0)
        (True, False)
    """
    sequence = np.random.SeedSequence((seed, *place))
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def stream(seed: int, *place: int) -> np.random.Generator:
    """Returns the generator of one place below a seed."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, *place))))
