"""Which writes a stream transport sends within write(), and which at the end of the iteration.

Both are right to a program; they decide how soon a peer can begin, and how many system calls a message
takes."""

import asyncio
import contextlib
import contextvars
import os
import socket
import time

import helpers
import pytest
from helpers import fill, reset, run_alone

pytestmark = pytest.mark.hotloop_only


@pytest.fixture
def connections(loop, pair):
    """Two transports with their peers, of a loop that has nothing to do."""
    with contextlib.ExitStack() as opened:
        ends = [pair, tuple(opened.enter_context(end) for end in socket.socketpair())]
        made = []
        for ours, peer in ends:
            peer.setblocking(False)
            transport, _ = loop.run_until_complete(loop.create_connection(asyncio.Protocol, sock=ours))
            made.append((transport, peer))
        run_alone(loop)
        yield made
        for transport, _ in made:
            transport.abort()
        run_alone(loop)


def arrived(peer, count=100):
    try:
        return peer.recv(count)
    except BlockingIOError:
        return b""


class Writer:
    """A callback that writes pieces, and notes what its peer gets by each. Numbers are pauses, in seconds."""

    def __init__(self, connection, *pieces):
        self.transport, self.peer = connection
        self.pieces = pieces
        self.seen = []

    def __call__(self):
        for piece in self.pieces:
            if isinstance(piece, float):
                time.sleep(piece)
            else:
                self.transport.write(piece)
                self.seen.append(arrived(self.peer))


def seen(loop, connection, *pieces):
    """What the peer has after each write of a callback that is alone in its iteration, and in the end."""
    writer = Writer(connection, *pieces)
    run_alone(loop, writer)
    return [*writer.seen, arrived(writer.peer)]


def write_in_parts(loop, connection):
    """Until it is known that the transport does: after one message, or more where the machine is busy."""
    for _ in range(50):
        if seen(loop, connection, b"1", b"2")[0] == b"":
            return
    pytest.fail("the first part is always sent alone")


@pytest.mark.parametrize("others", [0, 1])
def test_the_first_write_of_an_iteration_of_few_callbacks_is_sent_at_once(loop, connections, others):
    writer = Writer(connections[0], b"1")
    run_alone(loop, *[int] * others, writer)
    assert writer.seen == [b"1"]


def test_of_two_callbacks_the_second_is_sent_at_the_end(loop, connections):
    writers = [Writer(connection, b"1") for connection in connections]
    run_alone(loop, *writers)
    assert [writer.seen for writer in writers] == [[b"1"], [b""]]
    assert arrived(writers[1].peer) == b"1"


def test_two_callbacks_after_two_events_send_at_the_end(loop, connections):
    class Answering(asyncio.Protocol):
        def __init__(self, writer):
            self.writer = writer

        def data_received(self, data):
            loop.call_soon(self.writer)

    writers = [Writer(connection, b"1") for connection in connections]
    for writer in writers:
        writer.transport.set_protocol(Answering(writer))
        writer.peer.send(b"x")
    run_alone(loop)
    run_alone(loop)
    assert [writer.seen for writer in writers] == [[b""], [b""]]
    assert [arrived(writer.peer) for writer in writers] == [b"1", b"1"]


def test_an_iteration_of_many_callbacks_sends_at_the_end(loop, connections):
    writer = Writer(connections[0], b"1", b"2")
    run_alone(loop, int, int, writer)
    assert writer.seen == [b"", b""]
    assert arrived(writer.peer) == b"12"


def test_the_parts_of_a_message_are_sent_together_after_the_first_message(loop, connections):
    assert seen(loop, connections[0], b"1", b"2", b"3") == [b"1", b"", b"", b"23"]
    write_in_parts(loop, connections[0])
    for _ in range(3):
        assert seen(loop, connections[0], b"1", b"2", b"3") == [b"", b"", b"", b"123"]
    # Only this transport writes in parts.
    assert seen(loop, connections[1], b"1") == [b"1", b""]


def test_a_transport_that_does_not_write_in_parts_any_more_sends_at_once_again(loop, connections):
    write_in_parts(loop, connections[0])
    assert seen(loop, connections[0], b"1") == [b"", b"1"]
    for _ in range(3):
        assert seen(loop, connections[0], b"1") == [b"1", b""]


def test_what_follows_after_a_while_is_another_message(loop, connections):
    for _ in range(3):
        assert seen(loop, connections[0], b"1", 0.01, b"2") == [b"1", b"", b"2"]


