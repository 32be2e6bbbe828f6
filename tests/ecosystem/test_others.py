"""gRPC, ZeroMQ, Tornado, dask.distributed, test frameworks, IPython and Jupyter, on hotloop."""

import asyncio
import concurrent.futures
import contextlib
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import exercises
import grpc
import grpc.aio
import hotloop
import httpx
import programs
import pytest
import zmq
import zmq.asyncio
from programs import running
from websockets.sync.client import connect


class Calls(grpc.GenericRpcHandler):
    """Methods of all four shapes, of plain bytes."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return {
            "/test/unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "/test/out": grpc.unary_stream_rpc_method_handler(self.out),
            "/test/into": grpc.stream_unary_rpc_method_handler(self.into),
            "/test/both": grpc.stream_stream_rpc_method_handler(self.both),
        }.get(details.method)

    async def unary(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        if request == b"fail":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "as asked")
        if request == b"wait":
            await asyncio.sleep(30)
        return request[::-1]

    async def out(self, request: bytes, _: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        for number in range(int(request)):
            yield b"%d" % number

    async def into(self, requests: AsyncIterator[bytes], _: grpc.aio.ServicerContext) -> bytes:
        return b"%d" % sum([int(request) async for request in requests])

    async def both(self, requests: AsyncIterator[bytes], _: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request * 2


@contextlib.asynccontextmanager
async def grpc_channel() -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a server of these calls."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([Calls()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(5)


@pytest.mark.software("grpcio")
def test_grpc() -> None:
    """Unary and streaming calls both ways, 100 at a time, errors, deadlines, a graceful stop."""

    async def main() -> None:
        async with grpc_channel() as channel:
            unary = channel.unary_unary("/test/unary")
            requests = [b"request %d" % number for number in range(100)]
            answers = await asyncio.gather(*(unary(request) for request in requests))
            assert answers == [request[::-1] for request in requests]
            data = bytes(range(256)) * 12_000
            assert await unary(data) == data[::-1]
            out = channel.unary_stream("/test/out")
            assert [int(item) async for item in out(b"1000")] == list(range(1_000))

            async def numbers() -> AsyncIterator[bytes]:
                for number in range(500):
                    yield b"%d" % number

            assert await channel.stream_unary("/test/into")(numbers()) == b"%d" % sum(range(500))
            both = channel.stream_stream("/test/both")(numbers())
            assert [item async for item in both] == [b"%d" % n * 2 for n in range(500)]
            with pytest.raises(grpc.aio.AioRpcError, match="as asked"):
                await unary(b"fail")
            with pytest.raises(grpc.aio.AioRpcError) as late:
                await unary(b"wait", timeout=0.2)
            assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            call = unary(b"wait")
            await asyncio.sleep(0.1)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

    hotloop.run(main())


@pytest.mark.software("grpcio")
def test_grpc_on_two_loops() -> None:
    """Two loops in two threads, each with a server and a client: all calls are answered."""

    async def main() -> list[str]:
        reports: list[str] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: reports.append(repr(context.get("exception"))))
        async with grpc_channel() as channel:
            unary = channel.unary_unary("/test/unary")
            for _ in range(20):
                answers = await asyncio.gather(*[unary(b"request %d" % number) for number in range(50)])
                assert answers == [(b"request %d" % number)[::-1] for number in range(50)]
        return reports

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(hotloop.run, main()) for _ in range(2)]
        # All loops read one pipe of grpc's. Earlier versions report BlockingIOError if it is empty.
        for run in runs:
            assert {report.partition("(")[0] for report in run.result()} <= {"BlockingIOError"}


@pytest.mark.software("pyzmq")
def test_zeromq(tmp_path: Path) -> None:
    """Requests, pipelines and routing over TCP, Unix sockets and in the process; a poll that ends."""

    async def main() -> None:
        context = zmq.asyncio.Context()
        for address in ("tcp://127.0.0.1:*", f"ipc://{tmp_path}/socket", "inproc://here"):
            with context.socket(zmq.REP) as server, context.socket(zmq.REQ) as client:
                server.bind(address)
                client.connect(server.last_endpoint)

                async def answer(server: zmq.asyncio.Socket = server) -> None:
                    for _ in range(200):
                        await server.send((await server.recv())[::-1])

                answering = asyncio.create_task(answer())
                for number in range(200):
                    await client.send(b"message %d" % number)
                    assert await client.recv() == (b"message %d" % number)[::-1]
                await answering
            with context.socket(zmq.PUSH) as push, context.socket(zmq.PULL) as pull:
                push.bind(address.replace("socket", "other").replace("here", "there"))
                pull.connect(push.last_endpoint)

                async def work(push: zmq.asyncio.Socket = push) -> None:
                    for number in range(3_000):
                        await push.send_multipart([b"%d" % number, b"x" * 1_000])

                working = asyncio.create_task(work())
                got = [int((await pull.recv_multipart())[0]) for _ in range(3_000)]
                assert got == list(range(3_000))
                await working
        with context.socket(zmq.ROUTER) as router, context.socket(zmq.DEALER) as dealer:
            port = router.bind_to_random_port("tcp://127.0.0.1")
            dealer.connect(f"tcp://127.0.0.1:{port}")
            await dealer.send(b"hello")
            identity, text = await router.recv_multipart()
            await router.send_multipart([identity, text * 2])
            assert await dealer.recv() == b"hellohello"
            assert await dealer.poll(50) == 0
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(dealer.recv(), 0.05)
        context.term()

    hotloop.run(main())


@pytest.mark.software("tornado")
def test_tornado(port: int) -> None:
    """`python -m hotloop`: bodies, streams, threads, periodic callbacks, websockets."""
    with running("-m", "hotloop", "tornado_server.py", str(port), port=port):
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            assert client.get("/").json()["loop"] == exercises.LOOP
            body = bytes(range(256)) * 8_000
            assert client.post("/echo", content=body).content == body
            expected = "".join(f"{number}\n" for number in range(2_000))
            assert client.get("/stream", params={"pieces": 2_000}).text == expected
            programs.wait_until(lambda: client.get("/").json()["ticks"] > 3, "ticks of a periodic callback")
        with connect(f"ws://127.0.0.1:{port}/websocket") as socket:
            for number in range(50):
                socket.send(f"message {number}")
                assert socket.recv() == f"MESSAGE {number}"


@pytest.mark.software("tornado")
def test_tornado_reloads(port: int, tmp_path: Path) -> None:
    """`autoreload`: a changed file is served by the same process, executed anew."""
    file = shutil.copy(programs.APPLICATIONS / "tornado_server.py", tmp_path / "changing.py")
    base = f"http://127.0.0.1:{port}/"
    with running("changing.py", str(port), "--autoreload", port=port, directory=tmp_path) as program:
        exercises.reload(program, base, file)
        assert exercises.facts(base)["loop"] == exercises.LOOP
        assert exercises.facts(base)["pid"] == program.process.pid


# A worker that is asked to end while a heartbeat is under way writes this, on asyncio's own loop as well.
CUT_OFF = (
    r"Failed to communicate with scheduler during heartbeat.*?"
    r"CommClosedError: (ConnectionPool closing\.|in <TCP \(closed\) ConnectionPool\.heartbeat_worker)"
)


@pytest.fixture
def cluster(port: int, tmp_path: Path) -> Iterator[str]:
    """A scheduler and two workers, the second with its nanny, all of them processes on hotloop."""
    address = f"tcp://127.0.0.1:{port}"
    scheduler = f"-m distributed.cli.dask_scheduler --host 127.0.0.1 --port {port} --no-dashboard"
    worker = f"-m distributed.cli.dask_worker {address} --nthreads 1 --no-dashboard"
    with contextlib.ExitStack() as stack:
        for command, listening in ((scheduler, port), (f"{worker} --no-nanny", None), (worker, None)):
            words = ["-m", "hotloop", *command.split()]
            stack.enter_context(running(*words, port=listening, directory=tmp_path, known=CUT_OFF))
        yield address


@pytest.mark.software("distributed")
def test_dask(cluster: str) -> None:
    """A scheduler and two workers as processes, all on hotloop, compute, pass data on and gather."""
    from distributed import Client

    # What is defined in here goes to the workers by value; they can't import this module.
    def double(number: int) -> int:
        return 2 * number

    def loops(dask_worker: object) -> str:
        return type(dask_worker.loop.asyncio_loop).__module__

    async def main() -> None:
        async with Client(cluster, asynchronous=True) as client:
            await client.wait_for_workers(2, timeout=30)
            assert set((await client.run(loops)).values()) == {exercises.LOOP}
            doubled = client.map(double, range(500))
            total = client.submit(sum, doubled)
            assert await total == 2 * sum(range(500))
            data = await client.scatter([bytes(1_000_000)] * 4, broadcast=True)
            assert await client.gather(client.map(len, data, pure=False)) == [1_000_000] * 4
            failing = client.submit(divmod, 1, 0)
            with pytest.raises(ZeroDivisionError):
                await failing

    hotloop.run(main())


def run_pytest(folder: Path, files: dict[str, str], *options: str) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)
    with running(*options, directory=folder) as program:
        program.process.wait(programs.PATIENCE)
        assert " passed" in program.written(), program.written()


STRICTLY = ["-q", "-W", "error", "-o", "asyncio_default_fixture_loop_scope=function"]

ASYNCIO_CHOICE = """
import hotloop

