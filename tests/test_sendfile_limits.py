"""loop.sendfile() and sock_sendfile(): what they refuse, what they do instead, and how they end early."""

import asyncio
import io
import os
import socket

import helpers
import pytest
from helpers import Recorder

SIZE = 4 << 20
CONTENT = os.urandom(1 << 16) * (SIZE >> 16)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def file(path):
    with path.open("rb") as file:
        yield file


@pytest.fixture
def empty(tmp_path):
    (tmp_path / "empty").touch()
    with (tmp_path / "empty").open("rb") as file:
        yield file


# What is refused


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 0), ValueError, r"count must be a positive integer \(got 0\)"),
        ((0, -1), ValueError, r"count must be a positive integer \(got -1\)"),
        ((0, "1"), TypeError, r"count must be a positive integer \(got '1'\)"),
        ((0, 1.5), TypeError, r"count must be a positive integer \(got 1.5\)"),
        ((-1,), ValueError, r"offset must be a non-negative integer \(got -1\)"),
        (("0",), TypeError, r"offset must be a non-negative integer \(got '0'\)"),
        ((None,), TypeError, r"offset must be a non-negative integer \(got None\)"),
        ((1.0, 1), TypeError, r"offset must be a non-negative integer \(got 1.0\)"),
    ],
)
async def test_offsets_and_counts_that_are_refused(loop, attach, pair, file, arguments, error, message):
    with pytest.raises(error, match=message):
        await loop.sock_sendfile(pair[0], file, *arguments)
    protocol, peer = await attach(Recorder())
    with pytest.raises(error, match=message):
        await loop.sendfile(protocol.transport, file, *arguments)
    protocol.transport.write(b"goes on")
    assert await helpers.read_exactly(peer, 7) == b"goes on"
    assert protocol.transport.is_reading()
    assert file.tell() == 0


async def test_a_text_file_is_refused(loop, attach, pair, path):
    protocol, _ = await attach(Recorder())
    with path.open("r", encoding="latin-1") as text:
        with pytest.raises(ValueError, match="file should be opened in binary mode"):
            await loop.sock_sendfile(pair[0], text)
        with pytest.raises(ValueError, match="file should be opened in binary mode"):
            await loop.sendfile(protocol.transport, text)
    assert not protocol.transport.is_closing()


async def test_a_datagram_socket_is_refused(loop, file):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        with pytest.raises(ValueError, match="only SOCK_STREAM type sockets are supported"):
            await loop.sock_sendfile(sock, file)


async def test_a_socket_that_blocks_is_refused_in_debug_mode(loop, pair, file):
    loop.set_debug(True)
    pair[0].setblocking(True)
    with pytest.raises(ValueError, match="the socket must be non-blocking"):
        await loop.sock_sendfile(pair[0], file)


async def test_a_tls_socket_is_refused(loop, tls, file):
    options = {"server_hostname": "localhost", "do_handshake_on_connect": False}
    with socket.socket() as plain, tls[1].wrap_socket(plain, **options) as sock:
        sock.setblocking(False)
        sending = loop.sock_sendfile(sock, file)
        with pytest.raises(TypeError, match="Socket cannot be of type SSLSocket"):
            await sending


async def test_a_transport_that_closes_is_refused(loop, attach, file):
    protocol, _ = await attach(Recorder())
    for end in (protocol.transport.close, protocol.transport.abort):
        end()
        with pytest.raises(RuntimeError, match="Transport is closing"):
            await loop.sendfile(protocol.transport, file)
    await protocol.lost()


async def test_a_transport_of_datagrams_is_refused(loop, file):
    class Protocol(asyncio.DatagramProtocol):
        pass

    transport, _ = await loop.create_datagram_endpoint(Protocol, local_addr=("127.0.0.1", 0))
    with pytest.raises(RuntimeError, match="sendfile is not supported for transport"):
        await loop.sendfile(transport, file)
    transport.close()
    await helpers.iterations(2)


async def test_a_socket_that_is_not_connected(loop, file):
    with socket.socket() as sock:
        sock.setblocking(False)
        with pytest.raises(asyncio.SendfileNotAvailableError, match=r"os.sendfile call failed"):
            await loop.sock_sendfile(sock, file, fallback=False)


# What os.sendfile() cannot do


class WithoutDescriptor:
    """The least that a file is."""

    def __init__(self, content):
        self.rest = content

    def readinto(self, buffer):
        size = min(len(buffer), len(self.rest))
        buffer[:size], self.rest = self.rest[:size], self.rest[size:]
        return size


