"""hotloop's public names; run() as asyncio.run(); and what a Loop is to those who look."""

import ast
import asyncio
import importlib.metadata
import inspect
import pathlib
import re
import threading
import types

import helpers
import pytest

if "hotloop" in helpers.LOOP_NAMES:
    import hotloop
else:
    pytest.skip("hotloop is not under test", allow_module_level=True)


# The package


def test_the_public_names():
    assert {"run", "new_event_loop", "Loop", "__version__"} <= set(hotloop.__all__)
    for name in hotloop.__all__:
        assert getattr(hotloop, name) is not None
        if name != "__version__":
            assert inspect.getdoc(getattr(hotloop, name))


def test_the_version():
    assert hotloop.__version__[0].isdigit()
    try:
        installed = importlib.metadata.version("hotloop")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("not installed as a distribution")
    assert hotloop.__version__ == installed


def test_the_package_is_typed():
    assert (pathlib.Path(hotloop.__file__).parent / "py.typed").exists()


# The class


def test_a_loop_is_one_of_asyncios():
    loop = hotloop.new_event_loop()
    try:
        assert type(loop) is hotloop.Loop
        assert isinstance(loop, asyncio.AbstractEventLoop)
        assert isinstance(loop, asyncio.BaseEventLoop)
    finally:
        loop.close()


def test_a_loop_can_be_made_by_its_class_and_is_not_set_as_current():
    seen = []

    def work():
        loop = hotloop.Loop()
        try:
            asyncio.get_event_loop()
        except RuntimeError:
            seen.append("none")
        loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == ["none"]


def public(kind):
    return {name for name in dir(kind) if not name.startswith("_")}


def test_a_loop_has_all_that_asyncios_has():
    assert public(asyncio.SelectorEventLoop) <= public(hotloop.Loop)


def parameters(function):
    """What a function can be called with: self is never given by name."""
    found = list(inspect.signature(function).parameters.values())[1:]
    return [(parameter.name, parameter.kind, parameter.default) for parameter in found]


CLASSES = [
    (hotloop.Loop, asyncio.SelectorEventLoop),
    (hotloop._core.StreamTransport, asyncio.selector_events._SelectorSocketTransport),
    (hotloop._core.DatagramTransport, asyncio.selector_events._SelectorDatagramTransport),
    (hotloop._core.ReadPipeTransport, asyncio.unix_events._UnixReadPipeTransport),
    (hotloop._core.WritePipeTransport, asyncio.unix_events._UnixWritePipeTransport),
]


@pytest.mark.parametrize(
    ("ours", "theirs", "name"),
    [
        (ours, theirs, name)
        for ours, theirs in CLASSES
        for name in sorted(public(theirs))
        if callable(getattr(theirs, name)) and name != "create_task"
    ],
)
def test_a_method_takes_what_asyncios_takes(ours, theirs, name):
    assert parameters(getattr(ours, name)) == parameters(getattr(theirs, name))


def stub_methods():
    """The methods of each class in the stub, as functions."""
    for kind in ast.walk(ast.parse((pathlib.Path(hotloop.__file__).parent / "_core.pyi").read_text())):
        for method in kind.body if isinstance(kind, ast.ClassDef) else ():
            if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) and not method.decorator_list:
                for argument in ast.walk(method.args):
                    if isinstance(argument, ast.arg):
                        argument.annotation = None
                yield (kind.name, method.name), eval(f"lambda {ast.unparse(method.args)}: None")


STUB = dict(stub_methods())


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, name)
        for kind in vars(hotloop._core).values()
        if isinstance(kind, type)
        for name, method in vars(kind).items()
        if isinstance(method, types.MethodDescriptorType) or inspect.iscoroutinefunction(method)
    ],
)
def test_a_native_method_has_the_stubs_signature(kind, name):
    """mypy.stubtest lets the stub have no private methods. What it does not repeat is asyncio's."""
    stub = STUB.get((kind.__name__, name)) or getattr(kind.__base__, name)
    assert parameters(getattr(kind, name)) == parameters(stub)


def test_coroutine_functions_of_asyncio_are_coroutines_or_awaitables_here():
    loop = hotloop.new_event_loop()
    ours, peer = helpers.unix_pair()

    async def main():
        for call in (
            loop.sock_recv(ours, 10),
            loop.sock_recv_into(ours, bytearray(10)),
            loop.sock_sendall(ours, b"x"),
            loop.getaddrinfo("127.0.0.1", 80),
        ):
            assert inspect.isawaitable(call)
            task = asyncio.ensure_future(call)
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])

    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
        ours.close()
        peer.close()


def test_the_sock_methods_can_be_made_into_tasks():
    """create_task takes coroutines only, and asyncio's sock_* are coroutines."""
    loop = hotloop.new_event_loop()
    ours, peer = helpers.unix_pair()

    async def main():
        task = loop.create_task(loop.sock_recv(ours, 10))
        await asyncio.sleep(0)
        await loop.create_task(loop.sock_sendall(peer, b"hello"))
        assert await task == b"hello"
        async with asyncio.TaskGroup() as group:
            group.create_task(loop.sock_sendall(peer, b"more"))
            received = group.create_task(loop.sock_recv(ours, 10))
        assert received.result() == b"more"

    loop.run_until_complete(main())
    loop.close()
    ours.close()
    peer.close()


def test_a_loop_takes_attributes():
    loop = hotloop.new_event_loop()
    loop.something = 42
    assert loop.something == 42
    loop.close()


