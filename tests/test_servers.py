"""create_server, and the Server it gives."""

import asyncio
import contextlib
import gc
import os
import resource
import signal
import socket
import struct
import subprocess
import threading
import time

import helpers
import pytest
from helpers import Recorder


class Served(list):
    """A factory that remembers the protocols it made."""

    def __init__(self, **hooks):
        super().__init__()
        self.hooks = hooks

    def __call__(self):
        self.append(Recorder(**self.hooks))
        return self[-1]


def connect(address):
    sock = socket.create_connection(address[:2])
    sock.setblocking(False)
    return sock


async def refused(address):
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*address[:2])


# Its addresses


async def test_a_server_serves(loop):
    served = Served(connection_made=lambda protocol, transport: transport.write(b"welcome"))
    server = await loop.create_server(served, "127.0.0.1", 0)
    assert isinstance(server, asyncio.AbstractServer)
    assert server.is_serving()
    assert server.get_loop() is loop
    (sock,) = server.sockets
    assert isinstance(sock, asyncio.trsock.TransportSocket)
    async with helpers.running(server) as address:
        with connect(address) as client:
            assert await helpers.read_exactly(client, 7) == b"welcome"
            assert served[0].transport.get_extra_info("peername") == client.getsockname()
            assert served[0].transport.get_extra_info("sockname") == address
        assert await served[0].lost() is None
    assert not server.is_serving()
    assert server.sockets == ()
    await refused(address)


async def test_a_server_on_several_addresses(loop):
    served = Served()
    server = await loop.create_server(served, ["127.0.0.1", "127.0.0.2"], 0)
    addresses = [sock.getsockname() for sock in server.sockets]
    assert sorted(host for host, port in addresses) == ["127.0.0.1", "127.0.0.2"]
    async with helpers.running(server):
        for number, address in enumerate(addresses, 1):
            with connect(address):
                await helpers.until(lambda number=number: len(served) == number)
        await asyncio.gather(*(protocol.lost() for protocol in served))
    for address in addresses:
        await refused(address)


async def test_a_host_that_is_given_twice_is_served_once(loop):
    server = await loop.create_server(Recorder, ["127.0.0.1", "127.0.0.1"], 0)
    assert len(server.sockets) == 1
    server.close()


@pytest.mark.parametrize("host", [None, ""])
async def test_a_server_on_every_interface(loop, host):
    served = Served()
    server = await loop.create_server(served, host, 0, family=socket.AF_INET)
    async with helpers.running(server) as address:
        assert address[0] == "0.0.0.0"
        with connect(("127.0.0.1", address[1])):
            await helpers.until(lambda: served)
        await served[0].lost()


@pytest.mark.skipif(not helpers.HAS_IPV6, reason="no IPv6 here")
async def test_a_server_over_ipv6(loop):
    served = Served()
    server = await loop.create_server(served, "::1", 0)
    async with helpers.running(server) as address:
        assert len(address) == 4
        with connect(address) as client:
            await helpers.until(lambda: served)
            assert served[0].transport.get_extra_info("peername") == client.getsockname()
        await served[0].lost()


async def test_a_port_in_use(loop):
    server = await loop.create_server(Recorder, "127.0.0.1", 0)
    async with helpers.running(server) as address:
        with pytest.raises(OSError, match="error while attempting to bind on address") as caught:
            await loop.create_server(Recorder, *address)
        assert caught.value.errno == 98
    again = await loop.create_server(Recorder, *address)
    again.close()


async def test_two_servers_on_one_port(loop):
    served = Served()
    one = await loop.create_server(served, "127.0.0.1", 0, reuse_port=True)
    other = await loop.create_server(served, *one.sockets[0].getsockname(), reuse_port=True)
    async with helpers.running(one) as address, helpers.running(other):
        for number in range(1, 21):
            with connect(address):
                await helpers.until(lambda number=number: len(served) == number)
        await asyncio.gather(*(protocol.lost() for protocol in served))


