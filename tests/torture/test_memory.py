"""Whatever allocation fails, a MemoryError comes of it at the most, and the loop goes on."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from torture import effort
from torture.memory import programs

try:
    import _testcapi
except ImportError:
    _testcapi = None

pytestmark = [
    pytest.mark.skipif(
        sys.version_info[:2] in {(3, 12), (3, 13)} and not effort.FULL,
        reason="crashes in the collector after a failed allocation: gdb tells whose, in the full part",
    ),
    pytest.mark.hotloop_only,
    pytest.mark.skipif(
        not hasattr(_testcapi, "set_nomemory"), reason="needs CPython's _testcapi.set_nomemory()"
    ),
]
TESTS = pathlib.Path(__file__).parent.parent
# Allocations to fail of each program, and of each way to fail it.
ALLOCATIONS = int(effort.effort(2, 60))
# The same on asyncio's own loop, where something is wrong.
COMPARED = 400
PANIC = "a panic"
UNCLEAR = "a crash whose place only gdb can tell"
# What CPython's own code does wrong when it has no memory: the function in which it crashes.
CRASHES_OF_PYTHON = {
    "dictiter_dealloc": "an iterator of a dict is freed that was not tracked yet",
    "buffered_dealloc": "a buffered file is freed that was not tracked yet",
    "fstring_compile_expr": "the parser does not look whether there was memory for a part of an f-string",
    "_PyThreadState_SetCurrent": "PyGILState_Ensure() goes on without a thread state",
    "PyFunction_NewWithQualName": "the code of a function that could not be made was released twice",
}


def run(*arguments, command=()):
    return subprocess.run(
        [*command, sys.executable, "-m", "torture.memory.runner", *map(str, arguments)],
        cwd=TESTS,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=880,
    )


def attempts(*arguments):
    result = run(*arguments)
    assert result.returncode == 0, result
    return [json.loads(line) for line in result.stdout.splitlines()]


def backtrace(*arguments):
    """Where it crashed, told by gdb: the names of the functions, innermost first; None without gdb."""
    gdb = [
        "gdb",
        "-batch",
        "-ex",
        "set follow-fork-mode child",
        "-ex",
        "run",
        "-ex",
        "backtrace 30",
        "--args",
    ]
    try:
        said = run(*arguments, command=gdb).stdout
    except FileNotFoundError:
        return None
    return "\n".join(line for line in said.splitlines() if line.startswith("#"))


def is_of_python(found):
    innermost = (found or "").splitlines()[:4]
    return any(name in line for name in CRASHES_OF_PYTHON for line in innermost)


def crash(mode, kind, result):
    """What is wrong where the process has crashed, None if it is CPython itself."""
    found = backtrace("hotloop", result["program"], mode, kind, f"={result['number']}")
    if found is None:
        return UNCLEAR
    return None if is_of_python(found) else f"status {result['ended']}\n{found}"


def fault(mode, kind, result):
    """What is wrong with what came of an attempt, or None."""
    if result["ended"] == "hang":
        return "it hangs"
    if "panicked at" in result["log"]:
        return PANIC
    if result["ended"] != 0:
        return crash(mode, kind, result)
    if is_of_frame(result):
        return None
    if result["error"] is not None and not (result["shortage"] or result["overdue"] or result["told"]):
        return "an exception that does not come of the shortage"
    if result["overdue"] and kind == "once" and not result["told"]:
        return "what it waits for does not come, and nobody was told why"
    if [problem for problem in result["problems"] if not is_of_task(problem, result)]:
        return "it leaves something behind"
    return None


def is_of_frame(result):
    """Whether it is CPython 3.11, which fails without an exception where there is no memory for a frame."""
    where = result["where"] or ""
    return (
        where.startswith(("SystemError: error return without", "SystemError: <function "))
        and result["shortage"] is False
    )


def is_of_task(problem, result):
    """Whether asyncio's task was told of the shortage as it was woken: it waits for good then."""
    return problem.startswith("a task is left") and result["told"]


def where(result):
    """The place in the standard library, where asyncio's own loop comes, too; None if it is elsewhere."""
    place = (result.get("where") or "").partition(" in ")[2].partition(" < ")[0]
    if not place and (found := re.search(r'File "(.*?)", line (\d+) in (.*)', result["log"])):
        place = f"{os.path.basename(found[1])}:{found[2]} {found[3]}"
    # Not the line: those at which allocations are drawn to fail differ.
    place = re.sub(r":\d+ ", " ", place)
    ours = ("loop.py", "_", "scheduling.py", "networking.py")
    return place if place and not place.startswith(ours) else None


def is_certain(what):
    """Whether it is wrong whatever asyncio's own loop does."""
    return what == PANIC or what.startswith("status")


def not_as_asyncio(mode, kind, faults):
    """Leaves out what asyncio's own loop does at the same place of the standard library. Its loop is asked in
    the full part only; the other one leaves out all that is at such places."""
    doubtful = [result for what, result in faults if not is_certain(what) and where(result)]
    if effort.FULL:
        names = {result["program"] for result in doubtful} - programs.HOTLOOP_ONLY
        theirs = set()
        if names:
            # Its loop makes its sockets as it is made, ours when it runs first.
            names.add("make")
            for result in attempts("asyncio", ",".join(sorted(names)), mode, kind, COMPARED):
                if result["ended"] != 0 or result["problems"] or not result["shortage"]:
                    theirs.add(where(result))
        doubtful = [result for result in doubtful if where(result) in theirs]
    return [(what, result) for what, result in faults if not any(result is other for other in doubtful)]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["once", "on"])
@pytest.mark.parametrize("mode", ["cold", "warm"])
def test_without_memory(mode, kind, record_property):
    # What has been imported can't be again; and nothing else is cold after it.
    names = [name for name in programs.PROGRAMS if mode == "cold" or name != "import"]
    results = attempts("hotloop", ",".join(names), mode, kind, ALLOCATIONS)
    assert {result["program"] for result in results} == set(names)
    record_property("allocations failed", len(results))
    faults = [(fault(mode, kind, result), result) for result in results]
    faults = not_as_asyncio(mode, kind, [(what, result) for what, result in faults if what])
    if faults and all(what == UNCLEAR for what, _ in faults):
        pytest.skip("without gdb it can't be told whose a crash is")
    assert not faults, "\n\n".join(
        f"torture.memory.runner hotloop {result['program']} {mode} {kind} ={result['number']}: {what}\n"
        + "\n".join(f"  {key}: {value}" for key, value in result.items() if value)
        for what, result in sorted(faults, key=lambda fault: (fault[1]["program"], fault[1]["number"]))
    )
