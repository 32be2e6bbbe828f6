"""add_signal_handler, remove_signal_handler, and Ctrl-C."""

import asyncio
import contextlib
import contextvars
import os
import signal
import subprocess
import sys
import threading
import time

import helpers
import pytest

SIGNAL = signal.SIGUSR1


@pytest.fixture(autouse=True)
def as_before():
    """Whatever a test does, the handlers of signals are what they were."""
    watched = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.getsignal(number) for number in watched}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    signal.set_wakeup_fd(-1)


def send(number=SIGNAL):
    os.kill(os.getpid(), number)


async def test_a_handler_is_called_with_its_arguments(loop):
    calls = []
    assert loop.add_signal_handler(SIGNAL, lambda *args: calls.append(args), 1, "two") is None
    send()
    await helpers.until(lambda: calls)
    assert calls == [(1, "two")]
    send()
    await helpers.until(lambda: len(calls) == 2)
    assert loop.remove_signal_handler(SIGNAL) is True


async def test_a_handler_is_called_by_the_loop_not_in_between(loop):
    calls = []
    loop.add_signal_handler(SIGNAL, lambda: calls.append(asyncio.get_running_loop()))
    send()
    time.sleep(0.005)
    assert calls == []
    await helpers.until(lambda: calls)
    assert calls == [loop]
    loop.remove_signal_handler(SIGNAL)


def test_a_signal_wakes_an_idle_loop(loop):
    calls = []
    loop.add_signal_handler(SIGNAL, lambda: (calls.append(1), loop.stop()))
    timer = threading.Timer(0.2, send)
    timer.start()
    start = time.monotonic()
    loop.call_later(20, loop.stop)
    loop.run_forever()
    timer.join()
    assert calls == [1]
    assert time.monotonic() - start < 10
    loop.remove_signal_handler(SIGNAL)


def test_a_signal_that_came_before_the_loop_ran(loop):
    calls = []
    loop.add_signal_handler(SIGNAL, lambda: (calls.append(1), loop.stop()))
    send()
    loop.call_later(20, loop.stop)
    loop.run_forever()
    assert calls == [1]
    loop.remove_signal_handler(SIGNAL)


async def test_adding_again_replaces_the_handler(loop):
    calls = []
    loop.add_signal_handler(SIGNAL, calls.append, "old")
    loop.add_signal_handler(SIGNAL, calls.append, "new")
    send()
    await helpers.until(lambda: calls)
    assert calls == ["new"]
    assert loop.remove_signal_handler(SIGNAL) is True
    assert loop.remove_signal_handler(SIGNAL) is False


async def test_several_signals(loop):
    calls = []
    loop.add_signal_handler(signal.SIGUSR1, calls.append, 1)
    loop.add_signal_handler(signal.SIGUSR2, calls.append, 2)
    send(signal.SIGUSR2)
    send(signal.SIGUSR1)
    await helpers.until(lambda: len(calls) == 2)
    assert sorted(calls) == [1, 2]
    assert loop.remove_signal_handler(signal.SIGUSR1)
    send(signal.SIGUSR2)
    await helpers.until(lambda: len(calls) == 3)
    assert loop.remove_signal_handler(signal.SIGUSR2)


async def test_a_handler_that_removes_itself(loop):
    calls = []

    def handler():
        calls.append(1)
        assert loop.remove_signal_handler(SIGNAL)

    loop.add_signal_handler(SIGNAL, handler)
    send()
    await helpers.until(lambda: calls)
    assert signal.getsignal(SIGNAL) is signal.SIG_DFL