@pytest.mark.asyncio_from(3, 13)
async def test_connections_can_be_kept_alive(loop):
    served = Served()
    server = await loop.create_server(served, "127.0.0.1", 0, keep_alive=True)
    async with helpers.running(server) as address:
        with connect(address):
            await helpers.until(lambda: served and served[0].transport)
            sock = served[0].transport.get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        await served[0].lost()


async def test_a_socket_made_by_hand(loop):
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    served = Served()
    server = await loop.create_server(served, sock=sock)
    async with helpers.running(server) as address:
        assert sock.gettimeout() == 0
        with connect(address):
            await helpers.until(lambda: served)
        await served[0].lost()
    assert sock.fileno() == -1


async def test_arguments_that_make_no_server(loop):
    with socket.socket() as stream, socket.socket(type=socket.SOCK_DGRAM) as datagram:
        for arguments, options, error, message in (
            ((), {}, ValueError, "Neither host/port nor sock were specified"),
            (("127.0.0.1", 0), {"sock": stream}, ValueError, "can not be specified at the same time"),
            ((), {"sock": datagram}, ValueError, "A Stream Socket was expected"),
            (("127.0.0.1", 0), {"ssl": True}, TypeError, "ssl argument must be an SSLContext or None"),
            (("127.0.0.1", 0), {"ssl_handshake_timeout": 1}, ValueError, "only meaningful with ssl"),
            (("127.0.0.1", 0), {"ssl_shutdown_timeout": 1}, ValueError, "only meaningful with ssl"),
        ):
            with pytest.raises(error, match=message):
                await loop.create_server(Recorder, *arguments, **options)


# Its life


async def test_a_server_can_start_later(loop):
    served = Served()
    server = await loop.create_server(served, "127.0.0.1", 0, start_serving=False)
    assert not server.is_serving()
    address = server.sockets[0].getsockname()
    await refused(address)
    await server.start_serving()
    await server.start_serving()
    assert server.is_serving()
    with connect(address):
        await helpers.until(lambda: served)
    await served[0].lost()
    server.close()


async def test_clients_that_were_there_first(loop):
    """However many connections wait, each is accepted."""
    served = Served()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(50)
        clients = [connect(sock.getsockname()) for _ in range(30)]
        server = await loop.create_server(served, sock=sock, backlog=50)
        await helpers.until(lambda: len(served) == 30)
        for client in clients:
            client.close()
        await asyncio.gather(*(protocol.lost() for protocol in served))
        server.close()
        await helpers.iterations(2)


@pytest.mark.parametrize("backlog", [1, 3])
async def test_a_short_backlog(loop, backlog):
    served = Served()
    server = await loop.create_server(served, "127.0.0.1", 0, backlog=backlog)
    async with helpers.running(server) as address:
        clients = []
        for number in range(1, 21):
            clients.append(connect(address))
            await helpers.until(lambda number=number: len(served) == number)
        for client in clients:
            client.close()
        await asyncio.gather(*(protocol.lost() for protocol in served))


async def test_serve_forever_until_cancelled(loop):
    server = await loop.create_server(Recorder, "127.0.0.1", 0, start_serving=False)
    address = server.sockets[0].getsockname()
    task = loop.create_task(server.serve_forever())
    await helpers.until(server.is_serving)
    with pytest.raises(RuntimeError, match="is already being awaited on serve_forever"):
        await server.serve_forever()
    connect(address).close()
    await helpers.cancel(task)
    assert not server.is_serving()
    await refused(address)
    with pytest.raises(RuntimeError, match="is closed"):
        await server.serve_forever()


