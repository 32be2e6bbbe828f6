"""create_connection() to an IP address: hotloop makes such a connection itself, and nobody is to notice."""

import asyncio
import errno
import socket
import subprocess
import sys
import textwrap

import helpers
import pytest
from helpers import FACTORIES, Recorder
from test_tcp import serving

DEFAULTS = {
    "ssl": None,
    "family": 0,
    "proto": 0,
    "flags": 0,
    "sock": None,
    "local_addr": None,
    "server_hostname": None,
    "ssl_handshake_timeout": None,
    "happy_eyeballs_delay": None,
    "interleave": None,
}


async def check_connection(loop, address, **options):
    transport, protocol = await loop.create_connection(Recorder, *address, **options)
    assert protocol.calls == ["connection_made"]
    assert transport.get_extra_info("peername") == address
    sock = transport.get_extra_info("socket")
    assert sock.getpeername() == address
    assert sock.gettimeout() == 0
    assert not sock.get_inheritable()
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    transport.close()
    assert await protocol.lost() is None


@pytest.mark.parametrize(
    "options",
    [{}, DEFAULTS, {"ssl": False}, {"family": socket.AF_UNSPEC}, {"family": socket.AF_INET}],
    ids=["none", "defaults", "no ssl", "any family", "family"],
)
@pytest.mark.parametrize("debug", [False, True])
async def test_options_that_change_nothing(loop, options, debug):
    loop.set_debug(debug)
    async with serving(loop) as (address, _protocols):
        await check_connection(loop, address, **options)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"nonsense": None}, TypeError),
        ({"ssl_handshake_timeout": 0}, ValueError),
        ({"server_hostname": ""}, ValueError),
        ({"family": socket.AF_INET6}, OSError),
    ],
)
async def test_options_that_are_wrong(loop, options, error):
    async with serving(loop) as (address, protocols):
        with pytest.raises(error):
            await loop.create_connection(Recorder, *address, **options)
        assert not protocols


async def test_a_server_that_speaks_first(loop):
    class Greeter(asyncio.Protocol):
        def connection_made(self, transport):
            transport.write(b"welcome")
            transport.close()

    server = await loop.create_server(Greeter, "127.0.0.1", 0)
    async with helpers.running(server) as address:
        for _ in range(50):
            _, protocol = await loop.create_connection(Recorder, *address)
            assert await protocol.received(7) == b"welcome"
            assert await protocol.lost() is None
            assert protocol.calls == ["connection_made", "data_received", "eof_received", "connection_lost"]


async def test_protocols_that_pause_or_close_at_once(loop):
    async with serving(loop) as (address, _protocols):
        pausing = Recorder(connection_made=lambda protocol, transport: transport.pause_reading())
        transport, _ = await loop.create_connection(lambda: pausing, *address)
        assert not transport.is_reading()
        transport.abort()
        await pausing.lost()
        closing = Recorder(connection_made=lambda protocol, transport: transport.close())
        transport, _ = await loop.create_connection(lambda: closing, *address)
        assert transport.is_closing()
        await closing.lost()


@pytest.mark.parametrize("count", range(7))
async def test_cancelling_at_any_moment_leaves_nothing_open(loop, count):
    async with serving(loop) as (address, protocols):
        before = helpers.open_descriptors()
        task = loop.create_task(loop.create_connection(Recorder, *address))
        await helpers.iterations(count)
        task.cancel()
        try:
            transport, protocol = await task
        except asyncio.CancelledError:
            pass
        else:
            transport.abort()
            await protocol.lost()
        for protocol in protocols:
            await protocol.lost()
        await helpers.until(lambda: not helpers.opened_since(before))


def failures(factory, addresses):
    """What connecting to each address is answered with."""

    async def main():
        said = []
        for address in addresses:
            try:
                await asyncio.get_running_loop().create_connection(Recorder, *address)
            except (OSError, OverflowError, TypeError, ValueError) as error:
                said.append((type(error), getattr(error, "errno", None), str(error)))
            else:
                said.append(None)
        return said

    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main())


