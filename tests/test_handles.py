"""Handle and TimerHandle: what call_soon, call_soon_threadsafe, call_later and call_at return."""

import asyncio
import contextvars
import functools
import gc
import operator
import weakref

import pytest


def callback(*args, **kwargs):
    pass


SCHEDULE = {
    "call_soon": lambda loop, *args, **kwargs: loop.call_soon(*args, **kwargs),
    "call_soon_threadsafe": lambda loop, *args, **kwargs: loop.call_soon_threadsafe(*args, **kwargs),
    "call_later": lambda loop, *args, **kwargs: loop.call_later(0, *args, **kwargs),
    "call_at": lambda loop, *args, **kwargs: loop.call_at(0, *args, **kwargs),
}


@pytest.fixture(params=SCHEDULE)
def schedule(loop, request):
    """Each way to schedule a callback."""
    return functools.partial(SCHEDULE[request.param], loop)


@pytest.fixture
def scheduled_at(request):
    return request.node.callspec.params["schedule"] in ("call_later", "call_at")


def drain(loop):
    for _ in range(3):
        loop.call_soon(loop.stop)
        loop.run_forever()


def test_a_handle_is_one_of_asyncios(schedule, scheduled_at):
    handle = schedule(callback)
    assert isinstance(handle, asyncio.Handle)
    assert isinstance(handle, asyncio.TimerHandle) is scheduled_at


def test_cancel(loop, schedule):
    ran = []
    handle = schedule(ran.append, 1)
    assert handle.cancelled() is False
    assert handle.cancel() is None
    assert handle.cancelled() is True
    handle.cancel()
    drain(loop)
    assert ran == []


def test_cancel_drops_callback_and_arguments(schedule):
    class Thing:
        def method(self, other):
            pass

    thing, other = Thing(), Thing()
    gone = [weakref.ref(thing), weakref.ref(other)]
    handle = schedule(thing.method, other)
    del thing, other
    handle.cancel()
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


def test_a_handle_that_ran_is_not_cancelled(loop, schedule):
    ran = []
    handle = schedule(ran.append, 1)
    drain(loop)
    assert ran == [1]
    assert not handle.cancelled()
    handle.cancel()
    assert handle.cancelled()


def test_a_callback_can_cancel_its_own_handle_and_later_ones(loop):
    ran = []

    def cancel():
        ran.append(1)
        first.cancel()
        second.cancel()

    first = loop.call_soon(cancel)
    second = loop.call_soon(ran.append, 2)
    loop.call_soon(ran.append, 3)
    drain(loop)
    assert ran == [1, 3]


def test_the_insides_that_libraries_look_at(loop, schedule):
    context = contextvars.copy_context()
    handle = schedule(callback, 1, "two", context=context)
    assert handle._callback is callback
    assert handle._args == (1, "two")
    assert handle._context is context
    assert handle._cancelled is False
    assert handle._loop is loop
    assert handle._source_traceback is None
    handle.cancel()
    assert handle._cancelled is True
    assert handle._callback is None
    assert handle._args is None


def test_a_handle_without_context_runs_in_a_copy_of_the_current_one(schedule):
    variable = contextvars.ContextVar("variable")
    token = variable.set(1)
    handle = schedule(callback)
    variable.reset(token)
    assert isinstance(handle._context, contextvars.Context)
    assert handle._context[variable] == 1


@pytest.mark.asyncio_from(3, 12)
def test_get_context(schedule):
    context = contextvars.copy_context()
    assert schedule(callback, context=context).get_context() is context
    assert isinstance(schedule(callback).get_context(), contextvars.Context)


def test_a_handle_can_be_run_by_hand(loop, schedule, reports):
    ran = []
    variable = contextvars.ContextVar("variable", default=None)
    context = contextvars.copy_context()
    context.run(variable.set, "here")
    handle = schedule(lambda: ran.append(variable.get()), context=context)
    handle._run()
    assert ran == ["here"]
    handle.cancel()
    failing = schedule(lambda: 1 / 0)
    failing._run()
    failing.cancel()
    report = reports.take()
    assert isinstance(report["exception"], ZeroDivisionError)
    assert report["handle"] is failing


def test_the_representation_is_asyncios(loop):
    for args in ((), (1, "two")):
        handle = loop.call_soon(callback, *args)
        assert repr(handle) == repr(asyncio.Handle(callback, args, loop))
        handle.cancel()
        assert repr(handle) == "<Handle cancelled>"


