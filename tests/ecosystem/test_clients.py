"""Clients for HTTP, websockets, mail and names, in this process on hotloop."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator

import aiofastnet
import aiohttp
import aiohttp.web
import aiosmtplib
import anyio
import exercises
import hotloop
import httpx
import pytest
import websockets.asyncio.client
import websockets.asyncio.server
from helpers import unused_port
from helpers_tls import client_context, server_context
from programs import running
from trustme import CA

Certificate = dict[str, str]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    port = unused_port()
    command = ["-m", "uvicorn", "asgi:app", "--port", str(port), "--loop", "hotloop:new_event_loop"]
    with running(*command, port=port):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def tls_server(certificate: Certificate) -> Iterator[str]:
    port = unused_port()
    command = ["-m", "uvicorn", "asgi:app", "--port", str(port), "--loop", "hotloop:new_event_loop"]
    files = ["--ssl-certfile", certificate["certificate"], "--ssl-keyfile", certificate["key"]]
    with running(*command, *files, port=port):
        yield f"https://localhost:{port}"


@pytest.mark.software("httpx", "anyio")
def test_httpx(server: str) -> None:
    """Requests one after the other and 64 at a time over kept connections, streams both ways, timeouts."""

    async def main() -> None:
        limits = httpx.Limits(max_connections=20)
        async with httpx.AsyncClient(base_url=server, limits=limits, timeout=30) as client:
            assert (await client.get("/")).json()["loop"] == exercises.LOOP
            bodies = [os.urandom(50_000) for _ in range(64)]
            answers = await asyncio.gather(*(client.post("/echo", content=body) for body in bodies))
            assert [answer.content for answer in answers] == bodies

            async def pieces() -> AsyncIterator[bytes]:
                for body in bodies:
                    yield body

            assert (await client.post("/echo", content=pieces())).content == b"".join(bodies)
            async with client.stream("GET", "/stream", params={"pieces": 2_000}) as response:
                lines = [line async for line in response.aiter_lines()]
            assert lines == [str(number) for number in range(2_000)]
            with pytest.raises(httpx.ReadTimeout):
                await client.get("/slow", params={"seconds": 20}, timeout=0.2)
            assert (await client.get("/")).status_code == 200
        async with httpx.AsyncClient() as client:
            with pytest.raises(httpx.ConnectError):
                await client.get(f"http://127.0.0.1:{unused_port()}")

    hotloop.run(main(), debug=False)


@pytest.mark.software("httpx")
def test_httpx_tls(tls_server: str, authority: CA) -> None:
    """HTTPS with a certificate that is trusted, and one that is not."""

    async def main() -> None:
        async with httpx.AsyncClient(base_url=tls_server, verify=client_context(authority)) as client:
            bodies = [os.urandom(100_000) for _ in range(20)]
            answers = await asyncio.gather(*(client.post("/echo", content=body) for body in bodies))
            assert [answer.content for answer in answers] == bodies
        async with httpx.AsyncClient() as client:
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await client.get(tls_server)

    hotloop.run(main())


@pytest.mark.software("aiohttp")
def test_aiohttp_client(tls_server: str, authority: CA) -> None:
    """TLS, connections used again, streamed bodies, websockets, timeouts, a cancelled request."""

    async def main() -> None:
        connector = aiohttp.TCPConnector(ssl=client_context(authority), limit=8)
        made = 0

        async def count(*_: object) -> None:
            nonlocal made
            made += 1

        trace = aiohttp.TraceConfig()
        trace.on_connection_create_end.append(count)
        async with aiohttp.ClientSession(connector=connector, trace_configs=[trace]) as session:

            async def echo(body: bytes) -> bytes:
                async with session.post(f"{tls_server}/echo", data=body) as response:
                    return await response.read()

            bodies = [os.urandom(size) for size in range(0, 400_000, 4_000)]
            assert await asyncio.gather(*map(echo, bodies)) == bodies
            assert made <= 8
            for body in bodies[:20]:
                assert await echo(body) == body
            assert made <= 8

            async def pieces() -> AsyncIterator[bytes]:
                for body in bodies:
                    yield body

            async with session.post(f"{tls_server}/echo", data=pieces()) as response:
                assert await response.read() == b"".join(bodies)
            async with session.get(f"{tls_server}/stream", params={"pieces": 3_000}) as response:
                lines = [line async for line in response.content]
            assert lines == [b"%d\n" % number for number in range(3_000)]
            async with session.ws_connect(f"{tls_server}/websocket", max_msg_size=0) as socket:
                await socket.send_str("text")
                assert await socket.receive_str() == "TEXT"
                await socket.send_bytes(bodies[-1])
                assert await socket.receive_bytes() == bodies[-1][::-1]
            slow = f"{tls_server}/slow?seconds=20"
            with pytest.raises(asyncio.TimeoutError):
                await session.get(slow, timeout=aiohttp.ClientTimeout(total=0.2))
            task = asyncio.create_task(session._request("GET", slow))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await echo(b"after") == b"after"

    hotloop.run(main())


@pytest.mark.software("aiofastnet", "aiohttp")
def test_aiofastnet(authority: CA) -> None:
    """Its transports over hotloop's add_reader() and add_writer(): an aiohttp server and client over TLS."""

    async def echo(request: aiohttp.web.Request) -> aiohttp.web.Response:
        assert type(request.transport).__module__.startswith("aiofastnet")
        return aiohttp.web.Response(body=await request.read())

    async def main() -> None:
        assert isinstance(asyncio.get_running_loop(), hotloop.Loop)
        application = aiohttp.web.Application(client_max_size=1 << 30)
        application.router.add_post("/echo", echo)
        runner = aiohttp.web.AppRunner(application)
        await runner.setup()
        site = aiohttp.web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server_context(authority))
        await site.start()
        url = f"https://localhost:{runner.addresses[0][1]}/echo"
        connector = aiohttp.TCPConnector(ssl=client_context(authority), limit=8)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def ask(body: bytes) -> bytes:
                async with session.post(url, data=body) as response:
                    return await response.read()

            bodies = [os.urandom(size) for size in (1, 1_000, 50_000, 3 << 20) * 20]
            assert await asyncio.gather(*map(ask, bodies)) == bodies
        await runner.cleanup()

    factory = aiofastnet.loop_factory(hotloop.new_event_loop)
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


