"""Policies in safetensors files: what is read is what was written, and anything else is refused."""

import json
import struct

import pytest
import torch

import innerloop as il
from innerloop import rl

safetensors = pytest.importorskip("safetensors.torch", reason="needs innerloop[safetensors]")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tasks", [None, 3], ids=["shared", "per task"])
def test_a_policy_comes_back(tmp_path, dtype, tasks):
    model = il.GaussianMLP([3, 8, 5, 2], "relu", min_log_std=-2.5)
    params = model.init(torch.Generator().manual_seed(0), dtype=dtype)
    if tasks:
        params = {
            name: torch.stack([leaf + t for t in range(tasks)]) for name, leaf in params.items()
        }
        params["0.weight"] = params["0.weight"].mT.contiguous().mT  # any strides
    path = tmp_path / "policy.safetensors"
    path.write_bytes(b"an older one")
    rl.save_policy(path, params, model=model)
    found, described = rl.load_policy(path)
    assert described == model
    assert list(found) == list(model.names)
    for name, leaf in params.items():
        assert torch.equal(found[name], leaf)
        assert found[name].dtype is dtype
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    # and any reader of the format finds the tensors
    assert set(safetensors.load_file(path)) == set(model.names)


def test_refusals(tmp_path):
    model = il.GaussianMLP([3, 2])
    path = tmp_path / "policy.safetensors"
    with pytest.raises(TypeError, match=r"rl.save_policy: model must be an innerloop.GaussianMLP"):
        rl.save_policy(path, model.init(), model=il.MLP([3, 2]))
    with pytest.raises(ValueError, match=r"rl.save_policy: params must hold"):
        rl.save_policy(path, {"a": torch.ones(2)}, model=model)
    assert not path.exists()
    with pytest.raises(FileNotFoundError):
        rl.load_policy(path)
    with pytest.raises(FileNotFoundError):
        rl.save_policy(tmp_path / "none" / "policy", model.init(), model=model)
    path.write_bytes(b"no such thing")
    with pytest.raises(ValueError, match="is no safetensors file, or damaged"):
        rl.load_policy(path)
    safetensors.save_file({"a": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"holds no policy of rl.save_policy"):
        rl.load_policy(path)


def test_a_file_that_was_cut_or_lacks_a_tensor(tmp_path):
    model = il.GaussianMLP([3, 2])
    path = tmp_path / "policy.safetensors"
    rl.save_policy(path, model.init(), model=model)
    content = path.read_bytes()
    path.write_bytes(content[:-3])
    with pytest.raises(ValueError, match="is no safetensors file, or damaged"):
        rl.load_policy(path)
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    params = safetensors.load(content)
    del params["0.bias"]
    path.write_bytes(safetensors.save(params, header["__metadata__"]))
    with pytest.raises(ValueError, match=r"rl.load_policy: params must hold"):
        rl.load_policy(path)


def test_the_error_of_a_missing_folder_names_the_file(tmp_path):
    model = il.GaussianMLP([3, 4, 2])
    with pytest.raises(FileNotFoundError, match=r"cannot be written .*nowhere/policy\.st'"):
        rl.save_policy(tmp_path / "nowhere" / "policy.st", model.init(), model=model)