async def test_removing_brings_the_default_back(loop):
    loop.add_signal_handler(SIGNAL, print)
    assert signal.getsignal(SIGNAL) not in (signal.SIG_DFL, signal.SIG_IGN)
    loop.remove_signal_handler(SIGNAL)
    assert signal.getsignal(SIGNAL) is signal.SIG_DFL
    loop.add_signal_handler(signal.SIGINT, print)
    loop.remove_signal_handler(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_close_removes_the_handlers(loop):
    loop.add_signal_handler(signal.SIGUSR1, print)
    loop.add_signal_handler(signal.SIGINT, print)
    loop.close()
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.set_wakeup_fd(-1) == -1


def test_the_wakeup_descriptor_is_given_back(loop):
    async def main():
        loop.add_signal_handler(SIGNAL, print)
        await asyncio.sleep(0)
        loop.remove_signal_handler(SIGNAL)

    assert signal.set_wakeup_fd(-1) == -1
    loop.run_until_complete(main())
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.hotloop_only
@pytest.mark.parametrize("handlers", [True, False], ids=["with handlers", "without handlers"])
def test_somebody_elses_wakeup_descriptor_is_given_back(loop, handlers):
    async def main():
        if handlers:
            loop.add_signal_handler(SIGNAL, print)
        await asyncio.sleep(0.001)
        if handlers:
            loop.remove_signal_handler(SIGNAL)

    ours, peer = helpers.unix_pair()
    with ours, peer:
        signal.set_wakeup_fd(peer.fileno())
        try:
            for _ in range(2):
                loop.run_until_complete(main())
            loop.close()
        finally:
            assert signal.set_wakeup_fd(-1) == peer.fileno()


@pytest.mark.parametrize("whose", ["another loop's", "the program's"])
def test_signals_are_not_written_to_whoever_has_the_number_of_a_closed_wakeup_descriptor(new_loop, whose):
    if whose == "another loop's":
        other = new_loop()
        other.add_signal_handler(signal.SIGUSR2, print)
        close = other.close
    else:
        ours, peer = helpers.unix_pair()
        signal.set_wakeup_fd(peer.fileno())

        def close():
            ours.close()
            peer.close()

    loop = new_loop()
    loop.add_signal_handler(SIGNAL, print)
    close()
    strangers = [sock for _ in range(3) for sock in helpers.unix_pair()]
    loop.close()
    signal.signal(SIGNAL, lambda *_: None)
    send()
    for sock in strangers:
        with pytest.raises(BlockingIOError):
            sock.recv(1)
    for sock in strangers:
        sock.close()


def test_somebody_elses_wakeup_descriptor_hears_of_every_signal(loop, monkeypatch):
    """Also of one that arrives as the loop finds out whether there is such a descriptor."""
    if getattr(loop, "_poller", None) == "portable":
        pytest.skip("the loop needs the descriptor for itself")

    def set_and_send(*args, set_wakeup_fd=signal.set_wakeup_fd, **kwargs):
        former = set_wakeup_fd(*args, **kwargs)
        send()
        return former

    handled = []
    signal.signal(SIGNAL, lambda *_: handled.append(SIGNAL))
    ours, peer = helpers.unix_pair()
    with ours, peer:
        signal.set_wakeup_fd(peer.fileno())
        monkeypatch.setattr(signal, "set_wakeup_fd", set_and_send)
        for _ in range(2):
            loop.run_until_complete(asyncio.sleep(0))
        send()
        monkeypatch.undo()
        assert signal.set_wakeup_fd(-1) == peer.fileno()
        assert list(ours.recv(100)) == handled


@pytest.mark.parametrize("how", ["closed", "blocking"])
def test_a_loop_runs_where_somebody_elses_wakeup_descriptor_is_of_no_use(loop, how):
    ours, peer = helpers.unix_pair()
    with ours, peer:
        signal.set_wakeup_fd(peer.fileno())
        if how == "closed":
            peer.close()
        else:
            peer.setblocking(True)
        for _ in range(2):
            loop.run_until_complete(asyncio.sleep(0.001))
        loop.close()


@pytest.mark.parametrize("how", ["closed", "blocking"])
@pytest.mark.parametrize("handlers", [False, True])
def test_a_run_ends_where_a_wakeup_descriptor_that_was_set_in_it_is_of_no_use(loop, handlers, how):
    async def main():
        if handlers:
            loop.add_signal_handler(SIGNAL, print)
        signal.set_wakeup_fd(peer.fileno())
        await asyncio.sleep(0.001)
        if how == "closed":
            peer.close()
        else:
            peer.setblocking(True)
        return "result"

    ours, peer = helpers.unix_pair()
    with ours, peer:
        assert loop.run_until_complete(main()) == "result"
        assert loop.run_until_complete(asyncio.sleep(0.001, "another")) == "another"
        loop.close()
    assert loop.is_closed()


async def test_a_handler_runs_in_the_context_in_which_it_was_added(loop):
    variable = contextvars.ContextVar("variable", default=None)
    seen = []
    variable.set("added")
    loop.add_signal_handler(SIGNAL, lambda: seen.append(variable.get()))
    variable.set("later")
    send()
    await helpers.until(lambda: seen)
    assert seen == ["added"]
    loop.remove_signal_handler(SIGNAL)


async def test_a_handler_that_fails_is_reported(loop, reports):
    loop.add_signal_handler(SIGNAL, lambda: 1 / 0)
    send()
    await helpers.until(lambda: reports)
    assert isinstance(reports.take()["exception"], ZeroDivisionError)
    loop.remove_signal_handler(SIGNAL)


def test_a_handler_that_leaves(loop):
    def handler():
        raise helpers.Leave

    loop.add_signal_handler(SIGNAL, handler)
    loop.call_soon(send)
    with pytest.raises(helpers.Leave):
        loop.run_forever()
    loop.remove_signal_handler(SIGNAL)


async def test_what_is_refused(loop):
    async def coroutine_function():
        pass

    coroutine = coroutine_function()
    for number, callback, error in (
        ("one", print, TypeError),
        (1.5, print, TypeError),
        (-1, print, ValueError),
        (0, print, ValueError),
        (1000, print, ValueError),
        (signal.SIGKILL, print, RuntimeError),
        (signal.SIGSTOP, print, RuntimeError),
        (SIGNAL, coroutine_function, TypeError),
        (SIGNAL, coroutine, TypeError),
    ):
        with pytest.raises(error):
            loop.add_signal_handler(number, callback)
    for number, error in (("one", TypeError), (1000, ValueError)):
        with pytest.raises(error):
            loop.remove_signal_handler(number)
    coroutine.close()
    assert loop.remove_signal_handler(SIGNAL) is False
    assert signal.getsignal(SIGNAL) is signal.SIG_DFL


@pytest.mark.parametrize("poller", ["", "portable"])
@pytest.mark.parametrize("what", ["refuses a handler", "loses its wakeup descriptor"])
def test_signals_still_wake_a_loop_that(loop_name, what, poller):
    source = f"""
        class Woken(Exception):
            pass

        def handler(number, frame):
            raise Woken

        def refused():
            try:
                loop.add_signal_handler(signal.SIGKILL, print)
            except RuntimeError:
                pass

        signal.signal(signal.SIGUSR1, handler)
        loop = new_event_loop()
        if {what!r} == "refuses a handler":
            loop.call_soon(refused)
        else:
            loop.call_soon(signal.set_wakeup_fd, -1)
        loop.call_later(10, loop.stop)
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        start = time.monotonic()
        try:
            loop.run_forever()
        except Woken:
            print("woken")
        assert time.monotonic() - start < 5
        loop.close()
    """
    result = helpers.run_script(loop_name, source, env={"HOTLOOP_POLLER": poller})
    assert (result.stdout, result.stderr) == ("woken\n", "")


def test_a_closed_loop_handles_nothing(loop):
    loop.close()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        loop.add_signal_handler(SIGNAL, print)
    assert signal.getsignal(SIGNAL) is signal.SIG_DFL


def test_another_thread_handles_no_signals(new_loop):
    errors = []

    def work():
        loop = new_loop()
        try:
            loop.add_signal_handler(SIGNAL, print)
        except RuntimeError as error:
            errors.append(error)
        loop.run_until_complete(asyncio.sleep(0))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(errors) == 1


# Handlers of Python's own, with signal.signal


def test_a_python_handler_is_called_while_the_loop_waits(loop):
    calls = []
    signal.signal(SIGNAL, lambda *args: calls.append(time.monotonic()))
    timer = threading.Timer(0.02, send)
    timer.start()
    loop.run_until_complete(asyncio.sleep(0.3))
    end = time.monotonic()
    timer.join()
    assert len(calls) == 1
    assert end - calls[0] > 0.1  # not only after the wait


def test_a_wait_goes_on_after_a_signal(loop):
    signal.signal(SIGNAL, lambda *args: None)
    timers = [threading.Timer(0.01 * n, send) for n in range(1, 6)]
    for timer in timers:
        timer.start()
    start = time.monotonic()
    loop.run_until_complete(asyncio.sleep(0.1))
    assert time.monotonic() - start >= 0.099
    for timer in timers:
        timer.join()


def test_the_exception_of_a_python_handler_leaves_the_loop(loop):
    def handler(*args):
        raise ValueError("from the handler")

    signal.signal(SIGNAL, handler)
    timer = threading.Timer(0.02, send)
    timer.start()
    with pytest.raises(ValueError, match="from the handler"):
        loop.run_forever()
    timer.join()
    assert not loop.is_running()
    assert loop.run_until_complete(asyncio.sleep(0, "again")) == "again"


def test_a_python_handler_can_reach_the_loop(loop):
    signal.signal(SIGNAL, lambda *args: loop.call_soon_threadsafe(loop.stop))
    timer = threading.Timer(0.02, send)
    timer.start()
    loop.call_later(20, lambda: pytest.fail("not stopped"))
    start = time.monotonic()
    loop.run_forever()
    assert time.monotonic() - start < 10
    timer.join()


# Ctrl-C


def interrupted(loop_name, source, times=1):
    """Run a program, interrupt it when it says "ready", and return its status, its output and its errors."""
    process = helpers.start_script(loop_name, source)
    try:
        assert process.stdout.readline() == "ready\n", process.communicate()
        for _ in range(times):
            time.sleep(0.05)
            process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=10)
    except (subprocess.TimeoutExpired, AssertionError):
        process.kill()
        process.communicate()
        raise
    return process.returncode, output, errors


