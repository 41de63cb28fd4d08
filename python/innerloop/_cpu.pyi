"""The native extension: plain functions over addresses (0: absent) and sizes; see csrc/bindings.

A side is (rows, x, y, weight, count); lr is (address, task_stride, step_stride, leaf_stride,
elementwise). Strides are in elements; a task stride of 0 means shared by all tasks.
"""

from collections.abc import Sequence

_Side = tuple[int, int, int, int, int]
_Rates = tuple[int, int, int, int, bool]

class Model:
    def __init__(
        self,
        widths: Sequence[int],
        activations: Sequence[int],
        slopes: Sequence[float],
        has_bias: Sequence[bool],
    ) -> None: ...

def predict(
    model: Model,
    is_float64: bool,
    tasks: int,
    rows: int,
    params: Sequence[int],
    strides: Sequence[int],
    x: int,
    out: int,
    threads: int,
) -> None: ...
def loss_and_grad(
    model: Model,
    is_float64: bool,
    loss: int,
    loss_parameter: float,
    tasks: int,
    params: Sequence[int],
    strides: Sequence[int],
    side: _Side,
    out_loss: int,
    out_grad: int,
    threads: int,
) -> None: ...
def hvp(
    model: Model,
    is_float64: bool,
    loss: int,
    loss_parameter: float,
    tasks: int,
    params: Sequence[int],
    strides: Sequence[int],
    vector: Sequence[int],
    vector_strides: Sequence[int],
    side: _Side,
    out: int,
    threads: int,
) -> None: ...
def adapt(
    model: Model,
    is_float64: bool,
    loss: int,
    loss_parameter: float,
    tasks: int,
    steps: int,
    params: Sequence[int],
    strides: Sequence[int],
    adapt: Sequence[bool],
    lr: _Rates,
    side: _Side,
    out: int,
    stepwise: bool,
    out_support_loss: int,
    threads: int,
) -> None: ...
def meta_grad(
    model: Model,
    is_float64: bool,
    loss: int,
    loss_parameter: float,
    tasks: int,
    steps: int,
    order: int,
    params: Sequence[int],
    strides: Sequence[int],
    adapt: Sequence[bool],
    lr: _Rates,
    support: _Side,
    query: _Side,
    task_weight: int,
    out_loss: int,
    out_support_loss: int,
    out_query_loss: int,
    grads: Sequence[int],
    grad_strides: Sequence[int],
    out_lr_grad: int,
    threads: int,
) -> None: ...
def simd_levels() -> list[str]: ...
def simd_level() -> str: ...
def set_simd_level(name: str) -> None: ...
def set_strategy(name: str) -> None: ...
def build_info() -> dict[str, str]: ...
def workspace_bytes() -> int: ...
def release_workspace() -> None: ...
