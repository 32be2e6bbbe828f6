"""The operations: each takes a loop and an ExitStack, prepares, and returns what is to be run without
memory.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import sys

from . import networking, scheduling  # noqa: F401  (they add theirs)
from .parts import PROGRAMS, contexts

# What is done without a loop that was made before.
LOOPLESS = {"import", "make"}
# What asyncio does not have.
HOTLOOP_ONLY = {"accounting", "import", "metrics", "recording", "watching"}

# The modules with dataclasses, which they import.
MODULES = (
    "hotloop.metrics",
    "hotloop.blocking",
    "hotloop._observing.watching",
    "hotloop._observing.tracing",
    "hotloop.recording",
    "hotloop.accounting",
    "hotloop._observing.awaiting",
)

__all__ = ["HOTLOOP_ONLY", "LOOPLESS", "PROGRAMS", "prepare"]


def prepare(name):
    """What takes long and is the same for all runs of a program, or is not to be tried without memory."""
    if name == "tls":
        contexts()
    if name in ("tls", "getaddrinfo"):
        "localhost".encode("idna")  # imports a module with functions: see crashes.code_of_function()
    if name in ("accounting", "metrics", "recording", "watching"):
        compile_dataclasses()


@functools.cache
def compile_dataclasses():
    """Have the methods of dataclasses compiled, and import the rest again later.

    The compiler of CPython 3.11 to 3.13 does not survive a failed allocation: see crashes.formatted_string().
    Nor is a SyntaxError what should come of it.
    """
    codes = {}

    def execute(source, *namespaces):
        if source not in codes:
            codes[source] = compile(source, "<string>", "exec")
        exec(codes[source], *namespaces)

    dataclasses.exec = execute
    for module in MODULES:
        importlib.import_module(module)
    for module in MODULES:
        del sys.modules[module]
        package, _, attribute = module.rpartition(".")
        delattr(sys.modules[package], attribute)
