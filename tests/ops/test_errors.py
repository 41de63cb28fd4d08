# ruff: noqa: E501 (one row of the table a line)
"""Bad arguments: each condition raises one exception that names operation, argument and value."""

import pytest
import torch

import innerloop as il
from problems import LOSSES

F64 = torch.float64


def good():
    """Returns the arguments of a valid call."""
    model = il.MLP([3, 4, 2])
    return {
        "params": model.init(torch.Generator().manual_seed(0)),
        "support": (torch.zeros(5, 4, 3), torch.zeros(5, 4, 2)),
        "query": (torch.zeros(5, 6, 3), torch.zeros(5, 6, 2)),
        "model": model,
        "inner_lr": 0.1,
        "steps": 2,
    }


def with_leaf(name, value):
    """Returns a change of one parameter."""
    return lambda call: call["params"].__setitem__(name, value)


def put(**values):
    """Returns a change of whole arguments."""
    return lambda call: call.update(values)


X, Y = torch.zeros(5, 4, 3), torch.zeros(5, 4, 2)

BAD = {
    "loss": (put(loss="l1"), ValueError, r"loss must be one of .* \(got 'l1'\)"),
    "loss class": (put(loss=torch.nn.MSELoss), TypeError, r"loss must be one of .*, a torch loss or a callable .* \(got the class MSELoss\)"),
    "loss kind": (put(loss=2), TypeError, r"loss must be one of .* \(got 2\)"),
    "loss arguments": (put(loss=torch.nn.TripletMarginLoss()), TypeError,
                       r"loss must take the outputs and targets .*\(got TripletMarginLoss\(anchor, positive, negative\)\)"),
    "broadcast": (put(loss=torch.nn.functional.mse_loss, support=(X, Y[..., 0])), ValueError, r"support y must have shape"),
    "steps": (put(steps=-1), ValueError, r"steps must be at least 0 \(got -1\)"),
    "steps kind": (put(steps=1.5), TypeError, r"steps must be an int \(got 1.5\)"),
    "steps bool": (put(steps=True), TypeError, r"steps must be an int \(got True\)"),
    "order": (put(order=3), ValueError, r"order must be 1 .* \(got 3\)"),
    "backend": (put(backend="cuda"), ValueError, r"backend must be .* \(got 'cuda'\)"),
    "stepwise": (put(stepwise="yes"), TypeError, r"stepwise must be True or False \(got 'yes'\)"),
    "model": (put(model="mlp"), TypeError, r"model must be an innerloop.MLP .* \(got str\)"),
    "params kind": (put(params=[X]), TypeError, r"params must be a dict of tensors \(got list\)"),
    "params missing": (lambda c: c["params"].pop("1.bias"), ValueError, r"params must hold '1.bias'"),
    "params extra": (with_leaf("2.weight", X), ValueError, r"params must hold the model's .* \['2.weight'\]"),
    "leaf kind": (with_leaf("0.bias", 1.0), TypeError, r"params\['0.bias'\] must be a tensor \(got float\)"),
    "leaf shape": (with_leaf("0.bias", torch.zeros(5)), ValueError,
                   r"params\['0.bias'\] must have shape \[4\] or, per task, \[5, 4\] \(got \[5\]\)"),
    "leaf tasks": (with_leaf("0.bias", torch.zeros(6, 4)), ValueError, r"\[5, 4\] \(got \[6, 4\]\)"),
    "leaf dtype": (with_leaf("0.bias", torch.zeros(4, dtype=F64)), TypeError,
                   r"params\['0.bias'\] must have the dtype of .*float32 \(got torch.float64\)"),
    "leaf sparse": (with_leaf("0.bias", torch.zeros(4).to_sparse()), TypeError,
                    r"must be a dense tensor \(got torch.sparse_coo\)"),
    "half": (lambda c: c.update(params={k: v.half() for k, v in c["params"].items()}), TypeError,
             r"must be float32 or float64 \(got torch.float16\)"),
    "integers": (lambda c: c.update(params={k: v.long() for k, v in c["params"].items()}), TypeError,
                 r"must be float32 or float64 \(got torch.int64\)"),
    "batch kind": (put(support=X), TypeError, r"support must be a tuple \(x, y.* \(got Tensor of length 5\)"),
    "batch loss": (put(support=X.sum()), TypeError, r"support must be a tuple .*; the loss is computed inside"),
    "tasks in a list": (put(support=[(X[0], Y[0])] * 2), TypeError, r"\(got tasks\); innerloop\.batch\(tasks\) makes one"),
    "batch list": (put(support=[(X[0], Y[0])] * 5), TypeError, r"list of length 5\); innerloop\.batch\(tasks\) makes one"),
    "batch length": (put(query=(X,)), TypeError, r"query must be a tuple .* \(got tuple of length 1\)"),
    "x kind": (put(support=(None, Y)), TypeError, r"support x must be a tensor \(got NoneType\)"),
    "x features": (put(support=(X[..., :2], Y)), ValueError,
                   r"support x must have shape \[5, N, 3\] to fit the model \(got \[5, 4, 2\]\)"),
    "x rank": (put(support=(X[0], Y)), ValueError, r"support x must have shape .* \(got \[4, 3\]\); tasks are the first axis: x\[None\]"),
    "x scalar": (put(support=(torch.tensor(1.0), Y)), ValueError, r"support x must have shape \[T, N, ...\]"),
    "x dtype": (put(support=(X.double(), Y)), TypeError, r"support x must have the dtype of params"),
    "x nested": (put(support=(torch.nested.nested_tensor([X[0], X[1, :2]], layout=torch.jagged), Y)),
                 TypeError, r"support x must be a dense tensor"),
    "query tasks": (put(query=(X[:4], Y[:4])), ValueError, r"query x must have shape \[5, N, 3\]"),
    "y shape": (put(support=(X, Y[..., 0])), ValueError,
                r"support y must have shape \[5, 4, 2\] to fit the model \(got \[5, 4\]\)"),
    "y rows": (put(support=(X, Y[:, :3])), ValueError, r"support y .* \(got \[5, 3, 2\]\)"),
    "y integers": (put(support=(X, Y.long())), TypeError, r"support y must be floating point for mse"),
    "y dtype": (put(query=(X, Y.double())), TypeError, r"query y must have the dtype of params"),
    "classes dtype": (put(loss="cross_entropy"), TypeError, r"support y must be int64 classes"),
    "classes int32": (put(loss="cross_entropy", support=(X, Y[..., 0].int())), TypeError, r"\(got torch.int32\)"),
    "classes shape": (put(loss="cross_entropy", support=(X, Y.long())), ValueError, r"support y must have shape \[5, 4\]"),
    "count dtype": (put(support=(X, Y, torch.ones(5))), TypeError, r"support count must be int64"),
    "count shape": (put(support=(X, Y, torch.ones(4).long())), ValueError, r"support count must have shape \[5\]"),
    "count kind": (put(support=(X, Y, [1, 2, 3, 4, 4])), TypeError, r"support count must be a tensor \(got list\)"),
    "weight shape": (put(support=(X, Y, None, torch.ones(5))), ValueError, r"support weight must have shape \[5, 4\]"),
    "weight dtype": (put(query=(X, Y, None, torch.ones(5, 4, dtype=F64))), TypeError, r"query weight must have the dtype"),
    "weight integers": (put(query=(X, Y, None, torch.ones(5, 4).long())), TypeError, r"query weight must be floating point"),
    "task weight": (put(task_weight=torch.ones(4)), ValueError, r"task_weight must have shape \[5\], one per task \(got \[4\]\)"),
    "task weight dtype": (put(task_weight=torch.ones(5, dtype=F64)), TypeError, r"task_weight must have the dtype"),
    "rate kind": (put(inner_lr="0.1"), TypeError, r"inner_lr must be a number.* \(got str\)"),
    "rate bool": (put(inner_lr=True), TypeError, r"inner_lr must be a number.* \(got bool\)"),
    "rate shape": (put(inner_lr=torch.ones(3)), ValueError, r"inner_lr must have shape \[\] or \[2\], one per step \(got \[3\]\)"),
    "rate dtype": (put(inner_lr=torch.ones((), dtype=F64)), TypeError, r"inner_lr must have the dtype of params"),
    "rate names": (put(inner_lr={"0.weight": 0.1}), ValueError, r"inner_lr must have a rate for exactly the adapted"),
    "rate extra": (put(inner_lr={"0.weight": 0.1, "0.bias": 0.1}, adapt_params=["0.bias"]), ValueError, r"exactly the adapted"),
    "leaf rate shape": (put(inner_lr={"0.bias": torch.ones(5)}, adapt_params=["0.bias"]), ValueError,
                        r"inner_lr\['0.bias'\] must have shape \[\], \[2\], \[4\] or \[2, 4\] \(got \[5\]\)"),
    "leaf rate kind": (put(inner_lr={"0.bias": None}, adapt_params=["0.bias"]), TypeError,
                       r"inner_lr\['0.bias'\] must be a number or a tensor \(got NoneType\)"),
    "adapt name": (put(adapt_params=["head"]), ValueError, r"adapt_params must name parameters .* \(got 'head'\)"),
    "adapt string": (put(adapt_params="0.bias"), TypeError, r"adapt_params must be a sequence of names"),
    "device": (put(query=(X.to("meta"), Y.to("meta"))), ValueError, r"query x must be on the device of params, cpu \(got meta\)"),
    "leaf device": (with_leaf("1.bias", torch.zeros(2, device="meta")), ValueError, r"params\['1.bias'\] must be on the device"),
}  # fmt: skip


