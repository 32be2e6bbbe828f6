"""Threads that use each other's event loops: run `python -m torture.threads --seconds 600` in tests/.

Each scene runs for a part of the time, and says how much it did. The exit code is 1 if a scene failed: if a
thread saw anything but an exception that the scene allows, a callback was lost or came out of order, data was
mixed up, a thread hung, or descriptors were left open. Scenes are seeded with --seed. They hold on Pythons
with the GIL and without.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import os
import sys
import time

import helpers

from torture import thread_loops, thread_strangers
from torture.thread_scene import ALLOWED, HANGS, Scene

# Descriptors that the interpreter may open once.
SPARE = 4

SCENES = {
    scene.__name__: scene
    for scene in (
        *(thread_loops.own_loops, thread_loops.senders, thread_loops.coroutines),
        *(thread_loops.collections_elsewhere, thread_loops.handed_on, thread_loops.short_lives),
        *(thread_strangers.strangers, thread_strangers.cancellers, thread_strangers.endings),
        *(thread_strangers.one_loop, thread_strangers.observers),
    )
}

# asyncio's own loop is not for these: it has no rule of its own for threads, and loops that are dropped leave
# descriptors open.
ONLY_HERE = {"strangers", "cancellers", "one_loop", "short_lives"}


def descriptors():
    return len(os.listdir("/dev/fd"))


def run(name, new_loop, *, seed, seconds, threads):
    """Run a scene, and return what it did."""
    # What is imported and made once.
    new_loop().close()
    gc.collect()
    before = descriptors()
    scene = Scene(new_loop, seed, seconds, threads)
    raised = []
    sys.unraisablehook = lambda unraisable: raised.append(unraisable.exc_value)
    SCENES[name](scene)
    if scene.errors:
        raise scene.errors[0]
    for _ in range(3):
        gc.collect()
    unexpected = [error for error in raised if not isinstance(error, ALLOWED)]
    if unexpected:
        raise unexpected[0]
    assert descriptors() <= before + SPARE, f"{descriptors() - before} descriptors are left open"
    return dict(scene.counts)


def main():
    parser = argparse.ArgumentParser(prog="python -m torture.threads", description=__doc__)
    parser.add_argument("--loop", default="hotloop", choices=["hotloop", "asyncio"])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--threads", type=int, default=3)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("scenes", nargs="*", help=", ".join(SCENES))
    options = parser.parse_args()
    names = options.scenes or [name for name in SCENES if options.loop == "hotloop" or name not in ONLY_HERE]
    faulthandler.enable()
    for index, name in enumerate(names):
        faulthandler.dump_traceback_later(options.seconds / len(names) + 3 * HANGS, exit=True)
        did = run(
            name,
            helpers.FACTORIES[options.loop],
            seed=options.seed + index,
            seconds=options.seconds / len(names),
            threads=options.threads,
        )
        print(f"{name}: {did}", flush=True)
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()
