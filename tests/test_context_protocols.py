"""In which context protocols, finalisers and the exception handler run, far from where they were made."""

import asyncio
import contextvars
import gc
import os
import sys

import helpers
import pytest
from helpers import Recorder

variable = contextvars.ContextVar("variable", default=None)


def within(value, function, *args, **kwargs):
    """Call a function in a context where the variable has that value."""
    context = contextvars.copy_context()
    context.run(variable.set, value)
    return context.run(function, *args, **kwargs)


def task_within(value, coroutine):
    return within(value, asyncio.get_running_loop().create_task, coroutine)


def seeing(seen, *names):
    def hook(name):
        return lambda protocol, *args: seen.append((name, variable.get()))

    return {name: hook(name) for name in names}


# Connections


async def test_a_client_by_address(loop):
    seen = []
    names = ("connection_made", "data_received", "eof_received", "connection_lost")
    protocol = Recorder(**seeing(seen, *names))

    def factory():
        seen.append(("factory", variable.get()))
        return protocol

    with helpers.listener() as server:
        await task_within("client", loop.create_connection(factory, *server.getsockname()))
        peer, _ = await loop.sock_accept(server)
        peer.send(b"x")
        await protocol.received(1)
        peer.close()
        await protocol.lost()
    assert seen == [(name, "client") for name in ("factory", *names)]


async def test_both_sides_over_unix(loop, tmp_path):
    seen, served = [], []
    path = str(tmp_path / "socket")
    names = ("connection_made", "data_received")

    def factory():
        served.append(Recorder(**seeing(seen, *names)))
        return served[-1]

    server = await task_within("server", loop.create_unix_server(factory, path))
    client = Recorder(**seeing(seen, *names))
    transport, _ = await task_within("client", loop.create_unix_connection(lambda: client, path))
    await helpers.until(lambda: served and served[0].transport)
    transport.write(b"x")
    await served[0].received(1)
    served[0].transport.write(b"y")
    await client.received(1)
    transport.close()
    await served[0].lost()
    server.close()
    assert sorted(seen) == sorted((name, side) for name in names for side in ("client", "server"))


async def test_an_accepted_socket(loop, pair):
    seen = []
    ours, peer = pair
    names = ("connection_made", "data_received", "connection_lost")
    protocol = Recorder(**seeing(seen, *names))
    await task_within("accepter", loop.connect_accepted_socket(lambda: protocol, ours))
    peer.send(b"x")
    await protocol.received(1)
    peer.close()
    await protocol.lost()
    assert seen == [(name, "accepter") for name in names]


@pytest.mark.parametrize("end", ["close", "abort"])
async def test_whoever_ends_a_connection_gives_connection_lost_its_context(loop, attach, end):
    """Up to Python 3.14. From 3.15 on a transport has one context for its life."""
    seen = []
    protocol, _peer = await attach(Recorder(**seeing(seen, "connection_lost")))
    within("closer", getattr(protocol.transport, end))
    await protocol.lost()
    assert seen == [("connection_lost", None if helpers.PYTHON >= (3, 15) else "closer")]


@helpers.over_unix
async def test_a_write_that_fails_gives_connection_lost_the_context_of_the_connection(loop, pair):
    seen = []
    ours, peer = pair
    protocol = Recorder(**seeing(seen, "connection_lost"))
    transport, _ = await task_within("connection", loop.create_connection(lambda: protocol, sock=ours))
    transport.pause_reading()
    peer.close()
    within("connection", loop.call_soon, transport.write, b"x")
    assert isinstance(await protocol.lost(), BrokenPipeError)
    assert seen == [("connection_lost", "connection")]


async def test_the_last_words_of_a_closing_connection_leave_its_context_to_connection_lost(loop, pair):
    seen = []
    ours, peer = pair
    last_words = seeing(seen, "connection_lost") | {
        "resume_writing": lambda protocol: protocol.transport.write(b"bye")
    }
    protocol = Recorder(**last_words)
    transport, _ = await task_within("connection", loop.create_connection(lambda: protocol, sock=ours))
    within("connection", transport.write, helpers.TOO_MUCH)
    within("connection", transport.close)
    await helpers.read_exactly(peer, len(helpers.TOO_MUCH) + 3)
    assert await protocol.lost() is None
    assert seen == [("connection_lost", "connection")]


async def test_pause_writing_is_called_in_the_context_of_the_writer(loop, attach):
    seen = []
    protocol, _peer = await attach(Recorder(**seeing(seen, "pause_writing")))
    within("writer", protocol.transport.write, helpers.TOO_MUCH)
    assert seen == [("pause_writing", "writer")]


async def test_a_protocol_set_later_runs_in_the_context_of_the_connection(loop, pair):
    seen = []
    ours, peer = pair
    transport, _ = await task_within("connection", loop.create_connection(Recorder, sock=ours))
    protocol = Recorder(**seeing(seen, "data_received", "connection_lost"))
    within("setter", transport.set_protocol, protocol)
    peer.send(b"x")
    await protocol.received(1)
    peer.close()
    await protocol.lost()
    assert seen == [("data_received", "connection"), ("connection_lost", "connection")]


async def test_what_a_callback_sets_is_seen_by_the_next(loop, pair):
    """The callbacks of one reader share its context."""
    seen = []

    def received(protocol, data):
        seen.append(variable.get())
        variable.set((variable.get() or 0) + 1)

    ours, peer = pair
    protocol = Recorder(data_received=received)
    await loop.create_connection(lambda: protocol, sock=ours)
    for number in range(3):
        peer.send(b"x")
        await protocol.received(number + 1)
    protocol.transport.abort()
    await protocol.lost()
    assert seen == [None, 1, 2]
    assert variable.get() is None


