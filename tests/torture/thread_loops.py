"""Scenes of `threads.py`: loops in several threads, and what asyncio lets other threads do with them."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import gc
import socket
import threading
import time
import warnings
import weakref

from torture.thread_scene import HANGS, Echo, nothing


def own_loops(scene):
    """A loop in each thread: connections, timers, tasks, executors."""

    async def talk(random):
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for _ in range(20):
            data = random.randbytes(random.randrange(1, 50_000))
            writer.write(data)
            assert await reader.readexactly(len(data)) == data
            scene.counts["bytes"] += len(data)
        writer.close()
        server.close()
        timers = [loop.call_later(random.random() / 100, nothing) for _ in range(100)]
        for timer in timers[::2]:
            timer.cancel()
        results = await asyncio.gather(
            *(asyncio.sleep(random.random() / 500, number) for number in range(50))
        )
        assert results == list(range(50))
        assert await loop.run_in_executor(None, sum, range(10)) == 45
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(loop.create_future(), 0.001)

    def work(number, random):
        while scene.going():
            with asyncio.Runner(loop_factory=scene.new_loop) as runner:
                for _ in range(5):
                    runner.run(talk(random))
            scene.counts["loops"] += 1

    scene.together(work)


def senders(scene):
    """call_soon_threadsafe() from several threads: each thread's calls come in order, none is lost."""
    seen = [[] for _ in range(scene.threads)]
    sent = [0] * scene.threads

    with scene.running() as loop:

        def work(number, random):
            while scene.going():
                handles = []
                for _ in range(random.randrange(1, 300)):
                    loop.call_soon_threadsafe(seen[number].append, sent[number])
                    sent[number] += 1
                    handles.append(loop.call_soon_threadsafe(nothing, number, random, 1, 2))
                for handle in random.sample(handles, len(handles) // 2):
                    handle.cancel()
                    repr(handle)
                    handle.cancelled()
                # The senders' queue must not grow for ever.
                done = threading.Event()
                loop.call_soon_threadsafe(done.set)
                assert done.wait(HANGS)

        scene.together(work)
    for number in range(scene.threads):
        assert seen[number] == list(range(sent[number])), number
    scene.counts["calls"] = 2 * sum(sent)


def coroutines(scene):
    """run_coroutine_threadsafe(), with results, exceptions and cancellations."""

    async def answer(number):
        if number % 3 == 0:
            await asyncio.sleep(0)
        elif number % 3 == 1:
            await asyncio.sleep(0.001)
        if number % 7 == 0:
            raise KeyError(number)
        return number

    with scene.running() as loop:

        def work(_, random):
            number = 0
            while scene.going():
                futures = []
                for _ in range(random.randrange(1, 50)):
                    number += 1
                    futures.append((number, asyncio.run_coroutine_threadsafe(answer(number), loop)))
                cancelled = random.sample(futures, len(futures) // 5)
                for _, future in cancelled:
                    future.cancel()
                for key, future in futures:
                    try:
                        result = future.result(HANGS)
                    except KeyError as error:
                        result = error.args[0] if key % 7 == 0 else None
                    except concurrent.futures.CancelledError:
                        result = key if (key, future) in cancelled else None
                    assert result == key
                    scene.counts["coroutines"] += 1

        scene.together(work)


def collections_elsewhere(scene):
    """Transports that are garbage, found by collections in other threads than their loop's."""
    made, lost = [0], [0]

    class Paused(asyncio.Protocol):
        def connection_made(self, transport):
            transport.pause_reading()
            # A cycle that no collection in the loop's thread has to find.
            self.transport = transport
            self.self = self

    async def litter(loop):
        warnings.simplefilter("ignore", ResourceWarning)
        while True:
            ours, theirs = socket.socketpair()
            await loop.create_connection(Paused, sock=ours)
            made[0] += 1
            theirs.setblocking(False)
            del ours
            # The end of the transport is the end of the stream.
            # Not by wait_for(), which forgets a cancellation until 3.12.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(10):
                    if not await loop.sock_recv(theirs, 10):
                        lost[0] += 1
            theirs.close()
            handle = loop.call_later(1000, nothing, [])
            weakref.ref(handle)
            handle.cancel()

    async def prepare(loop):
        scene.keep = [loop.create_task(litter(loop)) for _ in range(20)]

    with scene.running(prepare):

        def work(number, random):
            while scene.going():
                gc.collect(random.randrange(3))
                scene.counts["collections"] += 1
                time.sleep(0.001)

        scene.together(work)
        del scene.keep
    assert lost[0] > 0, "no transport was collected"
    scene.counts["transports"] = lost[0]


def handed_on(scene):
    """Objects that one thread makes, and another drops."""
    queue = collections.deque(maxlen=1000)

    async def prepare(loop):
        async def make():
            while True:
                for _ in range(100):
                    queue.append(loop.call_soon(nothing, bytearray(10)))
                    queue.append(loop.call_later(0.001, nothing, [], {}, set()))
                    queue.append(loop.create_future())
                    queue.append(loop.create_task(asyncio.sleep(0)))
                await asyncio.sleep(0)

        scene.keep = loop.create_task(make())

    with scene.running(prepare):

        def work(_, random):
            while scene.going():
                kept = []
                for _ in range(random.randrange(1000)):
                    with contextlib.suppress(IndexError):
                        kept.append(queue.popleft())
                scene.counts["objects"] += len(kept)
                random.shuffle(kept)

        scene.together(work)
        del scene.keep
    queue.clear()


def short_lives(scene):
    """Loops that are made, run, closed or dropped, by the thousand."""

    def work(number, random):
        warnings.simplefilter("ignore", ResourceWarning)
        while scene.going():
            loop = scene.new_loop()
            loop.call_soon(nothing)
            timer = loop.call_later(random.random() / 1000, nothing)
            kind = random.randrange(4)
            if kind == 0:
                loop.run_until_complete(asyncio.sleep(0, loop))
            elif kind == 1:
                loop.call_soon(loop.stop)
                loop.run_forever()
            elif kind == 2:
                loop.call_soon_threadsafe(nothing, loop, timer)
            if random.random() < 0.8:
                loop.close()
            else:
                cycle = [loop]
                cycle.append(cycle)
                del cycle
            del loop, timer
            scene.counts["loops"] += 1
            if random.random() < 0.02:
                gc.collect()

    scene.together(work)
    gc.collect()
