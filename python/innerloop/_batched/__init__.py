"""The operations as batched torch operations over the task axis, by passes of our own and without
an autograd graph: the back end of networks that the kernels do not have. Read `layer.py` first."""

from innerloop._batched.operations import Batched

__all__ = ["Batched"]
