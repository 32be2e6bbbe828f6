"""TLS handshakes that fail, take too long or are given up; and what is left of them."""

import asyncio
import contextlib
import contextvars
import gc
import select
import socket
import ssl
import time

import helpers
import pytest
import trustme
from helpers import Recorder
from helpers_tls import Peer, against_peer, both_ends, client_context, echo, server_context, serving

CREATION_FAILED = "Error on transport creation for incoming connection"
variable = contextvars.ContextVar("variable", default=None)


def connecting(loop, tls, address, protocol=None, **options):
    options = {"ssl": tls[1], "server_hostname": "localhost"} | options
    return loop.create_task(loop.create_connection(lambda: protocol or Recorder(), *address, **options))


# Timeouts


@pytest.mark.parametrize("name", ["ssl_handshake_timeout", "ssl_shutdown_timeout"])
@pytest.mark.parametrize("value", [0, -1, -0.5])
async def test_a_timeout_must_be_positive(loop, tls, tmp_path, name, value):
    said = f"{name} should be a positive number, got {value}"
    options = {name: value, "ssl": tls[1], "server_hostname": "localhost"}
    with helpers.listener() as server, pytest.raises(ValueError, match=said):
        await loop.create_connection(Recorder, *server.getsockname(), **options)
    path = str(tmp_path / "socket")
    with helpers.listener(socket.AF_UNIX, path), pytest.raises(ValueError, match=said):
        await loop.create_unix_connection(Recorder, path, **options)
    ours, peer = helpers.tcp_pair()
    with ours, peer, pytest.raises(ValueError, match=said):
        await loop.connect_accepted_socket(Recorder, ours, ssl=tls[0], **{name: value})


@pytest.mark.parametrize("name", ["ssl_handshake_timeout", "ssl_shutdown_timeout"])
async def test_a_bad_timeout_leaves_the_transport_that_was_to_be_upgraded_alone(loop, tls, attach, name):
    protocol, peer = await attach(Recorder())
    with pytest.raises(ValueError, match=f"{name} should be a positive number, got 0"):
        await loop.start_tls(protocol.transport, protocol, tls[1], **{name: 0})
    peer.send(b"plain")
    assert await protocol.received(5) == b"plain"
    assert protocol.transport.get_protocol() is protocol


@pytest.mark.parametrize("name", ["ssl_handshake_timeout", "ssl_shutdown_timeout"])
async def test_a_timeout_must_be_a_number(loop, tls, name):
    ours, peer = helpers.tcp_pair()
    options = {name: "long", "ssl": tls[1], "server_hostname": "localhost"}
    with ours, peer, pytest.raises(TypeError):
        await loop.create_connection(Recorder, sock=ours, **options)


async def test_a_server_that_never_answers(loop, tls, kind):
    ours, silent = helpers.PAIRS[kind]()
    protocol = Recorder()
    said = "SSL handshake is taking longer than 0.01 seconds: aborting the connection"
    with silent:
        options = {"ssl": tls[1], "server_hostname": "localhost", "ssl_handshake_timeout": 0.01}
        with pytest.raises(ConnectionAbortedError, match=said):
            await loop.create_connection(lambda: protocol, sock=ours, **options)
        await helpers.read_to_end(silent)
    assert protocol.calls == []


@pytest.mark.parametrize("debug", [False, True])
async def test_a_client_that_never_begins(loop, tls, reports, debug):
    loop.set_debug(debug)
    protocol = Recorder()
    server = await loop.create_server(
        lambda: protocol, "127.0.0.1", 0, ssl=tls[0], ssl_handshake_timeout=0.01
    )
    async with helpers.running(server) as address:
        with socket.create_connection(address) as client:
            client.setblocking(False)
            with contextlib.suppress(ConnectionResetError):
                assert await helpers.read_to_end(client) == b""
        await helpers.until(lambda: reports or not debug)
    if debug:
        report = reports.take()
        assert report["message"] == CREATION_FAILED
        assert isinstance(report["exception"], ConnectionAbortedError)
    assert protocol.calls == []


