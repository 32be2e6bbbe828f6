"""Observing a process that was not started for it: Python 3.14 and later run a file in another process."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import time
from contextlib import suppress

from . import serving
from .loops import name_loop

# Seconds in which the process must have opened its socket.
TIMEOUT = 10.0
SCRIPT = "from hotloop._observing import attaching\nattaching.serve()\n"


class CantAttach(Exception):
    """The message is the reason, in one line."""


def attach(process: int) -> str:
    """Have a process open its socket; return the socket's path. Raise CantAttach."""
    if sys.version_info < (3, 14):
        raise CantAttach(
            f"process {process} was not started with `hotloop --watch`, and Python "
            f"{sys.version_info.major}.{sys.version_info.minor} can't attach to others: 3.14 and later can"
        )
    with tempfile.NamedTemporaryFile("w", suffix=".py", prefix="hotloop-") as file:
        file.write(SCRIPT)
        file.flush()
        try:
            sys.remote_exec(process, file.name)
        except PermissionError:
            raise CantAttach(
                f"no permission to attach to process {process}: it takes its user's, and root's or "
                "`sysctl kernel.yama.ptrace_scope=0`"
            ) from None
        except (OSError, RuntimeError) as error:
            raise CantAttach(f"can't attach to process {process}: {error}") from None
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            for folder in serving.folders():
                path = os.path.join(folder, f"{process}.sock")
                if serving.is_private(folder) and os.path.exists(path):
                    return path
            time.sleep(0.02)
    raise CantAttach(
        f"process {process} has not answered in {TIMEOUT:g} s: it does not use hotloop, or its main thread "
        "runs no Python code"
    )


def serve() -> None:
    """Run in the process: have its loops watched, and open the socket."""
    from ..loop import Loop

    loops = [each for each in gc.get_objects() if isinstance(each, Loop) and not each.is_closed()]
    if not loops:
        return
    for loop in loops:
        name_loop(loop)
        if loop._blocking is None:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(loop.watch_blocking)
    serving.serve_now(loops[0])
