"""What a module is to the back ends: a chain that the kernels run, a program that was read off its
forward pass, or nothing but a module, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from innerloop import _reading
from innerloop._chain import NotFusible
from innerloop._derivatives import forward_mode, transforms_active
from innerloop._inner_step import HERE, at_step
from innerloop._one_task import forward
from innerloop._program import NoChain, Program, as_layers
from innerloop._reading import Rows
from innerloop._reading.reader import Reading
from innerloop.models import MLP, describe, model_of_layers

# rows that a module was last given, and programs that were found to give what it gives, or not
_SEEN: WeakKeyDictionary[nn.Module, Rows] = WeakKeyDictionary()
_CHECKED: WeakKeyDictionary[nn.Module, dict[Program, bool]] = WeakKeyDictionary()
_MOST_PROGRAMS = 256  # of a module that are remembered
_TOLERANCE = {torch.bfloat16: 0.1, torch.float32: 1e-3, torch.float64: 1e-9}
_MISREAD = "its outputs are not those of the calls that were read off its forward pass"
Run = Callable[[Mapping[str, Tensor], Tensor], Tensor]
Programs = tuple[Program, ...]
Places = Sequence[tuple[nn.Module, str]]
_SIDES = (28, 84, 32, 64, 96, 105, 128, 224, *range(1, 28))  # of images and signals, to try


class Network(NamedTuple):
    """What a module is.

    Members:
        mlp: its description for the fused operations, or None.
        programs: what it computes of each kind of rows that were asked about: one program, or one
            for each inner step if it asks for that; empty if it was not read, since it is a chain,
            or cannot be.
        reason: why the fused operations do not take it; empty if they do.
        is_unsure: it was not given any rows yet, and none were found that fit it.
        written: what its forward pass writes: parts and attributes, "" for what lies in one.
    """

    mlp: MLP | None
    programs: tuple[Programs, ...]
    reason: str
    is_unsure: bool = False
    written: Places = ()


def network_of(module: nn.Module, data: Mapping[str, Any], steps: range) -> Network:
    """Returns what a module is in some inner steps, given the data of a call by name, inputs among
    them.

    A chain of layers is known by its parts. Any other module is read by what it computes.
    """
    network = _chain_of(module)
    if network.mlp is not None or torch.compiler.is_compiling():
        return network
    inputs = [value for name, value in data.items() if name.endswith("x")]
    if inputs and not (inputs[0].is_complex() or inputs[0].dtype is torch.bool):
        _SEEN[module] = _reading.rows_of(inputs[0])
    return _read(module, tuple(dict.fromkeys(map(_reading.rows_of, inputs))), network, steps)


def _chain_of(module: nn.Module) -> Network:
    """Returns a module as a chain, or the reason why it is none; empty if its forward pass is not
    torch's."""
    try:
        return Network(describe(module), (), "")
    except NotFusible as refusal:
        foreign = refusal.is_foreign and not torch.compiler.is_compiling()
        return Network(None, (), "" if foreign else str(refusal))


def _programs(
    module: nn.Module, kinds: Sequence[Rows], steps: range
) -> tuple[tuple[Programs, ...], Places]:
    """Returns what a module computes of rows of each kind: in each step if it asks which it is;
    and where it writes to the module. Kinds that differ in the number of rows are read once if
    nothing in the pass depends on it."""
    found: list[Programs] = []
    written: list[tuple[nn.Module, str]] = []
    alike: dict[Rows, Programs] = {}
    for kind in kinds:
        any_number = kind._replace(number=0)
        if any_number not in alike:
            HERE.was_asked = False
            with at_step(steps[0]):
                readings = [_read_twice(module, kind)]
            for step in steps[1:] if HERE.was_asked else ():
                with at_step(step):
                    readings.append(_read_twice(module, kind))
            programs = tuple(reading.program for reading in readings)
            written += [place for reading in readings for place in reading.written]
            if any(reading.counts_rows for reading in readings):
                found.append(programs)
                continue
            alike[any_number] = programs
        found.append(alike[any_number])
    return tuple(found), written


def _read_twice(module: nn.Module, kind: Rows) -> Reading:
    """Returns what is read off a module; a second time if it was not seen before, lest it computes
    with numbers that are others in each pass."""
    found = _reading.read(module, kind)
    if found.program not in _CHECKED.get(module, {}):
        again = _reading.read(module, kind)
        if again.program != found.program:
            what = type(module).__name__
            raise NotFusible(f"{what} cannot be fused: two of its forward passes differ")
    return found


