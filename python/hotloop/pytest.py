"""What the pytest fixture `hotloop_leaks` does: it fails a test that leaves something of its own behind.

pytest finds the fixture by itself where hotloop is installed. A test that requests it is judged after its
other fixtures have been torn down. It fails if one of these, made since the fixture was set up, is left:

- a task that has not ended, of any loop in any thread, open or closed;
- a transport of hotloop's that is not closed;
- a thread that runs, except those of the default executor of a loop that is open;
- a file descriptor that is open, except 0, 1 and 2, and those by which signals wake a loop from before.

The report has, for each, where it was made. A test that fails or is skipped is not judged.

What is on its way out gets half a second: garbage is collected, and loops that are open and do not run are
run. Threads of executors end in that time, connections close, and tasks that are cancelled end.

For tasks, that is where their coroutine was made, in the thread of the test. A warning about a coroutine that
was never awaited tells it, too, while the fixture is active: see sys.set_coroutine_origin_tracking_depth().
While it is, os.pipe(), os.dup() and others that make descriptors without an audit event are wrapped.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ._observing import awaiting, descriptors
from ._observing.origins import DEPTH, Origins, made_at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._observing.origins import Stack

__all__ = ["Leaks"]

# Seconds between looks at what is left: half a second in all.
_PAUSES = (0.0, 0.01, 0.03, 0.06, 0.1, 0.1, 0.2)


class Leaks:
    """What is left behind between start() and end()."""

    def __init__(self) -> None:
        self.is_judged = True
        self._origins = Origins()
        self._depth = 0
        self._known = _References()
        self._descriptors: dict[int, descriptors.Identity] = {}

    def start(self) -> None:
        """Note what there is, and where it is made from now on."""
        self._known = _References(*_pending(), *_open_loops(), *threading.enumerate())
        self._depth = sys.get_coroutine_origin_tracking_depth()
        sys.set_coroutine_origin_tracking_depth(max(self._depth, DEPTH))
        self._descriptors = descriptors.all_open()
        self._origins.start(set(self._descriptors))

    def stop(self) -> None:
        """End what start() began."""
        self._origins.stop()
        sys.set_coroutine_origin_tracking_depth(self._depth)

    def end(self) -> str | None:
        """Return a report of what is left behind; None if nothing is, or the test is not judged."""
        self.stop()
        if not self.is_judged:
            return None
        left: list[tuple[str, str]] = []
        for pause in _PAUSES:
            time.sleep(pause)
            gc.collect()
            left = list(self._left())
            if not left:
                return None
            self._run_loops()
        gc.collect()
        left = list(self._left())
        return _report(left) if left else None

    def _left(self) -> Iterator[tuple[str, str]]:
        """What is left now: what kind of thing, and its description."""
        for task in self._tasks_left():
            yield "task", _describe_task(task)
        loops = _open_loops()
        # The standard streams are pytest's to redirect.
        owned = {0, 1, 2} | descriptors.of_the_interpreter()
        owned |= _sockets_of([loop for loop in loops if loop in self._known])
        for transport, stack in self._transports_left():
            owned.add(_descriptor_of(transport))
            yield "transport", f"{_repr(transport)}{made_at(stack)}"
        threads = _executor_threads(loops)
        for thread in threading.enumerate():
            if thread not in self._known and thread not in threads and _is_the_tests(thread):
                yield "thread", f"{_repr(thread)}{made_at(self._origins.of_thread(thread))}"
        for fd, identity in descriptors.all_open().items():
            if self._descriptors.get(fd) != identity and fd not in owned:
                made = made_at(self._origins.of_descriptor(fd, identity))
                yield "descriptor", f"{fd}, {identity.describe(fd)}{made}"

    def _tasks_left(self) -> list[asyncio.Task[Any]]:
        return [task for task in _pending() if task not in self._known and not _is_a_runners(task)]

    def _transports_left(self) -> Iterator[tuple[Any, Stack]]:
        for transport, stack in self._origins.live_transports():
            # A closed one has none.
            if transport.get_protocol() is not None:
                yield transport, stack

    def _run_loops(self) -> None:
        """Run what is left where it can end: on loops that are open and do not run."""
        if asyncio._get_running_loop() is not None:
            return
        loops = {id(loop): loop for loop in (task.get_loop() for task in self._tasks_left())}
        loops |= {id(each._loop): each._loop for each, _ in self._transports_left()}
        for loop in loops.values():
            if not loop.is_closed() and not loop.is_running():
                with suppress(Exception):
                    loop.run_until_complete(asyncio.sleep(0))


class _References:
    """Objects that are not kept alive, compared by identity."""

    def __init__(self, *things: object) -> None:
        self.references = {id(thing): weakref.ref(thing) for thing in things}

    def __contains__(self, thing: object) -> bool:
        reference = self.references.get(id(thing))
        return reference is not None and reference() is thing


def _pending() -> list[asyncio.Task[Any]]:
    """Tasks of all loops that have not ended. asyncio.all_tasks() has those of one."""
    found = []
    for thing in gc.get_objects():
        # isinstance() can run code of the program's.
        if issubclass(type(thing), awaiting.TASKS) and not thing.done():
            found.append(thing)
    return found


def _is_a_runners(task: asyncio.Task[Any]) -> bool:
    """Whether a task runs the tests, as that of anyio's plugin does."""
    return awaiting.name_of(task) == "TestRunner._run_tests_and_fixtures"


