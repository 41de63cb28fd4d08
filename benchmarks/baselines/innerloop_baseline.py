"""innerloop as a user calls it: the functional API with backend="auto"."""

from __future__ import annotations

from typing import Any

from cases import Case, Problem

TITLE = "innerloop"
LIBRARY = False


def missing() -> str | None:
    """Why innerloop cannot run here, or None."""
    try:
        import innerloop
    except ImportError as error:
        return f"import failed: {error}"
    return None if hasattr(innerloop, "meta_grad") else "this build has no meta_grad"


def unfit(case: Case) -> str | None:
    """innerloop covers every case."""
    return None


def settings() -> dict[str, dict[str, Any]]:
    """There is nothing to choose."""
    return {"auto": {}}


def formulations(problem: Problem) -> dict[str, Any]:
    """One formulation: the public call."""
    return {"functional": lambda: _build(problem)}


def model_of(case: Case) -> Any:
    """The network of a case as `innerloop.MLP`."""
    import innerloop as il

    return il.MLP(list(case.widths), activation=case.activation, bias=case.bias)


def _build(problem: Problem) -> Any:
    import innerloop as il

    case = problem.case
    model = model_of(case)
    names = list(case.shapes())
    params = {name: problem.params[name] for name in names}
    if case.quantity == "hvp":
        vector = problem.vector

        def products() -> Any:
            result = il.hvp(params, problem.support, vector, model=model, loss=case.loss)
            return None, [result[name] for name in names]

        return products

    def gradient() -> Any:
        result = il.meta_grad(
            params,
            problem.support,
            problem.query,
            model=model,
            inner_lr=case.inner_lr,
            steps=case.steps,
            loss=case.loss,
        )
        return result.loss, [result.grad[name] for name in names]

    return gradient


def backend(problem: Problem) -> str:
    """Which backend "auto" chose for the problem: "fused" or "torch"."""
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
    )
    return str(result.backend)
