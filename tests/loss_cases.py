"""Every loss of torch with its options and fitting data, and a plain autograd loop over tasks that
takes any of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F

from problems import random_problem

F64 = torch.float64
OUTPUTS = 3
CLASS_WEIGHT = torch.tensor([0.5, 1.0, 2.0], dtype=F64)


@dataclass
class Case:
    """A loss class (by name, since older torch lacks some) with options, and what it is used with.

    `name` is the kernel that it has, `target` a kind of `targets`, `last` the layer that ends
    the network. `once`: torch has no second derivative of it.
    """

    kind: str
    target: str
    options: dict = field(default_factory=dict)
    name: str | None = None
    last: type | None = None
    once: bool = False

    def __str__(self):
        options = ",".join(
            f"{k}={'...' if isinstance(v, torch.Tensor) else v}" for k, v in self.options.items()
        )
        return f"{self.kind}({options})-{self.target}"

    @property
    def exists(self):
        """Whether this torch has it."""
        return hasattr(nn, self.kind)

    def make(self, **changes):
        """Returns an instance."""
        torch.manual_seed(3)
        made = getattr(nn, self.kind)(**{**self.options, **changes})
        return made.to(F64)

    def net(self):
        """Returns a smooth network whose outputs fit."""
        torch.manual_seed(0)
        layers = [nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, OUTPUTS)]
        if self.last is not None:
            layers.append(self.last())
        return nn.Sequential(*layers).to(F64)

    def sides(self, seed=1):
        """Returns support and query (x, y) of four tasks."""
        generator = torch.Generator().manual_seed(seed)
        made = []
        for rows in (6, 5):
            x = torch.randn(4, rows, 2, generator=generator, dtype=F64)
            made.append((x, targets(self.target, rows, generator)))
        return made


class LogSoftmax(nn.LogSoftmax):
    """Log-probabilities of rows."""

    def __init__(self):
        super().__init__(1)


def label(value):
    """Returns a test's name for a case or a loss: the same in every process."""
    return getattr(value, "__name__", str(value))


def targets(kind, rows, generator):
    """Returns targets of one kind for four tasks."""
    z = torch.randn(4, rows, OUTPUTS, generator=generator, dtype=F64)
    classes = z.argmax(2)
    if kind == "label_sets":  # class numbers, ended by -1
        order = z.argsort(2)
        return torch.where(torch.arange(OUTPUTS) <= classes[..., None], order, -1)
    return {
        "values": z,
        "shares": z.sigmoid(),
        "counts": (2 * z.abs()).round(),
        "signs": z.sign(),
        "classes": classes,
        "ignored": torch.where(z[..., 0] > 0.5, -100, classes),
        "probabilities": z.softmax(2),
        "log_probabilities": z.log_softmax(2),
    }[kind]


