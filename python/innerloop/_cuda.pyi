"""The CUDA extension: functions over tensors of a device and sizes, unchecked; see csrc/bindings.

A Plan is made of what innerloop._plan.Plan says; a place is (device, stream, allocate, facts,
allow_tf32). Without `allocate` a function only schedules, and returns the schedule. The
linear-regression study takes
float64 tensors, of them `regression_scratch` numbers of scratch memory.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from innerloop._params import Side

_Facts = tuple[int, int, int]
_Place = tuple[int, int, Callable[[int], int] | None, _Facts | None, bool]
_Schedule = dict[str, Any] | None
_RegressionLaw = tuple[int, int, float, int]  # dimension, samples, scale, key

# kind and its constant, sizes, activation and slope, weight, bias
_Layer = tuple[tuple[int, float], tuple[int, int], tuple[int, float], bool, bool]

class Plan:
    def __init__(
        self,
        layers: Sequence[_Layer],
        free: int,
        support: tuple[int, Sequence[float]],
        query: tuple[int, Sequence[float]],
        steps: int,
        order: int,
        solver: Sequence[float],
        adapts: Sequence[bool],
        stepwise: bool,
        rate_axes: tuple[bool, bool],
        rate_unit: str,
    ) -> None: ...

def predict(
    plan: Plan, params: Sequence[Tensor], x: Tensor, out: Tensor, place: _Place
) -> _Schedule: ...
def loss_and_grad(
    plan: Plan,
    params: Sequence[Tensor],
    side: Side,
    out_loss: Tensor,
    out_grad: Tensor,
    place: _Place,
) -> _Schedule: ...
def hvp(
    plan: Plan,
    params: Sequence[Tensor],
    vector: Sequence[Tensor],
    side: Side,
    out: Tensor,
    place: _Place,
) -> _Schedule: ...
def metric(
    plan: Plan,
    params: Sequence[Tensor],
    vector: Sequence[Tensor],
    side: Side,
    out: Tensor,
    place: _Place,
) -> _Schedule: ...
def adapt(
    plan: Plan,
    params: Sequence[Tensor],
    rates: Tensor,
    side: Side,
    out: Tensor,
    out_support_loss: Tensor,
    place: _Place,
) -> _Schedule: ...
def meta_grad(
    plan: Plan,
    params: Sequence[Tensor],
    rates: Tensor,
    support: Side,
    query: Side,
    task_weight: Tensor | None,
    out_loss: Tensor,
    out_support_loss: Tensor | None,
    out_query_loss: Tensor | None,
    grads: Tensor | None,
    out_rate_grad: Tensor | None,
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
