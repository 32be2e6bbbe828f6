"""How much memory TLS connections keep."""

import asyncio
import contextlib
import ctypes
import socket
import ssl

import helpers_tls
import pytest
import trustme
from helpers import BufferedRecorder

pytestmark = pytest.mark.hotloop_only
CONNECTIONS = 20
# What OpenSSL receives a record into, at least.
RECORD = 16 * 1024


class _Mallinfo2(ctypes.Structure):
    _fields_ = [(f"field_{number}", ctypes.c_size_t) for number in range(10)]


def in_use():
    """How many bytes the C library has lent: `uordblks` and `hblkhd`."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Mallinfo2
    info = mallinfo2()
    return info.field_7 + info.field_4


needs_mallinfo2 = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="the C library does not tell"
)


@needs_mallinfo2
async def test_busy_connections_keep_their_buffers_until_they_are_idle(loop, tls, tls_engine):
    if tls_engine != "direct":
        pytest.skip("the other engines keep none")
    async with helpers_tls.serving(loop, tls, data_received=helpers_tls.echo) as (connect, _protocols):
        protocols = [helpers_tls.Recorder() for _ in range(CONNECTIONS)]
        transports = [await connect(protocol) for protocol in protocols]

        async def talk(protocol, transport):
            for number in range(20):
                transport.write(b"x" * 100)
                await protocol.received(100 * (number + 1))

        await asyncio.gather(*map(talk, protocols, transports))
        busy = in_use()
        await asyncio.sleep(2.5)
        idle = in_use()
        assert busy - idle > CONNECTIONS * RECORD
        # And again.
        for transport in transports:
            transport.write(b"y" * 100)
        for protocol in protocols:
            assert (await protocol.received(2100))[-100:] == b"y" * 100
            protocol.transport.abort()
            await protocol.lost()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_buffers_with_a_part_of_a_record_are_not_freed(loop, tls, tls_engine, version):
    """OpenSSL before 3.0.14 would free them, and use them further, which MALLOC_PERTURB_ shows."""
    if tls_engine != "direct":
        pytest.skip("the other engines keep none")
    tls[1].maximum_version = version
    protocol = BufferedRecorder(100, get_buffer=lambda protocol, hint: memoryview(protocol.buffer))
    async with helpers_tls.against_peer(loop, tls, protocol=protocol, server_side=True) as (_, peer):
        for number in range(20):
            await peer.send(b"x" * 50)
            await protocol.received(50 * (number + 1))
        # What is left of it is in OpenSSL's buffer.
        protocol.hooks["buffer_updated"] = lambda protocol, count: protocol.transport.pause_reading()
        await peer.send(bytes(range(200)))
        await protocol.received(1100)
        await asyncio.sleep(2.5)
        del protocol.hooks["buffer_updated"]
        protocol.transport.resume_reading()
        assert (await protocol.received(1200))[1000:] == bytes(range(200))
        for number in range(20):
            await peer.send(b"x" * 50)
            await protocol.received(1200 + 50 * (number + 1))
        # Only the header of a record has come.
        peer.object.write(b"the rest")
        record = peer.outgoing.read()
        await loop.sock_sendall(peer.sock, record[:5])
        await asyncio.sleep(2.5)
        await loop.sock_sendall(peer.sock, record[5:])
        assert (await protocol.received(2208))[2200:] == b"the rest"


@needs_mallinfo2
async def test_what_peers_send_before_their_handshakes_is_limited(loop, authority):
    # Signatures of this kind take longest.
    rsa = {"key_type": trustme.KeyType.RSA}
    tls = helpers_tls.server_context(authority, "localhost", **rsa), helpers_tls.client_context(authority)
    flood = b"\x17\x03\x03\x40\x00" + bytes(RECORD)
    async with helpers_tls.serving(loop, tls, server_options={"backlog": 100}) as (connect, _protocols):
        transport = await connect(helpers_tls.Recorder())
        address = transport.get_extra_info("peername")
        transport.abort()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        with pytest.raises(ssl.SSLWantReadError):
            tls[1].wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
        hello = outgoing.read()
        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(socket.create_connection(address)) for _ in range(100)]
            await asyncio.sleep(0.05)
            before = most = in_use()
            for peer in peers:
                peer.setblocking(False)
                peer.sendall(hello)
            for _ in range(40):
                for peer in peers:
                    # It is full, or the server has hung up.
                    with contextlib.suppress(OSError):
                        peer.sendall(flood * 8)
                await asyncio.sleep(0)
                most = max(most, in_use())
        assert most - before < 40 << 20
