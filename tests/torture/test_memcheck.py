"""valgrind's memcheck finds nothing wrong in the extension while every operation of an event loop runs.

Nothing that is read, written or freed by it, or on its behalf, is not there or not initialised, and it
loses no memory. What the interpreter does by itself is not counted: an error is the extension's if it has
a part in where it happened, in where the block was allocated or freed, or in where the value came from. A
build with MATURIN_STRIP=false has the names of its functions in the reports.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import helpers
import pytest

from torture import other_operations  # noqa: F401 (its operations are in OPERATIONS then)
from torture.effort import FULL, effort, seeded
from torture.operations import OPERATIONS

pytestmark = [
    pytest.mark.hotloop_only,
    pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed"),
    pytest.mark.skipif(helpers.FREE_THREADED, reason="this Python has its own allocator only"),
]
TESTS = pathlib.Path(__file__).parent.parent
# In `make test` some operations, in `make torture` all of them, many times: memory is used again.
NAMES = list(OPERATIONS) if FULL else ["growing_messages", seeded("memcheck").choice(sorted(OPERATIONS))]
ROUNDS = int(effort(1, 12))
VALGRIND = [
    *("valgrind", "--quiet", "--xml=yes", "--error-limit=no", "--num-callers=24"),
    # What an interpreter that ends leaves behind can still be reached, or perhaps.
    "--show-leak-kinds=definite",
    # Where a value came from takes half the time.
    f"--track-origins={'yes' if FULL else 'no'}",
]
# Where the interpreter begins to run Python code. What called that has no part in what the code does.
EVALUATES = ("_PyEval_EvalFrame", "_PyEval_Vector", "_PyFunction_Vectorcall", "_TAIL_CALL", "gen_send_ex")


def is_ours(stack):
    """Whether the extension called what is innermost, and no Python code in between."""
    for frame in stack.iter("frame"):
        if "hotloop/_core" in frame.findtext("obj", ""):
            return True
        # Functions without a name are the interpreter's, if it has no symbols.
        if frame.findtext("fn", EVALUATES[0]).startswith(EVALUATES):
            return False
    return False


def is_interned(error):
    """Whether what is lost is a string: a name that the interpreter keeps for good and loses at its end."""
    functions = [frame.findtext("fn") for frame in error.iter("frame")]
    return error.findtext("kind").startswith("Leak_") and "PyUnicode_New" in functions[:3]


def described(error):
    def line(frame):
        place = frame.findtext("file")
        where = f"{place}:{frame.findtext('line')}" if place else os.path.basename(frame.findtext("obj", "?"))
        return f"    {frame.findtext('fn', '?')} ({where})"

    parts = []
    for part in error:
        if part.tag in ("what", "auxwhat"):
            parts.append(part.text)
        elif part.tag in ("xwhat", "xauxwhat"):
            parts.append(part.findtext("text"))
        elif part.tag == "stack":
            parts += [line(frame) for frame in part.iter("frame")][:12]
    return "\n".join(parts)


@pytest.fixture
def environment(certificates):
    return {
        **os.environ,
        **certificates,
        "PYTHONPATH": str(TESTS),
        # Each object is a block of its own, which memcheck knows.
        "PYTHONMALLOC": "malloc",
        "TORTURE_LIMIT": "60",
    }


@pytest.mark.timeout(900)
def test_memcheck_finds_nothing(environment, tmp_path, record_property):
    found = tmp_path / "found.xml"
    program = [sys.executable, "-m", "torture.operate", str(ROUNDS), *NAMES]
    result = subprocess.run(
        [*VALGRIND, f"--xml-file={found}", *program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert result.returncode == 0, (result.stdout, result.stderr)
    errors = list(ElementTree.parse(found).iter("error"))
    ours = [error for error in errors if any(map(is_ours, error.iter("stack")))]
    ours = [error for error in ours if not is_interned(error)]
    record_property("errors of the interpreter's own", len(errors) - len(ours))
    assert not ours, "\n\n".join(map(described, ours))
