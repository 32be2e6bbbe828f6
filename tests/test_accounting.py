"""loop.account() and loop.accounting(): who uses the loop, and for how long."""

import asyncio
import gc
import os
import re
import socket
import sys
import threading
import time
import weakref
import xml.etree.ElementTree as ElementTree

import helpers
import hotloop
import pytest
from hotloop.accounting import Account, Accounting, combine

pytestmark = [pytest.mark.timeout(60), pytest.mark.hotloop_only]


@pytest.fixture
def accounted(loop):
    loop.account()
    return loop


def of(loop, name):
    """The account of that name, without what encloses it."""
    found = [each for each in loop.accounting().accounts if each.name.rpartition(".")[2] == name]
    assert len(found) == 1, loop.accounting()
    return found[0]


def named(accounting):
    return {account.name.rpartition(".")[2]: account for account in accounting.accounts}


def callback():
    pass


async def leaf(seconds):
    await asyncio.sleep(0)
    time.sleep(seconds)


async def computing(seconds):
    await asyncio.sleep(0)
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


# --- Counts and times ---


def test_steps_and_calls_are_counted_exactly(accounted):
    loop = accounted
    before = loop.metrics()

    async def stepping(count):
        for _ in range(count):
            await asyncio.sleep(0)

    async def main():
        tasks = [loop.create_task(stepping(count)) for count in (0, 3, 10)]
        for _ in range(20):
            loop.call_soon(callback)
        loop.call_later(0.001, callback)
        loop.call_soon_threadsafe(callback)
        await asyncio.gather(*tasks)
        await asyncio.sleep(0.01)

    loop.run_until_complete(main())
    accounting = loop.accounting()
    account = of(loop, "stepping")
    assert (account.kind, account.total_poll_count, account.first_poll_count) == ("task", 1 + 4 + 11, 3)
    assert account.where == f"test_accounting.py:{stepping.__code__.co_firstlineno}"
    account = of(loop, "callback")
    assert (account.kind, account.total_poll_count, account.first_poll_count) == ("callback", 22, 0)
    done = loop.metrics().since(before)
    own = next(account for account in accounting.accounts if account.kind == "loop")
    assert sum(each.total_poll_count for each in accounting.accounts) - own.total_poll_count == done.callbacks
    assert own.total_poll_count == done.iterations


def test_the_sum_of_the_times_is_that_of_the_metrics(accounted):
    loop = accounted
    before = loop.metrics()

    async def main():
        for _ in range(5):
            await asyncio.gather(leaf(0.005), computing(0.005), asyncio.sleep(0.01))

    loop.run_until_complete(main())
    done = loop.metrics().since(before)
    accounting = loop.accounting()
    assert accounting.busy == pytest.approx(done.busy, rel=0.02, abs=0.001)
    waited = sum(account.total_scheduled_duration for account in accounting.accounts)
    assert waited == pytest.approx(done.delay.sum, rel=0.1, abs=0.002)
    assert accounting.seconds >= done.busy


def test_who_sleeps_and_who_computes(accounted):
    loop = accounted

    async def main():
        await asyncio.gather(*(leaf(0.02) for _ in range(5)), *(computing(0.02) for _ in range(5)))

    loop.run_until_complete(main())
    sleeps, computes = of(loop, "leaf"), of(loop, "computing")
    for account in (sleeps, computes):
        assert account.total_poll_count == 10
        assert 0.1 <= account.total_poll_duration < 1
        assert 0.02 <= account.longest_poll_duration <= account.total_poll_duration
        assert account.total_slow_poll_count == 5
        assert 0.1 <= account.total_slow_poll_duration <= account.total_poll_duration
        assert account.mean_poll_duration == account.total_poll_duration / 10
        assert account.slow_poll_ratio == 0.5
    assert sleeps.total_processor_time < 0.3 * sleeps.total_poll_duration
    assert 0.09 <= computes.total_processor_time <= computes.total_poll_duration + 0.001


def test_how_long_they_waited(accounted):
    loop = accounted

    def blocking():
        time.sleep(0.05)

    async def last():
        pass

    async def main():
        loop.call_soon(blocking)
        await loop.create_task(last())

    loop.run_until_complete(main())
    account = of(loop, "last")
    assert account.first_poll_count == account.total_poll_count == 1
    for waited in (account.total_scheduled_duration, account.total_first_poll_delay):
        assert 0.05 <= waited < 0.5
    assert account.longest_scheduled_duration == pytest.approx(account.total_scheduled_duration, rel=0.01)
    assert account.mean_first_poll_delay == account.total_first_poll_delay
    assert of(loop, "blocking").total_scheduled_duration < 0.04