@pytest.mark.software("websockets")
def test_websockets(authority: CA) -> None:
    """Its server and its client, over TLS, with compression, fragments, pings and both sides closing."""

    async def main() -> None:
        async def echo(socket: websockets.asyncio.server.ServerConnection) -> None:
            async for message in socket:
                await socket.send(message)

        context = server_context(authority)
        async with websockets.asyncio.server.serve(
            echo, "localhost", 0, ssl=context, max_size=None
        ) as server:
            port = next(iter(server.sockets)).getsockname()[1]

            async def talk(number: int) -> None:
                async with websockets.asyncio.client.connect(
                    f"wss://localhost:{port}", ssl=client_context(authority), max_size=None
                ) as socket:
                    for turn in range(50):
                        await socket.send(f"{number} {turn}")
                        assert await socket.recv() == f"{number} {turn}"
                    data = os.urandom(1 << 20)
                    await socket.send(data[start : start + 70_000] for start in range(0, len(data), 70_000))
                    assert await socket.recv() == data
                    await (await socket.ping())

            await asyncio.gather(*map(talk, range(16)))

    hotloop.run(main())


def anyio_run(function: object, *arguments: object) -> object:
    return anyio.run(function, *arguments, backend_options={"loop_factory": hotloop.new_event_loop})


@pytest.mark.software("anyio")
def test_anyio_tcp_and_tls(authority: CA) -> None:
    """TCP and TLS listeners and streams, with many clients and one that is cancelled."""

    async def main() -> None:
        context = server_context(authority)

        async def echo(stream: anyio.abc.ByteStream) -> None:
            async with stream:
                with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                    while True:
                        await stream.send(await stream.receive())

        for tls in (False, True):
            plain = await anyio.create_tcp_listener(local_host="127.0.0.1")
            port = plain.extra(anyio.abc.SocketAttribute.local_port)
            listener = anyio.streams.tls.TLSListener(plain, context) if tls else plain
            async with anyio.create_task_group() as group:
                group.start_soon(listener.serve, echo)

                async def client(port: int = port, tls: bool = tls) -> None:
                    stream = await anyio.connect_tcp(
                        "localhost", port, tls=tls, ssl_context=client_context(authority) if tls else None
                    )
                    async with stream:
                        data = os.urandom(200_000)
                        got = b""
                        async with anyio.create_task_group() as both:
                            both.start_soon(stream.send, data)
                            while len(got) < len(data):
                                got += await stream.receive()
                        assert got == data
                        with anyio.move_on_after(0.05) as scope:
                            await stream.receive()
                        assert scope.cancelled_caught

                async with anyio.create_task_group() as clients:
                    for _ in range(20):
                        clients.start_soon(client)
                group.cancel_scope.cancel()
            await listener.aclose()

    anyio_run(main)


