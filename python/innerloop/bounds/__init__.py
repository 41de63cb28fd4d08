"""Bounds and exact asymptotics that say in advance when MAML beats joint training.

`linear` holds meta linear regression (Results 1-20 and 36 of docs/theory.md), `nonconvex` smooth
non-convex risks (Results 21-31), `constants` estimates what these need from gradients and
Hessian-vector products (Results 32-35), and `report` does all of it for a network and a task
sampler. Every function names the result it evaluates and the assumptions it rests on, and every
number says how far it can be trusted (`Quantity`); `plug_in` marks your own estimates. Nothing here
is imported by `import innerloop`; some functions need SciPy, which comes with `innerloop[cli]`.
"""

from innerloop.bounds import constants, linear, nonconvex
from innerloop.bounds._report import Report, report
from innerloop.bounds._results import Assumption, Quantities, Quantity, Record, plug_in

__all__ = [
    "Assumption",
    "Quantities",
    "Quantity",
    "Record",
    "Report",
    "constants",
    "linear",
    "nonconvex",
    "plug_in",
    "report",
]
