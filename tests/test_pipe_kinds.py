"""What pipe transports read and write besides pipes: terminals, devices, files; and streams and processes."""

import asyncio
import errno
import gc
import os
import socket
import tty

import helpers
import pytest
from helpers import Recorder, fail


def raw_terminal():
    """The two ends of a terminal that changes nothing of what is written."""
    ours, theirs = os.openpty()
    tty.setraw(theirs)
    return ours, theirs


# Reading


async def test_the_end_of_a_terminal_is_an_error_that_is_not_reported(read_pipe):
    ours, theirs = raw_terminal()
    protocol = await read_pipe(Recorder(), os.fdopen(ours, "rb", 0))
    os.write(theirs, b"hello")
    assert await protocol.received(5) == b"hello"
    os.close(theirs)
    error = await protocol.lost()
    assert isinstance(error, OSError)
    assert error.errno == errno.EIO
    assert protocol.calls == ["connection_made", "data_received", "connection_lost"]


async def test_reading_what_is_typed(read_pipe):
    ours, theirs = os.openpty()
    protocol = await read_pipe(Recorder(), os.fdopen(theirs, "rb", 0))
    os.write(ours, b"a line\n")
    assert await protocol.received(7) == b"a line\n"
    os.write(ours, b"\x04")  # Ctrl-D
    assert await protocol.lost() is None
    assert protocol.calls[-2:] == ["eof_received", "connection_lost"]
    os.close(ours)


async def test_one_descriptor_of_a_terminal_that_is_read_and_written(read_pipe, write_pipe):
    """As programs do that drive another through a terminal."""
    ours, theirs = raw_terminal()
    reader = await read_pipe(Recorder(), os.fdopen(ours, "rb", 0))
    writer = await write_pipe(Recorder(), os.fdopen(ours, "wb", 0, closefd=False))
    writer.transport.write(b"zero")
    assert os.read(theirs, 10) == b"zero"
    os.write(theirs, b"one")
    assert await reader.received(3) == b"one"
    reader.transport.pause_reading()
    reader.transport.resume_reading()
    os.write(theirs, b" two")
    assert await reader.received(7) == b"one two"
    os.close(theirs)
    await reader.lost()
    writer.transport.close()
    await writer.lost()


@pytest.mark.asyncio_bug("the transport that writes takes away the other's watch when it closes")
async def test_one_descriptor_of_a_terminal_that_is_not_written_any_more(read_pipe, write_pipe):
    ours, theirs = raw_terminal()
    reader = await read_pipe(Recorder(), os.fdopen(ours, "rb", 0))
    writer = await write_pipe(Recorder(), os.fdopen(ours, "wb", 0, closefd=False))
    writer.transport.close()
    await writer.lost()
    os.write(theirs, b"still")
    assert await reader.received(5) == b"still"
    os.close(theirs)
    await reader.lost()


async def test_a_device_that_cannot_be_waited_for(read_pipe, reports):
    """epoll has none of /dev/null: what would start reading fails, which is reported, and nothing is read."""
    file = os.fdopen(os.open("/dev/null", os.O_RDONLY), "rb", 0)
    protocol = await read_pipe(Recorder(), file)
    await helpers.iterations(2)
    assert isinstance(reports.take()["exception"], PermissionError)
    assert protocol.calls == ["connection_made"]
    assert not protocol.transport.is_closing()
    protocol.transport.close()
    assert await protocol.lost() is None
    await helpers.iterations(1)
    assert file.closed


# Writing


async def test_writing_to_a_terminal(write_pipe):
    ours, theirs = raw_terminal()
    protocol = await write_pipe(Recorder(), os.fdopen(theirs, "wb", 0))
    data = bytes(range(256)) * 1000
    protocol.transport.write(data)
    assert protocol.transport.get_write_buffer_size() > 0
    with os.fdopen(ours, "rb", 0) as reader:
        assert await helpers.read_from_pipe(reader, len(data)) == data
        protocol.transport.close()
        assert await protocol.lost() is None


