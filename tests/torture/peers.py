"""Peers that end a connection at a chosen moment, and what must hold for every connection afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

import helpers

# The states of a TCP socket, as the kernel's tcp_states.h numbers them.
TCP_CLOSE, TCP_CLOSE_WAIT, TCP_LAST_ACK, TCP_CLOSING, TCP_TIME_WAIT = 7, 8, 9, 11, 6
ENDED = {TCP_CLOSE, TCP_CLOSE_WAIT, TCP_LAST_ACK, TCP_CLOSING, TCP_TIME_WAIT}
# Long enough for a poll, however busy the machine is: what is ready comes before a timer that is due.
A_POLL = 0.002


def has_ended(sock):
    """Whether the kernel knows that the peer of a socket has reset it, or sends no more."""
    try:
        if sock.family == socket.AF_UNIX:
            return True
        return struct.unpack("B", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1))[0] in ENDED
    except OSError:
        # The transport has noticed, and closed it.
        return True


async def end_arrives(sock):
    """Wait until the end of a connection is in the kernel, and the loop has polled since."""
    await helpers.until(lambda: has_ended(sock))
    await asyncio.sleep(A_POLL)


def check_life(protocol):
    """connection_made first, connection_lost last, each once."""
    calls = protocol.calls
    assert calls[0] == "connection_made", calls
    assert calls[-1] == "connection_lost", calls
    assert calls.count("connection_made") == calls.count("connection_lost") == 1, calls


def same_on_each_loop(function):
    """The result of a coroutine function of a loop: the same on each, with no report, no descriptor left."""
    before = helpers.open_descriptors()
    seen = {}
    for name, make_loop in helpers.FACTORIES.items():
        loop = make_loop()
        reports = helpers.Reports()
        loop.set_exception_handler(reports.handler)
        try:
            result = loop.run_until_complete(function(loop))
            loop.run_until_complete(check_loop())
        finally:
            helpers.close_loop(loop)
        seen[name] = result, [(report["message"], type(report["exception"])) for report in reports]
    assert all(one == other for one in seen.values() for other in seen.values()), seen
    assert not helpers.opened_since(before)
    return result


def kind_of(exception):
    """The class and number of an exception, for comparison."""
    return type(exception).__name__, getattr(exception, "errno", None)


async def check_loop():
    """A loop that has survived: timers, other threads and sockets still work."""
    loop = asyncio.get_running_loop()
    ours, peer = socket.socketpair()
    with ours, peer:
        ours.setblocking(False)
        peer.send(b"alive")
        assert await asyncio.wait_for(loop.sock_recv(ours, 10), 10) == b"alive"
    assert await loop.run_in_executor(None, int, "42") == 42
    await asyncio.sleep(0.001)


# --- What a connection does when its peer goes ---


async def _blocked(protocol, peer):
    protocol.transport.write(helpers.TOO_MUCH)
    assert protocol.calls[-1] == "pause_writing"


async def connected(protocol, peer):
    """Nothing was said."""


async def partly_read(protocol, peer):
    peer.send(b"some")
    await protocol.received(4)


async def unread(protocol, peer):
    protocol.transport.pause_reading()
    peer.send(b"some")
    await asyncio.sleep(A_POLL)


async def paused(protocol, peer):
    protocol.transport.pause_reading()
    await asyncio.sleep(A_POLL)


async def blocked(protocol, peer):
    await _blocked(protocol, peer)


async def blocked_and_paused(protocol, peer):
    protocol.transport.pause_reading()
    await _blocked(protocol, peer)


async def writing(protocol, peer):
    protocol.transport.write(b"x" * 100)


async def written(protocol, peer):
    protocol.transport.write(b"x" * 100)
    await asyncio.sleep(A_POLL)


async def after_write_eof(protocol, peer):
    protocol.transport.write_eof()
    await asyncio.sleep(A_POLL)


async def blocked_before_write_eof(protocol, peer):
    await _blocked(protocol, peer)
    protocol.transport.write_eof()


async def half_closed(protocol, peer):
    protocol.hooks["eof_received"] = lambda protocol: True
    peer.shutdown(socket.SHUT_WR)
    await protocol.until("eof_received")


async def half_closed_and_blocked(protocol, peer):
    await half_closed(protocol, peer)
    await _blocked(protocol, peer)


async def half_closed_on_both_sides(protocol, peer):
    await half_closed(protocol, peer)
    protocol.transport.write_eof()
    await asyncio.sleep(A_POLL)


async def closing(protocol, peer):
    await _blocked(protocol, peer)
    protocol.transport.close()


async def half_closed_and_closing(protocol, peer):
    await half_closed_and_blocked(protocol, peer)
    protocol.transport.close()


async def closed(protocol, peer):
    protocol.transport.close()


async def aborted(protocol, peer):
    protocol.transport.abort()


STATES = [
    *(connected, partly_read, unread, paused, blocked, blocked_and_paused, writing, written),
    *(after_write_eof, blocked_before_write_eof, half_closed, half_closed_and_blocked),
    *(half_closed_on_both_sides, closing, half_closed_and_closing, closed, aborted),
]


# --- How a peer goes ---


def resets(peer):
    helpers.reset(peer)


def vanishes(peer):
    peer.close()


def shuts_down(peer):
    # The transport may have been faster.
    with contextlib.suppress(OSError):
        peer.shutdown(socket.SHUT_RDWR)


def sends_and_resets(peer):
    with contextlib.suppress(ConnectionError):
        peer.send(b"last")
    helpers.reset(peer)


ENDS = [resets, vanishes, shuts_down, sends_and_resets]


# --- What the program then does, unless the connection is lost already ---


async def resumes(protocol):
    protocol.transport.resume_reading()


async def writes(protocol):
    # The first write after a reset may be the one that the error is for.
    for _ in range(3):
        protocol.transport.write(b"x")
        await asyncio.sleep(A_POLL)


async def writes_eof(protocol):
    protocol.transport.write_eof()


async def closes(protocol):
    protocol.transport.close()


async def aborts(protocol):
    protocol.transport.abort()


REACTIONS = [resumes, writes, writes_eof, closes, aborts]


async def live(make, protocol, peer, ours, state, end, reaction):
    """One connection from beginning to end; what the protocol saw of it, for comparison.

    *make* gives the protocol its transport.
    """
    await make(protocol)
    await state(protocol, peer)
    end(peer)
    await end_arrives(ours)
    stays, raised = False, None
    if "connection_lost" not in protocol.calls:
        try:
            await reaction(protocol)
        except (OSError, RuntimeError) as error:
            raised = kind_of(error)
        await asyncio.sleep(A_POLL)
        stays = "connection_lost" not in protocol.calls
        if stays:
            # Nothing tells of the peer: the program has to end it.
            protocol.transport.abort()
        await protocol.lost()
    peer.close()
    await asyncio.sleep(A_POLL)
    check_life(protocol)
    return bytes(protocol.data), kind_of(protocol.exception), stays, raised