IDLE = """
async def main():
    print("ready", flush=True)
    await asyncio.get_running_loop().create_future()
"""
SLEEPING = """
async def main():
    print("ready", flush=True)
    await asyncio.sleep(60)
"""
BUSY = """
async def main():
    print("ready", flush=True)
    while True:
        await asyncio.sleep(0)
"""
COMPUTING = """
async def main():
    print("ready", flush=True)
    while True:
        pass
"""
BLOCKED = """
async def main():
    print("ready", flush=True)
    time.sleep(60)
"""
PROGRAMS = {"idle": IDLE, "sleeping": SLEEPING, "busy": BUSY, "computing": COMPUTING, "blocked": BLOCKED}
# A runner's first interrupt cancels the main task, which these never notice; the second is raised at once.
TIMES = {"computing": 2, "blocked": 2}


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_interrupt_ends_a_program(loop_name, program):
    status, output, errors = interrupted(
        loop_name, PROGRAMS[program] + "\nrun(main())", TIMES.get(program, 1)
    )
    assert status == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert output == ""


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_interrupt_can_be_caught(loop_name, program):
    status, output, errors = interrupted(
        loop_name,
        PROGRAMS[program]
        + """
try:
    run(main())
except KeyboardInterrupt:
    print("interrupted")
    print(run(asyncio.sleep(0.001, "and run again")))
""",
        TIMES.get(program, 1),
    )
    assert (status, output, errors) == (0, "interrupted\nand run again\n", "")


