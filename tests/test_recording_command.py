"""`python -m hotloop` with --record: when recordings are saved, and where."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap

import helpers_recording as traces
import pytest

pytestmark = [pytest.mark.timeout(60), pytest.mark.hotloop_only]

# Runs until it is told to end; "block" blocks the loop.
SERVING = """
    import asyncio, sys, time

    def blocks():
        time.sleep(0.3)

    async def main():
        print("ready", flush=True)
        while True:
            line = await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
            if line != "block\\n":
                break
            blocks()
            await asyncio.sleep(0)
            print("blocked", flush=True)

    asyncio.run(main())
"""


def command(tmp_path, program, *options):
    file = tmp_path / "program.py"
    file.write_text(textwrap.dedent(program))
    return [sys.executable, "-m", "hotloop", *options, str(file)]


def run(tmp_path, program, *options):
    result = subprocess.run(
        command(tmp_path, program, *options), capture_output=True, text=True, timeout=30, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    return result


def start(tmp_path, *options):
    process = subprocess.Popen(
        command(tmp_path, SERVING, *options),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert process.stdout.readline() == "ready\n", process.communicate(timeout=30)
    return process


def saved_by(line):
    """The file that a line on standard error names."""
    found = re.fullmatch(r"hotloop: recorded (.*): open it at https://ui\.perfetto\.dev\n", line)
    assert found, line
    return found[1]


def events_in(path):
    with open(path, encoding="utf-8") as file:
        return traces.check(json.load(file)["traceEvents"])


@pytest.mark.parametrize("options", [["--record"], ["--record=5"], ["--record-to=deep/er", "--debug"]])
def test_at_the_end(tmp_path, options):
    program = """
        import asyncio

        async def first():
            await asyncio.sleep(0.01)

        async def second():
            await asyncio.sleep(0.01)

        asyncio.run(first())
        asyncio.run(second())
        print("over")
    """
    result = run(tmp_path, program, *options)
    assert result.stdout == "over\n"
    path = saved_by(result.stderr)
    folder = tmp_path / "deep" / "er" if "deep" in options[0] else tmp_path
    assert os.path.dirname(path) == str(folder)
    assert re.fullmatch(r"hotloop-\d+-1-end\.json", os.path.basename(path))
    assert {"first", "second"} <= set(traces.tracks(events_in(path)))


def test_a_program_without_a_loop_saves_nothing(tmp_path):
    assert run(tmp_path, "print('nothing')", "--record").stderr == ""
    assert os.listdir(tmp_path) == ["program.py"]


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGHUP"])
def test_at_a_signal(tmp_path, name):
    options = ["--record"] if name == "SIGUSR1" else ["--record", f"--record-signal={name}"]
    with start(tmp_path, *options) as process:
        for number in (1, 2):
            process.send_signal(getattr(signal, name))
            path = saved_by(process.stderr.readline())
            assert path.endswith(f"hotloop-{process.pid}-{number}-signal.json")
            assert any(name.endswith("main") for name in traces.tracks(events_in(path)))
        _, rest = process.communicate("\n", timeout=30)
    assert process.returncode == 0
    assert saved_by(rest).endswith("3-end.json")


def test_after_a_block(tmp_path):
    with start(tmp_path, "--record", "--watch") as process:
        for _ in range(2):
            process.stdin.write("block\n")
            process.stdin.flush()
            assert process.stdout.readline() == "blocked\n"
        _, told = process.communicate("\n", timeout=30)
    lines = [line for line in told.splitlines(keepends=True) if line.startswith("hotloop: recorded")]
    # One for both blocks, which came within seconds, and one at the end.
    paths = [saved_by(line) for line in lines]
    assert [path.rpartition("-")[2] for path in paths] == ["block.json", "end.json"]
    blocked = [each for each in traces.slices(events_in(paths[0])) if each.get("args", {}).get("blocked")]
    assert len(blocked) == 1
    assert 300_000 <= blocked[0]["dur"] < 3_000_000


def test_processes_have_files_of_their_own(tmp_path):
    program = """
        import asyncio, multiprocessing, os

        async def work():
            await asyncio.sleep(0.01)

        def child():
            asyncio.run(work())

        if __name__ == "__main__":
            asyncio.run(work())
            for method in ("fork", "spawn"):
                process = multiprocessing.get_context(method).Process(target=child)
                process.start()
                process.join()
                assert process.exitcode == 0
    """
    told = run(tmp_path, program, "--record").stderr
    paths = [saved_by(line) for line in told.splitlines(keepends=True) if "hotloop" in line]
    assert len(paths) == len(set(paths)) == 3
    for path in paths:
        assert traces.tracks(events_in(path))[0] == "work"


def test_a_folder_that_can_not_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    program = "import asyncio; asyncio.run(asyncio.sleep(0))"
    told = run(tmp_path, program, "--record", "--record-to=file").stderr
    assert re.fullmatch(r"hotloop: the recording can't be saved: .*file'?\n", told)


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("--record=0", "--record takes a number of seconds, not '0'"),
        ("--record=x", "--record takes a number of seconds, not 'x'"),
        ("--record-signal=USR1", "--record-signal takes the name of a signal, not 'USR1'"),
        ("--record-to=", "--record-to takes a folder"),
    ],
)
def test_options_that_can_not_be(tmp_path, option, reason):
    result = subprocess.run(
        command(tmp_path, "print('never')", option), capture_output=True, text=True, timeout=30
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"hotloop: {reason} (")
