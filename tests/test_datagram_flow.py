"""Sends of datagrams that have to wait: the buffer, flow control, errors, and ends meanwhile."""

import asyncio
import socket

import helpers
import pytest
from helpers import DatagramRecorder

LOCAL = ("127.0.0.1", 0)
# What each datagram that has to wait counts for besides its data.
HEADER = {(3, 11): 0, (3, 12): 0}.get(helpers.PYTHON, 8)
# So that the protocol is resumed too late, or never.
miscounts = pytest.mark.asyncio_bug("keeps counting 8 bytes for each datagram that has waited", (3, 13))


@pytest.fixture
def pair():
    """Two connected Unix sockets; a sender is held up until the other end has been read from."""
    ours, peer = helpers.datagram_pair()
    yield ours, peer
    peer.close()


def fill(protocol, limit=5000):
    """Send numbered datagrams until some have to wait; how many were sent."""
    for number in range(limit):
        protocol.transport.sendto(b"%d" % number)
        if protocol.transport.get_write_buffer_size():
            return number + 1
    raise AssertionError(f"{limit} datagrams, and the receiver takes more")


async def read(peer, count):
    loop = asyncio.get_running_loop()
    return [await loop.sock_recv(peer, 1 << 18) for _ in range(count)]


async def test_what_has_to_wait_is_sent_in_order(endpoint, pair):
    ours, peer = pair
    protocol = await endpoint(DatagramRecorder(), sock=ours)
    count = fill(protocol)
    for number in range(count, count + 100):
        protocol.transport.sendto(b"%d" % number)
    assert await read(peer, count + 100) == [b"%d" % number for number in range(count + 100)]
    assert protocol.calls == ["connection_made"]


async def test_nothing_is_busy_while_a_send_waits(endpoint, pair):
    ours, peer = pair
    protocol = await endpoint(DatagramRecorder(), sock=ours)
    count = fill(protocol)
    async with helpers.idle(0.05):
        pass
    await read(peer, count)
    async with helpers.idle(0.05):
        pass


async def test_an_endpoint_that_has_to_wait_still_receives(endpoint, pair):
    ours, peer = pair
    protocol = await endpoint(DatagramRecorder(), sock=ours)
    fill(protocol)
    peer.send(b"hello")
    assert await protocol.received(1) == [(b"hello", peer.getsockname())]
    protocol.transport.abort()
    await protocol.lost()


async def test_a_buffer_that_has_to_wait_may_be_changed(endpoint, pair):
    ours, peer = pair
    protocol = await endpoint(DatagramRecorder(), sock=ours)
    count = fill(protocol)
    data = bytearray(b"original")
    protocol.transport.sendto(data)
    protocol.transport.sendto(memoryview(data)[1:4])
    data[:] = b"changed!"
    data.clear()
    assert (await read(peer, count + 2))[count:] == [b"original", b"rig"]


async def test_the_size_of_the_buffer(endpoint, pair):
    ours, peer = pair
    protocol = await endpoint(DatagramRecorder(), sock=ours)
    assert protocol.transport.get_write_buffer_size() == 0
    count = fill(protocol)
    size = protocol.transport.get_write_buffer_size()
    assert size == len(b"%d" % (count - 1)) + HEADER
    protocol.transport.sendto(bytes(1000))
    protocol.transport.sendto(bytearray(10))
    assert protocol.transport.get_write_buffer_size() == size + 1010 + 2 * HEADER
    assert f"bufsize={size + 1010 + 2 * HEADER}" in repr(protocol.transport)
    await read(peer, count + 2)


@miscounts
async def test_the_buffer_is_empty_again(endpoint, pair):
    ours, peer = pair
    protocol = await endpoint(DatagramRecorder(), sock=ours)
    count = fill(protocol)
    await read(peer, count)
    await helpers.iterations(2)
    assert protocol.transport.get_write_buffer_size() == 0


