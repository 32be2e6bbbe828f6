"""Work with many timers pending: python -m benchmarks.growth.work_timers LOOP WORK PENDING TIMES

WORK is "set_up", which makes TIMES loops with so many timers pending; "insert", which then inserts about as
many again into each; "cancel", which then cancels these; or "replace", which inserts and cancels TIMES
timers, 100 at a time, on one loop. That prints the nanoseconds that one insertion took, and one cancellation.

There is no garbage collection, whose moments would be chance.
"""

import asyncio
import gc
import json
import os
import random
import sys
import time

from benchmarks import loops

BATCH = 100
CHANCE = random.Random(1)


def more(pending: int) -> int:
    """How many timers are inserted where so many are pending: when they are cancelled, most are, which is
    when asyncio's loop clears them away."""
    return max(BATCH, pending * 11 // 10)


def far() -> float:
    """A time, in seconds, that does not come."""
    return CHANCE.uniform(10_000, 1_000_000)


def nothing() -> None:
    pass


def insert(loop: asyncio.AbstractEventLoop, delays: list[float]) -> list[asyncio.TimerHandle]:
    return [loop.call_later(delay, nothing) for delay in delays]


def cancel(handles: list[asyncio.TimerHandle]) -> None:
    for handle in handles:
        handle.cancel()
    handles.clear()


async def use(pending: int, work: str) -> None:
    loop = asyncio.get_running_loop()
    delays = [far() for _ in range(more(pending))]
    insert(loop, [far() for _ in range(pending)])
    await asyncio.sleep(0)
    handles = [] if work == "set_up" else insert(loop, delays)
    await asyncio.sleep(0)
    if work == "cancel":
        cancel(handles)
    await asyncio.sleep(0)


async def replace(pending: int, times: int) -> tuple[float, float]:
    """What one insertion and one cancellation took, in nanoseconds. An iteration follows the cancellations:
    some loops put off part of the work until then, or until enough are cancelled."""
    loop = asyncio.get_running_loop()
    insert(loop, [far() for _ in range(pending)])
    await asyncio.sleep(0)
    inserting = cancelling = 0
    for _ in range(times // BATCH):
        delays = [far() for _ in range(BATCH)]
        start = time.perf_counter_ns()
        handles = insert(loop, delays)
        inserted = time.perf_counter_ns()
        cancel(handles)
        await asyncio.sleep(0)
        cancelling += time.perf_counter_ns() - inserted
        inserting += inserted - start
    done = max(times, 1)
    return inserting / done, cancelling / done


def main() -> None:
    name, work, pending, times = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    make = loops.factory(name)
    gc.disable()
    if work == "replace":
        print(json.dumps(make().run_until_complete(replace(pending, times))), flush=True)
    else:
        for loop in [make() for _ in range(times)]:
            loop.run_until_complete(use(pending, work))
    # To free what is pending is not part of it.
    os._exit(0)


if __name__ == "__main__":
    main()
