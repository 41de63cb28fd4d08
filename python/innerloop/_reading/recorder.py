"""Takes notes of one forward pass: which functions of torch it calls, on what."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode

from innerloop._program import Leaf, Made, Node, Option, Part, Program, Shape, name_of
from innerloop._reading.computing import Computing, Unsuited
from innerloop._real_forward import replaced_in

Handler = Callable[..., Any]
Named = Sequence[tuple[str, Tensor]]
HANDLERS: dict[Any, Handler] = {}  # by function of torch: what notes its calls
# whether that is so where only parameters go in; other calls on parameters alone are computations
_READS: dict[Any, Callable[..., bool]] = {}
_READER = "innerloop._reading.reader"  # which runs the pass
_IMPORTS = "<frozen importlib._bootstrap>"


def known(
    *functions: Any, parameters: Callable[..., bool] | None = None
) -> Callable[[Handler], Handler]:
    """Says what notes the calls of some functions of torch: those with a value among their
    arguments, and of those on parameters alone those that `parameters` says of the recorder and
    the arguments."""

    def register(handler: Handler) -> Handler:
        for function in functions:
            HANDLERS[function] = handler
            if parameters is not None:
                _READS[function] = parameters
        return handler

    return register


class Stop(Exception):
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


def torch_state() -> tuple[bool, ...]:
    """Returns what of torch changes how a call is differentiated or computed."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
    )


