"""Random calls of the public operations, each made from its seed: valid arguments, a few spoilt.

`python tests/robustness/fuzz.py CALLS FIRST_SEED EVERY` makes them in this process, compares one
answer in EVERY with the torch back end's and prints one line of JSON. The seed of the
call in progress is kept in the file named by FUZZ_SEED_FILE, so that a crash can be repeated with
CALLS = 1.
"""

import faulthandler
import json
import os
import random
import resource
import sys
import traceback
import warnings

import torch
from spoil import SPOILERS

import innerloop as il
from innerloop.models import ACTIVATIONS
from innerloop.objectives import NAMES

OPERATIONS = ("meta_grad", "meta_grad", "meta_loss", "adapt", "hvp", "loss_and_grad", "predict")
DOCUMENTED = (ValueError, TypeError, NotImplementedError)
MEMORY_BYTES = 6 << 30
CALL_SECONDS = 60


def normal(draw, shape, dtype):
    """Returns standard normal numbers."""
    return torch.randn(shape, generator=draw.torch, dtype=torch.float64).to(dtype)


class Draw(random.Random):
    """Python's and torch's randomness from one seed."""

    def __init__(self, seed):
        super().__init__(seed)
        self.torch = torch.Generator().manual_seed(seed)


class Call:
    """One call: `arguments` by name, the first ones positional in `positional`."""

    def __init__(self, seed):
        draw = self.draw = Draw(seed)
        self.operation = draw.choice(OPERATIONS)
        self.dtype = draw.choice((torch.float32, torch.float64, torch.float64))
        self.loss = draw.choice(NAMES)
        widths = [draw.choice((1, 2, 3, 5, 8, 9)) for _ in range(draw.choice((2, 2, 3, 4)))]
        bias = draw.random() < 0.8
        self.model = il.MLP(widths, draw.choice(ACTIVATIONS), bias)
        self.tasks = draw.choice((0, 1, 2, 3, 5, 8, 17))
        self.steps = draw.choice((0, 1, 1, 2, 3))
        self.positional = []
        self.arguments = {"model": self.model, "backend": draw.choice(("auto", "fused"))}
        self.fill()
        self.allows_memory = False  # huge sizes may end in an allocation that fails
        self.is_wild = False  # values that overflow, or whose NaN may spread in either of two ways
        self.spoilt = []
        for _ in range(draw.choice((0, 0, 1, 1, 1, 2, 3))):
            spoiler = draw.choice(SPOILERS)
            if spoiler(self):
                self.spoilt.append(spoiler.__name__)

    def fill(self):
        """Draws valid arguments."""
        draw, arguments = self.draw, self.arguments
        params = {}
        share = draw.choice((0.0, 0.0, 0.5, 1.0))
        for name, shape in self.model.shapes.items():
            own = draw.random() < share
            shape = (self.tasks, *shape) if own else shape
            params[name] = 0.5 * normal(draw, shape, self.dtype)
        arguments["params"] = params
        self.positional.append("params")
        if self.operation == "predict":
            arguments["x"] = self.rows()[0]
            self.positional.append("x")
            return
        first = "support" if self.operation in ("meta_grad", "meta_loss", "adapt") else "batch"
        arguments[first] = self.rows()
        self.positional.append(first)
        arguments["loss"] = self.loss
        if self.operation == "hvp":
            arguments["vector"] = {k: normal(draw, v.shape, v.dtype) for k, v in params.items()}
            self.positional.append("vector")
        if first == "batch":
            return
        adapted = list(params)
        if draw.random() < 0.4:
            adapted = [name for name in adapted if draw.random() < 0.6]
            arguments["adapt_params"] = draw.choice((tuple, list, set))(adapted)
        arguments["inner_lr"] = self.rates(adapted)
        arguments["steps"] = self.steps
        if self.operation == "adapt":
            arguments["stepwise"] = draw.random() < 0.5
            return
        arguments["query"] = self.rows()
        self.positional.append("query")
        arguments["order"] = draw.choice((1, 2))
        if self.operation == "meta_grad":
            arguments["stepwise"] = draw.random() < 0.5
            if draw.random() < 0.3:
                arguments["task_weight"] = normal(draw, (self.tasks,), self.dtype)

    def rows(self):
        """Returns a batch (x, y[, count[, weight]])."""
        draw, tasks = self.draw, self.tasks
        rows = draw.choice((0, 1, 1, 2, 3, 5, 10))
        outputs = self.model.outputs
        x = normal(draw, (tasks, rows, self.model.inputs), self.dtype)
        if self.loss == "cross_entropy":
            y = torch.randint(outputs, (tasks, rows), generator=draw.torch)
        else:
            y = normal(draw, (tasks, rows, outputs), self.dtype)
            if outputs == 1 and draw.random() < 0.5:
                y = y[..., 0]
        batch = [x, y]
        if draw.random() < 0.4:
            batch.append(torch.randint(rows + 1, (tasks,), generator=draw.torch))
            if draw.random() < 0.5:
                batch.append(normal(draw, (tasks, rows), self.dtype))
        return tuple(batch)

    def rates(self, names):
        """Returns inner rates of some form."""
        draw = self.draw
        form = draw.choice(("number", "scalar", "steps", "dict", "dict"))
        if form == "number":
            return 0.1
        if form != "dict":
            return 0.1 * normal(draw, () if form == "scalar" else (self.steps,), self.dtype)
        rates = {}
        for name in names:
            shape = self.model.shapes[name]
            shape = draw.choice(((), (self.steps,), shape, (self.steps, *shape)))
            rates[name] = 0.1 * normal(draw, shape, self.dtype)
        return rates

    def make(self, **changes):
        """Returns the operation's result."""
        arguments = {**self.arguments, **changes}
        positional = [arguments.pop(name) for name in self.positional if name in arguments]
        return getattr(il, self.operation)(*positional, **arguments)

    def describe(self):
        """Returns the call in a few words."""
        return f"{self.operation} of {self.model!r}, T={self.tasks}, spoilt: {self.spoilt}"


