"""hotloop.limit(): a server pauses while its loop is late; and limits together with other things."""

import asyncio
import contextlib
import gc
import os
import resource
import time
import weakref

import helpers
import pytest
from helpers import until
from helpers_limits import PATIENCE, Counting, counting, serving, settled, until_accepted

pytestmark = [
    pytest.mark.hotloop_only,
    pytest.mark.skipif("hotloop" not in helpers.LOOP_NAMES, reason="hotloop is not under test"),
]

if "hotloop" in helpers.LOOP_NAMES:
    import hotloop

# --- Delay ---


class Blocking:
    """Blocks a loop for 50 ms again and again until it is stopped."""

    def __init__(self, loop):
        self.loop, self.stopped = loop, False
        loop.call_soon(self.block)

    def block(self):
        if not self.stopped:
            time.sleep(0.05)
            self.loop.call_soon(self.block)


async def test_accepting_pauses_while_the_loop_is_late(loop, clients):
    protocol = counting()
    async with serving(loop, protocol) as (server, address):
        # Half of it is more than a busy machine makes a loop late by, for most callbacks of a second.
        limit = hotloop.limit(server, delay=0.04)
        assert (limit.connections, limit.delay, limit.paused) == (None, 0.04, False)
        blocking = Blocking(loop)
        await until(lambda: limit.paused, PATIENCE)
        before = protocol.now
        clients(address, 3)
        assert limit.paused
        blocking.stopped = True
        await until_accepted(protocol, before + 3)
        await until(lambda: not limit.paused, PATIENCE)
        metrics = loop.metrics()
        assert metrics.accept_pauses >= 1
        assert metrics.accept_paused > 0.05


async def test_a_loop_without_callbacks_is_not_paused_for_ever(loop, clients):
    """Nothing but the gate's own look ends the pause."""

    class Made(Counting):
        made = loop.create_future()

        def connection_made(self, transport):
            super().connection_made(transport)
            self.made.set_result(None)

    protocol = counting(Made)
    async with serving(loop, protocol) as (server, address):
        limit = hotloop.limit(server, delay=0.04)
        blocking = Blocking(loop)
        await until(lambda: limit.paused, PATIENCE)
        blocking.stopped = True
        clients(address)
        # wait_for() has a timer, but none that is due soon.
        await asyncio.wait_for(protocol.made, PATIENCE)
        assert not limit.paused


async def test_an_idle_loop_sleeps(loop):
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    hotloop.limit(server, connections=1000, delay=5.0)
    scheduled = len(loop._scheduled)
    await asyncio.sleep(1.5)
    before = loop.metrics()
    await asyncio.sleep(0.7)
    after = loop.metrics().since(before)
    # The timer of sleep(), its task's step, and looks that follow callbacks, which run none.
    assert after.callbacks <= 6
    assert after.timers_fired == 1
    assert len(loop._scheduled) == scheduled
    server.close()


async def test_a_reset_of_the_metrics_does_not_matter(loop, clients):
    protocol = counting()
    async with serving(loop, protocol) as (server, address):
        limit = hotloop.limit(server, delay=0.04)
        blocking = Blocking(loop)
        await until(lambda: limit.paused, PATIENCE)
        loop.reset_metrics()
        assert loop.metrics().accept_pauses == 0
        await until(lambda: limit.paused, PATIENCE)
        blocking.stopped = True
        await until(lambda: not limit.paused, PATIENCE)
        clients(address)
        await until_accepted(protocol, 1)
        assert loop.metrics().accept_paused > 0


# --- Together with other things ---


async def test_exhausted_descriptors_and_a_limit(loop, clients, reports, monkeypatch):
    """Neither pause undoes the other."""
    monkeypatch.setattr(asyncio.constants, "ACCEPT_RETRY_DELAY", 0.05)
    protocol = counting()
    async with serving(loop, protocol) as (server, address):
        limit = hotloop.limit(server, connections=3)
        waiting = clients(address, 5)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.open(os.devnull, os.O_RDONLY)
        os.close(lowest)
        # Two more can be accepted.
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 2, hard))
        try:
            await until(lambda: reports, PATIENCE)
            assert protocol.now <= 3
            assert "out of system resource" in reports[0]["message"]
            hotloop.limit(server, connections=2)
            assert limit.paused == (protocol.now >= 2)
            await asyncio.sleep(0.2)
            assert protocol.now <= 2
            hotloop.limit(server, connections=3)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await until_accepted(protocol, 3)
        await asyncio.sleep(0.2)
        assert protocol.now == 3
        assert limit.paused
        limit.remove()
        await until_accepted(protocol, len(waiting))
    reports.clear()


