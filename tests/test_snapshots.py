"""What hotloop.snapshot() lists of a loop, and what grew between two snapshots."""

import asyncio
import contextlib
import dataclasses
import functools
import gc
import re
import socket
import threading
import time
import weakref

import helpers
import hotloop
import pytest
from hotloop.snapshots import Coroutine, Grown, Growth, Snapshot, TaskName

pytestmark = [pytest.mark.timeout(60), pytest.mark.hotloop_only]


async def waits(future):
    await future


async def cancelled(*tasks):
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def others(snapshot):
    """The tasks besides the one that runs the test."""
    return [task for task in snapshot.tasks if task.name != asyncio.current_task().get_name()]


# --- Which loop ---


async def test_of_the_running_loop(loop):
    assert hotloop.snapshot().loop == hotloop.snapshot(loop).loop
    other = hotloop.new_event_loop()
    assert hotloop.snapshot(other).loop != hotloop.snapshot().loop
    other.close()


def test_without_a_running_loop():
    with pytest.raises(RuntimeError, match="no running event loop"):
        hotloop.snapshot()


def test_of_a_loop_that_is_not_hotloops():
    loop = asyncio.SelectorEventLoop()
    with pytest.raises(TypeError, match="SelectorEventLoop"):
        hotloop.snapshot(loop)
    with pytest.raises(TypeError, match="int"):
        hotloop.snapshot(3)
    loop.close()


def test_of_a_loop_that_another_thread_runs(loop):
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    while not loop.is_running():
        time.sleep(0.001)
    try:
        with pytest.raises(RuntimeError, match="Non-thread-safe operation"):
            hotloop.snapshot(loop)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def test_of_a_loop_that_does_not_run_and_of_a_closed_one(loop):
    future = loop.create_future()
    task = loop.create_task(waits(future))
    loop.call_later(60, print)
    snapshot = hotloop.snapshot(loop)
    assert [each.kind for each in (*snapshot.tasks, *snapshot.timers)] == ["waits", "print"]
    task.cancel()
    helpers.run_once(loop)
    loop.close()
    snapshot = hotloop.snapshot(loop)
    assert (snapshot.tasks, snapshot.transports, snapshot.timers) == ((), (), ())


async def test_within_a_callback_and_in_debug_mode(loop):
    loop.set_debug(True)
    taken = loop.create_future()
    loop.call_soon(lambda: taken.set_result(hotloop.snapshot()))
    (task,) = (await taken).tasks
    assert task.where == f"{__file__}:{test_within_a_callback_and_in_debug_mode.__code__.co_firstlineno + 4}"
    # What runs is where it calls.
    (task,) = hotloop.snapshot().tasks
    assert task.where.startswith(f"{__file__}:")


# --- Tasks ---


async def test_tasks(loop):
    async def outer():
        async with asyncio.TaskGroup() as group:
            group.create_task(waits(future), name="inner")

    future = loop.create_future()
    waiting = loop.create_task(outer(), name="outer")
    await helpers.iterations(2)
    inner, outer_task = sorted(others(hotloop.snapshot()), key=lambda task: task.name)
    line = waits.__code__.co_firstlineno + 1
    assert (inner.name, inner.coroutine, inner.kind) == ("inner", "waits", "waits")
    assert inner.stack == (Coroutine("waits", __file__, line),)
    assert inner.where == f"{__file__}:{line}"
    assert inner.awaited_by == TaskName("outer", outer_task.coroutine)
    assert str(inner) == f"inner, waits test_snapshots.py:{line}, awaited by outer ({outer_task.coroutine})"
    assert outer_task.awaited_by is None
    assert outer_task.stack[0].name == outer_task.coroutine
    future.set_result(None)
    await waiting
    assert others(hotloop.snapshot()) == []


async def test_tasks_are_in_the_order_in_which_they_were_made(loop):
    future = loop.create_future()
    tasks = [loop.create_task(waits(future)) for _ in range(30)]
    assert [each.name for each in others(hotloop.snapshot())] == [task.get_name() for task in tasks]
    future.cancel()
    await cancelled(*tasks)


