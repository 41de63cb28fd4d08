"""Every way of torch to differentiate a function of a vector.

Each comes with what it must return, made of the Jacobian J and of the Hessian H of u . f.
"""

from dataclasses import dataclass

import torch
from as_functions import F64, drawn
from torch.autograd import forward_ad, functional
from torch.autograd.gradcheck import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Case:
    """A function, the place, a cotangent u and a direction v."""

    f: object
    z: torch.Tensor
    u: torch.Tensor
    v: torch.Tensor

    def total(self, z):
        """The scalar u . f(z)."""
        return self.u @ self.f(z)

    def tracked(self):
        """The place as a leaf that requires grad."""
        return self.z.clone().requires_grad_()

    def direction(self):
        """A random direction like u, other than it."""
        return drawn(51, *self.u.shape)


@dataclass(frozen=True)
class Way:
    """A way to differentiate, what it must return given J and H, and how many derivatives it
    takes."""

    take: object
    want: object
    order: int = 1
    records: bool = False  # by autograd, outside torch.func


WAYS = {}


def way(want, order=1, records=False):
    """Registers a way to differentiate under its function's name."""

    def register(take):
        WAYS[take.__name__] = Way(take, want, order, records)
        return take

    return register


def pull(case, J, H):
    """J'u, what a vector-Jacobian product must be."""
    return case.u @ J


def push(case, J, H):
    """J v, what a Jacobian-vector product must be."""
    return J @ case.v


def whole(case, J, H):
    """J."""
    return J


def curve(case, J, H):
    """H v."""
    return H @ case.v


def hessian(case, J, H):
    """H."""
    return H


def passes(case, J, H):
    """A check of torch's."""
    return torch.ones(1)


@way(pull, records=True)
def backward(c):
    z = c.tracked()
    c.f(z).backward(c.u)
    return z.grad


@way(pull, records=True)
def backward_twice(c):
    z = c.tracked()
    out = c.f(z)
    out.backward(c.u, retain_graph=True)
    out.backward(c.u)
    return z.grad / 2


@way(pull, records=True)
def grad_of_parts(c):
    z = c.tracked()
    out = c.f(z)
    parts = [u * torch.autograd.grad(o, z, retain_graph=True)[0] for u, o in zip(c.u, out)]  # noqa: B905
    return torch.stack(parts).sum(0)


@way(pull, records=True)
def grad_with_create_graph(c):
    z = c.tracked()
    return torch.autograd.grad(c.f(z), z, c.u, create_graph=True)[0]


@way(whole, records=True)
def is_grads_batched(c):
    z = c.tracked()
    out = c.f(z)
    return torch.autograd.grad(out, z, torch.eye(len(out), dtype=F64), is_grads_batched=True)[0]


@way(pull, records=True)
def checkpoint_reentrant(c):
    z = c.tracked()
    checkpoint(c.f, z, use_reentrant=True).backward(c.u)
    return z.grad


@way(pull, records=True)
def checkpoint_not_reentrant(c):
    z = c.tracked()
    checkpoint(c.f, z, use_reentrant=False).backward(c.u)
    return z.grad


@way(pull, records=True)
def saved_tensors_hooks(c):
    z = c.tracked()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.numpy(force=True), torch.from_numpy):
        out = c.f(z)
    out.backward(c.u)
    return z.grad


@way(pull, records=True)
def save_on_cpu(c):
    z = c.tracked()
    with torch.autograd.graph.save_on_cpu():
        out = c.f(z)
    out.backward(c.u)
    return z.grad


@way(passes, records=True)
def gradcheck_of_torch(c):
    """With batched cotangents; errors of the differences are near 1e-9."""
    return torch.tensor([gradcheck(c.f, c.tracked(), check_batched_grad=True)])


@way(passes, records=True)
def gradcheck_forward(c):
    checks = {"check_forward_ad": True, "check_batched_forward_grad": True}
    return torch.tensor([gradcheck(c.f, c.tracked(), check_backward_ad=False, **checks)])


@way(whole, records=True)
def functional_jacobian(c):
    return functional.jacobian(c.f, c.z)


@way(whole, records=True)
def functional_jacobian_strict(c):
    return functional.jacobian(c.f, c.z, strict=True)


@way(whole, records=True)
def functional_jacobian_create_graph(c):
    return functional.jacobian(c.f, c.tracked(), create_graph=True)


@way(whole, records=True)
def functional_jacobian_vectorized(c):
    return functional.jacobian(c.f, c.z, vectorize=True)


@way(whole)
def functional_jacobian_forward(c):
    return functional.jacobian(c.f, c.z, vectorize=True, strategy="forward-mode")


@way(pull, records=True)
def functional_vjp(c):
    return functional.vjp(c.f, c.z, c.u)[1]


@way(push, records=True)
def functional_jvp(c):
    return functional.jvp(c.f, c.z, c.v)[1]


@way(pull)
def func_grad(c):
    return torch.func.grad(c.total)(c.z)


@way(pull)
def func_vjp(c):
    return torch.func.vjp(c.f, c.z)[1](c.u)[0]


@way(whole)
def func_jacrev(c):
    return torch.func.jacrev(c.f)(c.z)


@way(whole)
def func_jacrev_in_chunks(c):
    return torch.func.jacrev(c.f, chunk_size=1)(c.z)


@way(whole)
def func_jacfwd(c):
    return torch.func.jacfwd(c.f)(c.z)


@way(push)
def func_jvp(c):
    return torch.func.jvp(c.f, (c.z,), (c.v,))[1]


