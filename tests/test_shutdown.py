"""What ends with a loop: asynchronous generators, the default executor, and what close() does to it."""

import asyncio
import concurrent.futures
import gc
import sys
import threading
import warnings

import helpers
import pytest

# Asynchronous generators


def counting(closed, name, closing=None):
    async def generate():
        try:
            while True:
                yield name
        finally:
            await asyncio.sleep(0)
            closed.append(name)
            if closing is not None:
                raise closing

    return generate()


async def begun(*generators):
    for generator in generators:
        await anext(generator)
    return generators


def test_all_generators_that_have_begun_are_closed(loop, reports):
    closed = []
    generators = [counting(closed, number) for number in range(3)]
    never_begun = counting(closed, "never")
    loop.run_until_complete(begun(*generators))
    loop.run_until_complete(loop.shutdown_asyncgens())
    assert sorted(closed) == [0, 1, 2]
    assert never_begun.ag_frame is not None
    for generator in generators:
        with pytest.raises(StopAsyncIteration):
            loop.run_until_complete(anext(generator))


def test_a_generator_that_has_ended_is_not_closed_again(loop):
    closed = []
    generator = counting(closed, "once")

    async def main():
        await anext(generator)
        await generator.aclose()
        await asyncio.get_running_loop().shutdown_asyncgens()

    loop.run_until_complete(main())
    assert closed == ["once"]


def test_a_generator_that_fails_to_close_is_reported(loop, reports):
    closed = []
    error = LookupError("closing")
    bad, good = counting(closed, "bad", error), counting(closed, "good")
    loop.run_until_complete(begun(bad, good))
    loop.run_until_complete(loop.shutdown_asyncgens())
    assert sorted(closed) == ["bad", "good"]
    report = reports.take()
    assert report == {
        "message": f"an error occurred during closing of asynchronous generator {bad!r}",
        "exception": error,
        "asyncgen": bad,
    }


def test_a_generator_that_begins_after_the_shutdown_is_warned_of(loop):
    loop.run_until_complete(loop.shutdown_asyncgens())
    generator = counting([], "late")
    with pytest.warns(ResourceWarning, match="was scheduled after loop.shutdown_asyncgens") as caught:
        loop.run_until_complete(begun(generator))
    assert repr(generator) in str(caught[0].message)
    assert caught[0].source is loop
    loop.run_until_complete(generator.aclose())


def test_a_generator_that_is_dropped_while_the_loop_rests_is_closed_when_it_runs(loop):
    closed = []
    generators = list(loop.run_until_complete(begun(counting(closed, "dropped"))))
    generators.clear()
    gc.collect()
    assert closed == []
    loop.run_until_complete(helpers.iterations(3))
    assert closed == ["dropped"]


def test_a_generator_that_is_dropped_after_the_loop_was_closed(loop):
    closed = []
    generators = list(loop.run_until_complete(begun(counting(closed, "dropped"))))
    loop.close()
    generators.clear()
    gc.collect()
    assert closed == []


def test_the_hooks_for_generators_are_the_loops_only_while_it_runs(loop):
    before = sys.get_asyncgen_hooks()

    async def hooks():
        return sys.get_asyncgen_hooks()

    during = loop.run_until_complete(hooks())
    assert during.firstiter == loop._asyncgen_firstiter_hook
    assert during.finalizer == loop._asyncgen_finalizer_hook
    assert sys.get_asyncgen_hooks() == before


# The default executor


def test_the_shutdown_waits_for_what_runs(loop):
    started, release, finished = threading.Event(), threading.Event(), []

    def work():
        started.set()
        release.wait(20)
        finished.append(1)

    async def main():
        future = loop.run_in_executor(None, work)
        await helpers.until(started.is_set)
        shutdown = loop.create_task(loop.shutdown_default_executor())
        await asyncio.sleep(0.002)
        assert not shutdown.done()
        release.set()
        await shutdown
        assert finished == [1]
        await future

    loop.run_until_complete(main())


def test_there_may_be_nothing_to_shut_down(loop):
    before = threading.active_count()
    loop.run_until_complete(loop.shutdown_default_executor())
    assert threading.active_count() == before
    assert loop._default_executor is None
    loop.run_until_complete(loop.shutdown_default_executor())


def test_nothing_is_executed_after_the_shutdown_but_by_ones_own_executor(loop):
    loop.run_until_complete(loop.shutdown_default_executor())
    for call in (
        lambda: loop.run_in_executor(None, print),
        lambda: loop.run_until_complete(loop.getaddrinfo("localhost", 80)),
        lambda: loop.run_until_complete(asyncio.to_thread(print)),
    ):
        with pytest.raises(RuntimeError, match="Executor shutdown has been called"):
            call()
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        assert loop.run_until_complete(loop.run_in_executor(executor, pow, 2, 3)) == 8


@pytest.mark.asyncio_from(3, 13)  # the first releases of 3.12 waited all the same
def test_a_shutdown_that_takes_too_long_is_warned_of(loop):
    started, release = threading.Event(), threading.Event()

    async def main():
        loop.run_in_executor(None, lambda: (started.set(), release.wait(20)))
        await helpers.until(started.is_set)
        with pytest.warns(RuntimeWarning) as caught:
            await loop.shutdown_default_executor(0.01)
        (warning,) = [warning for warning in caught if warning.category is RuntimeWarning]
        said = "The executor did not finishing joining its threads within 0.01 seconds."
        assert str(warning.message) == said
        assert warning.filename == __file__

    try:
        loop.run_until_complete(main())
    finally:
        release.set()
    with pytest.raises(RuntimeError, match="Executor shutdown has been called"):
        loop.run_in_executor(None, print)
    for thread in threading.enumerate():
        if thread.name.startswith("asyncio") or "_do_shutdown" in thread.name:
            thread.join(5)


