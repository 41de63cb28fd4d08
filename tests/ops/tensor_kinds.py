"""Every kind of tensor that Python can hand to an operation: how to make one of a plain tensor."""

import weakref

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

KEPT = []  # what keeps memory alive that a tensor only borrows


class Trivial(torch.Tensor):
    """A subclass without any behaviour."""


class Wrapper(torch.Tensor):
    """Holds another tensor, without storage of its own; every operation unwraps."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=inner.device
        )

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        plain = torch.utils._pytree.tree_map_only(cls, lambda t: t.inner, (args, kwargs or {}))
        return func(*plain[0], **plain[1])


class Opaque(Wrapper):
    """Holds another tensor and implements no operation."""

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return NotImplemented


class Function(torch.Tensor):
    """Takes part through __torch_function__ and has numbers that no operation may read: twice its
    own."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        plain = torch.utils._pytree.tree_map_only(
            cls, lambda t: t.as_subclass(torch.Tensor) / 2, (args, kwargs or {})
        )
        return func(*plain[0], **plain[1])


def _offset(t):
    """A view into the middle of a larger storage."""
    room = torch.zeros(t.numel() + 10, dtype=t.dtype)
    view = room[5 : 5 + t.numel()].view(t.shape)
    return view.copy_(t)


def _strided(t):
    """A view with gaps."""
    room = torch.zeros(*t.shape, 3, dtype=t.dtype)
    return room[..., 1].copy_(t)


def _transposed(t):
    """Dimensions in memory in the opposite order."""
    order = tuple(reversed(range(t.ndim)))
    return t.permute(order).contiguous().permute(order)


def _sharing(t):
    """Every row is the first row's memory; the values are the first row's."""
    return t[:1].expand(t.shape)


def _from_numpy(t):
    """Memory that NumPy owns."""
    return torch.from_numpy(np.array(t))


def _from_dlpack(t):
    """Memory that came by DLPack."""
    return torch.from_dlpack(torch.utils.dlpack.to_dlpack(t.clone()))


def _inference(t):
    """Made under inference_mode."""
    with torch.inference_mode():
        return t.clone()


def _negated(t):
    """Lazily negated."""
    return torch._neg_view(-t) if t.dtype is not torch.bool else t


def _zero(t):
    """Torch's zero tensor, which has no memory."""
    return torch._efficientzerotensor(t.shape, dtype=t.dtype)


def _python_buffer(t):
    """Memory of a bytearray, without torch's alignment."""
    raw = bytearray(3) + bytearray(np.array(t).tobytes())
    KEPT.append(raw)
    return torch.frombuffer(raw, dtype=t.dtype, offset=3).view(t.shape)


def _functional(t):
    """Of functionalisation, outside of it."""
    return torch._to_functional_tensor(t)


def _escaped_grad(t):
    """Of a torch.func.grad that has ended."""
    kept = []

    def total(z):
        kept.append(z)
        return z.sum()

    torch.func.grad(total)(t)
    return kept[0]


def _doubled(t):
    """Holds twice the numbers that operations see."""
    return (2 * t).as_subclass(Function)


# kinds with the same numbers as the tensor that they are made of (or fewer, as documented): the
# result must be that of `to_plain`
RIGHT = {
    "clone": torch.clone,
    "parameter": lambda t: nn.Parameter(t, requires_grad=False),
    "buffer": lambda t: nn.Buffer(t) if hasattr(nn, "Buffer") else t,
    "detached": torch.detach,
    "offset": _offset,
    "strided": _strided,
    "transposed": _transposed,
    "expanded": _sharing,
    "NumPy's": _from_numpy,
    "DLPack's": _from_dlpack,
    "unaligned": _python_buffer,
    "inference": _inference,
    "lazily negated": _negated,
    "lazily cloned": torch._lazy_clone,
    "zero tensor": _zero,
    "shared memory": lambda t: t.clone().share_memory_(),
    "trivial subclass": lambda t: t.clone().as_subclass(Trivial),
    "unwrapping subclass": lambda t: Wrapper(t.clone()),
}


def _freed(t):
    """Its storage is freed."""
    t = t.clone()
    t.untyped_storage().resize_(0)
    return t


def _shrunk(t):
    """Its storage holds half of it."""
    t = t.clone()
    t.untyped_storage().resize_(t.numel() // 2 * t.element_size())
    return t


def _shrunk_view(t):
    """A strided view whose storage lost its last number."""
    t = _strided(t)
    t.untyped_storage().resize_(t.untyped_storage().nbytes() - 2 * t.element_size())
    return t


def _fake(t):
    """Of a mode for shapes only."""
    return FakeTensorMode().from_tensor(t)


def _escaped(t):
    """Of a vmap that has ended."""
    kept = []
    torch.vmap(lambda row: kept.append(row) or row)(torch.stack([t, t]))
    return kept[0]


def _nested(t):
    """Nested, rows of two lengths."""
    return torch.nested.nested_tensor([t.reshape(-1), t.reshape(-1)[:1]])


def _jagged(t):
    """Nested, with the jagged layout."""
    rows = [t.reshape(-1), t.reshape(-1)[:1]]
    return torch.nested.nested_tensor(rows, layout=torch.jagged)


def _quantized(t):
    """Quantized."""
    return torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8)


# kinds whose numbers cannot be read, or are of another kind: an error that names the argument
REFUSED = {
    "freed": _freed,
    "shrunk": _shrunk,
    "shrunk view": _shrunk_view,
    "meta": lambda t: t.to("meta"),
    "fake": _fake,
    "escaped from vmap": _escaped,
    "sparse": lambda t: t.to_sparse(),
    "compressed": lambda t: t.reshape(t.shape[0], -1).to_sparse_csr(),
    "nested": _nested,
    "jagged": _jagged,
    "complex": lambda t: t.to(torch.complex128),
    "half": lambda t: t.to(torch.float16),
    "bool": lambda t: t.to(torch.bool),
    "opaque subclass": lambda t: Opaque(t.clone()),
    "uninitialised": lambda t: nn.parameter.UninitializedParameter(dtype=t.dtype),
    "weak proxy": lambda t: weakref.proxy(KEPT.append(t) or t),
    "array": np.array,
    "list": lambda t: t.tolist(),
}
# the same of floating tensors alone
REFUSED_FLOATS = {"quantized": _quantized, "mkldnn": lambda t: t.float().to_mkldnn()}
# kinds that some operations take and others need not: right, or refused by name
EITHER = {"functional": _functional}
EITHER_FLOATS = {"escaped from grad": _escaped_grad, "doubling subclass": _doubled}


def to_plain(kind, tensor):
    """Returns the numbers that a kind made of a tensor stands for, as a plain tensor."""
    if kind == "zero tensor":
        return torch.zeros_like(tensor)
    if kind == "expanded":
        return tensor[:1].repeat(tensor.shape[0], *[1] * (tensor.ndim - 1))
    return tensor
