"""Problems of tests/problems.py on a GPU."""

import torch

import innerloop as il


def on_gpu(problem, dtype):
    """Returns the problem with every tensor on the GPU."""

    def move(value):
        if isinstance(value, torch.Tensor):
            return value.cuda()
        if isinstance(value, dict):
            return {k: move(v) for k, v in value.items()}
        return value

    moved = problem.to(dtype)
    moved.params, moved.options = move(moved.params), move(moved.options)
    moved.support = il.Batch(*map(move, moved.support))
    moved.query = il.Batch(*map(move, moved.query))
    return moved
