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
}


def factory(loop: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """The factory of a named loop; other loops are given as module:attribute."""
    module, _, attribute = FACTORIES.get(loop, loop).partition(":")
    made_by: Callable[[], asyncio.AbstractEventLoop] = getattr(importlib.import_module(module), attribute)
    return made_by


def package(loop: str) -> str:
    return FACTORIES.get(loop, loop).partition(":")[0]


def is_installed(loop: str) -> bool:
    return importlib.util.find_spec(package(loop)) is not None


def version(loop: str) -> str:
    if loop == "asyncio":
        return platform.python_version()
    try:
        return importlib.metadata.version(package(loop))
    except importlib.metadata.PackageNotFoundError:
        with contextlib.suppress(Exception):  # Importing a broken package can raise anything.
            return str(importlib.import_module(package(loop)).__version__)
        return "(unknown version)"
