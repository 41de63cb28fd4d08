"""Sine waves, training against plain autograd, and stopping and going on."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from damage import check_damage
from innerloop.runs.arrays import write_sealed
from innerloop.runs.errors import InputError
from innerloop.runs.methods import FIRST_ORDER, JOINT, MAML, METHODS
from innerloop.studies.sinusoid import waves as law
from innerloop.studies.sinusoid.checkpoints import FORMAT, checkpoint_path, load, save
from innerloop.studies.sinusoid.measuring import errors_after_steps, oracle_errors
from innerloop.studies.sinusoid.settings import Settings
from innerloop.studies.sinusoid.training import (
    Diverged,
    State,
    initial_state,
    network,
    train,
    unflatten,
)
from innerloop.studies.sinusoid.units import ORACLE

SMALL = Settings(iterations=60, meta_batch=4, shots=5, hidden=(8, 8))


def plain(settings: Settings, method: str, iterations: int) -> torch.Tensor:
    """The same training as a loop over tasks with torch's own autograd and Adam."""
    model = network(settings, method)
    leaves = [
        leaf.clone().requires_grad_()
        for leaf in unflatten(model, initial_state(settings, method).theta).values()
    ]
    optimizer = torch.optim.Adam(leaves, lr=settings.outer_lr)

    def forward(parameters: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        for index in range(0, len(parameters), 2):
            x = torch.nn.functional.linear(x, parameters[index], parameters[index + 1])
            x = x.relu() if index + 2 < len(parameters) else x
        return x

    batches = law.training_batches(settings, 0)
    for waves in itertools.islice(batches, iterations):
        losses = []
        for task in range(settings.meta_batch):
            (sx, sy), (qx, qy) = (
                (side[0][task], side[1][task]) for side in (waves.support, waves.query)
            )
            adapted = leaves
            if method == ORACLE:
                known = torch.tensor([waves.amplitude[task], waves.phase[task]]).float()
                sx, qx = (torch.cat([x, known.expand(len(x), 2)], 1) for x in (sx, qx))
            if method in (JOINT, ORACLE):
                qx, qy = torch.cat([sx, qx]), torch.cat([sy, qy])
            else:
                for _ in range(settings.steps):
                    inner = (forward(adapted, sx) - sy).square().mean()
                    rows = torch.autograd.grad(inner, adapted, create_graph=method == MAML)
                    adapted = [
                        a - settings.inner_lr * g for a, g in zip(adapted, rows, strict=True)
                    ]
            losses.append((forward(adapted, qx) - qy).square().mean())
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
    return torch.cat([leaf.detach().reshape(-1) for leaf in leaves])


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("method", [*METHODS, ORACLE])
def test_training_is_the_textbook_loop(method: str, steps: int) -> None:
    settings = Settings(iterations=12, meta_batch=3, shots=5, hidden=(8, 8), steps=steps)
    start = initial_state(settings, method).theta
    state = train(settings, method, initial_state(settings, method), until=12)
    wanted = plain(settings, method, 12) - start
    # float32, and Adam divides small gradients by their own size: compare the way gone.
    error = (state.theta - start - wanted).norm() / wanted.norm()
    assert error < 2e-3
    assert wanted.norm() > 0.01


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stop", [1, 37, 199, 200, 201])
def test_going_on_from_a_checkpoint_changes_no_bit(method: str, stop: int, tmp_path: Path) -> None:
    settings = Settings(iterations=203, meta_batch=2, shots=3, hidden=(4,))
    whole = train(settings, method, initial_state(settings), until=203)
    parts = train(settings, method, initial_state(settings), until=stop)
    path = checkpoint_path(tmp_path, method)
    save(path, "key", method, parts)
    again = load(path, "key", method)
    assert again is not None
    assert again.done == stop
    train(settings, method, again, until=203)
    for name in ("theta", "first", "second"):
        assert torch.equal(getattr(again, name), getattr(whole, name))
    assert (again.done, again.partial, again.trace) == (whole.done, whole.partial, whole.trace)


def trained_a_little(method: str) -> State:
    return train(SMALL, method, initial_state(SMALL), until=20)


def same_state(one: State, two: State) -> bool:
    return (one.done, one.partial, one.trace) == (two.done, two.partial, two.trace) and all(
        torch.equal(getattr(one, name), getattr(two, name)) for name in ("theta", "first", "second")
    )


def test_checkpoints_of_others_are_refused(tmp_path: Path) -> None:
    """Swapped between methods, settings or versions, of another format, or no file at all."""
    path = checkpoint_path(tmp_path, MAML)
    assert load(path, "key", MAML) is None
    state = trained_a_little(MAML)
    save(path, "key", MAML, state)
    assert same_state(load(path, "key", MAML) or state, state)
    remedy = f"remove it, or use --fresh, to train {MAML} from the start"
    with pytest.raises(InputError, match=f"with other settings or versions; {remedy}"):
        load(path, "other", MAML)
    path.rename(checkpoint_path(tmp_path, JOINT))
    with pytest.raises(InputError, match=f"holds the training of {MAML}; remove it"):
        load(checkpoint_path(tmp_path, JOINT), "key", JOINT)
    np.savez(path, theta=state.theta.numpy())
    with pytest.raises(InputError, match=f"is not a file of this command; {remedy}"):
        load(path, "key", MAML)
    about = {"key": "key", "unit": MAML, "done": 1, "partial": 0.0, "trace": []}
    vector = np.zeros(3, np.float32)
    for arrays in (
        {},
        {"theta": vector, "first": vector},
        {"theta": vector, "first": vector, "second": np.zeros(3)},
        {"theta": vector, "first": vector, "second": np.zeros(2, np.float32)},
    ):
        write_sealed(path, FORMAT, about, arrays)
        with pytest.raises(InputError, match=f"holds no training; {remedy}"):
            load(path, "key", MAML)
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match="is a folder"):
        load(path, "key", MAML)


