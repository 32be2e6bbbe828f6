"""run_in_executor, and the names and addresses that are looked up with its help."""

import asyncio
import concurrent.futures
import contextvars
import gc
import socket
import threading
import time
import traceback

import helpers
import pytest

# Executors


async def test_the_result_of_a_function(loop):
    assert await loop.run_in_executor(None, lambda one, other: one + other, 1, 2) == 3
    assert await loop.run_in_executor(None, threading.get_ident) != threading.get_ident()


async def test_the_exception_of_a_function(loop):
    def fail():
        raise LookupError("failed")

    with pytest.raises(LookupError, match="failed"):
        await loop.run_in_executor(None, fail)


async def test_the_default_executor_is_made_when_it_is_needed(loop):
    assert loop._default_executor is None
    name = await loop.run_in_executor(None, lambda: threading.current_thread().name)
    assert name.startswith("asyncio_")
    assert isinstance(loop._default_executor, concurrent.futures.ThreadPoolExecutor)


async def test_many_functions_at_once(loop):
    futures = [loop.run_in_executor(None, pow, number, 2) for number in range(200)]
    assert await asyncio.gather(*futures) == [number**2 for number in range(200)]


async def test_the_loop_goes_on_meanwhile(loop):
    event = threading.Event()
    future = loop.run_in_executor(None, event.wait, 20)
    await asyncio.sleep(0.002)
    assert not future.done()
    event.set()
    assert await future is True


async def test_an_executor_of_ones_own(loop):
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="mine") as executor:
        name = await loop.run_in_executor(executor, lambda: threading.current_thread().name)
        assert name.startswith("mine_")
        assert loop._default_executor is None
        loop.set_default_executor(executor)
        assert (await loop.run_in_executor(None, lambda: threading.current_thread().name)).startswith("mine_")


def test_what_is_no_executor(loop):
    with pytest.raises(TypeError, match="executor must be ThreadPoolExecutor instance"):
        loop.set_default_executor(object())


def test_shutting_the_default_executor_down(loop):
    ran = []

    async def main():
        loop.run_in_executor(None, lambda: (time.sleep(0.02), ran.append(1)))

    loop.run_until_complete(main())
    loop.run_until_complete(loop.shutdown_default_executor())
    assert ran == [1]
    with pytest.raises(RuntimeError, match="Executor shutdown has been called"):
        loop.run_in_executor(None, print)


async def test_to_thread_takes_the_context_along(loop):
    variable = contextvars.ContextVar("variable")
    variable.set("here")
    assert await asyncio.to_thread(variable.get) == "here"


async def test_a_cancelled_call(loop):
    event = threading.Event()
    future = loop.run_in_executor(None, event.wait, 20)
    await asyncio.sleep(0.001)
    assert future.cancel()
    event.set()
    with pytest.raises(asyncio.CancelledError):
        await future


async def test_work_that_is_not_begun_is_cancelled_with_its_future(loop):
    event = threading.Event()
    ran = []
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        first = loop.run_in_executor(executor, event.wait, 20)
        second = loop.run_in_executor(executor, ran.append, 1)
        second.cancel()
        await helpers.iterations(2)
        event.set()
        assert await first
        with pytest.raises(asyncio.CancelledError):
            await second
    assert ran == []


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (concurrent.futures.CancelledError("reason"), asyncio.CancelledError),
        (concurrent.futures.InvalidStateError("reason"), asyncio.InvalidStateError),
        (TimeoutError("reason"), TimeoutError),
        (SystemExit("reason"), SystemExit),
    ],
)
async def test_exceptions_of_the_executors_world(loop, raised, seen):
    class Ended(concurrent.futures.Executor):
        def submit(self, function, *args):
            future = concurrent.futures.Future()
            future.set_exception(raised)
            return future

    future = loop.run_in_executor(Ended(), print)
    await asyncio.wait([future])
    exception = future.exception()
    assert type(exception) is seen
    assert exception.args == ("reason",)


class AtOnce(concurrent.futures.Executor):
    """Does everything in the thread that asks for it."""

    def __init__(self, future_class):
        self.future_class = future_class

    def submit(self, function, *args):
        future = self.future_class()
        future.set_result(function(*args))
        return future


class OwnFuture(concurrent.futures.Future):
    pass


@pytest.mark.parametrize("future_class", [concurrent.futures.Future, OwnFuture])
async def test_work_that_is_done_at_once(loop, future_class):
    future = loop.run_in_executor(AtOnce(future_class), pow, 2, 10)
    # Python 3.14 has begun to notice that it is in the event loop's own thread.
    assert future.done() is (helpers.PYTHON >= (3, 14))
    assert await future == 1024


async def test_an_executor_that_returns_a_future_of_asyncio(loop):
    class Odd(concurrent.futures.Executor):
        def submit(self, function, *args):
            return loop.create_future()

    future = loop.run_in_executor(Odd(), print)
    future.set_result(1)
    assert await future == 1


