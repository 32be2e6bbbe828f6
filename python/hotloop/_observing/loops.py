"""The loops of a program that is observed, which have names."""

from __future__ import annotations

import itertools
import threading
import weakref
from typing import TYPE_CHECKING

from ..loop import Loop

if TYPE_CHECKING:
    from collections.abc import Callable

_names: weakref.WeakKeyDictionary[Loop, str] = weakref.WeakKeyDictionary()
_numbers = itertools.count(1)


def whenever_made(act: Callable[[Loop], object]) -> None:
    """Call *act* with every loop that is made from now on."""
    former = Loop._when_made

    def both(loop: Loop) -> None:
        if former is not None:
            former(loop)
        act(loop)

    Loop._when_made = staticmethod(both)


def give_name(loop: Loop) -> None:
    """Have open_loops() list this loop, under the name of the thread that made it, and a number."""
    if loop not in _names:
        _names[loop] = f"{threading.current_thread().name}-{next(_numbers)}"


def open_loops() -> list[tuple[str, Loop]]:
    """All loops that have names and are not closed, in the order in which they were made."""
    # The references are copied at once, whatever other threads do.
    loops = [loop for loop in (reference() for reference in _names.keyrefs()) if loop is not None]
    return [(_names[loop], loop) for loop in loops if not loop.is_closed()]
