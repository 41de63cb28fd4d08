"""Advantages against a plain loop over lists of episodes, and properties."""

import numpy as np
import pytest

from innerloop import rl

# float64 sums in another order, through normal equations whose condition number reaches 1e8
TOLERANCE = 1e-6


def rollouts(seed=0, rows=30, tasks=3, lanes=4, size=3, ends=0.1, last="mixed", dtype=np.float64):
    """Random data with episodes of random length; `last`: whether lanes end with the last row."""
    random = np.random.default_rng(seed)
    end = random.uniform(size=(rows, tasks, lanes)) < ends
    if last != "mixed":
        end[-1] = last == "ended"
    else:
        end[-1] = random.uniform(size=(tasks, lanes)) < 0.5
    observation = random.normal(size=(rows, tasks, lanes, size)) * 6  # some beyond +-10
    reward = random.normal(size=end.shape) + observation[..., 0]
    after = random.normal(size=(tasks, lanes, size))
    return rl.Rollouts(observation.astype(dtype), reward.astype(dtype), end, after.astype(dtype))


def plain(data, *, discount=0.99, gae_lambda=1.0, normalize=True):
    """The definition, an episode at a time."""
    rows, tasks, lanes, _ = data.observation.shape
    weight = np.ones(data.end.shape) if data.weight is None else data.weight.astype(np.float64)
    result = np.zeros((rows, tasks, lanes))

    def phi(observation, time):
        o = np.clip(observation.astype(np.float64), -10, 10)
        u = time / 100
        return np.concatenate([o, o**2, [u, u**2, u**3, 1.0]])

    for t in range(tasks):
        episodes = []  # (lane, first row, rows, finished)
        for e in range(lanes):
            first = 0
            for row in range(rows):
                if data.end[row, t, e]:
                    episodes.append((e, first, row + 1 - first, True))
                    first = row + 1
            if first < rows:
                episodes.append((e, first, rows - first, False))
        used = [episode for episode in episodes if weight[episode[1], t, episode[0]] > 0]
        x, y = [], []
        for e, first, length, finished in used:
            if finished:
                total = 0.0
                for k in range(length - 1, -1, -1):
                    total = float(data.reward[first + k, t, e]) + discount * total
                    x.append(phi(data.observation[first + k, t, e], k))
                    y.append(total)
        size = 2 * data.observation.shape[-1] + 4
        x, y = np.array(x).reshape(-1, size), np.array(y)
        theta = np.linalg.solve(x.T @ x + 1e-5 * np.eye(size), x.T @ y)
        for e, first, length, finished in used:
            values = [phi(data.observation[first + k, t, e], k) @ theta for k in range(length)]
            values.append(0.0 if finished else phi(data.next_observation[t, e], length) @ theta)
            running = 0.0
            for k in range(length - 1, -1, -1):
                delta = float(data.reward[first + k, t, e]) + discount * values[k + 1] - values[k]
                running = delta + discount * gae_lambda * running
                result[first + k, t, e] = running
        if normalize:
            rows_used = weight[:, t] > 0
            share = weight[:, t][rows_used] / weight[:, t].sum()
            values = result[:, t][rows_used]
            mean = (share * values).sum()
            deviation = np.sqrt((share * (values - mean) ** 2).sum())
            result[:, t][rows_used] = (values - mean) / (deviation + 1e-8)
    return result


def close(found, expected):
    assert found.dtype == np.float64
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=TOLERANCE * max(scale, 1e-12), rtol=0)


CASES = {
    "ragged": {},
    "all cut": {"last": "cut"},
    "all finished": {"last": "ended"},
    "long": {"ends": 0.0, "last": "ended", "rows": 150},
    "one lane, one episode": {"lanes": 1, "ends": 0.0, "last": "ended"},
    "one task": {"tasks": 1},
    "every step an episode": {"ends": 1.0, "last": "ended"},
    "float32": {"dtype": np.float32},
    "more features than rows": {"rows": 4, "lanes": 1, "size": 6, "ends": 0.5, "last": "ended"},
}


@pytest.mark.parametrize("gae_lambda", [1.0, 0.9, 0.0])
@pytest.mark.parametrize("discount", [0.99, 1.0, 0.0])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_plain_loop(case, discount, gae_lambda):
    data = rollouts(**CASES[case])
    options = {"discount": discount, "gae_lambda": gae_lambda}
    for normalize in (True, False):
        found = rl.advantages(data, normalize=normalize, **options)
        close(found, plain(data, normalize=normalize, **options))


