"""Puts hotloop's loop in the place of every loop that asyncio makes.

A loop comes into being through one of asyncio's loop classes (`asyncio.SelectorEventLoop`, and from Python
3.13 its alias `asyncio.EventLoop`) or through the event loop policy, which `asyncio.new_event_loop()`,
`asyncio.run()`, `asyncio.Runner` and `unittest.IsolatedAsyncioTestCase` ask when they were given no class.
Replacing both before a test module is imported catches them all. `asyncio.BaseEventLoop` stays as it is:
tests that build a loop of their own on it test that class, not a loop of asyncio's.
"""

import asyncio
import sys
from asyncio import events, unix_events

import hotloop


class _CallMakesHotloop(type):
    """Calling the class makes a hotloop loop, and a hotloop loop counts as an instance of it."""

    def __call__(cls, selector=None):
        # Tests name a selector to say how asyncio's loop is to wait. Ours waits in its own way, so the
        # selector is closed, as asyncio's loop would have done in the end.
        if selector is not None:
            selector.close()
        return hotloop.new_event_loop()

    def __instancecheck__(cls, instance):
        return isinstance(instance, hotloop.Loop)


class SelectorEventLoop(metaclass=_CallMakesHotloop):
    """Stands where asyncio's loop class stood."""


def replace_loops():
    for module in (asyncio, unix_events):
        for name in ("SelectorEventLoop", "EventLoop"):
            if hasattr(module, name):
                setattr(module, name, SelectorEventLoop)

    if sys.version_info < (3, 14):
        asyncio.DefaultEventLoopPolicy = unix_events.DefaultEventLoopPolicy = hotloop.EventLoopPolicy
    elif hasattr(hotloop, "EventLoopPolicy"):
        # Deprecated since 3.14: asyncio.DefaultEventLoopPolicy warns and returns the private name.
        unix_events._DefaultEventLoopPolicy = hotloop.EventLoopPolicy
    else:
        events.new_event_loop = asyncio.new_event_loop = hotloop.new_event_loop
