"""Meta reinforcement learning: batched environments. Start at `make`.

Importing needs torch and NumPy alone. The environments need `pip install "innerloop[rl]"`,
Meta-World `"innerloop[metaworld]"`.
"""

from innerloop.rl.environment import Environment
from innerloop.rl.gymnasium_tasks import from_gymnasium
from innerloop.rl.registry import NAMES, make

__all__ = ["NAMES", "Environment", "from_gymnasium", "make"]
