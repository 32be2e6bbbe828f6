"""What is done many times leaves nothing behind: no descriptor, object or memory. See helpers_leaks.py."""

import asyncio
import gc
import os
import socket
import sys
import warnings

import helpers
import helpers_leaks
import pytest
from helpers import Recorder
from helpers_leaks import flat

pytestmark = [
    pytest.mark.timeout(3600 if helpers_leaks.FULL else 60),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]


# Subprocesses, pipes, datagrams


def test_subprocesses(loop, repeat, rounds):
    async def once():
        process = await asyncio.create_subprocess_exec("/bin/true", stdout=asyncio.subprocess.PIPE)
        assert await process.communicate() == (b"", None)
        with pytest.raises(FileNotFoundError):
            await asyncio.create_subprocess_exec("/nonexistent/program", stdin=asyncio.subprocess.PIPE)

    policy = None
    if sys.version_info < (3, 14):
        # Until then a policy's watcher belongs to the loop that it was attached to.
        policy = asyncio.get_event_loop_policy()
        watcher = asyncio.PidfdChildWatcher() if hasattr(os, "pidfd_open") else asyncio.ThreadedChildWatcher()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            watcher.attach_loop(loop)
            policy.set_child_watcher(watcher)
    try:
        repeat(once, rounds(300, 5000))
    finally:
        if policy is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                policy.set_child_watcher(None)


def test_pipes(loop, repeat, rounds):
    async def once():
        reading, writing = os.pipe()
        reader, protocol = await loop.connect_read_pipe(Recorder, os.fdopen(reading, "rb", 0))
        writer, _ = await loop.connect_write_pipe(Recorder, os.fdopen(writing, "wb", 0))
        writer.write(b"hello")
        await protocol.received(5)
        writer.close()
        await protocol.lost()
        reader.close()
        await asyncio.sleep(0)

    repeat(once, rounds(2500, 20_000))


def test_datagram_endpoints(loop, repeat, rounds):
    class Datagrams(asyncio.DatagramProtocol):
        def __init__(self):
            self.got = loop.create_future()

        def datagram_received(self, data, address):
            self.got.set_result(data)

    async def once():
        receiving, protocol = await loop.create_datagram_endpoint(Datagrams, ("127.0.0.1", 0))
        sending, _ = await loop.create_datagram_endpoint(
            Datagrams, remote_addr=receiving.get_extra_info("sockname")
        )
        sending.sendto(b"hello")
        assert await protocol.got == b"hello"
        sending.close()
        receiving.abort()
        await asyncio.sleep(0)

    repeat(once, rounds(2500, 20_000))


# Loops, handles, timers, sockets


@pytest.mark.parametrize("end", ["closed", "dropped"])
def test_loops(loop_name, rounds, end):
    def once():
        loop = helpers.FACTORIES[loop_name]()
        ours, peer = helpers.unix_pair()
        loop.call_later(60, print)
        loop.call_soon(print).cancel()
        loop.add_reader(ours, print)
        loop.remove_reader(ours)
        loop.add_reader(peer, print)
        loop.run_until_complete(asyncio.sleep(0))
        loop.remove_reader(peer)
        ours.close()
        peer.close()
        if end == "closed":
            loop.close()

    def run(count):
        for number in range(count):
            once()
            if number % 50 == 0:
                gc.collect()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flat(run, rounds(2000, 4000) if end == "dropped" else rounds(5000, 10_000))


def test_handles_and_timers(loop, repeat, rounds):
    async def once():
        loop.call_soon(len, "x")
        loop.call_soon(len, "x").cancel()
        loop.call_soon_threadsafe(len, "x")
        loop.call_soon_threadsafe(len, "x").cancel()
        loop.call_later(0, len, "x")
        loop.call_later(-1, len, "x").cancel()
        loop.call_later(3600, len, "x").cancel()
        loop.call_at(loop.time() + 3600, len, "x").cancel()
        await asyncio.sleep(0)

    repeat(once, rounds(20_000, 500_000))


def test_callbacks_that_raise(loop, repeat, rounds, reports):
    def fail(*args):
        raise ValueError

    async def once():
        loop.call_soon(fail)
        loop.call_later(0, fail, 1)
        loop.create_future().add_done_callback(fail)
        await helpers.iterations(2)
        reports.clear()

    repeat(once, rounds(10_000, 100_000))


def test_tasks(loop, repeat, rounds):
    async def wait(future):
        await future

    async def once():
        future = loop.create_future()
        task = loop.create_task(wait(future))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await loop.create_future()

    repeat(once, rounds(5000, 50_000))


def test_socket_operations(loop, repeat, rounds):
    """Done, failed, and cancelled while they wait, or before they began to."""

    async def once():
        ours, peer = helpers.unix_pair()
        await loop.sock_sendall(ours, b"hello")
        assert await loop.sock_recv(peer, 5) == b"hello"
        for count in (0, 2):
            tasks = [
                loop.create_task(loop.sock_recv(ours, 1)),
                loop.create_task(loop.sock_sendall(peer, bytes(400_000))),
            ]
            await helpers.iterations(count)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            assert all(task.done() for task in tasks)
        task = loop.create_task(loop.sock_recv_into(peer, bytearray(1)))
        await helpers.iterations(2)
        task.cancel()
        await asyncio.wait([task])
        ours.close()
        peer.close()
        with pytest.raises((OSError, ValueError)):
            await loop.sock_recv(ours, 1)

    repeat(once, rounds(1500, 20_000))


def test_accepting_and_connecting_cancelled(loop, repeat, rounds):
    async def once():
        with helpers.listener() as server, socket.socket() as client:
            client.setblocking(False)
            accepting = loop.create_task(loop.sock_accept(server))
            await helpers.iterations(2)
            accepting.cancel()
            await asyncio.wait([accepting])
            await loop.sock_connect(client, server.getsockname())
            sock, _ = await loop.sock_accept(server)
            sock.close()

    repeat(once, rounds(2000, 20_000))


def test_watchers(loop, repeat, rounds):
    async def once():
        ours, peer = helpers.unix_pair()
        loop.add_reader(ours, len, "x")
        loop.add_reader(ours, len, "y")
        loop.add_writer(ours, len, "x")
        peer.send(b"x")
        await helpers.iterations(2)
        loop.remove_reader(ours)
        loop.remove_writer(ours)
        ours.close()
        peer.close()

    repeat(once, rounds(5000, 50_000))
