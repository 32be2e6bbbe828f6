"""Where the time of what is late went: the parts of a block and of a long iteration."""

import asyncio
import gc
import logging
import os
import re
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import helpers
import helpers_recording as traces
import pytest
from hotloop._observing import watching
from hotloop.blocking import Block, Iteration

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.hotloop_only,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a thread does"),
]

THRESHOLD = 0.1


@pytest.fixture
def blocks(loop):
    """What is reported of the loop."""
    blocks = []
    loop.watch_blocking(THRESHOLD, blocks.append)
    return blocks


def run(loop, *callbacks):
    """Run the callbacks in one iteration, and let their reports arrive."""

    async def main():
        await asyncio.sleep(0.01)
        for callback in callbacks:
            loop.call_soon(callback)
        await asyncio.sleep(0.05)

    loop.run_until_complete(main())


def compute(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def sleeping():
    time.sleep(0.4)


def computing():
    compute(0.4)


def parts(late):
    return late.processor, late.waiting_for_gil, late.not_scheduled, late.asleep


def check_sum(late):
    assert all(part >= 0 for part in parts(late))
    assert sum(parts(late)) == pytest.approx(late.duration, rel=1e-6)


class Thread(threading.Thread):
    """Computes in Python until the end of the with block."""

    def __init__(self):
        super().__init__(daemon=True)
        self.ended = False

    def run(self):
        while not self.ended:
            pass

    def __enter__(self):
        self.start()

    def __exit__(self, *_):
        self.ended = True
        self.join()


# --- The parts of a block ---


@helpers.whenever_quiet
def test_a_callback_that_sleeps(loop, blocks):
    run(loop, sleeping)
    (block,) = blocks
    check_sum(block)
    assert block.asleep > 0.8 * block.duration
    assert block.before < 0.1
    assert re.search(r"for 0\.4\d\d s \(0\.4\d\d s asleep\)$", str(block))


@helpers.whenever_quiet
def test_a_callback_that_computes(loop, blocks):
    run(loop, computing)
    (block,) = blocks
    check_sum(block)
    assert block.processor > 0.7 * block.duration
    assert block.asleep < 0.2 * block.duration
    assert block.waiting_for_gil < 0.2 * block.duration
    assert " s computing" in str(block)
    assert "asleep" not in str(block)


@helpers.whenever_quiet
def test_a_callback_that_does_both(loop, blocks):
    def both():
        compute(0.3)
        time.sleep(0.3)

    run(loop, both)
    (block,) = blocks
    check_sum(block)
    assert 0.25 * block.duration < block.processor < 0.65 * block.duration
    assert 0.25 * block.duration < block.asleep < 0.75 * block.duration


@helpers.with_gil
@helpers.whenever_quiet
def test_another_thread_computes(loop, blocks):
    with Thread():
        run(loop, lambda: compute(0.6))
    (block,) = blocks
    check_sum(block)
    assert block.waiting_for_gil > 0.25 * block.duration
    assert block.asleep < 0.2 * block.duration
    assert " s waiting for the GIL" in str(block)


@helpers.with_gil
@helpers.whenever_quiet
def test_a_callback_that_releases_the_gil_again_and_again(loop, blocks):
    def releases():
        end = time.perf_counter() + 0.6
        while time.perf_counter() < end:
            time.sleep(0)

    with Thread():
        run(loop, releases)
    (block,) = blocks
    check_sum(block)
    assert block.waiting_for_gil > 0.6 * block.duration


@helpers.whenever_quiet
@pytest.mark.parametrize("lock", [threading.Lock, threading.RLock, threading.Event, threading.Condition])
def test_another_lock_than_the_gil(loop, blocks, lock):
    """They are in futex(2), too, and with a timeout."""
    if lock in (threading.Event, threading.Condition):
        waiting = lock()

        def wait():
            if lock is threading.Event:
                waiting.wait(0.4)
            else:
                with waiting:
                    waiting.wait(0.4)
    else:
        held, release = lock(), threading.Event()

        def hold():
            with held:
                release.wait()

        threading.Thread(target=hold).start()

        def wait():
            assert not held.acquire(timeout=0.4)
            release.set()

    run(loop, wait)
    (block,) = blocks
    check_sum(block)
    assert block.asleep > 0.8 * block.duration
    assert block.waiting_for_gil < 0.1 * block.duration


@helpers.with_gil
@helpers.whenever_quiet
def test_a_sleep_while_others_compute_is_a_sleep(loop, blocks):
    with Thread():
        run(loop, sleeping)
    (block,) = blocks
    check_sum(block)
    assert block.asleep > 0.7 * block.duration


@helpers.whenever_quiet
def test_no_processor(loop, blocks):
    hog = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])}); print(flush=True)\nwhile True: pass"
    former = os.sched_getaffinity(0)
    processor = min(former)
    hogs = [
        subprocess.Popen([sys.executable, "-S", "-c", hog, str(processor)], stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    # Of this thread: the watchdog's may run anywhere.
    os.sched_setaffinity(threading.get_native_id(), {processor})
    try:
        for each in hogs:
            each.stdout.read(1)
        run(loop, lambda: compute(0.8))
    finally:
        os.sched_setaffinity(threading.get_native_id(), former)
        for each in hogs:
            each.kill()
            each.communicate()
    (block,) = blocks
    check_sum(block)
    assert block.not_scheduled > 0.4 * block.duration
    assert " s not scheduled" in str(block)


@helpers.with_gil
@helpers.whenever_quiet
def test_garbage_collection_is_a_part_of_computing(loop, blocks):
    heap = [[number] for number in range(2_000_000)]
    gc.disable()
    try:
        run(loop, gc.collect)
    finally:
        del heap
        gc.enable()
    (block,) = blocks
    check_sum(block)
    assert block.collecting > 0.7 * block.duration
    assert block.processor > 0.6 * block.duration


def test_a_free_threaded_build_has_no_gil_to_wait_for(loop, blocks):
    if not helpers.FREE_THREADED:
        pytest.skip("this one has")
    with Thread():
        run(loop, sleeping)
    (block,) = blocks
    assert block.waiting_for_gil == 0
    assert block.asleep > 0.5 * block.duration


# --- What comes before it ---


@helpers.whenever_quiet
def test_callbacks_before_a_block(loop, blocks):
    run(loop, *[lambda: compute(0.02)] * 10, sleeping)
    (block,) = blocks
    check_sum(block)
    assert block.duration == pytest.approx(0.4, abs=0.1)
    assert block.before == pytest.approx(0.2, abs=0.08)
    assert re.search(r", 0\.\d\d\d s after the iteration began$", str(block))


# --- Long iterations ---


@helpers.whenever_quiet
def test_many_short_callbacks_in_an_iteration(loop, blocks):
    def short():
        compute(0.004)

    run(loop, *[short] * 100)
    assert not blocks
    (iteration,) = loop.worst_iterations()
    assert iteration.duration == pytest.approx(0.4, abs=0.2)
    assert iteration.callbacks == 100
    assert iteration.blocked == 0
    check_sum(iteration)
    assert iteration.processor > 0.7 * iteration.duration
    assert "short" in [frame.name for frame in iteration.stack]
    assert iteration.line.filename == __file__
    assert time.time() - 60 < iteration.at <= time.time()
    assert str(iteration).startswith("an iteration of 100 callbacks took 0.")


@helpers.whenever_quiet
def test_an_iteration_with_a_block(loop, blocks):
    """It has the stack of the block, and tells how much of it that was."""
    run(loop, *[lambda: compute(0.02)] * 10, sleeping, *[lambda: compute(0.02)] * 10)
    (block,) = blocks
    (iteration,) = loop.worst_iterations()
    assert iteration.callbacks == 21
    assert iteration.blocked == block.duration
    assert iteration.stack == block.stack
    assert iteration.line.name == "sleeping"
    check_sum(iteration)
    assert 0.3 * iteration.duration < iteration.asleep < 0.7 * iteration.duration
    assert iteration.duration == pytest.approx(0.8, abs=0.2)


@helpers.whenever_quiet
def test_the_longest_are_kept(loop, blocks):
    for number in range(12):
        run(loop, *[lambda number=number: time.sleep((13 + number) / 1000)] * 10)
    durations = [iteration.duration for iteration in loop.worst_iterations()]
    assert len(durations) == 10
    assert durations == sorted(durations, reverse=True)
    assert min(durations) > 0.14
    loop.reset_metrics()
    assert loop.worst_iterations() == []
    run(loop, sleeping)
    assert len(loop.worst_iterations()) == 1
    loop.watch_blocking(None)
    assert loop.worst_iterations() == []
    loop.watch_blocking(THRESHOLD)
    assert loop.worst_iterations() == []


@helpers.whenever_quiet
def test_short_iterations_are_not_kept(loop, blocks):
    async def work():
        end = loop.time() + 0.5
        while loop.time() < end:
            await asyncio.sleep(0)

    loop.run_until_complete(work())
    assert loop.worst_iterations() == []


def test_an_iteration_that_ends_the_run(loop, blocks):
    class Leave(SystemExit):
        pass

    def leave():
        time.sleep(0.2)
        raise Leave

    loop.call_soon(leave)
    with pytest.raises(Leave):
        loop.run_forever()
    (iteration,) = loop.worst_iterations()
    assert iteration.line.name == "leave"


def test_watching_begins_and_ends_within_an_iteration(loop):
    def begin():
        loop.watch_blocking(0.05, lambda block: None)

    run(loop, begin, sleeping)
    assert loop.worst_iterations() == []
    run(loop, sleeping, lambda: loop.watch_blocking(None), sleeping)
    assert loop.worst_iterations() == []
    run(loop, lambda: loop.watch_blocking(0.05, lambda block: None), sleeping, begin)
    run(loop, sleeping)
    assert len(loop.worst_iterations()) == 1


def test_what_cannot_be_kept_does_not_stop_the_loop(loop, blocks, monkeypatch):
    problems = []
    monkeypatch.setattr("sys.unraisablehook", lambda problem: problems.append(problem.exc_type))
    monkeypatch.setattr(watching, "Iteration", None)
    run(loop, sleeping)
    assert problems == [TypeError]
    assert len(blocks) == 1


# --- What is not known ---


@helpers.whenever_quiet
def test_what_the_system_does_not_tell_is_none(loop, blocks):
    """/proc can't be read while no descriptor can be opened."""
    resource = pytest.importorskip("resource")
    former = resource.getrlimit(resource.RLIMIT_NOFILE)

    def blocks_without_descriptors():
        time.sleep(0.3)
        resource.setrlimit(resource.RLIMIT_NOFILE, former)

    async def main():
        await asyncio.sleep(0.05)
        loop.call_soon(blocks_without_descriptors)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, former[1]))
        await asyncio.sleep(0.01)

    try:
        loop.run_until_complete(main())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, former)
    (block,) = blocks
    assert (block.waiting_for_gil, block.not_scheduled, block.asleep) == (None, None, None)
    assert block.processor < 0.5 * block.duration
    assert str(block).endswith(f"s ({block.processor:.3f} s computing)")


