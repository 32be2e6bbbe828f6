"""The socket at which `python -m hotloop top` asks what the loops of a process do.

It is in a folder that nobody but the user may enter, under the number of the process. A line, whatever it
says, is answered with a line of JSON. Threads of their own do that: they answer while a loop is blocked.
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
from ..blocking import where_in
from .loops import give_name, open_loops, whenever_made
from .telling import tell

if TYPE_CHECKING:
    from ..loop import Loop

# Seconds after which a connection that asks for nothing is closed.
PATIENCE = 60.0


def folders() -> list[str]:
    """Where sockets may be, the best place first.

    Who looks for a process may have been started in another environment than it, and looks in all of them.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    name = f"hotloop-{os.geteuid()}"
    found = [os.path.join(runtime, "hotloop")] if runtime else []
    found += [os.path.join(tempfile.gettempdir(), name), os.path.join("/tmp", name)]
    return list(dict.fromkeys(found))


def is_ours_alone(folder: str) -> bool:
    """Whether nobody but this user and the system's administrator may enter a folder."""
    try:
        status = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077


class _Answers(socketserver.StreamRequestHandler):
    timeout = PATIENCE

    def handle(self) -> None:
        # Whoever asked may be gone, or be silent for too long.
        with suppress(OSError):
            while self.rfile.readline(1024):
                self.wfile.write(json.dumps(state()).encode() + b"\n")


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def __init__(self, path: str) -> None:
        # What is there is of a process that had this number before.
        with suppress(FileNotFoundError):
            os.unlink(path)
        super().__init__(path, _Answers)
        self.path = path
        self.process = os.getpid()

    def get_request(self) -> tuple[Any, Any]:
        try:
            return super().get_request()
        except OSError:
            # Without a descriptor for it, whoever wants to ask goes on waiting, and nobody is to spin.
            time.sleep(1)
            raise

    def close_for_good(self) -> None:
        """Close it, and remove the file unless a process that this one was forked from uses it."""
        self.socket.close()
        if self.process == os.getpid():
            with suppress(OSError):
                os.unlink(self.path)


_server: _Server | None = None
_lock = threading.Lock()


def serve_when_there_is_a_loop() -> None:
    """Open the socket as soon as this process, or one that it forks, makes a loop."""
    whenever_made(give_name)
    whenever_made(_serve)
    atexit.register(_close)
    os.register_at_fork(after_in_child=_leave_to_parent)


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
                if not is_ours_alone(folder):
                    reason = f"others may enter {folder}"
                    continue
                _server = _Server(os.path.join(folder, f"{os.getpid()}.sock"))
            except OSError as error:
                reason = error
                continue
            break
        else:
            tell(f"hotloop: no socket for `hotloop top`: {reason}")
            return
    # A pause for each look at whether it is to end: it ends with the process.
    thread = threading.Thread(target=_server.serve_forever, args=(None,), name="hotloop-top", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        _close()
        tell(f"hotloop: no socket for `hotloop top`: {error}")
        return
    if "multiprocessing.util" in sys.modules:
        # Its children end without what atexit does.
        sys.modules["multiprocessing.util"].Finalize(None, _close, exitpriority=0)


def _close() -> None:
    global _server
    server, _server = _server, None
    if server is not None:
        server.close_for_good()


def _leave_to_parent() -> None:
    global _lock
    _lock = threading.Lock()
    _close()


def state() -> dict[str, Any]:
    """What is told of this process."""
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
    watch = loop._blocking
    if watch is None:
        return state
    blocks = [{**asdict(block), "where": _shortened(block.where)} for block in list(watch.remembered)]
    state |= {"threshold": watch.threshold, "blocked": watch.count, "blocks": blocks}
    observed = watch.observed
    if observed is not None:
        state["blocking"] = {
            "duration": time.perf_counter() - observed.began,
            "where": _shortened(where_in(observed.later_stack or observed.stack) or ""),
        }
    return state


def _shortened(where: str) -> str:
    try:
        folder = os.getcwd()
    except OSError:
        # It was removed.
        return where
    return where.removeprefix(os.path.join(folder, ""))
