"""Whatever is done many times leaves nothing behind: no descriptor, no object, no memory.

Each test measures after a part of its rounds and at the end; what grew in between must be less than half an
object, and less than a few bytes, a round. HOTLOOP_LEAKS=full does, on hotloop, many times as many rounds,
and prints what grew (with `pytest -s`).
"""

import asyncio
import ctypes
import gc
import os
import socket
import sys
import warnings

import helpers
import pytest
from helpers import Recorder

FULL = os.environ.get("HOTLOOP_LEAKS") == "full"
pytestmark = [
    pytest.mark.timeout(3600 if FULL else 60),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]


class _MallocInfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


try:
    _mallinfo = ctypes.CDLL(None).mallinfo2
    _mallinfo.restype = _MallocInfo
except AttributeError:  # not glibc
    _mallinfo = _MallocInfo


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def usage():
    """What this process has: descriptors, objects, small blocks of Python's, bytes of malloc()'s, memory."""
    for _ in range(3):
        gc.collect()
    info = _mallinfo()
    return {
        "descriptors": len(helpers.open_descriptors()),
        "objects": len(gc.get_objects()),
        "blocks": sys.getallocatedblocks(),
        "malloc": info.uordblks + info.hblkhd,
        "resident": resident(),
    }


def flat(run, rounds, caches=4096):
    """Fail if `run(n)`, which does something n times, leaves something behind each time.

    *caches* is how many bytes of malloc()'s may be taken once.
    """
    early = rounds // 4
    run(early)
    before = usage()
    run(rounds - early)
    after = usage()
    grown = {name: after[name] - before[name] for name in before}
    done = rounds - early
    if FULL:
        print(f"\n{done} rounds: " + ", ".join(f"{name} {value:+}" for name, value in grown.items()))
    assert grown["descriptors"] <= 2, grown
    assert grown["objects"] < done / 2, grown
    # Caches of the interpreter still fill up.
    assert grown["blocks"] < done / 2 + 100, grown
    # Python's own tables grow by doubling; a leak of one small thing a round is sixteen bytes at least.
    assert grown["malloc"] < 8 * done + caches, grown
    assert grown["resident"] < 16 * done + (8 << 20), grown


@pytest.fixture
def rounds(loop_name):
    def rounds(normal, full):
        return full if FULL and loop_name == "hotloop" else normal

    return rounds


@pytest.fixture
def repeat(loop):
    """Runs a coroutine function again and again: `repeat(function, rounds)`."""

    def repeat(once, rounds, **kwargs):
        async def main(count):
            for _ in range(count):
                await once()
            await helpers.iterations(3)

        flat(lambda count: loop.run_until_complete(main(count)), rounds, **kwargs)

    return repeat


# Connections


async def connected(kind="unix", protocol=None):
    """A protocol with a transport, and its peer."""
    ours, peer = helpers.PAIRS[kind]()
    protocol = protocol or Recorder()
    await asyncio.get_running_loop().create_connection(lambda: protocol, sock=ours)
    return protocol, peer


async def echo():
    protocol, peer = await connected(
        "unix", Recorder(data_received=lambda self, data: self.transport.write(data))
    )
    peer.send(b"hello")
    assert await helpers.read_exactly(peer, 5) == b"hello"
    protocol.transport.close()
    await protocol.lost()
    peer.close()


async def left_by_the_peer():
    protocol, peer = await connected()
    peer.send(b"hello")
    peer.close()
    await protocol.lost()


async def aborted_before_connection_made():
    """The transport is there, and connection_made is due in the same iteration or the next."""
    for turns in range(4):
        ours, peer = helpers.unix_pair()
        protocol = Recorder()
        loop = asyncio.get_running_loop()
        task = loop.create_task(loop.create_connection(lambda: protocol, sock=ours))  # noqa: B023
        await helpers.iterations(turns)
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()[0].abort()
        await helpers.iterations(3)
        ours.close()
        peer.close()


async def aborted_in_connection_made():
    protocol, peer = await connected(
        "unix", Recorder(connection_made=lambda self, transport: transport.abort())
    )
    await protocol.lost()
    peer.close()


async def aborted_in_data_received():
    protocol, peer = await connected(
        "unix", Recorder(data_received=lambda self, data: self.transport.abort())
    )
    peer.send(b"x")
    await protocol.lost()
    peer.close()


async def aborted_with_a_full_buffer():
    protocol, peer = await connected()
    for _ in range(3):
        protocol.transport.write(bytes(400_000))
    await asyncio.sleep(0)
    protocol.transport.abort()
    await protocol.lost()
    peer.close()


async def closed_with_a_full_buffer():
    protocol, peer = await connected()
    protocol.transport.write(bytes(400_000))
    protocol.transport.close()
    await asyncio.sleep(0)
    peer.close()
    await protocol.lost()


async def aborted_while_paused():
    protocol, peer = await connected()
    protocol.transport.pause_reading()
    peer.send(b"hello")
    await helpers.iterations(2)
    protocol.transport.abort()
    await protocol.lost()
    peer.close()


async def dropped_while_paused():
    protocol, peer = await connected()
    protocol.transport.pause_reading()
    peer.send(b"hello")
    await helpers.iterations(2)
    peer.close()


