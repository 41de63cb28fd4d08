"""Calls captured in a CUDA graph: what the host does is done once, replays only launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

WARM_UP = 3  # calls before the capture, for lazy initialisation and cuBLAS workspaces


def captured(call: Callable[[], Any]) -> Callable[[], Any]:
    """A replay of the call's kernels; it returns the tensors that every replay writes anew.

    Args:
        call: launches on the current stream and waits for nothing. Its inputs stay where they are.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outcome = call()

    def replay() -> Any:
        graph.replay()
        return outcome

    return replay
