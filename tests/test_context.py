"""In which context (contextvars) callbacks and protocols run."""

import asyncio
import contextvars
import socket

import helpers
import pytest
from helpers import Recorder

variable = contextvars.ContextVar("variable", default=None)


def context_with(value):
    context = contextvars.copy_context()
    context.run(variable.set, value)
    return context


SCHEDULE = {
    "call_soon": lambda loop, *args, **kwargs: loop.call_soon(*args, **kwargs),
    "call_soon_threadsafe": lambda loop, *args, **kwargs: loop.call_soon_threadsafe(*args, **kwargs),
    "call_later": lambda loop, *args, **kwargs: loop.call_later(0, *args, **kwargs),
    "call_at": lambda loop, *args, **kwargs: loop.call_at(0, *args, **kwargs),
}


@pytest.mark.parametrize("name", SCHEDULE)
def test_a_callback_runs_in_the_context_that_it_was_given(loop, name):
    seen = []
    context = context_with("given")

    def callback():
        seen.append(variable.get())
        variable.set("changed")
        loop.stop()

    SCHEDULE[name](loop, callback, context=context)
    loop.run_forever()
    assert seen == ["given"]
    assert context[variable] == "changed"
    assert variable.get() is None


@pytest.mark.parametrize("name", SCHEDULE)
def test_a_callback_without_a_context_runs_in_a_copy_of_its_schedulers(loop, name):
    seen = []

    def callback():
        seen.append(variable.get())
        variable.set("changed")
        loop.stop()

    context = context_with("scheduler")
    context.run(SCHEDULE[name], loop, callback)
    context.run(variable.set, "later")
    loop.run_forever()
    assert seen == ["scheduler"]
    assert context[variable] == "later"


def test_context_none_means_the_current_one(loop):
    seen = []
    context_with("here").run(loop.call_soon, lambda: (seen.append(variable.get()), loop.stop()), context=None)
    loop.run_forever()
    assert seen == ["here"]


def test_what_is_no_context(loop, reports):
    """asyncio finds it out when the callback runs; refusing it at once is as good."""
    try:
        loop.call_soon(print, context=42)
    except TypeError:
        return
    loop.call_soon(loop.stop)
    try:
        loop.run_forever()
    except (AttributeError, TypeError):
        return
    assert isinstance(reports.take()["exception"], (AttributeError, TypeError))


def test_many_callbacks_in_one_context(loop):
    counter = contextvars.ContextVar("counter", default=0)
    context = contextvars.copy_context()
    for _ in range(100):
        loop.call_soon(lambda: counter.set(counter.get() + 1), context=context)
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert context[counter] == 100


def test_a_context_that_is_already_entered(loop, logged, caplog):
    """A callback cannot run in the context that run_forever itself was called in."""
    context = contextvars.copy_context()
    ran = []

    def run():
        loop.call_soon(ran.append, 1, context=context)
        loop.call_soon(ran.append, 2)
        loop.call_soon(loop.stop)
        loop.run_forever()

    loop.set_exception_handler(None)
    context.run(run)
    assert len(logged()) == 1
    assert "cannot enter context" in caplog.text
    assert ran == [2]


async def test_the_callbacks_of_a_protocol_run_in_the_context_of_its_connection(loop, pair):
    ours, peer = pair
    seen = []

    def note(protocol, *args):
        seen.append(variable.get())

    async def connect():
        variable.set("connection")
        protocol = Recorder(connection_made=note, data_received=note, connection_lost=note)
        await loop.create_connection(lambda: protocol, sock=ours)
        return protocol

    protocol = await loop.create_task(connect())
    peer.send(b"x")
    await protocol.received(1)
    peer.close()
    await protocol.lost()
    assert seen == ["connection"] * 3


async def test_a_paused_and_resumed_protocol_runs_in_the_context_of_whoever_resumed_it(loop, pair):
    """Up to Python 3.14. From 3.15 on a transport has one context for its life."""
    ours, peer = pair
    seen = []
    protocol = Recorder(data_received=lambda protocol, data: seen.append(variable.get()))
    transport, _ = await loop.create_connection(lambda: protocol, sock=ours)
    transport.pause_reading()
    await asyncio.sleep(0.001)
    context_with("resumer").run(transport.resume_reading)
    peer.send(b"x")
    await protocol.received(1)
    assert seen == [None if helpers.PYTHON >= (3, 15) else "resumer"]
    transport.close()
    await protocol.lost()


async def test_a_protocol_is_resumed_in_the_context_of_the_write_that_found_the_socket_full(loop, pair):
    """Up to Python 3.14, as above; and what is called because everything is sent is called there, too."""
    ours, peer = pair
    seen = []

    def note(protocol, *args):
        seen.append(variable.get())

    protocol = Recorder(pause_writing=note, resume_writing=note, connection_lost=note)
    transport, _ = await loop.create_connection(lambda: protocol, sock=ours)

    def write():
        transport.write(bytes(20_000_000))
        transport.close()

    context_with("writer").run(write)
    peer.setblocking(False)
    while await loop.sock_recv(peer, 1 << 20):
        pass
    await protocol.lost()
    once = helpers.PYTHON >= (3, 15)
    assert seen == (["writer", None, None] if once else ["writer"] * 3)


async def test_the_protocols_of_a_server_run_in_the_context_of_the_server(loop):
    """Its creator's context, or a copy of it."""
    seen = []
    served = []

    def factory():
        seen.append(variable.get())
        served.append(
            Recorder(
                connection_made=lambda protocol, transport: seen.append(variable.get()),
                data_received=lambda protocol, data: seen.append(variable.get()),
            )
        )
        return served[-1]

    async def serve():
        variable.set("server")
        return await loop.create_server(factory, "127.0.0.1", 0)

    server = await loop.create_task(serve())
    async with helpers.running(server) as address:
        with socket.create_connection(address) as client:
            client.send(b"x")
            await helpers.until(lambda: served and served[0].data)
        await served[0].lost()
    assert seen == ["server"] * 3


@pytest.mark.asyncio_from(3, 15)
async def test_each_connection_of_a_server_has_a_context_of_its_own(loop):
    seen = []
    served = []

    def made(protocol, transport):
        seen.append(variable.get())
        variable.set("connection")

    def received(protocol, data):
        seen.append(variable.get())

    def factory():
        served.append(Recorder(connection_made=made, data_received=received))
        return served[-1]

    server = await loop.create_server(factory, "127.0.0.1", 0)
    async with helpers.running(server) as address:
        for number in range(2):
            with socket.create_connection(address) as client:
                client.send(b"x")
                await helpers.until(lambda number=number: len(seen) == 2 * number + 2)
        for protocol in served:
            await protocol.lost()
    assert seen == [None, "connection"] * 2


@pytest.mark.asyncio_from(3, 12)
def test_the_exception_handler_runs_in_the_context_of_what_failed(loop):
    seen = []
    loop.set_exception_handler(lambda loop, context: seen.append(variable.get()))
    loop.call_soon(lambda: 1 / 0, context=context_with("failed"))
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert seen == ["failed"]
