"""Runs one of CPython's asyncio test modules, in the process that run.py started for it.

What to do stands in the JSON file that the environment names: run.py's `Module.attempt` writes it. What
happens goes to another file, a JSON object a line, as it happens: a test that hangs or crashes leaves behind
what went before it.
"""

import asyncio
import collections
import faulthandler
import fnmatch
import json
import os
import signal
import sys
import unittest
import warnings
from asyncio.selector_events import BaseSelectorEventLoop
from pathlib import Path

PACKAGE = "test.test_asyncio."
ORDER = json.loads(Path(os.environ["HOTLOOP_CPYTHON_ORDER"]).read_text())

# At the top level, because the processes of a pool that a test starts import this file, too, and make loops.
if ORDER["loop"] == "hotloop":
    import hotloop
    from replace import replace_loops

    replace_loops()


def count_loops():
    """Count the loops made from now on: hotloop's, the standard library's, those of a test's own class."""
    made = collections.Counter()

    def kind_of(loop):
        if ORDER["loop"] == "hotloop" and isinstance(loop, hotloop.Loop):
            return "hotloop"
        return "asyncio" if isinstance(loop, BaseSelectorEventLoop) else "own"

    def count(loop_class, kinds):
        init = loop_class.__init__

        def counting_init(loop, *args, **kwargs):
            kind = kind_of(loop)
            if kind in kinds:
                made[kind] += 1
            init(loop, *args, **kwargs)

        loop_class.__init__ = counting_init

    count(asyncio.BaseEventLoop, {"asyncio", "own"})
    if ORDER["loop"] == "hotloop":
        # By itself, since whether hotloop's loop calls BaseEventLoop.__init__ is its own affair.
        count(hotloop.Loop, {"hotloop"})
    return made


class Reporter(unittest.TestResult):
    """Writes what becomes of each test to the report, and for a failed one what was printed meanwhile."""

    def __init__(self, report):
        super().__init__()
        self.report = report
        self.pid = os.getpid()
        self.output_start = 0

    def tell(self, event, **details):
        # A process that a test forked would repeat what this one tells.
        if os.getpid() == self.pid:
            self.report.write(json.dumps({"event": event, **details}) + "\n")
            self.report.flush()

    def startTest(self, test):
        super().startTest(test)
        flush_output()
        self.output_start = os.path.getsize(ORDER["output"])
        limit_time()
        self.tell("start", test=short_id(test), output_start=self.output_start)

    def addSuccess(self, test):
        super().addSuccess(test)
        self.tell("passed", test=short_id(test))

    def addExpectedFailure(self, test, error):
        super().addExpectedFailure(test, error)
        self.tell("passed", test=short_id(test))

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.tell("skipped", test=short_id(test), text=reason)

    def addError(self, test, error):
        super().addError(test, error)
        self.tell_failure(test, self.errors[-1][1])

    def addFailure(self, test, error):
        super().addFailure(test, error)
        self.tell_failure(test, self.failures[-1][1])

    def addSubTest(self, test, subtest, error):
        super().addSubTest(test, subtest, error)
        if error is not None:
            self.tell_failure(test, f"{subtest}\n{self._exc_info_to_string(error, test)}")

    def addUnexpectedSuccess(self, test):
        super().addUnexpectedSuccess(test)
        self.tell_failure(test, "was expected to fail, and passed\n")

    def tell_failure(self, test, text):
        flush_output()
        with open(ORDER["output"], errors="backslashreplace") as output:
            output.seek(self.output_start)
            printed = output.read()
        if printed.strip():
            text += f"printed meanwhile:\n{printed}"
        self.tell("failed", test=short_id(test), text=text)


def flush_output():
    sys.stdout.flush()
    sys.stderr.flush()


def limit_time():
    """Say where the process is and end it, unless the next test starts in time."""
    faulthandler.dump_traceback_later(ORDER["timeout"], exit=True)


def short_id(test):
    return test.id().replace(PACKAGE, "")


def tests_in(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from tests_in(test)
        else:
            yield test


def main():
    faulthandler.enable()
    # Whoever started this in the background may have it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    limit_time()
    made = count_loops()
    with open(ORDER["report"], "a") as report:
        reporter = Reporter(report)
        suite = unittest.TestSuite()
        unmatched = set(ORDER["left_out"])
        for test in tests_in(unittest.defaultTestLoader.loadTestsFromName(PACKAGE + ORDER["tests"])):
            name = short_id(test)
            matching = [pattern for pattern in ORDER["left_out"] if fnmatch.fnmatchcase(name, pattern)]
            unmatched.difference_update(matching)
            if matching:
                reporter.tell("left out", test=name, text=ORDER["left_out"][matching[0]])
            elif name not in ORDER["done"]:
                suite.addTest(test)
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            suite.run(reporter)
        reporter.tell("end", loops=made, unmatched=sorted(unmatched))


if __name__ == "__main__":
    main()
