"""Transfers in bulk on one loop: python -m benchmarks.bulk_work LOOP WORK SECONDS [CERTIFICATE]

Does the WORK for so many seconds after a warm-up, with a process at the other end that only sends or drains
(bulk_peer.py). Prints how many bytes were sent or received, in how many seconds: of the clock, and of the
processor in user mode and in the kernel.
"""

import asyncio
import contextlib
import json
import os
import resource
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import BinaryIO

from benchmarks import bulk_peer, loops
from benchmarks.bulk_peer import Connection, content
from benchmarks.children import CLIENT_PROCESSOR, pin, python

WARMUP = 0.1
READ = 256 * 1024
"""The most that is read at once."""
FILE = 16 * 1024 * 1024
"""The length of the file that is sent."""
RECEIVE_BUFFER = 4 * 1024 * 1024
"""The socket's buffer of datagrams, as far as the system allows it."""


class Meter:
    """Counts bytes from the end of the warm-up on."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.bytes = 0
        self.taken = 0.0
        self.user = 0.0
        self.kernel = 0.0
        self._before = resource.getrusage(resource.RUSAGE_SELF)
        self.restart()

    def restart(self) -> None:
        """Begins the warm-up."""
        self._warm_from = time.perf_counter() + WARMUP
        self._begin: float | None = None

    def goes_on(self, size: int) -> bool:
        """Counts so many bytes. Returns whether there is time for more."""
        now = time.perf_counter()
        if self._begin is not None:
            self.bytes += size
            self.taken = now - self._begin
            if self.taken >= self.seconds:
                after = resource.getrusage(resource.RUSAGE_SELF)
                self.user = after.ru_utime - self._before.ru_utime
                self.kernel = after.ru_stime - self._before.ru_stime
                return False
        elif now >= self._warm_from:
            self._begin = now
            self._before = resource.getrusage(resource.RUSAGE_SELF)
        return True


Work = Callable[[Meter], Awaitable[None]]


@contextlib.contextmanager
def tcp_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        there = socket.create_connection(listening.getsockname())
        here, _ = listening.accept()
    with here, there:
        for end in (here, there):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield here, there


@contextlib.contextmanager
def unix_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    with here, there:
        yield here, there


@contextlib.contextmanager
def connected(kind: str, certificate: str, peer: Callable[[Connection], None]) -> Iterator[socket.socket]:
    """A socket whose other end a process has, which does the peer's part."""
    with (unix_pair if kind == "unix" else tcp_pair)() as (here, there):

        def work() -> None:
            here.close()
            if kind == "tls":
                bulk_peer.over_tls(there, certificate, peer)
            else:
                peer(there)

        with bulk_peer.forked(work):
            there.close()
            yield here


async def open_streams(
    kind: str, sock: socket.socket, certificate: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if kind == "unix":
        return await asyncio.open_unix_connection(sock=sock)
    if kind == "tcp":
        return await asyncio.open_connection(sock=sock)
    context = ssl.create_default_context(cafile=certificate)
    return await asyncio.open_connection(sock=sock, ssl=context, server_hostname="127.0.0.1")


async def write_all(writer: asyncio.StreamWriter, size: int, meter: Meter) -> None:
    piece = content(size)
    going_on = True
    while going_on:
        writer.write(piece)
        await writer.drain()
        going_on = meter.goes_on(size)
    writer.transport.abort()


async def read_all(reader: asyncio.StreamReader, meter: Meter) -> None:
    while data := await reader.read(READ):
        if not meter.goes_on(len(data)):
            return
    raise EOFError("the other end is closed")


@contextlib.contextmanager
def streams_send(kind: str, size: int, certificate: str = "") -> Iterator[Work]:
    with connected(kind, certificate, bulk_peer.drain) as sock:

        async def work(meter: Meter) -> None:
            _, writer = await open_streams(kind, sock, certificate)
            await write_all(writer, size, meter)

        yield work


@contextlib.contextmanager
def streams_receive(kind: str, certificate: str = "") -> Iterator[Work]:
    with connected(kind, certificate, bulk_peer.send) as sock:

        async def work(meter: Meter) -> None:
            reader, writer = await open_streams(kind, sock, certificate)
            await read_all(reader, meter)
            writer.transport.abort()

        yield work


@contextlib.contextmanager
def pipe(peer: Callable[[int], None], *, here_reads: bool) -> Iterator[BinaryIO]:
    """An end of a pipe, of which a process has the other."""
    reading, writing = os.pipe()
    here, there = (reading, writing) if here_reads else (writing, reading)

    def work() -> None:
        os.close(here)
        peer(there)

    with bulk_peer.forked(work), open(here, "rb" if here_reads else "wb", buffering=0) as file:
        os.close(there)
        yield file


@contextlib.contextmanager
def pipe_send() -> Iterator[Work]:
    with pipe(bulk_peer.drain_pipe, here_reads=False) as file:

        async def work(meter: Meter) -> None:
            loop = asyncio.get_running_loop()
            reader = asyncio.StreamReader()
            transport, protocol = await loop.connect_write_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), file
            )
            writer = asyncio.StreamWriter(transport, protocol, reader, loop)
            await write_all(writer, 64 * 1024, meter)

        yield work


