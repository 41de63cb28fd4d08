"""Random meta-learning problems that cover every option, and linear problems with known answers."""

import random
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

import innerloop as il
from innerloop import objectives
from innerloop._chain import Layer
from innerloop._one_task import activate
from innerloop.models import ACTIVATIONS

LOSSES = objectives.NAMES
SMOOTH = tuple(a for a in ACTIVATIONS if a not in ("relu", "leaky_relu"))
RATES = ("number", "scalar", "steps", "leaf", "leaf_steps", "element", "element_steps", "mixed")
SOLVERS = {  # options of the inner loop's steps
    "momentum": {"momentum": 0.7},
    "nesterov": {"momentum": 0.7, "nesterov": True},
    "decay": {"weight_decay": 0.3},
    "decay-momentum": {"momentum": 0.9, "weight_decay": 0.1},
    "decay-nesterov": {"momentum": 0.4, "nesterov": True, "weight_decay": 0.3},
}
WIDTHS = (1, 2, 3, 5, 7, 8, 9, 16, 17)
TASKS = (1, 2, 3, 5, 7, 8, 9, 16, 17, 19)


@dataclass
class Problem:
    """Arguments of meta_grad."""

    model: il.MLP
    params: dict
    support: il.Batch
    query: il.Batch
    options: dict = field(default_factory=dict)

    @property
    def tasks(self):
        """T."""
        return self.support.x.shape[0]

    def to(self, dtype):
        """Returns the same problem with floating tensors in another dtype."""

        def cast(value):
            if isinstance(value, torch.Tensor):
                return value.to(dtype) if value.is_floating_point() else value
            if isinstance(value, dict):
                return {k: cast(v) for k, v in value.items()}
            if isinstance(value, il.Batch):
                return il.Batch(*(cast(v) for v in value))
            return value

        return Problem(
            self.model, cast(self.params), cast(self.support), cast(self.query), cast(self.options)
        )

    def call(self, operation, **changes):
        """Returns operation(params, support, query, **options) with some options changed."""
        options = {**self.options, **changes}
        return operation(self.params, self.support, self.query, model=self.model, **options)


def normal(generator, *shape):
    """Returns standard normal float64 numbers that float32 holds exactly."""
    return torch.randn(shape, generator=generator, dtype=torch.float32).double()


def make_batch(generator, model, loss, tasks, rows, *, ragged=False, weighted=False):
    """Returns a random batch; unused rows of ragged tasks hold NaN."""
    x = normal(generator, tasks, rows, model.inputs)
    if loss == "cross_entropy":
        y = torch.randint(model.outputs, (tasks, rows), generator=generator)
    elif loss == "bce_with_logits":
        y = torch.rand((tasks, rows, model.outputs), generator=generator).double()
    else:
        y = normal(generator, tasks, rows, model.outputs)
    count = weight = None
    if ragged:
        count = torch.randint(rows + 1, (tasks,), generator=generator)
        unused = torch.arange(rows) >= count[:, None]
        x[unused] = float("nan")
        if y.is_floating_point():
            y[unused] = float("nan")
        else:
            y[unused] = -7
    if weighted:
        weight = torch.rand((tasks, rows), generator=generator).double() / max(rows, 1)
        weight[torch.rand((tasks, rows), generator=generator) < 0.2] = 0
    return il.Batch(x, y, count, weight)


def make_rates(generator, model, kind, steps, adapted, size=0.1):
    """Returns inner rates of one kind, of both signs."""

    def rate(*shape):
        sign = torch.where(torch.rand(shape, generator=generator) < 0.25, -1.0, 1.0)
        return (size * (0.5 + torch.rand(shape, generator=generator)) * sign).double()

    whole = {"number": lambda: float(rate()), "scalar": rate, "steps": lambda: rate(steps)}
    if kind in whole:
        return whole[kind]()
    rates = {}
    for i, name in enumerate(adapted):
        shape = model.shapes[name]
        forms = {
            "leaf": lambda: rate() if rates else float(rate()),
            "leaf_steps": lambda: rate(steps),
            "element": lambda shape=shape: rate(*shape),
            "element_steps": lambda shape=shape: rate(steps, *shape),
        }
        rates[name] = forms[kind if kind != "mixed" else list(forms)[i % 4]]()
    return rates


