"""Sockets with methods of their own to receive and send: transports call them."""

import _socket
import asyncio
import socket
from typing import ClassVar

import helpers
import pytest
from helpers import Recorder


class Counting(socket.socket):
    """Notes the calls of its methods, and changes what is sent."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.called = []

    def recv(self, *args):
        self.called.append("recv")
        return super().recv(*args).upper()

    def recv_into(self, buffer, *args):
        self.called.append("recv_into")
        return super().recv_into(buffer, *args)

    def send(self, data, *args):
        self.called.append("send")
        return super().send(bytes(data).replace(b"a", b"b"), *args)

    def sendmsg(self, buffers, *args):
        self.called.append("send")
        return super().sendmsg([bytes(data).replace(b"a", b"b") for data in buffers], *args)

    def recvfrom(self, *args):
        self.called.append("recvfrom")
        data, address = super().recvfrom(*args)
        return data.upper(), address

    def sendto(self, data, *args):
        self.called.append("sendto")
        return super().sendto(bytes(data).replace(b"a", b"b"), *args)


class Wrapper:
    """An object like a socket, which is none."""

    def __init__(self, sock):
        self._sock = sock
        self.called = []

    def __getattr__(self, name):
        return getattr(self._sock, name)

    def recv(self, *args):
        self.called.append("recv")
        return self._sock.recv(*args).upper()

    def send(self, data):
        self.called.append("send")
        return self._sock.send(bytes(data).replace(b"a", b"b"))


class Plain(socket.socket):
    """Notes the calls of its methods, and changes nothing."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.called = []

    def recv_into(self, *args):
        self.called.append("recv_into")
        return super().recv_into(*args)

    def send(self, *args):
        self.called.append("send")
        return super().send(*args)


class Usual(socket.socket):
    """A subclass without methods of its own for that."""

    def something_else(self):
        pass


@pytest.fixture
def kind():
    return "unix"


def of_class(cls, sock):
    if cls is Wrapper:
        return Wrapper(sock)
    made = cls(sock.family, sock.type, sock.proto, sock.detach())
    made.setblocking(False)
    return made


@pytest.mark.parametrize("cls", [Counting, Wrapper])
async def test_a_stream_transport_calls_them(loop, pair, cls):
    ours, peer = of_class(cls, pair[0]), pair[1]
    transport, protocol = await loop.create_connection(Recorder, sock=ours)
    repr(transport)
    transport.write(b"data")
    assert await loop.sock_recv(peer, 10) == b"dbtb"
    await loop.sock_sendall(peer, b"answer")
    await protocol.received(6)
    assert bytes(protocol.data) == b"ANSWER"
    assert {"recv", "send"} <= set(ours.called)
    peer.close()
    assert await protocol.lost() is None
    assert ours.fileno() == -1


async def test_what_does_not_fit_is_sent_by_them_later(loop, pair):
    ours, peer = of_class(Counting, pair[0]), pair[1]
    transport, protocol = await loop.create_connection(Recorder, sock=ours)
    data = b"x" * (4 << 20)
    transport.write(data)
    transport.close()
    assert await helpers.read_to_end(peer) == data
    assert await protocol.lost() is None


async def test_a_buffered_protocol_has_them_called(loop, pair):
    ours, peer = of_class(Counting, pair[0]), pair[1]
    buffer = bytearray(100)
    got = loop.create_future()

    class Protocol(asyncio.BufferedProtocol):
        def get_buffer(self, hint):
            return buffer

        def buffer_updated(self, count):
            got.set_result(count)

    transport, _ = await loop.create_connection(Protocol, sock=ours)
    peer.send(b"data")
    assert await asyncio.wait_for(got, 5) == 4
    assert "recv_into" in ours.called
    transport.close()
    await asyncio.sleep(0)


