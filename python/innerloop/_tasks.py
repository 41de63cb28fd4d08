"""Maps a function of one task over all tasks: by torch.vmap, or in a loop for modules and losses
that vmap cannot take."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _torch_module

from innerloop._curvature import exact_curvature
from innerloop._derivatives import QUESTIONS
from innerloop._scripts import scripts_refused
from innerloop.objectives import Objective, stands_for

# what vmap refused, a module, or a callable loss with a model, and its reason
_LOOPED: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
_LOOPED_LOSSES: WeakKeyDictionary[Any, WeakKeyDictionary[Any, str]] = WeakKeyDictionary()
_WARNED: set[tuple[type, str]] = set()
# the folders of this package and of torch, through which modules are called
_INSIDE = (os.path.dirname(__file__) + os.sep, os.path.dirname(torch.__file__) + os.sep)


class FallbackWarning(UserWarning):
    """A slower way to the same result was taken, or what a module writes to itself was dropped; the
    text says why. Once per kind of module."""


def warn_of_fallback(text: str) -> None:
    """Warns at the line of the caller's own code; under torch.compile, when it is traced."""
    if torch.compiler.is_compiling():
        _warn_of_trace(text)
        return
    level = 2
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        level, frame = level + 1, frame.f_back
    warnings.warn(f"innerloop: {text}", FallbackWarning, stacklevel=level)


def _warn_of_trace(text: str) -> None:
    """Warns, called and not traced, with a line that means nothing."""
    warnings.warn(f"innerloop: {text}", FallbackWarning, stacklevel=2)


# what torch.compiler.assume_constant_result does, less its import of all of torch._dynamo
_warn_of_trace._dynamo_marked_constant = True  # type: ignore[attr-defined]


def loop_reason(model: object, objective: Objective | None = None) -> str | None:
    """Returns why a module, or a model with a callable loss, runs task by task on the torch back
    end, or None if it does not (yet)."""
    reason = _backward_hooks(model, objective)
    if reason is None and isinstance(model, nn.Module):
        reason = _LOOPED.get(model)
    if reason is None and objective is not None and objective.function is not None:
        with contextlib.suppress(TypeError):  # a callable without hash or weak references
            models = _LOOPED_LOSSES.get(stands_for(objective))
            reason = None if models is None else models.get(model)
    return reason


_EVERY_MODULES = (_torch_module._global_backward_hooks, _torch_module._global_backward_pre_hooks)


def _backward_hooks(model: object, objective: Objective | None) -> str | None:
    """Returns that a module or a loss has hooks that autograd calls: torch.vmap leaves them out."""
    loss = None if objective is None else objective.function
    for what in (model, loss):
        if isinstance(what, nn.Module) and not torch.compiler.is_compiling():
            for part in what.modules():
                if part._backward_hooks or part._backward_pre_hooks or any(_EVERY_MODULES):
                    return f"{type(part).__name__} has hooks for its backward pass"
    return None


def _remember(model: object, objective: Objective | None, reason: str) -> None:
    """Keeps the reason for the next call."""
    if objective is None or objective.function is None:
        assert isinstance(model, nn.Module)
        _LOOPED[model] = reason
        return
    with contextlib.suppress(TypeError):
        _LOOPED_LOSSES.setdefault(stands_for(objective), WeakKeyDictionary())[model] = reason


def over_tasks(
    model: object,
    objective: Objective | None,
    task: Callable[..., Any],
    trees: Sequence[Any],
    axes: Sequence[Any],
    tasks: int,
) -> Any:
    """Returns task(*trees of one task, looped) for every task, stacked along a leading axis. The
    task evaluates `model` and, unless it is None, `objective`.

    `trees` are tensors or nests of dicts and named tuples of them; `axes` mirror them with 0 where
    a tensor has a task axis and None where it is shared. A task returns tensors in dicts or tuples.
    """
    if tasks == 0:
        # one made-up task gives the shapes; nothing else of it is kept
        padded = [_each(_pad, tree, axis) for tree, axis in zip(trees, axes, strict=True)]
        return _each(lambda t, _: t[:0], over_tasks(model, objective, task, padded, axes, 1), 0)
    if not _runs_foreign_code(model, objective):
        return _map(model, objective, task, trees, axes, tasks)
    with exact_curvature(), scripts_refused():
        if isinstance(model, nn.Module):
            trees = (_copies(trees[0], axes[0]), *trees[1:])
        return _map(model, objective, task, trees, axes, tasks)


def _copies(params: dict[str, Tensor], axes: dict[str, int | None]) -> dict[str, Tensor]:
    """Returns parameters with copies of those that all tasks share, which are usually a module's
    own: what its forward pass does to them in place must not reach the module."""
    return {k: v.clone() if axes[k] is None else v for k, v in params.items()}


