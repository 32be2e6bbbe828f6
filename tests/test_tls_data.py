"""Data over TLS: both ways at once, paused and resumed, into buffers; and what a transport knows."""

import array
import asyncio
import gc
import os
import socket
import ssl
import struct
import weakref

import helpers
import pytest
from differential import openssl
from helpers import BufferedRecorder, Recorder
from helpers_tls import against_peer, both_ends


def buffered(size=5000):
    """A BufferedRecorder whose buffer TLS can fill slice by slice."""
    return BufferedRecorder(size, get_buffer=lambda protocol, hint: memoryview(protocol.buffer))


@pytest.mark.parametrize("make", [Recorder, buffered])
async def test_much_data_both_ways_at_once(loop, tls, kind, make):
    async with both_ends(loop, tls, kind, client=make(), server=make()) as (client, server):
        sent = {client: os.urandom(6 << 20), server: os.urandom(6 << 20)}
        for offset in range(0, 6 << 20, 1 << 20):
            for protocol, data in sent.items():
                protocol.transport.write(data[offset : offset + (1 << 20)])
        assert await client.received(6 << 20) == sent[server]
        assert await server.received(6 << 20) == sent[client]
        for protocol in sent:
            assert protocol.calls.count("pause_writing") == protocol.calls.count("resume_writing") > 0
            assert protocol.transport.get_write_buffer_size() == 0


async def test_a_buffer_of_items_that_are_larger_than_bytes(loop, tls, kind):
    """As many bytes as it has items are read at a time."""
    counts = []
    items = memoryview(array.array("i", bytes(4 * 1000)))
    server = BufferedRecorder(
        get_buffer=lambda protocol, hint: items, buffer_updated=lambda protocol, count: counts.append(count)
    )
    async with both_ends(loop, tls, kind, server=server) as (client, _):
        client.transport.write(bytes(2000))
        await server.until(lambda protocol: sum(counts) == 2000)
        assert counts == [1000, 1000]


@pytest.mark.parametrize(
    "buffer", [bytes(100), memoryview(bytes(100)), memoryview(bytearray(100))[::2], "text"], ids=repr
)
async def test_what_is_no_buffer_to_read_into(loop, tls, kind, reports, buffer):
    server = BufferedRecorder(get_buffer=lambda protocol, hint: buffer)
    async with both_ends(loop, tls, kind, server=server) as (client, _):
        client.transport.write(b"data")
        await server.lost()
        report = reports.take()
        assert report["message"] == "Fatal error on SSL protocol"
        with pytest.raises(
            TypeError, match=r"^read\(\) argument 2 must be read-write bytes-like object, not "
        ):
            raise report["exception"]
        assert "buffer_updated" not in server.calls


@pytest.mark.parametrize(
    "size", [50_000, 57_344, 65_537, 100_000, 131_071, 131_072, 131_073, 250_000, 262_144, 1_000_001]
)
async def test_large_data_of_each_size(loop, tls, kind, size):
    """From a size on, they are decrypted into the object that the program gets, and sent without a queue."""
    async with both_ends(loop, tls, kind) as (client, server):
        data = os.urandom(size)
        for sender, receiver in [(client, server), (server, client)] * 3:
            before = len(receiver.data)
            sender.transport.write(data)
            sender.transport.writelines([data, b"end"])
            received = await receiver.received(before + 2 * size + 3)
            assert received[before:] == data + data + b"end"
            assert sender.transport.get_write_buffer_size() == 0


async def test_the_rest_of_a_large_write_waits_for_the_peer(loop, tls, kind):
    async with both_ends(loop, tls, kind) as (client, server):
        server.transport.pause_reading()
        data = os.urandom(5_000_000)
        client.transport.write(data)
        client.transport.write(b"behind")
        client.transport.close()
        server.transport.resume_reading()
        await server.lost()
        assert server.data == data + b"behind"
        await client.lost()
        assert client.exception is None


async def test_a_large_write_to_a_peer_that_has_reset_the_connection(loop, tls):
    """It is sent at once, and fails so: the connection is lost once, and later writes do nothing."""
    async with against_peer(loop, tls, "tcp") as (protocol, peer):
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.sock.close()
        for _ in range(3):
            protocol.transport.write(bytes(500_000))
        assert "connection_lost" not in protocol.calls
        await protocol.lost()
        protocol.transport.write(bytes(500_000))
        assert protocol.calls.count("connection_lost") == 1
        assert isinstance(protocol.exception, ConnectionError)


async def test_writers_that_wait_while_they_are_paused(loop, tls, kind):
    """As programs do: no more than the limits is ever held."""

    async def send(protocol, chunks):
        for _ in range(chunks):
            protocol.transport.write(bytes(65536))
            await protocol.until(
                lambda protocol: (
                    protocol.calls.count("pause_writing") == protocol.calls.count("resume_writing")
                )
            )
            assert protocol.transport.get_write_buffer_size() < 600_000

    async with both_ends(loop, tls, kind) as (client, server):
        await asyncio.gather(send(client, 60), send(server, 60))
        await asyncio.gather(client.received(60 * 65536), server.received(60 * 65536))