async def test_streams_over_them(loop, pair):
    ours, peer = of_class(Counting, pair[0]), pair[1]
    reader, writer = await asyncio.open_connection(sock=ours)
    writer.writelines([b"a", b"aa"])
    await writer.drain()
    received = b""
    while len(received) < 3:
        received += await loop.sock_recv(peer, 10)
    assert received == b"bbb"
    await loop.sock_sendall(peer, b"line\n")
    assert await asyncio.wait_for(reader.readline(), 5) == b"LINE\n"
    writer.close()
    await writer.wait_closed()


async def test_tls_over_them(loop, pair, tls):
    server_context, client_context = tls
    ours, peer = (of_class(Plain, sock) for sock in pair)

    class Echo(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport

        def data_received(self, data):
            self.transport.write(data)

    accepting = asyncio.create_task(loop.connect_accepted_socket(Echo, peer, ssl=server_context))
    transport, protocol = await loop.create_connection(
        Recorder, sock=ours, ssl=client_context, server_hostname="localhost"
    )
    transport.write(b"data")
    await protocol.received(4)
    assert bytes(protocol.data) == b"data"
    for sock in ours, peer:
        assert {"recv_into", "send"} <= set(sock.called)
    transport.close()
    await protocol.lost()
    (await accepting)[0].close()


async def test_a_server_makes_transports_of_accepted_ones(loop):
    accepted = []

    class Listening(socket.socket):
        def accept(self):
            connection, address = super().accept()
            accepted.append(of_class(Counting, connection))
            return accepted[-1], address

    listening = Listening()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    listening.setblocking(False)

    async def echo(reader, writer):
        writer.write(await reader.readexactly(4))
        writer.close()

    server = await asyncio.start_server(echo, sock=listening)
    with socket.create_connection(listening.getsockname()) as client:
        client.setblocking(False)
        await loop.sock_sendall(client, b"data")
        assert await helpers.read_to_end(client) == b"DATA"
    assert {"recv", "send"} <= set(accepted[0].called)
    server.close()


async def test_a_datagram_transport_calls_them(loop):
    ours = Counting(socket.AF_INET, socket.SOCK_DGRAM)
    ours.bind(("127.0.0.1", 0))
    received = asyncio.Queue()

    class Protocol(asyncio.DatagramProtocol):
        def datagram_received(self, data, address):
            received.put_nowait((data, address))

    ours.setblocking(False)
    transport, _ = await loop.create_datagram_endpoint(Protocol, sock=ours)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        peer.setblocking(False)
        transport.sendto(b"data", peer.getsockname())
        assert await asyncio.wait_for(loop.sock_recv(peer, 10), 5) == b"dbtb"
        peer.sendto(b"answer", transport.get_extra_info("sockname"))
        assert await asyncio.wait_for(received.get(), 5) == (b"ANSWER", peer.getsockname())
    assert ours.called == ["sendto", "recvfrom"]
    transport.close()
    await asyncio.sleep(0)


@pytest.mark.hotloop_only
async def test_a_subclass_without_them_has_a_transport_of_ours(loop, pair):
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=of_class(Usual, pair[0]))
    assert type(transport).__name__ == "StreamTransport"
    transport.close()
    await asyncio.sleep(0)


async def test_a_file_is_sent_past_a_transport_that_calls_them(loop, pair, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"y" * 300_000)
    ours, peer = of_class(Counting, pair[0]), pair[1]
    transport, protocol = await loop.create_connection(Recorder, sock=ours)
    transport.write(b"x" * 5000)
    with path.open("rb") as file:
        sending = asyncio.create_task(loop.sendfile(transport, file))
        received = b""
        while len(received) < 305_000:
            received += await loop.sock_recv(peer, 65536)
        assert received == b"x" * 5000 + b"y" * 300_000
        assert await sending == 300_000
    transport.close()
    assert await protocol.lost() is None


async def test_a_method_that_raises_ends_the_transport(loop, pair, reports):
    class Failing(Counting):
        def send(self, *args):
            raise ZeroDivisionError

        sendmsg = send

    transport, protocol = await loop.create_connection(Recorder, sock=of_class(Failing, pair[0]))
    transport.write(b"data")
    assert isinstance(await protocol.lost(), ZeroDivisionError)
    assert reports.take()["message"] == "Fatal write error on socket transport"


