"""Meta reinforcement learning: batched environments, sampling, advantages. Start at `make` and
`collect`.

Importing needs torch and NumPy alone. The environments need `pip install "innerloop[rl]"`,
Meta-World `"innerloop[metaworld]"`.
"""

from innerloop.rl.advantage import advantages
from innerloop.rl.environment import Environment
from innerloop.rl.gymnasium_tasks import from_gymnasium
from innerloop.rl.registry import NAMES, make
from innerloop.rl.rollouts import Rollouts, episode_returns, policy_batch
from innerloop.rl.sampling import collect
from innerloop.rl.seeds import derived

__all__ = [
    "NAMES",
    "Environment",
    "Rollouts",
    "advantages",
    "collect",
    "derived",
    "episode_returns",
    "from_gymnasium",
    "make",
    "policy_batch",
]