async def test_the_age_of_a_task_is_at_least_that_of_the_first_snapshot_that_lists_it(loop):
    task = loop.create_task(waits(loop.create_future()))
    assert [each.age for each in others(hotloop.snapshot())] == [None]
    await asyncio.sleep(0.05)
    (listed,) = others(hotloop.snapshot())
    assert 0.04 < listed.age < 30
    await cancelled(task)


async def test_tasks_of_asyncios_class_in_python(loop):
    task = asyncio.tasks._PyTask(waits(loop.create_future()), loop=loop, name="python")
    if task not in asyncio.all_tasks():
        await cancelled(task)
        pytest.skip("asyncio does not list them")
    assert [(each.name, each.kind) for each in others(hotloop.snapshot())] == [("python", "waits")]
    await cancelled(task)


async def test_a_coroutine_that_is_closed_meanwhile(loop):
    coroutine = waits(loop.create_future())
    task = loop.create_task(coroutine)
    await helpers.iterations(2)
    coroutine.close()
    (listed,) = others(hotloop.snapshot())
    assert (listed.stack, listed.where, listed.kind) == ((), None, "waits")
    with contextlib.suppress(RuntimeError, asyncio.CancelledError):
        task.cancel()
        await task


# --- Transports ---


async def test_a_connection(loop, attach, kind):
    protocol, peer = await attach(helpers.Recorder())
    transport = protocol.transport
    (listed,) = hotloop.snapshot().transports
    assert (listed.transport, listed.protocol) == (kind, "Recorder")
    assert listed.kind == f"{kind} Recorder"
    assert listed.fd == transport.get_extra_info("socket").fileno()
    assert (listed.bytes_read, listed.bytes_written, listed.bytes_waiting) == (0, 0, 0)
    assert (listed.is_paused, listed.is_closing) == (False, False)
    address = transport.get_extra_info("peername")
    assert listed.peer == (f"{address[0]}:{address[1]}" if kind == "tcp" else None)

    await asyncio.sleep(0.1)
    (listed,) = hotloop.snapshot().transports
    assert 0.05 < listed.idle <= listed.age
    peer.send(b"hello")
    await protocol.received(5)
    transport.write(b"abc")
    transport.pause_reading()
    await helpers.iterations(2)
    (listed,) = hotloop.snapshot().transports
    assert (listed.bytes_read, listed.bytes_written, listed.is_paused) == (5, 3, True)
    assert listed.idle < 0.1 <= listed.age
    line = str(listed)
    assert f"fd {listed.fd}" in line
    assert re.search(r"5 bytes read, 3 written, idle for 0\.\d s, paused", line)

    transport.write(bytes(16 << 20))
    await helpers.iterations(2)
    transport.close()
    (listed,) = hotloop.snapshot().transports
    assert listed.bytes_waiting == transport.get_write_buffer_size() > 0
    assert listed.bytes_written + listed.bytes_waiting == 3 + (16 << 20)
    assert listed.is_closing
    transport.abort()
    assert hotloop.snapshot().transports == ()


async def test_datagram_endpoints(loop, endpoint):
    receiver = await endpoint(helpers.DatagramRecorder(), local_addr=("127.0.0.1", 0))
    address = receiver.transport.get_extra_info("sockname")
    sender = await endpoint(helpers.DatagramRecorder(), remote_addr=address)
    sender.transport.sendto(b"hello")
    await receiver.received(1)
    listed = {each.fd: each for each in hotloop.snapshot().transports}
    one, other = (listed[each.transport.get_extra_info("socket").fileno()] for each in (receiver, sender))
    assert one.kind == other.kind == "datagram DatagramRecorder"
    assert (one.peer, other.peer) == (None, f"127.0.0.1:{address[1]}")
    assert (one.bytes_read, one.bytes_written) == (5, 0)
    assert (other.bytes_read, other.bytes_written) == (0, 5)