def test_a_write_of_another_transport_makes_no_parts(loop, connections):
    def both():
        for writer in writers:
            writer()

    for _ in range(3):
        writers = [Writer(connection, b"1") for connection in connections]
        run_alone(loop, both)
        assert [writer.seen for writer in writers] == [[b"1"], [b""]]
        assert arrived(writers[1].peer) == b"1"


def test_no_transport_overtakes_one_that_writes_in_parts(loop, connections):
    def both():
        for writer in writers:
            writer()

    write_in_parts(loop, connections[0])
    writers = [Writer(connection, b"1") for connection in connections]
    run_alone(loop, both)
    assert [writer.seen for writer in writers] == [[b""], [b""]]
    assert [arrived(writer.peer) for writer in writers] == [b"1", b"1"]


def test_parts_that_are_too_much_to_be_queued_are_sent_at_once(loop, connections):
    write_in_parts(loop, connections[0])
    connections[0][0].set_write_buffer_limits(high=1)
    assert seen(loop, connections[0], b"1", b"2") == [b"", b"12", b""]


def test_parts_are_sent_before_what_could_show_that_they_were_not(loop, connections):
    transport, peer = connections[0]
    write_in_parts(loop, connections[0])

    def ask():
        transport.write(b"1")
        sizes.append(transport.get_write_buffer_size())

    sizes = []
    run_alone(loop, ask)
    assert sizes == [0]
    assert arrived(peer) == b"1"


HIGH_WATER = 1000
PIECE = bytes(600)


class Flow(asyncio.Protocol):
    """Notes what flow control calls, and in which context. `hook` is called by pause_writing()."""

    def __init__(self, hook=None):
        self.calls = []
        self.hook = hook

    def pause_writing(self):
        self.calls.append(("pause", place.get()))
        if self.hook is not None:
            self.hook()

    def resume_writing(self):
        self.calls.append(("resume", place.get()))

    def connection_lost(self, exc):
        self.calls.append(("lost", exc))


place = contextvars.ContextVar("place", default="elsewhere")


def connect(loop, sock, protocol):
    transport, _ = loop.run_until_complete(loop.create_connection(lambda: protocol, sock=sock))
    transport.set_write_buffer_limits(high=HIGH_WATER)
    return transport


def read_all(peer):
    data = b""
    while part := arrived(peer, 1 << 14):
        data += part
    return data


def read_to(loop, peer, end):
    """What a peer reads while the loop runs, until that ends so."""
    data = b""
    for _ in range(1000):
        run_alone(loop)
        data += read_all(peer)
        if data.endswith(end):
            break
    return data


def sends(loop, transport, peer, pieces, pause=0.0):
    """How many pieces each send within write() has that a callback writes. The peer reads them."""
    counts = [0]

    def write():
        for _ in range(pieces):
            if pause:
                time.sleep(pause)
            transport.write(PIECE)
            counts[-1] += 1
            if data := read_all(peer):
                assert len(data) == counts[-1] * len(PIECE)
                counts.append(0)

    run_alone(loop, int, int, write)
    read_all(peer)
    return counts[:-1]


def collect_more(loop, transport, peer):
    """Until write() collects as much as it ever does: a pause of the machine begins anew."""
    for _ in range(50):
        if sends(loop, transport, peer, 60)[-1] == 14:
            return
    pytest.fail("write() never collects more")


def test_more_is_collected_each_time_the_socket_takes_it(loop, pair):
    transport = connect(loop, pair[0], Flow())
    for _ in range(50):
        counts = sends(loop, transport, pair[1], 2 + 2 + 4 + 7 + 14 + 14)
        if counts == [2, 2, 4, 7, 14, 14]:
            break
        # Some pieces took more than a millisecond, or the last time's are remembered.
        sends(loop, transport, pair[1], 2, pause=0.01)
    else:
        pytest.fail(f"the last time, sends were of {counts} pieces")
    transport.abort()
    run_alone(loop)


def test_what_is_written_slowly_is_not_collected(loop, pair):
    transport = connect(loop, pair[0], Flow())
    assert sends(loop, transport, pair[1], 10, pause=0.002) == [2] * 5
    collect_more(loop, transport, pair[1])
    assert sends(loop, transport, pair[1], 30, pause=0.002)[1:] == [2] * 8
    transport.abort()
    run_alone(loop)


def test_nothing_is_collected_if_the_high_water_mark_is_0(loop, pair):
    transport = connect(loop, pair[0], Flow())
    transport.set_write_buffer_limits(high=0)
    assert sends(loop, transport, pair[1], 20) == [1] * 20
    transport.abort()
    run_alone(loop)


