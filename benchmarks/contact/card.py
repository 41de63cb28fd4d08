"""What the visit is on: versions, the card, and the rates that it reaches."""

from __future__ import annotations

import os

from contact.record import Step
from measure import environment


def run(step: Step) -> None:
    """First what needs no work, then the limits."""
    import torch

    from measure import gpu

    facts = torch.cuda.get_device_properties(0)
    step.put("name", facts.name)
    step.put("capability", f"{facts.major}.{facts.minor}")
    step.put("commit", environment.commit())
    step.put("state", gpu.state())
    threads = len(os.sched_getaffinity(0))
    step.put("environment", environment.record(threads, "float32", "cuda"))
