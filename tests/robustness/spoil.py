"""Ways to spoil one argument of a call. Each changes it in place and says whether it found one.

Some results are still valid (another layout of the same numbers, say); others must be refused.
"""

import numpy as np
import torch
from torch import nn

DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.int32,
    torch.int64,
    torch.bool,
    torch.complex64,
    torch.complex128,
    torch.float8_e4m3fn,
)
NOT_TENSORS = (None, 1.0, "x", [1.0], np.zeros(2), object(), {}, b"x")


class Subclass(torch.Tensor):
    """A tensor subclass without any behaviour."""


# ---------------------------------------------------------------- tensors


def slots(call):
    """Returns [(container, key)] of every tensor argument; batches become lists first."""
    found = []
    for name in ("support", "query", "batch"):
        batch = call.arguments.get(name)
        if isinstance(batch, (tuple, list)):
            call.arguments[name] = list(batch)
            found += [(call.arguments[name], i) for i in range(len(batch))]
    for name in ("params", "vector", "inner_lr"):
        leaves = call.arguments.get(name)
        if isinstance(leaves, dict):
            found += [(leaves, key) for key in leaves]
    found += [(call.arguments, k) for k in ("x", "task_weight", "inner_lr") if k in call.arguments]
    return [(c, k) for c, k in found if isinstance(c[k], torch.Tensor)]


def is_plain(tensor):
    """Says whether a tensor is small and dense on the CPU, without autograd."""
    if type(tensor) is not torch.Tensor or tensor.layout is not torch.strided:
        return False
    if tensor.dtype is torch.float8_e4m3fn:  # which torch can hardly copy
        return False
    return tensor.device.type == "cpu" and tensor.numel() < 10**6 and not tensor.requires_grad


def pick(call, accepts=lambda tensor: True):
    """Returns the (container, key) of one small plain tensor that fits, or None."""
    fitting = [(c, k) for c, k in slots(call) if is_plain(c[k]) and accepts(c[k])]
    return call.draw.choice(fitting) if fitting else None


def layout(call):
    """The same numbers, laid out otherwise."""
    found = pick(call)
    if found is None:
        return False
    container, key = found
    value = container[key]
    kind = call.draw.randrange(6)
    if kind == 0 and value.ndim >= 2:
        value = value.mT.contiguous().mT
    elif kind == 1 and value.ndim >= 1:
        wide = torch.zeros((*value.shape[:-1], 2 * value.shape[-1] + 1), dtype=value.dtype)
        wide[..., 1::2] = value
        value = wide[..., 1::2]
    elif kind == 2:
        storage = torch.zeros(value.numel() + 3, dtype=value.dtype)
        storage[3:] = value.reshape(-1)
        value = storage[3:].view(value.shape)
    elif kind == 3 and value.ndim >= 1:
        value = value.flip(0).contiguous().flip(0)
    elif kind == 4 and value.is_floating_point():
        value = torch._neg_view(-value)
    else:
        value = nn.Parameter(value, requires_grad=False)
    container[key] = value
    return True


def expanded(call):
    """One task's numbers for all tasks, with a task stride of 0."""
    found = pick(call, lambda t: t.ndim >= 1 and t.shape[0] == call.tasks > 0)
    if found is None:
        return False
    container, key = found
    container[key] = container[key][:1].expand_as(container[key])
    return True


def wrong_shape(call):
    """Another number of axes, or another length of one."""
    found = pick(call)
    if found is None:
        return False
    container, key = found
    value = container[key]
    kind = call.draw.randrange(7)
    if kind == 0:
        value = value.unsqueeze(call.draw.randint(0, value.ndim))
    elif kind == 1 and value.ndim:
        value = value.select(call.draw.randrange(value.ndim), 0) if value.numel() else value[None]
    elif kind == 2 and value.ndim:
        value = torch.cat([value, value], call.draw.randrange(value.ndim))
    elif kind == 3 and value.ndim:
        axis = call.draw.randrange(value.ndim)
        value = value.narrow(axis, 0, max(value.shape[axis] - 1, 0))
    elif kind == 4 and value.ndim >= 2:
        value = value.transpose(0, -1)
    elif kind == 5:
        value = value.reshape(-1)
    else:
        value = value.new_zeros(())
    container[key] = value
    return True


