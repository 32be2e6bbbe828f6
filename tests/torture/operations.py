"""The operations of an event loop, one a function, for a loop whose system calls may fail: streams.

An operation succeeds, or raises an OSError (`Lost` is one). It waits for nothing that may be lost in silence:
a datagram that is not answered is sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import tempfile

import helpers

from .bench import Bench, Lost, until

OPERATIONS = {}
MESSAGE = b"0123456789abcdef" * 4
# Some times what a socket with small buffers takes.
LONG = bytes(range(256)) * 192


def operation(function):
    OPERATIONS[function.__name__] = function
    return function


def small_pair(kind="tcp"):
    """Two connected sockets that take little at a time."""
    both = helpers.PAIRS[kind]()
    for sock in both:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    return both


async def attach(bench: Bench, sock, protocol=None):
    protocol = protocol or bench.watch(helpers.Recorder())
    bench.keep(sock)
    transport, _ = await bench.loop.create_connection(lambda: protocol, sock=sock)
    bench.keep(transport)
    return protocol


async def connected(bench: Bench, first=None, second=None, pair=helpers.tcp_pair):
    """Two protocols at the two ends of a connection."""
    ours, peer = pair()
    bench.keep(peer)
    return await attach(bench, ours, first), await attach(bench, peer, second)


async def received(bench: Bench, protocol, expected):
    """Wait for data, which in any case must be the beginning of what is expected."""
    try:
        await until(protocol, lambda protocol: len(protocol.data) >= len(expected))
    finally:
        assert expected.startswith(protocol.data), f"other data: {bytes(protocol.data[:80])}"


async def from_raw(sock, count):
    """Receive from a socket that the loop does not know."""
    data = b""
    while len(data) < count:
        with contextlib.suppress(BlockingIOError):
            chunk = sock.recv(count - len(data))
            if not chunk:
                raise Lost(f"{len(data)} bytes, then the end")
            data += chunk
        await asyncio.sleep(0.0005)
    return data


def echoing(protocol, data):
    protocol.transport.write(data)


async def serve(bench: Bench, unix=False, **options):
    """A server that echoes, and its address."""

    def factory():
        return bench.watch(helpers.Recorder(data_received=echoing))

    if unix:
        address = os.path.join(bench.directory, "socket")
        server = await bench.loop.create_unix_server(factory, address, **options)
    else:
        server = await bench.loop.create_server(factory, "127.0.0.1", 0, **options)
        address = server.sockets[0].getsockname()
    bench.keep(server)
    return server, address


@operation
async def sleep(bench: Bench):
    for delay in (0.0003, 0.002, 0, 0.0011):
        await asyncio.sleep(delay)


@operation
async def connect(bench: Bench):
    with helpers.listener() as server:
        protocol = bench.watch(helpers.Recorder())
        transport, _ = await bench.loop.create_connection(lambda: protocol, *server.getsockname())
        bench.keep(transport)
        peer, _ = server.accept()
        bench.keep(peer)
        peer.setblocking(False)
        transport.write(MESSAGE)
        assert await from_raw(peer, len(MESSAGE)) == MESSAGE
        peer.send(MESSAGE)
        await received(bench, protocol, MESSAGE)


@operation
async def connect_to_nobody(bench: Bench):
    try:
        transport, _ = await bench.loop.create_connection(asyncio.Protocol, "127.0.0.1", bench.unused_port)
    except OSError:
        return
    bench.keep(transport)  # a fault hid the refusal


@operation
async def connect_by_name(bench: Bench):
    with helpers.listener() as server:
        protocol = bench.watch(helpers.Recorder())
        sock = bench.keep(socket.socket())
        sock.setblocking(False)
        await bench.loop.sock_connect(sock, server.getsockname())
        transport, _ = await bench.loop.create_connection(lambda: protocol, sock=sock)
        bench.keep(transport)
        transport.get_extra_info("socket")
        transport.get_extra_info("sockname")
        transport.get_extra_info("peername")


@operation
async def accept(bench: Bench):
    _, address = await serve(bench)
    clients = [bench.keep(socket.socket()) for _ in range(3)]
    for client in clients:
        client.setblocking(False)
        client.connect_ex(address)
    await asyncio.sleep(0)
    for client in clients:
        with contextlib.suppress(BlockingIOError):
            client.send(MESSAGE)
        assert await from_raw(client, len(MESSAGE)) == MESSAGE


@operation
async def echo(bench: Bench):
    _, address = await serve(bench)
    protocol = bench.watch(helpers.Recorder())
    transport, _ = await bench.loop.create_connection(lambda: protocol, *address)
    bench.keep(transport)
    for turn in range(1, 4):
        transport.write(MESSAGE)
        await received(bench, protocol, MESSAGE * turn)


@operation
async def echo_unix(bench: Bench):
    _, path = await serve(bench, unix=True)
    protocol = bench.watch(helpers.Recorder())
    transport, _ = await bench.loop.create_unix_connection(lambda: protocol, path)
    bench.keep(transport)
    transport.writelines([MESSAGE, MESSAGE])
    await received(bench, protocol, MESSAGE * 2)


@operation
async def echo_streams(bench: Bench):
    async def handle(reader, writer):
        bench.keep(writer.transport)
        try:
            with contextlib.suppress(OSError, EOFError):
                writer.write(await reader.readexactly(len(LONG)))
                await writer.drain()
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    bench.keep(server)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    bench.keep(writer.transport)
    try:
        writer.write(LONG)
        await writer.drain()
        assert await reader.readexactly(len(LONG)) == LONG
    except EOFError as error:
        raise Lost(str(error)) from error
    finally:
        writer.close()


@operation
async def echo_tls(bench: Bench):
    server_context, client_context = bench.tls
    _, address = await serve(bench, ssl=server_context, ssl_handshake_timeout=2)
    protocol = bench.watch(helpers.Recorder())
    transport, _ = await bench.loop.create_connection(
        lambda: protocol, *address, ssl=client_context, server_hostname="localhost", ssl_handshake_timeout=2
    )
    bench.keep(transport)
    transport.write(MESSAGE)
    await received(bench, protocol, MESSAGE)
    transport.close()
    await protocol.lost()


@operation
async def upgrade_to_tls(bench: Bench):
    server_context, client_context = bench.tls
    upgrading = []

    async def upgrade(protocol):
        transport = await bench.loop.start_tls(
            protocol.transport, protocol, server_context, server_side=True, ssl_handshake_timeout=2
        )
        return transport and bench.keep(transport)

    async def answer(data):
        with contextlib.suppress(OSError):
            if transport := await upgrading[0]:
                transport.write(data)

    def on_data(protocol, data):
        if upgrading:
            bench.loop.create_task(answer(data))
        else:
            protocol.transport.write(b"!")
            if protocol.transport.is_closing():
                return  # as in asyncio, start_tls() would wait for ever
            upgrading.append(bench.loop.create_task(upgrade(protocol)))
            bench.loop.create_task(answer(b""))

    # As in asyncio, no protocol is told of an end that comes during the upgrade: they are not watched.
    ours, peer = helpers.tcp_pair()
    await attach(bench, peer, helpers.Recorder(data_received=on_data))
    protocol = await attach(bench, ours, helpers.Recorder())
    protocol.transport.write(b"?")
    await received(bench, protocol, b"!")
    transport = await bench.loop.start_tls(
        protocol.transport, protocol, client_context, server_hostname="localhost", ssl_handshake_timeout=2
    )
    if transport is None:
        raise Lost("the connection was lost during the upgrade")
    bench.keep(transport)
    transport.write(MESSAGE)
    await received(bench, protocol, b"!" + MESSAGE)


@operation
async def several_buffers(bench: Bench):
    first, second = await connected(bench)
    first.transport.writelines([MESSAGE] * 5)
    second.transport.write(MESSAGE)
    second.transport.write(MESSAGE)
    await received(bench, second, MESSAGE * 5)
    await received(bench, first, MESSAGE * 2)


@operation
async def buffered_protocol(bench: Bench):
    first, second = await connected(bench, first=bench.watch(helpers.BufferedRecorder(100)))
    second.transport.write(MESSAGE * 5)
    await received(bench, first, MESSAGE * 5)


@operation
async def growing_messages(bench: Bench):
    """Receives in each way: into the loop's buffer, into bytes of some size, and more than expected."""
    first, second = await connected(bench)
    sent = b""
    for size in (100, 700, 5000, 20000, 40000, 10):
        data = LONG[:size]
        sent += data
        first.transport.write(data)
        await received(bench, second, sent)


