"""The streams that hotloop makes in the place of asyncio's: they do the same, and copy less."""

import asyncio
import contextlib
import itertools
import random
import socket
import sys
import types
from unittest import mock

import helpers
import pytest

_streams = pytest.importorskip("hotloop._streams")

pytestmark = pytest.mark.hotloop_only
READERS = [asyncio.StreamReader, _streams.StreamReader]
LARGE = 1 << 20


class PausedTransport:
    """What a reader needs of a transport."""

    def __init__(self, can_pause=True):
        self.can_pause = can_pause
        self.calls = []

    def pause_reading(self):
        self.calls.append("pause")
        if not self.can_pause:
            raise NotImplementedError

    def resume_reading(self):
        self.calls.append("resume")


def state(reader):
    transport = reader._transport
    return (
        bytes(reader._buffer),
        reader._eof,
        reader._waiter is None,
        reader._paused,
        repr(reader._exception),
        transport and transport.calls,
        reader.at_eof(),
    )


async def replay(kind, seed, looks):
    """What a reader of that class does when it is fed and read from at random."""
    chosen = random.Random(seed)
    loop = asyncio.get_running_loop()
    reader = kind(limit=chosen.choice([1, 8, 64, 5000]), loop=loop)
    if chosen.random() < 0.9:
        reader.set_transport(PausedTransport(chosen.random() < 0.8))
    seen = []
    reading = None

    def data():
        return bytes(chosen.choices(b"ab\n;", k=chosen.choice([0, 1, 2, 7, 30, 200, 3000])))

    async def read(name, *args):
        try:
            return await getattr(reader, name)(*args)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            return type(error), error.args, getattr(error, "consumed", None)

    for _ in range(chosen.randrange(40)):
        act = chosen.random()
        if act < 0.4:
            sort = chosen.choice([bytes, bytes, bytes, bytearray, memoryview])
            try:
                reader.feed_data(sort(data()))
            except AssertionError as error:
                seen.append(str(error))
        elif act < 0.8:
            name, *args = chosen.choice(
                [
                    ("read", 5),
                    ("read", 1000),
                    ("read", 0),
                    ("readline",),
                    ("readuntil", b";"),
                    ("readuntil", b"\n;"),
                    ("readuntil", b""),
                    ("readexactly", 3),
                    ("readexactly", 30),
                    ("readexactly", 2000),
                    ("readexactly", 0),
                    ("readexactly", -1),
                    *([("readuntil", (b";", b"ab"))] if sys.version_info >= (3, 13) else []),
                ]
            )
            if reading is None or reading.done() or chosen.random() < 0.1:
                reading = asyncio.ensure_future(read(name, *args))
                seen.append((name, *args))
        elif act < 0.85 and reading is not None:
            reading.cancel()
        elif act < 0.88:
            reader.feed_eof()
        elif act < 0.9:
            reader.set_exception(OSError(seed))
        elif act < 0.92:
            reader._buffer = bytearray(data())
        for _ in range(chosen.randrange(3)):
            await asyncio.sleep(0)
        if reading is not None and reading.done():
            seen.append("cancelled" if reading.cancelled() else reading.result())
            if not reading.cancelled():
                assert type(seen[-1]) in (bytes, tuple)
        if looks:
            seen.append(state(reader))
    if not reader._eof:
        reader.feed_eof()
    if reading is not None:
        for _ in range(3):
            await asyncio.sleep(0)
        # One that waits beside another can be forgotten.
        seen.append(reading.cancel())
        with contextlib.suppress(asyncio.CancelledError):
            seen.append(await reading)
    seen.append(await read("read"))
    seen.append(state(reader))
    return seen


@pytest.mark.parametrize("looks", [False, True])
def test_a_reader_does_what_asyncios_does(looks):
    for seed in range(2000):
        expected, found = (asyncio.run(replay(kind, seed, looks)) for kind in READERS)
        assert found == expected, seed


