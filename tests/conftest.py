"""Fixtures: a test that takes a loop runs on asyncio's own and on hotloop, unless it is marked hotloop_only.

HOTLOOP_TESTS_LOOPS names the loops to run on (`asyncio`, `hotloop`, or both with a comma between them); with
`asyncio` alone the extension need not have been built. `uvloop`, if it is installed, fails many of them.
"""

import asyncio
import contextlib
import gc
import inspect
import logging
import os
import signal
import socket

import helpers
import helpers_leaks
import helpers_limits
import pytest
import trustme


def pytest_configure(config):
    # Whoever started this in the background may have them ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    config.addinivalue_line("markers", "hotloop_only: behaviour that asyncio's own loop does not have")
    config.addinivalue_line(
        "markers", "asyncio_from(major, minor): behaviour that asyncio has from that Python on"
    )
    config.addinivalue_line(
        "markers", "asyncio_bug(reason, *pythons): asyncio's own loop fails here, on those or all"
    )


def pytest_generate_tests(metafunc):
    if "loop_name" not in metafunc.fixturenames:
        return
    names = list(helpers.FACTORIES)
    if metafunc.definition.get_closest_marker("hotloop_only"):
        names = [name for name in names if name == "hotloop"]
    if not metafunc.module.__name__.startswith("test_tls"):
        return metafunc.parametrize("loop_name", names)
    engines = [(name, engine) for name in names for engine in (helpers.TLS if name == "hotloop" else [""])]
    ids = [f"{name}-{engine}".strip("-") for name, engine in engines]
    metafunc.parametrize(("loop_name", "tls_engine"), engines, ids=ids, indirect=["tls_engine"])


def pytest_collection_finish(session):
    """What has been imported by now stays; the many collections of the tests need not look at it."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item):
    for marker in item.iter_markers("asyncio_from"):
        if marker.args > helpers.PYTHON:
            pytest.skip("from Python {}.{} on".format(*marker.args))
    for marker in item.iter_markers("asyncio_bug"):
        reason, *pythons = marker.args
        if item.callspec.params.get("loop_name") == "asyncio" and (not pythons or helpers.PYTHON in pythons):
            pytest.skip(reason)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Run a test that is a coroutine function on its loop."""
    if not inspect.iscoroutinefunction(pyfuncitem.function):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    pyfuncitem.funcargs["loop"].run_until_complete(pyfuncitem.obj(**arguments))
    return True


@pytest.fixture
def reports():
    """What the loop's exception handler was told; a test takes what it expects, and what is left fails it."""
    found = helpers.Reports()
    yield found
    assert not found, list(found)


@pytest.fixture(autouse=True)
def tls_engine(request):
    """What encrypts on hotloop: the tests of TLS run with each."""
    engine = getattr(request, "param", None)
    with pytest.MonkeyPatch.context() as patch:
        if engine:
            patch.setenv("HOTLOOP_TLS", engine)
        yield engine


@pytest.fixture
def new_loop(loop_name, reports):
    """Makes loops, which are closed after the test, and must leave no descriptor behind."""
    before = helpers.open_descriptors()
    loops = []

    def make():
        loop = helpers.FACTORIES[loop_name]()
        loop.set_exception_handler(reports.handler)
        loops.append(loop)
        return loop

    yield make
    for loop in loops:
        if not loop.is_closed():
            helpers.close_loop(loop)
    loops.clear()
    if helpers.opened_since(before):
        for _ in range(3):  # what a destructor has touched goes one collection later
            gc.collect()
    left = helpers.opened_since(before)
    assert not left, f"descriptors left open: {left}"


@pytest.fixture
def loop(new_loop):
    """A loop whose reports to the exception handler are in `reports`."""
    return new_loop()


@pytest.fixture
def no_child_left():
    """Fails a test that leaves a child process, be it alive or a zombie."""

    def left():
        try:
            return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) or "one that runs"
        except ChildProcessError:
            return None

    assert left() is None
    yield
    assert left() is None


