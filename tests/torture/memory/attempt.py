"""One operation with one allocation failing, or all from one on; run in a process of its own."""

from __future__ import annotations

import _socket
import _testcapi
import asyncio
import contextlib
import gc
import inspect
import itertools
import logging
import os
import socket
import sys
import time
import traceback

import helpers

from . import programs

# How long an operation may wait for what a failed allocation has prevented, in seconds.
PATIENCE = 0.5
# More allocations than any operation makes.
MOST = 1 << 16


def factory(loop_name):
    if loop_name == "asyncio":
        return asyncio.SelectorEventLoop
    import hotloop

    return hotloop.new_event_loop


# How many frames an exception is told with.
PLACES = 6
# What else says so: errors of other classes.
SHORTAGES = {"can't allocate lock", "can't allocate read lock", "can't start new thread"}


class Overdue(Exception):
    """The operation waits for what does not come."""


class Witness:
    """What was said of errors while memory was short: to the exception handler, the log, the hooks."""

    def __init__(self):
        self.said = []
        sys.unraisablehook = lambda found: self.said.append(("unraisable", found.exc_value))
        logger = logging.getLogger("asyncio")
        logger.addHandler(handler := logging.Handler())
        logger.propagate = False
        handler.emit = self.emit

    def handler(self, loop, context):
        self.said.append(("handler", context.get("exception"), context["message"]))

    def emit(self, record):
        self.said.append(("log", (record.exc_info or (None, None))[1], record.msg))


