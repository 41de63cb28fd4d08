"""The four algorithms, one iteration each: sample, improve, say what happened. `train` repeats it.

`examples/` has the same loops written out with public parts, to be changed at will.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from innerloop._one_task import Leaves
from innerloop.functional import adapt, loss_and_grad, meta_grad, meta_loss
from innerloop.policies import LOG_STD, GaussianMLP, PolicyBatch
from innerloop.policy_products import fisher_product, kl, meta_fisher
from innerloop.rl import settings
from innerloop.rl.advantage import advantages
from innerloop.rl.environment import Environment
from innerloop.rl.ranks import mean_leaves, mean_numbers
from innerloop.rl.rollouts import Rollouts, episode_returns, first_episodes, policy_batch
from innerloop.rl.sampling import collect
from innerloop.rl.seeds import derived
from innerloop.rl.trust_region import trust_region_step

Row = dict[str, Any]
S = TypeVar("S", bound=settings.Settings)
A = TypeVar("A", settings.PPO, settings.ProMP)

# places below the seed of an iteration
TASKS, BEFORE, AFTER = 0, 1, 2


@dataclass
class Phase:
    """One phase of sampling and the rows made of it."""

    rollouts: Rollouts
    batch: PolicyBatch
    seconds: float

    def mean_return(self) -> float:
        """Undiscounted return of the first episode of every lane, averaged."""
        return float(episode_returns(self.rollouts).mean())

    def success(self) -> float | None:
        """Share of lanes whose first episode reported success at some step."""
        flags, end = self.rollouts.success, self.rollouts.end
        if flags is None:
            return None
        first = first_episodes(end)
        return float((flags & first).any(0).mean())


class Algorithm(Generic[S]):
    """Parameters of a policy and how one iteration changes them."""

    pooled = False

    def __init__(
        self, env: Environment, model: GaussianMLP, params: Mapping[str, Tensor], chosen: S
    ) -> None:
        self.env = env
        self.model = model
        self.settings = chosen
        self.params: Leaves = {name: params[name].detach().clone() for name in model.names}

    def iterate(self, seed: int) -> Row:
        """One iteration, a function of the state and the seed; the row says what happened."""
        env = self.env
        tasks = env.sample_tasks(env.world * env.tasks, derived(seed, TASKS))
        env.set_tasks(tasks[env.rank * env.tasks : (env.rank + 1) * env.tasks])
        return self.improve(seed)

    def improve(self, seed: int) -> Row:
        """Samples on the tasks that are set, and updates `params`."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """What a later `load` needs to go on identically."""
        return {"params": {name: leaf.clone() for name, leaf in self.params.items()}}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state."""
        for name, leaf in self.params.items():
            leaf.copy_(state["params"][name])

    def sample(self, params: Mapping[str, Tensor], seed: int) -> Phase:
        """Acts with parameters (shared or per task) and makes rows of it."""
        start = time.perf_counter()
        chosen = self.settings
        data = collect(self.env, params, model=self.model, seed=seed, sampling=chosen.sampling)
        seconds = time.perf_counter() - start
        advantage = advantages(data, discount=chosen.discount, gae_lambda=chosen.gae_lambda)
        like = self.params[self.model.names[0]]
        return Phase(data, policy_batch(data, advantage, pooled=self.pooled, like=like), seconds)

    def mean(self, grad: Mapping[str, Tensor]) -> Leaves:
        """A gradient or product of this process's tasks, averaged over all processes."""
        return mean_leaves(grad, self.env.world)

    def mean_of(self, value: Tensor) -> float:
        """The mean of a number of each task [T], over the tasks of all processes."""
        return mean_numbers(self.env.world, float(value.mean()))[0]

    def row(self, phases: list[Phase], **rest: Any) -> Row:
        """What every algorithm reports, averaged over processes."""
        world = self.env.world
        returns = mean_numbers(world, *(phase.mean_return() for phase in phases))
        success = [phase.success() for phase in phases]
        shares = mean_numbers(world, *(share for share in success if share is not None))
        adapts = len(phases) > 1
        return {
            "return": returns[0],
            "adapted_return": returns[1] if adapts else None,
            "success": shares[0] if shares else None,
            "adapted_success": shares[1] if shares and adapts else None,
            "steps": world * sum(phase.rollouts.steps for phase in phases),
            "entropy": entropy(self.params, self.model),
            "sampling_seconds": sum(phase.seconds for phase in phases),
            **rest,
        }


