"""Makes one loop after the other: python -m benchmarks.growth.work_loops LOOP TIMES

Each runs a coroutine that does nothing, and is closed. Prints the microseconds that one took.
"""

import asyncio
import statistics
import sys
import time
from collections.abc import Callable

from benchmarks import loops

ROUNDS = 5


async def nothing() -> None:
    pass


def use(make: Callable[[], asyncio.AbstractEventLoop]) -> None:
    loop = make()
    loop.run_until_complete(nothing())
    loop.close()


def main() -> None:
    make, times = loops.factory(sys.argv[1]), int(sys.argv[2])
    took = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(times):
            use(make)
        took.append((time.perf_counter() - start) / times)
    print(statistics.median(took) * 1e6)


if __name__ == "__main__":
    main()