async def aborted_half_closed():
    for ours in (True, False):
        protocol, peer = await connected("unix", Recorder(eof_received=lambda self: True))
        if ours:
            protocol.transport.write_eof()
        else:
            peer.shutdown(socket.SHUT_WR)
            await protocol.until("eof_received")
        await asyncio.sleep(0)
        protocol.transport.abort()
        await protocol.lost()
        peer.close()


async def reset_by_the_peer():
    protocol, peer = await connected("tcp")
    protocol.transport.write(b"hello")
    helpers.reset(peer)
    await protocol.lost()


async def streams():
    ours, peer = helpers.unix_pair()
    reader, writer = await asyncio.open_connection(sock=ours)
    peer.send(b"hello\n")
    assert await reader.readline() == b"hello\n"
    writer.writelines([b"one", b"two"])
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    peer.close()


@pytest.mark.parametrize(
    ("once", "full"),
    [
        (echo, 100_000),
        (left_by_the_peer, 20_000),
        (aborted_before_connection_made, 10_000),
        (aborted_in_connection_made, 20_000),
        (aborted_in_data_received, 20_000),
        (aborted_with_a_full_buffer, 10_000),
        (closed_with_a_full_buffer, 10_000),
        (aborted_while_paused, 20_000),
        (dropped_while_paused, 10_000),
        (aborted_half_closed, 10_000),
        (reset_by_the_peer, 20_000),
        (streams, 20_000),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_connections(repeat, rounds, once, full):
    repeat(once, rounds(3000, full))


def test_connections_in_which_a_protocol_raises(repeat, rounds, reports):
    def fail(*args):
        raise ValueError

    async def once():
        for call in ("connection_made", "data_received", "eof_received", "connection_lost"):
            protocol, peer = await connected("unix", Recorder(**{call: fail}))
            peer.send(b"x")
            peer.close()
            await protocol.lost()
        reports.clear()

    repeat(once, rounds(2000, 10_000))


def test_connections_to_a_server(loop, repeat, rounds):
    accepted = []
    server = loop.run_until_complete(
        loop.create_server(
            lambda: Recorder(connection_made=lambda self, _: accepted.append(self)), "127.0.0.1", 0
        )
    )
    address = server.sockets[0].getsockname()

    async def once():
        transport, protocol = await loop.create_connection(Recorder, *address)
        while not accepted:
            await asyncio.sleep(0)
        transport.write(b"x")
        transport.close()
        await protocol.lost()
        await accepted.pop().lost()

    repeat(once, rounds(2500, 20_000))
    server.close()


def test_servers(loop, repeat, rounds):
    async def once():
        server = await loop.create_server(Recorder, "127.0.0.1", 0)
        client = socket.create_connection(server.sockets[0].getsockname())
        server.close()
        await asyncio.sleep(0)
        client.close()

    repeat(once, rounds(2000, 10_000))


def test_connections_that_are_refused(loop, repeat, rounds):
    port = helpers.unused_port()

    async def once():
        with pytest.raises(ConnectionRefusedError):
            await loop.create_connection(Recorder, "127.0.0.1", port)

    repeat(once, rounds(2000, 10_000))


# TLS

OPENSSL_CACHES = 1 << 16


@pytest.fixture
def tls_server(loop, tls):
    opened = []
    server = loop.run_until_complete(
        loop.create_server(
            lambda: Recorder(
                connection_made=lambda self, _: opened.append(self),
                data_received=lambda self, data: self.transport.write(data),
            ),
            "127.0.0.1",
            0,
            ssl=tls[0],
        )
    )
    server.opened = opened
    yield server
    server.close()


@pytest.mark.parametrize("end", ["close", "abort"])
def test_tls(loop, repeat, rounds, tls, tls_server, end):
    address = tls_server.sockets[0].getsockname()

    async def once():
        transport, protocol = await loop.create_connection(
            Recorder, *address, ssl=tls[1], server_hostname="localhost"
        )
        transport.write(b"hello")
        await protocol.received(5)
        getattr(transport, end)()
        await protocol.lost()
        await tls_server.opened.pop().lost()

    repeat(once, rounds(800, 3000), caches=OPENSSL_CACHES)


def test_tls_left_during_the_handshake(loop, repeat, rounds, tls, tls_server, reports):
    address = tls_server.sockets[0].getsockname()

    async def once():
        # By a client of the server, and by whoever is meant to be one.
        sock = socket.create_connection(address)
        sock.send(b"\x16\x03\x01\x02\x00\x01")
        await helpers.iterations(3)
        sock.close()
        with helpers.listener() as server:
            connecting = loop.create_task(
                loop.create_connection(
                    Recorder, *server.getsockname(), ssl=tls[1], server_hostname="localhost"
                )
            )
            peer, _ = await loop.sock_accept(server)
            await helpers.iterations(3)
            connecting.cancel()
            await asyncio.wait([connecting])
            await helpers.iterations(3)
            peer.close()
        reports.clear()

    repeat(once, rounds(800, 3000), caches=OPENSSL_CACHES)


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
        reader, protocol = await loop.connect_read_pipe(Recorder, open(reading, "rb", 0))  # noqa: SIM115
        writer, _ = await loop.connect_write_pipe(Recorder, open(writing, "wb", 0))  # noqa: SIM115
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
        for turns in (0, 2):
            tasks = [
                loop.create_task(loop.sock_recv(ours, 1)),
                loop.create_task(loop.sock_sendall(peer, bytes(400_000))),
            ]
            await helpers.iterations(turns)
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
