"""What meta reinforcement learning computes of a policy, against autograd written with baddbmm over
tasks and against JAX, in one process: gradients, products, an epoch of ProMP, the products that
TRPO-MAML's constraint is solved with, and its whole outer step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import innerloop as il
import torch
from innerloop.rl.trust_region import TrustRegionStep, trust_region_step
from torch import Tensor

from baselines import jax_jit_baseline
from cases import policies as autograd
from cases.policies import CLIP, KL_COEFFICIENT, RATE, Leaves, PolicyProblem, make_problem
from measure import timing
from measure.worker import Request

SIZES = ((10, 1000), (40, 4000))  # tasks, rows on each side
OUTER_SIZE = (20, 1000)
MAX_KL = 0.01
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}  # of the whole result; a ratio may clip
FULL = timing.Effort(rounds=20, block_s=0.03, budget_s=1.5, fewest_rounds=5)
QUICK = timing.Effort(rounds=3, block_s=0.01, budget_s=0.3, fewest_rounds=2)

Calls = dict[str, Callable[[], Any]]


def run(request: Request) -> dict[str, Any]:
    """One row per operation and size: seconds of each rival, and how much faster innerloop is."""
    dtype = getattr(torch, request.dtype)
    effort = QUICK if request.quick else FULL
    rows = []
    for tasks, count in SIZES[:1] if request.quick else SIZES:
        exact = make_problem(tasks, count, request.seed)
        wide, problem = operations(autograd_rival(exact)), exact.to(dtype)
        rivals = {name: operations(rival) for name, rival in available(problem).items()}
        for operation, reference in wide.items():
            expected = flat(reference())
            calls = {name: found[operation] for name, found in rivals.items()}
            error = lambda found, expected=expected: relative(flat(found), expected)  # noqa: E731
            rows.append(
                {
                    **{"operation": operation, "tasks": tasks, "rows": count},
                    "rivals": timed(calls, error, TOLERANCE[dtype], effort),
                }
            )
        del wide, rivals
    problem = make_problem(*OUTER_SIZE, request.seed).to(dtype)
    steps = {name: outer_step(problem, rival) for name, rival in available(problem).items()}
    rows.append(
        {
            **{"operation": "TRPO-MAML outer step", "tasks": OUTER_SIZE[0], "rows": OUTER_SIZE[1]},
            "rivals": timed(steps, lambda step: 0.0 if step.accepted else 1.0, 0.5, effort),
        }
    )
    return {"kind": "policies", "rows": rows}


def timed(
    calls: Calls, error: Callable[[Any], float], tolerance: float, effort: timing.Effort
) -> dict[str, Any]:
    """The seconds of each rival, with its ratio to innerloop's."""
    results = timing.time_rivals(calls, error, tolerance, effort)
    ours, found = results["innerloop"], {}
    for name, each in results.items():
        if not isinstance(each, timing.Timing):
            found[name] = {"failed": str(each)}
            continue
        found[name] = {**each.summary(), "error": each.disagreement}
        if isinstance(ours, timing.Timing):
            found[name]["times"] = timing.paired_ratio(each.samples_s, ours.samples_s)
    return found


def flat(leaves: Mapping[str, Any]) -> Tensor:
    """A result in one row, in float64, leaves in a fixed order."""
    return torch.cat([torch.as_tensor(leaves[k]).double().reshape(-1) for k in sorted(leaves)])


def relative(found: Tensor, expected: Tensor) -> float:
    """The distance of two results."""
    return float((found - expected).norm() / expected.norm())


class Rival:
    """One way to compute everything at one problem. `constraint()` returns vector -> product;
    `surrogate` the objective with its gradient, `evaluate` it with the KL, after the inner step."""

    def __init__(
        self,
        problem: PolicyProblem,
        products: dict[str, Callable[[], Mapping[str, Any]]],
        constraint: Callable[[], Callable[[Any], Mapping[str, Any]]],
        surrogate_gradient: Callable[[], Leaves],
        evaluate: Callable[[Mapping[str, Tensor]], tuple[float, float]],
    ) -> None:
        self.problem = problem
        self.products = products
        self.constraint = constraint
        self.surrogate_gradient = surrogate_gradient
        self.evaluate = evaluate