def check_flips(folder: Path, rounds: int) -> None:
    path = checkpoint_path(folder, MAML)
    state = trained_a_little(MAML)
    save(path, "key", MAML, state)
    check_damage(path, lambda: load(path, "key", MAML), lambda s: same_state(s, state), rounds)


def test_flips_of_a_checkpoint_give_no_other_number(tmp_path: Path) -> None:
    check_flips(tmp_path, 300)


@pytest.mark.slow
def test_ten_thousand_flips_of_a_checkpoint_give_no_other_number(tmp_path: Path) -> None:
    check_flips(tmp_path, 10_000)


def test_the_trace_holds_block_means() -> None:
    settings = Settings(iterations=2100, meta_batch=1, shots=2, hidden=(2,))
    seen: list[float] = []
    before = 0.0

    def watch(state: State) -> None:
        nonlocal before
        total = sum(state.trace) * 1000 + state.partial
        seen.append(total - before)
        before = total

    state = train(settings, JOINT, initial_state(settings), until=2100, after_iteration=watch)
    assert len(state.trace) == 2
    assert state.trace[1] == pytest.approx(np.mean(seen[1000:2000]), rel=1e-9)
    assert min(seen) >= 0


def test_methods_learn_what_they_minimise() -> None:
    settings = Settings(iterations=1500, hidden=(20, 20))
    test = law.draw_waves(law.generator(0, law.Stream.TEST), 300, 10, 50)

    def error(theta: torch.Tensor, steps: int) -> float:
        return float(
            errors_after_steps(settings, theta, test.support, test.query, 0.01)[:, steps].mean()
        )

    start = initial_state(settings).theta
    oracle = train(settings, ORACLE, initial_state(settings, ORACLE), until=1500).theta
    told = law.draw_waves(law.generator(0, law.Stream.TEST), 300, 10, 50)
    assert oracle_errors(settings, oracle, told).mean() < 0.5 * error(start, 0)
    maml, first, joint = (
        train(settings, method, initial_state(settings), until=1500).theta
        for method in (MAML, FIRST_ORDER, JOINT)
    )
    assert error(joint, 0) < error(start, 0) - 0.2
    # Short training of a small network takes MAML to 0.65 of joint training's error.
    assert error(maml, 1) < 0.8 * error(joint, 1)
    assert error(first, 1) < 0.9 * error(joint, 1)


def test_divergence_is_reported() -> None:
    settings = Settings(iterations=400, meta_batch=2, shots=3, hidden=(4,), outer_lr=1e18)
    with pytest.raises(Diverged, match="maml"):
        train(settings, MAML, initial_state(settings), until=400)


def test_waves_follow_their_law() -> None:
    drawn = law.draw_waves(law.generator(7, law.Stream.TEST), 20_000, 3, 2)
    for values, (low, high) in (
        (drawn.amplitude, (0.1, 5.0)),
        (drawn.phase, (0.0, math.pi)),
        (drawn.support[0].numpy().ravel(), (-5.0, 5.0)),
        (drawn.query[0].numpy().ravel(), (-5.0, 5.0)),
    ):
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
        # The mean of n uniforms within five standard errors (false alarm 6e-7).
        error = (high - low) / math.sqrt(12 * len(values))
        assert abs(values.mean() - (low + high) / 2) < 5 * error
    for x, y in (drawn.support, drawn.query):
        wanted = drawn.amplitude[:, None, None] * np.sin(x.numpy() - drawn.phase[:, None, None])
        np.testing.assert_allclose(y.numpy(), wanted, atol=3e-6)


def test_batches_depend_on_their_number_only() -> None:
    settings = Settings(meta_batch=2, shots=3)
    straight = list(itertools.islice(law.training_batches(settings, 0), 420))
    for first in (0, 1, 150, 199, 200, 399):
        for offset, batch in enumerate(itertools.islice(law.training_batches(settings, first), 3)):
            for ours, theirs in zip(batch, straight[first + offset], strict=True):
                assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    other = next(law.training_batches(Settings(meta_batch=2, shots=3, seed=1), 0))
    assert not torch.equal(other.support[0], straight[0].support[0])
    assert not torch.equal(straight[0].support[0], straight[1].support[0])


@pytest.mark.parametrize(
    "wrong",
    [
        {"iterations": 0},
        {"shots": 0},
        {"steps": 0},
        {"inner_lr": 0.0},
        {"outer_lr": math.nan},
        {"hidden": ()},
        {"hidden": (4, 0)},
        {"rates": ()},
        {"rates": (0.1, 0.1)},
        {"rates": (-0.1,)},
        {"level": 1.0},
        {"test_tasks": 1},
        {"seed": -1},
        {"runs": 0},
    ],
    ids=str,
)
def test_settings_out_of_range(wrong: dict) -> None:
    with pytest.raises(InputError, match=f"--{next(iter(wrong)).replace('_', '-')}"):
        Settings(**wrong)