def with_norms(model, draw):
    """Returns the model with layer norms of every kind between its layers, and maybe before the
    first: before activations or after them."""
    layers = []

    def norm(n, activation="identity", slope=0.0):
        name = f"norm{len(layers)}"
        weight, bias = draw.choice(((True, True), (True, False), (False, False)))
        # of one or two values the variance must not be all that there is: derivatives would cancel
        eps = draw.choice((1e-5, 0.1)) if n > 2 else 1.0
        leaves = f"{name}.weight" if weight else None, f"{name}.bias" if bias else None
        layers.append(Layer(*leaves, n, n, activation, slope, "layer_norm", eps))

    if draw.random() < 0.3:
        norm(model.inputs)
    for layer in model.layers:
        place = draw.choice(("before", "after", "none"))
        if place == "before":
            layers.append(layer._replace(activation="identity", slope=0.0))
            norm(layer.outputs, layer.activation, layer.slope)
        else:
            layers.append(layer)
        if place == "after":
            norm(layer.outputs)
    return il.MLP.from_layers(layers)


def random_problem(seed, **fixed):
    """Returns a problem in float64 whose every option is drawn from `seed` unless fixed by name;
    `norms`: whether there are layer norms."""
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)

    def pick(name, values):
        chosen = draw.choice(values)
        return fixed.get(name, chosen)

    loss = pick("loss", LOSSES)
    depth = pick("depth", (1, 2, 2, 3, 4))
    widths = [draw.choice(WIDTHS) for _ in range(depth + 1)]
    if loss == "cross_entropy":
        widths[-1] = max(widths[-1], 2)
    widths = fixed.get("widths", widths)
    model = il.MLP(
        widths,
        pick("activation", ACTIVATIONS),
        pick("bias", (True, True, False)),
        negative_slope=0.2,
    )
    networks = random.Random(-seed - 1)  # of their own: problems without norms stay what they were
    free = fixed.keys().isdisjoint(("widths", "depth"))
    if fixed.get("norms", free and networks.random() < 0.3):
        model = with_norms(model, networks)
    tasks = pick("tasks", TASKS)
    steps = pick("steps", (0, 1, 1, 2, 3, 5))
    names = list(model.shapes)
    subset = [name for name in names if draw.random() < 0.6]
    adapt_params = pick("adapt_params", (None, None, subset))
    adapted = names if adapt_params is None else adapt_params
    ragged, weighted = pick("ragged", (False, False, True)), pick("weighted", (False, False, True))
    params = {k: v.double() for k, v in model.init(generator).items()}
    share = pick("per_task", (0.0, 0.0, 0.5, 1.0))
    for name, value in params.items():
        if draw.random() < share:
            params[name] = value + 0.3 * normal(generator, tasks, *value.shape)
    weights = torch.rand(tasks, generator=generator).double() + 0.1
    return Problem(
        model,
        params,
        make_batch(
            generator,
            model,
            loss,
            tasks,
            pick("rows", (1, 2, 3, 5, 8, 10)),
            ragged=ragged,
            weighted=weighted,
        ),
        make_batch(
            generator,
            model,
            loss,
            tasks,
            pick("query_rows", (1, 2, 4, 7, 11)),
            ragged=ragged,
            weighted=weighted,
        ),
        {
            "inner_lr": make_rates(generator, model, pick("rates", RATES), steps, adapted),
            "steps": steps,
            "loss": loss,
            "order": pick("order", (1, 2, 2)),
            "adapt_params": adapt_params,
            "task_weight": pick("task_weight", (None, weights)),
            "stepwise": pick("stepwise", (False, True)),
        },
    )


RATES_OF_LEAVES = ("number", "scalar", "steps", "leaf", "leaf_steps")  # none for each element


