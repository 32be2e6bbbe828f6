"""What each server is put through, by clients that know nothing of hotloop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import os
import ssl
import time
from collections.abc import Coroutine
from pathlib import Path

import httpx
import programs
from websockets.asyncio.client import connect

LOOP = "hotloop.loop"


def starlette(base: str, verify: ssl.SSLContext | bool = True, *, http2: bool = False) -> None:
    """Everything that applications/asgi.py has."""
    with httpx.Client(base_url=base, verify=verify, http2=http2, timeout=programs.PATIENCE) as client:
        answer = client.get("/")
        assert answer.json()["loop"] == LOOP
        assert answer.json()["started"] == 1
        assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")

        body = os.urandom(3 << 20)
        assert client.post("/echo", content=body).content == body
        pieces = (body[start : start + 100_000] for start in range(0, len(body), 100_000))
        assert client.post("/echo", content=pieces).content == body

        expected = b"".join(b"%d\n" % number for number in range(5_000))
        with client.stream("GET", "/stream", params={"pieces": 5_000}) as streamed:
            assert b"".join(streamed.iter_bytes()) == expected

        # Over HTTP/2, Hypercorn loses a connection whose requests leave work behind, on asyncio too.
        if not http2:
            before = client.get("/").json()["background"]
            for _ in range(5):
                assert client.post("/background").status_code == 202
            programs.wait_until(
                lambda: client.get("/").json()["background"] == before + 5, "the work after the answers"
            )

    async def at_once() -> None:
        sent = [os.urandom(size) for size in range(0, 60_000, 600)]
        async with httpx.AsyncClient(base_url=base, verify=verify, http2=http2, timeout=30) as client:
            answers = await asyncio.gather(*(client.post("/echo", content=data) for data in sent))
        assert [answer.content for answer in answers] == sent

    asyncio.run(at_once())


def fastapi(base: str) -> None:
    """Everything that applications/fast.py has, but for its websocket."""
    with httpx.Client(base_url=base, timeout=programs.PATIENCE) as client:
        assert client.get("/").json()["loop"] == LOOP
        assert client.get("/").json()["answer"] == 42
        assert client.get("/thread").json() == {"thread": True}
        answer = client.post("/items/3", json={"name": "spam", "price": 1.5})
        assert answer.json() == {"name": "Spam", "price": 4.5}
        programs.wait_until(lambda: client.get("/").json()["done"] == ["3: spam"], "the background task")
        assert client.post("/items/404", json={"name": "spam", "price": 1}).status_code == 404
        assert client.post("/items/3", json={"name": "spam"}).status_code == 422
        with client.stream("GET", "/events") as events:
            assert [line for line in events.iter_lines() if line] == [f"data: {n}" for n in range(20)]
        assert client.get("/openapi.json").status_code == 200


def websocket(url: str, context: ssl.SSLContext | None = None) -> None:
    """The websocket of applications/asgi.py, with small and large messages, several at a time.

    The client is asyncio's, on asyncio's own loop: with threads, it loses connections over TLS now and then.
    """

    async def talk(number: int) -> None:
        async with connect(url, ssl=context) as socket:
            for turn in range(50):
                await socket.send(f"{number} {turn} x")
                assert await socket.recv() == f"{number} {turn} X"

    async def main() -> None:
        async with connect(url, ssl=context, max_size=None) as socket:
            await socket.send("a message")
            assert await socket.recv() == "A MESSAGE"
            data = os.urandom(2 << 20)
            await socket.send(data)
            assert await socket.recv() == data[::-1]
            await (await socket.ping())
        await asyncio.gather(*(talk(number) for number in range(16)))

    run_on_asyncio(main())


def run_on_asyncio(main: Coroutine[object, object, None]) -> None:
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(asyncio.wait_for(main, programs.PATIENCE))


def json_websocket(url: str) -> None:
    """The websocket of applications/fast.py."""

    async def main() -> None:
        async with connect(url) as socket:
            for number in range(10):
                await socket.send(json.dumps({"number": number}))
                assert json.loads(await socket.recv()) == {"got": {"number": number}}

    run_on_asyncio(main())


def facts(base: str) -> dict[str, object]:
    """What the application says of itself; nothing while no server answers."""
    try:
        found: dict[str, object] = httpx.get(base).json()
    except httpx.TransportError:
        return {}
    return found


def reload(program: programs.Program, base: str, file: Path) -> None:
    """A change of the file is served; the application tells its version."""
    program.wait_until(lambda: facts(base).get("version") == 1, "the first version")
    # The reloader looks at the files for the first time when it has started.
    time.sleep(1)
    # A file of another size: Python takes one of the same second and size for the one that it has compiled.
    file.write_text(file.read_text().replace("VERSION = 1", "VERSION = 1 + 1"))
    program.wait_until(lambda: facts(base).get("version") == 2, "the second version")


def graceful_end(program: programs.Program, base: str, requests: int = 32, clients: int = 8) -> None:
    """Told to end under load, the server answers each request that it has begun with."""

    def load() -> int:
        """One request after the other, for as long as there is a server; how many were answered."""
        answered = 0
        with httpx.Client(base_url=base, timeout=programs.PATIENCE) as client:
            while True:
                try:
                    assert client.get("/slow?seconds=0.01").text == "done"
                except httpx.TransportError:
                    return answered
                answered += 1

    with (
        httpx.Client(base_url=base, timeout=programs.PATIENCE) as client,
        concurrent.futures.ThreadPoolExecutor(requests + clients) as pool,
    ):
        answers = [pool.submit(httpx.get, f"{base}/slow?seconds=3", timeout=30) for _ in range(requests)]
        program.wait_until(
            lambda: client.get("/").json()["in_flight"] == requests, f"{requests} requests in flight"
        )
        loads = [pool.submit(load) for _ in range(clients)]
        program.wait_until(
            lambda: client.get("/").json()["begun"] >= requests + clients, f"requests of {clients} clients"
        )
        program.process.terminate()
        for answer in answers:
            assert answer.result().text == "done"
        answered = requests + sum(done.result() for done in loads)
    program.process.wait(programs.PATIENCE)
    assert f"the lifespan is over, {answered} slow requests were begun" in program.written()
