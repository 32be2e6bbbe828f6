"""Programs: callbacks, timers, tasks, threads, signals, and the loop itself."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import signal
import socket
import subprocess
import sys
import threading
import time

from .parts import DATA, Protocol, connected, pair, program


@program
def import_(loop, clean):
    def act():
        try:
            importlib.import_module("hotloop")
        finally:
            # What was imported by halves is not found again.
            for name in [name for name in sys.modules if name.startswith("hotloop.") or name == "hotloop"]:
                if name != "hotloop._core":
                    del sys.modules[name]

    return act


@program
def make(loop, clean):
    def act():
        made = loop()
        try:
            made.call_soon(made.stop)
            made.run_forever()
        finally:
            made.close()

    return act


@program
def close(loop, clean):
    loop.call_soon(print)
    loop.call_later(60, print)
    ours, _ = pair(clean)
    loop.add_reader(ours, print)
    return loop.close


@program
def call_soon(loop, clean):
    def act():
        loop.call_soon(abs, 1)
        loop.call_soon(divmod, 7, 2).cancel()
        loop.call_soon(max, 1, 2, 3, 4, 5, 6, 7)
        loop.call_soon(loop.stop)
        loop.run_forever()

    return act


@program
def failing_callback(loop, clean):
    def fail():
        raise ValueError("the program's")

    def act():
        loop.call_soon(fail)
        loop.call_soon(loop.stop)
        loop.run_forever()

    return act


@program
def timers(loop, clean):
    def act():
        loop.call_later(0, abs, 1)
        loop.call_at(loop.time(), max, 1, 2)
        loop.call_later(60, abs, 1).cancel()
        loop.call_later(0.001, loop.stop)
        loop.run_forever()

    return act


@program
def debug(loop, clean):
    def act():
        loop.set_debug(True)
        loop.run_until_complete(asyncio.sleep(0))
        repr(loop.call_soon(abs, 1))
        repr(loop.call_later(60, abs, 1)).encode()
        loop.set_debug(False)

    return act


@program
def create_task(loop, clean):
    async def once():
        await asyncio.sleep(0)
        return 1

    async def main():
        return await asyncio.gather(once(), once(), loop.create_task(once(), name="named"))

    return main


@program
def futures(loop, clean):
    async def main():
        future = loop.create_future()
        loop.call_soon(future.set_result, 1)
        await future
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.001):
                await loop.create_future()

    return main


@program
def threadsafe(loop, clean):
    """The other thread was started before; it calls when it is told to."""
    go, done = threading.Lock(), threading.Lock()
    go.acquire()
    done.acquire()

    def other():
        try:
            go.acquire()
            try:
                loop.call_soon_threadsafe(loop.stop)
            except MemoryError:
                loop.stop()
                loop.call_soon_threadsafe(abs, 1)
        finally:
            done.release()

    thread = threading.Thread(target=other)
    thread.start()
    clean.callback(thread.join)
    clean.callback(lambda: go.locked() and go.release())

    def act():
        go.release()
        try:
            loop.run_forever()
        finally:
            done.acquire()  # a stop() that came later would be found afterwards

    return act


@program
def executor(loop, clean):
    return lambda: loop.run_until_complete(loop.run_in_executor(None, abs, 1))


@program
def getaddrinfo(loop, clean):
    return lambda: loop.run_until_complete(loop.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM))


@program
def signals(loop, clean):
    clean.callback(signal.signal, signal.SIGUSR1, signal.SIG_DFL)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def act():
        loop.add_signal_handler(signal.SIGUSR1, loop.stop)
        signal.raise_signal(signal.SIGUSR1)
        loop.run_forever()
        loop.remove_signal_handler(signal.SIGUSR1)

    return act


@program
def subprocesses(loop, clean):
    async def main():
        process = await asyncio.create_subprocess_exec(
            "/bin/cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        await process.communicate(DATA)

    return main


@program
def asyncgens(loop, clean):
    async def generate():
        yield 1
        yield 2

    async def main():
        generator = generate()
        await anext(generator)
        await loop.shutdown_asyncgens()

    return main


@program
def metrics(loop, clean):
    if not hasattr(loop, "metrics"):
        return None
    connected(loop, clean, Protocol(loop))

    def act():
        loop.metrics()
        loop.reset_metrics()

    return act


@program
def watching(loop, clean):
    if not hasattr(loop, "watch_blocking"):
        return None

    def act():
        loop.watch_blocking(0.001)
        loop.call_soon(time.sleep, 0.003)
        loop.call_soon(loop.stop)
        loop.run_forever()

    return act


class Callable:
    def __call__(self):
        pass


@program
def accounting(loop, clean):
    if not hasattr(loop, "account"):
        return None

    async def waiting():
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    def act():
        loop.account()
        try:
            loop.call_soon(abs, 1)
            loop.call_soon(Callable())
            loop.run_until_complete(waiting())
            str(loop.accounting())
        finally:
            loop.account(False)

    return act


@program
def recording(loop, clean):
    if not hasattr(loop, "record"):
        return None

    def act():
        loop.record(memory=32 * 256)
        try:
            loop.call_soon(abs, 1)
            loop.call_soon(functools.partial(max, 1, 2))
            loop.call_soon(Callable())
            loop.call_later(0, loop.stop)
            loop.run_forever()
            loop.recording().events()
        finally:
            loop.record(None)

    return act
