"""Datagram transports: what a protocol sees, what goes wrong, and how an endpoint ends."""

import asyncio
import contextvars
import socket
import struct

import helpers
import pytest
from helpers import DatagramRecorder, fail

LOCAL = ("127.0.0.1", 0)
variable = contextvars.ContextVar("variable", default=None)


@pytest.fixture
def peer():
    """A UDP socket to talk to."""
    with helpers.datagram_socket() as sock:
        yield sock


async def connected(endpoint, peer, **hooks):
    return await endpoint(DatagramRecorder(**hooks), remote_addr=peer.getsockname())


# The life of an endpoint


async def test_the_life_of_an_endpoint(loop, endpoint, peer):
    protocol = await endpoint(DatagramRecorder(), local_addr=LOCAL)
    assert protocol.calls == ["connection_made"]
    peer.sendto(b"hello", protocol.address)
    assert await protocol.received(1) == [(b"hello", peer.getsockname())]
    protocol.transport.sendto(b"hello yourself", peer.getsockname())
    assert await loop.sock_recvfrom(peer, 100) == (b"hello yourself", protocol.address)
    protocol.transport.close()
    assert protocol.calls == ["connection_made", "datagram_received"]  # connection_lost comes later
    assert await protocol.lost() is None
    assert protocol.calls == ["connection_made", "datagram_received", "connection_lost"]


@pytest.mark.asyncio_from(3, 12)
async def test_a_transport_is_one_of_asyncios(endpoint):
    protocol = await endpoint(DatagramRecorder(), local_addr=LOCAL)
    assert isinstance(protocol.transport, asyncio.DatagramTransport)


async def test_connection_made_comes_before_datagrams_that_were_there_first(endpoint, peer):
    sock = helpers.datagram_socket()
    peer.sendto(b"early", sock.getsockname())
    protocol = await endpoint(DatagramRecorder(), sock=sock)
    await protocol.received(1)
    assert protocol.calls == ["connection_made", "datagram_received"]


async def test_extra_information(endpoint, peer):
    protocol = await connected(endpoint, peer)
    transport = protocol.transport
    sock = transport.get_extra_info("socket")
    assert isinstance(sock, asyncio.trsock.TransportSocket)
    assert (sock.family, sock.type) == (socket.AF_INET, socket.SOCK_DGRAM)
    assert sock.gettimeout() == 0
    assert transport.get_extra_info("sockname") == sock.getsockname()
    assert transport.get_extra_info("peername") == sock.getpeername() == peer.getsockname()
    assert transport.get_extra_info("nonsense") is None
    assert transport.get_extra_info("nonsense", 42) == 42
    transport.close()
    await protocol.lost()
    await helpers.iterations(1)
    assert transport.get_extra_info("peername") == peer.getsockname()
    assert transport.get_extra_info("socket").fileno() == -1


async def test_the_representation_tells_the_state(endpoint):
    protocol = await endpoint(DatagramRecorder(), local_addr=LOCAL)
    assert "bufsize=0" in repr(protocol.transport)
    number = protocol.transport.get_extra_info("socket").fileno()
    await helpers.close_and_check_repr(protocol, number)


async def test_a_descriptor_of_a_transport_is_refused(loop, endpoint):
    protocol = await endpoint(DatagramRecorder(), local_addr=LOCAL)
    sock = protocol.transport.get_extra_info("socket")
    for descriptor in (sock, sock.fileno()):
        for call in (
            lambda it: loop.add_reader(it, print),
            lambda it: loop.add_writer(it, print),
            loop.remove_reader,
            loop.remove_writer,
        ):
            with pytest.raises(RuntimeError, match="is used by transport"):
                call(descriptor)


