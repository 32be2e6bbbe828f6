"""The other end of a bulk transfer: a process with blocking calls, which only sends or only drains.

As a program it is the child whose output is read: python -m benchmarks.bulk_peer
"""

import contextlib
import os
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Protocol

from benchmarks.children import CLIENT_PROCESSOR, SERVER_PROCESSOR, pin


def content(size: int) -> bytes:
    """So many bytes in memory of their own. Pages of zeroes that nobody wrote are one page to the kernel, so
    they stay in the processor's cache; whether malloc gives such ones depends on what was freed before."""
    return b"\x55" * size


PIECE = content(256 * 1024)
DATAGRAM = content(1024)
BUFFER = 1024 * 1024


class Connection(Protocol):
    """A socket, or one with TLS."""

    def recv_into(self, buffer: bytearray, /) -> int: ...
    def sendall(self, data: bytes, /) -> None: ...


@contextlib.contextmanager
def forked(work: Callable[[], None]) -> Iterator[None]:
    """Does work in a process of its own until the block ends. Each of both processes has a processor.

    There may be no event loop before, and no other thread."""
    child = os.fork()
    if child == 0:
        pin(0, SERVER_PROCESSOR)
        with contextlib.suppress(OSError):
            work()
        os._exit(0)
    pin(0, CLIENT_PROCESSOR)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def drain(connection: Connection) -> None:
    buffer = bytearray(BUFFER)
    while connection.recv_into(buffer):
        pass


def send(connection: Connection) -> None:
    while True:
        connection.sendall(PIECE)


def over_tls(connection: socket.socket, certificate: str, work: Callable[[Connection], None]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    work(context.wrap_socket(connection, server_side=True))


def drain_pipe(descriptor: int) -> None:
    buffer = bytearray(BUFFER)
    while os.readv(descriptor, [buffer]):
        pass


def fill_pipe(descriptor: int) -> None:
    while True:
        os.write(descriptor, PIECE)


def send_datagrams(sock: socket.socket) -> None:
    """As fast as it can; the kernel drops those for which the receiver has no room."""
    while True:
        sock.send(DATAGRAM)


def main() -> None:
    pin(0, SERVER_PROCESSOR)
    with contextlib.suppress(BrokenPipeError):
        fill_pipe(1)


if __name__ == "__main__":
    main()
