"""sock_recv, sock_sendall, sock_connect, sock_accept and their siblings."""

import asyncio
import contextlib
import inspect
import os
import re
import socket
import ssl
import threading

import helpers
import pytest


@pytest.fixture
def listening():
    with helpers.listener() as sock:
        yield sock


def udp():
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.setblocking(False)
    return sock


@pytest.fixture
def datagrams():
    """Two datagram sockets on loopback."""
    with udp() as ours, udp() as peer:
        yield ours, peer


# Receiving


async def test_receiving_what_is_there(loop, pair):
    ours, peer = pair
    peer.send(b"hello")
    await asyncio.sleep(0.001)
    assert await loop.sock_recv(ours, 3) == b"hel"
    assert await loop.sock_recv(ours, 100) == b"lo"


async def test_receiving_waits_for_data(loop, pair):
    ours, peer = pair
    task = loop.create_task(loop.sock_recv(ours, 100))
    await helpers.iterations(3)
    assert not task.done()
    peer.send(b"hello")
    assert await task == b"hello"
    assert loop.remove_reader(ours) is False


async def test_receiving_the_end(loop, pair):
    ours, peer = pair
    task = loop.create_task(loop.sock_recv(ours, 100))
    await helpers.iterations(2)
    peer.shutdown(socket.SHUT_WR)
    assert await task == b""
    assert await loop.sock_recv(ours, 100) == b""


async def test_receiving_a_reset(loop):
    ours, peer = helpers.tcp_pair()
    task = loop.create_task(loop.sock_recv(ours, 100))
    await helpers.iterations(2)
    helpers.reset(peer)
    with pytest.raises(ConnectionResetError):
        await task
    assert loop.remove_reader(ours) is False
    ours.close()


async def test_receiving_into_a_buffer(loop, pair):
    ours, peer = pair
    buffer = bytearray(10)
    task = loop.create_task(loop.sock_recv_into(ours, memoryview(buffer)[2:7]))
    await helpers.iterations(2)
    peer.send(b"hello world")
    assert await task == 5
    assert buffer == b"\0\0hello\0\0\0"
    assert await loop.sock_recv_into(ours, buffer) == 6
    assert buffer[:6] == b" world"


async def test_receiving_into_what_is_no_buffer(loop, pair):
    ours, peer = pair
    peer.send(b"x")
    await asyncio.sleep(0.001)
    for bad in (b"read only", 42, None, "text"):
        with pytest.raises(TypeError, match="read-write bytes-like object"):
            await loop.sock_recv_into(ours, bad)
    assert await loop.sock_recv(ours, 10) == b"x"


async def test_receiving_a_wrong_number_of_bytes(loop, pair):
    ours, _ = pair
    with pytest.raises(ValueError, match="negative buffersize"):
        await loop.sock_recv(ours, -1)
    with pytest.raises(TypeError):
        await loop.sock_recv(ours, "10")
    with pytest.raises(TypeError):
        await loop.sock_recv(ours, None)
    assert loop.remove_reader(ours) is False


async def test_receiving_a_lot_at_once(loop, pair):
    ours, peer = pair
    data = os.urandom(1 << 20)
    sender = loop.create_task(loop.sock_sendall(peer, data))
    assert await helpers.read_exactly(ours, len(data)) == data
    await sender


async def test_datagrams(loop, datagrams):
    ours, peer = datagrams
    task = loop.create_task(loop.sock_recvfrom(ours, 100))
    await helpers.iterations(2)
    assert await loop.sock_sendto(peer, b"hello", ours.getsockname()) == 5
    assert await task == (b"hello", peer.getsockname())

    buffer = bytearray(10)
    task = loop.create_task(loop.sock_recvfrom_into(ours, buffer))
    await helpers.iterations(2)
    await loop.sock_sendto(peer, b"world", ours.getsockname())
    assert await task == (5, peer.getsockname())
    assert buffer[:5] == b"world"

    await loop.sock_sendto(peer, b"123456", ours.getsockname())
    assert await loop.sock_recvfrom_into(ours, buffer, 4) == (4, peer.getsockname())
    assert buffer[:5] == b"1234d"

    await loop.sock_sendto(peer, b"", ours.getsockname())
    assert await loop.sock_recvfrom(ours, 10) == (b"", peer.getsockname())


