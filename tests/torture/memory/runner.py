"""Runs `python -m torture.memory.runner LOOP PROGRAMS MODE KIND NUMBERS [gdb]`, and prints a line of JSON
for each attempt.

PROGRAMS have commas between them. MODE is cold or warm: whether they were run before. KIND is `once` or
`on`: whether one allocation fails, or it and many after it. NUMBERS is how many allocations to fail of each
program, or PROGRAM=NUMBER,NUMBER... for certain ones of one program, after the same preparations: with the
same PYTHONHASHSEED the same allocations fail then. PROGRAM~PART:MOST is so many of one program, those first
that come after about that part of all. With `gdb` an attempt that crashes tells where.
"""

from __future__ import annotations

import collections
import faulthandler
import gc
import json
import os
import pathlib
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback

from .. import effort
from . import attempt, crashes, programs

# How many allocations fail of the kind `on`. It is not all of them: CPython tries again where it has
# no memory for the number of the instruction at which an exception came.
MANY = 1000
# What tells where a process crashes.
GDB = [
    *("gdb", "-batch", "-ex", "handle all nostop noprint pass", "-ex", "handle SIGSEGV SIGABRT SIGBUS stop"),
    *("-ex", "continue", "-ex", "backtrace 40"),
]
# Attempts at a time: most of those that take long wait.
CHILDREN = 32
ORDERED_CHILDREN = 8
# How long an attempt may take, in seconds, and one that is made again: longer than any does on a busy
# machine.
LIMIT = 6.0
MORE_LIMIT = 12.0
# The same for one that gdb follows, which reads symbols first.
TRACED_LIMIT = 60.0
# The patience of an attempt that is made again, because the first may have been one that was just slow.
MORE_PATIENCE = 3.0