def tensors_of(value):
    """Returns the tensors in a result, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for key in sorted(value) for t in tensors_of(value[key])]
    if isinstance(value, (tuple, list)):
        return [t for v in value for t in tensors_of(v)]
    return []


def complaint_about_error(call, error):
    """Returns what is wrong with an exception, or None if it is clear and documented."""
    text = str(error)
    if isinstance(error, MemoryError) or "allocate" in text or "overflow" in text.lower():
        return None if call.allows_memory else f"unexpected {type(error).__name__}: {text}"
    if not isinstance(error, DOCUMENTED):
        return f"undocumented {type(error).__name__}: {text}"
    if type(error) not in DOCUMENTED:
        return f"subclass {type(error).__name__}: {text}"
    if error.__cause__ or (error.__context__ and not error.__suppress_context__):
        return f"raised while handling another: {text}"
    named = text.startswith(
        (f"{call.operation}: ", f"{call.operation}() ", "target class", "count")
    )
    if not named:
        return f"does not name the operation: {type(error).__name__}: {text}"
    return None


def complaint_about_result(call, result):
    """Returns how a result differs from the torch back end's, or None."""
    try:
        expected = call.make(backend="torch")
    except Exception as error:
        if "nference tensor" in str(error):  # torch's autograd takes none; the fused kernels do
            return None
        return f"answered, but the torch back end raises {type(error).__name__}: {error}"
    actual, expected = tensors_of(result), tensors_of(expected)
    if [t.shape for t in actual] != [t.shape for t in expected]:
        return f"shapes {[t.shape for t in actual]} for {[t.shape for t in expected]}"
    for i, (got, want) in enumerate(zip(actual, expected, strict=True)):
        if got.dtype != want.dtype or got.device != want.device:
            return f"output {i}: {got.dtype} on {got.device} for {want.dtype} on {want.device}"
        if got.device.type == "meta" or call.is_wild or got.numel() == 0:
            continue
        got, want = got.detach().double(), want.detach().double()
        size = want.abs().max()
        if not bool(size < 1e8):
            continue
        error = (got - want).norm() / max(float(want.norm()), 1e-3)
        tolerance = 1e-8 if actual[0].dtype is torch.float64 else 2e-3
        if not bool(error <= tolerance):
            return f"output {i}: relative error {float(error):.1e}"
    return None


def check(seed, compares):
    """Makes one call. Returns (outcome, complaint or None)."""
    call = Call(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", il.FallbackWarning)
        try:
            result = call.make()
        except Exception as error:
            complaint = complaint_about_error(call, error)
            if complaint and not isinstance(error, DOCUMENTED):
                last = traceback.extract_tb(error.__traceback__)[-1]
                complaint += f" ({os.path.basename(last.filename)}:{last.lineno})"
            outcome = type(error).__name__
        else:
            complaint = complaint_about_result(call, result) if compares else None
            outcome = "compared" if compares else "answer"
    return outcome, f"seed {seed}: {call.describe()}: {complaint}" if complaint else None


def main(calls, first, every):
    """Makes the calls and prints {"calls", "outcomes", "complaints"}."""
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    torch.set_num_threads(2)
    seed_file = os.open(os.environ.get("FUZZ_SEED_FILE", os.devnull), os.O_WRONLY)
    outcomes, complaints = {}, []
    for seed in range(first, first + calls):
        os.pwrite(seed_file, b"%12d" % seed, 0)
        faulthandler.dump_traceback_later(CALL_SECONDS, exit=True)
        outcome, complaint = check(seed, seed % every == 0)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        if complaint:
            complaints.append(complaint)
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps({"calls": calls, "outcomes": outcomes, "complaints": complaints}))


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:4]))
