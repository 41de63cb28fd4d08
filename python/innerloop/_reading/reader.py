"""Runs a forward pass on a stand-in for its input, and leaves the module as it was."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from innerloop._chain import NotFusible
from innerloop._program import Program
from innerloop._reading import (  # noqa: F401 (they register)
    activations,
    affine,
    arithmetic,
    constants,
    norms,
    pools,
    products,
    recurrent,
    shapes,
)
from innerloop._reading.recorder import HANDLERS, Named, Recorder, Rows, Stop
from innerloop._real_forward import hooks_of, replaced_in, surroundings
from innerloop._stateless import kept_parts
from innerloop._tasks import alone, random_state

for _function in HANDLERS:  # as they are on import
    replaced_in(_function)
_PLAIN = (Tensor, nn.Parameter)
_DTYPES = (torch.bfloat16, torch.float32, torch.float64)


class Reading(NamedTuple):
    """What a module computes of one task's rows, whether that may depend on their number, and
    where the pass writes to the module."""

    program: Program
    counts_rows: bool
    written: list[tuple[nn.Module, str]]


def read(module: nn.Module, x: Rows) -> Reading:
    """Returns what the module computes of one task's rows.

    Raises:
        NotFusible: something in the pass cannot be read; the text names the first such call.

    Cost: the Python code of the forward pass, and about 15 us a call in it.
    """
    with alone():
        return _read(module, x)


def _read(module: nn.Module, x: Rows) -> Reading:
    """See `read`; other threads leave the module alone."""
    what = type(module).__name__
    buffers, parameters = list(module.named_buffers()), list(module.named_parameters())
    reason = _unsuited(module, x, buffers, parameters)
    if reason:
        raise NotFusible(f"{what} cannot be fused: {reason}")
    recorder = Recorder(module, x, [*buffers, *parameters])  # what is both is a parameter
    kept = kept_parts(module)
    before = random_state()
    try:
        with torch.enable_grad():
            stand_in = recorder.start()
            with recorder:
                result = module(stand_in)
        program = recorder.finish(result)
    except Stop:
        pass
    except Exception as error:
        text = str(error).strip().split("\n")[0]
        recorder.reason = recorder.reason or (
            f"its forward pass raised {type(error).__name__} when it was read ({text})"
        )
    finally:
        recorder.release()
        written = [place for part in kept for place in part.written()]
        for part in kept:
            part.put_back()
    if not recorder.reason and random_state() != before:
        recorder.reason = "its forward pass draws random numbers"
    if recorder.reason:
        raise NotFusible(f"{what} cannot be fused: {recorder.reason}")
    return Reading(program, recorder.counts_rows, written)


def _unsuited(module: nn.Module, x: Rows, buffers: Named, parameters: Named) -> str:
    """Returns why a pass cannot be read at all; empty if it can."""
    if torch.compiler.is_compiling():
        return "torch.compile is tracing, within which a forward pass is not read"
    if torch._C._len_torch_dispatch_stack():
        return "a dispatch mode of torch is active, which would not see its operations"
    outside = surroundings()
    if outside:
        return outside
    if x.dtype not in _DTYPES:
        return f"its inputs are {x.dtype}"
    for name, part in module.named_modules():
        label = f"layer {name!r} ({type(part).__name__})" if name else "it"
        if isinstance(part, (torch.jit.ScriptModule, nn.DataParallel)):
            return f"what {label} computes cannot be read"
        if part.__dict__.get("_compiled_call_impl") is not None or "_orig_mod" in part._modules:
            return f"{label} is compiled; hand in the module as it was before"
        hooks = hooks_of(part)
        if hooks:
            return f"{label} has hooks: {hooks}"
    if 0 in x.shape:
        return "its rows hold no numbers"
    for name, buffer in buffers:
        if buffer.requires_grad:
            return f"its buffer {name!r} requires gradients"
    for name, parameter in parameters:
        if not parameter.numel():
            return f"{name} holds no numbers"
        if type(parameter) not in _PLAIN:
            return f"{name} is a {type(parameter).__name__}, which may compute otherwise"
    return ""