async def served(loop, handle, tls=None, **options):
    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls and tls[0], **options)
    of_client = {"ssl": tls[1], "server_hostname": "localhost"} if tls else {}
    return server, await asyncio.open_connection(*server.sockets[0].getsockname()[:2], **of_client)


def test_they_are_asyncios_to_isinstance_and_repr(loop):
    seen = []

    async def handle(reader, writer):
        seen.extend([reader, writer, writer._protocol])
        writer.close()

    async def main():
        server, (_, writer) = await served(loop, handle)
        await helpers.until(lambda: seen)
        writer.close()
        server.close()

    loop.run_until_complete(main())
    reader, writer, protocol = seen
    assert isinstance(reader, asyncio.StreamReader)
    assert isinstance(writer, asyncio.StreamWriter)
    assert isinstance(protocol, asyncio.StreamReaderProtocol)
    assert type(reader) is _streams.StreamReader
    assert type(writer) is _streams.StreamWriter
    assert type(protocol) is _streams.StreamReaderProtocol
    assert repr(reader).startswith("<StreamReader ")
    assert repr(writer).startswith("<StreamWriter ")


def test_what_is_read_whole_is_not_copied(loop):
    async def check():
        reader = _streams.StreamReader(loop=loop)
        pieces = [b"x" * 5000, b"one line\n", b"ends;", b"exactly"]
        read = [lambda: reader.read(5000), reader.readline, lambda: reader.readuntil(b";")]
        read.append(lambda: reader.readexactly(7))
        for piece, act in zip(pieces, read, strict=True):
            reader.feed_data(piece)
            assert await act() is piece
            assert reader._buffer == b""

    loop.run_until_complete(check())


@pytest.mark.skipif(helpers.FREE_THREADED, reason="changing a class would stop all threads")
@pytest.mark.parametrize("over_tls", [False, True])
def test_a_client_that_receives_much_copies_nothing(loop, tls, over_tls):
    """Its reader becomes one of those here, also while a read() of asyncio's waits."""

    async def handle(reader, writer):
        writer.write(await reader.readline())
        await reader.readline()
        writer.write(b"y" * LARGE)
        writer.close()

    async def main():
        server, (reader, writer) = await served(loop, handle, tls if over_tls else None)
        writer.write(b"hello\n")
        assert await reader.readline() == b"hello\n"
        assert type(reader) is asyncio.StreamReader
        reading = asyncio.ensure_future(reader.read(LARGE))
        await asyncio.sleep(0)
        writer.write(b"more\n")
        received = await reading
        while len(received) < LARGE:
            received += await reader.read(LARGE)
        assert received == b"y" * LARGE
        assert type(reader) is _streams.StreamReader
        assert type(writer._protocol) is _streams.StreamReaderProtocol
        assert await reader.read() == b""
        assert reader._buffer == vars(reader)["_hotloop_buffer"] == b""
        writer.close()
        await writer.wait_closed()
        server.close()

    loop.run_until_complete(main())


def test_a_childs_output(loop):
    command = [sys.executable, "-c", f"import os; os.write(2, b'e'); print('x' * {LARGE})"]

    async def main():
        process = await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=-1)
        output, errors = await process.communicate()
        assert output == b"x" * LARGE + b"\n"
        assert errors == b"e"
        process = await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=-1)
        line = b""
        while not line.endswith(b"\n"):
            line += await process.stdout.read(1 << 17)
        assert line == output
        await process.wait()

    loop.run_until_complete(main())


def test_patched_classes_are_used(loop):
    """Patches of asyncio's classes apply to the connections that come after them."""
    read = asyncio.StreamReader.read
    calls = []

    async def patched(self, n=-1):
        calls.append(n)
        return await read(self, n)

    async def handle(reader, writer):
        writer.write(await reader.read(100))
        writer.close()

    async def exchange():
        server, (reader, writer) = await served(loop, handle)
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        writer.close()
        server.close()

    for expected in ([], [100], []):
        with (
            mock.patch.object(asyncio.StreamReader, "read", patched) if expected else contextlib.nullcontext()
        ):
            loop.run_until_complete(exchange())
        assert calls == expected
        calls.clear()