async def test_a_handshake_in_time_is_not_disturbed_by_its_timeout(loop, tls):
    soon = {"ssl_handshake_timeout": 0.15}
    async with both_ends(loop, tls, client_options=soon, server_options=soon) as (client, server):
        await asyncio.sleep(0.16)
        client.transport.write(b"hello")
        assert await server.received(5) == b"hello"


# Peers that misbehave


async def test_a_server_that_does_not_speak_tls(loop, tls):
    protocol = Recorder()
    with helpers.listener() as server:
        task = connecting(loop, tls, server.getsockname(), protocol)
        peer, _ = await loop.sock_accept(server)
        with peer:
            await loop.sock_sendall(peer, b"220 mail.example.org ESMTP\r\n")
            with pytest.raises(ssl.SSLError, match="WRONG_VERSION_NUMBER"):
                await task
            await helpers.iterations(3)
    assert protocol.calls == []


async def test_a_client_that_does_not_speak_tls_disturbs_nobody_else(loop, tls, reports):
    loop.set_debug(True)
    async with serving(loop, tls, data_received=echo) as (connect, protocols):
        client = Recorder()
        transport = await connect(client)
        with socket.create_connection(transport.get_extra_info("peername")) as plain:
            plain.setblocking(False)
            await loop.sock_sendall(plain, b"GET / HTTP/1.0\r\n\r\n")
            await helpers.until(lambda: reports)
        report = reports.take()
        assert report["message"] == CREATION_FAILED
        assert report["exception"].reason == "HTTP_REQUEST"
        assert protocols[1].calls == []
        transport.write(b"hello")
        assert await client.received(5) == b"hello"


@pytest.mark.parametrize("said", [0, 1, 3, 5, 200])
@pytest.mark.parametrize("end", ["end", "reset"])
async def test_a_server_that_goes_in_the_middle_of_its_answer(loop, tls, said, end):
    protocol = Recorder()
    with helpers.listener() as server:
        task = connecting(loop, tls, server.getsockname(), protocol)
        sock, _ = await loop.sock_accept(server)
        peer = Peer(sock, tls[0], server_side=True)
        peer.incoming.write(await loop.sock_recv(sock, 65536))
        with pytest.raises(ssl.SSLWantReadError):
            peer.object.do_handshake()
        await loop.sock_sendall(sock, peer.outgoing.read()[:said])
        if end == "reset":
            helpers.reset(sock)
        else:
            sock.close()
        with pytest.raises(ConnectionResetError):
            await task
    await helpers.iterations(3)
    assert protocol.calls == []


async def test_a_client_that_goes_in_the_middle_of_the_handshake(loop, tls, reports):
    loop.set_debug(True)
    async with serving(loop, tls, data_received=echo) as (connect, protocols):
        before = await connect(Recorder())
        sock = socket.create_connection(before.get_extra_info("peername"))
        sock.setblocking(False)
        peer = Peer(sock, tls[1], server_hostname="localhost")
        with pytest.raises(ssl.SSLWantReadError):
            peer.object.do_handshake()
        await peer.flush()
        assert await loop.sock_recv(sock, 1)
        helpers.reset(sock)
        await helpers.until(lambda: reports)
        report = reports.take()
        assert report["message"] == CREATION_FAILED
        assert isinstance(report["exception"], ConnectionResetError)
        assert protocols[1].calls == []
        before.abort()
        client = Recorder()
        transport = await connect(client)
        transport.write(b"hello")
        assert await client.received(5) == b"hello"