def test_a_late_timer_has_waited_since_it_was_due(accounted):
    loop = accounted

    def due():
        pass

    async def main():
        loop.call_later(0.01, due)
        time.sleep(0.06)
        await asyncio.sleep(0.01)

    loop.run_until_complete(main())
    assert 0.045 <= of(loop, "due").total_scheduled_duration < 0.5


def test_in_a_long_iteration_each_callback_has_its_own_time(accounted):
    loop = accounted

    def slow():
        time.sleep(0.01)

    async def main():
        for number in range(40):
            loop.call_soon(slow if number == 20 else callback)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    loop.run_until_complete(main())
    assert 0.01 <= of(loop, "slow").total_poll_duration < 0.1
    account = of(loop, "callback")
    assert account.total_poll_duration < 0.009
    assert account.total_scheduled_duration == pytest.approx(19 * 0.01, rel=0.6)


def test_what_protocols_do_is_theirs(accounted):
    loop = accounted

    class Slow(asyncio.Protocol):
        def data_received(self, data):
            time.sleep(0.02)
            received.set_result(data)

    async def main():
        nonlocal received
        received = loop.create_future()
        ours, theirs = socket.socketpair()
        transport, _ = await loop.create_connection(Slow, sock=ours)
        await loop.sock_sendall(theirs, b"x") if theirs.setblocking(False) is None else None
        await received
        transport.close()
        theirs.close()

    received = None
    loop.run_until_complete(main())
    account = of(loop, "Slow")
    assert account.kind == "protocol"
    assert account.line == 0
    assert 0.02 <= account.longest_poll_duration < 0.5


def test_a_step_that_asks_sees_its_own_time(accounted):
    loop = accounted

    async def asking():
        time.sleep(0.02)
        first = of(loop, "asking").total_poll_duration
        time.sleep(0.02)
        return first, of(loop, "asking").total_poll_duration

    first, second = loop.run_until_complete(asking())
    assert 0.02 <= first < second - 0.015
    assert 0.04 <= of(loop, "asking").longest_poll_duration < 0.5


def test_a_run_within_a_callback_is_not_counted_twice(accounted):
    loop = accounted

    def inner():
        time.sleep(0.02)

    def outer():
        time.sleep(0.01)
        loop.call_soon(inner)
        loop._run_once()
        time.sleep(0.01)

    loop.call_soon(outer)
    loop.run_until_complete(asyncio.sleep(0.001))
    assert 0.02 <= of(loop, "outer").total_poll_duration < 0.038
    assert of(loop, "outer").total_poll_count == 1
    assert 0.02 <= of(loop, "inner").total_poll_duration < 0.038


# --- Beginning and ending ---


def test_without_accounts(loop):
    with pytest.raises(RuntimeError, match=r"call loop.account\(\) first"):
        loop.accounting()
    loop.account()
    loop.accounting()
    loop.account(False)
    with pytest.raises(RuntimeError):
        loop.accounting()
    loop.account(False)


@pytest.mark.parametrize("slow", [0, -1, float("inf"), float("nan")])
def test_slow_must_be_a_positive_number(loop, slow):
    with pytest.raises(ValueError, match="positive"):
        loop.account(slow=slow)
    with pytest.raises(RuntimeError):
        loop.accounting()


def test_another_threshold(loop):
    loop.account(slow=0.05)
    loop.run_until_complete(asyncio.wait_for(leaf(0.02), None))
    assert not any(account.total_slow_poll_count for account in loop.accounting().accounts)


def test_a_reset_of_the_metrics_makes_no_waiting_work(accounted):
    loop = accounted
    loop.run_until_complete(asyncio.sleep(0.2))
    loop.reset_metrics()
    loop.run_until_complete(asyncio.sleep(0.1))
    assert loop.accounting().busy < 0.08


def test_called_again_it_starts_anew(accounted):
    loop = accounted
    loop.run_until_complete(leaf(0.01))
    loop.account()
    assert all(not account.total_poll_duration for account in loop.accounting().accounts)
    loop.run_until_complete(leaf(0.01))
    assert of(loop, "leaf").total_poll_count == 2
    assert loop.accounting().seconds < 1


