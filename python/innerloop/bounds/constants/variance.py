"""Variance components of gradients and Hessians, within and between tasks, without bias
(Result 34)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from innerloop.bounds._results import Assumption, Record
from innerloop.bounds.constants._estimate import Estimate, Origin, measured_array
from innerloop.bounds.constants._oracle import Model, Oracle, check_count, oracle, source_of
from innerloop.objectives import Loss

Array = np.ndarray[Any, Any]
VarianceMethod = Literal["mean", "median_of_means"]

# numbers of per-sample vectors kept at once (a cache's worth); more tasks run in groups
_VECTORS = 2**19


@dataclasses.dataclass(frozen=True)
class VarianceComponents(Record):
    """Squares of the noise and dissimilarity constants at given parameters, each without bias.

    Args:
        sigma_g2: E_task E_sample ||one-sample gradient - task gradient||^2.
        sigma_gamma2: E_task ||task gradient - mean gradient||^2; a negative outcome is kept.
        gradient2: ||mean gradient||^2; a negative outcome is kept.
        G2: gradient2 + sigma_gamma2 = E_task ||task gradient||^2, the square of G_2.
        sigma_H2: E_task E_sample ||one-sample Hessian - task Hessian||_F^2, None without probes.
        sigma_Hgamma2: E_task ||task Hessian - mean Hessian||_F^2, an upper bound of the same with
            the operator norm; None without probes.
        noise: [M] the within-task mean square of each task.
        gradient_norm: [M] norm of each task's mean gradient (above the norm of its expectation).
        tasks, samples, probes: M, n, number of Rademacher probes.
    """

    sigma_g2: Estimate
    sigma_gamma2: Estimate
    gradient2: Estimate
    G2: Estimate
    sigma_H2: Estimate | None
    sigma_Hgamma2: Estimate | None
    noise: Array
    gradient_norm: Array
    tasks: int
    samples: int
    probes: int

    def explain(self) -> str:
        """Every component and how it was obtained."""
        parts = [self.sigma_g2, self.sigma_gamma2, self.gradient2, self.G2]
        parts += [p for p in (self.sigma_H2, self.sigma_Hgamma2) if p is not None]
        return "\n".join(part.explain() for part in parts)


@dataclasses.dataclass(frozen=True)
class _Spread:
    """Sufficient statistics of M tasks with n vectors each."""

    within: Array  # [M] sum_i ||g_ti - mean_t||^2 / (n - 1)
    gram: Array  # [M, M] inner products of the task means
    samples: int

    def estimates(self, chosen: Array) -> tuple[float, float, float]:
        """Returns unbiased (within, between, squared mean) from some of the tasks."""
        count = len(chosen)
        gram = self.gram[np.ix_(chosen, chosen)]
        mean2 = float(gram.mean())
        between = (float(np.trace(gram)) - count * mean2) / (count - 1)
        noise = float(self.within[chosen].mean())
        return noise, between - noise / self.samples, mean2 - between / count

    def without_each(self) -> Array:
        """Returns the estimates without task t for every t, [M, 3], in closed form."""
        count = len(self.within)
        rest = count - 1
        total = float(self.gram.sum())
        sums = total - 2.0 * self.gram.sum(1) + np.diag(self.gram)  # sum over the other tasks
        mean2 = sums / rest**2
        trace = float(np.trace(self.gram)) - np.diag(self.gram)
        between = (trace - rest * mean2) / (rest - 1)
        noise = (float(self.within.sum()) - self.within) / rest
        columns = (noise, between - noise / self.samples, mean2 - between / rest)
        return np.stack(columns, axis=1)


def variance_components(
    model: Model,
    params: Any,
    batch: Any,
    *,
    loss: Loss = "mse",
    probes: int = 8,
    method: VarianceMethod = "mean",
    blocks: int = 8,
    dtype: torch.dtype = torch.float64,
    backend: str = "auto",
    generator: torch.Generator | None = None,
    seed: int = 0,
) -> VarianceComponents:
    """Returns sigma_g^2, sigma_gamma^2, ||mean gradient||^2, sigma_H^2 and sigma_Hgamma^2.

    The n rows of each of M tasks give one-sample gradients g_ti; within-task mean squares estimate
    sigma_g^2, and the mean square between task means less its share of noise, S_B - MSW / n,
    estimates sigma_gamma^2. The same on one-sample Hessian-vector products with random signs z
    (one z for all tasks and rows of a probe) gives the Hessian's components, since
    E_z ||A z||^2 = ||A||_F^2.

    Args:
        model, params, loss, dtype, backend: as `curvature`; params shared by the tasks.
        batch: (x [M, n, D], y) with M >= 3 i.i.d. tasks and n >= 2 i.i.d. rows.
        probes: random sign vectors for the Hessian; 0 leaves it out.
        method: "mean", or "median_of_means" over blocks of tasks, which heavy tails move less (it
            is no longer unbiased when the law of the block means is skewed).
        blocks: number of blocks, at most M / 2.
        generator, seed: where the probes come from.

    Returns:
        VarianceComponents. Standard errors are jackknifed over tasks, the only level that is
        i.i.d. B5 and B6 want suprema over parameters: these are values at one point, plug-in.

    Raises:
        ValueError: too few tasks or rows, ragged or weighted rows, or an argument out of range.

    Cost: M n one-sample gradients and probes M n one-sample Hessian-vector products, the work of
        M (1 + 2 probes) gradients with n rows; memory O(M P) and that of one group of rows.

    Assumes:
        Tasks are i.i.d. and rows i.i.d. given the task. Checked: enough tasks and rows. Not
        checked: B5 and B6 at other parameters.

    Source: Result 34; the between and within mean squares are the classical analysis of variance.

    Example:
        >>> import innerloop as il
        >>> x = torch.randn(50, 4, 1, generator=torch.Generator().manual_seed(0))
        >>> zero = {"0.weight": torch.zeros(1, 1)}
        >>> found = variance_components(il.MLP([1, 1], bias=False), zero, (x, x), loss="half_mse")
        >>> bool(found.sigma_g2 > 0 and found.sigma_g2.origin.standard_error > 0)
        True
    """
    name = "variance_components"
    check_count(name, "probes", probes, 0)
    whole = oracle(name, model, params, batch, loss=loss, dtype=dtype, backend=backend)
    if whole.tasks < 3 or whole.rows < 2:
        raise ValueError(
            f"{name}: batch must hold at least 3 tasks of 2 rows, Result 34 needs both levels "
            f"(got {whole.tasks} tasks of {whole.rows})"
        )
    if method not in ("mean", "median_of_means"):
        raise ValueError(f'{name}: method must be "mean" or "median_of_means" (got {method!r})')
    if method == "median_of_means":
        check_count(name, "blocks", blocks, 2)
        if whole.tasks < 2 * blocks:
            raise ValueError(
                f"{name}: blocks must be at most M / 2 = {whole.tasks // 2} (got {blocks})"
            )
    gradients = _gradient_spread(whole)
    source = source_of(generator, seed)
    hessians = [_hessian_spread(whole, source) for _ in range(probes)]
    return _summary(whole, gradients, hessians, method, blocks)


def _groups(whole: Oracle) -> list[Oracle]:
    """Returns the tasks in groups whose per-sample vectors fit in memory."""
    group = max(1, _VECTORS // (whole.rows * whole.size))
    return [whole.select(slice(k, k + group)) for k in range(0, whole.tasks, group)]


def _spread(vectors: list[tuple[Tensor, Tensor]], rows: int) -> _Spread:
    """Returns the statistics from (within mean squares, task means) of each group."""
    within = torch.cat([v[0] for v in vectors]).double().cpu().numpy()
    means = torch.cat([v[1] for v in vectors]).double()
    return _Spread(within, (means @ means.T).cpu().numpy(), rows)


def _levels(vectors: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Returns the within-task mean squares [m] and the task means [m, P] of [m n, P]."""
    shaped = vectors.reshape(-1, rows, vectors.shape[1])
    means = shaped.mean(1)
    spread = torch.linalg.vector_norm(shaped - means[:, None], dim=(1, 2))
    return spread.square() / (rows - 1), means


