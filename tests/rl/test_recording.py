"""Videos: what a renderer shows, frame by frame, and one clear error where there is none."""

import sys

import numpy as np
import pytest
import torch

import innerloop as il
from innerloop import rl
from innerloop.rl.simulated import IMAGE

mujoco = pytest.importorskip("mujoco", reason="needs innerloop[rl]")
imageio = pytest.importorskip("imageio", reason="needs innerloop[video]")


class Renderer:
    """Stands for MuJoCo's: an image whose grey says where the root is."""

    def __init__(self, model, height, width):
        self.shape = (height, width, 3)

    def update_scene(self, data, camera):
        assert camera == "track"
        self.grey = int(127 + 40 * data.qpos[1])

    def render(self):
        return np.full(self.shape, self.grey, dtype=np.uint8)

    def close(self):
        self.shape = None


@pytest.fixture(autouse=True)
def a_display(monkeypatch):
    monkeypatch.setenv("DISPLAY", ":0")


def hopper():
    env = rl.make("HopperRandParams", tasks=2, rollouts=2, horizon=40, threads=1)
    env.set_tasks(env.sample_tasks(2, seed=0))
    model = il.GaussianMLP([env.observation_size, 4, env.action_size])
    return env, model, model.init(torch.Generator().manual_seed(0))


def test_a_video_is_one_episode(tmp_path, monkeypatch):
    monkeypatch.setattr(mujoco, "Renderer", Renderer)
    env, model, params = hopper()
    path = tmp_path / "hopper.gif"
    frames = rl.record(env, params, path, seed=3, lane=1)
    env.reset(3)
    heights, over = [], False
    with torch.no_grad():
        while not over and len(heights) < 40:
            heights.append(env.qpos[1, 1])
            x = torch.from_numpy(env_observation(env)).float()[None]
            mean = il.predict(params, x, model=model)[0]
            _, _, terminated, truncated = env.step(mean.numpy())
            over = terminated[1] or truncated[1]
    assert frames == len(heights)
    shown = imageio.mimread(path)
    assert shown[0].shape[:2] == IMAGE
    # equal images become one frame of a gif
    assert 1 < len(shown) <= frames
    assert abs(int(shown[0][0, 0, 0]) - int(127 + 40 * heights[0])) <= 2
    env.close()


def env_observation(env):
    return np.concatenate([env.qpos[:, 1:], np.clip(env.qvel, -10, 10)], axis=1)


def test_without_a_renderer_there_is_one_clear_error(tmp_path, monkeypatch):
    def fails(*arguments):
        raise AttributeError("no GL here")

    monkeypatch.setattr(mujoco, "Renderer", fails)
    env, model, params = hopper()
    path = tmp_path / "video.mp4"
    with pytest.raises(RuntimeError, match=r"finds nothing to render with here \(no GL here\)"):
        rl.record(env, params, path, model=model)
    assert not path.exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems need no variable")
def test_without_a_display_mujoco_is_not_asked(tmp_path, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)
    env, _, params = hopper()
    with pytest.raises(RuntimeError, match=r"there is no display\); set .*MUJOCO_GL"):
        rl.record(env, params, tmp_path / "video.mp4")


def test_refusals(tmp_path, monkeypatch):
    monkeypatch.setattr(mujoco, "Renderer", Renderer)
    env, _, params = hopper()
    with pytest.raises(ValueError, match=r"rl.record: lane must lie between 0 and 3 \(got 4\)"):
        rl.record(env, params, tmp_path / "a.gif", lane=4)
    with pytest.raises(ValueError, match="fps must lie between 1 and 1000"):
        rl.record(env, params, tmp_path / "a.gif", fps=0)
    with pytest.raises(ValueError, match=r"rl.record: params must hold"):
        rl.record(env, {**params, "more": torch.ones(1)}, tmp_path / "a.gif")
    other = il.GaussianMLP([3, 2])
    with pytest.raises(ValueError, match=r"model must have 11 inputs for HopperRandParams"):
        rl.record(env, other.init(), tmp_path / "a.gif", model=other)


def test_an_environment_of_gymnasium_that_gives_images(tmp_path):
    gymnasium = pytest.importorskip("gymnasium")

    class Dot(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 1, (1,))
        action_space = gymnasium.spaces.Box(-1, 1, (1,))
        images = True

        def reset(self, *, seed=None, options=None):
            self.count = 0
            return np.zeros(1), {}

        def step(self, action):
            self.count += 1
            return np.zeros(1), 0.0, False, False, {}

        def render(self):
            return np.full((8, 8, 3), 20 * self.count, np.uint8) if self.images else None

    env = rl.from_gymnasium(
        Dot,
        sample_tasks=lambda n, seed: [0.0] * n,
        set_task=lambda env, task: None,
        tasks=1,
        rollouts=2,
        horizon=6,
        threads=1,
    )
    env.set_tasks([0.0])
    model = il.GaussianMLP([1, 1])
    assert rl.record(env, model.init(), tmp_path / "dot.gif") == 6
    grey = [int(image[0, 0, 0]) for image in imageio.mimread(tmp_path / "dot.gif")]
    assert grey == pytest.approx([0, 20, 40, 60, 80, 100], abs=3)
    Dot.images = False
    with pytest.raises(RuntimeError, match=r'gives no image; .*render_mode="rgb_array"'):
        rl.record(env, model.init(), tmp_path / "none.gif")
