"""loop.watch_blocking(): who blocks the loop is told, and nobody else is blamed."""

import asyncio
import contextlib
import gc
import logging
import os
import re
import signal
import socket
import textwrap
import threading
import time

import helpers
import hotloop
import pytest

# For how long nothing may be reported under load.
LOAD_SECONDS = float(os.environ.get("HOTLOOP_LOAD_SECONDS", "3"))

pytestmark = [pytest.mark.timeout(60 + LOAD_SECONDS), pytest.mark.hotloop_only]

THRESHOLD = 0.05


@pytest.fixture
def blocks(loop):
    """What is reported of the loop."""
    blocks = []
    loop.watch_blocking(THRESHOLD, blocks.append)
    return blocks


def run(loop, work):
    """Run what may block as a task, and let its report arrive."""

    async def main():
        await asyncio.sleep(0)
        await asyncio.create_task(work(), name="culprit")
        await asyncio.sleep(0.01)

    loop.run_until_complete(main())


def line_of(function, text):
    lines, first = __import__("inspect").getsourcelines(function)
    return next(first + number for number, line in enumerate(lines) if text in line)


# --- What blocks ---


async def sleeping():
    time.sleep(0.2)  # here


async def computing():
    end = time.perf_counter() + 0.2
    while time.perf_counter() < end:
        sum(range(100_000))  # here


async def matching():
    re.match(r"(a+)+$", "a" * 23 + "b")  # here


HEAP = []


async def collecting():
    gc.collect()  # here


async def locked():
    lock = threading.Lock()
    lock.acquire()
    threading.Timer(0.2, lock.release).start()
    lock.acquire()  # here


async def reading():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        threading.Timer(0.2, theirs.send, [b"x"]).start()
        ours.recv(1)  # here


@helpers.whenever_quiet
@pytest.mark.parametrize("work", [sleeping, computing, matching, locked, reading, collecting])
def test_the_line_and_the_times(loop, blocks, work):
    if work is collecting:
        # With such a heap, a collection of its own accord would block as well.
        gc.disable()
        HEAP.extend([number] for number in range(2_000_000))
    try:
        start = time.perf_counter()
        run(loop, work)
        took = time.perf_counter() - start
    finally:
        HEAP.clear()
        gc.enable()
    if helpers.FREE_THREADED and work in (matching, collecting):
        # The watchdog comes to see the thread only when the function has returned.
        return
    (block,) = blocks
    assert block.line.filename == __file__
    assert block.line.name == work.__name__
    assert block.line.lineno == line_of(work, "# here")
    assert THRESHOLD <= block.duration <= took
    assert block.duration == pytest.approx(took - 0.01, abs=0.1)
    if work in (sleeping, locked, reading):
        assert block.processor < 0.5 * block.duration
    else:
        assert block.processor > 0.5 * block.duration
    assert (block.collecting > 0.5 * block.duration) == (work is collecting)
    assert block.task.get_name() == "culprit"
    assert work.__name__ in block.what
    assert f"{work.__name__} blocked the event loop for" in str(block)
    assert block.created_at is None


def test_a_callback_that_has_no_frame(loop, blocks):
    loop.call_soon(time.sleep, 0.2)
    loop.run_until_complete(asyncio.sleep(0.25))
    (block,) = blocks
    assert "sleep" in block.what
    assert block.line is None
    assert "sleep" in str(block)
    assert not block.stack


def test_who_scheduled_it_is_told_in_debug_mode(loop, blocks):
    loop.set_debug(True)
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    try:
        loop.call_soon(time.sleep, 0.2)
        loop.run_until_complete(asyncio.sleep(0.25))
    finally:
        logging.getLogger("asyncio").setLevel(logging.NOTSET)
    (block,) = blocks
    assert block.created_at[-1].name == "test_who_scheduled_it_is_told_in_debug_mode"


@helpers.whenever_quiet
def test_ten_times_as_long(loop, blocks, caplog):
    def first():
        time.sleep(0.3)

    def second():
        time.sleep(0.5)

    async def work():
        first()
        second()

    with caplog.at_level(logging.WARNING, "hotloop"):
        run(loop, work)
    (block,) = blocks
    assert block.stack[-1].name == "first"
    assert block.later_stack[-1].name == "second"
    assert block.line.name == "second"
    # It may never end, so somebody is told meanwhile.
    assert "second is blocking the event loop" in caplog.text