@pytest.mark.parametrize("program", ["idle", "sleeping", "busy"])
def test_an_interrupt_cancels_the_main_task(loop_name, program):
    """Which can clean up, and use the loop for it, before KeyboardInterrupt is raised."""
    status, output, errors = interrupted(
        loop_name,
        PROGRAMS[program]
        + """
async def careful():
    try:
        await main()
    except asyncio.CancelledError:
        await asyncio.sleep(0.001)
        print("cleaned up")
        raise

try:
    run(careful())
except KeyboardInterrupt:
    print("interrupted")
""",
    )
    assert (status, output, errors) == (0, "cleaned up\ninterrupted\n", "")


@pytest.mark.parametrize(
    "program",
    [
        "idle",
        "sleeping",
        pytest.param(
            "busy", marks=pytest.mark.asyncio_bug("an interrupt may lose the callback that is next")
        ),
        "computing",
        "blocked",
    ],
)
def test_an_interrupt_leaves_run_until_complete(loop_name, program):
    """Without a runner nothing is cancelled: the exception comes out of the loop as it is."""
    status, output, errors = interrupted(
        loop_name,
        PROGRAMS[program]
        + """
loop = new_event_loop()
task = loop.create_task(main())
try:
    loop.run_until_complete(task)
except KeyboardInterrupt:
    print("interrupted", loop.is_running())
    if not task.done():  # the interrupt hit the loop, not the task
        task.cancel()
        try:
            loop.run_until_complete(task)
        except asyncio.CancelledError:
            pass
    print(task.cancelled() or type(task.exception()))
loop.close()
""",
    )
    assert (status, errors) == (0, "")
    assert output in ("interrupted False\nTrue\n", "interrupted False\n<class 'KeyboardInterrupt'>\n")


