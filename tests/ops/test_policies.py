"""Policy objectives and products: fused and torch back ends against autograd of the formulas
written out, with every option of a batch.

Tolerances, relative to each leaf's norm: float64 1e-11, float32 1e-5 (tests/ops/test_meta_grad.py).
"""

import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import innerloop as il
from helpers import assert_close
from innerloop import _native

LOSSES = ("pg_loglik", "pg_ratio", "pg_clipped", "kl")
MODEL = il.GaussianMLP([3, 6, 5, 2], min_log_std=-1.0)


@pytest.fixture(params=["lanes", "rows", "torch"])
def backend(request):
    """Both engines of the CPU, and the torch back end."""
    if request.param == "torch":
        yield "torch"
        return
    _native.native().set_strategy(request.param)
    yield "fused"
    _native.native().set_strategy("auto")


def normal(generator, *shape):
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def make(seed, tasks=5, rows=9, model=MODEL, per_task=False, ragged=False, weighted=False):
    """Returns (params, support, query) in float64: rows of a policy near the parameters, ratios on
    both sides of the clip range, rows out of use full of NaN."""
    generator = torch.Generator().manual_seed(seed)
    params = {k: v.double() for k, v in model.init(generator).items()}
    params["log_std"] = 0.4 * normal(generator, model.outputs)
    params["log_std"][0] = -1.5  # below the floor
    if per_task:
        params = {k: v + 0.2 * normal(generator, tasks, *v.shape) for k, v in params.items()}
    sides = []
    for _ in range(2):
        x = normal(generator, tasks, rows, model.inputs)
        mean = il.predict(params, x, model=model, backend="torch")
        mean = mean + 0.1 * normal(generator, *mean.shape)
        log_std = 0.2 * normal(generator, tasks, model.outputs)
        action = mean + 0.5 * normal(generator, *mean.shape)
        advantage = normal(generator, tasks, rows)
        advantage[:, 0] = 0
        count = weight = None
        if ragged:
            count = torch.randint(1, rows + 1, (tasks,), generator=generator)
            unused = torch.arange(rows) >= count[:, None]
            for value in (x, action, mean, advantage):
                value[unused] = float("nan")
        if weighted:
            weight = torch.rand((tasks, rows), generator=generator).double()
            weight[:, 1] = 0
            action[:, 1] = float("inf")
        sides.append(il.PolicyBatch(x, action, advantage, mean, log_std, count, weight))
    return params, *sides


def written_out(params, batch, task, loss, clip=0.3, model=MODEL):
    """Returns one task's objective as its definition says, differentiably."""
    rows = batch.x.shape[1] if batch.count is None else int(batch.count[task])
    total = torch.zeros((), dtype=torch.float64)
    used = [i for i in range(rows) if batch.weight is None or batch.weight[task, i] != 0]
    for i in used:
        h = batch.x[task, i]
        for layer in model.layers:
            h = params[layer.weight] @ h + params[layer.bias]
            h = torch.tanh(h) if layer.activation == "tanh" else h
        s = params["log_std"].clamp(min=model.min_log_std)
        new = torch.distributions.Normal(h, s.exp())
        old = torch.distributions.Normal(batch.mean[task, i], batch.log_std[task].exp())
        log = new.log_prob(batch.action[task, i]).sum()
        ratio = (log - old.log_prob(batch.action[task, i]).sum()).exp()
        a = batch.advantage[task, i]
        value = {
            "pg_loglik": -a * log,
            "pg_ratio": -a * ratio,
            "pg_clipped": -torch.minimum(a * ratio, a * ratio.clamp(1 - clip, 1 + clip)),
            "kl": torch.distributions.kl_divergence(old, new).sum(),
        }[loss]
        total = total + value * (1 / rows if batch.weight is None else batch.weight[task, i])
    return total


def leaves_of(params, task):
    """Returns one task's leaves, to be differentiated."""
    return {
        k: (v[task] if v.ndim > len(MODEL.shapes[k]) else v).clone().requires_grad_()
        for k, v in params.items()
    }


