"""Whatever allocation fails, there is a MemoryError at the most: the loop goes on, and nothing is left behind."""

import collections
import json
import os
import pathlib
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
    pytest.mark.hotloop_only,
    pytest.mark.skipif(not hasattr(_testcapi, "set_nomemory"), reason="needs CPython's _testcapi.set_nomemory()"),
]
TESTS = pathlib.Path(__file__).parent.parent
# Allocations to fail of each program, and of each way to fail it.
ALLOCATIONS = int(effort.effort(8, 400))
# What CPython's own code does wrong when it has no memory: the function in which it crashes.
CRASHES_OF_PYTHON = {
    "dictiter_dealloc": "an iterator of a dict is freed that was not tracked yet",
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


def numbers(name, mode, kind):
    """Which allocations to fail: all, or of many some, drawn."""
    (counted,) = attempts("hotloop", name, mode, kind, "count")
    count = counted["count"]
    everything = range(count + 5)
    if len(everything) <= ALLOCATIONS:
        return everything
    return sorted(effort.seeded(f"{name} {mode} {kind}").sample(everything, ALLOCATIONS))


def backtrace(*arguments):
    """Where it crashed, told by gdb: the names of the functions, innermost first; None without gdb."""
    gdb = ["gdb", "-batch", "-ex", "set follow-fork-mode child", "-ex", "run", "-ex", "backtrace 30", "--args"]
    try:
        said = run(*arguments, command=gdb).stdout
    except FileNotFoundError:
        return None
    return "\n".join(line for line in said.splitlines() if line.startswith("#"))


def is_of_python(found):
    innermost = (found or "").splitlines()[:4]
    return any(name in line for name in CRASHES_OF_PYTHON for line in innermost)


def fault(name, mode, kind, result):
    """What is wrong with what came of an attempt, or None."""
    if result["ended"] == "hang":
        return "it hangs"
    if "panicked at" in result["log"]:
        return "a panic"
    if result["ended"] != 0:
        found = backtrace("hotloop", name, mode, kind, result["number"])
        return None if is_of_python(found) else f"status {result['ended']}\n{found}"
    if result["error"] is not None and not result["shortage"]:
        return "an exception that does not come of the shortage"
    if result["overdue"] and kind == "once" and not result["told"]:
        return "what it waits for does not come, and nobody was told why"
    if result["problems"]:
        return "it leaves something behind"
    return None


def as_asyncio_does(name, mode, kind, faults):
    """Leave out what asyncio's own loop does, too: the standard library's own code."""
    if name in programs.HOTLOOP_ONLY or not faults:
        return faults
    theirs = collections.Counter()
    for result in attempts("asyncio", name, mode, kind, *numbers_of_asyncio(name, mode, kind)):
        theirs.update(places(result))
    return [(what, result) for what, result in faults if not (places(result) and places(result) <= set(theirs))]


def numbers_of_asyncio(name, mode, kind):
    (counted,) = attempts("asyncio", name, mode, kind, "count")
    return range(min(counted["count"] + 5, 1000))


def places(result):
    """Where in the standard library it failed."""
    return {result["where"]} if result.get("where") and "hotloop" not in result["where"] else set()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["once", "on"])
@pytest.mark.parametrize("mode", ["cold", "warm"])
@pytest.mark.parametrize("name", programs.PROGRAMS)
def test_without_memory(name, mode, kind, record_property):
    if name == "import" and mode == "warm":
        pytest.skip("it was imported then")
    chosen = numbers(name, mode, kind)
    results = attempts("hotloop", name, mode, kind, *chosen)
    record_property("allocations failed", len(results))
    assert [result["number"] for result in results] == list(chosen)
    faults = [(fault(name, mode, kind, result), result) for result in results]
    faults = as_asyncio_does(name, mode, kind, [(what, result) for what, result in faults if what])
    assert not faults, "\n\n".join(
        f"{name} {mode} {kind} {result['number']}: {what}\n"
        + "\n".join(f"  {key}: {value}" for key, value in result.items() if value)
        for what, result in faults[:10]
    )
