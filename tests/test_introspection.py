"""What programs that look at objects see of loops and transports: coroutine functions, signatures, copies."""

import asyncio
import copy
import inspect
from unittest import mock

import hotloop
import pytest
from helpers import Recorder


def parameters(function):
    """Without annotations."""
    every = inspect.signature(function).parameters.values()
    return [(one.name, one.kind, one.default) for one in every]


COROUTINE_FUNCTIONS = [
    name
    for name in dir(asyncio.SelectorEventLoop)
    if inspect.iscoroutinefunction(getattr(asyncio.SelectorEventLoop, name))
]


@pytest.mark.parametrize("name", [name for name in COROUTINE_FUNCTIONS if not name.startswith("_")])
def test_coroutine_functions_are_told(loop, name):
    method, function = getattr(loop, name), getattr(type(loop), name)
    assert method.__func__ is function
    assert (method.__name__, function.__name__) == (name, name)
    theirs = getattr(asyncio.SelectorEventLoop, name)
    for one, spec in (method, theirs.__get__(loop)), (function, theirs):
        assert inspect.iscoroutinefunction(one)
        assert inspect.isroutine(one)
        assert callable(one)
        assert parameters(one) == parameters(spec)
        assert bool(inspect.getdoc(one)) >= bool(inspect.getdoc(spec))
    assert isinstance(getattr(mock.create_autospec(loop), name), mock.AsyncMock)
    with mock.patch.object(loop, name) as patched:
        assert isinstance(patched, mock.AsyncMock)


def test_coroutine_functions_refuse_other_instances(loop, pair):
    function = type(loop).sock_recv
    with pytest.raises(TypeError):
        function()
    for arguments in ((), (pair[0], 1, 2)):
        with pytest.raises(TypeError):
            function(loop, *arguments)


@pytest.mark.hotloop_only
def test_coroutine_functions_refuse_what_is_no_loop(loop, pair):
    """asyncio's find out when they run."""
    with pytest.raises(TypeError, match="doesn't apply to a 'int' object"):
        type(loop).sock_recv(1, pair[0], 1)


@pytest.fixture
def kind():
    return "unix"


async def test_copies_of_a_loop_and_of_a_transport_work_as_they_do(loop, pair):
    transport, protocol = await loop.create_connection(Recorder, sock=pair[0])
    copied = copy.copy(transport)
    assert type(copied) is type(transport)
    assert copied.get_protocol() is protocol
    copied.write(b"data")
    assert await loop.sock_recv(pair[1], 10) == b"data"
    ran = loop.create_future()
    copy.copy(loop).call_soon_threadsafe(ran.set_result, 5)
    assert await ran == 5
    for one in loop, transport:
        with pytest.raises(TypeError, match="pickle"):
            copy.deepcopy(one)
    transport.close()
    await protocol.lost()


@pytest.mark.parametrize("name", ["asyncio", "hotloop"])
def test_a_subclass_overrides_a_coroutine_function(name, pair):
    class Loop({"asyncio": asyncio.SelectorEventLoop, "hotloop": hotloop.Loop}[name]):
        async def sock_recv(self, sock, n):
            return b"<" + await super().sock_recv(sock, n) + b">"

    loop = Loop()
    pair[1].send(b"data")
    assert loop.run_until_complete(loop.sock_recv(pair[0], 10)) == b"<data>"
    loop.close()


@pytest.mark.hotloop_only
def test_a_transport_that_could_not_be_made_is_not_counted(loop, pair):
    class Server:
        def _attach(self, *transport):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop._make_socket_transport(pair[0], asyncio.Protocol(), server=Server())
    assert loop.metrics().transports == 0
