"""Rollouts, returns of episodes, batches of rows."""

import numpy as np
import pytest
import torch

from innerloop import rl


def data(rows=6, tasks=2, lanes=3, size=2, actions=1, seed=0, weight=None, dtype=np.float32):
    random = np.random.default_rng(seed)

    def draw(*shape):
        return random.normal(size=shape).astype(dtype)

    end = random.uniform(size=(rows, tasks, lanes)) < 0.4
    end[-1] = True
    return rl.Rollouts(
        draw(rows, tasks, lanes, size),
        draw(rows, tasks, lanes),
        end,
        draw(tasks, lanes, size),
        draw(rows, tasks, lanes, actions),
        draw(rows, tasks, lanes, actions),
        np.tile(draw(1, actions), (tasks, 1)),
        weight,
    )


@pytest.mark.parametrize("seed", range(4))
def test_returns_of_first_episodes(seed):
    one = data(seed=seed)
    expected = np.empty((2, 3))
    for t in range(2):
        for e in range(3):
            last = int(np.argmax(one.end[:, t, e]))
            expected[t, e] = one.reward[: last + 1, t, e].astype(float).sum()
    np.testing.assert_allclose(rl.episode_returns(one), expected, rtol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_published_tester_takes_the_first_to_finish(seed):
    one = data(rows=12, seed=seed)
    for t in range(2):
        finished = []
        start = [0, 0, 0]
        for row in range(12):
            for e in range(3):
                if one.end[row, t, e]:
                    finished.append(one.reward[start[e] : row + 1, t, e].astype(float).sum())
                    start[e] = row + 1
        found = rl.episode_returns(one, tester="published")[t]
        np.testing.assert_allclose(found, finished[:3], rtol=1e-9)


def test_refuses_returns_of_unfinished_episodes():
    one = data()
    one.end[:, 1, 2] = False
    with pytest.raises(ValueError, match="none in task 1, lane 2"):
        rl.episode_returns(one)
    one.end[:] = False
    one.end[0, :, 0] = True
    with pytest.raises(ValueError, match="task 0 must finish 3 episodes"):
        rl.episode_returns(one, tester="published")
    with pytest.raises(ValueError, match="tester must be one of lanes, published"):
        rl.episode_returns(one, tester="lane")


def test_rows_of_a_task_are_its_own():
    one = data()
    advantage = np.random.default_rng(1).normal(size=one.reward.shape)
    batch = rl.policy_batch(one, advantage)
    assert batch.x.dtype == torch.float32
    assert batch.weight is None
    for t in range(2):
        np.testing.assert_array_equal(batch.x[t].numpy(), one.observation[:, t].reshape(18, 2))
        np.testing.assert_array_equal(batch.action[t].numpy(), one.action[:, t].reshape(18, 1))
        np.testing.assert_array_equal(batch.mean[t].numpy(), one.mean[:, t].reshape(18, 1))
        expected = advantage[:, t].reshape(18).astype(np.float32)
        np.testing.assert_array_equal(batch.advantage[t].numpy(), expected)
    np.testing.assert_array_equal(batch.log_std.numpy(), one.log_std)
    wide = rl.policy_batch(one, advantage, like=torch.zeros(1, dtype=torch.float64))
    assert {part.dtype for part in wide if part is not None} == {torch.float64}
    np.testing.assert_array_equal(wide.advantage[0].numpy(), advantage[:, 0].reshape(18))


def test_pooled_rows_weigh_the_same():
    """Tasks count by their rows, not equally."""
    used = np.random.default_rng(2).uniform(size=(6, 2, 3)) < np.array([0.9, 0.4])[:, None]
    weight = (used / used.sum((0, 2), keepdims=True)).astype(np.float32)
    one = data(weight=weight)
    batch = rl.policy_batch(one, np.zeros(one.reward.shape), pooled=True)
    assert batch.x.shape == (1, 36, 2)
    assert batch.log_std.shape == (1, 1)
    values = np.unique(batch.weight.numpy())
    assert len(values) == 2
    np.testing.assert_allclose(values, [0, 1 / used.sum()], rtol=1e-6)
    apart = rl.policy_batch(one, np.zeros(one.reward.shape))
    torch.testing.assert_close(apart.x.reshape(1, 36, 2), batch.x)
    torch.testing.assert_close(apart.weight.sum(1), torch.ones(2))


def test_refuses_pooling_several_policies():
    one = data()
    one.log_std[1] += 1
    with pytest.raises(ValueError, match="sampled with one policy"):
        rl.policy_batch(one, np.zeros(one.reward.shape), pooled=True)


def test_refuses_batches_without_actions_or_of_other_shapes():
    one = data()
    bare = rl.Rollouts(one.observation, one.reward, one.end, one.next_observation)
    with pytest.raises(ValueError, match="hold action, mean and log_std"):
        rl.policy_batch(bare, np.zeros(one.reward.shape))
    with pytest.raises(ValueError, match=r"advantage must have shape \[H, T, E\]"):
        rl.policy_batch(one, np.zeros((6, 2)))


GOOD = {
    "observation": np.zeros((5, 2, 3, 4)),
    "reward": np.zeros((5, 2, 3)),
    "end": np.zeros((5, 2, 3), bool),
    "next_observation": np.zeros((2, 3, 4)),
}


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"observation": np.zeros((5, 2, 3))}, ValueError, r"\[H, T, E, d\]"),
        ({"observation": np.zeros((0, 2, 3, 4))}, ValueError, "none of them 0"),
        ({"reward": np.zeros((5, 2))}, ValueError, "reward must have shape"),
        ({"end": np.zeros((5, 2, 3))}, TypeError, "end must be bool"),
        ({"next_observation": np.zeros((5, 2, 3, 4))}, ValueError, "next_observation must have"),
        ({"reward": np.zeros((5, 2, 3), int)}, TypeError, "reward must be float32 or float64"),
        ({"reward": np.zeros((5, 2, 3)).tolist()}, TypeError, "be a NumPy array"),
        ({"weight": np.zeros((5, 2))}, ValueError, "weight must have shape"),
        ({"action": np.zeros((5, 2, 3, 1)), "mean": np.zeros((5, 2, 3, 2))}, ValueError, "mean"),
        ({"action": np.zeros((5, 2, 3, 1)), "log_std": np.zeros(1)}, ValueError, "log_std"),
    ],
)
def test_refuses_arrays(change, error, text):
    rl.Rollouts(**GOOD)
    with pytest.raises(error, match=text):
        rl.Rollouts(**{**GOOD, **change})
