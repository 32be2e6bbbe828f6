"""Signals: add_signal_handler(), and a wait that ends when a signal arrives.

Python's C-level handler writes the number of each signal to the "wakeup descriptor". While a loop runs in the
main thread, that is a socket that the loop watches, so that a signal ends any kind of wait, also if it
arrives just before. The former wakeup descriptor is restored afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import inspect
import os
import signal
import socket
import sys
import threading
import warnings
import weakref
from asyncio.log import logger

from . import _core
from ._support import HAS_THREADS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVarTuple

    _Ts = TypeVarTuple("_Ts")

# Loops by their wakeup descriptors, from _activate_wakeup_fd() to _restore_wakeup_fd().
_active: dict[int, weakref.ref[SignalHandling]] = {}
# Descriptors that a forked child inherited from its parent. They do not count as the program's own.
_inherited: set[int] = set()
# The descriptor of a forked child's running loop, to be set again when the loop goes on.
_suspended: dict[int, weakref.ref[SignalHandling]] = {}


def _after_fork_in_child() -> None:
    """Replace the sockets that a forked child shares with its parent: a signal belongs to one process.

    The wakeup descriptor stays unset until a loop goes on. A child that does not use its parent's loops may
    close all descriptors, and signals would be written to files that reuse their numbers.
    """
    current = signal.set_wakeup_fd(-1)
    parents = dict(_active)
    if current < 0:
        # asyncio unset it, since Python 3.12. Before that, it is unset between the two forks of a daemon.
        current = next(reversed(parents if sys.version_info >= (3, 12) else _suspended), -1)
    _active.clear()
    _inherited.clear()
    _suspended.clear()
    for fd, reference in parents.items():
        loop = reference()
        if loop is not None and loop._replace_wakeup_sockets(fd):
            _active[fd] = reference
            _inherited.add(fd)
    loop = _active[current]() if current in _active else None
    if loop is not None:
        _suspended[current] = _active[current]
        loop._wakeup.missed_signals.clear()
        # To type checkers this class is no event loop.
        this: Any = loop
        loop._add_callback(asyncio.Handle(loop._resume_waking, (), this, None))
    elif current >= 0 and current not in parents:
        # Refused if it was closed, or its number now belongs to another kind of file.
        with contextlib.suppress(ValueError, OSError):
            signal.set_wakeup_fd(current)


os.register_at_fork(after_in_child=_after_fork_in_child)


def _file_id(fd: int) -> tuple[int, int] | None:
    """Identifies the file of a descriptor, as the number can be reused; None if it is closed."""
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _file_ids(*socks: socket.socket) -> list[tuple[int, int] | None]:
    return [_file_id(sock.fileno()) for sock in socks]


def _on_signal(signum: int, frame: object) -> None:
    """The Python-level handler of signals with a loop's handler, which the wakeup descriptor notifies.

    It only records signals that a forked child receives before its wakeup descriptor is set.
    """
    if not _suspended or not _active.keys() <= _inherited:
        # No loop is suspended, or another loop of the child gets the signal.
        return
    for reference in list(_suspended.values()):
        loop = reference()
        if loop is not None and signum not in loop._wakeup.missed_signals:
            loop._wakeup.missed_signals.append(signum)


class _Wakeup:
    """What a loop knows of its wakeup descriptor.

    It is not in attributes of the loop. CPython 3.13 and later remember where they found a method of an
    object, such as call_soon(), only while the object has about 30 attributes or fewer.
    """

    __slots__ = ("file_ids", "former_fd", "former_file_id", "missed_signals")

    def __init__(self) -> None:
        # Identifies the files of the pair of sockets.
        self.file_ids: list[tuple[int, int] | None] = []
        # Signals that a forked child received before its wakeup descriptor was set again.
        self.missed_signals: list[int] = []
        # The wakeup descriptor to restore; None while this loop's is not set.
        self.former_fd: int | None = None
        self.former_file_id: tuple[int, int] | None = None


class SignalHandling(_core.Loop):
    """The signal methods of an event loop."""

    _internal_fds: int
    _thread_id: int | None

    def __init__(self) -> None:
        self._signal_handlers: dict[int, asyncio.Handle] = {}
        self._ssock: socket.socket | None = None
        self._csock: socket.socket | None = None
        self._wakeup = _Wakeup()

    # --- The wakeup descriptor ---

    def _wakeup_socket(self) -> socket.socket:
        if self._csock is None:
            ssock, csock = socket.socketpair()
            try:
                ssock.setblocking(False)
                csock.setblocking(False)
                try:
                    self._add_reader(ssock.fileno(), self._read_from_self)
                except RuntimeError:
                    if not HAS_THREADS:
                        raise
                    # The main thread adds a handler to a loop that another thread runs.
                    self.call_soon_threadsafe(self._add_reader, ssock.fileno(), self._read_from_self)
            except BaseException:
                ssock.close()
                csock.close()
                raise
            self._ssock, self._csock = ssock, csock
            self._wakeup.file_ids = _file_ids(ssock, csock)
            self._internal_fds += 1
        return self._csock

    def _replace_wakeup_sockets(self, fd: int) -> bool:
        """Replace the pair of sockets of which *fd* is one; return whether that was done."""
        if self._ssock is None or self._csock is None:
            return False
        if self._ssock.fileno() < 0 or self._csock.fileno() != fd:
            return False
        if _file_ids(self._ssock, self._csock) != self._wakeup.file_ids:
            # A daemon has closed all descriptors. These numbers belong to other files.
            return False
        try:
            pair = socket.socketpair()
            with pair[0], pair[1]:
                for sock, new in zip((self._ssock, self._csock), pair, strict=True):
                    new.setblocking(False)
                    os.dup2(new.fileno(), sock.fileno(), inheritable=False)
            self._wakeup.file_ids = _file_ids(self._ssock, self._csock)
        except OSError:
            # Out of descriptors.
            return False
        return True

    def _resume_waking(self) -> None:
        """Set the wakeup descriptor again, in a forked child whose loop goes on."""
        ssock, csock = self._ssock, self._csock
        if ssock is None or csock is None:
            return
        fd = csock.fileno()
        if fd not in _suspended:
            return
        if threading.current_thread() is not threading.main_thread():
            return
        is_current = _file_ids(ssock, csock) == self._wakeup.file_ids
        if is_current:
            current = signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
            if current not in (fd, -1):
                # The program has set another one since.
                signal.set_wakeup_fd(current)
        _suspended.pop(fd, None)
        if is_current:
            # A signal between the last two steps is recorded twice.
            with contextlib.suppress(OSError):
                self._wakeup.missed_signals.extend(ssock.recv(4096))
        missed, self._wakeup.missed_signals = dict.fromkeys(self._wakeup.missed_signals), []
        for signum in missed:
            self._handle_signal(signum)

    def _claim_wakeup_fd(self) -> None:
        fd = self._wakeup_socket().fileno()
        self._resume_waking()
        self._activate_wakeup_fd(fd)

    def _activate_wakeup_fd(self, fd: int) -> int:
        """Set this loop's wakeup descriptor; return the former one.

        Ctrl-C can come between any two steps. What close() has to undo is recorded first.
        """
        noted = self._wakeup.former_fd
        self._wakeup.former_fd = -1 if noted is None else noted
        _active[fd] = weakref.ref(self)
        try:
            former = signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
        except (ValueError, OSError):
            self._wakeup.former_fd = noted
            if noted is None:
                _active.pop(fd, None)
            raise
        if former != fd:
            self._wakeup.former_file_id = _file_id(former) if former >= 0 else None
            self._wakeup.former_fd = former
        return former

    def _restore_wakeup_fd(self) -> None:
        if self._wakeup.former_fd is None or self._csock is None:
            return
        fd = self._csock.fileno()
        former = self._wakeup.former_fd
        if former >= 0 and _file_id(former) != self._wakeup.former_file_id:
            # It was closed meanwhile, and its number may belong to another file.
            former = -1
        try:
            current = signal.set_wakeup_fd(former)
        except (ValueError, OSError):
            # It was closed meanwhile, or made blocking.
            current = signal.set_wakeup_fd(-1)
        if current not in (fd, -1):
            # The program has set another one since. It is refused if it was closed or made blocking.
            with contextlib.suppress(ValueError, OSError):
                signal.set_wakeup_fd(current)
        self._wakeup.former_fd = None
        _active.pop(fd, None)
        _suspended.pop(fd, None)

    def _wake_on_signals(self) -> bool:
        """Make signals end the wait of the loop that is about to run; return whether to undo that."""
        if threading.current_thread() is not threading.main_thread():
            return False
        if self._wakeup.former_fd is not None:
            if self._csock is not None:
                self._resume_waking()
                _inherited.discard(self._csock.fileno())
            return False
        try:
            fd = self._wakeup_socket().fileno()
            if fd < 0:
                return False
            former = self._activate_wakeup_fd(fd)
        except (OSError, ValueError):
            # Out of descriptors, or refused, or not the main interpreter. A signal still ends the wait,
            # unless it arrives just before.
            return False
        try:
            if (
                former >= 0
                and former != fd
                and former not in _inherited
                and self._poller != "portable"
                and self._restore_program_fd(former)
            ):
                # The program uses it. A signal still ends the wait, unless it arrives just before.
                self._wakeup.former_fd = None
                _active.pop(fd, None)
                return False
        except BaseException:
            self._restore_wakeup_fd()
            raise
        return True

    def _restore_program_fd(self, fd: int) -> bool:
        """Restore the program's wakeup descriptor; return False if it is refused."""
        try:
            signal.set_wakeup_fd(fd)
        except (OSError, ValueError):
            # It was closed or made blocking.
            return False
        if self._ssock is not None:
            # Pass on signals that came in between.
            with contextlib.suppress(OSError):
                os.write(fd, self._ssock.recv(4096))
        return True

    def _runs_in_main_thread(self) -> bool:
        """Whether a run of the loop will restore the wakeup descriptor. One in another thread does not."""
        return self._thread_id == threading.main_thread().ident

    def _stop_waking_on_signals(self) -> None:
        if not self._signal_handlers:
            self._restore_wakeup_fd()

    def _read_from_self(self) -> None:
        while self._ssock is not None:
            try:
                data = self._ssock.recv(4096)
            except InterruptedError:
                continue
            except BlockingIOError:
                break
            if not data:
                break
            for signum in data:
                self._handle_signal(signum)

    # --- Handlers ---

    def add_signal_handler(self, sig: int, callback: Callable[[*_Ts], Any], *args: *_Ts) -> None:
        """Call callback(*args) on the event loop when the process receives *sig*. For the main thread only.

        Raise TypeError for a coroutine function, ValueError for a signal that does not exist, RuntimeError
        for one that cannot be caught or from another thread.
        """
        if asyncio.iscoroutine(callback) or inspect.iscoroutinefunction(callback):
            raise TypeError("coroutines cannot be used with add_signal_handler()")
        self._check_signal(sig)
        self._check_closed()
        # To type checkers this class is no event loop.
        loop: Any = self
        try:
            self._claim_wakeup_fd()
        except (ValueError, OSError) as exc:
            raise RuntimeError(str(exc)) from exc
        if sig not in self._signal_handlers:
            # Earlier signals were for the former handler, such as a Ctrl-C that has ended a run of the loop.
            self._read_from_self()
        self._signal_handlers[sig] = asyncio.Handle(callback, args, loop, None)
        try:
            signal.signal(sig, _on_signal)
            # System calls are restarted, to limit the occurrences of EINTR.
            signal.siginterrupt(sig, False)
        except OSError as exc:
            del self._signal_handlers[sig]
            if not self._signal_handlers and not self._runs_in_main_thread():
                self._restore_wakeup_fd()
            if exc.errno == errno.EINVAL:
                raise RuntimeError(f"sig {sig} cannot be caught") from exc
            raise

    def _handle_signal(self, sig: int) -> None:
        handle = self._signal_handlers.get(sig)
        if handle is None:
            # Its handler is one of the signal module, which has run by now.
            return
        if handle.cancelled():
            self.remove_signal_handler(sig)
        else:
            self._add_callback(handle)

    def remove_signal_handler(self, sig: int) -> bool:
        """Restore the default handler of *sig*; return whether this loop had one."""
        self._check_signal(sig)
        if self._signal_handlers.pop(sig, None) is None:
            return False
        handler = signal.default_int_handler if sig == signal.SIGINT else signal.SIG_DFL
        try:
            signal.signal(sig, handler)
        except OSError as exc:
            if exc.errno == errno.EINVAL:
                raise RuntimeError(f"sig {sig} cannot be caught") from exc
            raise
        if not self._signal_handlers and not self._runs_in_main_thread():
            try:
                self._restore_wakeup_fd()
            except (ValueError, OSError) as exc:
                logger.info("set_wakeup_fd() failed: %s", exc)
        return True

    def _check_signal(self, sig: object) -> None:
        if not isinstance(sig, int):
            raise TypeError(f"sig must be an int, not {sig!r}")
        if sig not in signal.valid_signals():
            raise ValueError(f"invalid signal number {sig}")

    def _end_signal_handling(self) -> None:
        """Restore the handlers and close the sockets. Called by close()."""
        # At the end of the interpreter this module's names may be None.
        is_cleared: bool = sys is None
        is_ending = is_cleared or sys.is_finalizing()
        if not is_ending:
            for sig in list(self._signal_handlers):
                self.remove_signal_handler(sig)
        elif self._signal_handlers and not is_cleared:
            warnings.warn(
                f"Closing the loop {self!r} on interpreter shutdown stage, skipping signal handlers removal",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )
            self._signal_handlers.clear()
        if self._csock is not None and self._ssock is not None:
            if not is_cleared and threading.current_thread() is threading.main_thread():
                self._restore_wakeup_fd()
            ssock, csock = self._ssock, self._csock
            self._ssock = self._csock = None
            self._internal_fds -= 1
            if ssock.fileno() >= 0:
                # It is closed already if the garbage collector has found the loop in a cycle.
                self._remove_reader(ssock.fileno())
            for sock in (ssock, csock):
                try:  # noqa: SIM105  (at the interpreter's end, contextlib may be None)
                    sock.close()
                except OSError:
                    # The program may have closed the descriptor.
                    pass