def pytest_asyncio_loop_factories(config, item):
    return {"hotloop": hotloop.new_event_loop}
"""

ASYNCIO_TESTS = """
import asyncio
import pytest
import pytest_asyncio

@pytest_asyncio.fixture
async def loop_of_fixture():
    await asyncio.sleep(0)
    yield asyncio.get_running_loop()
    await asyncio.sleep(0)

@pytest.mark.asyncio
async def test_loop(loop_of_fixture):
    assert asyncio.get_running_loop() is loop_of_fixture
    assert type(loop_of_fixture).__module__ == "hotloop.loop"

@pytest.mark.asyncio
@pytest.mark.parametrize("number", range(20))
async def test_many(number):
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
"""


ANYIO_CHOICE = """
import hotloop
import pytest

@pytest.fixture
def anyio_backend():
    return "asyncio", {"loop_factory": hotloop.new_event_loop}
"""

ANYIO_TESTS = """
import anyio
import asyncio
import pytest

pytestmark = pytest.mark.anyio

@pytest.fixture
async def nursery():
    async with anyio.create_task_group() as group:
        yield group

async def test_loop(nursery):
    nursery.start_soon(anyio.sleep, 0.01)
    assert type(asyncio.get_running_loop()).__module__ == "hotloop.loop"
"""


@pytest.mark.software("pytest-asyncio")
def test_pytest_asyncio(tmp_path: Path) -> None:
    """Tests and fixtures on hotloop, by its hook for loop factories."""
    files = {"conftest.py": ASYNCIO_CHOICE, "test_it.py": ASYNCIO_TESTS}
    run_pytest(tmp_path, files, "-m", "pytest", *STRICTLY)


@pytest.mark.software("pytest-asyncio")
def test_pytest_asyncio_unchanged(tmp_path: Path) -> None:
    """`python -m hotloop -m pytest`: the same without a word in the tests."""
    run_pytest(tmp_path, {"test_it.py": ASYNCIO_TESTS}, "-m", "hotloop", "-m", "pytest", *STRICTLY)


@pytest.mark.software("anyio")
def test_anyio_plugin(tmp_path: Path) -> None:
    """Tests and fixtures of anyio's plugin for pytest on hotloop."""
    files = {"conftest.py": ANYIO_CHOICE, "test_it.py": ANYIO_TESTS}
    run_pytest(tmp_path, files, "-m", "pytest", "-q", "-p", "no:asyncio")