@pytest.mark.parametrize("asks", [False, True], ids=["end of iteration", "get_write_buffer_size"])
def test_a_protocol_is_paused_when_what_was_collected_cannot_be_sent(loop, pair, asks):
    ours, peer = pair
    with ours.dup() as other:
        protocol = Flow()
        opened = contextvars.copy_context()
        opened.run(place.set, "connection")
        transport = opened.run(connect, loop, ours, protocol)
        collect_more(loop, transport, peer)
        fill(other)
        seen = []

        def write():
            place.set("writer")
            transport.write(b"y" * 5000)
            seen.append(list(protocol.calls))
            if asks:
                assert transport.get_write_buffer_size() == 5000
                seen.append(list(protocol.calls))

        run_alone(loop, int, int, write)
        assert seen == ([[], [("pause", "writer")]] if asks else [[]])
        assert [call for call, _ in protocol.calls] == ["pause"]
        assert asks or protocol.calls == [("pause", "connection")]
        data = read_to(loop, peer, b"y" * 5000)
        assert data.strip(b"x") == b"y" * 5000
        run_alone(loop)
        assert [call for call, _ in protocol.calls] == ["pause", "resume"]
        # A socket that took no more is written to in smaller pieces.
        assert sends(loop, transport, peer, 2) == [2]
        transport.abort()
        run_alone(loop)


@helpers.over_tcp
@pytest.mark.parametrize("kept", [0, 1 << 20])
def test_a_coroutine_that_writes_and_drains_learns_of_a_reset(loop, pair, kept):
    ours, peer = pair

    def read_and_reset():
        peer.setblocking(True)
        left = kept
        while left > 0:
            left -= len(peer.recv(1 << 16))
        reset(peer)

    async def write_on(writer):
        for _ in range(10_000):
            writer.write(bytes(1 << 16))
            await writer.drain()

    async def write():
        _, writer = await asyncio.open_connection(sock=ours)
        resetting = loop.run_in_executor(None, read_and_reset)
        try:
            with pytest.raises(ConnectionError):
                await write_on(writer)
        finally:
            writer.transport.abort()
            await resetting

    loop.run_until_complete(asyncio.wait_for(write(), 20))


def test_what_was_collected_is_sent_once_if_the_process_forks(loop, pair):
    ours, peer = pair
    with ours.dup() as other:
        protocol = Flow()
        transport = connect(loop, ours, protocol)
        collect_more(loop, transport, peer)
        fill(other)

        def write_and_fork():
            transport.write(b"y" * 5000)
            child = os.fork()
            if child == 0:
                try:
                    transport.write(b"z")
                finally:
                    # What its parent has queued is not the child's.
                    os._exit(transport.get_write_buffer_size() > 1)
            assert os.waitpid(child, 0) == (child, 0)

        run_alone(loop, int, int, write_and_fork)
        data = read_to(loop, peer, b"y" * 5000)
        run_alone(loop)
        assert data.strip(b"x") == b"y" * 5000
        assert [call for call, _ in protocol.calls] == ["pause", "resume"]
        transport.abort()
        run_alone(loop)


@pytest.mark.parametrize("hook", ["raises", "aborts", "writes", "writes to another", "stops", "exits"])
def test_a_protocol_that_is_paused_at_the_end_of_an_iteration_can_do_anything(loop, connections, pair, hook):
    (transport, peer), (other, other_peer) = connections
    protocol = Flow()
    transport.set_protocol(protocol)
    transport.set_write_buffer_limits(high=HIGH_WATER)
    collect_more(loop, transport, peer)
    reports = []
    loop.set_exception_handler(lambda loop, context: reports.append(context["message"]))

    def raises():
        raise ValueError("no pause")

    def exits():
        raise SystemExit(3)

    protocol.hook = {
        "raises": raises,
        "aborts": transport.abort,
        "writes": lambda: transport.write(b"more"),
        "writes to another": lambda: other.write(b"more"),
        "stops": loop.stop,
        "exits": exits,
    }[hook]
    fill(pair[0])
    ends = pytest.raises(SystemExit) if hook == "exits" else contextlib.nullcontext()
    with ends:
        run_alone(loop, int, int, lambda: transport.write(b"y" * 5000))
    assert protocol.calls == [("pause", "elsewhere")]
    assert reports == (["protocol.pause_writing() failed"] if hook == "raises" else [])
    assert arrived(other_peer) == (b"more" if hook == "writes to another" else b"")
    data = b""
    for _ in range(100):
        run_alone(loop)
        data += read_all(peer)
    if hook == "aborts":
        assert protocol.calls[1:] == [("lost", None)]
        assert b"y" not in data
    else:
        assert protocol.calls[1:] == [("resume", "elsewhere")]
        assert data.strip(b"x") == b"y" * 5000 + (b"more" if hook == "writes" else b"")