OPTIONS = {
    "plain": {},
    "per task": {"per_task": True},
    "ragged": {"ragged": True},
    "weighted": {"weighted": True, "ragged": True},
    "many": {"tasks": 19, "rows": 21},
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_value_gradient_and_hessian(backend, loss, options):
    params, batch, _ = make(len(loss), **options)
    vector = {k: normal(torch.Generator().manual_seed(1), *s) for k, s in MODEL.shapes.items()}
    common = {"model": MODEL, "loss": loss, "backend": backend}
    value, grad = il.loss_and_grad(params, batch, **common)
    product = il.hvp(params, batch, vector, **common)
    for task in range(min(len(batch.x), 5)):
        leaves = leaves_of(params, task)
        expected = written_out(leaves, batch, task, loss)
        grads = torch.autograd.grad(expected, list(leaves.values()), create_graph=True)
        slope = sum((g * vector[k]).sum() for k, g in zip(leaves, grads, strict=True))
        curved = torch.autograd.grad(slope, list(leaves.values()), allow_unused=True)
        assert_close(value[task], expected.detach(), 1e-11, "value")
        for name, g, c in zip(leaves, grads, curved, strict=True):
            assert_close(grad[name][task], g.detach(), 1e-11, f"gradient {name}")
            c = torch.zeros_like(g) if c is None else c
            assert_close(product[name][task], c.detach(), 1e-10, f"product {name}")


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("query_loss", LOSSES)
@pytest.mark.parametrize("loss", LOSSES)
def test_meta_gradient(loss, query_loss, order):
    params, support, query = make(3, ragged=True, weighted=order == 1)
    options = {
        "model": MODEL, "inner_lr": {k: 0.05 * (i + 1) for i, k in enumerate(MODEL.names)},
        "steps": 2, "loss": loss, "query_loss": query_loss, "order": order, "kl_coefficient": 0.7,
        "clip": 0.2, "stepwise": True,
    }  # fmt: skip
    results = {
        b: il.meta_grad(params, support, query, backend=b, **options) for b in ("fused", "torch")
    }
    for name in ("loss", "grad", "inner_lr_grad", "support_loss", "query_loss"):
        got, want = (getattr(results[b], name) for b in ("fused", "torch"))
        assert_close(got, want, 1e-11, name)


def test_promp_written_out():
    """One inner step on the ratio, the clipped objective, and the KL at the initial parameters."""
    params, support, query = make(8)
    leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
    total = torch.zeros((), dtype=torch.float64)
    for task in range(5):
        inner = written_out(leaves, support, task, "pg_ratio")
        grads = torch.autograd.grad(inner, list(leaves.values()), create_graph=True)
        adapted = {k: v - 0.1 * g for (k, v), g in zip(leaves.items(), grads, strict=True)}
        outer = written_out(adapted, query, task, "pg_clipped")
        total = total + (outer + 0.5 * written_out(leaves, support, task, "kl")) / 5
    expected = torch.autograd.grad(total, list(leaves.values()))
    options = {"model": MODEL, "inner_lr": 0.1, "steps": 1, "loss": "pg_ratio"}
    options |= {"query_loss": "pg_clipped", "kl_coefficient": 0.5}
    found = il.meta_grad(params, support, query, backend="fused", **options)
    assert_close(found.loss.mean(), total.detach(), 1e-11, "loss")
    for name, want in zip(leaves, expected, strict=True):
        assert_close(found.grad[name], want, 1e-11, name)
    tracked = {k: v.clone().requires_grad_() for k, v in params.items()}
    loss = il.meta_loss(tracked, support, query, **options).mean()
    for name, g in zip(tracked, torch.autograd.grad(loss, list(tracked.values())), strict=True):
        assert_close(g, found.grad[name], 1e-11, name)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_fisher_product_is_the_hessian_of_the_kl_at_itself(backend, options):
    params, batch, _ = make(4, **options)
    generator = torch.Generator().manual_seed(5)
    vector = {k: normal(generator, *shape) for k, shape in MODEL.shapes.items()}
    found = il.fisher_product(params, batch, vector, model=MODEL, backend=backend)
    x = batch.x.nan_to_num()
    mean = il.predict(params, x, model=MODEL, backend="torch")
    log_std = params["log_std"].clamp(min=-1.0).expand(len(x), 2)
    itself = batch._replace(x=x, mean=mean, log_std=log_std, action=mean)
    expected = il.hvp(params, itself, vector, model=MODEL, loss="kl", backend="torch")
    assert_close(found, expected, 1e-11, "product")


@pytest.mark.parametrize("order", [1, 2])
def test_meta_fisher_product_is_the_hessian_of_the_adapted_kl(backend, order):
    params, support, query = make(6)
    options = {"model": MODEL, "inner_lr": 0.1}
    adapted = il.adapt(params, support, steps=1, loss="pg_loglik", **options)
    query = query._replace(
        mean=il.predict(adapted, query.x, model=MODEL), log_std=adapted["log_std"].clamp(min=-1.0)
    )
    vector = {k: normal(torch.Generator().manual_seed(7), *s) for k, s in MODEL.shapes.items()}
    found = il.meta_fisher_product(
        params, support, query, vector, backend=backend, order=order, **options
    )
    if order == 1:
        fisher = il.fisher_product(adapted, query, vector, model=MODEL, backend="torch")
        assert_close(found, {k: v.mean(0) for k, v in fisher.items()}, 1e-11, "product")
        return
    leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
    moved = il.meta_loss(
        leaves, support, query, steps=1, loss="pg_loglik", query_loss="kl", backend="torch",
        **options,
    ).mean()  # fmt: skip
    grads = torch.autograd.grad(moved, list(leaves.values()), create_graph=True)
    slope = sum((g * vector[k]).sum() for k, g in zip(leaves, grads, strict=True))
    expected = torch.autograd.grad(slope, list(leaves.values()))
    assert_close(found, dict(zip(leaves, expected, strict=True)), 1e-10, "product")


BATCHES = {
    "plain": {},
    "ragged": {"ragged": True},
    "weighted": {"weighted": True},
    "stacked": {"tasks": 50, "rows": 5},
    "one task": {"tasks": 1, "rows": 40},
}


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("case", BATCHES.values(), ids=BATCHES)
def test_products_that_share_their_tapes_are_the_single_ones(backend, case, order):
    params, support, query = make(11, **case)
    options = {"model": MODEL, "inner_lr": 0.1, "order": order, "backend": backend}
    product = il.meta_fisher(params, support, query, **options)
    generator = torch.Generator().manual_seed(12)
    for _ in range(3):
        vector = {k: normal(generator, *s) for k, s in MODEL.shapes.items()}
        found = product(vector)
        expected = il.meta_fisher_product(params, support, query, vector, **options)
        for name, leaf in expected.items():
            assert found[name].equal(leaf), name


def test_a_shared_tape_stays_as_it_was_laid_out():
    params, support, query = make(13)
    vector = {k: normal(torch.Generator().manual_seed(14), *s) for k, s in MODEL.shapes.items()}
    options = {"model": MODEL, "inner_lr": 0.1, "backend": "fused"}
    cpu = _native.native()
    cpu.set_strategy("rows")
    product = il.meta_fisher(params, support, query, **options)
    first = product(vector)
    cpu.set_strategy("lanes")
    second = product(vector)
    cpu.set_strategy("auto")
    for name, leaf in first.items():
        assert second[name].equal(leaf), name


def test_products_that_share_their_tapes_from_several_python_threads():
    params, support, query = make(15, tasks=8, rows=60)
    options = {"model": MODEL, "inner_lr": 0.1, "backend": "fused"}
    generator = torch.Generator().manual_seed(16)
    vectors = [{k: normal(generator, *s) for k, s in MODEL.shapes.items()} for _ in range(12)]
    product = il.meta_fisher(params, support, query, **options)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(product, vectors))
    for vector, each in zip(vectors, found, strict=True):
        expected = il.meta_fisher_product(params, support, query, vector, **options)
        for name, leaf in expected.items():
            assert each[name].equal(leaf), name


