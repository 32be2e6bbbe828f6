"""Debug mode: what it refuses, what it logs, and the tracebacks that it keeps."""

import asyncio
import gc
import sys
import threading
import time

import helpers
import pytest


@pytest.fixture
def loop(new_loop):
    loop = new_loop()
    loop.set_debug(True)
    return loop


def callback(*args):
    pass


async def coroutine_function():
    pass


def test_switching_it_on_and_off(loop):
    assert loop.get_debug() is True
    assert "debug=True" in repr(loop)
    loop.set_debug(False)
    assert loop.get_debug() is False
    assert "debug=False" in repr(loop)


@pytest.mark.parametrize(
    ("options", "env", "debug"),
    [
        ((), {}, False),
        (("-X", "dev"), {}, True),
        ((), {"PYTHONASYNCIODEBUG": "1"}, True),
        ((), {"PYTHONASYNCIODEBUG": ""}, False),
        (("-E",), {"PYTHONASYNCIODEBUG": "1"}, False),
    ],
)
def test_the_default_is_what_python_is_told(loop_name, options, env, debug):
    result = helpers.run_script(
        loop_name, "loop = new_event_loop(); print(loop.get_debug()); loop.close()", *options, env=env
    )
    assert result.stdout == f"{debug}\n"


# What it refuses


def test_calls_from_another_thread(loop):
    """call_soon and the like are not for other threads while the loop runs."""
    errors = []

    def misuse():
        for call in (
            lambda: loop.call_soon(callback),
            lambda: loop.call_later(0, callback),
            lambda: loop.call_at(0, callback),
        ):
            try:
                call()
            except RuntimeError as error:
                errors.append(str(error))

    async def main():
        thread = threading.Thread(target=misuse)
        thread.start()
        thread.join()

    loop.run_until_complete(main())
    message = "Non-thread-safe operation invoked on an event loop other than the current one"
    assert errors == [message] * 3
    # With nobody running it, the loop belongs to nobody.
    thread = threading.Thread(target=misuse)
    thread.start()
    thread.join()
    assert len(errors) == 3


def test_without_debug_mode_other_threads_are_not_refused(loop):
    loop.set_debug(False)
    ran = []

    async def main():
        await asyncio.to_thread(loop.call_soon, ran.append, 1)
        await asyncio.sleep(0.01)

    loop.run_until_complete(main())
    assert ran == [1]


SCHEDULE = {
    "call_soon": lambda loop, function: loop.call_soon(function),
    "call_soon_threadsafe": lambda loop, function: loop.call_soon_threadsafe(function),
    "call_later": lambda loop, function: loop.call_later(0, function),
    "call_at": lambda loop, function: loop.call_at(0, function),
    "run_in_executor": lambda loop, function: loop.run_in_executor(None, function),
}


@pytest.mark.parametrize("name", SCHEDULE)
def test_what_cannot_be_called_is_refused(loop, name):
    said = "call_at" if name == "call_later" else name
    for bad in (None, 42, "text"):
        with pytest.raises(TypeError, match=rf"a callable object was expected by {said}\(\), got {bad!r}"):
            SCHEDULE[name](loop, bad)
    with pytest.raises(TypeError, match=rf"coroutines cannot be used with {said}\(\)"):
        SCHEDULE[name](loop, coroutine_function)
    coroutine = coroutine_function()
    with pytest.raises(TypeError, match=rf"coroutines cannot be used with {said}\(\)"):
        SCHEDULE[name](loop, coroutine)
    coroutine.close()


def test_without_debug_mode_it_is_only_found_out_later(loop, reports):
    loop.set_debug(False)
    loop.call_soon(None)
    loop.call_later(0, 42)
    loop.call_soon(callback)
    for _ in range(2):
        helpers.run_once(loop)
    assert [type(report["exception"]) for report in reports] == [TypeError, TypeError]
    reports.clear()


# What it logs


def test_a_slow_callback_is_logged(loop, logged):
    loop.slow_callback_duration = 0.005
    loop.call_soon(time.sleep, 0.01)
    loop.call_soon(callback)
    helpers.run_once(loop)
    (line,) = logged()
    assert line.startswith("Executing <Handle ")
    assert "sleep" in line
    assert " took 0.0" in line
    assert line.endswith(" seconds")


@pytest.mark.parametrize("kind", ["timer", "reader", "threadsafe", "done callback"])
def test_every_kind_of_callback_is_timed(loop, logged, kind):
    loop.slow_callback_duration = 0.005
    ours, peer = helpers.unix_pair()

    def slow(*args):
        time.sleep(0.01)
        loop.stop()

    if kind == "timer":
        loop.call_later(0, slow)
    elif kind == "threadsafe":
        loop.call_soon_threadsafe(slow)
    elif kind == "reader":
        peer.send(b"x")
        loop.add_reader(ours, slow)
    else:
        future = loop.create_future()
        future.add_done_callback(slow)
        future.set_result(None)
    loop.run_forever()
    loop.remove_reader(ours)
    (line,) = logged()
    assert "slow" in line
    assert "TimerHandle" in line or kind != "timer"
    ours.close()
    peer.close()


def test_a_slow_step_of_a_task_is_logged_with_the_task(loop, logged):
    loop.slow_callback_duration = 0.005

    async def sluggish():
        await asyncio.sleep(0)
        time.sleep(0.01)

    loop.run_until_complete(loop.create_task(sluggish(), name="Sluggish"))
    (line,) = logged()
    assert line.startswith("Executing <Task ")
    assert "name='Sluggish'" in line
    assert "sluggish" in line


