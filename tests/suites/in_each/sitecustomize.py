"""Imported by each Python process of a suite: chooses what asyncio makes as a loop, and counts loops.

A loop comes into being through one of asyncio's loop classes or through its event loop policy. Both are
replaced before anything else is imported: it does not matter how a suite makes its loops, nor in which
process.
"""

import asyncio
import os
from asyncio import unix_events

LOOP = os.environ["HOTLOOP_SUITES_LOOP"]
COUNTS = os.environ["HOTLOOP_SUITES_COUNTS"]

if LOOP == "hotloop":
    import hotloop

    for module in (asyncio, unix_events):
        for name in ("SelectorEventLoop", "EventLoop"):
            if hasattr(module, name):
                setattr(module, name, hotloop.Loop)
    # In asyncio's own policy: suites that set it again have the same loop.
    hotloop.EventLoopPolicy.__base__._loop_factory = hotloop.Loop


def is_hotloop(loop):
    return LOOP == "hotloop" and isinstance(loop, hotloop.Loop)


def counting(init, *, open=os.open, write=os.write, close=os.close):
    """Add a byte to the file of its kind for each loop that is made: a killed process loses no count."""

    def __init__(self):
        kind = "hotloop" if is_hotloop(self) else "asyncio"
        try:
            file = open(os.path.join(COUNTS, kind), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError:  # a test that leaves no descriptors
            pass
        else:
            write(file, b".")
            close(file)
        init(self)

    return __init__


asyncio.BaseEventLoop.__init__ = counting(asyncio.BaseEventLoop.__init__)