@pytest.mark.parametrize("how", ["connections", "delay", "both"])
async def test_a_server_is_closed_while_paused(loop, clients, how):
    protocol = counting()
    async with serving(loop, protocol) as (server, address):
        if how == "delay":
            limit = hotloop.limit(server, delay=0.04)
            blocking = Blocking(loop)
            await until(lambda: limit.paused, PATIENCE)
        else:
            limit = hotloop.limit(server, connections=1, delay=10.0 if how == "both" else None)
            blocking = None
        clients(address, 4)
        await until(lambda: limit.paused, PATIENCE)
        await settled(loop)
        server.close()
        assert not limit.paused
        now, paused = protocol.now, loop.metrics().accept_paused
        if blocking:
            blocking.stopped = True
        for transport in list(protocol.transports):
            transport.close()
        await until_accepted(protocol, 0)
        assert protocol.most == max(now, 0)
        assert paused == loop.metrics().accept_paused
        hotloop.limit(server, connections=1)
        assert not limit.paused


async def test_a_callback_at_the_limit_closes_the_server(loop, clients):
    class Closes(Counting):
        def data_received(self, data):
            server.close()
            self.transport.close()

    protocol = counting(Closes)
    async with serving(loop, protocol) as (server, address):
        limit = hotloop.limit(server, connections=2)
        both = clients(address, 4)
        await until_accepted(protocol, 2)
        await settled(loop)
        assert limit.paused
        for sock in both:
            with contextlib.suppress(OSError):
                sock.send(b"x")
        await until_accepted(protocol, 0)
        assert protocol.most == 2
        assert not limit.paused
        assert limit.open == 0


@pytest.mark.skipif(helpers.PYTHON < (3, 13), reason="close_clients() is there from 3.13 on")
async def test_close_clients(loop, clients):
    protocol = counting()
    async with serving(loop, protocol) as (server, address):
        limit = hotloop.limit(server, connections=3)
        clients(address, 7)
        for accepted in (3, 6, 7):
            await until(lambda: loop.metrics().accepted == accepted, PATIENCE)  # noqa: B023
            await settled(loop)
            assert limit.open <= 3
            server.close_clients()
        await until(lambda: limit.open == 0, PATIENCE)
        assert protocol.most == 3


def test_the_loop_is_closed_while_paused(new_loop, clients):
    loop = new_loop()
    protocol = counting()
    server = loop.run_until_complete(loop.create_server(protocol, "127.0.0.1", 0))
    limit = hotloop.limit(server, connections=1, delay=1.0)
    clients(server.sockets[0].getsockname(), 3)
    loop.run_until_complete(until(lambda: limit.paused, PATIENCE))
    helpers.run_once(loop, 3)
    assert loop.metrics().accept_paused > 0
    for transport in list(protocol.transports):
        transport.abort()
    sockets = server.sockets
    loop.close()
    assert not limit.paused
    with pytest.raises(RuntimeError, match="closed"):
        hotloop.limit(server, connections=1)
    del server, protocol
    for sock in sockets:
        sock._sock.close()


def test_a_loop_that_is_dropped_is_garbage(new_loop):
    loop = hotloop.new_event_loop()
    server = loop.run_until_complete(loop.create_server(asyncio.Protocol, "127.0.0.1", 0))
    limit = hotloop.limit(server, connections=1, delay=1.0)
    server.close()
    loop.close()
    reference = weakref.ref(loop)
    del loop, server, limit
    gc.collect()
    assert reference() is None


# --- Figures ---


async def test_pauses_are_counted_and_timed(loop, clients):
    protocol = counting()
    async with serving(loop, protocol) as (server, address):
        before = loop.metrics()
        assert (before.accept_pauses, before.accept_paused) == (0, 0.0)
        hotloop.limit(server, connections=1)
        clients(address)
        await until_accepted(protocol, 1)
        await asyncio.sleep(0.05)
        middle = loop.metrics()
        assert middle.accept_pauses == 1
        assert 0.04 < middle.accept_paused < PATIENCE
        protocol.transports.pop().abort()
        await until(lambda: not hotloop.limit(server, connections=1).paused, PATIENCE)
        after = loop.metrics()
        await asyncio.sleep(0.02)
        assert loop.metrics().accept_paused == after.accept_paused
        change = after.since(middle)
        assert change.accept_pauses == 0
        assert 0 <= change.accept_paused < PATIENCE
        loop.reset_metrics()
        assert (loop.metrics().accept_pauses, loop.metrics().accept_paused) == (0, 0.0)


async def test_the_summary_tells_of_pauses(loop, clients):
    from hotloop._observing.summaries import summary

    protocol = counting()
    async with serving(loop, protocol) as (server, address):
        assert "paused" not in summary("a", loop.metrics())
        limit = hotloop.limit(server, connections=1)
        clients(address)
        await until(lambda: limit.paused, PATIENCE)
        assert "accepting paused once by limits, for " in summary("a", loop.metrics())