CASES = [
    Case("MSELoss", "values", name="mse"),
    Case("HuberLoss", "values", name="huber"),
    Case("HuberLoss", "values", {"delta": 1.0}, name="huber"),
    Case("HuberLoss", "values", {"delta": 0.3}, name="huber"),
    Case("SmoothL1Loss", "values", name="huber"),
    Case("SmoothL1Loss", "values", {"beta": 0.3}, name="huber"),
    Case("SmoothL1Loss", "values", {"beta": 0.0}, name="huber"),
    Case("L1Loss", "values", name="huber"),
    Case("BCEWithLogitsLoss", "shares", name="bce_with_logits"),
    Case("BCEWithLogitsLoss", "shares", {"pos_weight": CLASS_WEIGHT}, name="weighted_bce"),
    Case("BCEWithLogitsLoss", "shares", {"weight": CLASS_WEIGHT}, name="weighted_bce"),
    Case("CrossEntropyLoss", "classes", name="cross_entropy"),
    Case("CrossEntropyLoss", "ignored"),
    Case("CrossEntropyLoss", "probabilities"),
    Case("CrossEntropyLoss", "classes", {"weight": CLASS_WEIGHT}, name="soft_cross_entropy"),
    Case("CrossEntropyLoss", "classes", {"label_smoothing": 0.1}, name="soft_cross_entropy"),
    Case(
        "CrossEntropyLoss",
        "probabilities",
        {"weight": CLASS_WEIGHT, "label_smoothing": 0.1},
    ),
    Case("CrossEntropyLoss", "classes", {"ignore_index": 1}),
    Case("CrossEntropyLoss", "ignored", {"weight": CLASS_WEIGHT, "label_smoothing": 0.1}),
    Case("NLLLoss", "classes", last=LogSoftmax),
    Case("NLLLoss", "ignored", {"weight": CLASS_WEIGHT}, last=LogSoftmax),
    Case("BCELoss", "shares", last=nn.Sigmoid),
    Case("BCELoss", "shares", {"weight": CLASS_WEIGHT}, last=nn.Sigmoid),
    Case("PoissonNLLLoss", "counts"),
    Case("PoissonNLLLoss", "counts", {"full": True}),
    Case("KLDivLoss", "probabilities", last=LogSoftmax),
    Case("KLDivLoss", "log_probabilities", {"log_target": True}, last=LogSoftmax),
    Case("HingeEmbeddingLoss", "signs"),
    Case("SoftMarginLoss", "signs"),
    Case("MultiLabelSoftMarginLoss", "shares"),
    Case("MultiLabelSoftMarginLoss", "shares", {"weight": CLASS_WEIGHT}),
    Case("MultiLabelMarginLoss", "label_sets", once=True),
    Case("MultiMarginLoss", "classes", once=True),
    Case("MultiMarginLoss", "classes", {"p": 2, "weight": CLASS_WEIGHT}, once=True),
    Case("LinearCrossEntropyLoss", "classes", {"in_features": OUTPUTS, "num_classes": OUTPUTS}),
]
# the same as functions
FUNCTIONS = {
    "MSELoss": F.mse_loss,
    "HuberLoss": F.huber_loss,
    "SmoothL1Loss": F.smooth_l1_loss,
    "L1Loss": F.l1_loss,
    "BCEWithLogitsLoss": F.binary_cross_entropy_with_logits,
    "CrossEntropyLoss": F.cross_entropy,
    "NLLLoss": F.nll_loss,
    "BCELoss": F.binary_cross_entropy,
    "PoissonNLLLoss": F.poisson_nll_loss,
    "KLDivLoss": F.kl_div,
    "HingeEmbeddingLoss": F.hinge_embedding_loss,
    "SoftMarginLoss": F.soft_margin_loss,
    "MultiLabelSoftMarginLoss": F.multilabel_soft_margin_loss,
    "MultiLabelMarginLoss": F.multilabel_margin_loss,
    "MultiMarginLoss": F.multi_margin_loss,
}


def weights(size, seed=0):
    """Returns positive weights, one for each output, and a zero among several."""
    generator = torch.Generator().manual_seed(seed)
    made = 0.2 + 2 * torch.rand(size, generator=generator, dtype=F64)
    if size > 2:
        made[1] = 0
    return made


# by name: the named loss whose data it takes, and the loss for a number of outputs
OPTIONS = {
    "huber-0.3": ("huber", lambda k: nn.HuberLoss(delta=0.3)),
    "huber-7": ("huber", lambda k: nn.HuberLoss(delta=7)),
    "smooth_l1-0.4": ("huber", lambda k: nn.SmoothL1Loss(beta=0.4)),
    "smooth_l1-0": ("huber", lambda k: nn.SmoothL1Loss(beta=0.0)),
    "l1": ("huber", lambda k: nn.L1Loss()),
    "smoothing": ("cross_entropy", lambda k: nn.CrossEntropyLoss(label_smoothing=0.2)),
    "smoothing-1": ("cross_entropy", lambda k: nn.CrossEntropyLoss(label_smoothing=1.0)),
    "classes": ("cross_entropy", lambda k: nn.CrossEntropyLoss(weight=weights(k))),
    "classes-smoothing": (
        "cross_entropy",
        lambda k: nn.CrossEntropyLoss(weight=weights(k), label_smoothing=0.3),
    ),
    "positive": ("bce_with_logits", lambda k: nn.BCEWithLogitsLoss(pos_weight=weights(k))),
    "positive-one": (
        "bce_with_logits",
        lambda k: nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0, dtype=F64)),
    ),
    "outputs": (
        "bce_with_logits",
        lambda k: nn.BCEWithLogitsLoss(weights(k), pos_weight=weights(k, 1)),
    ),
}


