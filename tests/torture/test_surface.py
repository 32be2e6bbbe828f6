"""Calls of anything in the extension, with whatever object, raise exceptions at the most."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from torture import effort

pytestmark = pytest.mark.hotloop_only
TESTS = pathlib.Path(__file__).parent.parent
# Programs to run, of so many lines each, in batches.
PROGRAMS = int(effort.effort(320, 12_000))
LENGTH = 30
BATCHES = int(effort.effort(2, 24))


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "torture.surface.runner", *map(str, arguments)],
        cwd=TESTS,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        **options,
    )


@pytest.mark.timeout(900)
@pytest.mark.parametrize("batch", range(BATCHES))
def test_what_is_called_with_anything(batch):
    count = PROGRAMS // BATCHES
    result = run(effort.SEED, batch * count, count, LENGTH, timeout=880)
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert found
    assert found[-1] == {"done": count}, result
    failures = [f"program {one['number']}: {one['failure']}\n\n{one['program']}\n" for one in found[:-1]]
    assert not failures, "\n".join(failures)


NOTICED = {
    "crash": ("os.kill(os.getpid(), 11)", "status -11"),
    "in a callback": ("loop.call_soon(coroutine(int).throw, SystemError()); run(loop)", "SystemError"),
    "hang": ("signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM]); threading.Event().wait()", "hang"),
    "unraisable": ("special('__del__', lambda: coroutine(int).throw(SystemError()), None)", "SystemError"),
}


@pytest.mark.parametrize("what", NOTICED)
def test_that_it_is_noticed(what):
    """The bench sees what it is there to see."""
    line, shown = NOTICED[what]
    result = run("-", 0, 3, input=line, timeout=60)
    assert shown in result.stderr
    assert result.returncode != 0
