"""How a loop notices that its child processes end, and what it does to the process that it runs in."""

import asyncio
import concurrent.futures
import contextlib
import gc
import os
import signal
import subprocess
import time
from asyncio.subprocess import PIPE

import helpers
import pytest
from helpers import ProcessRecorder

pytestmark = pytest.mark.usefixtures("no_child_left")


@pytest.fixture
def of_sigchld():
    """Whatever a test does, the handler of SIGCHLD is what it was."""
    before = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, before)


async def status_of(command, **kwargs):
    process = await asyncio.create_subprocess_shell(command, **kwargs)
    return await process.wait()


# Many children


async def test_many_children_each_with_its_own_return_code(loop):
    statuses = await asyncio.gather(*(status_of(f"exit {number}") for number in range(50)))
    assert statuses == list(range(50))


async def test_many_children_that_end_at_once(loop, gate):
    """They wait for the end of one pipe."""
    script = "read line <&{}; exit {}".format
    read, write = os.pipe()
    processes = [
        await asyncio.create_subprocess_shell(script(0, number), stdin=read, stdout=PIPE)
        for number in range(30)
    ]
    os.close(read)
    assert [process.returncode for process in processes] == [None] * 30
    os.close(write)
    assert await asyncio.gather(*(process.wait() for process in processes)) == list(range(30))
    assert [await process.communicate() for process in processes] == [(b"", None)] * 30


async def test_one_child_after_another(loop):
    for number in range(40):
        assert await status_of(f"exit {number}") == number


async def test_a_loop_that_waits_for_a_child_is_asleep(loop):
    process = await asyncio.create_subprocess_exec("cat", stdin=PIPE)
    async with helpers.idle(0.1):
        pass
    process.kill()
    await process.wait()
    async with helpers.idle(0.1):
        pass


async def test_the_end_of_a_child_wakes_an_idle_loop(loop):
    process = await asyncio.create_subprocess_exec("sleep", "0.03")
    start = time.monotonic()
    assert await asyncio.wait_for(process.wait(), 20) == 0
    assert time.monotonic() - start < 10


def test_a_child_that_ends_while_the_loop_does_not_run(loop, gate):
    process = loop.run_until_complete(asyncio.create_subprocess_shell("read line; exit 8", stdin=gate[0]))
    os.write(gate[1], b"\n")
    with contextlib.suppress(ChildProcessError):  # a thread may have been faster
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert process.returncode is None
    assert loop.run_until_complete(process.wait()) == 8


# Threads


def in_thread(function):
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        return executor.submit(function).result(20)


async def talk(number):
    process = await asyncio.create_subprocess_shell(f"cat; exit {number}", stdin=PIPE, stdout=PIPE)
    output, _ = await process.communicate(b"%d" % number)
    return int(output), process.returncode


def test_a_loop_in_another_thread(new_loop):
    loop = new_loop()
    assert in_thread(lambda: loop.run_until_complete(talk(3))) == (3, 3)


def test_loops_in_several_threads(new_loop):
    def work(number):
        loop = new_loop()
        return [loop.run_until_complete(talk(number + turn)) for turn in range(5)]

    with concurrent.futures.ThreadPoolExecutor(6) as executor:
        results = list(executor.map(work, range(0, 60, 10)))
    assert results == [[(number + turn, number + turn) for turn in range(5)] for number in range(0, 60, 10)]


def test_a_loop_that_is_run_in_one_thread_and_then_in_another(loop):
    assert in_thread(lambda: loop.run_until_complete(talk(1))) == (1, 1)
    assert loop.run_until_complete(talk(2)) == (2, 2)
    assert in_thread(lambda: loop.run_until_complete(talk(3))) == (3, 3)


def test_a_child_started_in_one_thread_and_waited_for_in_another(loop):
    process = in_thread(
        lambda: loop.run_until_complete(asyncio.create_subprocess_shell("cat; exit 4", stdin=PIPE))
    )

    async def finish():
        process.stdin.close()
        return await process.wait()

    assert loop.run_until_complete(finish()) == 4


# Signals


async def test_no_handler_of_sigchld_is_installed(loop, of_sigchld):
    assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL
    process = await asyncio.create_subprocess_exec("cat", stdin=PIPE)
    assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL
    process.kill()
    await process.wait()
    assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL


async def test_a_handler_of_the_programs_own_is_called(loop, of_sigchld):
    calls = []

    def handler(number, frame):
        calls.append(number)

    signal.signal(signal.SIGCHLD, handler)
    for number in (1, 2, 3):
        assert await status_of(f"exit {number}") == number
        await helpers.until(lambda number=number: len(calls) >= number)
    assert set(calls) == {signal.SIGCHLD}
    assert signal.getsignal(signal.SIGCHLD) is handler


async def test_a_handler_of_the_loop_for_sigchld_is_called(loop, of_sigchld):
    calls = []
    loop.add_signal_handler(signal.SIGCHLD, calls.append, "called")
    assert await status_of("exit 5") == 5
    await helpers.until(lambda: calls)
    assert loop.remove_signal_handler(signal.SIGCHLD)
    assert await status_of("exit 6") == 6