def test_failures_are_asyncios():
    addresses = [
        ("127.0.0.1", helpers.unused_port()),
        ("127.0.0.1", 0),
        ("255.255.255.255", 9),
        ("224.0.0.1", 9),
        ("127.0.0.1", 65536),
        ("127.0.0.1", -1),
        ("127.0.0.1", "no-such-service"),
        ("::1", helpers.unused_port()),
        ("::ffff:127.0.0.1", helpers.unused_port()),
        ("ff02::1", 9),
        ("127.0.0.1", None),
    ]
    expected = failures(FACTORIES["asyncio"], addresses)
    assert None not in expected
    assert expected[0][:2] == (ConnectionRefusedError, errno.ECONNREFUSED)
    assert failures(FACTORIES["hotloop"], addresses) == expected


# Whoever has put something else in the way is asked.


async def test_a_replaced_getaddrinfo_is_asked(loop, monkeypatch):
    """An address needs no resolving, but a name that comes before it does."""
    asked = []

    async def getaddrinfo(host, port, **options):
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address)]

    async with serving(loop) as (address, _protocols):
        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
        transport, protocol = await loop.create_connection(Recorder, "example", 80)
        transport.close()
        await protocol.lost()
        await check_connection(loop, address)
    assert asked == ["example"]


async def test_a_replaced_sock_connect_is_asked(loop, monkeypatch):
    asked = []
    sock_connect = loop.sock_connect

    async def spy(sock, address):
        asked.append(address)
        await sock_connect(sock, address)

    async with serving(loop) as (address, _protocols):
        monkeypatch.setattr(loop, "sock_connect", spy)
        await check_connection(loop, address)
        assert asked == [address]


@pytest.mark.parametrize("name", FACTORIES)
def test_a_subclass_is_asked(name):
    base = type(FACTORIES[name]())
    asked = []

    class Spying(base):
        async def sock_connect(self, sock, address):
            asked.append(address)
            await super().sock_connect(sock, address)

    async def main():
        loop = asyncio.get_running_loop()
        async with serving(loop) as (address, _protocols):
            await check_connection(loop, address)
            assert asked == [address]

    with asyncio.Runner(loop_factory=Spying) as runner:
        runner.run(main())


async def test_a_replaced_socket_class_is_used(loop, monkeypatch):
    class Guarded(socket.socket):
        def __init__(self, *args, **kwargs):
            raise PermissionError("no network in this test")

    async with serving(loop) as (address, _protocols):
        monkeypatch.setattr(socket, "socket", Guarded)
        with pytest.raises(PermissionError, match="no network"):
            await loop.create_connection(Recorder, *address)
        monkeypatch.undo()
        await check_connection(loop, address)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
async def test_a_function_in_place_of_the_socket_class(loop, monkeypatch, tmp_path, family):
    """Tests put one there, as by unittest.mock.patch()."""
    make, made = socket.socket, []

    def function(family=socket.AF_INET, type=socket.SOCK_STREAM, proto=0, fileno=None):
        made.append(make(family, type, proto, fileno))
        return made[-1]

    monkeypatch.setattr(socket, "socket", function)
    protocols = []

    def factory():
        protocols.append(Recorder())
        return protocols[-1]

    if family == socket.AF_INET:
        server = await loop.create_server(factory, "127.0.0.1", 0)
        transport, protocol = await loop.create_connection(Recorder, *server.sockets[0].getsockname())
    else:
        path = str(tmp_path / "socket")
        server = await loop.create_unix_server(factory, path)
        transport, protocol = await loop.create_unix_connection(Recorder, path)
    async with helpers.running(server):
        await helpers.until(lambda: protocols and protocols[0].transport)
        sock = protocols[0].transport.get_extra_info("socket")
        assert sock.family == family
        assert sock.fileno() in [each.fileno() for each in made]
        transport.write(b"data")
        await helpers.until(lambda: protocols[0].data == b"data")
        transport.close()
        assert await protocol.lost() is None
        assert await protocols[0].lost() is None


async def test_a_replaced_connect_is_used(loop, monkeypatch):
    def connect(sock, address):
        raise PermissionError(f"not to {address[0]}")

    async with serving(loop) as (address, _protocols):
        monkeypatch.setattr(socket.socket, "connect", connect, raising=False)
        with pytest.raises(PermissionError, match=r"not to 127\.0\.0\.1"):
            await loop.create_connection(Recorder, *address)
        monkeypatch.undo()
        await check_connection(loop, address)