def test_meta_fisher_where_something_else_than_the_kernel_runs():
    params, support, query = make(17)
    vector = {k: normal(torch.Generator().manual_seed(18), *s) for k, s in MODEL.shapes.items()}
    options = {"model": MODEL, "inner_lr": 0.1, "backend": "fused"}
    expected = il.meta_fisher_product(params, support, query, vector, **options)
    product = il.meta_fisher(params, support, query, **options)
    mapped = torch.vmap(product)({k: torch.stack([v, -v]) for k, v in vector.items()})
    for name, leaf in expected.items():
        assert_close(mapped[name], torch.stack([leaf, -leaf]), 1e-12, name)
    leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
    recorded = il.meta_fisher(leaves, support, query, **options)(vector)
    with pytest.raises(RuntimeError, match="cannot be differentiated"):
        sum(v.sum() for v in recorded.values()).backward()


def test_meta_fisher_refuses_what_does_not_fit():
    params, support, query = make(19)
    options = {"model": MODEL, "inner_lr": 0.1}
    with pytest.raises(TypeError, match=r"meta_fisher: support must be an innerloop.PolicyBatch"):
        il.meta_fisher(params, support.x, query, **options)
    product = il.meta_fisher(params, support, query, **options)
    wrong = {k: v for k, v in params.items() if k != "log_std"}
    with pytest.raises(ValueError, match=r"vector must hold 'log_std'"):
        product(wrong)


