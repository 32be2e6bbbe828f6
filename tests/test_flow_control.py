"""The write buffer: its limits, and when a protocol is paused and resumed."""

import asyncio
import contextlib
import os

import helpers
import pytest
from helpers import Recorder

FLOW = ("pause_writing", "resume_writing")


def flow(protocol):
    return [name for name in protocol.calls if name in FLOW]


async def test_a_slow_reader_pauses_the_writer_once(attach):
    protocol, peer = await attach(Recorder())
    protocol.transport.write(helpers.TOO_MUCH)
    assert flow(protocol) == ["pause_writing"]
    assert protocol.transport.get_write_buffer_size() > 65536
    protocol.transport.write(b"y" * 100_000)
    protocol.transport.writelines([b"z"] * 10)
    await asyncio.sleep(0.005)
    assert flow(protocol) == ["pause_writing"]
    got = await helpers.read_exactly(peer, len(helpers.TOO_MUCH) + 100_010)
    assert got == helpers.TOO_MUCH + b"y" * 100_000 + b"z" * 10
    await protocol.until("resume_writing")
    assert flow(protocol) == ["pause_writing", "resume_writing"]
    assert protocol.transport.get_write_buffer_size() == 0


async def test_what_the_socket_takes_at_once_pauses_nobody(attach):
    protocol, peer = await attach(Recorder())
    protocol.transport.set_write_buffer_limits(high=0)
    for _ in range(20):
        protocol.transport.write(b"x" * 100)
        protocol.transport.writelines([b"x", b"y"])
    assert flow(protocol) == []
    assert len(await helpers.read_exactly(peer, 2040)) == 2040
    assert flow(protocol) == []
    assert protocol.transport.get_write_buffer_size() == 0


async def test_a_protocol_is_resumed_at_the_low_mark(attach):
    sizes = []
    protocol, peer = await attach(
        Recorder(resume_writing=lambda protocol: sizes.append(protocol.transport.get_write_buffer_size()))
    )
    protocol.transport.set_write_buffer_limits(high=200_000, low=100_000)
    protocol.transport.write(helpers.TOO_MUCH)
    assert flow(protocol) == ["pause_writing"]
    total = 0
    while not sizes:
        total += len(await helpers.read_exactly(peer, 50_000))
    assert sizes[0] <= 100_000
    assert total < len(helpers.TOO_MUCH)
    await helpers.read_exactly(peer, len(helpers.TOO_MUCH) - total)


async def test_writing_between_the_marks_does_not_pause(attach):
    protocol, peer = await attach(Recorder())
    protocol.transport.set_write_buffer_limits(high=100 << 20, low=1)
    protocol.transport.write(helpers.TOO_MUCH)
    await asyncio.sleep(0.005)
    assert flow(protocol) == []
    assert protocol.transport.get_write_buffer_size() > 0
    await helpers.read_exactly(peer, len(helpers.TOO_MUCH))


async def test_each_time_the_marks_are_passed(attach):
    protocol, peer = await attach(Recorder())
    for times in range(1, 4):
        protocol.transport.write(helpers.TOO_MUCH)
        await helpers.read_exactly(peer, len(helpers.TOO_MUCH))
        await helpers.until(lambda times=times: protocol.calls.count("resume_writing") == times)
    assert flow(protocol) == list(FLOW) * 3


async def test_writing_in_resume_writing(attach):
    chunks = 4

    def write(protocol):
        if protocol.calls.count("resume_writing") < chunks:
            protocol.transport.write(helpers.TOO_MUCH)

    protocol, peer = await attach(Recorder(resume_writing=write))
    protocol.transport.write(helpers.TOO_MUCH)
    expected = chunks * len(helpers.TOO_MUCH)
    assert len(await helpers.read_exactly(peer, expected)) == expected
    await helpers.until(lambda: protocol.calls.count("resume_writing") == chunks)
    assert flow(protocol) == list(FLOW) * chunks


