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
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from innerloop import _loss_options, _policy_objectives
from innerloop._checks import _sizes, _type_error, _value_error, kind, plain_number
from innerloop._loss_options import Numbers, Option, Variant, check_classes, mean_over_outputs
from innerloop._real_forward import Kind, changes_of_torch, own_forward, torch_unchanged

Function = Callable[..., Tensor]


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
        kernel: the name of its kernel, if that is not `name`.
        constants: what the kernel is told of it.
        class_weights: what a row of each class counts for in the mean over rows; empty: 1.
        outputs: how many outputs its options are for; 0: any.
        dtype: that the outputs must have for its options; None: any.
        probabilities: the same loss with probabilities as targets, if it takes any.
        fused: what the kernels are given.
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
    kernel: str = ""
    constants: tuple[float, ...] = ()
    class_weights: tuple[float, ...] = ()
    outputs: int = 0
    dtype: torch.dtype | None = None
    probabilities: Function | None = None
    is_policy: bool = False
    fused: FusedObjective = dataclasses.field(init=False)

    @property
    def is_fused(self) -> bool:
        """Whether the fused operations have it."""
        return not self.reason

    def __post_init__(self) -> None:
        """Describes it for the kernels."""
        object.__setattr__(self, "fused", FusedObjective(self.kernel or self.name, self.constants))

    def divisor(self, used: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns what the mean over a task's rows in use [..., N], with targets y, divides by
        [...]: their number, or the sum of their class weights, NaN where that is 0; 1 without
        rows."""
        if not self.class_weights:
            return used.sum(-1).clamp(min=1).to(dtype)
        weights = torch.tensor(self.class_weights, dtype=dtype, device=y.device)
        total = torch.where(used, weights[y], 0).sum(-1)
        return torch.where(used.any(-1), torch.where(total == 0, math.nan, total), 1)


Loss = str | Function | Objective  # what callers pass; learners resolve it once a call


# ---------------------------------------------------------------- named losses


def _cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    """Returns minus the log-probability of each row's class [N]."""
    check_classes(z, y)
    return -F.log_softmax(z, dim=1).gather(1, y[:, None])[:, 0]


_HUBER = _loss_options.huber(delta=1.0)
assert _HUBER is not None
# the place of a loss is its code in the kernels (csrc/core/objectives/objective.h)
_ROWS: dict[str, Function] = {
    "mse": mean_over_outputs(lambda z, y: (z - y).square()),
    "half_mse": mean_over_outputs(lambda z, y: 0.5 * (z - y).square()),
    "cross_entropy": _cross_entropy,
    "bce_with_logits": mean_over_outputs(
        lambda z, y: F.binary_cross_entropy_with_logits(z, y, reduction="none")
    ),
    "huber": _HUBER.rows,
}
NAMES = tuple(_ROWS)
POLICY_NAMES = tuple(_policy_objectives.ROWS)
OPTION_NAMES = ("soft_cross_entropy", "weighted_bce")  # of torch's losses with options alone
CODES = {name: code for code, name in enumerate((*NAMES, *POLICY_NAMES, *OPTION_NAMES))}
_CONSTANTS = {"huber": _HUBER.constants}
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
    options. `alone` is a set of the kind. `variant` takes the options that may be others and says
    what it is with them; the rest must be as usual."""

    kind: Kind
    alone: frozenset[Kind]
    function: Function
    usual: Mapping[str, Any]
    objective: Objective
    variant: Callable[..., Variant | None] | None
    free: tuple[str, ...]


def _torch_loss(
    objective: Objective,
    cls: type[nn.Module],
    function: Function,
    variant: Callable[..., Variant | None] | None = None,
    *,
    fixed: Mapping[str, Any] | None = None,
    **free: object,
) -> _TorchLoss:
    """Returns one row of the table below."""
    objective = dataclasses.replace(objective, strict=True)
    if objective.classes:
        objective = dataclasses.replace(
            objective, strict=False, ignored=-100, probabilities=function
        )
    kind, usual = Kind(cls), {"reduction": "mean", **(fixed or {}), **free}
    return _TorchLoss(kind, frozenset([kind]), function, usual, objective, variant, tuple(free))


_L1 = _loss_options.smooth_l1(beta=0.0)
assert _L1 is not None
_ABSOLUTE = Objective("L1Loss", _L1.rows, kernel=_L1.kernel, constants=_L1.constants)
_TORCH = (
    _torch_loss(_NAMED["mse"], nn.MSELoss, F.mse_loss),
    _torch_loss(
        _NAMED["cross_entropy"],
        nn.CrossEntropyLoss,
        F.cross_entropy,
        _loss_options.cross_entropy,
        fixed={"ignore_index": -100},
        weight=None,
        label_smoothing=0.0,
    ),
    _torch_loss(
        _NAMED["bce_with_logits"],
        nn.BCEWithLogitsLoss,
        F.binary_cross_entropy_with_logits,
        _loss_options.bce_with_logits,
        weight=None,
        pos_weight=None,
    ),
    _torch_loss(_NAMED["huber"], nn.HuberLoss, F.huber_loss, _loss_options.huber, delta=1.0),
    _torch_loss(
        _NAMED["huber"], nn.SmoothL1Loss, F.smooth_l1_loss, _loss_options.smooth_l1, beta=1.0
    ),
    _torch_loss(_ABSOLUTE, nn.L1Loss, F.l1_loss),
)
_BY_CLASS = {known.kind.cls: known for known in _TORCH}
# others whose targets, says torch, have the shape of the outputs
_ELEMENTWISE: tuple[object, ...] = (
    *(nn.PoissonNLLLoss, nn.SoftMarginLoss, nn.KLDivLoss),
    *(F.poisson_nll_loss, F.soft_margin_loss, F.kl_div),
)


def _changed(known: _TorchLoss, loss: nn.Module | None) -> str | None:
    """Returns what makes a torch loss, this instance or the function, compute something else than
    torch wrote, in words, or None: the rule that layers are held to as well."""
    changed = None if loss is None else own_forward(loss, known.kind)
    if changed is None and (torch.compiler.is_compiling() or not torch_unchanged(known.alone)):
        changed = changes_of_torch(known.kind)
    return changed


def _of_torch(
    known: _TorchLoss, called: str, options: Mapping[str, Any], loss: Function, changed: str | None
) -> Objective:
    """Returns the objective of a torch loss with options: the named one, one with the options for
    the kernels, else itself. `changed` says what makes it something else than torch wrote."""
    name = known.kind.cls.__name__ if isinstance(loss, nn.Module) else known.function.__name__
    if changed is not None:
        return Objective(called, function=loss, reason=f"{name} cannot be fused: {changed}")
    fixed = [k for k in known.usual if k not in known.free and options[k] != known.usual[k]]
    plain, reason = _plain({k: options[k] for k in known.free})
    if fixed:
        usual = ", ".join(f"{k}={known.usual[k]!r}" for k in fixed)
        reason = f"the loss {called} has no kernel, only {name}({usual}) has one"
    elif not reason:
        found = _with_options(known, called, plain)
        if found is not None:
            return found
        reason = f"the loss {called} has no kernel"
    return dataclasses.replace(
        known.objective,
        name=called,
        rows=None,
        function=loss,
        reason=reason,
        ignored=options.get("ignore_index"),
    )


def _plain(options: Mapping[str, Any]) -> tuple[dict[str, Option], str]:
    """Returns options as plain numbers, and why that is not possible."""
    plain: dict[str, Option] = {}
    for name, value in options.items():
        if isinstance(value, Tensor):
            found = _loss_options.numbers_of(name, value)
            if isinstance(found, str):
                return {}, f"the loss cannot be fused: {found}"
            plain[name] = found
        elif value is None or isinstance(value, (int, float)):
            plain[name] = None if value is None else float(value)
        else:
            return {}, f"the loss cannot be fused: its {name} is {kind(value)}"
    return plain, ""


def _with_options(
    known: _TorchLoss, called: str, options: Mapping[str, Option]
) -> Objective | None:
    """Returns the objective of a torch loss with options for the kernels, or None if torch refuses
    them: the same object each time, since what is known about a call is known for this object."""
    if all(options[k] == known.usual[k] for k in known.free):
        return known.objective
    if torch.compiler.is_compiling():  # which does not go through caches
        return _made_with_options(known.kind.cls, called, *options.values())
    return _remembered_with_options(known.kind.cls, called, *options.values())


def _made_with_options(cls: type[nn.Module], called: str, *values: Option) -> Objective | None:
    """Returns `_with_options`, from the values in the order of `free`."""
    known = _BY_CLASS[cls]
    options = dict(zip(known.free, values, strict=True))
    found = None if known.variant is None else known.variant(**options)
    if found is None:
        return None
    probabilities = None
    if known.objective.probabilities is not None:
        tensors = {
            k: torch.tensor(v.values, dtype=v.dtype) if isinstance(v, Numbers) else v
            for k, v in options.items()
        }
        probabilities = functools.partial(known.function, **tensors)
    return dataclasses.replace(
        known.objective,
        name=called,
        rows=found.rows,
        kernel=found.kernel,
        constants=found.constants,
        class_weights=found.class_weights,
        outputs=found.outputs,
        dtype=found.dtype,
        probabilities=probabilities,
    )


_remembered_with_options: Callable[..., Objective | None] = functools.lru_cache(maxsize=256)(
    _made_with_options
)


def _of_instance(loss: nn.Module, known: _TorchLoss) -> Objective:
    """Returns the objective of an instance of a torch loss."""
    options = {k: getattr(loss, k) for k in known.usual}
    options = {k: plain_number(v) if type(v) is float else v for k, v in options.items()}
    texts = [
        f"{k}={'...' if isinstance(v, Tensor) else repr(v)}"
        for k, v in options.items()
        if isinstance(v, Tensor) or v != known.usual[k]
    ]
    called = f"{known.kind.cls.__name__}({', '.join(texts)})"
    return _of_torch(known, called, options, loss, _changed(known, loss))


def _of_function(loss: Any) -> Objective | None:
    """Returns the objective of a torch loss given as a function, or of a functools.partial of it
    with options that the kernels have; None of anything else."""
    is_partial = type(loss) is functools.partial
    function = loss.func if is_partial else loss
    given: Mapping[str, Any] = loss.keywords if is_partial else {}
    for known in _TORCH:
        if function is known.function:
            break
    else:
        return None
    if not is_partial:
        return _of_torch(known, function.__name__, known.usual, loss, _changed(known, None))
    if torch.compiler.is_compiling() or loss.args or not given.keys() <= known.usual.keys():
        return None
    changed, options = _changed(known, None), {**known.usual, **given}
    found = _of_torch(known, _name(loss), options, loss, changed)
    return found if found.is_fused else None


def suited(objective: Objective, *batches: Any) -> Objective:
    """Returns the objective for the targets of these batches (x, y, ...): torch's cross entropy
    takes probabilities [N, K] as well as classes."""
    if objective.probabilities is None or objective.rows is None:
        return objective
    for batch in batches:
        y = batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
        if isinstance(y, Tensor) and y.is_floating_point():
            return Objective(
                objective.name,
                function=objective.probabilities,
                reason="cross entropy with probabilities as targets has no kernel, only that with "
                "classes",
            )
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
        >>> resolve("", nn.HuberLoss(delta=2.0)).fused
        FusedObjective(name='huber', constants=(2.0, 2.0), text='huber:2.0:2.0')
        >>> resolve("", nn.MSELoss(reduction="sum")).reason
        "the loss MSELoss(reduction='sum') has no kernel, only MSELoss(reduction='mean') has one"
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
            return _of_instance(loss, of_class)
    else:
        of_function = _of_function(loss)
        if of_function is not None:
            return of_function
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


_OTHER_NAMES = {  # what other libraries call a loss
    **dict.fromkeys(("mae", "l1", "l1_loss", "mean_absolute_error"), "nn.L1Loss()"),
    **dict.fromkeys(
        ("ce", "nll", "nll_loss", "xent", "categorical_crossentropy"), "'cross_entropy'"
    ),
    **dict.fromkeys(("bce", "binary_cross_entropy", "binary_crossentropy"), "'bce_with_logits'"),
    **dict.fromkeys(("l2", "mean_squared_error"), "'mse'"),
    "smooth_l1": "nn.SmoothL1Loss()",
}


def _refuse_name(op: str, loss: str, argument: str) -> NoReturn:
    """Raises for a name that no loss has."""
    key = loss.lower().replace("-", "_").replace(" ", "_")
    near = [name for name in NAMES if key and (name.startswith(key) or key.startswith(name))]
    near = near or difflib.get_close_matches(key, NAMES, 1, 0.5)
    meant = _OTHER_NAMES.get(key) or (repr(near[0]) if near else "")
    guess = f"did you mean {meant}? " if meant else ""
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
