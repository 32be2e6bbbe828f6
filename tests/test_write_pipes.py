"""connect_write_pipe: writing, flow control, a reader that goes, and how it ends."""

import asyncio
import contextvars
import fcntl
import os
import signal
import threading
import time

import helpers
import pytest
from helpers import Recorder, fail

TOO_MUCH = bytes(range(256)) * 8192  # more than any pipe or socket here holds
WARNING = "pipe closed by peer or os.write(pipe, data) raised exception."
variable = contextvars.ContextVar("variable", default=None)


# Writing


async def test_the_life_of_a_pipe(write_pipe, pipe):
    reader, writer = pipe
    protocol = await write_pipe(Recorder(), writer)
    assert protocol.calls == ["connection_made"]
    protocol.transport.write(b"hello")
    assert await helpers.read_from_pipe(reader, 5) == b"hello"
    protocol.transport.close()
    assert protocol.calls == ["connection_made"]  # connection_lost comes later
    assert await protocol.lost() is None
    assert protocol.calls == ["connection_made", "connection_lost"]
    assert await helpers.read_from_pipe(reader) == b""
    assert writer.closed


async def test_a_transport_is_one_of_asyncios(write_pipe, pipe):
    writer = pipe[1]
    protocol = await write_pipe(Recorder(), writer)
    transport = protocol.transport
    assert isinstance(transport, asyncio.WriteTransport)
    assert transport.get_extra_info("pipe") is writer
    assert transport.get_extra_info("nonsense", 42) == 42
    assert transport.get_protocol() is protocol
    assert transport.can_write_eof() is True
    assert not transport.is_closing()
    assert not os.get_blocking(writer.fileno())


async def test_the_representation_tells_the_state(write_pipe, pipe):
    number = pipe[1].fileno()
    protocol = await write_pipe(Recorder(), pipe[1])
    await helpers.close_and_check_repr(protocol, number)


@pytest.mark.hotloop_only
@pytest.mark.skipif(not hasattr(fcntl, "F_GETPIPE_SZ"), reason="only Linux tells the size of a pipe")
@pytest.mark.parametrize(
    ("times", "size", "rest", "expected"),
    [
        (2, 1 << 16, 1 << 16, 1 << 16),
        (12, 1 << 16, 1 << 12, 1 << 16),
        (12, 1 << 16, 1 << 16, 1 << 18),
        (12, 1 << 19, 1 << 16, 1 << 19),
    ],
)
async def test_a_pipe_that_often_takes_much_at_once_is_made_larger(write_pipe, times, size, rest, expected):
    """Not after a few times, not for a reader that leaves little room, and never smaller."""
    reader, writer = helpers.os_pipe()
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, size)
    protocol = await write_pipe(Recorder(), writer)
    with reader:
        for number in range(times):
            data = bytes([number]) * (size + rest)
            protocol.transport.write(data)
            assert await helpers.read_from_pipe(reader, len(data)) == data
        assert fcntl.fcntl(reader, fcntl.F_GETPIPE_SZ) == expected
        protocol.transport.write(b"x" * expected)
        assert await helpers.read_from_pipe(reader, expected) == b"x" * expected


async def test_writes_arrive_in_their_order(write_pipe, pipe):
    reader, writer = pipe
    protocol = await write_pipe(Recorder(), writer)
    chunks = [b"%d" % number * (number % 50) for number in range(500)]
    for number, chunk in enumerate(chunks):
        if number % 7:
            protocol.transport.write(chunk)
        else:
            protocol.transport.writelines([chunk[:3], chunk[3:]])
    expected = b"".join(chunks)
    assert await helpers.read_from_pipe(reader, len(expected)) == expected


async def test_a_lot_of_data(loop, read_pipe, write_pipe, pipe):
    """Both ends on one loop, with flow control as a program has it."""
    room = asyncio.Event()
    room.set()
    receiver = await read_pipe(Recorder(), pipe[0])
    sender = await write_pipe(
        Recorder(pause_writing=lambda protocol: room.clear(), resume_writing=lambda protocol: room.set()),
        pipe[1],
    )
    data = os.urandom(6 << 20)
    for start in range(0, len(data), 100_000):
        await room.wait()
        sender.transport.write(data[start : start + 100_000])
        assert sender.transport.get_write_buffer_size() <= 65536 + 100_000
    sender.transport.close()
    assert await sender.lost() is None
    assert await receiver.lost() is None
    assert receiver.data == data
    assert "pause_writing" in sender.calls
    assert sender.calls.count("pause_writing") == sender.calls.count("resume_writing")


