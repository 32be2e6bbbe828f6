"""Functions that programs and tools put in place of asyncio's, and what they look at in its loop."""

import asyncio
import collections
import contextvars
import heapq
import socket
import sys
import threading
import time
from asyncio import events

import helpers
import pytest
from helpers import PYTHON


def callback():
    pass


# --- asyncio.Handle._run() ---


class Runs:
    """Notes the handles that are run, by a replaced Handle._run()."""

    def __init__(self, monkeypatch):
        self.seen = []
        usual = events.Handle._run

        def run(handle):
            self.seen.append(handle)
            return usual(handle)

        self.install = lambda: monkeypatch.setattr(events.Handle, "_run", run)

    def names(self):
        return [getattr(handle._callback, "__name__", None) for handle in self.seen]


@pytest.fixture
def runs(monkeypatch):
    return Runs(monkeypatch)


@helpers.before_and_during
@pytest.mark.parametrize("debug", [False, True])
def test_handles_are_run_by_a_method_of_the_programs(loop, runs, when, debug):
    loop.set_debug(debug)

    async def main():
        if when == "during":
            runs.install()
        loop.call_soon(callback)
        loop.call_later(0, callback)
        loop.call_soon(callback).cancel()
        loop.call_soon_threadsafe(callback)
        await asyncio.sleep(0.01)
        await asyncio.sleep(0)

    if when == "before":
        runs.install()
    loop.run_until_complete(main())
    assert runs.names().count("callback") == 3
    # The steps of the task, too.
    assert len(runs.seen) > 5
    assert all(isinstance(handle, asyncio.Handle) for handle in runs.seen)


def test_handles_are_run_as_usual_again(loop, runs, monkeypatch):
    runs.install()
    loop.run_until_complete(asyncio.sleep(0))
    seen = len(runs.seen)
    assert seen
    monkeypatch.undo()
    loop.run_until_complete(asyncio.sleep(0))
    assert len(runs.seen) == seen


def test_errors_of_handles_that_a_method_runs_are_reported(loop, runs, reports):
    runs.install()
    error = ValueError("a callback's")

    def fail():
        raise error

    handle = loop.call_soon(fail)
    loop.call_soon(loop.stop)
    loop.run_forever()
    report = reports.take()
    assert report["exception"] is error
    assert report["handle"] is handle


@pytest.mark.parametrize("leave", [helpers.Leave, helpers.Interrupt])
def test_a_method_that_runs_handles_may_leave(loop, monkeypatch, leave):
    def run(handle):
        raise leave

    monkeypatch.setattr(events.Handle, "_run", run)
    loop.call_soon(callback)
    with pytest.raises(leave):
        loop.run_forever()
    monkeypatch.undo()
    loop.run_until_complete(asyncio.sleep(0))


def test_a_method_that_runs_handles_may_raise(loop, monkeypatch):
    def run(handle):
        raise ValueError("not the callback's")

    loop.call_soon(callback)
    loop.call_soon(loop.stop)
    monkeypatch.setattr(events.Handle, "_run", run)
    if isinstance(loop, asyncio.SelectorEventLoop):
        with pytest.raises(ValueError, match="not the callback's"):
            loop.run_forever()
    else:
        # Nothing but the program's own wish to leave ends a run.
        reported = []
        loop.set_exception_handler(lambda loop, context: (reported.append(context["exception"]), loop.stop()))
        loop.run_forever()
        assert [str(error) for error in reported] == ["not the callback's"] * 2


# --- time.monotonic() ---


class Clock:
    def __init__(self, monkeypatch):
        self.now = 1000.0
        self.install = lambda: monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@helpers.before_and_during
def test_the_clock_that_the_program_puts_in_decides(loop, clock, when):
    def main():
        if when == "during":
            clock.install()
        assert loop.time() == 1000.0
        fired = []
        timer = loop.call_later(50, fired.append, "later")
        assert timer.when() == 1050.0
        loop.call_at(1020, fired.append, "at")
        for _ in range(3):
            yield
        assert fired == []
        clock.now = 1030.0
        yield
        yield
        assert fired == ["at"]
        clock.now = 1060.0
        yield
        yield
        assert fired == ["at", "later"]

    steps = main()
    finished = []

    def step():
        try:
            next(steps)
        except StopIteration:
            finished.append(True)
            loop.stop()
        except BaseException:
            loop.stop()
            raise
        else:
            loop.call_soon(step)

    if when == "before":
        clock.install()
    loop.call_soon(step)
    loop.run_forever()
    assert finished


