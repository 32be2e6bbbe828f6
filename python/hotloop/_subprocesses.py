"""Subprocesses: asyncio's transport for them, and our own way to learn that a process has ended.

A child is watched through its pidfd, which becomes readable when the child ends: no signal handler and no
thread. Where there is none to be had, a thread waits for the child. A child watcher that the program has
chosen, on Pythons whose asyncio has them, is used instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import sys
import warnings
from asyncio import events, unix_events
from asyncio.log import logger

from . import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_Unix: Any = asyncio.SelectorEventLoop
_unix: Any = unix_events


# Type checkers know nothing of its base, which is asyncio's own.
class _SubprocessTransport(_unix._UnixSubprocessTransport):  # type: ignore[misc]
    """asyncio's transport, which until 3.13 cannot be closed after its loop."""

    _pipes: dict[int, Any]

    def close(self) -> None:
        # A child that is over has no loop any more.
        if not self._closed and self._loop is not None and self._loop.is_closed():
            for protocol in self._pipes.values():
                if protocol is not None:
                    # The descriptor is closed; that nobody is told is known.
                    with contextlib.suppress(RuntimeError):
                        protocol.pipe.close()
            self._pipes = dict.fromkeys(self._pipes)
        super().close()

    def forget_unconnected(self) -> None:
        """Give up a start that has failed: the end of the child would wait for the pipes that could not be
        connected, and for the protocol to be told of the others.
        """
        self._protocol = asyncio.SubprocessProtocol()
        self._pending_calls = None
        files = {0: self._proc.stdin, 1: self._proc.stdout, 2: self._proc.stderr}
        for number, protocol in list(self._pipes.items()):
            if protocol is None:
                del self._pipes[number]
                files[number].close()


_SubprocessTransport.__name__ = _SubprocessTransport.__qualname__ = "_UnixSubprocessTransport"


class SubprocessSupport(_core.Loop):
    """What asyncio's subprocess_exec() and subprocess_shell() ask of an event loop."""

    _debug: bool

    def __init__(self) -> None:
        # The pidfd of each child that is watched, and its process identifier.
        self._children: dict[int, int] = {}

    @functools.cached_property
    def _watcher(self) -> Any:
        # Where asyncio's loops keep theirs, from 3.14 on.
        pidfd = _unix.can_use_pidfd()
        return _unix._PidfdChildWatcher() if pidfd else _unix._ThreadedChildWatcher()

    async def _make_subprocess_transport(
        self,
        protocol: asyncio.SubprocessProtocol,
        args: Any,
        shell: bool,
        stdin: Any,
        stdout: Any,
        stderr: Any,
        bufsize: int,
        extra: Any = None,
        **kwargs: Any,
    ) -> Any:
        if _program_has_watcher():
            return await _Unix._make_subprocess_transport(
                self, protocol, args, shell, stdin, stdout, stderr, bufsize, extra, **kwargs
            )
        waiter = self.create_future()
        transport = _SubprocessTransport(
            self, protocol, args, shell, stdin, stdout, stderr, bufsize, waiter=waiter, extra=extra, **kwargs
        )
        unwatched: BaseException | None = None
        try:
            self._watch_child(transport.get_pid(), transport)
        except BaseException as error:
            unwatched = error
        try:
            await waiter
            if unwatched is not None:
                raise unwatched
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:
            transport.close()
            if waiter.done() and not waiter.cancelled():
                transport.forget_unconnected()
            # Nobody will hear of the end of a child that is not watched.
            if unwatched is None:
                await asyncio.shield(transport._wait())
            raise
        return transport

    _child_watcher_callback = _Unix._child_watcher_callback

    def _watch_child(self, pid: int, transport: Any) -> None:
        if sys.version_info >= (3, 14) and not isinstance(self._watcher, _unix._PidfdChildWatcher):
            self._watcher.add_child_handler(pid, self._child_watcher_callback, transport)
            return
        try:
            pidfd = os.pidfd_open(pid)
            try:
                self._add_reader(pidfd, self._child_ready, pidfd, transport)
            except BaseException:
                os.close(pidfd)
                raise
        except ProcessLookupError:
            # Somebody has waited for it already, or the program ignores SIGCHLD.
            self.call_soon(self._child_ended, pid, transport)
            return
        except (AttributeError, OSError):
            # The system has no pidfds, no descriptor is left, or it cannot be watched.
            kind = _unix._ThreadedChildWatcher if sys.version_info >= (3, 14) else _unix.ThreadedChildWatcher
            kind().add_child_handler(pid, self._child_watcher_callback, transport)
            return
        self._children[pidfd] = pid

    def _child_ready(self, pidfd: int, transport: Any) -> None:
        self._remove_reader(pidfd)
        pid = self._children.pop(pidfd)
        os.close(pidfd)
        self._child_ended(pid, transport)

    def _child_ended(self, pid: int, transport: Any) -> None:
        try:
            _, status = os.waitpid(pid, 0)
        except ChildProcessError:
            # The transport's close() may have asked just before.
            returncode = None if transport._proc is None else transport._proc.returncode
            if returncode is None:
                returncode = 255
                logger.warning(
                    "child process pid %d exit status already read:  will report returncode 255", pid
                )
        else:
            returncode = os.waitstatus_to_exitcode(status)
            if sys.version_info < (3, 12) and self._debug:
                # What asyncio waits with says it until then.
                logger.debug("process %s exited with returncode %s", pid, returncode)
        self._child_watcher_callback(pid, returncode, transport)

    def _forget_children(self) -> None:
        """What close() has to do: children that still run are nobody's business any more."""
        while self._children:
            pidfd, _ = self._children.popitem()
            self._remove_reader(pidfd)
            os.close(pidfd)


if sys.version_info >= (3, 14):

    def _program_has_watcher() -> bool:
        return False

else:

    def _program_has_watcher() -> bool:
        """Whether the program, or its event loop policy, has chosen a child watcher."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            policy = events.get_event_loop_policy()
        default = asyncio.DefaultEventLoopPolicy
        if getattr(type(policy), "get_child_watcher", None) is not default.get_child_watcher:
            return True
        # These are what asyncio makes by itself, and they would do the same as we do.
        usual = (type(None), _unix.PidfdChildWatcher, _unix.ThreadedChildWatcher)
        return type(getattr(policy, "_watcher", None)) not in usual
