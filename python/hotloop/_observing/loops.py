"""The names of loops in reports."""

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


def on_loop_created(act: Callable[[Loop], object]) -> None:
    """Call *act* with every loop that is made from now on, after former ones."""
    former = Loop._on_created

    def both(loop: Loop) -> None:
        if former is not None:
            former(loop)
        act(loop)

    Loop._on_created = staticmethod(both)


def name_loop(loop: Loop) -> None:
    """Name a loop by the current thread's name and a number, for open_loops()."""
    if loop not in _names:
        _names[loop] = f"{threading.current_thread().name}-{next(_numbers)}"


def open_loops() -> list[tuple[str, Loop]]:
    """Named loops that are not closed, in the order in which they were named."""
    # keyrefs() makes a copy, as other threads may name loops meanwhile.
    loops = [loop for loop in (reference() for reference in _names.keyrefs()) if loop is not None]
    return [(_names[loop], loop) for loop in loops if not loop.is_closed()]
