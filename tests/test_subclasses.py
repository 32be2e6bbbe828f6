"""Subclasses of the loop: what they override is what is called, wherever asyncio calls it."""

import asyncio
import gc
import heapq
import socket
import threading
import time

import helpers
import pytest
from helpers import Recorder


@pytest.fixture
def make(loop_name, reports):
    """Makes a loop of a subclass with those methods, and closes it after the test."""
    base = type(helpers.FACTORIES[loop_name]())
    gc.collect()
    loops = []

    def make(**methods):
        loop = type("Sub", (base,), methods)()
        loop.set_exception_handler(reports.handler)
        loops.append(loop)
        return loop, base

    yield make
    for loop in loops:
        loop.close()


def noting(name, seen):
    """An override that writes down its calls and leaves the rest to its base."""

    def override(self, *args, **kwargs):
        seen.append((name, *args[:1]))
        return getattr(super(type(self), self), name)(*args, **kwargs)

    return override


def test_it_is_what_it_says(make):
    loop, base = make()
    assert isinstance(loop, base)
    assert isinstance(loop, asyncio.AbstractEventLoop)
    assert repr(loop).startswith("<Sub running=False")

    async def main():
        assert asyncio.get_running_loop() is loop

    loop.run_until_complete(main())


def test_its_init_may_take_arguments_of_its_own(loop_name):
    class Sub(type(helpers.FACTORIES[loop_name]())):
        def __init__(self, name, *, extra=None):
            super().__init__()
            self.name, self.extra = name, extra

    gc.collect()
    loop = Sub("name", extra=1)
    assert (loop.name, loop.extra) == ("name", 1)
    assert loop.run_until_complete(asyncio.sleep(0, 42)) == 42
    loop.close()


def test_it_may_have_slots(loop_name):
    class Sub(type(helpers.FACTORIES[loop_name]())):
        __slots__ = ("more",)

    gc.collect()
    loop = Sub()
    loop.more = 42
    assert loop.more == 42
    loop.close()


def test_call_soon_sees_the_steps_of_tasks_and_the_callbacks_of_futures(make):
    seen = []
    loop, _ = make(call_soon=noting("call_soon", seen))
    future = loop.create_future()
    future.add_done_callback(seen.append)

    async def main():
        future.set_result(None)
        await asyncio.sleep(0)

    loop.run_until_complete(main())
    assert ("call_soon", seen.append) in seen
    assert future in seen
    assert len([call for call in seen if type(call) is tuple]) >= 4


def test_call_later_goes_through_call_at(make):
    seen = []
    loop, _ = make(call_at=noting("call_at", seen), call_later=noting("call_later", seen))
    handle = loop.call_later(5, print)
    assert [name for name, _ in seen] == ["call_later", "call_at"]
    assert seen[1][1] == handle.when()


def test_sleeping_goes_through_call_later(make):
    seen = []
    loop, _ = make(call_later=noting("call_later", seen))
    loop.run_until_complete(asyncio.sleep(0.001))
    assert seen == [("call_later", 0.001)]


def test_call_soon_of_a_subclass_is_given_a_handle_for_each_step(make):
    """And so is one that a program puts in the place of a loop's own."""
    handles = []

    def call_soon(self, callback, *args, context=None):
        handles.append(type(self).__mro__[1].call_soon(self, callback, *args, context=context))
        return handles[-1]

    loop, _ = make(call_soon=call_soon)
    loop.run_until_complete(asyncio.sleep(0))
    loop.run_until_complete(asyncio.sleep(0.001))
    assert len(handles) > 4
    assert all(isinstance(handle, asyncio.Handle) for handle in handles)

    loop, _ = make()
    original, handles = loop.call_soon, []
    loop.call_soon = lambda *args, **kwargs: handles.append(original(*args, **kwargs))
    loop.run_until_complete(asyncio.sleep(0))
    assert len(handles) > 2
    assert all(isinstance(handle, asyncio.Handle) for handle in handles)


def test_a_clock_of_its_own_decides_when_timers_are_due(make):
    """As test suites do that cannot wait."""
    now = [1000.0]
    loop, _ = make(time=lambda self: now[0])
    ran = []
    handle = loop.call_later(50, ran.append, "timer")
    assert handle.when() == 1050.0

    def step():
        for _ in range(2):
            loop.call_soon(loop.stop)
            loop.run_forever()

    step()
    assert ran == []
    now[0] += 49
    step()
    assert ran == []
    now[0] += 1
    step()
    assert ran == ["timer"]


def test_a_clock_that_is_set_forward_ends_long_sleeps(make):
    now = [0.0]
    loop, _ = make(time=lambda self: now[0])
    task = loop.create_task(asyncio.wait_for(asyncio.sleep(3600, "slept"), 7200))
    for _ in range(16):
        loop.call_soon(loop.stop)
        loop.run_forever()
        now[0] += 400
    done = task.done()
    task.cancel()
    loop.run_until_complete(asyncio.wait([task]))
    assert done
    assert task.result() == "slept"