@pytest.mark.parametrize("server_side", [False, True])
async def test_a_handshake_in_small_pieces(loop, tls, kind, server_side):
    """However the network cuts it."""
    protocol = Recorder()
    ours, theirs = helpers.PAIRS[kind]()

    class Halting(Peer):
        async def flush(self):
            while piece := self.outgoing.read(97):
                await loop.sock_sendall(theirs, piece)
                await helpers.iterations(2)

    if server_side:
        peer = Halting(theirs, tls[1], server_hostname="localhost")
        made = loop.connect_accepted_socket(lambda: protocol, ours, ssl=tls[0])
    else:
        peer = Halting(theirs, tls[0], server_side=True)
        made = loop.create_connection(lambda: protocol, sock=ours, ssl=tls[1], server_hostname="localhost")
    with theirs:
        await asyncio.gather(made, peer.handshake())
        await peer.send(b"x" * 1000)
        assert await protocol.received(1000) == b"x" * 1000
        protocol.transport.abort()
        await protocol.lost()


async def test_data_right_behind_the_handshake_comes_after_connection_made(loop, tls):
    """The client's last flight and its first data arrive together."""
    protocol = Recorder()
    ours, theirs = helpers.tcp_pair()
    with theirs:
        peer = Peer(theirs, tls[1], server_hostname="localhost")
        task = loop.create_task(loop.connect_accepted_socket(lambda: protocol, ours, ssl=tls[0]))
        with pytest.raises(ssl.SSLWantReadError):
            peer.object.do_handshake()
        await peer.flush()
        while True:
            peer.incoming.write(await loop.sock_recv(theirs, 65536))
            try:
                peer.object.do_handshake()
                break
            except ssl.SSLWantReadError:
                pass
        peer.object.write(b"hello")
        await peer.flush()
        await task
        assert await protocol.received(5) == b"hello"
        assert protocol.calls == ["connection_made", "data_received"]
        protocol.transport.abort()
        await protocol.lost()


# Giving up


async def test_a_server_that_is_closed_goes_on_with_a_handshake_that_has_begun(loop, tls):
    protocol = Recorder()
    server = await loop.create_server(lambda: protocol, "127.0.0.1", 0, ssl=tls[0])
    with socket.create_connection(server.sockets[0].getsockname()) as sock:
        sock.setblocking(False)
        peer = Peer(sock, tls[1], server_hostname="localhost")
        with pytest.raises(ssl.SSLWantReadError):
            peer.object.do_handshake()
        await peer.flush()
        peer.incoming.write(await loop.sock_recv(sock, 65536))
        server.close()
        await peer.handshake()
        await protocol.until("connection_made")
        await peer.send(b"hello")
        assert await protocol.received(5) == b"hello"
        protocol.transport.abort()
        await protocol.lost()


async def test_a_cancelled_upgrade_closes_the_connection(loop, tls, attach):
    protocol, peer = await attach(Recorder())
    task = loop.create_task(loop.start_tls(protocol.transport, protocol, tls[1], server_hostname="localhost"))
    assert (await loop.sock_recv(peer, 65536))[:1] == b"\x16"
    await helpers.cancel(task)
    assert protocol.transport.is_closing()
    await helpers.read_to_end(peer)


@pytest.mark.parametrize("end", ["close", "abort"])
async def test_a_transport_closed_during_its_upgrade(loop, tls, attach, end):
    """start_tls ends, in whatever way."""
    protocol, peer = await attach(Recorder())
    upgrading = loop.create_task(
        loop.start_tls(protocol.transport, protocol, tls[1], server_hostname="localhost")
    )
    assert await loop.sock_recv(peer, 65536)
    getattr(protocol.transport, end)()
    await asyncio.wait([upgrading], timeout=5)
    assert upgrading.done()
    if upgrading.exception() is None:
        assert upgrading.result() is None
    else:
        assert isinstance(upgrading.exception(), ConnectionError)


def test_a_loop_that_is_closed_during_a_handshake(loop, tls, reports):
    async def begin():
        with helpers.listener() as silent:
            task = connecting(loop, tls, silent.getsockname())
            await asyncio.sleep(0.005)
            return task

    task = loop.run_until_complete(begin())
    loop.close()
    assert not task.done()
    task._log_destroy_pending = False
    del task
    gc.collect()


