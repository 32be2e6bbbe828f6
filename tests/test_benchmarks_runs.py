"""The steps of a run of the benchmarks: their order, runs that are continued, and limits of time. Nothing is
measured here."""

import dataclasses
import functools
import random

import pytest

from benchmarks import counters, measuring, quiet, report, results, resume, run, steps
from benchmarks.generator import Outcome, Paced
from benchmarks.growth_result import Growth
from benchmarks.loops import CONTROL
from benchmarks.results import Measured, Result, Run
from benchmarks.row import Row
from benchmarks.rows import ROWS, rank
from benchmarks.steps import Estimates, Plan, Step

ROW = {row.name: row for row in ROWS}
GROWTH = Growth("memory", "An idle connection", "", "bytes", (1.0,), {"hotloop": (5.0,)}, {}, "")


def measured(of_loops, row="echo_64"):
    made = Run({"Date": "2026-11-21"}, [row], list(of_loops), ["rates"])
    return Measured([made], {(row, loop): of for loop, of in of_loops.items()})


def rates(*figures):
    return Result([Outcome(1000, rate, 500.0) for rate in figures])


@dataclasses.dataclass(frozen=True)
class FakeRow(Row):
    group = "scheduling"
    measured: list = dataclasses.field(default_factory=list)

    def round_takes(self, seconds):
        return seconds

    def rate(self, loop, seconds):
        self.measured.append(loop)
        return Outcome(1, 1.0, 1.0)

    def count(self, loop, counter):
        raise AssertionError("nothing counts")


def plan_of(*rows, loops=("asyncio", "hotloop", "uvloop"), rounds=2, **options):
    return Plan(list(rows), list(loops), rounds, 60.0, [], **options)


def test_hotloop_is_measured_twice_in_each_round():
    row = FakeRow("fake", "Fake")
    found = Measured([], {})
    measuring.measure(plan_of(row), found, lambda: None)
    assert sorted(row.measured) == ["asyncio"] * 2 + ["hotloop"] * 4 + ["uvloop"] * 2
    assert len(found.of("fake", CONTROL).outcomes) == 2
    assert CONTROL not in found.loops


def test_the_order_is_random_and_the_seed_decides_it():
    def order(seed):
        row = FakeRow("fake", "Fake")
        measuring.measure(plan_of(row, rounds=7, seed=seed), Measured([], {}), lambda: None)
        return row.measured

    assert order(1) == order(1)
    assert order(1) != order(2)
    rounds = [tuple(order(1)[start : start + 4]) for start in range(0, 28, 4)]
    assert len(set(rounds)) > 1


def test_an_interrupted_run_goes_on_where_it_was():
    whole = FakeRow("fake", "Fake")
    measuring.measure(plan_of(whole, rounds=3), Measured([], {}), lambda: None)
    row, found = FakeRow("fake", "Fake"), Measured([], {})

    def interrupt():
        if len(found.steps) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measuring.measure(plan_of(row, rounds=3), found, interrupt)
    assert found.steps == ["fake: rates 1", "fake: rates 2"]
    measuring.measure(plan_of(row, rounds=3), found, lambda: None)
    assert row.measured == whole.measured
    assert len(found.of("fake", "asyncio").outcomes) == 3


def test_an_interrupted_run_is_kept_and_read(tmp_path):
    paced = Paced(1000.0, 9.0, 10.0, 50.0, 90.0, 1000, 1.0)
    of_loop = dataclasses.replace(rates(100), keeping=rates(5).outcomes, paced={"25": [paced]})
    kept = measured({"hotloop": of_loop})
    kept.runs[0] = dataclasses.replace(kept.runs[0], key="k", seed=7, no_time_for={"growth": []})
    kept.write(tmp_path / "complete.json")
    assert resume.unfinished(tmp_path / "complete.json", "k") is None
    kept.steps.append("echo_64: rates 1")
    kept.write(tmp_path / "unfinished.json")
    assert resume.unfinished(tmp_path / "unfinished.json", "k") == kept
    assert resume.unfinished(tmp_path / "unfinished.json", "other") is None
    assert resume.unfinished(tmp_path / "none.json", "k") is None
    (tmp_path / "unfinished.json").write_text('{"steps": [')
    assert resume.unfinished(tmp_path / "unfinished.json", "k") is None


