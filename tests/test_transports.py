"""Stream transports over TCP and Unix sockets: what a protocol sees, and what its peer gets."""

import array
import asyncio
import contextlib
import ctypes
import gc
import mmap
import os
import socket
import threading
import weakref

import helpers
import pytest
from helpers import BufferedRecorder, Recorder


async def test_the_life_of_a_connection(attach):
    protocol, peer = await attach(Recorder())
    assert protocol.calls == ["connection_made"]
    peer.send(b"hello")
    assert await protocol.received(5) == b"hello"
    protocol.transport.write(b"hello yourself")
    assert await helpers.read_exactly(peer, 14) == b"hello yourself"
    peer.close()
    assert await protocol.lost() is None
    assert protocol.calls == ["connection_made", "data_received", "eof_received", "connection_lost"]


async def test_a_transport_is_one_of_asyncios(attach):
    protocol, _ = await attach(Recorder())
    assert isinstance(protocol.transport, asyncio.Transport)
    assert isinstance(protocol.transport, asyncio.ReadTransport)
    assert isinstance(protocol.transport, asyncio.WriteTransport)
    assert protocol.transport.get_protocol() is protocol
    assert protocol.transport.can_write_eof() is True
    assert protocol.transport.is_reading() is True
    assert protocol.transport.is_closing() is False
    assert protocol.transport.max_size == 256 * 1024


async def test_data_received_gets_bytes(attach):
    seen = []
    protocol, peer = await attach(Recorder(data_received=lambda protocol, data: seen.append(type(data))))
    peer.send(b"x")
    await protocol.received(1)
    peer.send(b"x" * 5000)
    await protocol.received(5001)
    assert set(seen) == {bytes}


async def test_a_lot_of_data_both_ways(loop, attach):
    protocol, peer = await attach(
        Recorder(data_received=lambda protocol, data: protocol.transport.write(data))
    )
    data = os.urandom(12 << 20)
    sending = loop.create_task(loop.sock_sendall(peer, data))
    assert await helpers.read_exactly(peer, len(data)) == data
    await sending
    assert protocol.data == data


async def test_connection_made_comes_before_data_that_was_there_first(loop, pair):
    ours, peer = pair
    peer.send(b"early")
    protocol = Recorder()
    await loop.create_connection(lambda: protocol, sock=ours)
    assert await protocol.received(5) == b"early"
    assert protocol.calls[0] == "connection_made"
    protocol.transport.close()
    await protocol.lost()


# Writing


async def test_writes_arrive_in_their_order(attach):
    protocol, peer = await attach(Recorder())
    chunks = [str(n).encode() * (n % 50) for n in range(500)]
    for number, chunk in enumerate(chunks):
        if number % 7:
            protocol.transport.write(chunk)
        else:
            protocol.transport.writelines([chunk[:3], chunk[3:]] if chunk else [])
    expected = b"".join(chunks)
    assert await helpers.read_exactly(peer, len(expected)) == expected


def array_of(data):
    return array.array("b", data)


def map_of(data):
    memory = mmap.mmap(-1, len(data))
    memory.write(data)
    return memory


def characters_of(data):
    return (ctypes.c_char * len(data))(*data)


async def test_any_sort_of_bytes_can_be_written(attach):
    protocol, peer = await attach(Recorder())

    class Bytes(bytes):
        pass

    numbers = array.array("I", [1, 2, 3])
    for data in (
        b"bytes",
        bytearray(b"bytearray"),
        memoryview(b"memoryview")[3:],
        Bytes(b"mine"),
        memoryview(numbers),
    ):
        protocol.transport.write(data)
        expected = bytes(data)
        assert await helpers.read_exactly(peer, len(expected)) == expected