class Child:
    """An attempt in a process of its own."""

    def __init__(self, loop_name, name, first, last, patience, traced=False):
        self.name, self.first, self.last, self.patience = name, first, last, patience
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  (open until end())
        self.data = b""
        self.hung = False
        limit = LIMIT if patience == attempt.PATIENCE else MORE_LIMIT
        self.deadline = time.monotonic() + (TRACED_LIMIT if traced else limit)
        self.reader, writer = os.pipe()
        start, starter = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.reader)
            os.close(starter)
            os.dup2(self.log.fileno(), 1)
            os.dup2(self.log.fileno(), 2)
            faulthandler.enable(2)
            os.read(start, 1)  # whether it is traced or not: it has to make the same allocations
            os.close(start)
            status = 1
            try:
                result = attempt.attempt(loop_name, name, first, last, patience)
                os.write(writer, json.dumps(result).encode())
                status = 0
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(status)
        os.close(writer)
        os.close(start)
        self.gdb = None
        if traced:
            gdb = [*GDB, "-p", str(self.pid)]
            self.gdb = subprocess.Popen(gdb, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            while self.gdb.poll() is None and not self.is_traced():
                time.sleep(0.01)
        os.close(starter)

    def is_traced(self):
        return "TracerPid:\t0" not in pathlib.Path(f"/proc/{self.pid}/status").read_text()

    def receive(self):
        """Take what it says. Returns whether that was all."""
        chunk = os.read(self.reader, 65536)
        self.data += chunk
        return not chunk

    def kill(self):
        self.hung = True
        os.kill(self.pid, signal.SIGABRT)  # faulthandler prints where it is
        time.sleep(0.2)
        os.kill(self.pid, signal.SIGKILL)

    def end(self):
        """What it said and how it ended."""
        found = self.gdb.communicate()[0].splitlines() if self.gdb else ()
        os.close(self.reader)
        _, status = os.waitpid(self.pid, 0)
        result = json.loads(self.data) if self.data and not self.hung else {}
        self.log.seek(0)
        result["log"] = self.log.read().decode(errors="replace")
        self.log.close()
        result["ended"] = "hang" if self.hung else os.waitstatus_to_exitcode(status)
        result["backtrace"] = [line for line in found if line.startswith("#")]
        return {"program": self.name, "number": self.first, **result}


def is_of_thread(result):
    """Whether an attempt hangs as CPython's threads do without memory."""
    return any(re.search(each, result["log"]) for each in (crashes.STARTING, crashes.LEAVING))


def is_of_time(result):
    """Whether something did not come in time, and nobody was told of a shortage that explains it."""
    if result["ended"] == "hang":
        return not is_of_thread(result)
    late = result.get("overdue") or not all(
        problem.startswith("a descriptor") for problem in result.get("problems", ())
    )
    return bool(late) and not result["told"]


def attempts(loop_name, wanted, traced=False, at_a_time=CHILDREN):
    """What came of each (name, first, last) that is wanted. An attempt that has waited for nothing is made
    again, with more patience, unless many allocations fail: then it is what is to be expected."""
    waiting = collections.deque((*each, attempt.PATIENCE) for each in wanted)
    children = {}
    while waiting or children:
        while waiting and len(children) < at_a_time:
            child = Child(loop_name, *waiting.popleft(), traced)
            children[child.reader] = child
        first = min(child.deadline for child in children.values())
        ready, _, _ = select.select(list(children), [], [], max(0, first - time.monotonic()))
        over = [child for child in map(children.get, ready) if child.receive()]
        for child in children.values():
            if child not in over and time.monotonic() > child.deadline:
                child.kill()
                over.append(child)
        for child in over:
            del children[child.reader]
            result = child.end()
            if is_of_time(result) and child.patience < MORE_PATIENCE and child.last == child.first + 1:
                waiting.append((child.name, child.first, child.last, MORE_PATIENCE))
            else:
                yield result


def choose(count, most, name):
    """All allocations, or of many some."""
    every = range(count + 5)
    return every if len(every) <= most else sorted(effort.seeded(name).sample(every, most))


def freeze():
    """Have the collector look at what is made from now on only."""
    gc.collect()
    crashes.circumvent()
    gc.freeze()


def run(loop_name, names, mode, kind, numbers, traced):
    freeze()
    for name in names:
        programs.prepare(name)
        if name != "import":
            attempt.factory(loop_name)
            if mode == "warm":
                result = attempt.attempt(loop_name, name, attempt.MOST, 0)
                assert result["error"] is None, result
                assert not result["problems"], result
    freeze()
    counts = {}
    if found := re.fullmatch(r"(\w+)([=~])(.*)", numbers):
        name, how, which = found.groups()
        if name not in names:
            return
        names = [name]
    if not found or how == "~":
        counted = attempts(loop_name, [(name, None, None) for name in names])
        counts = {result["program"]: result["count"] for result in counted}
    if not found:
        chosen = [
            (name, number)
            for name, count in sorted(counts.items())
            for number in choose(count, int(numbers), f"{name} {mode} {kind}")
        ]
    elif how == "=":
        chosen = [(name, int(number)) for number in which.split(",")]
    else:
        part, _, most = which.partition(":")
        middle = float(part) * counts[name]
        ordered = sorted(range(counts[name]), key=lambda number: abs(number - middle))
        chosen = [(name, number) for number in ordered[: int(most)]]
    wanted = [(name, number, number + (1 if kind == "once" else MANY)) for name, number in chosen]
    # Of those in an order, whoever asks stops at what it looks for.
    at_a_time = ORDERED_CHILDREN if found and how == "~" else CHILDREN
    for result in attempts(loop_name, wanted, traced, at_a_time):
        result["part"] = result["number"] / counts.get(result["program"], 1)
        print(json.dumps(result), flush=True)


def main(loop_name, names, mode, kind, numbers, traced=None):
    names = names.split(",")
    # It is imported by all others.
    if "import" in names:
        names.remove("import")
        run(loop_name, ["import"], mode, kind, numbers, traced == "gdb")
    if names:
        run(loop_name, names, mode, kind, numbers, traced == "gdb")


if __name__ == "__main__":
    main(*sys.argv[1:])
