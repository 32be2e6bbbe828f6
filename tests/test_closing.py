"""How a connection ends: close, abort, a peer that goes; and callbacks that close, stop, leave or fail."""

import asyncio
import contextlib
import socket

import helpers
import pytest
from helpers import BufferedRecorder, Recorder, read_exactly

CALLBACKS = [
    "connection_made",
    "data_received",
    "eof_received",
    "get_buffer",
    "buffer_updated",
    "pause_writing",
    "resume_writing",
    "connection_lost",
]


def but(exception, mark):
    """The callbacks' names, one of them with a mark."""
    return [pytest.param(name, marks=mark) if name == exception else name for name in CALLBACKS]


def protocol_with(name, hook):
    """A protocol whose callback of that name runs the hook, the first time it is called."""

    def once(protocol, *args):
        del protocol.hooks[name]
        return hook(protocol, *args)

    return (BufferedRecorder if name in ("get_buffer", "buffer_updated") else Recorder)(**{name: once})


async def provoke(protocol, peer, name):
    """Make the callback of that name be called."""
    if name in ("data_received", "get_buffer", "buffer_updated"):
        peer.send(b"x")
    elif name == "eof_received":
        peer.shutdown(socket.SHUT_WR)
    elif name == "connection_lost":
        protocol.transport.close()
    elif name in ("pause_writing", "resume_writing"):
        protocol.transport.write(helpers.TOO_MUCH)
    if name == "resume_writing":
        with contextlib.suppress(ConnectionError):
            while name not in protocol.calls and await asyncio.get_running_loop().sock_recv(peer, 1 << 20):
                pass
    await protocol.until(name)


# close


async def test_close_tells_the_protocol_and_the_peer(attach):
    protocol, peer = await attach(Recorder())
    protocol.transport.close()
    assert protocol.transport.is_closing()
    assert not protocol.transport.is_reading()
    assert protocol.calls == ["connection_made"]  # connection_lost comes later
    protocol.transport.close()
    assert await protocol.lost() is None
    assert await helpers.read_to_end(peer) == b""
    protocol.transport.close()
    protocol.transport.abort()
    await helpers.iterations(3)
    assert protocol.calls == ["connection_made", "connection_lost"]


async def test_close_sends_what_was_written(attach):
    protocol, peer = await attach(Recorder())
    protocol.transport.write(b"hel")
    protocol.transport.writelines([b"l", b"o"])
    protocol.transport.close()
    assert await helpers.read_to_end(peer) == b"hello"
    assert await protocol.lost() is None


async def test_close_sends_what_has_to_wait(attach):
    protocol, peer = await attach(Recorder())
    protocol.transport.write(helpers.TOO_MUCH)
    protocol.transport.close()
    await asyncio.sleep(0.005)
    assert "connection_lost" not in protocol.calls
    assert len(await helpers.read_to_end(peer)) == len(helpers.TOO_MUCH)
    assert await protocol.lost() is None


async def test_nothing_is_received_after_close(attach):
    protocol, peer = await attach(Recorder())
    peer.send(b"late")
    protocol.transport.close()
    await protocol.lost()
    assert protocol.data == b""
    assert protocol.calls == ["connection_made", "connection_lost"]


async def test_nothing_is_received_while_a_closed_transport_drains(attach):
    protocol, peer = await attach(Recorder())
    protocol.transport.write(helpers.TOO_MUCH)
    protocol.transport.close()
    peer.send(b"late")
    await asyncio.sleep(0.005)
    with contextlib.suppress(ConnectionResetError):  # it closes with our b"late" unread
        await helpers.read_to_end(peer)
    await protocol.lost()
    assert protocol.data == b""


async def test_what_is_written_after_close_is_dropped(attach, logged):
    protocol, peer = await attach(Recorder())
    protocol.transport.write(b"in time")
    protocol.transport.close()
    protocol.transport.write(b"too late")
    assert await helpers.read_to_end(peer) == b"in time"
    assert await protocol.lost() is None
    assert logged() == []


async def test_writing_again_and_again_after_close_is_warned_of(attach, logged):
    protocol, _peer = await attach(Recorder())
    protocol.transport.close()
    for _ in range(4):
        protocol.transport.write(b"x")
    assert logged() == []
    protocol.transport.write(b"")
    assert logged() == []
    protocol.transport.write(b"x")
    assert logged() == ["socket.send() raised exception."]
    await protocol.lost()
    protocol.transport.write(b"x")
    assert logged() == ["socket.send() raised exception."] * 2


