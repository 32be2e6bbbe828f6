"""ASGI servers and aiohttp's, on hotloop."""

import concurrent.futures
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import exercises
import httpx
import programs
import pytest
from helpers_tls import client_context
from programs import running
from trustme import CA

FACTORY = "hotloop:new_event_loop"

Certificate = dict[str, str]


def uvicorn(application: str, port: int, *options: str) -> list[str]:
    return ["-m", "uvicorn", application, "--port", str(port), "--loop", FACTORY, *options]


@pytest.mark.software("uvicorn", "httptools", "websockets", "starlette")
def test_uvicorn_httptools(port: int) -> None:
    """`--http httptools --ws websockets`: bodies, streams, background tasks, websockets."""
    with running(*uvicorn("asgi:app", port, "--http", "httptools", "--ws", "websockets"), port=port):
        exercises.starlette(f"http://127.0.0.1:{port}")
        exercises.websocket(f"ws://127.0.0.1:{port}/websocket")


@pytest.mark.software("uvicorn", "h11", "wsproto", "starlette")
def test_uvicorn_h11(port: int) -> None:
    """`--http h11 --ws wsproto`: bodies, streams, background tasks, websockets."""
    with running(*uvicorn("asgi:app", port, "--http", "h11", "--ws", "wsproto"), port=port):
        exercises.starlette(f"http://127.0.0.1:{port}")
        exercises.websocket(f"ws://127.0.0.1:{port}/websocket")


@pytest.mark.software("uvicorn")
def test_uvicorn_tls(port: int, certificate: Certificate, authority: CA) -> None:
    """HTTPS and secure websockets."""
    options = ["--ssl-certfile", certificate["certificate"], "--ssl-keyfile", certificate["key"]]
    with running(*uvicorn("asgi:app", port, *options), port=port):
        exercises.starlette(f"https://localhost:{port}", client_context(authority))
        exercises.websocket(f"wss://localhost:{port}/websocket", client_context(authority))


@pytest.mark.software("uvicorn", "starlette")
def test_uvicorn_ends_gracefully(port: int) -> None:
    """Told to end under load: all requests that were begun are answered, the lifespan ends."""
    with running(*uvicorn("asgi:app", port), port=port) as program:
        exercises.graceful_end(program, f"http://127.0.0.1:{port}")


@pytest.mark.software("uvicorn")
@pytest.mark.parametrize("options", [[], ["--workers", "2"]], ids=["", "workers"])
def test_uvicorn_command(port: int, options: list[str]) -> None:
    """`python -m hotloop -m uvicorn`, without a loop named."""
    command = ["-m", "hotloop", "-m", "uvicorn", "identity:app", "--port", str(port), *options]
    with running(*command, port=port):
        assert httpx.get(f"http://127.0.0.1:{port}/").json()["loop"] == exercises.LOOP


@pytest.mark.software("uvicorn")
def test_uvicorn_keeps_a_loop_that_is_named(port: int) -> None:
    """`python -m hotloop -m uvicorn --loop asyncio`: asyncio's."""
    command = ["-m", "hotloop", "-m", "uvicorn", "identity:app", "--port", str(port), "--loop", "asyncio"]
    with running(*command, port=port):
        assert httpx.get(f"http://127.0.0.1:{port}/").json()["loop"] == "asyncio.unix_events"


@pytest.mark.software("uvicorn")
def test_uvicorn_workers(port: int) -> None:
    """`--workers 2`: both answer, and one that is killed is replaced."""
    with running(*uvicorn("identity:app", port, "--workers", "2"), port=port) as program:

        def workers() -> set[int]:
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                answers = pool.map(lambda _: httpx.get(f"http://127.0.0.1:{port}/").json(), range(40))
                found = list(answers)
            assert {answer["loop"] for answer in found} == {exercises.LOOP}
            return {answer["pid"] for answer in found}

        program.wait_until(lambda: len(workers()) == 2, "answers of two workers")
        victim = workers().pop()
        os.kill(victim, signal.SIGKILL)
        program.wait_until(lambda: len(now := alive(workers)) == 2 and victim not in now, "a new worker")


def alive(workers: Callable[[], set[int]]) -> set[int]:
    """Those who answer, while a connection may still be reset by one that was killed."""
    try:
        return workers()
    except httpx.TransportError:
        return set()


@pytest.mark.software("uvicorn", "watchfiles")
def test_uvicorn_reload(port: int, tmp_path: Path) -> None:
    """`--reload`: a changed file is served by a new process."""
    file = shutil.copy(programs.APPLICATIONS / "identity.py", tmp_path / "changing.py")
    command = uvicorn("changing:app", port, "--reload", "--reload-dir", str(tmp_path))
    with running(*command, port=port, directory=tmp_path, WATCHFILES_FORCE_POLLING="1") as program:
        exercises.reload(program, f"http://127.0.0.1:{port}/", file)