class WithAdam(Algorithm[A]):
    """Algorithms whose outer step is Adam's, with the setting `learning_rate`."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._leaves = [torch.nn.Parameter(leaf) for leaf in self.params.values()]
        self.params = {
            name: leaf.data for name, leaf in zip(self.params, self._leaves, strict=True)
        }
        self._adam = torch.optim.Adam(self._leaves, lr=self.settings.learning_rate)

    def state(self) -> dict[str, Any]:
        return {**super().state(), "adam": self._adam.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        self._adam.load_state_dict(state["adam"])

    def descend(self, grad: Leaves) -> None:
        """One step of Adam along a gradient, in place."""
        check_finite(grad)
        for leaf, name in zip(self._leaves, self.params, strict=True):
            leaf.grad = grad[name]
        self._adam.step()


class JointPPO(WithAdam[settings.PPO]):
    """DRS with PPO: all tasks' rows are one batch, as if they came from one task."""

    pooled = True

    def improve(self, seed: int) -> Row:
        chosen = self.settings
        phase = self.sample(self.params, derived(seed, BEFORE))
        first = None
        for _ in range(chosen.epochs):
            loss, grad = loss_and_grad(
                self.params, phase.batch, model=self.model, loss="pg_clipped", clip=chosen.clip
            )
            first = loss if first is None else first
            self.descend(self.mean({name: leaf[0] for name, leaf in grad.items()}))
        assert first is not None, "epochs is at least 1"
        moved = kl(self.params, phase.batch, model=self.model)
        return self.row([phase], loss=self.mean_of(first), kl=self.mean_of(moved))


