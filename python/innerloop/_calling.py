"""Errors in the words of the caller: they begin with the name of what was called, and an argument
that goes by another name elsewhere is answered with ours. Nothing here runs unless a call fails."""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import torch

from innerloop._storage import check_foreign

P = ParamSpec("P")
R = TypeVar("R")

ERRORS = (TypeError, ValueError, RuntimeError, MemoryError, AssertionError)

# what begins a message that was written further inside
_LABEL = re.compile(
    r"(meta_grad|meta_loss|mean_meta_loss|adapt|hvp|loss_and_grad|predict|reference|MAML"
    r"|JointTraining)(?=: )"
)
# beginnings of messages of the extension and of torch, which do not know who called, and remedies
_NAMELESS = {
    "target class must lie": "{}; count or weight leave rows out, and so does torch's loss with "
    'backend="torch" (class -100)',
    "count must lie": "{}",
    "scratch memory of": "{}; fewer tasks, rows or steps at a time take less",
    "[enforce fail at alloc_cpu": "{}; fewer tasks, rows or steps at a time take less",
    **dict.fromkeys(  # of x that is complex or bool, say, in a module that does not convert it
        ("mat1 and mat2 must have the same dtype", "Input type ("),
        "x must have the dtype of params unless the module converts it ({})",
    ),
    **dict.fromkeys(
        ("derivative for aten::", "the derivative for '"),
        "torch has no second derivative of this loss or module ({}); order=1, "
        "where there is a choice, needs none",
    ),
}

# our argument, and what it is called in other libraries and in people's loops
_ELSEWHERE = {
    "inner_lr": "lr learning_rate inner_learning_rate alpha fast_lr step_size inner_step_size "
    "update_lr lr_inner task_lr inner_rate",
    "steps": "inner_steps num_steps n_steps num_inner_steps n_inner_steps adaptation_steps "
    "adapt_steps num_updates update_steps update_step inner_iterations num_adaptation_steps "
    "n_inner num_inner",
    "loss": "criterion loss_fn loss_func loss_function objective lossfn",
    "module": "model net network",
    "model": "module net network",
    "params": "parameters weights theta",
    "support": "support_set train_set train",
    "query": "query_set test_set test",
    "task_weight": "task_weights weight weights",
    "learn_inner_lr": "learn_lr learnable_lr meta_sgd",
    "adapt_params": "adapt_parameters adapted_params inner_params",
}
_SENTENCES: dict[str, Callable[[object], str]] = {
    "first_order": lambda value: f"did you mean order={1 if value else 2}?",
    "second_order": lambda value: f"did you mean order={2 if value else 1}?",
    "allow_unused": lambda value: "it is not needed: unused parameters get zero gradients",
    "allow_nograd": lambda value: "it is not needed: what requires no grad is a constant",
    "device": lambda value: "move the module and the tensors with .to(device)",
    **dict.fromkeys(
        ("shots", "shot", "k_shot", "num_shots", "n_shots", "kshot", "k"),
        lambda value: "it is not needed: shots are the rows of a task, x [tasks, rows, ...]",
    ),
    **dict.fromkeys(
        ("ways", "way", "n_way", "num_ways", "num_classes"),
        lambda value: "it is not needed: classes are the outputs of the module",
    ),
    **dict.fromkeys(
        ("meta_batch_size", "batch_size", "tasks_per_batch", "num_tasks", "n_tasks"),
        lambda value: "it is not needed: tasks are the first axis, x [tasks, rows, ...]",
    ),
    **dict.fromkeys(
        ("meta_lr", "outer_lr", "lr_outer", "meta_optimizer", "optimizer", "outer_optimizer"),
        lambda value: "the outer loop is yours: torch.optim.Adam(learner.parameters(), lr=...)",
    ),
    **dict.fromkeys(
        ("track_higher_grads", "create_graph"),
        lambda value: "did you mean order=1? adapt and evaluate keep no graph",
    ),
}


def named(function: Callable[P, R]) -> Callable[P, R]:
    """Returns the function or method with errors that begin with its name; for a method with that
    of its object's class (MAML: ..., MAML.adapt: ...)."""
    method = function.__name__
    is_method = "." in function.__qualname__
    tail = "" if method in ("__init__", "__call__", "forward") else f".{method}"

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except ERRORS as error:
            name = type(args[0]).__name__ + tail if is_method and args else method
            restate(error, name, function, args, kwargs)
            raise

    return wrapped


def restate(
    error: Exception,
    name: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> None:
    """Rewrites the message of an error that left a call of `function`, known as `name`, if it is
    one of ours or says that the arguments do not fit.

    Raises:
        TypeError: the error is torch's, of a tensor that cannot be mixed with plain ones.
    """
    check_foreign(name, function, args, kwargs, error)
    if torch.compiler.is_compiling() or not error.args or not isinstance(error.args[0], str):
        return
    text = error.args[0]
    wrong = _misfit(name, function, args, kwargs) if isinstance(error, TypeError) else ""
    if wrong:
        text = wrong
    elif not text.startswith(f"{name}: "):
        text = _LABEL.sub(name, text, count=1) if _LABEL.match(text) else text
        for start, sentence in _NAMELESS.items():
            if text.startswith(start):
                text = f"{name}: {sentence.format(text)}"
    error.args = (text, *error.args[1:])


def _misfit(
    name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> str:
    """Returns what is wrong with the arguments of a call; empty if they fit its signature."""
    signature = inspect.signature(function)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as misfit:
        parameters = [p for p in signature.parameters.values() if p.name != "self"]
        known = [p.name for p in parameters]
        unknown = [key for key in kwargs if key not in known]
        if unknown:
            return f"{name}: " + "; ".join(_guess(key, kwargs[key], known) for key in unknown)
        places = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        given = len(args) - ("self" in signature.parameters)
        if given > len(places):
            others = ", ".join(f"{key}=..." for key in known if key not in places)
            return (
                f"{name}: only {', '.join(places)} may be given without a name (got {given} such "
                f"arguments); name the others: {others}"
            )
        missing = [
            p.name
            for p in parameters
            if p.default is p.empty and p.name not in kwargs and p.name not in places[:given]
        ]
        if missing:
            hint = ""
            if missing == ["query"] and any(isinstance(value, list) for value in args[1:]):
                hint = "; a list of tasks (x, y) becomes a batch by innerloop.batch(tasks)"
            return f"{name}: {', '.join(missing)} must be given{hint}"
        return f"{name}: {misfit}"
    return ""


def _guess(key: str, value: object, known: list[str]) -> str:
    """Returns a sentence on an argument that a call does not have."""
    what = f"unexpected argument {key!r}"
    if key in _SENTENCES and (not key.endswith("_order") or "order" in known):
        return f"{what}; {_SENTENCES[key](value)}"
    ours = [name for name, others in _ELSEWHERE.items() if key in others.split()]
    near = [name for name in ours if name in known] or difflib.get_close_matches(key, known, 1)
    if near:
        return f"{what}; did you mean {near[0]}?"
    return f"{what}; the arguments are {', '.join(known)}"
