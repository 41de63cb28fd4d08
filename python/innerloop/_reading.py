"""Reads a module by what it computes, whoever wrote its forward pass.

The pass runs once on tensors that have shapes and no numbers, and every function of torch that it
calls is noted instead of computed. So whatever acts on a forward pass (subclasses, `forward` set on
an instance, hooks, wrappers, replaced functions) is in the notes, and nothing that it might have
depended on has to be guessed: the module is read anew at each call. What is not one of the calls
below, or would not leave a trace (no_grad, autocast, functions with a derivative of their own,
random numbers of Python), makes the module unreadable, with a reason.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode

from innerloop._chain import NotFusible
from innerloop._program import Node, Option, Program, Shape, size_of
from innerloop._real_forward import hooks_of, surroundings
from innerloop._stateless import kept_parts
from innerloop._tasks import alone

_PLAIN = (Tensor, nn.Parameter)
_DTYPES = (torch.float32, torch.float64)
Handler = Callable[..., Any]
_HANDLERS: dict[Any, Handler] = {}


class _Stop(Exception):
    """The pass did something that cannot be read; the recorder holds the reason."""


class Rows(NamedTuple):
    """What is to be known of one task's rows x [N, ...]."""

    number: int
    shape: Shape
    dtype: torch.dtype
    device: torch.device


def rows_of(x: Tensor) -> Rows:
    """Returns what is to be known of inputs x [T, N, ...]."""
    return Rows(x.shape[1], tuple(x.shape[2:]), x.dtype, x.device)


def read(module: nn.Module, x: Rows) -> Program:
    """Returns what the module computes of one task's rows.

    Raises:
        NotFusible: something in the pass cannot be read; the text names the first such call.

    Cost: the Python code of the forward pass, and about 15 us a call in it.
    """
    with alone():
        return _read(module, x)


def _read(module: nn.Module, x: Rows) -> Program:
    """See `read`; other threads leave the module alone."""
    what = type(module).__name__
    reason = _unsuited(module, x)
    if reason:
        raise NotFusible(f"{what} cannot be fused: {reason}")
    recorder = _Recorder(module, x)
    kept = kept_parts(module)
    before = _random_state()
    try:
        with torch.enable_grad():
            stand_in = recorder.start()
            with recorder:
                result = module(stand_in)
        program = recorder.finish(result)
    except _Stop:
        pass
    except Exception as error:
        text = str(error).strip().split("\n")[0]
        recorder.reason = recorder.reason or (
            f"its forward pass raised {type(error).__name__} when it was read ({text})"
        )
    finally:
        for part in kept:
            part.put_back()
    if not recorder.reason and _random_state() != before:
        recorder.reason = "its forward pass draws random numbers"
    if recorder.reason:
        raise NotFusible(f"{what} cannot be fused: {recorder.reason}")
    return program


def _unsuited(module: nn.Module, x: Rows) -> str:
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
    for name, parameter in module.named_parameters():
        if type(parameter) not in _PLAIN:
            return f"{name} is a {type(parameter).__name__}, which may compute otherwise"
    return ""


def _random_state() -> object:
    """Returns the states of Python's and NumPy's generators (torch's are seen by the recorder)."""
    numpy = sys.modules.get("numpy")
    theirs = None if numpy is None else numpy.random.get_state(legacy=False)["state"]
    return random.getstate(), None if theirs is None else (theirs["pos"], theirs["key"].tobytes())


