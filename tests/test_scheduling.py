"""call_soon, run_forever, run_until_complete, stop, close, and what happens to a callback's exception."""

import asyncio
import gc
import socket
import threading
import time
import weakref

import helpers
import pytest

# call_soon


def test_callbacks_run_in_the_order_in_which_they_were_scheduled(loop):
    ran = []
    for number in range(1000):
        loop.call_soon(ran.append, number)
    helpers.run_once(loop)
    assert ran == list(range(1000))


def test_a_callback_gets_its_arguments(loop):
    ran = []
    loop.call_soon(lambda *args: ran.append(args))
    loop.call_soon(lambda *args: ran.append(args), 1)
    loop.call_soon(lambda *args: ran.append(args), 1, "two", [3], None)
    helpers.run_once(loop)
    assert ran == [(), (1,), (1, "two", [3], None)]


def test_a_callback_scheduled_by_a_callback_runs_in_the_next_iteration(loop):
    ran = []

    def first():
        ran.append("first")
        loop.call_soon(ran.append, "later")
        loop.stop()

    loop.call_soon(first)
    loop.call_soon(ran.append, "second")
    loop.run_forever()
    assert ran == ["first", "second"]
    helpers.run_once(loop)
    assert ran == ["first", "second", "later"]


def test_any_callable_is_a_callback(loop):
    ran = []

    class Callable:
        def __call__(self, value):
            ran.append(value)

        def method(self, value):
            ran.append(value)

        @classmethod
        def of_class(cls, value):
            ran.append(value)

    loop.call_soon(Callable(), 1)
    loop.call_soon(Callable().method, 2)
    loop.call_soon(Callable.of_class, 3)
    loop.call_soon(lambda value, more=4: ran.append(more), 0)
    loop.call_soon(type("Kind", (), {"__init__": lambda self, value: ran.append(value)}), 5)
    helpers.run_once(loop)
    assert ran == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("method", ["call_soon", "call_soon_threadsafe"])
def test_wrong_arguments_are_refused(loop, method):
    call = getattr(loop, method)
    with pytest.raises(TypeError):
        call()
    with pytest.raises(TypeError):
        call(print, nonsense=1)


def test_arguments_are_dropped_after_the_call(loop):
    class Thing:
        pass

    thing = Thing()
    gone = weakref.ref(thing)
    seen = []
    loop.call_soon(lambda thing: None, thing)
    loop.call_soon(lambda: loop.call_soon(lambda: seen.append(gone())))
    del thing
    helpers.run_once(loop)
    helpers.run_once(loop)
    assert seen == [None]


def test_dropping_arguments_can_schedule_more(loop):
    ran = []

    class Last:
        def __init__(self, left):
            self.left = left

        def __del__(self):
            ran.append(self.left)
            if self.left:
                loop.call_soon(lambda thing: None, Last(self.left - 1))
                loop.call_later(0, lambda thing: None, Last(0)).cancel()

    loop.call_soon(lambda thing: None, Last(3))
    for _ in range(6):
        helpers.run_once(loop)
    assert sorted(ran) == [0, 0, 0, 0, 1, 2, 3]


def test_a_subclass_sees_every_call(loop_name, reports):
    calls = []

    class Counting(type(helpers.FACTORIES[loop_name]())):
        def call_soon(self, callback, *args, context=None):
            calls.append(callback)
            return super().call_soon(callback, *args, context=context)

    loop = Counting()
    loop.set_exception_handler(reports.handler)

    async def main():
        await asyncio.sleep(0)

    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
        gc.collect()
    assert len(calls) >= 3  # two steps of the task, and the end of it


# run_forever and stop


def test_stop_lets_the_iteration_finish(loop):
    ran = []
    loop.call_soon(loop.stop)
    loop.call_soon(ran.append, 1)
    loop.run_forever()
    assert ran == [1]


def test_stop_before_run_forever_gives_one_iteration(loop):
    ran = []
    ours, peer = socket.socketpair()
    with ours, peer:
        peer.send(b"x")
        loop.add_reader(ours, ran.append, "reader")
        loop.call_soon(ran.append, "soon")
        loop.call_later(60, ran.append, "timer")
        loop.stop()
        start = time.monotonic()
        loop.run_forever()
        assert time.monotonic() - start < 5
        assert ran == ["soon", "reader"]
        loop.remove_reader(ours)


