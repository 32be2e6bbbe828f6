"""Signals: handlers of the event loop's own, and a wait that ends when a signal arrives.

Python's C-level handler writes the number of each signal to the "wakeup descriptor". While a loop runs in the
main thread that is a socket which the loop watches, so that a signal is noticed however the loop waits, and
even if it arrives just before the wait. The descriptor that was there before is put back afterwards.
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

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVarTuple

    _Ts = TypeVarTuple("_Ts")

# Loops whose wakeup descriptors are in force, by these.
_in_force: dict[int, weakref.ref[SignalHandling]] = {}
# Those that a forked child has from its parent. Other loops of the child do not leave signals to them.
_inherited: set[int] = set()
# That of a forked child's loop which is to be in force again once the loop goes on.
_suspended: dict[int, weakref.ref[SignalHandling]] = {}


def _make_own_sockets() -> None:
    """Give the loops of a forked child sockets of its own: a signal is for the process that received it.

    They are not in force until a loop goes on. A child that leaves its parent's loops alone may close all
    descriptors, and its signals would be written to the files that get their numbers.
    """
    current = signal.set_wakeup_fd(-1)
    parents = dict(_in_force)
    if current < 0:
        # asyncio has taken it away, since Python 3.12. Until then there is none between a daemon's forks.
        current = next(reversed(parents if sys.version_info >= (3, 12) else _suspended), -1)
    _in_force.clear()
    _inherited.clear()
    _suspended.clear()
    for fd, reference in parents.items():
        loop = reference()
        if loop is not None and loop._renew_wakeup_sockets(fd):
            _in_force[fd] = reference
            _inherited.add(fd)
    loop = _in_force[current]() if current in _in_force else None
    if loop is not None:
        _suspended[current] = _in_force[current]
        loop._missed_signals.clear()
        # The other half of the event loop is not this class's to know.
        this: Any = loop
        loop._add_callback(asyncio.Handle(loop._resume_waking, (), this, None))
    elif current >= 0 and current not in parents:
        # It may have been closed, and be another file by now, which is refused.
        with contextlib.suppress(ValueError, OSError):
            signal.set_wakeup_fd(current)


os.register_at_fork(after_in_child=_make_own_sockets)


def _file_of(fd: int) -> tuple[int, int] | None:
    """What tells the file of a descriptor from one that gets its number later; None if there is no file."""
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _files_of(*socks: socket.socket) -> list[tuple[int, int] | None]:
    return [_file_of(sock.fileno()) for sock in socks]


def _noop(signum: int, frame: object) -> None:
    """The Python-level handler of a signal that a loop handles: the wakeup descriptor does the work."""
    if not _suspended or not _in_force.keys() <= _inherited:
        # A loop of a child's own that is in force is told, and nobody else.
        return
    for reference in list(_suspended.values()):
        loop = reference()
        if loop is not None and signum not in loop._missed_signals:
            loop._missed_signals.append(signum)


class SignalHandling(_core.Loop):
    """The signal methods of an event loop."""

    _internal_fds: int

    def __init__(self) -> None:
        self._signal_handlers: dict[int, asyncio.Handle] = {}
        self._ssock: socket.socket | None = None
        self._csock: socket.socket | None = None
        # The files of both.
        self._wakeup_files: list[tuple[int, int] | None] = []
        # Signals of a forked child that came before its wakeup descriptor was in force again.
        self._missed_signals: list[int] = []
        # The wakeup descriptor to put back; None while this loop's is not in force.
        self._former_wakeup_fd: int | None = None
        # Its file.
        self._former_file: tuple[int, int] | None = None

    # --- The wakeup descriptor ---

    def _wakeup_socket(self) -> socket.socket:
        if self._csock is None:
            ssock, csock = socket.socketpair()
            try:
                ssock.setblocking(False)
                csock.setblocking(False)
                self._add_reader(ssock.fileno(), self._read_from_self)
            except BaseException:
                ssock.close()
                csock.close()
                raise
            self._ssock, self._csock = ssock, csock
            self._wakeup_files = _files_of(ssock, csock)
            self._internal_fds += 1
        return self._csock

    def _renew_wakeup_sockets(self, fd: int) -> bool:
        """Put new sockets in place of those of which *fd* is one; return whether that was done."""
        if self._ssock is None or self._csock is None:
            return False
        if self._ssock.fileno() < 0 or self._csock.fileno() != fd:
            return False
        if _files_of(self._ssock, self._csock) != self._wakeup_files:
            # They were closed behind our back, as daemons close all descriptors: these are somebody else's.
            return False
        try:
            pair = socket.socketpair()
            with pair[0], pair[1]:
                for sock, new in zip((self._ssock, self._csock), pair, strict=True):
                    new.setblocking(False)
                    os.dup2(new.fileno(), sock.fileno(), inheritable=False)
            self._wakeup_files = _files_of(self._ssock, self._csock)
        except OSError:
            # There are no descriptors.
            return False
        return True

    def _resume_waking(self) -> None:
        """Put the wakeup descriptor in force again, in a forked child whose loop goes on."""
        ssock, csock = self._ssock, self._csock
        if ssock is None or csock is None:
            return
        fd = csock.fileno()
        if fd not in _suspended:
            return
        if threading.current_thread() is not threading.main_thread():
            return
        is_ours = _files_of(ssock, csock) == self._wakeup_files
        if is_ours:
            current = signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
            if current not in (fd, -1):
                # Somebody else has taken it since.
                signal.set_wakeup_fd(current)
        _suspended.pop(fd, None)
        if is_ours:
            # One that came between the last two steps is known twice.
            with contextlib.suppress(OSError):
                self._missed_signals.extend(ssock.recv(4096))
        missed, self._missed_signals = dict.fromkeys(self._missed_signals), []
        for signum in missed:
            self._handle_signal(signum)

    def _take_wakeup_fd(self) -> None:
        fd = self._wakeup_socket().fileno()
        self._resume_waking()
        self._put_in_force(fd)

    def _put_in_force(self, fd: int) -> int:
        """Make this loop's wakeup descriptor the one in force; return the former.

        Ctrl-C can come between any two steps. What close() has to undo is noted first.
        """
        noted = self._former_wakeup_fd
        self._former_wakeup_fd = -1 if noted is None else noted
        _in_force[fd] = weakref.ref(self)
        try:
            former = signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
        except (ValueError, OSError):
            self._former_wakeup_fd = noted
            if noted is None:
                _in_force.pop(fd, None)
            raise
        if former != fd:
            self._former_file = _file_of(former) if former >= 0 else None
            self._former_wakeup_fd = former
        return former

    def _give_wakeup_fd_back(self) -> None:
        if self._former_wakeup_fd is None or self._csock is None:
            return
        fd = self._csock.fileno()
        former = self._former_wakeup_fd
        if former >= 0 and _file_of(former) != self._former_file:
            # It was closed meanwhile: signals must not be written to whoever has its number now.
            former = -1
        try:
            current = signal.set_wakeup_fd(former)
        except (ValueError, OSError):
            # It was closed meanwhile, or blocks by now.
            current = signal.set_wakeup_fd(-1)
        if current not in (fd, -1):
            # Somebody else has taken it since. One that was closed, or blocks by now, is refused.
            with contextlib.suppress(ValueError, OSError):
                signal.set_wakeup_fd(current)
        self._former_wakeup_fd = None
        _in_force.pop(fd, None)
        _suspended.pop(fd, None)

    def _wake_on_signals(self) -> bool:
        """Have signals end the wait of the loop that is about to run; return whether that must be undone."""
        if threading.current_thread() is not threading.main_thread():
            return False
        if self._former_wakeup_fd is not None:
            if self._csock is not None:
                self._resume_waking()
                _inherited.discard(self._csock.fileno())
            return False
        try:
            fd = self._wakeup_socket().fileno()
            if fd < 0:
                return False
            former = self._put_in_force(fd)
        except (OSError, ValueError):
            # There are no descriptors, or they are refused, or this is not the main interpreter. A signal
            # that arrives during the wait ends it all the same.
            return False
        try:
            if (
                former >= 0
                and former != fd
                and former not in _inherited
                and self._poller != "portable"
                and self._leave_signals_to(former)
            ):
                # The program uses it for itself; a signal that arrives during the wait ends it all the same.
                self._former_wakeup_fd = None
                _in_force.pop(fd, None)
                return False
        except BaseException:
            self._give_wakeup_fd_back()
            raise
        return True

    def _leave_signals_to(self, fd: int) -> bool:
        """Put the program's wakeup descriptor back; return False if it is of no use any more."""
        try:
            signal.set_wakeup_fd(fd)
        except (OSError, ValueError):
            # It was closed, or blocks by now.
            return False
        if self._ssock is not None:
            # Signals that came in between are the program's, too.
            with contextlib.suppress(OSError):
                os.write(fd, self._ssock.recv(4096))
        return True

    def _stop_waking_on_signals(self) -> None:
        if not self._signal_handlers:
            self._give_wakeup_fd_back()

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
        # The other half of the event loop is not this class's to know.
        loop: Any = self
        try:
            self._take_wakeup_fd()
        except (ValueError, OSError) as exc:
            raise RuntimeError(str(exc)) from exc
        if sig not in self._signal_handlers:
            # What came before was for the former handler, such as a Ctrl-C that has ended a run of the loop.
            self._read_from_self()
        self._signal_handlers[sig] = asyncio.Handle(callback, args, loop, None)
        try:
            signal.signal(sig, _noop)
            # Have system calls restarted, to limit the occurrences of EINTR.
            signal.siginterrupt(sig, False)
        except OSError as exc:
            del self._signal_handlers[sig]
            if not self._signal_handlers and not self.is_running():
                self._give_wakeup_fd_back()
            if exc.errno == errno.EINVAL:
                raise RuntimeError(f"sig {sig} cannot be caught") from exc
            raise

    def _handle_signal(self, sig: int) -> None:
        handle = self._signal_handlers.get(sig)
        if handle is None:
            # A signal with a handler of Python's, which has run by now.
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
        if not self._signal_handlers and not self.is_running():
            try:
                self._give_wakeup_fd_back()
            except (ValueError, OSError) as exc:
                logger.info("set_wakeup_fd() failed: %s", exc)
        return True

    def _check_signal(self, sig: object) -> None:
        if not isinstance(sig, int):
            raise TypeError(f"sig must be an int, not {sig!r}")
        if sig not in signal.valid_signals():
            raise ValueError(f"invalid signal number {sig}")

    def _end_signal_handling(self) -> None:
        """What close() has to do: restore the handlers, and close the sockets."""
        # At the end of the interpreter this module may have no names any more.
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
                self._give_wakeup_fd_back()
            ssock, csock = self._ssock, self._csock
            self._ssock = self._csock = None
            self._internal_fds -= 1
            if ssock.fileno() >= 0:
                # Unless the garbage collector was first, which closes sockets of a cycle in any order.
                self._remove_reader(ssock.fileno())
            for sock in (ssock, csock):
                try:  # noqa: SIM105  (contextlib may be among the names that are gone)
                    sock.close()
                except OSError:
                    # Somebody may have closed the descriptor behind our back.
                    pass
