"""asyncio's streams, on the loop's transports."""

import asyncio
import contextlib
import os
import socket
import sys

import helpers
import pytest


@contextlib.asynccontextmanager
async def serving(handle, **options):
    server = await asyncio.start_server(handle, "127.0.0.1", 0, **options)
    async with helpers.running(server) as address:
        yield address
    await helpers.iterations(3)


async def close(writer):
    writer.close()
    await writer.wait_closed()


async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    await close(writer)


async def test_an_echo(loop):
    async with serving(echo) as address:
        reader, writer = await asyncio.open_connection(*address)
        writer.writelines([b"he", b"llo"])
        await writer.drain()
        assert await reader.readexactly(5) == b"hello"
        assert writer.can_write_eof()
        writer.write_eof()
        assert await reader.read() == b""
        assert reader.at_eof()
        await close(writer)
        assert writer.is_closing()


async def test_a_large_echo(loop):
    async with serving(echo) as address:
        reader, writer = await asyncio.open_connection(*address)
        data = os.urandom(8 << 20)

        async def send():
            for start in range(0, len(data), 100_000):
                writer.write(data[start : start + 100_000])
                await writer.drain()
            writer.write_eof()

        _, received = await asyncio.gather(send(), reader.read())
        assert received == data
        await close(writer)


async def test_many_echoes_at_once(loop):
    async def talk(address, number):
        reader, writer = await asyncio.open_connection(*address)
        for turn in range(10):
            message = b"%d %d\n" % (number, turn)
            writer.write(message)
            assert await reader.readline() == message
        await close(writer)

    async with serving(echo) as address:
        await asyncio.gather(*(talk(address, number) for number in range(50)))


async def test_lines_and_separators(loop):
    async def handle(reader, writer):
        writer.write(b"one\ntwo\nthree;four;rest")
        await close(writer)

    async with serving(handle) as address:
        reader, writer = await asyncio.open_connection(*address)
        assert await reader.readline() == b"one\n"
        assert await reader.readuntil(b"\n") == b"two\n"
        assert await reader.readuntil(b";") == b"three;"
        assert await reader.readexactly(5) == b"four;"
        with pytest.raises(asyncio.IncompleteReadError) as caught:
            await reader.readexactly(10)
        assert caught.value.partial == b"rest"
        await close(writer)


async def test_a_line_that_is_too_long(loop):
    async def handle(reader, writer):
        writer.write(b"x" * 1000 + b"\n")
        await close(writer)

    async with serving(handle) as address:
        reader, writer = await asyncio.open_connection(*address, limit=100)
        with pytest.raises(ValueError, match="limit"):
            await reader.readline()
        await close(writer)


async def test_reading_stops_while_nobody_reads(loop):
    """The reader's limit pauses the transport, and the sender feels it."""

    async def handle(reader, writer):
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"x" * 65536)
                sent.append(1)
                await writer.drain()

    sent = []
    async with serving(handle) as address:
        reader, writer = await asyncio.open_connection(*address, limit=1000)
        await asyncio.sleep(0.03)
        stuck = len(sent)
        await asyncio.sleep(0.02)
        assert len(sent) == stuck
        assert await reader.readexactly(1 << 20) == b"x" * (1 << 20)
        await helpers.until(lambda: len(sent) > stuck or reader.at_eof())
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        await asyncio.sleep(0.02)


async def test_a_reset_reaches_reader_and_writer(loop):
    ours, peer = helpers.tcp_pair()
    reader, writer = await asyncio.open_connection(sock=ours)
    task = loop.create_task(reader.read())
    await asyncio.sleep(0)
    helpers.reset(peer)
    with pytest.raises(ConnectionResetError):
        await task
    writer.write(b"x")
    with pytest.raises(ConnectionResetError):
        await writer.drain()
    writer.close()
    with contextlib.suppress(ConnectionResetError):
        await writer.wait_closed()


async def test_drain_tells_of_a_peer_that_has_gone(loop):
    ours, peer = socket.socketpair()
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    peer.close()
    assert await reader.read() == b""
    writer.write(b"x")
    with pytest.raises(ConnectionResetError):
        await writer.drain()
    writer.close()
    with contextlib.suppress(BrokenPipeError):
        await writer.wait_closed()


@pytest.mark.skipif(sys.version_info < (3, 11, 7), reason="asyncio reports it from Python 3.11.7 on")
async def test_a_handler_that_fails_is_reported(loop, reports):
    async def handle(reader, writer):
        raise ValueError("broken")

    async with serving(handle) as address:
        _reader, writer = await asyncio.open_connection(*address)
        await helpers.until(lambda: reports)
        writer.close()
        await asyncio.sleep(0.005)
    report = reports.take()
    assert str(report["exception"]) == "broken"
    assert "client_connected_cb" in report["message"]


async def test_a_plain_function_as_handler(loop):
    async with serving(lambda reader, writer: (writer.write(b"hello"), writer.close())) as address:
        reader, writer = await asyncio.open_connection(*address)
        assert await reader.read() == b"hello"
        await close(writer)


async def test_cancelling_a_read_loses_nothing(loop):
    ours, peer = helpers.unix_pair()
    reader, writer = await asyncio.open_connection(sock=ours)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.002):
                await reader.readexactly(5)
    peer.send(b"hello")
    assert await reader.readexactly(5) == b"hello"
    await close(writer)
    peer.close()


async def test_upgrading_to_tls(loop, tls):
    server_context, client_context = tls

    async def handle(reader, writer):
        assert await reader.readline() == b"upgrade\n"
        writer.write(b"go ahead\n")
        await writer.start_tls(server_context)
        writer.write(b"secret: " + await reader.readline())
        await writer.drain()
        await close(writer)

    async with serving(handle) as address:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"upgrade\n")
        assert await reader.readline() == b"go ahead\n"
        await writer.start_tls(client_context, server_hostname="localhost")
        assert writer.get_extra_info("ssl_object") is not None
        writer.write(b"password\n")
        assert await reader.readline() == b"secret: password\n"
        await close(writer)
