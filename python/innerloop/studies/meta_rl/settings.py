"""What a study of meta reinforcement learning is asked to do, and its presets."""

from __future__ import annotations

import dataclasses
from typing import Any

from innerloop.models import MOST_WIDTH
from innerloop.rl import NAMES, published_iterations
from innerloop.rl._checks import nearest
from innerloop.rl.evaluation import OPTIMIZERS
from innerloop.rl.meta_world import BENCHMARKS
from innerloop.rl.registry import META_WORLD_SIZES, MUJOCO_SIZES
from innerloop.rl.rollouts import TESTERS
from innerloop.rl.sampling import SAMPLING
from innerloop.runs.errors import InputError
from innerloop.runs.sizes import check_count

# (joint training, meta-learning), matched in environment steps
PAIRS = {"ppo": ("drs-ppo", "promp"), "trpo": ("drs-trpo", "trpo-maml")}


@dataclasses.dataclass(frozen=True)
class Settings:
    """One study; equal settings give equal numbers. None stands for the published value of the
    environment.

    Args:
        environments: names of `innerloop.rl.NAMES`.
        pairs: names of `PAIRS`.
        seeds: trainings of every algorithm; their seeds are seed, seed + 1, ...
        iterations: of ProMP and TRPO-MAML; joint training takes twice as many, since they sample
            twice in each.
        checkpoints: how often a training is tested beside its start, evenly over the iterations.
        tasks, rollouts, horizon: tasks of an iteration, episodes of a task, steps of an episode.
        test_tasks: fixed tasks on which every checkpoint of every training is tested.
        updates: policy-gradient updates on a test task; returns are recorded after 0 to so many.
        hidden: widths of the policy's hidden layers.
        controls: whether control arms are run beside the pairs (`units` lists them).
        sampling, tester, test_optimizer: see `innerloop.rl.collect`, `episode_returns`, `evaluate`.
        discount, gae_lambda: of the advantages.
        reward_version: of Meta-World.
        seed: of everything random.
        level: coverage of the intervals.
        preset: which one the settings began as.
    """

    environments: tuple[str, ...]
    pairs: tuple[str, ...]
    seeds: int
    iterations: int | None
    checkpoints: int
    tasks: int | None
    rollouts: int | None
    horizon: int | None
    test_tasks: int
    updates: int
    hidden: tuple[int, ...] | None = None
    controls: bool = True
    sampling: str = "lanes"
    tester: str = "lanes"
    test_optimizer: str = "sgd"
    discount: float = 0.99
    gae_lambda: float = 1.0
    reward_version: str = "v2"
    seed: int = 0
    level: float = 0.95
    preset: str = "small"

    def __post_init__(self) -> None:
        """Refuse a setting outside its range, naming the option."""
        for name, known in (
            ("environments", NAMES),
            ("pairs", tuple(PAIRS)),
        ):
            given = getattr(self, name)
            for value in given:
                check_choice(f"--{name}", value, known)
            if not given or len(set(given)) != len(given):
                raise InputError(f"--{name} must name at least one, each once (got {given})")
        for name, known in (
            ("sampling", SAMPLING),
            ("tester", TESTERS),
            ("test_optimizer", OPTIMIZERS),
            ("reward_version", ("v1", "v2")),
        ):
            check_choice(option(name), getattr(self, name), known)
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if value is not None:
                check_count(option(name), value, least, most)
        for width in self.hidden or ():
            check_count("--hidden", width, 1, MOST_WIDTH)
        for name in ("discount", "gae_lambda"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"{option(name)} must lie in [0, 1] (got {getattr(self, name):g})")
        if not 0.0 < self.level < 1.0:
            raise InputError(f"--level must lie between 0 and 1 (got {self.level:g})")
        for environment in self.environments:
            if self.checkpoints > self.iterations_of(environment):
                raise InputError(
                    f"--checkpoints must be at most --iterations "
                    f"({self.iterations_of(environment)}; got {self.checkpoints})"
                )

    def iterations_of(self, environment: str) -> int:
        """Iterations of the meta-learning algorithms on an environment."""
        if self.iterations is not None:
            return self.iterations
        # the published number counts the one after which checkpoint 0 was written
        return published_iterations(environment, "promp") - 1

    def sizes_of(self, environment: str) -> dict[str, int]:
        """tasks, rollouts and horizon on an environment."""
        sizes = dict(META_WORLD_SIZES if environment in BENCHMARKS else MUJOCO_SIZES)
        given = {"tasks": self.tasks, "rollouts": self.rollouts, "horizon": self.horizon}
        return sizes | {name: value for name, value in given.items() if value is not None}

    def stops(self, environment: str, algorithm: str) -> list[int]:
        """Iterations after which a training is tested; the first is 0."""
        per_pair = 2 if algorithm.startswith("drs") else 1
        last, parts = self.iterations_of(environment), self.checkpoints
        return [per_pair * (last * part // parts) for part in range(parts + 1)]

    def as_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    def fingerprint(self) -> dict[str, Any]:
        """The fields that change a number of a unit. Which units there are is not among them: more
        seeds, pairs or environments can join a study that is there."""
        fields = self.as_dict()
        for name in ("preset", "level", "seeds", "pairs", "environments"):
            del fields[name]
        return fields


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "environments": ("HalfCheetahRandVel",),
        "pairs": ("ppo",),
        "seeds": 2,
        "iterations": 40,
        "checkpoints": 4,
        "tasks": 10,
        "rollouts": 5,
        "horizon": 100,
        "test_tasks": 40,
        "updates": 2,
    },
    "small": {
        "environments": ("HalfCheetahRandVel", "HopperRandParams"),
        "pairs": ("ppo", "trpo"),
        "seeds": 5,
        "iterations": 100,
        "checkpoints": 5,
        "tasks": 10,
        "rollouts": 5,
        "horizon": 100,
        "test_tasks": 40,
        "updates": 2,
    },
    "medium": {
        "environments": (
            "HalfCheetahRandVel",
            "HopperRandParams",
            "Walker2DRandParams",
            "Walker2DRandVel",
        ),
        "pairs": ("ppo", "trpo"),
        "seeds": 5,
        "iterations": 100,
        "checkpoints": 5,
        "tasks": 20,
        "rollouts": 10,
        "horizon": 100,
        "test_tasks": 60,
        "updates": 3,
    },
    "published": {
        "environments": (
            "Walker2DRandParams",
            "HopperRandParams",
            "Walker2DRandVel",
            "HalfCheetahRandVel",
            "ML1-Push",
            "ML1-Reach",
            "ML10",
            "ML45",
        ),
        "pairs": ("ppo", "trpo"),
        "seeds": 5,
        "iterations": None,
        "checkpoints": 20,
        "tasks": None,
        "rollouts": None,
        "horizon": None,
        "test_tasks": 1000,
        "updates": 5,
        "reward_version": "v1",
        "seed": 1,
    },
}


