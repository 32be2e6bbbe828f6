"""What the tests share: the loops under test, protocols that write down what happens, sockets, scripts."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
import socket
import subprocess
import sys
import sysconfig
import textwrap
import time
import typing

import pytest

LOOP_NAMES = os.environ.get("HOTLOOP_TESTS_LOOPS", "asyncio,hotloop").split(",")
FACTORIES: dict[str, typing.Callable[[], asyncio.AbstractEventLoop]] = {}
if "asyncio" in LOOP_NAMES:
    FACTORIES["asyncio"] = asyncio.SelectorEventLoop
if "hotloop" in LOOP_NAMES:
    import hotloop

    FACTORIES["hotloop"] = hotloop.new_event_loop
if "uvloop" in LOOP_NAMES:  # to see what it does in the same tests; many fail
    import uvloop

    FACTORIES["uvloop"] = uvloop.new_event_loop

# What encrypts: values of HOTLOOP_TLS.
TLS = ["direct", "portable", "asyncio"]
PYTHON = sys.version_info[:2]
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
HAS_IPV6 = socket.has_ipv6 and os.path.exists("/proc/net/if_inet6")
# More than any pair of loopback socket buffers holds.
TOO_MUCH = b"x" * (24 << 20)

try:
    import _testcapi as testcapi
except ImportError:
    testcapi = None
fails_allocations = pytest.mark.skipif(
    not hasattr(testcapi, "set_nomemory"), reason="needs CPython's _testcapi.set_nomemory()"
)

# What a Python without the GIL does otherwise, whatever the loop.
with_gil = pytest.mark.skipif(FREE_THREADED, reason="without the GIL, the interpreter itself does otherwise")
with_pidfd = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="this Python has no os.pidfd_open()")

# Stream sockets of the one kind only, in the fixtures `pair` and `attach`.
over_tcp = pytest.mark.parametrize("kind", ["tcp"])
over_unix = pytest.mark.parametrize("kind", ["unix"])

# Others may want the processor in the midst of what is compared with a stopwatch: try again then.
whenever_quiet = pytest.mark.flaky(reruns=9)


# What is patched before a loop runs, or while it does: since 3.12 dicts tell of that.
before_and_during = pytest.mark.parametrize(
    "when",
    [
        "before",
        pytest.param(
            "during",
            marks=pytest.mark.skipif(PYTHON < (3, 12), reason="until 3.11, a dict cannot be watched"),
        ),
    ],
)


class Leave(SystemExit):
    """A SystemExit of our own, so that nobody else's can pass for it."""


class Interrupt(KeyboardInterrupt):
    """A KeyboardInterrupt of our own: a real Ctrl-C at the test run is not taken for it."""


def fail(*args):
    """A callback that fails."""
    raise ValueError("broken")


class Reports(list):
    """The contexts that were given to the loop's exception handler. Whatever a test leaves here fails it."""

    def handler(self, loop, context):
        self.append(context)

    def take(self):
        """The one report that must be here."""
        assert len(self) == 1, list(self)
        return self.pop()


def _was_called(protocol, name):
    return name in protocol.calls


class _Notes:
    """Writes down each call of a protocol's methods, and runs the hook of that name, if it was given one.

    A hook is called with the protocol and the call's arguments; its result is the call's.
    """

    def __init__(self, **hooks):
        self.hooks = hooks
        self.calls = []
        self.data = bytearray()
        self.transport = None
        self.exception = None
        self._waiting = []

    def _note(self, name, *args):
        self.calls.append(name)
        try:
            hook = self.hooks.get(name)
            return hook(self, *args) if hook is not None else None
        finally:
            for condition, future in self._waiting[:]:
                if not future.done() and condition(self):
                    future.set_result(None)

    def connection_made(self, transport):
        self.transport = transport
        self._note("connection_made", transport)

    def eof_received(self):
        return self._note("eof_received")

    def connection_lost(self, exc):
        self.exception = exc
        self._note("connection_lost", exc)

    def pause_writing(self):
        self._note("pause_writing")

    def resume_writing(self):
        self._note("resume_writing")

    async def until(self, condition):
        """Wait for `condition(self)`: a function, or the name of a call."""
        if isinstance(condition, str):
            condition = functools.partial(_was_called, name=condition)
        if condition(self):
            return
        future = asyncio.get_running_loop().create_future()
        entry = (condition, future)
        self._waiting.append(entry)
        try:
            await future
        finally:
            self._waiting.remove(entry)

    async def received(self, count):
        """Wait for `count` bytes in all, and return what came."""
        await self.until(lambda protocol: len(protocol.data) >= count)
        return bytes(self.data)

    async def lost(self):
        """Wait for connection_lost, and return its exception."""
        await self.until("connection_lost")
        return self.exception