def _torch_state() -> tuple[bool, ...]:
    """Returns what of torch changes how a call is differentiated or computed."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
    )


class _Recorder(TorchFunctionMode):
    """Notes the calls of one pass."""

    def __init__(self, module: nn.Module, x: Rows) -> None:
        super().__init__()
        self.reason = ""
        self.rows = x.number or 2  # what a pass computes is the same without rows
        self.device, self.dtype = x.device, x.dtype
        self.nodes: list[Node] = []
        self._module = module
        self._shape = x.shape
        self._leaves = {id(p): name for name, p in module.named_parameters()}
        self._leaves.update({id(b): name for name, b in module.named_buffers()})
        self._values: dict[int, int] = {}  # of tensors that stand for values, by identity
        self._memory: dict[int, list[int]] = {}  # the tensors that lie where each of them lies
        self._stale: set[int] = set()  # tensors that were changed through another
        self._filled: set[str] = set()  # statistics that calls update
        self._held: list[Tensor] = []  # so that identities stay
        self._state: tuple[bool, ...] = ()

    # ------------------------------------------------------------ the pass

    def start(self) -> Tensor:
        """Returns what stands for the input."""
        self._state = _torch_state()
        return self.tensor(0, self._shape)

    def finish(self, result: object) -> Program:
        """Returns what was noted, given what the pass returned."""
        if self.reason:  # it was raised, and caught by the pass
            raise _Stop
        if type(result) is not Tensor:
            self.stop(f"it returns a {type(result).__name__}, not one tensor")
        output = self.value(result)
        for tensor in self._held:
            if tensor._version:
                self.stop("it changes a tensor in place in a way that leaves no trace")
        if any(name in self._filled for node in self.nodes for name in node.leaves):
            self.stop("it reads running statistics that it updates")
        return Program(self._shape, tuple(self.nodes), output)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any | None = None
    ) -> Any:
        """Notes one call."""
        handler = _HANDLERS.get(func)
        if handler is None:
            self.stop("", func)
        if _torch_state() != self._state:
            self.stop("it turns gradients off, or autocast on", func)
        try:
            return handler(self, *args, **(kwargs or {}))
        except TypeError as misfit:
            self.stop(f"its arguments cannot be read ({misfit})", func)

    def stop(self, reason: str, func: Any = None) -> NoReturn:
        """Ends the pass, with the reason and the call to blame."""
        if not self.reason:
            where = _running(self._module, self._leaves)
            call = "" if func is None else f"call {len(self.nodes) + 1} of its forward pass, "
            named = (
                f"{call}{_name_of(func)}{where}, " if call else f"{where[4:]}: " if where else ""
            )
            self.reason = named + (reason or "is not one of those that can be read")
        raise _Stop

    # ------------------------------------------------------------ what handlers ask for

    def tensor(self, value: int, shape: Shape) -> Tensor:
        """Returns a new tensor that stands for a value."""
        result = torch.empty(
            (self.rows, *shape), dtype=self.dtype, device="meta", requires_grad=True
        )
        self._values[id(result)] = value
        self._memory[id(result)] = [id(result)]
        self._held.append(result)
        return result

    def value(self, tensor: object) -> int:
        """Returns the value that a tensor stands for."""
        found = self._values.get(id(tensor))
        if found is None:
            kind = "a parameter" if id(tensor) in self._leaves else "something"
            self.stop(f"it computes with {kind} that is not made of the input by known calls")
        if id(tensor) in self._stale:
            self.stop("it uses a tensor that was changed in place through another one")
        if tensor.grad_fn is not None or not tensor.requires_grad:  # type: ignore[attr-defined]
            self.stop("it uses a function with a derivative of its own")
        return found

    def shape(self, tensor: object) -> Shape:
        """Returns the shape of one row of what a tensor stands for."""
        value = self.value(tensor)
        return self.nodes[value - 1].shape if value else self._shape

    def leaf(self, tensor: object) -> str | None:
        """Returns the name of a parameter or buffer."""
        if tensor is None:
            return None
        name = self._leaves.get(id(tensor))
        if name is None:
            self.stop("it reads a weight that is not a parameter or buffer of its own")
        assert isinstance(tensor, Tensor)
        if tensor.dtype is not self.dtype:
            self.stop(f"it reads {name}, which is {tensor.dtype}")
        return name

    def fill(self, statistics: object, func: Any) -> None:
        """Notes that a call updates statistics. Operations leave a module as it is, so that matters
        only where the pass reads them, or where somebody expects it: of torch's own layers."""
        name = self.leaf(statistics)
        if name is None:
            return
        if isinstance(self._module.get_submodule(name.rpartition(".")[0]), _NormBase):
            self.stop("it updates running statistics", func)
        self._filled.add(name)

    def add(
        self,
        kind: str,
        inputs: Sequence[object],
        shape: Shape,
        options: tuple[Option, ...] = (),
        leaves: Sequence[object] = (),
        inplace: bool = False,
    ) -> Any:
        """Notes a call and returns what stands for its result."""
        values = tuple(self.value(x) for x in inputs)
        names = tuple(self.leaf(p) for p in leaves)
        self.nodes.append(Node(kind, values, names, options, tuple(int(n) for n in shape)))
        if not inplace:
            return self.tensor(len(self.nodes), shape)
        changed = inputs[0]
        self._stale.update(other for other in self._memory[id(changed)] if other != id(changed))
        self._values[id(changed)] = len(self.nodes)
        return changed

    def same_memory(self, result: Tensor, source: Tensor) -> Tensor:
        """Says that a change of one of two tensors changes the other."""
        shared = self._memory[id(source)]
        shared.append(id(result))
        self._memory[id(result)] = shared
        return result


