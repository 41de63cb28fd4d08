"""Meta reinforcement learning: batched environments, sampling, advantages, and the four algorithms
of Gao and Sener (2020). Start at `make`, `train` and `evaluate`; write your own loop with
`collect`, `advantages`, `policy_batch` and innerloop's operations, whose losses "pg_loglik",
"pg_ratio", "pg_clipped" and "kl" are the policies' objectives.

Importing needs torch and NumPy alone. The environments need `pip install "innerloop[rl]"`,
Meta-World `"innerloop[metaworld]"`.
"""

from innerloop.rl.advantage import advantages
from innerloop.rl.comparing import tradeoff
from innerloop.rl.environment import Environment
from innerloop.rl.evaluation import evaluate
from innerloop.rl.gymnasium_tasks import from_gymnasium
from innerloop.rl.logs import JsonLines, TensorBoard
from innerloop.rl.recording import record
from innerloop.rl.registry import NAMES, make
from innerloop.rl.rollouts import Rollouts, episode_returns, policy_batch
from innerloop.rl.sampling import collect
from innerloop.rl.saving import load_policy, save_policy
from innerloop.rl.seeds import derived
from innerloop.rl.settings import published_iterations, published_settings
from innerloop.rl.training import Training, train
from innerloop.rl.trust_region import TrustRegionStep, conjugate_gradient, trust_region_step

__all__ = [
    "NAMES",
    "Environment",
    "JsonLines",
    "Rollouts",
    "TensorBoard",
    "Training",
    "TrustRegionStep",
    "advantages",
    "collect",
    "conjugate_gradient",
    "derived",
    "episode_returns",
    "evaluate",
    "from_gymnasium",
    "load_policy",
    "make",
    "policy_batch",
    "published_iterations",
    "published_settings",
    "record",
    "save_policy",
    "tradeoff",
    "train",
    "trust_region_step",
]
