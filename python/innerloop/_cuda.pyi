"""The CUDA extension: functions over tensors of a device and sizes, unchecked; see csrc/bindings.

A side is (rows, x, y, count, weight); rates are (tensor, task_stride, step_stride, leaf_stride,
elementwise), strides in elements; a place is (device, stream, allocate, facts, allow_tf32). Without
`allocate` a function only schedules, and returns the schedule. The linear-regression study takes
float64 tensors, of them `regression_scratch` numbers of scratch memory.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

_Side = tuple[int, Tensor, Tensor, Tensor | None, Tensor | None]
_Rates = tuple[Tensor, int, int, int, bool]
_Facts = tuple[int, int, int]
_Place = tuple[int, int, Callable[[int], int] | None, _Facts | None, bool]
_Schedule = dict[str, Any] | None
_RegressionLaw = tuple[int, int, float, int]  # dimension, samples, scale, key

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
    params: Sequence[Tensor],
    x: Tensor,
    out: Tensor,
    place: _Place,
) -> _Schedule: ...
def loss_and_grad(
    model: Model,
    is_float64: bool,
    loss: int,
    loss_parameter: float,
    tasks: int,
    params: Sequence[Tensor],
    side: _Side,
    out_loss: Tensor,
    out_grad: Tensor,
    place: _Place,
) -> _Schedule: ...
def hvp(
    model: Model,
    is_float64: bool,
    loss: int,
    loss_parameter: float,
    tasks: int,
    params: Sequence[Tensor],
    vector: Sequence[Tensor],
    side: _Side,
    out: Tensor,
    place: _Place,
) -> _Schedule: ...
def adapt(
    model: Model,
    is_float64: bool,
    loss: int,
    loss_parameter: float,
    tasks: int,
    steps: int,
    params: Sequence[Tensor],
    adapt: tuple[bool, ...],
    lr: _Rates,
    side: _Side,
    out: Tensor,
    stepwise: bool,
    out_support_loss: Tensor,
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
    params: Sequence[Tensor],
    adapt: tuple[bool, ...],
    lr: _Rates,
    support: _Side,
    query: _Side,
    task_weight: Tensor | None,
    out_loss: Tensor,
    out_support_loss: Tensor | None,
    out_query_loss: Tensor | None,
    grads: Tensor | None,
    out_lr_grad: Tensor | None,
    place: _Place,
) -> _Schedule: ...
def regression_scratch(law: _RegressionLaw, tasks: int, trials: int, rates: int) -> int: ...
def regression_trials(
    law: _RegressionLaw,
    tasks: int,
    first_trial: int,
    trials: int,
    rates: int,
    rate: Tensor,
    risks: Tensor,
    excess: Tensor,
    estimates: Tensor | None,
    scratch: Tensor,
    device: int,
    stream: int,
) -> None: ...
def fix_schedule(tasks_per_block: int, threads: int) -> tuple[int, int]: ...
def toolkit_version() -> int: ...
def driver_version() -> int: ...
def device_facts(device: int) -> _Facts: ...
def build_info() -> dict[str, str]: ...