def test_runs_that_measure_the_same_have_the_same_key():
    facts = {"Date": "2026-11-21", "Loops": "uvloop 1", "Order": "seed 1"}

    def key(plan=None, facts=facts, growth=True):
        return resume.key(plan or plan_of(ROW["echo_64"]), facts, {"growth": growth})

    same = [
        key(),
        key(facts=facts | {"Date": "2026-11-22", "Order": "seed 2"}),
        key(plan_of(ROW["echo_64"], seed=9)),
    ]
    others = [
        key(facts=facts | {"Loops": "uvloop 2"}),
        key(growth=False),
        key(plan_of(ROW["echo_1"])),
        key(plan_of(ROW["echo_64"], loops=["asyncio"])),
        key(plan_of(ROW["echo_64"], rounds=9)),
        key(plan_of(ROW["echo_64"], minutes=5)),
    ]
    assert len(set(same)) == 1
    assert len({*same, *others}) == 1 + len(others)


@pytest.mark.parametrize("fresh", [False, True])
def test_the_same_command_goes_on_with_an_interrupted_run(monkeypatch, tmp_path, capsys, fresh):
    monkeypatch.setattr(run, "PART", tmp_path / "benchmarks.json")
    monkeypatch.setattr(run, "UNFINISHED", tmp_path / "unfinished.json")
    monkeypatch.setattr(counters, "available", list)
    monkeypatch.setattr(quiet, "Watch", functools.partial(quiet.Watch, lambda: 1.0))
    row = FakeRow("sleep_zero", "Fake")
    monkeypatch.setattr(run, "ROWS", [row])
    monkeypatch.setattr(FakeRow, "rate", lambda row, loop, seconds: interrupt_at(2, row))

    def interrupt_at(call, row):
        row.measured.append("asyncio")
        if len(row.measured) == call:
            raise KeyboardInterrupt
        return Outcome(1, float(len(row.measured)), 1.0)

    arguments = ["--loops", "asyncio", "--rows", "sleep_zero", "--rounds", "3", "--no-split", "--seed", "5"]
    assert run.main(arguments) == 1
    assert "The run was interrupted" in (tmp_path / "benchmarks.md").read_text()
    assert run.main(arguments + ["--fresh"] * fresh) == 0
    found = results.read(tmp_path / "benchmarks.json")
    assert [outcome.rate for outcome in found.of("sleep_zero", "asyncio").outcomes] == (
        [3.0, 4.0, 5.0] if fresh else [1.0, 3.0, 4.0]
    )
    assert found.steps == []
    assert found.runs[0].seed == 5
    assert not run.UNFINISHED.exists()
    assert ("going on" in capsys.readouterr().err) == (not fresh)


def test_growth_that_an_interrupted_run_has_is_not_measured_again(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "UNFINISHED", tmp_path / "unfinished.json")
    found = measured({"hotloop": rates(1)})
    for _ in range(2):
        run.grow(run.GROWTH, found, lambda: [GROWTH])
    assert found.growths == [GROWTH]
    assert results.read(run.UNFINISHED).steps == [run.GROWTH]


# --- Limits of time ---


def some_steps(*names, takes=60.0, part=steps.RATES):
    rows = {name: FakeRow(name, name.title()) for name in names}
    return [Step(rows[name], part, number, takes) for name in names for number in (1, 2)]


def test_what_fits_is_measured_whole_and_in_order():
    planned = some_steps("first") + some_steps("long", takes=500.0) + some_steps("last")
    chosen = steps.fitting(planned, 250.0, Estimates())
    assert [step.name for step in chosen] == [
        "first: rates 1",
        "first: rates 2",
        "last: rates 1",
        "last: rates 2",
    ]
    assert steps.no_time_for(step for step in planned if step not in chosen) == {"rates": ["long"]}


def test_estimates_are_corrected_by_what_was_taken():
    planned = some_steps("first", "second")
    other = some_steps("third", part=steps.COUNTS)
    estimates = Estimates()
    assert estimates.of(planned) == 240
    estimates.add(planned[0], 120.0)
    estimates.add(planned[1], 60.0)
    assert estimates.of(planned[2:]) == 180
    assert estimates.of(other) == 120


