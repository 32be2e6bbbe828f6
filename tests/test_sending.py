"""Which writes a stream transport sends within write(), and which at the end of the iteration.

Both are right to a program; they decide how soon a peer can begin, and how many system calls a message
takes."""

import asyncio
import contextlib
import socket
import time

import pytest
from helpers import run_alone

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


def arrived(peer):
    try:
        return peer.recv(100)
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