async def test_closing_a_server_ends_serve_forever(loop):
    server = await loop.create_server(Recorder, "127.0.0.1", 0)
    task = loop.create_task(server.serve_forever())
    await helpers.iterations(2)
    server.close()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_closed_server_keeps_its_connections(loop):
    served = Served(data_received=lambda protocol, data: protocol.transport.write(data))
    server = await loop.create_server(served, "127.0.0.1", 0)
    with connect(server.sockets[0].getsockname()) as client:
        await helpers.until(lambda: served)
        server.close()
        server.close()
        await helpers.iterations(3)
        client.send(b"hello")
        assert await helpers.read_exactly(client, 5) == b"hello"
    assert await served[0].lost() is None


async def test_a_server_in_a_with_block(loop):
    served = Served()
    async with await loop.create_server(served, "127.0.0.1", 0) as server:
        address = server.sockets[0].getsockname()
        with connect(address):
            await helpers.until(lambda: served)
        await served[0].lost()
    assert not server.is_serving()
    await refused(address)


async def test_wait_closed_without_connections(loop):
    server = await loop.create_server(Recorder, "127.0.0.1", 0)
    task = loop.create_task(server.wait_closed())
    await helpers.iterations(3)
    assert not task.done()
    server.close()
    await task
    await server.wait_closed()


async def test_wait_closed_with_a_connection(loop):
    """Up to Python 3.11, a server that is closed is not waited for; from 3.12 on, its connections are."""
    served = Served()
    server = await loop.create_server(served, "127.0.0.1", 0)
    client = connect(server.sockets[0].getsockname())
    await helpers.until(lambda: served)
    server.close()
    task = loop.create_task(server.wait_closed())
    await asyncio.sleep(0.005)
    assert task.done() is (helpers.PYTHON < (3, 12))
    client.close()
    await served[0].lost()
    await task


async def test_wait_closed_before_close_waits_for_the_connections(loop):
    served = Served()
    server = await loop.create_server(served, "127.0.0.1", 0)
    client = connect(server.sockets[0].getsockname())
    await helpers.until(lambda: served)
    task = loop.create_task(server.wait_closed())
    await helpers.iterations(2)
    server.close()
    await helpers.iterations(3)
    assert not task.done()
    client.close()
    await served[0].lost()
    await task


