"""Programs that gevent or eventlet has patched: select.select() runs their other threads; epoll is gone."""

import asyncio
import select
import selectors
import signal
import time
import types

import pytest

original = select.select


def copy_of(module):
    copy = types.ModuleType(module.__name__)
    copy.__dict__.update(module.__dict__)
    return copy


unpatched = copy_of(selectors)
unpatched.select = copy_of(select)


class Hub:
    """What select.select() does besides: it calls what is to be run meanwhile."""

    def __init__(self):
        self.others = []
        self.timeouts = []

    def select(self, read, write, exceptional, timeout=None):
        self.timeouts.append(timeout)
        while self.others:
            self.others.pop()()
        return original(read, write, exceptional, timeout)


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setattr(select, "select", hub.select)
    monkeypatch.delattr(select, "epoll", raising=False)
    # What asyncio's loops then wait by.
    monkeypatch.setattr(selectors.SelectSelector, "_select", staticmethod(hub.select))
    monkeypatch.setattr(selectors, "DefaultSelector", selectors.SelectSelector)
    return hub


@pytest.fixture
def loop(hub, new_loop):
    return new_loop()


def test_a_wait_runs_others(hub, loop):
    hub.others.append(lambda: loop.call_soon_threadsafe(loop.stop))
    start = time.monotonic()
    loop.call_later(30, loop.stop)
    loop.run_forever()
    assert time.monotonic() - start < 10
    # Until there was something to do.
    assert 29 < hub.timeouts[-1] <= 30


def test_work_that_others_do_is_waited_for(hub, loop):
    future = loop.create_future()
    hub.others.append(lambda: loop.call_soon_threadsafe(future.set_result, "done"))
    assert loop.run_until_complete(future) == "done"
    assert hub.timeouts[0] is None


def test_a_handler_of_a_signal_that_comes_in_a_wait(hub, loop):
    former = signal.signal(signal.SIGALRM, lambda *_: loop.call_soon_threadsafe(loop.stop))
    try:
        hub.others.append(lambda: signal.setitimer(signal.ITIMER_REAL, 0.05))
        loop.run_forever()
    finally:
        signal.signal(signal.SIGALRM, former)


def test_timers_and_connections(hub, loop):
    async def echo(reader, writer):
        writer.write(await reader.read(100))
        writer.close()

    async def main():
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        start = loop.time()
        await asyncio.sleep(0.05)
        assert 0.05 <= loop.time() - start < 5
        writer.write(b"data")
        assert await reader.read() == b"data"
        writer.close()
        server.close()
        await server.wait_closed()

    loop.run_until_complete(main())
    assert hub.timeouts


def test_a_busy_loop_runs_others_too(hub, loop):
    end = time.monotonic() + 10

    def busy():
        assert time.monotonic() < end
        loop.call_soon(busy)

    hub.others.append(lambda: loop.call_soon_threadsafe(loop.stop))
    loop.call_soon(busy)
    loop.run_forever()


def test_what_is_raised_in_a_wait_leaves_the_loop_which_can_go_on(hub, loop):
    """As gevent.Timeout is."""

    class Timeout(BaseException):
        pass

    def fail():
        raise Timeout

    hub.others.append(fail)
    with pytest.raises(Timeout):
        loop.run_forever()
    assert not loop.is_running()
    assert loop.run_until_complete(asyncio.sleep(0.01, "result")) == "result"


@pytest.mark.hotloop_only
def test_a_loop_in_which_the_others_run(hub, loop, monkeypatch):
    """As eventlet's hub of asyncio, which gives asyncio back what it has replaced."""
    monkeypatch.setattr(asyncio.selector_events, "selectors", unpatched)
    loop.run_until_complete(asyncio.sleep(0.01))
    assert not hub.timeouts
