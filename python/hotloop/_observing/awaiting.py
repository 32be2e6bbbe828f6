"""What a task runs, and which task waits for it: the chain of its coroutines, and the awaiting task.

Nothing here changes a task, or runs code of the program's, except methods that a subclass of Task has. To be
called on the thread of the task's loop, or while that does not run.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import sys
from asyncio import tasks as asyncio_tasks
from dataclasses import dataclass
from types import AsyncGeneratorType, CoroutineType, FrameType, FunctionType, GeneratorType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

# What await has made of an asynchronous generator's method, or of a coroutine's __await__(). They have no
# attribute for what they wrap.
_WRAPPERS = ("async_generator_asend", "async_generator_athrow", "anext_awaitable", "coroutine_wrapper")
_COROUTINES = (CoroutineType, GeneratorType, AsyncGeneratorType)
# The names of a task's callback for what it awaits: of the task written in C, and of that in Python.
_WAKEUPS = ("task_wakeup", "__wakeup")
# Where functions are that wait for futures by callbacks.
_MODULES = ("asyncio.", "anyio.")
# Futures, or coroutines, that are followed at most: chains of either can be circular.
_LONGEST = 1000
# The flags of the code of coroutines, generators, and asynchronous generators; with types.coroutine(), too.
_SUSPENDS = 0x20 | 0x80 | 0x100 | 0x200


@dataclass(frozen=True, slots=True)
class Coroutine:
    """A coroutine, or a generator, that has not ended."""

    name: str
    """The function's qualified name."""
    file: str
    line: int
    """The line that it has come to; the first one if it has not started."""

    def __str__(self) -> str:
        return f"{self.name} {self.file}:{self.line}"


def coroutines(task: asyncio.Future[Any]) -> list[Coroutine]:
    """Return the coroutines of a task, each awaited by the one before.

    The list is empty if the task has ended, or if its coroutine is not written in Python. It ends at what is
    not.
    """
    frames = _frames(_coroutine_of(task))
    return [
        Coroutine(code.co_qualname, code.co_filename, frame.f_lineno or code.co_firstlineno)
        for frame, code in ((frame, frame.f_code) for frame in frames)
    ]


def name_of(task: asyncio.Future[Any]) -> str:
    """Return the qualified name of a task's coroutine, or of its type if it is not written in Python."""
    coroutine = _coroutine_of(task)
    if type(coroutine) is CoroutineType:
        return coroutine.cr_code.co_qualname
    for attribute in ("cr_code", "gi_code", "ag_code"):
        name = _get(_get(coroutine, attribute), "co_qualname")
        if isinstance(name, str):
            return name
    return type(task if coroutine is None else coroutine).__qualname__


def _get(thing: object, name: str) -> Any:
    """getattr() for objects of the program's, of which some raise other errors."""
    try:
        return getattr(thing, name, None)
    except Exception:
        return None


def _coroutine_of(task: object) -> Any:
    try:
        # Futures that are tasks have it.
        return task.get_coro()  # type: ignore[attr-defined]
    except Exception:
        # What a task factory made need not have one.
        return None


def _frames(awaited: Any) -> list[FrameType]:
    frames: list[FrameType] = []
    # Not for ever: an object of the program's can return itself.
    for _ in range(_LONGEST):
        if awaited is None:
            break
        kind = type(awaited)
        if kind.__name__ in _WRAPPERS:
            awaited = next((each for each in gc.get_referents(awaited) if _is_awaited(each)), None)
            continue
        frame, is_running, awaits = _state(awaited, kind)
        # A mock has any attribute.
        if not isinstance(frame, FrameType):
            break
        if is_running:
            return frames + _running_frames(frame)
        frames.append(frame)
        awaited = awaits
    return frames


def _state(coroutine: Any, kind: type) -> tuple[Any, Any, Any]:
    """The frame of a coroutine, whether it runs, and what it awaits. None for what has none of these."""
    if kind is CoroutineType:
        return coroutine.cr_frame, coroutine.cr_running, coroutine.cr_await
    if kind is GeneratorType:
        return coroutine.gi_frame, coroutine.gi_running, coroutine.gi_yieldfrom
    if kind is AsyncGeneratorType:
        # ag_running is True also while it awaits. If it runs, so does the coroutine that awaits it.
        return coroutine.ag_frame, False, coroutine.ag_await
    # Cython's.
    return _get(coroutine, "cr_frame"), _get(coroutine, "cr_running"), _get(coroutine, "cr_await")


