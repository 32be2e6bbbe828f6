"""How much of it a run does, and with which seed."""

import os
import random

FULL = os.environ.get("HOTLOOP_TORTURE") == "full"
SEED = int(os.environ.get("HOTLOOP_SEED", "1"))


def effort(usual: float, full: float) -> float:
    """How much to do, by whatever measure: in `make test`, and in `make torture`."""
    return full if FULL else usual


def seeded(name: str) -> random.Random:
    """A source of random numbers for each test, the same in each run with the same HOTLOOP_SEED."""
    return random.Random(f"{SEED} {name}")