@pytest.mark.asyncio_from(3, 13)
@pytest.mark.parametrize("end", ["close_clients", "abort_clients"])
async def test_ending_the_connections_of_a_server(loop, end):
    served = Served()
    server = await loop.create_server(served, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    clients = [connect(address) for _ in range(3)]
    await helpers.until(lambda: len(served) == 3)
    for protocol in served:
        await protocol.until("connection_made")
        protocol.transport.write(helpers.TOO_MUCH)
    server.close()
    task = loop.create_task(server.wait_closed())
    getattr(server, end)()
    if end == "close_clients":
        await asyncio.sleep(0.005)
        assert not task.done()
    for client in clients:
        got = await helpers.read_to_end(client)
        assert (len(got) == len(helpers.TOO_MUCH)) is (end == "close_clients")
        client.close()
    await task
    for protocol in served:
        assert await protocol.lost() is None


async def test_a_server_that_nobody_refers_to_goes_on_serving(loop):
    served = Served()
    address = (await loop.create_server(served, "127.0.0.1", 0)).sockets[0].getsockname()
    gc.collect()
    with connect(address):
        await helpers.until(lambda: served)
    await served[0].lost()


def test_a_server_is_closed_with_its_loop_stopped(loop):
    server = loop.run_until_complete(loop.create_server(Recorder, "127.0.0.1", 0))
    address = server.sockets[0].getsockname()
    server.close()
    with pytest.raises(ConnectionRefusedError):
        connect(address)


# What goes wrong


async def test_a_factory_that_fails_costs_its_connection_only(loop):
    served = Served()
    failures = [True, False, True, False]

    def factory():
        if failures.pop():
            raise ValueError("no protocol")
        return served()

    server = await loop.create_server(factory, "127.0.0.1", 0)
    async with helpers.running(server) as address:
        clients = []
        for left in (3, 2, 1, 0):
            clients.append(connect(address))
            await helpers.until(lambda left=left: len(failures) == left)
        gc.collect()
        for client, works in zip(clients, (True, False, True, False), strict=True):
            if not works:
                assert await helpers.read_to_end(client) == b""
            client.close()
        assert len(served) == 2
        await asyncio.gather(*(protocol.lost() for protocol in served))


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
async def test_a_connection_for_which_the_factory_makes_no_protocol_is_closed(loop):
    calls = []
    server = await loop.create_server(lambda: calls.append(1), "127.0.0.1", 0)
    client = connect(server.sockets[0].getsockname())
    await helpers.until(lambda: calls)
    await helpers.iterations(3)
    gc.collect()
    assert await asyncio.wait_for(helpers.read_to_end(client), 5) == b""
    client.close()
    server.close()


async def test_a_factory_that_fails_is_reported_in_debug_mode(loop, reports):
    def factory():
        raise ValueError("no protocol")

    loop.set_debug(True)
    loop.slow_callback_duration = 10
    server = await loop.create_server(factory, "127.0.0.1", 0)
    async with helpers.running(server) as address:
        connect(address).close()
        await helpers.until(lambda: reports)
    report = reports.take()
    assert report["message"] == "Error on transport creation for incoming connection"
    assert str(report["exception"]) == "no protocol"
    loop.set_debug(False)


def test_a_factory_that_leaves(loop, reports):
    calls = []

    def factory():
        calls.append(1)
        if len(calls) == 1:
            raise helpers.Leave
        return Recorder()

    server = loop.run_until_complete(loop.create_server(factory, "127.0.0.1", 0))
    address = server.sockets[0].getsockname()
    with connect(address), connect(address):
        with contextlib.suppress(helpers.Leave):
            loop.run_forever()
        assert calls == [1]
        loop.run_until_complete(helpers.until(lambda: len(calls) == 2))
        server.close()
    loop.run_until_complete(asyncio.sleep(0.005))
    gc.collect()
    # Where the accepting is a task, its exception may be reported besides.
    assert all(isinstance(report["exception"], helpers.Leave) for report in reports)
    reports.clear()


async def test_a_connection_that_was_reset_before_it_was_accepted(loop):
    served = Served()
    server = await loop.create_server(served, "127.0.0.1", 0)
    async with helpers.running(server) as address:
        helpers.reset(connect(address))
        with connect(address) as client:
            await helpers.until(lambda: any(p.transport for p in served))
            await asyncio.sleep(0.005)
            served[-1].transport.write(b"hello")
            assert await helpers.read_exactly(client, 5) == b"hello"
        await asyncio.gather(*(protocol.lost() for protocol in served))


@pytest.mark.parametrize("when", ["before connection_made", "in connection_made"])
async def test_all_tasks_are_cancelled_as_a_connection_begins(loop, when):
    """Programs end like this, and wait for their connections. What would close this one never begins."""
    tasks = []

    async def serve(transport):
        with contextlib.closing(transport):
            await asyncio.sleep(60)

    def cancel():
        for task in asyncio.all_tasks() - {this}:
            task.cancel()

    def begin(protocol, transport):
        tasks.append(loop.create_task(serve(transport)))
        if when == "in connection_made":
            cancel()

    def factory():
        if when == "before connection_made":
            loop.call_soon(cancel)
        return served()

    this = asyncio.current_task()
    served = Served(connection_made=begin)
    server = await loop.create_server(factory, "127.0.0.1", 0)
    async with helpers.running(server) as address:
        with connect(address) as client:
            assert await helpers.read_to_end(client) == b""
            assert await served[0].lost() is None
    for task in tasks:
        task.cancel()


async def test_a_connection_that_begins_is_a_task_among_all(loop):
    """To programs that look at all tasks, wait for them, or cancel them, whatever they ask of each."""
    seen = []

    def look():
        tasks = asyncio.all_tasks()
        assert len(asyncio.all_tasks()) == len(tasks)
        for task in tasks - {this}:
            assert isinstance(task, asyncio.Task)
            assert not task.cancelled()
            assert task.get_loop() is loop
            assert asyncio.iscoroutine(task.get_coro())
            assert task.get_name()
            assert repr(task).startswith("<Task pending")
            seen.append(task)

    def factory():
        loop.call_soon(look)
        return served()

    this = asyncio.current_task()
    served = Served()
    server = await loop.create_server(factory, "127.0.0.1", 0)
    async with helpers.running(server) as address:
        assert asyncio.all_tasks() == {this}
        with connect(address) as client:
            await helpers.until(lambda: seen)
            (task,) = seen
            assert await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), 5) == [None]
            assert task.done()
            assert task.exception() is None
            assert asyncio.all_tasks() == {this}
            # It goes on as if nobody had looked.
            assert not served[0].transport.is_closing()
            client.close()
            await served[0].lost()


