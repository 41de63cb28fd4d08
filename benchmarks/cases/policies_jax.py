"""The same as cases/policies.py in JAX: vmap over tasks, forward over reverse for products with a
vector, everything under jit with arrays already on the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import torch

from cases.policies import CLIP, KL_COEFFICIENT, RATE, WIDTHS, PolicyProblem

Arrays = dict[str, Any]


def means(params: Arrays, x: Any) -> Any:
    """Outputs [N, K] of one task."""
    layers, h = len(WIDTHS) - 1, x
    for layer in range(layers):
        h = h @ params[f"{layer}.weight"].T + params[f"{layer}.bias"]
        h = jnp.tanh(h) if layer + 1 < layers else h
    return h


def ratios(params: Arrays, batch: Arrays) -> Any:
    """pi / pi_old of every row [N]."""
    s, old = params["log_std"], batch["log_std"]
    z = (batch["action"] - means(params, batch["x"])) * jnp.exp(-s)
    z_old = (batch["action"] - batch["mean"]) * jnp.exp(-old)
    return jnp.exp((old - s + 0.5 * (z_old**2 - z**2)).sum(-1))


def ratio_loss(params: Arrays, batch: Arrays) -> Any:
    """-mean of rho A."""
    return -(ratios(params, batch) * batch["advantage"]).mean()


def clipped_loss(params: Arrays, batch: Arrays) -> Any:
    """-mean of min(rho A, clip(rho) A)."""
    ratio, advantage = ratios(params, batch), batch["advantage"]
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * advantage).mean()


def loglik_loss(params: Arrays, batch: Arrays) -> Any:
    """-mean of A log pi, less a constant."""
    s = params["log_std"]
    z = (batch["action"] - means(params, batch["x"])) * jnp.exp(-s)
    return (batch["advantage"] * (s + 0.5 * z**2).sum(-1)).mean()


def kl_loss(params: Arrays, batch: Arrays) -> Any:
    """Mean KL(recorded || policy)."""
    change = params["log_std"] - batch["log_std"]
    gap = (means(params, batch["x"]) - batch["mean"]) * jnp.exp(-params["log_std"])
    return (change + 0.5 * (jnp.exp(-2 * change) + gap**2 - 1)).sum(-1).mean()


def stepped(inner: Callable[..., Any], params: Arrays, batch: Arrays) -> Arrays:
    """Parameters of one task after one inner step."""
    step = jax.grad(inner)(params, batch)
    return jax.tree.map(lambda p, g: p - RATE * g, params, step)


def fisher(params: Arrays, batch: Arrays, vector: Arrays) -> Arrays:
    """One task's Fisher matrix times a vector."""
    itself = {**batch, "mean": means(params, batch["x"]), "log_std": params["log_std"]}
    return jax.jvp(lambda p: jax.grad(kl_loss)(p, itself), (params,), (vector,))[1]


def hessian(params: Arrays, batch: Arrays, vector: Arrays) -> Arrays:
    """One task's Hessian of the ratio's loss times a vector."""
    return jax.jvp(lambda p: jax.grad(ratio_loss)(p, batch), (params,), (vector,))[1]


def promp(params: Arrays, support: Arrays, query: Arrays) -> Any:
    """ProMP's objective."""

    def of_task(before: Arrays, after: Arrays) -> Any:
        clipped = clipped_loss(stepped(ratio_loss, params, before), after)
        return clipped + KL_COEFFICIENT * kl_loss(params, before)

    return jax.vmap(of_task)(support, query).mean()


def adapted_mean(loss: Callable[..., Any]) -> Callable[[Arrays, Arrays, Arrays], Any]:
    """The mean over tasks of a loss after one inner step."""

    def mean(params: Arrays, support: Arrays, query: Arrays) -> Any:
        def of_task(before: Arrays, after: Arrays) -> Any:
            return loss(stepped(loglik_loss, params, before), after)

        return jax.vmap(of_task)(support, query).mean()

    return mean


def constraint(params: Arrays, support: Arrays, query: Arrays, vector: Arrays) -> Arrays:
    """The Hessian of the mean KL after one inner step times a vector."""
    slope = jax.grad(adapted_mean(kl_loss))
    return jax.jvp(lambda p: slope(p, support, query), (params,), (vector,))[1]


def put(leaves: Mapping[str, Any]) -> Arrays:
    """Tensors as arrays."""
    return {k: jnp.asarray(v.numpy()) for k, v in leaves.items()}


def taken(leaves: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Arrays as tensors, computed."""
    return {k: torch.from_dlpack(v) for k, v in jax.block_until_ready(dict(leaves)).items()}


def rival(problem: PolicyProblem, moved: Mapping[str, torch.Tensor]) -> tuple[Any, ...]:
    """The members of routines.policies.Rival after the problem; `moved`: parameters of every task
    for the Fisher product."""
    if problem.support.x.dtype == torch.float64:
        jax.config.update("jax_enable_x64", True)
    names = ("x", "action", "advantage", "mean", "log_std")
    sides = [
        put({name: getattr(side, name) for name in names})
        for side in (problem.support, problem.query)
    ]
    support, query = sides
    params, vector, own = put(problem.params), put(problem.vector), put(moved)
    rows, each = (None, 0), (None, 0, None)
    compiled = {
        "gradient": jax.jit(jax.vmap(jax.grad(ratio_loss), rows)),
        "Hessian product": jax.jit(jax.vmap(hessian, each)),
        "Fisher product": jax.jit(jax.vmap(fisher, (0, 0, None))),
        "ProMP epoch": jax.jit(jax.grad(promp)),
    }
    inputs = {
        "gradient": (params, support),
        "Hessian product": (params, support, vector),
        "Fisher product": (own, query, vector),
        "ProMP epoch": (params, support, query),
    }
    product = jax.jit(constraint)
    slope = jax.jit(jax.grad(adapted_mean(ratio_loss)))
    surrogate, kl = jax.jit(adapted_mean(ratio_loss)), jax.jit(adapted_mean(kl_loss))
    return (
        {name: lambda name=name: taken(compiled[name](*inputs[name])) for name in compiled},
        lambda: lambda v: taken(product(params, support, query, put(v))),
        lambda: taken(slope(params, support, query)),
        lambda at: (
            float(surrogate(put(at), support, query)),
            float(kl(put(at), support, query)),
        ),
    )