@pytest.fixture
def gate():
    """The ends of a pipe: a child waits on the first, and goes on when a line is written to the second."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@pytest.fixture(params=["tcp", "unix"])
def kind(request):
    """Each kind of stream socket in turn."""
    return request.param


@pytest.fixture
def pair(kind):
    """Two connected sockets of that kind, closed after the test."""
    both = helpers.PAIRS[kind]()
    yield both
    for sock in both:
        sock.close()


@pytest.fixture
def attach(loop, kind):
    """Gives a protocol a transport over an end of a connection: `protocol, peer = await attach(protocol)`."""
    opened = []

    async def attach(protocol):
        ours, peer = helpers.PAIRS[kind]()
        opened.append(peer)
        transport, _ = await loop.create_connection(lambda: protocol, sock=ours)
        opened.append(transport)
        return protocol, peer

    yield attach
    for thing in opened:
        if not isinstance(thing, asyncio.BaseTransport):
            thing.close()
        elif not loop.is_closed() and not thing.is_closing():
            thing.abort()


@pytest.fixture
def endpoint(loop):
    """Gives a protocol an endpoint for datagrams: `protocol = await endpoint(protocol, local_addr=...)`."""
    transports = []

    async def endpoint(protocol, **options):
        transport, _ = await loop.create_datagram_endpoint(lambda: protocol, **options)
        transports.append(transport)
        return protocol

    yield endpoint
    for transport in transports:
        if not loop.is_closed() and not transport.is_closing():
            transport.abort()


@pytest.fixture(params=["pipe", "socket", "fifo"])
def pipe(request, tmp_path):
    """Each kind of pipe in turn, as two files, the one to read from first; closed after the test."""
    if request.param == "pipe":
        both = helpers.os_pipe()
    elif request.param == "socket":
        ours, peer = socket.socketpair()
        both = os.fdopen(ours.detach(), "rb", 0), os.fdopen(peer.detach(), "wb", 0)
    else:
        path = tmp_path / "fifo"
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(reader, True)
        both = os.fdopen(reader, "rb", 0), path.open("wb", 0)
    yield both
    for file in both:
        file.close()


@pytest.fixture
def read_pipe(loop):
    """Gives a protocol a transport that reads a pipe: `protocol = await read_pipe(protocol, file)`."""
    transports = []

    async def read_pipe(protocol, file):
        transport, _ = await loop.connect_read_pipe(lambda: protocol, file)
        transports.append(transport)
        return protocol

    yield read_pipe
    for transport in transports:
        if not loop.is_closed():
            transport.close()


@pytest.fixture
def write_pipe(loop):
    """Gives a protocol a transport that writes to a pipe: `protocol = await write_pipe(protocol, file)`."""
    transports = []

    async def write_pipe(protocol, file):
        transport, _ = await loop.connect_write_pipe(lambda: protocol, file)
        transports.append(transport)
        return protocol

    yield write_pipe
    for transport in transports:
        if not loop.is_closed() and not transport.is_closing():
            transport.abort()


@pytest.fixture
def clients():
    """Makes sockets that connect, closed after the test: `clients(address, 3)`."""
    with contextlib.ExitStack() as stack:

        def clients(address, count=1):
            return [stack.enter_context(helpers_limits.connect(address)) for _ in range(count)]

        yield clients


@pytest.fixture
def logged(caplog):
    """The lines that asyncio's logger got, as (level, message)."""
    caplog.set_level(logging.DEBUG, logger="asyncio")

    def lines(level=logging.WARNING):
        return [
            record.getMessage()
            for record in caplog.records
            if record.name == "asyncio" and record.levelno >= level
        ]

    return lines


@pytest.fixture(scope="session")
def authority():
    """A certificate authority of our own."""
    return trustme.CA()


@pytest.fixture(scope="session")
def tls(authority):
    """The TLS contexts of a server at localhost, and of a client that trusts it."""
    import ssl

    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1", "::1").configure_cert(server)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client)
    return server, client


@pytest.fixture
def rounds(loop_name):
    def rounds(normal, full):
        return full if helpers_leaks.FULL and loop_name == "hotloop" else normal

    return rounds


@pytest.fixture
def repeat(loop):
    """Runs a coroutine function again and again: `repeat(function, rounds)`."""

    def repeat(once, rounds, **kwargs):
        async def main(count):
            for _ in range(count):
                await once()
            await helpers.iterations(3)

        helpers_leaks.flat(lambda count: loop.run_until_complete(main(count)), rounds, **kwargs)

    return repeat
