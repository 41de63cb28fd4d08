"""The trainings of a study, one a unit of work, with the ways in which their checkpoints are
tested: the matched pairs, and controls.

Controls answer two questions that the published settings leave open:

- step-size: the meta-learning algorithm with the outer step size (Adam's rate, the bound of the KL)
  of its partner, where the published ones differ;
- adapts: joint training, the same policies, updated at test time with its partner's inner rate,
  where its own test rate is another (TRPO's is 0: it never adapts).
"""

from __future__ import annotations

from typing import NamedTuple

from innerloop.rl import published_settings
from innerloop.studies.meta_rl.settings import PAIRS, Settings

PUBLISHED, STEP_SIZE, ADAPTS = "published", "step-size", "adapts"


class Unit(NamedTuple):
    """One training.

    Members:
        environment, pair, algorithm: names.
        control: "" or STEP_SIZE.
        seed: of the training.
        changed: settings of the algorithm that are not the published ones.
        tests: test-time rate by name: PUBLISHED, and ADAPTS where that control exists.
    """

    environment: str
    pair: str
    algorithm: str
    control: str
    seed: int
    changed: dict[str, float]
    tests: dict[str, float]

    @property
    def name(self) -> str:
        """Names the unit in the journal and in file names."""
        control = f"-{self.control}" if self.control else ""
        return f"{self.environment}-{self.algorithm}{control}-{self.seed}"


def all_units(settings: Settings) -> list[Unit]:
    """The trainings, in an order that completes one comparison after the other."""
    return [
        unit
        for pair in settings.pairs
        for environment in settings.environments
        for seed in range(settings.seed, settings.seed + settings.seeds)
        for unit in _one_seed(settings, environment, pair, seed)
    ]


def _one_seed(settings: Settings, environment: str, pair: str, seed: int) -> list[Unit]:
    """DRS, its partner, and the control training if there is one."""
    drs, maml = PAIRS[pair]
    size = "learning_rate" if pair == "ppo" else "max_kl"
    ours, theirs = (published_settings(environment, name) for name in (drs, maml))
    inner = theirs["inner_lr"]
    tests = {PUBLISHED: ours["learning_rate"] if pair == "ppo" else 0.0}
    if settings.controls and tests[PUBLISHED] != inner:
        tests[ADAPTS] = inner
    units = [
        Unit(environment, pair, drs, "", seed, {}, tests),
        Unit(environment, pair, maml, "", seed, {}, {PUBLISHED: inner}),
    ]
    if settings.controls and ours[size] != theirs[size]:
        changed = {size: ours[size]}
        units.append(Unit(environment, pair, maml, STEP_SIZE, seed, changed, {PUBLISHED: inner}))
    return units