def _is_awaited(thing: object) -> bool:
    return isinstance(thing, _COROUTINES) or type(thing).__name__ in _WRAPPERS


def _running_frames(outermost: FrameType) -> list[FrameType]:
    """The frames of a coroutine that runs, and of those that it awaits: they do not tell while they run."""
    stack: list[FrameType] = []
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame is not outermost:
        stack.append(frame)
        frame = frame.f_back
    if frame is None:
        # It runs in another thread.
        return [outermost]
    frames = [outermost]
    for frame in reversed(stack):
        if not frame.f_code.co_flags & _SUSPENDS:
            break
        frames.append(frame)
    return frames


def awaiting_task(task: asyncio.Future[Any]) -> asyncio.Task[Any] | None:
    """Return the task that waits for a task, or a future: the first one found, or None.

    It is found by asyncio's own notes from Python 3.14 on. Otherwise, it is if it awaits the task itself, or
    waits in a TaskGroup of asyncio's or anyio's, in asyncio's gather(), shield(), wait(), wait_for() or
    as_completed(), or for a future that these chain.
    """
    known = {id(task)}
    # Those closest to the task first. What is in the list stays alive, so that no address is used again.
    found: list[Any] = [task]
    for future in found:
        for waiting in _waiting_for(future):
            if id(waiting) in known:
                continue
            if is_task(waiting):
                # is_task() has looked at its class.
                return waiting  # type: ignore[no-any-return]
            known.add(id(waiting))
            found.append(waiting)
        if len(found) > _LONGEST:
            break
    return None


# Type checkers do not know the one written in Python.
TASKS: tuple[type, ...] = (asyncio.Task, asyncio_tasks._PyTask)  # type: ignore[attr-defined]


def is_task(thing: object) -> bool:
    """Whether something is a task, of asyncio's classes or one with their methods."""
    if isinstance(thing, TASKS):
        return True
    return asyncio.isfuture(thing) and callable(_get(type(thing), "get_coro"))


def _waiting_for(future: Any) -> Iterator[Any]:
    """Tasks that wait for a future, and futures that get its result."""
    awaited_by = _get(future, "_asyncio_awaited_by")
    if isinstance(awaited_by, set | frozenset):
        # Tasks that await it themselves first.
        yield from sorted(awaited_by, key=lambda each: not is_task(each))
    callbacks = _get(future, "_callbacks")
    # A concurrent.futures.Future has others.
    for callback in list(callbacks) if isinstance(callbacks, list) else ():
        yield from _called(callback[0] if isinstance(callback, tuple) and callback else callback)


def _called(callback: Any) -> Iterator[Any]:
    """What a callback of a future passes its result to."""
    if type(callback) is functools.partial:
        # wait_for() before Python 3.12.
        yield from _followed(callback.args)
        callback = callback.func
    owner = _get(callback, "__self__")
    if is_task(owner):
        if _get(callback, "__name__") in _WAKEUPS:
            yield owner
        return
    function = _get(callback, "__func__") or callback
    if type(function) is not FunctionType or not str(function.__module__).startswith(_MODULES):
        # A callback of the program's can refer to tasks for any reason.
        return
    if owner is not None:
        # That of a TaskGroup, and the queue of as_completed() from Python 3.13 on.
        yield from _followed([_get(owner, "_parent_task"), _get(owner, "_done")])
    for cell in function.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:
            continue
        # The latter is anyio's TaskGroup.
        yield from _followed([content, _get(_get(content, "cancel_scope"), "_host_task")])


def _followed(things: Any) -> Iterator[Any]:
    for thing in things:
        if asyncio.isfuture(thing):
            yield thing
        elif isinstance(thing, asyncio.Queue):
            # That of as_completed().
            yield from list(_get(thing, "_getters") or ())
