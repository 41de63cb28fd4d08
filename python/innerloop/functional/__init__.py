"""The stateless operations: tensors in, tensors out, first axis T = tasks. Each checks its
arguments, chooses a back end and calls it; nothing is computed here.

Shapes: T tasks, N support rows, Q query rows, D inputs, K outputs, S inner steps, P parameters.
What `params`, a batch, `inner_lr`, `adapt_params` and `loss` may be is said once, at `meta_grad`.
"""

from innerloop._choice import Choice, backend_for
from innerloop.functional.adaptation import MetaGrad, adapt, mean_meta_loss, meta_grad, meta_loss
from innerloop.functional.at_parameters import hvp, loss_and_grad, predict

__all__ = [
    "Choice",
    "MetaGrad",
    "adapt",
    "backend_for",
    "hvp",
    "loss_and_grad",
    "mean_meta_loss",
    "meta_grad",
    "meta_loss",
    "predict",
]