@pytest.mark.parametrize("how", ["as_completed", "wait", "discard"])
async def test_all_tasks_are_waited_for_as_a_connection_begins(loop, how):
    """What was found once stays the task that it was, also while others are accepted."""
    waits = []

    async def wait(tasks):
        if how == "as_completed":
            for task in asyncio.as_completed(tasks, timeout=5):
                await task
        elif how == "wait":
            done, pending = await asyncio.wait(tasks, timeout=5)
            assert done == tasks
            assert not pending
        else:
            for task in list(tasks):
                task.add_done_callback(tasks.discard)
            await helpers.until(lambda: not tasks)

    def begin(protocol, transport):
        tasks = asyncio.all_tasks() - others
        assert len(tasks) <= 1
        if tasks:
            others.update(tasks)
            waits.append(loop.create_task(wait(tasks)))
            others.add(waits[-1])
        # The next one begins as this one's task ends.
        if len(clients) < 20:
            clients.append(connect(address))

    others = {asyncio.current_task()}
    clients = []
    served = Served(connection_made=begin)
    server = await loop.create_server(served, "127.0.0.1", 0)
    async with helpers.running(server) as address:
        clients.append(connect(address))
        await helpers.until(lambda: len(served) == 20 and served[-1].transport)
        assert len(waits) > 1
        await asyncio.gather(*waits)
        for client in clients:
            client.close()
        await asyncio.gather(*(protocol.lost() for protocol in served))


async def gather(tasks):
    await asyncio.gather(*tasks, return_exceptions=True)


async def as_completed(tasks):
    for task in asyncio.as_completed(tasks):
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def wait_for_callbacks(tasks):
    left = set(tasks)
    for task in tasks:
        task.add_done_callback(left.discard)
    while left:
        # Others look at the tasks, too.
        assert asyncio.current_task() in asyncio.all_tasks()
        await asyncio.sleep(0)


@pytest.mark.parametrize("wait", [gather, asyncio.wait, as_completed, wait_for_callbacks])
async def test_connections_that_begin_are_tasks_that_can_be_waited_for(loop, wait):
    ended = loop.create_future()

    async def end(tasks):
        await wait(tasks)
        return all(task.done() for task in tasks)

    def look():
        tasks = asyncio.all_tasks() - {this}
        for task in tasks:
            assert not task.done()
            task.add_done_callback(print)
            assert task.remove_done_callback(print) == 1
            assert task.remove_done_callback(print) == 0
            task.cancel()
        loop.create_task(end(tasks)).add_done_callback(ended.set_result)

    def factory():
        if not served:
            loop.call_soon(look)
            connect(server.sockets[0].getsockname()).close()
        return served()

    this = asyncio.current_task()
    served = Served()
    server = await loop.create_server(factory, "127.0.0.1", 0)
    async with helpers.running(server) as address:
        connect(address).close()
        assert (await asyncio.wait_for(ended, 5)).result()
        await helpers.until(lambda: len(served) == 2)
        await asyncio.gather(*(protocol.lost() for protocol in served))