def _in_an_import() -> bool:
    """Says whether the pass is importing something, which calls functions for itself, as
    torch._dynamo of torch 2.6 and older does at the first activation checkpoint: no call of the
    pass, and an error would leave modules half imported."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__") != _READER:
        if frame.f_code.co_filename == _IMPORTS:
            return True
        frame = frame.f_back
    return False


class Recorder(TorchFunctionMode):
    """Notes the calls of one pass."""

    def __init__(self, module: nn.Module, x: Rows, leaves: Named) -> None:
        super().__init__()
        self.reason = ""
        self.counts_rows = False  # whether what was noted may depend on how many there are
        self.rows = x.number or 2  # what a pass computes is the same without rows
        self.device, self.dtype = x.device, x.dtype
        self.nodes: list[Node] = []
        self._module = module
        self._shape = x.shape
        self._leaves: dict[int, Leaf] = {id(tensor): name for name, tensor in leaves}
        self._values: dict[int, int] = {}  # of tensors that stand for values, by identity
        self._memory: dict[int, list[int]] = {}  # the tensors that lie where each of them lies
        self._stale: set[int] = set()  # tensors that were changed through another
        self._filled: set[str] = set()  # statistics that calls update
        self._held: list[Tensor] = []  # so that identities stay
        self._views: list[Tensor] = []  # likewise
        self._computing = Computing()
        self.zeros: set[int] = set()  # tensors of zeros that calls made, by identity
        self._stacks: dict[int, list[Tensor]] = {}  # results in a row before the rows, likewise
        self._known: dict[int, Tensor] = {}  # values that have their numbers, by identity
        self._numbered_ones: list[Tensor] = []  # those that had them at any time
        self._modules = len(sys.modules)
        self._state: tuple[bool, ...] = ()

    # ------------------------------------------------------------ the pass

    def start(self) -> Tensor:
        """Returns what stands for the input."""
        self._state = torch_state()
        self.input = self.tensor(0, self._shape)
        return self.input

    def finish(self, result: object) -> Program:
        """Returns what was noted, given what the pass returned."""
        if self.reason:  # it was raised, and caught by the pass
            raise Stop
        if type(result) is not Tensor:
            self.stop(f"it returns a {type(result).__name__}, not one tensor")
        output = self.value(result)
        for tensor in self._held:
            if tensor._version:
                self.stop("it changes a tensor in place in a way that leaves no trace")
        if any(name in self._filled for node in self.nodes for name in node.names):
            self.stop("it reads running statistics that it updates")
        return Program(self._shape, tuple(self.nodes), output)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any | None = None
    ) -> Any:
        """Notes one call."""
        if len(sys.modules) != self._modules and _in_an_import():
            return func(*args, **(kwargs or {}))
        handler = HANDLERS.get(func)
        on_parameters = self._is_on_parameters(func, args, kwargs or {})
        if handler is None and not on_parameters:
            self.stop("", func)
        replaced = replaced_in(func)
        if replaced:
            self.stop(f"it calls {replaced}, which is not torch's own", func)
        if torch_state() != self._state:
            self.stop("it turns gradients off, or autocast on", func)
        if on_parameters:
            return self.computed(func, args, kwargs or {})
        assert handler is not None
        try:
            result = handler(self, *args, **(kwargs or {}))
        except TypeError as misfit:
            text = re.sub(r"^\w+\(\) ", "", str(misfit))  # the name of what noted it
            self.stop(f"its arguments cannot be read ({text})", func)
        return self._numbered(func, args, kwargs or {}, result) if self._known else result

    def _numbered(self, func: Any, args: Any, kwargs: Any, result: Any) -> Any:
        """Returns a call's results with their numbers, where all that goes in has them."""
        tensors = list(tensors_in((args, kwargs)))
        several = isinstance(result, (tuple, list))
        results = list(result) if several else [result]
        if not all(map(self.is_value, results)):
            return result
        if not any(id(tensor) in self._known for tensor in tensors):
            return result
        is_changed = id(result) in self._known
        if not all(id(t) in self._known or self._computing.is_constant(t) for t in tensors):
            if is_changed:  # by what has none
                for alias in self._memory[id(result)]:
                    self._known.pop(alias, None)
            return result
        with torch.no_grad():
            if is_changed:
                with _unsafe_preserve_version_counter(result):
                    func(*args, **kwargs)
                return result
            numbers = func(*args, **kwargs)
        found = list(numbers) if several else [numbers]
        named = [self._with_numbers(*pair, func) for pair in zip(results, found, strict=True)]
        return type(result)(named) if several else named[0]

    def _with_numbers(self, result: Tensor, numbers: Tensor, func: Any) -> Tensor:
        """Returns what stands for a result from here on, which has its numbers."""
        if numbers.shape != result.shape or numbers.dtype is not self.dtype:
            self.stop("it computes numbers in another form than was noted", func)
        shared = self._memory[id(result)]
        numbers = self._numbers(numbers.detach(), self._values[id(result)])
        self._memory[id(numbers)] = shared
        shared.append(id(numbers))
        if id(result) in self.zeros:
            self.zeros.add(id(numbers))
        return numbers

    def _numbers(self, tensor: Tensor, value: int) -> Tensor:
        """Lets a tensor with numbers stand for a value."""
        self._stands(tensor.requires_grad_(), value)
        self._known[id(tensor)] = tensor
        self._numbered_ones.append(tensor)
        return tensor

    def release(self) -> None:
        """Makes what has numbers an ordinary tensor: the pass may have kept it."""
        for tensor in self._numbered_ones:
            tensor.requires_grad_(False)

    def _is_on_parameters(self, func: Any, args: Any, kwargs: Any) -> bool:
        """Says whether a call is a computation on parameters alone."""
        tensors = list(tensors_in((args, kwargs)))
        if not tensors or any(self.is_value(tensor) for tensor in tensors):
            return False
        if not all(self.is_leaf(tensor) for tensor in tensors):
            return False
        reads = _READS.get(func)
        return reads is None or not reads(self, *args, **kwargs)

    def computed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Notes a computation on parameters alone and returns what stands for its results."""
        try:
            return self._computing.call(func, args, kwargs, self._leaves)
        except Unsuited as reason:
            self.stop(str(reason), func)
        except Exception as error:
            text = str(error).strip().split("\n")[0]
            self.stop(f"it raised {type(error).__name__} on tensors without numbers ({text})", func)

    def constant(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Notes a call that makes a tensor of numbers and returns what stands for it."""
        try:
            return self._computing.constant(func, args, kwargs, self.device)
        except Unsuited as reason:
            self.stop(str(reason), func)

    def stop(self, reason: str, func: Any = None) -> NoReturn:
        """Ends the pass, with the reason and the call to blame."""
        if not self.reason:
            where = _running(self._module)
            call = "" if func is None else f"call {len(self.nodes) + 1} of its forward pass, "
            named = (
                f"{call}{_name_of(func)}{where}, " if call else f"{where[4:]}: " if where else ""
            )
            self.reason = named + (reason or "is not one of those that can be read")
        raise Stop

    # ------------------------------------------------------------ what handlers ask for

    def tensor(self, value: int, shape: Shape) -> Tensor:
        """Returns a new tensor that stands for a value."""
        result = torch.empty(
            (self.rows, *shape), dtype=self.dtype, device="meta", requires_grad=True
        )
        self._stands(result, value)
        return result

    def _stands(self, result: Tensor, value: int) -> None:
        """Says that a tensor stands for a value."""
        self._values[id(result)] = value
        self._memory[id(result)] = [id(result)]
        self._held.append(result)

    def filled(self, shape: Shape, number: float) -> Tensor:
        """Notes a result that is one number in every row and returns what stands for it, which has
        its numbers: the pass may keep it for later."""
        self.add("constant", [self.input], shape, (number,))
        result = torch.full((self.rows, *shape), number, dtype=self.dtype, device=self.device)
        return self._numbers(result, len(self.nodes))

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

    def is_value(self, tensor: object) -> bool:
        """Says whether something is made of the input."""
        return id(tensor) in self._values

    def stacked(self, tensors: list[Tensor]) -> Tensor:
        """Returns a tensor that stands for results along an axis before that of the rows, of which
        only each by itself can be read."""
        whole = torch.empty(
            (len(tensors), *tensors[0].shape), dtype=self.dtype, device="meta", requires_grad=True
        )
        self._stacks[id(whole)] = tensors
        self._held.append(whole)
        return whole

    def in_stack(self, tensor: object, index: object) -> Tensor | None:
        """Returns the result that an index takes of such a tensor; None of others."""
        stack = self._stacks.get(id(tensor))
        if stack is None or type(index) is not int or not -len(stack) <= index < len(stack):
            return None
        return stack[index]

    def is_leaf(self, tensor: object) -> bool:
        """Says whether something is a parameter, a buffer, or made of them alone."""
        return id(tensor) in self._leaves or tensor in self._computing

    def is_own(self, tensor: object, *, whole: bool = False) -> bool:
        """Says whether something is a parameter or buffer, or a part of one."""
        return isinstance(self._leaves.get(id(tensor)), str if whole else (str, Part))

    def leaf(self, tensor: object) -> Leaf | None:
        """Returns the name of a parameter or buffer, what part of it something is, or what is made
        of them alone."""
        if tensor is None:
            return None
        if id(tensor) not in self._leaves and tensor in self._computing:
            self._make(tensor)
        leaf = self._leaves.get(id(tensor))
        if leaf is None:
            self.stop("it reads a weight that is not a parameter or buffer of its own")
        assert isinstance(tensor, Tensor)
        if tensor.dtype is not self.dtype:
            what = "a weight" if isinstance(leaf, Made) else name_of(leaf)
            self.stop(f"it reads {what}, which is {tensor.dtype}")
        return leaf

    def _make(self, tensor: Any) -> None:
        """Notes a result of computations as one that calls read."""
        varies = tensor.is_floating_point() and not self._computing.is_constant(tensor)
        if tensor.grad_fn is not None or tensor.requires_grad != varies:
            self.stop("it uses a function with a derivative of its own")
        try:
            leaves, expression = self._computing.expression(tensor)
        except Unsuited as reason:
            self.stop(str(reason))
        options: Any = (expression,)
        shape = tuple(int(n) for n in tensor.shape)
        inputs = () if leaves else (0,)
        self.nodes.append(Node("computed", inputs, leaves, options, shape))
        self._leaves[id(tensor)] = Made(len(self.nodes))

    def entry(self, tensor: Tensor, index: int) -> Tensor:
        """Returns what stands for one entry along the first axis of a parameter."""
        whole = self.leaf(tensor)
        if not isinstance(whole, str) or not tensor.ndim or not -len(tensor) <= index < len(tensor):
            self.stop(f"there is no entry {index} to be read of {list(tensor.shape)}")
        return self._part(tensor.detach()[index], Part(whole, index % len(tensor), False))

    def transposed(self, tensor: Tensor, *axes: int) -> Tensor:
        """Returns what stands for the transpose of a parameter that is a matrix."""
        leaf = self.leaf(tensor)
        if isinstance(leaf, Made):
            made: Tensor = self.computed(torch.transpose, (tensor, *axes), {})
            return made
        if leaf is None or tensor.ndim != 2 or {axis % 2 for axis in axes} != {0, 1}:
            self.stop("only of a matrix that is a parameter can a transpose be read")
        part = leaf if isinstance(leaf, Part) else Part(leaf, None, False)
        turned = part._replace(is_transposed=not part.is_transposed)
        return self._part(tensor.detach().t(), turned)

    def _part(self, view: Tensor, part: Part) -> Tensor:
        """Returns a view of a parameter that stands for a part of it."""
        self._leaves[id(view)] = part
        self._views.append(view)
        return view

    def fill(self, statistics: object, func: Any) -> None:
        """Notes that a call updates statistics. Operations leave a module as it is, so that matters
        only where the pass reads them, or where somebody expects it: of torch's own layers."""
        leaf = self.leaf(statistics)
        if leaf is None:
            return
        if isinstance(leaf, Made):
            self.stop("it updates statistics that are computed", func)
        name = name_of(leaf)
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
        if any(isinstance(n, float) and n == 0 and math.copysign(1, n) < 0 for n in options):
            self.stop("it computes with a negative zero")  # which is equal to the other one
        values = tuple(self.value(x) for x in inputs)
        read = tuple(self.leaf(p) for p in leaves)
        self.nodes.append(Node(kind, values, read, options, tuple(int(n) for n in shape)))
        if not inplace:
            return self.tensor(len(self.nodes), shape)
        changed = inputs[0]
        self._stale.update(other for other in self._memory[id(changed)] if other != id(changed))
        self._values[id(changed)] = len(self.nodes)
        self.zeros.difference_update(self._memory[id(changed)])
        return changed

    def same_memory(self, result: Tensor, source: Tensor) -> Tensor:
        """Says that a change of one of two tensors changes the other."""
        shared = self._memory[id(source)]
        shared.append(id(result))
        self._memory[id(result)] = shared
        return result


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yields the tensors among arguments."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


def _name_of(func: Any) -> str:
    """Returns what a function of torch is called."""
    if func is None:
        return ""
    owner = getattr(func, "__self__", None)
    if getattr(func, "__name__", "") == "__get__" and owner is not None:
        return str(getattr(owner, "__name__", "an attribute"))
    return str(getattr(func, "__name__", func))


def _running(module: nn.Module) -> str:
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
