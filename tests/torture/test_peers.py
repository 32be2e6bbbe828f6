"""Peers of streams that reset, vanish or shut down in every state of a transport."""

import asyncio
import socket

import helpers
import pytest
from helpers import BufferedRecorder, Recorder

from torture import peers
from torture.effort import FULL, effort, seeded


def _live_on(make_loop, kind, recorder, state, end, reaction):
    ours, peer = helpers.PAIRS[kind]()

    async def main():
        loop = asyncio.get_running_loop()

        async def make(protocol):
            await loop.create_connection(lambda: protocol, sock=ours)

        seen = await peers.live(make, recorder(), peer, ours, state, end, reaction)
        await peers.check_loop()
        return seen

    loop = make_loop()
    reports = helpers.Reports()
    loop.set_exception_handler(reports.handler)
    try:
        seen = loop.run_until_complete(main())
    finally:
        helpers.close_loop(loop)
        ours.close()
        peer.close()
    return seen, [report["message"] for report in reports]


def _rows():
    for kind in helpers.PAIRS:
        for end in peers.ENDS:
            # A reset is TCP's.
            if kind == "tcp" or end in (peers.vanishes, peers.shuts_down):
                for state in peers.STATES:
                    yield pytest.param(kind, end, state, id=f"{kind}-{state.__name__}-{end.__name__}")


@pytest.mark.parametrize(("kind", "end", "state"), list(_rows()))
def test_a_peer_ends_the_connection(kind, end, state):
    """hotloop's protocols see what asyncio's do: the data, the exception, whether anything is noticed."""
    rows = [(recorder, reaction) for recorder in (Recorder, BufferedRecorder) for reaction in peers.REACTIONS]
    if not FULL:
        rows = seeded(f"{kind} {end.__name__} {state.__name__}").sample(rows, 2)
    before = helpers.open_descriptors()
    for recorder, reaction in rows:
        case = kind, recorder, state, end, reaction
        seen = {name: _live_on(make_loop, *case) for name, make_loop in helpers.FACTORIES.items()}
        # What was written in this iteration has not been sent when the peer goes: asyncio sends it at once.
        if state is not peers.writing and len(seen) > 1:
            assert seen["hotloop"] == seen["asyncio"], case
        for name, (_, reports) in seen.items():
            assert not reports, (name, case)
    assert not helpers.opened_since(before)


async def test_a_peer_that_goes_during_sendfile(loop, pair, kind, reports, tmp_path):
    """Native and not: the caller gets the error, the protocol loses its connection once."""
    path = tmp_path / "file"
    path.write_bytes(helpers.TOO_MUCH)
    ours, peer = pair
    protocol = Recorder()
    await loop.create_connection(lambda: protocol, sock=ours)
    with path.open("rb") as file:
        sending = asyncio.ensure_future(loop.sendfile(protocol.transport, file))
        # Wait for some of it to be there.
        await loop.sock_recv(peer, 1)
        if kind == "tcp":
            helpers.reset(peer)
        else:
            peer.close()
        with pytest.raises((ConnectionError, OSError)):
            await asyncio.wait_for(sending, 20)
    protocol.transport.abort()
    await protocol.lost()
    peers.check_life(protocol)
    await peers.check_loop()


async def test_bytes_one_by_one(loop, attach, reports):
    """And each is answered: nothing is lost, in either direction."""
    count = int(effort(500, 20_000))
    protocol, peer = await attach(Recorder(data_received=lambda p, data: p.transport.write(data)))
    data = seeded("bytes").randbytes(count)
    answers = bytearray()
    for byte in data:
        await loop.sock_sendall(peer, bytes([byte]))
        while len(answers) < len(protocol.data):
            answers += await loop.sock_recv(peer, 100)
    while len(answers) < count:
        answers += await loop.sock_recv(peer, 100)
    assert protocol.data == answers == data
    peer.close()
    await protocol.lost()
    peers.check_life(protocol)


async def test_urgent_data(loop, reports):
    """Urgent data is no data: the stream around it arrives, and the loop rests while some lies there."""
    ours, peer = helpers.tcp_pair()
    protocol = Recorder(eof_received=lambda protocol: True)
    await loop.create_connection(lambda: protocol, sock=ours)
    with peer:
        for number in range(int(effort(50, 2000))):
            if number % 10 == 5:
                protocol.transport.pause_reading()
            peer.send(b"!", socket.MSG_OOB)
            await asyncio.sleep(0)
            peer.send(b".")
            if number % 10 == 5:
                await asyncio.sleep(0.001)
                protocol.transport.resume_reading()
            await protocol.received(number + 1)
        peer.send(b"!", socket.MSG_OOB)
        async with helpers.idle():
            pass
        assert set(protocol.data) == {ord(".")}
        helpers.reset(peer)
    assert isinstance(await protocol.lost(), ConnectionResetError)
    peers.check_life(protocol)


async def test_many_slow_readers(loop, reports):
    """Connections by the hundred whose peers read nothing until the end: each keeps what was written."""
    count = int(effort(100, 1500))
    size = 400_000
    protocols, others = [], []
    for _ in range(count):
        ours, peer = helpers.unix_pair()
        protocol = Recorder()
        await loop.create_connection(lambda protocol=protocol: protocol, sock=ours)
        protocol.transport.write(b"x" * size)
        protocols.append(protocol)
        others.append(peer)
    await asyncio.sleep(peers.A_POLL)
    assert all(protocol.transport.get_write_buffer_size() > 0 for protocol in protocols)
    async with helpers.idle():
        pass
    random = seeded("slow readers")
    ends = {True: 0, False: 0}
    for protocol, peer in zip(protocols, others, strict=True):
        reads = random.random() < 0.5
        ends[reads] += 1
        protocol.transport.close()
        if reads:
            assert len(await helpers.read_to_end(peer)) == size
        peer.close()
        assert isinstance(await protocol.lost(), type(None) if reads else ConnectionError)
        peers.check_life(protocol)
    assert all(ends.values())
    await peers.check_loop()


async def test_half_closes_at_random(loop, reports):
    """Each side closes its half, or all of it, when it likes: what was sent before arrives, and it ends."""
    random = seeded("half-closes")

    async def connection():
        ours, peer = helpers.tcp_pair()
        keeps = random.random() < 0.5
        protocol = Recorder(eof_received=lambda protocol: keeps)
        await loop.create_connection(lambda: protocol, sock=ours)
        sent = random.randbytes(random.randrange(100_000))
        said = random.randbytes(random.randrange(100_000))
        order = random.random()
        with peer:
            if order < 0.5:
                protocol.transport.write(sent)
                protocol.transport.write_eof()
            receiving = asyncio.ensure_future(helpers.read_to_end(peer))
            await loop.sock_sendall(peer, said)
            peer.shutdown(socket.SHUT_WR)
            await protocol.until("eof_received")
            assert bytes(protocol.data) == said
            if order >= 0.5 and keeps:
                protocol.transport.write(sent)
                protocol.transport.close()
            elif keeps:
                protocol.transport.close()
            if order < 0.5 or keeps:
                assert await receiving == sent
            else:
                assert await receiving == b""
            assert await protocol.lost() is None
        peers.check_life(protocol)

    for _ in range(int(effort(5, 400))):
        await asyncio.gather(*(connection() for _ in range(10)))
    await peers.check_loop()