async def test_any_sort_of_bytes_can_be_written(write_pipe, pipe):
    class Bytes(bytes):
        pass

    reader, writer = pipe
    protocol = await write_pipe(Recorder(), writer)
    for data in (b"bytes", bytearray(b"bytearray"), memoryview(b"memoryview")[3:], Bytes(b"mine")):
        protocol.transport.write(data)
        assert await helpers.read_from_pipe(reader, len(data)) == bytes(data)


async def test_a_buffer_may_be_changed_as_soon_as_write_returns(write_pipe, pipe):
    reader, writer = pipe
    protocol = await write_pipe(Recorder(), writer)
    data = bytearray(TOO_MUCH)
    protocol.transport.write(data)
    protocol.transport.write(memoryview(data)[1:4])
    protocol.transport.write(data)
    data[:] = bytes(len(data))
    data.clear()
    expected = TOO_MUCH + TOO_MUCH[1:4] + TOO_MUCH
    assert await helpers.read_from_pipe(reader, len(expected)) == expected


@pytest.mark.parametrize("bad", ["text", 42, None, [b"list"]])
async def test_what_is_not_bytes_is_refused(write_pipe, pipe, bad):
    """asyncio asserts; a TypeError, as other transports have, is as good."""
    reader, writer = pipe
    protocol = await write_pipe(Recorder(), writer)
    with pytest.raises((AssertionError, TypeError)):
        protocol.transport.write(bad)
    with pytest.raises(TypeError):
        protocol.transport.writelines(["text"])
    with pytest.raises(TypeError):
        protocol.transport.write()
    protocol.transport.write(b"fine")
    assert await helpers.read_from_pipe(reader, 4) == b"fine"


async def test_writing_nothing(write_pipe, pipe):
    reader, writer = pipe
    protocol = await write_pipe(Recorder(), writer)
    for data in (b"", bytearray(), memoryview(b"")):
        protocol.transport.write(data)
    protocol.transport.writelines([])
    assert protocol.transport.get_write_buffer_size() == 0
    protocol.transport.write(b"x")
    assert await helpers.read_from_pipe(reader, 1) == b"x"


# Flow control


async def test_a_slow_reader_pauses_the_writer_once(write_pipe, pipe):
    reader, writer = pipe
    sizes = []

    def note(protocol):
        sizes.append(protocol.transport.get_write_buffer_size())

    protocol = await write_pipe(Recorder(pause_writing=note, resume_writing=note), writer)
    protocol.transport.set_write_buffer_limits(high=200_000, low=100_000)
    protocol.transport.write(TOO_MUCH)
    assert protocol.calls == ["connection_made", "pause_writing"]
    size = protocol.transport.get_write_buffer_size()
    assert 200_000 < size <= len(TOO_MUCH)
    protocol.transport.write(b"more")
    assert protocol.transport.get_write_buffer_size() == size + 4
    assert f"bufsize={size + 4}" in repr(protocol.transport) or "open" in repr(protocol.transport)
    async with helpers.idle(0.05):
        pass
    assert await helpers.read_from_pipe(reader, len(TOO_MUCH) + 4) == TOO_MUCH + b"more"
    await protocol.until("resume_writing")
    assert sizes[1] <= 100_000
    assert protocol.calls == ["connection_made", "pause_writing", "resume_writing"]
    assert protocol.transport.get_write_buffer_size() == 0
    async with helpers.idle(0.05):
        pass


async def test_the_limits(write_pipe, pipe):
    protocol = await write_pipe(Recorder(), pipe[1])
    transport = protocol.transport
    assert transport.get_write_buffer_limits() == (16384, 65536)
    transport.set_write_buffer_limits(high=1000)
    assert transport.get_write_buffer_limits() == (250, 1000)
    transport.set_write_buffer_limits(low=1000)
    assert transport.get_write_buffer_limits() == (1000, 4000)
    with pytest.raises(ValueError, match="must be >= low"):
        transport.set_write_buffer_limits(high=1, low=2)