@pytest.mark.parametrize("loss", LOSSES)
def test_float32(loss):
    params, support, query = make(9)
    expected = il.meta_grad(
        params, support, query, model=MODEL, inner_lr=0.1, steps=1, loss=loss, query_loss=loss,
        backend="torch",
    )  # fmt: skip
    narrow = [
        il.PolicyBatch(*(None if v is None else v.float() for v in b)) for b in (support, query)
    ]
    found = il.meta_grad(
        {k: v.float() for k, v in params.items()}, *narrow, model=MODEL, inner_lr=0.1, steps=1,
        loss=loss, query_loss=loss, backend="fused",
    )  # fmt: skip
    assert_close(found.grad, expected.grad, 1e-5, "grad")


def test_equal_bits_for_every_number_of_threads():
    params, support, query = make(10, tasks=40, rows=15)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        result = il.meta_grad(
            params, support, query, model=MODEL, inner_lr=0.1, steps=1, loss="pg_ratio",
            query_loss="pg_clipped", backend="fused",
        )  # fmt: skip
        found.append(result.grad)
    torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(other[k], v) for k, v in found[0].items())


def test_an_advantage_of_zero_stops_an_infinite_ratio(backend):
    params, batch, _ = make(11)
    batch.action[:, 0] = 1e6
    batch.mean[:, 0] = -1e6
    for loss in ("pg_loglik", "pg_ratio", "pg_clipped"):
        value, grad = il.loss_and_grad(params, batch, model=MODEL, loss=loss, backend=backend)
        assert torch.isfinite(value).all()
        assert all(torch.isfinite(g).all() for g in grad.values())


def test_a_clipped_row_with_an_infinite_ratio_has_no_gradient(backend):
    params, batch, _ = make(12, rows=1)
    batch.advantage[:] = 1.0
    batch.action[:] = il.predict(params, batch.x, model=MODEL)
    batch.mean[:] = 1e4  # log ratio far above 709
    value, grad = il.loss_and_grad(params, batch, model=MODEL, loss="pg_clipped", backend=backend)
    torch.testing.assert_close(value, torch.full_like(value, -1.3))
    assert all(not g.any() for g in grad.values())


def test_kl_of_a_policy_with_itself_is_zero(backend):
    params, batch, _ = make(13)
    mean = il.predict(params, batch.x, model=MODEL)
    itself = batch._replace(mean=mean, log_std=params["log_std"].clamp(min=-1.0))
    found = il.kl(params, itself, model=MODEL, backend=backend)
    torch.testing.assert_close(found, torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-15)
    expected = written_out(leaves_of(params, 0), batch, 0, "kl").detach()
    torch.testing.assert_close(il.kl(params, batch, model=MODEL, backend=backend)[0], expected)


@pytest.mark.parametrize("adapt", [["log_std"], ["2.bias"], ["0.weight", "log_std"]], ids=str)
def test_partly_adapted_policies(adapt):
    params, support, query = make(14)
    options = {
        "model": MODEL, "inner_lr": 0.1, "steps": 3, "loss": "pg_ratio", "query_loss": "pg_ratio",
        "adapt_params": adapt, "momentum": 0.5,
    }  # fmt: skip
    got, want = (
        il.meta_grad(params, support, query, backend=b, **options) for b in ("fused", "torch")
    )
    assert_close(got.grad, want.grad, 1e-11, "grad")
    assert_close(got.inner_lr_grad, want.inner_lr_grad, 1e-11, "inner_lr_grad")


