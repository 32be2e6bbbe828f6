"""The cases in which tasks, threads or jobs compete: a queue, a lock, sleeping tasks, an executor, a flood of
callbacks from another thread, the output of a child process."""

import asyncio
import random
import threading
from collections.abc import Callable

from benchmarks.case import Cases, check, nothing

CASES = Cases()
case = CASES.add

QUEUE_SIZE = 16
LOCK_TASKS = 100
SLEEPERS = 5_000
JOBS = 1_000
OUTPUT = 64 * 1024


@case(f"asyncio.Queue({QUEUE_SIZE}), a producer and a consumer, an item", timed=200_000, counted=10_000)
async def queue_items(times: int) -> None:
    queue: asyncio.Queue[int] = asyncio.Queue(QUEUE_SIZE)

    async def produce() -> None:
        for number in range(times):
            await queue.put(number)

    producing = asyncio.get_running_loop().create_task(produce())
    for number in range(times):
        check(await queue.get() == number)
    await producing


@case(f"asyncio.Lock, {LOCK_TASKS} tasks, each holds it for an iteration", timed=60_000, counted=6_000)
async def lock_contended(times: int) -> None:
    lock = asyncio.Lock()
    held = 0

    async def hold_often() -> None:
        nonlocal held
        for _ in range(times // LOCK_TASKS):
            async with lock:
                held += 1
                await asyncio.sleep(0)

    await asyncio.gather(*(hold_often() for _ in range(LOCK_TASKS)))
    check(held == times // LOCK_TASKS * LOCK_TASKS)


@case(
    f"{SLEEPERS:,} tasks that sleep for 1 to 10 ms, a sleep", timed=200_000, counted=20_000, is_steady=False
)
async def sleepers(times: int) -> None:
    """All together are due more often than a loop can wake them."""
    chance = random.Random(1)

    async def sleep_often() -> None:
        for _ in range(times // SLEEPERS):
            await asyncio.sleep(chance.uniform(0.001, 0.010))

    await asyncio.gather(*(sleep_often() for _ in range(SLEEPERS)))


@case(f"run_in_executor, {JOBS:,} at a time, a job", timed=10_000, counted=4_000, is_steady=False)
async def executor_jobs(times: int) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(times // JOBS):
        await asyncio.gather(*(loop.run_in_executor(None, nothing) for _ in range(JOBS)))


@case("call_soon_threadsafe, as fast as a thread can", timed=400_000, counted=20_000, is_steady=False)
async def threadsafe_flood(times: int) -> None:
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    left = times

    def step() -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set_result(None)

    def call_often(call: Callable[[Callable[[], None]], object]) -> None:
        for _ in range(times):
            call(step)

    thread = threading.Thread(target=call_often, args=[loop.call_soon_threadsafe])
    thread.start()
    await done
    thread.join()


@case(
    f"subprocess that prints {OUTPUT // 1024} KiB, communicate()",
    timed=200,
    counted=50,
    is_steady=False,
    has_children=True,
)
async def subprocess_output(times: int) -> None:
    for _ in range(times):
        process = await asyncio.create_subprocess_exec(
            "head", "-c", str(OUTPUT), "/dev/zero", stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        check(len(output) == OUTPUT and process.returncode == 0)