@pytest.mark.asyncio_bug("writelines() called a method that close() had taken away", (3, 12), (3, 13))
async def test_lines_written_after_close_are_dropped(attach):
    protocol, peer = await attach(Recorder())
    protocol.transport.close()
    protocol.transport.writelines([b"too", b"late"])
    assert await helpers.read_to_end(peer) == b""
    await protocol.lost()
    protocol.transport.writelines([b"too", b"late"])


async def test_wrong_types_are_refused_after_close_too(attach):
    protocol, _peer = await attach(Recorder())
    protocol.transport.close()
    with pytest.raises(TypeError):
        protocol.transport.write("text")
    await protocol.lost()


# abort


async def test_abort_drops_what_has_to_wait(attach):
    protocol, peer = await attach(Recorder())
    protocol.transport.write(helpers.TOO_MUCH)
    assert protocol.transport.get_write_buffer_size() > 0
    protocol.transport.abort()
    assert protocol.transport.is_closing()
    assert protocol.transport.get_write_buffer_size() == 0
    assert await protocol.lost() is None
    assert len(await helpers.read_to_end(peer)) < len(helpers.TOO_MUCH)
    assert protocol.calls == ["connection_made", "pause_writing", "connection_lost"]


async def test_abort_keeps_what_the_socket_takes_at_once(attach):
    """asyncio has sent it by then."""
    protocol, peer = await attach(Recorder())
    protocol.transport.write(b"hello")
    protocol.transport.abort()
    assert await helpers.read_to_end(peer) == b"hello"
    assert await protocol.lost() is None


async def test_abort_after_close(attach):
    protocol, _peer = await attach(Recorder())
    protocol.transport.write(helpers.TOO_MUCH)
    protocol.transport.close()
    await asyncio.sleep(0.001)
    protocol.transport.abort()
    assert await protocol.lost() is None
    await helpers.iterations(3)
    assert protocol.calls.count("connection_lost") == 1


# The peer goes


@helpers.over_tcp
async def test_a_reset_is_the_exception_of_connection_lost(attach):
    protocol, peer = await attach(Recorder())
    helpers.reset(peer)
    assert isinstance(await protocol.lost(), ConnectionResetError)
    assert protocol.calls == ["connection_made", "connection_lost"]


@helpers.over_tcp
async def test_a_reset_while_writing(attach):
    protocol, peer = await attach(Recorder())
    protocol.transport.write(helpers.TOO_MUCH)
    helpers.reset(peer)
    assert isinstance(await protocol.lost(), (ConnectionResetError, BrokenPipeError))
    assert protocol.calls == ["connection_made", "pause_writing", "connection_lost"]
    assert protocol.transport.get_write_buffer_size() == 0


@helpers.over_tcp
@pytest.mark.parametrize("kind_of_protocol", [Recorder, BufferedRecorder])
async def test_a_reset_of_one_that_another_connection_has_just_written_to(attach, kind_of_protocol):
    protocol, peer = await attach(kind_of_protocol())
    _, talking_peer = await attach(Recorder(data_received=lambda _, data: protocol.transport.write(data)))
    talking_peer.send(b"hello")
    helpers.reset(peer)
    assert isinstance(await protocol.lost(), ConnectionResetError)
    assert protocol.data == b""


@helpers.over_tcp
async def test_a_write_after_the_data_before_a_reset(attach):
    """However much data there is: the reset may have been seen with it."""
    for size in range(1200, 1400, 8):
        protocol, peer = await attach(
            Recorder(data_received=lambda protocol, data: protocol.transport.write(data))
        )
        for _ in range(2):
            peer.send(bytes(1000))
            await read_exactly(peer, 1000)
        peer.send(bytes(size))
        helpers.reset(peer)
        assert isinstance(await protocol.lost(), ConnectionResetError), size
        assert len(protocol.data) == 2000 + size


@helpers.over_tcp
async def test_a_reset_while_reading_is_paused_costs_no_time(attach):
    """It is seen at the next read or write; until then the loop sleeps."""
    protocol, peer = await attach(Recorder())
    protocol.transport.pause_reading()
    helpers.reset(peer)
    async with helpers.idle():
        pass
    assert protocol.calls == ["connection_made"]
    protocol.transport.resume_reading()
    assert isinstance(await protocol.lost(), ConnectionResetError)