def test_events_of_transports(loop, blocks):
    class Protocol(asyncio.Protocol):
        def data_received(self, data):
            time.sleep(0.2)
            loop.stop()

    ours, theirs = socket.socketpair()
    with theirs:
        transport, _ = loop.run_until_complete(loop.create_connection(Protocol, sock=ours))
        theirs.send(b"x")
        loop.run_forever()
        transport.close()
        loop.run_until_complete(asyncio.sleep(0.01))
    (block,) = blocks
    assert block.line.name == "data_received"


# --- How it is told ---


def test_one_log_record(loop, caplog):
    loop.watch_blocking(THRESHOLD)
    with caplog.at_level(logging.WARNING, "hotloop"):
        run(loop, sleeping)
    (record,) = caplog.records
    assert record.name == "hotloop"
    assert record.levelno == logging.WARNING
    first = record.getMessage().splitlines()[0]
    assert first.startswith(
        f"{__file__}:{line_of(sleeping, '# here')} in sleeping blocked the event loop for 0.2"
    )


@helpers.whenever_quiet
def test_one_report_a_second(loop, blocks):
    async def work():
        for _ in range(4):
            time.sleep(0.1)
            await asyncio.sleep(0)
        await asyncio.sleep(0.8)
        time.sleep(0.1)

    run(loop, work)
    assert [block.unreported for block in blocks] == [0, 3]


def test_the_handler_runs_on_the_loop(loop):
    called = []

    def handler(block):
        called.append(asyncio.get_running_loop())

    loop.watch_blocking(THRESHOLD, handler)
    run(loop, sleeping)
    assert called == [loop]


def test_a_handler_that_raises_is_reported(loop):
    problems = []
    loop.set_exception_handler(lambda _, problem: problems.append(problem["exception"]))

    def handler(block):
        raise ZeroDivisionError

    loop.watch_blocking(THRESHOLD, handler)
    run(loop, sleeping)
    assert [type(problem) for problem in problems] == [ZeroDivisionError]


def test_a_handler_that_blocks(loop):
    """It is a callback like any other."""
    blocks = []

    def handler(block):
        blocks.append(block)
        time.sleep(0.1)

    loop.watch_blocking(THRESHOLD, handler)
    run(loop, sleeping)
    loop.run_until_complete(asyncio.sleep(1.0))
    run(loop, sleeping)
    assert [block.unreported for block in blocks] == [0, 1]


@pytest.mark.parametrize("threshold", [0, -1, float("nan")])
def test_thresholds_that_there_are_not(loop, threshold):
    with pytest.raises(ValueError, match="positive number of seconds"):
        loop.watch_blocking(threshold)


def test_changing_and_ending(loop, blocks):
    async def change():
        loop.watch_blocking(10, blocks.append)
        time.sleep(0.15)

    run(loop, change)
    run(loop, sleeping)
    assert not blocks
    loop.watch_blocking(THRESHOLD, blocks.append)
    run(loop, sleeping)
    assert len(blocks) == 1
    loop.watch_blocking(None)
    loop.watch_blocking(None)
    time.sleep(1.0)
    run(loop, sleeping)
    assert len(blocks) == 1


@pytest.mark.parametrize("kind", [ValueError, RecursionError])
def test_a_task_that_cannot_be_shown(loop, blocks, kind):
    class Odd(asyncio.Task):
        def __repr__(self):
            raise kind

    loop.set_task_factory(lambda loop, coroutine, **options: Odd(coroutine, loop=loop, **options))
    run(loop, sleeping)
    assert [block.what for block in blocks] == [f"<Odd, whose repr() raised {kind.__name__}>"]
    assert blocks[0].line.name == "sleeping"


def test_what_cannot_be_told_does_not_stop_the_loop(loop, blocks, monkeypatch):
    problems = []
    monkeypatch.setattr("sys.unraisablehook", lambda problem: problems.append(problem.exc_type))
    monkeypatch.setattr("hotloop._observing.watching.Block", None)
    run(loop, sleeping)
    assert problems == [TypeError]


# --- Who is not to blame ---


