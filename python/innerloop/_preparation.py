"""Engine: readies checked arguments for the back end that a call gets."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from innerloop import reference
from innerloop._batched import Batched
from innerloop._batched.precision import wide_dtype, widened
from innerloop._callable_loss import reason_against_batched
from innerloop._checks.engine import (
    check_device,
    check_float,
    check_tensor,
    refuse_backend,
    refuse_data_grad,
    refuse_narrow,
)
from innerloop._checks.network import (
    check_initialised,
    check_model,
    check_params,
    check_statistics,
    refuse_statistics,
)
from innerloop._checks.objective import check_indices, check_loss, check_targets
from innerloop._checks.rows import check_inputs
from innerloop._checks.solver import check_adapt_params
from innerloop._choice import Choice, Model, chosen, unavailable
from innerloop._derivatives import is_differentiated, transforms_active
from innerloop._inner_step import HERE, at_step
from innerloop._networks import Network, confirmed, network_of
from innerloop._params import LeafShape, Params, Side, leaf_shapes
from innerloop._program import program_of
from innerloop._reading import rows_of
from innerloop._row_by_row import check_rows_alone
from innerloop._rows import rows_used, spare_rows
from innerloop._storage import check_memory
from innerloop._tasks import warn_of_fallback
from innerloop.models import MLP
from innerloop.objectives import Objective

_WARNED: set[tuple[type, str]] = set()


class Prepared(NamedTuple):
    """What every operation needs, checked: the description if fused, the leaves and the
    parameters."""

    mlp: MLP | None  # None: `operations` run `model`
    leaves: tuple[LeafShape, ...]
    params: list[Tensor]  # in the order of `leaves`
    like: Tensor  # a leaf with the dtype and device of the call
    features: int  # D, or 0 when the model does not say
    outputs: int  # K, or 0
    flattens: bool
    tasks: int
    module: nn.Module | None = None  # what the other back ends run, unless it is an MLP
    batched: Batched | None = None  # what runs it unless it is fused; None: the torch back end

    @property
    def backend(self) -> str:
        """The back end."""
        if self.mlp is not None:
            return "fused"
        return "torch" if self.batched is None else "batched"

    @property
    def operations(self) -> Any:
        """What has the operations, if they are not fused."""
        return reference if self.batched is None else self.batched


def prepare(
    op: str,
    model: Model,
    backend: str,
    params: Params,
    tasks: int,
    data: Mapping[str, Any],
    objectives: Sequence[Objective] = (),
    steps: int = 0,
) -> Prepared:
    """Returns the checked parameters and the back end for one call with an inner loop of so many
    steps; warns once per kind of fallback. `data` are, by name, what the fused operations have no
    derivative in."""
    span = range(steps) if steps else range(HERE.step, HERE.step + 1)
    if isinstance(model, MLP):
        network = Network(model, (), "")
    else:
        check_model(op, model)
        asked = backend == "torch"
        network = Network(None, (), "") if asked else network_of(model, data, span)
    if backend == "fused" and network.mlp is None:
        refuse_backend(op, network.reason)
    mlp = network.mlp
    leaves = mlp.leaves if mlp is not None else _module_leaves(op, model)
    values, like = check_params(op, "params", params, leaves, tasks)
    wanted = "" if backend == "torch" else _differentiated(op, data)
    if (
        wanted
        and backend == "fused"
        and not unavailable(like.device, like.dtype, backend, *objectives)
    ):
        refuse_data_grad(op, wanted)
    choice = chosen(network, like.device, like.dtype, backend, objectives, wanted)
    if choice.backend == "fused":
        assert mlp is not None
        fused = Prepared(mlp, leaves, values, like, mlp.inputs, mlp.outputs, mlp.flattens, tasks)
        if not network.programs or _confirmed(model, network, params, data, fused, span):
            return fused
        return prepare(op, model, backend, params, tasks, data, objectives, steps)
    batched = None
    if choice.backend == "batched" and tasks:
        batched = _batched(model, network, leaves, data)
        batched.fall_back = functools.partial(_fall_back, op, model, backend)
        reason = _looks_elsewhere(objectives, batched, data, like, model, network)
        if reason:
            choice, batched = Choice("torch", reason), None
    if choice.backend == "torch" and like.dtype is torch.bfloat16:
        for name, value in data.items():
            if name.endswith("x") and value.is_floating_point():
                check_float(op, name, value, like.dtype, "params")
        refuse_narrow(op, like.dtype, choice.reason)
    if choice.backend == "torch" and backend != "torch":
        _fall_back(op, model, backend, choice.reason)
    check_memory(op, params=params)
    if isinstance(model, MLP):
        assert mlp is not None
        known = mlp.inputs, mlp.outputs, mlp.flattens
        return Prepared(None, leaves, values, like, *known, tasks, None, batched)
    if not torch.compiler.is_compiling():
        check_statistics(op, model, selects_rows=False)
    ready = Prepared(None, leaves, values, like, 0, 0, True, tasks, model, batched)
    if batched is None or _confirmed(model, network, params, data, ready, span):
        return ready
    return prepare(op, model, backend, params, tasks, data, objectives, steps)


def _batched(
    model: Model, network: Network, leaves: tuple[LeafShape, ...], data: Mapping[str, Any]
) -> Batched:
    """Returns the batched operations of a network for the data of a call."""
    kinds = [rows_of(value) for name, value in data.items() if name.endswith("x")]
    programs = dict(zip(dict.fromkeys(kinds), network.programs, strict=False))
    if not programs:
        mlp = network.mlp
        assert mlp is not None
        programs = {
            kind: (program_of(mlp.layers, kind.shape, flattens=mlp.flattens),) for kind in kinds
        }
    buffers = dict(model.named_buffers()) if isinstance(model, nn.Module) else {}
    shapes = {leaf.name: leaf.shape for leaf in leaves if leaf.is_floating}
    return Batched(programs, shapes, buffers, network.written)


def _looks_elsewhere(
    objectives: Sequence[Objective],
    batched: Batched,
    data: Mapping[str, Any],
    like: Tensor,
    model: Model,
    network: Network,
) -> str:
    """Returns why a loss is no function of outputs and targets alone; empty if none is known not to
    be. Each is asked once, with outputs of zero and the first task's targets."""
    sides = [name.removesuffix("x") for name in data if name.endswith("x")]
    pairs = list(zip(objectives, sides, strict=False))
    if objectives and objectives[0] is objectives[-1]:  # any side with rows will do
        pairs = [(objectives[0], name) for name in sides if 0 not in data[f"{name}y"].shape[:2]][:1]
    for objective, name in pairs:
        x, y = data[f"{name}x"], data[f"{name}y"]
        if 0 in y.shape[:2]:
            continue
        shape = y.shape[1], *batched.output_shape(x)
        z = like.new_zeros(shape, dtype=wide_dtype(like.dtype)).detach()
        first = widened(y[0].detach()).clone()
        reason = reason_against_batched(objective, z, first, model, network.written)
        if reason:
            return reason
    return ""


