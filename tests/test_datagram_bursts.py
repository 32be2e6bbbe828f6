"""Many datagrams in one wake-up, and what a protocol may do in the midst of them."""

import asyncio
import contextlib
import os
import time

import helpers
import pytest
from helpers import DatagramRecorder

needs_ipv6 = pytest.mark.skipif(not helpers.HAS_IPV6, reason="no IPv6 here")
LOCAL = ("127.0.0.1", 0)
COUNT = 200  # as many as a socket's buffer has room for
NUMBERS = [b"%d" % number for number in range(COUNT)]


@pytest.fixture
def peer():
    """A UDP socket to talk to."""
    with helpers.datagram_socket() as sock:
        yield sock


def send_all(peer, protocol, datagrams=NUMBERS):
    """Put datagrams into the protocol's socket while its loop does not look."""
    for data in datagrams:
        peer.sendto(data, protocol.address)


async def test_many_datagrams_arrive_in_their_order(endpoint, peer):
    protocol = await endpoint(DatagramRecorder(), local_addr=LOCAL)
    for _ in range(3):
        send_all(peer, protocol)
        await protocol.received(COUNT)
        assert protocol.datagrams == [(number, peer.getsockname()) for number in NUMBERS]
        protocol.datagrams.clear()


async def test_a_datagram_that_arrives_during_a_delivery_comes_after_what_was_scheduled_then(
    loop, endpoint, peer
):
    def received(protocol, data, address):
        order.append(data)
        if data == b"0":
            loop.call_soon(order.append, "callback")
            peer.sendto(b"1", protocol.address)

    order = []
    protocol = await endpoint(DatagramRecorder(datagram_received=received), local_addr=LOCAL)
    peer.sendto(b"0", protocol.address)
    await protocol.received(2)
    assert order == [b"0", "callback", b"1"]


async def test_datagrams_of_many_senders_keep_their_addresses(endpoint):
    protocol = await endpoint(DatagramRecorder(), local_addr=LOCAL)
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(helpers.datagram_socket()) for _ in range(20)]
        expected = []
        for number in NUMBERS:
            peer = peers[int(number) % 20]
            peer.sendto(number, protocol.address)
            expected.append((number, peer.getsockname()))
        assert await protocol.received(COUNT) == expected


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
async def test_more_peers_than_are_remembered_are_each_answered(endpoint, host):
    """Answers go to whom they are for, and are what was asked, however often the peers come again."""
    asked = []

    def answer(protocol, data, address):
        asked.append((data, address))
        protocol.transport.sendto(data, address)

    protocol = await endpoint(DatagramRecorder(datagram_received=answer), local_addr=(host, 0))
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(helpers.datagram_socket(host)) for _ in range(400)]
        for turn in range(3):
            for first in range(0, len(peers), 40):
                some = peers[first : first + 40]
                questions = [b"%d of %d" % (turn, number) * 100 for number in range(first, first + 40)]
                for peer, question in zip(some, questions, strict=True):
                    peer.sendto(question, protocol.address)
                await helpers.until(lambda: len(asked) == 40)
                assert asked == list(zip(questions, [peer.getsockname() for peer in some], strict=True))
                asked.clear()
                for peer, question in zip(some, questions, strict=True):
                    assert peer.recv(4096) == question


async def test_datagrams_that_are_kept_stay_as_they_are(endpoint, peer):
    protocol = await endpoint(DatagramRecorder(), local_addr=LOCAL)
    kept = []
    for number in range(300):
        data = bytes([number % 251]) * (300, 700, 1400, 9000)[number % 4]
        peer.sendto(data, protocol.address)
        ((received, _),) = await protocol.received(1)
        protocol.datagrams.clear()
        if number % 3:
            kept.append((received, data, hash(received)))
    for received, data, number in kept:
        assert received == data
        assert hash(received) == number == hash(data)


async def test_datagrams_of_all_sizes(endpoint, peer):
    protocol = await endpoint(DatagramRecorder(), local_addr=LOCAL)
    datagrams = [os.urandom(size) for size in (0, 60_000, 1, 3000, 0, 65_000, 17, 20_000)]
    send_all(peer, protocol, datagrams)
    await protocol.received(len(datagrams))
    assert protocol.contents == datagrams