def _name_of(func: Any) -> str:
    """Returns what a function of torch is called."""
    if func is None:
        return ""
    owner = getattr(func, "__self__", None)
    if getattr(func, "__name__", "") == "__get__" and owner is not None:
        return str(getattr(owner, "__name__", "an attribute"))
    return str(getattr(func, "__name__", func))


def _running(module: nn.Module, leaves: dict[int, str]) -> str:
    """Returns " in layer ..." for the part of a module whose code runs, by the frames of its
    callers."""
    names = {id(part): name for name, part in module.named_modules()}
    frame = sys._getframe(2)
    while frame.f_back is not None:
        part = frame.f_locals.get("self")
        if isinstance(part, nn.Module) and id(part) in names:
            name = names[id(part)]
            return f" in layer {name!r} ({type(part).__name__})" if name else ""
        frame = frame.f_back
    return ""


# ---------------------------------------------------------------- the calls that are known


def _known(*functions: Any) -> Callable[[Handler], Handler]:
    """Says what notes the calls of some functions of torch."""

    def register(handler: Handler) -> Handler:
        for function in functions:
            _HANDLERS[function] = handler
        return handler

    return register


def _pass_through() -> None:
    """Registers what only asks for a tensor's shape or type."""
    attributes = [Tensor.shape, Tensor.ndim, Tensor.dtype]
    asks = [attribute.__get__ for attribute in attributes]  # type: ignore[attr-defined]
    asks += [Tensor.size, Tensor.dim, Tensor.ndimension, Tensor.numel, Tensor.__len__]
    asks += [Tensor.is_floating_point, torch.is_floating_point, torch.numel]
    for ask in asks:

        def handler(recorder: _Recorder, *args: Any, ask: Any = ask, **kwargs: Any) -> Any:
            return ask(*args, **kwargs)

        _HANDLERS[ask] = handler


_pass_through()


@_known(Tensor.device.__get__)
def _device(recorder: _Recorder, tensor: Tensor) -> torch.device:
    return recorder.device if id(tensor) in recorder._values else tensor.device


@_known(F.linear)
def _linear(recorder: _Recorder, input: Tensor, weight: Tensor, bias: Any = None) -> Any:
    shape = recorder.shape(input)
    if not shape or weight.ndim != 2 or shape[-1] != weight.shape[1]:
        recorder.stop(f"a linear layer of {list(weight.shape)} does not fit rows of {list(shape)}")
    return recorder.add("linear", [input], (*shape[:-1], weight.shape[0]), (), (weight, bias))