async def test_pipes_also_if_nothing_is_waited_for(loop):
    reading, writing = helpers.os_pipe()
    reader, protocol = await loop.connect_read_pipe(helpers.Recorder, reading)
    writer, _ = await loop.connect_write_pipe(helpers.Recorder, writing)
    writer.write(b"hello")
    await protocol.received(5)
    reader.pause_reading()
    found = {each.transport: each for each in hotloop.snapshot().transports}
    assert set(found) == {"read pipe", "write pipe"}
    assert (found["read pipe"].bytes_read, found["read pipe"].is_paused) == (5, True)
    assert found["write pipe"].bytes_written == 5
    for transport in (reader, writer):
        transport.close()
    await helpers.iterations(3)
    assert hotloop.snapshot().transports == ()


async def test_tls(loop, tls):
    server_context, client_context = tls

    async def handle(reader, writer):
        writer.write(await reader.readline())
        await reader.read()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=server_context)
    port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=client_context, server_hostname="localhost"
    )
    writer.write(b"hello\n")
    await reader.readline()
    snapshot = hotloop.snapshot()
    assert sorted(each.kind for each in snapshot.transports) == ["server"] + ["tls StreamReaderProtocol"] * 2
    (listed,) = [each for each in snapshot.transports if each.transport == "server"]
    assert listed.peer == f"127.0.0.1:{port}"
    assert listed.fd == server.sockets[0].fileno()
    assert (listed.bytes_read, listed.idle) == (None, None)
    writer.close()
    server.close()
    await server.wait_closed()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    await helpers.until(lambda: hotloop.snapshot().transports == ())


async def test_subprocesses(loop):
    process = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
    found = {each.transport: each for each in hotloop.snapshot().transports}
    assert set(found) == {"subprocess", "read pipe", "write pipe"}
    assert found["subprocess"].peer == f"process {process.pid}"
    assert found["subprocess"].kind == "subprocess SubprocessStreamProtocol"
    await process.communicate(b"hello")
    await helpers.until(lambda: hotloop.snapshot().transports == ())


async def test_transports_of_asyncios_own(loop):
    class Socket(socket.socket):
        def recv(self, *args):
            return super().recv(*args)

        def send(self, *args):
            return super().send(*args)

    ours, peer = socket.socketpair()
    ours = Socket(fileno=ours.detach())
    ours.setblocking(False)
    transport, _ = await loop.create_connection(helpers.Recorder, sock=ours)
    (listed,) = hotloop.snapshot().transports
    assert listed.kind == "_SelectorSocketTransport Recorder"
    assert (listed.fd, listed.bytes_read) == (ours.fileno(), None)
    transport.abort()
    await helpers.iterations(2)
    peer.close()
    assert hotloop.snapshot().transports == ()


async def test_a_peer_is_not_kept_for_get_extra_info(loop, attach, kind):
    protocol, _ = await attach(helpers.Recorder())
    before = len(gc.get_referents(protocol.transport))
    hotloop.snapshot()
    assert len(gc.get_referents(protocol.transport)) == before


# --- Timers ---


async def test_timers(loop):
    class Owner:
        def method(self):
            pass

    loop.call_later(30, Owner().method)
    loop.call_later(20, functools.partial(print, 1))
    gone = loop.call_later(10, print)
    gone.cancel()
    first, second = hotloop.snapshot().timers
    assert first.callback == first.kind == "print"
    assert 19 < first.due <= 20
    assert second.callback.endswith("Owner.method")
    assert 29 < second.due <= 30
    assert (first.cancelled, first.task) == (False, None)
    assert str(first).startswith("due in ")


