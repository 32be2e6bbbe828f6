"""What add_reader and add_writer can watch, and what happens to descriptors behind the loop's back."""

import asyncio
import os
import select
import socket

import helpers
import pytest


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
    helpers.fill(ours)
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
    helpers.fill(ours)
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
    assert loop.remove_reader(ours)
    assert loop.remove_writer(ours)
    async with helpers.idle():
        pass
    for sock in (ours, peer, old_peer):
        sock.close()


@pytest.mark.parametrize("end", ["close", "abort"])
async def test_a_number_can_be_watched_before_its_last_transport_has_lost_its_connection(loop, end):
    listener = socket.create_server(("127.0.0.1", 0))
    number, peers = None, []
    for _ in range(3):
        sock = socket.socket()
        sock.setblocking(False)
        assert number in (None, sock.fileno())
        number = sock.fileno()
        await loop.sock_connect(sock, listener.getsockname())
        loop.add_writer(sock, bool)
        loop.remove_writer(sock)
        reader, writer = await asyncio.open_connection(sock=sock)
        peers.append(listener.accept()[0])
        peers[-1].send(b"hello")
        assert await reader.readexactly(5) == b"hello"
        # The program closes its socket before connection_lost() is called.
        getattr(writer.transport, end)()
        sock.close()
    await helpers.until(lambda: "closed" in repr(writer.transport))
    for sock in (listener, *peers):
        sock.close()


async def test_a_number_can_be_watched_while_a_transport_that_has_sent_all_loses_its_connection(loop):
    ours, peer = socket.socketpair()
    lost = loop.create_future()

    def reuse():
        number = ours.fileno()
        ours.close()
        pair = socket.socketpair()
        sock = next(sock for sock in pair if sock.fileno() == number)
        loop.add_writer(sock, bool)
        loop.remove_writer(sock)
        for sock in pair:
            sock.close()

    class Protocol(asyncio.Protocol):
        def connection_lost(self, error):
            try:
                reuse()
            except OSError as failure:
                error = failure
            lost.set_result(error)

    transport, _ = await loop.create_connection(Protocol, sock=ours)
    transport.write(bytes(1 << 24))
    transport.close()
    assert transport.get_write_buffer_size()
    peer.setblocking(False)
    received = 0
    while received < 1 << 24:
        received += len(await loop.sock_recv(peer, 1 << 20))
    assert await lost is None
    peer.close()


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


@pytest.mark.hotloop_only
@pytest.mark.skipif(not hasattr(select, "epoll"), reason="the descriptors are epoll's")
@pytest.mark.parametrize("kind", ["socket", "pipe", "timer"])
def test_a_loop_that_lost_its_descriptors_takes_nothing_from_who_got_their_numbers(loop_name, kind):
    """As in a daemon that closes all descriptors, and makes another loop before the first is collected."""
    if kind == "timer" and not hasattr(os, "timerfd_create"):
        pytest.skip("this Python makes no timers")
    helpers.run_script(
        loop_name,
        f"kind = {kind!r}"
        + """
import fcntl, gc, select
def targets():
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink("/proc/self/fd/" + name)
        except OSError:
            pass  # what listdir() has opened
    return found
before = targets()
loop = new_event_loop()
made = {fd: target for fd, target in targets().items() if fd not in before}
sources = []
for _ in made:
    if kind == "socket":
        ours, peer = socket.socketpair()
        source, peer = ours.detach(), peer.detach()
        os.write(peer, b"0123456789")
    elif kind == "pipe":
        source, peer = os.pipe()
        os.write(peer, b"0123456789")
    else:
        source = os.timerfd_create(time.CLOCK_MONOTONIC)
        os.timerfd_settime(source, initial=0.001)
        peer = os.eventfd(0)
    sources.append([fcntl.fcntl(fd, fcntl.F_DUPFD, 400) for fd in (source, peer)])
os.closerange(3, 400)
[number] = [fd for fd, target in made.items() if "eventpoll" in target]
with select.epoll() as epoll:
    spare = fcntl.fcntl(epoll.fileno(), fcntl.F_DUPFD, 400)
os.dup2(spare, number)
epoll = select.epoll.fromfd(spare)
taken = [(fd, *sources.pop()) for fd in made if fd != number]
for fd, source, _ in taken:
    os.dup2(source, fd)
    os.set_blocking(fd, False)
    epoll.register(fd, select.EPOLLIN)
time.sleep(0.01)
del loop
gc.collect()
for fd, source, peer in taken:
    got = os.read(source, 100)
    assert got == (b"0123456789" if kind != "timer" else (1).to_bytes(8, sys.byteorder)), got
    if kind == "socket":
        os.set_blocking(peer, False)
        try:
            assert not os.read(peer, 100)
        except BlockingIOError:
            pass
os._exit(0)
""",
        "-W",
        "ignore::ResourceWarning",
    )
