"""What debug mode writes to asyncio's log: the same as with asyncio's own loop."""

import asyncio
import logging
import os
import re
import socket
import subprocess
import tempfile
import time

import helpers
import pytest
import trustme
from helpers_tls import client_context, server_context

pytestmark = [
    pytest.mark.hotloop_only,
    pytest.mark.skipif("hotloop" not in helpers.FACTORIES, reason="there is nothing to compare"),
]


class Served(asyncio.Protocol):
    def __init__(self, made):
        made.append(self)

    def connection_made(self, transport):
        self.transport = transport


async def settle():
    await asyncio.sleep(0.02)


async def tcp(loop):
    made = []
    server = await loop.create_server(lambda: Served(made), "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    transport, _ = await loop.create_connection(asyncio.Protocol, *address)
    await settle()
    transport.pause_reading()
    transport.pause_reading()
    transport.resume_reading()
    transport.resume_reading()
    made[0].transport.write_eof()
    await settle()
    transport.abort()
    await settle()
    for _ in range(7):
        transport.write(b"x")
    server.close()


async def by_name(loop):
    made = []
    server = await loop.create_server(lambda: Served(made), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    transport, _ = await loop.create_connection(asyncio.Protocol, "localhost", port, family=socket.AF_INET)
    await settle()
    transport.close()
    await settle()
    server.close()


async def reset(loop):
    made = []
    server = await loop.create_server(lambda: Served(made), "127.0.0.1", 0)
    with socket.create_connection(server.sockets[0].getsockname()) as client:
        await settle()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    await settle()
    server.close()


async def unix(loop):
    made = []
    with tempfile.TemporaryDirectory() as folder:
        server = await loop.create_unix_server(lambda: Served(made), f"{folder}/socket")
        transport, _ = await loop.create_unix_connection(asyncio.Protocol, f"{folder}/socket")
        await settle()
        transport.close()
        await settle()
        server.close()


async def datagrams(loop):
    here, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0))
    there, _ = await loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, remote_addr=here.get_extra_info("sockname")
    )
    there.sendto(b"x")
    await settle()
    here.close()
    there.sendto(b"x")
    await settle()
    there.sendto(b"x")
    there.close()
    await settle()


async def pipes(loop):
    for closed in ("reading", "writing"):
        read, write = os.pipe()
        reading, _ = await loop.connect_read_pipe(asyncio.Protocol, os.fdopen(read, "rb", 0))
        writing, _ = await loop.connect_write_pipe(asyncio.Protocol, os.fdopen(write, "wb", 0))
        writing.write(b"x")
        await settle()
        reading.pause_reading()
        reading.resume_reading()
        (reading if closed == "reading" else writing).close()
        await settle()
        for _ in range(7):
            writing.write(b"x")
        writing.close()
        await settle()


async def subprocesses(loop):
    process = await asyncio.create_subprocess_exec("true")
    await process.wait()
    process = await asyncio.create_subprocess_shell("echo x", stdout=subprocess.PIPE)
    await process.communicate()
    process = await asyncio.create_subprocess_exec("sleep", "60")
    process.kill()
    await process.wait()


async def slow(loop):
    loop.slow_callback_duration = 0.01
    loop.call_soon(time.sleep, 0.02)
    await settle()
    loop.slow_callback_duration = 60


async def tls(loop):
    made = []
    authority = trustme.CA()
    context = server_context(authority)
    server = await loop.create_server(lambda: Served(made), "127.0.0.1", 0, ssl=context)
    address = server.sockets[0].getsockname()
    transport, _ = await loop.create_connection(
        asyncio.Protocol, *address, ssl=client_context(authority), server_hostname="localhost"
    )
    await settle()
    transport.pause_reading()
    transport.resume_reading()
    transport.close()
    await settle()
    server.close()


async def accepted(loop):
    here, there = socket.socketpair()
    with there:
        here.setblocking(False)
        transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, here)
        await settle()
        transport.close()
        await settle()


async def refused(loop):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = closed.getsockname()
    with pytest.raises(ConnectionRefusedError):
        await loop.create_connection(asyncio.Protocol, *address)


def what_is_logged(factory, scenario, caplog):
    """The messages without numbers, sorted: in which order things happen is what other tests compare."""
    loop = factory()
    try:
        loop.set_debug(True)
        loop.slow_callback_duration = 60
        caplog.clear()
        with caplog.at_level(logging.DEBUG, logger="asyncio"):
            loop.run_until_complete(scenario(loop))
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    messages = (record.msg for record in caplog.records if record.name == "asyncio")
    return sorted(re.sub(r"\d+(\.\d+)?", "N", message) for message in messages)


@pytest.mark.parametrize(
    "scenario",
    [
        tcp,
        by_name,
        reset,
        unix,
        datagrams,
        pipes,
        subprocesses,
        slow,
        tls,
        accepted,
        refused,
    ],
    ids=lambda scenario: scenario.__name__,
)
def test_the_messages_are_asyncios(loop_name, scenario, caplog):
    theirs = what_is_logged(asyncio.SelectorEventLoop, scenario, caplog)
    ours = what_is_logged(helpers.FACTORIES[loop_name], scenario, caplog)
    assert ours == theirs
