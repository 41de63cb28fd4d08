"""The choice of back end is visible and queryable, and any nn.Module runs."""

import warnings

import pytest
import torch
from torch import nn

import innerloop as il
from helpers import assert_close
from innerloop import _kernels, _preparation


class Residual(nn.Module):
    """A module that vmap can take and the kernels cannot."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.second(x + torch.tanh(self.first(x)))


class Branching(Residual):
    """A module that vmap cannot take: Python looks at the data."""

    def forward(self, x):
        return super().forward(x) if float(x.detach().sum()) < 1e9 else x


class OldFunction(torch.autograd.Function):
    """A Function without setup_context, which torch.func refuses."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, cotangent):
        return cotangent * ctx.saved_tensors[0].cos()


class WithOldFunction(Residual):
    """A module with somebody's autograd.Function in it."""

    def forward(self, x):
        return OldFunction.apply(super().forward(x))


class WithSine(Residual):
    """The same with torch's own sine, called in a way that is not read."""

    def forward(self, x):
        return torch.ops.aten.sin.default(super().forward(x))


class Tied(nn.Module):
    """A module in which one parameter appears twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))[:, :2]


@pytest.fixture(autouse=True)
def forget_warnings():
    """Each test sees the warnings that come once per kind of module."""
    from innerloop import _memory, _tasks

    _memory._KNOWN.clear()
    _preparation._WARNED.clear()
    _tasks._WARNED.clear()


def data(seed=0, tasks=3):
    """Returns support and query for modules from 3 to 2 values."""
    generator = torch.Generator().manual_seed(seed)
    sides = []
    for rows in (4, 5):
        x = torch.randn(tasks, rows, 3, generator=generator, dtype=torch.float64)
        sides.append((x, torch.randn(tasks, rows, 2, generator=generator, dtype=torch.float64)))
    return sides


def params_of(module):
    """Returns a module's parameters, detached."""
    return {k: v.detach() for k, v in module.named_parameters()}


def loop(module, support, query, order=2, steps=2, rate=0.1):
    """Returns the meta-gradient of the mean loss by a plain loop."""
    params = dict(module.named_parameters())
    total = 0
    for t in range(len(support[0])):
        phi = params
        for _ in range(steps):
            loss = nn.functional.mse_loss(
                torch.func.functional_call(module, phi, (support[0][t],)), support[1][t]
            )
            grads = torch.autograd.grad(loss, list(phi.values()), create_graph=order == 2)
            phi = {k: v - rate * g for (k, v), g in zip(phi.items(), grads, strict=True)}
        total = total + nn.functional.mse_loss(
            torch.func.functional_call(module, phi, (query[0][t],)), query[1][t]
        )
    return dict(
        zip(
            params, torch.autograd.grad(total / len(support[0]), list(params.values())), strict=True
        )
    )


@pytest.mark.parametrize("kind", [Residual, Branching, WithOldFunction, Tied])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.filterwarnings("ignore::innerloop.FallbackWarning")
def test_any_module(kind, order):
    torch.manual_seed(0)
    module = kind().double()
    support, query = data()
    options = {"model": module, "inner_lr": 0.1, "steps": 2, "order": order}
    expected = loop(module, support, query, order)
    for _ in range(2):  # the second call knows that vmap is no use
        result = il.meta_grad(params_of(module), support, query, **options)
        assert result.backend == ("batched" if kind in (Residual, Tied) else "torch")
        assert_close(result.grad, expected, 1e-12)
        assert not any(v.requires_grad for v in result.grad.values())
    params = dict(module.named_parameters())
    il.meta_loss(params, support, query, **options).mean().backward()
    assert_close({k: v.grad for k, v in params.items()}, expected, 1e-12)


@pytest.mark.filterwarnings("ignore::innerloop.FallbackWarning")
def test_looped_modules_do_everything_that_mapped_ones_do():
    torch.manual_seed(0)
    looped, mapped = WithOldFunction().double(), WithSine().double()
    mapped.load_state_dict(looped.state_dict())
    params = params_of(looped)
    wide = {k: v.expand(3, *v.shape) for k, v in params.items()}
    support, query = data()
    ragged = il.Batch(*support, torch.tensor([1, 4, 0]))
    for batch in (support, ragged):
        for p in (params, wide):
            results = []
            for module in (looped, mapped):
                shared = {"model": module, "backend": "torch"}
                losses, grads = il.loss_and_grad(p, batch, **shared)
                rates = {"first.weight": torch.tensor([0.1, -0.2]).double()}
                inner = {"inner_lr": rates, "steps": 2, "adapt_params": ["first.weight"]}
                step = il.meta_grad(p, batch, query, stepwise=True, **inner, **shared)
                results.append(
                    {
                        "losses": losses,
                        "grads": grads,
                        "hvp": il.hvp(p, batch, params, **shared),
                        "adapt": il.adapt(p, batch, stepwise=True, **inner, **shared),
                        "predict": il.predict(p, batch[0], **shared),
                        "meta": step.grad,
                        "rates": step.inner_lr_grad,
                        "query": step.query_loss,
                    }
                )
            assert_close(results[0], results[1], 1e-12)


