"""What `loss=` may be and what it means: the named losses (their codes in the kernels and their
twins in plain PyTorch), torch's own losses, and any callable of one task's outputs and targets.

`resolve` turns what was passed into an Objective; everything else asks the Objective. Depends on
torch alone.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from innerloop import _policy_objectives
from innerloop._checks import _sizes, _type_error, _value_error, kind
from innerloop._real_forward import Kind, changes_of_torch, own_forward, torch_unchanged

Function = Callable[..., Tensor]
HUBER_DELTA = 1.0


@dataclasses.dataclass(frozen=True)
class FusedObjective:
    """An objective as the kernels know it: its name and the constants that its struct documents
    (csrc/core/objectives)."""

    name: str
    constants: tuple[float, ...] = ()
    text: str = dataclasses.field(init=False, compare=False)  # canonical

    def __post_init__(self) -> None:
        """Makes the text once: under torch.compile constants may be symbols, which have none."""
        object.__setattr__(self, "text", ":".join((self.name, *map(repr, self.constants))))

    @classmethod
    def of(cls, text: str) -> FusedObjective:
        """Returns what a text stands for."""
        name, *constants = text.split(":")
        return cls(name, tuple(map(float, constants)))


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
    """One loss, as everything inside the package sees it.

    Members:
        name: of the named loss that it is, or what a callable is called.
        rows: (outputs [N, ...], targets [N, ...]) -> values of the rows [N], of which a task's loss
            is the mean; None if `function` gives the loss.
        function: (outputs, targets) -> the loss of one task, 0-d, or values of its rows [N].
        reason: why the fused operations do not have it; empty if they do.
        strict: targets must have the shape of the outputs, or torch would broadcast them.
        classes: int64 targets [N] are classes, so that accuracies can be counted.
        ignored: a class whose rows are left out.
        constants: what the kernels are told of it.
        fused: the same for the kernels; its name is one of NAMES.
        is_policy: it measures a `GaussianMLP` on a `PolicyBatch`; `rows` then takes the policy's
            log_std as well.
    """

    name: str
    rows: Function | None = None
    function: Function | None = None
    reason: str = ""
    strict: bool = False
    classes: bool = False
    ignored: int | None = None
    constants: tuple[float, ...] = ()
    is_policy: bool = False
    fused: FusedObjective = dataclasses.field(init=False)

    @property
    def is_fused(self) -> bool:
        """Whether the fused operations have it."""
        return not self.reason

    def __post_init__(self) -> None:
        """Describes it for the kernels, which know it if `name` is one of NAMES."""
        object.__setattr__(self, "fused", FusedObjective(self.name, self.constants))


Loss = str | Function | Objective  # what callers pass; learners resolve it once a call


# ---------------------------------------------------------------- named losses


def _cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    """Returns minus the log-probability of each row's class [N]."""
    if z.ndim != 2 or y.ndim != 1:
        raise ValueError(
            "reference: model outputs must have shape [T, N, K] for y [T, N] with cross entropy "
            f"(got rows of shape {list(z.shape[1:])} for targets of shape {list(y.shape[1:])})"
        )
    return -F.log_softmax(z, dim=1).gather(1, y[:, None])[:, 0]


def _mean_over_outputs(values: Function) -> Function:
    """Returns the loss whose value of a row is the mean of `values` over its outputs."""

    def rows(z: Tensor, y: Tensor) -> Tensor:
        outputs, targets = z.reshape(z.shape[0], -1), y.reshape(y.shape[0], -1)  # [N, K]
        if outputs.shape != targets.shape:
            raise ValueError(
                "reference: y must have one value per output of the model "
                f"(got {targets.shape[1]} targets for {outputs.shape[1]} outputs)"
            )
        return values(outputs, targets).mean(1)

    return rows


