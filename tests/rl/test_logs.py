"""Logs as callbacks: every row once, also when a training is taken up again."""

import errno
import io
import json

import pytest

from innerloop import rl
from innerloop.rl import logs

pytest.importorskip("mujoco", reason="needs innerloop[rl]")


def made(algorithm="promp"):
    env = rl.make("HalfCheetahRandVel", tasks=2, rollouts=2, horizon=5, threads=1)
    return rl.Training(env, algorithm, seed=0, hidden=(4,))


def test_json_lines(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_text("of an earlier run\n")
    training, log = made(), rl.JsonLines(path)
    for _ in range(3):
        training.step()
        log(training)
    assert [json.loads(line) for line in path.read_text().splitlines()] == training.history
    again = made()
    again.load_state(training.state())
    log = rl.JsonLines(path)
    again.step()
    log(again)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == again.history
    assert [row["steps"] for row in rows] == [40, 80, 120, 160]


def test_it_is_a_callback_of_train(tmp_path):
    env = rl.make("HalfCheetahRandVel", tasks=2, rollouts=2, horizon=5, threads=1)
    log = rl.JsonLines(tmp_path / "run.jsonl")
    training = rl.train(env, "drs-ppo", iterations=2, seed=0, hidden=(4,), callback=log)
    rows = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert rows == training.history


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="needs innerloop[tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    training, log = made("drs-trpo"), rl.TensorBoard(tmp_path)
    for _ in range(2):
        training.step()
        log(training)
    held = EventAccumulator(str(tmp_path)).Reload()
    for name in ("return", "kl", "entropy"):
        events = held.Scalars(name)
        assert [event.step for event in events] == [20, 40]
        wanted = [row[name] for row in training.history]
        assert [event.value for event in events] == pytest.approx(wanted, rel=1e-6)
    assert "adapted_return" not in held.Tags()["scalars"]  # there is none


def test_a_full_disk_leaves_whole_rows(tmp_path, monkeypatch):
    path = tmp_path / "run.jsonl"
    training, log = made(), rl.JsonLines(path)
    training.step()
    log(training)
    before = path.read_bytes()
    training.step()

    class Full(io.FileIO):
        def write(self, content):
            if self.tell() == len(before):  # half a row fits
                return super().write(content[:10])
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(
            logs,
            "open",
            lambda file, mode, buffering: Full(file, mode.replace("b", "")),
            raising=False,
        )
        with pytest.raises(
            OSError, match=r"rl.JsonLines: the file cannot be written \(No space"
        ) as e:
            log(training)
    assert (e.value.errno, e.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_bytes() == before
    log(training)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == training.history


def test_a_missing_folder_is_named(tmp_path):
    training = made()
    training.step()
    with pytest.raises(FileNotFoundError, match=r"cannot be written .*nowhere/run.jsonl"):
        rl.JsonLines(tmp_path / "nowhere" / "run.jsonl")(training)