@pytest.mark.software("anyio")
def test_anyio_udp_and_unix(tmp_path: object) -> None:
    """UDP and Unix sockets, streams and datagrams."""

    async def main() -> None:
        async with await anyio.create_udp_socket(local_host="127.0.0.1") as server:
            address = server.extra(anyio.abc.SocketAttribute.local_address)
            async with await anyio.create_connected_udp_socket(*address) as client:
                for number in range(50):
                    await client.send(b"%d" % number)
                    data, peer = await server.receive()
                    assert data == b"%d" % number
                    await server.sendto(data * 2, *peer)
                    assert await client.receive() == data * 2
        path = f"{tmp_path}/socket"
        async with await anyio.create_unix_listener(path) as listener, anyio.create_task_group() as group:

            async def echo(stream: anyio.abc.ByteStream) -> None:
                async with stream:
                    with contextlib.suppress(anyio.EndOfStream):
                        while True:
                            await stream.send(await stream.receive())

            group.start_soon(listener.serve, echo)
            async with await anyio.connect_unix(path) as stream:
                await stream.send(b"x" * 50_000)
                got = b""
                while len(got) < 50_000:
                    got += await stream.receive()
                await stream.send_eof()
                with pytest.raises(anyio.EndOfStream):
                    await stream.receive()
            group.cancel_scope.cancel()
        here, there = f"{tmp_path}/here", f"{tmp_path}/there"
        async with (
            await anyio.create_unix_datagram_socket(local_path=here) as one,
            await anyio.create_unix_datagram_socket(local_path=there) as other,
        ):
            await one.sendto(b"a datagram", there)
            assert await other.receive() == (b"a datagram", here)

    anyio_run(main)


@pytest.mark.software("anyio")
def test_anyio_processes_threads_and_signals() -> None:
    """Processes with pipes, worker threads and the way back from them, signals."""

    async def main() -> None:
        result = await anyio.run_process(["tr", "a-z", "A-Z"], input=b"some text" * 10_000)
        assert result.stdout == b"SOME TEXT" * 10_000
        async with await anyio.open_process(["cat"]) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for number in range(20):
                await process.stdin.send(b"%d\n" % number)
                assert await process.stdout.receive() == b"%d\n" % number
            await process.stdin.aclose()
            assert await process.wait() == 0
        with anyio.move_on_after(0.1) as scope:
            await anyio.run_process(["sleep", "30"])
        assert scope.cancelled_caught

        async def answer() -> int:
            await anyio.sleep(0)
            return 42

        assert await anyio.to_thread.run_sync(anyio.from_thread.run, answer) == 42
        with anyio.open_signal_receiver(10) as signals:
            os.kill(os.getpid(), 10)
            async for number in signals:
                assert number == 10
                break

    anyio_run(main)


@pytest.mark.software("aiosmtplib")
def test_aiosmtplib(authority: CA) -> None:
    """Mail to a server of the test's: STARTTLS in the midst of a conversation, then a message."""
    received: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        context = server_context(authority)
        secure = False
        writer.write(b"220 ready\r\n")
        while line := await reader.readline():
            verb = line.split()[0].upper()
            if verb == b"EHLO":
                writer.write(
                    b"250-localhost\r\n250 8BITMIME\r\n" if secure else b"250-localhost\r\n250 STARTTLS\r\n"
                )
            elif verb == b"STARTTLS":
                writer.write(b"220 go on\r\n")
                await writer.drain()
                await writer.start_tls(context)
                secure = True
            elif verb == b"DATA":
                writer.write(b"354 go on\r\n")
                received.append(await reader.readuntil(b"\r\n.\r\n"))
                writer.write(b"250 taken\r\n" if secure else b"554 not secure\r\n")
            elif verb == b"QUIT":
                writer.write(b"221 bye\r\n")
                await writer.drain()
                break
            else:
                writer.write(b"250 fine\r\n")
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            for number in range(3):
                client = aiosmtplib.SMTP(
                    hostname="localhost", port=port, tls_context=client_context(authority), start_tls=True
                )
                async with client:
                    body = f"Subject: {number}\r\n\r\n" + "a line\r\n" * 5_000
                    await client.sendmail("from@localhost", ["to@localhost"], body)

    hotloop.run(main())
    assert [message.split(b"\r\n")[0] for message in received] == [b"Subject: %d" % n for n in range(3)]


@pytest.mark.software("aiodns")
def test_aiodns() -> None:
    """Names looked up over UDP: many at a time, one that is not there, one that comes too late."""
    import aiodns

    class Names(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
            name = data[12 : data.index(b"\0", 12)]
            if name.startswith(b"\x04late"):
                return
            question = data[12 : data.index(b"\0", 12) + 5]
            missing = name.startswith(b"\x07missing")
            flags = b"\x81\x83" if missing else b"\x81\x80"
            answer = b"" if missing else b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\x7f\x01\x02\x03"
            counts = b"\0\x01" + (b"\0\0" if missing else b"\0\x01") + b"\0\0\0\0"
            self.transport.sendto(data[:2] + flags + counts + question + answer, address)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(Names, local_addr=("127.0.0.1", 0))
        port = transport.get_extra_info("sockname")[1]
        resolver = aiodns.DNSResolver(["127.0.0.1"], udp_port=port, tcp_port=port, timeout=0.3, tries=1)
        found = await asyncio.gather(*(resolver.query_dns(f"name{n}.test", "A") for n in range(100)))
        assert {record.data.addr for result in found for record in result.answer} == {"127.1.2.3"}
        for name in ("missing.test", "late.test"):
            with pytest.raises(aiodns.error.DNSError):
                await resolver.query_dns(name, "A")
        await resolver.close()
        transport.close()

    hotloop.run(main())