# the place of a loss is its code in the kernels (csrc/core/objectives/objective.h)
_ROWS: dict[str, Function] = {
    "mse": _mean_over_outputs(lambda z, y: (z - y).square()),
    "half_mse": _mean_over_outputs(lambda z, y: 0.5 * (z - y).square()),
    "cross_entropy": _cross_entropy,
    "bce_with_logits": _mean_over_outputs(
        lambda z, y: F.binary_cross_entropy_with_logits(z, y, reduction="none")
    ),
    "huber": _mean_over_outputs(
        lambda z, y: F.huber_loss(z, y, reduction="none", delta=HUBER_DELTA)
    ),
}
NAMES = tuple(_ROWS)
POLICY_NAMES = tuple(_policy_objectives.ROWS)
CODES = {name: code for code, name in enumerate((*NAMES, *POLICY_NAMES))}
_CONSTANTS = {"huber": (HUBER_DELTA,)}
_NAMED = {
    name: Objective(name, rows, classes=name == "cross_entropy", constants=_CONSTANTS.get(name, ()))
    for name, rows in _ROWS.items()
} | {name: Objective(name, is_policy=True) for name in POLICY_NAMES}


@functools.lru_cache(maxsize=256)
def policy_objective(name: str, clip: float, floor: float) -> Objective:
    """Returns a policy objective with its constants: the range of the ratio, the floor of
    log_std."""
    rows = _policy_objectives.rows_of(name, clip, floor)
    return Objective(name, rows, constants=(clip, floor), is_policy=True)


# ---------------------------------------------------------------- torch's losses


class _TorchLoss(NamedTuple):
    """A loss of torch, as a class and as a function, and the named loss that it is with `usual`
    options. `alone` is a set of the kind."""

    kind: Kind
    alone: frozenset[Kind]
    function: Function
    usual: Mapping[str, Any]
    objective: Objective


def _torch_loss(
    name: str, cls: type[nn.Module], function: Function, **options: object
) -> _TorchLoss:
    """Returns one row of the table below."""
    classes = name == "cross_entropy"
    objective = dataclasses.replace(
        _NAMED[name], strict=not classes, ignored=-100 if classes else None
    )
    kind, usual = Kind(cls), {"reduction": "mean", **options}
    return _TorchLoss(kind, frozenset([kind]), function, usual, objective)


_TORCH = (
    _torch_loss("mse", nn.MSELoss, F.mse_loss),
    _torch_loss(
        "cross_entropy",
        nn.CrossEntropyLoss,
        F.cross_entropy,
        weight=None,
        ignore_index=-100,
        label_smoothing=0.0,
    ),
    _torch_loss(
        "bce_with_logits",
        nn.BCEWithLogitsLoss,
        F.binary_cross_entropy_with_logits,
        weight=None,
        pos_weight=None,
    ),
    _torch_loss("huber", nn.HuberLoss, F.huber_loss, delta=HUBER_DELTA),
    _torch_loss("huber", nn.SmoothL1Loss, F.smooth_l1_loss, beta=HUBER_DELTA),
)
_BY_CLASS = {known.kind.cls: known for known in _TORCH}
# others whose targets, says torch, have the shape of the outputs
_ELEMENTWISE: tuple[object, ...] = (
    *(nn.L1Loss, nn.PoissonNLLLoss, nn.SoftMarginLoss, nn.KLDivLoss),
    *(F.l1_loss, F.poisson_nll_loss, F.soft_margin_loss, F.kl_div),
)
_PROBABILITIES = Objective(
    "cross_entropy",
    function=F.cross_entropy,
    reason="cross entropy with probabilities as targets has no kernel, only that with classes",
)


def _changed(known: _TorchLoss, loss: nn.Module | None) -> str | None:
    """Returns what makes a torch loss, this instance or the function, compute something else than
    torch wrote, in words, or None: the rule that layers are held to as well."""
    changed = None if loss is None else own_forward(loss, known.kind)
    if changed is None and (torch.compiler.is_compiling() or not torch_unchanged(known.alone)):
        changed = changes_of_torch(known.kind)
    return changed