@pytest.mark.asyncio_from(3, 12)
@pytest.mark.parametrize("timeout", [None, 5, 5.0])
def test_a_shutdown_in_time_is_not_warned_of(loop, timeout):
    async def main():
        await loop.run_in_executor(None, pow, 2, 3)
        await loop.shutdown_default_executor(timeout)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop.run_until_complete(main())


def test_a_failing_executor_fails_the_shutdown(loop):
    class Executor(concurrent.futures.ThreadPoolExecutor):
        def shutdown(self, wait=True, **options):
            super().shutdown(wait=wait, **options)
            if wait:
                raise LookupError("shutdown")

    loop.set_default_executor(Executor(1))
    with pytest.raises(LookupError, match="shutdown"):
        loop.run_until_complete(loop.shutdown_default_executor())
    loop._default_executor = None


@pytest.mark.parametrize("bad", [None, 42, "executor", concurrent.futures.Executor()])
def test_only_thread_pools_are_default_executors(loop, bad):
    with pytest.raises(TypeError, match="executor must be ThreadPoolExecutor instance"):
        loop.set_default_executor(bad)
    assert loop._default_executor is None


def test_the_default_executor_may_be_replaced(loop):
    first, second = (concurrent.futures.ThreadPoolExecutor(1, name) for name in ("first", "second"))
    with first, second:
        for executor, name in ((first, "first"), (second, "second")):
            loop.set_default_executor(executor)
            called = loop.run_in_executor(None, lambda: threading.current_thread().name)
            assert loop.run_until_complete(called).startswith(name)


def test_close_shuts_the_executor_down_without_waiting(loop):
    started, release = threading.Event(), threading.Event()
    executor = concurrent.futures.ThreadPoolExecutor(1)
    loop.set_default_executor(executor)
    future = loop.run_in_executor(None, lambda: (started.set(), release.wait(20)))
    assert started.wait(20)
    try:
        loop.close()
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            executor.submit(print)
        assert loop._default_executor is None
    finally:
        release.set()
        executor.shutdown()
    assert not future.done()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        loop.run_in_executor(None, print)


def test_the_result_of_a_call_that_ends_after_close_is_dropped(loop, reports, logged):
    started, release = threading.Event(), threading.Event()
    executor = concurrent.futures.ThreadPoolExecutor(1)
    future = loop.run_in_executor(executor, lambda: (started.set(), release.wait(20)))
    assert started.wait(20)
    loop.close()
    release.set()
    executor.shutdown()
    assert not future.done()


# close


def test_close_in_debug_mode_is_logged(loop, logged):
    loop.set_debug(True)
    loop.close()
    (line,) = [line for line in logged(level=10) if line.startswith("Close ")]
    assert repr(loop).split()[0] in line


def test_close_may_be_called_again(loop):
    loop.close()
    loop.close()
    assert loop.is_closed()
    assert not loop.is_running()


@pytest.mark.parametrize(
    "call",
    [
        lambda loop: loop.run_forever(),
        lambda loop: loop.run_until_complete(loop.create_future()),
        lambda loop: loop.call_soon(print),
        lambda loop: loop.call_soon_threadsafe(print),
        lambda loop: loop.call_later(1, print),
        lambda loop: loop.call_at(1, print),
        lambda loop: loop.run_in_executor(None, print),
        lambda loop: loop.add_signal_handler(10, print),
        lambda loop: loop.add_reader(0, print),
        lambda loop: loop.add_writer(0, print),
    ],
)
def test_a_closed_loop_says_that_it_is(loop, call):
    loop.close()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        call(loop)


def test_what_may_be_asked_of_a_closed_loop(loop):
    loop.close()
    assert isinstance(loop.time(), float)
    assert loop.get_debug() is False
    loop.set_debug(True)
    assert loop.get_debug() is True
    assert loop.create_future().get_loop() is loop
    assert loop.get_exception_handler() is not None
    assert loop.get_task_factory() is None
    assert loop.stop() is None
    assert loop.remove_signal_handler(10) is False


def test_a_destructor_may_run_a_loop_when_the_interpreter_ends(loop_name):
    source = """
        kind = type(new_event_loop())

        class Loop(kind):
            def __del__(self):
                pass

        class Destroyed:
            def __init__(self):
                self.loop = Loop()

            def __del__(self, print=print):
                self.loop.call_later(0.01, self.loop.stop)
                self.loop.run_forever()
                self.loop.close()
                print("ran")

        destroyed = Destroyed()
    """
    result = helpers.run_script(loop_name, source)
    assert (result.stdout, result.stderr) == ("ran\n", "")


CLEARED = """
import asyncio, signal, hotloop, hotloop._signals as module
loop = hotloop.new_event_loop()
loop.run_until_complete(asyncio.sleep(0))
if {handler}:
    loop.add_signal_handler(signal.SIGUSR1, print)
for name in list(vars(module)):
    if not name.startswith("__"):
        vars(module)[name] = None
loop.close()
assert loop.is_closed()
print("closed")
"""


@pytest.mark.hotloop_only
@pytest.mark.parametrize("handler", [False, True])
def test_a_loop_is_closed_when_its_modules_are_cleared(loop_name, handler):
    """As the interpreter clears them at its end, in an order of its own."""
    assert "closed" in helpers.run_script(loop_name, CLEARED.format(handler=handler)).stdout