async def test_what_the_pipe_takes_at_once_pauses_nobody(write_pipe, pipe):
    reader, writer = pipe
    protocol = await write_pipe(Recorder(), writer)
    protocol.transport.set_write_buffer_limits(high=0)
    for _ in range(10):
        protocol.transport.write(bytes(100))
    assert len(await helpers.read_from_pipe(reader, 1000)) == 1000
    assert protocol.calls == ["connection_made"]


async def test_writing_in_resume_writing(write_pipe, pipe):
    def write(protocol):
        if protocol.calls.count("resume_writing") < 3:
            protocol.transport.write(TOO_MUCH)

    reader, writer = pipe
    protocol = await write_pipe(Recorder(resume_writing=write), writer)
    protocol.transport.write(TOO_MUCH)
    assert await helpers.read_from_pipe(reader, 3 * len(TOO_MUCH)) == 3 * TOO_MUCH
    await protocol.until(lambda protocol: protocol.calls.count("resume_writing") == 3)
    assert protocol.calls == ["connection_made"] + ["pause_writing", "resume_writing"] * 3


# Ending


@pytest.mark.parametrize("action", ["close", "write_eof"])
async def test_what_has_to_wait_is_written_before_the_end(write_pipe, pipe, action):
    reader, writer = pipe
    protocol = await write_pipe(Recorder(), writer)
    protocol.transport.write(TOO_MUCH)
    getattr(protocol.transport, action)()
    assert protocol.transport.is_closing()
    getattr(protocol.transport, action)()
    protocol.transport.close()
    await helpers.iterations(3)
    assert protocol.calls == ["connection_made", "pause_writing"]
    assert await helpers.read_from_pipe(reader) == TOO_MUCH
    assert await protocol.lost() is None
    await helpers.iterations(2)
    assert protocol.calls == ["connection_made", "pause_writing", "resume_writing", "connection_lost"]
    assert writer.closed


async def test_abort_drops_what_has_to_wait(write_pipe, pipe):
    reader, writer = pipe
    protocol = await write_pipe(Recorder(), writer)
    protocol.transport.write(TOO_MUCH)
    protocol.transport.abort()
    assert protocol.transport.is_closing()
    assert protocol.transport.get_write_buffer_size() == 0
    assert await protocol.lost() is None
    got = await helpers.read_from_pipe(reader)
    assert TOO_MUCH.startswith(got)
    assert len(got) < len(TOO_MUCH)
    assert protocol.calls == ["connection_made", "pause_writing", "connection_lost"]
    assert writer.closed


async def test_abort_after_close_that_still_writes(write_pipe, pipe):
    protocol = await write_pipe(Recorder(), pipe[1])
    protocol.transport.write(TOO_MUCH)
    protocol.transport.close()
    await helpers.iterations(3)
    protocol.transport.abort()
    assert await protocol.lost() is None
    await helpers.iterations(2)
    assert protocol.calls == ["connection_made", "pause_writing", "connection_lost"]


@pytest.mark.asyncio_bug("connection_lost is called for each")
async def test_ending_again_and_again(write_pipe, pipe):
    protocol = await write_pipe(Recorder(), pipe[1])
    for _ in range(2):
        protocol.transport.close()
        protocol.transport.write_eof()
        protocol.transport.abort()
    assert await protocol.lost() is None
    await helpers.iterations(2)
    protocol.transport.abort()
    protocol.transport.close()
    protocol.transport.write_eof()
    await helpers.iterations(2)
    assert protocol.calls == ["connection_made", "connection_lost"]


async def test_what_is_written_after_close_is_dropped_and_warned_of(write_pipe, pipe, logged):
    reader, writer = pipe
    protocol = await write_pipe(Recorder(), writer)
    protocol.transport.write(b"in time")
    protocol.transport.close()
    for _ in range(5):
        protocol.transport.write(b"too late")
    protocol.transport.write(b"")
    assert logged() == []
    protocol.transport.write(b"too late")
    assert logged() == [WARNING]
    assert await protocol.lost() is None
    protocol.transport.write(b"too late")
    assert logged() == [WARNING] * 2
    assert await helpers.read_from_pipe(reader) == b"in time"


