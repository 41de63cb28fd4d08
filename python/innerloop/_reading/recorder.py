"""Takes notes of one forward pass: which functions of torch it calls, on what."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode

from innerloop._program import Leaf, Node, Option, Part, Program, Shape, name_of

Handler = Callable[..., Any]
HANDLERS: dict[Any, Handler] = {}  # by function of torch: what notes its calls


def known(*functions: Any) -> Callable[[Handler], Handler]:
    """Says what notes the calls of some functions of torch."""

    def register(handler: Handler) -> Handler:
        for function in functions:
            HANDLERS[function] = handler
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


class Recorder(TorchFunctionMode):
    """Notes the calls of one pass."""

    def __init__(self, module: nn.Module, x: Rows) -> None:
        super().__init__()
        self.reason = ""
        self.counts_rows = False  # whether what was noted may depend on how many there are
        self.rows = x.number or 2  # what a pass computes is the same without rows
        self.device, self.dtype = x.device, x.dtype
        self.nodes: list[Node] = []
        self._module = module
        self._shape = x.shape
        # what is both is a parameter
        named = [*module.named_buffers(), *module.named_parameters()]
        self._leaves: dict[int, Leaf] = {id(tensor): name for name, tensor in named}
        self._values: dict[int, int] = {}  # of tensors that stand for values, by identity
        self._memory: dict[int, list[int]] = {}  # the tensors that lie where each of them lies
        self._stale: set[int] = set()  # tensors that were changed through another
        self._filled: set[str] = set()  # statistics that calls update
        self._held: list[Tensor] = []  # so that identities stay
        self._views: list[Tensor] = []  # likewise
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
        handler = HANDLERS.get(func)
        if handler is None:
            self.stop("", func)
        if torch_state() != self._state:
            self.stop("it turns gradients off, or autocast on", func)
        try:
            return handler(self, *args, **(kwargs or {}))
        except TypeError as misfit:
            self.stop(f"its arguments cannot be read ({misfit})", func)

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

    def is_value(self, tensor: object) -> bool:
        """Says whether something is made of the input."""
        return id(tensor) in self._values

    def leaf(self, tensor: object) -> Leaf | None:
        """Returns the name of a parameter or buffer, or what part of it something is."""
        if tensor is None:
            return None
        leaf = self._leaves.get(id(tensor))
        if leaf is None:
            self.stop("it reads a weight that is not a parameter or buffer of its own")
        assert isinstance(tensor, Tensor)
        if tensor.dtype is not self.dtype:
            self.stop(f"it reads {name_of(leaf)}, which is {tensor.dtype}")
        return leaf

    def entry(self, tensor: Tensor, index: int) -> Tensor:
        """Returns what stands for one entry along the first axis of a parameter."""
        whole = self.leaf(tensor)
        if not isinstance(whole, str) or not tensor.ndim or not -len(tensor) <= index < len(tensor):
            self.stop(f"there is no entry {index} to be read of {list(tensor.shape)}")
        return self._part(tensor.detach()[index], Part(whole, index % len(tensor), False))

    def transposed(self, tensor: Tensor, *axes: int) -> Tensor:
        """Returns what stands for the transpose of a parameter that is a matrix."""
        leaf = self.leaf(tensor)
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
        values = tuple(self.value(x) for x in inputs)
        read = tuple(self.leaf(p) for p in leaves)
        self.nodes.append(Node(kind, values, read, options, tuple(int(n) for n in shape)))
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