def test_a_block_of_which_nothing_is_known():
    stack = traceback.StackSummary()
    unknown = {"processor": None, "waiting_for_gil": None, "not_scheduled": None, "asleep": None}
    block = Block(
        "it",
        None,
        0.5,
        0.0,
        stack=stack,
        later_stack=None,
        created_at=None,
        unreported=0,
        collecting=0.0,
        **unknown,
    )
    assert str(block) == "it blocked the event loop for 0.500 s"
    iteration = Iteration(0.0, 0.5, 1, 0.0, stack=stack, collecting=0.0, **unknown)
    assert str(iteration) == "an iteration of 1 callback took 0.500 s"


# --- Other threads, forks ---


@helpers.whenever_quiet
def test_a_loop_that_goes_on_in_another_thread(loop, blocks):
    run(loop, sleeping)

    def work():
        asyncio.set_event_loop(loop)
        run(loop, computing)

    # A thread's identifier may be that of the one before.
    for _ in range(2):
        time.sleep(1)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert len(blocks) == 3
    for block in blocks:
        check_sum(block)
    assert blocks[0].asleep > 0.8 * blocks[0].duration
    assert all(block.processor > 0.6 * block.duration for block in blocks[1:])


def test_forks():
    """In a child that is forked within a callback, nothing is known of that; later, everything is."""
    source = """
        import threading

        def report(block):
            known = [name for name in ("processor", "waiting_for_gil", "not_scheduled", "asleep")
                     if getattr(block, name) is not None]
            # At once: the loop's thread may fork meanwhile.
            os.write(1, f"{who} {block.line and block.line.name} {len(known)}\\n".encode())

        def forks():
            global who, pid
            time.sleep(0.15)
            pid = os.fork()
            if not pid:
                who = "child"
                # As before, with a watchdog of its own.
                loop.watch_blocking(0.05, report)
            time.sleep(0.15)

        def later():
            time.sleep(0.15)

        who = "parent"
        loop = new_event_loop()
        loop.watch_blocking(0.05, report)
        loop.call_soon(forks)
        loop.call_later(0.6, loop.stop)
        loop.run_forever()
        if pid:
            os.waitpid(pid, 0)
        else:
            time.sleep(1)
            loop.call_soon(later)
            loop.call_later(0.4, loop.stop)
            loop.run_forever()
            print("iterations", len(loop.worst_iterations()), flush=True)
    """
    result = helpers.run_script("hotloop", source, "-W", "ignore")
    lines = sorted(result.stdout.splitlines())
    assert lines[-1].startswith("parent forks 4"), result
    assert any(re.fullmatch(r"child forks \d", line) for line in lines), result
    assert "child later 4" in lines, result
    assert "iterations 2" in lines, result