def test_a_clock_that_was_put_in_is_taken_out_again(loop, clock, monkeypatch):
    clock.install()
    loop.call_soon(loop.stop)
    loop.run_forever()
    monkeypatch.undo()
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert abs(loop.time() - time.monotonic()) < 1
    loop.run_until_complete(asyncio.sleep(0.001))


def test_a_loop_that_is_made_while_the_clock_is_replaced_has_that_one(new_loop, clock):
    clock.install()
    loop = new_loop()
    assert loop.time() == 1000.0
    assert loop.call_later(5, callback).when() == 1005.0


# --- Methods of asyncio.BaseEventLoop ---


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("create_task", lambda loop: loop.run_until_complete(asyncio.sleep(0))),
        ("create_future", lambda loop: loop.create_future()),
        ("call_soon", lambda loop: loop.run_until_complete(asyncio.sleep(0))),
        ("call_soon_threadsafe", lambda loop: loop.call_soon_threadsafe(callback)),
        ("call_later", lambda loop: loop.run_until_complete(asyncio.sleep(0.001))),
        ("time", lambda loop: loop.run_until_complete(asyncio.sleep(0.001))),
        ("run_in_executor", lambda loop: loop.run_until_complete(loop.run_in_executor(None, callback))),
        ("getaddrinfo", lambda loop: loop.run_until_complete(loop.getaddrinfo("127.0.0.1", 1))),
        ("set_debug", lambda loop: loop.set_debug(False)),
    ],
)
def test_methods_that_a_tool_wraps_are_called(new_loop, monkeypatch, name, use):
    usual = getattr(asyncio.BaseEventLoop, name)
    seen = []

    def wrapped(self, *args, **kwargs):
        seen.append(self)
        return usual(self, *args, **kwargs)

    monkeypatch.setattr(asyncio.BaseEventLoop, name, wrapped)
    loop = new_loop()
    use(loop)
    assert loop in seen
    loop.run_until_complete(loop.shutdown_default_executor())
    monkeypatch.undo()
    loop = new_loop()
    count = len(seen)
    use(loop)
    loop.run_until_complete(loop.shutdown_default_executor())
    assert len(seen) == count


def wrap_call_soon_threadsafe(monkeypatch):
    usual = asyncio.BaseEventLoop.call_soon_threadsafe
    monkeypatch.setattr(
        asyncio.BaseEventLoop,
        "call_soon_threadsafe",
        lambda self, *args, **kwargs: usual(self, *args, **kwargs),
    )


@pytest.mark.parametrize("name", ["call_soon", "call_later", "time", "stop"])
def test_methods_that_a_tool_wraps_in_the_loops_own_class_are_called(new_loop, monkeypatch, name):
    """In each run, until they are taken out."""
    called = []
    loop = new_loop()
    cls = type(loop)
    usual = getattr(cls, name)

    def method(*args, **kwargs):
        called.append(name)
        return usual(*args, **kwargs)

    # As mock.patch.object() does, which deletes it again where the class had none of its own.
    monkeypatch.setattr(cls, name, method)
    for _ in range(3):
        del called[:]
        loop.call_soon(loop.call_later, 0, loop.stop)
        loop.run_forever()
        assert called
        assert getattr(cls, name) is method
    monkeypatch.undo()
    del called[:]
    loop.run_until_complete(asyncio.sleep(0))
    assert called == []


def test_call_soon_of_a_tool_runs_callbacks_from_other_threads(new_loop, monkeypatch):
    wrap_call_soon_threadsafe(monkeypatch)
    loop = new_loop()
    thread = threading.Timer(0.02, loop.call_soon_threadsafe, [loop.stop])
    thread.start()
    loop.run_forever()
    thread.join()


def test_a_call_of_a_tool_is_not_slept_through(loop_name, monkeypatch):
    """Another thread makes it when the loop has found nothing to do, and asks its time() how long to wait."""
    wrap_call_soon_threadsafe(monkeypatch)
    asked, called = threading.Event(), threading.Event()

    unused = helpers.FACTORIES[loop_name]()
    unused.close()

    class Loop(type(unused)):
        is_to_ask = False

        def time(self):
            if self.is_to_ask:
                self.is_to_ask = False
                asked.set()
                called.wait()
            return time.monotonic()

    def call():
        asked.wait()
        loop.call_soon_threadsafe(loop.stop)
        called.set()

    loop = Loop()
    thread = threading.Thread(target=call)
    thread.start()
    loop.call_soon(setattr, loop, "is_to_ask", True)
    timer = loop.call_at(loop.time() + 5, loop.stop)
    loop.run_forever()
    assert loop.time() < timer.when() - 2
    timer.cancel()
    thread.join()
    loop.close()


