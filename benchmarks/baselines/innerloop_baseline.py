"""innerloop as a user calls it: the functional API, with backend="auto" on the CPU.

On a GPU the kernels are asked for by name, so that whatever "auto" takes there is not timed in
their place.
"""

from __future__ import annotations

from typing import Any

from cases.nine import Case, Problem

TITLE = "innerloop"
LIBRARY = False


def missing() -> str | None:
    """Why innerloop cannot run here, or None."""
    try:
        import innerloop
    except ImportError as error:
        return f"import failed: {error}"
    return None if hasattr(innerloop, "meta_grad") else "this build has no meta_grad"


def unfit(case: Case, device: str) -> str | None:
    """innerloop covers every case."""
    return None


def settings(device: str) -> dict[str, dict[str, Any]]:
    """There is nothing to choose."""
    return {_backend(device): {}}


def _backend(device: str) -> str:
    return "fused" if device == "cuda" else "auto"


def formulations(problem: Problem) -> dict[str, Any]:
    """One formulation: the public call."""
    return {"functional": lambda **options: _build(problem, **options)}


def model_of(case: Case) -> Any:
    """The network of a case as `innerloop.MLP`."""
    import innerloop as il

    return il.MLP(list(case.widths), activation=case.activation, bias=case.bias)


def _build(problem: Problem, **options: Any) -> Any:
    import innerloop as il

    case = problem.case
    model = model_of(case)
    names = list(case.shapes())
    params = {name: problem.params[name] for name in names}
    backend = _backend(problem.device)
    # As the documentation advises for tight loops: a number becomes a tensor at each call.
    inner_lr = case.inner_lr if problem.device == "cpu" else _rate(problem)
    if case.quantity == "hvp":
        vector = problem.vector

        def products() -> Any:
            result = il.hvp(
                params,
                problem.support,
                vector,
                model=model,
                loss=case.loss,
                backend=backend,
                **options,
            )
            return None, [result[name] for name in names]

        return products

    def gradient() -> Any:
        result = il.meta_grad(
            params,
            problem.support,
            problem.query,
            model=model,
            inner_lr=inner_lr,
            steps=case.steps,
            loss=case.loss,
            backend=backend,
            **options,
        )
        return result.loss, [result.grad[name] for name in names]

    return gradient


def _rate(problem: Problem) -> Any:
    return problem.support[0].new_full((), problem.case.inner_lr)


def schedule(case: Case, is_float64: bool = False, **options: Any) -> dict[str, Any]:
    """How the CUDA kernels cut the case into blocks, as `innerloop.plan` says.

    Args:
        case: the case.
        is_float64: the dtype of the call.
        options: `facts` of another GPU than the present one.
    """
    import innerloop as il
    import torch

    found = il.plan(
        model_of(case),
        tasks=case.tasks,
        support_rows=case.support,
        query_rows=case.query,
        steps=case.steps,
        loss=case.loss,
        operation=case.quantity,
        dtype=torch.float64 if is_float64 else torch.float32,
        per_task=case.quantity == "hvp",
        **options,
    )
    return dict(found._asdict())


def backend(problem: Problem) -> str:
    """Which backend was taken for the problem: "fused" or "torch"."""
    import innerloop as il

    case = problem.case
    result = il.meta_grad(
        problem.params,
        problem.support,
        problem.support,  # hvp cases have no query rows
        model=model_of(case),
        inner_lr=case.inner_lr,
        steps=case.steps,
        loss=case.loss,
        backend=_backend(problem.device),
    )
    return str(result.backend)
