"""BufferedProtocol: data is received into a buffer that the protocol owns."""

import asyncio
import os

import helpers
import pytest
from helpers import BufferedRecorder


async def test_data_comes_in_the_protocols_own_buffer(attach):
    hints = []
    protocol, peer = await attach(BufferedRecorder(get_buffer=lambda protocol, hint: hints.append(hint)))
    peer.send(b"hello")
    assert await protocol.received(5) == b"hello"
    assert protocol.buffer[:6] == b"hello\0"
    assert protocol.calls == ["connection_made", "get_buffer", "buffer_updated"]
    assert hints == [-1]
    peer.close()
    assert await protocol.lost() is None
    assert protocol.calls[-2:] == ["eof_received", "connection_lost"]


@pytest.mark.parametrize("size", [1, 7, 4096, 1 << 20])
async def test_buffers_of_any_size(loop, attach, size):
    protocol, peer = await attach(BufferedRecorder(size))
    data = os.urandom(min(size * 300, 4 << 20))
    sending = loop.create_task(loop.sock_sendall(peer, data))
    assert await protocol.received(len(data)) == data
    await sending


async def test_a_view_of_a_part_of_a_buffer(loop, attach):
    storage = bytearray(100)
    got = bytearray()

    def updated(protocol, count):
        got.extend(storage[40 : 40 + count])

    _protocol, peer = await attach(
        BufferedRecorder(get_buffer=lambda protocol, hint: memoryview(storage)[40:45], buffer_updated=updated)
    )
    peer.send(b"hello world")
    await helpers.until(lambda: len(got) == 11)
    assert got == b"hello world"
    assert storage[:40] == bytes(40)
    assert storage[45:] == bytes(55)


async def test_the_buffer_is_let_go_before_buffer_updated(attach):
    """So that the protocol can resize it there."""

    def updated(protocol, count):
        protocol.buffer += b"more"
        del protocol.buffer[:4]

    protocol, peer = await attach(BufferedRecorder(buffer_updated=updated))
    for _ in range(3):
        count = len(protocol.data)
        peer.send(b"hello")
        await protocol.received(count + 5)
    assert not protocol.transport.is_closing()


async def test_a_buffer_that_get_buffer_alone_refers_to(attach):
    protocol, peer = await attach(
        BufferedRecorder(
            get_buffer=lambda protocol, hint: bytearray(10), buffer_updated=lambda protocol, count: None
        )
    )
    peer.send(b"hello")
    await protocol.until("buffer_updated")
    assert len(protocol.data) == 5


async def test_an_empty_buffer_is_an_error(attach, reports):
    protocol, peer = await attach(BufferedRecorder(0))
    peer.send(b"hello")
    assert isinstance(await protocol.lost(), RuntimeError)
    report = reports.take()
    assert report["message"] == "Fatal error: protocol.get_buffer() call failed."
    assert str(report["exception"]) == "get_buffer() returned an empty buffer"


@pytest.mark.parametrize("bad", [42, "text", b"read only", object()])
async def test_what_is_no_writable_buffer_is_an_error(attach, reports, bad):
    protocol, peer = await attach(BufferedRecorder(get_buffer=lambda protocol, hint: bad))
    peer.send(b"hello")
    assert isinstance(await protocol.lost(), TypeError)
    report = reports.take()
    assert report["message"].startswith("Fatal ")
    if isinstance(bad, (str, bytes)):
        words = f"recv_into() argument 1 must be read-write bytes-like object, not {type(bad).__name__}"
        assert str(report["exception"]) == words
    assert report["protocol"] is protocol


async def test_pausing_in_buffer_updated(loop, attach):
    protocol, peer = await attach(
        BufferedRecorder(100, buffer_updated=lambda protocol, count: protocol.transport.pause_reading())
    )
    peer.send(bytes(500))
    for times in range(1, 6):
        await protocol.received(100 * times)
        await asyncio.sleep(0.001)
        assert len(protocol.data) == 100 * times
        protocol.transport.resume_reading()


async def test_an_echo(loop, attach):
    def echo(protocol, count):
        protocol.transport.write(memoryview(protocol.buffer)[:count])
        protocol.buffer[:count] = bytes(count)

    received = bytearray()
    _protocol, peer = await attach(BufferedRecorder(buffer_updated=echo))
    data = os.urandom(100_000)
    sending = loop.create_task(loop.sock_sendall(peer, data))
    received += await helpers.read_exactly(peer, len(data))
    await sending
    assert received == data


async def test_closing_in_get_buffer(attach):
    """What comes of the data is not said; the connection ends once, and cleanly."""
    protocol, peer = await attach(
        BufferedRecorder(get_buffer=lambda protocol, hint: protocol.transport.close())
    )
    peer.send(b"hello")
    assert await protocol.lost() is None
    await helpers.iterations(3)
    assert protocol.calls.count("connection_lost") == 1
    assert protocol.calls[-1] == "connection_lost"


async def test_the_end_while_reading_is_paused(attach):
    protocol, peer = await attach(BufferedRecorder())
    protocol.transport.pause_reading()
    peer.send(b"last")
    peer.close()
    await asyncio.sleep(0.01)
    assert protocol.calls == ["connection_made"]
    protocol.transport.resume_reading()
    assert await protocol.lost() is None
    assert protocol.data == b"last"