async def test_failed_handshakes_leave_no_descriptor_open(loop, tls):
    """Nor do they wait for the collector with it."""
    untrusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    gc.collect()
    gc.disable()
    try:
        async with serving(loop, tls) as (connect, _protocols):
            before = helpers.open_descriptors()
            for _ in range(5):
                with pytest.raises(ssl.SSLCertVerificationError):
                    await connect(Recorder(), ssl=untrusting)
            await helpers.until(lambda: not helpers.opened_since(before))
    finally:
        gc.enable()


async def test_an_upgrade_that_fails(loop, tls, kind):
    """The caller gets the exception; so does the protocol, whose connection it was."""
    ours, theirs = helpers.PAIRS[kind]()
    protocol = Recorder()
    plain, _ = await loop.create_connection(lambda: protocol, sock=ours)
    with theirs:
        peer = Peer(theirs, tls[0], server_side=True)
        answering = loop.create_task(peer.handshake())
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            await loop.start_tls(plain, protocol, tls[1], server_hostname="example.org")
        with pytest.raises((ssl.SSLError, OSError)):
            await answering
        assert await protocol.lost() is caught.value
        assert protocol.calls == ["connection_made", "connection_lost"]
        assert plain.is_closing()


# Contexts


def seeing(seen):
    def note(protocol, *args):
        seen.append(variable.get())

    return {name: note for name in ("connection_made", "data_received", "eof_received", "connection_lost")}


async def test_the_callbacks_of_a_client_run_in_the_context_of_whoever_connected(loop, tls, kind):
    seen = []

    async def connect(loop, tls, kind, protocol):
        variable.set("connection")
        stack = against_peer(loop, tls, kind, protocol)
        return stack, await stack.__aenter__()

    stack, (protocol, peer) = await loop.create_task(connect(loop, tls, kind, Recorder(**seeing(seen))))
    await peer.send(b"hello")
    await protocol.received(5)
    await peer.say_end()
    await protocol.lost()
    assert seen == ["connection"] * 4
    await stack.__aexit__(None, None, None)


async def test_the_callbacks_of_a_server_run_in_the_context_of_the_server(loop, tls, authority):
    seen, served = [], []

    def factory():
        seen.append(variable.get())
        served.append(Recorder(**seeing(seen)))
        return served[-1]

    async def serve():
        variable.set("server")
        return await loop.create_server(factory, "127.0.0.1", 0, ssl=tls[0])

    server = await loop.create_task(serve())
    async with helpers.running(server) as address:
        client = Recorder()
        transport, _ = await connecting(loop, (None, client_context(authority)), address, client)
        transport.write(b"hello")
        await helpers.until(lambda: served and served[0].data)
        transport.close()
        await served[0].lost()
        await client.lost()
    assert seen == ["server"] * 5


@pytest.mark.hotloop_only
@helpers.whenever_quiet
async def test_a_burst_of_handshakes_is_spread_over_iterations(loop, authority, tls_engine):
    if tls_engine == "asyncio":
        pytest.skip("asyncio's own class")
    # Signatures of this kind take longest.
    rsa = {"key_type": trustme.KeyType.RSA}
    tls = server_context(authority, "localhost", **rsa), client_context(authority)
    async with serving(loop, tls, server_options={"backlog": 200}) as (connect, _protocols):
        transport = await connect(Recorder())
        address = transport.get_extra_info("peername")
        transport.abort()
        peers = [
            Peer(socket.create_connection(address), tls[1], server_hostname="localhost") for _ in range(200)
        ]
        for peer in peers:
            with contextlib.suppress(ssl.SSLWantReadError):
                peer.object.do_handshake()
            peer.sock.sendall(peer.outgoing.read())
        # All of them have said hello.
        began = last = time.perf_counter()
        longest = 0
        while not all(select.select([peer.sock], [], [], 0)[0] for peer in peers):
            await asyncio.sleep(0)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
        for peer in peers:
            peer.sock.close()
        assert longest < (last - began) / 5