@pytest.mark.software("fastapi", "uvicorn")
def test_fastapi(port: int) -> None:
    """Dependencies, threads, background tasks, server-sent events, websockets, a graceful end under load."""
    with running(*uvicorn("fast:app", port), port=port) as program:
        exercises.fastapi(f"http://127.0.0.1:{port}")
        exercises.json_websocket(f"ws://127.0.0.1:{port}/websocket")
        exercises.graceful_end(program, f"http://127.0.0.1:{port}")


@pytest.mark.software("gunicorn", "uvicorn")
@pytest.mark.parametrize("worker", ["hotloop.uvicorn.Worker", "hotloop.gunicorn.Worker", "auto"])
def test_gunicorn_with_workers(port: int, worker: str) -> None:
    """Two workers of hotloop's classes, or of uvicorn's under `python -m hotloop`; SIGHUP restarts them."""
    command = ["-m", "gunicorn", "identity:app", "-k", worker, "-w", "2"]
    if worker == "auto":
        command = [
            "-m",
            "hotloop",
            "-m",
            "gunicorn",
            *command[2:4],
            "uvicorn.workers.UvicornWorker",
            "-w",
            "2",
        ]
    with running(*command, "-b", f"127.0.0.1:{port}", port=port) as program:
        base = f"http://127.0.0.1:{port}/"

        def workers() -> set[int]:
            answers = [httpx.get(base).json() for _ in range(20)]
            assert {answer["loop"] for answer in answers} == {exercises.LOOP}
            return {answer["pid"] for answer in answers}

        first = workers()
        program.process.send_signal(signal.SIGHUP)
        program.wait_until(lambda: bool(now := alive(workers)) and not now & first, "new workers")


@pytest.mark.software("gunicorn")
def test_gunicorn_asgi_worker(port: int) -> None:
    """`python -m hotloop -m gunicorn -k asgi`: its own ASGI worker."""
    command = ["-m", "hotloop", "-m", "gunicorn", "asgi:app", "-k", "asgi", "-b", f"127.0.0.1:{port}"]
    with running(*command, port=port):
        exercises.starlette(f"http://127.0.0.1:{port}")


@pytest.mark.software("hypercorn", "h11")
def test_hypercorn(port: int) -> None:
    """`python -m hotloop -m hypercorn`: HTTP/1.1 and websockets."""
    command = ["-m", "hotloop", "-m", "hypercorn", "asgi:app", "-b", f"127.0.0.1:{port}"]
    with running(*command, port=port):
        exercises.starlette(f"http://127.0.0.1:{port}")
        exercises.websocket(f"ws://127.0.0.1:{port}/websocket")


@pytest.mark.software("hypercorn", "h2")
def test_hypercorn_http2_over_tls(port: int, certificate: Certificate, authority: CA) -> None:
    """HTTP/2 over TLS, and secure websockets."""
    files = ["--certfile", certificate["certificate"], "--keyfile", certificate["key"]]
    command = ["-m", "hotloop", "-m", "hypercorn", "asgi:app", "-b", f"127.0.0.1:{port}", *files]
    with running(*command, port=port):
        exercises.starlette(f"https://localhost:{port}", client_context(authority), http2=True)
        exercises.websocket(f"wss://localhost:{port}/websocket", client_context(authority))


@pytest.mark.software("granian")
def test_granian(port: int) -> None:
    """hotloop registered as its loop: bodies, streams, websockets."""
    with running("granian_server.py", str(port), port=port):
        exercises.starlette(f"http://127.0.0.1:{port}")
        exercises.websocket(f"ws://127.0.0.1:{port}/websocket")


@pytest.mark.software("granian")
def test_granian_command(port: int) -> None:
    """`python -m hotloop -m granian`."""
    command = f"-m hotloop -m granian --interface asgi --port {port} asgi:app".split()
    with running(*command, port=port):
        exercises.starlette(f"http://127.0.0.1:{port}")


@pytest.mark.software("aiohttp")
def test_aiohttp_server(port: int) -> None:
    """`web.run_app`: bodies, streams, websockets, a graceful end under load."""
    with running("-m", "hotloop", "aiohttp_server.py", str(port), port=port) as program:
        exercises.starlette(f"http://127.0.0.1:{port}")
        exercises.websocket(f"ws://127.0.0.1:{port}/websocket")
        exercises.graceful_end(program, f"http://127.0.0.1:{port}")
