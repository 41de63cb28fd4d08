"""The native extension: plain functions over tensors and sizes, unchecked; see csrc/bindings.

A side is (rows, x, y, count, weight); rates are (tensor, task_stride, step_stride, leaf_stride,
elementwise), strides in elements. Outputs are contiguous tensors that are written whole. The
functions of the linear-regression study take the addresses of NumPy arrays (0: absent).
"""

from collections.abc import Sequence

from torch import Tensor

_Side = tuple[int, Tensor, Tensor, Tensor | None, Tensor | None]
_Rates = tuple[Tensor, int, int, int, bool]
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
    threads: int,
) -> None: ...
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
    threads: int,
) -> None: ...
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
    threads: int,
) -> None: ...
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
    threads: int,
) -> None: ...
def tensor_key(types: tuple[type, ...], values: list[object]) -> bytes | None: ...
def regression_trials(
    law: _RegressionLaw,
    tasks: int,
    first_trial: int,
    trials: int,
    rates: int,
    rate: int,
    risks: int,
    excess: int,
    estimates: int,
    threads: int,
) -> None: ...
def regression_tasks(
    law: _RegressionLaw,
    tasks: int,
    first_trial: int,
    trials: int,
    theta: int,
    variance: int,
    covariance: int,
    gram: int,
    moment: int,
    threads: int,
) -> None: ...
def random_words(key: int, count: int, counters: int, words: int) -> None: ...
def simd_levels() -> list[str]: ...
def simd_level() -> str: ...
def set_simd_level(name: str) -> None: ...
def set_strategy(name: str) -> None: ...
def build_info() -> dict[str, str]: ...
def workspace_bytes() -> int: ...
def release_workspace() -> None: ...
