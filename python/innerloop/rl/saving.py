"""Policies in safetensors files: numbers and the description of the policy, nothing that runs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from innerloop.policies import GaussianMLP
from innerloop.rl import _checks
from innerloop.rl._policy_checks import check_params

FORMAT = "innerloop.policy/1"


def save_policy(
    path: str | os.PathLike[str], params: Mapping[str, Tensor], *, model: GaussianMLP
) -> None:
    """Writes a policy to a safetensors file; it appears whole or not at all.

    Any reader of safetensors finds the tensors under their names; the description (widths,
    activation, floor of log_std) stands in the file's metadata.

    Args:
        path: of the file, which is replaced.
        params: {name: tensor}, shared or per task [T, ...].
        model: their description.

    Raises:
        ValueError, TypeError: the parameters do not fit the model.
        OSError: the file cannot be written.
        ModuleNotFoundError: safetensors is missing; the text says what to install.

    Example:
        >>> model = GaussianMLP([3, 8, 2])
        >>> save_policy("policy.safetensors", model.init(), model=model)  # doctest: +SKIP
    """
    op = "rl.save_policy"
    safetensors = _checks.package(op, "safetensors.torch", "safetensors")
    _check_model(op, model)
    leaf = params.get("log_std") if isinstance(params, Mapping) else None
    check_params(op, params, model, len(leaf) if leaf is not None and leaf.ndim == 2 else 1)
    layers = model.network.layers
    about = {
        "widths": [model.inputs, *(layer.outputs for layer in layers)],
        "activation": model.activation,
        "min_log_std": model.min_log_std,
    }
    tensors = {name: params[name].detach().cpu().contiguous() for name in model.names}
    content = safetensors.save(tensors, {"format": FORMAT, "model": json.dumps(about)})
    target = Path(path)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        os.replace(part, target)
    except OSError as error:
        raise _checks.unwritable(op, target, error) from None
    finally:
        part.unlink(missing_ok=True)


def load_policy(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], GaussianMLP]:
    """Returns (params, model) of a file that `save_policy` wrote.

    Raises:
        ValueError: the file is damaged, or holds something else.
        OSError: the file cannot be read.
        ModuleNotFoundError: safetensors is missing; the text says what to install.

    Example:
        >>> params, model = load_policy("policy.safetensors")  # doctest: +SKIP
    """
    op = "rl.load_policy"
    safetensors = _checks.package(op, "safetensors", "safetensors")
    content = Path(path).read_bytes()
    named = f"{op}: {os.fspath(path)!r}"
    try:
        tensors = _checks.package(op, "safetensors.torch", "safetensors").load(content)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{named} is no safetensors file, or damaged ({error})") from None
    size = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + size]).get("__metadata__", {})
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{named} holds no policy of rl.save_policy (format {FORMAT})")
    about = json.loads(metadata["model"])
    model = GaussianMLP(about["widths"], about["activation"], min_log_std=about["min_log_std"])
    params: dict[str, Tensor] = {name: tensors[name] for name in model.names if name in tensors}
    leaf = params.get("log_std", torch.empty(0))
    check_params(op, params, model, len(leaf) if leaf.ndim == 2 else 1)
    return params, model


def _check_model(op: str, model: object) -> None:
    if not isinstance(model, GaussianMLP):
        _checks.refuse_type(op, "model", "be an innerloop.GaussianMLP", type(model).__name__)
