"""What interrupts a message that a transport writes in parts, after others that it has written so."""

import asyncio
import gc
import os

import helpers
import pytest
from helpers import Recorder, run_alone


@pytest.fixture
def connection(loop, pair):
    """A transport's protocol and its peer. The transport has written its messages in two parts so far."""
    ours, peer = pair
    peer.settimeout(5)
    transport, protocol = loop.run_until_complete(loop.create_connection(Recorder, sock=ours))
    for _ in range(3):
        run_alone(loop, lambda: (transport.write(b"head "), transport.write(b"body")))
        assert read(peer, 9) == b"head body"
    yield protocol, peer
    if not loop.is_closed():
        transport.abort()
        run_alone(loop)


def read(peer, size):
    data = b""
    while len(data) < size and (piece := peer.recv(size - len(data))):
        data += piece
    return data


def test_a_peer_that_resets_between_the_parts(loop, connection):
    protocol, peer = connection

    def write():
        protocol.transport.write(b"head ")
        helpers.reset(peer)
        protocol.transport.write(b"body")

    run_alone(loop, write)
    assert isinstance(loop.run_until_complete(protocol.lost()), OSError)


def test_a_callback_that_fails_after_the_parts(loop, connection, reports):
    protocol, peer = connection

    def write():
        protocol.transport.write(b"head ")
        protocol.transport.write(b"body")
        raise ValueError

    run_alone(loop, write)
    assert read(peer, 9) == b"head body"
    assert isinstance(reports.take()["exception"], ValueError)


def test_a_callback_that_leaves_the_loop_after_the_parts(loop, connection):
    protocol, peer = connection

    def write():
        protocol.transport.write(b"head ")
        protocol.transport.write(b"body")
        protocol.transport.close()
        raise SystemExit

    with pytest.raises(SystemExit):
        run_alone(loop, write)
    assert loop.run_until_complete(protocol.lost()) is None
    assert read(peer, 10) == b"head body"


def test_a_fork_between_the_parts(loop, connection):
    protocol, peer = connection

    def write():
        protocol.transport.write(b"head ")
        child = os.fork()
        if child == 0:
            gc.collect()
            os._exit(0)
        os.waitpid(child, 0)
        protocol.transport.write(b"body")
        protocol.transport.close()

    run_alone(loop, write)
    assert loop.run_until_complete(protocol.lost()) is None
    assert read(peer, 10) == b"head body"


def test_a_loop_that_is_closed_after_the_parts(loop, connection):
    protocol, peer = connection
    run_alone(loop, lambda: (protocol.transport.write(b"head "), protocol.transport.write(b"body")))
    protocol.transport.abort()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert read(peer, 10) == b"head body"
