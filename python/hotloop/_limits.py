"""Limits of what servers accept: hotloop.limit(), and those of `python -m hotloop --limit-connections`."""

from __future__ import annotations

import asyncio
import operator
import sys

from .loop import Loop, has_original_accept

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ._core import Limit


def limit(
    server: asyncio.AbstractServer, *, connections: int | None = None, delay: float | None = None
) -> Limit:
    """Have a server accept no more connections for the time being while it has enough to do.

    It accepts none while it has *connections* or more: they count from accept() until they are closed, TLS
    handshakes included. It goes on when there are nine tenths of that, and at least one less.

    It accepts none either from when its loop is later than *delay* seconds: the 90th percentile of how late
    callbacks ran in the last second, `delay` of loop.metrics(), compared every 0.1 seconds. It goes on when
    that of the callbacks since the last comparison is at most half of *delay*, or if there were none.

    What connects meanwhile waits in the backlog of the listening sockets. If that is full, Linux does not
    answer, and the client's system tries again. All sockets of the server pause together.

    A new call replaces the limit; without *connections* and *delay* it removes it. Return the Limit of the
    server, always the same object. May be called before the server begins to serve, and while it is paused.

    Raise TypeError for a server that is none of asyncio's, and for limits that are no numbers. Raise
    ValueError for a server of another kind of loop, or whose sockets have an accept() of their own, for
    *connections* below one, and for a *delay* that is not positive. Raise RuntimeError in another thread than
    the one that runs the loop, or if the loop is closed.
    """
    if not isinstance(server, asyncio.Server):
        raise TypeError(f"a server of asyncio's was expected, not {type(server).__name__}")
    loop = server.get_loop()
    if not isinstance(loop, Loop):
        raise ValueError(f"the server is not one of a hotloop loop, but of {type(loop).__name__}")
    if connections is not None:
        connections = operator.index(connections)
        if connections < 1:
            raise ValueError(f"connections must be at least 1, not {connections}")
        connections = min(connections, sys.maxsize)
    if delay is not None:
        # Not float(), which takes strings.
        if not hasattr(type(delay), "__float__") and not hasattr(type(delay), "__index__"):
            raise TypeError(f"delay must be a number of seconds, not {type(delay).__name__}")
        delay = float(delay)
        if not 0 < delay < float("inf"):
            raise ValueError(f"delay must be a positive number of seconds, not {delay}")
    sockets: Any = server.sockets
    if not all(has_original_accept(getattr(sock, "_sock", sock)) for sock in sockets):
        raise ValueError("the sockets of the server have an accept() of their own")
    return loop._limit(server, connections, delay)


def limit_all(*, connections: int | None = None, delay: float | None = None) -> None:
    """Limit every server that begins to serve from now on, unless it was limited before."""

    def limit_server(server: object) -> None:
        if isinstance(server, asyncio.Server) and "_hotloop_limit" not in vars(server):
            limit(server, connections=connections, delay=delay)

    Loop._on_serving = staticmethod(limit_server)
