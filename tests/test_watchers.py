"""add_reader, add_writer, remove_reader and remove_writer."""

import asyncio
import contextlib
import contextvars
import gc
import itertools
import os
import pathlib
import resource
import socket
import time
import weakref

import helpers
import pytest


@pytest.fixture
def ends():
    """Two connected sockets, closed after the test."""
    with_peer = helpers.unix_pair()
    yield with_peer
    for sock in with_peer:
        sock.close()


def resident_size():
    """Bytes of memory that this process has, where the system tells."""
    if not pathlib.Path("/proc/self/statm").exists():
        return 0
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def test_a_reader_is_called_for_as_long_as_there_is_something_to_read(loop, ends):
    ours, peer = ends
    calls = []
    assert loop.add_reader(ours, calls.append, "read") is None
    await helpers.iterations(3)
    assert calls == []
    peer.send(b"xyz")
    await helpers.until(lambda: len(calls) >= 3)
    assert ours.recv(10) == b"xyz"
    await asyncio.sleep(0.01)
    count = len(calls)
    await asyncio.sleep(0.01)
    assert len(calls) == count
    assert loop.remove_reader(ours) is True


async def test_a_watcher_is_called_once_an_iteration(loop, ends):
    ours, _ = ends
    order = []
    end = time.monotonic() + 0.01

    def mark():
        order.append("mark")
        if time.monotonic() < end:
            loop.call_soon(mark)
        else:
            loop.remove_writer(ours)

    loop.add_writer(ours, order.append, "writer")
    loop.call_soon(mark)
    await asyncio.sleep(0.02)
    assert "writer" in order
    assert not any(one == other == "writer" for one, other in itertools.pairwise(order))


async def test_a_writer_is_called_when_there_is_room_again(loop, ends):
    ours, peer = ends
    helpers.fill(ours)
    calls = []
    loop.add_writer(ours, calls.append, "write")
    await asyncio.sleep(0.01)
    assert calls == []
    while calls == []:
        with contextlib.suppress(BlockingIOError):
            peer.recv(1 << 20)
        await asyncio.sleep(0)
    assert loop.remove_writer(ours) is True
    count = len(calls)
    await asyncio.sleep(0.005)
    assert len(calls) == count


async def test_removing_tells_whether_there_was_something_to_remove(loop, ends):
    ours, _ = ends
    assert loop.remove_reader(ours) is False
    assert loop.remove_writer(ours) is False
    loop.add_reader(ours, print)
    assert loop.remove_writer(ours) is False
    assert loop.remove_reader(ours) is True
    assert loop.remove_reader(ours) is False
    loop.add_writer(ours, print)
    assert loop.remove_reader(ours) is False
    assert loop.remove_writer(ours) is True
    assert loop.remove_writer(ours) is False


async def test_reader_and_writer_of_one_descriptor_are_independent(loop, ends):
    ours, peer = ends
    calls = []
    loop.add_reader(ours, calls.append, "reader")
    loop.add_writer(ours, calls.append, "writer")
    peer.send(b"x")
    await helpers.until(lambda: {"reader", "writer"} <= set(calls))
    loop.remove_writer(ours)
    calls.clear()
    await helpers.until(lambda: calls)
    assert set(calls) == {"reader"}
    loop.add_writer(ours, calls.append, "writer")
    loop.remove_reader(ours)
    calls.clear()
    await helpers.until(lambda: calls)
    assert set(calls) == {"writer"}
    loop.remove_writer(ours)


async def test_adding_again_replaces_the_callback(loop, ends):
    ours, peer = ends
    calls = []
    loop.add_reader(ours, calls.append, "old")
    loop.add_reader(ours, calls.append, "new")
    loop.add_writer(ours, calls.append, "old")
    loop.add_writer(ours, calls.append, "new")
    peer.send(b"x")
    await asyncio.sleep(0.005)
    assert set(calls) == {"new"}
    assert loop.remove_reader(ours)
    assert not loop.remove_reader(ours)
    assert loop.remove_writer(ours)
    assert not loop.remove_writer(ours)


async def test_a_callback_that_replaces_itself(loop, ends):
    ours, peer = ends
    calls = []

    def first():
        calls.append("first")
        loop.add_reader(ours, second)

    def second():
        calls.append("second")
        loop.remove_reader(ours)

    loop.add_reader(ours, first)
    peer.send(b"x")
    await asyncio.sleep(0.01)
    assert calls == ["first", "second"]


