"""add_reader, add_writer, remove_reader and remove_writer, on descriptors that behave and on those that do not."""

import asyncio
import contextvars
import gc
import os
import pathlib
import socket
import time
import weakref

import pytest

import helpers


@pytest.fixture
def ends():
    """Two connected sockets, closed after the test."""
    with_peer = helpers.unix_pair()
    yield with_peer
    for sock in with_peer:
        sock.close()


def full(sock):
    """Send until the socket takes no more."""
    try:
        while True:
            sock.send(b"x" * 65536)
    except BlockingIOError:
        pass


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
    assert not any(one == other == "writer" for one, other in zip(order, order[1:], strict=False))


async def test_a_writer_is_called_when_there_is_room_again(loop, ends):
    ours, peer = ends
    full(ours)
    calls = []
    loop.add_writer(ours, calls.append, "write")
    await asyncio.sleep(0.01)
    assert calls == []
    while calls == []:
        try:
            peer.recv(1 << 20)
        except BlockingIOError:
            pass
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
    assert loop.remove_reader(ours) and not loop.remove_reader(ours)
    assert loop.remove_writer(ours) and not loop.remove_writer(ours)


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

    for number, (ours, peer) in enumerate(pairs):
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
    for number, (ours, peer) in enumerate(pairs):
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


# What can be watched, and the events that are neither reading nor writing


async def test_pipes(loop):
    read_end, write_end = os.pipe()
    calls = []
    loop.add_reader(read_end, calls.append, "reader")
    loop.add_writer(write_end, calls.append, "writer")
    await helpers.until(lambda: "writer" in calls)
    loop.remove_writer(write_end)
    assert "reader" not in calls
    os.close(write_end)
    await helpers.until(lambda: "reader" in calls)  # the end of the file
    loop.remove_reader(read_end)
    os.close(read_end)


async def test_the_writer_of_a_pipe_learns_that_nobody_reads(loop):
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    try:
        while True:
            os.write(write_end, b"x" * 4096)
    except BlockingIOError:
        pass
    calls = []
    loop.add_writer(write_end, calls.append, "writer")
    await asyncio.sleep(0.005)
    assert calls == []
    os.close(read_end)
    await helpers.until(lambda: calls)
    loop.remove_writer(write_end)
    os.close(write_end)


async def test_a_reader_learns_of_the_end_and_of_a_reset(loop):
    for end in (lambda peer: peer.shutdown(socket.SHUT_WR), lambda peer: peer.close(), helpers.reset):
        ours, peer = helpers.tcp_pair()
        calls = []
        loop.add_reader(ours, calls.append, "reader")
        await asyncio.sleep(0)
        end(peer)
        await helpers.until(lambda calls=calls: calls)
        loop.remove_reader(ours)
        ours.close()
        peer.close()


async def test_a_writer_learns_of_a_reset(loop):
    ours, peer = helpers.tcp_pair()
    full(ours)
    calls = []
    loop.add_writer(ours, calls.append, "writer")
    await asyncio.sleep(0)
    helpers.reset(peer)
    await helpers.until(lambda: calls)
    loop.remove_writer(ours)
    ours.close()


async def test_a_writer_learns_that_a_connection_was_refused(loop):
    sock = socket.socket()
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.connect(("127.0.0.1", helpers.unused_port()))
    calls = []
    loop.add_writer(sock, calls.append, "writer")
    await helpers.until(lambda: calls)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
    loop.remove_writer(sock)
    sock.close()


async def test_eventfds_and_terminals(loop):
    calls = []
    event = os.eventfd(0)
    leader, follower = os.openpty()
    loop.add_reader(event, calls.append, "event")
    loop.add_reader(leader, calls.append, "terminal")
    os.eventfd_write(event, 1)
    os.write(follower, b"x")
    await helpers.until(lambda: set(calls) == {"event", "terminal"})
    for descriptor in (event, leader):
        loop.remove_reader(descriptor)
    for descriptor in (event, leader, follower):
        os.close(descriptor)


async def test_urgent_data_is_not_there_to_read(loop):
    """A reader is not called for it, and it does not keep the loop awake."""
    ours, peer = helpers.tcp_pair()
    calls = []
    loop.add_reader(ours, calls.append, "reader")
    peer.send(b"!", socket.MSG_OOB)
    async with helpers.idle():
        pass
    assert calls == []
    peer.send(b"x")
    await helpers.until(lambda: calls)
    loop.remove_reader(ours)
    for sock in (ours, peer):
        sock.close()


async def test_a_writer_alone_is_not_called_for_input(loop):
    ours, peer = helpers.tcp_pair()
    full(ours)
    calls = []
    loop.add_writer(ours, calls.append, "writer")
    peer.send(b"x")
    peer.shutdown(socket.SHUT_WR)
    async with helpers.idle():
        pass
    assert calls == []
    loop.remove_writer(ours)
    for sock in (ours, peer):
        sock.close()


# Descriptors closed behind the loop's back


async def test_removing_after_closing_is_no_error(loop):
    ours, peer = helpers.unix_pair()
    number = ours.fileno()
    loop.add_reader(number, print)
    ours.close()
    assert loop.remove_reader(number) is True
    assert loop.remove_reader(number) is False
    peer.close()


@pytest.mark.hotloop_only
async def test_a_number_that_was_closed_behind_the_loops_back_and_reused_can_be_watched(loop):
    old, old_peer = helpers.unix_pair()
    number = old.fileno()
    calls = []
    loop.add_reader(number, calls.append, "old")
    loop.add_writer(number, calls.append, "old")
    old.close()
    ours, peer = helpers.unix_pair()
    if ours.fileno() != number:
        ours, peer = peer, ours
    assert ours.fileno() == number
    await asyncio.sleep(0.005)
    calls.clear()
    loop.add_reader(ours, calls.append, "reader")
    loop.add_writer(ours, calls.append, "writer")
    peer.send(b"x")
    await helpers.until(lambda: {"reader", "writer"} <= set(calls))
    assert set(calls) == {"reader", "writer"}
    assert loop.remove_reader(ours) and loop.remove_writer(ours)
    async with helpers.idle():
        pass
    for sock in (ours, peer, old_peer):
        sock.close()


@pytest.mark.hotloop_only
@pytest.mark.parametrize("forget", [True, False], ids=["removed", "never removed"])
async def test_a_descriptor_that_a_copy_keeps_open_does_not_spin_the_loop(loop, forget):
    """The kernel goes on reporting a registration whose number is closed, for as long as a copy is open."""
    ours, peer = helpers.unix_pair()
    number = ours.fileno()
    copy = os.dup(number)
    calls = []
    loop.add_reader(number, calls.append, 1)
    ours.close()
    if forget:
        loop.remove_reader(number)
    peer.send(b"x")
    await asyncio.sleep(0.01)
    if not forget:
        loop.remove_reader(number)
    async with helpers.idle():
        pass
    other, other_peer = helpers.unix_pair()
    seen = []
    loop.add_reader(other, seen.append, 1)
    other_peer.send(b"x")
    await helpers.until(lambda: seen)
    loop.remove_reader(other)
    os.close(copy)
    for sock in (peer, other, other_peer):
        sock.close()


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


async def test_a_path_is_no_descriptor(loop, tmp_path):
    with pytest.raises(ValueError, match="Invalid file object"):
        loop.add_reader(pathlib.Path(tmp_path), print)
