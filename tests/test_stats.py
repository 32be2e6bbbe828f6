"""`python -m hotloop` with --watch, --stats and --stats-signal."""

import os
import re
import signal
import subprocess
import sys
import textwrap

import helpers
import pytest

pytestmark = pytest.mark.timeout(60)

BLOCKING = """
    import asyncio, time

    def block():
        time.sleep(0.2)

    async def main():
        await asyncio.sleep(0.01)
        block()
        await asyncio.sleep(0.01)

    asyncio.run(main())
"""

WAITING = """
    import asyncio

    async def inner():
        await asyncio.sleep(3600)

    async def outer():
        await inner()

    async def main():
        task = asyncio.create_task(outer(), name="waits")
        await asyncio.sleep(0.01)
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, input)
        task.cancel()

    asyncio.run(main())
"""


def run(tmp_path, program, *options):
    file = tmp_path / "program.py"
    file.write_text(textwrap.dedent(program))
    return subprocess.run(
        [sys.executable, "-m", "hotloop", *options, file],
        capture_output=True,
        text=True,
        timeout=50,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def start(tmp_path, program, *options):
    file = tmp_path / "program.py"
    file.write_text(textwrap.dedent(program))
    return subprocess.Popen(
        [sys.executable, "-m", "hotloop", *options, file],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


@helpers.whenever_quiet
@pytest.mark.parametrize("options", [["--watch"], ["--watch=0.1"], ["--debug", "--watch", "--stats"]])
def test_who_blocks_is_reported(tmp_path, options):
    result = run(tmp_path, BLOCKING, *options)
    assert result.returncode == 0
    assert re.search(r"program\.py:5 in block blocked the event loop for 0\.2", result.stderr)


def test_nobody_is_reported_below_the_threshold(tmp_path):
    assert run(tmp_path, BLOCKING, "--watch=0.5").stderr == ""


@helpers.whenever_quiet
def test_a_summary_when_the_loop_is_closed(tmp_path):
    result = run(tmp_path, BLOCKING, "--stats")
    assert result.returncode == 0
    assert result.stderr.count("hotloop: loop MainThread-1, process ") == 1
    assert re.search(r"busy 2\d\d\.\d ms, idle \d+\.\d ms: 9\d\.\d% utilized", result.stderr)
    assert re.search(r"iterations p50 .* max 2\d\d\.\d ms", result.stderr)
    assert "blocked" not in result.stderr


@helpers.whenever_quiet
def test_the_summary_has_the_accounts(tmp_path):
    result = run(tmp_path, BLOCKING, "--stats", "--account")
    assert result.returncode == 0
    assert re.search(r"^  accounts of \d+\.\d ms, 9\d\.\d% of it used$", result.stderr, re.MULTILINE)
    found = re.search(
        r"^ +9\d\.\d% +2\d\d\.\d ms .* 3 .*  task main \(program\.py:7\)$", result.stderr, re.MULTILINE
    )
    assert found, result.stderr
    assert "accounts" not in run(tmp_path, BLOCKING, "--stats").stderr


def test_a_summary_when_the_program_ends(tmp_path):
    program = """
        import asyncio
        loop = asyncio.new_event_loop()
        loop.run_until_complete(asyncio.sleep(0))
        other = asyncio.new_event_loop()
    """
    result = run(tmp_path, program, "--stats")
    assert result.stderr.count("hotloop: loop") == 2


@pytest.mark.parametrize(
    ("options", "number"),
    [
        (["--stats"], signal.SIGUSR2),
        (["--watch"], signal.SIGUSR2),
        (["--stats-signal=SIGUSR1"], signal.SIGUSR1),
        (["--stats-signal=SIGHUP", "--watch"], signal.SIGHUP),
    ],
)
def test_a_signal(tmp_path, options, number):
    with start(tmp_path, WAITING, *options) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        told = [process.stderr.readline()]
        while "waits" not in told[-1]:
            assert told[-1], told
            told.append(process.stderr.readline())
        _, rest = process.communicate("\n", timeout=30)
    assert process.returncode == 0, rest
    assert told[0].startswith("hotloop: loop MainThread-1")
    assert "  2 tasks\n" in told
    assert re.search(r"waits: sleep tasks\.py:\d+ < inner program\.py:5 < outer program\.py:8\n", told[-1])


@pytest.mark.parametrize("kind", ["closed", "full", "without a reader", "none"])
@pytest.mark.parametrize("options", [["--stats"], ["--watch"]])
def test_a_standard_error_that_takes_nothing(tmp_path, options, kind):
    program = f"""
        import asyncio, os, signal, subprocess, sys

        async def main():
            match {kind!r}:
                case "closed":
                    sys.stderr.close()
                case "full":
                    os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
                case "without a reader":
                    reader, writer = os.pipe()
                    os.close(reader)
                    os.dup2(writer, 2)
                case "none":
                    sys.stderr = None
            loop = asyncio.get_running_loop()
            child = await asyncio.create_subprocess_shell(f"sleep 0.2; kill -USR2 {{os.getpid()}}")
            loop.call_later(30, sys.exit, "no signal")
            signal.signal(signal.SIGUSR2, handler := note(signal.getsignal(signal.SIGUSR2)))
            while not handler.called:
                await asyncio.sleep(0.01)
            await child.wait()
            return loop

        class note:
            def __init__(self, handler):
                self.handler, self.called = handler, False

            def __call__(self, *args):
                self.called = True
                self.handler(*args)

        print(asyncio.run(main()).is_closed())
    """
    result = run(tmp_path, program, *options)
    assert result.stdout == "True\n"
    assert result.returncode == 0


def test_no_thread_to_answer_in(tmp_path):
    program = """
        import asyncio, threading

        def start(thread):
            raise RuntimeError("can't start new thread")

        threading.Thread.start = start
        asyncio.run(asyncio.sleep(0))
    """
    result = run(tmp_path, program, "--watch")
    assert result.stderr == "hotloop: no socket for `hotloop top`: can't start new thread\n"
    assert result.returncode == 0


def test_a_signal_imports_nothing(tmp_path):
    """It may come in the midst of an import, which some versions of Python do not survive."""
    program = """
        import asyncio, os, signal, sys

        async def main():
            before = set(sys.modules)
            os.kill(os.getpid(), signal.SIGUSR2)
            await asyncio.sleep(0.01)
            print(sorted(set(sys.modules) - before))

        asyncio.run(main())
    """
    result = run(tmp_path, program, "--watch")
    assert "  1 task\n" in result.stderr
    assert result.stdout == "[]\n"


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_processes_of_multiprocessing(tmp_path, method):
    program = f"""
        import asyncio, multiprocessing, time

        def block():
            time.sleep(0.2)

        async def main():
            block()

        def work():
            asyncio.run(main())

        if __name__ == "__main__":
            process = multiprocessing.get_context({method!r}).Process(target=work)
            process.start()
            process.join()
    """
    result = run(tmp_path, program, "--watch", "--stats")
    assert result.stderr.count("in block blocked the event loop") == 1, result.stderr
    assert result.stderr.count("hotloop: loop") == 1


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("--watch=", "--watch takes a number of seconds, not ''"),
        ("--watch=often", "--watch takes a number of seconds, not 'often'"),
        ("--watch=0", "--watch takes a number of seconds, not '0'"),
        ("--watch=nan", "--watch takes a number of seconds, not 'nan'"),
        ("--stats-signal", "--stats-signal takes the name of a signal, not ''"),
        ("--stats-signal=USR2", "--stats-signal takes the name of a signal, not 'USR2'"),
        ("--stats=1", "unknown option --stats=1"),
        ("--watching", "unknown option --watching"),
    ],
)
def test_options_that_there_are_not(tmp_path, option, reason):
    result = run(tmp_path, BLOCKING, option)
    assert result.returncode == 2
    assert result.stderr == f"hotloop: {reason} (python -m hotloop --help)\n"
