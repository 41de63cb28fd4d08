"""Reads a module by what it computes, whoever wrote its forward pass.

The pass runs once on tensors that have shapes and no numbers, and every function of torch that it
calls is noted instead of computed. So whatever acts on a forward pass (subclasses, `forward` set on
an instance, hooks, wrappers, replaced functions) is in the notes, and nothing that it might have
depended on has to be guessed: the module is read anew at each call. What is not one of the known
calls, or would not leave a trace (no_grad, autocast, functions with a derivative of their own,
random numbers of Python), makes the module unreadable, with a reason.

`reader.py` runs the pass, `recorder.py` takes the notes; the others know torch's functions, under
the names of the batched layers.
"""

from innerloop._reading.reader import read
from innerloop._reading.recorder import Rows, rows_of

__all__ = ["Rows", "read", "rows_of"]
