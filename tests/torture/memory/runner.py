"""Runs `python -m torture.memory.runner LOOP PROGRAMS MODE KIND NUMBERS`, and prints a line of JSON for
each attempt.

PROGRAMS have commas between them. MODE is cold or warm: whether they were run before. KIND is `once` or
`on`: whether one
allocation fails, or all from it on. NUMBERS is how many allocations to fail of each program, or `=` and
which one.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import select
import signal
import sys
import tempfile
import time

from .. import effort
from . import attempt, programs


def in_child(loop_name, name, first, last, log):
    """Make an attempt in a child of this process. Returns what it said and how it ended."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.dup2(log.fileno(), 2)
        os.dup2(log.fileno(), 1)
        faulthandler.enable(2)
        status = 1
        try:
            result = attempt.attempt(loop_name, name, first, last)
            os.write(writer, json.dumps(result).encode())
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    os.close(writer)
    data = b""
    deadline = time.monotonic() + attempt.LIMIT
    while True:
        ready, _, _ = select.select([reader], [], [], max(0, deadline - time.monotonic()))
        if not ready:
            os.kill(child, signal.SIGABRT)  # faulthandler prints where it is
            time.sleep(0.2)
            os.kill(child, signal.SIGKILL)
            break
        chunk = os.read(reader, 65536)
        if not chunk:
            break
        data += chunk
    os.close(reader)
    hung = not ready
    _, status = os.waitpid(child, 0)
    log.seek(0)
    result = json.loads(data) if data and not hung else {}
    result["log"] = log.read().decode(errors="replace")
    log.seek(0)
    log.truncate()
    result["ended"] = "hang" if hung else os.waitstatus_to_exitcode(status)
    return result


def choose(count, most, name):
    """All allocations, or of many some."""
    every = range(count + 5)
    return every if len(every) <= most else sorted(effort.seeded(name).sample(every, most))


def main(loop_name, names, mode, kind, numbers):
    names = names.split(",")
    for name in names:
        programs.prepare(name)
        if name != "import":
            attempt.factory(loop_name)
            if mode == "warm":
                result = attempt.attempt(loop_name, name, attempt.MOST, 0)
                assert result["error"] is None, result
                assert not result["problems"], result
    gc.collect()
    gc.freeze()
    with tempfile.TemporaryFile() as log:
        for name in names:
            if numbers.startswith("="):
                chosen = [int(numbers[1:])]
            else:
                counted = in_child(loop_name, name, None, None, log)
                chosen = choose(counted["count"], int(numbers), f"{name} {mode} {kind}")
            for number in chosen:
                result = in_child(loop_name, name, number, number + 1 if kind == "once" else 0, log)
                print(json.dumps({"program": name, "number": number, **result}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
