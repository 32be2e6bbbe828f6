"""Where threads, sockets, files, descriptors, loops and transports were made, while that is noted.

Nothing that the program sees is changed, except that functions of `os` without an audit event are wrapped.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any

from .. import _core, _support
from ..blocking import LIBRARIES
from ..loop import Loop
from . import descriptors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType
    from typing import TypeAlias

    # File, line and function of each frame, the innermost first; None if it is not known.
    Stack: TypeAlias = tuple[tuple[str, int, str], ...] | None

# Frames that are noted, and lines of a stack that are shown.
DEPTH = 30
_SHOWN = 5

# Functions of `os` that make descriptors, for which there is no audit event.
_FUNCTIONS = ("pipe", "pipe2", "dup", "eventfd", "memfd_create", "openpty", "pidfd_open", "timerfd_create")
_THREAD_EVENTS = ("_thread.start_new_thread", "_thread.start_joinable_thread")

_PYTEST = f"{os.sep}_pytest{os.sep}"

_threading: Any = threading

_active: list[Origins] = []
_is_hooked = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    """Note what an audit event tells of. It must not raise: that would fail what is audited."""
    # Such a hook cannot be removed.
    if not _active:
        return
    if event == "open" or event == "socket.__new__" or event in _THREAD_EVENTS:
        try:
            stack = _stack(sys._getframe(1))
            for origins in _active:
                origins.note(event, arguments[0], stack)
        except Exception:
            return


def _stack(frame: FrameType | None) -> Stack:
    frames: list[tuple[str, int, str]] = []
    while frame is not None and len(frames) < DEPTH:
        frames.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_qualname))
        frame = frame.f_back
    return tuple(frames)


def made_at(stack: Stack) -> str:
    """Format where something was made: the innermost line outside libraries, then its callers there."""
    if not stack:
        return ", made where nothing was noted"
    # Not those that call the test.
    stack = tuple(itertools.takewhile(lambda frame: _PYTEST not in frame[0], stack)) or stack
    own = [frame for frame in stack if not frame[0].startswith(LIBRARIES)] or list(stack[:1])
    first, *callers = [f"{file}:{line} in {name}" for file, line, name in own[: _SHOWN + 1]]
    return f", made at {first}" + "".join(f"\n      called at {caller}" for caller in callers)


class Origins:
    """What was made between start() and stop(), and where. Nothing is kept alive."""

    def __init__(self) -> None:
        # Those with weak references by their address, files by their path.
        self.objects: dict[int, tuple[weakref.ref[Any], Stack]] = {}
        self.transports: list[tuple[weakref.ref[Any], Stack]] = []
        self.files: dict[str, Stack] = {}
        self.descriptors: dict[int, tuple[descriptors.Identity, Stack]] = {}
        self.known: set[int] = set()
        self.former: dict[str, Callable[..., Any]] = {}
        self.former_start: Any = None
        self.former_hook: Any = None

    def start(self, known: set[int]) -> None:
        """Begin. The descriptors that are *known* are others'."""
        global _is_hooked
        self.known = known
        if not _is_hooked:
            _is_hooked = True
            sys.addaudithook(_audit)
        for name in _FUNCTIONS:
            function = getattr(os, name, None)
            if function is not None:
                self.former[name] = function
                setattr(os, name, self._noting(function))
        if sys.version_info < (3, 12):
            # There is no audit event for threads either.
            self.former_start = _threading._start_new_thread
            _threading._start_new_thread = self._start_new_thread
        self.former_hook = Loop._on_created
        Loop._on_created = staticmethod(self._note_loop)
        _support.on_opened.append(self._note_transport)
        _core._note_transports()
        _active.append(self)

    def stop(self) -> None:
        """End."""
        _active.remove(self)
        _support.on_opened.remove(self._note_transport)
        if not _support.on_opened:
            _core._ignore_transports()
        Loop._on_created = self.former_hook
        for name, function in self.former.items():
            setattr(os, name, function)
        if sys.version_info < (3, 12):
            _threading._start_new_thread = self.former_start

    def _start_new_thread(self, function: Any, *arguments: Any) -> Any:
        self.note(_THREAD_EVENTS[0], function, _stack(sys._getframe(1)))
        return self.former_start(function, *arguments)

    def note(self, event: str, made: Any, stack: Stack) -> None:
        """Note what an audit event tells of."""
        if event == "open":
            if isinstance(made, (str, bytes)):
                self.files[os.path.abspath(os.fsdecode(made))] = stack
        elif event == "socket.__new__":
            self.objects[id(made)] = (weakref.ref(made), stack)
        elif isinstance(thread := getattr(made, "__self__", None), threading.Thread):
            self.objects[id(thread)] = (weakref.ref(thread), stack)

    def _noting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def noting(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            made = result if isinstance(result, tuple) else (result,)
            self._note_descriptors(made, _stack(sys._getframe(1)))
            return result

        return noting

    def _note_descriptors(self, made: Any, stack: Stack) -> None:
        for fd in made:
            if (identity := descriptors.identify(fd)) is not None:
                self.descriptors[fd] = (identity, stack)

    def _note_loop(self, loop: Loop) -> None:
        if self.former_hook is not None:
            self.former_hook(loop)
        stack = _stack(sys._getframe(1))
        # The extension makes a loop's descriptors, which have no paths.
        self._note_descriptors(
            [
                fd
                for fd, identity in descriptors.all_open().items()
                if fd not in self.known
                and not identity.link.startswith("/")
                and self.of_descriptor(fd, identity) is None
            ],
            stack,
        )

    def _note_transport(self, _: Any, transport: Any) -> None:
        self.transports.append((weakref.ref(transport), _stack(sys._getframe(1))))

    def live_transports(self) -> Iterator[tuple[Any, Stack]]:
        """Return transports that were made, and live."""
        for reference, stack in self.transports:
            if (transport := reference()) is not None:
                yield transport, stack

    def of_thread(self, thread: threading.Thread) -> Stack:
        """Return where a thread was started; None if that was not noted."""
        return self._of(thread)

    def _of(self, thing: object) -> Stack:
        reference, stack = self.objects.get(id(thing), (None, None))
        return stack if reference is not None and reference() is thing else None

    def of_descriptor(self, fd: int, identity: descriptors.Identity) -> Stack:
        """Return where a descriptor was made; None if that was not noted."""
        for reference, stack in list(self.objects.values()):
            thing = reference()
            if thing is not None and not isinstance(thing, threading.Thread) and thing.fileno() == fd:
                return stack
        known, stack = self.descriptors.get(fd, (None, None))
        if known == identity:
            return stack
        if identity.link.startswith("/"):
            return {os.path.realpath(path): stack for path, stack in self.files.items()}.get(identity.link)
        return None
