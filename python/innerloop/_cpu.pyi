"""The native extension: plain functions over tensors and sizes, unchecked; see csrc/bindings.

A Plan is made of what innerloop._plan.Plan says; flat rates lie as it says
too. Outputs are contiguous tensors that are written whole. `sizes` of layers are those of
csrc/bindings/image_layers.cpp, the tensors of a norm those of NormBlockCall
(csrc/core/image_layers.h). The functions of the linear-regression study take the addresses of
NumPy arrays (0: absent).
"""

from collections.abc import Sequence

from torch import Tensor

from innerloop._params import Side

_RegressionLaw = tuple[int, int, float, int]  # dimension, samples, scale, key

# kind and its constant, sizes, activation and slope, weight, bias
_Layer = tuple[tuple[int, float], tuple[int, int], tuple[int, float], bool, bool]

class Block:
    """Memory of the workspace, for `torch.frombuffer`."""

    def __init__(self, bytes: int) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

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

def predict(plan: Plan, params: Sequence[Tensor], x: Tensor, out: Tensor, threads: int) -> None: ...
def loss_and_grad(
    plan: Plan,
    params: Sequence[Tensor],
    side: Side,
    out_loss: Tensor,
    out_grad: Tensor,
    threads: int,
) -> None: ...
def hvp(
    plan: Plan,
    params: Sequence[Tensor],
    vector: Sequence[Tensor],
    side: Side,
    out: Tensor,
    threads: int,
) -> None: ...
def metric(
    plan: Plan,
    params: Sequence[Tensor],
    vector: Sequence[Tensor],
    side: Side,
    out: Tensor,
    threads: int,
) -> None: ...

class Linearization:
    def __init__(
        self, plan: Plan, params: Sequence[Tensor], batch: Side, is_metric: bool
    ) -> None: ...
    def product(self, vector: Sequence[Tensor], out: Tensor, threads: int) -> None: ...

def adapt(
    plan: Plan,
    params: Sequence[Tensor],
    rates: Tensor,
    side: Side,
    out: Tensor,
    out_support_loss: Tensor,
    threads: int,
) -> None: ...
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
    grads: Tensor | list[Tensor] | None,
    out_rate_grad: Tensor | None,
    threads: int,
) -> None: ...
def convolve(
    sizes: Sequence[int],
    x: tuple[Tensor | None, Tensor | None],
    w: tuple[Tensor | None, Tensor | None],
    bias: Tensor | None,
    y: Tensor,
    threads: int,
) -> None: ...
def convolve_back(
    sizes: Sequence[int],
    g: tuple[Tensor | None, Tensor | None],
    x: tuple[Tensor | None, Tensor | None],
    w: tuple[Tensor | None, Tensor | None],
    gx: Tensor | None,
    gw: Tensor | None,
    gb: Tensor | None,
    threads: int,
) -> None: ...
def norm_forward(
    sizes: Sequence[int], eps: float, tensors: dict[str, Tensor | None], threads: int
) -> None: ...
def norm_backward(
    sizes: Sequence[int], eps: float, tensors: dict[str, Tensor | None], threads: int
) -> None: ...
def norm_tangent(
    sizes: Sequence[int], eps: float, tensors: dict[str, Tensor | None], threads: int
) -> None: ...
def norm_second(
    sizes: Sequence[int], eps: float, tensors: dict[str, Tensor | None], threads: int
) -> None: ...
def tensor_key(values: list[object]) -> bytes | None: ...
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
