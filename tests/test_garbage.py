"""What is dropped is freed: loops, transports, protocols and handles, in cycles too; no reference leaks."""

import asyncio
import copy
import gc
import os
import socket
import sys
import threading
import warnings
import weakref

import helpers
import pytest
from helpers import Recorder
from hotloop._accepting import Accepting


@pytest.fixture
def make(loop_name, reports):
    """Makes loops that nobody closes after the test."""

    def make():
        loop = helpers.FACTORIES[loop_name]()
        loop.set_exception_handler(reports.handler)
        return loop

    return make


@pytest.fixture
def no_descriptor_left():
    collect()
    before = helpers.open_descriptors()
    yield
    collect()
    assert not helpers.opened_since(before)


def collect():
    """Collect all garbage, and return the warnings about loops and transports that were not closed."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):  # what a destructor has touched goes one collection later
            gc.collect()
    said = [str(warning.message) for warning in caught if warning.category is ResourceWarning]
    caught.clear()  # a warning refers to its source
    gc.collect()
    return [line for line in said if line.startswith(("unclosed event loop <", "unclosed transport <"))]


# Loops


def test_a_loop_that_is_dropped_unclosed_warns_and_leaks_nothing(make, no_descriptor_left):
    loop = make()
    loop.run_until_complete(asyncio.sleep(0))
    gone = weakref.ref(loop)
    del loop
    said = collect()
    assert gone() is None
    assert len(said) == 1
    assert said[0].startswith("unclosed event loop <")


def test_a_closed_loop_is_freed_silently(make, no_descriptor_left):
    loop = make()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    gone = weakref.ref(loop)
    del loop
    assert collect() == []
    assert gone() is None


def holding_callbacks(loop, sockets):
    class Owner:
        def method(self):
            return self.loop

    owner = Owner()
    owner.loop = loop
    loop.owner = owner
    loop.call_soon(owner.method)
    loop.call_later(60, owner.method)
    loop.call_soon_threadsafe(owner.method)
    loop.add_reader(sockets[0], owner.method)
    loop.add_writer(sockets[1], owner.method)
    loop.set_exception_handler(lambda loop, context: owner)
    loop.set_task_factory(lambda loop, coro, **kwargs: owner)
    return owner


@pytest.mark.parametrize("closed", [True, False])
def test_a_loop_in_cycles_with_all_that_it_holds(make, no_descriptor_left, closed):
    loop = make()
    sockets = helpers.unix_pair()
    gone = [weakref.ref(loop), weakref.ref(holding_callbacks(loop, sockets))]
    if closed:
        loop.close()
    del loop
    said = collect()
    assert [ref() for ref in gone] == [None, None]
    assert len(said) == (0 if closed else 1)
    for sock in sockets:
        sock.close()


def test_a_loop_in_a_cycle_with_a_connection(make, no_descriptor_left):
    loop = make()
    ours, peer = helpers.tcp_pair()
    transport, protocol = loop.run_until_complete(loop.create_connection(Recorder, sock=ours))
    protocol.loop = loop
    transport.write(helpers.TOO_MUCH)
    gone = [weakref.ref(loop), weakref.ref(transport), weakref.ref(protocol)]
    del loop, transport, protocol, ours
    said = collect()
    assert [ref() for ref in gone] == [None] * 3
    assert any("unclosed event loop" in line for line in said)
    peer.close()


def test_a_loop_with_a_waiting_task(make, no_descriptor_left, reports):
    loop = make()
    ours, peer = helpers.unix_pair()

    async def wait():
        await asyncio.get_running_loop().sock_recv(ours, 10)

    task = loop.create_task(wait())
    loop.run_until_complete(asyncio.sleep(0.001))
    gone = [weakref.ref(loop), weakref.ref(task)]
    del loop, task, wait
    collect()
    assert all("pending" in report["message"] for report in reports)
    reports.clear()
    collect()
    assert [ref() for ref in gone] == [None, None]
    ours.close()
    peer.close()


def test_a_loop_with_a_server(make, no_descriptor_left):
    loop = make()
    server = loop.run_until_complete(loop.create_server(Recorder, "127.0.0.1", 0))
    address = server.sockets[0].getsockname()
    gone = [weakref.ref(loop), weakref.ref(server)]
    del loop, server
    collect()
    assert [ref() for ref in gone] == [None, None]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


@pytest.mark.hotloop_only
def test_tasks_are_not_looked_for_in_closed_loops(make, monkeypatch):
    """Threads that ask for all tasks would keep what a closed loop has among them alive for each other."""
    asked = set()
    # Which of them is called first depends on the version.
    for method in (Accepting.done, Accepting.get_loop):

        def note(self, method=method):
            asked.add(id(self))
            return method(self)

        monkeypatch.setattr(Accepting, method.__name__, note)
    loops = [make(), make()]
    for loop in loops:
        loop.run_until_complete(asyncio.start_server(lambda *_: None, "127.0.0.1", 0))
    held = [loop._accepting for loop in loops]
    loops[0].close()
    assert asyncio.all_tasks(loops[1]) == set()
    assert id(held[0]) not in asked
    assert id(held[1]) in asked
    loops[1].close()


def test_many_loops(make, no_descriptor_left):
    for _ in range(50):
        loop = make()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


# Transports and protocols


def test_a_closed_connection_is_freed(loop):
    gone = []

    async def connect():
        ours, peer = helpers.tcp_pair()
        protocol = Recorder()
        transport, _ = await loop.create_connection(lambda protocol=protocol: protocol, sock=ours)
        gone.extend([weakref.ref(transport), weakref.ref(protocol)])
        transport.write(b"hello")
        peer.close()
        await protocol.lost()

    loop.run_until_complete(connect())
    loop.run_until_complete(helpers.iterations(2))
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


def test_the_connections_of_a_server_are_freed(loop):
    made = weakref.WeakSet()

    def factory():
        protocol = Recorder(connection_made=lambda protocol, transport: made.add(transport))
        made.add(protocol)
        return protocol

    async def main():
        server = await loop.create_server(factory, "127.0.0.1", 0)
        async with helpers.running(server) as address:
            for _ in range(20):
                transport, protocol = await loop.create_connection(Recorder, *address)
                made.add(transport)
                made.add(protocol)
                transport.close()
                await protocol.lost()
            await asyncio.sleep(0.01)

    loop.run_until_complete(main())
    loop.run_until_complete(helpers.iterations(2))
    gc.collect()
    assert len(made) == 0


def test_an_open_connection_is_kept_by_the_loop(loop):
    """Nobody but the loop refers to it, and it goes on."""

    async def main():
        ours, peer = helpers.tcp_pair()
        await loop.create_connection(
            lambda: Recorder(data_received=lambda protocol, data: protocol.transport.write(data)), sock=ours
        )
        del ours
        gc.collect()
        await loop.sock_sendall(peer, b"hello")
        assert await helpers.read_exactly(peer, 5) == b"hello"
        peer.close()
        await asyncio.sleep(0.005)

    loop.run_until_complete(main())


def test_a_transport_that_is_dropped_after_its_loop_was_closed(make, no_descriptor_left):
    loop = make()
    ours, peer = helpers.tcp_pair()
    transport, protocol = loop.run_until_complete(loop.create_connection(Recorder, sock=ours))
    loop.close()
    del transport, protocol, ours
    said = collect()
    assert len(said) == 1
    assert said[0].startswith("unclosed transport <")
    peer.settimeout(5)
    assert peer.recv(10) == b""
    peer.close()


@pytest.mark.parametrize("kind", ["datagrams", "reading", "writing"])
def test_another_transport_that_is_dropped_after_its_loop_was_closed(make, no_descriptor_left, kind):
    loop = make()
    reader, writer = helpers.os_pipe()
    if kind == "datagrams":
        create = loop.create_datagram_endpoint(helpers.DatagramRecorder, sock=helpers.datagram_socket())
    elif kind == "reading":
        create = loop.connect_read_pipe(Recorder, os.fdopen(os.dup(reader.fileno()), "rb", 0))
    else:
        create = loop.connect_write_pipe(Recorder, os.fdopen(os.dup(writer.fileno()), "wb", 0))
    transport, protocol = loop.run_until_complete(create)
    gone = weakref.ref(transport)
    loop.close()
    del transport, protocol, create
    said = collect()
    assert gone() is None
    assert len(said) == 1
    assert said[0].startswith("unclosed transport <")
    reader.close()
    writer.close()


@pytest.mark.parametrize("kind", ["datagrams", "reading", "writing"])
def test_another_closed_transport_is_freed_silently(no_descriptor_left, loop, kind):
    reader, writer = helpers.os_pipe()

    async def main():
        if kind == "datagrams":
            transport, protocol = await loop.create_datagram_endpoint(
                helpers.DatagramRecorder, sock=helpers.datagram_socket()
            )
        elif kind == "reading":
            transport, protocol = await loop.connect_read_pipe(Recorder, reader)
        else:
            transport, protocol = await loop.connect_write_pipe(Recorder, writer)
        transport.close()
        await protocol.lost()
        await helpers.iterations(1)
        protocol.transport = None
        return weakref.ref(transport), weakref.ref(protocol)

    gone = loop.run_until_complete(main())
    assert collect() == []
    assert [ref() for ref in gone] == [None, None]
    reader.close()
    writer.close()


def test_a_paused_transport_that_is_dropped(no_descriptor_left, loop):
    """The loop has no use for it, so it goes, with a warning."""
    ours, peer = helpers.tcp_pair()
    transport, protocol = loop.run_until_complete(loop.create_connection(Recorder, sock=ours))
    transport.pause_reading()
    loop.run_until_complete(helpers.iterations(2))
    gone = weakref.ref(transport)
    del transport, protocol, ours
    said = collect()
    assert gone() is None
    assert len(said) == 1
    assert said[0].startswith("unclosed transport <")
    peer.settimeout(5)
    assert peer.recv(10) == b""
    peer.close()


async def test_a_paused_transport_that_is_resumed(loop):
    """Its owner alone kept it; from then on the loop does, too."""
    ours, peer = helpers.tcp_pair()
    transport, protocol = await loop.create_connection(Recorder, sock=ours)
    transport.pause_reading()
    peer.send(b"one")
    await asyncio.sleep(0.002)
    assert protocol.data == b""
    transport.resume_reading()
    del transport, ours
    protocol.transport = None
    gc.collect()
    await protocol.received(3)
    peer.close()
    await protocol.lost()


async def test_a_paused_transport_with_something_to_send_is_kept(loop):
    ours, peer = helpers.tcp_pair()
    transport, protocol = await loop.create_connection(Recorder, sock=ours)
    transport.pause_reading()
    size = 20_000_000
    transport.write(bytes(size))
    transport.close()
    del transport, protocol, ours
    gc.collect()
    peer.setblocking(False)
    while size:
        size -= len(await loop.sock_recv(peer, size))
    assert await loop.sock_recv(peer, 1) == b""
    peer.close()


# Reference counts


def counts(*objects):
    return [sys.getrefcount(thing) for thing in objects]


def test_scheduling_leaks_no_reference(loop):
    argument, context = object(), __import__("contextvars").copy_context()

    def callback(*args):
        pass

    def fail(*args):
        raise ValueError

    loop.set_exception_handler(lambda loop, context: None)
    ours, peer = helpers.unix_pair()
    before = counts(argument, callback, fail, context, None, loop)
    for _ in range(50):
        loop.call_soon(callback, argument)
        loop.call_soon(callback, argument, argument, argument, context=context)
        loop.call_soon(fail, argument)
        loop.call_soon_threadsafe(callback, argument, context=context)
        loop.call_later(0, callback, argument)
        loop.call_at(0, callback, argument, context=context)
        loop.call_soon(callback, argument).cancel()
        loop.call_later(60, callback, argument).cancel()
        loop.call_soon_threadsafe(callback, argument).cancel()
        loop.add_reader(ours, callback, argument)
        loop.add_reader(ours, callback, argument)
        loop.add_writer(ours, callback, argument)
        loop.remove_reader(ours)
        loop.remove_writer(ours)
        repr(loop.call_soon(callback, argument))
        loop.call_soon(loop.stop)
        loop.run_forever()
    loop.call_soon(loop.stop)
    loop.run_forever()
    gc.collect()
    after = counts(argument, callback, fail, context, None, loop)
    assert all(count - earlier <= 3 for count, earlier in zip(after, before, strict=True)), (before, after)
    ours.close()
    peer.close()


def test_connections_leak_no_reference(loop):
    data, array = b"x" * 1000, bytearray(1000)

    async def exchange():
        for kind in (Recorder, helpers.BufferedRecorder):
            ours, peer = helpers.tcp_pair()
            protocol = kind()
            transport, _ = await loop.create_connection(lambda protocol=protocol: protocol, sock=ours)
            transport.write(data)
            transport.write(array)
            transport.writelines([data, array, memoryview(array)])
            with pytest.raises(TypeError):
                transport.write("text")
            for name in ("socket", "sockname", "nonsense"):
                transport.get_extra_info(name, data)
            await helpers.read_exactly(peer, 5000)
            await loop.sock_sendall(peer, data)
            await protocol.received(1000)
            transport.close()
            transport.write(data)
            await protocol.lost()
            peer.close()

    loop.run_until_complete(exchange())
    gc.collect()
    before = counts(data, array, None, loop)
    for _ in range(20):
        loop.run_until_complete(exchange())
    gc.collect()
    after = counts(data, array, None, loop)
    assert all(count - earlier <= 3 for count, earlier in zip(after, before, strict=True)), (before, after)


def test_sockets_leak_no_reference(loop):
    data, buffer = b"x" * 1000, bytearray(1000)

    async def exchange():
        ours, peer = helpers.unix_pair()
        await loop.sock_sendall(ours, data)
        assert await loop.sock_recv_into(peer, buffer) == 1000
        receiving = loop.create_task(loop.sock_recv_into(peer, buffer))
        await helpers.iterations(2)
        await loop.sock_sendall(ours, data)
        await receiving
        receiving = loop.create_task(loop.sock_recv_into(peer, buffer))
        await helpers.iterations(2)
        receiving.cancel()
        await asyncio.wait([receiving])
        sending = loop.create_task(loop.sock_sendall(ours, helpers.TOO_MUCH))
        await asyncio.sleep(0.001)
        sending.cancel()
        await asyncio.wait([sending])
        ours.close()
        peer.close()

    loop.run_until_complete(exchange())
    gc.collect()
    before = counts(data, buffer, helpers.TOO_MUCH, None, loop)
    for _ in range(20):
        loop.run_until_complete(exchange())
    gc.collect()
    after = counts(data, buffer, helpers.TOO_MUCH, None, loop)
    assert all(count - earlier <= 3 for count, earlier in zip(after, before, strict=True)), (before, after)


def test_the_objects_of_a_program_do_not_grow(loop):
    """What a thousand rounds of everything leave behind is nothing."""

    async def round_trip():
        ours, peer = helpers.unix_pair()
        reader, writer = await asyncio.open_connection(sock=ours)
        peer.send(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.write(b"goodbye")
        async with asyncio.timeout(10):
            assert await helpers.read_exactly(peer, 7) == b"goodbye"
        writer.close()
        await writer.wait_closed()
        peer.close()

    async def rounds(count):
        for _ in range(count):
            await round_trip()

    loop.run_until_complete(rounds(20))
    gc.collect()
    before = len(gc.get_objects())
    loop.run_until_complete(rounds(100))
    gc.collect()
    assert len(gc.get_objects()) - before < 50


def test_a_destructor_that_takes_long_does_not_keep_other_threads_things(loop):
    """It is at the end of a chain of handles, and sleeps in a thread of its own."""

    class Callback:
        def __call__(self):
            pass

    class Slow(Callback):
        def __del__(self):
            destroying.set()
            done.wait(10)

    def alone(callback, *args):
        """A handle that the loop does not know."""
        handle = loop.call_later(1000, callback, *args)
        copied = copy.copy(handle)
        handle.cancel()
        return copied

    destroying, done = threading.Event(), threading.Event()
    chain = [alone(Slow())]
    for _ in range(100):
        chain[0] = alone(print, chain[0])
    thread = threading.Thread(target=chain.clear)
    thread.start()
    assert destroying.wait(10)
    callback = Callback()
    seen = weakref.ref(callback)
    alone(callback)
    del callback
    gone = seen() is None
    done.set()
    thread.join()
    assert gone


@pytest.mark.parametrize("count", [1, 2, 5])
def test_copies_of_a_handle_in_a_cycle_are_collected(loop, count):
    class Argument:
        pass

    argument = Argument()
    seen = weakref.ref(argument)
    argument.handle = loop.call_later(1000, print, *[argument] * count)
    argument.copied = copy.copy(argument.handle)
    argument.handle.cancel()
    argument.again = copy.copy(argument.copied)
    del argument
    gc.collect()
    assert seen() is None