async def test_each_sort_of_bytes(loop, tls, kind):
    async with against_peer(loop, tls, kind) as (protocol, peer):
        transport = protocol.transport
        array = bytearray(b"bytearray ")
        transport.write(b"bytes ")
        transport.write(array)
        array[:] = b"overwritten"
        transport.write(memoryview(b"memoryview "))
        transport.write(b"")
        transport.writelines([b"lines ", bytearray(b"of "), memoryview(b"any sort")])
        transport.writelines(iter([b"."]))
        said = b"bytes bytearray memoryview lines of any sort."
        assert await peer.receive(len(said)) == said
        for bad in ("text", 1, None, [b"x"]):
            with pytest.raises(TypeError, match="data: expecting a bytes-like instance, got"):
                transport.write(bad)


async def test_an_empty_line_answers_a_key_update(loop, tls, kind):
    """It makes no record, but OpenSSL is asked to write."""
    async with against_peer(loop, tls, kind) as (protocol, peer):
        if not openssl.key_update(peer.object, ask_peer=True):
            pytest.skip("OpenSSL's functions cannot be called")
        await peer.send(b"data")
        await protocol.received(4)
        protocol.transport.writelines([b"", b""])
        assert await asyncio.wait_for(loop.sock_recv(peer.sock, 1 << 16), 10)


async def test_small_writes_are_records_of_their_own_and_one_arrival(loop, tls):
    async with against_peer(loop, tls) as (protocol, peer):
        for _ in range(3):
            peer.object.write(b"piece ")
        await peer.flush()
        assert await protocol.received(18) == b"piece piece piece "
        assert protocol.calls == ["connection_made", "data_received"]


# Reading paused


@pytest.mark.parametrize("make", [Recorder, buffered])
async def test_nothing_is_received_while_reading_is_paused(loop, tls, kind, make):
    async with against_peer(loop, tls, kind, make()) as (protocol, peer):
        transport = protocol.transport
        assert transport.is_reading()
        transport.pause_reading()
        transport.pause_reading()
        assert not transport.is_reading()
        await peer.send(b"hello")
        await helpers.until(lambda: transport.get_read_buffer_size() > 0)
        assert protocol.data == b""
        transport.resume_reading()
        transport.resume_reading()
        assert transport.is_reading()
        assert await protocol.received(5) == b"hello"
        assert transport.get_read_buffer_size() == 0


async def test_a_paused_transport_stops_reading_the_network_at_its_limit(loop, tls, kind):
    async with against_peer(loop, tls, kind) as (protocol, peer):
        protocol.transport.pause_reading()
        sending = loop.create_task(peer.send(bytes(24 << 20)))
        await helpers.until(lambda: protocol.transport.get_read_buffer_size() >= 256 * 1024)
        await helpers.iterations(20)
        held = protocol.transport.get_read_buffer_size()
        assert held < 1 << 20
        assert not sending.done()
        protocol.transport.resume_reading()
        await protocol.received(24 << 20)
        await sending


async def test_reading_paused_and_resumed_in_data_received(loop, tls, kind):
    def received(protocol, data):
        protocol.transport.pause_reading()
        loop.call_later(0.001, protocol.transport.resume_reading)

    async with against_peer(loop, tls, kind, Recorder(data_received=received)) as (protocol, peer):
        for size in (1, 100_000, 1_000_000):
            before = len(protocol.data)
            await peer.send(bytes(size))
            await protocol.received(before + size)


async def test_reading_paused_in_connection_made(loop, tls):

    def made(protocol, transport):
        transport.pause_reading()

    async with against_peer(loop, tls, "tcp", Recorder(connection_made=made), server_side=True) as (
        protocol,
        peer,
    ):
        await peer.send(b"hello")
        await asyncio.sleep(0.002)
        assert protocol.calls == ["connection_made"]
        protocol.transport.resume_reading()
        assert await protocol.received(5) == b"hello"


# Buffers and protocols


@pytest.mark.parametrize("size", [1, 7, 16384, 16385, 70_000])
async def test_buffers_of_any_size(loop, tls, size):
    async with against_peer(loop, tls, "tcp", buffered(size=size)) as (protocol, peer):
        data = os.urandom(40_000 if size > 100 else 500)
        await peer.send(data)
        assert await protocol.received(len(data)) == data


async def test_a_buffer_of_no_size(loop, tls, reports):
    async with against_peer(loop, tls) as (protocol, peer):
        empty = BufferedRecorder(size=0)
        protocol.transport.set_protocol(empty)
        await peer.send(b"hello")
        await empty.until("connection_lost")
        assert "buffer_updated" not in empty.calls
    reports.clear()


