"""A plugin of pytest that runs each test several times, and fails it if each time leaves references behind.

As CPython's `regrtest -R` does: what counts is sys.gettotalrefcount(), which only a debug build of Python
has, and sys.getallocatedblocks(), which all have. Run it as `python -m pytest -p torture.leaks` with the
tests' folder in PYTHONPATH. A test leaks if each of some rounds left at least one more than the one
before; what fills a cache does so now and then. It is then run more often, before it fails.

HOTLOOP_LEAKS_FOUND names a file for the tests that leak, a line of JSON for each.
"""

from __future__ import annotations

import gc
import json
import os
import pathlib
import sys
import tempfile
import threading
import time

import pytest
from _pytest.runner import runtestprotocol

# Rounds before the first that counts, rounds that count, and the same for a test that seems to leak.
ROUNDS = ((2, 3), (5, 8))
# A test that takes more seconds runs once, and is not measured.
LIMIT = float(os.environ.get("HOTLOOP_LEAKS_LIMIT", "0.5"))

_clear_caches = getattr(sys, "_clear_internal_caches", sys._clear_type_cache)
MEASURES = {"references": getattr(sys, "gettotalrefcount", None), "blocks": sys.getallocatedblocks}


def measure():
    """What the process has now, by measure."""
    deadline = time.monotonic() + 0.1
    while threading.active_count() > 1 and time.monotonic() < deadline:
        time.sleep(0.001)  # a thread that was asked to end has references until it does
    for _ in range(3):
        gc.collect()
    _clear_caches()
    return {name: function() for name, function in MEASURES.items() if function is not None}


class Plugin:
    def __init__(self):
        self.measured = 0
        self.too_long = 0
        self.leaks = []

    @pytest.fixture
    def tmp_path(self):
        """As pytest's, which keeps something of each folder."""
        with tempfile.TemporaryDirectory() as path:
            yield pathlib.Path(path)

    def pytest_runtest_protocol(self, item, nextitem):
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        started = time.monotonic()
        reports = self.run(item, item.parent)
        is_sound = all(report.passed for report in reports) and not hasattr(reports[1], "wasxfail")
        if not is_sound:
            leak = None
        elif time.monotonic() - started > LIMIT:
            self.too_long += 1
            leak = None
        else:
            self.measured += 1
            leak = self.leak_of(item)
        # Fixtures of the module and of the session that the next test does not want end here.
        item.session._setupstate.teardown_exact(nextitem)
        if leak is not None:
            self.leaks.append({"test": item.nodeid, **leak})
            reports[1].outcome = "failed"
            reports[1].longrepr = f"left behind in each round: {leak}"
        for report in reports:
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def run(self, item, following):
        reports = runtestprotocol(item, log=False, nextitem=following)
        item._report_sections.clear()
        item.user_properties.clear()
        return reports

    def leak_of(self, item):
        """What each round leaves, by measure; None if that is nothing."""
        leak = None
        for before, rounds in ROUNDS:
            leak = self.growth(item, before, rounds)
            if not leak:
                return None
        return leak

    def growth(self, item, before, rounds):
        deltas = {name: [] for name, function in MEASURES.items() if function is not None}
        last = None
        for number in range(before + rounds):
            self.run(item, item.parent)
            now = measure()
            if number >= before:
                for name, values in deltas.items():
                    values.append(now[name] - last[name])
            last = now
        return {name: values for name, values in deltas.items() if all(value >= 1 for value in values)}

    def pytest_terminal_summary(self, terminalreporter):
        terminalreporter.line(
            f"{self.measured} tests measured ({', '.join(k for k, v in MEASURES.items() if v)}), "
            f"{self.too_long} take too long, {len(self.leaks)} leak"
        )

    def pytest_sessionfinish(self):
        if path := os.environ.get("HOTLOOP_LEAKS_FOUND"):
            with open(path, "w") as file:
                for leak in self.leaks:
                    file.write(json.dumps(leak) + "\n")


def pytest_configure(config):
    config.pluginmanager.register(Plugin(), "hotloop-leaks")
