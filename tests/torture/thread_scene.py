"""A scene of `threads.py`: threads that go on until its time is over, and what they saw and did."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import faulthandler
import random
import threading
import time

# What a method may raise in a thread that does not own the loop, or of an object that is ending.
ALLOWED = (
    RuntimeError,
    ValueError,
    TypeError,
    OSError,
    AttributeError,
    AssertionError,
    KeyError,
    NotImplementedError,
    asyncio.CancelledError,
    asyncio.InvalidStateError,
    concurrent.futures.CancelledError,
)
# After so many seconds a thread hangs.
HANGS = 60


class Scene:
    """Threads that go on until the time is over, and what they did."""

    def __init__(self, new_loop, seed, seconds, threads):
        self.new_loop = new_loop
        self.seed = seed
        self.end = time.monotonic() + seconds
        self.threads = threads
        self.errors = []
        self.counts = collections.Counter()

    def going(self):
        return time.monotonic() < self.end and not self.errors

    def start(self, function, *args):
        def run():
            try:
                function(*args)
            except BaseException as error:
                self.errors.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def join(self, threads):
        for thread in threads:
            thread.join(max(self.end - time.monotonic(), 0) + HANGS)
            if thread.is_alive():
                faulthandler.dump_traceback()
                raise TimeoutError("a thread hangs")
        if self.errors:
            raise self.errors[0]

    def together(self, function):
        """Run function(number, random) in several threads until the time is over."""
        self.join(
            [
                self.start(function, number, random.Random(self.seed * 1000 + number))
                for number in range(self.threads)
            ]
        )

    @contextlib.contextmanager
    def running(self, prepare=None):
        """A loop that runs in a thread of its own."""
        loop = self.new_loop()
        loop.set_exception_handler(self.report)
        started = threading.Event()

        def run():
            asyncio.set_event_loop(loop)
            if prepare is not None:
                loop.run_until_complete(prepare(loop))
            loop.call_soon(started.set)
            loop.run_forever()
            loop.run_until_complete(cancel_all(loop))
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

        thread = self.start(run)
        if not started.wait(HANGS):
            self.join([])
            raise TimeoutError("the loop does not start")
        try:
            yield loop
        finally:
            loop.call_soon_threadsafe(loop.stop)
            self.join([thread])

    def report(self, loop, context):
        error = context.get("exception")
        if not isinstance(error, ALLOWED) and error is not None:
            self.errors.append(error)


async def cancel_all(loop):
    tasks = asyncio.all_tasks(loop) - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0.01)


def nothing(*args):
    pass


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)
