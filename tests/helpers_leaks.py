"""Measuring what is left behind: descriptors, objects, memory.

What is measured is done many times. It is measured after a part of the rounds and at the end; what grew in
between must be less than half an object, and less than a few bytes, a round, in one of three attempts.
HOTLOOP_LEAKS=full does, on hotloop, many times as many rounds, and prints what grew (with `pytest -s`).
"""

import ctypes
import gc
import os
import sys

import helpers

FULL = os.environ.get("HOTLOOP_LEAKS") == "full"
ATTEMPTS = 3


class _MallocInfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


try:
    _mallinfo = ctypes.CDLL(None).mallinfo2
    _mallinfo.restype = _MallocInfo
except AttributeError:  # not glibc
    _mallinfo = _MallocInfo


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def usage():
    """What this process has: descriptors, objects, small blocks of Python's, bytes of malloc()'s, memory."""
    for _ in range(3):
        gc.collect()
    info = _mallinfo()
    return {
        "descriptors": len(helpers.open_descriptors()),
        "objects": len(gc.get_objects()),
        "blocks": sys.getallocatedblocks(),
        "malloc": info.uordblks + info.hblkhd,
        "resident": resident(),
    }


# Without the GIL, the interpreter keeps more by the way.
CACHES = 32 * 1024 if helpers.FREE_THREADED else 4096


def flat(run, rounds, caches=CACHES):
    """Fail if `run(n)`, which does something n times, leaves something behind each time.

    *caches* is how many bytes of malloc()'s may be taken once.
    """
    early = rounds // 4
    run(early)
    done = rounds - early
    # Memory that is taken once can be taken at any time; what leaks does so each time.
    for attempt in range(1, ATTEMPTS + 1):
        before = usage()
        run(done)
        after = usage()
        grown = {name: after[name] - before[name] for name in before}
        if FULL:
            print(f"\n{done} rounds: " + ", ".join(f"{name} {value:+}" for name, value in grown.items()))
        limits = {
            "descriptors": 2,
            "objects": done / 2,
            # Caches of the interpreter still fill up.
            "blocks": done / 2 + 100,
            # Python's own tables grow by doubling; a leak of one small thing a round is 16 bytes at least.
            "malloc": 8 * done + caches,
            "resident": 16 * done + (8 << 20),
        }
        if all(grown[name] <= limits[name] for name in limits):
            return
        assert attempt < ATTEMPTS, f"{done} rounds, {attempt} times: {grown}"