def describe(error):
    """Its class, and the innermost places in which it was raised."""
    frames = traceback.extract_tb(error.__traceback__)[-PLACES:]
    places = [f"{place(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames]
    return f"{type(error).__name__}: {error} in {' < '.join(reversed(places))}"


def place(path):
    """The name of a source file, of one in a package with that."""
    return path.partition("/site-packages/")[2] or os.path.basename(path)


def is_shortage(error):
    """Whether an exception says that there was no memory, or comes of one that does."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, MemoryError) or str(error) in SHORTAGES:
            return True
        if isinstance(error, BaseExceptionGroup) and any(map(is_shortage, error.exceptions)):
            return True
        error = error.__cause__ or error.__context__
    return False


def forget_frames(error):
    """Have an exception keep nothing alive of where it was raised."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def starved(act, first, last):
    """Call `act` with those allocations failing. Returns its exception, and whether one failed for
    certain."""
    error = None
    failed = False
    try:
        _testcapi.set_nomemory(first, last)
        try:
            act()
        finally:
            _testcapi.remove_mem_hooks()
    except BaseException as caught:
        error = caught
        failed = is_shortage(caught)
    return error, failed


def allocations(act):
    """How many allocations `act` makes, about: by how many it leaves until the one that fails."""

    def left(act):
        numbers = itertools.count()
        _testcapi.set_nomemory(MOST, MOST + 1)
        try:
            act()
            for _ in numbers:
                object()
        except MemoryError:
            pass
        finally:
            _testcapi.remove_mem_hooks()
        return next(numbers)

    left(int)  # the free lists are as full as they will be
    alone = left(int)
    return round((alone - left(act)) * MOST / alone)


def check_loop(loop, patience):
    """Whether the loop still does what loops do."""
    ours, peer = socket.socketpair()
    for sock in (ours, peer):
        sock.setblocking(False)

    async def main():
        async with asyncio.timeout(6 * patience):
            future = loop.create_future()
            loop.call_later(0, future.set_result, None)
            await future
            reader, writer = await asyncio.open_connection(sock=ours)
            await loop.sock_sendall(peer, b"hello")
            await reader.readexactly(5)
            writer.close()

    try:
        # What the operation has queued goes first, and its timers: a stop() is among both.
        for _ in range(2):
            loop.call_soon(loop.stop)
            loop.run_forever()
            time.sleep(0.005)
        loop.call_soon(loop.stop)
        loop.run_forever()
        loop.run_until_complete(main())
    finally:
        ours.close()
        peer.close()


def end(loop, patience):
    """What asyncio.Runner does at the end. Returns the tasks that do not end."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks, timeout=patience))
    left = [task for task in tasks if not task.done()]
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_default_executor())
    return left


def socketpair(family=socket.AF_UNIX, type=socket.SOCK_STREAM, proto=0):
    """socket.socketpair(). CPython's loses a descriptor where there is no memory for the second object."""
    made = []
    for half in _socket.socketpair(family, type, proto):
        made.append(socket.socket(family, type, proto, half.fileno()))
        half.detach()
    return made


# How many calls of accept() have failed, each of which may have lost a descriptor.
failed_accepts = 0


def accept(self, accept=socket.socket.accept):
    """socket.socket.accept(). It loses the descriptor without memory for the address or the object."""
    global failed_accepts
    try:
        return accept(self)
    except BlockingIOError:
        raise
    except Exception:
        failed_accepts += 1
        raise


def attempt(loop_name, name, first, last, patience=PATIENCE):
    """What came of it, as a dict that JSON can write."""
    witness = Witness()
    socket.socketpair = socketpair
    socket.socket.accept = accept
    # Otherwise asyncio makes a loop where a coroutine is destroyed that asks for the running one.
    asyncio.set_event_loop(None)
    gc.collect()
    before = helpers.open_descriptors()
    problems = []
    loopless = name in programs.LOOPLESS
    loop = None if name == "import" else factory(loop_name) if loopless else factory(loop_name)()
    clean = contextlib.ExitStack()
    if not loopless:
        loop.set_exception_handler(witness.handler)
    act = programs.PROGRAMS[name](loop, clean)
    if first is None:
        return {"count": allocations(act)}
    overdue = []
    if not loopless:

        def interrupt():
            overdue.append(None)
            loop.stop()

        # The first needs no memory to be called.
        watchdogs = [loop.call_later(patience, each) for each in (_testcapi.remove_mem_hooks, interrupt)]
    error, failed = starved(act, first, last)
    if not loopless:
        for watchdog in watchdogs:
            watchdog.cancel()
    if loopless or not loop.is_running():
        # What a thread keeps of a loop that has run is taken back with functions that need memory.
        asyncio._set_running_loop(None)
        sys.set_asyncgen_hooks(None, None)
    result = {
        "error": type(error).__name__ if error is not None else None,
        "shortage": failed,
        "overdue": bool(overdue),
        "where": describe(error) if error is not None else None,
        "said": [f"{kind} {rest}: {describe(told) if told else None}" for kind, told, *rest in witness.said],
        "told": any(is_shortage(told) for _, told, *_ in witness.said),
    }
    said = len(witness.said)
    error = None
    try:
        if not loopless:
            if not loop.is_closed():
                with contextlib.suppress(asyncio.CancelledError):
                    check_loop(loop, patience)
                clean.close()
                problems += [f"a task is left: {task!r}" for task in end(loop, patience)]
            loop.close()
        clean.close()
    except BaseException as caught:
        problems.append("afterwards: " + "".join(traceback.format_exception(caught)[-6:]))
    act = loop = watchdog = watchdogs = None
    for _, told, *_ in witness.said:
        forget_frames(told)
    for _ in range(3):
        gc.collect()
    left = [f"a descriptor is left: {target}" for target in helpers.opened_since(before).values()]
    problems += left[failed_accepts:]
    # asyncio's task in C leaks its coroutine, and all that this refers to, if the last allocation in making
    # one fails.
    result["leaked"] = any(
        inspect.iscoroutine(each) and inspect.getcoroutinestate(each) == inspect.CORO_CREATED
        for each in gc.get_objects()
    )
    result["later"] = [f"{kind} {rest}: {told!r}" for kind, told, *rest in witness.said[said:]]
    result["problems"] = problems
    return result