# --- Methods of subclasses that only asyncio's own loop calls ---


@pytest.fixture
def make(loop_name):
    """Makes a loop of a subclass with those methods: each notes its calls and goes on with its base."""
    loops = []

    def make(*names):
        made = helpers.FACTORIES[loop_name]()
        base = type(made)
        made.close()
        seen = []

        def noting(name):
            def method(self, *args, **kwargs):
                seen.append((name, *args))
                return getattr(super(cls, self), name)(*args, **kwargs)

            return method

        cls = type("Sub", (base,), {name: noting(name) for name in names})
        loops.append(cls())
        return loops[-1], seen

    yield make
    for loop in loops:
        loop.close()


def test_call_soon_queues_by_a_method(make):
    loop, seen = make("_call_soon")
    done = []
    context = contextvars.copy_context()
    handle = loop.call_soon(done.append, 1, context=context)
    loop.call_soon(collections.deque().extend, "abc")
    assert isinstance(handle, asyncio.Handle)
    assert seen[0] == ("_call_soon", done.append, (1,), context)
    loop.run_until_complete(asyncio.sleep(0))
    assert done == [1]
    assert len(seen) > 4


def test_threads_wake_the_loop_by_a_method(make):
    loop, seen = make("_write_to_self")
    thread = threading.Timer(0.02, loop.call_soon_threadsafe, [loop.stop])
    thread.start()
    loop.run_forever()
    thread.join()
    assert ("_write_to_self",) in seen
    del seen[:]
    loop.call_soon_threadsafe(callback)
    assert seen == [("_write_to_self",)]


def test_a_cancelled_timer_is_told_to_a_method(make):
    loop, seen = make("_timer_handle_cancelled")
    timer = loop.call_later(10, callback)
    assert seen == []
    timer.cancel()
    timer.cancel()
    assert seen == [("_timer_handle_cancelled", timer)]
    fired = loop.call_later(0, callback)
    loop.run_until_complete(asyncio.sleep(0.01))
    del seen[:]
    fired.cancel()
    assert seen == [("_timer_handle_cancelled", fired)]


@pytest.mark.skipif(PYTHON < (3, 13), reason="asyncio has them since 3.13")
def test_a_run_begins_and_ends_with_methods(make):
    loop, seen = make("_run_forever_setup", "_run_forever_cleanup")
    loop.run_until_complete(asyncio.sleep(0))
    assert seen == [("_run_forever_setup",), ("_run_forever_cleanup",)]


@pytest.mark.skipif(PYTHON < (3, 13), reason="asyncio has them since 3.13")
def test_a_program_may_run_the_iterations_itself(loop):
    hooks = sys.get_asyncgen_hooks()
    done = []
    loop._run_forever_setup()
    try:
        assert asyncio.get_running_loop() is loop
        assert loop.is_running()
        loop.call_later(0.001, done.append, 1)
        while not done:
            loop._run_once()
    finally:
        loop._run_forever_cleanup()
    assert not loop.is_running()
    assert asyncio._get_running_loop() is None
    assert sys.get_asyncgen_hooks() == hooks


# --- What is queued ---


def test_what_is_ready_can_be_looked_at(loop):
    assert not loop._ready
    first, second = loop.call_soon(callback), loop.call_soon(callback)
    assert list(loop._ready) == [first, second]
    assert len(loop._ready) == 2
    assert loop._ready[0] is first
    assert loop._ready[-1] is second
    done = []
    loop._ready.append(asyncio.Handle(done.append, (1,), loop))
    loop.run_until_complete(asyncio.sleep(0))
    assert done == [1]
    while loop._ready:
        loop._run_once()


def test_steps_of_tasks_are_ready_handles(loop):
    async def main():
        other = asyncio.ensure_future(asyncio.sleep(0))
        assert len(loop._ready) == 1
        assert isinstance(loop._ready[0], asyncio.Handle)
        await other

    loop.run_until_complete(main())


def test_timers_can_be_looked_at(loop):
    assert list(loop._scheduled) == []
    late, soon = loop.call_later(100, callback), loop.call_later(50, callback)
    assert len(loop._scheduled) == 2
    assert loop._scheduled[0] is soon
    assert sorted(loop._scheduled) == [soon, late]
    assert heapq.nsmallest(1, loop._scheduled) == [soon]
    soon.cancel()
    assert [timer for timer in loop._scheduled if not timer.cancelled()] == [late]
    late.cancel()


# --- asyncio.Transport ---


