"""Whatever allocation fails, a MemoryError comes of it at the most, and the loop goes on."""

import collections
import concurrent.futures
import functools
import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import helpers
import pytest

from torture import effort
from torture.memory import programs

pytestmark = [
    pytest.mark.hotloop_only,
    helpers.fails_allocations,
]
TESTS = pathlib.Path(__file__).parent.parent
# Allocations to fail of each program, and of each way to fail it.
ALLOCATIONS = int(effort.effort(2, 60))
# More than the small programs make, of which each allocation fails.
EACH = 1000
# How many programs are compared with asyncio's loop at a time: most of it is waiting.
COMPARISONS = 6
# As many at most of asyncio's own loop, for each program in which something is wrong.
COMPARED = int(effort.effort(400, 600))
# What is wrong whatever asyncio's loop does.
CERTAIN = {"a panic", "a crash"}
# In which functions a loop waits, asyncio's and hotloop's.
WAITING = {"select", "_run_once", "run_forever", "run_until_complete"}
LEFT = "it leaves something behind"
# Repeats of what has crashed: where it fails is not always quite the same.
REPEATS = 3

# With another seed of hashes other allocations would fail. It is read once: threads start programs with it,
# and pytest changes variables meanwhile.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(TESTS), "PYTHONHASHSEED": "0"}


def command(*arguments):
    return [sys.executable, "-m", "torture.memory.runner", *map(str, arguments)]


def attempts(*arguments):
    result = subprocess.run(
        command(*arguments), cwd=TESTS, env=ENVIRONMENT, capture_output=True, text=True, timeout=880
    )
    assert result.returncode == 0, result
    return [json.loads(line) for line in result.stdout.splitlines()]


def innermost(backtrace):
    """The innermost functions of the interpreter, or of the extension, in which a process has crashed."""
    found = [re.match(r"(?:#\d+ +(?:0x\w+ in )?|  Binary.* at )([\w:<>]+)", line) for line in backtrace]
    names = [match[1] for match in found if match]
    # What the C library does with a block that is freed twice; addresses of functions without a name.
    library = "_*(pthread_kill|GI_|libc_message|malloc_printerr|int_free)|raise|abort|_PyObject_Free|0x"
    return [name for name in names if not re.match(library, name)][:4]


def crash(names, mode, kind, result):
    """Where the process has crashed, as gdb sees it; None if the interpreter crashes there without a loop."""
    from torture.memory import crashes

    numbers = ",".join([str(result["number"])] * REPEATS)
    repeats = attempts("hotloop", names, mode, kind, f"{result['program']}={numbers}", "gdb")
    backtraces = [repeated["backtrace"] for repeated in repeats]
    # If it does not crash again: what faulthandler has said, from Python 3.14 on.
    lines = [line for line in result["log"].splitlines() if line.startswith("  Binary file")]
    handler = [number for number, line in enumerate(lines) if "libc.so" in line][:1]
    backtraces += [lines[number + 1 :] for number in handler]
    # Each as hotloop's or not, and its functions. One that is known stands for all: what it leaves differs.
    seen = [
        (any("hotloop" in line for line in backtrace[:5]), found)
        for backtrace in backtraces
        if (found := innermost(backtrace))
    ]
    if not seen:
        return f"a crash with status {result['ended']}"
    ours = any(is_ours for is_ours, _ in seen)
    if not ours and any(crashes.of_this_python().intersection(found[:2]) for _, found in seen):
        return None
    return f"a crash in {' < '.join(seen[0][1])}"


def fault(result):
    """What is wrong with what came of an attempt, or None."""
    if result["ended"] == "hang":
        return None if is_of_thread(result) else "it hangs"
    if "panicked at" in result["log"]:
        return "a panic"
    if result["ended"] != 0:
        return "a crash"
    told = result["told"] or is_of_frame(result)
    explained = result["shortage"] or result["overdue"]
    explained = explained or any(known(result) for known in (is_of_frame, is_of_import, is_of_peer))
    # A program that goes on without what the exception handler was told of fails on its own.
    if result["error"] is not None and not (explained or result["told"]):
        return f"a {result['error']}, which does not come of the shortage"
    if result["overdue"] and result["kind"] == "once" and not told:
        return "what it waits for does not come, and nobody was told why"
    if problems(result):
        return LEFT
    return None


def is_of_frame(result):
    """Whether the interpreter itself has failed without an exception, in which it leaves a Python function.

    CPython 3.11 does where there is no memory for a frame, 3.12 and 3.13 where a `with` statement raises
    again.
    """
    where = result["where"] or ""
    if where.startswith("SystemError: <function "):
        return True
    return where.startswith("SystemError: error return without") and sys.version_info < (3, 14)


def is_of_import(result):
    """Whether the standard library has failed where a module is imported: where there is no memory, it finds
    attributes missing that have a default.
    """
    places = (result["where"] or "").rpartition(" in ")[2]
    return " <module>" in places and not places.startswith("hotloop/")