def _gradient_spread(whole: Oracle) -> _Spread:
    """Returns the statistics of one-sample gradients."""
    found = [_levels(g.rows_as_tasks().gradient()[1], whole.rows) for g in _groups(whole)]
    return _spread(found, whole.rows)


def _hessian_spread(whole: Oracle, source: torch.Generator) -> _Spread:
    """Returns the statistics of one-sample Hessian-vector products with one random sign vector."""
    signs = torch.randint(0, 2, (whole.size,), generator=source, device=source.device)
    probe = (2.0 * signs - 1.0).to(device=whole.x.device, dtype=whole.dtype)
    found = []
    for group in _groups(whole):
        single = group.rows_as_tasks()
        found.append(_levels(single.product(probe.expand(single.tasks, -1)), whole.rows))
    return _spread(found, whole.rows)


def _summary(
    whole: Oracle,
    gradients: _Spread,
    hessians: list[_Spread],
    method: str,
    blocks: int,
) -> VarianceComponents:
    """Returns the record of labelled estimates."""
    tasks, rows = whole.tasks, whole.rows
    jack = gradients.without_each()
    value = _robust([gradients], method, blocks)
    total = jack[:, 1] + jack[:, 2]
    scope = f"the law of the tasks, at these parameters ({tasks} tasks of {rows} rows drawn)"
    cost = {"one-sample gradients": tasks * rows}

    def estimate(name: str, number: float, leave_out: Array, cost: dict[str, int]) -> Estimate:
        spread = math.sqrt((tasks - 1) / tasks * float(((leave_out - leave_out.mean()) ** 2).sum()))
        return Estimate(
            number,
            name=name,
            source="Result 34",
            assumptions=(
                Assumption("tasks are i.i.d., rows are i.i.d. given the task"),
                Assumption("B5 and B6 need suprema over parameters: use there is plug-in"),
            ),
            reason="negative: the true value is small against its standard error"
            if number < 0
            else None,
            origin=Origin(
                "plug-in",
                "unbiased",
                scope,
                "analysis of variance, standard error by jackknife over tasks"
                if method == "mean"
                else f"median over {blocks} blocks of tasks, standard error that of the mean",
                standard_error=spread,
                cost=cost,
            ),
        )

    found: dict[str, Estimate | None] = {"sigma_H2": None, "sigma_Hgamma2": None}
    if hessians:
        products = {"one-sample Hessian-vector products": len(hessians) * tasks * rows}
        mean = np.mean([h.without_each() for h in hessians], axis=0)
        number = _robust(hessians, method, blocks)
        found["sigma_H2"] = estimate("sigma_H^2 (Frobenius)", number[0], mean[:, 0], products)
        found["sigma_Hgamma2"] = estimate(
            "sigma_Hgamma^2 (Frobenius)", number[1], mean[:, 1], products
        )
    return VarianceComponents(
        sigma_g2=estimate("sigma_g^2", value[0], jack[:, 0], cost),
        sigma_gamma2=estimate("sigma_gamma^2", value[1], jack[:, 1], cost),
        gradient2=estimate("squared norm of the mean gradient", value[2], jack[:, 2], cost),
        G2=estimate("G_2^2, mean squared task gradient", value[1] + value[2], total, cost),
        **found,
        noise=measured_array(gradients.within, "noise of one sample", "Result 34"),
        gradient_norm=measured_array(
            np.sqrt(np.diag(gradients.gram)), "norm of a task's gradient", "Result 34"
        ),
        tasks=tasks,
        samples=rows,
        probes=len(hessians),
    )


def _robust(spreads: list[_Spread], method: str, blocks: int) -> Array:
    """Returns the three estimates, averaged over probes: over all tasks, or as the median over
    consecutive blocks of tasks."""
    tasks = len(spreads[0].within)
    parts = [np.arange(tasks)] if method == "mean" else np.array_split(np.arange(tasks), blocks)
    rows = [np.mean([s.estimates(part) for s in spreads], axis=0) for part in parts]
    return np.asarray(np.median(rows, axis=0))