@pytest.mark.asyncio_bug("drops it", (3, 11), (3, 12))
async def test_an_empty_datagram_can_wait(endpoint, pair):
    ours, peer = pair
    protocol = await endpoint(DatagramRecorder(), sock=ours)
    count = fill(protocol)
    protocol.transport.sendto(b"")
    protocol.transport.sendto(b"end")
    assert (await read(peer, count + 2))[count:] == [b"", b"end"]


async def test_sending_to_an_address_whose_queue_is_full(endpoint):
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    peer.bind("")
    protocol = await endpoint(DatagramRecorder(), family=socket.AF_UNIX)
    address = peer.getsockname()
    count = 0
    while not protocol.transport.get_write_buffer_size():
        protocol.transport.sendto(b"%d" % count, address)
        count += 1
        assert count < 5000
    protocol.transport.sendto(b"end", address)
    assert await read(peer, count + 1) == [b"%d" % number for number in range(count)] + [b"end"]
    peer.close()


# Flow control


async def test_pausing_and_resuming_the_protocol(endpoint, pair):
    ours, peer = pair
    sizes = []

    def note(protocol):
        sizes.append(protocol.transport.get_write_buffer_size())

    protocol = await endpoint(DatagramRecorder(pause_writing=note, resume_writing=note), sock=ours)
    protocol.transport.set_write_buffer_limits(high=10_000, low=5_000)
    count = fill(protocol)
    while "pause_writing" not in protocol.calls:
        protocol.transport.sendto(bytes(1000))
        count += 1
    assert 10_000 < sizes[0] <= 11_000 + HEADER
    protocol.transport.sendto(bytes(1000))
    assert protocol.calls == ["connection_made", "pause_writing"]
    assert len(await read(peer, count + 1)) == count + 1
    await protocol.until("resume_writing")
    assert sizes[1] <= 5_000
    assert protocol.calls == ["connection_made", "pause_writing", "resume_writing"]


async def test_the_limits(endpoint):
    protocol = await endpoint(DatagramRecorder(), local_addr=LOCAL)
    transport = protocol.transport
    assert transport.get_write_buffer_limits() == (16384, 65536)
    transport.set_write_buffer_limits(high=1000)
    assert transport.get_write_buffer_limits() == (250, 1000)
    transport.set_write_buffer_limits(low=1000)
    assert transport.get_write_buffer_limits() == (1000, 4000)
    transport.set_write_buffer_limits(7, 5)
    assert transport.get_write_buffer_limits() == (5, 7)
    with pytest.raises(ValueError, match="must be >= low"):
        transport.set_write_buffer_limits(high=1, low=2)


async def test_what_can_be_sent_at_once_pauses_nobody(loop, endpoint):
    peer = helpers.datagram_socket()
    protocol = await endpoint(DatagramRecorder(), remote_addr=peer.getsockname())
    protocol.transport.set_write_buffer_limits(high=0)
    for _ in range(20):
        protocol.transport.sendto(bytes(100))
    assert [len(await loop.sock_recv(peer, 1000)) for _ in range(20)] == [100] * 20
    assert protocol.calls == ["connection_made"]
    peer.close()


@miscounts
async def test_sending_in_resume_writing(endpoint, pair):
    ours, peer = pair

    def refill(protocol):
        if protocol.calls.count("resume_writing") < 3:
            rounds.append(fill(protocol))

    protocol = await endpoint(DatagramRecorder(resume_writing=refill), sock=ours)
    protocol.transport.set_write_buffer_limits(high=0)
    rounds = [fill(protocol)]
    got = []
    while protocol.calls.count("resume_writing") < 3 or len(got) < sum(rounds):
        got += await read(peer, 1)
    assert got == [b"%d" % number for count in rounds for number in range(count)]
    assert protocol.calls == ["connection_made"] + ["pause_writing", "resume_writing"] * 3