def test_a_runner_takes_the_factory():
    async def main():
        return asyncio.get_running_loop()

    with asyncio.Runner(loop_factory=hotloop.new_event_loop) as runner:
        loop = runner.run(main())
        assert type(loop) is hotloop.Loop
        assert runner.get_loop() is loop
    assert loop.is_closed()


# run()

RUN_QUESTIONS = """
def tell(what, function):
    try:
        print(what, "->", function())
    except BaseException as error:
        print(what, "->", type(error).__name__, str(error).replace("hotloop.run", "asyncio.run"))

async def value():
    await asyncio.sleep(0)
    return 42

async def fail():
    raise LookupError("failed")

async def leave():
    raise SystemExit(3)

async def cancelled():
    asyncio.current_task().cancel()
    await asyncio.sleep(1)

async def debug():
    return asyncio.get_running_loop().get_debug()

async def leftovers():
    async def wait(name):
        try:
            await asyncio.sleep(60)
        finally:
            print(name, "cancelled")

    async def generate():
        try:
            yield 1
        finally:
            print("generator closed")

    tasks.append(asyncio.create_task(wait("task")))
    generators.append(generate())
    await anext(generators[0])
    asyncio.get_running_loop().run_in_executor(None, lambda: (time.sleep(0.01), print("thread ended")))
    await asyncio.sleep(0)
    return "done"

async def nested():
    coroutine = value()
    try:
        run(coroutine)
    finally:
        coroutine.close()

async def failing_leftover():
    async def stubborn():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise ValueError("stubborn")
    tasks.append(asyncio.create_task(stubborn()))
    handler = lambda loop, context: print(context["message"], context["exception"])
    asyncio.get_running_loop().set_exception_handler(handler)
    await asyncio.sleep(0)

class Awaitable:
    def __await__(self):
        return (yield from asyncio.sleep(0, "awaited").__await__())

tasks, generators, loops = [], [], []

async def keep_loop():
    loops.append(asyncio.get_running_loop())

tell("value", lambda: run(value()))
tell("fail", lambda: run(fail()))
tell("leave", lambda: run(leave()))
tell("cancelled", lambda: run(cancelled()))
for flag in (None, True, False):
    tell(f"debug {flag}", lambda: run(debug(), debug=flag))
tell("leftovers", lambda: run(leftovers()))
tell("nested", lambda: run(nested()))
tell("failing leftover", lambda: run(failing_leftover()))
tell("function", lambda: run(value))
tell("number", lambda: run(42))
tell("nothing", lambda: run(None))
tell("awaitable", lambda: run(Awaitable()))
tell("positional debug", lambda: run(value, True))
tell("kept", lambda: run(keep_loop()))
print("closed", loops[0].is_closed(), "running", asyncio._get_running_loop())
tell("in a thread", lambda: asyncio.run(asyncio.to_thread(lambda: run(value()))))
"""


@helpers.whenever_quiet
def test_run_is_asyncio_run():
    ours, theirs = (
        helpers.run_script(name, RUN_QUESTIONS, "-W", "ignore") for name in ("hotloop", "asyncio")
    )
    assert theirs.stdout.startswith("value -> 42\n")
    expected, found = (re.sub(r"0x[0-9a-f]+", "0x...", run.stdout).splitlines() for run in (theirs, ours))
    for before, after in zip(expected, found, strict=True):
        if before.startswith("positional debug"):
            assert "TypeError" in after
        else:
            assert after == before
    assert ours.stderr == theirs.stderr == ""


def test_the_signature_of_run():
    parameters = inspect.signature(hotloop.run).parameters
    assert list(parameters) == ["main", "debug"]
    assert parameters["debug"].kind is inspect.Parameter.KEYWORD_ONLY
    assert parameters["debug"].default is None


# The portable wait

PORTABLE = """
class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)

async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    data = bytes(range(256)) * 20_000
    writer.write(data)
    assert await reader.readexactly(len(data)) == data
    writer.close()
    await writer.wait_closed()
    server.close()

    start = time.monotonic()
    await asyncio.sleep(0.01)
    assert time.monotonic() - start >= 0.0099
    assert await asyncio.to_thread(lambda: 42) == 42

    got = asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, got.set)
    os.kill(os.getpid(), signal.SIGUSR1)
    await asyncio.wait_for(got.wait(), 10)

    ours, peer = socket.socketpair()
    loop.add_reader(ours, lambda: (ours.recv(1), got.clear()))
    peer.send(b"x")
    while got.is_set():
        await asyncio.sleep(0.001)
    loop.remove_reader(ours)

    used = time.thread_time()
    await asyncio.sleep(0.2)
    assert time.thread_time() - used < 0.1
    print("all well")

run(main(), debug=False)
"""


def test_the_portable_wait_does_all_that_the_other_does():
    result = helpers.run_script("hotloop", PORTABLE, env={"HOTLOOP_POLLER": "portable"})
    assert (result.stdout, result.stderr) == ("all well\n", "")


def test_the_extension_is_not_imported_twice():
    """A second import either works or says why it does not."""
    result = helpers.run_script(
        "hotloop",
        """
        import importlib
        for name in [name for name in sys.modules if name.startswith("hotloop")]:
            del sys.modules[name]
        try:
            importlib.import_module("hotloop")
        except ImportError as error:
            assert str(error)
        """,
    )
    assert result.stderr == ""
