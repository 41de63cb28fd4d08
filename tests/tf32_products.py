"""Single products for the tests of `allow_tf32`, and how far tf32 may take them.

A product of K terms is within (2^-10 + 2^-22 + K 2^-22) of the sum of its terms' sizes: two
operands rounded by 2^-11 each, and float32 sums that tensor cores may truncate, not round.
"""

import torch

import innerloop as il


def linear(inputs, outputs, rows, tasks=2, per_task=True):
    """Returns a linear layer without bias, its weights (of each task, or shared), and inputs, in
    float32."""
    generator = torch.Generator().manual_seed(inputs * outputs + rows)
    lead = (tasks,) if per_task else ()
    weight = torch.randn(*lead, outputs, inputs, generator=generator)
    x = torch.randn(tasks, rows, inputs, generator=generator)
    return il.MLP([inputs, outputs], bias=False), {"0.weight": weight}, x


def predict(parts, **options):
    """Returns the outputs of the fused kernels."""
    model, params, x = parts
    return il.predict(params, x, model=model, backend="fused", **options)


def assert_rounded_once(found, parts):
    """Asserts the bound, and that tf32 was used at all."""
    weight, x = parts[1]["0.weight"].double(), parts[2].double()
    exact, sizes = x @ weight.mT, x.abs() @ weight.abs().mT
    error = (found.double() - exact).abs()
    assert (error <= (2.0**-10 + (1 + x.shape[-1]) * 2.0**-22) * sizes).all()
    assert error.max() > 1e-5 * sizes.max()