@contextlib.contextmanager
def pipe_receive() -> Iterator[Work]:
    with pipe(bulk_peer.fill_pipe, here_reads=True) as file:

        async def work(meter: Meter) -> None:
            reader = asyncio.StreamReader()
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), file
            )
            await read_all(reader, meter)
            transport.close()

        yield work


@contextlib.contextmanager
def subprocess_receive() -> Iterator[Work]:
    async def work(meter: Meter) -> None:
        process = await asyncio.create_subprocess_exec(*python("bulk_peer"), stdout=asyncio.subprocess.PIPE)
        pin(0, CLIENT_PROCESSOR)  # A process that is bound to one has children that are.
        assert process.stdout is not None
        await process.stdout.readexactly(1)
        meter.restart()  # The child has started.
        await read_all(process.stdout, meter)
        process.kill()
        # wait() waits for the end of the output, too.
        while await process.stdout.read(1 << 20):
            pass
        await process.wait()

    yield work


@contextlib.contextmanager
def sendfile() -> Iterator[Work]:
    with connected("tcp", "", bulk_peer.drain) as sock, tempfile.TemporaryFile() as file:
        file.write(content(FILE))
        file.flush()

        async def work(meter: Meter) -> None:
            loop = asyncio.get_running_loop()
            transport, _ = await loop.create_connection(asyncio.Protocol, sock=sock)
            while meter.goes_on(await loop.sendfile(transport, file, 0, FILE)):
                pass
            transport.abort()

        yield work


@contextlib.contextmanager
def sock_recv_into() -> Iterator[Work]:
    with connected("tcp", "", bulk_peer.send) as sock:
        sock.setblocking(False)

        async def work(meter: Meter) -> None:
            loop = asyncio.get_running_loop()
            buffer = bytearray(READ)
            while meter.goes_on(await loop.sock_recv_into(sock, buffer)):
                pass

        yield work


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: object) -> None:
        if not self.done.done() and not self.meter.goes_on(len(data)):
            self.done.set_result(None)


@contextlib.contextmanager
def datagrams() -> Iterator[Work]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
        here.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        here.bind(("127.0.0.1", 0))
        here.setblocking(False)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there:
            there.connect(here.getsockname())
            with bulk_peer.forked(partial(bulk_peer.send_datagrams, there)):

                async def work(meter: Meter) -> None:
                    loop = asyncio.get_running_loop()
                    transport, protocol = await loop.create_datagram_endpoint(
                        lambda: Datagrams(meter), sock=here
                    )
                    await protocol.done
                    transport.abort()

                yield work


SIZES = {"64k": 64 * 1024, "1m": 1024 * 1024}

WORKS: dict[str, Callable[..., contextlib.AbstractContextManager[Work]]] = {
    **{
        f"{kind}_send_{name}": partial(streams_send, kind, size)
        for kind in ("tcp", "unix", "tls")
        for name, size in SIZES.items()
    },
    **{f"{kind}_receive": partial(streams_receive, kind) for kind in ("tcp", "unix", "tls")},
    "pipe_send": pipe_send,
    "pipe_receive": pipe_receive,
    "subprocess_receive": subprocess_receive,
    "sendfile": sendfile,
    "sock_recv_into": sock_recv_into,
    "datagrams": datagrams,
}


def main() -> None:
    loop, name, seconds, *certificate = sys.argv[1:]
    with WORKS[name](*certificate) as work:
        with asyncio.Runner(loop_factory=loops.factory(loop)) as runner:
            meter = runner.run(measured(work, float(seconds)))
        found = {"bytes": meter.bytes, "seconds": meter.taken, "user": meter.user, "kernel": meter.kernel}
        print(json.dumps(found))


async def measured(work: Work, seconds: float) -> Meter:
    meter = Meter(seconds)
    await work(meter)
    return meter


if __name__ == "__main__":
    main()