class Recorder(_Notes, asyncio.Protocol):
    """A protocol that writes down what happens to it."""

    def data_received(self, data):
        self.data += data
        self._note("data_received", data)


class BufferedRecorder(_Notes, asyncio.BufferedProtocol):
    """The same, received through get_buffer and buffer_updated."""

    def __init__(self, size=65536, **hooks):
        super().__init__(**hooks)
        self.buffer = bytearray(size)

    def get_buffer(self, sizehint):
        result = self._note("get_buffer", sizehint)
        return self.buffer if result is None else result

    def buffer_updated(self, nbytes):
        self.data += self.buffer[:nbytes]
        self._note("buffer_updated", nbytes)


class DatagramRecorder(_Notes, asyncio.DatagramProtocol):
    """The same for datagrams: each with its sender's address in `datagrams`, what went wrong in `errors`."""

    def __init__(self, **hooks):
        super().__init__(**hooks)
        self.datagrams = []
        self.errors = []

    @property
    def address(self):
        return self.transport.get_extra_info("sockname")

    @property
    def contents(self):
        return [data for data, _ in self.datagrams]

    def datagram_received(self, data, addr):
        self.datagrams.append((data, addr))
        self._note("datagram_received", data, addr)

    def error_received(self, exc):
        self.errors.append(exc)
        self._note("error_received", exc)

    async def received(self, count):
        """Wait for `count` datagrams in all, and return them."""
        await self.until(lambda protocol: len(protocol.datagrams) >= count)
        return self.datagrams


class ProcessRecorder(_Notes, asyncio.SubprocessProtocol):
    """A protocol of a subprocess that writes down what happens to it.

    What the pipes 1 and 2 bring is in `output`; the calls about a pipe are noted with its number.
    """

    def __init__(self, **hooks):
        super().__init__(**hooks)
        self.output = {1: b"", 2: b""}
        self.pipe_exceptions = {}

    def pipe_data_received(self, fd, data):
        self.output[fd] += data
        self._note(f"pipe_data_received {fd}", data)

    def pipe_connection_lost(self, fd, exc):
        self.pipe_exceptions[fd] = exc
        self._note(f"pipe_connection_lost {fd}", exc)

    def process_exited(self):
        self._note("process_exited")


def listener(family=socket.AF_INET, address=None, backlog=16):
    """A listening socket that does not block."""
    sock = socket.socket(family)
    if address is None:
        address = ("::1", 0) if family == socket.AF_INET6 else ("127.0.0.1", 0)
    sock.bind(address)
    sock.listen(backlog)
    sock.setblocking(False)
    return sock


def tcp_pair(**kwargs):
    """Two ends of one TCP connection over loopback, neither of them blocking."""
    with listener(**kwargs) as server:
        client = socket.socket(server.family)
        client.connect(server.getsockname())
        server.setblocking(True)
        accepted, _ = server.accept()
    for sock in (client, accepted):
        sock.setblocking(False)
    return client, accepted


def unix_pair():
    """Two ends of a Unix socket, neither of them blocking."""
    pair = socket.socketpair()
    for sock in pair:
        sock.setblocking(False)
    return pair


def datagram_socket(host="127.0.0.1"):
    """A UDP socket at a free port that does not block."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, 0))
    sock.setblocking(False)
    return sock


def datagram_pair():
    """Two connected Unix sockets for datagrams, named by the kernel, neither of them blocking."""
    pair = [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
    for sock in pair:
        sock.bind("")
        sock.setblocking(False)
    for sock, peer in (pair, reversed(pair)):
        sock.connect(peer.getsockname())
    return pair


PAIRS = {"tcp": tcp_pair, "unix": unix_pair}


def os_pipe():
    """A pipe as two files, the one to read from first."""
    reader, writer = os.pipe()
    return os.fdopen(reader, "rb", 0), os.fdopen(writer, "wb", 0)


def fill(sock):
    """Send until the socket takes no more."""
    try:
        while True:
            sock.send(b"x" * 65536)
    except BlockingIOError:
        pass


def unused_port():
    """A port that nobody listens on just now, and that the system gives to no connection meanwhile."""
    while True:
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", random.SystemRandom().randrange(10_000, 32_768)))
            return sock.getsockname()[1]


def reset(sock):
    """Close a TCP socket so that its peer gets a reset, not an end of file."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