@helpers.whenever_quiet
def test_waiting_is_not_blocking(loop, blocks):
    async def work():
        await asyncio.sleep(0.3)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await reader.read() == b"slowly"
        writer.close()
        await asyncio.to_thread(time.sleep, 0.3)
        process = await asyncio.create_subprocess_exec("sleep", "0.3")
        await process.wait()

    async def serve(reader, writer):
        await asyncio.sleep(0.3)
        writer.write(b"slowly")
        writer.close()

    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    run(loop, work)
    server.close()
    assert not blocks


@helpers.whenever_quiet
def test_load_is_not_blocking(loop, caplog):
    """As much as the loop can do, of all kinds, with the threshold that users get."""

    async def echo(reader, writer):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def talk(address):
        reader, writer = await asyncio.open_connection(*address)
        while loop.time() < end:
            writer.write(b"x" * 10_000)
            await reader.readexactly(10_000)
        writer.close()
        await writer.wait_closed()

    async def work():
        while loop.time() < end:
            await asyncio.gather(*(asyncio.sleep(number % 7 / 1000) for number in range(200)))
            await loop.run_in_executor(None, sum, range(1000))

    async def main():
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        await asyncio.gather(work(), *(talk(address) for _ in range(32)))
        server.close()

    loop.watch_blocking()
    end = loop.time() + LOAD_SECONDS
    with caplog.at_level(logging.WARNING, "hotloop"):
        loop.run_until_complete(main())
    assert not caplog.records
    assert loop.metrics().utilization > 0.5


@helpers.whenever_quiet
def test_many_short_callbacks_are_not_a_long_one(loop, blocks):
    async def work():
        end = loop.time() + 0.5
        while loop.time() < end:
            await asyncio.sleep(0)

    run(loop, work)
    assert not blocks


def test_a_process_that_was_stopped(loop):
    source = """
        blocks = []
        async def main():
            loop = asyncio.get_running_loop()
            loop.watch_blocking(0.2, blocks.append)
            print("ready", flush=True)
            end = time.monotonic() + 3
            while time.monotonic() < end:
                # Busy, so that it is stopped within a callback.
                until = time.monotonic() + 0.05
                while time.monotonic() < until:
                    pass
                await asyncio.sleep(0)
        run(main())
        print(blocks, flush=True)
    """
    process = helpers.start_script("hotloop", source)
    with process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGSTOP)
        time.sleep(1.5)
        process.send_signal(signal.SIGCONT)
        out, err = process.communicate(timeout=30)
    assert out == "[]\n", err


# --- Loops, threads, the end ---


@helpers.whenever_quiet
def test_loops_in_threads(blocks, loop):
    found = {}

    def work(name):
        mine = []

        async def main():
            asyncio.get_running_loop().watch_blocking(THRESHOLD, mine.append)
            await asyncio.sleep(0)
            if name % 2:
                time.sleep(0.2)
            await asyncio.sleep(0.3)

        hotloop.run(main())
        found[name] = len(mine)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    run(loop, sleeping)
    for thread in threads:
        thread.join()
    assert found == {name: name % 2 for name in range(6)}
    assert len(blocks) == 1


@pytest.mark.parametrize("how", ["closed", "open", "blocked", "forgotten"])
def test_the_end_of_the_interpreter(how):
    source = f"""
        import atexit
        loop = new_event_loop()
        loop.watch_blocking(0.05, print)
        if {how!r} == "blocked":
            loop.call_soon(time.sleep, 0.2)
            loop.call_later(0.3, loop.stop)
            loop.run_forever()
            atexit.register(time.sleep, 0.1)
        else:
            loop.run_until_complete(asyncio.sleep(0.05))
        if {how!r} == "closed":
            loop.close()
        if {how!r} == "forgotten":
            del loop
    """
    result = helpers.run_script("hotloop", source, "-W", "ignore")
    assert result.stderr == ""
    assert ("blocked" in result.stdout) == (how == "blocked")