async def test_typing(loop, read_pipe, write_pipe):
    """Both directions of one terminal, from the end that a terminal emulator has."""
    ours, theirs = os.openpty()
    reader = await read_pipe(Recorder(), os.fdopen(os.dup(ours), "rb", 0))
    writer = await write_pipe(Recorder(), os.fdopen(ours, "wb", 0))
    writer.transport.write(b"a line\n")
    assert await reader.received(8) == b"a line\r\n"  # as the terminal echoes it
    with os.fdopen(theirs, "rb", 0) as program:
        assert await helpers.read_from_pipe(program, 7) == b"a line\n"
    assert isinstance(await reader.lost(), OSError)
    assert writer.calls == ["connection_made"]  # which does not watch a terminal's other end


async def test_writing_to_dev_null(write_pipe):
    file = os.fdopen(os.open("/dev/null", os.O_WRONLY), "wb", 0)
    protocol = await write_pipe(Recorder(), file)
    protocol.transport.write(bytes(1 << 20))
    protocol.transport.write(b"more")
    await helpers.iterations(2)
    assert protocol.transport.get_write_buffer_size() == 0
    protocol.transport.close()
    assert await protocol.lost() is None
    assert protocol.calls == ["connection_made", "connection_lost"]


@pytest.mark.parametrize(
    ("device", "mode", "number"),
    [("/dev/full", os.O_WRONLY, errno.ENOSPC), ("/dev/null", os.O_RDONLY, errno.EBADF)],
    ids=["full", "not open for writing"],
)
async def test_a_device_that_takes_nothing(write_pipe, device, mode, number):
    """An OSError is not reported."""
    protocol = await write_pipe(Recorder(), os.fdopen(os.open(device, mode), "wb", 0))
    protocol.transport.write(b"x")
    error = await protocol.lost()
    assert isinstance(error, OSError)
    assert error.errno == number
    assert protocol.calls == ["connection_made", "connection_lost"]


async def test_a_socket_whose_peer_talks_is_taken_for_one_whose_peer_has_gone(write_pipe):
    """Whoever writes to a pipe expects nothing but its end."""
    ours, peer = socket.socketpair()
    protocol = await write_pipe(Recorder(), ours)
    assert protocol.transport.get_extra_info("pipe") is ours
    protocol.transport.write(b"hello")
    peer.send(b"hello yourself")
    assert await protocol.lost() is None
    await helpers.iterations(1)
    assert ours.fileno() == -1
    peer.close()


# What is refused


CONNECT = {"connect_read_pipe": "rb", "connect_write_pipe": "r+b"}


@pytest.mark.parametrize("name", CONNECT)
async def test_a_regular_file_is_refused_and_left_as_it_was(loop, tmp_path, name):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    with path.open(CONNECT[name], 0) as file:
        with pytest.raises(ValueError, match=r"Pipe transport is (only )?for pipes"):
            await getattr(loop, name)(lambda: Recorder(connection_made=fail), file)
        await helpers.iterations(2)
        gc.collect()
        assert os.get_blocking(file.fileno())
        assert file.read() == b"content"


@pytest.mark.parametrize("name", CONNECT)
async def test_a_directory_is_refused(loop, tmp_path, name):
    class Directory:
        def fileno(self):
            return number

        def close(self):
            pytest.fail("somebody else's")

    number = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(ValueError, match=r"Pipe transport is (only )?for pipes"):
        await getattr(loop, name)(Recorder, Directory())
    os.close(number)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # in asyncio's destructor
@pytest.mark.parametrize("name", CONNECT)
async def test_what_is_no_file(loop, name):
    for bad in (42, "name", None):
        with pytest.raises(AttributeError):
            await getattr(loop, name)(Recorder, bad)
    for file in helpers.os_pipe():
        file.close()
        with pytest.raises(ValueError, match="closed file"):
            await getattr(loop, name)(Recorder, file)


@pytest.mark.parametrize("name", CONNECT)
async def test_a_factory_that_fails(loop, name):
    for file in helpers.os_pipe():
        with pytest.raises(ZeroDivisionError):
            await getattr(loop, name)(lambda: 1 / 0, file)
        assert not file.closed
        assert os.get_blocking(file.fileno())
        file.close()


