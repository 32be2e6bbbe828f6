"""`hotloop top` and `hotloop record` of a process that was not started for it."""

import json
import os
import re
import subprocess
import sys
import textwrap

import helpers_recording as traces
import pytest

pytestmark = [pytest.mark.timeout(60), pytest.mark.hotloop_only]

PROGRAM = """
    import asyncio, sys, hotloop

    async def work():
        await asyncio.sleep(0.005)

    async def main():
        print("ready", flush=True)
        while True:
            await work()

    {hotloop}.run(main())
"""

from_3_14 = pytest.mark.skipif(sys.version_info < (3, 14), reason="sys.remote_exec() is from Python 3.14 on")


@pytest.fixture
def environment(tmp_path):
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    changes = {"PYTHONPATH": os.pathsep.join(sys.path), "XDG_RUNTIME_DIR": str(runtime), "COLUMNS": "100"}
    return {**os.environ, **changes}


@pytest.fixture
def start(tmp_path, environment):
    processes = []

    def start(module="hotloop", *options):
        file = tmp_path / "program.py"
        file.write_text(textwrap.dedent(PROGRAM.format(hotloop=module)))
        process = subprocess.Popen(
            [sys.executable, *options, file], stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
        )
        processes.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate(timeout=30)


def hotloop(environment, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "hotloop", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=50,
        env=environment,
    )


@from_3_14
def test_a_recording_of_a_process_that_was_not_prepared(start, environment):
    process = start()
    for options in (["--seconds", "0.5"], ["--seconds=0.2"]):
        result = hotloop(environment, "record", process.pid, *options)
        if "no permission" in result.stderr:
            pytest.skip(result.stderr)
        assert result.returncode == 0, result.stderr
        path = result.stdout.rstrip("\n")
        assert re.fullmatch(rf"hotloop-{process.pid}-\d-asked\.json", os.path.basename(path))
        with open(path, encoding="utf-8") as file:
            events = traces.check(json.load(file)["traceEvents"])
        assert len(traces.steps(events, "Task-1: main")) > 10
    assert process.poll() is None


@from_3_14
def test_top_of_a_process_that_was_not_prepared(start, environment):
    process = start()
    shown = hotloop(environment, "top", process.pid, "--once", "--interval=0.2")
    if "no permission" in shown.stderr:
        pytest.skip(shown.stderr)
    assert shown.returncode == 0, shown.stderr
    assert f"process {process.pid}" in shown.stdout
    assert "0 callbacks blocked a loop" in shown.stdout


@from_3_14
def test_what_can_not_be_attached_to(start, environment):
    sleeping = subprocess.Popen(["sleep", "30"])
    try:
        result = hotloop(environment, "record", sleeping.pid)
        assert result.returncode == 2
        assert re.match(
            rf"hotloop: (can't attach to|no permission to attach to) process {sleeping.pid}: ", result.stderr
        )
        sleeping.kill()
        sleeping.wait()
        result = hotloop(environment, "record", sleeping.pid)
        assert result.stderr.startswith(f"hotloop: can't attach to process {sleeping.pid}: ")
    finally:
        sleeping.kill()
        sleeping.wait()
    result = hotloop(environment, "record", start("hotloop", "-X", "disable-remote-debug").pid)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="3.14 and later attach")
def test_pythons_that_can_not_attach(start, environment):
    process = start()
    for command in ("record", "flame", "top"):
        result = hotloop(environment, command, process.pid)
        assert result.returncode == 2
        assert result.stderr == (
            f"hotloop: process {process.pid} was not started with `hotloop --watch`, and Python "
            f"{sys.version_info.major}.{sys.version_info.minor} can't attach to others: 3.14 and later can\n"
        )


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "no process of this user was started with `hotloop --watch`"),
        (["1", "2"], "record takes one process, not 2"),
        (["--seconds=0", "1"], "--seconds takes a number of seconds, not '0'"),
        (["1", "--seconds"], "--seconds takes a number of seconds, not ''"),
        (["--color", "1"], "unknown option --color of record"),
        (["missing.sock"], "missing.sock: No such file or directory"),
    ],
)
def test_arguments_that_can_not_be(environment, arguments, reason):
    result = hotloop(environment, "record", *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith(f"hotloop: {reason}")