async def test_a_buffer_may_be_changed_as_soon_as_write_returns(attach):
    protocol, peer = await attach(Recorder())
    data = bytearray(b"original")
    protocol.transport.write(data)
    data[:] = b"changed!"
    view = bytearray(b"original")
    protocol.transport.write(memoryview(view)[1:4])
    view[:] = b"changed!"
    chunk = bytearray(b"original")
    protocol.transport.writelines([b"<", chunk, memoryview(chunk), b">"])
    chunk[:] = b"changed!"
    assert await helpers.read_exactly(peer, 29) == b"originalrig<originaloriginal>"


@pytest.mark.hotloop_only
async def test_a_buffer_that_has_to_wait_may_be_changed_too(attach):
    """asyncio keeps a reference to what the socket did not take, and sends what it then finds there."""
    protocol, peer = await attach(Recorder())
    data = bytearray(len(helpers.TOO_MUCH))
    protocol.transport.write(data)
    protocol.transport.write(memoryview(data))
    protocol.transport.writelines([data, memoryview(data)[:100]])
    data[:] = b"x" * len(data)
    data.clear()
    expected = 3 * len(helpers.TOO_MUCH) + 100
    assert await helpers.read_exactly(peer, expected) == bytes(expected)


@pytest.mark.hotloop_only
async def test_a_view_of_wide_items_that_has_to_wait(attach):
    protocol, peer = await attach(Recorder())
    numbers = array.array("Q", range(1 << 20))
    protocol.transport.write(memoryview(numbers))
    assert await helpers.read_exactly(peer, 8 << 20) == numbers.tobytes()


@pytest.mark.parametrize("make", [array_of, map_of, characters_of])
async def test_whatever_has_a_buffer_can_be_a_line(attach, make):
    protocol, peer = await attach(Recorder())
    protocol.transport.writelines([b"<", make(b"data"), b">"])
    protocol.transport.writelines([make(b"more")])
    assert await helpers.read_exactly(peer, 10) == b"<data>more"


async def test_what_is_not_bytes_is_refused(attach):
    protocol, peer = await attach(Recorder())
    for bad in ("text", 42, None, [b"list"], object()):
        with pytest.raises(TypeError):
            protocol.transport.write(bad)
    with pytest.raises(TypeError):
        protocol.transport.writelines(["text"])
    with pytest.raises(TypeError):
        protocol.transport.write()
    protocol.transport.write(b"fine")
    assert await helpers.read_exactly(peer, 4) == b"fine"


async def test_writing_nothing(attach):
    protocol, peer = await attach(Recorder())
    protocol.transport.write(b"")
    protocol.transport.write(bytearray())
    protocol.transport.writelines([])
    assert protocol.transport.get_write_buffer_size() == 0
    protocol.transport.write(b"x")
    assert await helpers.read_exactly(peer, 1) == b"x"


@pytest.mark.asyncio_bug("an empty chunk was never sent, and kept the writer busy", (3, 12), (3, 13))
async def test_empty_chunks_among_lines(attach):
    protocol, peer = await attach(Recorder())
    protocol.transport.writelines([b""])
    protocol.transport.writelines([b"", b"one", b"", b"two", b""])
    assert await helpers.read_exactly(peer, 6) == b"onetwo"
    assert protocol.transport.get_write_buffer_size() == 0
    async with helpers.idle():
        pass


async def test_more_lines_than_one_call_can_send(attach):
    protocol, peer = await attach(Recorder())
    count = 5 * os.sysconf("SC_IOV_MAX") + 3
    lines = [b"%06d" % n for n in range(count)]
    protocol.transport.writelines(lines)
    for line in lines:
        protocol.transport.write(line)
    assert await helpers.read_exactly(peer, 12 * count) == b"".join(lines) * 2


async def test_lines_of_any_iterable(attach):
    protocol, peer = await attach(Recorder())
    protocol.transport.writelines((b"1", b"2"))
    protocol.transport.writelines(b"%d" % n for n in range(3, 6))
    assert await helpers.read_exactly(peer, 5) == b"12345"