async def test_datagrams_in_debug_mode(loop, endpoint, peer):
    """Nothing but logging changes."""
    loop.set_debug(True)
    protocol = await connected(endpoint, peer)
    protocol.transport.pause_reading()
    protocol.transport.resume_reading()
    protocol.transport.sendto(b"question")
    assert await loop.sock_recv(peer, 100) == b"question"
    peer.sendto(b"answer", protocol.address)
    assert await protocol.received(1) == [(b"answer", peer.getsockname())]
    protocol.transport.close()
    assert await protocol.lost() is None


async def test_the_callbacks_of_an_endpoint_run_in_the_context_of_its_creator(loop, peer):
    seen = []

    def note(protocol, *args):
        seen.append(variable.get())

    async def create():
        variable.set("creator")
        names = ("connection_made", "datagram_received", "error_received", "connection_lost")
        _, protocol = await loop.create_datagram_endpoint(
            lambda: DatagramRecorder(**dict.fromkeys(names, note)), remote_addr=peer.getsockname()
        )
        return protocol

    protocol = await loop.create_task(create())
    peer.sendto(b"x", protocol.address)
    await protocol.received(1)
    peer.close()
    protocol.transport.sendto(b"x")
    await protocol.until("error_received")
    assert seen == ["creator"] * 3
    protocol.transport.close()
    await protocol.lost()


async def test_a_resumed_protocol_runs_in_the_context_of_whoever_resumed_it(endpoint, peer):
    seen = []
    protocol = await endpoint(
        DatagramRecorder(datagram_received=lambda *args: seen.append(variable.get())), local_addr=LOCAL
    )
    protocol.transport.pause_reading()
    await asyncio.sleep(0.001)
    context = contextvars.copy_context()
    context.run(variable.set, "resumer")
    context.run(protocol.transport.resume_reading)
    peer.sendto(b"x", protocol.address)
    await protocol.received(1)
    assert seen == ["resumer"]


# What goes wrong


async def test_a_peer_that_is_not_there_is_an_error_and_the_endpoint_works_on(loop, endpoint, peer):
    address = peer.getsockname()
    protocol = await connected(endpoint, peer)
    peer.close()
    for times in (1, 2):
        protocol.transport.sendto(b"hello?")
        await protocol.until(lambda protocol, times=times: len(protocol.errors) == times)
        async with helpers.idle(0.05):
            pass
    assert [type(error) for error in protocol.errors] == [ConnectionRefusedError] * 2
    assert not protocol.transport.is_closing()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(address)
        peer.setblocking(False)
        protocol.transport.sendto(b"hello")
        assert await loop.sock_recv(peer, 10) == b"hello"
        peer.sendto(b"at last", protocol.address)
        assert await protocol.received(1) == [(b"at last", address)]


async def test_an_unconnected_endpoint_does_not_learn_of_a_peer_that_is_not_there(endpoint, peer):
    protocol = await endpoint(DatagramRecorder(), local_addr=LOCAL)
    protocol.transport.sendto(b"hello?", ("127.0.0.1", helpers.unused_port()))
    peer.sendto(b"hello", protocol.address)
    await protocol.received(1)
    assert protocol.errors == []


async def test_an_address_that_cannot_be_reached_is_an_error(endpoint):
    protocol = await endpoint(DatagramRecorder(), local_addr=LOCAL)
    protocol.transport.sendto(b"hello", ("255.255.255.255", 9))  # may not broadcast
    protocol.transport.sendto(b"hello", ("127.0.0.1", 0))
    protocol.transport.sendto(b"hello", ("::1", 9))  # which is no address of this family
    await protocol.until(lambda protocol: len(protocol.errors) == 3)
    assert all(isinstance(error, OSError) for error in protocol.errors)
    assert isinstance(protocol.errors[2], socket.gaierror)
    assert not protocol.transport.is_closing()


