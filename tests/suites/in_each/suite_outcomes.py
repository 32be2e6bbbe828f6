"""A plugin for pytest that writes down what becomes of each test, one line of JSON at a time."""

import json
import os


def write(test, outcome):
    with open(os.environ["HOTLOOP_SUITES_OUTCOMES"], "a") as file:
        print(json.dumps([test, outcome]), file=file)


def pytest_runtest_logstart(nodeid):
    write(nodeid, "unfinished")


def pytest_runtest_logreport(report):
    if report.failed:
        write(report.nodeid, "failed")
    elif report.skipped:
        write(report.nodeid, "expected to fail" if hasattr(report, "wasxfail") else "skipped")
    elif report.when == "call":
        write(report.nodeid, "passed")
    elif report.when == "teardown":
        write(report.nodeid, "finished")


def pytest_collectreport(report):
    if report.failed:
        write(report.nodeid, "failed")