@way(push)
def func_jvp_without_grad(c):
    with torch.no_grad():
        return torch.func.jvp(c.f, (c.z,), (c.v,))[1]


@way(push)
def func_linearize(c):
    return torch.func.linearize(c.f, c.z)[1](c.v)


@way(push)
def dual_level(c):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(c.f(forward_ad.make_dual(c.z, c.v))).tangent


@way(push)
def dual_level_of_tracked(c):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(c.f(forward_ad.make_dual(c.tracked(), c.v))).tangent


@way(push)
def dual_level_without_grad(c):
    with forward_ad.dual_level(), torch.no_grad():
        return forward_ad.unpack_dual(c.f(forward_ad.make_dual(c.tracked(), c.v))).tangent


@way(pull)
def vmap_of_grad(c):
    return torch.vmap(torch.func.grad(c.total))(c.z.expand(2, -1))[1]


@way(pull)
def grad_of_vmap(c):
    def total(z):
        return (torch.vmap(c.f)(torch.stack([z, z])) @ c.u)[1]

    return torch.func.grad(total)(c.z)


@way(pull, records=True)
def backward_of_vmap(c):
    z = c.tracked()
    torch.vmap(c.f)(torch.stack([z, z]))[1].backward(c.u)
    return z.grad


@way(pull)
def grad_of_vmap_of_something_else(c):
    def total(z):
        return torch.vmap(lambda w: w * c.total(z))(torch.ones(2, dtype=F64))[0]

    return torch.func.grad(total)(c.z)


@way(push)
def vmap_of_jvp(c):
    def along(z, v):
        return torch.func.jvp(c.f, (z,), (v,))[1]

    return torch.vmap(along)(c.z.expand(2, -1), torch.stack([2 * c.v, c.v]))[1]


@way(push)
def jvp_of_vmap(c):
    pair = (torch.stack([c.z, c.z]),), (torch.stack([2 * c.v, c.v]),)
    return torch.func.jvp(torch.vmap(c.f), *pair)[1][1]


@way(lambda c, J, H: c.direction() @ J)
def jvp_of_vjp_in_the_cotangent(c):
    def pulled(u):
        return torch.func.vjp(c.f, c.z)[1](u)[0]

    return torch.func.jvp(pulled, (c.u,), (c.direction(),))[1]


@way(push)
def grad_of_vjp_in_the_cotangent(c):
    def pulled(u):
        return torch.func.vjp(c.f, c.z)[1](u)[0] @ c.v

    return torch.func.grad(pulled)(c.u)


@way(curve, order=2, records=True)
def double_backward(c):
    z = c.tracked()
    grads = torch.autograd.grad(c.total(z), z, create_graph=True)[0]
    return torch.autograd.grad(grads @ c.v, z)[0]


@way(passes, order=2, records=True)
def gradgradcheck_of_torch(c):
    return torch.tensor([gradgradcheck(c.f, c.tracked())])


@way(curve, order=2, records=True)
def functional_hvp(c):
    return functional.hvp(c.total, c.z, c.v)[1]


@way(curve, order=2, records=True)
def functional_vhp(c):
    return functional.vhp(c.total, c.z, c.v)[1]


@way(hessian, order=2, records=True)
def functional_hessian(c):
    return functional.hessian(c.total, c.z)


@way(hessian, order=2, records=True)
def functional_hessian_vectorized(c):
    return functional.hessian(c.total, c.z, vectorize=True)


@way(hessian, order=2, records=True)
def functional_hessian_forward(c):
    how = {"vectorize": True, "outer_jacobian_strategy": "forward-mode"}
    return functional.hessian(c.total, c.z, **how)


@way(hessian, order=2)
def func_hessian(c):
    return torch.func.hessian(c.total)(c.z)


@way(hessian, order=2)
def jacrev_of_jacrev(c):
    return torch.func.jacrev(torch.func.jacrev(c.total))(c.z)


@way(hessian, order=2)
def jacrev_of_jacfwd(c):
    return torch.func.jacrev(torch.func.jacfwd(c.total))(c.z)


@way(hessian, order=2)
def jacfwd_of_jacfwd(c):
    return torch.func.jacfwd(torch.func.jacfwd(c.total))(c.z)


@way(curve, order=2)
def jvp_of_grad(c):
    return torch.func.jvp(torch.func.grad(c.total), (c.z,), (c.v,))[1]


@way(curve, order=2)
def linearize_of_grad(c):
    return torch.func.linearize(torch.func.grad(c.total), c.z)[1](c.v)


@way(curve, order=2)
def grad_of_jvp(c):
    return torch.func.grad(lambda z: torch.func.jvp(c.total, (z,), (c.v,))[1])(c.z)


@way(curve, order=2, records=True)
def forward_over_backward(c):
    with forward_ad.dual_level():
        z = forward_ad.make_dual(c.tracked(), c.v)
        grads = torch.autograd.grad(c.total(z), z)[0]
        return forward_ad.unpack_dual(grads).tangent


@way(curve, order=2)
def backward_over_forward(c):
    z = c.tracked()
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(c.total(forward_ad.make_dual(z, c.v))).tangent
        return torch.autograd.grad(tangent, z)[0]


@way(curve, order=2)
def grad_of_a_sum_of_vmapped_grads(c):
    def slope(z):
        return torch.vmap(torch.func.grad(c.total))(torch.stack([z, z]))[0] @ c.v

    return torch.func.grad(slope)(c.z)
