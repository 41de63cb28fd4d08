"""Layers of the batched back end that have CPU kernels against the same layers in torch operations,
which other devices and dtypes take: every pass, at every instruction level.

Tolerances, relative to each result's norm: sums are made in other orders, so 1e-12 in float64 and
1e-5 in float32.
"""

import itertools

import pytest
import torch
from torch.nn import functional as F

import innerloop as il
from batched_networks import FAMILIES, build
from helpers import assert_close
from innerloop import _native
from innerloop._batched import affine, blocks, native, operations
from innerloop._program import Node

LEVELS = ("baseline", "avx2", "avx512")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
# rows [C, *places], out, kernel, stride, padding, dilation
CONVOLUTIONS = {
    "3x3": ((3, 7, 6), 5, (3, 3), (1, 1), (1, 1), (1, 1)),
    "wide": ((33, 5, 5), 37, (3, 3), (1, 1), (1, 1), (1, 1)),
    "strided": ((16, 9, 8), 32, (3, 3), (2, 2), (1, 1), (1, 1)),
    "1x1": ((4, 3, 3), 6, (1, 1), (2, 1), (0, 0), (1, 1)),
    "dilated": ((3, 8, 9), 4, (2, 3), (1, 2), (2, 3), (3, 2)),
    "padding alone": ((2, 2, 2), 3, (2, 2), (3, 3), (3, 3), (1, 1)),
    "padding beyond": ((2, 1, 1), 3, (1, 3), (1, 1), (0, 5), (1, 4)),
    "one channel": ((1, 12, 12), 20, (5, 5), (1, 1), (0, 0), (1, 1)),
    "signal": ((5, 11), 7, (3,), (2,), (2,), (2,)),
}
# rows [C, *places], window, whether there is a relu
BLOCKS = {
    "pool": ((5, 6, 4), (2, 2), True),
    "pool with a rest": ((37, 5, 7), (2, 3), True),
    "pool without relu": ((16, 4, 4), (2, 2), False),
    "relu": ((70, 3, 3), None, True),
    "norm": ((4, 5), None, False),
    "rows": ((19,), None, True),
    "signal": ((3, 9), (2,), True),
}


def use(cpu, level):
    """Chooses an instruction level."""
    if level not in cpu.simd_levels():
        pytest.skip(f"this machine or build lacks {level}")
    cpu.set_simd_level(level)


def random(seed):
    """A function of a shape that draws numbers."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


def tensors(value):
    """All tensors in nested results, as nothing but their numbers."""
    return {str(at): part for at, part in enumerate(value) if part is not None}


def every_pass(layer, x, g, dots, leaves):
    """Results of the four passes, with and without each direction and the input's gradient."""
    found = {}
    x_dot, g_dot, leaf_dots = dots
    leaf_dots = [None if leaf is None else dot for leaf, dot in zip(leaves, leaf_dots, strict=True)]
    for wanted in ([True], [False]):
        y, saved = layer.forward([x.clone()], leaves)
        found["y"] = y
        inputs, grads = layer.backward(saved, g, leaves, wanted)
        found |= {f"backward {wanted} {k}": v for k, v in tensors([*inputs, *grads]).items()}
        for case in itertools.product((False, True), repeat=4):
            has_x, has_g, has_w, has_b = case
            given = [
                dot if has else None for has, dot in zip((has_w, has_b), leaf_dots, strict=True)
            ]
            along, kept = layer.tangent(saved, [x_dot if has_x else None], leaves, given)
            if along is not None:
                found[f"tangent {case}"] = along
            inputs, grads = layer.second(
                saved, kept, g, g_dot if has_g else None, [x_dot if has_x else None], leaves,
                given, wanted,
            )  # fmt: skip
            found |= {
                f"second {wanted} {case} {k}": v for k, v in tensors([*inputs, *grads]).items()
            }
    return found


def filled(found, names):
    """Results with zeros for those that one of two layers leaves out."""
    like = {name.rsplit(" ", 1)[-1]: value for name, value in found.items()}
    return {
        name: found[name] if name in found else torch.zeros_like(like[name.rsplit(" ", 1)[-1]])
        for name in sorted(names)
    }


