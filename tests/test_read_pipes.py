"""connect_read_pipe: what can be read, what a protocol sees of it, and how it ends."""

import asyncio
import contextvars
import errno
import fcntl
import os

import helpers
import pytest
from helpers import Recorder, fail

variable = contextvars.ContextVar("variable", default=None)


async def test_the_life_of_a_pipe(read_pipe, pipe):
    reader, writer = pipe
    protocol = await read_pipe(Recorder(), reader)
    assert protocol.calls == ["connection_made"]
    writer.write(b"hello")
    assert await protocol.received(5) == b"hello"
    writer.close()
    assert await protocol.lost() is None
    assert protocol.calls == ["connection_made", "data_received", "eof_received", "connection_lost"]
    await helpers.iterations(1)
    assert reader.closed


async def test_a_transport_is_one_of_asyncios(read_pipe, pipe):
    protocol = await read_pipe(Recorder(), pipe[0])
    transport = protocol.transport
    assert isinstance(transport, asyncio.ReadTransport)
    assert not isinstance(transport, asyncio.WriteTransport)
    assert transport.get_extra_info("pipe") is pipe[0]
    assert transport.get_extra_info("socket") is None
    assert transport.get_extra_info("nonsense", 42) == 42
    assert transport.get_protocol() is protocol
    assert transport.is_reading()
    assert not transport.is_closing()
    assert not os.get_blocking(pipe[0].fileno())


async def test_the_representation_tells_the_state(read_pipe, pipe):
    number = pipe[0].fileno()
    protocol = await read_pipe(Recorder(), pipe[0])
    await helpers.close_and_check_repr(protocol, number)


async def test_a_lot_of_data(loop, read_pipe, pipe):
    reader, writer = pipe
    protocol = await read_pipe(Recorder(), reader)
    data = os.urandom(4 << 20)
    writing = loop.create_task(helpers.write_to_pipe(writer, data))
    assert await protocol.received(len(data)) == data
    await writing
    assert protocol.calls.count("data_received") > 4


async def test_data_received_gets_bytes(read_pipe, pipe):
    reader, writer = pipe
    seen = []
    protocol = await read_pipe(Recorder(data_received=lambda protocol, data: seen.append(type(data))), reader)
    writer.write(b"x")
    await protocol.received(1)
    writer.write(bytes(5000))
    await protocol.received(5001)
    assert set(seen) == {bytes}


async def test_connection_made_comes_before_data_that_was_there_first(read_pipe, pipe):
    reader, writer = pipe
    writer.write(b"early")
    writer.close()
    protocol = await read_pipe(Recorder(), reader)
    assert await protocol.lost() is None
    assert protocol.data == b"early"
    assert protocol.calls == ["connection_made", "data_received", "eof_received", "connection_lost"]


async def test_data_that_came_before_the_end_is_received(loop, read_pipe, pipe):
    reader, writer = pipe
    protocol = await read_pipe(Recorder(), reader)
    data = os.urandom(1 << 20)
    await helpers.write_to_pipe(writer, data)
    writer.close()
    assert await protocol.lost() is None
    assert protocol.data == data