async def test_timers_tell_the_task_that_they_wake_or_cancel(loop):
    async def times_out():
        async with asyncio.timeout(60):
            await loop.create_future()

    async def sleeps():
        await asyncio.sleep(50)

    tasks = [loop.create_task(times_out(), name="one"), loop.create_task(sleeps(), name="two")]
    await helpers.iterations(2)
    sleep, timeout = hotloop.snapshot().timers
    assert (sleep.task.name, timeout.task.name) == ("two", "one")
    assert str(timeout).endswith(f"for one ({timeout.task.coroutine})")
    await cancelled(*tasks)


async def test_callbacks_whose_attributes_raise(loop):
    class Raises:
        def __getattr__(self, name):
            raise ValueError(name)

        def __repr__(self):
            raise ValueError("no repr")

        def __call__(self):
            pass

    handle = loop.call_later(60, Raises(), Raises())
    (timer,) = hotloop.snapshot().timers
    assert timer.callback.endswith("Raises")
    handle.cancel()


# --- What a snapshot keeps ---


async def test_a_snapshot_keeps_nothing_alive(loop):
    class Protocol(asyncio.Protocol):
        pass

    ours, peer = socket.socketpair()
    transport, protocol = await loop.create_connection(Protocol, sock=ours)
    task = loop.create_task(waits(loop.create_future()))
    handle = loop.call_later(60, Protocol().data_received)
    await helpers.iterations(2)
    snapshots = [hotloop.snapshot(), hotloop.snapshot()]
    alive = [weakref.ref(each) for each in (transport, protocol, task, handle, handle._callback.__self__)]
    transport.abort()
    handle.cancel()
    await cancelled(task)
    await helpers.iterations(2)
    del transport, protocol, task, handle, ours
    gc.collect()
    assert [each() for each in alive] == [None] * 5
    assert len(snapshots[1].tasks) == 2
    peer.close()


async def test_a_snapshot_stays_as_it_is(loop):
    snapshot = hotloop.snapshot()
    for thing, name in ((snapshot, "tasks"), (snapshot.tasks[0], "name")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, name, None)


# --- Growth ---


async def test_growth_counts_by_kind_and_gives_examples_of_what_is_new(loop):
    old = [loop.create_task(waits(loop.create_future())) for _ in range(2)]
    loop.call_later(60, print)
    before = hotloop.snapshot()
    new = [loop.create_task(waits(loop.create_future())) for _ in range(5)]
    old.pop().cancel()
    loop.call_later(60, print)
    loop.call_later(60, len)
    await helpers.iterations(2)
    growth = hotloop.snapshot().since(before)
    assert isinstance(growth, Growth)
    tasks, *timers = growth.grown
    assert (tasks.what, tasks.kind, tasks.before, tasks.now, tasks.new) == ("task", "waits", 2, 6, 5)
    assert tasks.growth == 4
    line = waits.__code__.co_firstlineno + 1
    assert tasks.examples == tuple(f"{task.get_name()}, waits test_snapshots.py:{line}" for task in new[:3])
    assert [(each.kind, each.before, each.now, each.new) for each in timers] == [
        ("len", 0, 1, 1),
        ("print", 1, 2, 1),
    ]
    assert 0 <= growth.seconds < 30
    await cancelled(*old, *new)


async def test_what_is_replaced_does_not_grow(loop):
    task = loop.create_task(waits(loop.create_future()))
    before = hotloop.snapshot()
    await cancelled(task)
    # Often at the address of the former one.
    del task
    task = loop.create_task(waits(loop.create_future()))
    after = hotloop.snapshot()
    assert others(before)[0].serial != others(after)[0].serial
    assert after.since(before).grown == ()
    assert str(after.since(before)).startswith("nothing grew in")
    await cancelled(task)


async def test_an_object_keeps_its_number_and_no_other_gets_it(loop):
    numbers = set()
    last = loop.create_task(waits(loop.create_future()), name="last")
    for _ in range(50):
        tasks = [loop.create_task(waits(loop.create_future())) for _ in range(3)]
        snapshot = hotloop.snapshot()
        (number,) = [each.serial for each in snapshot.tasks if each.name == "last"]
        listed = {each.serial for each in snapshot.tasks if each.kind == "waits"} - {number}
        assert len(listed) == 3
        assert not listed & numbers
        numbers |= listed
        await cancelled(*tasks)
        del tasks
    assert number == next(each.serial for each in hotloop.snapshot().tasks if each.name == "last")
    await cancelled(last)


