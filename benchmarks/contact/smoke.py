"""Every operation in every schedule and precision on one small problem each, against float64: the
first thing to know of kernels that no device has run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from contact import place, survive
from contact.record import Step

# Odd numbers of tasks and rows. The second network's first layer stays implicit where that pays.
NETWORKS: dict[str, dict[str, Any]] = {
    "small": {"widths": [6, 24, 24, 5], "tasks": 37, "rows": 11, "query": 7, "steps": 3},
    "wide inputs": {"widths": [200, 24, 12, 5], "tasks": 9, "rows": 5, "query": 7, "steps": 2},
}
SCHEDULES: dict[str, dict[str, int]] = {"free": {}, "3 x 40": {"tasks_per_block": 3, "threads": 40}}
SMALLEST = {"tasks": 5, "rows": 5, "query": 3, "steps": 2}  # under a sanitizer
TOLERANCE = {"float32": 1e-4, "float64": 1e-10}
CELL_S = 20.0  # a cell that takes longer never ends


class Cell(NamedTuple):
    """What is tried once."""

    operation: str
    schedule: str
    dtype: str
    network: str


def cells(dtypes: tuple[str, ...] = ("float32", "float64")) -> Iterator[Cell]:
    """What is tried, the operations as the package has them."""
    from innerloop.schedule import OPERATIONS

    for dtype in dtypes:
        for schedule in SCHEDULES:
            for operation in OPERATIONS:
                for network in NETWORKS:
                    yield Cell(operation, schedule, dtype, network)


def run(step: Step) -> None:
    """One entry per cell; what an earlier visit found is kept."""
    with poisoned_outputs():
        keys = [" | ".join(cell) for cell in cells()]
        survive.each(step, keys, lambda key: outcome(Cell(*key.split(" | ")), {}), CELL_S)


def under_a_tool(limit_s: float) -> None:
    """The cells in float32, smaller, one line each, as many as there is time for: what a sanitizer
    watches. What matters most comes first."""
    end = time.monotonic() + limit_s
    first = sorted(cells(("float32",)), key=lambda c: (c.operation != "meta_grad", c.network))
    with poisoned_outputs():
        for cell in first:
            if time.monotonic() < end:
                print("cell", " | ".join(cell), outcome(cell, SMALLEST), flush=True)


@contextmanager
def poisoned_outputs() -> Iterator[None]:
    """New tensors hold NaN while it lasts, so an element that no kernel writes shows."""
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def outcome(cell: Cell, smaller: dict[str, int]) -> dict[str, Any]:
    """{"error": the worst leaf's relative error, "equal": bits of two runs, "ok"}, or why not."""
    import innerloop as il
    import torch

    sizes = {**NETWORKS[cell.network], **smaller}
    try:
        call, options = drawn(cell.operation, sizes)
        expected = call(torch.float64, "cpu", backend="torch", **options)
        dtype = getattr(torch, cell.dtype)
        with il.fixed_plan(**SCHEDULES[cell.schedule]):
            found = [call(dtype, place.DEVICE, backend="fused", **options) for _ in "ab"]
        error = worst_error(found[0], expected)
        equal = all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(found[0], found[1], strict=True))
    except Exception as failure:  # whatever goes wrong is what the visit is for
        text = place.short(failure)
        return {"unfit": text} if "do not fit" in text else {"failed": text}
    return {"error": error, "equal": equal, "ok": error <= TOLERANCE[cell.dtype] and equal}


def worst_error(found: list[Any], expected: list[Any]) -> float:
    """The largest relative error of a leaf in its Euclidean norm; infinite if any number is not."""
    worst = 0.0
    for got, want in zip(found, expected, strict=True):
        if got.shape != want.shape:
            return float("inf")
        gap = float((got.cpu().double() - want).norm())
        scale = float(want.norm())
        ratio = gap / scale if scale > 0 else gap
        worst = max(worst, ratio if ratio == ratio else float("inf"))
    return worst


def drawn(operation: str, sizes: dict[str, Any]) -> tuple[Callable[..., list[Any]], dict[str, Any]]:
    """A call of an operation on fixed random numbers, `call(dtype, device, **options)`, which
    returns the result's tensors; and its options."""
    import innerloop as il
    import torch

    widths, tasks, steps = sizes["widths"], sizes["tasks"], sizes["steps"]
    model = il.MLP(widths, activation="tanh")
    generator = torch.Generator().manual_seed(5)
    params = model.init(generator, dtype=torch.float64)
    vector = {name: torch.randn(leaf.shape, generator=generator) for name, leaf in params.items()}
    sides = []
    for rows in (sizes["rows"], sizes["query"]):
        x = torch.randn(tasks, rows, widths[0], generator=generator)
        y = torch.randn(tasks, rows, widths[-1], generator=generator)
        sides.append((x, y))
    takes = {
        "meta_grad": ("support", "query"),
        "meta_loss": ("support", "query"),
        "adapt": ("support",),
        "hvp": ("support", "vector"),
        "loss_and_grad": ("support",),
        "predict": ("x",),
    }

    def call(dtype: torch.dtype, device: str, **options: Any) -> list[Any]:
        def move(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: move(leaf) for name, leaf in value.items()}
            if isinstance(value, tuple):
                return tuple(map(move, value))
            return value.to(device=device, dtype=dtype)

        given = {"support": sides[0], "query": sides[1], "vector": vector, "x": sides[0][0]}
        arguments = [move(given[name]) for name in takes[operation]]
        result = getattr(il, operation)(move(params), *arguments, model=model, **options)
        return tensors(result)

    options: dict[str, Any] = {} if operation == "predict" else {"loss": "mse"}
    if operation in ("meta_grad", "meta_loss", "adapt"):
        options |= {"inner_lr": 0.05, "steps": steps}
    return call, options


def tensors(result: Any) -> list[Any]:
    """The tensors of a result, in a fixed order."""
    import torch

    if isinstance(result, torch.Tensor):
        return [result.detach()]
    if isinstance(result, dict):
        return [leaf for value in result.values() for leaf in tensors(value)]
    if isinstance(result, tuple):
        return [leaf for value in result for leaf in tensors(value)]
    return []  # a name, or what was not asked for
