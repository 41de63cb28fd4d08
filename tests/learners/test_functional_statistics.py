"""Batch normalisation that a forward pass calls itself, with rows that are left out: refused on
every back end, as the layer is."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import innerloop as il


class Normalised(nn.Module):
    """Normalises its rows by their own statistics, by torch's function."""

    def __init__(self, *, branches: bool):
        super().__init__()
        self.first, self.last = nn.Linear(2, 3), nn.Linear(3, 1)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("var", torch.ones(3))
        self.branches = branches  # on data: tasks run one by one

    def forward(self, x):
        """A hidden layer, normalised."""
        h = F.batch_norm(self.first(x), self.mean, self.var, training=True)
        if self.branches and float(h.detach().abs().max()) > 1e9:
            return h
        return self.last(torch.tanh(h))


X, Y = torch.randn(2, 4, 2), torch.randn(2, 4, 1)
LEFT_OUT = {
    "count": (X, Y, torch.tensor([4, 3])),
    "weight": (X, Y, None, torch.tensor([[1.0, 1, 0, 1]] * 2)),
}


@pytest.mark.filterwarnings("ignore::innerloop.FallbackWarning")
@pytest.mark.parametrize("branches", [False, True], ids=["plain", "branching"])
@pytest.mark.parametrize("backend", ["auto", "batched", "torch"])
@pytest.mark.parametrize("side", ["support", "query"])
@pytest.mark.parametrize("how", LEFT_OUT, ids=str)
def test_statistics_over_rows_that_are_left_out_are_refused(how, side, backend, branches):
    if branches and backend == "batched":
        pytest.skip("not read")
    learner = il.MAML(Normalised(branches=branches), inner_lr=0.1, steps=1, backend=backend)
    sides = {"support": (X, Y), "query": (X, Y), side: LEFT_OUT[how]}
    with pytest.raises(NotImplementedError, match="statistics over rows that are left out"):
        learner(sides["support"], sides["query"])
    learner((X, Y), (X, Y)).backward()