def _describe_task(task: asyncio.Task[Any]) -> str:
    where = awaiting.coroutines(task)
    awaits = f", at {where[-1].file}:{where[-1].line}" if where else ""
    origin = getattr(task.get_coro(), "cr_origin", None)
    return f"{task.get_name()} ({awaiting.name_of(task)}){awaits}{made_at(origin)}"


def _open_loops() -> list[Any]:
    return [
        thing
        for thing in gc.get_objects()
        if issubclass(type(thing), asyncio.BaseEventLoop) and not thing.is_closed()
    ]


def _executor_threads(loops: list[Any]) -> set[threading.Thread]:
    """Threads of the default executors of open loops, which end when the loop is closed."""
    executors = [getattr(loop, "_default_executor", None) for loop in loops]
    return set().union(*(getattr(executor, "_threads", ()) for executor in executors))


def _sockets_of(loops: list[Any]) -> set[int]:
    """Descriptors by which signals wake loops. They are made when a loop first runs."""
    sockets = [getattr(loop, name, None) for loop in loops for name in ("_ssock", "_csock")]
    return {sock.fileno() for sock in sockets if sock is not None}


def _is_the_tests(thread: threading.Thread) -> bool:
    # A dummy was not started by Python. Those that look names up, or serve `hotloop top`, stay for others.
    is_dummy = isinstance(thread, threading._DummyThread)
    return not is_dummy and not thread.name.startswith(("hotloop-", "hotloop names"))


def _descriptor_of(transport: Any) -> int:
    for name in ("_sock_fd", "_fileno"):
        # Another thread's loop does not tell.
        with suppress(AttributeError, RuntimeError):
            return int(getattr(transport, name))
    return -1


def _repr(thing: object) -> str:
    try:
        return repr(thing)
    except Exception as error:
        return f"<{type(thing).__name__}, whose repr() raised {type(error).__name__}>"


def _report(left: list[tuple[str, str]]) -> str:
    kinds = list(dict.fromkeys(kind for kind, _ in left))
    counts = [sum(kind == each for each, _ in left) for kind in kinds]
    parts = [f"{count} {kind}{'s' * (count != 1)}" for kind, count in zip(kinds, counts, strict=True)]
    title = ", ".join(parts[:-1]) + (" and " if parts[1:] else "") + parts[-1]
    return "\n".join([f"the test left {title} behind", *(f"  {kind} {text}" for kind, text in left)])