@pytest.mark.parametrize("iterations", range(6))
def test_a_run_that_ends_iterations_after_a_client_has_connected(new_loop, iterations):
    served = Served()

    async def main():
        server = await asyncio.get_running_loop().create_server(served, "127.0.0.1", 0)
        client = connect(server.sockets[0].getsockname())
        for _ in range(iterations):
            await asyncio.sleep(0)
        return client

    with asyncio.Runner(loop_factory=new_loop) as runner:
        client = runner.run(main())
    client.close()


@pytest.mark.hotloop_only
async def test_a_task_factory_that_raises_is_not_asked_for_a_connection_that_begins(loop):
    """asyncio's loop accepts nothing with such a factory."""
    seen = []

    def refuse(loop, coroutine, **options):
        coroutine.close()
        raise ValueError("no task")

    def factory():
        seen.append(asyncio.all_tasks() - {this})
        return served()

    this = asyncio.current_task()
    served = Served(connection_made=lambda *_: seen.append(asyncio.all_tasks() - {this}))
    server = await loop.create_server(factory, "127.0.0.1", 0)
    async with helpers.running(server) as address:
        loop.set_task_factory(refuse)
        with connect(address):
            while len(seen) < 2:
                await asyncio.sleep(0)
            for task in seen[1]:
                task.cancel()
            assert seen[1]
            await served[0].lost()
        loop.set_task_factory(None)


async def test_other_threads_see_no_more_than_the_tasks_that_there_are(loop):
    counted = []

    def factory():
        thread = threading.Thread(target=lambda: counted.append(len(asyncio.all_tasks(loop))))
        thread.start()
        thread.join()
        return served()

    served = Served()
    server = await loop.create_server(factory, "127.0.0.1", 0)
    async with helpers.running(server) as address:
        with connect(address) as client:
            await helpers.until(lambda: counted)
            client.close()
            await served[0].lost()
    assert counted in ([1], [2])


def test_a_run_that_ends_as_a_connection_begins(loop_name):
    """asyncio.run() cancels all tasks, waits for them and asks for their exceptions."""
    lost = []

    async def main():
        loop = asyncio.get_running_loop()
        over = loop.create_future()

        class Protocol(asyncio.Protocol):
            def connection_made(self, transport):
                over.set_result(None)

            def connection_lost(self, exception):
                lost.append(exception)

        server = await loop.create_server(Protocol, "127.0.0.1", 0)
        with connect(server.sockets[0].getsockname()):
            await over
        server.close()

    with asyncio.Runner(loop_factory=helpers.FACTORIES[loop_name]) as runner:
        runner.run(main())
    assert lost in ([None], [])


OUT_OF_DESCRIPTORS = """
import resource
reported = []

class Greeter(asyncio.Protocol):
    def connection_made(self, transport):
        transport.write(b"hello")

async def main():
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: reported.append(context))
    server = await loop.create_server(Greeter, "127.0.0.1", 0)
    used = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 11, used + 11))
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    for context in reported:
        assert context["message"] == "socket.accept() out of system resource", context
        assert context["exception"].errno == 24, context
        assert isinstance(context["socket"], asyncio.trsock.TransportSocket), context
    print(len(reported), round(time.process_time(), 2), flush=True)
    server.close()

run(main())
"""


@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 200, reason="too few descriptors")
def test_running_out_of_descriptors_loses_no_connection(loop_name):
    """It is reported, and accepting goes on a second later with what has become free."""
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(helpers.start_script(loop_name, OUT_OF_DESCRIPTORS))
        stack.callback(process.kill)
        address = ("127.0.0.1", int(process.stdout.readline()))
        clients = [stack.enter_context(socket.create_connection(address)) for _ in range(18)]
        # They are accepted in their order: whoever is not greeted soon waits for a descriptor.
        for count, client in enumerate(clients):
            client.settimeout(0.3 if count else 5)
            try:
                assert client.recv(5) == b"hello"
            except TimeoutError:
                break
        assert 8 <= count <= 11
        for client in clients[:count]:
            client.close()
        for client in clients[count:]:
            client.settimeout(5)
            assert client.recv(5) == b"hello"
        output, errors = process.communicate("\n", timeout=10)
        assert process.returncode == 0, errors
        count, seconds = output.split()
        assert int(count) >= 1
        if loop_name == "hotloop":
            assert int(count) <= 10  # asyncio reports it a hundred times a second
        assert float(seconds) < 2