# The reader goes


async def test_the_writer_notices_that_the_reader_closed(write_pipe, pipe):
    reader, writer = pipe
    protocol = await write_pipe(Recorder(), writer)
    reader.close()
    assert await protocol.lost() is None
    await helpers.iterations(1)
    assert protocol.calls == ["connection_made", "connection_lost"]
    assert writer.closed


async def test_a_reader_that_goes_while_something_waits(write_pipe, pipe):
    reader, writer = pipe
    protocol = await write_pipe(Recorder(), writer)
    protocol.transport.write(TOO_MUCH)
    reader.close()
    assert isinstance(await protocol.lost(), (BrokenPipeError, ConnectionResetError))
    assert protocol.transport.get_write_buffer_size() == 0
    await helpers.iterations(2)
    assert protocol.calls == ["connection_made", "pause_writing", "connection_lost"]


async def test_writing_to_a_reader_that_has_gone(write_pipe, pipe, logged):
    """It is an OSError, which is not reported."""
    reader, writer = pipe
    protocol = await write_pipe(Recorder(), writer)
    reader.close()
    protocol.transport.write(b"hello")
    assert protocol.transport.is_closing()
    for _ in range(4):
        protocol.transport.write(b"hello")
    assert logged() == []
    protocol.transport.write(b"hello")
    assert logged() == [WARNING]
    assert isinstance(await protocol.lost(), BrokenPipeError)
    await helpers.iterations(2)
    assert protocol.calls == ["connection_made", "connection_lost"]


async def test_a_handler_of_sigpipe_is_called(loop, write_pipe):
    reader, writer = helpers.os_pipe()
    protocol = await write_pipe(Recorder(), writer)
    called = loop.create_future()
    before = signal.getsignal(signal.SIGPIPE)
    loop.add_signal_handler(signal.SIGPIPE, called.set_result, None)
    try:
        reader.close()
        protocol.transport.write(b"x")
        assert isinstance(await protocol.lost(), BrokenPipeError)
        await called
    finally:
        loop.remove_signal_handler(signal.SIGPIPE)
        signal.signal(signal.SIGPIPE, before)


async def test_a_reader_that_goes_while_a_closed_pipe_drains(write_pipe, pipe):
    reader, writer = pipe
    protocol = await write_pipe(Recorder(), writer)
    protocol.transport.write(TOO_MUCH)
    protocol.transport.close()
    await helpers.iterations(2)
    reader.close()
    assert isinstance(await protocol.lost(), (BrokenPipeError, ConnectionResetError))
    await helpers.iterations(2)
    assert protocol.calls.count("connection_lost") == 1


async def test_a_reader_that_leaves_something_unread(write_pipe):
    """A pipe with data in it does not look closed to its writer."""
    reader, writer = helpers.os_pipe()
    protocol = await write_pipe(Recorder(), writer)
    protocol.transport.write(b"unread")
    async with helpers.idle(0.05):
        pass
    assert protocol.calls == ["connection_made"]
    assert await helpers.read_from_pipe(reader, 6) == b"unread"
    reader.close()
    assert await protocol.lost() is None


# Callbacks


@pytest.mark.parametrize("name", ["connection_made", "pause_writing", "resume_writing"])
async def test_a_callback_that_fails_is_reported_and_the_pipe_stays(write_pipe, pipe, reports, name):
    reader, writer = pipe
    protocol = await write_pipe(Recorder(**{name: fail}), writer)
    protocol.transport.write(TOO_MUCH)
    assert await helpers.read_from_pipe(reader, len(TOO_MUCH)) == TOO_MUCH
    await protocol.until("resume_writing")
    await helpers.iterations(1)
    assert str(reports.take()["exception"]) == "broken"
    protocol.transport.write(b"more")
    assert await helpers.read_from_pipe(reader, 4) == b"more"