def _of_torch(loss: nn.Module, known: _TorchLoss) -> Objective:
    """Returns the objective of an instance of a torch loss: the named one if it means exactly that,
    else itself."""
    kind = known.kind.cls.__name__
    options = {k: getattr(loss, k) for k in known.usual}
    unusual = [
        f"{k}={'...' if isinstance(v, Tensor) else repr(v)}"
        for k, v in options.items()
        if isinstance(v, Tensor) or v != known.usual[k]
    ]
    name = f"{kind}({', '.join(unusual)})"
    changed = _changed(known, loss)
    if changed is not None:
        return Objective(name, function=loss, reason=f"{kind} cannot be fused: {changed}")
    if not unusual:
        return known.objective
    usual = ", ".join(f"{k}={v!r}" for k, v in known.usual.items())
    return dataclasses.replace(
        known.objective,
        name=name,
        rows=None,
        function=loss,
        reason=f"the loss {name} has no kernel, only {kind}({usual})",
        ignored=options.get("ignore_index"),
    )


def _of_function(known: _TorchLoss) -> Objective:
    """Returns the objective of a torch loss given as a function, with its usual options."""
    changed = _changed(known, None)
    if changed is None:
        return known.objective
    name = known.function.__name__
    return Objective(name, function=known.function, reason=f"{name} cannot be fused: {changed}")


def suited(objective: Objective, *batches: Any) -> Objective:
    """Returns the objective for the targets of these batches (x, y, ...): torch's cross entropy
    takes probabilities [N, K] as well as classes."""
    if objective.ignored is None or objective.rows is None:
        return objective
    for batch in batches:
        y = batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
        if isinstance(y, Tensor) and y.is_floating_point():
            return _PROBABILITIES
    return objective


# ---------------------------------------------------------------- what was passed


def resolve(op: str, loss: object, argument: str = "loss") -> Objective:
    """Returns what a loss means.

    Args:
        op: who asks, for messages.
        loss: a name; a torch loss, as an instance or a function; or a callable (outputs [N, ...],
            targets [N, ...]) of one task that returns a 0-d tensor, or values of its rows [N]. An
            Objective stays what it is.
        argument: what the caller calls it, for messages.

    Raises:
        ValueError: the name is unknown.
        TypeError: neither a name nor a callable of outputs and targets.

    Cost: 0.1 us for a name, some microseconds for anything else (torch's losses are looked at anew
        each time, as layers are).

    Example:
        >>> [resolve("", loss).name for loss in ("mse", nn.CrossEntropyLoss(), F.smooth_l1_loss)]
        ['mse', 'cross_entropy', 'huber']
        >>> resolve("", nn.HuberLoss(delta=2.0)).reason
        "the loss HuberLoss(delta=2.0) has no kernel, only HuberLoss(reduction='mean', delta=1.0)"
    """
    if isinstance(loss, str):
        found = _NAMED.get(loss)
        if found is None:
            _refuse_name(op, loss, argument)
        return found
    if isinstance(loss, Objective):
        return loss
    if isinstance(loss, type) or not callable(loss):
        _refuse_kind(op, loss, argument)
    if isinstance(loss, nn.Module):
        of_class = _BY_CLASS.get(type(loss))
        if of_class is not None:
            return _of_torch(loss, of_class)
    else:
        for known in _TORCH:
            if loss is known.function:
                return _of_function(known)
    name = "function"
    if not torch.compiler.is_compiling():  # which reads neither names nor signatures
        name = _name(loss)
        _check_parameters(op, loss, name, argument)
    strict = type(loss) in _ELEMENTWISE or any(loss is known for known in _ELEMENTWISE)
    return Objective(name, function=loss, reason=f"the loss {name} has no kernel", strict=strict)


