"""The key under which checked calls are remembered tells every fact apart that the checks read."""

import pytest
import torch

from innerloop import _native


def key(*values):
    """Returns the key of some values."""
    return _native.native().tensor_key(list(values))


ONES = torch.ones(2, 3)
DIFFERENT = {
    "sizes": [ONES, torch.ones(3, 2)],
    "number of axes": [ONES, torch.ones(2, 3, 1), torch.ones(6), torch.ones(())],
    "dtype": [ONES, ONES.double(), ONES.long()],
    "layout": [ONES, ONES.to_sparse()],
    "device": [ONES, ONES.to("meta")],
    "gradient": [ONES, ONES.clone().requires_grad_()],
    "absence": [ONES, None],
}


@pytest.mark.parametrize("fact", DIFFERENT)
def test_one_fact_makes_another_key(fact):
    keys = [key(ONES, value, ONES) for value in DIFFERENT[fact]]
    assert None not in keys
    assert len(set(keys)) == len(keys)


def test_data_strides_and_parameters_make_no_other_key():
    same = [ONES, torch.zeros(3, 2).T, torch.nn.Parameter(ONES, requires_grad=False)]
    assert len({key(value) for value in same}) == 1


def test_places_in_the_list_count():
    assert key(None, ONES) != key(ONES, None)
    assert key(ONES, None) != key(ONES)
    assert key(ONES, torch.ones(4)) != key(torch.ones(4), ONES)


@pytest.mark.parametrize(
    "value",
    [1.0, "x", [ONES], ONES.numpy(), ONES.as_subclass(type("Other", (torch.Tensor,), {}))],
    ids=["number", "text", "list", "array", "subclass"],
)
def test_what_is_no_plain_tensor_has_no_key(value):
    assert key(ONES, value) is None


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_nested_tensors_have_no_key(layout):
    nested = torch.nested.nested_tensor([ONES, ONES[:1]], layout=layout)
    assert key(nested) is None
