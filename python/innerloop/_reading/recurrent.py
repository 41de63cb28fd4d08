"""Calls of recurrent cells, and of recurrent layers that start from zeros: step after step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from innerloop._reading.recorder import HANDLERS, Handler, Recorder, known
from innerloop._reading.shapes import pieces

State = tuple[Tensor, ...]  # h, or h and c
Step = Callable[[Recorder, Tensor, State, Tensor, Any], State]


def _affine(recorder: Recorder, x: Tensor, weight: Tensor, bias: Any) -> Any:
    """Notes a linear layer."""
    return HANDLERS[F.linear](recorder, x, weight, bias)


def _act(recorder: Recorder, kind: str, x: Tensor) -> Any:
    """Notes an elementwise function."""
    return recorder.add(kind, [x], recorder.shape(x))


def _plus(recorder: Recorder, a: Tensor, b: Tensor, factor: float = 1.0) -> Any:
    """Notes a + factor b."""
    return recorder.add("add", [a, b], recorder.shape(a), (factor,))


def _times(recorder: Recorder, a: Tensor, b: Tensor) -> Any:
    """Notes a b."""
    return recorder.add("multiply", [a, b], recorder.shape(a))


def _parts(recorder: Recorder, x: Tensor, parts: int) -> Sequence[Tensor]:
    """Notes the equal parts of rows that are vectors."""
    (size,) = recorder.shape(x)
    return pieces(recorder, x, [size // parts] * parts, 1)


# Each of these takes what the input adds to the gates, the state, and the weights of the state.


def _lstm_step(recorder: Recorder, x: Tensor, state: State, weight: Tensor, bias: Any) -> State:
    h, c = state
    gates = _plus(recorder, x, _affine(recorder, h, weight, bias))
    enters, stays, new, leaves = _parts(recorder, gates, 4)
    enters, stays, leaves = (_act(recorder, "sigmoid", gate) for gate in (enters, stays, leaves))
    new = _times(recorder, enters, _act(recorder, "tanh", new))
    c = _plus(recorder, _times(recorder, stays, c), new)
    return _times(recorder, leaves, _act(recorder, "tanh", c)), c


def _gru_step(recorder: Recorder, x: Tensor, state: State, weight: Tensor, bias: Any) -> State:
    (h,) = state
    of_x = _parts(recorder, x, 3)
    of_h = _parts(recorder, _affine(recorder, h, weight, bias), 3)
    resets, stays = (
        _act(recorder, "sigmoid", _plus(recorder, a, b))
        for a, b in zip(of_x[:2], of_h[:2], strict=True)
    )
    new = _act(recorder, "tanh", _plus(recorder, of_x[2], _times(recorder, resets, of_h[2])))
    change = _times(recorder, stays, _plus(recorder, h, new, -1.0))
    return (_plus(recorder, new, change),)


def _plain_step(kind: str) -> Step:
    """Returns the step of a cell with one function and no gates."""

    def step(recorder: Recorder, x: Tensor, state: State, weight: Tensor, bias: Any) -> State:
        return (
            _act(recorder, kind, _plus(recorder, x, _affine(recorder, state[0], weight, bias))),
        )

    return step


def _cell(step: Step) -> Handler:
    """Returns what notes one step of a cell."""

    def handler(
        recorder: Recorder,
        input: Tensor,
        hx: Any,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Any = None,
        b_hh: Any = None,
    ) -> Any:
        state = tuple(hx) if isinstance(hx, (tuple, list)) else (hx,)
        if any(len(recorder.shape(value)) != 1 for value in (input, *state)):
            recorder.stop("a cell of something but rows of vectors")
        found = step(recorder, _affine(recorder, input, w_ih, b_ih), state, w_hh, b_hh)
        return found if isinstance(hx, (tuple, list)) else found[0]

    return handler


def _layers(kind: str, states: int) -> Handler:
    """Returns what notes recurrent layers, from zeros."""

    def handler(
        recorder: Recorder,
        input: Tensor,
        hx: Any,
        params: Any,
        has_biases: Any,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: Any = None,
    ) -> Any:
        zeros = tuple(hx) if isinstance(hx, (tuple, list)) else (hx,)
        if type(has_biases) is not bool or batch_first is not True:
            recorder.stop("only rows of sequences can be read (batch_first=True)")
        if len(recorder.shape(input)) != 2 or not recorder.shape(input)[0]:
            recorder.stop(f"sequences of {list(recorder.shape(input))}")
        if not all(id(value) in recorder.zeros for value in zeros):
            recorder.stop("only states that start from zeros can be read")
        if dropout and train and num_layers > 1:
            recorder.stop("its dropout is random in training mode (call .eval() or use p=0)")
        ways = 2 if bidirectional else 1
        each = len(params) // (num_layers * ways)
        if each != (4 if has_biases else 2) or len(params) != each * num_layers * ways:
            recorder.stop("projections of states cannot be read")
        steps, width = recorder.shape(input)[0], params[1].shape[1]
        last: list[list[Tensor]] = [[] for _ in range(states)]
        for first in range(0, len(params), each * ways):
            found = []
            for at in range(first, first + each * ways, each):
                backwards = at > first
                whole = recorder.add(
                    "recurrent",
                    [input],
                    (steps, states * width),
                    (kind, backwards),
                    params[at : at + each],
                )
                of_states = [whole] if states == 1 else pieces(recorder, whole, [width] * states, 2)
                found.append(of_states[0])
                end = 0 if backwards else steps - 1
                for values, value in zip(last, of_states, strict=True):
                    values.append(HANDLERS[torch.select](recorder, value, 1, end))
            input = found[0] if ways == 1 else HANDLERS[torch.cat](recorder, found, 2)
        return (input, *(recorder.stacked(values) for values in last))

    return handler


for _name, _step, _states in (
    ("lstm", _lstm_step, 2),
    ("gru", _gru_step, 1),
    ("rnn_tanh", _plain_step("tanh"), 1),
    ("rnn_relu", _plain_step("relu"), 1),
):
    known(getattr(torch, f"{_name}_cell"))(_cell(_step))
    known(getattr(torch, _name))(_layers(_name, _states))