def test_the_representation_of_partials_and_methods_is_asyncios(loop):
    class Thing:
        def method(self):
            pass

        def __repr__(self):
            return "<thing>"

    for function in (
        functools.partial(callback, 1, two=2),
        Thing().method,
        Thing,
        print,
        functools.partial(print),
    ):
        assert repr(loop.call_soon(function)) == repr(asyncio.Handle(function, (), loop))


def test_the_representation_of_a_timer_is_asyncios(loop):
    handle = loop.call_at(1234.5, callback, 1)
    expected = asyncio.TimerHandle(1234.5, callback, (1,), loop)
    expected._scheduled = True
    assert repr(handle) == repr(expected)
    assert "when=1234.5" in repr(handle)
    handle.cancel()
    assert repr(handle) == "<TimerHandle cancelled when=1234.5>"


def test_when(loop):
    before = loop.time()
    handle = loop.call_later(10, callback)
    assert before + 10 <= handle.when() <= loop.time() + 10
    assert loop.call_at(5.5, callback).when() == 5.5
    handle.cancel()
    assert handle.when() >= before + 10


def test_timers_compare_by_their_time(loop):
    early, same, late = loop.call_at(10, callback), loop.call_at(10, callback), loop.call_at(20, callback)
    assert early < late
    assert early <= late
    assert late > early
    assert late >= early
    assert not early > late
    assert not early >= late
    assert not late < early
    assert not late <= early
    assert not early < same
    assert not early > same
    assert early <= same
    assert early >= same
    assert sorted([late, early]) == [early, late]


def test_timers_are_equal_if_all_their_parts_are(loop):
    handle = loop.call_at(10, callback, 1)
    assert handle == loop.call_at(10, callback, 1)
    assert hash(handle) == hash(loop.call_at(10, callback, 1))
    assert handle != loop.call_at(11, callback, 1)
    assert handle != loop.call_at(10, print, 1)
    assert handle != loop.call_at(10, callback, 2)
    cancelled = loop.call_at(10, callback, 1)
    cancelled.cancel()
    assert handle != cancelled


def test_timers_do_not_compare_with_anything_else(loop):
    handle = loop.call_at(10, callback)
    assert handle != 10
    assert handle != "10"
    assert handle != loop.call_soon(callback)
    for compare in (lambda: handle < 10, lambda: handle <= 10, lambda: handle > 10, lambda: handle >= None):
        with pytest.raises(TypeError):
            compare()


def test_comparing_timers_survives_a_callback_whose_comparison_cancels(loop):
    class Odd:
        def __eq__(self, other):
            first.cancel()
            second.cancel()
            return True

        __hash__ = None

        def __call__(self):
            pass

    first, second = loop.call_at(10, Odd()), loop.call_at(10, Odd())
    assert (first == second) in (True, False)
    assert first.cancelled()


def test_plain_handles_are_equal_only_to_themselves(loop):
    handle, other = loop.call_soon(callback), loop.call_soon(callback)
    assert handle == handle
    assert handle != other
    assert len({handle, other, handle}) == 2
    with pytest.raises(TypeError):
        operator.lt(handle, other)


def test_handles_can_be_referred_to_weakly(loop, schedule):
    handle = schedule(callback)
    ref = weakref.ref(handle)
    assert ref() is handle
    drain(loop)
    del handle
    gc.collect()
    assert ref() is None


def test_a_handle_in_a_cycle_is_collected(loop, schedule):
    class Owner:
        def method(self):
            pass

    owner = Owner()
    owner.handle = schedule(owner.method)
    gone = weakref.ref(owner)
    drain(loop)
    del owner
    gc.collect()
    assert gone() is None


def test_a_timer_knows_when_it_is_no_longer_scheduled(loop):
    handle = loop.call_later(0, callback)
    assert handle._scheduled
    drain(loop)
    assert not handle._scheduled
    cancelled = loop.call_later(60, callback)
    cancelled.cancel()
    assert cancelled.cancelled()


def test_a_handle_of_asyncios_own_can_be_cancelled_when_it_is_queued(loop):
    ran = []
    first, second = (asyncio.Handle(ran.append, (number,), loop, None) for number in range(2))
    if hasattr(loop, "_add_callback"):
        loop._add_callback(first)
        loop._add_callback(second)
    else:
        loop._ready.extend([first, second])
    first.cancel()
    drain(loop)
    assert ran == [1]
