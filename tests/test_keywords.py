"""Arguments by name, which asyncio's methods take because they are written in Python; and wrong ones."""

import asyncio
import contextvars

import helpers
import pytest
from helpers import Recorder


async def test_scheduling(loop):
    seen = []
    where = contextvars.copy_context()
    loop.call_soon(callback=lambda: seen.append("soon"))
    loop.call_soon(context=where, callback=lambda: seen.append("in context"))
    loop.call_soon_threadsafe(callback=lambda: seen.append("threadsafe"), context=None)
    loop.call_later(delay=0, callback=lambda: seen.append("later"))
    loop.call_later(0, callback=lambda: seen.append("later, too"))
    loop.call_at(callback=lambda: seen.append("at"), when=loop.time(), context=where)
    await asyncio.sleep(0.001)
    assert sorted(seen) == ["at", "in context", "later", "later, too", "soon", "threadsafe"]


async def test_tasks(loop):
    async def answer():
        return asyncio.current_task().get_name(), 42

    assert await loop.create_task(coro=answer(), name="named") == ("named", 42)
    assert await loop.create_task(name="named", context=contextvars.copy_context(), coro=answer()) == (
        "named",
        42,
    )


async def test_watchers(loop):
    ours, peer = helpers.unix_pair()
    with ours, peer:
        writable, readable = asyncio.Event(), asyncio.Event()
        loop.add_writer(fd=ours, callback=writable.set)
        loop.add_reader(ours, callback=readable.set)
        await writable.wait()
        peer.send(b"x")
        await readable.wait()
        assert loop.remove_writer(fd=ours)
        assert loop.remove_reader(fd=ours)


async def test_sockets(loop):
    ours, peer = helpers.unix_pair()
    with ours, peer:
        await loop.sock_sendall(sock=ours, data=b"one two")
        assert await loop.sock_recv(sock=peer, n=3) == b"one"
        buffer = bytearray(4)
        assert await loop.sock_recv_into(sock=peer, buf=buffer) == 4
        assert buffer == b" two"


async def test_transports(loop):
    ours, peer = helpers.tcp_pair()
    transport, _ = await loop.create_connection(protocol_factory=Recorder, sock=ours)
    with peer:
        second = Recorder()
        transport.set_protocol(protocol=second)
        assert transport.get_protocol() is second
        transport.write(data=b"a")
        transport.writelines(list_of_data=[b"b", b"c"])
        assert transport.get_extra_info(default=7, name="nothing of the sort") == 7
        assert transport.get_extra_info(name="peername") == peer.getsockname()
        transport.set_write_buffer_limits(low=1, high=10)
        assert transport.get_write_buffer_limits() == (1, 10)
        assert await loop.sock_recv(peer, 1) + await loop.sock_recv(peer, 2) == b"abc"
    transport.close()
    await asyncio.sleep(0)


WRONG = {
    "call_soon": [
        ((), {}),
        ((print,), {"callback": print}),
        ((), {"function": print}),
        ((print,), {"args": ()}),
    ],
    "call_soon_threadsafe": [((), {}), ((), {"context": None})],
    "call_later": [((), {}), ((1,), {}), ((), {"callback": print}), ((1,), {"delay": 1, "callback": print})],
    "call_at": [((), {}), ((1,), {}), ((1,), {"delay": 1, "callback": print}), ((None, print), {})],
    "create_future": [((1,), {}), ((), {"loop": None})],
    "create_task": [((), {}), ((), {"name": "x"})],
    "add_reader": [((), {}), ((0,), {}), ((0,), {"fd": 0, "callback": print})],
    "remove_reader": [((), {}), ((0, 0), {}), ((), {"file": 0}), ((0,), {"fd": 0})],
    "time": [((1,), {}), ((), {"now": 1})],
    "stop": [((1,), {})],
}


@pytest.mark.parametrize(
    ("name", "args", "kwargs"), [(name, *wrong) for name, wrongs in WRONG.items() for wrong in wrongs]
)
def test_wrong_arguments_of_a_loop(loop, name, args, kwargs):
    with pytest.raises(TypeError):
        getattr(loop, name)(*args, **kwargs)


@pytest.mark.parametrize(
    ("name", "args", "kwargs"),
    [
        ("write", (), {}),
        ("write", (b"a", b"b"), {}),
        ("write", (b"a",), {"data": b"b"}),
        ("write", (), {"bytes": b"b"}),
        ("writelines", (), {}),
        ("writelines", ([],), {"list_of_data": []}),
        ("set_protocol", (), {}),
        ("close", (1,), {}),
        ("get_extra_info", (), {}),
        ("get_extra_info", ("socket", None, None), {}),
        ("set_write_buffer_limits", (1, 2, 3), {}),
    ],
)
async def test_wrong_arguments_of_a_transport(loop, name, args, kwargs):
    ours, peer = helpers.tcp_pair()
    transport, _ = await loop.create_connection(Recorder, sock=ours)
    with peer, pytest.raises(TypeError):
        getattr(transport, name)(*args, **kwargs)
    transport.abort()
    await asyncio.sleep(0)
