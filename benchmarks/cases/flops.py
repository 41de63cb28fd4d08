"""How many floating-point operations a case needs, counted from its sizes alone.

Only matrix products count, 2 m n k each; activations, losses, biases and the parameter updates are
left out, so a fraction of the GEMM peak errs on the low side for tiny networks.

`nominal` is the dense textbook algorithm with every intermediate kept and none recomputed:
- a gradient over N rows is a forward product, a weight-gradient product and an input-gradient
  product per layer, except that the first layer needs no input gradient;
- a Hessian-vector product after such a gradient doubles every product, except that the first
  layer's input has no tangent: one forward and one weight product there;
- a Hessian-vector product asked for alone also pays the forward and input-gradient products of the
  gradient it differentiates, but not its weight products;
- a meta-gradient is `steps` gradients on the support rows, one gradient on the query rows, and
  `steps` Hessian-vector products on the support rows (the gradients' intermediates are reused).

`structured` replaces the first layer by its rank-N form where that is cheaper: the shared weights
are multiplied once with support and query rows, later steps only use x_s x_s^T and x_q x_s^T, and
the weight gradient is assembled once. A fraction of the peak above one in the nominal count is
therefore possible and means that work was avoided, not that the machine was exceeded.
"""

from __future__ import annotations

from cases.nine import Case


def _gradient(case: Case, rows: int, skip_first: bool = False) -> int:
    """One gradient over `rows` rows of one task."""
    total = 0
    for layer in range(1 if skip_first else 0, case.layers):
        product = 2 * rows * case.widths[layer] * case.widths[layer + 1]
        total += product * (2 if layer == 0 else 3)
    return total


def _tangent(case: Case, rows: int, skip_first: bool = False) -> int:
    """The R-forward and R-backward passes of one Hessian-vector product of one task."""
    total = 0
    for layer in range(1 if skip_first else 0, case.layers):
        product = 2 * rows * case.widths[layer] * case.widths[layer + 1]
        # R-forward 2, R-weight 2 and R-input 2; the first layer: R-forward 1, R-weight 1.
        total += product * (2 if layer == 0 else 6)
    return total


def _linearisation(case: Case, rows: int) -> int:
    """Forward and input-gradient products of one task: what a lone Hessian product starts from."""
    total = 0
    for layer in range(case.layers):
        product = 2 * rows * case.widths[layer] * case.widths[layer + 1]
        total += product * (1 if layer == 0 else 2)
    return total


def _first_layer_by_rank(case: Case) -> int:
    """First-layer products of one task when its per-task weights are never built."""
    inputs, outputs = case.widths[0], case.widths[1]
    n, q, steps = case.support, case.query, case.steps
    shared = 2 * (n + q) * inputs * outputs  # x_s W^T and x_q W^T with the common weights
    grams = 2 * n * n * inputs + 2 * q * n * inputs  # x_s x_s^T and x_q x_s^T
    # Forward: one Gram product per step but the first, and the query's; the adjoint mirrors it:
    # the query's cotangent, then per step one product for the tangent and one for its adjoint.
    forward = 2 * n * n * outputs * max(steps - 1, 0) + 2 * q * n * outputs
    backward = 2 * q * n * outputs + 2 * 2 * n * n * outputs * steps
    assembled = 2 * (n + q) * inputs * outputs  # one weight gradient over all rows
    return shared + grams + forward + backward + assembled


def nominal(case: Case) -> int:
    """Operations of the dense algorithm for all tasks of the case."""
    if case.quantity == "hvp":
        return case.tasks * (_linearisation(case, case.support) + _tangent(case, case.support))
    steps = case.steps * (_gradient(case, case.support) + _tangent(case, case.support))
    return case.tasks * (steps + _gradient(case, case.query))


def structured(case: Case) -> int:
    """Operations when the first layer's low rank is used if that is cheaper; never above nominal.

    The input gradient that reaches the first layer belongs to the second and is counted there.
    """
    if case.quantity == "hvp" or case.steps == 0:
        return nominal(case)
    rest = case.steps * (
        _gradient(case, case.support, skip_first=True)
        + _tangent(case, case.support, skip_first=True)
    ) + _gradient(case, case.query, skip_first=True)
    return min(nominal(case), case.tasks * (rest + _first_layer_by_rank(case)))