async def test_sigchld_blocked(loop):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        assert await status_of("exit 5") == 5
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def test_sigchld_ignored(loop, of_sigchld, logged, gate):
    """The system then tells nobody how a child has ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    process = await asyncio.create_subprocess_shell("read line; exit 5", stdin=gate[0])
    os.write(gate[1], b"\n")
    assert await process.wait() == 255
    (line,) = logged()
    assert str(process.pid) in line
    assert "will report returncode 255" in line


@pytest.mark.hotloop_only
async def test_sigchld_ignored_and_children_that_end_at_once(loop, of_sigchld, logged):
    """Nothing is left of them when the loop begins to watch them; asyncio may raise ProcessLookupError."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    assert await asyncio.gather(*(status_of("exit 5") for _ in range(20))) == [255] * 20
    assert len(logged()) == 20


# Children that others wait for


@pytest.mark.asyncio_bug("its thread may be the one that learns the status", (3, 11))
async def test_a_child_that_somebody_else_has_waited_for(loop, logged, gate):
    process = await asyncio.create_subprocess_shell("read line; exit 5", stdin=gate[0], stdout=PIPE)
    os.write(gate[1], b"\n")
    assert os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1]) == 5
    assert await process.wait() == 255
    assert process.returncode == 255
    (line,) = logged()
    assert str(process.pid) in line
    assert "will report returncode 255" in line
    assert await process.communicate() == (b"", None)


async def test_the_loop_waits_for_nobody_elses_children(loop, gate):
    other = subprocess.Popen(["/bin/sh", "-c", "exit 6"])
    with_gate = subprocess.Popen(["/bin/sh", "-c", "read line; exit 7"], stdin=gate[0])
    assert await asyncio.gather(*(status_of(f"exit {number}") for number in range(10))) == list(range(10))
    os.write(gate[1], b"\n")
    assert await asyncio.to_thread(other.wait) == 6
    assert await asyncio.to_thread(with_gate.wait) == 7


# Cancelled starts


async def test_a_start_that_is_cancelled(loop):
    """At whatever point, no process and no descriptor is left, and nobody waits for ever."""
    before = helpers.open_descriptors()
    cancelled = 0
    for count in range(12):
        task = asyncio.create_task(
            asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE, stderr=PIPE)
        )
        await helpers.iterations(count)
        task.cancel()
        try:
            process = await task
        except asyncio.CancelledError:
            cancelled += 1
        else:
            assert await process.communicate(b"x") == (b"x", b"")
    assert cancelled > 2
    await helpers.iterations(5)
    gc.collect()
    assert helpers.opened_since(before) == {}
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


async def test_many_starts_that_time_out(loop):
    async def start():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(loop.subprocess_exec(ProcessRecorder, "cat"), 0)

    async def start_and_cancel():
        task = asyncio.create_task(loop.subprocess_exec(ProcessRecorder, "cat"))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    await asyncio.gather(*(start() for _ in range(10)), *(start_and_cancel() for _ in range(10)))


# The end of the loop, and of the program


CLOSED_EARLY = """
async def main():
    return await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)

warnings.simplefilter("always")
loop = new_event_loop()
process = loop.run_until_complete(main())
pid = process.pid
loop.close()
print("closed", flush=True)
del process
import gc
gc.collect()
loop.close()
del loop
gc.collect()
print("collected", flush=True)
"""


@helpers.with_pidfd
@pytest.mark.asyncio_bug("its transport closes pipes that need the loop", (3, 11), (3, 12), (3, 13))
def test_a_loop_closed_while_a_child_runs(loop_name):
    result = helpers.run_script(loop_name, CLOSED_EARLY)
    assert result.stdout == "closed\ncollected\n"
    assert "ResourceWarning: unclosed transport" in result.stderr
    assert "Traceback" not in result.stderr, result.stderr


def test_a_process_that_is_killed_and_not_waited_for(loop_name):
    """The loop ends before it could notice."""
    source = """
    async def main():
        process = await asyncio.create_subprocess_exec("cat", stdin=-1)
        process.kill()
        return process

    process = run(main())
    assert process.returncode in (None, -signal.SIGKILL)
    """
    helpers.run_script(loop_name, source)


def test_a_program_that_ends_while_a_child_runs(loop_name):
    """It does not wait for it."""
    source = """
    async def main():
        global process
        process = await asyncio.create_subprocess_exec("sleep", "60", stdout=-3, stderr=-3)
        print(process.pid, flush=True)

    loop = new_event_loop()
    loop.run_until_complete(main())
    """
    start = time.monotonic()
    result = helpers.run_script(loop_name, source)
    assert time.monotonic() - start < 20
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(result.stdout), signal.SIGKILL)


def test_a_loop_after_a_fork_watches_its_own_children(loop_name):
    helpers.run_script(
        loop_name,
        """
        warnings.simplefilter("ignore")

        async def main(number):
            process = await asyncio.create_subprocess_shell(f"exit {number}")
            return await process.wait()

        assert run(main(3)) == 3
        pid = os.fork()
        if not pid:
            os._exit(run(main(4)))
        assert run(main(5)) == 5
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 4
        """,
    )


@helpers.with_pidfd
@pytest.mark.asyncio_bug("close() has taken the status, and 255 is reported")
def test_a_child_that_has_ended_when_its_transport_is_closed_has_its_status(loop, caplog):
    async def main():
        script = "read line; exit 3"
        transport, _ = await loop.subprocess_exec(ProcessRecorder, "/bin/sh", "-c", script, stdin=PIPE)
        transport.get_pipe_transport(0).abort()
        await asyncio.sleep(0)
        # Dead, and the loop has not noticed.
        os.waitid(os.P_PID, transport.get_pid(), os.WEXITED | os.WNOWAIT)
        transport.close()
        await transport._wait()
        return transport.get_returncode()

    assert loop.run_until_complete(main()) == 3
    assert not caplog.records
