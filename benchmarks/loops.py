"""The event loops that have names, and their factories."""

import asyncio
import contextlib
import importlib
import importlib.metadata
import importlib.util
import platform
from collections.abc import Callable

FACTORIES = {
    "asyncio": "asyncio:SelectorEventLoop",
    "hotloop": "hotloop:new_event_loop",
    "uvloop": "uvloop:new_event_loop",
    "rloop": "rloop:new_event_loop",
    "rsloop": "rsloop:new_event_loop",
    "blazio": "blazio:new_event_loop",
    "talyn": "talyn:Loop",
    "zuvloop": "zuvloop:new_event_loop",
    "loopmini": "loopmini:new_event_loop",
    "asyncio+aiofastnet": "aiofastnet:loop_factory",
    "uvloop+aiofastnet": "aiofastnet:loop_factory",
    "hotloop+aiofastnet": "aiofastnet:loop_factory",
}
"""By name. After a plus sign: what makes another factory of a loop's, with transports of its own."""


OURS = "hotloop"
CONTROL = "hotloop again"
"""hotloop, measured a second time as if it were another loop. It tells how far equal loops differ."""


def factory(loop: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """The factory of a named loop; other loops are given as module:attribute."""
    module, _, attribute = FACTORIES.get(loop, loop).partition(":")
    found = getattr(importlib.import_module(module), attribute)
    below, has_transports, _ = loop.partition("+")
    made_by: Callable[[], asyncio.AbstractEventLoop] = found(factory(below)) if has_transports else found
    return made_by


def package(loop: str) -> str:
    return FACTORIES.get(loop, loop).partition(":")[0]


def is_installed(loop: str) -> bool:
    below = loop.partition("+")[0]
    return all(importlib.util.find_spec(package(name)) is not None for name in {loop, below})


def version(loop: str) -> str:
    if loop == "asyncio":
        return platform.python_version()
    try:
        return importlib.metadata.version(package(loop))
    except importlib.metadata.PackageNotFoundError:
        with contextlib.suppress(Exception):  # Importing a broken package can raise anything.
            return str(importlib.import_module(package(loop)).__version__)
        return "(unknown version)"
