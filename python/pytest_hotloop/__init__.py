"""The plugin that pytest loads where hotloop is installed: the fixture `hotloop_leaks`, see hotloop.pytest.

It is a package of its own because `import hotloop` loads the extension. Nothing of hotloop is imported here
before a test requests the fixture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

    from hotloop.pytest import Leaks

_leaks: pytest.StashKey[Leaks] = pytest.StashKey()


@pytest.fixture
def hotloop_leaks(request: pytest.FixtureRequest) -> None:
    """Fail the test if it leaves tasks, transports, threads or file descriptors behind."""
    from hotloop.pytest import Leaks

    leaks = Leaks()
    leaks.start()
    request.node.stash[_leaks] = leaks


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Note that a test has failed, or was skipped: it is not judged."""
    leaks = item.stash.get(_leaks, None)
    if leaks is not None and call.when != "teardown" and call.excinfo is not None:
        leaks.is_judged = False


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Judge a test after its other fixtures have been torn down."""
    leaks = item.stash.get(_leaks, None)
    if leaks is None:
        return (yield)
    del item.stash[_leaks]
    try:
        yield
    except BaseException:
        leaks.stop()
        raise
    if report := leaks.end():
        pytest.fail(report, pytrace=False)
