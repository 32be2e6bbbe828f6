"""loop.sendfile() and sock_sendfile()."""

import asyncio
import os

import helpers
import pytest
from helpers import Recorder

SIZE = 2 << 20


@pytest.fixture(scope="module")
def content():
    return os.urandom(SIZE)


@pytest.fixture
def file(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    with path.open("rb") as file:
        yield file


@pytest.mark.parametrize(
    ("options", "start", "end"),
    [
        ({}, 0, SIZE),
        ({"offset": 1000}, 1000, SIZE),
        ({"count": 1000}, 0, 1000),
        ({"offset": 5, "count": 300_000}, 5, 300_005),
        ({"offset": SIZE}, SIZE, SIZE),
        ({"offset": SIZE - 10, "count": 100}, SIZE - 10, SIZE),
    ],
)
async def test_sending_a_file_over_a_connection(loop, attach, file, content, options, start, end):
    protocol, peer = await attach(Recorder())
    task = loop.create_task(loop.sendfile(protocol.transport, file, **options))
    assert await helpers.read_exactly(peer, end - start) == content[start:end]
    assert await task == end - start
    if start < end:
        assert file.tell() == end


async def test_a_file_between_two_writes(loop, attach, file, content):
    protocol, peer = await attach(Recorder())
    protocol.transport.write(b"before" + helpers.TOO_MUCH)
    task = loop.create_task(loop.sendfile(protocol.transport, file))
    expected = b"before" + helpers.TOO_MUCH + content
    assert await helpers.read_exactly(peer, len(expected)) == expected
    await task
    protocol.transport.write(b"after")
    assert await helpers.read_exactly(peer, 5) == b"after"
    peer.send(b"and received")
    assert await protocol.received(12) == b"and received"


@pytest.mark.asyncio_bug("the end of the connection is told twice to whom waits for it")
async def test_sending_a_file_to_a_peer_that_goes(loop, attach, file):
    protocol, peer = await attach(Recorder())
    protocol.transport.write(helpers.TOO_MUCH)
    task = loop.create_task(loop.sendfile(protocol.transport, file))
    await asyncio.sleep(0.005)
    peer.close()
    with pytest.raises(ConnectionError):
        await task
    assert "connection_lost" in protocol.calls or await protocol.lost()


async def test_what_cannot_be_sent(loop, attach, file, tmp_path):
    protocol, _ = await attach(Recorder())
    with (tmp_path / "file").open() as text, pytest.raises(ValueError, match="binary mode"):
        await loop.sock_sendfile(protocol.transport.get_extra_info("socket"), text)
    protocol.transport.close()
    with pytest.raises(RuntimeError, match="Transport is closing"):
        await loop.sendfile(protocol.transport, file)
    await protocol.lost()


async def test_sending_a_file_over_tls(loop, tls, file, content):
    served = Recorder()
    server = await loop.create_server(lambda: served, "127.0.0.1", 0, ssl=tls[0])
    async with helpers.running(server) as address:
        transport, protocol = await loop.create_connection(
            Recorder, *address, ssl=tls[1], server_hostname="localhost"
        )
        with pytest.raises(RuntimeError, match="fallback is disabled"):
            await loop.sendfile(transport, file, fallback=False)
        assert await loop.sendfile(transport, file) == SIZE
        assert await served.received(SIZE) == content
        transport.close()
        await protocol.lost()
        await served.lost()


async def test_sending_a_file_over_a_socket(loop, pair, file, content):
    ours, peer = pair
    task = loop.create_task(loop.sock_sendfile(ours, file, 10, 1 << 19))
    assert await helpers.read_exactly(peer, 1 << 19) == content[10 : 10 + (1 << 19)]
    assert await task == 1 << 19
    assert file.tell() == 10 + (1 << 19)
    assert loop.remove_writer(ours) is False


@pytest.mark.asyncio_from(3, 14)
async def test_the_position_of_the_file_does_not_matter(loop, attach, pair, file, content):
    """Before 3.14 it does where the standard library reads the file itself."""
    protocol, peer = await attach(Recorder())
    for position in (0, 1000, SIZE):
        file.seek(position)
        task = loop.create_task(loop.sendfile(protocol.transport, file))
        assert await helpers.read_exactly(peer, SIZE) == content
        assert await task == SIZE
        file.seek(position)
        task = loop.create_task(loop.sock_sendfile(pair[0], file))
        assert await helpers.read_exactly(pair[1], SIZE) == content
        assert await task == SIZE
