"""What a build with profile-guided optimization is trained with: python -m benchmarks.training

The compiler makes small what does not run here, and fast what does. So this does a little of everything that
hotloop has a fast way for: the scheduling cases, each server with its clients on the same loop, plain and
over TLS, pipes and children.
"""

import asyncio
import ssl
import subprocess
import sys
import tempfile
from typing import Any

import hotloop

from benchmarks import servers, tls
from benchmarks.children import Failed
from benchmarks.row import free_address
from benchmarks.scheduling import CASES

SIZES = (64, 1024, 100 * 1024)
CONNECTIONS = (1, 8, 64)
REQUESTS = 4_000
"""Of each server and size, by so many connections."""
PIECES = 200
"""Of 64 KiB, through a pipe and a child."""


class Client(asyncio.Protocol):
    """Sends a request when the last one is answered."""

    def __init__(self, request: bytes, answer: int, times: int) -> None:
        self.request, self.answer, self.times = request, answer, times
        self.missing = answer
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.missing -= len(data)
        if self.missing > 0:
            return
        self.missing = self.answer
        self.times -= 1
        if self.times:
            self.send()
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None and not self.times:
            self.done.set_result(None)
        else:
            self.done.set_exception(exc or ConnectionError("closed"))


class DatagramClient(Client):
    def send(self) -> None:
        self.transport.sendto(self.request)

    def datagram_received(self, data: bytes, address: Any) -> None:
        self.data_received(data)


async def exchange(
    server: str, address: str, size: int, connections: int, context: ssl.SSLContext | None
) -> None:
    loop = asyncio.get_running_loop()
    request, answer = b"x" * size, size
    if server == "http":
        request, answer = b"GET / HTTP/1.1\r\n\r\n", len(servers.RESPONSE)
    times = max(1, REQUESTS // connections // (1 + size // 10_000))
    clients: list[Client] = []

    def client(kind: type[Client] = Client) -> Any:
        clients.append(kind(request, answer, times))
        return clients[-1]

    for _ in range(connections):
        if server == "unix":
            await loop.create_unix_connection(client, address)
        elif server == "datagram":
            await loop.create_datagram_endpoint(
                lambda: client(DatagramClient), remote_addr=servers.host_and_port(address)
            )
        else:
            await loop.create_connection(client, *servers.host_and_port(address), ssl=context)
    await asyncio.gather(*(client.done for client in clients))


async def serve(server: str, certificate: str | None = None) -> None:
    context = None
    if certificate:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with tempfile.TemporaryDirectory() as folder:
        address = f"{folder}/socket" if server == "unix" else free_address()
        started = await servers.SERVERS[server](address, *([certificate] if certificate else []))
        for size in SIZES if server != "datagram" else SIZES[:2]:
            for connections in CONNECTIONS:
                await exchange(server, address, size, connections, context)
        # Some servers are a task or an object of their own, and end with the loop.
        if isinstance(started, asyncio.Server | asyncio.BaseTransport):
            started.close()


async def stream_client() -> None:
    """asyncio's streams as clients, that read lines and exact sizes."""
    server = await asyncio.start_server(servers.stream_echo, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    for _ in range(REQUESTS):
        writer.write(b"x" * 1023 + b"\n")
        await writer.drain()
        await reader.readline()
    for _ in range(PIECES):
        writer.write(b"x" * 65536)
        await reader.readexactly(65536)
    writer.close()
    await writer.wait_closed()
    server.close()


async def pipes() -> None:
    """A child that sends back what it gets."""
    command = [
        sys.executable,
        "-c",
        "import shutil, sys; shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)",
    ]
    child = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    await child.communicate(b"x" * 65536 * PIECES)


async def train() -> None:
    for case in CASES.values():
        await case.run(max(1, case.counted // 2))
    for server in ("protocol", "buffered", "streams", "sockets", "http", "unix", "datagram"):
        await serve(server)
    try:
        certificate = tls.certificate()
    except Failed as failure:
        print(f"without TLS: it {failure}", file=sys.stderr)
    else:
        for server in ("protocol", "buffered", "streams", "http"):
            await serve(server, certificate)
    await stream_client()
    await pipes()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=hotloop.new_event_loop) as runner:
        runner.run(train())
