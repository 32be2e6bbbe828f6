"""Real servers on the loop, called through real clients: uvicorn, aiohttp and websockets."""

import asyncio
import contextlib
import http.client
import os
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request

import aiohttp
import aiohttp.web
import helpers
import pytest
import uvicorn
import websockets
import websockets.asyncio.client
import websockets.asyncio.server

LARGE = os.urandom(1 << 20)


async def application(scope, receive, send):
    """An ASGI application: hello, an echo, a stream, a large body, a failure, and a WebSocket echo."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (event := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": event.get("text"), "bytes": event.get("bytes")})
        return
    path = scope["path"]
    body, more = b"", True
    while more:
        event = await receive()
        body += event.get("body", b"")
        more = event.get("more_body", False)
    if path == "/fail":
        raise ValueError("broken")
    answer = {"/echo": body, "/large": LARGE}.get(path, b"hello")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    if path == "/stream":
        for number in range(20):
            await send({"type": "http.response.body", "body": b"%d\n" % number, "more_body": True})
            await asyncio.sleep(0)
        answer = b"end"
    await send({"type": "http.response.body", "body": answer})


@contextlib.asynccontextmanager
async def uvicorn_serving(http, **options):
    config = uvicorn.Config(
        application, http=http, ws="websockets-sansio", lifespan="off", log_level="critical", **options
    )
    server = uvicorn.Server(config)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        task = asyncio.create_task(server.serve(sockets=[sock]))
        await helpers.until(lambda: server.started or task.done())
        if task.done():
            await task
        try:
            yield sock.getsockname()[1]
        finally:
            server.should_exit = True
            await task


@pytest.fixture(params=["httptools", "h11"])
def http_kind(request):
    pytest.importorskip(request.param)
    return request.param


# uvicorn


async def test_uvicorn_called_by_aiohttp(loop, http_kind):
    async with (
        uvicorn_serving(http_kind) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session,
    ):
        async with session.get("/") as response:
            assert (response.status, await response.read()) == (200, b"hello")
        async with session.post("/echo", data=LARGE) as response:
            assert await response.read() == LARGE
        async with session.get("/large") as response:
            assert await response.read() == LARGE
        async with session.get("/stream") as response:
            lines = [line async for line in response.content]
            assert lines == [b"%d\n" % number for number in range(20)] + [b"end"]
        async with session.get("/fail") as response:
            assert response.status == 500

        async def get(number):
            async with session.post("/echo", data=b"%d" % number) as response:
                return await response.read()

        assert await asyncio.gather(*map(get, range(200))) == [b"%d" % number for number in range(200)]


async def test_uvicorn_called_by_a_blocking_client(loop, http_kind):
    """One connection that is kept alive, then one that is not."""

    def call(port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        for number in range(5):
            connection.request("POST", "/echo", body=b"%d" % number * 1000)
            response = connection.getresponse()
            assert (response.status, response.read()) == (200, b"%d" % number * 1000)
        connection.close()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/large", timeout=10) as response:
            assert response.read() == LARGE

    async with uvicorn_serving(http_kind) as port:
        await asyncio.to_thread(call, port)


async def test_uvicorn_called_with_a_pipeline(loop, http_kind):
    async with uvicorn_serving(http_kind) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        request = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
        writer.write(request * 20)
        answers = b""
        while answers.count(b"hello") < 20:
            data = await reader.read(65536)
            assert data
            answers += data
        assert answers.count(b"HTTP/1.1 200 OK") == 20
        writer.close()
        await writer.wait_closed()


async def test_a_client_that_goes_in_the_middle_of_an_answer(loop, http_kind):
    async with uvicorn_serving(http_kind) as port:
        for end in (lambda sock: sock.close(), helpers.reset):
            sock = socket.create_connection(("127.0.0.1", port))
            sock.sendall(b"GET /large HTTP/1.1\r\nHost: here\r\n\r\n")
            await asyncio.sleep(0.005)
            end(sock)
        await asyncio.sleep(0.01)
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/") as response:
            assert await response.read() == b"hello"


async def test_websockets_through_uvicorn(loop, http_kind):
    connect = websockets.asyncio.client.connect
    async with (
        uvicorn_serving(http_kind) as port,
        connect(f"ws://127.0.0.1:{port}/", proxy=None) as connection,
    ):
        for message in ("text", b"bytes", "x" * 100_000, LARGE[:500_000]):
            await connection.send(message)
            assert await connection.recv() == message


async def test_uvicorn_with_tls(loop, http_kind, authority, tls, tmp_path):
    certificate = authority.issue_cert("localhost")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    async with (
        uvicorn_serving(http_kind, ssl_certfile=tmp_path / "server.pem") as port,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls[1])) as session,
    ):
        for _ in range(3):
            async with session.post(f"https://localhost:{port}/echo", data=LARGE) as response:
                assert await response.read() == LARGE


@pytest.mark.hotloop_only
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_uvicorns_own_command(loop_name, http_kind, end, tmp_path):
    """`uvicorn --loop hotloop:new_event_loop`, ended by a signal."""
    (tmp_path / "program.py").write_text(
        "import asyncio\n"
        "async def application(scope, receive, send):\n"
        "    kind = type(asyncio.get_running_loop())\n"
        "    body = f'{kind.__module__}.{kind.__qualname__}'.encode()\n"
        "    await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n"
        "    await send({'type': 'http.response.body', 'body': body})\n"
    )
    options = (
        f"--port 0 --lifespan off --http {http_kind} --loop hotloop:new_event_loop --no-use-colors".split()
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "program:application", *options],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    try:
        log = ""
        while "Uvicorn running on" not in log:
            line = process.stderr.readline()
            assert line, log
            log += line
        address = log.partition("Uvicorn running on ")[2].split()[0]
        with urllib.request.urlopen(address, timeout=10) as response:
            assert response.read() == b"hotloop.loop.Loop"
        process.send_signal(end)
        _, rest = process.communicate(timeout=10)
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in rest
    assert "Finished server process" in rest
    assert process.returncode in (0, -end, 128 + end)


# aiohttp


@contextlib.asynccontextmanager
async def aiohttp_serving(**options):
    async def hello(request):
        return aiohttp.web.Response(text="hello")

    async def echo(request):
        return aiohttp.web.Response(body=await request.read())

    async def stream(request):
        response = aiohttp.web.StreamResponse()
        await response.prepare(request)
        for number in range(20):
            await response.write(b"%d\n" % number)
        return response

    async def socket(request):
        response = aiohttp.web.WebSocketResponse()
        await response.prepare(request)
        async for message in response:
            if message.type is aiohttp.WSMsgType.TEXT:
                await response.send_str(message.data)
            else:
                await response.send_bytes(message.data)
        return response

    async def file(request):
        return aiohttp.web.FileResponse(__file__)

    app = aiohttp.web.Application(client_max_size=1 << 24)
    app.router.add_get("/", hello)
    app.router.add_post("/echo", echo)
    app.router.add_get("/stream", stream)
    app.router.add_get("/socket", socket)
    app.router.add_get("/file", file)
    runner = aiohttp.web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    site = aiohttp.web.TCPSite(runner, "127.0.0.1", 0, **options)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def test_aiohttp_called_by_itself(loop):
    async with aiohttp_serving() as port, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        async with session.get("/") as response:
            assert await response.text() == "hello"
        async with session.post("/echo", data=LARGE) as response:
            assert await response.read() == LARGE
        async with session.get("/stream") as response:
            assert await response.read() == b"".join(b"%d\n" % number for number in range(20))
        async with session.get("/file") as response:
            assert (await response.read()).startswith(b'"""Real servers')
        async with session.get("/nowhere") as response:
            assert response.status == 404

        async def get():
            async with session.get("/") as response:
                return await response.text()

        assert await asyncio.gather(*(get() for _ in range(200))) == ["hello"] * 200