@pytest.mark.parametrize("action", ["stop", "leave", "return"])
def test_what_was_written_before_the_loop_stops_is_sent(loop, pair, action):
    ours, peer = pair
    transport, _ = loop.run_until_complete(loop.create_connection(Recorder, sock=ours))

    def last_words():
        transport.write(b"goodbye")
        if action == "leave":
            raise helpers.Leave
        loop.stop()

    async def main():
        transport.write(b"goodbye")

    if action == "return":
        loop.run_until_complete(main())
    else:
        loop.call_soon(last_words)
        with pytest.raises(helpers.Leave) if action == "leave" else contextlib.nullcontext():
            loop.run_forever()
    peer.settimeout(5)
    assert peer.recv(10) == b"goodbye"
    transport.abort()


def test_what_is_written_while_the_loop_does_not_run_is_sent(loop, pair):
    ours, peer = pair
    transport, protocol = loop.run_until_complete(loop.create_connection(Recorder, sock=ours))
    peer.settimeout(5)
    transport.write(b"one")
    assert peer.recv(10) == b"one"
    transport.writelines([b"t", b"wo"])
    assert peer.recv(10) == b"two"
    transport.close()
    loop.run_until_complete(protocol.lost())


# Half-closing


async def test_write_eof(attach):
    protocol, peer = await attach(Recorder())
    protocol.transport.write(b"all of it")
    protocol.transport.write_eof()
    protocol.transport.write_eof()
    assert await helpers.read_to_end(peer) == b"all of it"
    peer.send(b"answer")
    assert await protocol.received(6) == b"answer"
    assert not protocol.transport.is_closing()
    with pytest.raises(RuntimeError, match="Cannot call write\\(\\) after write_eof\\(\\)"):
        protocol.transport.write(b"more")
    with pytest.raises(RuntimeError, match="after write_eof\\(\\)"):
        protocol.transport.writelines([b"more"])
    peer.close()
    assert await protocol.lost() is None


async def test_write_eof_waits_for_what_was_written(attach):
    protocol, peer = await attach(Recorder())
    protocol.transport.write(helpers.TOO_MUCH)
    protocol.transport.write_eof()
    assert len(await helpers.read_to_end(peer)) == len(helpers.TOO_MUCH)
    assert protocol.calls == ["connection_made", "pause_writing", "resume_writing"]
    protocol.transport.close()
    assert await protocol.lost() is None


async def test_write_eof_after_close_does_nothing(attach):
    protocol, peer = await attach(Recorder())
    protocol.transport.close()
    protocol.transport.write_eof()
    assert await protocol.lost() is None
    assert await helpers.read_to_end(peer) == b""


@pytest.mark.parametrize("answer", [None, False, 0])
async def test_eof_received_closes_the_transport(attach, answer):
    protocol, peer = await attach(Recorder(eof_received=lambda protocol: answer))
    protocol.transport.write(b"first")
    peer.shutdown(socket.SHUT_WR)
    assert await protocol.lost() is None
    assert await helpers.read_to_end(peer) == b"first"
    assert protocol.calls == ["connection_made", "eof_received", "connection_lost"]


@pytest.mark.parametrize("answer", [True, 1])
async def test_eof_received_can_keep_the_transport_open(attach, answer):
    protocol, peer = await attach(Recorder(eof_received=lambda protocol: answer))
    peer.send(b"question")
    peer.shutdown(socket.SHUT_WR)
    await protocol.until("eof_received")
    async with helpers.idle():
        pass
    assert protocol.data == b"question"
    assert protocol.calls.count("eof_received") == 1
    assert not protocol.transport.is_closing()
    protocol.transport.write(b"answer")
    assert await helpers.read_exactly(peer, 6) == b"answer"
    protocol.transport.close()
    assert await protocol.lost() is None


