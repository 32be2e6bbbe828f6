"""CPython's own tools that look into a running process see hotloop's tasks as they see asyncio's."""

import re
import subprocess
import sys
import time

import helpers
import pytest

needs_314 = pytest.mark.skipif(sys.version_info < (3, 14), reason="new in Python 3.14")
needs_315 = pytest.mark.skipif(sys.version_info < (3, 15), reason="new in Python 3.15")
PATIENCE = 50

PROGRAM = """
    async def leaf():
        await asyncio.sleep(600)

    async def branch():
        first = asyncio.create_task(leaf(), name="first leaf")
        await asyncio.gather(first, asyncio.create_task(leaf(), name="second leaf"))

    async def busy():
        while True:
            sum(range(1000))
            await asyncio.sleep(0.001)

    async def main():
        async with asyncio.TaskGroup() as group:
            group.create_task(branch(), name="a branch")
            group.create_task(busy(), name="busy")
            await asyncio.sleep(0.01)
            print("ready", flush=True)

    run(main())
"""


@pytest.fixture
def program(loop_name):
    process = helpers.start_script(loop_name, PROGRAM)
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def tool(*arguments):
    """What a tool prints. Looking into another process may not be allowed, or this Python not made for it."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE
    )
    said = done.stdout + done.stderr
    if re.search("(?i)permission|not permitted|not supported|not available|cannot read", said):
        pytest.skip(said.strip().splitlines()[-1])
    assert done.returncode == 0, said
    return said


@needs_314
def test_asyncio_ps(program):
    rows = [re.split(r"  +", line.strip()) for line in tool("-m", "asyncio", "ps", program.pid).splitlines()]
    tasks = {row[2]: row[3:] for row in rows if row[0] == str(program.pid)}
    assert set(tasks) == {"Task-1", "a branch", "busy", "first leaf", "second leaf"}
    assert tasks["first leaf"][:3] == tasks["second leaf"][:3] == ["sleep -> leaf", "branch", "a branch"]
    assert tasks["a branch"][0] == "branch"


@needs_314
def test_asyncio_pstree(program):
    tree = tool("-m", "asyncio", "pstree", program.pid)
    depths = {
        name: len(line) - len(line.lstrip(" │├└─"))
        for line in tree.splitlines()
        for name in re.findall(r"\(T\) (.*)", line)
    }
    assert depths["Task-1"] < depths["a branch"] < depths["first leaf"] == depths["second leaf"]
    assert re.search(r"leaf\b.*\n.*sleep ", tree)


@needs_314
def test_remote_exec(program, tmp_path):
    script, answer = tmp_path / "script.py", tmp_path / "answer"
    script.write_text(
        "import asyncio, pathlib\n"
        "names = sorted(task.get_name() for task in asyncio.all_tasks(asyncio.get_running_loop()))\n"
        f"pathlib.Path({str(answer)!r}).write_text(repr(names))\n"
    )
    try:
        sys.remote_exec(program.pid, str(script))
    except (PermissionError, RuntimeError, OSError) as error:
        pytest.skip(str(error))
    deadline = time.monotonic() + PATIENCE
    while not (answer.exists() and answer.read_text().endswith("]")) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert answer.read_text() == repr(["Task-1", "a branch", "busy", "first leaf", "second leaf"])


@needs_315
def test_sampling_profiler(program, tmp_path):
    output = tmp_path / "profile.txt"
    arguments = ["--async-aware", "--async-mode", "all", "--duration", "2", "--collapsed", "--output", output]
    tool("-m", "profiling.sampling", "attach", *arguments, program.pid)
    stacks = output.read_text()
    assert re.search(r"main.*a branch.*branch.*first leaf.*leaf", stacks), stacks[:2000]
    assert re.search(r"busy", stacks)


@needs_315
def test_dump_of_the_sampling_profiler(program):
    said = tool("-m", "profiling.sampling", "dump", "--async-aware", "--async-mode", "all", program.pid)
    assert "second leaf" in said
    assert "leaf" in said
