"""Peers that have spoken, ended or reset the connection before the program has its transport.

Whoever awaits the transport goes on before the protocol hears of any of it: a handler that is set then, or
pause_reading(), comes in time.
"""

import asyncio
import contextlib
import os
import socket
import struct
import subprocess
import sys
import threading

import helpers
import pytest

ENDS = ["nothing", "end", "reset"]


class Notes(asyncio.Protocol, asyncio.DatagramProtocol, asyncio.SubprocessProtocol):
    """Writes down in which order it hears of what."""

    def __init__(self):
        self.notes = []
        self.over = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport
        self.notes.append("connection_made")

    def data_received(self, data):
        self.notes.append("data_received")

    def datagram_received(self, data, addr):
        self.notes.append("datagram_received")

    def pipe_data_received(self, fd, data):
        self.notes.append("pipe_data_received")

    def eof_received(self):
        self.notes.append("eof_received")

    def connection_lost(self, exc):
        self.notes.append(f"connection_lost({type(exc).__name__})")
        if not self.over.done():
            self.over.set_result(None)


def speak(peer, end):
    """What the peer does at once."""
    peer.sendall(b"hello")
    if end == "end":
        peer.shutdown(socket.SHUT_WR)
    elif end == "reset":
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()


@contextlib.contextmanager
def speaking_server(end, family=socket.AF_INET, address=("127.0.0.1", 0)):
    """A server in a thread, whose connections are kept until the end."""
    accepted = []

    def serve():
        with contextlib.suppress(OSError):
            while True:
                peer = listener.accept()[0]
                accepted.append(peer)
                with contextlib.suppress(OSError):
                    speak(peer, end)

    with socket.socket(family) as listener:
        listener.bind(address)
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for peer in accepted:
                peer.close()


async def to_an_address(loop, end, tmp_path):
    with speaking_server(end) as address:
        yield await loop.create_connection(Notes, *address)


async def to_a_name(loop, end, tmp_path):
    with speaking_server(end) as address:
        yield await loop.create_connection(Notes, "localhost", address[1], family=socket.AF_INET)


async def on_a_socket(loop, end, tmp_path):
    with speaking_server(end) as address, socket.socket() as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, address)
        yield await loop.create_connection(Notes, sock=sock)


async def on_a_socket_that_was_connected_before(loop, end, tmp_path):
    with speaking_server(end) as address, socket.create_connection(address) as sock:
        sock.setblocking(False)
        await asyncio.sleep(0.01)
        yield await loop.create_connection(Notes, sock=sock)


async def on_a_socket_that_was_received_from(loop, end, tmp_path):
    ours, peer = socket.socketpair()
    with ours, peer:
        ours.setblocking(False)
        task = asyncio.create_task(loop.sock_recv(ours, 3))
        await asyncio.sleep(0)
        speak(peer, end)
        assert await task == b"hel"
        yield await loop.create_connection(Notes, sock=ours)


async def to_a_path(loop, end, tmp_path):
    path = str(tmp_path / "socket")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    with speaking_server(end, socket.AF_UNIX, path):
        yield await loop.create_unix_connection(Notes, path)


async def accepted(loop, end, tmp_path):
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as peer,
    ):
        ours, _ = listener.accept()
        speak(peer, end)
        await asyncio.sleep(0.01)
        yield await loop.connect_accepted_socket(Notes, ours)


async def on_a_pipe(loop, end, tmp_path):
    reader, writer = os.pipe()
    os.write(writer, b"hello")
    if end == "end":
        os.close(writer)
    try:
        yield await loop.connect_read_pipe(Notes, open(reader, "rb", 0))  # noqa: SIM115
    finally:
        if end != "end":
            os.close(writer)


async def on_a_datagram_socket(loop, end, tmp_path):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        ours = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        ours.bind(("127.0.0.1", 0))
        peer.sendto(b"hello", ours.getsockname())
        yield await loop.create_datagram_endpoint(Notes, sock=ours)


