"""The examples of asyncio's documentation do the same on both loops. How they are run: `documentation/`."""

import concurrent.futures

import helpers
import pytest
from documentation import pages, programs, running

FOLDER = pages.folder()
EXAMPLES = pages.examples(FOLDER) if FOLDER else {}
PROGRAMS = {
    name: program for name, text in EXAMPLES.items() if (program := programs.program(name, text)) is not None
}
AT_A_TIME = 16
"""So many examples, since most of them sleep."""


@pytest.fixture(scope="module")
def outcomes(request):
    """How the examples that were chosen end, on both loops: `outcomes[name, loop_name].result()`."""
    chosen = [
        item.callspec.params["name"]
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    ]
    with concurrent.futures.ThreadPoolExecutor(AT_A_TIME) as pool:
        yield {
            (name, loop_name): pool.submit(running.run, PROGRAMS[name], name, EXAMPLES, loop_name)
            for name in chosen
            if programs.may_run(EXAMPLES[name])
            for loop_name in running.COMMANDS
        }
        pool.shutdown(cancel_futures=True)


@pytest.mark.skipif(not {"asyncio", "hotloop"} <= set(helpers.FACTORIES), reason="both loops are needed")
@pytest.mark.skipif(
    FOLDER is None, reason="there is no documentation of Python: tests/documentation/install.sh"
)
@pytest.mark.parametrize("name", PROGRAMS)
def test_an_example_does_the_same(name, outcomes):
    if not programs.may_run(EXAMPLES[name]):
        pytest.skip("it is for another Python or machine")
    expected, found = (outcomes[name, loop_name].result() for loop_name in ("asyncio", "hotloop"))
    assert (expected.status != 0) == PROGRAMS[name].fails, expected
    assert found == expected


def test_no_example_is_forgotten():
    """Of those that there were when `programs.py` was written: a new one fails nobody's tests."""
    forgotten = [name for name in EXAMPLES if name not in PROGRAMS and name not in programs.LEFT_OUT]
    if forgotten:
        pytest.xfail(f"not in the documentation of 3.11, 3.14 and 3.15: {forgotten}")