@operation
async def blocked_writes(bench: Bench):
    first, second = await connected(bench, pair=small_pair)
    first.transport.set_write_buffer_limits(8192)
    second.transport.pause_reading()
    first.transport.write(LONG)
    first.transport.write(LONG)
    await helpers.iterations(3)
    second.transport.resume_reading()
    await received(bench, second, LONG * 2)
    await until(
        first, lambda first: first.calls.count("pause_writing") == first.calls.count("resume_writing")
    )


@operation
async def write_and_eof(bench: Bench):
    def answer(protocol):
        protocol.transport.write(MESSAGE)
        protocol.transport.write_eof()
        return True

    first, second = await connected(
        bench, second=bench.watch(helpers.Recorder(eof_received=answer)), pair=small_pair
    )
    # One that gets the end without the answer would wait for it for ever.
    first.hooks["eof_received"] = lambda protocol: protocol.data == MESSAGE
    first.transport.write(LONG)
    first.transport.write_eof()
    await received(bench, second, LONG)
    await received(bench, first, MESSAGE)
    await until(first, lambda first: "eof_received" in first.calls)


@operation
async def pausing(bench: Bench):
    first, second = await connected(bench)
    for turn in range(1, 4):
        first.transport.pause_reading()
        second.transport.write(MESSAGE)
        await asyncio.sleep(0.001)
        await helpers.iterations(10)
        first.transport.resume_reading()
        await received(bench, first, MESSAGE * turn)