async def test_datagram_received_that_fails_is_reported_and_the_endpoint_stays(endpoint, reports, peer):
    protocol = await endpoint(DatagramRecorder(datagram_received=fail), local_addr=LOCAL)
    for number in range(3):
        peer.sendto(b"%d" % number, protocol.address)
        await protocol.received(number + 1)
        await helpers.iterations(1)
        assert str(reports.take()["exception"]) == "broken"
    assert protocol.contents == [b"0", b"1", b"2"]
    assert not protocol.transport.is_closing()


async def test_an_os_error_in_datagram_received_is_no_error_of_the_socket(endpoint, reports, peer):
    def fail(*args):
        raise ConnectionResetError("mine")

    protocol = await endpoint(DatagramRecorder(datagram_received=fail), local_addr=LOCAL)
    peer.sendto(b"x", protocol.address)
    await protocol.received(1)
    await helpers.iterations(1)
    assert str(reports.take()["exception"]) == "mine"
    assert protocol.calls == ["connection_made", "datagram_received"]


async def test_error_received_that_fails_is_reported_and_the_endpoint_stays(endpoint, reports, peer):
    address = peer.getsockname()
    protocol = await connected(endpoint, peer, error_received=fail)
    peer.close()
    protocol.transport.sendto(b"hello?")
    await protocol.until("error_received")
    await helpers.iterations(1)
    assert str(reports.take()["exception"]) == "broken"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(address)
        peer.sendto(b"hello", protocol.address)
        assert await protocol.received(1) == [(b"hello", address)]


async def test_connection_made_that_fails_is_reported_and_the_endpoint_stays(endpoint, reports, peer):
    protocol = await endpoint(DatagramRecorder(connection_made=fail), local_addr=LOCAL)
    assert str(reports.take()["exception"]) == "broken"
    peer.sendto(b"hello", protocol.address)
    assert await protocol.received(1) == [(b"hello", peer.getsockname())]


async def test_connection_lost_that_fails_is_reported_and_the_socket_closed(endpoint, reports):
    sock = helpers.datagram_socket()
    protocol = await endpoint(DatagramRecorder(connection_lost=fail), sock=sock)
    protocol.transport.close()
    await protocol.lost()
    await helpers.iterations(2)
    assert str(reports.take()["exception"]) == "broken"
    assert sock.fileno() == -1


# The end


@pytest.mark.parametrize("action", ["close", "abort"])
async def test_connection_lost_is_called_once(endpoint, action):
    sock = helpers.datagram_socket()
    protocol = await endpoint(DatagramRecorder(), sock=sock)
    transport = protocol.transport
    assert not transport.is_closing()
    assert transport.is_reading()
    getattr(transport, action)()
    assert transport.is_closing()
    assert not transport.is_reading()
    transport.close()
    transport.abort()
    assert await protocol.lost() is None
    transport.close()
    transport.abort()
    await helpers.iterations(3)
    assert protocol.calls == ["connection_made", "connection_lost"]
    assert sock.fileno() == -1


@pytest.mark.parametrize("name", ["connection_made", "datagram_received", "error_received"])
@pytest.mark.parametrize("action", ["close", "abort"])
async def test_a_callback_that_ends_its_endpoint(endpoint, peer, name, action):
    hook = {name: lambda protocol, *args: getattr(protocol.transport, action)()}
    protocol = await connected(endpoint, peer, **hook)
    if name == "datagram_received":
        peer.sendto(b"x", protocol.address)
    elif name == "error_received":
        peer.close()
        protocol.transport.sendto(b"x")
    assert await protocol.lost() is None
    await helpers.iterations(3)
    assert protocol.calls == list(dict.fromkeys(["connection_made", name, "connection_lost"]))
    assert protocol.transport.get_extra_info("socket").fileno() == -1


async def test_nothing_is_received_after_close(endpoint, peer):
    protocol = await endpoint(DatagramRecorder(), local_addr=LOCAL)
    peer.sendto(b"late", protocol.address)
    protocol.transport.close()
    await protocol.lost()
    assert protocol.calls == ["connection_made", "connection_lost"]