async def test_a_fifo_waits_for_its_first_writer(read_pipe, tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    protocol = await read_pipe(Recorder(), os.fdopen(reader, "rb", 0))
    async with helpers.idle(0.05):
        pass
    assert protocol.calls == ["connection_made"]
    path.write_bytes(b"hello")
    assert await protocol.lost() is None
    assert protocol.data == b"hello"


@pytest.mark.parametrize("answer", [None, True])
async def test_eof_received_cannot_keep_a_pipe_open(read_pipe, pipe, answer):
    reader, writer = pipe
    protocol = await read_pipe(Recorder(eof_received=lambda protocol: answer), reader)
    writer.close()
    assert await protocol.lost() is None
    assert protocol.calls == ["connection_made", "eof_received", "connection_lost"]


async def test_a_reset_is_reported_and_the_exception_of_connection_lost(read_pipe, reports):
    """For a pipe asyncio reports every error but that of a terminal."""
    ours, peer = helpers.tcp_pair()
    protocol = await read_pipe(Recorder(), ours)
    helpers.reset(peer)
    error = await protocol.lost()
    assert isinstance(error, ConnectionResetError)
    report = reports.take()
    assert report["message"] == "Fatal read error on pipe transport"
    assert report["exception"] is error
    assert report["transport"] is protocol.transport
    assert report["protocol"] is protocol
    assert protocol.calls == ["connection_made", "connection_lost"]


# Pausing


async def test_nothing_is_received_while_reading_is_paused(read_pipe, pipe):
    reader, writer = pipe
    protocol = await read_pipe(Recorder(), reader)
    transport = protocol.transport
    transport.pause_reading()
    transport.pause_reading()
    assert not transport.is_reading()
    writer.write(b"hello")
    writer.close()
    async with helpers.idle(0.05):
        pass
    assert protocol.calls == ["connection_made"]
    transport.resume_reading()
    transport.resume_reading()
    assert transport.is_reading()
    assert await protocol.lost() is None
    assert protocol.data == b"hello"


async def test_reading_paused_in_connection_made(read_pipe, pipe):
    reader, writer = pipe
    writer.write(b"hello")
    protocol = Recorder(connection_made=lambda protocol, transport: transport.pause_reading())
    await read_pipe(protocol, reader)
    await helpers.iterations(5)
    assert protocol.data == b""
    protocol.transport.resume_reading()
    assert await protocol.received(5) == b"hello"


async def test_reading_paused_in_data_received(loop, read_pipe, pipe):
    reader, writer = pipe
    protocol = await read_pipe(
        Recorder(data_received=lambda protocol, data: protocol.transport.pause_reading()), reader
    )
    data = os.urandom(1 << 20)
    writing = loop.create_task(helpers.write_to_pipe(writer, data))
    while len(protocol.data) < len(data):
        count = protocol.calls.count("data_received")
        await protocol.until(lambda protocol, count=count: protocol.calls.count("data_received") > count)
        await helpers.iterations(3)
        assert protocol.calls.count("data_received") == count + 1
        protocol.transport.resume_reading()
    await writing
    assert protocol.data == data


@pytest.mark.parametrize("action", ["pause_reading", "close"])
async def test_what_comes_after_data_received_has_paused_or_closed_the_pipe(read_pipe, pipe, action):
    reader, writer = pipe

    def receive(protocol, data):
        getattr(protocol.transport, action)()
        writer.write(b"second")

    protocol = await read_pipe(Recorder(data_received=receive), reader)
    writer.write(b"first")
    await protocol.received(5)
    await helpers.iterations(3)
    assert protocol.data == b"first"
    protocol.hooks.clear()
    if action == "pause_reading":
        protocol.transport.resume_reading()
        assert await protocol.received(11) == b"firstsecond"
    else:
        assert await protocol.lost() is None


async def test_pausing_a_closed_pipe_does_nothing(read_pipe, pipe):
    protocol = await read_pipe(Recorder(), pipe[0])
    protocol.transport.close()
    protocol.transport.pause_reading()
    protocol.transport.resume_reading()
    assert not protocol.transport.is_reading()
    assert await protocol.lost() is None
    await helpers.iterations(1)
    protocol.transport.pause_reading()
    protocol.transport.resume_reading()


async def test_a_pipe_that_talks_to_itself_leaves_room_for_others(read_pipe, pipe):
    """Each piece that it receives is followed by the next, without end."""
    reader, writer = pipe
    protocol = await read_pipe(Recorder(data_received=lambda protocol, data: writer.write(data)), reader)
    writer.write(b"x")
    await asyncio.sleep(0.005)
    await helpers.iterations(10)
    assert len(protocol.data) > 10
    protocol.transport.close()
    assert await protocol.lost() is None


# Ending


async def test_close(read_pipe, pipe):
    reader, writer = pipe
    writer.write(b"late")
    protocol = await read_pipe(
        Recorder(connection_made=lambda protocol, transport: transport.close()), reader
    )
    transport = protocol.transport
    assert transport.is_closing()
    assert not transport.is_reading()
    transport.close()
    assert await protocol.lost() is None
    await helpers.iterations(2)
    transport.close()
    assert protocol.calls == ["connection_made", "connection_lost"]
    with pytest.raises(OSError, match="Broken pipe"):
        writer.write(b"x")


@pytest.mark.parametrize("name", ["data_received", "eof_received"])
async def test_a_callback_that_closes_its_pipe(read_pipe, pipe, name):
    reader, writer = pipe
    protocol = await read_pipe(Recorder(**{name: lambda protocol, *args: protocol.transport.close()}), reader)
    if name == "data_received":
        writer.write(b"x")
    else:
        writer.close()
    assert await protocol.lost() is None
    await helpers.iterations(2)
    assert protocol.calls == ["connection_made", name, "connection_lost"]


async def test_changing_the_protocol(read_pipe, pipe):
    reader, writer = pipe
    second = Recorder()
    first = await read_pipe(
        Recorder(data_received=lambda protocol, data: protocol.transport.set_protocol(second)), reader
    )
    writer.write(b"first")
    await first.received(5)
    assert first.transport.get_protocol() is second
    writer.write(b"second")
    assert await second.received(6) == b"second"
    writer.close()
    assert await second.lost() is None
    assert first.calls == ["connection_made", "data_received"]
    assert second.calls == ["data_received", "eof_received", "connection_lost"]


# Callbacks that fail


@pytest.mark.parametrize("name", ["connection_made", "data_received"])
async def test_a_callback_that_fails_is_reported_and_the_pipe_stays(read_pipe, pipe, reports, name):
    reader, writer = pipe
    protocol = await read_pipe(Recorder(**{name: fail}), reader)
    writer.write(b"one")
    await protocol.received(3)
    await helpers.iterations(1)
    assert str(reports.take()["exception"]) == "broken"
    protocol.hooks.clear()
    writer.write(b"two")
    assert await protocol.received(6) == b"onetwo"
    assert not protocol.transport.is_closing()


async def test_an_os_error_in_data_received_is_no_error_of_the_pipe(read_pipe, pipe, reports):
    def fail(*args):
        raise OSError(errno.EIO, "mine")

    protocol = await read_pipe(Recorder(data_received=fail), pipe[0])
    pipe[1].write(b"x")
    await protocol.received(1)
    await helpers.iterations(1)
    assert "mine" in str(reports.take()["exception"])
    assert not protocol.transport.is_closing()


@pytest.mark.parametrize("name", ["eof_received", "connection_lost"])
async def test_a_callback_that_fails_at_the_end_is_reported_and_the_pipe_closed(
    read_pipe, pipe, reports, name
):
    reader, writer = pipe
    number = reader.fileno()
    protocol = await read_pipe(Recorder(**{name: fail}), reader)
    writer.close()
    assert await protocol.lost() is None
    await helpers.iterations(2)
    assert str(reports.take()["exception"]) == "broken"
    assert protocol.calls == ["connection_made", "eof_received", "connection_lost"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


@pytest.mark.parametrize("error", [helpers.Leave, helpers.Interrupt])
def test_a_callback_that_leaves_the_loop(loop, pipe, error):
    reader, writer = pipe

    def leave(protocol, data):
        if data == b"leave":
            raise error

    transport, protocol = loop.run_until_complete(
        loop.connect_read_pipe(lambda: Recorder(data_received=leave), reader)
    )
    writer.write(b"leave")
    with pytest.raises(error):
        loop.run_forever()
    writer.write(b"more")
    assert loop.run_until_complete(protocol.received(9)) == b"leavemore"
    transport.close()
    assert loop.run_until_complete(protocol.lost()) is None


# Its place in the loop


async def test_the_descriptor_of_a_pipe_can_be_taken_over(loop, read_pipe, pipe):
    """Unlike a connection's: the loop does not know whose it is, and forgets about the transport."""
    reader, writer = pipe
    protocol = await read_pipe(Recorder(), reader)
    called = loop.create_future()
    loop.add_reader(reader.fileno(), lambda: called.done() or called.set_result(None))
    writer.write(b"x")
    await called
    assert protocol.data == b""
    assert loop.remove_reader(reader.fileno()) is True
    assert loop.remove_reader(reader.fileno()) is False
    protocol.transport.close()
    assert await protocol.lost() is None


async def test_in_which_context_a_protocol_is_called(loop, pipe):
    reader, writer = pipe
    seen = []

    def note(protocol, *args):
        seen.append(variable.get())

    async def connect():
        variable.set("creator")
        names = ("connection_made", "data_received", "eof_received", "connection_lost")
        return await loop.connect_read_pipe(lambda: Recorder(**dict.fromkeys(names, note)), reader)

    transport, protocol = await loop.create_task(connect())
    writer.write(b"x")
    await protocol.received(1)
    assert seen == ["creator"] * 2
    transport.pause_reading()
    context = contextvars.copy_context()
    context.run(variable.set, "resumer")
    context.run(transport.resume_reading)
    writer.write(b"x")
    await protocol.received(2)
    writer.close()
    await protocol.lost()
    assert seen == ["creator"] * 2 + ["resumer"] * 3


async def test_a_pipe_in_debug_mode(loop, read_pipe, pipe):
    """Nothing but logging changes."""
    loop.set_debug(True)
    reader, writer = pipe
    protocol = await read_pipe(Recorder(), reader)
    protocol.transport.pause_reading()
    protocol.transport.resume_reading()
    writer.write(b"hello")
    assert await protocol.received(5) == b"hello"
    writer.close()
    assert await protocol.lost() is None


@pytest.mark.hotloop_only
@pytest.mark.skipif(not hasattr(fcntl, "F_GETPIPE_SZ"), reason="only Linux tells the size of a pipe")
@pytest.mark.parametrize(
    ("times", "size", "expected"), [(2, 1 << 16, 1 << 16), (12, 1 << 16, 1 << 18), (12, 1 << 19, 1 << 19)]
)
async def test_a_pipe_that_is_often_full_is_made_larger(read_pipe, times, size, expected):
    """Not after a few times, and never smaller."""
    reader, writer = helpers.os_pipe()
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, size)
    os.set_blocking(writer.fileno(), False)
    protocol = await read_pipe(Recorder(), reader)
    sent = 0
    for _ in range(times):
        sent += os.write(writer.fileno(), bytes(1 << 16))
        await protocol.received(sent)
    assert fcntl.fcntl(reader, fcntl.F_GETPIPE_SZ) == expected
    sent += os.write(writer.fileno(), b"x" * expected)
    assert (await protocol.received(sent))[-1:] == b"x"
    writer.close()
    await protocol.lost()