async def test_changing_the_protocol(loop, tls, kind):
    async with against_peer(loop, tls, kind) as (first, peer):
        transport = first.transport
        protocols = [buffered(), Recorder(), buffered()]
        for number, protocol in enumerate(protocols):
            transport.set_protocol(protocol)
            assert transport.get_protocol() is protocol
            await peer.send(b"%d" % number)
            assert await protocol.received(1) == b"%d" % number
        assert first.data == b""
        await peer.say_end()
        await protocols[-1].lost()
        assert first.calls == ["connection_made"]


# Limits


async def test_the_limits_for_writing(loop, tls):
    async with against_peer(loop, tls) as (protocol, peer):
        transport = protocol.transport
        assert transport.get_write_buffer_limits() == (128 * 1024, 512 * 1024)
        assert transport.get_write_buffer_size() == 0
        for arguments, limits in (
            ({"high": 400}, (100, 400)),
            ({"low": 100}, (100, 400)),
            ({"high": 50, "low": 10}, (10, 50)),
            ({"high": 0}, (0, 0)),
        ):
            transport.set_write_buffer_limits(**arguments)
            assert transport.get_write_buffer_limits() == limits
        for bad in ({"high": 1, "low": 2}, {"low": -1}, {"high": -1}):
            with pytest.raises(ValueError, match="must be >= low"):
                transport.set_write_buffer_limits(**bad)
        transport.set_write_buffer_limits()
        for _ in range(2):  # the first fills the socket, the second waits
            transport.write(bytes(6_000_000))
        assert protocol.calls[-1] == "pause_writing"
        assert transport.get_write_buffer_size() > 512 * 1024
        await peer.receive(12_000_000)
        await protocol.until("resume_writing")
        assert transport.get_write_buffer_size() == 0


async def test_the_limits_for_reading(loop, tls):
    async with against_peer(loop, tls) as (protocol, peer):
        transport = protocol.transport
        assert transport.get_read_buffer_limits() == (64 * 1024, 256 * 1024)
        transport.set_read_buffer_limits(high=4000)
        assert transport.get_read_buffer_limits() == (1000, 4000)
        with pytest.raises(ValueError, match="must be >= low"):
            transport.set_read_buffer_limits(high=1, low=2)
        transport.pause_reading()
        await peer.send(bytes(5000))
        await helpers.until(lambda: transport.get_read_buffer_size() >= 5000)
        await peer.send(bytes(5000))
        await asyncio.sleep(0.002)
        assert transport.get_read_buffer_size() < 10_000
        transport.resume_reading()
        await protocol.received(10_000)


# What a transport knows


async def test_what_a_transport_knows(loop, tls, kind):
    async with both_ends(loop, tls, kind) as protocols:
        for protocol, context in zip(protocols, reversed(tls), strict=True):
            transport = protocol.transport
            sock = transport.get_extra_info("socket")
            assert isinstance(transport, asyncio.Transport)
            assert transport.get_protocol() is protocol
            assert transport.get_extra_info("sslcontext") is context
            assert isinstance(transport.get_extra_info("ssl_object"), ssl.SSLObject)
            assert transport.get_extra_info("cipher") == transport.get_extra_info("ssl_object").cipher()
            assert transport.get_extra_info("compression", "default") is None
            assert transport.get_extra_info("sockname") == sock.getsockname()
            assert transport.get_extra_info("peername") == sock.getpeername()
            assert transport.get_extra_info("nonsense") is None
            assert transport.get_extra_info("nonsense", 42) == 42
            assert weakref.ref(transport)() is transport
        client, server = protocols
        assert client.transport.get_extra_info("peercert")["issuer"]
        assert server.transport.get_extra_info("peercert", "default") is None
        assert client.transport.get_extra_info("peername") == server.transport.get_extra_info("sockname")


async def test_what_a_lost_transport_still_knows(loop, tls):
    async with both_ends(loop, tls) as (client, server):
        client.transport.abort()
        await client.lost()
        await server.lost()
        transport = client.transport
        assert transport.get_extra_info("cipher")
        assert transport.get_extra_info("peercert")
        assert transport.get_extra_info("sslcontext") is tls[1]
        assert transport.get_extra_info("socket", "gone") == "gone"


async def test_a_lost_connection_is_freed(loop, tls):
    async def come_and_go():
        async with both_ends(loop, tls) as protocols:
            client, server = protocols
            client.transport.write(b"hello")
            await server.received(5)
            client.transport.close()
            await client.lost()
            await server.lost()
            return [weakref.ref(thing) for thing in (*protocols, client.transport, server.transport)]

    gone = await come_and_go()
    await helpers.iterations(3)
    gc.collect()
    assert [ref() for ref in gone] == [None] * 4


async def test_debug_mode_tells_of_the_handshake(loop, tls, logged):
    loop.set_debug(True)
    async with both_ends(loop, tls) as (client, server):
        client.transport.write(b"hello")
        await server.received(5)
    lines = logged(level=10)
    assert len([line for line in lines if "starts SSL handshake" in line]) == 2
    assert len([line for line in lines if "SSL handshake took" in line]) == 2