def wrong_dtype(call):
    """Another dtype."""
    found = pick(call)
    if found is None:
        return False
    container, key = found
    if container[key].is_complex():
        return False
    container[key] = container[key].to(call.draw.choice(DTYPES))
    return True


def odd_tensor(call):
    """A tensor that is not a plain dense one on the CPU."""
    found = pick(call)
    if found is None:
        return False
    container, key = found
    value = container[key]
    kind = call.draw.randrange(5)
    if kind == 0:
        value = value.to("meta")
    elif kind == 1 and value.ndim and value.dtype.is_floating_point and value.element_size() >= 4:
        value = value.detach().to_sparse()
    elif kind == 2:
        value = value.detach().as_subclass(Subclass)
    elif kind == 3:
        with torch.inference_mode():
            value = value.clone()
    elif value.is_floating_point():
        value = value.detach().clone().requires_grad_()
    container[key] = value
    return True


def not_a_tensor(call):
    """Something else in a tensor's place."""
    found = pick(call)
    if found is None:
        return False
    container, key = found
    container[key] = call.draw.choice(NOT_TENSORS)
    return True


# ---------------------------------------------------------------- numbers


def wild_numbers(call):
    """NaN, infinity, or numbers at the ends of the range."""
    found = pick(call, lambda t: t.is_floating_point() and t.numel() > 0 and t.element_size() >= 4)
    if found is None:
        return False
    container, key = found
    value = container[key].detach().clone(memory_format=torch.contiguous_format)
    number = call.draw.choice((float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 1e-42))
    value.view(-1)[call.draw.randrange(value.numel())] = number
    container[key] = value
    call.is_wild = True
    return True


def wrong_integers(call):
    """Classes and counts that do not exist."""
    found = pick(call, lambda t: t.dtype is torch.int64 and t.numel() > 0)
    if found is None:
        return False
    container, key = found
    value = container[key].clone(memory_format=torch.contiguous_format)
    number = call.draw.choice((-1, -(2**63), 2**63 - 1, 2**32, 10**6, 9, 0))
    value.view(-1)[call.draw.randrange(value.numel())] = number
    container[key] = value
    return True


def empties(call):
    """A side without rows, or with none in use."""
    for name in ("support", "query", "batch"):
        batch = call.arguments.get(name)
        if isinstance(batch, (tuple, list)) and len(batch) >= 2:
            dense = [isinstance(v, torch.Tensor) and v.layout is torch.strided for v in batch[:2]]
            deep = all(dense) and min(v.ndim for v in batch[:2]) >= 2
            if deep and call.draw.random() < 0.5:
                x, y = batch[:2]
                call.arguments[name] = (x[:, :0], y[:, :0])
                return True
            if isinstance(batch[0], torch.Tensor) and batch[0].ndim:
                count = torch.zeros(1, dtype=torch.int64).expand(batch[0].shape[0])
                call.arguments[name] = (*batch[:2], count)
                return True
    return False


def huge(call):
    """Sizes that no memory holds, without the memory."""
    call.allows_memory = True
    if "steps" in call.arguments and call.draw.random() < 0.5:
        call.arguments["steps"] = call.draw.choice((2**31 - 1, 2**31, 2**62, 2**63, 10**30))
        call.arguments["inner_lr"] = 0.1
        return True
    size = call.draw.choice((2**34, 2**40, 2**50, 2**59))
    axis = call.draw.randrange(2)
    changed = False
    for name in ("support", "query", "batch", "x"):
        batch = call.arguments.get(name)
        parts = batch if isinstance(batch, (tuple, list)) else [batch]
        grown = []
        for part in parts[:2]:
            usable = isinstance(part, torch.Tensor) and part.ndim > axis and part.numel() > 0
            if not usable or part.layout is not torch.strided:
                return changed
            one = part.narrow(axis, 0, 1)
            shape = list(part.shape)
            shape[axis] = size
            try:
                grown.append(one.expand(shape))
            except RuntimeError:  # more elements than an int64 counts
                return changed
        if grown:
            call.arguments[name] = grown[0] if name == "x" else tuple(grown)
            changed = True
    return changed


