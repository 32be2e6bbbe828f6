"""What threads may do with a loop that another one runs, on a Python without the GIL."""

import asyncio
import contextlib
import errno
import gc
import inspect
import os
import signal
import socket
import sys
import threading
import time
import weakref

import helpers
import pytest
from helpers import Recorder

pytestmark = [
    pytest.mark.skipif(not helpers.FREE_THREADED, reason="the GIL is the rule here"),
    pytest.mark.hotloop_only,
]

REFUSED = "Non-thread-safe operation invoked on an event loop other than the current one"


@pytest.fixture
def running(new_loop):
    """A loop that runs in a thread of its own."""
    loop = new_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    while not loop.is_running():
        time.sleep(0.001)
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join(30)
    assert not thread.is_alive()


def run(loop, coroutine):
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result(30)


def nothing(*args):
    pass


def recv(loop, sock):
    coroutine = loop.sock_recv(sock, 1)
    try:
        coroutine.send(None)
    finally:
        coroutine.close()


REFUSED_BY_A_LOOP = {
    "add_reader": lambda loop, sock: loop.add_reader(sock, nothing),
    "remove_writer": lambda loop, sock: loop.remove_writer(sock),
    "sock_recv": recv,
    "_run_once": lambda loop, sock: loop._run_once(),
    "_ready": lambda loop, sock: list(loop._ready),
    "watch_blocking": lambda loop, sock: loop.watch_blocking(1),
}


@pytest.mark.parametrize("method", REFUSED_BY_A_LOOP)
def test_what_a_running_loop_refuses(running, method):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        for _ in range(3):
            with pytest.raises(RuntimeError, match=REFUSED):
                REFUSED_BY_A_LOOP[method](running, ours)
    assert run(running, asyncio.sleep(0, "it goes on")) == "it goes on"


@pytest.mark.parametrize("run_forever", [True, False])
def test_a_loop_is_run_by_one_thread(running, run_forever):
    with pytest.raises(RuntimeError, match="already running"):
        running.run_forever() if run_forever else running.run_until_complete(asyncio.Future(loop=running))


SCHEDULING = {
    "call_soon": lambda loop, function, *args: loop.call_soon(function, *args),
    "call_later": lambda loop, function, *args: loop.call_later(0, function, *args),
    "call_at": lambda loop, function, *args: loop.call_at(loop.time(), function, *args),
    "call_soon_threadsafe": lambda loop, function, *args: loop.call_soon_threadsafe(function, *args),
    "create_task": lambda loop, function, *args: loop.create_task(in_task(function, *args)),
    "set_result": lambda loop, function, *args: future_with(loop, function, *args).set_result(None),
}


async def in_task(function, *args):
    function(*args)


def future_with(loop, function, *args):
    future = loop.create_future()
    future.add_done_callback(lambda _: function(*args))
    return future


@pytest.mark.parametrize("method", SCHEDULING)
def test_a_sleeping_loop_calls_what_another_thread_schedules(running, method):
    time.sleep(0.02)
    called, done = [], threading.Event()
    for number in range(10):
        SCHEDULING[method](running, called.append, number)
    SCHEDULING[method](running, done.set)
    assert done.wait(10)
    assert called == list(range(10))


@pytest.mark.parametrize("method", ["call_soon", "call_later", "call_soon_threadsafe"])
def test_a_callback_that_another_thread_cancels_is_not_called_and_not_kept(running, method):
    class Argument:
        pass

    entered, leave = threading.Event(), threading.Event()
    called = []
    # The loop is busy, so that it cannot come to the handle before.
    running.call_soon_threadsafe(lambda: (entered.set(), leave.wait(10)))
    assert entered.wait(10)
    argument = Argument()
    gone = weakref.ref(argument)
    handle = SCHEDULING[method](running, called.append, argument)
    del argument
    handle.cancel()
    assert handle.cancelled()
    assert "cancelled" in repr(handle)
    leave.set()
    run(running, asyncio.sleep(0.01))
    assert called == []
    run(running, asyncio.sleep(0))
    gc.collect()
    assert gone() is None


