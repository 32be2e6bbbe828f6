"""Loops that run within themselves, by a module that patches them: python nested.py MODULE LOOP

LOOP is "hotloop" or "asyncio". Prints what has happened.
"""

import asyncio
import importlib
import os
import signal
import sys

import hotloop

FACTORIES = {"hotloop": hotloop.new_event_loop, "asyncio": asyncio.new_event_loop}
loop = FACTORIES[sys.argv[2]]()
asyncio.set_event_loop(loop)
importlib.import_module(sys.argv[1]).apply(loop)
log: list[object] = []


async def double(number: int) -> int:
    await asyncio.sleep(0.01)
    return 2 * number


async def fail() -> None:
    await asyncio.sleep(0)
    raise ValueError("as it should")


async def deep(levels: int) -> int:
    if levels:
        return loop.run_until_complete(deep(levels - 1)) + 1
    await asyncio.sleep(0)
    return 0


async def steps(number: int) -> None:
    for step in range(number):
        log.append(("step", step))
        await asyncio.sleep(0)


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write((await reader.readexactly(100_000))[::-1])
    writer.close()


async def ask(address: tuple[str, int]) -> bytes:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"abcde" * 20_000)
    answer = await reader.read(-1)
    writer.close()
    return answer


def interrupt() -> None:
    raise KeyboardInterrupt


async def main() -> str:
    others = asyncio.create_task(steps(3))
    log.append(loop.run_until_complete(double(21)))
    log.append(asyncio.run(double(5)))
    log.append(await deep(10))
    try:
        loop.run_until_complete(fail())
    except ValueError as error:
        log.append(repr(error))
    sleeping = asyncio.create_task(asyncio.sleep(10))
    loop.call_later(0.01, sleeping.cancel)
    try:
        loop.run_until_complete(sleeping)
    except asyncio.CancelledError:
        log.append("cancelled")
    loop.add_signal_handler(signal.SIGUSR1, log.append, "signal")
    os.kill(os.getpid(), signal.SIGUSR1)
    loop.run_until_complete(asyncio.sleep(0.02))
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    log.append(loop.run_until_complete(ask(server.sockets[0].getsockname())) == b"edcba" * 20_000)
    server.close()
    log.append(loop.run_until_complete(loop.run_in_executor(None, os.getpid)) == os.getpid())
    try:
        loop.call_soon(interrupt)
        loop.run_until_complete(asyncio.sleep(0.1))
    except KeyboardInterrupt:
        log.append("interrupted")
    log.append(asyncio.current_task() is task)
    await others
    return "end"


task = loop.create_task(main())
log.append(loop.run_until_complete(task))
loop.run_until_complete(loop.shutdown_default_executor())
loop.close()
print(log)