def test_an_interrupt_can_be_handled(loop_name):
    status, output, errors = interrupted(
        loop_name,
        """
        async def main():
            stop = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
            print("ready", flush=True)
            await stop.wait()
            print("stopped")

        run(main())
        """,
    )
    assert (status, output, errors) == (0, "stopped\n", "")


def test_a_loop_in_another_thread_does_not_keep_an_interrupt_from_the_main_thread(loop_name):
    status, output, errors = interrupted(
        loop_name,
        """
        loop = new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            print("ready", flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
            print("stopped")
        """,
    )
    assert (status, output, errors) == (0, "stopped\n", "")


@pytest.mark.parametrize("running", [False, True], ids=["before the run", "during the run"])
def test_no_signal_is_written_to_the_sockets_of_a_loop_that_another_thread_has_closed(new_loop, running):
    """Their numbers may be those of the program's files by then."""
    loop = new_loop()

    def work():
        loop.run_forever()
        loop.close()

    thread = threading.Thread(target=work)
    if not running:
        loop.add_signal_handler(SIGNAL, print)
    thread.start()
    started = threading.Event()
    loop.call_soon_threadsafe(started.set)
    assert started.wait(10)
    if running:
        loop.add_signal_handler(SIGNAL, print)
    assert loop.remove_signal_handler(SIGNAL)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    assert not thread.is_alive()
    assert signal.set_wakeup_fd(-1) == -1


def test_a_child_process_that_ends_does_not_disturb_the_loop(loop):
    with contextlib.closing(loop):
        process = subprocess.Popen(["true"])
        loop.run_until_complete(asyncio.sleep(0.02))
        assert process.wait() == 0


def test_what_a_handler_of_pythons_schedules_runs_before_what_became_ready(loop):
    """The loop finds both at the end of one wait."""
    reader, writer = os.pipe()
    order, rounds = [], 50

    def note(what):
        order.append(what)
        if len(order) == 2 * rounds:
            loop.stop()

    def received():
        os.read(reader, 1)
        note("received")

    def work():
        for done in range(1, rounds + 1):
            time.sleep(0.001)
            send()
            os.write(writer, b"x")
            start = time.monotonic()
            while len(order) < 2 * done and time.monotonic() - start < 10:
                time.sleep(0.0005)

    signal.signal(SIGNAL, lambda *_: loop.call_soon_threadsafe(note, "handled"))
    loop.add_reader(reader, received)
    thread = threading.Thread(target=work)
    thread.start()
    loop.run_forever()
    thread.join()
    loop.remove_reader(reader)
    os.close(reader)
    os.close(writer)
    assert order == ["handled", "received"] * rounds


