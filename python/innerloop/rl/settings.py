"""The published settings of Gao and Sener (2020), as defaults by algorithm and task family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from innerloop.rl import _checks
from innerloop.rl.meta_world import BENCHMARKS
from innerloop.rl.sampling import SAMPLING

ALGORITHMS = ("drs-ppo", "promp", "drs-trpo", "trpo-maml")


@dataclass(frozen=True)
class Settings:
    """What every algorithm has.

    Members:
        hidden: sizes of the policy's hidden layers.
        discount: of rewards.
        gae_lambda: of the advantages; 1 is return minus baseline.
        sampling: "lanes" or "published", see `collect`.
    """

    hidden: tuple[int, ...] = (64, 64)
    discount: float = 0.99
    gae_lambda: float = 1.0
    sampling: str = "lanes"


@dataclass(frozen=True)
class PPO(Settings):
    """Joint training (DRS) with PPO: Adam's rate, the clip of the ratio, epochs of one batch."""

    learning_rate: float = 1e-3
    clip: float = 0.3
    epochs: int = 5


@dataclass(frozen=True)
class ProMP(Settings):
    """ProMP. `kl_coefficient` is the penalty's (at the start, if `kl_target` is a number: it is
    then halved when the KL is below target / 1.5 and doubled above 1.5 target). order 1 drops the
    second derivative of the inner step."""

    learning_rate: float = 1e-3
    inner_lr: float = 1e-2
    clip: float = 0.3
    epochs: int = 5
    kl_coefficient: float = 5e-4
    kl_target: float | None = None
    order: int = 2


@dataclass(frozen=True)
class TRPO(Settings):
    """Joint training (DRS) with TRPO: bound of the KL, conjugate gradients, line search."""

    max_kl: float = 0.01
    cg_iterations: int = 10
    line_search_steps: int = 15
    line_search_ratio: float = 0.8


@dataclass(frozen=True)
class TRPOMAML(TRPO):
    """TRPO-MAML: TRPO after one inner step; order 1 drops its second derivative."""

    inner_lr: float = 1e-2
    order: int = 2


KINDS: Mapping[str, type[Settings]] = {
    "drs-ppo": PPO,
    "promp": ProMP,
    "drs-trpo": TRPO,
    "trpo-maml": TRPOMAML,
}

# family: PPO rate, ProMP rate and inner rate, TRPO bound, TRPO-MAML bound and inner rate
_TABLE: Mapping[str, tuple[float, float, float, float, float, float]] = {
    "Walker2DRandParams": (1e-3, 1e-3, 1e-2, 0.1, 0.1, 1e-2),
    "Walker2DRandVel": (1e-3, 1e-3, 1e-2, 0.01, 0.1, 1e-2),
    "HalfCheetahRandVel": (1e-2, 1e-4, 1e-2, 0.01, 0.001, 1e-2),
    "HopperRandParams": (1e-3, 1e-3, 1e-2, 0.1, 0.1, 1e-2),
    "ML1-Push": (1e-4, 1e-4, 1e-4, 0.1, 0.1, 1e-4),
    "ML1-Reach": (1e-4, 1e-4, 1e-4, 0.001, 0.001, 1e-5),
    "ML10": (1e-4, 1e-4, 1e-3, 0.001, 0.01, 1e-3),
    "ML45": (1e-4, 1e-4, 1e-5, 0.01, 0.1, 1e-3),
}