async def test_an_executor_that_fails(loop):
    class Broken(concurrent.futures.Executor):
        def submit(self, function, *args):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        loop.run_in_executor(Broken(), print)


@pytest.mark.parametrize("debug", [False, True])
async def test_the_traceback_is_that_of_the_function(loop, debug):
    loop.set_debug(debug)

    def fail():
        raise LookupError("failed")

    future = loop.run_in_executor(None, fail)
    await asyncio.wait([future])
    names = [frame.name for frame in traceback.extract_tb(future.exception().__traceback__)]
    assert names[-1] == "fail"
    assert "result" not in names


async def test_work_leaves_no_garbage(loop):
    await loop.run_in_executor(None, int)
    gc.collect()
    gc.disable()
    garbage = []
    try:
        # The least of three: threads of earlier tests may end meanwhile, and leave theirs.
        for _ in range(3):
            for _ in range(5):
                await loop.run_in_executor(None, int)
            garbage.append(gc.collect())
    finally:
        gc.enable()
    assert min(garbage) < 5, garbage


def test_a_loop_that_is_closed_before_the_work_is_done(new_loop):
    loop = new_loop()
    event = threading.Event()
    executor = concurrent.futures.ThreadPoolExecutor(1)

    async def main():
        loop.run_in_executor(executor, event.wait, 20)

    loop.run_until_complete(main())
    loop.close()
    event.set()
    executor.shutdown()


# Names and addresses

QUESTIONS = [
    (("127.0.0.1", 80), {}),
    (("127.0.0.1", 80), {"type": socket.SOCK_STREAM}),
    (("127.0.0.1", "80"), {"type": socket.SOCK_STREAM}),
    (("127.0.0.1", b"80"), {"type": socket.SOCK_STREAM}),
    (("127.0.0.1", "http"), {"type": socket.SOCK_STREAM}),
    (("127.0.0.1", "no-such-service"), {"type": socket.SOCK_STREAM}),
    (("127.0.0.1", None), {"type": socket.SOCK_STREAM}),
    (("127.0.0.1", 0), {"type": socket.SOCK_DGRAM}),
    (("127.0.0.1", 80), {"type": socket.SOCK_STREAM, "proto": socket.IPPROTO_TCP}),
    (("127.0.0.1", 80), {"proto": socket.IPPROTO_TCP}),
    (("127.0.0.1", 80), {"proto": socket.IPPROTO_UDP}),
    (("127.0.0.1", 80), {"type": socket.SOCK_STREAM, "proto": socket.IPPROTO_UDP}),
    (("127.0.0.1", 80), {"type": socket.SOCK_RAW}),
    (("127.0.0.1", 80), {"family": socket.AF_INET, "type": socket.SOCK_STREAM}),
    (("127.0.0.1", 80), {"family": socket.AF_INET6, "type": socket.SOCK_STREAM}),
    (("127.0.0.1", 80), {"family": socket.AF_UNIX}),
    (("127.0.0.1", 80), {"type": socket.SOCK_STREAM, "flags": socket.AI_PASSIVE}),
    (("127.0.0.1", 80), {"type": socket.SOCK_STREAM, "flags": socket.AI_NUMERICHOST}),
    (("127.0.0.1", 80), {"type": socket.SOCK_STREAM, "flags": socket.AI_CANONNAME}),
    (("127.0.0.1", 80), {"family": socket.AF_INET6, "type": socket.SOCK_STREAM, "flags": socket.AI_V4MAPPED}),
    (("127.0.0.1", 65535), {"type": socket.SOCK_STREAM}),
    (("127.0.0.1", 65536), {"type": socket.SOCK_STREAM}),
    (("127.0.0.1", -1), {"type": socket.SOCK_STREAM}),
    (("127.0.0.1", "99999"), {"type": socket.SOCK_STREAM}),
    ((b"127.0.0.1", 80), {"type": socket.SOCK_STREAM}),
    (("127.1", 80), {"type": socket.SOCK_STREAM}),
    (("0x7f.1", 80), {"type": socket.SOCK_STREAM}),
    (("127.0.0.010", 80), {"type": socket.SOCK_STREAM}),
    (("0.0.0.0", 80), {"type": socket.SOCK_STREAM}),
    (("255.255.255.255", 80), {"type": socket.SOCK_STREAM}),
    (("256.0.0.1", 80), {"type": socket.SOCK_STREAM, "flags": socket.AI_NUMERICHOST}),
    (("127.0.0.1 ", 80), {"type": socket.SOCK_STREAM, "flags": socket.AI_NUMERICHOST}),
    (("::1", 80), {"type": socket.SOCK_STREAM}),
    (("::1", "80"), {}),
    (("::", 80), {"type": socket.SOCK_STREAM}),
    (("::1", 80), {"family": socket.AF_INET, "type": socket.SOCK_STREAM}),
    (("::ffff:127.0.0.1", 80), {"type": socket.SOCK_STREAM}),
    (("0:0:0:0:0:0:0:1", 80), {"type": socket.SOCK_STREAM}),
    (("fe80::1%lo", 80), {"type": socket.SOCK_STREAM}),
    (("fe80::1%1", 80), {"type": socket.SOCK_STREAM}),
    (("fe80::1%nonsense", 80), {"type": socket.SOCK_STREAM, "flags": socket.AI_NUMERICHOST}),
    (("2001:db8::1", 443), {"type": socket.SOCK_STREAM, "proto": socket.IPPROTO_TCP}),
    (("[::1]", 80), {"type": socket.SOCK_STREAM, "flags": socket.AI_NUMERICHOST}),
    ((None, 80), {"type": socket.SOCK_STREAM}),
    ((None, 80), {"type": socket.SOCK_STREAM, "flags": socket.AI_PASSIVE}),
    ((None, None), {}),
    (("", 80), {"type": socket.SOCK_STREAM, "flags": socket.AI_NUMERICHOST}),
    (("localhost", 80), {"type": socket.SOCK_STREAM}),
    (("nonsense", 80), {"type": socket.SOCK_STREAM, "flags": socket.AI_NUMERICHOST}),
    (("127.0.0.1", 80.5), {}),
    ((42, 80), {}),
    (("127.0.0.1\0", 80), {"type": socket.SOCK_STREAM}),
]


