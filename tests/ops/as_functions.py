"""Every operation as a function of one of its arguments, as a flat vector."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

import innerloop as il
from innerloop.functional import mean_meta_loss

F64 = torch.float64
DATA = ("support x", "support y", "support weight", "query x", "query y", "query weight")
TASKS, ROWS, QUERY_ROWS, STEPS = 2, 3, 2, 2


def drawn(seed, *shape):
    """Returns standard normal float64 numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def network():
    """Returns a network."""
    return nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)).double()


MODEL = il.MLP.from_module(network())


def arguments(per_task=False, rates="steps", counts=False):
    """Returns the arguments of a meta-step by name: tensors, or dicts of them."""
    front = (TASKS,) if per_task else ()
    params = {k: 0.7 * drawn(i, *front, *s) for i, (k, s) in enumerate(MODEL.shapes.items())}
    inner_lr = 0.2 * drawn(20, STEPS)
    if rates == "elements":
        inner_lr = {k: 0.2 * drawn(30 + i, *s) for i, (k, s) in enumerate(MODEL.shapes.items())}
    return {
        "params": params,
        "inner_lr": inner_lr,
        "support x": drawn(10, TASKS, ROWS, 2),
        "support y": drawn(11, TASKS, ROWS, 1),
        "support weight": drawn(12, TASKS, ROWS).abs(),
        "query x": drawn(13, TASKS, QUERY_ROWS, 2),
        "query y": drawn(14, TASKS, QUERY_ROWS, 1),
        "query weight": drawn(15, TASKS, QUERY_ROWS).abs(),
        "task_weight": drawn(16, TASKS),
        "vector": {k: drawn(40 + i, *s) for i, (k, s) in enumerate(MODEL.shapes.items())},
        **(
            {"support count": torch.tensor([3, 2]), "query count": torch.tensor([1, 2])}
            if counts
            else {}
        ),
    }


def side(given, name):
    """Returns one batch of the arguments."""
    count = given.get(f"{name} count")
    return given[f"{name} x"], given[f"{name} y"], count, given[f"{name} weight"]


def meta(operation, *, weighted=False, order=2):
    """Returns a call of meta_grad, meta_loss or mean_meta_loss."""

    def call(given, backend):
        extra = {"task_weight": given["task_weight"]} if weighted else {}
        return operation(
            given["params"],
            side(given, "support"),
            side(given, "query"),
            model=MODEL,
            inner_lr=given["inner_lr"],
            steps=STEPS,
            order=order,
            backend=backend,
            **extra,
        )

    return call


def meta_grad(given, backend):
    """Returns the tensors of meta_grad."""
    result = meta(il.meta_grad, weighted=True)(given, backend)
    return result.loss, result.support_loss, *result.grad.values(), result.inner_lr_grad


def adapt(given, backend):
    """Returns the adapted parameters after every step."""
    options = {"inner_lr": given["inner_lr"], "steps": STEPS, "stepwise": True, "backend": backend}
    batch = side(given, "support")
    return tuple(il.adapt(given["params"], batch, model=MODEL, **options).values())


def hvp(given, backend):
    """Returns Hessian-vector products."""
    batch = side(given, "support")
    found = il.hvp(given["params"], batch, given["vector"], model=MODEL, backend=backend)
    return tuple(found.values())


def loss_and_grad(given, backend):
    """Returns losses and gradients."""
    batch = side(given, "support")
    losses, grads = il.loss_and_grad(given["params"], batch, model=MODEL, backend=backend)
    return losses, *grads.values()


def predict(given, backend):
    """Returns outputs."""
    return il.predict(given["params"], given["support x"], model=MODEL, backend=backend)


@cache
def made(kind, backend):
    """Returns a learner of the network that MODEL describes."""
    module = network()
    module.load_state_dict(arguments()["params"])
    options = {} if kind is il.JointTraining else {"learn_inner_lr": "per_step"}
    return kind(module, inner_lr=0.1, steps=STEPS, backend=backend, **options)