async def test_a_protocol_that_works_long_on_each_lets_others_have_their_turn(loop, endpoint, peer):
    """What else is ready waits for a few datagrams, not for all that have come."""
    between = [0]

    def work(protocol, *args):
        between[-1] += 1
        time.sleep(0.001)

    def take_turn():
        between.append(0)
        if sum(between) < COUNT:
            loop.call_soon(take_turn)

    protocol = await endpoint(DatagramRecorder(datagram_received=work), local_addr=LOCAL)
    send_all(peer, protocol)
    take_turn()
    await protocol.received(COUNT)
    assert protocol.contents == NUMBERS
    assert max(between) <= 4


@pytest.mark.parametrize("action", ["pause", "close"])
async def test_a_protocol_that_works_long_on_each_and_wants_no_more(loop, endpoint, peer, action):
    def work(protocol, *args):
        time.sleep(0.001)
        if len(protocol.datagrams) % 7 == 3:
            if action == "close":
                protocol.transport.close()
            else:
                protocol.transport.pause_reading()
                loop.call_later(0.002, protocol.transport.resume_reading)

    protocol = await endpoint(DatagramRecorder(datagram_received=work), local_addr=LOCAL)
    send_all(peer, protocol)
    if action == "close":
        assert await protocol.lost() is None
        assert protocol.contents == NUMBERS[:3]
    else:
        await protocol.received(COUNT)
        assert protocol.contents == NUMBERS


@pytest.mark.parametrize("action", ["close", "abort"])
async def test_ending_the_endpoint_in_the_midst(endpoint, peer, action):
    def end(protocol, *args):
        if len(protocol.datagrams) == 10:
            getattr(protocol.transport, action)()

    protocol = await endpoint(DatagramRecorder(datagram_received=end), local_addr=LOCAL)
    send_all(peer, protocol)
    assert await protocol.lost() is None
    await helpers.iterations(3)
    assert protocol.contents == NUMBERS[:10]
    assert protocol.calls == ["connection_made"] + ["datagram_received"] * 10 + ["connection_lost"]


async def test_pausing_in_the_midst_loses_nothing(endpoint, peer):
    def pause(protocol, *args):
        if len(protocol.datagrams) % 30 == 10:
            protocol.transport.pause_reading()

    protocol = await endpoint(DatagramRecorder(datagram_received=pause), local_addr=LOCAL)
    send_all(peer, protocol)
    for stop in range(10, COUNT, 30):
        await protocol.received(stop)
        assert not protocol.transport.is_reading()
        await helpers.iterations(3)
        assert protocol.contents == NUMBERS[:stop]
        protocol.transport.resume_reading()
        assert protocol.transport.is_reading()
    await protocol.received(COUNT)
    assert protocol.contents == NUMBERS


async def test_nothing_is_received_while_reading_is_paused(endpoint, peer):
    protocol = await endpoint(
        DatagramRecorder(connection_made=lambda protocol, transport: transport.pause_reading()),
        local_addr=LOCAL,
    )
    send_all(peer, protocol)
    async with helpers.idle(0.1):
        pass
    assert protocol.datagrams == []
    protocol.transport.pause_reading()
    for _ in range(5):
        protocol.transport.resume_reading()
        protocol.transport.resume_reading()
        protocol.transport.pause_reading()
    await helpers.iterations(3)
    assert protocol.datagrams == []
    protocol.transport.resume_reading()
    await protocol.received(COUNT)
    assert protocol.contents == NUMBERS


async def test_pausing_and_resuming_in_each_callback(endpoint, peer):
    def blink(protocol, *args):
        protocol.transport.pause_reading()
        protocol.transport.resume_reading()

    protocol = await endpoint(DatagramRecorder(datagram_received=blink), local_addr=LOCAL)
    send_all(peer, protocol)
    await protocol.received(COUNT)
    assert protocol.contents == NUMBERS


async def test_failing_in_the_midst(endpoint, peer, reports):
    def fail(protocol, data, addr):
        if len(data) == 2:
            raise ValueError(data)

    protocol = await endpoint(DatagramRecorder(datagram_received=fail), local_addr=LOCAL)
    send_all(peer, protocol)
    await protocol.received(COUNT)
    await helpers.iterations(1)
    assert protocol.contents == NUMBERS
    assert [report["exception"].args[0] for report in reports] == [data for data in NUMBERS if len(data) == 2]
    reports.clear()


def test_stopping_the_loop_in_the_midst(loop, peer):
    create = loop.create_datagram_endpoint(
        lambda: DatagramRecorder(datagram_received=lambda *args: loop.stop()), LOCAL
    )
    transport, protocol = loop.run_until_complete(create)
    send_all(peer, protocol)
    while len(protocol.datagrams) < COUNT:
        before = len(protocol.datagrams)
        loop.run_forever()
        assert len(protocol.datagrams) > before
    assert protocol.contents == NUMBERS
    transport.close()
    loop.run_until_complete(protocol.lost())