def test_a_timer_that_another_thread_cancels_is_taken_out(running):
    async def make():
        return running.call_later(1000, nothing)

    timers = [run(running, make()) for _ in range(10)]
    for timer in timers:
        timer.cancel()

    async def scheduled():
        return len(running._scheduled)

    assert run(running, scheduled()) == 0


def test_what_a_transport_tells_another_thread(running):
    ours, theirs = helpers.tcp_pair()
    transport, protocol = run(running, running.create_connection(Recorder, sock=ours))
    theirs.settimeout(10)
    with theirs:
        assert transport.get_extra_info("peername") == theirs.getsockname()
        assert transport.get_extra_info("sockname") == theirs.getpeername()
        assert transport.get_extra_info("socket").getsockname() == theirs.getpeername()
        assert transport.get_extra_info("no such thing", 42) == 42
        assert transport.get_protocol() is protocol
        assert not transport.is_closing()
        assert f"fd={transport._sock_fd}" in repr(transport)
        assert transport.is_reading()
        assert transport.can_write_eof()
        assert transport.get_write_buffer_limits() == (16384, 65536)
        assert transport.get_write_buffer_size() == 0
        with pytest.raises(RuntimeError, match=REFUSED):
            transport.pause_reading()
        with pytest.raises(RuntimeError, match=REFUSED):
            transport.write(b"data")
        running.call_soon_threadsafe(transport.close)
        assert theirs.recv(10) == b""
        run(running, asyncio.sleep(0.01))
        assert transport.is_closing()
        assert "closed" in repr(transport)
        assert transport.get_protocol() is None


def test_what_a_tls_transport_tells_another_thread(running, tls):
    streams = []

    async def connect():
        # A stream that is not kept ends its connection.
        server = await asyncio.start_server(lambda *both: streams.append(both), "127.0.0.1", 0, ssl=tls[0])
        port = server.sockets[0].getsockname()[1]
        transport, protocol = await running.create_connection(
            Recorder, "127.0.0.1", port, ssl=tls[1], server_hostname="localhost"
        )
        return server, transport, protocol

    async def end():
        transport.abort()
        transport.close()
        server.close()
        for _, writer in streams:
            writer.close()
        await protocol.lost()

    server, transport, protocol = run(running, connect())
    address = server.sockets[0].getsockname()
    for _ in range(2):
        assert transport.get_extra_info("no such thing", 42) == 42
        assert transport.get_write_buffer_size() == 0
        transport.get_write_buffer_limits()
        transport.get_read_buffer_limits()
        if not transport.is_closing():
            assert transport.get_extra_info("peername") == address
            assert transport.get_extra_info("cipher")
            assert transport.get_protocol() is protocol
            assert transport.is_reading()
            with pytest.raises(RuntimeError, match=REFUSED):
                transport.write(b"data")
            run(running, end())
    assert transport.get_protocol() is None


def test_how_much_a_transport_has_to_send_is_told_to_another_thread(running):
    ours, theirs = helpers.unix_pair()
    transport, _ = run(running, running.create_connection(Recorder, sock=ours))
    with theirs:
        running.call_soon_threadsafe(transport.write, helpers.TOO_MUCH)
        running.call_soon_threadsafe(transport.pause_reading)
        running.call_soon_threadsafe(transport.set_write_buffer_limits, 2000.5, 1000)
        deadline = time.monotonic() + 10
        while transport.get_write_buffer_limits() != (1000, 2000) and time.monotonic() < deadline:
            time.sleep(0.001)
        assert not transport.is_reading()
        assert 0 < transport.get_write_buffer_size() < len(helpers.TOO_MUCH)
        transport.abort()
        while transport.get_write_buffer_size() and time.monotonic() < deadline:
            time.sleep(0.001)
        assert transport.get_write_buffer_size() == 0