def test_begun_and_ended_within_callbacks(loop):
    async def main():
        for _ in range(20):
            loop.account()
            for _ in range(20):
                loop.call_soon(callback)
            await asyncio.sleep(0)
            loop.call_soon(loop.account, False)
            loop.call_soon(callback)
            await asyncio.sleep(0)
        loop.account()
        await asyncio.sleep(0)

    loop.run_until_complete(main())
    assert loop.accounting().busy < 1


@pytest.mark.parametrize("position", range(1, 18))
def test_each_callback_is_counted_once_in_the_metrics(loop, position):
    before = loop.metrics()
    for number in range(29):
        if number % position:
            loop.call_soon(callback)
        else:
            loop.call_soon(loop.account, number // position % 2 == 0)
    # One more, which stops the loop.
    helpers.run_once(loop)
    assert loop.metrics().since(before).callbacks == 30


def test_with_the_recorder_the_watchdog_and_debug_mode(loop):
    loop.account()
    loop.record()
    loop.watch_blocking(10)
    loop.set_debug(True)

    async def stepping():
        for _ in range(5):
            await asyncio.sleep(0)

    async def main():
        loop.call_soon(callback)
        await asyncio.gather(stepping(), stepping())

    loop.run_until_complete(main())
    account = of(loop, "stepping")
    assert (account.total_poll_count, account.first_poll_count) == (12, 2)
    assert of(loop, "callback").total_poll_count == 1
    assert loop.recording().records > 0
    loop.record(None)
    loop.set_debug(False)
    loop.run_until_complete(main())
    assert of(loop, "stepping").total_poll_count == 24


def test_a_closed_loop_still_tells():
    loop = hotloop.new_event_loop()
    loop.account()
    loop.run_until_complete(leaf(0.01))
    loop.close()
    assert of(loop, "leaf").total_poll_count == 2


def test_nothing_is_kept_alive(accounted):
    loop = accounted

    async def coroutine():
        await asyncio.sleep(0)

    def function():
        pass

    task = loop.create_task(coroutine())
    gone = [weakref.ref(task), weakref.ref(coroutine), weakref.ref(function)]
    loop.call_soon(function)
    loop.run_until_complete(task)
    del task, coroutine, function
    gc.collect()
    assert [reference() for reference in gone] == [None] * 3
    assert of(loop, "function").total_poll_count == 1


def test_eager_tasks_begin_elsewhere(accounted):
    if not hasattr(asyncio, "eager_task_factory"):
        pytest.skip("from Python 3.12 on")
    loop = accounted

    async def eager():
        await asyncio.sleep(0.001)

    async def main():
        loop.set_task_factory(asyncio.eager_task_factory)
        await asyncio.gather(*(eager() for _ in range(4)))

    loop.run_until_complete(main())
    account = of(loop, "eager")
    assert (account.total_poll_count, account.first_poll_count) == (4, 0)


def test_from_another_thread(accounted):
    loop = accounted
    seen = []
    stop = threading.Event()

    def look():
        while not stop.is_set():
            accounting = loop.accounting()
            seen.append(sum(account.total_poll_count for account in accounting.accounts))
            assert all(account.total_poll_duration >= 0 for account in accounting.accounts)

    thread = threading.Thread(target=look)
    thread.start()

    async def main():
        for _ in range(50):
            await asyncio.gather(*(helpers.iterations(20) for _ in range(10)))

    try:
        loop.run_until_complete(main())
    finally:
        stop.set()
        thread.join()
    assert seen == sorted(seen)
    assert of(loop, "iterations").total_poll_count == 50 * 10 * 21


def test_loops_in_threads_have_their_own():
    def work(results):
        loop = hotloop.new_event_loop()
        loop.account()
        for _ in range(20):
            loop.run_until_complete(computing(0.001))
        results.append(of(loop, "computing"))
        loop.close()

    results = []
    threads = [threading.Thread(target=work, args=(results,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [account.total_poll_count for account in results] == [40] * 3
    # Each has its own thread's processor time, some of which short steps get.
    for account in results:
        assert 0.01 <= account.total_processor_time <= account.total_poll_duration + 0.001


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
def test_in_a_forked_child(accounted):
    loop = accounted
    loop.run_until_complete(leaf(0.001))
    child = os.fork()
    if not child:
        try:
            loop.run_until_complete(leaf(0.001))
            os._exit(0 if of(loop, "leaf").total_poll_count == 4 else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- Differences, and what is combined ---


def account(name, **changed):
    fields = {
        **{"kind": "task", "name": name, "file": "f.py", "line": 1, "total_poll_count": 2},
        **{"total_poll_duration": 1.0, "total_processor_time": 0.5, "longest_poll_duration": 0.7},
        **{"total_slow_poll_count": 1, "total_slow_poll_duration": 0.7, "total_scheduled_duration": 0.2},
        **{"longest_scheduled_duration": 0.1, "first_poll_count": 1, "total_first_poll_delay": 0.1},
    }
    return Account(**{**fields, **changed})


def test_the_difference_of_two_accountings(accounted):
    loop = accounted
    loop.run_until_complete(leaf(0.01))
    earlier = loop.accounting()
    loop.run_until_complete(leaf(0.02))
    later = loop.accounting().since(earlier)
    assert named(later)["leaf"].total_poll_count == 2
    assert 0.02 <= named(later)["leaf"].total_poll_duration < 0.5
    assert later.seconds == pytest.approx(later.busy, abs=0.2)
    assert loop.accounting().since(loop.accounting()).accounts[1:] == ()


def test_the_first_and_the_sum_of_the_others():
    accounts = tuple(account(f"n{number}", total_poll_duration=float(9 - number)) for number in range(5))
    accounting = Accounting(100.0, accounts, ())
    assert accounting.top(5) == accounts
    first, second, others = accounting.top(2)
    assert (first.name, second.name, others.name, others.kind) == ("n0", "n1", "others", "others")
    assert others.total_poll_duration == 7 + 6 + 5
    assert others.total_poll_count == 6
    assert others.longest_poll_duration == 0.7
    assert accounting.busy == 35.0
    assert combine(accounts[0], accounts[1]).first_poll_count == 2


def test_the_table(accounted):
    loop = accounted
    loop.run_until_complete(leaf(0.02))
    lines = str(loop.accounting()).splitlines()
    assert re.fullmatch(r"accounts of .*, [\d.]+% of it used", lines[0])
    pattern = r" +[\d.]+% +[\d.]+ ms +.* 2 +[\d.]+ ms .*  task leaf \(test_accounting.py:\d+\)"
    assert re.fullmatch(pattern, lines[2])


# --- Who awaits whom ---


async def inner(seconds):
    await leaf(seconds)


async def by_gather(seconds):
    await asyncio.gather(inner(seconds), inner(seconds))


async def by_group(seconds):
    async with asyncio.TaskGroup() as group:
        group.create_task(inner(seconds))


def collapsed(loop, tmp_path):
    path = tmp_path / "stacks.collapsed"
    loop.accounting().flame(path)
    lines = [re.fullmatch(r"(.+) (\d+)", line) for line in path.read_text().splitlines()]
    return {match[1]: int(match[2]) / 1e6 for match in lines}


def below(stacks, *names):
    """Seconds of the stacks that have frames of these names, in their order."""
    pattern = ";(?:.*;)?".join(rf"{re.escape(name)} \([^;]*" for name in names)
    return sum(seconds for stack, seconds in stacks.items() if re.search(f"(^|;|\\.){pattern}", stack))


def test_time_is_divided_by_who_awaits(accounted, tmp_path):
    loop = accounted

    async def main():
        await by_gather(0.02)
        await by_group(0.02)
        await leaf(0.02)

    loop.run_until_complete(main())
    stacks = collapsed(loop, tmp_path)
    assert sum(stacks.values()) == pytest.approx(loop.accounting().busy, rel=0.01, abs=1e-4)
    assert below(stacks, "main", "leaf") >= 0.02
    account = of(loop, "inner")
    # Which steps of a coroutine are looked at is partly chance; all of the time is that of the two.
    together = below(stacks, "by_gather", "inner") + below(stacks, "by_group", "inner")
    assert together == pytest.approx(account.total_poll_duration, abs=1e-4)


def test_the_parts_are_right_for_many(accounted, tmp_path):
    loop = accounted

    async def often():
        await inner(0.0004)

    async def seldom():
        await inner(0.0001)

    async def main():
        for _ in range(200):
            await asyncio.gather(often(), seldom())

    loop.run_until_complete(main())
    stacks = collapsed(loop, tmp_path)
    for name in ("often", "seldom"):
        time_of = of(loop, name).total_poll_duration
        assert below(stacks, name) == pytest.approx(time_of, abs=1e-3)
        assert below(stacks, name, "inner", "leaf") > 0.6 * time_of


def test_a_circle_of_tasks_ends(accounted, tmp_path):
    loop = accounted

    async def waiting(get):
        await asyncio.sleep(0)
        await get()

    async def main():
        tasks = []
        for number in range(2):
            tasks.append(loop.create_task(waiting(lambda number=number: asyncio.wait([tasks[1 - number]]))))
        await asyncio.sleep(0.01)
        for _ in range(5):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    loop.run_until_complete(main())
    assert collapsed(loop, tmp_path)


def test_coroutines_that_call_themselves(accounted, tmp_path):
    loop = accounted

    async def deep(depth):
        await (deep(depth - 1) if depth else asyncio.sleep(0.001))

    loop.run_until_complete(deep(sys.getrecursionlimit() - 200))
    loop.accounting().flame(tmp_path / "deep.svg")
    stacks = collapsed(loop, tmp_path)
    assert max(stack.count(";") for stack in stacks) == 63
    assert any(stack.endswith("deep (test_accounting.py);sleep (tasks.py)") for stack in stacks)


def test_accounts_that_begin_and_end_while_another_thread_reads(accounted):
    loop = accounted
    errors = []
    stop = threading.Event()

    def look():
        while not stop.is_set():
            try:
                list(loop.accounting().stacks())
            except RuntimeError:
                pass
            except Exception as error:
                errors.append(error)

    thread = threading.Thread(target=look)
    thread.start()

    async def main():
        for number in range(1000):
            loop.account(number % 3 != 0)
            await asyncio.gather(asyncio.sleep(0), asyncio.sleep(0))

    try:
        loop.run_until_complete(main())
    finally:
        stop.set()
        thread.join()
    assert not errors


def test_an_image(accounted, tmp_path):
    loop = accounted

    async def main():
        await by_gather(0.01)

    def lam():
        time.sleep(0.01)

    lam.__qualname__ = "<a & b>"
    lam.__code__ = lam.__code__.replace(co_qualname="<a & b>")
    loop.call_soon(lam)
    loop.run_until_complete(main())
    path = tmp_path / "flame.svg"
    loop.accounting().flame(str(path))
    root = ElementTree.parse(path).getroot()
    titles = [title.text for title in root.iter("{http://www.w3.org/2000/svg}title")]
    assert any(title.startswith("<a & b> (test_accounting.py): 1") for title in titles)
    assert titles[0].startswith("all: ")
    assert titles[0].endswith(", 100.0%")
    boxes = [
        (float(each.get("x")), float(each.get("width")), float(each.get("y")))
        for each in root.iter("{http://www.w3.org/2000/svg}rect")
        if each.get("x")
    ]
    assert all(x >= 10 and x + width <= 1191 for x, width, _ in boxes)
    Accounting(1.0, (), ()).flame(path)
    ElementTree.parse(path)


def test_a_file_that_cannot_be_written(accounted, tmp_path):
    with pytest.raises(OSError, match="No such file"):
        accounted.accounting().flame(tmp_path / "none" / "x.svg")


class Strange:
    """An awaitable whose attributes raise."""

    def __await__(self):
        yield

    def __getattr__(self, name):
        raise RuntimeError(name)


def test_awaitables_of_the_programs_own(accounted):
    loop = accounted

    async def main():
        for _ in range(5):
            await Strange()

    loop.run_until_complete(main())
    assert of(loop, "main").total_poll_count == 6


def test_ctrl_c_while_a_chain_is_looked_up_reaches_the_program(accounted, monkeypatch):
    loop = accounted
    monkeypatch.setattr("hotloop.accounting.find_chain", interrupt)

    async def main():
        pass

    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(main())
    # What the task's end has queued.
    helpers.run_once(loop)
    monkeypatch.setattr("hotloop.accounting.find_chain", lambda *_: 1 / 0)
    loop.run_until_complete(leaf(0))
    assert of(loop, "leaf").total_poll_count == 2


def interrupt(*_):
    raise KeyboardInterrupt
