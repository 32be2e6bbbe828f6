"""Rounds of a benchmark that something else disturbs. Nothing is measured here."""

import os

import pytest

from benchmarks import measuring, quiet, report, results
from benchmarks.generator import Outcome
from benchmarks.quiet import Watch
from benchmarks.results import Measured, Run
from benchmarks.rows import ROWS
from benchmarks.steps import Plan

FAST, SLOW = 0.001, 0.002


class Machine:
    """A machine that is slow in some seconds, on which time passes by sleeping and measuring only."""

    def __init__(self, *slow_seconds):
        self.seconds = 0.0
        self.slow = slow_seconds
        self.taken = []
        self.watch = Watch(self.probe, lambda: self.seconds, self.sleep)

    def probe(self):
        return SLOW if int(self.seconds) in self.slow else FAST

    def sleep(self, seconds):
        self.seconds += seconds

    def measure(self):
        """Takes 1 s."""
        self.taken.append(self.seconds)
        self.seconds += 1
        return len(self.taken)


def test_a_quiet_machine_measures_once():
    machine = Machine()
    assert machine.watch.measure(machine.measure) == (1, False)
    assert machine.watch.measure(machine.measure) == (2, False)
    assert machine.taken == [0, 1]


def test_a_measurement_waits_for_a_quiet_moment():
    machine = Machine(10)
    for _ in range(10):
        machine.watch.measure(machine.measure)
    assert machine.watch.measure(machine.measure) == (12, False)
    # The tenth ended when the processors were slow.
    assert machine.taken[:9] == list(range(9))
    assert machine.taken[10] == pytest.approx(11, abs=0.1)


def test_a_measurement_that_was_disturbed_is_repeated():
    machine = Machine(5)
    for _ in range(4):
        machine.watch.measure(machine.measure)
    assert machine.watch.measure(machine.measure) == (6, False)
    assert len(machine.taken) == 6


def test_a_measurement_is_not_repeated_for_ever():
    """On a machine that is quiet before each measurement, and slow after it."""
    machine = Machine()
    for _ in range(100):
        machine.watch.measure(machine.measure)
    probes = iter([FAST, SLOW] * quiet.TRIES)
    machine.watch.probe = lambda: next(probes)
    assert machine.watch.measure(machine.measure) == (100 + quiet.TRIES, True)


def test_waiting_and_repeating_take_half_as_long_as_the_rest():
    """On a machine that gets slow and stays so."""
    machine = Machine(*range(2, 10_000))
    results = [machine.watch.measure(machine.measure) for _ in range(100)]
    assert [slowed for _, slowed in results[2:]] == [True] * 98
    assert 100 <= machine.seconds <= 152


def test_the_first_measurement_does_not_wait():
    """It is not known yet how fast the processors are."""
    machine = Machine(*range(10_000))
    assert machine.watch.measure(machine.measure) == (1, False)


def test_what_fails_is_not_repeated():
    machine = Machine(*range(1, 10_000))

    def fail():
        machine.measure()
        raise RuntimeError("failed")

    machine.watch.measure(machine.measure)
    with pytest.raises(RuntimeError, match="failed"):
        machine.watch.measure(fail)
    assert len(machine.taken) <= 2 + quiet.TRIES


class FakeRow:
    def __init__(self, machine):
        self.machine = machine

    name, title, group, has_limit, is_counted = "sleep_zero", "Sleep", "scheduling", False, False

    def round_takes(self, seconds):
        return seconds

    def compares(self, loop):
        return True

    def rate(self, loop, seconds):
        return Outcome(1, float(self.machine.measure()), 1.0)


def test_the_page_says_how_many_rounds_were_disturbed(tmp_path):
    machine = Machine(*range(8, 10_000))
    plan = Plan([FakeRow(machine)], ["hotloop", "asyncio"], 5, 1.0, [], watch=machine.watch)
    found = Measured([Run({}, ["sleep_zero"], plan.loops, ["rates"])], {})
    measuring.measure(plan, found, lambda: None)
    watched = found.runs[0].watched
    assert watched["timed"] == 15
    assert 7 <= watched["slowed"] <= 8
    share = watched["slowed"] / 15
    page = report.page(found, [])
    assert f"Something else slowed the processors during {share:.1%} of the rounds" in page
    assert report.DISTURBED in page
    found.write(tmp_path / "run.json")
    assert results.read(tmp_path / "run.json").runs[0].watched == watched


def test_a_repeated_round_has_the_last_figure():
    machine = Machine(5)
    plan = Plan([FakeRow(machine)], ["asyncio"], 7, 1.0, [], watch=machine.watch)
    found = Measured([], {})
    measuring.measure(plan, found, lambda: None)
    rates = [outcome.rate for outcome in found.of("sleep_zero", "asyncio").outcomes]
    assert rates == [1, 2, 3, 4, 6, 7, 8]


def test_a_page_without_such_a_run_does_not_say_it():
    row = ROWS[0].name
    found = Measured([Run({}, [row], ["hotloop"], ["rates"])], {})
    assert "slow" not in report.summary(found)
    assert report.DISTURBED not in report.page(found, [])


def test_the_probe_leaves_the_process_where_it_was():
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    assert 0 < quiet.probe() < 1
    if before is not None:
        assert os.sched_getaffinity(0) == before