def published_settings(name: str, algorithm: str) -> dict[str, Any]:
    """Returns the settings that `train` takes by default for a family, as keywords.

    Args:
        name: of the environment. Families that are not in the paper get the settings of
            Walker2DRandVel's kind: rate 1e-3, inner rate 1e-2, KL bound 0.01.
        algorithm: "drs-ppo", "promp", "drs-trpo" or "trpo-maml".

    Raises:
        ValueError: the algorithm is unknown.

    Source: Gao and Sener 2020, appendix, and the configuration of its public code.

    Example:
        >>> published_settings("HalfCheetahRandVel", "drs-ppo")["learning_rate"]
        0.01
    """
    _checks.choice("published_settings", "algorithm", algorithm, ALGORITHMS)
    found: dict[str, Any] = {}
    if name in _TABLE:
        ppo, promp, promp_inner, trpo, maml, maml_inner = _TABLE[name]
        found = {
            "drs-ppo": {"learning_rate": ppo},
            "promp": {"learning_rate": promp, "inner_lr": promp_inner},
            "drs-trpo": {"max_kl": trpo},
            "trpo-maml": {"max_kl": maml, "inner_lr": maml_inner},
        }[algorithm]
    if name in BENCHMARKS:
        found["hidden"] = (100, 100)
    if name.endswith("RandParams"):
        if algorithm in ("drs-ppo", "promp"):
            found["epochs"] = 3
        if algorithm == "promp":
            found |= {"kl_coefficient": 1e-3, "kl_target": 1e-2}
    defaults = KINDS[algorithm](**found)
    return {field.name: getattr(defaults, field.name) for field in fields(defaults)}


def published_iterations(name: str, algorithm: str) -> int:
    """Returns the published number of iterations; joint training has twice as many as its partner,
    which samples twice in each.

    Example:
        >>> published_iterations("ML10", "promp"), published_iterations("ML10", "drs-ppo")
        (10001, 20001)
    """
    _checks.choice("published_iterations", "algorithm", algorithm, ALGORITHMS)
    pairs = 10000 if name in BENCHMARKS else 1000
    return (2 * pairs if algorithm.startswith("drs") else pairs) + 1


_ELSEWHERE = {"lr": "learning_rate", "gamma": "discount", "lam": "gae_lambda", "eps": "clip"}


def build_settings(op: str, name: str, algorithm: str, given: Mapping[str, Any]) -> Settings:
    """Returns checked settings: the published ones with some overridden."""
    values = published_settings(name, algorithm)
    for key in given:
        if key == "iterations":
            raise TypeError(f"{op}: iterations is an argument of rl.train; call step() as often")
        if key not in values:
            if key in _ELSEWHERE:
                raise TypeError(
                    f"{op}: {algorithm} has no setting {key!r}; did you mean {_ELSEWHERE[key]!r}?"
                )
            remedy = _checks.nearest(key, values) or f"it has {', '.join(values)}"
            raise TypeError(f"{op}: {algorithm} has no setting {key!r}; {remedy}")
    values |= given
    settings = KINDS[algorithm](**values)
    _check(op, settings)
    return settings


def _check(op: str, settings: Settings) -> None:
    """Raises for a setting that is out of its range."""
    whole = {"epochs", "cg_iterations", "line_search_steps"}
    share = {"discount", "gae_lambda"}
    positive = {"learning_rate", "max_kl", "clip"}
    for field in fields(settings):
        name, value = field.name, getattr(settings, field.name)
        if name in whole:
            _checks.integer(op, name, value)
        elif name == "order":
            _checks.integer(op, name, value, 1, 2)
        elif name in share:
            _checks.number(op, name, value, 0.0, 1.0)
        elif name in positive:
            _checks.number(op, name, value, 1e-300)
        elif name == "line_search_ratio":
            _checks.number(op, name, value, 1e-6, 1.0 - 1e-6)
        elif name == "sampling":
            _checks.choice(op, name, value, SAMPLING)
        elif name == "inner_lr":
            _checks.number(op, name, value, float("-inf"))
        elif name == "hidden":
            if isinstance(value, (str, int)) or not hasattr(value, "__iter__"):
                _checks.refuse_type(op, name, "be a sequence of sizes", repr(value))
            for size in value:
                _checks.integer(op, "a hidden size", size)
        elif not (name == "kl_target" and value is None):
            _checks.number(op, name, value)
