"""A client of the gRPC server: python -m benchmarks.grpc_client ADDRESS TASKS SIZE SECONDS

Each of so many tasks calls the method, and waits for the answer before it calls again. Prints how many calls
were answered after the warm-up, in how many seconds, how many with the warm-up, and the 99th percentile of
their latency in microseconds. It runs on uvloop, if that is installed.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable

from benchmarks import loops
from benchmarks.program_servers import GRPC_METHOD, GRPC_SERVICE

WARMUP = 0.2


def loop() -> str:
    return "uvloop" if loops.is_installed("uvloop") else "asyncio"


async def call_for(address: str, tasks: int, size: int, seconds: float) -> dict[str, float]:
    import grpc

    latencies: list[float] = []
    answered = 0
    async with grpc.aio.insecure_channel(address) as channel:
        call: Callable[[bytes], Awaitable[object]] = channel.unary_unary(f"/{GRPC_SERVICE}/{GRPC_METHOD}")
        request = b"x" * size
        begin = time.perf_counter() + WARMUP
        end = begin + seconds

        async def call_often() -> None:
            nonlocal answered
            while (sent := time.perf_counter()) < end:
                if await call(request) != request:
                    raise ValueError("wrong bytes")
                now = time.perf_counter()
                answered += 1
                if begin <= now <= end:
                    latencies.append(now - sent)

        await asyncio.gather(*(call_often() for _ in range(tasks)))
    latencies.sort()
    p99 = latencies[len(latencies) * 99 // 100] * 1e6
    return {"requests": len(latencies), "seconds": seconds, "answered": answered, "p99": p99}


def main() -> None:
    address, tasks, size, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    with asyncio.Runner(loop_factory=loops.factory(loop())) as runner:
        print(json.dumps(runner.run(call_for(address, tasks, size, seconds))))


if __name__ == "__main__":
    main()