async def test_snapshots_of_different_loops_are_not_compared(loop):
    other = hotloop.new_event_loop()
    with pytest.raises(ValueError, match="different loops"):
        hotloop.snapshot().since(hotloop.snapshot(other))
    other.close()


async def test_connections_that_pile_up(loop, attach, kind):
    before = hotloop.snapshot()
    for _ in range(3):
        await attach(helpers.Recorder())
    (grown,) = hotloop.snapshot().since(before).grown
    assert (grown.what, grown.kind, grown.growth, grown.new) == ("transport", f"{kind} Recorder", 3, 3)
    assert len(grown.examples) == 3


# --- Tables ---


async def test_tables(loop):
    tasks = [loop.create_task(waits(loop.create_future()), name=f"name-{number}") for number in range(3)]
    loop.call_later(60, print)
    before = hotloop.snapshot()
    await helpers.iterations(2)
    line = waits.__code__.co_firstlineno + 1
    text = str(hotloop.snapshot()).split("\n")
    assert text[0] == "4 tasks"
    assert text[2].split() == ["3", "waits", "name-0,", "waits", f"test_snapshots.py:{line}"]
    assert "0 transports" in text
    assert text[-3:-1][0] == "1 timer"
    tasks += [loop.create_task(waits(loop.create_future()), name=f"name-{number}") for number in range(3, 7)]
    await helpers.iterations(2)
    text = str(hotloop.snapshot().since(before)).split("\n")
    assert text[0].startswith("grew in 0.")
    assert text[2].split() == ["+4", "7", "task", "waits", "name-3,", "waits", f"test_snapshots.py:{line}"]
    assert [row.split()[0] for row in text[3:]] == ["name-4,", "name-5,"]
    await cancelled(*tasks)


def test_long_tables_are_cut():
    kinds = [Grown("timer", f"kind{number}", 0, 1, 1, ("due",)) for number in range(25)]
    assert str(Growth(1.0, tuple(kinds))).endswith("\n  and 5 more kinds")
    assert str(Snapshot(0.0, 1, (), (), ())) == "0 tasks\n0 transports\n0 timers"


# --- Cost ---


async def test_ten_thousand_tasks(loop):
    tasks = [loop.create_task(waits(loop.create_future())) for _ in range(10_000)]
    await helpers.iterations(2)
    began = time.perf_counter()
    snapshot = hotloop.snapshot()
    took = time.perf_counter() - began
    assert len(snapshot.tasks) == 10_001
    # 0.1 s where it was measured.
    assert took < 5
    await cancelled(*tasks)


async def test_transports_that_close_during_the_listing(loop, attach, kind, monkeypatch):
    from hotloop._observing import listing

    protocols = [(await attach(helpers.Recorder()))[0] for _ in range(3)]
    former = listing._transport

    def closing(transport, known):
        for protocol in protocols:
            protocol.transport.abort()
        return former(transport, known)

    monkeypatch.setattr(listing, "_transport", closing)
    listed = hotloop.snapshot().transports
    assert all(each.is_closing for each in listed)
    monkeypatch.undo()
    await helpers.iterations(2)
    assert hotloop.snapshot().transports == ()


def test_of_a_loop_that_stopped_in_another_thread(loop):
    """Once the thread is done with it, its tasks can be listed here."""
    made = []

    def run():
        made.append(loop.create_task(waits(loop.create_future())))
        loop.run_until_complete(asyncio.sleep(0))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert [task.kind for task in hotloop.snapshot(loop).tasks] == ["waits"]
    made[0].cancel()
    helpers.run_once(loop)
