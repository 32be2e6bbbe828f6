"""TLS, through the standard library's sslproto, on the loop's transports."""

import asyncio
import contextlib
import os
import socket
import ssl

import helpers
import pytest
from helpers import BufferedRecorder, Recorder
from helpers_tls import echo, serving


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "socket")


async def test_the_life_of_a_connection(loop, tls, kind, path):
    async with serving(loop, tls, kind, path, data_received=echo) as (connect, protocols):
        protocol = Recorder()
        transport = await connect(protocol)
        assert isinstance(transport, asyncio.Transport)
        assert protocol.calls == ["connection_made"]
        transport.write(b"hello")
        assert await protocol.received(5) == b"hello"
        assert transport.get_extra_info("peercert")["subjectAltName"]
        assert transport.get_extra_info("cipher")
        assert isinstance(transport.get_extra_info("ssl_object"), ssl.SSLObject)
        assert transport.get_extra_info("sslcontext") is tls[1]
        assert transport.get_extra_info("socket").fileno() > 0
        assert not transport.can_write_eof()
        transport.close()
        assert await protocol.lost() is None
        assert await protocols[0].lost() is None
        assert protocols[0].calls == ["connection_made", "data_received", "eof_received", "connection_lost"]


@pytest.mark.parametrize("protocol", [Recorder, BufferedRecorder])
async def test_a_lot_of_data(loop, tls, kind, path, protocol):
    async with serving(loop, tls, kind, path, data_received=echo) as (connect, _protocols):
        # A view, for sslproto fills a buffer slice by slice.
        client = protocol(get_buffer=lambda protocol, hint: memoryview(protocol.buffer))
        transport = await connect(client)
        data = os.urandom(4 << 20)
        transport.write(data)
        assert await client.received(len(data)) == data
        assert client.calls.count("pause_writing") == client.calls.count("resume_writing")
        transport.close()
        await client.lost()


async def test_many_connections(loop, tls):
    async with serving(loop, tls, data_received=echo) as (connect, protocols):

        async def talk(number):
            protocol = Recorder()
            transport = await connect(protocol)
            message = b"%d" % number * 1000
            transport.write(message)
            assert await protocol.received(len(message)) == message
            transport.close()
            assert await protocol.lost() is None

        await asyncio.gather(*map(talk, range(30)))
        assert len(protocols) == 30


async def test_closing_sends_what_was_written(loop, tls):
    data = os.urandom(1 << 20)

    def answer(protocol, received):
        protocol.transport.write(data)
        protocol.transport.close()

    async with serving(loop, tls, data_received=answer) as (connect, _protocols):
        protocol = Recorder()
        transport = await connect(protocol)
        transport.write(b"question")
        assert await protocol.received(len(data)) == data
        assert await protocol.lost() is None


