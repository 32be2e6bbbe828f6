"""Random programs see the same on asyncio's own loop and on hotloop. What the programs are: `differential/`.

HOTLOOP_EXAMPLES multiplies the number of programs, for long runs by hand, and --hypothesis-seed repeats one:

    HOTLOOP_EXAMPLES=50 python -m pytest tests/test_differential.py -k "transports and hotloop"
"""

import os

import helpers
import pytest
from differential import running, scheduling, sockets, tasks, transports
from hypothesis import HealthCheck, given, settings

SCALE = float(os.environ.get("HOTLOOP_EXAMPLES", "1"))
# Making a failing program small takes its time.
pytestmark = [
    pytest.mark.timeout(400 + 60 * SCALE),
    # A program may leave a coroutine that refuses to end.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def examples(number):
    return settings(
        max_examples=max(round(number * SCALE), 1),
        deadline=None,
        database=None,
        print_blob=True,
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@pytest.fixture(scope="module", params=["hotloop", "asyncio"])
def other(request):
    """What asyncio is compared with: hotloop, and, as a check of the programs, asyncio itself."""
    if request.param not in helpers.FACTORIES or "asyncio" not in helpers.FACTORIES:
        pytest.skip("both loops are needed")
    return request.param


def compare(machine, program, other):
    running.compare(machine, program, helpers.FACTORIES["asyncio"], helpers.FACTORIES[other])


@given(program=scheduling.programs)
@examples(1000)
def test_scheduling(other, program):
    compare(scheduling.machine, program, other)


@given(program=tasks.programs)
@examples(1000)
def test_tasks(other, program):
    compare(tasks.machine, program, other)


@given(program=transports.programs)
@examples(1000)
def test_transports(other, program):
    compare(transports.machine, program, other)


@given(program=sockets.programs)
@examples(1000)
def test_sockets_and_streams(other, program):
    compare(sockets.machine, program, other)