def test_plans_and_descriptions():
    from innerloop.models import from_key

    assert MODEL.network != MODEL
    assert MODEL.network != MODEL
    again = from_key(MODEL.key)
    assert (again.free, again.parameters, len(again.leaves)) == (2, MODEL.parameters, 7)
    assert MODEL.leaves[-1].name == "log_std"
    assert il.backend_for(MODEL, loss="pg_ratio").backend == "fused"


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"model": il.MLP([3, 2])}, TypeError, "model must be an innerloop.GaussianMLP"),
        ({"loss": "mse"}, ValueError, "loss must be pg_loglik, pg_ratio, pg_clipped or kl"),
        ({"clip": 0.0}, ValueError, "clip must be finite and above 0"),
        ({"clip": "0.3"}, TypeError, "clip must be a number"),
        ({"kl_coefficient": float("nan")}, ValueError, "kl_coefficient must be finite"),
        ({"query_loss": "pg"}, ValueError, "query_loss must be one of"),
    ],
    ids=["model", "loss", "clip", "clip kind", "coefficient", "query loss"],
)
def test_options_that_do_not_fit_raise(changes, error, text):
    params, support, query = make(15)
    options = {"model": MODEL, "inner_lr": 0.1, "steps": 1, "loss": "pg_ratio", **changes}
    with pytest.raises(error, match=f"meta_grad: {text}"):
        il.meta_grad(params, support, query, **options)


@pytest.mark.parametrize("member", ["action", "advantage", "mean", "log_std", "count", "weight"])
def test_members_that_do_not_fit_raise(member):
    params, batch, _ = make(16, ragged=True, weighted=True)
    bad = batch._replace(**{member: getattr(batch, member)[:3]})
    with pytest.raises(ValueError, match=f"loss_and_grad: batch {member} must have shape"):
        il.loss_and_grad(params, bad, model=MODEL, loss="pg_ratio")
    narrow = getattr(batch, member).to(torch.float16)
    with pytest.raises(TypeError, match=f"batch {member}"):
        il.loss_and_grad(params, batch._replace(**{member: narrow}), model=MODEL, loss="kl")


def test_other_rows_and_models_are_told_apart():
    params, batch, _ = make(17)
    with pytest.raises(TypeError, match=r"hvp: batch must be an innerloop\.PolicyBatch"):
        il.hvp(params, (batch.x, batch.mean), params, model=MODEL, loss="kl")
    model = il.MLP([3, 2])
    with pytest.raises(ValueError, match="kl_coefficient must be 0 unless the model"):
        il.meta_grad(
            model.init(), (batch.x.float(), batch.mean.float()), (batch.x, batch.mean),
            model=model, inner_lr=0.1, steps=1, kl_coefficient=1.0,
        )  # fmt: skip


def test_what_products_keep_goes_back_with_their_function():
    """At once, not when the garbage collector comes: activations of thousands of rows."""
    model = il.GaussianMLP([4, 16, 2])
    params = model.init(torch.Generator().manual_seed(0))
    x, row = torch.randn(3, 2000, 4), torch.randn(3, 2000, 2)
    batch = il.PolicyBatch(x, row, torch.randn(3, 2000), row, torch.zeros(2))
    gc.collect()
    gc.disable()
    try:
        for _ in range(2):
            product = il.meta_fisher(params, batch, batch, model=model, inner_lr=0.1)
            product(params)
            held = il.workspace_bytes()
            del product
            kept = 2 * 3 * 2000 * 2 * (16 + 2) * 4  # numbers of both sides, at least
            assert il.workspace_bytes() >= held + kept
    finally:
        gc.enable()


def test_small_calls_leave_large_workspaces_alone():
    model = il.MLP([4, 64, 2])
    params = model.init(torch.Generator().manual_seed(0))

    def call(tasks, rows):
        side = il.Batch(torch.randn(tasks, rows, 4), torch.randn(tasks, rows, 2))
        il.meta_grad(params, side, side, model=model, inner_lr=0.1, steps=2, backend="fused")

    il.release_workspace()
    call(200, 100)
    large = il.workspace_bytes()
    assert large > 1 << 21
    for _ in range(3):
        call(2, 3)
        call(200, 100)
    assert il.workspace_bytes() < large * 1.5 + (1 << 20)


@pytest.mark.parametrize("changed", ["parameter", "rows", "actions", "rate"])
def test_what_changes_between_products_is_refused(changed):
    model = il.GaussianMLP([4, 6, 2])
    params = model.init(torch.Generator().manual_seed(0))
    x, row = torch.randn(3, 20, 4), torch.randn(3, 20, 2)
    batch = il.PolicyBatch(x, row, torch.randn(3, 20), row.clone(), torch.zeros(2))
    rates = {name: torch.tensor(0.1) for name in params}
    product = il.meta_fisher(params, batch, batch, model=model, inner_lr=rates)
    product(params)
    of = {"parameter": params["0.weight"], "rows": x, "actions": row, "rate": rates["0.weight"]}
    of[changed].add_(0.1)
    with pytest.raises(RuntimeError, match="one was changed in place"):
        product({k: v.clone() for k, v in params.items()})