@helpers.over_tcp
async def test_urgent_data_costs_no_time(attach):
    protocol, peer = await attach(Recorder())
    peer.send(b"!", socket.MSG_OOB)
    async with helpers.idle():
        pass
    peer.send(b"hello")
    assert await protocol.received(5) == b"hello"


async def test_a_copy_of_the_socket_does_not_keep_the_loop_awake(attach):
    protocol, peer = await attach(Recorder())
    copy = protocol.transport.get_extra_info("socket").dup()
    protocol.transport.close()
    await protocol.lost()
    peer.send(b"x")
    async with helpers.idle():
        pass
    assert protocol.data == b""
    copy.close()


async def test_data_that_came_before_the_end_is_received(loop, attach):
    protocol, peer = await attach(Recorder())
    data = bytes(1 << 20)
    await loop.sock_sendall(peer, data)
    peer.close()
    assert await protocol.lost() is None
    assert len(protocol.data) == len(data)


# Callbacks that close, abort or stop


@pytest.mark.parametrize(
    "name",
    but(
        "resume_writing",
        pytest.mark.asyncio_bug("connection_lost is called twice", (3, 11), (3, 12), (3, 13)),
    ),
)
@pytest.mark.parametrize("action", ["close", "abort"])
async def test_a_callback_that_ends_its_connection(loop, pair, name, action):
    ours, peer = pair
    protocol = protocol_with(name, lambda protocol, *args: getattr(protocol.transport, action)())
    await loop.create_connection(lambda: protocol, sock=ours)
    await provoke(protocol, peer, name)
    while "connection_lost" not in protocol.calls:
        with contextlib.suppress(BlockingIOError):
            peer.recv(1 << 20)
        await asyncio.sleep(0)
    assert protocol.exception is None
    await helpers.iterations(3)
    assert protocol.calls.count("connection_lost") == 1
    assert protocol.calls[-1] == "connection_lost"
    assert ours.fileno() == -1


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_callback_that_stops_the_loop(loop, pair, name):
    ours, peer = pair
    protocol = protocol_with(name, lambda protocol, *args: loop.stop())

    async def main():
        await loop.create_connection(lambda: protocol, sock=ours)
        await provoke(protocol, peer, name)
        return "provoked"

    task = loop.create_task(main())
    loop.run_forever()
    assert name in protocol.calls
    assert loop.run_until_complete(task) == "provoked"
    protocol.transport.abort()
    loop.run_until_complete(protocol.lost())


@pytest.mark.parametrize(
    "name", but("resume_writing", pytest.mark.asyncio_bug("the writer stays, with nothing to write"))
)
@pytest.mark.parametrize("error", [helpers.Leave, helpers.Interrupt])
def test_a_callback_that_leaves_the_loop(loop, pair, name, error):
    """The exception comes out of run_forever, and the loop and the connection can be taken up again."""
    ours, peer = pair

    def leave(protocol, *args):
        raise error

    protocol = protocol_with(name, leave)

    async def main():
        await loop.create_connection(lambda: protocol, sock=ours)
        await provoke(protocol, peer, name)

    task = loop.create_task(main())
    with pytest.raises(error):
        loop.run_until_complete(task)
    assert not loop.is_running()
    if not task.done():
        loop.run_until_complete(asyncio.wait([task], timeout=0.01))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
    if name in ("data_received", "get_buffer"):
        peer.send(b"yz")
        assert loop.run_until_complete(protocol.received(3)) == b"xyz"
    protocol.transport.abort()
    loop.run_until_complete(protocol.lost())
    loop.run_until_complete(helpers.iterations(2))
    assert ours.fileno() == -1
    assert protocol.calls.count("connection_lost") == 1


# Callbacks that fail


