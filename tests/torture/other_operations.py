"""The other operations of an event loop: datagrams, pipes, processes, plain sockets, threads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading

import helpers

from .bench import Bench, Lost
from .operations import LONG, MESSAGE, operation, received, small_pair

# --- Datagrams ---


async def datagrams_until_answered(bench, client, send, answered):
    for _ in range(50):
        if client.transport.is_closing():
            raise Lost("the endpoint was closed")
        send()
        for _ in range(20):
            await asyncio.sleep(0.0005)
            if answered():
                return
    raise Lost("no answer")


@operation
async def datagrams(bench: Bench):
    def answer(protocol, data, addr):
        protocol.transport.sendto(data, addr)

    server = bench.watch(helpers.DatagramRecorder(datagram_received=answer))
    transport, _ = await bench.loop.create_datagram_endpoint(lambda: server, local_addr=("127.0.0.1", 0))
    bench.keep(transport)
    if server.address is None:
        raise Lost("the address cannot be had")
    client = bench.watch(helpers.DatagramRecorder())
    transport, _ = await bench.loop.create_datagram_endpoint(lambda: client, remote_addr=server.address)
    bench.keep(transport)

    def send():
        for number in range(3):
            transport.sendto(b"%d" % number)

    await datagrams_until_answered(bench, client, send, lambda: len(set(client.contents)) == 3)
    assert set(client.contents) == {b"0", b"1", b"2"}


@operation
async def blocked_datagrams(bench: Bench):
    protocols = []
    for sock in helpers.datagram_pair():
        protocol = bench.watch(helpers.DatagramRecorder())
        bench.keep(sock)
        transport, _ = await bench.loop.create_datagram_endpoint(
            lambda protocol=protocol: protocol, sock=sock
        )
        bench.keep(transport)
        protocols.append(protocol)
    first, second = protocols
    transport = first.transport
    if transport.get_extra_info("peername") is None:
        raise Lost("the peer cannot be had, so that there is nobody to send to")
    transport.set_write_buffer_limits(200)
    numbers = iter(range(10_000))

    def send():
        for _ in range(30):
            transport.sendto(b"%05d" % next(numbers))

    await datagrams_until_answered(bench, first, send, lambda: len(second.datagrams) >= 30)
    assert second.contents == sorted(set(second.contents)), "out of order, or twice"


# --- Pipes and processes ---


@operation
async def read_pipe(bench: Bench):
    reader, writer = map(bench.keep, helpers.os_pipe())
    protocol = bench.watch(helpers.Recorder())
    transport, _ = await bench.loop.connect_read_pipe(lambda: protocol, reader)
    bench.keep(transport)
    writer.write(MESSAGE)
    await received(bench, protocol, MESSAGE)
    transport.pause_reading()
    writer.write(MESSAGE)
    await helpers.iterations(3)
    transport.resume_reading()
    await received(bench, protocol, MESSAGE * 2)
    writer.close()
    await protocol.lost()


@operation
async def write_pipe(bench: Bench):
    reader, writer = map(bench.keep, helpers.os_pipe())
    os.set_blocking(reader.fileno(), False)
    protocol = bench.watch(helpers.Recorder())
    transport, _ = await bench.loop.connect_write_pipe(lambda: protocol, writer)
    bench.keep(transport)
    expected = LONG * 3  # more than a pipe holds
    transport.write(LONG)
    transport.writelines([LONG, LONG])
    transport.close()
    data = b""
    while "connection_lost" not in protocol.calls:
        data += reader.read(1 << 20) or b""
        await asyncio.sleep(0.0005)
    data += reader.read(1 << 20) or b""
    assert expected.startswith(data), "other data"
    if protocol.exception is None and data != expected:
        raise Lost("not all was written")


@operation
async def subprocess(bench: Bench):
    process = await asyncio.create_subprocess_exec(
        "cat", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    bench.keep(process._transport)
    output, errors = await process.communicate(MESSAGE)
    assert MESSAGE.startswith(output)
    assert errors == b""
    assert await process.wait() == 0
    if output != MESSAGE:
        raise Lost("not all came back")


# --- Sockets and descriptors without a transport ---


@operation
async def sock_recv_and_sendall(bench: Bench):
    first, second = map(bench.keep, small_pair("unix"))

    async def send():
        try:
            await bench.loop.sock_sendall(first, LONG)
        finally:
            first.close()

    writing = bench.loop.create_task(send())
    try:
        data = bytearray()
        buffer = bytearray(1000)
        while len(data) < len(LONG) // 2 and (chunk := await bench.loop.sock_recv(second, 1 << 17)):
            data += chunk
        while count := await bench.loop.sock_recv_into(second, buffer):
            data += buffer[:count]
        await writing
        assert data == LONG
    finally:
        writing.cancel()
        await asyncio.wait([writing])
        _ = writing.cancelled() or writing.exception()


@operation
async def sock_connect_and_accept(bench: Bench):
    server, client = bench.keep(helpers.listener()), bench.keep(socket.socket())
    client.setblocking(False)
    accepting = bench.loop.create_task(bench.loop.sock_accept(server))
    try:
        await bench.loop.sock_connect(client, server.getsockname())
        accepted, _ = await accepting
        bench.keep(accepted)
        await bench.loop.sock_sendall(client, MESSAGE)
        assert await bench.loop.sock_recv(accepted, 1000)
    finally:
        accepting.cancel()
        await asyncio.wait([accepting])
        if not accepting.cancelled() and accepting.exception() is None:
            accepting.result()[0].close()


@operation
async def sock_datagrams(bench: Bench):
    first, second = map(bench.keep, (helpers.datagram_socket(), helpers.datagram_socket()))
    await bench.loop.sock_sendto(first, MESSAGE, second.getsockname())
    data, _ = await bench.loop.sock_recvfrom(second, 1000)
    assert data == MESSAGE


@operation
async def readers_and_writers(bench: Bench):
    first, second = map(bench.keep, helpers.unix_pair())
    called = []
    try:
        bench.loop.add_reader(first, called.append, "read")
        bench.loop.add_writer(first, called.append, "write")
        await helpers.until(lambda: "write" in called, timeout=30)
        bench.loop.remove_writer(first)
        second.send(b"x")
        await helpers.until(lambda: "read" in called, timeout=30)
    finally:
        bench.loop.remove_reader(first)
        bench.loop.remove_writer(first)


@operation
async def descriptor_closed_behind_the_loops_back(bench: Bench):
    first, second = map(bench.keep, helpers.unix_pair())
    bench.keep(first.dup())  # has the registration outlive the descriptor
    bench.loop.add_reader(first.fileno(), lambda: None)
    fd = first.fileno()
    first.close()
    bench.loop.remove_reader(fd)
    second.send(b"x")
    await asyncio.sleep(0.003)


# --- Other threads ---


@operation
async def call_from_thread(bench: Bench):
    arrived = asyncio.Event()
    over = threading.Event()

    def work():
        # Once is enough, unless a system call fails.
        while not over.wait(0.002):
            with contextlib.suppress(OSError):
                bench.loop.call_soon_threadsafe(arrived.set)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(3):
            arrived.clear()
            await arrived.wait()
    finally:
        over.set()
        thread.join()


@operation
async def executor(bench: Bench):
    for number in range(3):
        assert await bench.loop.run_in_executor(None, abs, -number) == number
