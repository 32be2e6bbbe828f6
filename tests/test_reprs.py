"""What loops, handles, transports and servers tell of themselves; copies and pickles of them."""

import asyncio
import copy
import gc
import pickle
import re
import warnings
import weakref

import helpers
import pytest
from helpers import Recorder


def facts(thing):
    """The words and figures of a representation, without the name of its class."""
    text = repr(thing)
    assert text.startswith("<")
    assert text.endswith(">")
    return set(re.findall(r"\b(?:closed|closing)\b|\b(?:fd|bufsize|read)=-?\w+|write=<\w+", text))


# Loops


def test_a_loop(loop):
    def state():
        return dict(re.findall(r"(\w+)=(\w+)", repr(loop)))

    seen = []
    assert repr(loop).startswith(f"<{type(loop).__name__} ")
    assert state() == {"running": "False", "closed": "False", "debug": "False"}
    loop.set_debug(True)
    loop.call_soon(lambda: (seen.append(state()), loop.stop()))
    loop.run_forever()
    assert seen == [{"running": "True", "closed": "False", "debug": "True"}]
    loop.close()
    assert state() == {"running": "False", "closed": "True", "debug": "True"}


def test_an_unclosed_loop_is_warned_of_with_its_representation(loop_name):
    loop = helpers.FACTORIES[loop_name]()
    text = repr(loop)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del loop
        gc.collect()
    said = [str(warning.message) for warning in caught if warning.category is ResourceWarning]
    assert f"unclosed event loop {text}" in said
    caught.clear()
    gc.collect()


# Transports


async def test_a_stream_transport_in_each_of_its_states(attach):
    """asyncio's words, and its figures."""
    protocol, peer = await attach(Recorder())
    transport = protocol.transport
    number = f"fd={transport.get_extra_info('socket').fileno()}"
    await helpers.iterations(2)
    assert facts(transport) == {number, "read=polling", "write=<idle", "bufsize=0"}
    transport.pause_reading()
    assert facts(transport) == {number, "read=idle", "write=<idle", "bufsize=0"}
    transport.resume_reading()
    await helpers.iterations(2)
    transport.write(helpers.TOO_MUCH)
    await helpers.iterations(2)
    size = transport.get_write_buffer_size()
    assert size > 0
    assert facts(transport) == {number, "read=polling", "write=<polling", f"bufsize={size}"}
    transport.close()
    assert facts(transport) == {"closing", number, "read=idle", "write=<polling", f"bufsize={size}"}
    await helpers.read_to_end(peer)
    await protocol.lost()
    await helpers.iterations(2)
    assert {"closed", number} <= facts(transport)
    assert "closing" not in facts(transport)


async def test_a_datagram_transport(loop):
    transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0))
    number = f"fd={transport.get_extra_info('socket').fileno()}"
    await helpers.iterations(2)
    assert number in facts(transport)
    assert "bufsize=0" in facts(transport)
    transport.close()
    assert "closing" in facts(transport)
    await helpers.iterations(3)
    assert "closed" in facts(transport)


def test_an_unclosed_transport_is_warned_of_with_its_representation(loop):
    ours, peer = helpers.tcp_pair()
    transport, protocol = loop.run_until_complete(loop.create_connection(Recorder, sock=ours))
    loop.run_until_complete(helpers.iterations(2))
    loop.close()
    text = repr(transport)
    protocol.transport = None
    with peer, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del transport, protocol
        gc.collect()
    said = [str(warning.message) for warning in caught if warning.category is ResourceWarning]
    assert f"unclosed transport {text}" in said
    assert "fd=" in text
    caught.clear()
    gc.collect()


# Servers and handles


async def test_a_server(loop):
    server = await loop.create_server(Recorder, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert re.match(r"<Server sockets=\(<asyncio.TransportSocket fd=\d+, ", repr(server))
    assert str(port) in repr(server)
    server.close()
    assert repr(server) == "<Server sockets=()>"
    assert weakref.ref(server)() is server


def test_a_handle_in_debug_mode(loop):
    loop.set_debug(True)
    for handle, name in (
        (loop.call_soon(print, 1), "Handle"),
        (loop.call_later(60, print, 1), "TimerHandle"),
    ):
        when = r" when=[\d.]+" if name == "TimerHandle" else ""
        created = re.escape(f" created at {__file__}:")
        assert re.fullmatch(rf"<{name}{when} print\(1\){created}\d+>", repr(handle))
        handle.cancel()
        assert re.fullmatch(rf"<{name} cancelled{when} print\(1\){created}\d+>", repr(handle))


def test_a_handle_that_ran(loop):
    handle = loop.call_soon(int, 1)
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert repr(handle) == repr(asyncio.Handle(int, (1,), loop))
    assert not handle.cancelled()


# Copies


@pytest.mark.parametrize("schedule", ["call_soon", "call_soon_threadsafe", "call_later"])
def test_a_copy_of_a_handle_is_one_of_its_own(loop, schedule):
    args = (60, print, 1) if schedule == "call_later" else (print, 1)
    handle = getattr(loop, schedule)(*args)
    other = copy.copy(handle)
    assert other is not handle
    assert repr(other) == repr(handle)
    handle.cancel()
    assert not other.cancelled()


@pytest.mark.parametrize("how", [copy.deepcopy, pickle.dumps])
@pytest.mark.parametrize("schedule", ["call_soon", "call_later"])
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # asyncio's half a copy of a loop
def test_a_handle_cannot_be_copied_with_all_it_holds(loop, how, schedule):
    handle = loop.call_soon(print) if schedule == "call_soon" else loop.call_later(60, print)
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        how(handle)
    handle.cancel()


@pytest.mark.parametrize("how", [copy.deepcopy, pickle.dumps])
async def test_a_transport_cannot_be_copied_with_all_it_holds(loop, how, attach):
    protocol, peer = await attach(Recorder())
    with pytest.raises(TypeError):
        how(protocol.transport)
    peer.send(b"hello")
    assert await protocol.received(5) == b"hello"


def test_a_loop_can_be_referred_to_weakly(loop_name):
    loop = helpers.FACTORIES[loop_name]()
    ref = weakref.ref(loop)
    assert ref() is loop
    assert hash(ref) == hash(loop)
    loop.close()
    del loop
    gc.collect()
    assert ref() is None