async def test_a_certificate_of_nobody(loop, tls):
    async with serving(loop, tls) as (connect, _protocols):
        with pytest.raises(ssl.SSLCertVerificationError):
            await connect(Recorder(), ssl=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            await connect(Recorder(), server_hostname="example.org")


async def test_a_client_that_does_not_speak_tls(loop, tls):
    server_protocol = Recorder()
    server = await loop.create_server(lambda: server_protocol, "127.0.0.1", 0, ssl=tls[0])
    async with helpers.running(server) as address:
        with socket.create_connection(address) as client:
            client.setblocking(False)
            client.send(b"GET / HTTP/1.0\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                await helpers.read_to_end(client)
    assert "connection_made" not in server_protocol.calls


async def test_a_handshake_that_takes_too_long(loop, tls):
    options = {"ssl": tls[1], "server_hostname": "localhost", "ssl_handshake_timeout": 0.02}
    said = "SSL handshake is taking longer than"
    with helpers.listener() as silent, pytest.raises(ConnectionAbortedError, match=said):
        await loop.create_connection(Recorder, *silent.getsockname(), **options)


async def test_a_peer_that_goes_during_the_handshake(loop, tls):
    with helpers.listener() as server:
        task = loop.create_task(
            loop.create_connection(Recorder, *server.getsockname(), ssl=tls[1], server_hostname="localhost")
        )
        connection, _ = await loop.sock_accept(server)
        connection.close()
        with pytest.raises((ConnectionError, ssl.SSLError)):
            await task


async def test_a_reset(loop, tls):
    async with serving(loop, tls) as (connect, protocols):
        protocol = Recorder()
        transport = await connect(protocol)
        await helpers.until(lambda: protocols and protocols[0].transport)
        sock = protocols[0].transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        protocols[0].transport.abort()
        assert isinstance(await protocol.lost(), (ConnectionResetError, type(None)))
        assert transport.is_closing()


async def test_flow_control(loop, tls):
    """A server that does not read pauses its client."""

    def made(protocol, transport):
        transport.pause_reading()

    async with serving(loop, tls, connection_made=made) as (connect, protocols):
        protocol = Recorder()
        transport = await connect(protocol)
        await helpers.until(lambda: protocols and protocols[0].transport)
        for _ in range(2):
            transport.write(helpers.TOO_MUCH)
        await asyncio.sleep(0.01)
        assert protocol.calls[-1] == "pause_writing"
        assert protocols[0].data == b""
        protocols[0].transport.resume_reading()
        await protocol.until("resume_writing")
        await protocols[0].received(2 * len(helpers.TOO_MUCH))
        transport.close()
        assert await protocol.lost() is None


async def test_start_tls(loop, tls):
    server_tls = loop.create_future()
    protocols = []

    class Server(Recorder):
        def data_received(self, data):
            if data == b"STARTTLS":
                self.transport.write(b"ok")
                task = loop.create_task(loop.start_tls(self.transport, self, tls[0], server_side=True))
                task.add_done_callback(lambda task: server_tls.set_result(task.result()))
            else:
                super().data_received(data)

    server = await loop.create_server(lambda: protocols.append(Server()) or protocols[-1], "127.0.0.1", 0)
    async with helpers.running(server) as address:
        protocol = Recorder()
        plain, _ = await loop.create_connection(lambda: protocol, *address)
        plain.write(b"STARTTLS")
        assert await protocol.received(2) == b"ok"
        transport = await loop.start_tls(plain, protocol, tls[1], server_hostname="localhost")
        assert isinstance(transport.get_extra_info("ssl_object"), ssl.SSLObject)
        transport.write(b"secret")
        assert await protocols[0].received(6) == b"secret"
        (await server_tls).write(b"answer")
        assert await protocol.received(8) == b"okanswer"
        transport.close()
        assert await protocol.lost() is None
        await protocols[0].lost()


async def test_start_tls_refuses_what_it_cannot_upgrade(loop, tls):
    with pytest.raises(TypeError, match="is not supported by start_tls"):
        await loop.start_tls(asyncio.Transport(), Recorder(), tls[1])
    ours, peer = helpers.tcp_pair()
    transport, protocol = await loop.create_connection(Recorder, sock=ours)
    with pytest.raises(TypeError, match="sslcontext is expected to be an instance of"):
        await loop.start_tls(transport, protocol, None)
    transport.abort()
    await protocol.lost()
    peer.close()


async def test_a_socket_that_is_already_connected(loop, tls):
    protocols = []
    ours, peer = helpers.tcp_pair()
    accepting = loop.create_task(
        loop.connect_accepted_socket(lambda: protocols.append(Recorder()) or protocols[-1], peer, ssl=tls[0])
    )
    transport, protocol = await loop.create_connection(
        Recorder, sock=ours, ssl=tls[1], server_hostname="localhost"
    )
    await accepting
    transport.write(b"hello")
    assert await protocols[0].received(5) == b"hello"
    transport.close()
    assert await protocol.lost() is None
    assert await protocols[0].lost() is None


async def test_streams(loop, tls):
    async def handle(reader, writer):
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls[0])
    async with helpers.running(server) as address:
        reader, writer = await asyncio.open_connection(*address, ssl=tls[1], server_hostname="localhost")
        writer.write(b"hello\n")
        assert await reader.read() == b"hello\n"
        writer.close()
        await writer.wait_closed()
    await asyncio.sleep(0.005)


async def test_a_cancelled_handshake_leaves_nothing_open(loop, tls):
    with helpers.listener() as silent:
        before = helpers.open_descriptors()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await loop.create_connection(
                    Recorder, *silent.getsockname(), ssl=tls[1], server_hostname="localhost"
                )
        await asyncio.sleep(0.005)
        assert not helpers.opened_since(before)
