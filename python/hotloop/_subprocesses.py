"""Subprocesses: asyncio's transport, and a watch for the end of a child.

A child is watched by its pidfd, which becomes readable when the child ends, without a signal handler or a
thread. Without a pidfd, a thread waits for the child. On Pythons whose asyncio has child watchers, one that
the program has set is used instead.
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

from . import _core, _popen
from ._support import note_unlisted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_UnixLoop: Any = asyncio.SelectorEventLoop
_unix: Any = unix_events


# To type checkers its base is Any.
class _SubprocessTransport(_unix._UnixSubprocessTransport):  # type: ignore[misc]
    """asyncio's transport, and a close() that works after the loop's, which asyncio's does not until 3.13."""

    _pipes: dict[int, Any]

    def _start(
        self, args: Any, shell: bool, stdin: Any, stdout: Any, stderr: Any, bufsize: int, **kwargs: Any
    ) -> None:
        if type(bufsize) is int and bufsize == 0:
            self._proc = _popen.start(self._loop, args, shell, stdin, stdout, stderr, **kwargs)
        if self._proc is None:
            streams = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
            super()._start(args=args, shell=shell, bufsize=bufsize, **streams, **kwargs)

    def close(self) -> None:
        # _loop is None after the child has ended.
        if not self._closed and self._loop is not None and self._loop.is_closed():
            for protocol in self._pipes.values():
                if protocol is not None:
                    # The descriptor is closed before this raises, as no callback can be scheduled.
                    with contextlib.suppress(RuntimeError):
                        protocol.pipe.close()
            self._pipes = dict.fromkeys(self._pipes)
        super().close()

    def drop_unconnected_pipes(self) -> None:
        """Drop the protocol, and the pipes that could not be connected, for which _wait() would wait."""
        self._protocol = asyncio.SubprocessProtocol()
        self._pending_calls = None
        files = {0: self._proc.stdin, 1: self._proc.stdout, 2: self._proc.stderr}
        for number, protocol in list(self._pipes.items()):
            if protocol is None:
                del self._pipes[number]
                files[number].close()


_SubprocessTransport.__name__ = _SubprocessTransport.__qualname__ = "_UnixSubprocessTransport"


class SubprocessSupport(_core.Loop):
    """The methods of an event loop that asyncio's subprocess_exec() and subprocess_shell() call."""

    _debug: bool

    def __init__(self) -> None:
        # Process identifiers of watched children by their pidfds.
        self._children: dict[int, int] = {}

    @functools.cached_property
    def _watcher(self) -> Any:
        # An attribute of asyncio's loops from 3.14 on.
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
        if _has_custom_watcher():
            return await _UnixLoop._make_subprocess_transport(
                self, protocol, args, shell, stdin, stdout, stderr, bufsize, extra, **kwargs
            )
        waiter = self.create_future()
        transport = _SubprocessTransport(
            self, protocol, args, shell, stdin, stdout, stderr, bufsize, waiter=waiter, extra=extra, **kwargs
        )
        note_unlisted(self, transport)
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
                transport.drop_unconnected_pipes()
            # The end of a child that is not watched is never reported.
            if unwatched is None:
                await asyncio.shield(transport._wait())
            raise
        return transport

    _child_watcher_callback = _UnixLoop._child_watcher_callback

    def _watch_child(self, pid: int, transport: Any) -> None:
        if sys.version_info >= (3, 14) and not isinstance(self._watcher, _unix._PidfdChildWatcher):
            self._watcher.add_child_handler(pid, self._child_watcher_callback, transport)
            return
        try:
            pidfd = os.pidfd_open(pid)
            try:
                self._children[pidfd] = pid
                self._add_reader(pidfd, self._child_ready, pidfd, transport)
            except BaseException:
                self._children.pop(pidfd, None)
                os.close(pidfd)
                raise
        except ProcessLookupError:
            # The program has waited for it already, or ignores SIGCHLD.
            self.call_soon(self._child_ended, pid, transport)
            return
        except (AttributeError, OSError):
            # No pidfds on this system, out of descriptors, or the pidfd cannot be watched.
            kind = _unix._ThreadedChildWatcher if sys.version_info >= (3, 14) else _unix.ThreadedChildWatcher
            kind().add_child_handler(pid, self._child_watcher_callback, transport)

    def _child_ready(self, pidfd: int, transport: Any) -> None:
        self._remove_reader(pidfd)
        pid = self._children.pop(pidfd)
        os.close(pidfd)
        self._child_ended(pid, transport)

    def _child_ended(self, pid: int, transport: Any) -> None:
        try:
            _, status = os.waitpid(pid, 0)
        except ChildProcessError:
            # The transport's close() may have polled the child just before.
            returncode = None if transport._proc is None else transport._proc.returncode
            if returncode is None:
                returncode = 255
                logger.warning(
                    "child process pid %d exit status already read:  will report returncode 255", pid
                )
        else:
            returncode = os.waitstatus_to_exitcode(status)
            if sys.version_info < (3, 12) and self._debug:
                # asyncio's child watchers log this until then.
                logger.debug("process %s exited with returncode %s", pid, returncode)
        self._child_watcher_callback(pid, returncode, transport)

    def _unwatch_children(self) -> None:
        """Stop watching children that still run. Called by close()."""
        while self._children:
            pidfd, _ = self._children.popitem()
            self._remove_reader(pidfd)
            os.close(pidfd)


if sys.version_info >= (3, 14):

    def _has_custom_watcher() -> bool:
        return False

else:

    def _has_custom_watcher() -> bool:
        """Whether the program, or its event loop policy, has set a child watcher."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            policy = events.get_event_loop_policy()
        default = asyncio.DefaultEventLoopPolicy
        if getattr(type(policy), "get_child_watcher", None) is not default.get_child_watcher:
            return True
        # The classes of the watchers that asyncio makes by itself.
        defaults = (type(None), _unix.PidfdChildWatcher, _unix.ThreadedChildWatcher)
        return type(getattr(policy, "_watcher", None)) not in defaults