def test_create_task_is_called_by_whoever_makes_tasks(make):
    seen = []
    loop, _ = make(create_task=noting("create_task", seen))

    async def nothing():
        return 42

    async def main():
        async with asyncio.TaskGroup() as group:
            group.create_task(nothing())
        await asyncio.gather(nothing())
        return await asyncio.ensure_future(nothing())

    assert loop.run_until_complete(main()) == 42
    assert len(seen) == 4


def test_create_future_is_called_by_whoever_waits(make):
    seen = []
    loop, _ = make(create_future=noting("create_future", seen))
    ours, peer = helpers.tcp_pair()

    async def main():
        await asyncio.sleep(0.001)
        transport, protocol = await loop.create_connection(Recorder, sock=ours)
        transport.close()
        await protocol.lost()

    with peer:
        loop.run_until_complete(main())
    assert len(seen) >= 2


def test_call_exception_handler_gets_every_report(make, reports):
    told = []
    loop, _ = make(call_exception_handler=lambda self, context: told.append(context["message"]))
    ours, peer = helpers.tcp_pair()

    def fail(*args):
        raise ValueError

    async def main():
        loop.call_soon(fail)
        protocol = Recorder(data_received=fail)
        await loop.create_connection(lambda: protocol, sock=ours)
        peer.send(b"x")
        await protocol.lost()

    with peer:
        loop.run_until_complete(main())
    assert len(told) == 2
    assert told[0].startswith("Exception in callback ")
    assert told[1] == "Fatal error: protocol.data_received() call failed."


def test_default_exception_handler_gets_what_no_handler_takes(make):
    told = []
    loop, _ = make(default_exception_handler=lambda self, context: told.append(context))
    loop.set_exception_handler(None)
    handle = loop.call_soon(lambda: 1 / 0)
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert [context["handle"] for context in told] == [handle]


def test_run_in_executor_is_called_for_names(make):
    seen = []
    loop, _ = make(run_in_executor=noting("run_in_executor", seen))

    async def main():
        await asyncio.to_thread(int)
        await loop.getaddrinfo("localhost", 80)

    loop.run_until_complete(main())
    assert len(seen) == 2


def test_getaddrinfo_is_called_to_connect_to_a_name(make):
    asked = []

    async def getaddrinfo(self, host, port, **options):
        asked.append(host)
        return await super(type(self), self).getaddrinfo("127.0.0.1", port, **options)

    loop, _ = make(getaddrinfo=getaddrinfo)

    async def main():
        with helpers.listener() as server:
            transport, protocol = await loop.create_connection(
                Recorder, "made.up.example", server.getsockname()[1]
            )
            transport.close()
            await protocol.lost()

    loop.run_until_complete(main())
    assert asked == ["made.up.example"]


def test_stop_and_close_are_called_by_name(make):
    seen = []
    loop, _ = make(close=noting("close", seen), stop=noting("stop", seen))
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(asyncio.sleep(0))
    assert ("close",) in seen
    assert loop.is_closed()


def test_get_debug_is_asked_by_tasks_and_futures(make):
    loop, _ = make(get_debug=lambda self: True)
    future = loop.create_future()
    assert future._source_traceback
    future.cancel()


def test_run_forever_may_be_wrapped(make):
    seen = []
    loop, _ = make(run_forever=noting("run_forever", seen))
    assert loop.run_until_complete(asyncio.sleep(0, 42)) == 42
    assert seen == [("run_forever",)]


def test_other_threads_wake_a_run_forever_of_its_own(make):
    """It need not set `_thread_id`: asyncio's call_soon_threadsafe() always wakes the loop."""

    def run_forever(self):
        asyncio._set_running_loop(self)
        try:
            while not self._stopping:
                self._run_once()
        finally:
            self._stopping = False
            asyncio._set_running_loop(None)

    loop, _ = make(run_forever=run_forever)
    timer = threading.Timer(0.05, loop.call_soon_threadsafe, (loop.stop,))
    timer.start()
    alarm = loop.call_later(10, loop.stop)
    start = time.monotonic()
    loop.run_forever()
    timer.join()
    assert time.monotonic() - start < 5
    alarm.cancel()


@pytest.mark.parametrize("of", ["class", "instance"])
def test_each_iteration_is_the_subclasses_own(make, of):
    iterations = []

    def run_once(self):
        iterations.append(self)
        base._run_once(self)

    loop, base = make(**({"_run_once": run_once} if of == "class" else {}))
    if of == "instance":
        loop._run_once = lambda: run_once(loop)
    assert loop.run_until_complete(asyncio.sleep(0.001, "done")) == "done"
    assert len(iterations) > 1
    seen = len(iterations)
    loop.stop()
    loop.run_forever()
    assert len(iterations) == seen + 1