def _has_idle_tasks(problem, weight):
    """Says whether a task has rows, and none of a class with a weight: torch then divides by 0."""
    if weight is None:
        return False
    for x, y, count, given in (problem.support, problem.query):
        used = torch.ones(x.shape[:2], dtype=torch.bool)
        if count is not None:
            used = torch.arange(x.shape[1]) < count[:, None]
        total = torch.where(used, weight[y.clamp(min=0)], 0).sum(1)
        if given is None and bool(((total == 0) & used.any(1)).any()):
            return True
    return False


def optioned(name, seed, **fixed):
    """Returns a random problem with one of the losses, on both sides, and no NaN among its
    results."""
    base, make = OPTIONS[name]
    problem = random_problem(seed, loss=base, **fixed)
    loss = problem.options["loss"] = make(problem.model.outputs)
    if isinstance(loss, nn.CrossEntropyLoss) and _has_idle_tasks(problem, loss.weight):
        loss.weight[:] = 1.5
    return problem


def value(loss, z, y, weight=None):
    """Returns one task's loss as the documentation defines it."""
    if len(y) == 0:
        return z.sum() * 0
    found = loss(z, y)
    if found.ndim == 0:
        assert weight is None
        return found
    rows = found.reshape(len(y), -1)
    assert rows.shape[1] == 1
    return rows.mean() if weight is None else (weight * rows[:, 0]).sum()


def loop_losses(net, loss, support, query, *, steps=2, order=2, rate=0.2):
    """Returns the query loss of each task after an inner loop in plain autograd, with the rows in
    use alone."""
    initial = dict(net.named_parameters())
    losses = []
    for t in range(len(support[0])):
        (xs, ys, ws), (xq, yq, wq) = _rows(support, t), _rows(query, t)
        phi = dict(initial)
        for _ in range(steps):
            now = value(loss, torch.func.functional_call(net, phi, (xs,)), ys, ws)
            grads = torch.autograd.grad(now, list(phi.values()), create_graph=order == 2)
            phi = {k: p - rate * g for (k, p), g in zip(phi.items(), grads, strict=True)}
        losses.append(value(loss, torch.func.functional_call(net, phi, (xq,)), yq, wq))
    return torch.stack(losses)


def _rows(side, t):
    """Returns x, y and weight of the rows in use of one task."""
    x, y, count, weight = (*side, None, None)[:4]
    used = torch.ones(x.shape[1], dtype=torch.bool)
    if count is not None:
        used &= torch.arange(x.shape[1]) < count[t]
    if weight is not None:
        used &= weight[t] != 0
    return x[t][used], y[t][used], None if weight is None else weight[t][used]


def loop_gradient(net, loss, support, query, **options):
    """Returns (losses [T], gradient of their mean {name: tensor}) of the loop."""
    losses = loop_losses(net, loss, support, query, **options)
    grads = torch.autograd.grad(losses.mean(), list(net.parameters()), allow_unused=True)
    named = zip(net.named_parameters(), grads, strict=True)
    return losses.detach(), {k: torch.zeros_like(p) if g is None else g for (k, p), g in named}


def ragged(side, roll=0):
    """Returns a side with counts, 0 and all among them, and garbage in the rows left out."""
    x, y = side
    count = torch.tensor([0, 2, x.shape[1], 4]).roll(roll)
    unused = torch.arange(x.shape[1]) >= count[:, None]
    x, y = x.clone(), y.clone()
    x[unused] = float("nan")
    y[unused] = float("nan") if y.is_floating_point() else -7
    return x, y, count


def weighted(side, seed=5):
    """Returns a side with weights of rows, some 0, and garbage in these rows."""
    x, y = side
    generator = torch.Generator().manual_seed(seed)
    weight = torch.rand(x.shape[:2], generator=generator, dtype=F64) / x.shape[1]
    weight[torch.rand(x.shape[:2], generator=generator) < 0.3] = 0
    x, y = x.clone(), y.clone()
    x[weight == 0] = float("nan")
    y[weight == 0] = float("nan") if y.is_floating_point() else -7
    return x, y, None, weight