async def test_sending_a_datagram_that_is_too_long(loop, datagrams):
    ours, peer = datagrams
    with pytest.raises(OSError, match="Message too long"):
        await loop.sock_sendto(ours, b"x" * 100_000, peer.getsockname())


# Sending


async def test_sending_everything(loop, pair):
    ours, peer = pair
    data = os.urandom(8 << 20)
    task = loop.create_task(loop.sock_sendall(ours, data))
    await asyncio.sleep(0.005)
    assert not task.done()
    assert await helpers.read_exactly(peer, len(data)) == data
    assert await task is None
    assert loop.remove_writer(ours) is False


async def test_sending_any_sort_of_bytes(loop, pair):
    ours, peer = pair
    for data in (b"bytes", bytearray(b"bytearray"), memoryview(b"memoryview")[2:], b""):
        assert await loop.sock_sendall(ours, data) is None
        assert await helpers.read_exactly(peer, len(data)) == bytes(data)


async def test_sending_what_is_not_bytes(loop, pair):
    for bad in ("text", 42, None):
        with pytest.raises(TypeError):
            await loop.sock_sendall(pair[0], bad)


async def test_sending_to_a_peer_that_has_gone(loop, pair):
    ours, peer = pair
    task = loop.create_task(loop.sock_sendall(ours, helpers.TOO_MUCH))
    await asyncio.sleep(0.005)
    peer.close()
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        await task
    assert loop.remove_writer(ours) is False


async def test_both_directions_at_once(loop, pair):
    one, other = pair
    here, there = os.urandom(6 << 20), os.urandom(6 << 20)
    results = await asyncio.gather(
        loop.sock_sendall(one, here),
        loop.sock_sendall(other, there),
        helpers.read_exactly(one, len(there)),
        helpers.read_exactly(other, len(here)),
    )
    assert results[2:] == [there, here]


# Connecting and accepting


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
async def test_connecting_and_accepting(loop, listening, name):
    with socket.socket() as sock:
        sock.setblocking(False)
        accepting = loop.create_task(loop.sock_accept(listening))
        assert await loop.sock_connect(sock, (name, listening.getsockname()[1])) is None
        connection, address = await accepting
        with connection:
            assert address == sock.getsockname()
            assert connection.gettimeout() == 0
            assert isinstance(connection, socket.socket)
            await loop.sock_sendall(sock, b"hello")
            assert await loop.sock_recv(connection, 10) == b"hello"
    assert loop.remove_reader(listening) is False


@pytest.mark.skipif(not helpers.HAS_IPV6, reason="no IPv6 here")
async def test_connecting_over_ipv6(loop):
    with helpers.listener(socket.AF_INET6) as server, socket.socket(socket.AF_INET6) as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, server.getsockname()[:2])
        connection, address = await loop.sock_accept(server)
        assert address == sock.getsockname()
        connection.close()


async def test_connecting_over_unix(loop, tmp_path):
    path = str(tmp_path / "socket")
    with helpers.listener(socket.AF_UNIX, path) as server, socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, path)
        connection, _ = await loop.sock_accept(server)
        connection.close()


async def test_a_refused_connection(loop):
    address = ("127.0.0.1", helpers.unused_port())
    with socket.socket() as sock:
        sock.setblocking(False)
        with pytest.raises(ConnectionRefusedError, match=r"Connect call failed.*127\.0\.0\.1"):
            await loop.sock_connect(sock, address)
        assert loop.remove_writer(sock) is False