AUDIT = """
    import asyncio, socket, sys

    events = []
    forbidden = False

    def hook(event, arguments):
        if event == "socket.connect":
            sock, address = arguments
            events.append((type(sock), sock.gettimeout(), address))
            if forbidden:
                raise PermissionError("forbidden")

    async def main():
        global forbidden
        loop = asyncio.get_running_loop()
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        sys.addaudithook(hook)
        transport, _ = await loop.create_connection(asyncio.Protocol, *address)
        assert transport.get_extra_info("peername") == address
        transport.close()
        assert events == [(socket.socket, 0, address)], events
        forbidden = True
        try:
            await loop.create_connection(asyncio.Protocol, *address)
        except PermissionError as error:
            print(error)
        server.close()

    run(main())
"""


@pytest.mark.parametrize("name", FACTORIES)
def test_audit_hooks_see_it_and_can_forbid_it(name):
    assert helpers.run_script(name, AUDIT).stdout == "forbidden\n"


AUDIT_THAT_CLOSES = """
    import asyncio, socket, sys

    others = []

    def hook(event, arguments):
        if event == "socket.connect" and not others:
            number = arguments[0].fileno()
            arguments[0].close()
            others.append(socket.socket())
            assert others[0].fileno() == number

    async def main():
        with socket.create_server(("127.0.0.1", 0)) as server:
            sys.addaudithook(hook)
            try:
                await asyncio.get_running_loop().create_connection(asyncio.Protocol, *server.getsockname())
            except OSError as error:
                print(error)
        try:
            others[0].getpeername()
        except OSError as error:
            print(error)

    run(main())
"""


@pytest.mark.parametrize("name", FACTORIES)
def test_a_socket_that_an_audit_hook_closes_is_not_taken_for_another(name):
    messages = "[Errno 9] Bad file descriptor\n[Errno 107] Transport endpoint is not connected\n"
    assert helpers.run_script(name, AUDIT_THAT_CLOSES).stdout == messages


EXHAUSTED = """
    import asyncio, errno, os, resource

    async def main():
        loop = asyncio.get_running_loop()
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        free = os.dup(0)
        os.close(free)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            await loop.create_connection(asyncio.Protocol, *address)
        except OSError as error:
            print(errno.errorcode[error.errno])
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        transport, _ = await loop.create_connection(asyncio.Protocol, *address)
        transport.close()
        server.close()

    run(main())
"""


@pytest.mark.parametrize("name", FACTORIES)
def test_no_descriptor_left(name):
    assert helpers.run_script(name, EXHAUSTED).stdout == "EMFILE\n"


def test_a_closed_loop_does_not_connect(new_loop):
    loop = new_loop()
    connecting = loop.create_connection(Recorder, "127.0.0.1", helpers.unused_port())
    loop.close()
    with pytest.raises((RuntimeError, OSError)):
        connecting.send(None)


async def test_a_burst_of_connections(loop):
    """More at once than are accepted at a time."""
    made = []

    async with serving(loop, backlog=500) as (address, protocols):
        for sock in (socket.socket() for _ in range(300)):
            sock.setblocking(False)
            assert sock.connect_ex(address) in (0, errno.EINPROGRESS)
            made.append(sock)
        await helpers.until(lambda: len(protocols) == len(made))
        for sock in made:
            sock.close()
        for protocol in protocols:
            assert await protocol.lost() is None


@pytest.mark.hotloop_only
async def test_what_hotloop_does_itself(loop):
    """The tests above test what they mean to: no socket object is made unless somebody asks for one."""
    made = []

    def trace(frame, event, argument):
        if event == "call" and frame.f_code is socket.socket.__init__.__code__:
            made.append(frame)

    async with serving(loop) as (address, _protocols):
        sys.setprofile(trace)
        try:
            transport, protocol = await loop.create_connection(Recorder, *address)
        finally:
            sys.setprofile(None)
        assert not made
        transport.close()
        await protocol.lost()


FORBIDDEN_BEFORE = """
    import asyncio, socket

    class Guarded(socket.socket):
        def connect(self, address):
            raise PermissionError("forbidden")

    genuine, socket.socket = socket.socket, Guarded

    async def main():
        loop = asyncio.get_running_loop()
        with genuine() as server:
            server.bind(("127.0.0.1", 0))
            server.listen()
            try:
                await loop.create_connection(asyncio.Protocol, *server.getsockname())
            except PermissionError as error:
                print(error)
"""


@pytest.mark.parametrize("name", FACTORIES)
def test_a_socket_class_that_was_replaced_before_anything_else(name):
    source = textwrap.dedent(FORBIDDEN_BEFORE) + helpers.script(name, "run(main())")
    result = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=30)
    assert result.stdout == "forbidden\n", result.stderr
