"""The three ways to train that the commands set against each other."""

from __future__ import annotations

JOINT, FIRST_ORDER, MAML = "joint", "fomaml", "maml"
METHODS = (JOINT, FIRST_ORDER, MAML)
LABELS = {JOINT: "joint training", FIRST_ORDER: "first-order MAML", MAML: "MAML"}