def compare(native_layer, torch_layer, *arguments, dtype):
    """Asserts that both layers have the same results."""
    expected = every_pass(torch_layer, *arguments)

    def cast(value):
        if isinstance(value, torch.Tensor):
            return value.to(dtype)
        return None if value is None else type(value)(map(cast, value))

    found = every_pass(native_layer, *map(cast, arguments))
    names = found.keys() | expected.keys()
    assert_close(filled(found, names), filled(expected, names), TOLERANCE[dtype], floor=1e-3)


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=("float64", "float32"))
def test_convolutions(cpu_settings, name, level, dtype):
    use(cpu_settings, level)
    shape, out, kernel, *options = CONVOLUTIONS[name]
    draw = random(len(name))
    convolve = (None, F.conv1d, F.conv2d)[len(kernel)]
    weight = draw(out, shape[0], *kernel)
    sizes = convolve(draw(1, *shape), weight, None, *options).shape[1:]
    node = Node("convolution", (0,), ("w", "b"), (*options, 1), tuple(sizes))
    assert native.NativeConvolution.takes(node, [shape])
    for tasks, rows, shared in ((3, 2, False), (1, 5, False), (2, 1, True)):
        w = weight.expand(tasks, *weight.shape) if shared else draw(tasks, *weight.shape)
        b = draw(out).expand(tasks, out) if shared else draw(tasks, out)
        for bias in (b, None):
            x, g = draw(tasks, rows, *shape), draw(tasks, rows, *sizes)
            dots = draw(*x.shape), draw(*g.shape), [draw(*w.shape), b]
            compare(
                native.NativeConvolution(node, [shape]), affine.Convolution(node, [shape]),
                x, g, dots, [w, bias], dtype=dtype,
            )  # fmt: skip


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=("float64", "float32"))
def test_norm_blocks(cpu_settings, name, level, dtype):
    use(cpu_settings, level)
    shape, window, has_relu = BLOCKS[name]
    draw = random(len(name))
    norm = Node("batch_norm", (0,), ("w", "b"), (1e-5,), shape)
    relu = Node("relu", (1,), (), (), shape) if has_relu else None
    pool, after = None, shape
    if window is not None:
        after = (shape[0], *(n // k for n, k in zip(shape[1:], window, strict=True)))
        zeros, ones = (0,) * len(window), (1,) * len(window)
        pool = Node("max_pool", (2,), (), (window, window, zeros, ones, False), after)
    assert native.NativeNormBlock.takes(pool)
    made = (
        native.NativeNormBlock(norm, relu, pool, shape),
        blocks.NormBlock(norm, relu, pool, shape, owns_input=False),
    )
    tasks, rows = 2, 3
    w, b = draw(tasks, shape[0]), draw(tasks, shape[0])
    w[0, 0] = 0
    for leaves in ([w, b], [w[:1].expand(tasks, -1), None], [None, None]):
        # float32 must choose and mask as float64 does
        x, g = draw(tasks, rows, *shape), draw(tasks, rows, *after)
        dots = draw(*x.shape), draw(*g.shape), [draw(*w.shape), draw(*b.shape)]
        compare(*made, x, g, dots, leaves, dtype=dtype)


@pytest.mark.parametrize("tasks", [1, 3, 9])
def test_any_number_of_threads_gives_the_same_bits(tasks):
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            net, sides = images(tasks)
            params = {k: v.detach() for k, v in net.named_parameters()}
            result = il.meta_grad(params, *sides, model=net, inner_lr=0.1, steps=2)
            assert result.backend == "batched"
            found.append({"loss": result.loss, **result.grad})
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for name, value in found[0].items():
            assert torch.equal(other[name], value), name


def images(tasks):
    """A network of convolutions and norms, with its data."""
    net, shape = build("conv4", 2)
    draw = random(4)
    return net, [(draw(tasks, n, *shape), draw(tasks, n, 3)) for n in (3, 4)]


@pytest.mark.filterwarnings("ignore:innerloop.*:innerloop.FallbackWarning")
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch.vmap of bilinear
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_of_torch_operations_stay_exact(family, monkeypatch):
    """What GPUs and bfloat16 take."""
    monkeypatch.setattr(operations, "runs_natively", lambda x, leaves: False)
    net, shape = build(family, 1)
    draw = random(3)
    sides = [(draw(2, n, *shape), draw(2, n, 3)) for n in (4, 5)]
    params = {k: v.detach() for k, v in net.named_parameters()}
    found, expected = (
        il.meta_grad(params, *sides, model=net, inner_lr=0.05, steps=2, backend=backend).grad
        for backend in ("batched", "torch")
    )
    assert_close(found, expected, 1e-10, floor=1e-3)


def test_what_the_kernels_do_not_take():
    def pool(*options):
        return Node("max_pool", (0,), (), options, (1, 2, 2))

    takes = native.NativeNormBlock.takes
    assert takes(pool((2, 2), (2, 2), (0, 0), (1, 1), False))
    assert not takes(pool((3, 3), (2, 2), (0, 0), (1, 1), False))
    assert not takes(pool((2, 2), (2, 2), (1, 1), (1, 1), False))
    assert not takes(pool((2, 2), (2, 2), (0, 0), (2, 2), False))
    assert not takes(pool((2, 2), (2, 2), (0, 0), (1, 1), True))
    assert not takes(pool((9, 9), (9, 9), (0, 0), (1, 1), False))
    grouped = Node("convolution", (0,), ("w", None), ((1,), (0,), (1,), 2), (4, 3))
    assert not native.NativeConvolution.takes(grouped, [(2, 3)])
    solid = Node("convolution", (0,), ("w", None), ((1,) * 3, (0,) * 3, (1,) * 3, 1), (4, 1, 1, 1))
    assert not native.NativeConvolution.takes(solid, [(2, 1, 1, 1)])
    x = torch.zeros(1, 1, 2)
    assert native.runs_natively(x, [x])
    assert not native.runs_natively(x.bfloat16(), [x])
    assert not native.runs_natively(x, [x.to("meta")])


def test_sizes_that_do_not_fit_are_refused():
    cpu, x = _native.native(), torch.zeros(1, 1, 3, 3, 1)
    sizes = [1, 1, 3, 3, 1, 3, 3, 1, 1, 1, 1, 0, 0, 1, 1]
    w = torch.zeros(1, 1, 1, 1, 1)
    with pytest.raises(ValueError, match="sizes of a convolution"):
        cpu.convolve([*sizes[:5], 2, *sizes[6:]], (x, None), (w, None), None, x, 1)
    with pytest.raises(ValueError, match="needs an x and its w"):
        cpu.convolve(sizes, (x, None), (None, w), None, x.clone(), 1)
    with pytest.raises(ValueError, match="w must hold 4 bytes"):
        cpu.convolve(sizes, (x, None), (w.expand(1, 1, 2, 1, 1), None), None, x.clone(), 1)
    with pytest.raises(ValueError, match="sizes of a batch norm"):
        cpu.norm_forward([1, 1, 3, 3, 0, 1, 0], 1e-5, {"x": x}, 1)