def test_a_server_started_before_a_patch(loop):
    calls = []

    async def drain(self):
        calls.append(self)

    async def handle(reader, writer):
        await writer.drain()
        writer.close()

    async def main():
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        with mock.patch.object(asyncio.StreamWriter, "drain", drain):
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            assert await reader.read() == b""
            writer.close()
        server.close()

    loop.run_until_complete(main())
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["StreamReader", "StreamReaderProtocol", "StreamWriter"])
def test_replaced_classes_are_used(loop, name):
    class Replaced(getattr(asyncio, name)):
        pass

    async def handle(reader, writer):
        seen.extend([type(reader), type(writer), type(writer._protocol)])
        writer.close()

    async def main():
        server, (_, writer) = await served(loop, handle)
        await helpers.until(lambda: seen)
        writer.close()
        server.close()

    seen = []
    with mock.patch.object(asyncio.streams, name, Replaced):
        loop.run_until_complete(main())
    assert Replaced in seen


def test_a_method_of_one_reader_is_patched(loop):
    async def handle(reader, writer):
        with mock.patch.object(reader, "feed_data") as fed:
            await asyncio.sleep(0.05)
            fed.assert_called_once_with(b"x")
        done.set_result(None)
        writer.close()

    async def main():
        server, (_, writer) = await served(loop, handle)
        writer.write(b"x")
        await done
        writer.close()
        server.close()

    done = loop.create_future()
    loop.run_until_complete(main())


def test_other_factories_are_left_alone(loop):
    """One that has the code of asyncio's, but another loop; and those of programs."""
    other = asyncio.new_event_loop()
    made = [asyncio.streams.start_server]

    def factory():
        return asyncio.Protocol()

    assert _streams.of_streams(loop, factory) is factory
    assert _streams.of_streams(loop, asyncio.Protocol) is asyncio.Protocol
    code = next(
        code
        for code in made[0].__code__.co_consts
        if isinstance(code, types.CodeType) and code.co_name == "factory"
    )
    values = {"client_connected_cb": None, "limit": 5, "loop": other}
    for event_loop, is_left in ((loop, True), (other, False)):
        cells = tuple(types.CellType(values[name]) for name in code.co_freevars)
        original = types.FunctionType(code, vars(asyncio.streams), "factory", None, cells)
        fake = types.SimpleNamespace(_type_version=loop._type_version) if event_loop is other else loop
        if not is_left:
            cells[code.co_freevars.index("loop")].cell_contents = fake
        assert (_streams.of_streams(fake if not is_left else loop, original) is original) == is_left
    other.close()


def test_a_limit_that_is_none(loop):
    """asyncio makes the reader for each connection, and says in debug mode why it could not."""
    loop.set_debug(True)
    reported = []
    loop.set_exception_handler(lambda loop, context: reported.append(context["exception"]))

    async def main():
        server, (reader, writer) = await served(loop, lambda reader, writer: None, limit=0)
        assert await reader.read() == b""
        writer.close()
        server.close()

    loop.run_until_complete(main())
    assert [str(error) for error in reported] == ["Limit cannot be <= 0"]


@pytest.mark.parametrize("close", ["write_eof", "reset"])
def test_a_writer_whose_peer_is_gone(loop, close):
    """drain() says so, as asyncio's does."""
    ended = []

    async def handle(reader, writer):
        try:
            for _ in itertools.count():
                writer.write(b"x" * 1000)
                await writer.drain()
        except ConnectionError as error:
            ended.append(type(error))
        writer.close()

    async def main():
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        with socket.create_connection(server.sockets[0].getsockname()) as sock:
            sock.setblocking(False)
            assert await loop.sock_recv(sock, 1) == b"x"
            if close == "reset":
                helpers.reset(sock)
        await helpers.until(lambda: ended)
        server.close()

    loop.run_until_complete(main())
    assert len(ended) == 1
