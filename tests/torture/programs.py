"""Programs that do to their process what a loop must survive, each in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

import helpers

from torture.effort import FULL

# What no program may print on its way out.
TIMEOUT = 40
FATAL = ("panicked", "Fatal Python error", "Segmentation fault", "core dumped", "_core.")
# asyncio's own loop is the reference; it stays the same, so `make test` asks hotloop alone.
LOOPS = list(helpers.FACTORIES) if FULL else list(helpers.FACTORIES)[-1:]

# A coroutine function of programs: a connection is served, and closed.
SERVE_ONCE = """
async def serve_once():
    async def serve(reader, writer):
        writer.close()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    assert await reader.read() == b""
    writer.close()
    server.close()
"""


def run(name, source, timeout=TIMEOUT, faulthandler=True):
    """Run a program on the loop called *name*, and return its status, what it printed, and its errors.

    It fails if the program hangs, with the stacks of its threads, or says that it crashed. The stacks come
    from *faulthandler*. Python's signal handlers then run on its small stack, which a few at a time overflow.
    """
    options = ["-X", "faulthandler"] if faulthandler else []
    process = subprocess.Popen(
        [sys.executable, *options, "-c", helpers.script(name, source)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Its children are to go with it.
        start_new_session=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    hangs = False
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        hangs = True
        process.send_signal(signal.SIGABRT)
        try:
            output, errors = process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            _kill_group(process.pid)
            output, errors = process.communicate()
    finally:
        _kill_group(process.pid)
    assert not hangs, f"{name} hangs\n{output}\n{errors}"
    for word in FATAL:
        assert word not in errors, (name, process.returncode, errors)
    return process.returncode, output, errors


def check(name, source, output="end\n", status=0, quiet=True, faulthandler=True):
    """Run a program that is to print *output* and nothing else, and to end with *status*."""
    result = run(name, source, faulthandler=faulthandler)
    assert result[:2] == (status, output), (name, *result)
    if quiet:
        assert not result[2], (name, result[2])


def _kill_group(pid):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
