"""The servers under load: python -m benchmarks.servers LOOP SERVER ADDRESS [CERTIFICATE]

ADDRESS is HOST:PORT, or a path for the Unix socket. With a CERTIFICATE (and its key, in one file) the TCP
servers use TLS. Prints "ready" and its process's number when it accepts connections, and serves until it is
killed.
"""

import asyncio
import os
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable
from typing import cast

from benchmarks import loops

BODY = b"x" * 1024
RESPONSE = (b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(BODY)) + BODY
BACKLOG = 1024

Server = Callable[..., Awaitable[object]]


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class BufferedEcho(asyncio.BufferedProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.buffer = memoryview(bytearray(256 * 1024))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(bytes(self.buffer[:nbytes]))


class DatagramEcho(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.transport.sendto(data, addr)


class BareHttp(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if data.endswith(b"\r\n\r\n"):
            self.transport.write(RESPONSE)


async def stream_echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(64 * 1024):
        writer.write(data)
        await writer.drain()
    writer.close()


def of_protocol(protocol: Callable[[], asyncio.BaseProtocol]) -> Server:
    async def start(address: str, certificate: str | None = None) -> object:
        return await asyncio.get_running_loop().create_server(
            cast(Callable[[], asyncio.Protocol], protocol),
            *host_and_port(address),
            backlog=BACKLOG,
            ssl=context_of(certificate),
        )

    return start


def context_of(certificate: str | None) -> ssl.SSLContext | None:
    if certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


async def unix(address: str) -> object:
    return await asyncio.get_running_loop().create_unix_server(Echo, address, backlog=BACKLOG)


async def datagram(address: str) -> object:
    loop = asyncio.get_running_loop()
    return await loop.create_datagram_endpoint(DatagramEcho, local_addr=host_and_port(address))


async def streams(address: str, certificate: str | None = None) -> object:
    context = context_of(certificate)
    return await asyncio.start_server(stream_echo, *host_and_port(address), backlog=BACKLOG, ssl=context)


async def sockets(address: str) -> object:
    loop = asyncio.get_running_loop()
    listening = socket.create_server(host_and_port(address), backlog=BACKLOG)
    listening.setblocking(False)
    tasks: set[asyncio.Task[None]] = set()

    async def echo(connection: socket.socket) -> None:
        with connection:
            while data := await loop.sock_recv(connection, 64 * 1024):
                await loop.sock_sendall(connection, data)

    async def accept() -> None:
        while True:
            connection, _ = await loop.sock_accept(listening)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            tasks.add(loop.create_task(echo(connection)))

    return loop.create_task(accept())


async def uvicorn(address: str) -> object:
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(BODY))]

    async def application(
        scope: object, receive: object, send: Callable[[dict[str, object]], Awaitable[None]]
    ) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": BODY})

    return await under_uvicorn(application, address)


async def under_uvicorn(application: Callable[..., Awaitable[None]], address: str) -> object:
    import uvicorn

    host, port = host_and_port(address)
    config = uvicorn.Config(
        application,
        host=host,
        port=port,
        http="httptools",
        lifespan="off",
        log_level="error",
        access_log=False,
        backlog=BACKLOG,
    )
    server = uvicorn.Server(config)
    serving = asyncio.get_running_loop().create_task(server.serve())
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    return serving


async def aiohttp(address: str) -> object:
    from aiohttp import web

    async def handle(request: web.Request) -> web.Response:
        return web.Response(body=BODY, content_type="text/plain")

    application = web.Application()
    application.router.add_get("/", handle)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    host, port = host_and_port(address)
    await web.TCPSite(runner, host, port, backlog=BACKLOG).start()
    return runner


SERVERS: dict[str, Server] = {
    "protocol": of_protocol(Echo),
    "buffered": of_protocol(BufferedEcho),
    "unix": unix,
    "datagram": datagram,
    "streams": streams,
    "sockets": sockets,
    "http": of_protocol(BareHttp),
    "uvicorn": uvicorn,
    "aiohttp": aiohttp,
}


def host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


async def serve(server: str, *arguments: str) -> None:
    from benchmarks import program_servers

    start = (SERVERS | program_servers.SERVERS)[server]
    started = await start(*arguments)  # Kept alive while it serves.
    print("ready", os.getpid(), flush=True)
    await asyncio.Event().wait()
    del started


def main() -> None:
    loop, server, *arguments = sys.argv[1:]
    with asyncio.Runner(loop_factory=loops.factory(loop)) as runner:
        runner.run(serve(server, *arguments))


if __name__ == "__main__":
    main()
