"""The memory of instances of the classes in Rust: long chains, what is kept for later, the collector."""

import asyncio
import gc

import helpers
import pytest

pytestmark = pytest.mark.hotloop_only


CHAINS = {
    "handles": "for _ in range(1_000_000):\n    last = loop.call_soon(id, last)\n    if not _ % 1000: run()",
    "many arguments": (
        "for _ in range(200_000):\n    last = loop.call_soon(nothing, 1, last, 3)\n    if not _ % 1000: run()"
    ),
    "timers": "for _ in range(300_000):\n    last = loop.call_at(0, id, last)\n    if not _ % 1000: run()",
    "cancelled": "for _ in range(300_000):\n    last = copy.copy(loop.call_later(60, id, last))",
    "threadsafe": (
        "for _ in range(300_000):\n    last = loop.call_soon_threadsafe(id, last)\n    if not _ % 1000: run()"
    ),
    "operations": "for _ in range(300_000):\n    last = loop.sock_accept(last)\n    last.close()",
    "attributes": "for _ in range(300_000):\n"
    "    before, last = last, loop.sock_accept(None)\n    last.before = before\n    last.close()",
}


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.timeout(120)
def test_a_long_chain(loop_name, name):
    """Freeing it does not take as much stack as it is long."""
    result = helpers.run_script(
        loop_name,
        f"""
import copy
loop = new_event_loop()
loop.set_exception_handler(lambda loop, context: None)
last = None
def nothing(*args): pass
def run():
    loop.call_soon(loop.stop)
    loop.run_forever()
{CHAINS[name]}
run()
del last
before = None
loop.close()
print("freed")
""",
        timeout=100,
    )
    assert result.stdout == "freed\n"


def test_more_than_is_kept(loop):
    """Of the memory of instances, only some is kept to be used again."""
    ran = []
    for _ in range(3):
        handles = [loop.call_soon(ran.append, number) for number in range(5000)]
        handles += [loop.call_later(0, ran.append, number) for number in range(5000)]
        for one in handles[::7]:
            one.cancel()
        helpers.run_once(loop)
        helpers.run_once(loop)
        wanted = [number for index, number in enumerate([*range(5000)] * 2) if index % 7]
        assert ran == wanted
        ran.clear()


@helpers.with_gil
@helpers.over_unix
def test_the_collector_at_each_allocation(loop, pair):
    """It sees no instance before its value is there, and what looks at all of them can."""
    seen = []

    def look(phase, info):
        for found in gc.get_objects(generation=0):
            if type(found).__module__ == "hotloop._core":
                seen.append(type(found).__name__)
                gc.get_referents(found)
                repr(found)

    async def main():
        ran = []
        for _ in range(20):
            loop.call_soon(ran.append, 1)
            loop.call_later(0, ran.append, 2)
            loop.call_soon_threadsafe(ran.append, 3)
            receiving = loop.create_task(loop.sock_recv(pair[0], 10))
            await asyncio.sleep(0)
            await loop.sock_sendall(pair[1], b"hello")
            assert await receiving == b"hello"
        ours, peer = helpers.unix_pair()
        protocol = helpers.Recorder()
        transport, _ = await loop.create_connection(lambda: protocol, sock=ours)
        peer.send(b"hello")
        assert await protocol.received(5) == b"hello"
        transport.close()
        await protocol.lost()
        peer.close()
        await asyncio.sleep(0.001)
        return sorted(ran)

    threshold = gc.get_threshold()
    gc.callbacks.append(look)
    gc.set_threshold(1)
    try:
        ran = loop.run_until_complete(main())
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(look)
    assert ran == [1] * 20 + [2] * 20 + [3] * 20
    assert {"Handle", "TimerHandle", "SocketOperation"} & set(seen)


@pytest.mark.skipif(helpers.FREE_THREADED, reason="its allocator has no such limit")
def test_a_connection_is_allocated_from_pythons_pools(loop):
    """Which are for 512 bytes at most, with the 16 of the garbage collector."""
    from hotloop import _core

    assert _core.StreamTransport.__basicsize__ + 16 <= 512
