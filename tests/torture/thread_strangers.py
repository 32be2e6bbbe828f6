"""Scenes of `threads.py`: threads that do with a loop what is its own thread's."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import random
import socket
import threading
import time

from torture.thread_scene import ALLOWED, HANGS, Echo, nothing


def strangers(scene):
    """Methods and attributes of a running loop's objects, called by threads that do not own it."""
    objects = []
    talks = [0]

    async def keep_talking(loop, address):
        reader, writer = await asyncio.open_connection(*address)
        while True:
            data = os.urandom(random.randrange(1, 3000))
            writer.write(data)
            assert await reader.readexactly(len(data)) == data
            talks[0] += 1
            await asyncio.sleep(0)

    async def renew(loop):
        """Replace the objects that the threads play with."""
        while True:
            ours, theirs = socket.socketpair()
            for sock in (ours, theirs):
                sock.setblocking(False)
            stream, _ = await loop.create_connection(Echo, sock=ours)
            datagram, _ = await loop.create_datagram_endpoint(
                asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)
            )
            reading, writing = os.pipe()
            read_pipe, _ = await loop.connect_read_pipe(asyncio.Protocol, os.fdopen(reading, "rb", 0))
            write_pipe, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(writing, "wb", 0))
            server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
            operation = loop.sock_recv(theirs, 100)
            task = loop.create_task(operation_of(operation))
            made = [
                *(stream, datagram, read_pipe, write_pipe, server, operation, task, loop.create_future()),
                *(
                    loop.call_soon(nothing, 1),
                    loop.call_later(0.01, nothing, 1, 2, 3),
                    loop.call_later(9, nothing),
                ),
                *(loop.call_soon_threadsafe(nothing), theirs),
            ]
            objects[:] = [loop, *made]
            await asyncio.sleep(0.005)
            task.cancel()
            for transport in (stream, datagram, read_pipe, write_pipe):
                transport.abort()
            made[10].cancel()
            server.close()
            await asyncio.sleep(0)
            theirs.close()

    async def operation_of(operation):
        await operation

    async def prepare(loop):
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        scene.keep = (
            server,
            [
                loop.create_task(renew(loop)),
                loop.create_task(keep_talking(loop, server.sockets[0].getsockname())),
            ],
        )
        await asyncio.sleep(0.01)

    # What would end the loop or the process, or waits.
    left_out = {
        "_run_as_asyncio",
        *(
            "stop",
            "close",
            "run_forever",
            "run_until_complete",
            "_run",
            "_run_once",
            "_close",
            "_thread_id",
            "_closed",
        ),
        *("__init__", "__del__", "__class__", "_run_forever_setup", "_run_forever_cleanup", "serve_forever"),
        *("shutdown_default_executor", "set_default_executor", "_stopping", "__reduce_ex__", "__reduce__"),
        *(
            "recv",
            "recv_into",
            "accept",
            "recvfrom",
            "recvmsg",
            "recvfrom_into",
            "recvmsg_into",
            "detach",
            "dup",
        ),
        *("_set_coroutine_origin_tracking", "set_exception_handler", "default_exception_handler"),
        *("setblocking", "settimeout", "makefile", "sendfile", "set_debug", "_debug", "_pop_ready", "_flush"),
        *("_set_running_or_notify_cancel", "set_task_factory", "_task_factory", "subprocess_exec"),
        *(
            "subprocess_shell",
            "_asyncgen_firstiter_hook",
            "_asyncgen_finalizer_hook",
            "_wait_by",
            "__sizeof__",
        ),
        *("_stop_serving", "_add_callback", "remove_signal_handler", "add_signal_handler", "_make_ready"),
    }

    def play(_, random):
        values = [None, 0, 1, b"data", "name", nothing, (), "peername", 1.5, asyncio.Protocol]
        while scene.going():
            if not objects:
                continue
            with contextlib.suppress(IndexError):
                target = random.choice(objects)
                name = random.choice(dir(target))
                if name in left_out:
                    continue
                try:
                    value = getattr(target, name)
                    if callable(value) and not isinstance(value, type):
                        with contextlib.suppress(IndexError):
                            count = random.choice([0, 0, 0, 1, 1, 2, 3])
                            arguments = [random.choice([*values, *objects]) for _ in range(count)]
                            result = value(*arguments)
                            if hasattr(result, "close") and hasattr(result, "cr_frame"):
                                result.close()
                    repr(target)
                except ALLOWED:
                    scene.counts["refused"] += 1
                except Exception as error:
                    if isinstance(error, SystemError | MemoryError):
                        raise
                scene.counts["calls"] += 1
                del target

    with scene.running(prepare) as loop:
        scene.together(play)
        before = talks[0]
        deadline = time.monotonic() + HANGS
        while talks[0] == before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert talks[0] > before, "the loop does not go on"
        assert not loop.is_closed()
    scene.counts["talks"] = talks[0]
    del scene.keep