async def test_connecting_to_no_such_path(loop, tmp_path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        with pytest.raises(FileNotFoundError):
            await loop.sock_connect(sock, str(tmp_path / "nobody"))


async def test_accepting_takes_one_at_a_time(loop, listening):
    clients = [socket.create_connection(listening.getsockname()) for _ in range(3)]
    addresses = set()
    for _ in clients:
        connection, address = await loop.sock_accept(listening)
        addresses.add(address)
        connection.close()
    assert addresses == {client.getsockname() for client in clients}
    task = loop.create_task(loop.sock_accept(listening))
    await asyncio.sleep(0.005)
    assert not task.done()
    task.cancel()
    for client in clients:
        client.close()


async def test_accepting_on_a_socket_that_does_not_listen(loop):
    with socket.socket() as sock:
        sock.setblocking(False)
        with pytest.raises(OSError, match="Invalid argument"):
            await loop.sock_accept(sock)


# Sockets that are refused

CALLS = {
    "sock_recv": lambda loop, sock: loop.sock_recv(sock, 10),
    "sock_recv_into": lambda loop, sock: loop.sock_recv_into(sock, bytearray(10)),
    "sock_recvfrom": lambda loop, sock: loop.sock_recvfrom(sock, 10),
    "sock_recvfrom_into": lambda loop, sock: loop.sock_recvfrom_into(sock, bytearray(10)),
    "sock_sendall": lambda loop, sock: loop.sock_sendall(sock, helpers.TOO_MUCH),
    "sock_sendto": lambda loop, sock: loop.sock_sendto(sock, b"x", ("127.0.0.1", 1)),
    "sock_connect": lambda loop, sock: loop.sock_connect(sock, ("127.0.0.1", 1)),
    "sock_accept": lambda loop, sock: loop.sock_accept(sock),
}


@pytest.mark.parametrize("name", CALLS)
async def test_a_tls_socket_is_refused(loop, name):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ours, peer = socket.socketpair()
    ours.setblocking(False)
    sock = context.wrap_socket(ours, server_hostname="localhost", do_handshake_on_connect=False)
    with peer, sock, pytest.raises(TypeError, match="Socket cannot be of type SSLSocket"):
        await CALLS[name](loop, sock)


@pytest.mark.parametrize("name", CALLS)
async def test_a_blocking_socket_is_refused_in_debug_mode(loop, name):
    loop.set_debug(True)
    with socket.socket() as sock, pytest.raises(ValueError, match="the socket must be non-blocking"):
        await CALLS[name](loop, sock)
    loop.set_debug(False)


@pytest.mark.parametrize("name", CALLS)
async def test_a_closed_socket_is_an_error(loop, name):
    sock = socket.socket()
    sock.setblocking(False)
    sock.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        await CALLS[name](loop, sock)


@pytest.mark.parametrize("name", ["sock_recv", "sock_recv_into", "sock_sendall"])
async def test_the_socket_of_a_transport_is_refused(loop, name, attach):
    protocol, _peer = await attach(helpers.Recorder())
    sock = protocol.transport.get_extra_info("socket")
    with socket.socket(sock.family, fileno=os.dup(sock.fileno())) as copy:
        # A copy has a number of its own, and may be used.
        task = loop.create_task(CALLS["sock_sendall"](loop, copy))
        await asyncio.sleep(0.005)
        task.cancel()
        await helpers.iterations(2)
    ours = socket.socket(sock.family, fileno=sock.fileno())
    try:
        with pytest.raises(RuntimeError, match="is used by transport"):
            await CALLS[name](loop, ours)
    finally:
        ours.detach()


async def test_a_thread_at_the_other_end(loop, pair):
    ours, peer = pair
    data = os.urandom(4 << 20)

    def echo():
        peer.setblocking(True)
        left = len(data)
        while left:
            chunk = peer.recv(65536)
            peer.sendall(chunk)
            left -= len(chunk)

    thread = threading.Thread(target=echo)
    thread.start()
    sender = loop.create_task(loop.sock_sendall(ours, data))
    assert await helpers.read_exactly(ours, len(data)) == data
    await sender
    thread.join()


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
async def test_a_datagram_is_received_whole_if_it_was_asked_for(loop, kind):
    ours, peer = socket.socketpair(socket.AF_UNIX, kind)
    with ours, peer:
        ours.setblocking(False)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        task = asyncio.ensure_future(loop.sock_recv(ours, 1 << 20))
        await helpers.iterations(2)
        data = os.urandom(300_000)
        for _ in range(2):
            assert peer.send(data) == len(data)
            assert await task == data
            task = asyncio.ensure_future(loop.sock_recv(ours, 1 << 20))
        peer.send(data)
        assert await task == data


@pytest.mark.parametrize("kind", ["udp", socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
async def test_a_datagram_larger_than_those_before_it_is_received_whole(loop, kind):
    if kind == "udp":
        ours, peer = udp(), udp()
        peer.connect(ours.getsockname())
    else:
        ours, peer = socket.socketpair(socket.AF_UNIX, kind)
        ours.setblocking(False)
    with ours, peer:
        for size in [600, 600, 2000, 30_000, 100, 60_000, 1500, 5000]:
            data = os.urandom(size)
            peer.send(data)
            assert await loop.sock_recv(ours, 65536) == data
            peer.send(data)
            assert await loop.sock_recv(ours, 5000) == data[:5000]


@pytest.mark.parametrize("size", [-1, 1 << 70, "1", 11])
async def test_a_wrong_number_of_bytes_of_a_datagram(loop, datagrams, size):
    ours, _ = datagrams
    with pytest.raises((ValueError, OverflowError, TypeError)) as expected:
        ours.recvfrom_into(bytearray(10), size)
    with pytest.raises(expected.type, match=re.escape(str(expected.value))):
        await loop.sock_recvfrom_into(ours, bytearray(10), size)


@pytest.mark.skipif(helpers.PYTHON < (3, 12), reason="classes written in Python have no __buffer__() yet")
@pytest.mark.parametrize("name", ["sock_sendall", "sock_recv_into"])
async def test_a_buffer_that_closes_the_socket_leaves_its_number_alone(loop, name):
    """It belongs to another connection by the time that the buffer is there."""
    ours, peer = helpers.unix_pair()
    other, other_peer = helpers.unix_pair()
    number = ours.fileno()

    class Closing:
        def __len__(self):
            return 5

        def __buffer__(self, flags):
            if ours.fileno() >= 0:
                ours.close()
                os.dup2(other.fileno(), number)
            return memoryview(bytearray(b"stray"))

    other_peer.send(b"hello")
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            await getattr(loop, name)(ours, Closing())
        assert other.recv(100) == b"hello"
        with pytest.raises(BlockingIOError):
            other_peer.recv(100)
    finally:
        os.close(number)
        for sock in (peer, other, other_peer):
            sock.close()


# Sockets with methods of their own


class Marking(socket.socket):
    """Marks what goes through its methods, as proxies and tests do that wrap a socket."""

    def recv(self, *args):
        return b"<" + super().recv(*args)

    def recv_into(self, buffer, *args):
        count = super().recv_into(buffer, *args)
        buffer[:count] = bytes(buffer[:count]).upper()
        return count

    def send(self, data, *args):
        return super().send(bytes(data[:3]).upper(), *args)


class Wrapped:
    """Not a socket, but like one."""

    def __init__(self, sock):
        self._sock = sock

    def __getattr__(self, name):
        return getattr(self._sock, name)


class Plain(socket.socket):
    pass


def patched(sock):
    sock.recv = lambda size: Marking.recv(sock, size)
    sock.recv_into = lambda buffer: Marking.recv_into(sock, buffer)
    sock.send = lambda data: Marking.send(sock, data)
    return sock


@pytest.mark.parametrize(
    "make", [lambda sock: sock, Wrapped, lambda sock: patched(Marking(fileno=sock.detach()))]
)
async def test_a_sockets_own_methods_are_called(loop, make):
    ours, peer = socket.socketpair()
    sock = make(Marking(fileno=ours.detach()))
    sock.setblocking(False)
    with peer:
        peer.setblocking(False)
        receiving = loop.create_task(loop.sock_recv(sock, 10))
        await asyncio.sleep(0)
        peer.send(b"hello")
        assert await receiving == b"<hello"
        peer.send(b"world")
        buffer = bytearray(10)
        assert await loop.sock_recv_into(sock, buffer) == 5
        assert buffer == b"WORLD" + bytes(5)
        await loop.sock_sendall(sock, b"goodbye")
        assert peer.recv(100) == b"GOODBYE"
    sock.close()


async def test_a_sendall_by_a_sockets_own_method_waits_for_room(loop):
    ours, peer = socket.socketpair()
    sock = Marking(fileno=ours.detach())
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            socket.socket.send(sock, bytes(65536))
    sending = loop.create_task(loop.sock_sendall(sock, memoryview(b"message")))
    await asyncio.sleep(0.01)
    assert not sending.done()
    peer.setblocking(False)
    received = bytearray()
    while not sending.done() or not received.endswith(b"MESSAGE"):
        received += await loop.sock_recv(peer, 1 << 20)
    await sending
    sock.close()
    peer.close()


async def test_a_subclass_without_methods_of_its_own(loop):
    ours, peer = socket.socketpair()
    sock = Plain(fileno=ours.detach())
    sock.setblocking(False)
    await loop.sock_sendall(sock, b"hello")
    peer.send(peer.recv(10))
    assert await loop.sock_recv(sock, 10) == b"hello"
    sock.close()
    peer.close()


@pytest.mark.parametrize(
    ("name", "argument", "method"),
    [
        ("sock_recv", 1, "recv"),
        ("sock_recv_into", bytearray(1), "recv_into"),
        ("sock_sendall", b"x", "send"),
        ("sock_recvfrom", 1, "recvfrom"),
    ],
)
async def test_what_is_no_socket_has_no_such_method(loop, name, argument, method):
    with pytest.raises(AttributeError, match=f"no attribute '{method}'"):
        await getattr(loop, name)(object(), argument)


async def test_sending_nothing_to_a_datagram_socket_sends_an_empty_datagram(loop):
    ours, peer = socket.socketpair(type=socket.SOCK_DGRAM)
    ours.setblocking(False)
    peer.setblocking(False)
    with ours, peer:
        await loop.sock_sendall(ours, b"")
        assert peer.recv(10) == b""
    with pytest.raises(OSError, match="Bad file descriptor"):
        await loop.sock_sendall(ours, b"")


@pytest.mark.parametrize("buffer", [b"bytes", memoryview(bytearray(4))[::2]], ids=["bytes", "strided"])
async def test_a_buffer_that_nothing_can_be_received_into(loop, pair, buffer):
    ours, peer = pair
    peer.send(b"hello")
    with pytest.raises(TypeError, match="read-write bytes-like object"):
        await loop.sock_recv_into(ours, buffer)
    assert await loop.sock_recv(ours, 10) == b"hello"


async def test_a_receive_is_suspended_while_it_waits(loop, pair):
    ours, peer = pair
    receiving = loop.sock_recv(ours, 10)
    assert not receiving.cr_suspended
    if helpers.PYTHON >= (3, 15):
        assert inspect.getcoroutinestate(receiving) == inspect.CORO_CREATED
    task = loop.create_task(receiving)
    await asyncio.sleep(0)
    assert inspect.getcoroutinestate(receiving) == inspect.CORO_SUSPENDED
    peer.send(b"x")
    await task
    assert inspect.getcoroutinestate(receiving) == inspect.CORO_CLOSED