def operations(rival: Rival) -> Calls:
    """The calls of one rival by operation."""
    vector = rival.problem.vector
    made: list[Callable[[Any], Mapping[str, Any]]] = []

    def further() -> Mapping[str, Any]:
        if not made:
            made.append(rival.constraint())
            made[0](vector)
        return made[0](vector)

    return {
        **rival.products,
        "constraint product, the first of a step": lambda: rival.constraint()(vector),
        "constraint product, each further": further,
    }


def outer_step(problem: PolicyProblem, rival: Rival) -> Callable[[], TrustRegionStep]:
    """A whole step of TRPO-MAML, less the sampling: gradient, eleven products, line search."""
    return lambda: trust_region_step(
        problem.params,
        rival.surrogate_gradient(),
        rival.constraint(),
        rival.evaluate,
        max_kl=MAX_KL,
    )


def available(problem: PolicyProblem) -> dict[str, Rival]:
    """The rivals that can run here."""
    found = {"innerloop": innerloop_rival(problem), "autograd": autograd_rival(problem)}
    if jax_jit_baseline.missing() is None:
        from cases import policies_jax

        found["JAX"] = Rival(problem, *policies_jax.rival(problem, moved(problem)))
    return found


def moved(problem: PolicyProblem) -> Leaves:
    """Parameters of every task after the inner step."""
    inner = autograd.loglik_losses(problem.support)
    shared, tasks = autograd.shared(problem.params), len(problem.support.x)
    return {k: v.detach() for k, v in autograd.adapted(inner, shared, tasks).items()}


def innerloop_rival(problem: PolicyProblem) -> Rival:
    """The public operations."""
    params, support, query, vector = problem
    policy = autograd.model()
    only: dict[str, Any] = {"model": policy}
    inner: dict[str, Any] = {"inner_lr": RATE, **only}
    once: dict[str, Any] = {"steps": 1, "loss": "pg_loglik", **inner}
    own = moved(problem)
    promp = {"loss": "pg_ratio", "query_loss": "pg_clipped", "clip": CLIP}
    return Rival(
        problem,
        {
            "gradient": lambda: il.loss_and_grad(params, support, loss="pg_ratio", **only)[1],
            "Hessian product": lambda: il.hvp(params, support, vector, loss="pg_ratio", **only),
            "Fisher product": lambda: il.fisher_product(own, query, vector, **only),
            "ProMP epoch": lambda: (
                il.meta_grad(
                    *(params, support, query),
                    **{"steps": 1, "kl_coefficient": KL_COEFFICIENT, **promp, **inner},
                ).grad
            ),
        },
        lambda: il.meta_fisher(params, support, query, **inner),
        lambda: il.meta_grad(params, support, query, query_loss="pg_ratio", **once).grad,
        lambda at: (
            float(il.meta_loss(at, support, query, query_loss="pg_ratio", **once).mean()),
            float(il.meta_loss(at, support, query, query_loss="kl", **once).mean()),
        ),
    )


def autograd_rival(problem: PolicyProblem) -> Rival:
    """cases/policies.py."""
    params, support, query, vector = problem
    tasks = len(support.x)
    own = moved(problem)
    ratio = autograd.ratio_losses(support)

    def surrogate_gradient() -> Leaves:
        leaves = autograd.shared(params)
        loss, _ = autograd.surrogate_and_kl(problem, leaves)
        return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

    def evaluate(at: Mapping[str, Tensor]) -> tuple[float, float]:
        loss, kl = autograd.surrogate_and_kl(problem, autograd.shared(dict(at)))
        return float(loss.detach()), float(kl.detach())

    return Rival(
        problem,
        {
            "gradient": lambda: autograd.gradient(ratio, autograd.copies(params, tasks)),
            "Hessian product": lambda: autograd.hessian_product(
                ratio, autograd.copies(params, tasks), vector
            ),
            "Fisher product": lambda: autograd.fisher_product(
                query, autograd.copies(own, tasks), vector
            ),
            "ProMP epoch": lambda: autograd.promp_gradient(problem),
        },
        lambda: autograd.ConstraintProducts(problem),
        surrogate_gradient,
        evaluate,
    )
