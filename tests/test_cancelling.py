"""Cancelling sock_recv, sock_sendall, sock_connect, sock_accept and their siblings, at any point."""

import asyncio
import os
import socket

import helpers
import pytest


@pytest.fixture
def listening():
    with helpers.listener() as sock:
        yield sock


CALLS = {
    "sock_recv": lambda loop, sock: loop.sock_recv(sock, 10),
    "sock_recv_into": lambda loop, sock: loop.sock_recv_into(sock, bytearray(10)),
    "sock_recvfrom": lambda loop, sock: loop.sock_recvfrom(sock, 10),
    "sock_recvfrom_into": lambda loop, sock: loop.sock_recvfrom_into(sock, bytearray(10)),
}


@pytest.mark.parametrize("name", ["sock_recv", "sock_recv_into", "sock_recvfrom", "sock_recvfrom_into"])
async def test_a_cancelled_receive_leaves_no_registration_and_no_gap(loop, pair, name):
    ours, peer = pair
    task = loop.create_task(CALLS[name](loop, ours))
    await helpers.iterations(2)
    await helpers.cancel(task)
    await helpers.iterations(2)
    assert loop.remove_reader(ours) is False
    peer.send(b"hello")
    assert await loop.sock_recv(ours, 10) == b"hello"


async def test_a_cancelled_send_leaves_no_registration_and_sends_no_more(loop, pair):
    ours, peer = pair
    data = os.urandom(len(helpers.TOO_MUCH))
    task = loop.create_task(loop.sock_sendall(ours, data))
    await asyncio.sleep(0.005)
    await helpers.cancel(task)
    await helpers.iterations(2)
    assert loop.remove_writer(ours) is False
    ours.shutdown(socket.SHUT_WR)
    got = await helpers.read_to_end(peer)
    assert 0 < len(got) < len(data)
    assert data.startswith(got)


async def test_a_cancelled_accept_leaves_no_registration(loop, listening):
    task = loop.create_task(loop.sock_accept(listening))
    await helpers.iterations(2)
    await helpers.cancel(task)
    await helpers.iterations(2)
    assert loop.remove_reader(listening) is False
    with socket.create_connection(listening.getsockname()) as client:
        connection, address = await loop.sock_accept(listening)
        assert address == client.getsockname()
        connection.close()


async def test_a_cancelled_connect_leaves_no_registration(loop):
    server, waiting = helpers.never_answering()
    sock = socket.socket()
    sock.setblocking(False)
    task = loop.create_task(loop.sock_connect(sock, server.getsockname()))
    await asyncio.sleep(0.01)
    assert not task.done()
    await helpers.cancel(task)
    await helpers.iterations(2)
    assert loop.remove_writer(sock) is False
    for each in (sock, server, *waiting):
        each.close()


async def test_a_timed_out_receive_can_be_repeated(loop, pair):
    ours, peer = pair
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.002):
                await loop.sock_recv(ours, 10)
    peer.send(b"hello")
    assert await loop.sock_recv(ours, 10) == b"hello"


async def test_closing_the_socket_after_cancelling_in_the_same_iteration(loop):
    """The registration goes before the number can come back."""
    ours, peer = helpers.unix_pair()
    task = loop.create_task(loop.sock_recv(ours, 10))
    await helpers.iterations(2)
    task.cancel()
    ours.close()
    new, new_peer = helpers.unix_pair()
    await helpers.iterations(3)
    new_peer.send(b"x")
    assert await loop.sock_recv(new, 10) == b"x"
    for sock in (peer, new, new_peer):
        sock.close()


@pytest.mark.hotloop_only
@pytest.mark.parametrize("steps", range(8))
@pytest.mark.parametrize("name", ["sock_recv", "sock_recv_into", "sock_recvfrom"])
async def test_cancelling_a_receive_never_loses_data(loop, pair, name, steps):
    """Also between the arrival of the data and the task's next step, where asyncio drops what it has read."""
    ours, peer = pair
    got = bytearray()

    async def receive():
        if name == "sock_recv":
            got.extend(await loop.sock_recv(ours, 10))
        elif name == "sock_recvfrom":
            got.extend((await loop.sock_recvfrom(ours, 10))[0])
        else:
            buffer = bytearray(10)
            count = await loop.sock_recv_into(ours, buffer)
            got.extend(buffer[:count])

    task = loop.create_task(receive())
    await helpers.iterations(2)
    peer.send(b"hello")
    await helpers.iterations(steps)
    task.cancel()
    await asyncio.wait([task])
    await helpers.iterations(2)
    assert loop.remove_reader(ours) is False
    if not got:
        assert task.cancelled()
        got += await loop.sock_recv(ours, 10)
    assert got == b"hello"


@pytest.mark.hotloop_only
@pytest.mark.parametrize("steps", range(8))
async def test_cancelling_an_accept_never_loses_a_connection(loop, listening, steps):
    async def accept():
        connection, _ = await loop.sock_accept(listening)
        return connection

    task = loop.create_task(accept())
    await helpers.iterations(2)
    with socket.create_connection(listening.getsockname()) as client:
        await helpers.iterations(steps)
        task.cancel()
        await asyncio.wait([task])
        if task.cancelled():
            connection = await accept()
        else:
            connection = task.result()
        with connection:
            client.sendall(b"hello")
            assert await loop.sock_recv(connection, 10) == b"hello"


@pytest.mark.hotloop_only
@pytest.mark.parametrize("steps", range(6))
async def test_cancelling_a_receive_whose_data_comes_in_the_same_iteration(loop, pair, steps):
    """The cancellation comes from a callback that runs after the data's event, before the task."""
    ours, peer = pair
    other, other_peer = helpers.unix_pair()
    task = loop.create_task(loop.sock_recv(ours, 10))
    await helpers.iterations(2)

    def cancel():
        loop.remove_reader(other)
        helper = loop.create_task(helpers.iterations(steps))
        helper.add_done_callback(lambda _: task.cancel())

    loop.add_reader(other, cancel)
    peer.send(b"hello")
    other_peer.send(b"x")
    await asyncio.wait([task])
    got = await loop.sock_recv(ours, 10) if task.cancelled() else task.result()
    assert got == b"hello"
    other.close()
    other_peer.close()