def cancellers(scene):
    """Timers and callbacks that other threads make and cancel."""
    called = collections.Counter()

    with scene.running() as loop:

        def work(number, random):
            while scene.going():
                handles = []
                try:
                    for index in range(100):
                        key = (number, index % 3)
                        if index % 3 == 0:
                            handles.append(loop.call_later(random.random() / 100, called.update, [key]))
                        elif index % 3 == 1:
                            handles.append(loop.call_soon(called.update, [key]))
                        else:
                            handles.append(loop.call_at(loop.time() + 10, called.update, [key]))
                except RuntimeError:
                    # The loop is not running yet, or no more.
                    scene.counts["refused"] += 1
                for handle in handles:
                    handle.cancel()
                    assert handle.cancelled()
                    repr(handle)
                scene.counts["handles"] += len(handles)
                time.sleep(0.001)

        scene.together(work)
    assert not any(kind == 2 for _, kind in called), "a timer that was cancelled was called"


def endings(scene):
    """Loops that stop and close while other threads call."""

    def work(number, random):
        while scene.going():
            loop = scene.new_loop()
            over = threading.Event()

            def disturb(loop=loop, over=over):
                while not over.is_set():
                    with contextlib.suppress(RuntimeError):
                        loop.call_soon_threadsafe(nothing, 1, 2, 3)
                        loop.call_soon_threadsafe(loop.stop)
                        loop.is_running(), loop.is_closed(), loop.get_debug(), repr(loop), loop.time()
                    time.sleep(0.0002)

            others = [scene.start(disturb) for _ in range(2)]
            for _ in range(random.randrange(5)):
                loop.run_forever()
            loop.close()
            time.sleep(random.random() / 1000)
            over.set()
            scene.join(others)
            scene.counts["loops"] += 1

    scene.together(work)


def one_loop(scene):
    """Several threads that try to run one loop."""
    loop = scene.new_loop()
    running = [0]

    def turn():
        running[0] += 1
        assert running[0] == 1, "two threads run the loop"
        time.sleep(0)
        running[0] -= 1

    def work(_, random):
        while scene.going():
            try:
                loop.call_soon_threadsafe(turn)
                loop.call_soon_threadsafe(loop.stop)
                loop.run_forever()
                scene.counts["runs"] += 1
            except RuntimeError:
                scene.counts["refused"] += 1
                time.sleep(0.001)

    def stop():
        # A run can have taken the stop of the thread that waits for the next.
        while not over.is_set():
            loop.call_soon_threadsafe(loop.stop)
            time.sleep(0.01)

    over = threading.Event()
    stopping = scene.start(stop)
    try:
        scene.together(work)
    finally:
        over.set()
    scene.join([stopping])
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()


def observers(scene):
    """Loops that are watched for callbacks that block, and asked for their metrics, by other threads."""
    loops = []

    async def main(number, random):
        loop = asyncio.get_running_loop()
        blocks = []
        if hasattr(loop, "watch_blocking"):
            loop.watch_blocking(0.01, blocks.append)
        loops.append(loop)
        ours, theirs = socket.socketpair()
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        for _ in range(20):
            loop.call_later(random.random() / 100, nothing)
            transport.write(bytes(random.randrange(1_000_000)))
            if random.random() < 0.1:
                time.sleep(0.03)
            await asyncio.sleep(0.001)
        transport.abort()
        theirs.close()
        scene.counts["blocks"] += len(blocks)
        loops.remove(loop)

    def look():
        while scene.going():
            for loop in list(loops):
                if hasattr(loop, "metrics"):
                    metrics = loop.metrics()
                    assert metrics.bytes_waiting >= 0
                    assert metrics.idle >= 0
                    assert metrics.ready >= 0
                    scene.counts["metrics"] += 1
            time.sleep(0.0005)

    def work(number, random):
        while scene.going():
            with asyncio.Runner(loop_factory=scene.new_loop) as runner:
                runner.run(main(number, random))
            scene.counts["loops"] += 1

    looking = scene.start(look)
    scene.together(work)
    scene.join([looking])