@pytest.fixture
def patch(monkeypatch):
    """Puts methods into socket.socket, as tests and tools do, and returns what was called."""
    called = []

    def wrap(name):
        def method(self, *args):
            called.append(name)
            return getattr(super(socket.socket, self), name)(*args)

        monkeypatch.setattr(socket.socket, name, method, raising=False)

    def patch():
        for name in ("recv", "send", "sendmsg", "recvfrom", "sendto"):
            wrap(name)
        return called

    return patch


@helpers.before_and_during
def test_methods_that_are_put_into_the_class_are_called(loop, patch, when):
    called = patch() if when == "before" else []

    async def main():
        nonlocal called
        served = []

        class Echo(asyncio.Protocol):
            def connection_made(self, transport):
                self.transport = transport
                served.append(self)

            def data_received(self, data):
                self.transport.write(data)

        server = await loop.create_server(Echo, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        if when == "during":
            called = patch()
        transport, protocol = await loop.create_connection(Recorder, *address)
        transport.write(b"data")
        await protocol.received(4)
        assert called.count("recv") >= 2
        assert called.count("send") >= 2
        transport.close()
        await protocol.lost()
        del called[:]
        endpoint, _ = await loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)
        )
        endpoint.sendto(b"x", address)
        assert "sendto" in called
        endpoint.close()
        server.close()
        await asyncio.sleep(0.01)

    loop.run_until_complete(main())


@pytest.mark.hotloop_only
def test_without_them_transports_are_ours_again(loop, patch, monkeypatch):
    patch()
    loop.run_until_complete(asyncio.sleep(0))
    monkeypatch.undo()

    async def main():
        ours, peer = socket.socketpair()
        with peer:
            transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
            assert type(transport).__name__ == "StreamTransport"
            transport.close()
            await asyncio.sleep(0)

    loop.run_until_complete(main())


class Replaced(socket.socket):
    """A class like that of PySocks: the family has a default, whatever the descriptor is."""

    called: ClassVar[list[str]] = []

    def __init__(self, family=socket.AF_INET, type=socket.SOCK_STREAM, proto=0, *args, **kwargs):
        super().__init__(family, type, proto, *args, **kwargs)

    def recv(self, *args):
        Replaced.called.append("recv")
        return super().recv(*args)


@pytest.mark.parametrize("debug", [False, True])
def test_a_class_in_the_place_of_socket_makes_accepted_sockets(loop, monkeypatch, debug):
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    monkeypatch.setattr(socket, "socket", Replaced)
    monkeypatch.setattr(Replaced, "called", [])
    loop.set_debug(debug)

    async def main():
        accepted = loop.create_future()

        async def echo(reader, writer):
            sock = writer.get_extra_info("socket")
            writer.write(await reader.readexactly(4))
            writer.close()
            accepted.set_result((sock.family, writer.get_extra_info("peername")))

        server = await asyncio.start_server(echo, "::1", 0)
        client = _socket.socket(socket.AF_INET6)
        try:
            client.connect(server.sockets[0].getsockname()[:2])
            client.send(b"data")
            family, peername = await asyncio.wait_for(accepted, 5)
            assert (family, peername) == (socket.AF_INET6, client.getsockname())
            assert client.recv(4) == b"data"
        finally:
            client.close()
        assert "recv" in Replaced.called
        server.close()
        await server.wait_closed()

    loop.run_until_complete(main())


@pytest.mark.parametrize("cls", [Counting, Usual])
async def test_the_descriptor_of_such_a_transport_is_refused(loop, pair, cls):
    ours = of_class(cls, pair[0])
    transport, _ = await loop.create_connection(Recorder, sock=ours)
    for refused in (
        lambda: loop.add_reader(ours, print),
        lambda: loop.add_writer(ours.fileno(), print),
        lambda: loop.remove_reader(ours),
    ):
        with pytest.raises(RuntimeError, match="is used by transport"):
            refused()
    transport.close()
    await asyncio.sleep(0)