def learner(kind, **how):
    """Returns a call of a learner with its parameters and rates put in for its own."""

    def call(given, backend):
        own = {f"module.{k}": v for k, v in given["params"].items()}
        if kind is not il.JointTraining:
            own["rates.value"] = given["inner_lr"]
        extra = {} if "reduction" in how else {"task_weight": given["task_weight"]}
        batches = side(given, "support"), side(given, "query")
        return torch.func.functional_call(made(kind, backend), own, batches, {**how, **extra})

    return call


def adapted(given, backend):
    """Returns the outputs of adapted networks; what they were adapted with is constant."""
    return made(il.MAML, backend).adapt(FIXED)(given["query x"])


FIXED = side(arguments(), "support")


@dataclass(frozen=True)
class Operation:
    """A call of (arguments, backend), the arguments that it is differentiated in, which of these
    have a derivative when fused (`twice`: any number), and variations of the arguments."""

    call: object
    variables: tuple
    fused: tuple = ()
    twice: tuple = ()
    constant: bool = False  # of meta_grad: autograd records nothing, whatever requires grad
    per_task: bool = False
    rates: str = "steps"


CORE = ("params", "inner_lr")
WEIGHT = ("task_weight",)  # sum_t w_t loss_t is linear in it
OPERATIONS = {
    "meta_loss": Operation(meta(il.meta_loss), (*CORE, *DATA), CORE),
    "meta_loss, elements": Operation(
        meta(il.meta_loss), CORE, CORE, per_task=True, rates="elements"
    ),
    "meta_loss, order 1": Operation(meta(il.meta_loss, order=1), CORE, CORE),
    "mean_meta_loss": Operation(
        meta(mean_meta_loss, weighted=True),
        (*CORE, *WEIGHT, *DATA),
        (*CORE, *WEIGHT),
        WEIGHT,
    ),
    "MAML": Operation(learner(il.MAML), (*CORE, *WEIGHT, "support x"), (*CORE, *WEIGHT), WEIGHT),
    "MAML, none": Operation(learner(il.MAML, reduction="none"), CORE, CORE),
    "JointTraining": Operation(
        learner(il.JointTraining), ("params", *WEIGHT, "query x"), ("params", *WEIGHT), WEIGHT
    ),
    "meta_grad": Operation(
        meta_grad, ("params", "inner_lr", "task_weight", "support x", "query y"), constant=True
    ),
    "adapt": Operation(adapt, (*CORE, "support x", "support y", "support weight")),
    "hvp": Operation(hvp, ("params", "vector", "support x", "support weight")),
    "loss_and_grad": Operation(loss_and_grad, ("params", "support x", "support y")),
    "predict": Operation(predict, ("params", "support x")),
    "adapted network": Operation(adapted, ("query x",)),
}


def leaves(value):
    """Returns the tensors of one argument."""
    return list(value.values()) if isinstance(value, dict) else [value]


def flat(tensors):
    """Returns tensors as one vector."""
    return torch.cat([t.reshape(-1) for t in tensors])


def shaped_like(value, vector):
    """Returns a vector in the form of one argument."""
    parts = vector.split([t.numel() for t in leaves(value)])
    shaped = [p.reshape(t.shape) for p, t in zip(parts, leaves(value), strict=True)]
    return dict(zip(value, shaped, strict=True)) if isinstance(value, dict) else shaped[0]


@cache
def function(name, variable, backend):
    """Returns (f, z): an operation as a function of one argument as a vector, and its value. The
    outputs get a term of known derivative, so that a lost one cannot pass for a refusal."""
    operation = OPERATIONS[name]
    given = arguments(operation.per_task, operation.rates)
    at = flat(leaves(given[variable]))

    def call(z):
        out = operation.call({**given, variable: shaped_like(given[variable], z)}, backend)
        outputs = flat(out if isinstance(out, tuple) else [out])
        return outputs if operation.constant else outputs + z.square().sum()

    call(at)  # learners are made, outside of transforms
    return call, at
