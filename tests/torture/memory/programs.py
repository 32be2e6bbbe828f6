"""The operations: each takes a loop and an ExitStack, prepares, and returns what is to be run without
memory.
"""

from __future__ import annotations

from . import networking, scheduling  # noqa: F401  (they add theirs)
from .parts import PROGRAMS, prepare

# What is done without a loop that was made before.
LOOPLESS = {"import", "make"}
# What asyncio does not have.
HOTLOOP_ONLY = {"import", "metrics", "watching"}

__all__ = ["HOTLOOP_ONLY", "LOOPLESS", "PROGRAMS", "prepare"]
