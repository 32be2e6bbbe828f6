"""The event loop policy, on Pythons whose asyncio has policies: asyncio's default one, with hotloop's Loop.

From 3.14 on, accessing asyncio's public names for policies warns; accessing the private ones does not.
"""

from __future__ import annotations

import asyncio
import asyncio.events as _events
import sys

from .loop import Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_default: Any
_set_policy: Any
if sys.version_info >= (3, 14):
    import asyncio.unix_events as _unix

    _default = getattr(_unix, "_DefaultEventLoopPolicy", None)
    _set_policy = getattr(_events, "_set_event_loop_policy", None)
else:
    _default = asyncio.DefaultEventLoopPolicy
    _set_policy = asyncio.set_event_loop_policy

HAS_POLICIES = _default is not None and _set_policy is not None

if TYPE_CHECKING or HAS_POLICIES:

    class EventLoopPolicy(_default):  # type: ignore[misc]  # its base depends on the running Python
        """asyncio's default policy, except that its new_event_loop() makes a hotloop.Loop."""

        _loop_factory = Loop

    def install() -> None:
        """Make asyncio.new_event_loop(), and functions that call it, return a hotloop.Loop."""
        _set_policy(EventLoopPolicy())