def preset_settings(preset: str, **given: Any) -> Settings:
    """A preset with some of its settings replaced; None leaves one as it is, but for checkpoints,
    of which there are no more than iterations.
    """
    check_choice("--preset", preset, tuple(PRESETS))
    overrides = {name: value for name, value in given.items() if value is not None}
    settings = {**PRESETS[preset], **overrides, "preset": preset}
    if "iterations" in overrides and "checkpoints" not in overrides:
        settings["checkpoints"] = max(1, min(settings["checkpoints"], settings["iterations"]))
    return Settings(**settings)


def check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse a word that is none of those known, with the nearest one."""
    if value not in known:
        hint = nearest(value, known)
        raise InputError(
            f"{name} must be one of {', '.join(known)} (got {value!r})" + (f"; {hint}" * bool(hint))
        )


def option(name: str) -> str:
    """How a setting is spelt on the command line."""
    return "--" + name.replace("_", "-")


_RANGES = {
    "seeds": (2, 1000),
    "iterations": (1, 10**7),
    "checkpoints": (1, 1000),
    "tasks": (1, 10**5),
    "rollouts": (1, 10**5),
    "horizon": (1, 10**6),
    "test_tasks": (2, 10**6),
    "updates": (0, 1000),
    "seed": (0, 2**62),
}