@pytest.mark.parametrize("make", [io.BytesIO, WithoutDescriptor])
async def test_a_file_without_a_descriptor(loop, attach, pair, make):
    protocol, peer = await attach(Recorder())
    for sending in (
        loop.sock_sendfile(pair[0], make(CONTENT), fallback=False),
        loop.sendfile(protocol.transport, make(CONTENT), fallback=False),
    ):
        with pytest.raises(asyncio.SendfileNotAvailableError, match="not a regular file"):
            await sending
    for send, receiver in ((loop.sock_sendfile, pair[1]), (loop.sendfile, peer)):
        target = pair[0] if receiver is pair[1] else protocol.transport
        task = asyncio.create_task(send(target, make(CONTENT)))
        assert await helpers.read_exactly(receiver, SIZE) == CONTENT
        assert await task == SIZE
        task = asyncio.create_task(send(target, make(CONTENT), 0, 1000))
        assert await helpers.read_exactly(receiver, 1000) == CONTENT[:1000]
        assert await task == 1000


async def test_the_fallback_takes_offset_and_count_and_leaves_the_position(loop, attach, pair):
    protocol, peer = await attach(Recorder())
    for target, receiver in ((pair[0], pair[1]), (protocol.transport, peer)):
        file = io.BytesIO(CONTENT)
        send = loop.sock_sendfile if receiver is pair[1] else loop.sendfile
        task = asyncio.create_task(send(target, file, 12345, 100_000))
        assert await helpers.read_exactly(receiver, 100_000) == CONTENT[12345:112345]
        assert await task == 100_000
        assert file.tell() == 112345
        assert await send(target, file, SIZE) == 0


async def test_a_pipe_for_a_file(loop, attach):
    read, write = os.pipe()
    os.write(write, b"through a pipe")
    os.close(write)
    protocol, peer = await attach(Recorder())
    with open(read, "rb", 0) as file:
        # Its size is 0, which is that of an empty file.
        assert await loop.sendfile(protocol.transport, file) == 0
        with pytest.raises(OSError, match="Illegal seek"):
            await loop.sendfile(protocol.transport, file, 0, 7)
    protocol.transport.write(b"goes on")
    protocol.transport.close()
    assert (await helpers.read_to_end(peer)).endswith(b"goes on")


# Positions


async def test_an_empty_file(loop, attach, pair, empty):
    protocol, peer = await attach(Recorder())
    assert await loop.sock_sendfile(pair[0], empty) == 0
    assert await loop.sock_sendfile(pair[0], empty, 0, 10) == 0
    assert await loop.sendfile(protocol.transport, empty) == 0
    assert await loop.sendfile(protocol.transport, empty, 10) == 0
    protocol.transport.write(b"goes on")
    assert await helpers.read_exactly(peer, 7) == b"goes on"


@pytest.mark.parametrize(
    ("offset", "count", "sent"),
    [
        (SIZE, None, 0),
        (SIZE + 1000, None, 0),
        (SIZE + 1000, 10, 0),
        (SIZE - 10, None, 10),
        (SIZE - 10, 1 << 40, 10),
    ],
)
async def test_beyond_the_end_of_a_file(loop, attach, pair, file, offset, count, sent):
    protocol, peer = await attach(Recorder())
    assert await loop.sock_sendfile(pair[0], file, offset, count) == sent
    assert await helpers.read_exactly(pair[1], sent) == CONTENT[SIZE - sent :]
    assert await loop.sendfile(protocol.transport, file, offset, count) == sent
    assert await helpers.read_exactly(peer, sent) == CONTENT[SIZE - sent :]
    if sent:
        assert file.tell() == SIZE


async def test_the_position_of_a_file_is_where_sending_ended(loop, attach, pair, path):
    protocol, _ = await attach(Recorder())
    for send, target in ((loop.sock_sendfile, pair[0]), (loop.sendfile, protocol.transport)):
        with path.open("rb", 0) as file:
            assert await send(target, file, 1000, 2000) == 2000
            assert file.tell() == 3000
            assert file.read(10) == CONTENT[3000:3010]


# A connection while a file is sent


async def started(loop, transport, file):
    """A task that sends the file, once its socket is full."""
    task = asyncio.create_task(loop.sendfile(transport, file))
    await helpers.until(lambda: task.done() or not transport.is_reading())
    await helpers.iterations(5)
    assert not task.done()
    return task


async def test_writing_meanwhile_is_refused(loop, attach, file):
    protocol, peer = await attach(Recorder())
    task = await started(loop, protocol.transport, file)
    with pytest.raises(RuntimeError, match="sendfile is in progress"):
        protocol.transport.write(b"meanwhile")
    with pytest.raises(RuntimeError, match="sendfile is in progress"):
        protocol.transport.write(b"")
    assert await helpers.read_exactly(peer, SIZE) == CONTENT
    assert await task == SIZE
    protocol.transport.write(b"afterwards")
    assert await helpers.read_exactly(peer, 10) == b"afterwards"


