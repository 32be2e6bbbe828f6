"""Clients in one process: python -m benchmarks.clients LOOP CLIENT TASKS TIMES ADDRESS [CERTIFICATE]

Each of so many tasks waits for the answer to a request before it sends the next one. CLIENT is "streams",
each task with a connection to an echo server; "aiohttp" or "httpx", to a server of HTTP, or of HTTPS that
has the CERTIFICATE; or a client of a database (database_clients.py). Prints the seconds for TIMES requests:
of the clock, and of the processor in user mode and in the kernel.
"""

import asyncio
import contextlib
import json
import resource
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from benchmarks import loops
from benchmarks.servers import BODY

REQUEST = b"x" * 1024

Ask = Callable[[], Awaitable[object]]
"""Sends a request and returns the answer."""
Client = Callable[..., contextlib.AbstractAsyncContextManager[list[Ask]]]
"""Opens what the tasks need, given their number, the server's host and port, and its certificate."""


@contextlib.asynccontextmanager
async def streams(number: int, host: str, port: int) -> AsyncIterator[list[Ask]]:
    opened = [await asyncio.open_connection(host, port) for _ in range(number)]

    def asking(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Ask:
        async def ask() -> bytes:
            writer.write(REQUEST)
            return await reader.readexactly(len(REQUEST))

        return ask

    yield [asking(reader, writer) for reader, writer in opened]
    for _, writer in opened:
        writer.close()
        await writer.wait_closed()


def url_of(host: str, port: int, certificate: str) -> str:
    return f"{'https' if certificate else 'http'}://{host}:{port}/"


@contextlib.asynccontextmanager
async def aiohttp(number: int, host: str, port: int, certificate: str = "") -> AsyncIterator[list[Ask]]:
    import aiohttp

    context = ssl.create_default_context(cafile=certificate) if certificate else True
    connector = aiohttp.TCPConnector(limit=number, ssl=context)
    url = url_of(host, port, certificate)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def ask() -> bytes:
            async with session.get(url) as response:
                return await response.read()

        yield [ask] * number


@contextlib.asynccontextmanager
async def httpx(number: int, host: str, port: int, certificate: str = "") -> AsyncIterator[list[Ask]]:
    import httpx

    context = ssl.create_default_context(cafile=certificate) if certificate else True
    limits = httpx.Limits(max_connections=number, max_keepalive_connections=number)
    url = url_of(host, port, certificate)
    async with httpx.AsyncClient(verify=context, limits=limits) as client:

        async def ask() -> bytes:
            return (await client.get(url)).content

        yield [ask] * number


def client_named(name: str) -> tuple[Client, object]:
    """A client, and the right answer to its requests."""
    from benchmarks import database_clients

    clients: dict[str, tuple[Client, object]] = {
        "streams": (streams, REQUEST),
        "aiohttp": (aiohttp, BODY),
        "httpx": (httpx, BODY),
        **database_clients.CLIENTS,
    }
    return clients[name]


def warmup(each: int) -> int:
    """How many requests a task sends before it sends as many as these."""
    return each // 10 + 1


def requests_with_warmup(number: int, times: int) -> int:
    """How many requests are sent where TIMES is given."""
    each = times // number
    return number * (each + warmup(each))


async def ask_all(client: str, number: int, times: int, address: str, *certificate: str) -> dict[str, float]:
    open_clients, right = client_named(client)
    host, _, port = address.rpartition(":")
    each = times // number

    async def ask_often(ask: Ask, times: int) -> None:
        for _ in range(times):
            if await ask() != right:
                raise ValueError("the answer is another one")

    async with open_clients(number, host, int(port), *certificate) as clients:

        async def round_of(times: int) -> None:
            await asyncio.gather(*(ask_often(ask, times) for ask in clients))

        await round_of(warmup(each))
        begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        await round_of(each)
        seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF)
        user, kernel = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
        return {"seconds": seconds, "user": user, "kernel": kernel}


def main() -> None:
    loop, client, number, times, address, *certificate = sys.argv[1:]
    with asyncio.Runner(loop_factory=loops.factory(loop)) as runner:
        print(json.dumps(runner.run(ask_all(client, int(number), int(times), address, *certificate))))


if __name__ == "__main__":
    main()