async def test_aiohttp_called_by_a_blocking_client(loop):
    def call(port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        for _ in range(20):
            connection.request("POST", "/echo", body=LARGE[:100_000])
            assert connection.getresponse().read() == LARGE[:100_000]
        connection.close()

    async with aiohttp_serving() as port:
        await asyncio.to_thread(call, port)


async def test_websockets_through_aiohttp(loop):
    async with (
        aiohttp_serving() as port,
        aiohttp.ClientSession() as session,
        session.ws_connect(f"http://127.0.0.1:{port}/socket") as connection,
    ):
        for number in range(50):
            await connection.send_str(f"message {number}")
            assert (await connection.receive()).data == f"message {number}"
        await connection.send_bytes(LARGE)
        assert (await connection.receive()).data == LARGE


async def test_aiohttp_with_tls(loop, tls):
    connector = aiohttp.TCPConnector(ssl=tls[1])
    async with (
        aiohttp_serving(ssl_context=tls[0]) as port,
        aiohttp.ClientSession(connector=connector) as session,
    ):
        async with session.post(f"https://localhost:{port}/echo", data=LARGE) as response:
            assert await response.read() == LARGE
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await session.get(f"https://localhost:{port}/", ssl=ssl.create_default_context())
    await asyncio.sleep(0.01)


async def test_a_client_that_runs_into_its_time_limit(loop):
    with helpers.listener() as silent:
        timeout = aiohttp.ClientTimeout(total=0.02)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            with pytest.raises(TimeoutError):
                await session.get(f"http://127.0.0.1:{silent.getsockname()[1]}/")


# websockets


async def test_websockets_called_by_itself(loop):
    async def echo(connection):
        async for message in connection:
            await connection.send(message)

    async with websockets.asyncio.server.serve(echo, "127.0.0.1", 0, max_size=None) as server:
        address = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"

        async def talk(number):
            async with websockets.asyncio.client.connect(address, max_size=None, proxy=None) as connection:
                for turn in range(10):
                    await connection.send(f"{number} {turn}")
                    assert await connection.recv() == f"{number} {turn}"
                await connection.send(LARGE)
                assert await connection.recv() == LARGE
                await (await connection.ping())

        await asyncio.gather(*map(talk, range(10)))


async def test_websockets_whose_peer_vanishes(loop):
    closed = asyncio.Event()

    async def wait(connection):
        try:
            await connection.recv()
        except websockets.exceptions.ConnectionClosedError:
            closed.set()

    async with websockets.asyncio.server.serve(wait, "127.0.0.1", 0) as server:
        address = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        connection = await websockets.asyncio.client.connect(address, proxy=None)
        connection.transport.abort()
        await asyncio.wait_for(closed.wait(), 10)
        with contextlib.suppress(websockets.exceptions.ConnectionClosed):
            await connection.recv()
