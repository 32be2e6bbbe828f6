"""What programs that look at objects see of loops and transports: coroutine functions, signatures, copies."""

import ast
import asyncio
import copy
import inspect
import socket
from pathlib import Path
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


def stub_signatures():
    """Of the methods of each class in the stub, without annotations."""
    tree = ast.parse((Path(hotloop.__file__).parent / "_core.pyi").read_text())
    for kind in ast.walk(tree):
        for method in kind.body if isinstance(kind, ast.ClassDef) else ():
            if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) and not method.decorator_list:
                for argument in ast.walk(method.args):
                    if isinstance(argument, ast.arg):
                        argument.annotation = None
                yield kind.name, method.name, ast.unparse(method.args)


def native_methods():
    return [
        (kind, name, method)
        for kind in vars(hotloop._core).values()
        if isinstance(kind, type)
        for name, method in vars(kind).items()
        if inspect.isroutine(method) and getattr(method, "__text_signature__", None) != "($self, /, *args, **kwargs)"
    ]


STUB = {(kind, name): signature for kind, name, signature in stub_signatures()}
NATIVE = native_methods()


@pytest.mark.hotloop_only
@pytest.mark.parametrize(("kind", "name", "method"), NATIVE, ids=[f"{kind.__name__}.{name}" for kind, name, _ in NATIVE])
def test_a_native_method_has_the_stubs_signature(kind, name, method):
    """mypy.stubtest leaves out private methods that the stub does not have, and inherited ones."""
    told = inspect.signature(method)
    stub = STUB.get((kind.__name__, name))
    if stub is not None:
        assert str(told)[1:-1] == stub
    else:
        assert parameters(method) == parameters(getattr(kind.__base__, name))


@pytest.fixture
def pair():
    ours, peer = socket.socketpair()
    with ours, peer:
        ours.setblocking(False)
        peer.setblocking(False)
        yield ours, peer


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
