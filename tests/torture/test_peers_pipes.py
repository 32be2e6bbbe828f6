"""Pipes, terminals and children whose other end goes in each state of a transport."""

import asyncio
import contextlib
import os
import pty
import signal
import sys

import helpers
import pytest
from helpers import ProcessRecorder, Recorder

from torture import peers
from torture.effort import effort, seeded


def _both(kind):
    """A file to read from and one to write to, neither of them buffered."""
    if kind == "pipe":
        return helpers.os_pipe()
    if kind == "pty":
        master, slave = pty.openpty()
        return os.fdopen(master, "rb", 0), os.fdopen(slave, "wb", 0)
    ours, theirs = helpers.unix_pair()
    return os.fdopen(ours.detach(), "rb", 0), os.fdopen(theirs.detach(), "wb", 0)


async def idle(protocol, other):
    pass


async def with_data(protocol, other):
    os.write(other.fileno(), b"data\n")
    await protocol.received(4)


async def unread(protocol, other):
    protocol.transport.pause_reading()
    os.write(other.fileno(), b"data\n")


async def paused(protocol, other):
    protocol.transport.pause_reading()
    await asyncio.sleep(peers.A_POLL)


async def closed(protocol, other):
    protocol.transport.close()


@pytest.mark.parametrize("state", [idle, with_data, unread, paused, closed])
@pytest.mark.parametrize("kind", ["pipe", "socket", "pty"])
def test_a_writer_that_goes(kind, state):
    """The reader gets what was written and its end: an error of a terminal's, nothing otherwise."""

    async def main(loop):
        ours, other = _both(kind)
        protocol = Recorder()
        with other:
            await loop.connect_read_pipe(lambda: protocol, ours)
            await state(protocol, other)
        await asyncio.sleep(peers.A_POLL)
        if "connection_lost" not in protocol.calls:
            protocol.transport.resume_reading()
        await asyncio.wait_for(protocol.lost(), 20)
        await asyncio.sleep(peers.A_POLL)
        peers.check_life(protocol)
        assert bytes(protocol.data).strip() == (b"data" if state in (with_data, unread) else b"")
        return peers.kind_of(protocol.exception), protocol.calls.count("eof_received")

    peers.same_on_each_loop(main)


async def written(protocol, other):
    protocol.transport.write(b"some")


async def blocked(protocol, other):
    protocol.transport.write(helpers.TOO_MUCH)
    await asyncio.sleep(peers.A_POLL)
    assert protocol.transport.get_write_buffer_size()


async def closing(protocol, other):
    await blocked(protocol, other)
    protocol.transport.close()


async def with_eof(protocol, other):
    await blocked(protocol, other)
    protocol.transport.write_eof()


@pytest.mark.parametrize("state", [idle, written, blocked, closing, with_eof, closed])
@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_reader_that_goes(kind, state):
    """The writer's connection is lost with BrokenPipeError, if the transport had anything to say."""

    async def main(loop):
        other, ours = _both(kind)
        protocol = Recorder()
        with other:
            await loop.connect_write_pipe(lambda: protocol, ours)
            await state(protocol, other)
            await asyncio.sleep(peers.A_POLL)
        await asyncio.wait_for(protocol.lost(), 20)
        await asyncio.sleep(peers.A_POLL)
        peers.check_life(protocol)
        # asyncio sometimes makes the exception itself, without a number.
        return type(protocol.exception)

    peers.same_on_each_loop(main)


async def test_a_terminal_that_hangs_up(loop, reports):
    """The slave's transports are lost when the master goes, whichever of them read or wrote."""
    for round in range(int(effort(4, 200))):
        master, slave = pty.openpty()
        reader, writer = Recorder(), Recorder()
        await loop.connect_read_pipe(lambda reader=reader: reader, os.fdopen(slave, "rb", 0))
        await loop.connect_write_pipe(lambda writer=writer: writer, os.fdopen(os.dup(slave), "wb", 0))
        os.write(master, b"line\n")
        await reader.received(5)
        if round % 2:
            writer.transport.write(b"x" * 100_000)
            await asyncio.sleep(peers.A_POLL)
        os.close(master)
        await reader.lost()
        if "connection_lost" not in writer.calls:
            for _ in range(3):
                writer.transport.write(b"x")
                await asyncio.sleep(peers.A_POLL)
            if not writer.transport.is_closing():
                writer.transport.abort()
        await writer.lost()
        for protocol in (reader, writer):
            peers.check_life(protocol)
    await peers.check_loop()


# A child that does what its first argument says when it has said that it is there.
CHILD = """
import os, signal, sys
print("ready", flush=True)
{
    "closes stdin": lambda: (os.close(0), signal.pause()),
    "closes stdout": lambda: (os.close(1), sys.stdin.read(), os._exit(0)),
    "closes all": lambda: ([os.close(fd) for fd in range(3)], signal.pause()),
    "exits": lambda: os._exit(3),
    "dies": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stops": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "leaves a child": lambda: os.fork() and os._exit(0) or sys.stdin.read(),
    "reads nothing": lambda: signal.pause(),
    "floods": lambda: [os.write(1, b"x" * 65536) for _ in range(200)],
}[sys.argv[1]]()
"""


@pytest.mark.parametrize("ends", ["kill", "close"])
@pytest.mark.parametrize(
    "behaviour",
    [
        *("closes stdin", "closes stdout", "closes all", "exits", "dies"),
        *("stops", "leaves a child", "reads nothing", "floods"),
    ],
)
async def test_a_child_that(loop, behaviour, ends, reports, no_child_left):
    """Each pipe's end, and the child's, are told once; killing it or closing its transport ends all."""
    protocol = ProcessRecorder()
    transport, _ = await loop.subprocess_exec(lambda: protocol, sys.executable, "-c", CHILD, behaviour)
    stdin = transport.get_pipe_transport(0)
    stdin.write(b"x" * (1 << 20))
    await protocol.until(lambda protocol: b"ready" in protocol.output[1])
    await asyncio.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        if ends == "kill":
            transport.kill()
        else:
            transport.close()
    if not stdin.is_closing():
        stdin.abort()
    await asyncio.wait_for(protocol.until("process_exited"), 20)
    transport.close()
    await asyncio.wait_for(protocol.lost(), 20)
    peers.check_life(protocol)
    for call in ("process_exited", *(f"pipe_connection_lost {fd}" for fd in range(3))):
        assert protocol.calls.count(call) == 1, protocol.calls
    await peers.check_loop()


async def test_children_killed_at_random(loop, reports, no_child_left):
    """By signals, at any moment, many at a time: each ends once, with the status of its signal."""
    random = seeded("children")

    async def child():
        protocol = ProcessRecorder()
        transport, _ = await loop.subprocess_exec(lambda: protocol, "sleep", "60")
        if random.random() < 0.5:
            await asyncio.sleep(random.random() * 0.01)
        number = random.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
        transport.send_signal(number)
        await protocol.until("process_exited")
        assert transport.get_returncode() == -number
        transport.close()
        await protocol.lost()
        peers.check_life(protocol)

    for _ in range(int(effort(2, 100))):
        await asyncio.gather(*(child() for _ in range(12)))
    await peers.check_loop()