@pytest.mark.software("ipython")
def test_ipython(tmp_path: Path) -> None:
    """`python -m hotloop -m IPython`: await at the top level, in several cells."""
    cells = (
        "import asyncio\n"
        "await asyncio.sleep(0.01)\n"
        "first = asyncio.get_running_loop()\n"
        "print(type(first).__module__)\n"
        "print(await asyncio.gather(*(asyncio.sleep(0.01, n) for n in range(3))))\n"
    )
    (tmp_path / "cells.ipy").write_text(cells)
    command = ["-m", "hotloop", "-m", "IPython", "--colors=NoColor", "cells.ipy"]
    with running(*command, directory=tmp_path, IPYTHONDIR=str(tmp_path)) as program:
        program.process.wait(programs.PATIENCE)
        assert program.written().splitlines()[-2:] == ["hotloop.loop", "[0, 1, 2]"]


@pytest.mark.software("ipykernel")
def test_jupyter_kernel(tmp_path: Path) -> None:
    """A kernel on hotloop: top-level await, output as it comes, background tasks, an interrupt."""
    from jupyter_client.manager import KernelManager

    manager = KernelManager()
    command = "-m hotloop -m ipykernel_launcher -f {connection_file}"
    manager.kernel_spec.argv = [sys.executable, *command.split()]
    manager.kernel_spec.interrupt_mode = "signal"
    manager.start_kernel(cwd=str(tmp_path))
    client = manager.client()
    client.start_channels()
    printed: list[str] = []

    def execute(code: str) -> str:
        printed.clear()

        def take(message: dict[str, dict[str, str]]) -> None:
            if message["header"]["msg_type"] == "stream":
                printed.append(message["content"]["text"])

        reply = client.execute_interactive(code, output_hook=take, timeout=programs.PATIENCE)
        status: str = reply["content"]["status"]
        return status

    try:
        client.wait_for_ready(timeout=programs.PATIENCE)
        assert execute("import asyncio\nprint(type(asyncio.get_running_loop()).__module__)") == "ok"
        assert "".join(printed) == "hotloop.loop\n"
        assert execute("for n in range(3):\n    print(n)\n    await asyncio.sleep(0.05)") == "ok"
        assert "".join(printed) == "0\n1\n2\n"
        assert execute("task = asyncio.create_task(asyncio.sleep(0.05, 'slept'))") == "ok"
        assert execute("print(await task)") == "ok"
        assert "".join(printed) == "slept\n"
        message = client.execute("import time\ntime.sleep(30)")
        programs.wait_until(
            lambda: client.get_iopub_msg(timeout=5)["header"]["msg_type"] == "execute_input", "the cell"
        )
        manager.interrupt_kernel()
        reply = client.get_shell_msg(timeout=programs.PATIENCE)
        assert reply["parent_header"]["msg_id"] == message
        assert reply["content"]["ename"] == "KeyboardInterrupt"
        assert execute("print(6 * 7)") == "ok"
        assert "".join(printed) == "42\n"
    finally:
        client.stop_channels()
        manager.shutdown_kernel()
    assert not manager.is_alive()


