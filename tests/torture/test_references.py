"""Our own tests leave no reference and no block of memory behind: each runs many times, see torture.leaks.

It takes a Python that counts all references, a debug build: see debug_python.sh. A test that leaks as
much on asyncio's own loop is no fault of ours.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from torture.effort import FULL

pytestmark = [
    pytest.mark.hotloop_only,
    pytest.mark.skipif(not hasattr(sys, "gettotalrefcount"), reason="needs a debug build of Python"),
]
TESTS = pathlib.Path(__file__).parent.parent
# What measures by itself, over many rounds, or starts other processes that do the work.
LEFT_OUT = {
    *(
        "test_benchmarks",
        "test_benchmark_rows",
        "test_differential",
        "test_growth",
        "test_leaks",
        "test_leaks_of_connections",
    ),
    *("test_command", "test_native_memory", "test_stats", "test_top"),
    # The SDK of OpenTelemetry keeps something of each provider.
    "test_opentelemetry",
}
USUAL = ["test_scheduling", "test_timers", "test_tcp", "test_datagrams", "test_sockets"]
FILES = (
    [path.stem for path in sorted(TESTS.glob("test_*.py")) if path.stem not in LEFT_OUT] if FULL else USUAL
)


def leaks(loop_name, tests, tmp_path):
    """What leaks, by test, of these tests on a loop."""
    found = tmp_path / loop_name
    result = subprocess.run(
        [
            *(sys.executable, "-X", "faulthandler", "-m", "pytest", "-q", "-p", "torture.leaks"),
            *("-p", "no:cacheprovider", "-p", "no:rerunfailures", "--timeout", "500"),
            # The interpreter remembers each warning with its text, which has numbers in it.
            *("-W", "ignore", *tests),
        ],
        cwd=TESTS,
        env={
            **os.environ,
            "PYTHONPATH": str(TESTS),
            "HOTLOOP_TESTS_LOOPS": loop_name,
            "HOTLOOP_LEAKS_FOUND": str(found),
        },
        capture_output=True,
        text=True,
        timeout=1700,
    )
    print(result.stdout)
    assert result.returncode in (0, 1), (result.stdout, result.stderr)
    return {leak.pop("test"): leak for leak in map(json.loads, found.read_text().splitlines())}


def lasting(leak):
    """The least that each round left, by measure."""
    return {name: min(deltas) for name, deltas in leak.items()}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FILES)
def test_no_reference_is_left(name, tmp_path):
    ours = leaks("hotloop", [f"{name}.py"], tmp_path)
    # The same tests, named by the loop that they run on.
    same = {test: test.replace("hotloop", "asyncio") for test in ours}
    shared = [theirs for test, theirs in same.items() if theirs != test]
    theirs = leaks("asyncio", shared, tmp_path) if shared else {}
    wrong = {
        test: leak
        for test, leak in ours.items()
        if any(
            least > lasting(theirs.get(same[test], {})).get(measure, 0)
            for measure, least in lasting(leak).items()
        )
    }
    assert not wrong, "\n".join(f"{test}: {leak}" for test, leak in wrong.items())