def test_data_that_come_with_an_exception_of_a_handler_are_received_in_the_next_run(loop):
    reader, writer = os.pipe()
    received = []

    def receive():
        received.append(os.read(reader, 10))
        loop.stop()

    class Interrupted(BaseException):
        pass

    def interrupt(*_):
        os.write(writer, b"data")
        raise Interrupted

    signal.signal(SIGNAL, interrupt)
    loop.add_reader(reader, receive)
    timer = threading.Timer(0.2, send)
    timer.start()
    with pytest.raises(Interrupted):
        loop.run_forever()
    timer.join()
    loop.run_forever()
    loop.remove_reader(reader)
    os.close(reader)
    os.close(writer)
    assert received == [b"data"]


def test_a_handler_that_is_added_after_an_interrupt_is_for_the_next_one(loop):
    """As of a program that cleans up then, and stops doing so if it is interrupted again."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.2, send, (signal.SIGINT,))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    timer.join()
    loop.add_signal_handler(signal.SIGINT, loop.stop)
    assert loop.run_until_complete(asyncio.sleep(0.01, "cleaned up")) == "cleaned up"
    loop.call_soon(send, signal.SIGINT)
    with pytest.raises(RuntimeError, match="Event loop stopped before Future completed"):
        loop.run_until_complete(asyncio.sleep(10))
    loop.remove_signal_handler(signal.SIGINT)


@pytest.mark.parametrize("running", [True, False])
def test_a_signal_that_a_handler_of_pythons_has_had_is_not_for_the_loops(loop, running):
    calls = []
    signal.signal(SIGNAL, lambda *_: calls.append("python"))

    def add():
        loop.add_signal_handler(SIGNAL, calls.append, "loop")

    def receive():
        send()
        if running:
            add()
        loop.stop()

    loop.call_soon(receive)
    loop.run_forever()
    if not running:
        add()
    loop.run_until_complete(asyncio.sleep(0.01))
    assert calls == ["python"]
    send()
    loop.run_until_complete(helpers.until(lambda: "loop" in calls))
    loop.remove_signal_handler(SIGNAL)


@pytest.mark.hotloop_only  # asyncio sets it for handlers only.
@pytest.mark.parametrize("call", [1, 2])
def test_an_interrupt_while_the_wakeup_descriptor_is_set_leaves_it_to_nobody_else(loop, monkeypatch, call):
    """Its number is another file's when the loop is closed, which signals must not be written to."""
    calls = 0
    real = signal.set_wakeup_fd

    def interrupted(*args, **kwargs):
        nonlocal calls
        former = real(*args, **kwargs)
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return former

    monkeypatch.setattr(signal, "set_wakeup_fd", interrupted)
    loop.stop()
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    monkeypatch.undo()
    loop.close()
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.hotloop_only  # The method is asyncio's since 3.13, whose loop counts as running then.
def test_a_loop_that_is_interrupted_as_a_run_ends_does_not_run_any_more(loop):
    def interrupt(frame, event, argument):
        if frame.f_code.co_name == "_run_forever_cleanup":
            sys.settrace(None)
            raise helpers.Interrupt

    loop.call_soon(loop.stop)
    tracing = sys.gettrace()
    sys.settrace(interrupt)
    try:
        with pytest.raises(helpers.Interrupt):
            loop.run_forever()
    finally:
        sys.settrace(tracing)
    assert not loop.is_running()
    assert asyncio._get_running_loop() is None
    assert loop.run_until_complete(asyncio.sleep(0.001, "goes on")) == "goes on"
