"""Callbacks that another thread schedules while the loop is busy, with handles that it keeps or drops."""

import asyncio
import contextvars
import gc
import sys
import threading
import weakref
from unittest import mock

import helpers
import pytest

COUNT = 300


@pytest.fixture(autouse=True)
def collector():
    yield
    gc.enable()


def in_thread(loop, work, then=int):
    """Have another thread work while a callback keeps the loop busy, then run what it has scheduled."""
    failed = []

    def guarded():
        try:
            work()
        except BaseException as error:
            failed.append(error)

    def busy():
        thread = threading.Thread(target=guarded)
        thread.start()
        thread.join()
        then()
        loop.call_soon(loop.call_soon, loop.stop)

    loop.call_soon(busy)
    loop.run_forever()
    if failed:
        raise failed[0]


def schedule_numbers(loop, callback, count):
    for number in range(count):
        loop.call_soon_threadsafe(callback, number)


def use_memory_of_handles(loop, kept):
    """Have the next handle need memory: none is left of handles that are gone, nor do more go."""
    gc.disable()
    kept.extend(loop.call_soon_threadsafe(int) for _ in range(20_000))


def pop_without_memory(pop):
    helpers.testcapi.set_nomemory(0, 1)
    try:
        pop()
    finally:
        helpers.testcapi.remove_mem_hooks()


def handles():
    """The handles that there are."""
    return [each for each in gc.get_objects() if isinstance(each, asyncio.Handle)]


@pytest.mark.hotloop_only
@pytest.mark.skipif(helpers.FREE_THREADED, reason="without the GIL, a handle may be wanted at any time")
def test_handles_that_nobody_has_are_not_kept(loop):
    counts, ran = [], []
    gc.collect()

    def work():
        before = len(handles())
        for _ in range(COUNT):
            loop.call_soon_threadsafe(ran.append, None)
        counts.append(len(handles()) - before)
        kept = [loop.call_soon_threadsafe(ran.append, None) for _ in range(COUNT)]
        counts.append(len(handles()) - before)
        kept.clear()

    in_thread(loop, work)
    # A few of other tests may go meanwhile.
    assert counts[0] < COUNT / 10
    assert counts[1] > COUNT * 9 / 10
    assert len(ran) == 2 * COUNT


def test_order_arguments_and_contexts(loop):
    variable = contextvars.ContextVar("variable")
    ran, expected, kept = [], [], []
    own = contextvars.Context()
    own.run(variable.set, "own")

    def note(*args):
        ran.append((args, variable.get(None)))

    def work():
        for number in range(COUNT):
            variable.set(number)
            args = tuple(range(number % 5))
            context = own if number % 7 == 0 else None
            handle = loop.call_soon_threadsafe(note, *args, context=context)
            expected.append((args, "own" if context else number))
            if number % 3 == 0:
                kept.append(handle)
            if number % 11 == 0:
                handle.cancel()
                expected.pop()
            del handle

    in_thread(loop, work)
    assert ran == expected


def test_order_of_several_threads_and_the_loop(loop):
    ran = []

    def work():
        for number in range(0, COUNT, 3):
            loop.call_soon_threadsafe(ran.append, number)
            # Each in its turn.
            handed_over.release()
            handed_back.acquire()

    def busy():
        thread = threading.Thread(target=work)
        thread.start()
        for number in range(0, COUNT, 3):
            handed_over.acquire()
            loop.call_soon(ran.append, number + 1)
            loop.call_soon_threadsafe(ran.append, number + 2)
            handed_back.release()
        thread.join()
        loop.call_soon(loop.stop)

    handed_over, handed_back = threading.Semaphore(0), threading.Semaphore(0)
    loop.call_soon(busy)
    loop.run_forever()
    assert ran == list(range(COUNT))


