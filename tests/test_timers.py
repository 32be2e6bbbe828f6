"""call_later and call_at."""

import asyncio
import copy
import decimal
import fractions
import gc
import random
import socket
import time
import weakref

import pytest


def run_for(loop, seconds):
    loop.call_later(seconds, loop.stop)
    loop.run_forever()


def test_timers_run_in_the_order_of_their_times(loop):
    ran = []
    now = loop.time()
    moments = [now + n / 1_000_000 for n in range(2000)]
    shuffled = moments[:]
    random.Random(1).shuffle(shuffled)
    for moment in shuffled:
        loop.call_at(moment, ran.append, moment)
    run_for(loop, 0.01)
    assert ran == moments


@pytest.mark.hotloop_only
def test_timers_for_the_same_moment_run_in_the_order_of_their_scheduling(loop):
    ran = []
    moment = loop.time() + 0.001
    for number in range(1000):
        handle = loop.call_at(moment, ran.append, number)
        if number % 3 == 0:
            handle.cancel()
    run_for(loop, 0.005)
    assert ran == [number for number in range(1000) if number % 3]


@pytest.mark.hotloop_only
def test_cancelling_many_timers_does_not_disturb_the_order_of_equal_ones(loop):
    ran = []
    moment = loop.time() + 0.01
    handles = []
    for number in range(3000):
        handles.append(loop.call_at(moment, ran.append, number))
    for number, handle in enumerate(handles):
        if number % 100:
            handle.cancel()
    loop.call_soon(lambda: [loop.call_at(moment, ran.append, 3000 + number) for number in range(3)])
    run_for(loop, 0.02)
    assert ran == [*range(0, 3000, 100), 3000, 3001, 3002]


@pytest.mark.parametrize("delay", [0.0, 0.0002, 0.001, 0.0153, 0.05])
def test_a_timer_is_never_early_and_hardly_late(loop, delay):
    seen = []
    due = loop.time() + delay
    loop.call_later(delay, lambda: (seen.append(loop.time()), loop.stop()))
    loop.run_forever()
    assert due - time.get_clock_info("monotonic").resolution <= seen[0] < due + 1


@pytest.mark.parametrize("delay", [0, -1, -1e9, float("-inf"), False, fractions.Fraction(1, 1000), 0.001])
def test_delays_of_any_sort_of_number(loop, delay):
    ran = []
    loop.call_later(delay, lambda: (ran.append(1), loop.stop()))
    loop.run_forever()
    assert ran == [1]


@pytest.mark.parametrize("delay", [1e5, 1e9, 1e18, 1e300, float("inf"), 10**12])
def test_a_distant_timer_waits(loop, delay):
    ran = []
    handle = loop.call_later(delay, ran.append, 1)
    assert handle.when() >= loop.time() + 9e4
    run_for(loop, 0.002)
    assert ran == []
    handle.cancel()
    run_for(loop, 0.002)


def test_a_distant_timer_alone_does_not_keep_the_loop_from_events(loop):
    ours, peer = socket.socketpair()
    with ours, peer:
        loop.call_later(float("inf"), print)
        loop.call_later(1e18, print)
        loop.add_reader(ours, loop.stop)
        peer.send(b"x")
        loop.run_forever()
        loop.remove_reader(ours)


def test_call_at_a_moment_that_has_passed_runs_at_once(loop):
    ran = []
    for moment in (0, -5.5, loop.time() - 1):
        loop.call_at(moment, ran.append, moment)
    run_for(loop, 0.001)
    assert len(ran) == 3


def test_wrong_arguments_are_refused(loop):
    for call, error in (
        (lambda: loop.call_later(None, print), TypeError),
        (lambda: loop.call_at(None, print), TypeError),
        (lambda: loop.call_later("1", print), TypeError),
        (lambda: loop.call_later(1), TypeError),
        (lambda: loop.call_at(1), TypeError),
        (lambda: loop.call_later(), TypeError),
        (lambda: loop.call_later(1, print, nonsense=1), TypeError),
        (lambda: loop.call_at(1, print, nonsense=1), TypeError),
    ):
        with pytest.raises(error):
            call()
    run_for(loop, 0)


def test_a_timer_gets_its_arguments(loop):
    ran = []
    loop.call_later(0, lambda *args: ran.append(args), 1, "two")
    loop.call_at(loop.time(), lambda *args: ran.append(args))
    run_for(loop, 0.002)
    assert ran == [(1, "two"), ()]


def test_a_cancelled_timer_does_not_run(loop):
    ran = []
    handles = [loop.call_later(0.001 * n, ran.append, n) for n in range(10)]
    for handle in handles[::2]:
        handle.cancel()
    run_for(loop, 0.02)
    assert ran == [1, 3, 5, 7, 9]


def test_a_timer_can_cancel_one_that_is_due_with_it(loop):
    ran = []
    now = loop.time()
    loop.call_at(now - 2, lambda: (ran.append(1), second.cancel()))
    second = loop.call_at(now - 1, ran.append, 2)
    run_for(loop, 0.001)
    assert ran == [1]


