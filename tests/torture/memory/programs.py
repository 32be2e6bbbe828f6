"""The operations: each takes a loop and an ExitStack, prepares, and returns what is to be run without
memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time

PROGRAMS = {}
# What is done without a loop that was made before.
LOOPLESS = {"import", "make"}
# What asyncio does not have.
HOTLOOP_ONLY = {"import", "metrics", "watching"}
DATA = b"x" * 1000
# More than a pair of loopback socket buffers holds.
MUCH = b"x" * (8 << 20)


@functools.cache
def contexts():
    """TLS contexts of a server at localhost, and of a client that trusts it."""
    import trustme

    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    return server, client


def prepare(name):
    """What takes long and is the same for all runs of a program."""
    if name == "tls":
        contexts()


def program(function):
    PROGRAMS[function.__name__.rstrip("_")] = function
    return function


class Protocol(asyncio.Protocol):
    """Keeps what it got, and lets a coroutine wait for a condition."""

    def __init__(self, loop, echo=False):
        self.echo = echo
        self.size = 0
        self.lost = loop.create_future()
        self.arrived = loop.create_future()
        self.expected = len(DATA)
        self.transport = None

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.size += len(data)
        if self.echo:
            self.transport.write(data)
        if self.size >= self.expected and not self.arrived.done():
            self.arrived.set_result(None)

    def connection_lost(self, exc):
        if not self.lost.done():
            self.lost.set_result(None)
        if not self.arrived.done():
            self.arrived.set_result(None)


class Buffered(asyncio.BufferedProtocol):
    def __init__(self, loop):
        self.buffer = bytearray(4096)
        self.arrived = loop.create_future()

    def get_buffer(self, sizehint):
        return self.buffer

    def buffer_updated(self, nbytes):
        if not self.arrived.done():
            self.arrived.set_result(None)


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self, loop):
        self.arrived = loop.create_future()
        self.transport = None

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        if not self.arrived.done():
            self.arrived.set_result(None)


def pair(clean):
    both = socket.socketpair()
    for sock in both:
        sock.setblocking(False)
        clean.callback(sock.close)
    return both


def discard(transport):
    """Closing a transport when its loop still is open."""
    if not transport.is_closing():
        transport.abort()


def connected(loop, clean, protocol):
    """A transport over one end of a connection, and the other end."""
    ours, peer = pair(clean)
    transport, _ = loop.run_until_complete(loop.create_connection(lambda: protocol, sock=ours))
    clean.callback(discard, transport)
    return transport, peer


def served(loop, clean, **options):
    """The address of an echo server."""
    server = loop.run_until_complete(
        loop.create_server(lambda: Protocol(loop, echo=True), "127.0.0.1", 0, **options)
    )
    clean.callback(server.close)
    return server.sockets[0].getsockname()[:2]


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

    return lambda: loop.run_until_complete(main())


@program
def futures(loop, clean):
    async def main():
        future = loop.create_future()
        loop.call_soon(future.set_result, 1)
        await future
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.001):
                await loop.create_future()

    return lambda: loop.run_until_complete(main())


@program
def threadsafe(loop, clean):
    """The other thread was started before; it calls when it is told to."""
    go, done = threading.Lock(), threading.Lock()
    go.acquire()

    def other():
        go.acquire()
        try:
            loop.call_soon_threadsafe(loop.stop)
        except MemoryError:
            loop.stop()
            loop.call_soon_threadsafe(abs, 1)

    thread = threading.Thread(target=other)
    thread.start()
    clean.callback(thread.join)
    clean.callback(lambda: go.locked() and go.release())
    del done

    def act():
        go.release()
        loop.run_forever()

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
def add_reader(loop, clean):
    ours, peer = pair(clean)

    def act():
        peer.send(b"x")
        loop.add_reader(ours, loop.stop)
        loop.add_writer(ours, abs, 1)
        loop.run_forever()
        loop.remove_writer(ours)
        loop.remove_reader(ours)

    clean.callback(lambda: loop.is_closed() or (loop.remove_reader(ours), loop.remove_writer(ours)))
    return act


@program
def errors(loop, clean):
    """What is raised for wrong arguments has a message, which needs memory, too."""
    transport, _ = connected(loop, clean, Protocol(loop))
    wrong = [
        lambda: loop.call_soon(),
        lambda: loop.call_later(None, abs),
        lambda: loop.call_at("text", abs),
        lambda: loop.add_reader(-1, abs),
        lambda: loop.remove_reader("text"),
        lambda: loop.call_soon(abs, nonsense=1),
        lambda: transport.write("text"),
        lambda: transport.set_write_buffer_limits(1, 2),
        lambda: loop.add_reader(transport.get_extra_info("socket"), abs),
        lambda: loop.add_reader(1 << 20, abs),
    ]

    def act():
        for call in wrong:
            with contextlib.suppress(TypeError, ValueError, RuntimeError, OSError):
                call()

    return act


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


@program
def sock_recv(loop, clean):
    ours, peer = pair(clean)

    async def main():
        receiving = loop.create_task(loop.sock_recv(ours, 100))
        await asyncio.sleep(0)
        await loop.sock_sendall(peer, b"hello")
        await receiving
        peer.send(b"hello")
        await loop.sock_recv_into(ours, bytearray(10))

    return lambda: loop.run_until_complete(main())


@program
def sock_sendall(loop, clean):
    ours, peer = pair(clean)

    async def main():
        sending = loop.create_task(loop.sock_sendall(ours, MUCH))
        left = len(MUCH)
        while left:
            left -= len(await loop.sock_recv(peer, 1 << 20))
        await sending

    return lambda: loop.run_until_complete(main())


@program
def sock_connect(loop, clean):
    server = socket.socket()
    clean.callback(server.close)
    server.bind(("127.0.0.1", 0))
    server.listen(100)
    server.setblocking(False)
    ours = socket.socket()
    clean.callback(ours.close)
    ours.setblocking(False)

    async def main():
        accepting = loop.create_task(loop.sock_accept(server))
        await loop.sock_connect(ours, server.getsockname())
        accepted, _ = await accepting
        accepted.close()

    return lambda: loop.run_until_complete(main())


@program
def sock_datagrams(loop, clean):
    both = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    for sock in both:
        clean.callback(sock.close)
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)

    async def main():
        for _ in range(2):
            await loop.sock_sendto(both[0], b"hello", both[1].getsockname())
        await loop.sock_recvfrom(both[1], 100)
        await loop.sock_recvfrom_into(both[1], bytearray(10))

    return lambda: loop.run_until_complete(main())


@program
def connect(loop, clean):
    """Also accept, and all that comes with them."""
    address = served(loop, clean)

    async def main():
        protocol = Protocol(loop)
        transport, _ = await loop.create_connection(lambda: protocol, *address)
        try:
            transport.write(DATA)
            await protocol.arrived
        finally:
            transport.close()
        await protocol.lost

    return lambda: loop.run_until_complete(main())


@program
def serve(loop, clean):
    async def main():
        server = await loop.create_server(lambda: Protocol(loop), "127.0.0.1", 0)
        server.close()
        await server.wait_closed()

    return lambda: loop.run_until_complete(main())


@program
def read(loop, clean):
    protocol = Protocol(loop)
    _, peer = connected(loop, clean, protocol)

    async def main():
        peer.send(DATA)
        await protocol.arrived

    return lambda: loop.run_until_complete(main())


@program
def buffered_read(loop, clean):
    protocol = Buffered(loop)
    _, peer = connected(loop, clean, protocol)

    async def main():
        peer.send(DATA)
        await protocol.arrived

    return lambda: loop.run_until_complete(main())


@program
def write(loop, clean):
    protocol = Protocol(loop)
    transport, peer = connected(loop, clean, protocol)

    async def main():
        transport.write(DATA)
        transport.write(bytearray(DATA))
        transport.writelines([DATA, memoryview(DATA)])
        transport.get_extra_info("peername")
        transport.get_extra_info("socket")
        repr(transport)
        transport.pause_reading()
        transport.resume_reading()
        transport.write_eof()
        await loop.sock_recv(peer, 10_000)

    return lambda: loop.run_until_complete(main())


@program
def large_write(loop, clean):
    protocol = Protocol(loop)
    transport, peer = connected(loop, clean, protocol)

    async def main():
        transport.write(MUCH)
        left = len(MUCH)
        while left:
            data = await loop.sock_recv(peer, 1 << 20)
            if not data:
                break
            left -= len(data)

    return lambda: loop.run_until_complete(main())


@program
def lose(loop, clean):
    protocol = Protocol(loop)
    _, peer = connected(loop, clean, protocol)

    async def main():
        peer.close()
        await protocol.lost

    return lambda: loop.run_until_complete(main())


@program
def streams(loop, clean):
    address = served(loop, clean)

    async def main():
        reader, writer = await asyncio.open_connection(*address)
        try:
            writer.write(DATA)
            await writer.drain()
            await reader.read(10)
        finally:
            writer.close()
        await writer.wait_closed()

    return lambda: loop.run_until_complete(main())


@program
def unix(loop, clean):
    path = f"\0hotloop-{os.getpid()}"
    server = loop.run_until_complete(loop.create_unix_server(lambda: Protocol(loop, echo=True), path))
    clean.callback(server.close)

    async def main():
        protocol = Protocol(loop)
        transport, _ = await loop.create_unix_connection(lambda: protocol, path)
        try:
            transport.write(DATA)
            await protocol.arrived
        finally:
            transport.close()

    return lambda: loop.run_until_complete(main())


@program
def tls(loop, clean):
    server, client = contexts()
    address = served(loop, clean, ssl=server)

    async def main():
        protocol = Protocol(loop)
        transport, _ = await loop.create_connection(
            lambda: protocol, *address, ssl=client, server_hostname="localhost"
        )
        try:
            transport.write(DATA)
            await protocol.arrived
        finally:
            transport.close()
        await protocol.lost

    return lambda: loop.run_until_complete(main())


@program
def datagrams(loop, clean):
    transport, protocol = loop.run_until_complete(
        loop.create_datagram_endpoint(lambda: Datagrams(loop), local_addr=("127.0.0.1", 0))
    )
    clean.callback(discard, transport)
    address = transport.get_extra_info("sockname")

    async def main():
        client, _ = await loop.create_datagram_endpoint(lambda: Datagrams(loop), remote_addr=address)
        try:
            client.sendto(b"hello")
            await protocol.arrived
        finally:
            client.close()

    return lambda: loop.run_until_complete(main())


@program
def pipes(loop, clean):
    descriptors = os.pipe()
    reader, writer = os.fdopen(descriptors[0], "rb", 0), os.fdopen(descriptors[1], "wb", 0)
    clean.callback(reader.close)
    clean.callback(writer.close)

    async def main():
        protocol = Protocol(loop)
        reading, _ = await loop.connect_read_pipe(lambda: protocol, reader)
        try:
            writing, _ = await loop.connect_write_pipe(lambda: Protocol(loop), writer)
            try:
                writing.write(DATA)
                await protocol.arrived
            finally:
                writing.close()
            await protocol.lost
        finally:
            reading.close()

    return lambda: loop.run_until_complete(main())


@program
def subprocesses(loop, clean):
    async def main():
        process = await asyncio.create_subprocess_exec(
            "/bin/cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        await process.communicate(DATA)

    return lambda: loop.run_until_complete(main())


@program
def asyncgens(loop, clean):
    async def generate():
        yield 1
        yield 2

    async def main():
        generator = generate()
        await anext(generator)
        await loop.shutdown_asyncgens()

    return lambda: loop.run_until_complete(main())
