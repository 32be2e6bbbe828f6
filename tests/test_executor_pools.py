"""run_in_executor() with a ThreadPoolExecutor, and what programs do with the pool meanwhile."""

import asyncio
import concurrent.futures
import concurrent.futures.thread
import contextlib
import gc
import logging
import threading
import weakref
from unittest import mock

import helpers
import pytest


@pytest.fixture
def pool():
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        yield pool


@contextlib.contextmanager
def busy(pool):
    """A pool's only thread waits until the block ends."""
    begun, gate = threading.Event(), threading.Event()
    waiting = pool.submit(lambda: (begun.set(), gate.wait()))
    assert begun.wait(10)
    try:
        yield
    finally:
        gate.set()
        waiting.result(10)


async def test_work_and_submitted_work_take_turns(loop, pool):
    done = []
    with busy(pool):
        first = loop.run_in_executor(pool, done.append, 1)
        second = pool.submit(done.append, 2)
        third = loop.run_in_executor(pool, done.append, 3)
        assert pool._work_queue.qsize() == 3
    await asyncio.gather(first, third)
    second.result()
    assert done == [1, 2, 3]


async def test_a_pool_that_cancels_its_futures(loop, pool):
    ran = []
    with busy(pool):
        futures = [loop.run_in_executor(pool, ran.append, number) for number in range(3)]
        pool.shutdown(wait=False, cancel_futures=True)
        for future in futures:
            with pytest.raises(asyncio.CancelledError):
                await future
    assert not ran


async def test_a_pool_whose_threads_cannot_start(loop, caplog):
    def fail():
        raise LookupError("no start")

    with concurrent.futures.ThreadPoolExecutor(1, initializer=fail) as pool:
        with pytest.raises(concurrent.futures.thread.BrokenThreadPool):
            await loop.run_in_executor(pool, print)
        with pytest.raises(concurrent.futures.thread.BrokenThreadPool):
            loop.run_in_executor(pool, print)


async def test_a_pool_that_was_shut_down(loop, pool):
    pool.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        loop.run_in_executor(pool, print)


async def test_a_method_that_the_program_replaces(loop, pool):
    """Tools replace submit() to pass a context on: in the class, in an object, in a subclass."""

    class Pool(concurrent.futures.ThreadPoolExecutor):
        def submit(self, function, *args):
            calls.append(function)
            return super().submit(function, *args)

    calls = []
    original = concurrent.futures.ThreadPoolExecutor.submit

    def submit(self, function, *args):
        calls.append(function)
        return original(self, function, *args)

    with mock.patch.object(concurrent.futures.ThreadPoolExecutor, "submit", submit):
        await loop.run_in_executor(pool, int)
    with mock.patch.object(pool, "submit", submit.__get__(pool)):
        await loop.run_in_executor(pool, str)
    with Pool() as other:
        await loop.run_in_executor(other, bytes)
    await loop.run_in_executor(pool, float)
    assert calls == [int, str, bytes]


@pytest.mark.parametrize("error", [LookupError, KeyboardInterrupt, SystemExit, asyncio.CancelledError])
async def test_the_pool_goes_on_after_an_exception(loop, pool, error):
    def fail():
        raise error("failed")

    with pytest.raises((error, asyncio.CancelledError)):
        await loop.run_in_executor(pool, fail)
    assert await loop.run_in_executor(pool, abs, -1) == 1
    assert len(pool._threads) == 1


async def test_work_keeps_nothing(loop, pool):
    """Not its function, its arguments, its result, nor what an exception was raised in."""

    class Subject:
        pass

    def fail(subject):
        raise LookupError(subject)

    gc.disable()
    try:
        for function in (id, list, fail):
            subject = Subject()
            reference = weakref.ref(subject)
            with contextlib.suppress(LookupError, TypeError):
                await loop.run_in_executor(pool, function, subject)
            del subject
            await helpers.until(lambda reference=reference: reference() is None)
    finally:
        gc.enable()


def test_a_loop_that_is_closed_meanwhile(new_loop, pool, caplog):
    """Nothing is logged, and the pool's thread goes on."""
    loop = new_loop()
    gate = threading.Event()
    with caplog.at_level(logging.ERROR):
        future = loop.run_in_executor(pool, gate.wait)
        loop.close()
        gate.set()
        assert pool.submit(abs, -1).result(10) == 1
    assert not future.done()
    assert not caplog.records


def test_a_loop_that_cannot_be_told(new_loop, pool, caplog):
    """It is logged, and the pool's thread goes on."""
    with (
        contextlib.closing(new_loop()) as loop,
        mock.patch.object(loop, "call_soon_threadsafe", side_effect=OSError("broken")),
    ):
        loop.run_in_executor(pool, int)
        assert pool.submit(abs, -1).result(10) == 1
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [OSError]


async def test_many_are_cancelled_while_they_begin(loop):
    """Each has run, or was cancelled, and the pool's threads are free again."""
    ran = []
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        futures = [loop.run_in_executor(pool, ran.append, number) for number in range(2000)]
        for future in futures[1::2]:
            future.cancel()
        await asyncio.gather(*futures, return_exceptions=True)
        assert {*ran} >= {*range(0, 2000, 2)}
        assert await loop.run_in_executor(pool, abs, -1) == 1


@pytest.mark.parametrize("name", helpers.LOOP_NAMES)
def test_a_fork_while_work_is_queued(name):
    """The parent's work is done, once; a loop that the child makes has a pool of its own."""
    source = """
        import threading

        gate, ran = threading.Event(), []

        def work(number):
            gate.wait()
            ran.append(number)

        def of_child():
            loop = new_event_loop()
            os.write(1, b"%d\\n" % loop.run_until_complete(loop.run_in_executor(None, abs, -1)))
            loop.close()

        async def main():
            loop = asyncio.get_running_loop()
            futures = [loop.run_in_executor(None, work, number) for number in range(100)]
            pid = os.fork()
            if not pid:
                thread = threading.Thread(target=of_child)
                thread.start()
                thread.join(10)
                os._exit(len(ran))
            status = os.waitpid(pid, 0)[1]
            gate.set()
            await asyncio.gather(*futures)
            print(status, sorted(ran) == list(range(100)))

        run(main())
        """
    result = helpers.run_script(name, source, "-W", "ignore")
    assert result.stdout.splitlines() == ["1", "0 True"]


@pytest.mark.parametrize("name", helpers.LOOP_NAMES)
def test_work_at_the_end_of_the_interpreter(name):
    """Its error is that of submit()."""
    source = """
        import atexit

        loop = new_event_loop()

        @atexit.register
        def late():
            try:
                loop.run_in_executor(None, print)
            except RuntimeError as error:
                print(error)
            loop.close()

        loop.run_until_complete(loop.run_in_executor(None, print, "first"))
        """
    result = helpers.run_script(name, source)
    assert result.stdout.splitlines() == ["first", "cannot schedule new futures after shutdown"]