@pytest.mark.parametrize("where", [asyncio.BaseTransport, asyncio.Transport])
def test_a_transports_get_extra_info_may_be_replaced(loop, monkeypatch, where):
    async def main():
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        transport, _ = await loop.create_connection(asyncio.Protocol, *address)
        assert transport.get_extra_info("peername") == address
        usual = where.get_extra_info

        def get_extra_info(self, name, default=None):
            return "mine" if name == "peername" else usual(self, name, default)

        monkeypatch.setattr(where, "get_extra_info", get_extra_info)
        assert transport.get_extra_info("peername") == "mine"
        assert transport.get_extra_info("sockname")[0] == "127.0.0.1"
        assert transport.get_extra_info("nothing", 5) == 5
        monkeypatch.undo()
        assert transport.get_extra_info("peername") == address
        transport.close()
        server.close()
        await asyncio.sleep(0.01)

    loop.run_until_complete(main())


def test_a_program_may_run_what_is_ready_itself(loop):
    """As nest_asyncio does, by what asyncio's loop has."""
    done = []

    async def main():
        done.append("task")
        await asyncio.sleep(0)
        done.append("again")

    loop.call_soon(done.append, "callback")
    task = loop.create_task(main())
    loop.call_soon(done.append, "cancelled").cancel()
    timer = loop.call_later(-1, done.append, "timer")
    heapq.heappop(loop._scheduled)
    if timer in loop._scheduled:
        # asyncio's list is the loop's own, ours is not.
        loop._make_ready(timer)
    else:
        loop._ready.append(timer)
    events._set_running_loop(loop)
    try:
        while loop._ready:
            handle = loop._ready.popleft()
            if not handle._cancelled:
                handle._run()
    finally:
        events._set_running_loop(None)
    assert done == ["callback", "task", "timer", "again"]
    assert task.done()
    with pytest.raises(IndexError):
        loop._ready.popleft()
    loop.run_until_complete(asyncio.sleep(0))
    assert len(done) == 4


def test_a_program_may_put_back_what_it_has_taken_out(loop):
    """As nest_asyncio2 does with what it cannot run yet."""
    done = []

    async def main():
        done.append("task")

    loop.call_later(0, done.append, "timer")
    loop.run_until_complete(asyncio.sleep(0.01))
    assert done == ["timer"]
    loop.call_soon(done.append, "one")
    task = loop.create_task(main())
    loop.call_soon(done.append, "two")
    one, step = loop._ready.popleft(), loop._ready.popleft()
    loop._ready.extendleft([])
    loop._ready.extendleft([step, one])
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert done == ["timer", "one", "task", "two"]
    assert task.done()


@pytest.mark.hotloop_only
def test_a_timer_that_is_put_back_runs_once(loop):
    done = []

    def take_out():
        timer = loop._ready.popleft()
        assert isinstance(timer, asyncio.TimerHandle)
        loop._ready.append(timer)
        loop._ready.append(timer)
        loop.call_soon(loop.stop)

    loop.call_at(loop.time() - 2, take_out)
    loop.call_at(loop.time() - 1, done.append, "timer")
    loop.run_forever()
    assert done == ["timer"]


@pytest.mark.hotloop_only
def test_what_a_descriptor_has_made_ready_is_run_by_its_handle(loop):
    """asyncio's queue has the callbacks of a transport only while they are run."""

    async def main():
        received = asyncio.Event()

        class Protocol(asyncio.Protocol):
            def data_received(self, data):
                received.set()

        here, there = socket.socketpair()
        transport, _ = await loop.create_connection(Protocol, sock=here)
        await asyncio.sleep(0)

        def take_over():
            for handle in [loop._ready.popleft() for _ in range(len(loop._ready))]:
                repr(handle)
                handle._run()

        with there:
            # Both are ready after the same wait: the reader comes first.
            first, second = socket.socketpair()
            loop.add_reader(first, lambda: (loop.remove_reader(first), take_over()))
            second.send(b"x")
            there.send(b"x")
            await asyncio.wait_for(received.wait(), 5)
            transport.close()
            first.close()
            second.close()

    loop.run_until_complete(main())


@pytest.mark.skipif(PYTHON >= (3, 14), reason="asyncio makes the handle itself since 3.14")
def test_threads_queue_by_a_method(make):
    loop, seen = make("_call_soon", "_write_to_self")
    thread = threading.Timer(0.02, loop.call_soon_threadsafe, [loop.stop])
    thread.start()
    loop.run_forever()
    thread.join()
    assert ("_call_soon", loop.stop, (), None) in seen
    assert seen.index(("_write_to_self",)) == seen.index(("_call_soon", loop.stop, (), None)) + 1
