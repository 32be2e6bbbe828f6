"""Runs tests of Twisted's on its reactor for asyncio, and writes down what becomes of each.

python -m trial_outcomes TESTS ...      where @FILE stands for the names in a file
"""

import sys
from pathlib import Path

from twisted.internet import asyncioreactor

asyncioreactor.install()

# Before anything that imports another reactor.
from suite_outcomes import write  # noqa: E402
from twisted.trial import reporter, runner  # noqa: E402


class Outcomes(reporter.VerboseTextReporter):
    def startTest(self, test):
        super().startTest(test)
        write(test.id(), "unfinished")

    def addSuccess(self, test):
        super().addSuccess(test)
        write(test.id(), "passed")

    def addError(self, test, *details):
        super().addError(test, *details)
        write(test.id(), "failed")

    def addFailure(self, test, *details):
        super().addFailure(test, *details)
        write(test.id(), "failed")

    def addSkip(self, test, *details):
        super().addSkip(test, *details)
        write(test.id(), "skipped")

    def addExpectedFailure(self, test, *details):
        super().addExpectedFailure(test, *details)
        write(test.id(), "expected to fail")

    def addUnexpectedSuccess(self, test, *details):
        super().addUnexpectedSuccess(test, *details)
        write(test.id(), "failed")


def main(arguments):
    names = []
    for argument in arguments:
        names += Path(argument[1:]).read_text().split() if argument.startswith("@") else [argument]
    tests = runner.TestLoader().loadByNames(names, recurse=True)
    result = runner.TrialRunner(Outcomes, workingDirectory="trial").run(tests)
    return not result.wasSuccessful()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