def test_what_is_scheduled_just_before_a_wait_ends_it(loop):
    """The loop has seen that nothing is ready, and has not begun to wait."""
    time = loop.time
    ran, left = [], ["first", "second"]

    def look_at_the_clock():
        if left and ran:
            thread = threading.Thread(target=loop.call_soon_threadsafe, args=[ran.append, left.pop(0)])
            thread.start()
            thread.join()
            if not left:
                loop.call_soon_threadsafe(loop.stop)
        return time()

    with mock.patch.object(loop, "time", look_at_the_clock):
        timer = loop.call_later(60, int)
        loop.call_soon(ran.append, "begun")
        loop.run_forever()
    timer.cancel()
    assert ran == ["begun", "first", "second"]


def test_handles_of_the_loop_and_of_another_thread(loop):
    """Dropped one after another, in turn: each callback has its own arguments."""
    ran = []

    def schedule():
        for number in range(COUNT):
            (loop.call_soon if number % 4 == 0 else loop.call_soon_threadsafe)(ran.append, number)
        loop.call_soon_threadsafe(loop.stop)

    loop.call_soon(schedule)
    loop.run_forever()
    assert ran == list(range(COUNT))


def test_a_handle_that_is_kept_by_a_weak_reference(loop):
    ran, references = [], []

    def work():
        for number in range(COUNT):
            references.append(weakref.ref(loop.call_soon_threadsafe(ran.append, number)))
        for reference in references[::2]:
            reference().cancel()

    in_thread(loop, work)
    assert ran == list(range(1, COUNT, 2))
    gc.collect()
    assert {reference() for reference in references} == {None}


def test_an_exception_is_reported_with_a_handle(loop):
    told = []
    loop.set_exception_handler(lambda loop, context: told.append(context))

    def fail(*args):
        raise ValueError(*args)

    def work():
        for number in range(3):
            loop.call_soon_threadsafe(fail, *range(number))
        loop.call_soon_threadsafe(int)

    in_thread(loop, work)
    assert [type(context["exception"]) for context in told] == [ValueError] * 3
    assert [context["exception"].args for context in told] == [(), (0,), (0, 1)]
    kind = "_ThreadSafeHandle" if sys.version_info >= (3, 14) else "Handle"
    for context in told:
        handle = context["handle"]
        assert context["message"].startswith("Exception in callback test_an_exception")
        assert isinstance(handle, asyncio.Handle)
        assert type(handle).__name__ == kind
        assert repr(handle).startswith(f"<{kind} test_an_exception_is_reported_with_a_handle.")
        assert not handle.cancelled()


@pytest.mark.hotloop_only
def test_a_report_of_what_runs_it_names_a_handle(loop):
    """asyncio lets these errors out of run_forever()."""
    told = []
    loop.set_exception_handler(lambda loop, context: told.append(context))

    def work():
        for _ in range(3):
            loop.call_soon_threadsafe(noted)

    def noted():
        pass

    def run(self):
        if self._callback is noted:
            raise ValueError
        self._context.run(self._callback, *self._args)

    with mock.patch.object(asyncio.Handle, "_run", run):
        in_thread(loop, work)
    assert [isinstance(context.get("handle"), asyncio.Handle) for context in told] == [True] * 3


@pytest.mark.hotloop_only
@helpers.fails_allocations
@pytest.mark.parametrize("number", range(5))
def test_an_exception_without_memory_for_a_handle(loop, number):
    """Something is reported for each, and the loop goes on. asyncio's own would end.

    With larger numbers, CPython itself crashes in the report: see torture/memory/crashes.py.
    """
    told = []

    def tell(loop, context):
        helpers.testcapi.remove_mem_hooks()
        told.append(context["exception"])

    loop.set_exception_handler(tell)

    def fail():
        helpers.testcapi.set_nomemory(number, number + 1)
        raise ValueError

    def work():
        for _ in range(3):
            loop.call_soon_threadsafe(fail)

    kept = []
    try:
        in_thread(loop, work, lambda: use_memory_of_handles(loop, kept))
    finally:
        helpers.testcapi.remove_mem_hooks()
    assert len(told) == 3