async def test_a_descriptor_may_be_a_number_or_a_thing_that_has_one(loop, ends):
    ours, peer = ends
    calls = []

    class Thing:
        def fileno(self):
            return ours.fileno()

    peer.send(b"x")
    for descriptor in (ours, ours.fileno(), Thing()):
        calls.clear()
        loop.add_reader(descriptor, calls.append, 1)
        await helpers.until(lambda: calls)
        assert loop.remove_reader(ours.fileno()) is True
        loop.add_writer(descriptor, calls.append, 1)
        assert loop.remove_writer(ours) is True


async def test_what_is_no_descriptor_is_refused(loop):
    closed = socket.socket()
    closed.close()

    class Odd:
        def fileno(self):
            return "three"

    for bad in (object(), "3", None, closed, -1, 1.5, Odd()):
        for call in (loop.add_reader, loop.add_writer):
            with pytest.raises((ValueError, TypeError)):
                call(bad, print)
        for call in (loop.remove_reader, loop.remove_writer):
            with pytest.raises((ValueError, TypeError)):
                call(bad)


async def test_the_errors_for_what_is_no_descriptor(loop):
    with pytest.raises(ValueError, match="Invalid file object: 'three'"):
        loop.add_reader("three", print)
    with pytest.raises(ValueError, match="Invalid file descriptor: -1"):
        loop.add_reader(-1, print)
    with pytest.raises(ValueError, match="Invalid file object: None"):
        loop.remove_writer(None)


async def test_a_descriptor_that_is_not_open_or_cannot_be_watched(loop, tmp_path):
    read_end, write_end = os.pipe()
    os.close(read_end)
    os.close(write_end)
    path = tmp_path / "file"
    path.write_bytes(b"content")
    for call, remove in ((loop.add_reader, loop.remove_reader), (loop.add_writer, loop.remove_writer)):
        for _ in range(2):
            with pytest.raises(OSError, match="Bad file descriptor"):
                call(read_end, print)
        assert remove(read_end) is False
        with path.open("rb") as file:
            for _ in range(2):
                with pytest.raises(PermissionError):
                    call(file, print)
            assert remove(file) is False


async def test_memory_does_not_follow_the_number_of_a_descriptor(loop):
    gc.collect()
    before = resident_size()
    for number in (50_000_000, 2**31 - 1):
        for call, remove in ((loop.add_reader, loop.remove_reader), (loop.add_writer, loop.remove_writer)):
            with pytest.raises(OSError, match="Bad file descriptor"):
                call(number, print)
            assert remove(number) is False
    assert resident_size() - before < 16 * 2**20


async def test_a_descriptor_with_a_large_number(loop, ends):
    ours, peer = ends
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # From 65,536 on, if that many may be open.
    number = min(limit, 2**17) - 1
    os.dup2(ours.fileno(), number)
    calls = []
    try:
        loop.add_reader(number, calls.append, "read")
        peer.send(b"x")
        await helpers.until(lambda: calls)
        assert loop.remove_reader(number) is True
        assert loop.remove_reader(number) is False
    finally:
        os.close(number)


async def test_wrong_arguments_are_refused(loop, ends):
    for call in (loop.add_reader, loop.add_writer):
        with pytest.raises(TypeError):
            call()
        with pytest.raises(TypeError):
            call(ends[0])


@pytest.mark.parametrize("make", [helpers.tcp_pair, helpers.unix_pair])
async def test_a_descriptor_of_a_transport_is_refused(loop, make):
    ours, peer = make()
    with peer:
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        for descriptor in (ours, ours.fileno(), transport.get_extra_info("socket")):
            for call in (
                lambda fd: loop.add_reader(fd, print),
                lambda fd: loop.add_writer(fd, print),
                loop.remove_reader,
                loop.remove_writer,
            ):
                with pytest.raises(RuntimeError, match="is used by transport"):
                    call(descriptor)
        transport.close()
        assert loop.remove_reader(ours) is False
        await helpers.iterations(2)


def test_a_closed_loop_watches_nothing(loop, ends):
    ours, _ = ends
    loop.close()
    for call in (loop.add_reader, loop.add_writer):
        with pytest.raises(RuntimeError, match="Event loop is closed"):
            call(ours, print)
    assert loop.remove_reader(ours) is False
    assert loop.remove_writer(ours) is False