def _read(module: nn.Module, rows: Sequence[Rows], chain: Network, steps: range) -> Network:
    """Returns what a module is that is no chain, by what it computes of rows of these kinds."""
    what = type(module).__name__
    try:
        programs, written = _programs(module, rows, steps)
    except NotFusible as refusal:
        return Network(None, (), str(refusal))
    known = _CHECKED.get(module, {})
    every = [program for each in programs for program in each]
    if any(known.get(program) is False for program in every):
        return Network(None, (), f"{what} cannot be fused: {_MISREAD}")
    names = tuple(name for name, _ in module.named_parameters())
    try:
        found = [as_layers(program, names) for program in every]
    except NoChain as misfit:
        reason = chain.reason or f"{what} cannot be fused: {misfit}"
        return Network(None, programs, reason, written=written)
    layers, flattens = found[0]
    if any(other != layers for other, _ in found):
        reason = f"{what} cannot be fused: batches or steps differ in what it computes"
        return Network(None, programs, reason, written=written)
    flattens = any(each for _, each in found)
    mlp = model_of_layers(layers, flattens=flattens)
    return Network(mlp, programs, "", written=written)


def expected_network(module: nn.Module) -> Network:
    """Returns what a module is to be taken for where no data are at hand: by the rows that it was
    last given, or by likely ones."""
    chain = _chain_of(module)
    if chain.mlp is not None or torch.compiler.is_compiling():
        return chain
    seen = _SEEN.get(module)
    first: Network | None = None
    for rows in [seen] if seen is not None else _likely(module):
        network = _read(module, (rows,), chain, range(HERE.step, HERE.step + 1))
        if network.programs:
            return network
        first = first or network
    reason = first.reason if first else f"{type(module).__name__} cannot be fused: it was not read"
    if seen is not None:
        return Network(None, (), reason)
    return Network(None, (), f"{reason} (the first batch decides)", is_unsure=True)


def _likely(module: nn.Module) -> list[Rows]:
    """Returns rows that a module might take, by the first of its parts that has weights."""
    like = next((p for p in module.parameters() if p.is_floating_point()), None)
    if like is None:
        return []
    shapes: list[tuple[int, ...]] = [(1,)]
    for part in module.modules():
        weight = part._parameters.get("weight")
        if isinstance(part, nn.Linear):
            shapes = [(part.in_features,)]
            break
        if weight is not None and weight.ndim in (3, 4):
            channels = weight.shape[1] * getattr(part, "groups", 1)
            shapes = [(channels, *[side] * (weight.ndim - 2)) for side in _SIDES]
            break
    return [Rows(2, shape, like.dtype, like.device) for shape in shapes]


# ---------------------------------------------------------------- once against the module itself


def shaken(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns parameters with noise of a tenth of their size, or of one: a gate that begins with
    zero hides what is behind it."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, value in params.items():
        found[name] = value
        if value.is_floating_point() and value.numel():
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float32)
            size = float(value.abs().mean()) or 1.0
            found[name] = value + (0.1 * size * noise).to(value)
    return found


def confirmed(
    module: nn.Module, program: Program, params: Mapping[str, Tensor], x: Tensor, run: Run
) -> bool:
    """Says whether run(params, x) [1, N, ...] gives what the module gives for the first task of x
    [T, N, ...]. The module is asked once for each program."""
    known = _CHECKED.setdefault(module, {})
    if program in known:
        return known[program]
    if transforms_active() or forward_mode() or 0 in x.shape[:2]:
        return True
    own = dict(module.named_parameters())
    with torch.no_grad():
        single = {k: (v[0] if v.ndim > own[k].ndim else v).clone() for k, v in params.items()}
        close = True
        for values in (single, shaken(single)):
            try:
                wanted, got = forward(module, values, x[0])[None], run(values, x[:1])
            except Exception:
                if values is single:
                    raise
                continue  # not every module takes every parameters
            close = close and wanted.shape == got.shape
            if close:
                finite = wanted.isfinite()  # rows that are not in use hold anything
                error, scale = (got - wanted)[finite].norm(), wanted[finite].norm()
                close = bool(error <= _TOLERANCE[x.dtype] * scale)
    if len(known) >= _MOST_PROGRAMS:  # a number in it may be another in each step
        known.clear()
    known[program] = close
    return close
