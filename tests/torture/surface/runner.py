"""Runs `python -m torture.surface.runner SEED FIRST COUNT LENGTH` and prints the programs that fail, made
short.

`python -m torture.surface.runner - FREQUENT LIMIT` runs the program that it reads from its standard input
instead: with
the garbage collector at each allocation if FREQUENT is 1, for LIMIT seconds at the most.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import random
import signal
import sys
import tempfile
import time

from . import generate, objects

# Longer than a program takes that is interrupted, on a machine that has other things to do.
LIMIT = 20.0


def is_frequent(number):
    """Whether the garbage collector comes at each allocation."""
    return number % 4 == 0


def run(lines, frequent, limit=LIMIT):
    """Run a program in a child. Returns what went wrong, or None."""
    with tempfile.TemporaryFile() as log:
        child = os.fork()
        if child == 0:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            faulthandler.enable(2)
            status = 3
            try:
                wrongs = objects.execute(lines, frequent)
                signal.setitimer(signal.ITIMER_REAL, 0)
                os.write(2, "".join(f"wrong: {wrong}\n" for wrong in wrongs).encode())
                status = 4 if wrongs else 0
            except objects.Overdue:
                status = 0
            except BaseException as error:
                os.write(2, f"the bench: {type(error).__name__}: {error}\n".encode(errors="replace"))
            finally:
                os._exit(status)
        deadline = time.monotonic() + limit
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return "hang"
            time.sleep(0.001)
        log.seek(0)
        text = log.read().decode(errors="replace")
    status = os.waitstatus_to_exitcode(status)
    if status == 0 and "panicked at" not in text:
        return None
    if status == 3:
        return "the bench" if "the bench" in text else None
    return f"status {status}\n{text[:3000]}"


def kind(failure):
    """What makes two failures the same one."""
    lines = failure.splitlines()
    return lines[0] + "".join(sorted({line[:100] for line in lines if line.startswith("wrong:")})[:1])


def shorten(lines, frequent, failure, seconds):
    """Leave out what is not needed for the same failure."""
    deadline = time.monotonic() + seconds
    size = len(lines) // 2
    while size:
        start = 0
        while start < len(lines) and time.monotonic() < deadline:
            shorter = lines[:start] + lines[start + size :]
            found = run(shorter, frequent)
            if found is not None and kind(found) == kind(failure):
                lines, failure = shorter, found
            else:
                start += size
        size //= 2
    return lines, failure


def program(lines, frequent):
    """The text of a program that does the same by itself."""
    call = f"python -m torture.surface.runner - {int(frequent)} {LIMIT:.0f}"
    return "\n".join([f"# {call}, in tests/, with this on its standard input", *lines])


def main(seed, first, count, length):
    gc.collect()
    gc.freeze()
    done = 0
    for number in range(int(first), int(first) + int(count)):
        lines = generate.draw(random.Random(f"{seed} {number}"), int(length))
        frequent = is_frequent(number)
        failure = run(lines, frequent)
        done += 1
        if failure is not None:
            short, failure = shorten(lines, frequent, failure, 60)
            print(
                json.dumps({"number": number, "failure": failure, "program": program(short, frequent)}),
                flush=True,
            )
    print(json.dumps({"done": done}))


if __name__ == "__main__":
    if sys.argv[1] == "-":
        sys.exit(run(sys.stdin.read().splitlines(), sys.argv[2] == "1", float(sys.argv[3])))
    main(*sys.argv[1:])