def test_the_limit_for_slow_callbacks(loop, logged):
    assert loop.slow_callback_duration == 0.1
    loop.call_soon(time.sleep, 0.01)
    helpers.run_once(loop)
    assert logged() == []
    loop.set_debug(False)
    loop.slow_callback_duration = 0.001
    loop.call_soon(time.sleep, 0.01)
    helpers.run_once(loop)
    assert logged() == []


# The tracebacks that it keeps


def frame_of(handle):
    frame = handle._source_traceback[-1]
    return frame.filename, frame.name, frame.line


@pytest.mark.parametrize("name", [name for name in SCHEDULE if name != "run_in_executor"])
def test_a_handle_knows_where_it_was_made(loop, name):
    if name == "call_soon":
        handle = loop.call_soon(callback)
    elif name == "call_soon_threadsafe":
        handle = loop.call_soon_threadsafe(callback)
    elif name == "call_later":
        handle = loop.call_later(0, callback)
    else:
        handle = loop.call_at(0, callback)
    filename, function, line = frame_of(handle)
    assert filename == __file__
    assert function == "test_a_handle_knows_where_it_was_made"
    assert f"loop.{name}(" in line
    assert f"created at {__file__}:" in repr(handle)
    handle.cancel()
    assert repr(handle).startswith(f"<{type(handle).__name__} cancelled")


@pytest.mark.parametrize("name", ["call_soon", "call_soon_threadsafe", "call_later"])
def test_a_callback_without_a_repr_can_be_cancelled(loop, name):
    class Callback:
        def __call__(self):
            calls.append(self)

        def __repr__(self):
            raise LookupError

    calls = []
    delay = (0,) if name == "call_later" else ()
    handle = getattr(loop, name)(*delay, Callback())
    with pytest.raises(LookupError):
        handle.cancel()
    assert handle.cancelled()
    loop.run_until_complete(asyncio.sleep(0.001))
    assert calls == []


@pytest.mark.parametrize("name", ["call_soon", "call_soon_threadsafe", "call_later"])
def test_a_callback_that_another_thread_is_cancelling_is_not_called(loop, name):
    class Callback:
        def __call__(self):
            calls.append(self)

        def __repr__(self):
            cancelling.set()
            assert gone_by.wait(10)
            return "a callback"

    calls = []
    cancelling, gone_by = threading.Event(), threading.Event()
    delay = (0,) if name == "call_later" else ()
    handle = getattr(loop, name)(*delay, Callback())
    thread = threading.Thread(target=handle.cancel)
    thread.start()
    assert cancelling.wait(10)
    loop.run_until_complete(asyncio.sleep(0.001))
    gone_by.set()
    thread.join()
    assert calls == []
    assert handle._repr is not None


@pytest.mark.hotloop_only
def test_what_must_leave_the_loop_does_so_though_the_loop_cannot_note_the_end_of_the_callback(new_loop):
    """asyncio raises what the attribute raised, in whose context it is."""
    loop = new_loop()

    class Stubborn(type(loop)):
        def __setattr__(self, name, value):
            if interrupted and name == "_current_handle":
                raise LookupError
            super().__setattr__(name, value)

    def interrupt():
        interrupted.append(True)
        raise helpers.Interrupt

    interrupted = []
    stubborn = Stubborn()
    stubborn.set_debug(True)
    stubborn.call_soon(interrupt)
    with pytest.raises(helpers.Interrupt):
        helpers.run_once(stubborn)
    stubborn.close()


def test_a_report_tells_where_the_callback_was_scheduled(loop, reports):
    loop.call_soon(lambda: 1 / 0)
    helpers.run_once(loop)
    report = reports.take()
    assert report["source_traceback"][-1].name == "test_a_report_tells_where_the_callback_was_scheduled"


def test_tasks_and_futures_know_where_they_were_made(loop):
    async def main():
        future = loop.create_future()
        task = loop.create_task(coroutine_function())
        await task
        return future, task

    for made in loop.run_until_complete(main()):
        assert "main" in [frame.name for frame in made._source_traceback[-2:]]


def test_without_debug_mode_nothing_is_kept(loop):
    loop.set_debug(False)
    handle = loop.call_soon(callback)
    assert handle._source_traceback is None
    assert "created at" not in repr(handle)
    helpers.run_once(loop)


def test_coroutines_know_where_they_were_made_while_the_loop_runs(loop):
    async def main():
        coroutine = coroutine_function()
        origin = coroutine.cr_origin
        await coroutine
        loop.set_debug(False)
        await asyncio.sleep(0)
        coroutine = coroutine_function()
        without = coroutine.cr_origin
        await coroutine
        loop.set_debug(True)
        await asyncio.sleep(0)
        return origin, without

    before = sys.get_coroutine_origin_tracking_depth()
    origin, without = loop.run_until_complete(main())
    assert origin[0][2] == "main"
    assert without is None
    assert sys.get_coroutine_origin_tracking_depth() == before


def test_a_coroutine_that_is_never_awaited(loop, recwarn):
    async def main():
        coroutine_function()
        gc.collect()

    loop.run_until_complete(main())
    (warning,) = [w for w in recwarn if issubclass(w.category, RuntimeWarning)]
    assert "coroutine 'coroutine_function' was never awaited" in str(warning.message)
    assert "Coroutine created at (most recent call last)" in str(warning.message)


async def test_connections_in_debug_mode(loop):
    """Nothing but logging changes."""
    ours, peer = helpers.tcp_pair()
    protocol = helpers.Recorder()
    transport, _ = await loop.create_connection(lambda: protocol, sock=ours)
    transport.pause_reading()
    transport.resume_reading()
    peer.send(b"hello")
    assert await protocol.received(5) == b"hello"
    helpers.reset(peer)
    assert isinstance(await protocol.lost(), ConnectionResetError)
