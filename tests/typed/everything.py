"""Uses everything that hotloop's loop has, with the types that it says: for `mypy --strict`, and to be run.

The functions are called as the chapters of asyncio's documentation of the event loop are.
"""

import asyncio
import os
import signal
import socket
import ssl
import sys
import tempfile
import threading
import time
from asyncio import Future, Handle, Server, Task, TimerHandle
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, copy_context
from pathlib import Path
from typing import Any, assert_type

import hotloop
import hotloop.accounting
import hotloop.metrics
import hotloop.recording
from hotloop.blocking import Block, Iteration


class Echo(asyncio.Protocol):
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def eof_received(self) -> bool:
        return False


class Client(asyncio.BufferedProtocol):
    """Sends a message and keeps what comes back until the connection ends."""

    def __init__(self, message: bytes, done: Future[bytes]) -> None:
        self.message = message
        self.done = done
        self.received = bytearray()
        self.buffer = bytearray(4096)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.set_write_buffer_limits(high=4096)
        assert_type(transport.get_write_buffer_size(), int)
        transport.writelines([self.message, bytearray(b"!"), memoryview(b"?")])
        transport.write_eof()

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.received += self.buffer[:nbytes]

    def connection_lost(self, exc: Exception | None) -> None:
        self.done.set_result(bytes(self.received))


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self, received: Future[bytes]) -> None:
        self.received = received

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        self.received.set_result(data)


class Pipe(asyncio.Protocol):
    def __init__(self, received: Future[bytes]) -> None:
        self.received = received

    def data_received(self, data: bytes) -> None:
        self.received.set_result(data)


class Child(asyncio.SubprocessProtocol):
    def __init__(self, ended: Future[bytes]) -> None:
        self.ended = ended
        self.written = b""

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.written += data

    def process_exited(self) -> None: ...

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set_result(self.written)


async def scheduling(loop: hotloop.Loop) -> None:
    called: list[int] = []
    context: Context = copy_context()
    assert_type(loop.call_soon(called.append, 1, context=context), Handle)
    assert_type(loop.call_soon_threadsafe(called.append, 2), Handle)
    assert_type(loop.call_later(0.001, called.append, 3), TimerHandle)
    timer = loop.call_at(loop.time() + 3600, called.append, 4)
    assert_type(timer.when(), float)
    timer.cancel()
    assert timer.cancelled()
    await asyncio.sleep(0.01)
    assert called == [1, 2, 3]


async def futures_and_tasks(loop: hotloop.Loop) -> None:
    async def double(number: int) -> int:
        await asyncio.sleep(0)
        return 2 * number

    future: Future[int] = loop.create_future()
    loop.call_soon(future.set_result, 1)
    assert await future == 1
    task = loop.create_task(double(2), name="double", context=copy_context())
    assert_type(task, Task[int])
    assert await task == 4
    loop.set_task_factory(loop.get_task_factory())


async def descriptors(loop: hotloop.Loop) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ready: Future[str] = loop.create_future()

        def write() -> None:
            theirs.send(b"x")
            assert_type(loop.remove_writer(theirs.fileno()), bool)

        def read(word: str) -> None:
            loop.remove_reader(ours)
            ready.set_result(word)

        loop.add_reader(ours, read, "readable")
        loop.add_writer(theirs, write)
        assert await ready == "readable"


async def sockets(loop: hotloop.Loop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as client:
        listening.setblocking(False)
        client.setblocking(False)
        await loop.sock_connect(client, listening.getsockname())
        server, address = await loop.sock_accept(listening)
        assert_type(server, socket.socket)
        assert address == client.getsockname()
        with server:
            await loop.sock_sendall(client, b"hello")
            assert_type(await loop.sock_recv(server, 2), bytes)
            buffer = bytearray(10)
            assert_type(await loop.sock_recv_into(server, buffer), int)
            assert buffer[:3] == b"llo"
            with tempfile.TemporaryFile() as file:
                file.write(b"a file")
                file.flush()
                assert_type(await loop.sock_sendfile(server, file), int)
            assert await loop.sock_recv(client, 100) == b"a file"
    with (
        socket.socket(type=socket.SOCK_DGRAM) as first,
        socket.socket(type=socket.SOCK_DGRAM) as second,
    ):
        for datagrams in (first, second):
            datagrams.setblocking(False)
            datagrams.bind(("127.0.0.1", 0))
        assert_type(await loop.sock_sendto(first, b"one", second.getsockname()), int)
        assert await loop.sock_recvfrom(second, 100) == (b"one", first.getsockname())
        await loop.sock_sendto(first, b"two", second.getsockname())
        assert await loop.sock_recvfrom_into(second, bytearray(100)) == (3, first.getsockname())


async def connections(loop: hotloop.Loop) -> None:
    async def exchange(server: Server, **where: Any) -> None:
        async with server:
            done: Future[bytes] = loop.create_future()
            transport, protocol = await loop.create_connection(lambda: Client(b"hello", done), **where)
            assert_type(protocol, Client)
            assert isinstance(transport, asyncio.Transport)
            assert await done == b"hello!?"

    server = await loop.create_server(Echo, "127.0.0.1", 0, reuse_port=True)
    assert_type(server, Server)
    host, port = server.sockets[0].getsockname()
    await exchange(server, host=host, port=port)

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "socket"))
        unix = await loop.create_unix_server(Echo, path)
        done: Future[bytes] = loop.create_future()
        _, client = await loop.create_unix_connection(lambda: Client(b"unix", done), path)
        assert_type(client, Client)
        assert await done == b"unix!?"
        unix.close()

    ours, theirs = socket.socketpair()
    done = loop.create_future()
    await loop.connect_accepted_socket(Echo, ours)
    await loop.create_connection(lambda: Client(b"pair", done), sock=theirs)
    assert await done == b"pair!?"

    context = ssl.create_default_context()
    try:
        ours, theirs = socket.socketpair()
        theirs.close()
        await loop.create_connection(Echo, sock=ours, ssl=context, server_hostname="localhost")
    except OSError:
        pass
    else:
        raise AssertionError("a handshake with nobody")