def _name(loss: Any) -> str:
    """Returns what a callable is called, the same for every copy of it."""
    if isinstance(loss, functools.partial):
        fixed = [
            f"{k}=..." if isinstance(v, Tensor) else f"{k}={v!r}" for k, v in loss.keywords.items()
        ]
        return f"partial({', '.join([_name(loss.func), *fixed])})"
    name = getattr(loss, "__qualname__", None)
    return name.rpartition("<locals>.")[2] if isinstance(name, str) else kind(loss)


def _refuse_name(op: str, loss: str, argument: str) -> NoReturn:
    """Raises for a name that no loss has."""
    key = loss.lower().replace("-", "_").replace(" ", "_")
    near = [name for name in NAMES if key and (name.startswith(key) or key.startswith(name))]
    near = near or difflib.get_close_matches(key, NAMES, 1, 0.5)
    guess = f"did you mean {near[0]!r}? " if near else ""
    remedy = f"{guess}torch's losses and callables loss(outputs, targets) are taken as well"
    _value_error(op, argument, f"be one of {', '.join(NAMES)}", repr(loss), remedy)


def _refuse_kind(op: str, loss: object, argument: str) -> NoReturn:
    """Raises for what is neither a name nor a callable that gives losses."""
    wanted = f"be one of {', '.join(NAMES)}, a torch loss or a callable loss(outputs, targets)"
    if isinstance(loss, type):
        name = loss.__name__
        _type_error(op, argument, wanted, f"the class {name}", f"pass an instance, {name}(...)")
    _type_error(op, argument, wanted, repr(loss))


def _check_parameters(op: str, loss: Any, name: str, argument: str) -> None:
    """Checks that a callable takes outputs and targets, if it says what it takes."""
    is_module = isinstance(loss, nn.Module) and type(loss).__call__ is nn.Module.__call__
    try:
        signature = inspect.signature(loss.forward if is_module else loss)
    except (TypeError, ValueError):  # some built-in functions have none
        return
    try:
        signature.bind(None, None)
    except TypeError:
        got = f"{name}({', '.join(signature.parameters)})"
        remedy = "wrap it in a function of these two"
        _type_error(op, argument, "take the outputs and targets of one task", got, remedy)


# ---------------------------------------------------------------- one task


def check_shapes(objective: Objective, z: Tensor, y: Tensor) -> None:
    """Checks one task's targets against its outputs where torch would broadcast them."""
    if objective.strict and z.shape != y.shape:
        wanted, got = (["T", *v.shape] for v in (z, y))
        raise ValueError(
            f"reference: y must have the shape of the outputs, {wanted}, for torch's loss, which "
            f"would broadcast them (got {got})".replace("'T'", "T")
        )


def task_value(objective: Objective, z: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
    """Returns what a callable makes of one task's outputs [N, ...] and targets [N, ...]: its
    number, or the mean, or the sum with weights [N], of its values of rows."""
    assert objective.function is not None
    value: object = objective.function(z, y)
    got = f"the loss {objective.name} must return"
    if not isinstance(value, Tensor):
        raise TypeError(f"reference: {got} a tensor (got {kind(value)})")
    if not value.is_floating_point():
        raise TypeError(f"reference: {got} a floating-point tensor (got {value.dtype})")
    if z.requires_grad and not value.requires_grad:
        raise ValueError(
            f"reference: {got} something that depends differentiably on the outputs (got a "
            "constant); keep detach(), numpy() and argmax() out of it"
        )
    if value.ndim and value.shape[0] == y.shape[0] == value.numel():
        rows = value.reshape(-1)
        return rows.mean() if weight is None else (weight * rows).sum()
    if value.ndim:
        raise ValueError(
            f"reference: {got} one number, or one value per row [{y.shape[0]}] (got shape "
            f"{_sizes(value)}); take means, or sums, over the other axes"
        )
    if weight is not None:
        raise ValueError(
            f"reference: {got} one value per row [N] where rows have weights (got one number); "
            'torch\'s losses do so with reduction="none"'
        )
    return value