def test_metrics_of_a_running_loop(running):
    ours, theirs = helpers.unix_pair()
    transport, _ = run(running, running.create_connection(Recorder, sock=ours))
    running.call_soon_threadsafe(transport.write, helpers.TOO_MUCH)
    deadline = time.monotonic() + 10
    while not running.metrics().bytes_waiting and time.monotonic() < deadline:
        time.sleep(0.001)
    metrics = running.metrics()
    assert 0 < metrics.bytes_waiting < len(helpers.TOO_MUCH)
    assert metrics.transports == 1
    running.call_soon_threadsafe(transport.abort)
    while running.metrics().transports and time.monotonic() < deadline:
        time.sleep(0.001)
    assert running.metrics().bytes_waiting == 0
    running.reset_metrics()
    theirs.close()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_transport_that_is_garbage_in_another_thread_is_closed_by_its_loop(running):
    async def leave(sock):
        transport, protocol = await running.create_connection(Recorder, sock=sock)
        transport.pause_reading()
        protocol.cycle = transport

    gc.disable()
    try:
        ours, theirs = helpers.unix_pair()
        run(running, leave(ours))
        del ours
        run(running, asyncio.sleep(0.01))
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(10)
        gc.collect()
        theirs.settimeout(10)
        assert theirs.recv(10) == b""
        theirs.close()
    finally:
        gc.enable()


def test_a_tls_connection_that_is_garbage_in_another_thread_is_closed_by_its_loop(running, tls):
    async def serve(reader, writer):
        ended.set_result(await reader.read())
        writer.close()

    async def leave():
        nonlocal ended
        ended = running.create_future()
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls[0])
        port = server.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection("localhost", port, ssl=tls[1])
        writer.write(b"hello")
        cycle = [writer]
        cycle.append(cycle)
        return server

    async def end(server):
        received = await asyncio.wait_for(ended, 10)
        server.close()
        await server.wait_closed()
        return received

    ended = None
    gc.disable()
    try:
        server = run(running, leave())
        run(running, asyncio.sleep(0.01))
        gc.collect()
        assert run(running, end(server)) == b"hello"
    finally:
        gc.enable()


@pytest.mark.parametrize("method", ["close", "abort"])
def test_a_transport_that_another_thread_closes_is_closing(running, method):
    async def block():
        blocked.set()
        go_on.wait(10)

    blocked, go_on = threading.Event(), threading.Event()
    ours, theirs = socket.socketpair()
    transport, protocol = run(running, running.create_connection(Recorder, sock=ours))
    blocking = asyncio.run_coroutine_threadsafe(block(), running)
    blocked.wait(10)
    getattr(transport, method)()
    assert transport.is_closing()
    go_on.set()
    blocking.result(10)
    run(running, protocol.lost())
    theirs.close()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_server_that_another_thread_closes(running, kind, tmp_path):
    path = tmp_path / "server"
    if kind == "tcp":
        server = run(running, running.create_server(Recorder, "127.0.0.1", 0))
    else:
        server = run(running, running.create_unix_server(Recorder, path))
    address = server.sockets[0].getsockname()
    server.close()
    assert not server.is_serving()
    run(running, server.wait_closed())
    with socket.socket(socket.AF_INET if kind == "tcp" else socket.AF_UNIX) as peer:
        assert peer.connect_ex(address) in (errno.ECONNREFUSED, errno.ENOENT)
    assert not path.exists()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_the_address_of_a_server_that_another_thread_closes_is_free_at_once(running, kind, tmp_path):
    path = tmp_path / "server"
    family = socket.AF_INET if kind == "tcp" else socket.AF_UNIX

    def create(address):
        if kind == "tcp":
            return running.create_server(Recorder, *address)
        return running.create_unix_server(Recorder, address)

    server = run(running, create(("127.0.0.1", 0) if kind == "tcp" else path))
    address = server.sockets[0].getsockname()
    # The loop is busy, so that it cannot help.
    entered, leave = threading.Event(), threading.Event()
    running.call_soon_threadsafe(lambda: (entered.set(), leave.wait(10)))
    assert entered.wait(10)
    try:
        server.close()
        assert not path.exists()
        with socket.socket(family) as peer:
            assert peer.connect_ex(address) in (errno.ECONNREFUSED, errno.ENOENT)
        # It often has the same number as the server's, which the loop has yet to forget.
        listening = socket.socket(family)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        server = asyncio.run_coroutine_threadsafe(
            running.create_server(Recorder, sock=listening)
            if kind == "tcp"
            else running.create_unix_server(Recorder, sock=listening),
            running,
        )
    finally:
        leave.set()
    server = server.result(10)
    with socket.socket(family) as peer:
        peer.settimeout(10)
        peer.connect(address)
        run(running, asyncio.sleep(0.01))
        assert len(server._clients) == 1

    async def end():
        server.close()
        await server.wait_closed()

    # asyncio's Server is not for two threads: a client leaves it now.
    run(running, end())


