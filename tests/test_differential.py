"""Random programs see the same on asyncio's own loop and on hotloop. What the programs are: `differential/`.

HOTLOOP_EXAMPLES multiplies the number of programs, for long runs, and --hypothesis-seed repeats one:

    HOTLOOP_EXAMPLES=50 python -m pytest tests/test_differential.py -k "transports and hotloop"
"""

import os

import helpers
import pytest
from differential import running, scheduling, sockets, tasks, transports
from hypothesis import HealthCheck, given, settings

SCALE = float(os.environ.get("HOTLOOP_EXAMPLES", "1"))
pytestmark = [
    # Making a failing program small takes its time.
    pytest.mark.timeout(400 + 60 * SCALE),
    # A program may leave a coroutine that refuses to end.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.mark.parametrize("other", ["hotloop", "asyncio"])
@pytest.mark.parametrize(
    ("topic", "number"),
    [(scheduling, 300), (tasks, 300), (transports, 800), (sockets, 800)],
    ids=["scheduling", "tasks", "transports", "sockets"],
)
def test_programs_see_the_same(topic, number, other):
    """On hotloop as on asyncio; and on asyncio as on asyncio, or the programs are not determined."""
    if not {"asyncio", other} <= set(helpers.FACTORIES):
        pytest.skip("both loops are needed")

    @given(program=topic.programs)
    @settings(
        max_examples=max(round(number * SCALE) // (1 if other == "hotloop" else 4), 1),
        deadline=None,
        # The same programs each time, unless somebody asks for more of them.
        derandomize="HOTLOOP_EXAMPLES" not in os.environ,
        database=None,
        print_blob=True,
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    def see_the_same(program):
        running.compare(topic.machine, program, helpers.FACTORIES["asyncio"], helpers.FACTORIES[other])

    see_the_same()