def _runs_foreign_code(model: object, objective: Objective | None) -> bool:
    """Says whether a task calls a module or a loss that is not of this package."""
    return isinstance(model, nn.Module) or (objective is not None and objective.rows is None)


_LOCK = threading.RLock()


_MOST_SECONDS = 10.0  # that a fork waits for a module to be whole
_forking: list[bool] = []  # whether forks under way hold the lock


def _before_fork() -> None:
    """Waits until no other thread has put values in the place of a module's parameters, with which
    a child would find them."""
    _forking.append(_LOCK.acquire(timeout=_MOST_SECONDS))


def _after_fork() -> None:
    """Lets other threads go on."""
    if _forking.pop():
        _LOCK.release()


def _new_lock() -> None:
    """Replaces the lock in a forked child, where its holder may not exist."""
    global _LOCK
    _forking.clear()
    _LOCK = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_new_lock)


def alone() -> AbstractContextManager[Any]:
    """Keeps other Python threads away from modules: the torch back end puts values in the place of
    parameters while a module runs, where another call of it (or of one that shares layers) would
    find them."""
    return nullcontext() if torch.compiler.is_compiling() else _LOCK


def _map(
    model: object,
    objective: Objective | None,
    task: Callable[..., Any],
    trees: Sequence[Any],
    axes: Sequence[Any],
    tasks: int,
) -> Any:
    """Returns over_tasks' result for at least one task."""
    reason = loop_reason(model, objective)
    if reason is None:
        foreign = _runs_foreign_code(model, objective) and not torch.compiler.is_compiling()
        before = random_state() if foreign else None
        QUESTIONS.asked = ""
        undo = QUESTIONS.start() if foreign else None
        try:
            mapped = torch.vmap(
                lambda *parts: task(*parts, False), in_dims=tuple(axes), randomness="different"
            )
            found = mapped(*trees)
            reason = QUESTIONS.asked  # it was refused an answer, and did without
            if not reason and foreign and tasks > 1 and random_state() != before:
                reason = "it draws numbers of Python's or NumPy's generator, once for all tasks"
            if not reason:
                return found
        except Exception as refusal:  # also one that the code made of torch.vmap's
            if not _runs_foreign_code(model, objective):
                raise
            reason = str(refusal).strip().split("\n")[0]
        finally:
            if undo is not None:
                undo()
    results = []
    for t in range(tasks):

        def select(value: Tensor, _: object, t: int = t) -> Tensor:
            return value[t]

        parts = (_each(select, tree, axis) for tree, axis in zip(trees, axes, strict=True))
        results.append(task(*parts, True))
    # only now: had the task failed as well, vmap was not to blame
    if _backward_hooks(model, objective) is None:
        _remember(model, objective, reason)
    what = type(model).__name__
    if objective is not None and objective.function is not None:
        what += f" with the loss {objective.name}"
    if (type(model), what) not in _WARNED:
        _WARNED.add((type(model), what))
        warn_of_fallback(f"{what} runs task by task, since torch.vmap cannot take it ({reason})")
    return _joined(results, torch.stack)


def random_state() -> object:
    """Returns the states of Python's and NumPy's own generators."""
    numpy = sys.modules.get("numpy")
    theirs = None if numpy is None else numpy.random.get_state(legacy=False)["state"]
    return random.getstate(), None if theirs is None else (theirs["pos"], theirs["key"].tobytes())


def _pad(tensor: Tensor, _: object) -> Tensor:
    """Returns a tensor of zero tasks as one of a single task of zeros."""
    return torch.cat([tensor, tensor.new_zeros(1, *tensor.shape[1:])])


def _each(function: Callable[[Tensor, Any], Any], tree: Any, axes: Any) -> Any:
    """Returns the tree with `function` applied to the tensors that have a task axis."""
    if tree is None or axes is None:
        return tree
    if isinstance(tree, dict):
        return {k: _each(function, v, axes[k] if axes != 0 else 0) for k, v in tree.items()}
    if isinstance(tree, tuple):
        axes = axes if axes != 0 else (0,) * len(tree)
        parts = [_each(function, v, a) for v, a in zip(tree, axes, strict=True)]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return function(tree, axes)


def _joined(parts: list[Any], join: Callable[[list[Tensor]], Tensor]) -> Any:
    """Returns the results of several calls with their tensors joined along the task axis."""
    if isinstance(parts[0], dict):
        return {k: _joined([p[k] for p in parts], join) for k in parts[0]}
    if isinstance(parts[0], tuple):
        return tuple(_joined(list(column), join) for column in zip(*parts, strict=True))
    return join(parts)