def test_stop_twice_stops_once(loop):
    ran = []
    loop.stop()
    loop.stop()
    loop.run_forever()
    loop.call_soon(ran.append, 1)
    loop.call_soon(lambda: loop.call_soon(lambda: (ran.append(2), loop.stop())))
    loop.run_forever()
    assert ran == [1, 2]


def test_io_comes_before_timers_and_after_what_was_ready(loop):
    ran = []
    ours, peer = socket.socketpair()
    with ours, peer:

        def reader():
            ran.append("reader")
            loop.remove_reader(ours)

        def start():
            loop.add_reader(ours, reader)
            peer.send(b"x")
            loop.call_later(0, lambda: (ran.append("timer"), loop.stop()))

        loop.call_soon(start)
        loop.run_forever()
    assert ran == ["reader", "timer"]


def test_what_was_ready_runs_first(loop):
    ran = []
    ours, peer = socket.socketpair()
    with ours, peer:

        def start():
            loop.call_soon(ran.append, "soon")
            loop.add_reader(ours, ran.append, "reader")
            peer.send(b"x")
            loop.call_later(0, ran.append, "timer")

        loop.call_soon(start)
        loop.call_later(0.05, loop.stop)
        loop.run_forever()
        loop.remove_reader(ours)
    assert ran[0] == "soon"
    assert {"soon", "reader", "timer"} == set(ran)


def test_callbacks_without_end_starve_neither_io_nor_timers(loop):
    ran = set()
    ours, peer = socket.socketpair()
    deadline = time.monotonic() + 10

    def again():
        if ran != {"reader", "timer"} and time.monotonic() < deadline:
            loop.call_soon(again)
        else:
            loop.stop()

    def reader():
        ours.recv(1)
        ran.add("reader")

    with ours, peer:
        loop.add_reader(ours, reader)
        loop.call_later(0.01, ran.add, "timer")
        loop.call_later(0.005, peer.send, b"x")
        loop.call_soon(again)
        loop.run_forever()
        loop.remove_reader(ours)
    assert ran == {"reader", "timer"}


def test_io_without_end_starves_neither_callbacks_nor_timers(loop):
    ran = []
    ours, peer = socket.socketpair()
    with ours, peer:
        loop.add_writer(ours, lambda: None)
        loop.call_soon(lambda: loop.call_soon(ran.append, "soon"))
        loop.call_later(0.01, lambda: (ran.append("timer"), loop.stop()))
        loop.run_forever()
        loop.remove_writer(ours)
    assert ran == ["soon", "timer"]


def test_the_running_loop_is_known_while_it_runs(loop):
    seen = []

    def look():
        seen.append((asyncio.get_running_loop() is loop, loop.is_running()))
        loop.stop()

    assert not loop.is_running()
    loop.call_soon(look)
    loop.run_forever()
    assert seen == [(True, True)]
    assert not loop.is_running()
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()


@pytest.mark.asyncio_bug("3.13.0 takes the loop for stopped after the first refusal", (3, 13))
def test_a_running_loop_cannot_be_run(loop, new_loop):
    other = new_loop()

    async def main():
        with pytest.raises(RuntimeError, match="already running"):
            loop.run_forever()
        future = loop.create_future()
        with pytest.raises(RuntimeError, match="already running"):
            loop.run_until_complete(future)
        with pytest.raises(RuntimeError, match="while another loop is running"):
            other.run_forever()
        with pytest.raises(RuntimeError, match="while another loop is running"):
            other.run_until_complete(other.create_future())
        return 1

    assert loop.run_until_complete(main()) == 1
    assert not other.is_running()


def test_a_loop_can_be_run_again_and_again(loop):
    async def value(number):
        await asyncio.sleep(0)
        return number

    assert [loop.run_until_complete(value(n)) for n in range(100)] == list(range(100))


# run_until_complete


def test_run_until_complete_gives_the_result_or_raises(loop):
    async def fail():
        raise LookupError("no")

    future = loop.create_future()
    loop.call_soon(future.set_result, 42)
    assert loop.run_until_complete(future) == 42
    assert loop.run_until_complete(future) == 42
    with pytest.raises(LookupError, match="no"):
        loop.run_until_complete(fail())


def test_run_until_complete_refuses_what_cannot_complete(loop, new_loop):
    with pytest.raises(TypeError):
        loop.run_until_complete(42)
    future = new_loop().create_future()
    with pytest.raises(ValueError, match="different loop"):
        loop.run_until_complete(future)