async def test_what_was_sent_before_close_arrives(loop, endpoint, peer):
    protocol = await connected(endpoint, peer)
    for number in range(3):
        protocol.transport.sendto(b"%d" % number)
    protocol.transport.close()
    assert await protocol.lost() is None
    assert [await loop.sock_recv(peer, 10) for _ in range(3)] == [b"0", b"1", b"2"]


async def test_sending_again_and_again_over_a_closed_connected_endpoint_is_warned_of(endpoint, peer, logged):
    protocol = await connected(endpoint, peer)
    protocol.transport.close()
    for _ in range(4):
        protocol.transport.sendto(b"x")
    assert logged() == []
    protocol.transport.sendto(b"x")
    assert logged() == ["socket.send() raised exception."]
    await protocol.lost()
    protocol.transport.sendto(b"x")
    assert logged() == ["socket.send() raised exception."] * 2
    with pytest.raises(BlockingIOError):
        peer.recv(10)


@pytest.mark.asyncio_bug("raises an AttributeError from its own insides")
async def test_what_is_sent_after_the_end_is_dropped(endpoint, peer):
    protocol = await endpoint(DatagramRecorder(), local_addr=LOCAL)
    protocol.transport.close()
    await protocol.lost()
    await helpers.iterations(1)
    protocol.transport.sendto(b"x", peer.getsockname())
    await helpers.iterations(2)
    with pytest.raises(BlockingIOError):
        peer.recv(10)
    assert protocol.calls == ["connection_made", "connection_lost"]


@pytest.mark.parametrize("error", [helpers.Leave, helpers.Interrupt])
def test_a_callback_that_leaves_the_loop(loop, peer, error):
    """The exception comes out of run_forever, and the loop and the endpoint can be taken up again."""

    def leave(protocol, data, addr):
        if data == b"leave":
            raise error

    create = loop.create_datagram_endpoint(lambda: DatagramRecorder(datagram_received=leave), LOCAL)
    transport, protocol = loop.run_until_complete(create)
    for data in (b"one", b"leave", b"two"):
        peer.sendto(data, protocol.address)
    with pytest.raises(error):
        loop.run_forever()
    assert protocol.contents == [b"one", b"leave"]
    loop.run_until_complete(protocol.received(3))
    assert protocol.contents == [b"one", b"leave", b"two"]
    transport.close()
    assert loop.run_until_complete(protocol.lost()) is None


async def test_a_socket_that_the_program_closed_has_no_number(endpoint, peer):
    # The number of its descriptor is another socket's, over which nothing is sent.
    ours = helpers.datagram_socket()
    number = ours.fileno()
    protocol = await endpoint(DatagramRecorder(), sock=ours)
    ours.close()
    with helpers.datagram_socket() as stranger:
        assert stranger.fileno() == number
        protocol.transport.sendto(b"from nobody", peer.getsockname())
        assert protocol.calls[-1] == "error_received"
        await helpers.iterations(2)
        with pytest.raises(BlockingIOError):
            peer.recv(100)


@pytest.mark.skipif(not hasattr(socket, "AF_NETLINK"), reason="Linux has it")
async def test_senders_of_another_family_have_their_addresses(loop):
    """Whatever the socket module makes of them."""
    request = struct.pack("=IHHIIB3xIIII", 36, 18, 0x301, 7, 0, 0, 0, 0, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 0) as asking:
        asking.setblocking(False)
        asking.bind((0, 0))
        received = asyncio.Queue()

        class Protocol(asyncio.DatagramProtocol):
            def datagram_received(self, data, address):
                received.put_nowait((data, address))

        transport, _ = await loop.create_datagram_endpoint(Protocol, sock=asking)
        transport.sendto(request, (0, 0))
        data, sender = await asyncio.wait_for(received.get(), 5)
        assert sender == (0, 0)
        assert len(data) > 16
        transport.close()
        await asyncio.sleep(0)