@pytest.mark.parametrize("stop", ["before", "in a callback"])
def test_a_program_that_runs_single_iterations_receives_everything(loop, peer, stop):
    """As programs do that have a loop of their own, such as a game's."""
    transport, protocol = loop.run_until_complete(loop.create_datagram_endpoint(DatagramRecorder, LOCAL))
    send_all(peer, protocol)
    for _ in range(20 * COUNT):
        if stop == "before":
            loop.stop()
        else:
            loop.call_soon(loop.stop)
        loop.run_forever()
        if len(protocol.datagrams) == COUNT:
            break
    assert protocol.contents == NUMBERS
    transport.close()
    loop.run_until_complete(protocol.lost())


def test_a_callback_that_stops_the_loop_is_the_last_to_get_a_datagram(loop, peer):
    received = []

    def stop(protocol, data, addr):
        received.append(data)
        loop.stop()

    create = loop.create_datagram_endpoint(lambda: DatagramRecorder(datagram_received=stop), LOCAL)
    transport, protocol = loop.run_until_complete(create)
    send_all(peer, protocol)
    for number in NUMBERS:
        loop.run_forever()
        assert received == [number]
        received.clear()
    transport.close()
    loop.run_until_complete(protocol.lost())


def test_leaving_the_loop_in_the_midst(loop, peer):
    def leave(protocol, data, addr):
        if data in (b"10", b"11", b"150"):
            raise helpers.Leave

    create = loop.create_datagram_endpoint(lambda: DatagramRecorder(datagram_received=leave), LOCAL)
    transport, protocol = loop.run_until_complete(create)
    send_all(peer, protocol)
    for number in (10, 11, 150):
        with pytest.raises(helpers.Leave):
            loop.run_forever()
        assert protocol.contents == NUMBERS[: number + 1]
    loop.run_until_complete(protocol.received(COUNT))
    assert protocol.contents == NUMBERS
    transport.close()
    loop.run_until_complete(protocol.lost())


async def test_changing_the_protocol_in_the_midst(endpoint, peer):
    second = DatagramRecorder()

    def change(protocol, *args):
        if len(protocol.datagrams) == 10:
            protocol.transport.set_protocol(second)

    first = await endpoint(DatagramRecorder(datagram_received=change), local_addr=LOCAL)
    send_all(peer, first)
    await second.received(COUNT - 10)
    assert first.contents == NUMBERS[:10]
    assert second.contents == NUMBERS[10:]
    assert first.transport.get_protocol() is second
    first.transport.close()
    assert await second.lost() is None
    assert "connection_lost" not in first.calls


async def test_an_endpoint_closed_by_another_in_the_same_iteration_receives_nothing(endpoint, peer):
    """Though its datagram had been reported to the loop together with that of the other."""

    def close_others(protocol, *args):
        for other in protocols:
            if other is not protocol:
                other.transport.abort()

    protocols = [
        await endpoint(DatagramRecorder(datagram_received=close_others), local_addr=LOCAL) for _ in range(5)
    ]
    for protocol in protocols:
        peer.sendto(b"x", protocol.address)
    await asyncio.sleep(0.01)
    assert sorted(len(protocol.datagrams) for protocol in protocols) == [0, 0, 0, 0, 1]
    assert sum("connection_lost" in protocol.calls for protocol in protocols) == 4


async def test_an_endpoint_that_talks_to_itself_leaves_room_for_others(loop, endpoint):
    """Each datagram that it receives is followed by the next, without end."""
    protocol = await endpoint(
        DatagramRecorder(datagram_received=lambda protocol, *args: protocol.transport.sendto(*args)),
        local_addr=LOCAL,
    )
    for _ in range(10):
        protocol.transport.sendto(b"x", protocol.address)
    await asyncio.sleep(0.01)
    await helpers.iterations(10)
    assert len(protocol.datagrams) > 10
    protocol.transport.close()
    await protocol.lost()


async def test_sending_many(loop, endpoint, peer):
    protocol = await endpoint(DatagramRecorder(), remote_addr=peer.getsockname())
    for number in NUMBERS:
        protocol.transport.sendto(number)
    assert [await loop.sock_recv(peer, 100) for _ in NUMBERS] == NUMBERS
    assert protocol.calls == ["connection_made"]
    assert protocol.transport.get_write_buffer_size() == 0
