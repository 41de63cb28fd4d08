"""The CUDA extension: plain functions over device addresses (0: absent) and sizes: csrc/bindings.

A side is (rows, x, y, weight, count); lr is (address, task_stride, step_stride, leaf_stride,
elementwise); a place is (device, stream, allocate, facts). Without `allocate` a function only
schedules and returns the schedule.
"""

from collections.abc import Callable, Sequence
from typing import Any

_Side = tuple[int, int, int, int, int]
_Rates = tuple[int, int, int, int, bool]
_Facts = tuple[int, int, int]
_Place = tuple[int, int, Callable[[int], int] | None, _Facts | None]
_Schedule = dict[str, Any] | None

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
    place: _Place,
) -> _Schedule: ...
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
    place: _Place,
) -> _Schedule: ...
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
    place: _Place,
) -> _Schedule: ...
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
    place: _Place,
) -> _Schedule: ...
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
    place: _Place,
) -> _Schedule: ...
def fix_schedule(strategy: str, tasks_per_block: int, threads: int) -> tuple[str, int, int]: ...
def toolkit_version() -> int: ...
def driver_version() -> int: ...
def oldest_architecture() -> int: ...
def device_facts(device: int) -> _Facts: ...
def build_info() -> dict[str, str]: ...