@miscounts
@pytest.mark.parametrize("name", ["pause_writing", "resume_writing"])
async def test_flow_control_that_fails_is_reported_and_the_endpoint_stays(endpoint, pair, reports, name):
    ours, peer = pair

    def fail(protocol):
        raise ValueError("broken")

    protocol = await endpoint(DatagramRecorder(**{name: fail}), sock=ours)
    protocol.transport.set_write_buffer_limits(high=0)
    count = fill(protocol)
    await read(peer, count)
    await protocol.until("resume_writing")
    report = reports.take()
    assert report["message"] == f"protocol.{name}() failed"
    assert report["transport"] is protocol.transport
    protocol.transport.sendto(b"more")
    assert await read(peer, 1) == [b"more"]


# Errors and ends while something waits


async def test_a_datagram_that_proves_too_big_when_its_turn_comes(endpoint, pair):
    ours, peer = pair
    protocol = await endpoint(DatagramRecorder(), sock=ours)
    count = fill(protocol)
    protocol.transport.sendto(bytes(8 << 20))
    protocol.transport.sendto(b"end")
    assert (await read(peer, count + 1))[count:] == [b"end"]
    assert [str(error) for error in protocol.errors] == ["[Errno 90] Message too long"]


@miscounts
async def test_a_receiver_that_goes(endpoint, pair):
    ours, peer = pair
    protocol = await endpoint(DatagramRecorder(), sock=ours)
    protocol.transport.set_write_buffer_limits(high=0)
    fill(protocol)
    for _ in range(9):
        protocol.transport.sendto(b"x")
    peer.close()
    await protocol.until("resume_writing")
    assert len(protocol.errors) >= 10
    assert isinstance(protocol.errors[0], ConnectionError)
    assert all(isinstance(error, OSError) for error in protocol.errors)
    assert not protocol.transport.is_closing()
    async with helpers.idle(0.05):
        pass


async def test_close_sends_what_has_to_wait(endpoint, pair):
    ours, peer = pair
    protocol = await endpoint(DatagramRecorder(), sock=ours)
    count = fill(protocol)
    protocol.transport.sendto(b"end")
    protocol.transport.close()
    peer.send(b"late")
    await asyncio.sleep(0.005)
    assert protocol.calls == ["connection_made"]
    assert ours.fileno() != -1
    assert (await read(peer, count + 1))[count] == b"end"
    assert await protocol.lost() is None
    await helpers.iterations(2)
    assert protocol.calls == ["connection_made", "connection_lost"]
    assert ours.fileno() == -1


@pytest.mark.parametrize("closed", [False, True])
async def test_abort_drops_what_has_to_wait(endpoint, pair, closed):
    ours, peer = pair
    protocol = await endpoint(DatagramRecorder(), sock=ours)
    protocol.transport.set_write_buffer_limits(high=0)
    count = fill(protocol)
    protocol.transport.sendto(b"end")
    if closed:
        protocol.transport.close()
        await asyncio.sleep(0.001)
    protocol.transport.abort()
    assert await protocol.lost() is None
    await helpers.iterations(2)
    assert protocol.calls == ["connection_made", "pause_writing", "connection_lost"]
    assert await read(peer, count - 1) == [b"%d" % number for number in range(count - 1)]
    with pytest.raises(BlockingIOError):
        peer.recv(10)


@pytest.mark.asyncio_bug("connection_lost is called twice")
@pytest.mark.parametrize("action", ["close", "abort"])
async def test_ending_the_endpoint_in_resume_writing(endpoint, pair, action):
    ours, peer = pair
    protocol = await endpoint(
        DatagramRecorder(resume_writing=lambda protocol: getattr(protocol.transport, action)()), sock=ours
    )
    protocol.transport.set_write_buffer_limits(high=0)
    count = fill(protocol)
    await read(peer, count)
    assert await protocol.lost() is None
    await helpers.iterations(3)
    assert protocol.calls == ["connection_made", "pause_writing", "resume_writing", "connection_lost"]
    assert ours.fileno() == -1