async def test_a_callback_runs_in_the_context_in_which_it_was_added(loop, ends):
    ours, peer = ends
    variable = contextvars.ContextVar("variable", default=None)
    seen = []
    variable.set("added")
    loop.add_reader(ours, lambda: (seen.append(variable.get()), loop.remove_reader(ours)))
    loop.add_writer(ours, lambda: (seen.append(variable.get()), loop.remove_writer(ours)))
    variable.set("later")
    peer.send(b"x")
    await helpers.until(lambda: len(seen) == 2)
    assert seen == ["added", "added"]


async def test_a_callback_that_fails_is_reported_and_stays(loop, ends, reports):
    ours, peer = ends

    def fail():
        ours.recv(1)
        raise ValueError("broken")

    loop.add_reader(ours, fail)
    peer.send(b"xy")
    await helpers.until(lambda: len(reports) == 2)
    assert [str(report["exception"]) for report in reports] == ["broken"] * 2
    assert isinstance(reports[0]["handle"], asyncio.Handle)
    reports.clear()
    loop.remove_reader(ours)


def test_a_watcher_outlives_a_run(loop, ends):
    ours, peer = ends
    calls = []
    loop.add_reader(ours, lambda: (calls.append(ours.recv(1)), loop.stop()))
    for _ in range(3):
        peer.send(b"x")
        loop.run_forever()
    assert calls == [b"x"] * 3
    loop.remove_reader(ours)


async def test_a_callback_removed_by_another_in_the_same_iteration_is_not_called(loop):
    pairs = [helpers.unix_pair() for _ in range(10)]
    calls = []

    def called(number):
        calls.append(number)
        for ours, _ in pairs:
            loop.remove_reader(ours)

    for number, (ours, _) in enumerate(pairs):
        loop.add_reader(ours, called, number)
    for _, peer in pairs:
        peer.send(b"x")
    await asyncio.sleep(0.01)
    assert len(calls) == 1
    for sock in sum(pairs, ()):
        sock.close()


async def test_a_callback_that_closes_another_descriptor_and_reuses_its_number(loop):
    """The event for the old descriptor is not taken for one of the new."""
    (first, first_peer), (second, second_peer) = helpers.unix_pair(), helpers.unix_pair()
    calls = []
    new = []

    def swap(ours, other):
        loop.remove_reader(ours)
        loop.remove_reader(other)
        number = other.fileno()
        other.close()
        pair = helpers.unix_pair()
        new.extend(pair)
        assert number in (pair[0].fileno(), pair[1].fileno())
        for sock in pair:
            loop.add_reader(sock, calls.append, "new")

    loop.add_reader(first, swap, first, second)
    loop.add_reader(second, swap, second, first)
    first_peer.send(b"x")
    second_peer.send(b"x")
    await asyncio.sleep(0.01)
    assert calls == []
    assert len(new) == 2
    for sock in new:
        loop.remove_reader(sock)
    for sock in (first, first_peer, second, second_peer, *new):
        sock.close()


async def test_many_descriptors(loop):
    pairs = [helpers.unix_pair() for _ in range(300)]
    calls = set()
    for number, (ours, _) in enumerate(pairs):
        loop.add_reader(ours, calls.add, number)
    for _, peer in pairs[::2]:
        peer.send(b"x")
    await helpers.until(lambda: len(calls) == 150)
    for _, peer in pairs[1::2]:
        peer.send(b"x")
    await helpers.until(lambda: len(calls) == 300)
    for ours, peer in pairs:
        assert loop.remove_reader(ours)
        ours.close()
        peer.close()


# Memory


async def test_removing_frees_the_callback(loop, ends):
    class Thing:
        def method(self):
            pass

    thing, other = Thing(), Thing()
    gone = [weakref.ref(thing), weakref.ref(other)]
    loop.add_reader(ends[0], thing.method)
    loop.add_writer(ends[0], other.method)
    del thing, other
    loop.remove_reader(ends[0])
    loop.remove_writer(ends[0])
    await helpers.iterations(2)
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