def test_fallback_is_visible_once_and_queryable():
    module = WithSine().double()
    support, query = data()
    choice = il.backend_for(module)
    assert choice.backend == "torch"
    assert "WithSine" in choice.reason
    options = {"model": module, "inner_lr": 0.1, "steps": 1}
    with pytest.warns(il.FallbackWarning, match="WithSine runs on the torch back end"):
        il.meta_grad(params_of(module), support, query, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        il.meta_grad(params_of(module), support, query, **options)
        il.meta_grad(params_of(module), support, query, backend="torch", **options)
    with pytest.raises(NotImplementedError, match=r'backend "fused" must be available.*WithSine'):
        il.meta_grad(params_of(module), support, query, backend="fused", **options)


def test_loop_is_visible():
    module = Branching().double()
    support, query = data()
    with pytest.warns(il.FallbackWarning, match="Branching runs task by task"):
        il.meta_loss(
            params_of(module), support, query, model=module, inner_lr=0.1, steps=1, backend="torch"
        )


def test_a_missing_extension_falls_back_and_says_so(monkeypatch):
    monkeypatch.setattr(_kernels, "UNAVAILABLE", "innerloop._cpu is not built")
    model = il.MLP([3, 4, 2])
    params = model.init(torch.Generator().manual_seed(0), dtype=torch.float64)
    support, query = data()
    assert "not built" in il.backend_for(model).reason
    result = il.meta_grad(params, support, query, model=model, inner_lr=0.1, steps=1)
    assert result.backend == "batched"
    with pytest.raises(NotImplementedError, match="not built"):
        il.adapt(params, support, model=model, inner_lr=0.1, steps=1, backend="fused")


def test_other_devices_are_named():
    choice = il.backend_for(il.MLP([1, 1]), device="mps")
    assert choice.backend == "batched"
    assert "'mps'" in choice.reason


def test_errors_of_a_module_are_its_own():
    module = Residual().double()
    support, query = data()
    wrong = (support[0][..., :2], support[1])
    with pytest.raises(RuntimeError, match=r"mat1 and mat2|size"):
        il.meta_loss(
            params_of(module), wrong, query, model=module, inner_lr=0.1, steps=1, backend="torch"
        )
    with pytest.raises(ValueError, match="y must have one value per output"):
        il.loss_and_grad(
            params_of(module), (support[0], support[1][..., :1]), model=module, backend="torch"
        )


def test_integer_parameters_are_constants():
    class Scaled(Residual):
        """A module with an integer parameter."""

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor([2, 3]), requires_grad=False)

        def forward(self, x):
            return super().forward(x) * self.scale

    module = Scaled()
    module.first.double(), module.second.double()
    support, query = data()
    options = {"model": module, "inner_lr": 0.1, "steps": 1, "backend": "torch"}
    result = il.meta_grad(params_of(module), support, query, **options)
    assert "scale" not in result.grad
    assert set(result.grad) == set(params_of(module)) - {"scale"}
    with pytest.raises(TypeError, match="adapt_params must name floating-point parameters"):
        il.meta_grad(params_of(module), support, query, adapt_params=["scale"], **options)


# torch 2.9 and older write the statistics back in evaluation mode too, as they were
@pytest.mark.filterwarnings("ignore:.*writes to its buffer 'running_:innerloop.FallbackWarning")
def test_tracked_instance_norm_is_refused_in_training():
    module = nn.Sequential(nn.Unflatten(1, (1, 3)), nn.InstanceNorm1d(1, track_running_stats=True))
    module = nn.Sequential(module, nn.Flatten(), nn.Linear(3, 2)).double()
    params, x = dict(module.named_parameters()), torch.randn(4, 5, 3).double()
    with pytest.raises(NotImplementedError, match=r"'0.1' \(InstanceNorm1d\).*track_running_stats"):
        il.predict(params, x, model=module, backend="torch")
    module.eval()
    assert il.predict(params, x, model=module, backend="torch").shape == (4, 5, 2)


def test_batch_norm_needs_statistics_of_its_own_batch():
    support, query = data()
    ragged = il.Batch(*support, torch.tensor([1, 4, 2]))
    tracking = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    options = {"inner_lr": 0.1, "steps": 1, "backend": "torch"}
    with pytest.raises(NotImplementedError, match=r"'1' \(BatchNorm1d\).*track_running_stats"):
        il.meta_loss(params_of(tracking), support, query, model=tracking, **options)
    local = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False)).double()
    losses = il.meta_loss(params_of(local), support, query, model=local, **options)
    assert torch.isfinite(losses).all()
    with pytest.raises(NotImplementedError, match="count or weight"):
        il.meta_loss(params_of(local), ragged, query, model=local, **options)
    il.meta_loss(params_of(tracking), ragged, query, model=tracking.eval(), **options)


def test_data_have_gradients_on_the_torch_back_end():
    model = il.MLP([3, 4, 2], "tanh")
    params = model.init(torch.Generator().manual_seed(0), dtype=torch.float64)
    (x, y), query = data()
    x = x.requires_grad_()
    il.meta_loss(
        params, (x, y), query, model=model, inner_lr=0.1, steps=1, backend="torch"
    ).sum().backward()
    assert x.grad.norm() > 0


def test_cuda_kernels_are_taken_on_demand_alone(monkeypatch):
    """Until they have run on a GPU, and never without one."""
    from innerloop import _choice, _native

    device = torch.device("cuda", 0)
    monkeypatch.setattr(_native, "cuda_reason", lambda index: "")
    assert il.backend_for(il.MLP([2, 1]), device="cuda:0").backend == "batched"
    assert "have not been run on a GPU" in _choice.unavailable(device, torch.float32, "auto")
    assert _choice.unavailable(device, torch.float32, "fused") == ""
    monkeypatch.setattr(_native, "cuda_reason", lambda index: "no driver")
    for backend in ("auto", "fused"):
        assert _choice.unavailable(device, torch.float32, backend).endswith(
            "cannot be used: no driver"
        )
