"""state_dict, deepcopy, pickle and checkpoints of learners."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from learner_cases import gated_net, regression, sine_net

import innerloop as il

FORMS = (False, True, "per_step", "per_tensor", "per_parameter")


def make(form=False, seed=0, net=sine_net, rate=0.2):
    """A learner."""
    backend = "torch" if net is gated_net else "auto"
    return il.MAML(net(seed=seed), inner_lr=rate, steps=2, learn_inner_lr=form, backend=backend)


def value(learner):
    """Its loss and gradients on fixed data."""
    learner.zero_grad()
    loss = learner(regression(seed=1), regression(rows=3, seed=2))
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in learner.parameters())]


def same(a, b):
    """Whether two lists of tensors are bitwise equal."""
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_state_dict_is_the_modules_and_the_rates(form):
    learner = make(form)
    state = learner.state_dict()
    own = {f"module.{k}": v for k, v in learner.module.state_dict().items()}
    rates = {f"rates.{k}": v for k, v in learner.rates.state_dict().items()}
    assert list(state) == [*own, *rates]
    assert bool(rates) == (form is not False)
    other = make(form, seed=9, rate=0.05)
    assert not same(value(other), value(learner))
    other.load_state_dict(state)
    if form is not False:
        assert same(value(other), value(learner))


def test_rates_given_as_tensors_are_saved():
    rate = torch.tensor([0.2, 0.1], dtype=torch.float64)
    learner, other = make(rate=rate), make(seed=9, rate=torch.zeros_like(rate))
    other.load_state_dict(learner.state_dict())
    assert same(value(other), value(learner))


@pytest.mark.parametrize("net", [sine_net, gated_net])
@pytest.mark.parametrize("form", FORMS)
def test_deepcopy_and_pickle(form, net):
    learner = make(form, net=net)
    expected = value(learner)  # also fills what the learner remembers
    for clone in (copy.deepcopy(learner), pickle.loads(pickle.dumps(learner))):
        assert clone.backend == learner.backend
        assert same(value(clone), expected)
        assert not {id(p) for p in clone.parameters()} & {id(p) for p in learner.parameters()}
        with torch.no_grad():
            for p in clone.parameters():
                p.mul_(0.5)
        assert not same(value(clone), expected)
        assert same(value(learner), expected)


def test_training_goes_on_from_a_checkpoint(tmp_path):
    def train(learner, optimizer, seeds):
        for seed in seeds:
            optimizer.zero_grad()
            learner(regression(seed=seed), regression(rows=3, seed=seed + 100)).backward()
            optimizer.step()

    learner = make("per_step")
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-2)
    train(learner, optimizer, range(3))
    path = tmp_path / "checkpoint.pt"
    torch.save({"learner": learner.state_dict(), "optimizer": optimizer.state_dict()}, path)
    train(learner, optimizer, range(3, 6))

    resumed = make("per_step", seed=5)
    again = torch.optim.Adam(resumed.parameters(), lr=1e-2)
    saved = torch.load(path, weights_only=True)
    resumed.load_state_dict(saved["learner"])
    again.load_state_dict(saved["optimizer"])
    train(resumed, again, range(3, 6))
    assert same(list(resumed.parameters()), list(learner.parameters()))


def test_the_wrapped_module_can_be_saved_alone():
    learner = make()
    fresh = sine_net(seed=3)
    fresh.load_state_dict(learner.module.state_dict())
    assert same(list(fresh.parameters()), list(learner.module.parameters()))
