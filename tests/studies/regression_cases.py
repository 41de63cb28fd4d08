"""What the tests of the linear-regression study share: the estimators from given statistics, and a
second implementation of the random words."""

import numpy as np

from innerloop.studies.linear_regression.settings import Cell, Settings

MASK = 0xFFFFFFFF


def philox(key, counter):
    """Philox4x32-10 on Python integers: the four words of one counter of four words."""
    a, b, c, d = counter
    low, high = key & MASK, key >> 32
    for _ in range(10):
        first, second = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = second >> 32 ^ b ^ low, second & MASK, first >> 32 ^ d ^ high, first & MASK
        low, high = low + 0x9E3779B9 & MASK, high + 0xBB67AE85 & MASK
    return a, b, c, d


def uniforms(key, draw, task, trial):
    """The two uniform numbers behind a counter: the middles of 2^52 intervals."""
    a, b, c, d = philox(key, (draw, task, trial, 0))
    return tuple(((x | y << 32) >> 12) * 2.0**-52 + 2.0**-53 for x, y in ((a, b), (c, d)))


def settings_of(p=1, rates=(0.0, 0.3, 1.0), **changes):
    """Settings whose grid does not matter."""
    return Settings(p=p, inner_lrs=rates, **changes)


def cell(tasks, samples):
    return Cell(tasks, samples)


def systems(tasks, rates):
    """The estimators' normal equations (W, z) by their definition, pooled first, then each rate.

    W [trials, 1 + R, p, p], z [trials, 1 + R, p] from the statistics of `draw_tasks`.
    """
    gram, moment = tasks.gram, tasks.moment[..., None]
    pairs = [(gram.sum((1, 2)), moment.sum((1, 2)))]
    for rate in rates:
        shrink = np.eye(gram.shape[-1]) - rate * gram[:, :, 0]
        right = moment[:, :, 1] - rate * gram[:, :, 1] @ moment[:, :, 0]
        pairs.append(((shrink @ gram[:, :, 1] @ shrink).sum(1), (shrink @ right).sum(1)))
    return np.stack([w for w, _ in pairs], 1), np.stack([z for _, z in pairs], 1)[..., 0]