async def test_writing_in_pause_writing(attach):
    protocol, peer = await attach(
        Recorder(pause_writing=lambda protocol: protocol.transport.write(b"the end"))
    )
    protocol.transport.write(helpers.TOO_MUCH)
    got = await helpers.read_exactly(peer, len(helpers.TOO_MUCH) + 7)
    assert got.endswith(b"xthe end")
    await protocol.until("resume_writing")
    assert flow(protocol) == list(FLOW)


async def test_closing_while_paused_never_resumes_wrongly(attach):
    protocol, peer = await attach(Recorder())
    protocol.transport.write(helpers.TOO_MUCH)
    protocol.transport.close()
    assert len(await helpers.read_to_end(peer)) == len(helpers.TOO_MUCH)
    assert await protocol.lost() is None
    assert protocol.calls == ["connection_made", "pause_writing", "resume_writing", "connection_lost"]


@pytest.mark.asyncio_bug("writelines() did not pause the protocol", (3, 12), (3, 13))
async def test_lines_pause_as_well(attach):
    protocol, peer = await attach(Recorder())
    protocol.transport.writelines([helpers.TOO_MUCH[: 1 << 20]] * 24)
    assert flow(protocol) == ["pause_writing"]
    await helpers.read_exactly(peer, 24 << 20)
    await protocol.until("resume_writing")


# Limits