@pytest.mark.parametrize(("arguments", "options"), QUESTIONS, ids=lambda value: repr(value))
async def test_addresses_are_those_of_the_socket_module(loop, arguments, options):
    try:
        expected = socket.getaddrinfo(*arguments, **options)
    except Exception as error:
        expected = error
    if isinstance(expected, Exception):
        with pytest.raises(type(expected)) as caught:
            await loop.getaddrinfo(*arguments, **options)
        assert caught.value.args == expected.args
    else:
        found = await loop.getaddrinfo(*arguments, **options)
        assert found == expected
        assert [tuple(map(type, answer)) for answer in found] == [
            tuple(map(type, answer)) for answer in expected
        ]


NUMERIC = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
NAMES = [
    (("127.0.0.1", 80), NUMERIC),
    (("127.0.0.1", 80), socket.NI_NUMERICHOST),
    (("127.0.0.1", 0), NUMERIC),
    (("127.0.0.1", 65535), NUMERIC),
    (("127.0.0.1", 65536), NUMERIC),
    (("127.0.0.1", 53), NUMERIC | socket.NI_DGRAM),
    (("::1", 80), NUMERIC),
    (("::1", 80, 0, 0), NUMERIC),
    (("fe80::1", 80, 0, 1), NUMERIC),
    (("nonsense", 80), NUMERIC | socket.NI_NAMEREQD),
    (("127.0.0.1",), NUMERIC),
    ("127.0.0.1", NUMERIC),
    (("127.0.0.1", "80"), NUMERIC),
]


@pytest.mark.parametrize(("address", "flags"), NAMES, ids=lambda value: repr(value))
async def test_names_are_those_of_the_socket_module(loop, address, flags):
    try:
        expected = socket.getnameinfo(address, flags)
    except Exception as error:
        with pytest.raises(type(error)):
            await loop.getnameinfo(address, flags)
    else:
        assert await loop.getnameinfo(address, flags) == expected


async def test_connecting_to_an_address_costs_no_thread(loop):
    with helpers.listener() as server:
        transport, protocol = await loop.create_connection(helpers.Recorder, *server.getsockname())
        transport.close()
        await protocol.lost()
        with socket.socket() as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, server.getsockname())
    made = await loop.create_server(helpers.Recorder, "127.0.0.1", 0)
    made.close()
    assert loop._default_executor is None


@pytest.mark.hotloop_only
async def test_looking_an_address_up_costs_no_thread(loop):
    for arguments, options in (
        (("127.0.0.1", 80), {}),
        (("127.0.0.1", "80"), {"type": socket.SOCK_STREAM}),
        (("::1", 80), {"type": socket.SOCK_STREAM, "proto": socket.IPPROTO_TCP}),
        (("127.0.0.1", None), {"family": socket.AF_INET}),
    ):
        await loop.getaddrinfo(*arguments, **options)
    assert await loop.getnameinfo(("127.0.0.1", 80), NUMERIC) == ("127.0.0.1", "80")
    assert loop._default_executor is None


async def test_a_name_costs_a_thread(loop, monkeypatch):
    """So that a slow name server does not hold the loop up."""
    seen = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: seen.append(threading.current_thread()) or [])
    await loop.getaddrinfo("localhost", 80)
    assert seen != [threading.main_thread()]


async def test_connecting_to_a_name_and_a_service(loop, monkeypatch):
    seen = []
    resolve = socket.getaddrinfo

    def getaddrinfo(*arguments, **options):
        seen.append((arguments[0], threading.current_thread() is threading.main_thread()))
        return resolve(*arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with helpers.listener() as server:
        transport, protocol = await loop.create_connection(
            helpers.Recorder, "localhost", str(server.getsockname()[1])
        )
        transport.close()
        await protocol.lost()
    assert seen == [("localhost", False)]