async def test_the_loop_sleeps_with_an_idle_watcher(loop, ends):
    loop.add_reader(ends[0], print)
    start = time.monotonic()
    async with helpers.idle():
        pass
    assert time.monotonic() - start < 5
    loop.remove_reader(ends[0])


@pytest.mark.parametrize("number", [2**31, 2**40, 2**70])
async def test_a_number_that_is_too_large_for_a_descriptor(loop, number):
    class File:
        def fileno(self):
            return number

    for file in (number, File()):
        for add, remove in ((loop.add_reader, loop.remove_reader), (loop.add_writer, loop.remove_writer)):
            with pytest.raises(OverflowError, match="Python int too large to convert to C int"):
                add(file, print)
            assert remove(file) is False


async def test_a_path_is_no_descriptor(loop, tmp_path):
    with pytest.raises(ValueError, match="Invalid file object"):
        loop.add_reader(pathlib.Path(tmp_path), print)


@pytest.mark.parametrize("direction", ["reader", "writer"])
def test_a_closed_socket_is_known_by_what_it_was(loop, direction):
    """Removing the watcher of a socket object that was closed: it has no descriptor any more."""
    ours, peer = socket.socketpair()
    called = []
    getattr(loop, f"add_{direction}")(ours, called.append, direction)
    ours.close()
    assert getattr(loop, f"remove_{direction}")(ours) is True
    for remove in (loop.remove_reader, loop.remove_writer):
        with pytest.raises(ValueError, match="Invalid file descriptor: -1"):
            remove(ours)
    peer.close()
    loop.run_until_complete(helpers.iterations(3))
    assert called == []


def test_a_closed_socket_does_not_take_its_successor_along(loop):
    ours, peer = socket.socketpair()
    loop.add_reader(ours, print)
    number = ours.fileno()
    ours.close()
    assert loop.remove_reader(ours) is True
    successor = socket.socket(fileno=os.dup2(peer.fileno(), number))
    loop.add_reader(successor, print)
    with pytest.raises(ValueError, match="Invalid file descriptor: -1"):
        loop.remove_reader(ours)
    assert loop.remove_reader(successor) is True
    successor.close()
    peer.close()


async def test_a_reader_whose_handle_was_cancelled_costs_no_time(loop, ends):
    ours, peer = ends
    calls = []
    for add, remove in (
        (loop._add_reader, loop.remove_reader),
        (loop._add_writer, loop.remove_writer),
    ):
        add(ours.fileno(), calls.append, "ready").cancel()
        peer.send(b"x")
        used = time.thread_time()
        await asyncio.sleep(0.2)
        assert time.thread_time() - used < 0.1
        assert remove(ours) is False
    assert calls == []


async def test_a_writer_stays_when_the_handle_of_the_reader_is_cancelled(loop, ends):
    ours, peer = ends
    calls = []
    loop.add_writer(ours, calls.append, "write")
    loop._add_reader(ours.fileno(), calls.append, "read").cancel()
    peer.send(b"x")
    await helpers.until(lambda: len(calls) > 10)
    assert set(calls) == {"write"}
    assert loop.remove_writer(ours) is True


@pytest.mark.parametrize(
    "error",
    [helpers.Leave, helpers.Interrupt, OSError, MemoryError, AttributeError, TypeError, ValueError],
)
def test_a_fileno_that_raises(loop, error):
    class Thing:
        def fileno(self):
            raise error

    nothing = issubclass(error, AttributeError | TypeError | ValueError)
    for call in (
        lambda: loop.add_reader(Thing(), print),
        lambda: loop.add_writer(Thing(), print),
        lambda: loop.remove_reader(Thing()),
        lambda: loop.remove_writer(Thing()),
    ):
        with pytest.raises(ValueError if nothing else error) as raised:
            call()
        assert not nothing or "Invalid file object" in str(raised.value)


def test_what_is_watched_is_kept(loop):
    """The socket object that was given stays, until it is watched no longer."""
    ours, peer = socket.socketpair()
    received = []
    number = ours.fileno()
    loop.add_reader(ours, lambda: received.append(os.read(number, 10)))
    kept = weakref.ref(ours)
    del ours
    gc.collect()
    peer.send(b"data")
    loop.run_until_complete(helpers.iterations(3))
    assert received == [b"data"]
    kept().close()
    assert loop.remove_reader(kept()) is True
    gc.collect()
    assert kept() is None
    peer.close()
