"""MAML and its relatives, which are MAML with other options."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from innerloop import functional
from innerloop._calling import named
from innerloop._params import BatchLike, InnerLr
from innerloop.learners import _checks
from innerloop.learners.learner import Learner
from innerloop.objectives import Loss


class MAML(Learner):
    """Wraps a network; calling it returns the meta-loss: the query loss after inner steps on the
    support rows.

    Train it like any module: `loss = learner(support, query)`, `loss.backward()`,
    `optimizer.step()`.

    Args:
        module: the network. Chains of Linear and activations are fused, other networks of known
            layers batched; any other module runs on the torch back end (see `explain()`).
        inner_lr: rates of the inner loop in any form that `meta_grad` takes. Tensors are copied.
        steps: inner steps S >= 0.
        order: 2 for the exact meta-gradient; 1 for first-order MAML.
        loss: "mse", "half_mse", "cross_entropy", "bce_with_logits" or "huber", a torch loss, or a
            callable (outputs, targets) of one task (see `meta_grad`), for support and query. A
            module is kept as `learner.loss`: it moves and is saved with the learner, and its
            parameters, constants of the inner loop, are trained with the learner's.
        query_loss: what the query rows are measured by in training and `evaluate`, if not by
            `loss`: any of the same, kept as `learner.query_loss`.
        momentum, nesterov, weight_decay: of the inner loop, as torch.optim.SGD's (see `meta_grad`);
            of training, adaptation and evaluation.
        adapt_params: names (the module's own) of the parameters that the inner loop changes. None
            for all that require grad when the learner is made; freezing later stops their
            meta-gradient only.
        learn_inner_lr: False; True for one learned rate; "per_step" for [S]; "per_tensor" for one
            per adapted parameter; "per_parameter" for one per element of them. Learned rates start
            at `inner_lr` and are the parameters of `learner.rates`; their sign is free.
        backend: "auto"; "fused" or "batched" (raise rather than fall back); or "torch".
        allow_tf32: see `meta_grad`; of training, adaptation, evaluation and predictions.

    Raises:
        ValueError: an option, name or shape does not fit, or no parameter is left to adapt.
        TypeError: module is not an nn.Module, or a dtype does not fit.
        NotImplementedError: the back end that is asked for cannot take the module.

    Source: Finn, Abbeel, Levine 2017, algorithm 1.

    Example:
        >>> import torch, innerloop as il
        >>> learner = il.MAML(nn.Linear(2, 1), inner_lr=0.1, steps=1)
        >>> optimizer = torch.optim.Adam(learner.parameters())
        >>> x, y = torch.ones(4, 5, 2), torch.ones(4, 5, 1)
        >>> learner((x, y), (x, y)).backward(); optimizer.step()
    """

    @named
    def __init__(
        self,
        module: nn.Module,
        *,
        inner_lr: InnerLr,
        steps: int,
        order: int = 2,
        loss: Loss = "mse",
        query_loss: Loss | None = None,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        adapt_params: Sequence[str] | None = None,
        learn_inner_lr: bool | str = False,
        backend: str = "auto",
        allow_tf32: bool = False,
    ) -> None:
        super().__init__(
            module,
            inner_lr=inner_lr,
            learn_inner_lr=learn_inner_lr,
            steps=steps,
            order=order,
            loss=loss,
            query_loss=query_loss,
            solver={"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay},
            adapt_params=adapt_params,
            backend=backend,
            allow_tf32=allow_tf32,
        )

    @named
    def forward(
        self,
        support: BatchLike,
        query: BatchLike,
        *,
        task_weight: Tensor | None = None,
        reduction: str = "mean",
        steps: int | None = None,
        inner_lr: InnerLr | None = None,
    ) -> Tensor:
        """Returns the mean over tasks of the query loss after adaptation.

        Args:
            support: (x [T, N, ...], y[, count[, weight]]): see `Batch`. A single task is taken as a
                batch of one: x [N, ...] with y [N], or with floating y [N, K] that does not begin
                with the first two sizes of x, or x [N, D] for a module that begins with D inputs.
            query: the same with Q rows.
            task_weight: [T]; the result is sum_t task_weight_t loss_t. None means 1/T.
            reduction: "mean", or "none" for the losses of the tasks [T].
            steps: inner steps; None for the learner's own. Rates per step are cut, or the last one
                is repeated.
            inner_lr: rates in place of the learner's own, differentiable if they require grad.

        Returns:
            0-d tensor, or [T].

        Differentiability: once in the parameters and rates when fused, any number of times on the
            torch back end.

        Cost: see `meta_grad`. "mean" computes value and gradient in one pass; "none" makes a second
            pass in backward.
        """
        _checks.check_reduction("MAML", reduction, task_weight)
        support, query = self._batch(support), self._batch(query)
        steps = self.steps if steps is None else steps
        model, params, objective, outer = self._model(support, query)
        rates = self._rates_for("MAML", inner_lr, steps)
        if reduction == "none":
            loss = functional.meta_loss(
                params,
                support,
                query,
                model=model,
                inner_lr=rates,
                steps=steps,
                loss=objective,
                query_loss=outer,
                **self._solver,
                order=self.order,
                adapt_params=self.adapted_names,
                backend=self._backend,
                allow_tf32=self._allow_tf32,
            )
        else:
            loss = functional.mean_meta_loss(
                params,
                support,
                query,
                model=model,
                inner_lr=rates,
                steps=steps,
                loss=objective,
                query_loss=outer,
                **self._solver,
                order=self.order,
                adapt_params=self.adapted_names,
                task_weight=task_weight,
                backend=self._backend,
                allow_tf32=self._allow_tf32,
            )
        return self._anchored(loss, model)

    def _settings(self) -> str:
        return f"{super()._settings()}, order {self.order}"


@named
def FOMAML(
    module: nn.Module,
    *,
    inner_lr: InnerLr,
    steps: int,
    loss: Loss = "mse",
    query_loss: Loss | None = None,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    adapt_params: Sequence[str] | None = None,
    learn_inner_lr: bool | str = False,
    backend: str = "auto",
    allow_tf32: bool = False,
) -> MAML:
    """Returns first-order MAML: `MAML(..., order=1)`.

    Args, Raises: see `MAML`.

    Source: Finn, Abbeel, Levine 2017, section 5.2.

    Example:
        >>> FOMAML(nn.Linear(2, 1), inner_lr=0.1, steps=1).order
        1
    """
    return MAML(
        module,
        inner_lr=inner_lr,
        steps=steps,
        order=1,
        loss=loss,
        query_loss=query_loss,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        adapt_params=adapt_params,
        learn_inner_lr=learn_inner_lr,
        backend=backend,
        allow_tf32=allow_tf32,
    )


@named
def ANIL(
    module: nn.Module,
    *,
    inner_lr: InnerLr,
    steps: int,
    head: str | None = None,
    order: int = 2,
    loss: Loss = "mse",
    query_loss: Loss | None = None,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    learn_inner_lr: bool | str = False,
    backend: str = "auto",
    allow_tf32: bool = False,
) -> MAML:
    """Returns MAML whose inner loop changes the head alone.

    Args:
        head: name of the submodule that adapts; None for the one that holds the last registered
            parameter (the last layer of a Sequential). `learner.adapted_names` shows the choice.
        others: see `MAML`.

    Raises:
        ValueError: no parameter lies in `head`; and as `MAML`.

    Source: Raghu, Raghu, Bengio, Vinyals 2020 (Almost No Inner Loop).

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> ANIL(net, inner_lr=0.1, steps=1).adapted_names
        ('2.weight', '2.bias')
    """
    _checks.check_module("ANIL", module)
    names = [k for k, p in module.named_parameters() if p.is_floating_point()]
    prefix = names[-1].rpartition(".")[0] if head is None else head
    inside = [k for k in names if not prefix or k.startswith(f"{prefix}.")]
    _checks.check_head("ANIL", prefix, inside, module)
    return MAML(
        module,
        inner_lr=inner_lr,
        steps=steps,
        order=order,
        loss=loss,
        query_loss=query_loss,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        adapt_params=inside,
        learn_inner_lr=learn_inner_lr,
        backend=backend,
        allow_tf32=allow_tf32,
    )


@named
def MetaSGD(
    module: nn.Module,
    *,
    inner_lr: InnerLr,
    steps: int = 1,
    order: int = 2,
    loss: Loss = "mse",
    query_loss: Loss | None = None,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    adapt_params: Sequence[str] | None = None,
    backend: str = "auto",
    allow_tf32: bool = False,
) -> MAML:
    """Returns MAML with a learned rate for every single parameter:
    `learn_inner_lr="per_parameter"`.

    Args, Raises: see `MAML`. All rates start at `inner_lr`.

    Source: Li, Zhou, Chen, Li 2017 (Meta-SGD), equation 3.

    Example:
        >>> [p.shape for p in MetaSGD(nn.Linear(2, 1), inner_lr=0.1).rates.parameters()]
        [torch.Size([1, 2]), torch.Size([1])]
    """
    return MAML(
        module,
        inner_lr=inner_lr,
        steps=steps,
        order=order,
        loss=loss,
        query_loss=query_loss,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        adapt_params=adapt_params,
        learn_inner_lr="per_parameter",
        backend=backend,
        allow_tf32=allow_tf32,
    )
