"""Serve HTTP from a thread and an event loop on each core of one process.

On a Python without the GIL the threads run at the same time. Ctrl-C and SIGTERM end it: no connection is
accepted any more, and those that are open are closed once they are idle, or after a few seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import threading

import hotloop

RESPONSE = "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{}"
# Seconds that open connections get at the end.
PATIENCE = 5.0


class Hello(asyncio.Protocol):
    """Answers each request, which must be one without a body, with the name of the thread."""

    transport: asyncio.Transport

    def __init__(self, connections: set[Hello]) -> None:
        self.connections = connections
        self.request = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        *requests, self.request = (self.request + data).split(b"\r\n\r\n")
        body = f"hello from {threading.current_thread().name}\n"
        self.transport.write(RESPONSE.format(len(body), body).encode() * len(requests))


async def serve(host: str, port: int, ready: threading.Barrier, stopping: Stopping) -> None:
    """Serve in the running loop until the process is told to stop."""
    loop = asyncio.get_running_loop()
    connections: set[Hello] = set()
    # Each loop has a listening socket of its own. The kernel distributes the connections.
    server = await loop.create_server(lambda: Hello(connections), host, port, reuse_port=True, backlog=2048)
    stopped = stopping.of_this_loop()
    ready.wait()
    await stopped
    server.close()
    deadline = loop.time() + PATIENCE
    while connections and loop.time() < deadline:
        for connection in list(connections):
            if not connection.request:
                connection.transport.close()
        await asyncio.sleep(0.05)
    for connection in list(connections):
        connection.transport.abort()


def work(host: str, port: int, ready: threading.Barrier, stopping: Stopping) -> None:
    hotloop.run(serve(host, port, ready, stopping))


class Stopping:
    """Tells several loops, each in a thread of its own, to stop."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.futures: list[asyncio.Future[None]] = []

    def of_this_loop(self) -> asyncio.Future[None]:
        future = asyncio.get_running_loop().create_future()
        with self.lock:
            self.futures.append(future)
        return future

    def tell(self) -> None:
        with self.lock:
            futures, self.futures = self.futures, []
        for future in futures:
            future.get_loop().call_soon_threadsafe(future.set_result, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default: one a processor")
    options = parser.parse_args()

    # With port 0 all loops listen on the port that the first gets.
    with socket.socket() as chosen:
        chosen.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        chosen.bind((options.host, options.port))
        port = chosen.getsockname()[1]
        ready = threading.Barrier(options.threads + 1)
        stopping = Stopping()
        # Signals are for the main thread, which serves nothing itself: it waits for them.
        received = {signal.SIGINT, signal.SIGTERM}
        signal.pthread_sigmask(signal.SIG_BLOCK, received)
        threads = [
            threading.Thread(target=work, args=[options.host, port, ready, stopping], name=f"loop-{number}")
            for number in range(options.threads)
        ]
        for thread in threads:
            thread.start()
        ready.wait()
    print(f"http://{options.host}:{port}", flush=True)
    signal.sigwait(received)
    stopping.tell()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