def test_run_until_complete_of_a_loop_that_stops_early(loop):
    async def main():
        loop.call_soon(loop.stop)
        await asyncio.sleep(60)

    task = loop.create_task(main())
    with pytest.raises(RuntimeError, match="Event loop stopped before Future completed"):
        loop.run_until_complete(task)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)


def test_a_task_that_is_run_is_not_reported_twice(loop):
    async def leave():
        raise helpers.Leave(3)

    task = loop.create_task(leave())
    with pytest.raises(helpers.Leave):
        loop.run_until_complete(task)
    assert task.done()
    # The future's done callback that run_until_complete left behind must not stop a later run.
    assert loop.run_until_complete(asyncio.sleep(0.001, "slept")) == "slept"


# close


def test_a_closed_loop_refuses_work(loop):
    loop.close()
    assert loop.is_closed()
    assert not loop.is_running()
    for call in (
        lambda: loop.call_soon(print),
        lambda: loop.call_soon_threadsafe(print),
        lambda: loop.call_later(0, print),
        lambda: loop.call_at(0, print),
        lambda: loop.run_forever(),
        lambda: loop.run_in_executor(None, print),
    ):
        with pytest.raises(RuntimeError, match="Event loop is closed"):
            call()
    loop.close()


def test_a_closed_loop_refuses_coroutines(loop):
    loop.close()

    async def never():
        pass

    for call in (loop.run_until_complete, loop.create_task):
        coroutine = never()
        with pytest.raises(RuntimeError, match="Event loop is closed"):
            call(coroutine)
        coroutine.close()


def test_a_running_loop_cannot_be_closed(loop):
    async def main():
        with pytest.raises(RuntimeError, match="Cannot close a running event loop"):
            loop.close()

    loop.run_until_complete(main())
    assert not loop.is_closed()


def test_close_drops_what_was_scheduled(loop):
    class Thing:
        pass

    things = [Thing() for _ in range(5)]
    gone = [weakref.ref(thing) for thing in things]
    ours, peer = socket.socketpair()
    loop.call_soon(print, things[0])
    loop.call_later(60, print, things[1])
    loop.call_soon_threadsafe(print, things[2])
    loop.add_reader(ours, print, things[3])
    loop.add_writer(ours, print, things[4])
    things.clear()
    with ours, peer:
        loop.close()
    gc.collect()
    assert [ref() for ref in gone] == [None] * 5


def test_close_survives_a_destructor_that_uses_the_loop(loop):
    errors = []

    class Last:
        def __del__(self):
            for call in (loop.call_soon, loop.call_soon_threadsafe):
                try:
                    call(print)
                except RuntimeError as error:
                    errors.append(str(error))

    loop.call_soon(print, Last())
    loop.call_later(60, print, Last())
    loop.close()
    gc.collect()
    assert loop.is_closed()
    assert len(errors) <= 4


def test_the_representation_tells_the_state(loop):
    seen = []
    loop.call_soon(lambda: seen.append(repr(loop)))
    helpers.run_once(loop)
    assert "running=True closed=False debug=False" in seen[0]
    assert "running=False closed=False debug=False" in repr(loop)
    loop.close()
    assert "running=False closed=True debug=False" in repr(loop)


# time, futures, async generators


def test_time_is_monotonic_time(loop):
    before = time.monotonic()
    now = loop.time()
    assert isinstance(now, float)
    assert before <= now <= time.monotonic()


def test_create_future_makes_a_future_of_this_loop(loop):
    future = loop.create_future()
    assert type(future) is asyncio.Future
    assert future.get_loop() is loop


def test_async_generators_are_closed_at_the_end(loop):
    closed = []

    async def numbers():
        try:
            yield 1
            yield 2
        finally:
            closed.append(threading.get_ident())

    async def main():
        generator = numbers()
        async for _ in generator:
            break
        return generator

    generator = loop.run_until_complete(main())
    assert closed == []
    loop.run_until_complete(loop.shutdown_asyncgens())
    assert closed == [threading.get_ident()]
    del generator


def test_an_async_generator_that_is_dropped_is_finished_by_the_loop(loop):
    closed = []

    async def numbers():
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            closed.append(True)

    async def main():
        generator = numbers()
        await anext(generator)
        del generator
        gc.collect()
        await helpers.until(lambda: closed)

    loop.run_until_complete(main())
    assert closed == [True]
