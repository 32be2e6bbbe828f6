"""create_unix_server and create_unix_connection."""

import asyncio
import contextlib
import os
import pathlib
import secrets
import socket

import helpers
import pytest
from helpers import Recorder


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "socket")


@contextlib.asynccontextmanager
async def serving(loop, path, **options):
    """An echo server at that path, and the protocols of its connections as they come."""
    protocols = []

    def factory():
        protocols.append(Recorder(data_received=lambda protocol, data: protocol.transport.write(data)))
        return protocols[-1]

    server = await loop.create_unix_server(factory, path, **options)
    try:
        yield protocols
    finally:
        server.close()
        for protocol in protocols:
            protocol.transport.abort()
        await helpers.iterations(2)


async def call(loop, path):
    """One echo."""
    transport, protocol = await loop.create_unix_connection(Recorder, path)
    transport.write(b"hello")
    assert await protocol.received(5) == b"hello"
    transport.close()
    assert await protocol.lost() is None
    return transport


@pytest.mark.parametrize("kind", [str, os.fsencode, pathlib.Path])
async def test_a_server_at_a_path(loop, path, kind):
    async with serving(loop, kind(path)) as protocols:
        transport = await call(loop, kind(path))
        assert transport.get_extra_info("peername") == path
        assert await protocols[0].lost() is None
        assert protocols[0].transport.get_extra_info("sockname") == path
        assert protocols[0].transport.get_extra_info("peername") == ""


@pytest.mark.parametrize("kind", [str, os.fsencode])
async def test_a_server_at_an_abstract_name(loop, kind):
    name = f"\0hotloop-{secrets.token_hex(8)}"
    async with serving(loop, kind(name)):
        await call(loop, kind(name))
    with pytest.raises(ConnectionRefusedError):
        await loop.create_unix_connection(Recorder, name)


async def test_many_connections_at_a_path(loop, path):
    async with serving(loop, path) as protocols:
        await asyncio.gather(*(call(loop, path) for _ in range(50)))
        assert len(protocols) == 50


async def test_a_lot_of_data(loop, path):
    async with serving(loop, path):
        transport, protocol = await loop.create_unix_connection(Recorder, path)
        data = os.urandom(8 << 20)
        transport.write(data)
        assert await protocol.received(len(data)) == data
        transport.close()
        await protocol.lost()


# The file


@pytest.mark.asyncio_from(3, 13)
async def test_the_file_goes_with_the_server(loop, path):
    async with serving(loop, path):
        assert os.path.exists(path)
    assert not os.path.exists(path)


@pytest.mark.asyncio_from(3, 13)
async def test_the_file_may_stay(loop, path):
    async with serving(loop, path, cleanup_socket=False):
        pass
    assert os.path.exists(path)


@pytest.mark.asyncio_from(3, 13)
async def test_a_file_that_is_already_gone(loop, path, logged):
    async with serving(loop, path):
        os.unlink(path)
    assert logged() == []


@pytest.mark.asyncio_from(3, 13)
async def test_a_file_that_is_somebody_elses_stays(loop, path):
    server = await loop.create_unix_server(Recorder, path)
    os.unlink(path)
    other = socket.socket(socket.AF_UNIX)
    other.bind(path)
    server.close()
    assert os.path.exists(path)
    other.close()


@pytest.mark.asyncio_from(3, 13)
async def test_the_file_of_a_socket_made_by_hand_goes_too(loop, path):
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    server = await loop.create_unix_server(Recorder, sock=sock)
    server.close()
    assert not os.path.exists(path)


@pytest.mark.skipif(helpers.PYTHON >= (3, 13), reason="from Python 3.13 on it goes with the server")
async def test_the_file_stays(loop, path):
    async with serving(loop, path):
        pass
    assert os.path.exists(path)


async def test_a_stale_file_is_replaced(loop, path):
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(path)
    stale.close()
    async with serving(loop, path):
        await call(loop, path)


async def test_a_file_that_is_no_socket_is_an_error(loop, path):
    pathlib.Path(path).write_text("precious")
    with pytest.raises(OSError, match=f"Address {path!r} is already in use"):
        await loop.create_unix_server(Recorder, path)
    assert pathlib.Path(path).read_text() == "precious"


# Errors


async def test_nobody_there(loop, path):
    with pytest.raises(FileNotFoundError):
        await loop.create_unix_connection(Recorder, path)
    with pytest.raises(FileNotFoundError):
        await loop.create_unix_server(Recorder, path + "/deeper")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        with pytest.raises(ConnectionRefusedError):
            await loop.create_unix_connection(Recorder, path)


async def test_a_path_that_is_too_long(loop, path):
    for call in (loop.create_unix_connection, loop.create_unix_server):
        with pytest.raises(OSError, match="path too long"):
            await call(Recorder, path + "x" * 200)


async def test_arguments_that_contradict_each_other(loop, path):
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as sock:
        for create, arguments, options, message in (
            (loop.create_unix_connection, (), {}, "no path and sock were specified"),
            (loop.create_unix_connection, (path,), {"sock": sock}, "can not be specified at the same time"),
            (loop.create_unix_connection, (), {"sock": tcp}, "A UNIX Domain Stream Socket was expected"),
            (loop.create_unix_connection, (path,), {"server_hostname": "x"}, "only meaningful with ssl"),
            (loop.create_unix_connection, (path,), {"ssl": True}, "you have to pass server_hostname"),
            (loop.create_unix_connection, (path,), {"ssl_handshake_timeout": 1}, "only meaningful with ssl"),
            (loop.create_unix_server, (), {}, "path was not specified, and no sock specified"),
            (loop.create_unix_server, (path,), {"sock": sock}, "can not be specified at the same time"),
            (loop.create_unix_server, (), {"sock": tcp}, "A UNIX Domain Stream Socket was expected"),
            (loop.create_unix_server, (path,), {"ssl_shutdown_timeout": 1}, "only meaningful with ssl"),
        ):
            with pytest.raises(ValueError, match=message):
                await create(Recorder, *arguments, **options)
        with pytest.raises(TypeError, match="ssl argument must be an SSLContext or None"):
            await loop.create_unix_server(Recorder, path, ssl=True)


# Sockets and servers


async def test_a_socket_made_by_hand(loop, path):
    listening = helpers.listener(socket.AF_UNIX, path)
    async with serving(loop, None, sock=listening):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        transport, protocol = await loop.create_unix_connection(Recorder, sock=sock)
        transport.write(b"hello")
        assert await protocol.received(5) == b"hello"
        transport.close()
        await protocol.lost()
    assert listening.fileno() == -1


async def test_a_server_can_start_later(loop, path):
    server = await loop.create_unix_server(Recorder, path, start_serving=False)
    with pytest.raises(ConnectionRefusedError):
        await loop.create_unix_connection(Recorder, path)
    await server.start_serving()
    transport, protocol = await loop.create_unix_connection(Recorder, path)
    transport.close()
    await protocol.lost()
    server.close()
    await helpers.iterations(3)


async def test_an_accepted_socket(loop, path):
    with helpers.listener(socket.AF_UNIX, path) as server:
        client = socket.socket(socket.AF_UNIX)
        client.connect(path)
        accepted, _ = server.accept()
    _transport, protocol = await loop.connect_accepted_socket(Recorder, accepted)
    client.sendall(b"hello")
    assert await protocol.received(5) == b"hello"
    client.close()
    assert await protocol.lost() is None


async def test_streams(loop, path):
    async def handle(reader, writer):
        writer.write((await reader.readline()).upper())
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(handle, path)
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"hello\n")
    assert await reader.read() == b"HELLO\n"
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()