def is_of_peer(result):
    """Whether a server has refused a connection: asyncio says why only in debug mode."""
    where = result["where"] or ""
    if result["program"] == "tls":
        refused = where.startswith("ConnectionResetError:  in base_events.py")
        return refused and "_create_connection_transport" in where
    return result["program"] == "streams" and where.startswith("ConnectionResetError: [Errno 104]")


def is_of_thread(result):
    """Whether it hangs as threads do in this Python with no loop."""
    from torture.memory import crashes

    waits = [each for each in (crashes.STARTING, crashes.LEAVING) if re.search(each, result["log"])]
    return bool(waits) and not crashes.of_this_python().isdisjoint(waits)


def problems(result):
    """What it leaves behind, without what differs from attempt to attempt."""
    tasks = [problem for problem in result["problems"] if problem.startswith("a task is left")]
    excused = tasks if is_of_task(tasks, result) else []
    if result["leaked"] or excused:
        # A task that is lost does not close its connection, either.
        excused += [problem for problem in result["problems"] if problem.startswith("a descriptor is left")]
    details = re.compile(r" name='.*?'| (running )?at /\S+:\d+| at 0x\w+| (wait_for|cb)=.*|\[\d+\]")
    return [details.sub("", problem) for problem in result["problems"] if problem not in excused]


def is_of_task(tasks, result):
    """Whether tasks wait for one that asyncio's C code has lost, or for gather() or shield(): as they were
    woken, there was no memory, and they are not woken again. The event loop is told, and tells, if it has
    memory for that.
    """
    waiting = r"wait_for=<(?!_Gathering|Future pending cb=\[shield\.)\w+ (pending|cancelling)"
    is_lost = [not re.search(waiting, task) for task in tasks]
    return any(is_lost) and (result["told"] or result["kind"] == "on")


def symptoms(result):
    """What is wrong: not where, which depends on the loop's code."""
    if result["ended"] == "hang":
        functions = re.findall(r'File ".*?", line \d+ in (\w+)', result["log"])
        return {("hangs", *[each for each in functions if each not in WAITING][:1])}
    what = fault(result)
    left = collections.Counter(problems(result)) if result["ended"] == 0 else {}
    return {*left.items()} | ({what} if what and what != LEFT else set())


def not_of_asyncio(mode, kind, program, found):
    """Those of what was found in a program that asyncio's own loop does not do in the same one."""
    missing = set().union(*map(symptoms, found))
    known = set()
    arguments = ("asyncio", program, mode, kind, f"{program}~{found[0]['part']}:{COMPARED}")
    with subprocess.Popen(
        command(*arguments), cwd=TESTS, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    ) as theirs:
        for line in theirs.stdout:
            result = {**json.loads(line), "kind": kind}
            known |= symptoms(result)
            if missing <= known:
                theirs.terminate()
                break
    return [result for result in found if not symptoms(result) <= known]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["once", "on"])
@pytest.mark.parametrize("mode", ["cold", "warm"])
def test_without_memory(mode, kind, record_property):
    # What has been imported can't be again; and nothing else is cold after it.
    names = [name for name in programs.PROGRAMS if mode == "cold" or name != "import"]
    check(names, mode, kind, ALLOCATIONS, record_property)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["once", "on"])
def test_each_allocation(kind, record_property):
    """Of programs in which a few did harm: a callback's exception that there was no memory to report became a
    panic, and the thread that watches ended the process where there was none for its thread state.
    """
    check(["accounting", "failing_callback", "recording", "watching"], "warm", kind, EACH, record_property)


def check(names, mode, kind, allocations, record_property):
    results = attempts("hotloop", ",".join(names), mode, kind, allocations)
    assert {result["program"] for result in results} == set(names)
    record_property("allocations failed", len(results))
    found = collections.defaultdict(list)
    for result in results:
        result["kind"] = kind
        if fault(result):
            found[result["program"]].append(result)
    faults = [result for name in programs.HOTLOOP_ONLY for result in found.pop(name, ())]
    for name, wrong in found.items():
        faults += [result for result in wrong if fault(result) in CERTAIN]
        found[name] = [result for result in wrong if fault(result) not in CERTAIN]
    found = {name: wrong for name, wrong in found.items() if wrong}
    with concurrent.futures.ThreadPoolExecutor(COMPARISONS) as pool:
        compared = pool.map(functools.partial(not_of_asyncio, mode, kind), found, found.values())
        faults += itertools.chain.from_iterable(compared)
    told = []
    for result in faults:
        what = fault(result)
        if what == "a crash":
            if shutil.which("gdb") is None:
                continue
            what = crash(",".join(names), mode, kind, result)
        if what is not None:
            told.append(
                f"torture.memory.runner hotloop {','.join(names)} {mode} {kind} "
                f"{result['program']}={result['number']}: {what}\n"
                + "\n".join(f"  {key}: {value}" for key, value in result.items() if value)
            )
    assert not told, "\n\n".join(told)
    if any(fault(result) == "a crash" for result in faults) and shutil.which("gdb") is None:
        pytest.skip("without gdb it can't be told whose a crash is")
