"""JAX: jit of vmap and grad, static shapes, arrays already on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cases.nine import Case, Problem

TITLE = "JAX jit(vmap(grad))"
LIBRARY = True


def missing() -> str | None:
    """Why JAX cannot run here, or None."""
    try:
        import jax  # noqa: F401
    except ImportError as error:
        return f"import failed: {error}"
    return None


def unfit(case: Case, device: str) -> str | None:
    """JAX covers every case, on a GPU if it was installed for one."""
    if device == "cuda":
        import jax

        try:
            jax.devices("gpu")
        except RuntimeError as error:
            return f"JAX has no GPU: {error}"
    return None


def wait(result: Any) -> None:
    """Waits for the numbers of a call on a GPU."""
    import jax

    jax.block_until_ready(result)


def settings(device: str) -> dict[str, dict[str, Any]]:
    """XLA's defaults, and the same without its own threads inside one operation; on a GPU, without
    command buffers (XLA's CUDA graphs), which it uses by default."""
    if device == "cuda":
        return {
            "default": {},
            "no command buffers": {"compiler_options": {"xla_gpu_enable_command_buffer": ""}},
        }
    return {
        "default": {},
        "no intra-op threads": {"compiler_options": {"xla_cpu_multi_thread_eigen": False}},
    }


def _forward(case: Case, params: dict[str, Any], x: Any) -> Any:
    import jax

    activations = {"relu": jax.nn.relu, "tanh": jax.numpy.tanh}
    for layer in range(case.layers):
        x = x @ params[f"{layer}.weight"].T
        if case.bias:
            x = x + params[f"{layer}.bias"]
        if layer < case.layers - 1:
            x = activations[case.activation](x)
    return x


def _loss(case: Case) -> Callable[..., Any]:
    import jax
    import jax.numpy as jnp

    def loss(params: dict[str, Any], x: Any, y: Any) -> Any:
        z = _forward(case, params, x)
        if case.loss == "cross_entropy":
            chosen = jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], axis=1)
            return -chosen.mean()
        return ((z - y) ** 2).mean() * (0.5 if case.loss == "half_mse" else 1.0)

    return loss


def _functions(case: Case) -> dict[str, Callable[..., Any]]:
    import jax

    loss = _loss(case)
    if case.quantity == "hvp":

        def product(params: Any, vector: Any, x: Any, y: Any) -> Any:
            return jax.jvp(lambda p: jax.grad(loss)(p, x, y), (params,), (vector,))[1]

        def reverse(params: Any, vector: Any, x: Any, y: Any) -> Any:
            def directional(p: Any) -> Any:
                gradient = jax.grad(loss)(p, x, y)
                return sum((gradient[name] * vector[name]).sum() for name in p)

            return jax.grad(directional)(params)

        return {
            "vmap(jvp(grad))": lambda *a: (None, jax.vmap(product)(*a)),
            "vmap(grad(<grad, v>))": lambda *a: (None, jax.vmap(reverse)(*a)),
        }

    def adapted_loss(params: Any, xs: Any, ys: Any, xq: Any, yq: Any) -> Any:
        for _ in range(case.steps):
            gradient = jax.grad(loss)(params, xs, ys)
            params = jax.tree.map(lambda p, g: p - case.inner_lr * g, params, gradient)
        return loss(params, xq, yq)

    over_tasks = (None, 0, 0, 0, 0)

    def grad_of_mean(params: Any, *batch: Any) -> Any:
        def mean_loss(p: Any) -> Any:
            losses = jax.vmap(adapted_loss, in_axes=over_tasks)(p, *batch)
            return losses.mean(), losses

        gradient, losses = jax.grad(mean_loss, has_aux=True)(params)
        return losses, gradient

    def mean_of_grads(params: Any, *batch: Any) -> Any:
        each = jax.vmap(jax.value_and_grad(adapted_loss), in_axes=over_tasks)
        losses, gradient = each(params, *batch)
        return losses, jax.tree.map(lambda leaf: leaf.mean(0), gradient)

    return {"grad(mean(vmap))": grad_of_mean, "mean(vmap(grad))": mean_of_grads}


def _arguments(problem: Problem) -> tuple[Any, ...]:
    import jax
    import torch

    if problem.support[0].dtype == torch.float64:
        jax.config.update("jax_enable_x64", True)

    if problem.device == "cuda":
        # Its default lets float32 products run in tf32, which nobody else here is allowed.
        jax.config.update("jax_default_matmul_precision", "highest")
    there = jax.devices("gpu" if problem.device == "cuda" else "cpu")[0]

    def put(tensor: torch.Tensor) -> Any:
        return jax.device_put(tensor.cpu().numpy(), there)

    params = {name: put(leaf) for name, leaf in problem.params.items()}
    support = tuple(put(side) for side in problem.support)
    if problem.vector is not None:
        return (params, {name: put(leaf) for name, leaf in problem.vector.items()}, *support)
    return (params, *support, *(put(side) for side in problem.query))


def formulations(problem: Problem) -> dict[str, Any]:
    """Jitted calls of each way to write the case."""
    import jax

    names = list(problem.case.shapes())
    # On a GPU calls queue, and the clock waits for the last one (`wait`).
    finish = jax.block_until_ready if problem.device == "cpu" else lambda result: result

    def build(function: Callable[..., Any], **options: Any) -> Callable[[], Any]:
        arguments = _arguments(problem)
        compiled = jax.jit(function, **options)

        def call() -> Any:
            losses, leaves = finish(compiled(*arguments))
            return losses, [leaves[name] for name in names]

        return call

    return {
        name: lambda function=function, **options: build(function, **options)
        for name, function in _functions(problem.case).items()
    }