async def datagrams(loop: hotloop.Loop) -> None:
    received: Future[bytes] = loop.create_future()
    server, _ = await loop.create_datagram_endpoint(lambda: Datagrams(received), local_addr=("127.0.0.1", 0))
    client, _ = await loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, remote_addr=server.get_extra_info("sockname")
    )
    assert_type(client, asyncio.DatagramTransport)
    client.sendto(b"hello")
    assert await received == b"hello"
    client.close()
    server.close()


async def pipes_and_children(loop: hotloop.Loop) -> None:
    reading, writing = os.pipe()
    received: Future[bytes] = loop.create_future()
    reader, _ = await loop.connect_read_pipe(lambda: Pipe(received), os.fdopen(reading, "rb"))
    writer, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(writing, "wb"))
    writer.write(b"through a pipe")
    assert await received == b"through a pipe"
    writer.close()
    reader.close()

    ended: Future[bytes] = loop.create_future()
    child, _ = await loop.subprocess_exec(lambda: Child(ended), sys.executable, "-c", "print('child')")
    assert_type(child, asyncio.SubprocessTransport)
    assert await ended == b"child\n"
    assert child.get_returncode() == 0
    child.close()
    ended = loop.create_future()
    child, _ = await loop.subprocess_shell(lambda: Child(ended), "echo shell")
    assert await ended == b"shell\n"
    child.close()


async def signals(loop: hotloop.Loop) -> None:
    arrived: Future[int] = loop.create_future()
    loop.add_signal_handler(signal.SIGUSR1, arrived.set_result, 1)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert await arrived == 1
    assert_type(loop.remove_signal_handler(signal.SIGUSR1), bool)


async def threads_and_names(loop: hotloop.Loop) -> None:
    with ThreadPoolExecutor(1) as executor:
        loop.set_default_executor(executor)
        assert_type(await loop.run_in_executor(None, len, "four"), int)
    assert await loop.getnameinfo(("127.0.0.1", 80), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
    assert await loop.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)
    threading.Thread(target=loop.call_soon_threadsafe, args=(int,)).start()


async def observing(loop: hotloop.Loop) -> None:
    metrics = loop.metrics()
    assert_type(metrics, hotloop.metrics.Metrics)
    assert_type(metrics.utilization, float)
    assert_type(metrics.callbacks, int)
    assert_type(metrics.delay.percentile(99), float)
    assert_type(metrics.iteration_duration, hotloop.metrics.Histogram)
    assert_type(loop.metrics().since(metrics), hotloop.metrics.Metrics)
    assert_type(metrics.accept_pauses, int)
    assert_type(metrics.accept_paused, float)
    loop.record(5.0, memory=1 << 16)
    recording = loop.recording()
    assert_type(recording, hotloop.recording.Recording)
    assert_type(recording.seconds, float)
    assert_type(recording.lost, int)
    loop.record(None)
    loop.account(slow=0.1)
    accounting = loop.accounting()
    assert_type(accounting, hotloop.accounting.Accounting)
    assert_type(accounting.accounts[0].total_poll_duration, float)
    assert_type(accounting.since(accounting).busy, float)
    loop.account(False)
    loop.reset_metrics()
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0, start_serving=False)
    limit = hotloop.limit(server, connections=10, delay=0.5)
    assert_type(limit, hotloop.Limit)
    assert_type(limit.paused, bool)
    assert_type(limit.open, int)
    assert_type(limit.connections, int | None)
    assert_type(limit.delay, float | None)
    limit.remove()
    server.close()
    blocked: Future[Block] = loop.create_future()
    loop.watch_blocking(0.2, blocked.set_result)
    await asyncio.sleep(0)
    # With Python code in it, so that somebody can look at it whatever the machine does meanwhile.
    until = time.monotonic() + 1
    while time.monotonic() < until:
        pass
    block = await blocked
    assert_type(block.duration, float)
    assert_type(block.processor, float | None)
    assert_type(block.asleep, float | None)
    assert_type(block.context, Context | None)
    assert_type(loop.worst_iterations(), list[Iteration])
    assert_type(block.task, asyncio.Task[Any] | None)
    assert block.line is not None
    assert block.line.name == "observing"
    loop.watch_blocking(None)


async def everything() -> str:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, hotloop.Loop)
    problems: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, problem: problems.append(problem))
    for part in (
        scheduling,
        futures_and_tasks,
        descriptors,
        sockets,
        connections,
        datagrams,
        pipes_and_children,
        signals,
        threads_and_names,
        observing,
    ):
        await part(loop)
    assert not problems, problems
    assert loop.is_running()
    assert not loop.is_closed()
    assert_type(loop.get_debug(), bool)
    return "everything"


def main() -> None:
    assert_type(hotloop.run(everything(), debug=False), str)
    with asyncio.Runner(loop_factory=hotloop.new_event_loop) as runner:
        assert_type(runner.run(everything()), str)
    loop = hotloop.new_event_loop()
    assert_type(loop, hotloop.Loop)
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    hotloop.install()
    assert_type(hotloop.EventLoopPolicy(), hotloop.EventLoopPolicy)
    asyncio.run(everything())
    print("hotloop", hotloop.__version__)


if __name__ == "__main__":
    main()