async def to_a_child(loop, end, tmp_path):
    source = "import os, sys; os.write(1, b'hello'); sys.stdin.read()"
    transport, protocol = await loop.subprocess_exec(
        *(Notes, sys.executable, "-c", source), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    yield transport, protocol
    transport.kill()
    await protocol.over


WAYS = [
    *(to_an_address, to_a_name, on_a_socket, on_a_socket_that_was_connected_before),
    *(on_a_socket_that_was_received_from, to_a_path, accepted, on_a_pipe, on_a_datagram_socket),
]


CASES = [
    *((way, end) for way in WAYS[:-2] for end in ENDS),
    *((on_a_pipe, "nothing"), (on_a_pipe, "end"), (on_a_datagram_socket, "nothing")),
]


async def keep_busy(loop):
    while True:
        await asyncio.sleep(0)


async def order_of(loop, way, end, busy, tmp_path):
    """What the protocol and its user see, in order; None if the reset came while connecting."""
    spinning = asyncio.create_task(keep_busy(loop)) if busy else None
    try:
        async for transport, protocol in way(loop, end, tmp_path):
            protocol.notes.append("returned")
            if end == "nothing":
                while len(protocol.notes) < 3:
                    await asyncio.sleep(0.001)
                await asyncio.sleep(0.005)
            else:
                await protocol.over
            notes = list(protocol.notes)
            transport.close()
            await protocol.over
            return notes
    except ConnectionError:
        return None
    finally:
        if spinning is not None:
            spinning.cancel()


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@pytest.mark.parametrize(("way", "end"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_who_awaits_the_transport_goes_on_first(loop_name, way, end, busy, tmp_path):
    def observe(name):
        with asyncio.Runner(loop_factory=helpers.FACTORIES[name]) as runner:
            while True:
                notes = runner.run(order_of(runner.get_loop(), way, end, busy, tmp_path))
                if notes is not None:
                    return notes

    notes = observe(loop_name)
    assert notes[:2] == ["connection_made", "returned"]
    # A reset takes away what was not received by then.
    if end != "reset" and "asyncio" in helpers.FACTORIES:
        assert notes == observe("asyncio")


async def test_what_is_set_then_comes_in_time(loop):
    """asyncssh's tunnels set the handler of their protocol when they have it."""

    class Handled(asyncio.Protocol):
        handler = None

        def data_received(self, data):
            self.handler(data)

    spinning = asyncio.create_task(keep_busy(loop))
    with speaking_server("nothing") as address:
        for _ in range(50):
            received = loop.create_future()
            transport, protocol = await loop.create_connection(Handled, *address)
            protocol.handler = received.set_result
            assert await received == b"hello"
            transport.abort()
            transport, protocol = await loop.create_connection(Handled, *address)
            transport.pause_reading()
            await asyncio.sleep(0.001)
            other = Handled()
            received = loop.create_future()
            other.handler = received.set_result
            transport.set_protocol(other)
            transport.resume_reading()
            assert await received == b"hello"
            transport.abort()
    spinning.cancel()


async def test_a_server_that_speaks_first_within_tls(loop, tls):
    """The first data of a TLS connection, which can come with the end of the handshake."""

    class Greeter(asyncio.Protocol):
        def connection_made(self, transport):
            transport.write(b"hello")

    server_context, client_context = tls
    server = await loop.create_server(Greeter, "127.0.0.1", 0, ssl=server_context)
    async with helpers.running(server) as address:
        for _ in range(20):
            _, protocol = await loop.create_connection(
                Notes, *address, ssl=client_context, server_hostname="localhost"
            )
            protocol.notes.append("returned")
            await asyncio.sleep(0.01)
            assert protocol.notes[0] == "connection_made"
            assert "data_received" in protocol.notes
            protocol.transport.abort()
            await protocol.over


@helpers.with_pidfd
async def test_a_child_that_speaks_first(loop, tmp_path):
    async for _, protocol in to_a_child(loop, "nothing", tmp_path):
        protocol.notes.append("returned")
        while "pipe_data_received" not in protocol.notes:
            await asyncio.sleep(0.001)
        # A child that is faster than its pipes are connected is heard before the transport is returned.
        assert protocol.notes[0] == "connection_made"
        assert sorted(protocol.notes) == ["connection_made", "pipe_data_received", "returned"]
