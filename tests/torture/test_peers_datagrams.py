"""Floods of datagrams, and what the network says of datagrams that nobody received."""

import asyncio
import contextlib
import os
import socket

import helpers
import helpers_leaks
import pytest
from helpers import DatagramRecorder

from torture import peers
from torture.effort import effort, seeded


async def test_a_flood(loop, endpoint, reports):
    """The kernel drops what does not fit; the rest is delivered whole, in order."""
    sizes = seeded("flood")
    received = []

    class Counting(asyncio.DatagramProtocol):
        def connection_made(self, transport):
            self.transport = transport

        def datagram_received(self, data, addr):
            received.append((int.from_bytes(data[:4], "big"), len(data)))

    protocol = await endpoint(Counting(), local_addr=("127.0.0.1", 0))
    address = protocol.transport.get_extra_info("sockname")
    sent = {}
    ticks = 0
    with helpers.datagram_socket() as sock:
        number = 0
        for _ in range(int(effort(20, 3000))):
            for _ in range(200):
                data = number.to_bytes(4, "big") + b"x" * sizes.randrange(1400)
                with contextlib.suppress(BlockingIOError):
                    sock.sendto(data, address)
                    sent[number] = len(data)
                number += 1
            await asyncio.sleep(0)
            ticks += 1
        while not received or received[-1][0] != number:
            # Until there is room for it.
            with contextlib.suppress(BlockingIOError):
                sock.sendto(number.to_bytes(4, "big"), address)
            await asyncio.sleep(peers.A_POLL)
    received = [entry for entry in received if entry[0] < number]
    numbers = [entry[0] for entry in received]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) == len(numbers) > ticks
    assert all(sent[number] == size for number, size in received)
    await peers.check_loop()


async def test_a_flood_while_paused_by_the_network(loop, endpoint, reports):
    """What cannot be sent waits up to the high-water mark's worth, and one that keeps to it loses nothing."""
    ours, peer = helpers.datagram_pair()
    can_write = asyncio.Event()
    can_write.set()
    protocol = DatagramRecorder(
        pause_writing=lambda p: can_write.clear(), resume_writing=lambda p: can_write.set()
    )
    count = int(effort(500, 60_000))
    with peer:
        await endpoint(protocol, sock=ours)
        before = helpers_leaks.resident()
        got = []

        async def read():
            while len(got) < count:
                data = await loop.sock_recv(peer, 1 << 16)
                got.append(int.from_bytes(data[:4], "big"))

        reading = asyncio.ensure_future(read())
        for number in range(count):
            await can_write.wait()
            protocol.transport.sendto(number.to_bytes(4, "big") + b"x" * 2000)
        await asyncio.wait_for(reading, 60)
    assert got == list(range(count))
    assert "pause_writing" in protocol.calls
    assert helpers_leaks.resident() - before < 16 << 20


async def test_nobody_listens(loop, endpoint, reports):
    """A connected endpoint is told of ConnectionRefusedError, again and again; an unconnected one is not."""
    port = helpers.unused_port()
    connected = await endpoint(DatagramRecorder(), remote_addr=("127.0.0.1", port))
    unconnected = await endpoint(DatagramRecorder(), local_addr=("127.0.0.1", 0))
    for number in range(int(effort(30, 10_000))):
        connected.transport.sendto(b"x" * (1 + number % 1000))
        unconnected.transport.sendto(b"x", ("127.0.0.1", port))
        await connected.until(lambda protocol, number=number: len(protocol.errors) > number)
    assert {type(error) for error in connected.errors} == {ConnectionRefusedError}
    assert not unconnected.errors
    assert "connection_lost" not in connected.calls + unconnected.calls
    # And it still sends to whoever is there.
    receiver = await endpoint(DatagramRecorder(), local_addr=("127.0.0.1", 0))
    unconnected.transport.sendto(b"hello", receiver.address)
    assert [data for data, _ in await receiver.received(1)] == [b"hello"]
    await peers.check_loop()


@pytest.mark.parametrize(
    "queued",
    [False, pytest.param(True, marks=pytest.mark.asyncio_bug("connection_lost() is called twice"))],
)
async def test_a_unix_peer_that_vanishes(loop, endpoint, queued, reports):
    """error_received() has the error asyncio has; closing leaves nothing."""
    ours, peer = helpers.datagram_pair()
    protocol = await endpoint(DatagramRecorder(), sock=ours)
    if queued:
        protocol.transport.set_write_buffer_limits(1 << 20)
        while not protocol.transport.get_write_buffer_size():
            protocol.transport.sendto(b"x" * 2000)
            await asyncio.sleep(0)
    peer.close()
    if not queued:
        protocol.transport.sendto(b"x")
    await protocol.until(lambda protocol: len(protocol.calls) > 1)
    if not protocol.transport.is_closing():
        protocol.transport.abort()
    errors = [*protocol.errors, await protocol.lost()]
    assert isinstance(errors[0], (ConnectionRefusedError, ConnectionResetError)), errors
    peers.check_life(protocol)
    await peers.check_loop()


async def test_a_named_unix_peer_comes_and_goes(loop, endpoint, tmp_path, reports):
    """Each time that it is gone, the error is received; each time that it is there, the datagram."""
    path = str(tmp_path / "peer")
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    ours.bind(str(tmp_path / "ours"))
    protocol = await endpoint(DatagramRecorder(), sock=ours)
    for round in range(int(effort(10, 500))):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
            peer.bind(path)
            peer.setblocking(False)
            protocol.transport.sendto(b"there", path)
            assert await loop.sock_recv(peer, 10) == b"there"
        os.unlink(path)
        protocol.transport.sendto(b"gone", path)
        await protocol.until(lambda protocol, round=round: len(protocol.errors) > round)
        assert isinstance(protocol.errors[-1], FileNotFoundError)
    assert "connection_lost" not in protocol.calls


async def test_datagrams_too_large_or_empty(loop, endpoint, reports):
    """Neither ends the endpoint."""
    receiver = await endpoint(DatagramRecorder(), local_addr=("127.0.0.1", 0))
    sender = await endpoint(DatagramRecorder(), local_addr=("127.0.0.1", 0))
    with helpers.datagram_socket() as sock:
        for number in range(int(effort(10, 500))):
            sender.transport.sendto(b"x" * 70_000, receiver.address)
            sock.sendto(b"", receiver.address)
            sock.sendto(b"x" * 65_507, receiver.address)
            await receiver.received(2 * number + 2)
    assert [len(data) for data in receiver.contents] == [0, 65_507] * (len(receiver.contents) // 2)
    assert {type(error) for error in sender.errors} == {OSError}
    assert "connection_lost" not in sender.calls + receiver.calls