@pytest.mark.parametrize(
    "module",
    [
        pytest.param("nest_asyncio", marks=pytest.mark.software("nest-asyncio")),
        pytest.param("nest_asyncio2", marks=pytest.mark.software("nest-asyncio2")),
    ],
)
def test_nested_loops(module: str) -> None:
    """`run_until_complete()` and `asyncio.run()` within a running loop: as on asyncio's loop."""

    def outcome(loop: str) -> str:
        command = [sys.executable, "nested.py", module, loop]
        done = subprocess.run(
            command, cwd=programs.APPLICATIONS, capture_output=True, text=True, timeout=programs.PATIENCE
        )
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    ours = outcome("hotloop")
    assert ours == outcome("asyncio")
    assert ours.endswith("'interrupted', True, 'end']\n")


def test_a_loop_is_not_nested_by_itself() -> None:
    async def main() -> None:
        nothing = asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="This event loop is already running"):
            asyncio.get_running_loop().run_until_complete(nothing)
        nothing.close()

    hotloop.run(main())


@pytest.mark.software("py-spy")
def test_py_spy(port: int) -> None:
    """`py-spy dump` of a server: it is idle in `run_forever()`."""
    with running("-m", "hotloop", "aiohttp_server.py", str(port), port=port) as program:
        command = [Path(sys.executable).parent / "py-spy", "dump", "--pid", str(program.process.pid)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=programs.PATIENCE)
        if "ermission" in done.stderr:
            pytest.skip(done.stderr.strip().splitlines()[-1])
        assert done.returncode == 0, done
        assert re.search(r'\(idle\): "MainThread"\n +.*run_forever \(hotloop/loop.py', done.stdout), (
            done.stdout
        )