def test_a_server_ends_with_an_interrupt(loop_name):
    process = helpers.start_script(
        loop_name,
        """
        async def main():
            server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
            print("ready", flush=True)
            await server.serve_forever()

        try:
            run(main())
        except KeyboardInterrupt:
            print("interrupted")
        """,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    try:
        output, errors = process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert (output, process.returncode, errors) == ("interrupted\n", 0, "")


@pytest.mark.asyncio_bug("it is left to the garbage collector")
@pytest.mark.parametrize("protocol_is_made", [True, False])
async def test_a_factory_that_closes_its_server_leaves_no_connection_open(loop, protocol_is_made):
    def factory():
        server.close()
        return Recorder() if protocol_is_made else None

    server = await loop.create_server(factory, "127.0.0.1", 0)
    with connect(server.sockets[0].getsockname()) as client:
        assert await asyncio.wait_for(helpers.read_to_end(client), 5) == b""


@pytest.mark.asyncio_bug("it is left to the garbage collector")
async def test_a_transport_that_its_server_refuses_is_closed(loop):
    class Server:
        def _attach(self, *transport):
            raise LookupError("refused")

    ours, peer = helpers.tcp_pair()
    with peer:
        with pytest.raises(LookupError, match="refused"):
            loop._make_socket_transport(ours, Recorder(), server=Server())
        del ours
        assert await asyncio.wait_for(helpers.read_to_end(peer), 5) == b""


async def test_closing_a_connection_that_lingers_lets_other_threads_run(loop):
    # The one that is to read what is still on its way, for one.
    listening = helpers.listener()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 20))
    served = Served(connection_made=lambda protocol, transport: transport.write(b"x" * (4 << 20)))
    server = await loop.create_server(served, sock=listening)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    client.connect(listening.getsockname())
    began = threading.Event()

    def read_later():
        began.wait()
        time.sleep(0.2)
        with client, contextlib.suppress(ConnectionError):
            while client.recv(1 << 16):
                pass

    thread = threading.Thread(target=read_later)
    thread.start()
    await helpers.until(lambda: served)
    await helpers.iterations(3)
    start = time.monotonic()
    began.set()
    served[0].transport.abort()
    await served[0].lost()
    thread.join()
    assert time.monotonic() - start < 10
    server.close()


INTERRUPTED_REPORT = """
import resource, socket
made = []

class Noting(asyncio.Protocol):
    def connection_made(self, transport):
        made.append(transport)
        transport.close()

class Interrupt(KeyboardInterrupt):
    pass

def interrupt(loop, context):
    raise Interrupt

async def serve():
    return await asyncio.get_running_loop().create_server(Noting, "127.0.0.1", 0)

async def until_made():
    while not made:
        await asyncio.sleep(0.01)

loop = new_event_loop()
server = loop.run_until_complete(serve())
client = socket.create_connection(server.sockets[0].getsockname())
loop.set_exception_handler(interrupt)
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), limits[1]))
try:
    loop.run_until_complete(until_made())
except Interrupt:
    print("interrupted")
resource.setrlimit(resource.RLIMIT_NOFILE, limits)
loop.set_exception_handler(None)
loop.run_until_complete(asyncio.wait_for(until_made(), 10))
print("accepted")
server.close()
loop.run_until_complete(asyncio.sleep(0))
loop.close()
client.close()
"""


def test_an_exception_handler_that_leaves_the_event_loop_does_not_end_accepting(loop_name):
    """What is reported is that there are no more descriptors."""
    assert helpers.run_script(loop_name, INTERRUPTED_REPORT).stdout == "interrupted\naccepted\n"