def nest(loop):
    """What nest_asyncio puts in place of methods, so that a loop can be run by its own callbacks."""

    def run_until_complete(self, future):
        thread, running = self._thread_id, asyncio._get_running_loop()
        self._thread_id = threading.get_ident()
        asyncio._set_running_loop(self)
        try:
            future = asyncio.ensure_future(future, loop=self)
            while not future.done():
                self._run_once()
            return future.result()
        finally:
            self._thread_id = thread
            asyncio._set_running_loop(running)

    def _run_once(self):
        ready, scheduled = self._ready, self._scheduled
        while scheduled and scheduled[0]._cancelled:
            heapq.heappop(scheduled)
        if ready or self._stopping:
            timeout = 0
        else:
            timeout = max(scheduled[0]._when - self.time(), 0) if scheduled else None
        self._process_events(self._selector.select(timeout))
        end = self.time() + self._clock_resolution
        while scheduled and scheduled[0]._when < end:
            ready.append(heapq.heappop(scheduled))
        for _ in range(len(ready)):
            if ready and not (handle := ready.popleft())._cancelled:
                task = asyncio.current_task(self)
                if task is not None:
                    asyncio.tasks._leave_task(self, task)
                try:
                    handle._run()
                finally:
                    if task is not None:
                        asyncio.tasks._enter_task(self, task)

    type(loop).run_until_complete = run_until_complete
    type(loop)._run_once = _run_once


def test_a_loop_that_its_own_tasks_run(make):
    loop, _ = make()
    nest(loop)

    async def echo(reader, writer):
        while data := await reader.read(100):
            loop.run_until_complete(asyncio.sleep(0.001))
            writer.write(data)
        writer.close()

    async def client(address):
        task = asyncio.current_task()
        reader, writer = await asyncio.open_connection(*address)
        for number in range(5):
            writer.write(b"%d" % number)
            assert loop.run_until_complete(reader.readexactly(1)) == b"%d" % number
            assert asyncio.current_task() is task
            assert loop.run_until_complete(asyncio.sleep(0.001, number)) == number
        writer.close()
        await writer.wait_closed()
        with pytest.raises(ZeroDivisionError):
            loop.run_until_complete(fail())
        return "done"

    async def fail():
        return 1 / 0

    async def main():
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        clients = await asyncio.gather(*(client(address) for _ in range(3)))
        server.close()
        return clients

    assert loop.run_until_complete(main()) == ["done"] * 3


def test_what_was_written_before_a_loop_is_run_within_is_sent(make):
    loop, _ = make()
    nest(loop)
    ours, peer = socket.socketpair()
    done = loop.create_future()

    class Protocol(asyncio.Protocol):
        def data_received(self, data):
            answered.set_result(data)

    def ask():
        nonlocal answered
        answered = loop.create_future()
        transport.write(b"question")
        done.set_result(loop.run_until_complete(answered))

    def answer():
        peer.send(peer.recv(100))
        loop.remove_reader(peer)

    answered = None
    loop.add_reader(peer, answer)
    transport, _ = loop.run_until_complete(loop.create_connection(Protocol, sock=ours))
    loop.call_soon(int)
    loop.call_soon(ask)
    loop.call_later(20, done.cancel)
    assert loop.run_until_complete(done) == b"question"
    transport.close()
    loop.run_until_complete(asyncio.sleep(0))
    peer.close()


def test_a_loop_that_is_closed_while_it_runs_ends(make):
    loop, base = make(is_running=lambda self: False)
    loop.call_soon(loop.close)
    expected = AttributeError if base is asyncio.SelectorEventLoop else RuntimeError
    future = loop.create_future()
    with pytest.raises(expected):
        loop.run_until_complete(future)
    assert loop.is_closed()


def test_a_class_that_a_loop_is_given_later_counts(make):
    loop, _ = make()
    loop.__class__ = type("Late", (type(loop),), {"time": lambda self: 5.0})
    timer = loop.call_later(1, print)
    assert timer.when() == 6.0
    timer.cancel()


def test_timers_are_due_by_a_clock_that_says_no_number(make):
    loop, _ = make()
    calls = []
    loop.call_later(1000, calls.append, 1)
    loop.time = lambda: float("nan")
    alarm = threading.Timer(5, loop.call_soon_threadsafe, (loop.stop,))
    alarm.start()
    loop.call_later(2000, loop.stop)
    # Or a wait would be as long, which asyncio refuses.
    loop.call_soon(int)
    loop.run_forever()
    alarm.cancel()
    alarm.join()
    assert calls == [1]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("create_connection", (Recorder, "127.0.0.1", 1)),
        ("getaddrinfo", ("127.0.0.1", 80)),
        ("getnameinfo", (("127.0.0.1", 80), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)),
        ("run_in_executor", (None, time.monotonic)),
        ("start_tls", (asyncio.Transport(), asyncio.Protocol(), None)),
    ],
)
async def test_a_method_that_is_replaced_in_asyncios_own_class_is_called(loop, monkeypatch, name, arguments):
    """Tests replace them like this, as by unittest.mock.patch()."""

    async def instead(self, *args, **options):
        return self, args

    monkeypatch.setattr(asyncio.BaseEventLoop, name, instead)
    assert await getattr(loop, name)(*arguments) == (loop, arguments)