def test_a_cancelled_timer_frees_its_arguments_at_once(loop):
    class Thing:
        pass

    thing = Thing()
    gone = weakref.ref(thing)
    handle = loop.call_later(60, print, thing)
    del thing
    handle.cancel()
    gc.collect()
    assert gone() is None


def test_cancelled_timers_are_not_kept(loop):
    """However many are cancelled, the loop holds a few of them at most."""
    gone = []
    for _ in range(20_000):
        handle = loop.call_later(3600, print)
        handle.cancel()
        gone.append(weakref.ref(handle))
    del handle
    run_for(loop, 0)
    gc.collect()
    assert sum(ref() is not None for ref in gone) <= 200


def test_cancelled_timers_among_many_live_ones(loop):
    ran = []
    live = [loop.call_later(0.001 + n / 1e6, ran.append, n) for n in range(500)]
    dead = [loop.call_later(0.001 + n / 1e6, ran.append, -n) for n in range(500)]
    for handle in dead:
        handle.cancel()
    run_for(loop, 0.01)
    assert ran == list(range(500))
    assert not any(handle.cancelled() for handle in live)


def test_a_timer_of_no_delay_runs_in_a_later_iteration(loop):
    """So that a timer which starts itself again leaves room for all else."""
    ran = []

    def again():
        ran.append("timer")
        if len(ran) < 1000:
            loop.call_later(0, again)

    loop.call_soon(again)
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert ran == ["timer"]


def test_timers_do_not_overtake_callbacks(loop):
    """What was ready first runs first; what a timer schedules runs after the timers that are due with it."""
    ran = []
    now = loop.time()
    loop.call_at(now - 2, lambda: (ran.append("timer 1"), loop.call_soon(ran.append, "soon 2")))
    loop.call_at(now - 1, ran.append, "timer 2")
    loop.call_soon(ran.append, "soon 1")
    run_for(loop, 0.002)
    assert ran == ["soon 1", "timer 1", "timer 2", "soon 2"]


def test_a_short_timer_scheduled_after_a_long_one(loop):
    ran = []
    loop.call_later(5, ran.append, "long")
    loop.call_later(0.01, lambda: (ran.append("short"), loop.stop()))
    start = time.monotonic()
    loop.run_forever()
    assert ran == ["short"]
    assert time.monotonic() - start < 4


def test_a_timer_that_fails_is_reported(loop, reports):
    ran = []
    handle = loop.call_later(0, lambda: 1 / 0)
    loop.call_later(0.001, ran.append, 1)
    run_for(loop, 0.003)
    report = reports.take()
    assert report["handle"] is handle
    assert isinstance(report["exception"], ZeroDivisionError)
    assert ran == [1]


def test_many_sleepers(loop):
    async def main():
        random_delays = [random.Random(n).random() / 50 for n in range(2000)]
        order = []

        async def sleep(delay):
            await asyncio.sleep(delay)
            order.append(delay)

        start = loop.time()
        await asyncio.gather(*map(sleep, random_delays))
        assert loop.time() - start >= max(random_delays) - 1e-6
        assert sorted(order) == sorted(random_delays)

    loop.run_until_complete(main())


async def test_timeouts_and_sleeps(loop):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.005):
            await asyncio.sleep(60)
    async with asyncio.timeout(60):
        assert await asyncio.sleep(0.001, "value") == "value"
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(loop.create_future(), 0.005)


def test_a_waiting_loop_sleeps(loop):
    """The wait is one long sleep, not many short ones."""
    used = time.thread_time()
    run_for(loop, 0.3)
    assert time.thread_time() - used < 0.1


def test_the_argument_of_a_timer_may_schedule_and_cancel_in_its_destructor(loop):
    ran = []
    other = loop.call_later(60, ran.append, "never")

    class Last:
        def __del__(self):
            other.cancel()
            loop.call_later(0, ran.append, "timer")
            loop.call_soon(ran.append, "soon")

    loop.call_later(60, print, Last()).cancel()
    run_for(loop, 0.002)
    assert sorted(ran) == ["soon", "timer"]
    assert other.cancelled()


@pytest.mark.parametrize("when", [5, True, 5.5, decimal.Decimal(5), fractions.Fraction(11, 2)])
def test_a_timer_tells_the_time_that_it_was_given(loop, when):
    handle = loop.call_at(when, print)
    assert handle.when() == when
    assert type(handle.when()) is type(when)
    assert copy.copy(handle).when() == when
    handle.cancel()


def test_a_delay_is_added_to_the_time(loop):
    with pytest.raises(TypeError, match="unsupported operand"):
        loop.call_later(decimal.Decimal(1), print)
    with pytest.raises(TypeError):
        loop.call_later("1", print)
    for delay in (1, 0.5, True, fractions.Fraction(1, 2)):
        handle = loop.call_later(delay, print)
        assert type(handle.when()) is float
        handle.cancel()