def test_many_loops_come_and_go():
    """Their threads' numbers are used again; a callback ends while it is noticed."""
    source = """
        import threading

        def work():
            loop = new_event_loop()
            found = []
            loop.watch_blocking(0.001, found.append)
            for number in range(20):
                loop.call_soon(time.sleep, number % 4 / 1000)
                loop.run_until_complete(asyncio.sleep(0))
            for late in found + loop.worst_iterations():
                parts = [late.processor, late.waiting_for_gil, late.not_scheduled, late.asleep]
                assert all(part is None or -1e-9 <= part <= late.duration + 1e-9 for part in parts), late
                assert late.duration >= 0.0009, late
            loop.close()

        for _ in range(10):
            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        print("done")
    """
    result = helpers.run_script("hotloop", source, "-W", "ignore")
    assert result.stdout == "done\n"
    # What takes ten times as long, on a busy machine, is told of while it goes on.
    message = r"A callback without Python code is blocking the event loop, for 0\.\d+ s by now"
    assert all(re.fullmatch(message, line) for line in result.stderr.splitlines()), result.stderr


# --- Where it is shown ---


def test_the_trace(loop, caplog):
    def wait():
        time.sleep(0.2)

    with caplog.at_level(logging.ERROR, "hotloop"):
        loop.watch_blocking(0.1)
        loop.record()
        run(loop, *[lambda: compute(0.02)] * 10, wait)
    events = list(loop.recording().events())
    block = next(each for each in traces.slices(events) if each["name"] == wait.__qualname__)
    arguments = block["args"]
    assert arguments["blocked"]
    assert 100 < arguments["before ms"] < 1000
    parts = [
        arguments[name]
        for name in ("computing ms", "waiting for the GIL ms", "not scheduled ms", "asleep ms")
    ]
    assert sum(parts) == pytest.approx(block["dur"] / 1000, abs=20)
    assert parts[-1] > 100
    iterations = [each for each in traces.slices(events, "loop") if each["name"] == "iteration"]
    long = [each for each in iterations if "long" in each.get("args", {})]
    assert [each["args"]["callbacks"] for each in long] == [11]
    assert long[0]["dur"] >= 300_000
    assert long[0]["ts"] <= block["ts"]


def test_a_handler_sees_the_iteration_afterwards(loop):
    """Its block is reported by a later iteration."""
    found = []

    def handler(block):
        found.append((block.duration, loop.worst_iterations()))

    loop.watch_blocking(THRESHOLD, handler)
    run(loop, sleeping)
    ((duration, (iteration,)),) = found
    assert iteration.blocked == duration


def test_any_thread_may_ask(loop, blocks):
    run(loop, sleeping)
    with ThreadPoolExecutor() as pool:
        assert pool.submit(loop.worst_iterations).result() == loop.worst_iterations()
        pool.submit(loop.reset_metrics).result()
    assert loop.worst_iterations() == []