@pytest.mark.parametrize("name", ["data_received", "eof_received", "get_buffer", "buffer_updated"])
async def test_a_callback_that_fails_while_receiving_ends_the_connection(loop, pair, reports, name):
    ours, peer = pair
    error = ValueError("broken")

    def fail(protocol, *args):
        raise error

    protocol = protocol_with(name, fail)
    transport, _ = await loop.create_connection(lambda: protocol, sock=ours)
    await provoke(protocol, peer, name)
    assert await protocol.lost() is error
    await helpers.iterations(1)
    report = reports.take()
    assert report["message"] == f"Fatal error: protocol.{name}() call failed."
    assert report["exception"] is error
    assert report["transport"] is transport
    assert report["protocol"] is protocol
    assert ours.fileno() == -1


@pytest.mark.parametrize("name", ["data_received", "eof_received", "buffer_updated"])
async def test_an_os_error_in_a_callback_is_not_reported(loop, pair, name):
    """asyncio cannot tell it from an error of the socket."""
    ours, peer = pair
    error = OSError("broken")

    def fail(protocol, *args):
        raise error

    protocol = protocol_with(name, fail)
    await loop.create_connection(lambda: protocol, sock=ours)
    await provoke(protocol, peer, name)
    assert await protocol.lost() is error


async def test_connection_made_that_fails_is_reported_and_the_connection_stays(loop, pair, reports):
    ours, peer = pair

    def fail(protocol, transport):
        raise ValueError("broken")

    protocol = Recorder(connection_made=fail)
    transport, _ = await loop.create_connection(lambda: protocol, sock=ours)
    assert str(reports.take()["exception"]) == "broken"
    peer.send(b"hello")
    assert await protocol.received(5) == b"hello"
    transport.close()
    await protocol.lost()


async def test_connection_lost_that_fails_is_reported_and_the_socket_closed(loop, pair, reports):
    ours, _peer = pair

    def fail(protocol, exc):
        raise ValueError("broken")

    protocol = Recorder(connection_lost=fail)
    transport, _ = await loop.create_connection(lambda: protocol, sock=ours)
    transport.close()
    await protocol.lost()
    await helpers.iterations(2)
    assert str(reports.take()["exception"]) == "broken"
    assert ours.fileno() == -1


@pytest.mark.parametrize("name", ["pause_writing", "resume_writing"])
async def test_flow_control_that_fails_is_reported_and_the_connection_stays(loop, pair, reports, name):
    ours, peer = pair

    def fail(protocol):
        raise ValueError("broken")

    protocol = protocol_with(name, fail)
    transport, _ = await loop.create_connection(lambda: protocol, sock=ours)
    transport.write(helpers.TOO_MUCH)
    assert len(await helpers.read_exactly(peer, len(helpers.TOO_MUCH))) == len(helpers.TOO_MUCH)
    await protocol.until("resume_writing")
    report = reports.take()
    assert report["message"] == f"protocol.{name}() failed"
    assert report["transport"] is transport
    transport.write(b"more")
    assert await helpers.read_exactly(peer, 4) == b"more"
    transport.close()
    await protocol.lost()


async def test_closing_in_data_received_sends_what_was_written_there(attach):
    def answer(protocol, data):
        protocol.transport.write(b"answer")
        protocol.transport.close()

    protocol, peer = await attach(Recorder(data_received=answer))
    peer.send(b"question")
    assert await helpers.read_to_end(peer) == b"answer"
    assert await protocol.lost() is None
    assert protocol.calls == ["connection_made", "data_received", "connection_lost"]


async def test_a_failure_in_data_received_keeps_what_was_written_there(attach, reports):
    def answer(protocol, data):
        protocol.transport.write(b"answer")
        raise ValueError("broken")

    protocol, peer = await attach(Recorder(data_received=answer))
    peer.send(b"question")
    assert await helpers.read_to_end(peer) == b"answer"
    assert isinstance(await protocol.lost(), ValueError)
    reports.take()


async def test_a_connection_closed_by_another_in_the_same_iteration_receives_nothing(loop, attach):
    """Though its data had been reported to the loop together with that of the other."""
    protocols = []

    def close_others(protocol, data):
        for other in protocols:
            if other is not protocol:
                other.transport.abort()

    peers = []
    for _ in range(5):
        protocol, peer = await attach(Recorder(data_received=close_others))
        protocols.append(protocol)
        peers.append(peer)
    for peer in peers:
        peer.send(b"x")
    await asyncio.sleep(0.01)
    assert sorted(len(protocol.data) for protocol in protocols) == [0, 0, 0, 0, 1]
    assert sum("connection_lost" in protocol.calls for protocol in protocols) == 4