async def test_another_file_meanwhile_is_refused(loop, attach, file, path):
    protocol, peer = await attach(Recorder())
    task = await started(loop, protocol.transport, file)
    with path.open("rb") as another:
        for _ in range(3):
            with pytest.raises((RuntimeError, KeyError)):
                await loop.sendfile(protocol.transport, another)
            with pytest.raises(RuntimeError, match="sendfile is in progress"):
                protocol.transport.write(b"meanwhile")
    assert not protocol.transport.is_reading()
    assert await helpers.read_exactly(peer, SIZE) == CONTENT
    assert await task == SIZE
    protocol.transport.write(b"afterwards")
    assert await helpers.read_exactly(peer, 10) == b"afterwards"


async def test_what_arrives_meanwhile_is_received_afterwards(loop, attach, file):
    protocol, peer = await attach(Recorder())
    task = await started(loop, protocol.transport, file)
    peer.send(b"meanwhile")
    await asyncio.sleep(0.005)
    assert protocol.data == b""
    assert await helpers.read_exactly(peer, SIZE) == CONTENT
    await task
    assert await protocol.received(9) == b"meanwhile"


@pytest.mark.parametrize("native", [True, False])
async def test_a_transport_that_was_paused_stays_so(loop, attach, file, native):
    protocol, peer = await attach(Recorder())
    protocol.transport.pause_reading()
    peer.send(b"early")
    task = asyncio.create_task(loop.sendfile(protocol.transport, file if native else io.BytesIO(CONTENT)))
    assert await helpers.read_exactly(peer, SIZE) == CONTENT
    assert await task == SIZE
    assert not protocol.transport.is_reading()
    await asyncio.sleep(0.005)
    assert protocol.data == b""
    protocol.transport.resume_reading()
    assert await protocol.received(5) == b"early"


async def test_a_slow_reader(loop, attach, file):
    protocol, peer = await attach(Recorder())
    task = await started(loop, protocol.transport, file)
    received = bytearray()
    while len(received) < SIZE:
        received += await loop.sock_recv(peer, 100_000)
        await asyncio.sleep(0)
    assert received == CONTENT
    assert await task == SIZE


async def test_several_at_once(loop, attach, path):
    async def exchange():
        protocol, peer = await attach(Recorder())
        with path.open("rb") as file:
            sending = asyncio.create_task(loop.sendfile(protocol.transport, file))
            assert await helpers.read_exactly(peer, SIZE) == CONTENT
            assert await sending == SIZE

    await asyncio.gather(*(exchange() for _ in range(8)))