def meta_grad(call):
    """Returns meta_grad of a dict of arguments."""
    rest = {k: v for k, v in call.items() if k not in ("params", "support", "query")}
    return il.meta_grad(call["params"], call["support"], call["query"], **rest)


@pytest.mark.parametrize("backend", ["fused", "torch"])
@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_bad_arguments(name, backend):
    change, kind, text = BAD[name]
    call = {**good(), "backend": backend}
    meta_grad(call)  # a good call of the same kind is remembered; a bad one must not pass for it
    change(call)
    with pytest.raises(kind, match=text) as error:
        meta_grad(call)
    assert str(error.value).startswith("meta_grad: ")


def test_good_arguments_are_good():
    call = good()
    assert il.meta_grad(
        call.pop("params"), call.pop("support"), call.pop("query"), **call
    ).loss.shape == (5,)


@pytest.mark.parametrize("backend", ["fused", "torch"])
@pytest.mark.parametrize("wrong", [-1, 2, 10**15, -(2**62)])
def test_classes_out_of_range(backend, wrong):
    call = {**good(), "loss": "cross_entropy", "backend": backend}
    y = torch.zeros(5, 4, dtype=torch.int64)
    y[3, 2] = wrong
    call["support"] = (X, y)
    call["query"] = (X, torch.zeros(5, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\[0, 2\)"):
        meta_grad(call)


@pytest.mark.parametrize("backend", ["fused", "torch"])
@pytest.mark.parametrize("wrong", [-1, 5, 2**62])
def test_counts_out_of_range(backend, wrong):
    call = {**good(), "backend": backend}
    call["support"] = (X, Y, torch.tensor([1, 2, wrong, 4, 4]))
    with pytest.raises(ValueError, match=r"count"):
        meta_grad(call)


@pytest.mark.parametrize("loss", LOSSES)
def test_single_output_takes_targets_without_an_axis(loss):
    model = il.MLP([3, 4, 1])
    params = model.init(torch.Generator().manual_seed(0), dtype=F64)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 4, 3, generator=generator, dtype=F64)
    if loss == "cross_entropy":
        y = torch.zeros(5, 4, dtype=torch.int64)
        losses, _ = il.loss_and_grad(params, (x, y), model=model, loss=loss)
        assert torch.equal(losses, torch.zeros(5, dtype=F64))
        return
    y = torch.rand(5, 4, generator=generator, dtype=F64)
    results = [
        il.loss_and_grad(params, (x, target), model=model, loss=loss, backend=backend)[0]
        for target in (y, y[..., None])
        for backend in ("fused", "torch")
    ]
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


def test_not_a_number_stays_in_its_task():
    call = good()
    x = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(2))
    x[2, 1, 0] = float("nan")
    call["support"] = (x, Y)
    for backend in ("fused", "torch"):
        loss = il.meta_loss(
            call["params"],
            call["support"],
            call["query"],
            model=call["model"],
            inner_lr=0.1,
            steps=1,
            backend=backend,
        )
        assert loss.isnan().tolist() == [False, False, True, False, False]