async def test_a_datagram_endpoint(loop):
    seen = []

    class Protocol(asyncio.DatagramProtocol):
        def connection_made(self, transport):
            seen.append(("made", variable.get()))

        def datagram_received(self, data, address):
            seen.append(("received", variable.get()))
            received.set()

        def connection_lost(self, error):
            seen.append(("lost", variable.get()))
            lost.set()

    received, lost = asyncio.Event(), asyncio.Event()
    transport, _ = await task_within(
        "endpoint", loop.create_datagram_endpoint(Protocol, local_addr=("127.0.0.1", 0))
    )
    within("sender", transport.sendto, b"x", transport.get_extra_info("sockname"))
    await received.wait()
    within("closer", transport.close)
    await lost.wait()
    assert seen == [("made", "endpoint"), ("received", "endpoint"), ("lost", "closer")]


# Processes and pipes


@pytest.mark.asyncio_bug("it waits for the process in a thread, which has a context of its own", (3, 11))
async def test_a_process(loop):
    seen, ended = [], asyncio.Event()

    class Protocol(asyncio.SubprocessProtocol):
        def connection_made(self, transport):
            seen.append(("connection_made", variable.get()))

        def pipe_data_received(self, fd, data):
            seen.append(("pipe_data_received", variable.get()))

        def pipe_connection_lost(self, fd, error):
            seen.append(("pipe_connection_lost", variable.get()))

        def process_exited(self):
            seen.append(("process_exited", variable.get()))

        def connection_lost(self, error):
            seen.append(("connection_lost", variable.get()))
            ended.set()

    transport, _ = await task_within(
        "starter", loop.subprocess_exec(Protocol, "/bin/echo", "hello", stdin=None, stderr=None)
    )
    await ended.wait()
    transport.close()
    assert {name for name, _ in seen} == {
        "connection_made",
        "pipe_data_received",
        "pipe_connection_lost",
        "process_exited",
        "connection_lost",
    }
    pipes = {value for name, value in seen if "pipe" in name}
    assert pipes == {"starter"}
    assert ("process_exited", "starter") in seen


async def test_pipes(loop):
    seen = []
    ours, theirs = os.pipe()
    with os.fdopen(ours, "rb") as reading, os.fdopen(theirs, "wb") as writing:
        reader = Recorder(**seeing(seen, "connection_made", "data_received", "connection_lost"))
        writer = Recorder(**seeing(seen, "connection_made"))
        await task_within("reader", loop.connect_read_pipe(lambda: reader, reading))
        transport, _ = await task_within("writer", loop.connect_write_pipe(lambda: writer, writing))
        transport.write(b"x")
        await reader.received(1)
        transport.close()
        await reader.lost()
        await writer.lost()
    assert seen == [
        ("connection_made", "reader"),
        ("connection_made", "writer"),
        ("data_received", "reader"),
        ("connection_lost", "reader"),
    ]


# Futures, executors, generators


async def test_the_callbacks_of_a_future(loop):
    seen = []
    future = loop.create_future()

    def note(future):
        seen.append(variable.get())

    within("adder", future.add_done_callback, note)
    given = contextvars.copy_context()
    given.run(variable.set, "given")
    future.add_done_callback(note, context=given)
    within("setter", future.set_result, None)
    await helpers.iterations(1)
    assert seen == ["adder", "given"]


async def test_an_executor_runs_in_a_context_of_its_thread(loop):
    """Only to_thread takes the context along."""
    variable.set("caller")
    assert await loop.run_in_executor(None, variable.get) == (
        "caller" if getattr(sys.flags, "thread_inherit_context", False) else None
    )
    assert await asyncio.to_thread(variable.get) == "caller"


async def test_a_generator_that_is_dropped_is_finished_in_the_context_of_its_end(loop):
    seen = []

    async def generate():
        try:
            yield
        finally:
            seen.append(variable.get())

    generators = [generate()]
    await task_within("beginner", begin(generators[0]))

    def drop():
        generators.clear()
        gc.collect()

    within("dropper", drop)
    await helpers.until(lambda: seen)
    assert seen == ["dropper"]


async def begin(generator):
    await anext(generator)


# Reports


@pytest.mark.asyncio_from(3, 12)
async def test_a_report_of_a_callback(loop, reports):
    seen = []
    loop.set_exception_handler(lambda loop, context: seen.append(variable.get()))
    within("scheduler", loop.call_soon, lambda: 1 / 0)
    await helpers.iterations(2)
    assert seen == ["scheduler"]


@pytest.mark.asyncio_from(3, 12)
async def test_a_report_of_a_task_that_nobody_asked(loop):
    seen = []
    loop.set_exception_handler(lambda loop, context: seen.append(variable.get()))

    async def failing():
        variable.set("task")
        raise ValueError

    task = loop.create_task(failing())
    await asyncio.wait([task])
    del task
    gc.collect()
    assert seen == ["task"]


@pytest.mark.parametrize("name", ["connection_made", "data_received", "connection_lost"])
async def test_a_report_of_a_protocol(loop, pair, name):
    seen = []
    loop.set_exception_handler(lambda loop, context: seen.append(variable.get()))
    ours, peer = pair

    def fail(protocol, *args):
        variable.set("failing")
        raise ValueError

    protocol = Recorder(**{name: fail})
    await task_within("connection", loop.create_connection(lambda: protocol, sock=ours))
    peer.send(b"x")
    await helpers.until(lambda: protocol.data)
    peer.close()
    await protocol.lost()
    await helpers.iterations(2)
    # Since Python 3.12 what fails within a handle is reported within its context.
    assert seen == ["failing"] if helpers.PYTHON >= (3, 12) or name == "data_received" else [None]