def _confirmed(
    model: Model,
    network: Network,
    params: Params,
    data: Mapping[str, Any],
    ready: Prepared,
    steps: range,
) -> bool:
    """Says whether what was read off a module gives its outputs, in each of some inner steps if
    they differ."""
    if not isinstance(model, nn.Module) or not network.programs:
        return True
    kinds: dict[Any, Tensor] = {}  # as they were read
    for name, value in data.items():
        if name.endswith("x"):
            kinds.setdefault(rows_of(value), value)

    def run(values: Params, rows: Tensor, at: int) -> Tensor:
        if ready.batched is not None:
            return ready.batched.predict(values, rows, at=at)
        assert ready.mlp is not None
        return reference.predict(values, rows, model=ready.mlp)

    for x, programs in zip(kinds.values(), network.programs, strict=True):
        fits = x.dtype is ready.like.dtype and x.device == ready.like.device
        if not fits or len(x) != ready.tasks:
            continue
        for at, program in enumerate(programs):
            with at_step(steps[at]):
                if not confirmed(model, program, params, x, functools.partial(run, at=at)):
                    return False
    return True


def _module_leaves(op: str, model: object) -> tuple[LeafShape, ...]:
    """Returns the leaves of a module's own parameters."""
    assert isinstance(model, nn.Module)
    named = dict(model.named_parameters())
    for name, value in named.items():
        if type(value) is not nn.Parameter:
            check_initialised(op, model)
            check_tensor(op, f"parameter {name!r} of the model", value)
    constant = [k for k, v in named.items() if not v.is_floating_point()]
    return leaf_shapes({k: tuple(v.shape) for k, v in named.items()}, constant)


def _differentiated(op: str, data: Mapping[str, Any]) -> str:
    """Returns the name of the first tensor in which a derivative is wanted; empty if there is
    none."""
    for name, value in data.items():
        if value is None:
            continue
        check_tensor(op, name, value)
        if is_differentiated(value):
            return name
    return ""