def test_what_is_taken_out_of_the_queue(loop):
    ran, taken = [], []

    def take():
        while loop._ready:
            taken.append(loop._ready.popleft())

    in_thread(loop, lambda: schedule_numbers(loop, ran.append, 10), take)
    assert ran == []
    assert all(isinstance(handle, asyncio.Handle) for handle in taken)
    assert [handle._args for handle in taken] == [(number,) for number in range(10)]
    for handle in taken[::2]:
        handle._run()
    assert ran == list(range(0, 10, 2))


@pytest.mark.hotloop_only
@helpers.fails_allocations
@pytest.mark.skipif(helpers.FREE_THREADED, reason="without the GIL, handles are kept")
def test_nothing_is_lost_that_cannot_be_taken_out(loop):
    ran, kept = [], []

    def take():
        use_memory_of_handles(loop, kept)
        with pytest.raises(MemoryError):
            pop_without_memory(loop._pop_ready)

    in_thread(loop, lambda: schedule_numbers(loop, ran.append, 10), take)
    assert ran == list(range(10))


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_what_ends_the_run(loop, error):
    ran = []

    def end():
        raise error

    def work():
        loop.call_soon_threadsafe(end)
        loop.call_soon_threadsafe(ran.append, None)
        loop.call_soon_threadsafe(int)

    with pytest.raises(error):
        in_thread(loop, work)
    assert not ran
    loop.run_forever()
    assert ran == [None]


def test_programs_that_look_into_the_queue(loop):
    """What they see is what is run: a handle that they cancel is not called."""
    ran = []
    noted = ran.append

    def look():
        handles = [handle for handle in loop._ready if handle._callback is noted]
        assert [handle._args for handle in handles] == [(number,) for number in range(10)]
        assert [handle for handle in loop._ready if handle._callback is noted] == handles
        for handle in handles[::3]:
            handle.cancel()

    in_thread(loop, lambda: schedule_numbers(loop, noted, 10), look)
    assert ran == [number for number in range(10) if number % 3]


def test_debug_mode_that_is_switched_on_before_they_run(loop):
    current = []

    def work():
        for _ in range(3):
            loop.call_soon_threadsafe(lambda: current.append(loop._current_handle))
        loop.set_debug(True)

    in_thread(loop, work)
    loop.set_debug(False)
    assert [isinstance(handle, asyncio.Handle) for handle in current] == [True] * 3


def test_a_patched_run_is_called_for_each(loop):
    seen = []
    original = asyncio.Handle._run

    def run(self):
        seen.append(self)
        return original(self)

    ran = []
    noted = ran.append

    with mock.patch.object(asyncio.Handle, "_run", run):
        in_thread(loop, lambda: schedule_numbers(loop, noted, COUNT))
    assert ran == list(range(COUNT))
    # From 3.14 on they are of another class, with a method of its own that calls this one.
    called = [handle._args for handle in seen if handle._callback is noted]
    assert called == [(number,) for number in range(COUNT)]


@pytest.mark.parametrize("end", ["close", "collect"])
def test_what_never_runs_is_released(loop_name, end):
    class Thing:
        pass

    loop = helpers.FACTORIES[loop_name]()
    things = [Thing() for _ in range(10)]
    references = [weakref.ref(thing) for thing in things]

    def work(things):
        for thing in things:
            # The loop refers to itself.
            loop.call_soon_threadsafe(lambda thing=thing, loop=loop: None)
            loop.call_soon_threadsafe(print, thing)

    thread = threading.Thread(target=work, args=[things])
    loop._thread_id = 1  # as if another thread ran it
    thread.start()
    thread.join()
    loop._thread_id = None
    del things, thread, work
    assert None not in {reference() for reference in references}
    if end == "close":
        loop.close()
    else:
        del loop
        with pytest.warns(ResourceWarning):
            gc.collect()
    gc.collect()
    assert {reference() for reference in references} == {None}


@pytest.mark.hotloop_only
def test_their_names_in_a_recording(loop):
    def named():
        pass

    def work():
        for _ in range(COUNT):
            loop.call_soon_threadsafe(named)

    loop.record(seconds=5)
    in_thread(loop, work)
    events = loop.recording().events()
    assert sum("named" in str(event.get("name")) for event in events) == COUNT