# ---------------------------------------------------------------- structures


def wrong_leaves(call):
    """A dict of leaves with a name missing, an extra one, another order or another type."""
    name = call.draw.choice([k for k in ("params", "vector", "inner_lr") if k in call.arguments])
    leaves = call.arguments[name]
    if not isinstance(leaves, dict) or not leaves:
        return False
    leaves = dict(leaves)
    key = call.draw.choice(list(leaves))
    kind = call.draw.randrange(6)
    if kind == 0:
        del leaves[key]
    elif kind == 1:
        leaves[call.draw.choice(("extra", 3, None, "", ("a",)))] = leaves[key]
    elif kind == 2:
        leaves = dict(reversed(leaves.items()))
    elif kind == 3:
        leaves[f"{key} "] = leaves.pop(key)
    elif kind == 4:
        leaves = {}
    else:
        leaves = call.draw.choice((list(leaves.items()), None, 3, "params", list(leaves)))
    call.arguments[name] = leaves
    return True


def wrong_batch(call):
    """A batch of another type or length."""
    names = [k for k in ("support", "query", "batch") if k in call.arguments]
    if not names:
        return False
    name = call.draw.choice(names)
    batch = call.arguments[name]
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        return False
    x, y = batch[:2]
    call.arguments[name] = call.draw.choice(
        (None, x, {"x": x, "y": y}, (x,), (x, y) * 3, (), (y, x), [x, y], (x, y, None, None), "xy")
    )
    return True


def wrong_option(call):
    """An option of another kind or out of its range."""
    values = {
        "steps": (-1, 1.5, True, "3", None, torch.tensor(1), np.int64(2), -(10**30), [1]),
        "order": (0, 3, "2", True, 2.0, None, torch.tensor(2), [2]),
        "loss": ("MSE", "", None, 3, ["mse"], b"mse", torch.nn.functional.mse_loss, *("mse",) * 3),
        "inner_lr": (
            float("nan"),
            1e300,
            10**400,
            float("inf"),
            "0.1",
            None,
            1j,
            [0.1],
            True,
            np.float64(0.1),
            {},
        ),
        "adapt_params": ("0.weight", ["0.weight"], [], ("9.weight",), 3, [None], {"0.weight"}, [0]),
        "task_weight": (1.0, [1.0], "mean", np.ones(3)),
        "stepwise": (None, 1, "yes"),
        "backend": ("gpu", None, 1, "", ["auto"]),
        "model": (None, "mlp", 3, nn.Conv2d(1, 1, 1), nn.Linear(2, 3), nn.Sequential(), object()),
    }
    allowed = {
        "meta_grad": set(values),
        "meta_loss": set(values) - {"task_weight", "stepwise"},
        "adapt": set(values) - {"task_weight", "order"},
        "hvp": {"loss", "backend", "model"},
        "loss_and_grad": {"loss", "backend", "model"},
        "predict": {"backend", "model"},
    }[call.operation]
    name = call.draw.choice(sorted(allowed))
    call.arguments[name] = call.draw.choice(values[name])
    if name == "inner_lr":
        call.is_wild = True
    return True


SPOILERS = (
    layout,
    layout,
    expanded,
    wrong_shape,
    wrong_shape,
    wrong_dtype,
    odd_tensor,
    not_a_tensor,
    wild_numbers,
    wrong_integers,
    empties,
    huge,
    wrong_leaves,
    wrong_batch,
    wrong_option,
    wrong_option,
)