def test_a_thread_that_has_loops_watched_while_the_interpreter_ends():
    source = """
        import threading
        from hotloop._observing import watching

        def observe(*args):
            observing.set()
            time.sleep(0.3)

        def block():
            loop = new_event_loop()
            loop.watch_blocking(0.01)
            loop.call_soon(time.sleep, 30)
            loop.run_forever()

        def watch():
            while True:
                loop = new_event_loop()
                loop.watch_blocking(0.01)
                loops.append(loop)
                time.sleep(0.01)

        watching.observe = observe
        observing = threading.Event()
        loops = []
        threading.Thread(target=block, daemon=True).start()
        observing.wait()
        threading.Thread(target=watch, daemon=True).start()
    """
    result = helpers.run_script("hotloop", source, "-W", "ignore")
    assert result.stderr == ""


def test_fork():
    source = """
        loop = new_event_loop()
        loop.watch_blocking(0.05, lambda block: print("parent", block.line.name, flush=True))
        loop.run_until_complete(asyncio.sleep(0.05))

        def blocking():
            time.sleep(0.2)

        if pid := os.fork():
            os.waitpid(pid, 0)
            loop.call_soon(blocking)
            loop.run_until_complete(asyncio.sleep(0.25))
        else:
            mine = new_event_loop()
            mine.watch_blocking(0.05, lambda block: print("child", block.line.name, flush=True))
            mine.call_soon(blocking)
            mine.run_until_complete(asyncio.sleep(0.25))
    """
    result = helpers.run_script("hotloop", source, "-W", "ignore")
    assert sorted(result.stdout.splitlines()) == ["child blocking", "parent blocking"], result.stderr
    assert result.stderr == ""


def test_forks_while_the_thread_looks():
    source = """
        loop = new_event_loop()
        # A look every few microseconds.
        loop.watch_blocking(1e-5)
        for _ in range(300):
            pid = os.fork()
            if not pid:
                signal.alarm(10)
                mine = new_event_loop()
                mine.watch_blocking(0.05)
                mine.close()
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
    """
    result = helpers.run_script("hotloop", source, "-W", "ignore")
    assert result.stderr == ""


# What a program may have Python call before a fork, and after it, while the loops are watched.
AROUND_FORKS = {
    "another thread ends the watching": """
        os.register_at_fork(before=lambda: time.sleep(0.2))
        loop, other = watched(), watched()
        timer = threading.Timer(0.1, other.close)
        timer.start()
        fork()
        timer.join()
    """,
    "another thread forks": """
        os.register_at_fork(before=lambda: time.sleep(0.05))
        loop = watched()
        threads = [threading.Thread(target=fork) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    """,
    "a loop is closed before the fork": """
        os.register_at_fork(before=lambda: loop.close())
        loop = watched()
        fork()
        assert loop.is_closed()
    """,
    "a loop is made in the child": """
        os.register_at_fork(after_in_child=lambda: watched())
        loop = watched()
        fork()
    """,
    "a fork within a fork": """
        def before():
            if not forking:
                forking.append(True)
                fork()
                watched()
        forking = []
        os.register_at_fork(before=before)
        loop = watched()
        fork()
        fork()
    """,
}


@pytest.mark.parametrize("what", AROUND_FORKS)
def test_what_happens_around_a_fork(what):
    prologue = """
        import faulthandler
        faulthandler.dump_traceback_later(10, exit=True)

        def watched():
            loop = new_event_loop()
            loop.watch_blocking(0.05)
            return loop

        def fork():
            pid = os.fork()
            if not pid:
                signal.alarm(10)
                watched().close()
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
    """
    result = helpers.run_script(
        "hotloop", textwrap.dedent(prologue) + textwrap.dedent(AROUND_FORKS[what]), "-W", "ignore"
    )
    assert result.stderr == ""


@pytest.mark.parametrize("how", ["closed", "unwatched"])
def test_the_thread_ends_with_the_last_loop(how):
    def threads():
        found = []
        for task in os.listdir("/proc/self/task"):
            # It may have ended since.
            with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/comm") as name:
                found.append(name.read())
        return sum(name.startswith("hotloop-watch") for name in found)

    def wait_for(count):
        # A new thread has its name a little later.
        deadline = time.monotonic() + 5
        while threads() != count:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    loop = hotloop.new_event_loop()
    loop.watch_blocking(0.05)
    wait_for(1)
    other = hotloop.new_event_loop()
    other.watch_blocking(0.05)
    if how == "closed":
        loop.close()
        other.close()
    else:
        loop.watch_blocking(None)
        other.watch_blocking(None)
    wait_for(0)
    loop.close()
    other.close()
