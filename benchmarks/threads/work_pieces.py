"""Works in threads with a loop each, in one process or several.

python -m benchmarks.threads.work_pieces LOOP CASE THREADS PROCESSES SECONDS

Each thread does its work in pieces of about 0.5 ms of processor time. Prints each thread's pieces.
"""

import asyncio
import concurrent.futures
import contextlib
import json
import multiprocessing
import multiprocessing.synchronize
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import cast

from benchmarks import loops, scheduling
from benchmarks.servers import Echo
from benchmarks.threads.pieces import Piece

PIECE = 500_000
"""Nanoseconds of processor time. On a busy machine, two threads seldom run together for longer than a few
milliseconds."""
PATIENCE = 20.0
"""Seconds to wait for the others."""
PAIRS = 16
REQUEST = b"x" * 1024

Work = Callable[[int], Awaitable[None]]
"""Does as many operations as it is told to."""


@dataclass(frozen=True)
class Case:
    title: str
    prepare: Callable[[], AbstractAsyncContextManager[Work]]
    multiple: int
    """A piece has a multiple of this number of operations."""


def of_scheduling(name: str, multiple: int, run: Work | None = None) -> Case:
    case = scheduling.CASES[name]
    return Case(case.title, lambda: contextlib.nullcontext(run or case.run), multiple)


async def call_later_cancelled(times: int) -> None:
    """The case of the scheduling rows, with a callback of the thread's own.

    Handles count references to it, and threads that share one contend for the count, on any loop."""

    def nothing() -> None:
        pass

    loop = asyncio.get_running_loop()
    for _ in range(times // 1000):
        for _ in range(1000):
            loop.call_later(60, nothing).cancel()
        await asyncio.sleep(0)


class Client(asyncio.Protocol):
    """Sends a request when the former is answered."""

    def __init__(self) -> None:
        self.left = 0
        self.missing = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.missing -= len(data)
        if not self.missing:
            self.left -= 1
            if self.left:
                self.ask()
            else:
                self.answered.set_result(None)

    def start(self, times: int) -> asyncio.Future[None]:
        self.left = times
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ask()
        return self.answered

    def ask(self) -> None:
        self.missing = len(REQUEST)
        self.transport.write(REQUEST)


@contextlib.asynccontextmanager
async def pairs() -> AsyncIterator[Work]:
    loop = asyncio.get_running_loop()
    clients = []
    for _ in range(PAIRS):
        here, there = socket.socketpair()
        here.setblocking(False)
        there.setblocking(False)
        await loop.create_connection(Echo, sock=there)
        _, client = await loop.create_connection(Client, sock=here)
        clients.append(client)

    async def ask(times: int) -> None:
        for answered in [client.start(times // PAIRS) for client in clients]:
            await answered

    yield ask
    for client in clients:
        client.transport.close()
    await asyncio.sleep(0.01)


CASES = {
    "call_soon_chain": of_scheduling("call_soon_chain", 100),
    "create_task": of_scheduling("create_task", 100),
    "call_later_cancelled": of_scheduling("call_later_cancelled", 1000, call_later_cancelled),
    "echo_pairs": Case(f"Protocol echo 1 KiB over {PAIRS} socket pairs, both ends here", pairs, PAIRS),
}


async def timed(work: Work, operations: int, end: float = 0) -> list[Piece]:
    """Works until the end comes, at least for one piece.

    A piece begins where the former ends, so that nothing can interrupt the thread between pieces, unseen."""
    before = time.perf_counter_ns(), time.thread_time_ns()
    pieces: list[Piece] = []
    while not pieces or time.perf_counter() < end:
        await work(operations)
        after = time.perf_counter_ns(), time.thread_time_ns()
        pieces.append(Piece(before[0], after[0], after[1] - before[1], operations))
        before = after
    return pieces


async def operations_of_a_piece(work: Work, multiple: int) -> int:
    """Warms up until a piece is long enough."""
    [piece] = await timed(work, multiple)
    while piece.processor < PIECE:
        [piece] = await timed(work, 2 * piece.operations)
    return max(int(PIECE / piece.cost) // multiple, 1) * multiple


together: multiprocessing.synchronize.Barrier
"""Where all threads of all processes wait for each other. Forked children have it from their parent."""


async def in_pieces(case: Case, seconds: float) -> list[Piece]:
    async with case.prepare() as work:
        operations = await operations_of_a_piece(work, case.multiple)
        together.wait(PATIENCE)
        return await timed(work, operations, time.perf_counter() + seconds)


def work_in_threads(loop: str, name: str, threads: int, seconds: float) -> list[list[Piece]]:
    make = loops.factory(loop)

    def work() -> list[Piece]:
        with asyncio.Runner(loop_factory=make) as runner:
            return runner.run(in_pieces(CASES[name], seconds))

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return [worker.result() for worker in [pool.submit(work) for _ in range(threads)]]


def main() -> None:
    global together
    loop, name, threads, processes, seconds = sys.argv[1:]
    task = loop, name, int(threads), float(seconds)
    forking = multiprocessing.get_context("fork")
    together = forking.Barrier(int(threads) * int(processes))
    if processes == "1":
        found = work_in_threads(*task)
    else:
        # The children import the loop: a loop's package may not survive a fork.
        with forking.Pool(int(processes)) as pool:
            of_processes = pool.starmap(work_in_threads, [task] * int(processes), chunksize=1)
        found = [pieces for of_process in of_processes for pieces in of_process]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