def never_answering():
    """A listening socket whose backlog is full, so that connecting to it waits; and what fills it."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(0)
    waiting = []
    for _ in range(3):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(server.getsockname())
        waiting.append(sock)
    return server, waiting


async def read_exactly(sock, count):
    loop = asyncio.get_running_loop()
    data = bytearray()
    while len(data) < count:
        chunk = await loop.sock_recv(sock, min(count - len(data), 1 << 20))
        if not chunk:
            raise EOFError(f"{len(data)} of {count} bytes, then the end")
        data += chunk
    return bytes(data)


async def read_to_end(sock):
    loop = asyncio.get_running_loop()
    data = bytearray()
    while chunk := await loop.sock_recv(sock, 1 << 20):
        data += chunk
    return bytes(data)


async def _ready(add, remove, file):
    """Wait for one call of what add_reader() or add_writer() was given."""
    future = asyncio.get_running_loop().create_future()
    add(file, lambda: future.done() or future.set_result(None))
    try:
        await future
    finally:
        remove(file)


async def write_to_pipe(file, data):
    """Write to a file that cannot take all of it at once."""
    loop = asyncio.get_running_loop()
    os.set_blocking(file.fileno(), False)
    view = memoryview(data)
    while view:
        count = file.write(view)
        if count is None:
            await _ready(loop.add_writer, loop.remove_writer, file)
        else:
            view = view[count:]


async def read_from_pipe(file, count=sys.maxsize):
    """Read so many bytes, or until the end."""
    loop = asyncio.get_running_loop()
    os.set_blocking(file.fileno(), False)
    data = bytearray()
    while len(data) < count:
        chunk = file.read(min(count - len(data), 1 << 20))
        if chunk is None:
            await _ready(loop.add_reader, loop.remove_reader, file)
        elif chunk:
            data += chunk
        else:
            break
    return bytes(data)


def run_once(loop, times=1):
    """Run what is queued, in one iteration; or in so many of them."""
    for _ in range(times):
        loop.call_soon(loop.stop)
        loop.run_forever()


def run_alone(loop, *callbacks):
    """Run an iteration that has these callbacks and no other: run_once() adds one."""
    for callback in callbacks:
        loop.call_soon(callback)
    loop.stop()
    loop.run_forever()


def close_loop(loop):
    """Close a loop after what closed transports still have to do, and its executor."""
    run_once(loop, 3)
    executor = loop._default_executor
    loop.close()
    if executor is not None:
        executor.shutdown()


async def iterations(count):
    """Let the loop go round `count` times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def cancel(task):
    """Cancel a task, which ends with the exception."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def close_and_check_repr(protocol, number):
    """Close a transport whose descriptor has that number; its representation follows."""
    transport = protocol.transport
    assert f"fd={number}" in repr(transport)
    assert "clos" not in repr(transport)
    transport.close()
    assert "closing" in repr(transport)
    await protocol.lost()
    await iterations(1)
    assert "closed" in repr(transport)


async def until(condition, timeout=5.0):
    """Wait until a condition that nobody announces holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def idle(seconds=0.2):
    """Fail if this thread, after the block, is busy while it should be asleep."""
    yield
    await iterations(3)
    start = time.thread_time()
    await asyncio.sleep(seconds)
    used = time.thread_time() - start
    assert used < seconds / 3, f"{used:.3f} s of processor time in {seconds} s of sleep"


@contextlib.asynccontextmanager
async def running(server):
    """A server, and its first address; closed, with the connections that it accepted, after the block."""
    try:
        yield server.sockets[0].getsockname()
    finally:
        server.close()


def open_descriptors():
    """What each open descriptor of this process leads to."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def opened_since(before):
    """What is open now and was not when `before` was taken from open_descriptors()."""
    return {fd: target for fd, target in open_descriptors().items() if before.get(fd) != target}


PRELUDE = """
import sys
sys.path += [path for path in {path!r} if path not in sys.path]
import asyncio, os, signal, socket, threading, time, warnings
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
if {name!r} != "asyncio":
    import {name}
    new_event_loop, run, install = {name}.new_event_loop, {name}.run, getattr({name}, "install", None)
else:
    new_event_loop, run, install = asyncio.new_event_loop, asyncio.run, lambda: None
"""


def script(name, source):
    """The text of a program that has new_event_loop() and run() of the loop called `name`."""
    return PRELUDE.format(name=name, path=sys.path) + textwrap.dedent(source)


def run_script(name, source, *options, check=True, timeout=30, env=None):
    """Run such a program in a process of its own, and return what it printed and its status."""
    try:
        result = subprocess.run(
            [sys.executable, *options, "-c", script(name, source)],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, **(env or {})},
        )
    except subprocess.TimeoutExpired as error:
        # Not the error itself, whose text is the program.
        printed = (error.stdout or b"") + (error.stderr or b"")
        raise AssertionError(
            f"not done after {timeout} seconds: {printed.decode(errors='replace')}"
        ) from None
    if check:
        assert result.returncode == 0, (result.returncode, result.stdout, result.stderr)
    return result


def start_script(name, source, *options):
    """Start such a program, with pipes to talk to it."""
    return subprocess.Popen(
        [sys.executable, *options, "-u", "-c", script(name, source)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