async def test_connections_of_another_listening_socket_that_has_the_number_are_left_alone(loop, reports):
    """The program has closed the server's socket in the midst of accepting."""
    ours, other = helpers.listener(), helpers.listener()
    number = ours.fileno()
    names = []

    def factory():
        # Several connections are accepted at a time from the second time on.
        if factory.calls == 1:
            ours.close()
            os.dup2(other.fileno(), number)
        factory.calls += 1
        return helpers.Recorder(
            connection_made=lambda protocol, transport: names.append(transport.get_extra_info("sockname"))
        )

    factory.calls = 0
    addresses = [ours.getsockname(), other.getsockname()]
    with contextlib.ExitStack() as stack:
        stack.callback(other.close)
        for address in [addresses[0]] * 6 + [addresses[1]] * 3:
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(address)
        server = await loop.create_server(factory, sock=ours)
        await asyncio.sleep(0.05)
        # asyncio refuses to stop watching a socket that is closed.
        with contextlib.suppress(ValueError):
            server.close()
        os.close(number)
        assert set(names) == {addresses[0]}
        for _ in range(3):
            other.accept()[0].close()
    reports.clear()


@pytest.mark.parametrize("of", ["class", "instance"])
async def test_a_listening_sockets_own_accept_is_called(loop, of):
    accepted = []

    class Choosy(socket.socket):
        """Turns every other connection away, as programs do that accept by another's leave."""

        if of == "class":

            def accept(self):
                return accept(self)

    def accept(sock):
        connection, address = socket.socket.accept(sock)
        accepted.append(address)
        if len(accepted) % 2:
            return connection, address
        connection.close()
        raise BlockingIOError

    sock = Choosy()
    if of == "instance":
        sock.accept = lambda: accept(sock)
    sock.bind(("127.0.0.1", 0))
    served = Served()
    server = await loop.create_server(served, sock=sock)
    address = sock.getsockname()
    clients = []
    for _ in range(4):
        clients.append(connect(address))
        await helpers.until(lambda: len(accepted) == len(clients))
    await helpers.until(lambda: len(served) == 2)
    assert [client.getsockname() for client in clients] == accepted
    for client in clients:
        client.close()
    for protocol in served:
        await protocol.lost()
    server.close()
    await server.wait_closed()
    await refused(address)


async def test_a_server_that_is_closed_as_a_connection_waits_for_its_own_accept(loop):
    class Own(socket.socket):
        def accept(self):
            return super().accept()

    def close():
        loop.remove_reader(ours)
        server.close()

    sock = Own()
    sock.bind(("127.0.0.1", 0))
    server = await loop.create_server(asyncio.Protocol, sock=sock)
    ours, peer = socket.socketpair()
    loop.add_reader(ours, close)
    await asyncio.sleep(0)
    client = connect(sock.getsockname())
    peer.send(b"x")  # both are seen by the same look at the descriptors
    await helpers.until(lambda: sock.fileno() < 0)
    await helpers.iterations(3)
    for each in (client, ours, peer):
        each.close()


@pytest.mark.asyncio_bug("the poller's registration of the closed socket is in the way")
def test_a_listening_socket_closed_without_its_server_is_forgotten(loop):
    async def main():
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        number = listening.fileno()
        server = await asyncio.start_server(lambda reader, writer: None, sock=listening)
        listening.close()
        here, there = socket.socketpair()
        if there.fileno() == number:
            here, there = there, here
        assert here.fileno() == number
        with here, there:
            here.setblocking(False)
            there.setblocking(False)
            there.send(b"unread")
            data = bytes(4 << 20)
            sending = asyncio.create_task(loop.sock_sendall(here, data))
            received = 0
            while received < len(data):
                received += len(await loop.sock_recv(there, 1 << 20))
            await sending
        server.close()

    loop.run_until_complete(main())