@operation
async def close(bench: Bench):
    first, second = await connected(bench, pair=small_pair)
    first.transport.write(LONG)
    first.transport.close()
    await first.lost()
    await until(second, "connection_lost")
    if second.exception is None and first.exception is None:
        assert second.data == LONG


@operation
async def abort(bench: Bench):
    first, second = await connected(bench, pair=small_pair)
    first.transport.write(LONG)
    await helpers.iterations(2)
    first.transport.abort()
    await first.lost()
    second.transport.close()
    await second.lost()


@operation
async def reset_by_peer(bench: Bench):
    ours, peer = helpers.tcp_pair()
    protocol = await attach(bench, ours)
    protocol.transport.write(MESSAGE)
    helpers.reset(peer)
    await protocol.lost()


@operation
async def close_server(bench: Bench):
    server, address = await serve(bench)
    protocol = bench.watch(helpers.Recorder())
    transport, _ = await bench.loop.create_connection(lambda: protocol, *address)
    bench.keep(transport)
    transport.write(MESSAGE)
    await received(bench, protocol, MESSAGE)
    server.close()
    transport.close()
    await protocol.lost()
    await server.wait_closed()


@operation
async def send_file(bench: Bench):
    first, second = await connected(bench, pair=small_pair)
    with tempfile.TemporaryFile() as file:
        file.write(LONG)
        file.flush()
        first.transport.write(MESSAGE)
        try:
            await bench.loop.sendfile(first.transport, file)
        except RuntimeError as error:  # what asyncio says of a transport that was lost
            raise Lost(str(error)) from error
        first.transport.write(MESSAGE)
    await received(bench, second, MESSAGE + LONG + MESSAGE)