async def test_what_was_received_stays_as_it_was(attach):
    """Some pieces are kept and some forgotten, of all sizes; what comes later changes none of them."""
    kept = []

    def keep(protocol, data):
        number = hash(data)
        if protocol.count % 3:
            kept.append((data, bytes(bytearray(data)), number))
        protocol.count += 1

    protocol, peer = await attach(Recorder(data_received=keep))
    protocol.count = 0
    for number in range(720):
        size = (200, 600, 1000, 1024, 1500, 3000, 9000, 60_000, 150_000)[number // 40 % 9]
        before = protocol.count
        peer.sendall(bytes([number % 251]) * size)
        protocol.data.clear()
        await protocol.received(size)
        assert protocol.count > before
    assert len(kept) >= 400
    for data, copy, number in kept:
        assert data == copy
        assert hash(data) == number == hash(copy)
        assert len(data) == len(copy)
    protocol.transport.abort()
    await protocol.lost()


async def test_eof_received_can_write_its_answer(attach):
    protocol, peer = await attach(
        Recorder(eof_received=lambda protocol: protocol.transport.write(b"goodbye"))
    )
    peer.shutdown(socket.SHUT_WR)
    assert await helpers.read_to_end(peer) == b"goodbye"
    assert await protocol.lost() is None


async def test_a_peer_that_has_gone_after_eof(attach):
    protocol, peer = await attach(Recorder(eof_received=lambda protocol: True))
    peer.close()
    await protocol.until("eof_received")
    while not protocol.transport.is_closing():
        protocol.transport.write(b"x" * 1000)
        await asyncio.sleep(0.001)
    assert isinstance(await protocol.lost(), (BrokenPipeError, ConnectionResetError))


# Pausing


async def test_nothing_is_received_while_reading_is_paused(attach):
    protocol, peer = await attach(Recorder())
    transport = protocol.transport
    transport.pause_reading()
    transport.pause_reading()
    assert not transport.is_reading()
    peer.send(b"hello")
    async with helpers.idle(0.1):
        pass
    assert protocol.data == b""
    transport.resume_reading()
    transport.resume_reading()
    assert transport.is_reading()
    assert await protocol.received(5) == b"hello"


async def test_reading_paused_in_connection_made(attach):
    protocol, peer = await attach(
        Recorder(connection_made=lambda protocol, transport: transport.pause_reading())
    )
    peer.send(b"hello")
    await asyncio.sleep(0.01)
    assert protocol.data == b""
    protocol.transport.resume_reading()
    assert await protocol.received(5) == b"hello"


async def test_reading_paused_in_data_received(loop, attach):
    protocol, peer = await attach(
        Recorder(data_received=lambda protocol, data: protocol.transport.pause_reading())
    )
    data = os.urandom(3 << 20)
    sending = loop.create_task(loop.sock_sendall(peer, data))
    while len(protocol.data) < len(data):
        count = protocol.calls.count("data_received")
        await asyncio.sleep(0.0005)
        assert protocol.calls.count("data_received") in (count, count + 1)
        protocol.transport.resume_reading()
        await asyncio.sleep(0)
    await sending
    assert protocol.data == data


async def test_the_end_is_not_seen_while_reading_is_paused(attach):
    protocol, peer = await attach(Recorder())
    protocol.transport.pause_reading()
    peer.send(b"last")
    peer.close()
    async with helpers.idle():
        pass
    assert protocol.calls == ["connection_made"]
    protocol.transport.resume_reading()
    assert await protocol.lost() is None
    assert protocol.data == b"last"


async def test_pausing_a_closed_transport_does_nothing(attach):
    protocol, _peer = await attach(Recorder())
    protocol.transport.close()
    protocol.transport.pause_reading()
    protocol.transport.resume_reading()
    assert not protocol.transport.is_reading()
    await protocol.lost()
    protocol.transport.pause_reading()
    protocol.transport.resume_reading()


async def test_pausing_and_resuming_in_one_iteration(attach):
    protocol, peer = await attach(Recorder())
    peer.send(b"hello")
    for _ in range(5):
        protocol.transport.pause_reading()
        protocol.transport.resume_reading()
    assert await protocol.received(5) == b"hello"


# Changing protocols


@pytest.mark.parametrize("old", [Recorder, BufferedRecorder])
@pytest.mark.parametrize("new", [Recorder, BufferedRecorder])
async def test_changing_the_protocol_while_receiving(attach, old, new):
    second = new()

    def change(protocol, *args):
        protocol.transport.set_protocol(second)
        second.transport = protocol.transport

    protocol, peer = await attach(old(data_received=change, buffer_updated=change))
    peer.send(b"first")
    await protocol.received(5)
    assert protocol.transport.get_protocol() is second
    peer.send(b"second")
    assert await second.received(6) == b"second"
    assert protocol.data == b"first"
    peer.close()
    assert await second.lost() is None
    assert "connection_lost" not in protocol.calls
    assert "eof_received" in second.calls


async def test_changing_the_protocol_in_connection_made(attach):
    second = BufferedRecorder()
    protocol, peer = await attach(
        Recorder(connection_made=lambda protocol, transport: transport.set_protocol(second))
    )
    peer.send(b"hello")
    assert await second.received(5) == b"hello"
    assert protocol.data == b""


# What a transport knows


async def test_extra_information(loop, attach, kind):
    protocol, peer = await attach(Recorder())
    transport = protocol.transport
    sock = transport.get_extra_info("socket")
    assert isinstance(sock, asyncio.trsock.TransportSocket)
    assert sock.fileno() > 0
    assert sock.family == peer.family
    assert sock.gettimeout() == 0
    assert transport.get_extra_info("sockname") == sock.getsockname() == peer.getpeername()
    assert transport.get_extra_info("peername") == peer.getsockname()
    assert transport.get_extra_info("nonsense") is None
    assert transport.get_extra_info("nonsense", 42) == 42
    transport.close()
    await protocol.lost()
    if kind == "tcp":
        assert transport.get_extra_info("sockname") == peer.getpeername()
        assert transport.get_extra_info("peername") == peer.getsockname()
    assert transport.get_extra_info("socket").fileno() == -1


async def test_what_is_done_to_the_socket_comes_after_what_was_written(attach):
    protocol, peer = await attach(Recorder())
    sock = protocol.transport.get_extra_info("socket")
    protocol.transport.write(b"written, ")
    os.write(sock.fileno(), b"sent, ")
    protocol.transport.write(b"written, ")
    with sock.dup() as duplicate:
        duplicate.send(b"sent, ")
    protocol.transport.write(b"written")
    sock.shutdown(socket.SHUT_WR)
    assert await helpers.read_to_end(peer) == b"written, sent, written, sent, written"
    assert protocol.calls == ["connection_made"]


async def test_what_another_thread_does_to_the_socket_comes_after_what_was_written(attach):
    protocol, peer = await attach(Recorder())
    sock = protocol.transport.get_extra_info("socket")

    def in_thread(function, *args):
        thread = threading.Thread(target=function, args=args)
        thread.start()
        thread.join()

    def send():
        with sock.dup() as duplicate:
            duplicate.send(b"sent, ")

    for _ in range(2):
        protocol.transport.write(b"written, ")
        in_thread(send)
    protocol.transport.write(b"written")
    in_thread(sock.shutdown, socket.SHUT_WR)
    assert await helpers.read_to_end(peer) == b"written, sent, written, sent, written"
    assert protocol.calls == ["connection_made"]


async def test_a_write_whose_error_another_thread_meets_ends_the_connection(loop, attach):
    protocol, peer = await attach(Recorder())
    protocol.transport.pause_reading()
    helpers.reset(peer)
    # What is written in an iteration of many callbacks is not sent at once.
    for _ in range(3):
        loop.call_soon(int)
    await asyncio.sleep(0)
    protocol.transport.write(b"x")
    thread = threading.Thread(target=protocol.transport.get_extra_info("socket").fileno)
    thread.start()
    thread.join()
    assert isinstance(await protocol.lost(), OSError)


async def test_the_representation_tells_the_state(attach):
    protocol, _peer = await attach(Recorder())
    number = protocol.transport.get_extra_info("socket").fileno()
    await helpers.close_and_check_repr(protocol, number)


async def test_a_transport_can_be_referred_to_weakly(attach):
    protocol, _peer = await attach(Recorder())
    ref = weakref.ref(protocol.transport)
    assert ref() is protocol.transport


async def test_a_lost_transport_is_freed(attach):
    protocol, peer = await attach(Recorder())
    gone = weakref.ref(protocol)
    peer.close()
    await protocol.lost()
    await helpers.iterations(2)
    transport = protocol.transport
    del protocol
    gc.collect()
    assert gone() is None, "the transport keeps its protocol"
    assert transport.is_closing()


@pytest.mark.parametrize("end", ["write_eof", "close", "abort"])
async def test_an_end_is_seen_as_soon_as_data_are(loop, pair, end):
    """A program that counts iterations sees the other end of its connection end within three of them."""
    protocols = Recorder(), Recorder()
    for protocol, sock in zip(protocols, pair, strict=True):
        await loop.create_connection(lambda protocol=protocol: protocol, sock=sock)
    await helpers.iterations(20)
    getattr(protocols[0].transport, end)()
    await helpers.iterations(3)
    assert "eof_received" in protocols[1].calls
    for protocol in protocols:
        protocol.transport.abort()
        await protocol.lost()


@contextlib.asynccontextmanager
async def a_socket_closed_behind_its_transport(loop, protocol):
    """Gives the protocol a transport, and closes its socket; the number is then one of the strangers'."""
    ours, peer = socket.socketpair()
    await loop.create_connection(lambda: protocol, sock=ours)
    number = ours.fileno()
    ours.close()
    strangers = socket.socketpair()
    try:
        assert number in [sock.fileno() for sock in strangers]
        yield strangers
    finally:
        for sock in (peer, *strangers):
            sock.close()


@pytest.mark.parametrize("kind_of_protocol", [Recorder, BufferedRecorder])
async def test_a_socket_that_the_program_closed_has_no_number(loop, kind_of_protocol):
    protocol = kind_of_protocol()
    async with a_socket_closed_behind_its_transport(loop, protocol) as strangers:
        protocol.transport.write(b"not for strangers")
        assert isinstance(await protocol.lost(), OSError)
        for sock in strangers:
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.recv(1)
            assert sock.fileno() >= 0


async def test_a_closed_socket_has_no_number_for_the_end_of_what_is_written(loop):
    protocol = Recorder()
    async with a_socket_closed_behind_its_transport(loop, protocol) as strangers:
        with pytest.raises(OSError, match="Bad file descriptor"):
            protocol.transport.write_eof()
        for sock in strangers:
            sock.send(b"still open")
        protocol.transport.abort()
        await protocol.lost()
        for sock in strangers:
            assert sock.recv(100) == b"still open"


async def test_a_socket_that_is_closed_while_its_transport_is_made_has_no_number(loop):
    ours, peer = socket.socketpair()
    strangers = []

    class Closing(Recorder):
        @property
        def connection_made(self):
            if not strangers:
                number = ours.fileno()
                ours.close()
                strangers.extend(socket.socketpair())
                assert number in [sock.fileno() for sock in strangers]
                for sock in strangers:
                    sock.send(b"not for the protocol")
            return super().connection_made

    protocol = Closing()
    try:
        transport, _ = await loop.create_connection(lambda: protocol, sock=ours)
        transport.write(b"not for strangers")
        assert isinstance(await protocol.lost(), OSError)
        assert protocol.data == b""
        for sock in strangers:
            assert sock.recv(100) == b"not for the protocol"
    finally:
        for sock in (peer, *strangers):
            sock.close()