def _numbers(recorder: _Recorder, value: Any, axes: int) -> tuple[int, ...]:
    """Returns one int for each axis."""
    if isinstance(value, (tuple, list)):
        numbers = tuple(int(n) for n in value)
        if len(numbers) == 1:
            numbers *= axes
        if len(numbers) != axes:
            recorder.stop(f"{value} is not one number for each of {axes} axes")
        return numbers
    return (int(value),) * axes


def _convolution(axes: int) -> Handler:
    """Returns what notes convolutions over so many axes."""

    def handler(
        recorder: _Recorder,
        input: Tensor,
        weight: Tensor,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Any:
        shape = recorder.shape(input)
        if len(shape) != axes + 1 or shape[0] != weight.shape[1] * groups:
            recorder.stop(
                f"a convolution of {list(weight.shape)} does not fit rows of {list(shape)}"
            )
        kernel = tuple(weight.shape[2:])
        strides, dilations = (_numbers(recorder, v, axes) for v in (stride, dilation))
        if isinstance(padding, str):
            whole = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
            if padding == "same" and any(n % 2 for n in whole):
                recorder.stop("padding='same' that is not the same on both sides")
            padding = [n // 2 for n in whole] if padding == "same" else 0
        paddings = _numbers(recorder, padding, axes)
        sizes = tuple(
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(shape[1:], paddings, dilations, kernel, strides, strict=True)
        )
        if min(sizes, default=1) < 1:
            recorder.stop(f"a kernel of {list(kernel)} does not fit rows of {list(shape)}")
        options = (strides, paddings, dilations, int(groups))
        leaves = (weight, bias)
        return recorder.add("convolution", [input], (weight.shape[0], *sizes), options, leaves)

    return handler


for _axes, _function in enumerate((torch.conv1d, torch.conv2d, torch.conv3d), 1):
    _HANDLERS[_function] = _convolution(_axes)


# ---------------------------------------------------------------- shapes


def _reshaped(recorder: _Recorder, input: Tensor, shape: Sequence[Any]) -> Any:
    """Notes that rows are seen in another shape."""
    size = recorder.rows * size_of(recorder.shape(input))
    sizes = [int(n) for n in shape]
    if sizes.count(-1) == 1:
        rest = -size_of(tuple(sizes))
        sizes[sizes.index(-1)] = size // rest if rest else 0
    if size_of(tuple(sizes)) != size or not sizes or sizes[0] != recorder.rows:
        recorder.stop(f"rows of shape {list(recorder.shape(input))} do not stay rows in {sizes}")
    result = recorder.add("reshape", [input], tuple(sizes[1:]))
    return recorder.same_memory(result, input)


@_known(Tensor.view, Tensor.reshape)
def _view(recorder: _Recorder, input: Tensor, *shape: Any) -> Any:
    sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    return _reshaped(recorder, input, sizes)


@_known(torch.reshape)
def _reshape(recorder: _Recorder, input: Tensor, shape: Any) -> Any:
    return _reshaped(recorder, input, shape)


@_known(Tensor.flatten, torch.flatten)
def _flatten(recorder: _Recorder, input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Any:
    sizes = list(input.shape)
    first, last = start_dim % max(len(sizes), 1), end_dim % max(len(sizes), 1)
    return _reshaped(
        recorder,
        input,
        [*sizes[:first], size_of(tuple(sizes[first : last + 1])), *sizes[last + 1 :]],
    )


@_known(Tensor.squeeze, torch.squeeze, Tensor.unsqueeze, torch.unsqueeze)
def _squeeze(recorder: _Recorder, input: Tensor, *axes: Any, **named: Any) -> Any:
    recorder.stop("axes that come and go cannot be read; use flatten(1) or view")


@_known(Tensor.contiguous)
def _contiguous(recorder: _Recorder, input: Tensor, memory_format: Any = None) -> Any:
    recorder.value(input)
    return input


@_known(Tensor.float, Tensor.double, Tensor.to)
def _converted(recorder: _Recorder, input: Tensor, *wanted: Any, **named: Any) -> Any:
    given = [*wanted, *named.values()]
    recorder.value(input)
    if any(value not in (recorder.dtype, recorder.device) for value in given) or not given:
        recorder.stop("a conversion cannot be read")
    return input


# ---------------------------------------------------------------- sums


@_known(Tensor.add, Tensor.__add__, Tensor.__radd__, torch.add)
def _add(recorder: _Recorder, input: Any, other: Any, *, alpha: float = 1) -> Any:
    return _sum(recorder, input, other, alpha, inplace=False)


@_known(Tensor.add_, Tensor.__iadd__)
def _add_(recorder: _Recorder, input: Any, other: Any, *, alpha: float = 1) -> Any:
    return _sum(recorder, input, other, alpha, inplace=True)


def _sum(recorder: _Recorder, input: Any, other: Any, alpha: float, inplace: bool) -> Any:
    if alpha != 1 or not isinstance(input, Tensor) or not isinstance(other, Tensor):
        recorder.stop("only the sum of two results can be read", torch.add)
    shape = recorder.shape(input)
    if recorder.shape(other) != shape:
        recorder.stop(f"a sum of {list(shape)} and {list(recorder.shape(other))}", torch.add)
    return recorder.add("add", [input, other], shape, inplace=inplace)


@_known(Tensor.mean, torch.mean)
def _mean(recorder: _Recorder, input: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    shape = recorder.shape(input)
    axes = [dim] if isinstance(dim, int) else list(dim or ())
    ndim = len(shape) + 1
    wanted = sorted({int(axis) % ndim for axis in axes})
    if not wanted or wanted[0] < 2 or wanted != list(range(wanted[0], ndim)):
        recorder.stop("only a mean over the last axes, not over rows or channels, can be read")
    kept = shape[: wanted[0] - 1]
    ones = (1,) * (len(shape) - len(kept)) if keepdim else ()
    return recorder.add("mean", [input], (*kept, *ones), (len(kept),))


# ---------------------------------------------------------------- activations


def _activation(kind: str, *functions: Any, inplace: Sequence[Any] = (), **defaults: Any) -> None:
    """Registers an elementwise function with its options in order."""
    names = list(defaults)

    def handler(
        recorder: _Recorder, input: Tensor, *args: Any, changes: bool = False, **kwargs: Any
    ) -> Any:
        given = dict(zip(names, args, strict=False))
        changes = bool(kwargs.pop("inplace", changes))
        if len(args) > len(names):
            changes = bool(args[len(names)])
        given.update(kwargs)
        if set(given) - set(names) or len(args) > len(names) + 1:
            recorder.stop(f"{kind} with the arguments {list(given)}")
        options = tuple(
            value if isinstance(value, str) else float(value)
            for value in (given.get(name, defaults[name]) for name in names)
        )
        return recorder.add(kind, [input], recorder.shape(input), options, inplace=changes)

    def changing(recorder: _Recorder, *args: Any, **kwargs: Any) -> Any:
        return handler(recorder, *args, changes=True, **kwargs)

    _HANDLERS.update(dict.fromkeys(functions, handler))
    _HANDLERS.update(dict.fromkeys(inplace, changing))


_activation("relu", F.relu, torch.relu, Tensor.relu, inplace=(torch.relu_, Tensor.relu_))
_activation("leaky_relu", F.leaky_relu, inplace=(F.leaky_relu_,), negative_slope=0.01)
_activation("tanh", torch.tanh, F.tanh, Tensor.tanh, inplace=(torch.tanh_, Tensor.tanh_))
_activation(
    "sigmoid",
    torch.sigmoid,
    F.sigmoid,
    Tensor.sigmoid,
    inplace=(torch.sigmoid_, Tensor.sigmoid_),
)
_activation("softplus", F.softplus, beta=1.0, threshold=20.0)
_activation("silu", F.silu)
_activation("gelu", F.gelu, approximate="none")
_activation("elu", F.elu, inplace=(F.elu_,), alpha=1.0)
_activation("hardswish", F.hardswish)
_activation("hardtanh", F.hardtanh, inplace=(F.hardtanh_,), min_val=-1.0, max_val=1.0)


@_known(F.relu6)
def _relu6(recorder: _Recorder, input: Tensor, inplace: bool = False) -> Any:
    shape = recorder.shape(input)
    return recorder.add("hardtanh", [input], shape, (0.0, 6.0), inplace=bool(inplace))


@_known(F.prelu, torch.prelu, Tensor.prelu)
def _prelu(recorder: _Recorder, input: Tensor, weight: Tensor) -> Any:
    shape = recorder.shape(input)
    if weight.numel() not in (1, shape[0] if shape else 1):
        recorder.stop(f"a slope of {weight.numel()} values does not fit rows of {list(shape)}")
    return recorder.add("prelu", [input], shape, (weight.numel() > 1,), (weight,))


@_known(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)
def _dropout(
    recorder: _Recorder,
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> Any:
    recorder.value(input)
    if training and p > 0:
        recorder.stop("it is random in training mode (call .eval() or use p=0)", F.dropout)
    return input


# ---------------------------------------------------------------- normalisation


@_known(F.batch_norm)
def _batch_norm(
    recorder: _Recorder,
    input: Tensor,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    shape = recorder.shape(input)
    if not shape:
        recorder.stop("rows have no channels", F.batch_norm)
    if not training:
        leaves = (weight, bias, running_mean, running_var)
        return recorder.add("fixed_norm", [input], shape, (float(eps),), leaves)
    recorder.fill(running_mean, F.batch_norm)
    recorder.fill(running_var, F.batch_norm)
    if recorder.rows * size_of(shape[1:]) < 2:
        recorder.stop("statistics of one value", F.batch_norm)
    return recorder.add("batch_norm", [input], shape, (float(eps),), (weight, bias))


@_known(F.layer_norm)
def _layer_norm(
    recorder: _Recorder,
    input: Tensor,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Any:
    shape = recorder.shape(input)
    sizes = tuple(int(n) for n in normalized_shape)
    if not sizes or len(sizes) > len(shape) or shape[len(shape) - len(sizes) :] != sizes:
        recorder.stop(f"a norm over {list(sizes)} does not fit rows of {list(shape)}")
    options = (float(eps), len(sizes))
    return recorder.add("layer_norm", [input], shape, options, (weight, bias))


@_known(F.group_norm)
def _group_norm(
    recorder: _Recorder,
    input: Tensor,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Any:
    shape = recorder.shape(input)
    if not shape or shape[0] % num_groups or recorder.rows * size_of(shape) < 2 * num_groups:
        recorder.stop(f"{num_groups} groups do not fit rows of {list(shape)}", F.group_norm)
    options = (float(eps), int(num_groups))
    return recorder.add("group_norm", [input], shape, options, (weight, bias))


@_known(F.instance_norm)
def _instance_norm(
    recorder: _Recorder,
    input: Tensor,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    shape = recorder.shape(input)
    if len(shape) < 2 or (use_input_stats and size_of(shape[1:]) < 2):
        recorder.stop("statistics of one value", F.instance_norm)
    if not use_input_stats:
        leaves = (weight, bias, running_mean, running_var)
        return recorder.add("fixed_norm", [input], shape, (float(eps),), leaves)
    recorder.fill(running_mean, F.instance_norm)
    recorder.fill(running_var, F.instance_norm)
    return recorder.add("group_norm", [input], shape, (float(eps), shape[0]), (weight, bias))


@_known(F.log_softmax, torch.log_softmax, Tensor.log_softmax)
def _log_softmax(
    recorder: _Recorder, input: Tensor, dim: Any = None, _stacklevel: int = 3, dtype: Any = None
) -> Any:
    shape = recorder.shape(input)
    axis = None if dim is None else int(dim) % (len(shape) + 1)
    if not axis or dtype not in (None, recorder.dtype):
        recorder.stop("only one over an axis of the rows, in their dtype, can be read")
    return recorder.add("log_softmax", [input], shape, (axis,))


# ---------------------------------------------------------------- pooling


def _pooled(
    recorder: _Recorder,
    shape: Shape,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    ceil_mode: bool,
) -> Shape:
    """Returns the sizes of a row after pooling, by torch's rule: with `ceil_mode` a window may go
    over the end if it begins before it."""
    sizes = []
    for n, k, s, p, d in zip(shape[1:], kernel, stride, padding, dilation, strict=True):
        steps, rest = divmod(n + 2 * p - d * (k - 1) - 1, s)
        more = ceil_mode and rest > 0 and (steps + 1) * s < n + p
        sizes.append(steps + 1 + more)
    if min(sizes) < 1 or any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        recorder.stop(f"windows of {list(kernel)} do not fit rows of {list(shape)}")
    return (shape[0], *sizes)


def _max_pool(axes: int) -> Handler:
    """Returns what notes max pooling over so many axes."""

    def handler(
        recorder: _Recorder,
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Any:
        shape = recorder.shape(input)
        if len(shape) != axes + 1 or return_indices:
            recorder.stop(f"max pooling of rows of {list(shape)}, or with indices")
        kernel = _numbers(recorder, kernel_size, axes)
        strides = _numbers(recorder, stride, axes) if stride else kernel
        paddings, dilations = (_numbers(recorder, v, axes) for v in (padding, dilation))
        after = _pooled(recorder, shape, kernel, strides, paddings, dilations, ceil_mode)
        options = (kernel, strides, paddings, dilations, bool(ceil_mode))
        return recorder.add("max_pool", [input], after, options)

    return handler


def _avg_pool(axes: int) -> Handler:
    """Returns what notes average pooling over so many axes."""

    def handler(
        recorder: _Recorder,
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: Any = None,
    ) -> Any:
        shape = recorder.shape(input)
        if len(shape) != axes + 1 or divisor_override is not None:
            recorder.stop(f"average pooling of rows of {list(shape)}, or with another divisor")
        kernel = _numbers(recorder, kernel_size, axes)
        strides = _numbers(recorder, stride, axes) if stride else kernel
        paddings = _numbers(recorder, padding, axes)
        after = _pooled(recorder, shape, kernel, strides, paddings, (1,) * axes, ceil_mode)
        options = (kernel, strides, paddings, bool(ceil_mode), bool(count_include_pad))
        return recorder.add("avg_pool", [input], after, options)

    return handler


def _adaptive_pool(kind: str, axes: int) -> Handler:
    """Returns what notes adaptive pooling over so many axes."""

    def handler(
        recorder: _Recorder, input: Tensor, output_size: Any, return_indices: bool = False
    ) -> Any:
        shape = recorder.shape(input)
        if len(shape) != axes + 1 or return_indices:
            recorder.stop(f"adaptive pooling of rows of {list(shape)}, or with indices")
        given = output_size if isinstance(output_size, (tuple, list)) else (output_size,) * axes
        sizes = tuple(
            n if size is None else int(size) for n, size in zip(shape[1:], given, strict=True)
        )
        return recorder.add(kind, [input], (shape[0], *sizes), (sizes,))

    return handler


for _axes, (_max, _avg, _most, _average) in enumerate(
    (
        (F.max_pool1d, F.avg_pool1d, F.adaptive_max_pool1d, F.adaptive_avg_pool1d),
        (F.max_pool2d, F.avg_pool2d, F.adaptive_max_pool2d, F.adaptive_avg_pool2d),
    ),
    1,
):
    _HANDLERS[_max] = _max_pool(_axes)
    _HANDLERS[_avg] = _avg_pool(_axes)
    _HANDLERS[_most] = _adaptive_pool("adaptive_max_pool", _axes)
    _HANDLERS[_average] = _adaptive_pool("adaptive_avg_pool", _axes)