async def test_connection_lost_that_fails_is_reported_and_the_pipe_closed(write_pipe, pipe, reports):
    protocol = await write_pipe(Recorder(connection_lost=fail), pipe[1])
    protocol.transport.close()
    await protocol.lost()
    await helpers.iterations(2)
    assert str(reports.take()["exception"]) == "broken"
    assert pipe[1].closed


@pytest.mark.parametrize(
    "name",
    [
        "connection_made",
        "pause_writing",
        pytest.param("resume_writing", marks=pytest.mark.asyncio_bug("connection_lost is called twice")),
    ],
)
async def test_a_callback_that_closes_its_pipe(write_pipe, pipe, name):
    reader, writer = pipe
    protocol = await write_pipe(Recorder(**{name: lambda protocol, *_: protocol.transport.close()}), writer)
    protocol.transport.write(TOO_MUCH)
    got = await helpers.read_from_pipe(reader)
    assert got == (b"" if name == "connection_made" else TOO_MUCH)
    assert await protocol.lost() is None
    await helpers.iterations(2)
    assert protocol.calls.count("connection_lost") == 1
    assert protocol.calls[-1] == "connection_lost"


async def test_changing_the_protocol(write_pipe, pipe):
    reader, writer = pipe
    first, second = Recorder(), Recorder()
    await write_pipe(first, writer)
    first.transport.write(TOO_MUCH)
    first.transport.set_protocol(second)
    assert first.transport.get_protocol() is second
    assert await helpers.read_from_pipe(reader, len(TOO_MUCH)) == TOO_MUCH
    await second.until("resume_writing")
    reader.close()
    assert await second.lost() is None
    assert first.calls == ["connection_made", "pause_writing"]
    assert second.calls == ["resume_writing", "connection_lost"]


async def test_a_pipe_in_debug_mode(loop, write_pipe, pipe):
    """Nothing but logging changes."""
    loop.set_debug(True)
    reader, writer = pipe
    protocol = await write_pipe(Recorder(), writer)
    protocol.transport.write(TOO_MUCH)
    assert await helpers.read_from_pipe(reader, len(TOO_MUCH)) == TOO_MUCH
    reader.close()
    assert await protocol.lost() is None


async def test_in_which_context_a_protocol_is_called(loop, pipe):
    """What a full pipe makes wait is resumed in the context of the write that found it full."""
    reader, writer = pipe
    seen = []

    def note(protocol, *args):
        seen.append((protocol.calls[-1], variable.get()))

    async def connect():
        variable.set("creator")
        names = ("connection_made", "pause_writing", "resume_writing", "connection_lost")
        return await loop.connect_write_pipe(lambda: Recorder(**dict.fromkeys(names, note)), writer)

    transport, protocol = await loop.create_task(connect())
    context = contextvars.copy_context()
    context.run(variable.set, "writer")
    context.run(transport.write, TOO_MUCH)
    assert await helpers.read_from_pipe(reader, len(TOO_MUCH)) == TOO_MUCH
    await protocol.until("resume_writing")
    reader.close()
    await protocol.lost()
    assert seen == [
        ("connection_made", "creator"),
        ("pause_writing", "writer"),
        ("resume_writing", "writer"),
        ("connection_lost", "creator"),
    ]


async def test_a_pipe_that_somebody_made_block_lets_other_threads_run(loop, write_pipe, pipe):
    # One of them is the reader: the write ends when it has read.
    reader, writer = pipe
    protocol = await write_pipe(Recorder(), writer)
    os.set_blocking(writer.fileno(), True)
    os.set_blocking(reader.fileno(), True)
    writing = threading.Event()

    def read():
        writing.wait()
        time.sleep(0.1)
        received = bytearray()
        while len(received) < 2 * len(TOO_MUCH):
            received += reader.read(1 << 16)
        return bytes(received)

    reading = loop.run_in_executor(None, read)
    writing.set()
    protocol.transport.write(TOO_MUCH)
    protocol.transport.write(TOO_MUCH)
    assert await asyncio.wait_for(reading, 10) == 2 * TOO_MUCH
    assert protocol.transport.get_write_buffer_size() == 0
    protocol.transport.close()
    await protocol.lost()