async def test_one_after_another(loop, attach, file):
    protocol, peer = await attach(Recorder())
    for start in range(0, SIZE, SIZE // 4):
        task = asyncio.create_task(loop.sendfile(protocol.transport, file, start, SIZE // 4))
        assert await helpers.read_exactly(peer, SIZE // 4) == CONTENT[start : start + SIZE // 4]
        assert await task == SIZE // 4


# Early ends


async def test_a_sendfile_that_is_cancelled(loop, attach, file):
    """The connection lives on; what has been sent stays sent."""
    protocol, peer = await attach(Recorder())
    task = await started(loop, protocol.transport, file)
    await helpers.cancel(task)
    assert protocol.transport.is_reading()
    protocol.transport.write(b"goes on")
    protocol.transport.close()
    received = await helpers.read_to_end(peer)
    sent = len(received) - 7
    assert received == CONTENT[:sent] + b"goes on"
    assert 0 < sent < SIZE
    await protocol.lost()


async def test_a_sock_sendfile_that_is_cancelled(loop, pair, file):
    task = asyncio.create_task(loop.sock_sendfile(pair[0], file))
    await helpers.iterations(5)
    await helpers.cancel(task)
    assert loop.remove_writer(pair[0]) is False
    pair[0].shutdown(socket.SHUT_WR)
    received = await helpers.read_to_end(pair[1])
    assert received == CONTENT[: len(received)]
    assert 0 < len(received) < SIZE


@pytest.mark.asyncio_bug("the transport never writes again")
async def test_a_sendfile_that_waits_for_earlier_writes_is_cancelled(loop, attach, file):
    protocol, peer = await attach(Recorder())
    protocol.transport.write(helpers.TOO_MUCH)
    task = await started(loop, protocol.transport, file)
    await helpers.cancel(task)
    assert file.tell() == 0
    assert protocol.transport.is_reading()
    protocol.transport.write(b"goes on")
    protocol.transport.close()
    received = await helpers.read_to_end(peer)
    assert received == helpers.TOO_MUCH + b"goes on"
    await protocol.lost()


async def test_a_peer_that_goes_while_a_socket_sends(loop, pair, file):
    task = asyncio.create_task(loop.sock_sendfile(pair[0], file))
    await helpers.iterations(5)
    assert not task.done()
    pair[1].close()
    with pytest.raises(ConnectionError):
        await task
    assert 0 < os.lseek(file.fileno(), 0, os.SEEK_CUR) < SIZE
    assert loop.remove_writer(pair[0]) is False


async def test_a_peer_that_goes_while_a_transport_sends(loop, attach, file):
    protocol, peer = await attach(Recorder())
    task = await started(loop, protocol.transport, file)
    peer.close()
    with pytest.raises(ConnectionError):
        await task
    await protocol.lost()


async def test_a_peer_that_goes_while_the_fallback_sends(loop, attach):
    protocol, peer = await attach(Recorder())
    task = await started(loop, protocol.transport, io.BytesIO(CONTENT))
    peer.close()
    with pytest.raises(ConnectionError):
        await task
    await protocol.lost()
    assert protocol.calls.count("connection_lost") == 1


async def test_a_sendfile_over_tls_that_is_cancelled(loop, tls, file):
    served = Recorder(connection_made=lambda protocol, transport: transport.pause_reading())
    server = await loop.create_server(lambda: served, "127.0.0.1", 0, ssl=tls[0])
    async with helpers.running(server) as address:
        transport, protocol = await loop.create_connection(
            Recorder, *address, ssl=tls[1], server_hostname="localhost"
        )
        task = asyncio.create_task(loop.sendfile(transport, file))
        await helpers.until(lambda: transport.get_protocol() is not protocol)
        await helpers.cancel(task)
        assert transport.get_protocol() is protocol
        await served.until("connection_made")
        served.transport.resume_reading()
        served.transport.write(b"received still")
        assert await protocol.received(14) == b"received still"
        transport.abort()
        await protocol.lost()
        await served.lost()


@pytest.mark.asyncio_bug("the end of the wait is told twice")
async def test_a_transport_that_ends_before_the_file_is_sent(loop, attach, file):
    # The number of its descriptor is another connection's when the file would be sent.
    protocol, peer = await attach(Recorder())
    transport = protocol.transport
    number = transport.get_extra_info("socket").fileno()
    transport.write(helpers.TOO_MUCH)
    task = await started(loop, transport, file)
    transport.close()
    strangers = []

    def take_number():
        while transport._sock is None and number not in [sock.fileno() for sock in strangers]:
            strangers.extend(socket.socketpair())

    received = asyncio.ensure_future(helpers.read_to_end(peer))
    end = loop.time() + 5
    while not task.done() and loop.time() < end:
        loop.call_soon(take_number)
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(ConnectionError):
        await task
    assert await received == helpers.TOO_MUCH
    assert strangers
    for sock in strangers:
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(1)
    for sock in strangers:
        sock.close()


@pytest.mark.hotloop_only
@pytest.mark.parametrize("end", ["abort", "close"])
async def test_a_transport_that_ends_ends_its_sendfile(loop, tmp_path, end):
    """asyncio's call never returns."""
    ours, peer = helpers.unix_pair()
    protocol = Recorder()
    transport, _ = await loop.create_connection(lambda: protocol, sock=ours)
    path = tmp_path / "large"
    path.write_bytes(helpers.TOO_MUCH)
    with path.open("rb") as file:
        sending = asyncio.ensure_future(loop.sendfile(transport, file))
        await asyncio.sleep(0.05)
        getattr(transport, end)()
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(sending, 10)
    with peer:
        assert len(await helpers.read_to_end(peer)) < len(helpers.TOO_MUCH)
    assert protocol.calls[-1] == "connection_lost"


@pytest.mark.asyncio_bug("its transport reports that the future of its sendfile is cancelled already")
async def test_a_sendfile_that_the_program_cancels_as_its_transport_ends(loop, tmp_path):
    """What the program asked for is what it gets."""
    ours, peer = helpers.unix_pair()
    transport, _ = await loop.create_connection(Recorder, sock=ours)
    path = tmp_path / "large"
    path.write_bytes(helpers.TOO_MUCH)
    with peer, path.open("rb") as file:
        sending = asyncio.ensure_future(loop.sendfile(transport, file))
        await asyncio.sleep(0.05)
        transport.abort()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(sending, 10)
