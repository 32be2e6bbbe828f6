"""Measuring what is left behind: descriptors, objects, memory.

What is measured is done many times. It is measured after a part of the rounds and at the end; what grew in
between must be less than half an object, and less than a few bytes, a round. HOTLOOP_LEAKS=full does, on
hotloop, many times as many rounds, and prints what grew (with `pytest -s`).
"""

import ctypes
import gc
import os
import sys

import helpers

FULL = os.environ.get("HOTLOOP_LEAKS") == "full"


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


def flat(run, rounds, caches=4096):
    """Fail if `run(n)`, which does something n times, leaves something behind each time.

    *caches* is how many bytes of malloc()'s may be taken once.
    """
    early = rounds // 4
    run(early)
    before = usage()
    run(rounds - early)
    after = usage()
    grown = {name: after[name] - before[name] for name in before}
    done = rounds - early
    if FULL:
        print(f"\n{done} rounds: " + ", ".join(f"{name} {value:+}" for name, value in grown.items()))
    assert grown["descriptors"] <= 2, grown
    assert grown["objects"] < done / 2, grown
    # Caches of the interpreter still fill up.
    assert grown["blocks"] < done / 2 + 100, grown
    # Python's own tables grow by doubling; a leak of one small thing a round is sixteen bytes at least.
    assert grown["malloc"] < 8 * done + caches, grown
    assert grown["resident"] < 16 * done + (8 << 20), grown