class ProMP(WithAdam[settings.ProMP]):
    """ProMP: a clipped objective after one inner step, with a penalty on the KL before it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.kl_coefficient = self.settings.kl_coefficient

    def state(self) -> dict[str, Any]:
        return {**super().state(), "kl_coefficient": self.kl_coefficient}

    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        self.kl_coefficient = state["kl_coefficient"]

    def improve(self, seed: int) -> Row:
        chosen = self.settings
        inner: dict[str, Any] = {"model": self.model, "inner_lr": chosen.inner_lr, "steps": 1}
        inner |= {"loss": "pg_ratio", "clip": chosen.clip}
        before = self.sample(self.params, derived(seed, BEFORE))
        adapted = adapt(self.params, before.batch, **inner)
        after = self.sample(adapted, derived(seed, AFTER))
        first = None
        for _ in range(chosen.epochs):
            step = meta_grad(
                self.params,
                before.batch,
                after.batch,
                query_loss="pg_clipped",
                kl_coefficient=self.kl_coefficient,
                order=chosen.order,
                **inner,
            )
            first = step.loss if first is None else first
            self.descend(self.mean(step.grad))
        assert first is not None, "epochs is at least 1"
        moved = self.mean_of(kl(self.params, before.batch, model=self.model))
        row = self.row(
            [before, after],
            loss=self.mean_of(first),
            kl=moved,
            kl_coefficient=self.kl_coefficient,
        )
        self.kl_coefficient = adapted_coefficient(self.kl_coefficient, moved, chosen.kl_target)
        return row


class JointTRPO(Algorithm[settings.TRPO]):
    """DRS with TRPO."""

    pooled = True

    def improve(self, seed: int) -> Row:
        phase = self.sample(self.params, derived(seed, BEFORE))
        batch, model = phase.batch, self.model
        _, grad = loss_and_grad(self.params, batch, model=model, loss="pg_ratio")

        def product(vector: Mapping[str, Tensor]) -> Leaves:
            found = fisher_product(self.params, batch, vector, model=model)
            return self.mean({name: leaf[0] for name, leaf in found.items()})

        def evaluate(params: Mapping[str, Tensor]) -> tuple[float, float]:
            loss = meta_loss(
                params, batch, batch, model=model, inner_lr=0.0, steps=0, loss="pg_ratio"
            )
            return self.mean_of(loss), self.mean_of(kl(params, batch, model=model))

        gradient = self.mean({name: leaf[0] for name, leaf in grad.items()})
        return self.row([phase], **self.search(gradient, product, evaluate))

    def search(
        self,
        gradient: Leaves,
        product: Callable[[Mapping[str, Tensor]], Leaves],
        evaluate: Callable[[Mapping[str, Tensor]], tuple[float, float]],
    ) -> Row:
        """Takes a trust-region step and returns what to report of it."""
        check_finite(gradient)
        chosen = self.settings
        step = trust_region_step(
            self.params,
            gradient,
            product,
            evaluate,
            max_kl=chosen.max_kl,
            cg_iterations=chosen.cg_iterations,
            line_search_steps=chosen.line_search_steps,
            line_search_ratio=chosen.line_search_ratio,
        )
        self.params = step.params
        return {"loss": step.loss, "kl": step.kl, "accepted": step.accepted, "tried": step.tried}


class TRPOMAML(JointTRPO):
    """TRPO-MAML: the trust region holds the policies after one inner step."""

    pooled = False
    settings: settings.TRPOMAML

    def improve(self, seed: int) -> Row:
        chosen, model = self.settings, self.model
        inner: dict[str, Any] = {"model": model, "inner_lr": chosen.inner_lr, "loss": "pg_loglik"}
        once: dict[str, Any] = {**inner, "steps": 1}
        before = self.sample(self.params, derived(seed, BEFORE))
        after = self.sample(adapt(self.params, before.batch, **once), derived(seed, AFTER))
        support, query = before.batch, after.batch

        curvature = meta_fisher(self.params, support, query, order=chosen.order, **inner)

        def product(vector: Mapping[str, Tensor]) -> Leaves:
            return self.mean(curvature(vector))

        def evaluate(params: Mapping[str, Tensor]) -> tuple[float, float]:
            loss = meta_loss(params, support, query, query_loss="pg_ratio", **once)
            moved = meta_loss(params, support, query, query_loss="kl", **once)
            return self.mean_of(loss), self.mean_of(moved)

        step = meta_grad(
            self.params, support, query, query_loss="pg_ratio", order=chosen.order, **once
        )
        return self.row([before, after], **self.search(self.mean(step.grad), product, evaluate))


def adapted_coefficient(coefficient: float, kl: float, target: float | None) -> float:
    """Returns the penalty's next coefficient: halved below target / 1.5, doubled above 1.5 target,
    as it is without a target."""
    if target is None:
        return coefficient
    if kl < target / 1.5:
        return coefficient / 2
    return coefficient * 2 if kl > target * 1.5 else coefficient


def entropy(params: Mapping[str, Tensor], model: GaussianMLP) -> float:
    """Returns the entropy of a policy's actions, in nats."""
    s = params[LOG_STD].clamp(min=model.min_log_std)
    return float((s + 0.5 * math.log(2 * math.pi * math.e)).sum())


def check_finite(grad: Mapping[str, Tensor]) -> None:
    """Raises if a gradient is not finite: better no step than a policy of NaN."""
    for name, leaf in grad.items():
        if not bool(leaf.isfinite().all()):
            raise FloatingPointError(
                f"train: the gradient of {name} is not finite, so the step was not taken; ratios "
                "have overflowed (lower the learning rate or the inner rate)"
            )


ALGORITHMS: Mapping[str, type[Algorithm[Any]]] = {
    "drs-ppo": JointPPO,
    "promp": ProMP,
    "drs-trpo": JointTRPO,
    "trpo-maml": TRPOMAML,
}
