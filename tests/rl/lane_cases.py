"""Small gymnasium environments for the tests, at the top of a module so that workers find them."""

import os

import gymnasium
import numpy as np


class Counter(gymnasium.Env):
    """Observation (task, seed's draw, steps since reset); reward task + the sum of the action; ends
    itself after `limit` steps; reports success on its third step."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = gymnasium.spaces.Box(-2.0, 2.0, (2,), np.float32)

    def __init__(self, limit=5, ending="terminated"):
        self.limit, self.ending, self.task, self.steps = limit, ending, 0.0, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        self.draw = self.np_random.uniform()
        return self._observe(), {}

    def step(self, action):
        self.steps += 1
        over = self.steps >= self.limit
        flags = (over, False) if self.ending == "terminated" else (False, over)
        reward = self.task + float(np.sum(action))
        return self._observe(), reward, *flags, {"is_success": self.steps == 3}

    def _observe(self):
        return np.array([self.task, self.draw, self.steps])


class Failing(Counter):
    """Fails in its second step: by an error, or with its process."""

    def step(self, action):
        if self.steps == 1:
            if self.task < 0:
                os._exit(7)
            raise KeyError("broken joint")
        return super().step(action)


class Broken(Counter):
    """Shows NaN where the task is negative: in its first observation or after a step."""

    def _observe(self):
        if self.task == -1.0 or (self.task < 0 and self.steps):
            return np.array([self.task, np.nan, self.steps])
        return super()._observe()


class Discrete(Counter):
    """Has actions that no Gaussian policy gives."""

    action_space = gymnasium.spaces.Discrete(3)


def truncating():
    return Counter(ending="truncated")


def sample_tasks(n, seed):
    return [float(task) for task in np.random.default_rng(seed).uniform(1, 2, n)]


def set_task(env, task):
    env.task = task