@pytest.mark.parametrize(
    ("given", "limits"),
    [
        ({}, (16384, 65536)),
        ({"high": 0}, (0, 0)),
        ({"low": 0}, (0, 0)),
        ({"high": 1000}, (250, 1000)),
        ({"low": 1000}, (1000, 4000)),
        ({"high": 5000, "low": 5000}, (5000, 5000)),
        ({"high": 5000, "low": 0}, (0, 5000)),
        ({"high": 1 << 40, "low": 7}, (7, 1 << 40)),
        ({"high": 1e6}, (250_000.0, 1e6)),
        ({"high": 2.5, "low": 1.5}, (1.5, 2.5)),
        ({"high": float("inf"), "low": 5}, (5, float("inf"))),
        ({"high": 10**30}, (10**30 // 4, 10**30)),
    ],
)
async def test_the_limits(attach, given, limits):
    protocol, _ = await attach(Recorder())
    protocol.transport.set_write_buffer_limits(high=1, low=1)
    protocol.transport.set_write_buffer_limits(**given)
    now = protocol.transport.get_write_buffer_limits()
    assert now == limits
    assert [type(limit) for limit in now] == [type(limit) for limit in limits]
    protocol.transport.set_write_buffer_limits()
    assert protocol.transport.get_write_buffer_limits() == (16384, 65536)


async def test_the_default_limits(attach):
    protocol, _ = await attach(Recorder())
    assert protocol.transport.get_write_buffer_limits() == (16384, 65536)


@pytest.mark.parametrize("given", [{"high": 1, "low": 2}, {"high": -1}, {"low": -1}, {"high": 5, "low": -1}])
async def test_impossible_limits_are_refused(attach, given):
    protocol, _ = await attach(Recorder())
    with pytest.raises(ValueError, match="must be >= low"):
        protocol.transport.set_write_buffer_limits(**given)
    assert protocol.transport.get_write_buffer_limits() == (16384, 65536)


async def test_lowering_the_limit_pauses_at_once(attach):
    protocol, peer = await attach(Recorder())
    protocol.transport.set_write_buffer_limits(high=100 << 20)
    protocol.transport.write(helpers.TOO_MUCH)
    assert flow(protocol) == []
    protocol.transport.set_write_buffer_limits(high=1000)
    assert flow(protocol) == ["pause_writing"]
    await helpers.read_exactly(peer, len(helpers.TOO_MUCH))
    await protocol.until("resume_writing")


async def test_the_size_of_the_buffer(attach):
    protocol, _peer = await attach(Recorder())
    protocol.transport.write(helpers.TOO_MUCH)
    size = protocol.transport.get_write_buffer_size()
    assert 0 < size <= len(helpers.TOO_MUCH)
    protocol.transport.write(b"x" * 1000)
    assert protocol.transport.get_write_buffer_size() == size + 1000
    protocol.transport.writelines([b"x" * 10, b"", b"y" * 20])
    assert protocol.transport.get_write_buffer_size() == size + 1030


# Flow control as programs use it


@helpers.whenever_quiet
async def test_an_echo_server_with_flow_control(loop, attach):
    """A fast sender and a slow reader: what the server holds in between stays small."""
    largest = 0

    def echo(protocol, data):
        nonlocal largest
        protocol.transport.write(data)
        largest = max(largest, protocol.transport.get_write_buffer_size())

    protocol, peer = await attach(
        Recorder(
            data_received=echo,
            pause_writing=lambda protocol: protocol.transport.pause_reading(),
            resume_writing=lambda protocol: protocol.transport.resume_reading(),
        )
    )
    data = os.urandom(20 << 20)
    sending = loop.create_task(loop.sock_sendall(peer, data))
    while not flow(protocol):
        # What the server sends back is not read yet.
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.02)
    assert not sending.done()
    assert await helpers.read_exactly(peer, len(data)) == data
    await sending
    assert largest < 65536 + (1 << 20)
    assert flow(protocol)[:2] == list(FLOW)


async def test_drain_waits_for_a_slow_reader(loop, pair):
    ours, peer = pair
    _reader, writer = await asyncio.open_connection(sock=ours)
    written = 0

    async def write():
        nonlocal written
        while written < 24 << 20:
            writer.write(b"x" * 65536)
            written += 65536
            await writer.drain()

    task = loop.create_task(write())
    await asyncio.sleep(0.02)
    stuck = written
    await asyncio.sleep(0.02)
    assert written == stuck < 24 << 20
    assert len(await helpers.read_exactly(peer, 24 << 20)) == 24 << 20
    await task
    writer.close()
    await writer.wait_closed()


@helpers.over_tcp
async def test_a_callback_that_is_alone_sends_its_first_write_at_once(attach):
    """A peer that waits for it need not wait until the callback is over."""
    protocol, peer = await attach(Recorder())
    peer.settimeout(5)
    for number in range(3):
        await asyncio.sleep(0)
        protocol.transport.write(b"%d" % number)
        assert peer.recv(100) == b"%d" % number


@pytest.mark.hotloop_only
@helpers.over_tcp
async def test_the_writes_of_a_callback_after_the_first_are_sent_together(attach):
    protocol, peer = await attach(Recorder())
    await asyncio.sleep(0)
    for number in range(10):
        protocol.transport.write(b"%d" % number)
    peer.setblocking(False)
    assert peer.recv(100) == b"0"
    await asyncio.sleep(0.001)
    assert peer.recv(100) == b"123456789"


@pytest.mark.hotloop_only
@helpers.over_tcp
async def test_the_writes_of_several_callbacks_are_sent_together(loop, attach):
    """One segment, not many: a peer that reads once has it all."""
    protocol, peer = await attach(Recorder())
    peer.setblocking(False)
    seen = []

    def look():
        with pytest.raises(BlockingIOError):
            seen.append(peer.recv(100))

    for number in range(10):
        loop.call_soon(protocol.transport.write, b"%d" % number)
        loop.call_soon(look)
    await asyncio.sleep(0.001)
    assert not seen
    assert peer.recv(100) == b"0123456789"


@pytest.mark.hotloop_only
@helpers.over_tcp
async def test_a_long_iteration_does_not_hold_back_what_was_written(loop, attach):
    """A flood of callbacks after a write delays it by a few of them, not by all."""
    protocol, peer = await attach(Recorder())
    peer.setblocking(False)
    seen = []

    def look(number):
        with contextlib.suppress(BlockingIOError):
            seen.append((number, peer.recv(100)))

    loop.call_soon(protocol.transport.write, b"hello")
    for number in range(5000):
        loop.call_soon(look, number)
    await helpers.iterations(2)
    assert seen
    assert seen[0][1] == b"hello"
    assert seen[0][0] < 4000