def data_of(name: str, batch: tuple[Any, Any, Any, Any]) -> dict[str, Any]:
    """Returns what could be differentiated of a batch, by name."""
    return {f"{name} x": batch[0], f"{name} y": batch[1], f"{name} weight": batch[3]}


def _fall_back(op: str, model: Model, backend: str, reason: str) -> None:
    """Raises if another back end was demanded; otherwise leaves a visible trace, once per kind."""
    if backend != "auto":
        refuse_backend(op, reason, backend)
    if (type(model), reason) not in _WARNED:
        _WARNED.add((type(model), reason))
        warn_of_fallback(
            f"{type(model).__name__} runs on the torch back end ({reason}); "
            'backend="torch" says that this is meant'
        )


_is_functional = torch._is_functional_tensor


def prepare_batch(
    op: str, name: str, batch: tuple[Any, Any, Any, Any], objective: Objective, ready: Prepared
) -> Side:
    """Returns a batch checked against the model; on the fused back end x is
    [T, N, D]."""
    x, y, count, weight = batch
    like = ready.like
    x = prepare_inputs(op, f"{name} ", x, ready)
    check_loss(op, objective, ready.outputs, like)
    check_targets(op, name, y, x, objective, ready.outputs)
    if objective.rows is None or objective.classes:
        pass
    elif y.dtype is not like.dtype:
        check_float(op, f"{name} y", y, like.dtype, "params")
    if weight is not None:
        check_float(op, f"{name} weight", weight, like.dtype, "params")
    if ready.mlp is None:
        check_memory(op, **{name: (x, y, count, weight)})
        if not torch.compiler.is_compiling() and not transforms_active():
            with_classes = objective.classes and y.ndim == 2 and y.dtype is torch.int64
            classes = _classes(ready, x) if with_classes else 0
            check_indices(op, name, y, count, classes, objective.ignored, weight)
            selects = count is not None or weight is not None
            if ready.module is not None:
                check_statistics(op, ready.module, selects_rows=selects)
            if selects and ready.batched is not None and ready.batched.takes_statistics:
                refuse_statistics(op, "F.batch_norm with training=True")
            given = [value for value in (x, count, weight) if value is not None]
            if selects and ready.module is not None and not any(map(_is_functional, given)):
                names = [leaf.name for leaf in ready.leaves]
                named = dict(zip(names, ready.params, strict=True))
                used = rows_used(x, count, weight)
                check_rows_alone(op, ready.module, named, x, used)
                if ready.batched is None:  # which fills them itself
                    wide = used.reshape(*used.shape, *[1] * (x.ndim - 2))
                    x = torch.where(wide, x, spare_rows(x, used))
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            x, y, weight = (  # autograd keeps no tensor of inference_mode
                v.clone() if v is not None and v.is_inference() else v for v in (x, y, weight)
            )
    return Side(x, y, count, weight)


def _classes(ready: Prepared, x: Tensor) -> int:
    """Returns the number of outputs for x where it is known and targets are read at no cost, else
    0."""
    if ready.outputs or ready.batched is None or x.device.type != "cpu":
        return ready.outputs
    shape = ready.batched.output_shape(x)
    return shape[0] if len(shape) == 1 else 0


def prepare_inputs(op: str, prefix: str, x: Tensor, ready: Prepared) -> Tensor:
    """Returns x checked against the model; [T, N, D] on the fused back end."""
    like = ready.like
    check_inputs(op, f"{prefix}x", x, ready.tasks, ready.features, ready.flattens)
    if x.dtype is not like.dtype and (ready.features or x.is_floating_point()):
        check_float(op, f"{prefix}x", x, like.dtype, "params")
    if x.device != like.device:
        check_device(op, f"{prefix}x", x, like.device, "params")
    if ready.mlp is None:
        return x
    if x.ndim != 3:
        check_memory(op, **{f"{prefix}x": x})
        x = x.reshape(x.shape[0], x.shape[1], ready.features)
    return x


def adapted_names(
    op: str, adapt_params: Sequence[str] | None, leaves: tuple[LeafShape, ...]
) -> tuple[str, ...]:
    """Returns the names of the leaves that the inner loop changes, in model order."""
    if adapt_params is None:
        return tuple([leaf.name for leaf in leaves if leaf.is_floating])
    check_adapt_params(op, adapt_params, leaves)
    return tuple(leaf.name for leaf in leaves if leaf.name in adapt_params)
