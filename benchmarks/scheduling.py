"""The cases without a client: callbacks, tasks, timers, threads, local sockets, child processes. Those in
which tasks, threads or jobs compete are in concurrency.py.

Each case is a coroutine function that does its work a given number of times. As a program, this module times
one case on one loop: python -m benchmarks.scheduling LOOP CASE TIMES [--no-gc]
"""

import asyncio
import gc
import json
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable

from benchmarks import concurrency, loops
from benchmarks.case import Case, Cases, check, nothing, nothing_async

CASES = Cases()
case = CASES.add


@case("call_soon chain", timed=300_000, counted=20_000, target=1_500)
async def call_soon_chain(times: int) -> None:
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    left = times

    def step() -> None:
        nonlocal left
        left -= 1
        if left:
            loop.call_soon(step)
        else:
            done.set_result(None)

    loop.call_soon(step)
    await done


@case("call_soon, 1,000 at a time", timed=400_000, counted=20_000, target=1_400)
async def call_soon_batch(times: int) -> None:
    loop = asyncio.get_running_loop()
    ran = 0

    def step() -> None:
        nonlocal ran
        ran += 1

    for _ in range(times // 1000):
        for _ in range(1000):
            loop.call_soon(step)
        await asyncio.sleep(0)
    check(ran == times // 1000 * 1000)


@case("await asyncio.sleep(0)", timed=200_000, counted=20_000, target=3_400)
async def sleep_zero(times: int) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


@case("await create_task(nothing())", timed=100_000, counted=10_000, target=8_500)
async def create_task(times: int) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(times):
        await loop.create_task(nothing_async())


@case("gather of 100, a task", timed=100_000, counted=10_000, target=10_500)
async def gather(times: int) -> None:
    for _ in range(times // 100):
        await asyncio.gather(*[nothing_async() for _ in range(100)])


@case("await a future that call_soon sets", timed=100_000, counted=10_000, target=6_300)
async def future_set_by_call_soon(times: int) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(times):
        future = loop.create_future()
        loop.call_soon(future.set_result, None)
        await future


@case("call_later that fires", timed=100_000, counted=10_000, target=2_400)
async def call_later_fires(times: int) -> None:
    """Timers, a thousand at a time, unordered, within 10 µs so that the loop hardly waits."""
    loop = asyncio.get_running_loop()
    delays = [position * 7919 % 1000 * 1e-8 for position in range(1000)]
    for _ in range(times // 1000):
        fired = loop.create_future()
        left = len(delays)

        def step(fired: asyncio.Future[None] = fired) -> None:
            nonlocal left
            left -= 1
            if not left:
                fired.set_result(None)

        for delay in delays:
            loop.call_later(delay, step)
        await fired


@case("call_later, then cancel", timed=200_000, counted=20_000, target=1_900)
async def call_later_cancelled(times: int) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(times // 1000):
        for _ in range(1000):
            loop.call_later(60, nothing).cancel()
        await asyncio.sleep(0)


@case("async with asyncio.timeout", timed=80_000, counted=8_000, target=13_500)
async def timeout(times: int) -> None:
    for _ in range(times):
        async with asyncio.timeout(60):
            await asyncio.sleep(0)


@case("call_soon_threadsafe round trip", timed=5_000, counted=1_000, target=14_000, is_steady=False)
async def call_soon_threadsafe(times: int) -> None:
    loop = asyncio.get_running_loop()
    to_answer: queue.SimpleQueue[asyncio.Future[None] | None] = queue.SimpleQueue()

    def answer() -> None:
        while (future := to_answer.get()) is not None:
            loop.call_soon_threadsafe(future.set_result, None)

    thread = threading.Thread(target=answer)
    thread.start()
    for _ in range(times):
        future = loop.create_future()
        to_answer.put(future)
        await future
    to_answer.put(None)
    thread.join()


@case("run_in_executor round trip", timed=5_000, counted=1_000, target=60_000, is_steady=False)
async def run_in_executor(times: int) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(times):
        await loop.run_in_executor(None, nothing)


@case("sock_sendall + sock_recv round trip, both ends here", timed=20_000, counted=2_000, target=28_000)
async def sock_round_trip(times: int) -> None:
    loop = asyncio.get_running_loop()
    here, there = socket.socketpair()
    here.setblocking(False)
    there.setblocking(False)

    async def echo() -> None:
        while data := await loop.sock_recv(there, 4096):
            await loop.sock_sendall(there, data)

    echoing = loop.create_task(echo())
    payload = b"x" * 1024
    for _ in range(times):
        await loop.sock_sendall(here, payload)
        check(await loop.sock_recv(here, 4096) == payload)
    here.shutdown(socket.SHUT_WR)
    await echoing
    here.close()
    there.close()


class Closing(asyncio.Protocol):
    """Reports the end of its connection; the accepted side waits for the other to close first."""

    def __init__(self, closed: Callable[[], None]) -> None:
        self.closed = closed

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed()


@case("TCP connect, accept, close", timed=3_000, counted=500, target=45_000)
async def tcp_connect(times: int) -> None:
    loop = asyncio.get_running_loop()
    both_closed: asyncio.Future[None]
    open_ends = 0

    def one_closed() -> None:
        nonlocal open_ends
        open_ends -= 1
        if not open_ends:
            both_closed.set_result(None)

    server = await loop.create_server(lambda: Closing(one_closed), "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    for _ in range(times):
        both_closed = loop.create_future()
        open_ends = 2
        transport, _ = await loop.create_connection(lambda: Closing(one_closed), host, port)
        transport.close()
        await both_closed
    server.close()
    await server.wait_closed()


@case(
    "subprocess /bin/true, waited for",
    timed=200,
    counted=50,
    target=250_000,
    is_steady=False,
    has_children=True,
)
async def subprocess_true(times: int) -> None:
    for _ in range(times):
        process = await asyncio.create_subprocess_exec("/bin/true")
        check(await process.wait() == 0)


async def timed(chosen: Case, times: int) -> float:
    """Does the work after a warm-up, and returns its seconds."""
    await chosen.run(chosen.warmup)
    begin = time.perf_counter()
    await chosen.run(times)
    return time.perf_counter() - begin


def main() -> None:
    loop, name, times, *options = sys.argv[1:]
    if options == ["--no-gc"]:
        # A full collection takes as long as hundreds of repetitions. Whether there is one depends on how many
        # objects the process has; one more environment variable can decide it.
        gc.disable()
    with asyncio.Runner(loop_factory=loops.factory(loop)) as runner:
        seconds = runner.run(timed((CASES | concurrency.CASES)[name], int(times)))
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