@pytest.mark.parametrize("name", CONNECT)
async def test_giving_up_on_a_pipe_closes_it(loop, name):
    reader, writer = helpers.os_pipe()
    file = reader if name == "connect_read_pipe" else writer
    protocol = Recorder()
    task = loop.create_task(getattr(loop, name)(lambda: protocol, file))
    await asyncio.sleep(0)
    await helpers.cancel(task)
    assert await protocol.lost() is None
    await helpers.iterations(2)
    assert protocol.calls == ["connection_made", "connection_lost"]
    assert file.closed
    reader.close()
    writer.close()


@pytest.mark.parametrize("name", CONNECT)
async def test_arguments_by_name(loop, name):
    reader, writer = helpers.os_pipe()
    pipe = reader if name == "connect_read_pipe" else writer
    transport, protocol = await getattr(loop, name)(protocol_factory=Recorder, pipe=pipe)
    transport.close()
    assert await protocol.lost() is None
    reader.close()
    writer.close()


# What programs do


async def test_a_stream_reader(loop, pipe):
    reader, writer = pipe
    stream = asyncio.StreamReader(limit=1024)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), reader)
    writing = loop.create_task(helpers.write_to_pipe(writer, b"one\ntwo\n" + bytes(1 << 20)))
    assert await stream.readline() == b"one\n"
    assert await stream.readline() == b"two\n"
    assert await stream.readexactly(1 << 20) == bytes(1 << 20)
    await writing
    writer.close()
    assert await stream.read() == b""
    await helpers.iterations(1)
    assert transport.is_closing()


async def test_a_slow_stream_reader_holds_its_writer_up(loop, pipe):
    reader, writer = pipe
    stream = asyncio.StreamReader(limit=1024)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), reader)
    writing = loop.create_task(helpers.write_to_pipe(writer, bytes(1 << 20)))
    await helpers.until(lambda: not transport.is_reading())
    async with helpers.idle(0.05):
        pass
    assert not writing.done()
    assert await stream.readexactly(1 << 20) == bytes(1 << 20)
    await writing
    transport.close()


async def test_the_output_of_a_process(read_pipe):
    reader, writer = helpers.os_pipe()
    child = os.posix_spawn(
        "/bin/sh",
        ["sh", "-c", "echo one; echo two"],
        {},
        file_actions=[(os.POSIX_SPAWN_DUP2, writer.fileno(), 1)],
    )
    writer.close()
    protocol = await read_pipe(Recorder(), reader)
    assert await protocol.lost() is None
    assert protocol.data == b"one\ntwo\n"
    assert os.waitpid(child, 0) == (child, 0)


async def test_the_input_and_output_of_a_process(loop, read_pipe, write_pipe):
    (their_input, our_output), (our_input, their_output) = helpers.os_pipe(), helpers.os_pipe()
    descriptors = [
        (os.POSIX_SPAWN_DUP2, file.fileno(), n) for n, file in enumerate((their_input, their_output))
    ]
    child = os.posix_spawn("/bin/cat", ["cat"], {}, file_actions=descriptors)
    their_input.close()
    their_output.close()
    writer = await write_pipe(Recorder(), our_output)
    reader = await read_pipe(Recorder(), our_input)
    data = os.urandom(1 << 20)
    writer.transport.write(data)
    writer.transport.write_eof()
    assert await reader.lost() is None
    assert reader.data == data
    assert await writer.lost() is None
    assert os.waitpid(child, 0) == (child, 0)


async def test_drain_waits_for_a_slow_reader(loop, pipe):
    reader, writer = pipe
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, writer)
    stream = asyncio.StreamWriter(transport, protocol, None, loop)
    size = 4 << 20

    async def write():
        for _ in range(size // 65536):
            stream.write(bytes(65536))
            await stream.drain()

    task = loop.create_task(write())
    await helpers.iterations(size // 65536 + 10)
    assert not task.done()
    assert transport.get_write_buffer_size() > 65536
    assert len(await helpers.read_from_pipe(reader, size)) == size
    await task
    stream.close()
    assert await helpers.read_from_pipe(reader) == b""


async def test_drain_fails_if_the_reader_goes(loop, pipe):
    reader, writer = pipe
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, writer)
    stream = asyncio.StreamWriter(transport, protocol, None, loop)
    stream.write(bytes(4 << 20))
    task = loop.create_task(stream.drain())
    await helpers.iterations(2)
    assert not task.done()
    reader.close()
    with pytest.raises(ConnectionError):
        await task
    await helpers.iterations(1)
    assert writer.closed