def test_latency_is_left_out_with_the_rates_that_it_depends_on():
    planned = [*some_steps("echo_64"), *some_steps("echo_64", part=steps.LATENCY)]
    assert steps.without_rates(planned[2:], planned) == []
    assert steps.without_rates(planned, planned) == planned
    assert steps.without_rates(planned[2:], planned[2:]) == planned[2:]


def test_with_a_limit_of_time_the_rows_that_matter_most_come_first():
    assert [rank(name) for name in ("echo_64", "http_uvicorn", "http_bare")] == [0, 1, 2]
    assert len({rank(row.name) for row in ROWS}) == len(ROWS)
    rows = list(ROWS)
    random.Random(1).shuffle(rows)
    limited = steps.steps(plan_of(*rows, minutes=10))
    names = list(dict.fromkeys(step.row.name for step in limited))
    assert names[:3] == ["echo_64", "http_uvicorn", "http_bare"]
    parts = [step.part for step in limited]
    assert parts == sorted(parts, key=steps.PARTS.index)
    unlimited = steps.steps(plan_of(*rows))
    assert list(dict.fromkeys(step.row.name for step in unlimited)) == [row.name for row in rows]


class Clock:
    """Goes on only while something is measured."""

    def __init__(self, monkeypatch):
        self.seconds = 0.0
        monkeypatch.setattr(measuring.time, "monotonic", lambda: self.seconds)


@dataclasses.dataclass(frozen=True)
class SlowRow(FakeRow):
    clock: Clock | None = None
    takes: float = 60.0

    def rate(self, loop, seconds):
        self.clock.seconds += self.takes
        return super().rate(loop, seconds)


@pytest.mark.parametrize(
    ("takes", "minutes", "counts", "left_out"),
    [(6.0, 9, [8, 8, 8], {}), (90.0, 25, [8, 8, 0], {"rates": ["timeout"]})],
    ids=["less", "more"],
)
def test_rows_that_take_less_or_more_than_estimated(monkeypatch, takes, minutes, counts, left_out):
    """Each is estimated to take 8 minutes. One that does not fit by that may fit after all."""
    clock = Clock(monkeypatch)
    rows = [SlowRow(name, name, clock=clock, takes=takes) for name in ("sleep_zero", "gather", "timeout")]
    found = measured({})
    measuring.measure(plan_of(*rows, minutes=minutes), found, lambda: None)
    assert [len(row.measured) for row in rows] == counts
    assert found.runs[0].no_time_for == left_out


def test_rows_that_do_not_fit_are_named_on_the_page(monkeypatch):
    clock = Clock(monkeypatch)
    names = {"sleep_zero": "Sleep", "call_soon_chain": "Chain", "gather": "Gather"}
    rows = [SlowRow(name, title, clock=clock) for name, title in names.items()]
    found = measured({})
    # Each row takes 8 minutes: two rounds of three loops and the control, of a minute each.
    measuring.measure(plan_of(*rows, minutes=17), found, lambda: None)
    assert {row.name: len(row.measured) for row in rows} == {
        "sleep_zero": 8,
        "call_soon_chain": 8,
        "gather": 0,
    }
    assert found.runs[0].no_time_for == {"rates": ["gather"]}
    found.results["echo_64", "hotloop"] = rates(5)
    assert f"Left out, as the time did not suffice:\n\n- rates: {ROW['gather'].title}\n" in report.page(
        found, []
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.4, "7 s"), (100, "2 min"), (3 * 3600 + 59, "3 h 1 min"), (3599, "1 h 0 min")]
)
def test_durations_are_legible(seconds, text):
    assert steps.duration(seconds) == text


def test_an_interrupted_run_names_what_it_had_no_time_for():
    @dataclasses.dataclass(frozen=True)
    class Interrupted(FakeRow):
        def rate(self, loop, seconds):
            raise KeyboardInterrupt

    rows = [FakeRow("sleep_zero", "Sleep"), Interrupted("gather", "Gather"), FakeRow("timeout", "Timeout")]
    found = measured({})
    with pytest.raises(KeyboardInterrupt):
        measuring.measure(plan_of(*rows), found, lambda: None)
    assert found.runs[0].no_time_for == {"rates": ["gather", "timeout"]}
