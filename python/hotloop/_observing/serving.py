"""The server for `hotloop top`: a Unix socket that answers with the state of this process's loops.

The socket is in a folder that only the user may enter, named after the process's number. Each line received
is answered with a line of JSON. The server has its own threads, so that it answers while a loop is blocked.
"""

from __future__ import annotations

import atexit
import json
import os
import platform
import socketserver
import stat
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..blocking import Iteration, where_in
from .loops import name_loop, on_loop_created, open_loops
from .stderr import print_error

if TYPE_CHECKING:
    from ..loop import Loop

# Seconds after which an idle connection is closed.
TIMEOUT = 60.0
# Accounts of a loop in an answer, those that have used it most.
ACCOUNTS = 200


def folders() -> list[str]:
    """Folders for sockets, the preferred one first.

    The client searches all of them, as its environment may differ from the server's.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    name = f"hotloop-{os.geteuid()}"
    found = [os.path.join(runtime, "hotloop")] if runtime else []
    found += [os.path.join(tempfile.gettempdir(), name), os.path.join("/tmp", name)]
    return list(dict.fromkeys(found))


def is_private(folder: str) -> bool:
    """Whether only this user, and root, may enter a folder."""
    try:
        status = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077


class _Handler(socketserver.StreamRequestHandler):
    timeout = TIMEOUT

    def handle(self) -> None:
        # The client may have closed the connection, or have been idle for too long.
        with suppress(OSError):
            while line := self.rfile.readline(1024):
                if line.startswith(b"record"):
                    from . import saving

                    answer = saving.answer(line.decode().split()[1:])
                elif line.startswith(b"flame"):
                    from . import saving

                    answer = saving.answer_with_flames(line.decode().split()[1:])
                elif line == b"account\n":
                    answer = _account_from_now_on()
                elif line.startswith(b"growth"):
                    from . import census

                    answer = census.answer()
                else:
                    answer = state()
                self.wfile.write(json.dumps(answer).encode() + b"\n")


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def __init__(self, path: str) -> None:
        # A socket of this name is left from a former process of this number.
        with suppress(FileNotFoundError):
            os.unlink(path)
        super().__init__(path, _Handler)
        self.path = path
        self.process = os.getpid()

    def get_request(self) -> tuple[Any, Any]:
        try:
            return super().get_request()
        except OSError:
            # Out of descriptors. The connection stays in the backlog, so the server would spin.
            time.sleep(1)
            raise

    def remove(self) -> None:
        """Close the socket, and remove its file, unless it belongs to the parent of a forked process."""
        self.socket.close()
        if self.process == os.getpid():
            with suppress(OSError):
                os.unlink(self.path)


_server: _Server | None = None
_lock = threading.Lock()


def serve_on_first_loop() -> None:
    """Open the socket when this process, or one forked from it, makes its first loop."""
    global _is_prepared
    _is_prepared = True
    on_loop_created(name_loop)
    on_loop_created(_serve)
    atexit.register(_close)
    os.register_at_fork(after_in_child=_close_in_child)


_is_prepared = False


def serve_now(loop: Loop) -> None:
    """Open the socket, unless it is open."""
    if not _is_prepared:
        serve_on_first_loop()
    _serve(loop)


def _serve(_: Loop) -> None:
    global _server
    with _lock:
        if _server is not None:
            return
        reason: OSError | str = "there is no folder for it"
        for folder in folders():
            try:
                with suppress(FileExistsError):
                    os.mkdir(folder, 0o700)
                if not is_private(folder):
                    reason = f"others may enter {folder}"
                    continue
                _server = _Server(os.path.join(folder, f"{os.getpid()}.sock"))
            except OSError as error:
                reason = error
                continue
            break
        else:
            print_error(f"hotloop: no socket for `hotloop top`: {reason}")
            return
    # None: it need not poll for a shutdown request, as it ends with the process.
    thread = threading.Thread(target=_server.serve_forever, args=(None,), name="hotloop-top", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        _close()
        print_error(f"hotloop: no socket for `hotloop top`: {error}")
        return
    if "multiprocessing.util" in sys.modules:
        # Children of multiprocessing do not run atexit functions.
        sys.modules["multiprocessing.util"].Finalize(None, _close, exitpriority=0)


def _close() -> None:
    global _server
    server, _server = _server, None
    if server is not None:
        server.remove()


def _close_in_child() -> None:
    global _lock
    _lock = threading.Lock()
    _close()


def _account_from_now_on() -> dict[str, Any]:
    for _, loop in open_loops():
        # It may have been closed.
        with suppress(RuntimeError):
            if loop._accounted is None:
                loop.call_soon_threadsafe(loop.account)
    return {}


def state() -> dict[str, Any]:
    """The state of this process, as sent to clients."""
    return {
        "version": __version__,
        "python": platform.python_version(),
        "process": os.getpid(),
        "command": " ".join(sys.orig_argv[1:]),
        "time": time.time(),
        "clock": time.monotonic(),
        "loops": {name: _state_of(loop) for name, loop in open_loops()},
    }


def _state_of(loop: Loop) -> dict[str, Any]:
    state: dict[str, Any] = {"metrics": asdict(loop.metrics()), "running": loop.is_running()}
    if loop._accounted is not None:
        accounting = loop.accounting()
        accounts = [asdict(account) for account in accounting.accounts[:ACCOUNTS]]
        state["accounting"] = {"seconds": accounting.seconds, "accounts": accounts}
    watch = loop._blocking
    if watch is None:
        return state
    blocks = [{**asdict(block), "where": _relative(block.where)} for block in list(watch.remembered)]
    state |= {"threshold": watch.threshold, "blocked": watch.count, "blocks": blocks}
    state["iterations"] = [_iteration(iteration) for iteration in loop.worst_iterations()]
    observed = watch.observed
    if observed is not None:
        state["blocking"] = {
            "duration": time.perf_counter() - observed.began,
            "where": _relative(where_in(observed.later_stack or observed.stack) or ""),
        }
    return state


def _iteration(iteration: Iteration) -> dict[str, Any]:
    fields = {field: getattr(iteration, field) for field in Iteration.__slots__ if field != "stack"}
    return {**fields, "where": _relative(where_in(iteration.stack) or "")}


def _relative(where: str) -> str:
    try:
        folder = os.getcwd()
    except OSError:
        # It was removed.
        return where
    return where.removeprefix(os.path.join(folder, ""))