def implicit_problem(seed, **fixed):
    """Returns a random problem whose first layer stays implicit: few rows, many inputs, a weight
    that all tasks share. It adapts everything, or not the first weight, or the last layer alone."""
    widths = [(19, 40, 70)[seed % 3], 8 + seed % 7, 4, 3][: 2 + seed % 3]
    bias = fixed.get("bias", seed % 4 > 0)
    names = list(il.MLP(widths, bias=bias).shapes)
    rates = RATES_OF_LEAVES[seed % len(RATES_OF_LEAVES)]
    # 6 is the size of no leaf, so that rates of 6 steps are not taken for rates per element
    steps = 6 if rates == "leaf_steps" else 1 + seed % 3
    defaults = {
        "widths": widths,
        "bias": bias,
        "adapt_params": (None, names[1:], names[-1 - bias :])[seed // 5 % 3],
        "rates": rates,
        "steps": steps,
        "rows": 1 + seed % 5,
        "query_rows": 1 + seed % 4,
        "per_task": 0.0,
    }
    return random_problem(seed, **{**defaults, **fixed})


def kink_margin(problem):
    """Returns the smallest distance to a kink of relu, leaky_relu or huber along the inner loops:
    float32 takes the same branches as float64 if this is far above 1e-6."""
    inner = {k: problem.options[k] for k in ("inner_lr", "steps", "loss", "adapt_params")}
    path = il.reference.adapt(
        problem.params, problem.support, model=problem.model, stepwise=True, **inner
    )
    margin = float("inf")
    for x, y, count, _ in (problem.support, problem.query):
        for s in range(problem.options["steps"] + 1):
            h = torch.nan_to_num(x)
            used = torch.ones(x.shape[:2], dtype=torch.bool)
            if count is not None:
                used = torch.arange(x.shape[1]) < count[:, None]
            for layer in problem.model.layers:
                weight = None if layer.weight is None else path[layer.weight][:, s]
                if layer.kind == "linear":
                    z = torch.einsum("tni,toi->tno", h, weight)
                else:
                    z = F.layer_norm(h, (layer.inputs,), eps=layer.eps)
                    z = z if weight is None else z * weight[:, None]
                if layer.bias is not None:
                    z = z + path[layer.bias][:, s][:, None]
                if layer.activation in ("relu", "leaky_relu") and used.any():
                    margin = min(margin, float(z[used].abs().min()))
                h = activate(layer.activation, z, layer.slope)
            if problem.options["loss"] == "huber" and used.any():
                margin = min(margin, float(((h - y)[used].abs() - 1).abs().min()))
    return margin


def random_problem_away_from_kinks(seed, margin=1e-4, **fixed):
    """Returns a random problem that float32 follows on the same branches as float64; without layer
    norms unless asked, which magnify the rounding of rows that vary little."""
    for attempt in range(50):
        problem = random_problem(seed + 10_000 * attempt, **{"norms": False, **fixed})
        if kink_margin(problem) > margin:
            return problem
    raise AssertionError(f"no problem away from kinks near seed {seed}")


# ---------------------------------------------------------------- linear problems with known
# answers


@dataclass
class LinearTasks:
    """Tasks y = X theta_t + noise with half_mse and a linear model without bias (theory Results 2
    and 6)."""

    support: il.Batch
    query: il.Batch
    model: il.MLP


def linear_tasks(seed, tasks, rows, features):
    """Returns random linear tasks in float64."""
    generator = torch.Generator().manual_seed(seed)
    sides = []
    theta = torch.randn((tasks, features, 1), generator=generator, dtype=torch.float64)
    for n in (rows, rows + 2):
        x = torch.randn((tasks, n, features), generator=generator, dtype=torch.float64)
        noise = torch.randn((tasks, n, 1), generator=generator, dtype=torch.float64)
        sides.append(il.Batch(x, x @ theta + 0.5 * noise))
    return LinearTasks(*sides, il.MLP([features, 1], bias=False))


def linear_meta_answer(problem, theta, rate, steps):
    """Returns (loss [T], gradient of the mean loss [p], rate gradient) by linear algebra, for a
    scalar rate.

    One step maps theta to S theta + rate q1 with S = I - rate Q1, so the loss after any number of
    steps is a quadratic in theta whose gradient is (S^K)' (Q2 theta_K - q2).
    """
    x1, y1 = problem.support.x, problem.support.y
    x2, y2 = problem.query.x, problem.query.y
    moments = []
    for x, y in ((x1, y1), (x2, y2)):
        moments.append((x.mT @ x / x.shape[1], x.mT @ y / x.shape[1]))
    (q1, b1), (q2, b2) = moments
    eye = torch.eye(x1.shape[2], dtype=x1.dtype)
    step = eye - rate * q1  # S, symmetric
    phi = theta.reshape(1, -1, 1).expand(x1.shape[0], -1, 1)
    path = [phi]
    for _ in range(steps):
        path.append(step @ path[-1] + rate * b1)
    loss = 0.5 * (y2 - x2 @ path[-1]).square().mean(1)[:, 0]
    adjoint = q2 @ path[-1] - b2  # [T, p, 1]
    rate_grad = torch.zeros((), dtype=x1.dtype)
    for s in reversed(range(steps)):
        rate_grad = rate_grad - (adjoint * (q1 @ path[s] - b1)).sum(1).mean()
        adjoint = step @ adjoint
    return loss, adjoint.mean(0)[:, 0], rate_grad