@pytest.mark.parametrize("seed", range(5))
def test_weights_leave_rows_out(seed):
    """Unfinished episodes with weight 0 and garbage in their rows; unequal counts."""
    data = rollouts(seed, last="cut")
    used = np.flip(np.logical_or.accumulate(np.flip(data.end, 0), axis=0), 0)
    weight = used / used.sum((0, 2), keepdims=True)
    observation, reward, after = data.observation, data.reward, data.next_observation
    observation, reward = observation.copy(), reward.copy()
    observation[~used], reward[~used] = np.nan, np.inf
    spoilt = rl.Rollouts(observation, reward, data.end, after * np.nan, weight=weight)
    clean = rl.Rollouts(data.observation, data.reward, data.end, after, weight=weight)
    found = rl.advantages(spoilt)
    close(found, plain(clean))
    assert (found[~used] == 0).all()
    mean = (weight * found).sum((0, 2))
    np.testing.assert_allclose(mean, 0, atol=1e-12)
    np.testing.assert_allclose((weight * found**2).sum((0, 2)), 1, rtol=1e-6)


def test_task_without_a_finished_episode_has_no_baseline():
    data = rollouts(ends=0.0, last="cut")
    expected = np.zeros(data.reward.shape)
    running = np.zeros(data.reward.shape[1:])
    for row in range(len(expected) - 1, -1, -1):
        running = data.reward[row] + 0.9 * running
        expected[row] = running
    np.testing.assert_allclose(
        rl.advantages(data, discount=0.9, normalize=False), expected, rtol=1e-12
    )


def test_tasks_are_apart():
    """One task's advantages do not change with another's data."""
    data = rollouts()
    alone = rl.Rollouts(
        data.observation[:, 1:2], data.reward[:, 1:2], data.end[:, 1:2], data.next_observation[1:2]
    )
    np.testing.assert_allclose(
        rl.advantages(data)[:, 1:2], rl.advantages(alone), rtol=1e-7, atol=1e-9
    )


def test_ends_and_cuts_are_told_apart():
    """The bootstrap reaches the cut lane alone."""
    data = rollouts(ends=0.0, last="ended", lanes=2)
    end = data.end.copy()
    end[-1, :, 1] = False
    cut = rl.Rollouts(data.observation, data.reward, end, data.next_observation)
    far = rl.Rollouts(data.observation, data.reward, end, data.next_observation + 1)
    a, b = (rl.advantages(part, normalize=False) for part in (cut, far))
    np.testing.assert_array_equal(a[:, :, 0], b[:, :, 0])
    assert (a[:, :, 1] != b[:, :, 1]).all()


@pytest.mark.parametrize("reward", [0.0, 1.0, -1e6])
def test_constant_rewards(reward):
    """Nothing to tell actions apart: finite, and exactly 0 where all returns are equal."""
    for rows in (1, 20):
        data = rollouts(rows=rows, ends=0.0, last="ended")
        flat = rl.Rollouts(
            data.observation, np.full(data.reward.shape, reward), data.end, data.next_observation
        )
        found = rl.advantages(flat)
        assert np.isfinite(found).all()
        assert np.abs(found).max() < 20
        if reward == 0:
            assert (found == 0).all()


def test_huge_observations_are_clipped_not_refused():
    data = rollouts()
    observation = data.observation * 1e30
    far = rl.Rollouts(observation, data.reward, data.end, data.next_observation)
    close(rl.advantages(far), plain(far))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["observation", "reward", "next_observation"])
def test_refuses_what_is_not_finite(name, bad):
    data = rollouts(last="cut")
    getattr(data, name)[(*[0] * getattr(data, name).ndim,)] = bad
    with pytest.raises(ValueError, match=f"{name} must be finite"):
        rl.advantages(data)


@pytest.mark.parametrize("option", ["discount", "gae_lambda"])
def test_refuses_options(option):
    for value in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match=rf"{option} must lie in \[0, 1\]"):
            rl.advantages(rollouts(), **{option: value})
    with pytest.raises(TypeError, match=option):
        rl.advantages(rollouts(), **{option: "1"})
