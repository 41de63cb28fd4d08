"""`train`: iterations of an algorithm, with their history."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from innerloop.policies import GaussianMLP
from innerloop.rl import _checks
from innerloop.rl import algorithms as kinds
from innerloop.rl._policy_checks import check_policy
from innerloop.rl.environment import Environment
from innerloop.rl.ranks import check_group
from innerloop.rl.seeds import derived
from innerloop.rl.settings import ALGORITHMS, build_settings, published_iterations

# places below the seed of a training
PARAMETERS, ITERATIONS = 0, 1


class Training:
    """A training that can go on; what `train` returns.

    Members:
        algorithm: its name.
        model: the `GaussianMLP`.
        settings: {name: value}, all of them.
        history: one row {name: value} an iteration: "iteration", "steps" (control steps taken so
            far, all phases), "return" (undiscounted, before adaptation), "adapted_return" (None for
            joint training), "success", "adapted_success" (None where the environment has no such
            flag), "loss", "kl" (mean, recorded against new policy; TRPO-MAML: of the adapted
            policies), "entropy", "sampling_seconds", "learning_seconds", and what the algorithm
            adds: "kl_coefficient"; "accepted", "tried".
    """

    def __init__(
        self,
        env: Environment,
        algorithm: str,
        *,
        seed: int,
        model: GaussianMLP | None = None,
        params: Mapping[str, Tensor] | None = None,
        **settings: Any,
    ) -> None:
        op = "rl.train"
        if not isinstance(env, Environment):
            _checks.refuse_type(op, "env", "be made by rl.make or rl.from_gymnasium", repr(env))
        self._env = env
        self.algorithm = _checks.choice(op, "algorithm", algorithm, ALGORITHMS)
        if model is not None and "hidden" in settings:
            raise TypeError(f"{op}: hidden must not be given beside model, which has its own sizes")
        chosen = build_settings(op, env.name, algorithm, settings)
        self._seed = _checks.seed(op, seed)
        if model is None:
            model = GaussianMLP([env.observation_size, *chosen.hidden, env.action_size])
        if params is None:
            if not isinstance(model, GaussianMLP):
                _checks.refuse_type(op, "model", "be a GaussianMLP", type(model).__name__)
            generator = torch.Generator().manual_seed(derived(self._seed, PARAMETERS))
            params = model.init(generator)
        check_policy(op, env, params, model)
        check_group(op, env.rank, env.world)
        self.model = model
        self.settings = asdict(chosen)
        self.settings["hidden"] = tuple(layer.outputs for layer in model.network.layers[:-1])
        self.history: list[dict[str, Any]] = []
        self._run = kinds.ALGORITHMS[algorithm](env, model, params, chosen)

    @property
    def params(self) -> dict[str, Tensor]:
        """The policy's parameters now, {name: tensor} (a copy)."""
        return {name: leaf.clone() for name, leaf in self._run.params.items()}

    def _about(self) -> dict[str, Any]:
        """Returns what decides on the numbers of a training, but for what the tasks are."""
        env, network = self._env, self.model.network
        sizes = [self.model.inputs, *(layer.outputs for layer in network.layers)]
        return {
            "algorithm": self.algorithm,
            "seed": self._seed,
            "environment": env.name,
            "tasks": env.tasks * env.world,
            "rollouts": env.rollouts,
            "horizon": env.horizon,
            "widths": sizes,
            "activation": self.model.activation,
            "min_log_std": self.model.min_log_std,
            **{name: value for name, value in self.settings.items() if name != "hidden"},
        }

    def step(self) -> dict[str, Any]:
        """Takes one iteration and returns its row of the history. The iteration is a function of
        the state and of (seed, number of the iteration).

        Raises:
            FloatingPointError: a gradient is not finite; parameters and history stay as they were.
        """
        start = time.perf_counter()
        done = len(self.history)
        found = self._run.iterate(derived(self._seed, ITERATIONS, done))
        seconds = time.perf_counter() - start
        steps = found.pop("steps") + (self.history[-1]["steps"] if done else 0)
        row = {"iteration": done, "steps": steps, **found}
        row["learning_seconds"] = seconds - row["sampling_seconds"]
        self.history.append(row)
        return row

    def state(self) -> dict[str, Any]:
        """Returns what `load_state` needs to go on with the same numbers: parameters, optimiser,
        coefficients, history, and what the training is. For `torch.save`."""
        history = [dict(row) for row in self.history]
        return {"training": self._about(), "history": history, **self._run.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state` of a training with the same arguments.

        Raises:
            ValueError: it is one of another training; the text names the first difference.
            TypeError: it is none.
        """
        if not isinstance(state, Mapping) or not {"params", "history"} <= state.keys():
            _checks.refuse_type(
                "load_state", "state", "be the `state` of a Training",
                f"{type(state).__name__} {sorted(map(str, state))}"
                if isinstance(state, Mapping)
                else type(state).__name__,
            )  # fmt: skip
        own = self._about()
        found = state.get("training", own)  # older states do not say
        for name, value in own.items():
            if found.get(name) != value:
                _checks.refuse(
                    "load_state",
                    "state",
                    f"be that of a training with {name} {value!r}",
                    repr(found.get(name)),
                    "build the Training with the arguments of the first one",
                )
        self._run.load(state)
        self.history = [dict(row) for row in state["history"]]


def train(
    env: Environment,
    algorithm: str,
    *,
    iterations: int | None = None,
    seed: int,
    model: GaussianMLP | None = None,
    params: Mapping[str, Tensor] | None = None,
    callback: Callable[[Training], object] | None = None,
    **settings: Any,
) -> Training:
    """Returns a policy trained on the tasks of an environment.

    | algorithm | outer step | an iteration samples |
    |---|---|---|
    | "drs-ppo" | PPO on the pooled tasks (joint training, no adaptation) | once |
    | "promp" | clipped objective after one inner step, KL penalty before it | twice |
    | "drs-trpo" | TRPO on the pooled tasks | once |
    | "trpo-maml" | TRPO on the policies after one inner step | twice |

    Every iteration draws new tasks. Tasks, rollouts and horizon come from `env`.

    Under torchrun every process trains with its own `env` of a share of the tasks (`env.share(rank,
    world)`) and meets in the means of gradients and products: P numbers for each. The tasks, starts
    and noise are those of one process with all tasks; numbers agree up to the order of sums.

    Args:
        env: from `make` or `from_gymnasium`.
        algorithm: see the table.
        iterations: the algorithm's own; the published number by default.
        seed: of the parameters, tasks, episodes and actions.
        model: a policy; tanh with the published hidden layers by default.
        params: to start from, {name: tensor}; `model.init` by default. Their dtype is used.
        callback: called after each iteration with the training; what it returns is not used.
        settings: override the published ones, see `published_settings`: hidden, discount,
            gae_lambda, sampling, learning_rate, clip, epochs, inner_lr, kl_coefficient, kl_target,
            order, max_kl, cg_iterations, line_search_steps, line_search_ratio. An algorithm takes
            those that it has.

    Returns:
        Training, with params, model, settings and history.

    Raises:
        ValueError: a name is unknown, a number out of range, or the policy does not fit.
        TypeError: the algorithm has no such setting, or a value is of another kind.
        FloatingPointError: a gradient is not finite.

    Cost: an iteration takes T E H control steps (twice that for promp and trpo-maml) and, with
        P parameters and N = E H rows a task, O(epochs T N P) or O(cg_iterations T N P) operations.

    Source: Gao and Sener 2020; Rothfuss et al. 2019 (ProMP); Schulman et al. 2015, 2017 (TRPO,
        PPO); Finn, Abbeel, Levine 2017 (MAML).

    Example:
        >>> from innerloop import rl
        >>> env = rl.make("HalfCheetahRandVel", tasks=2, rollouts=2, horizon=10, threads=1)
        >>> training = rl.train(env, "promp", iterations=2, seed=0, hidden=(8,))
        >>> [row["steps"] for row in training.history]
        [80, 160]
    """
    training = Training(env, algorithm, seed=seed, model=model, params=params, **settings)
    if iterations is None:
        iterations = published_iterations(env.name, algorithm)
    for _ in range(_checks.integer("rl.train", "iterations", iterations, 0)):
        training.step()
        if callback is not None:
            callback(training)
    return training