def test_a_server_is_closed_while_another_thread_begins_to_run_its_loop(new_loop):
    for _ in range(300):
        loop = new_loop()
        server = loop.run_until_complete(loop.create_server(Recorder, "127.0.0.1", 0))
        (sock,) = server.sockets
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        server.close()
        assert sock.fileno() == -1
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def test_signal_handlers_of_a_loop_that_another_thread_runs(running):
    handled = threading.Event()
    running.add_signal_handler(signal.SIGUSR1, handled.set)
    try:
        for _ in range(2):
            handled.clear()
            os.kill(os.getpid(), signal.SIGUSR1)
            assert handled.wait(10)
    finally:
        assert running.remove_signal_handler(signal.SIGUSR1)
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_operations_on_sockets_are_made_by_any_thread(running):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        run(running, running.sock_sendall(ours, b"hello"))
        assert theirs.recv(10) == b"hello"
        theirs.send(b"hello")
        assert run(running, running.sock_recv(ours, 10)) == b"hello"


@pytest.mark.parametrize("begun", [True, False])
def test_an_operation_on_a_socket_that_another_thread_closes(running, begun):
    async def begin(operation):
        operation.send(None)

    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        operation = running.sock_recv(ours, 10)
        if begun:
            run(running, begin(operation))
        operation.close()
        run(running, asyncio.sleep(0))
        assert inspect.getcoroutinestate(operation) == inspect.CORO_CLOSED
        theirs.send(b"hello")
        assert run(running, running.sock_recv(ours, 10)) == b"hello"
        operation.close()


def test_a_coroutine_that_waits_for_a_socket_is_garbage_in_another_thread(running, monkeypatch):
    async def receive():
        try:
            await running.sock_recv(ours, 10)
        except BaseException as error:
            caught.append(type(error))
            raise

    async def leave():
        coroutine = receive()
        coroutine.send(None)
        cycle = [coroutine]
        cycle.append(cycle)

    caught = []
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    ours, theirs = socket.socketpair()
    gc.disable()
    try:
        ours.setblocking(False)
        run(running, leave())
        run(running, asyncio.sleep(0))
        gc.collect()
        assert caught == [GeneratorExit]
        assert unraisable == []
        theirs.send(b"hello")
        assert run(running, running.sock_recv(ours, 10)) == b"hello"
    finally:
        gc.enable()
        ours.close()
        theirs.close()


def test_a_method_that_waits_for_a_thread_that_schedules_callbacks(new_loop):
    class File:
        def fileno(self):
            thread = threading.Thread(target=schedule)
            thread.start()
            thread.join()
            return ours.fileno()

    def schedule():
        start = time.monotonic()
        for number in range(10):
            loop.call_soon(seen.append, number)
            loop.call_soon_threadsafe(seen.append, number)
            loop.call_later(0, seen.append, 10)
            loop.call_later(0, seen.append, "cancelled").cancel()
            loop.call_soon(seen.append, "cancelled").cancel()
            repr(loop.create_future())
            loop.metrics()
        took.append(time.monotonic() - start)

    loop = new_loop()
    seen = []
    took = []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        loop.add_reader(File(), nothing)
        assert took[0] < 1
        loop.run_until_complete(asyncio.sleep(0.001))
        assert seen == sorted(list(range(10)) * 2) + [10] * 10


def test_threads_that_use_a_loop_that_nobody_runs(new_loop):
    loop = new_loop()
    seen = []
    ours, theirs = socket.socketpair()
    ours.setblocking(False)

    def use(number):
        for call in range(500):
            loop.call_soon(seen.append, (number, call))
            loop.call_later(0, nothing).cancel()
            loop.add_reader(ours, nothing)
            with contextlib.suppress(OSError):
                loop.remove_reader(ours)

    threads = [threading.Thread(target=use, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    loop.run_until_complete(asyncio.sleep(0.001))
    for number in range(4):
        assert [call for thread, call in seen if thread == number] == list(range(500))
    ours.close()
    theirs.close()
