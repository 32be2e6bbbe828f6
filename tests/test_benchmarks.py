"""What the benchmarks make of their figures: the page, results kept and measured anew, the check. Nothing is
measured here."""

import dataclasses
import functools
import json

import pytest

from benchmarks import check, counters, generator, measuring, quiet, report, results, run, split, tables
from benchmarks.children import Failed, ProcessorTime
from benchmarks.counters import Count
from benchmarks.generator import Outcome
from benchmarks.growth_result import Growth
from benchmarks.results import Measured, Result, Run
from benchmarks.row import LIMIT, Row
from benchmarks.rows import ROWS
from benchmarks.steps import Plan

ROW = {row.name: row for row in ROWS}
LOST = "in round 2: lost a connection"


def result(rate=None, *, user=None, kernel=None, failure=""):
    outcomes = [] if rate is None else [Outcome(1000, rate, 500.0)]
    return Result(outcomes, Count(user=user, kernel=kernel), failure)


def measured(of_row, row="echo_64", growths=(), parts=("rates", "counts")):
    made = Run({"Date": "2026-11-21", "Loops": "hotloop 1"}, [row], list(of_row), list(parts))
    return Measured([made], {(row, loop): of for loop, of in of_row.items()}, list(growths))


def cells(text, title):
    """The cells of a row of a table, by the table's columns."""
    lines = text.splitlines()
    at = next(index for index, line in enumerate(lines) if line.startswith(f"| {title}"))
    head = next(line for line in reversed(lines[:at]) if line.startswith("| |"))
    return dict(zip(between_bars(head)[1:], between_bars(lines[at])[1:], strict=True))


def between_bars(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.fixture(autouse=True)
def no_notes(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "NOTES", tmp_path / "notes.md")


@pytest.fixture
def kept_here(monkeypatch, tmp_path):
    """Nothing is written over what is in the checkout, nothing is built, and the processors seem quiet."""
    monkeypatch.setattr(run, "KEPT", tmp_path / "docs" / "benchmarks.json")
    monkeypatch.setattr(run, "PART", tmp_path / "target" / "benchmarks.json")
    monkeypatch.setattr(run, "UNFINISHED", tmp_path / "target" / "unfinished.json")
    monkeypatch.setattr(generator, "build", lambda program="load": program)
    monkeypatch.setattr(counters, "available", list)
    monkeypatch.setattr(quiet, "Watch", functools.partial(quiet.Watch, lambda: 1.0))


@dataclasses.dataclass(frozen=True)
class FakeRow(Row):
    group = "scheduling"
    rates: dict = dataclasses.field(default_factory=dict)

    def rate(self, loop, seconds):
        outcome = self.rates[loop].pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return Outcome(1, outcome, 1.0)

    def count(self, loop, counter):
        raise AssertionError("nothing counts")


def test_the_best_is_bold():
    text = tables.table(
        tables.RATES, measured({"asyncio": result(500.2), "hotloop": result(999.6), "uvloop": result(1010.1)})
    )
    assert cells(text, ROW["echo_64"].title) == {
        "asyncio": "500",
        "hotloop": "1,000",
        "uvloop": "**1,010**",
        "against the best other": "0.99",
        "against asyncio": "2.00",
    }


@pytest.mark.parametrize(("quantity", "ours"), [(tables.RATES, "4.00"), (tables.SERVERS_USER, "0.50")])
def test_a_ratio_above_one_is_good_in_every_table(quantity, ours):
    both = measured({"asyncio": result(100, user=1000), "hotloop": result(400, user=2000)})
    assert cells(tables.table(quantity, both), ROW["echo_64"].title)["against asyncio"] == ours


def test_what_fails_says_so_and_why():
    text = report.page(measured({"hotloop": result(300), "uvloop": result(failure=LOST)}), [])
    assert cells(text, ROW["echo_64"].title)["uvloop"] == "fails"
    assert f"- uvloop, {ROW['echo_64'].title}: {LOST}" in text.partition("## Failures")[2]


def test_the_limit_takes_no_part_in_the_comparison():
    with_limit = measured({"hotloop": result(980), "uvloop": result(990), LIMIT: result(1000)})
    row = cells(tables.table(tables.RATES, with_limit), ROW["echo_64"].title)
    assert (row["uvloop"], row["limit"]) == ("**990**", "1,000")
    assert "behind in 1 (1 of these within 3% of the limit)" in report.summary(with_limit)


@pytest.mark.parametrize(("user", "verdict"), [(1_700, "met"), (1_701, "missed")])
def test_a_target_is_met_or_missed(user, verdict):
    text = tables.table(tables.SERVERS_USER, measured({"hotloop": result(user=user)}))
    assert cells(text, ROW["echo_64"].title)["target"] == f"1,700 {verdict}"


def test_the_target_of_datagrams_is_below_the_best_other_loop():
    of_row = {"hotloop": result(user=4000), "rloop": result(user=5000), "uvloop": result(user=7000)}
    text = tables.table(tables.SERVERS_USER, measured(of_row, "echo_datagram"))
    assert cells(text, ROW["echo_datagram"].title)["target"] == "4,000 met"


@pytest.mark.parametrize(("kernel", "target"), [(None, None), (9e6, 250_000)])
def test_work_of_children_has_a_target_only_where_it_is_counted(kernel, target):
    counted = measured({"hotloop": result(user=100_000, kernel=kernel)}, "subprocess_true")
    assert tables.line(ROW["subprocess_true"], tables.SCHEDULING_USER, counted).target == target


def test_the_summary_names_the_worst_ratio():
    of_rows = measured({"hotloop": result(300), "uvloop": result(200)})
    of_rows = of_rows.updated_with(measured({"hotloop": result(90), "rloop": result(100)}, "echo_1"))
    of_rows.results["http_tls", "hotloop"] = result(failure=LOST)
    of_rows.results["http_tls", "uvloop"] = result(50)
    assert report.summary(of_rows).splitlines()[-1] == (
        "- Rate: of 2 rows, hotloop is first in 1, tied with the best other loop in 0 and behind in 1; "
        f"it has no figure in 1. Its worst ratio is 0.90 against rloop, in “{ROW['echo_1'].title}”."
    )


def test_notes_are_kept_under_the_titles_of_their_rows():
    report.NOTES.write_text("# echo_64\n\nBecause.\n")
    missed = measured({"hotloop": result(user=1_800)})
    assert f"### {ROW['echo_64'].title}\n\nBecause." in report.page(missed, [])
    assert report.without_note(missed) == []
    report.NOTES.write_text("# echo_1\n\nBecause.\n")
    assert report.without_note(missed) == ["echo_64"]


PROFILE = """\
# callgrind format
version: 1
cmd:  python -m benchmarks.scheduling hotloop sleep_zero 500
positions: line
events: Ir
summary: 1170


ob=(8) /usr/bin/python3.14
fl=(164) ???
fn=(10) _PyEval_EvalFrameDefault
0 500
cob=(14) /usr/lib/python3.14/lib-dynload/_asyncio.cpython-314-x86_64-linux-gnu.so
cfi=(167) ./Modules/_asynciomodule.c
cfn=(20) task_step
calls=7 1200
0 9999
+3 400
fi=(165)
* 20

fn=(11) PyLong_FromLong
-2 30

ob=(14)
fl=(167)
fn=(20)
1200 100
cob=(22) /my hotloop/hotloop/_core.cpython-314-x86_64-linux-gnu.so
cfn=(30) call_soon
calls=7 0
* 50
+1 20

ob=(22)
fn=(30)
0 50

ob=(2) /usr/lib/x86_64-linux-gnu/libc.so.6
fn=(40) malloc
0 30

ob=(3) /usr/lib/x86_64-linux-gnu/libcrypto.so.3
fn=(50) EVP_DigestUpdate
0 20

totals: 1170
"""
SPLIT = {"interpreter": 950.0, "asyncio's C module": 120.0, "hotloop": 50.0, "C library": 30.0, "other": 20.0}


def test_a_profile_is_split_by_who_executes_what(tmp_path):
    (tmp_path / "profile").write_text(PROFILE)
    assert split.Callgrind().read(str(tmp_path / "profile")) == Count(split=SPLIT)
    assert sum(SPLIT.values()) == 1170


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("/usr/lib/x86_64-linux-gnu/libpython3.14.so.1.0", "interpreter"),
        ("/usr/bin/python3.14t", "interpreter"),
        ("/usr/lib/python3.14/lib-dynload/_ssl.cpython-314-x86_64-linux-gnu.so", "other"),
        ("/venv/numpy/_core.cpython-314-x86_64-linux-gnu.so", "other"),
        ("/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "C library"),
        ("/lib/x86_64-linux-gnu/libc-2.31.so", "C library"),
        ("/lib/x86_64-linux-gnu/libcrypto.so.3", "other"),
        ("???", "other"),
    ],
)
def test_a_file_belongs_to_a_part(path, part):
    assert [name for name, executed in split.by_part({path: 5.0}).items() if executed] == [part]


def test_a_split_is_the_difference_of_two_runs():
    start = Count(split=dict.fromkeys(SPLIT, 10.0))
    assert Count(split=SPLIT).per_request(start, 10).split["interpreter"] == 94.0


def test_a_split_is_kept_beside_the_count_and_shown(tmp_path):
    counted = measured({"hotloop": result(300, user=1171), "uvloop": result(200, user=2000)})
    new = measured({"hotloop": Result(count=Count(split=SPLIT))}, parts=["split"])
    both = counted.updated_with(new)
    both.write(tmp_path / "benchmarks.json")
    assert results.read(tmp_path / "benchmarks.json") == both
    assert both.of("echo_64", "hotloop").count == Count(user=1171, split=SPLIT)
    section = report.page(both, []).partition("## Where hotloop's instructions go")[2]
    assert cells(section, ROW["echo_64"].title) == {
        "interpreter": "950",
        "asyncio's C module": "120",
        "hotloop": "50.00",
        "C library": "30.00",
        "other": "20.00",
        "all": "1,170",
    }


def test_without_a_split_there_is_no_section():
    assert "Where hotloop's instructions go" not in report.page(measured({"hotloop": result(user=5)}), [])


@pytest.mark.parametrize(
    ("arguments", "splits"),
    [([], True), (["--loops", "asyncio"], False), (["--no-split"], False), (["--no-counts"], False)],
)
def test_only_hotloop_is_split(monkeypatch, arguments, splits):
    monkeypatch.setattr(split, "available", split.Callgrind)
    monkeypatch.setattr(run.loops, "is_installed", lambda name: True)
    plan = run.plan_of(run.parser().parse_args(arguments))
    assert (plan.splitter is not None) == splits


def test_what_is_not_steady_is_not_split(monkeypatch, capsys):
    monkeypatch.setattr(FakeRow, "is_steady", False)
    row = FakeRow("fake", "Fake", {"hotloop": [1.0]})
    measuring.measure(Plan([row], ["hotloop"], 1, 1, [], split.Callgrind()), Measured([], {}), lambda: None)
    assert "callgrind" not in capsys.readouterr().err
    assert not ROW["subprocess_true"].is_steady
    assert ROW["echo_64"].is_steady


def test_what_cannot_be_split_is_no_failure(monkeypatch, capsys):
    def count(row, loop, counter):
        raise Failed("the count is not steady")

    monkeypatch.setattr(FakeRow, "count", count)
    found = Measured([], {})
    row = FakeRow("fake", "Fake", {"hotloop": [1.0]})
    measuring.measure(Plan([row], ["hotloop"], 1, 1, [], split.Callgrind()), found, lambda: None)
    assert not found.of("fake", "hotloop").failure
    assert "fake: not split: the count is not steady" in capsys.readouterr().err


GROWTH = Growth(
    "timers_insert",
    "Inserting timers",
    "timers",
    "instructions a timer",
    (100.0, 10_000.0),
    {"hotloop": (600.0, 700.0), "uvloop": (650.0, None)},
    {"uvloop": "hangs", "talyn": "crashes"},
    "How.",
)


def test_growth_has_a_line_for_each_size():
    text = report.page(measured({"hotloop": result(300)}, growths=[GROWTH]), [])
    assert "| timers: instructions a timer | hotloop | uvloop | talyn |" in text
    assert "| 100 | **600** | 650 | fails |" in text
    assert "| 10,000 | **700** | fails | fails |" in text
    assert "- uvloop fails: hangs" in text


def test_what_has_one_size_is_a_line():
    start_up = dataclasses.replace(GROWTH, x_label="", x_values=(1.0,), series={"hotloop": (30.0,)})
    assert "| instructions a timer | **30.00** | fails | fails |" in report.of_growth(start_up, [])


def test_results_are_read_as_they_were_written(tmp_path):
    written = measured({"hotloop": result(300, user=5.5), LIMIT: result(400)}, growths=[GROWTH])
    written.write(tmp_path / "new" / "benchmarks.json")
    assert results.read(tmp_path / "new" / "benchmarks.json") == written


def test_a_part_measured_anew_replaces_that_part_only():
    old = measured({"hotloop": result(100, user=2000), "uvloop": result(200)})
    old = old.updated_with(measured({"hotloop": result(70)}, "echo_1"))
    new = old.updated_with(measured({"hotloop": result(300)}))
    assert new.of("echo_64", "hotloop") == result(300, user=2000)
    assert new.of("echo_64", "uvloop") == result(200)
    assert new.of("echo_1", "hotloop") == result(70)


def test_runs_of_which_nothing_is_left_are_forgotten():
    old = measured({"hotloop": result(100), "uvloop": result(200)})
    both = old.updated_with(measured({"hotloop": result(300)}))
    assert len(both.runs) == 2
    everything = {"hotloop": result(1), "uvloop": result(1), "rloop": result(1)}
    assert len(both.updated_with(measured(everything, parts=["rates"])).runs) == 3
    assert len(both.updated_with(measured(everything)).runs) == 1


def test_rows_are_named_by_their_groups_where_those_are_whole():
    echo = [row.name for row in ROWS if row.group == "echo"]
    assert report.named(echo) == "all rows of echo"
    assert report.named([*echo, "http_uvicorn"]) == "all rows of echo, uvicorn + httptools, 64 connections"
    assert report.named(["echo_1"]) == "Protocol echo 1 KiB, 1 connection"
    assert report.named([]) == ""


def test_a_failure_and_its_end_replace_what_was_there():
    failed = measured({"hotloop": result(100)}).updated_with(measured({"hotloop": result(failure=LOST)}))
    assert failed.of("echo_64", "hotloop") == result(failure=LOST)
    mended = failed.updated_with(measured({"hotloop": result(300)}))
    assert mended.of("echo_64", "hotloop") == result(300)


@pytest.mark.parametrize(
    ("arguments", "whole"),
    [
        ([], True),
        (["--rounds", "1"], True),
        (["--rows", "http"], False),
        (["--loops", "hotloop"], False),
        (["--no-rates"], False),
        (["--no-split"], False),
        (["--no-growth"], False),
    ],
)
def test_only_a_whole_run_goes_to_the_documentation(arguments, whole):
    options = run.parser().parse_args(arguments)
    assert run.destination(options) == (run.KEPT if whole else run.PART)
    assert run.wants_growth(options) == whole


def test_growth_can_be_chosen_as_if_it_were_a_row():
    options = run.parser().parse_args(["--rows", "growth"])
    assert run.wants_growth(options)
    assert run.plan_of(options).rows == []


def test_who_fails_in_one_round_has_no_rate(capsys):
    row = FakeRow("fake", "Fake", {"asyncio": [1.0, 2.0], "other": [9.0, Failed("lost a connection")]})
    found = Measured([], {})
    measuring.measure(Plan([row], ["asyncio", "other"], 2, 1, []), found, lambda: None)
    assert [outcome.rate for outcome in found.of("fake", "asyncio").outcomes] == [1.0, 2.0]
    assert found.of("fake", "other") == Result(failure=LOST)
    assert "fake: other FAILS in round 2: lost a connection" in capsys.readouterr().err


@pytest.mark.parametrize("end", [KeyboardInterrupt(), None])
def test_an_interrupted_run_keeps_what_it_has(end, kept_here, monkeypatch, capsys):
    first = dataclasses.replace(FakeRow("echo_64", "First"), rates={"asyncio": [100.0]})
    second = dataclasses.replace(FakeRow("echo_1", "Second"), rates={"asyncio": [end or 50.0]})
    monkeypatch.setattr(run, "ROWS", [first, second])
    monkeypatch.setattr(run, "is_whole", lambda options: True)
    status = run.main(["--loops", "asyncio", "--rounds", "1", "--no-growth"])
    path = run.PART if end else run.KEPT
    kept = results.read(path)
    assert status == (1 if end else 0)
    assert kept.runs[0].rows == (["echo_64"] if end else ["echo_64", "echo_1"])
    assert [outcome.rate for outcome in kept.of("echo_64", "asyncio").outcomes] == [100.0]
    assert run.UNFINISHED.exists() == (end is not None)
    assert path.with_suffix(".md").read_text() in capsys.readouterr().out
    assert run.KEPT.exists() == (end is None)


def test_a_page_is_written_again_without_measuring(kept_here):
    measured({"hotloop": result(300)}).write(run.PART)
    assert run.main(["--render", str(run.PART)]) == 0
    assert ROW["echo_64"].title in run.PART.with_suffix(".md").read_text()


def test_charts_of_the_same_figures_are_the_same(tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks import charts

    loops = {"hotloop": result(300, user=2000), "uvloop": result(200, user=4000)}
    one_size = dataclasses.replace(GROWTH, name="start_up", x_values=(1.0,), series={"hotloop": (30.0,)})
    both = measured(loops, growths=[GROWTH, one_size])
    drawn = [charts.draw_all(both, tmp_path / where, print) for where in ("one", "two")]
    assert drawn[0] == ["overview", "instructions-servers", "growth-timers-insert", "growth-start-up"]
    for name in drawn[0]:
        assert (tmp_path / "one" / f"{name}.svg").read_text() == (
            tmp_path / "two" / f"{name}.svg"
        ).read_text()


@pytest.fixture
def counting(monkeypatch, tmp_path):
    """A counter by which every row costs what the test says; returns where to say it."""
    monkeypatch.setattr(check, "BASELINE", tmp_path / "baseline.json")
    monkeypatch.setattr(counters, "available", lambda: [counters.Valgrind()])
    costs = dict.fromkeys((row.name for row in check.rows()), 1000.0)

    def count(row, loop, counter):
        assert loop == "hotloop"
        if isinstance(costs[row.name], Failed):
            raise costs[row.name]
        return Count(user=costs[row.name])

    monkeypatch.setattr(check.SchedulingRow, "count", count)
    return costs


@pytest.mark.parametrize(
    ("cost", "status", "said"),
    [
        (1029.0, 0, "all within 3%"),
        (1031.0, 1, "COSTS MORE, by over 3%: sleep_zero"),
        (969.0, 0, "UPDATE=1"),
        (Failed("hangs"), 1, "sleep_zero FAILS: hangs"),
    ],
)
def test_a_cost_is_compared_with_the_baseline(counting, capsys, cost, status, said):
    assert check.main(["--update"]) == 0
    counting["sleep_zero"] = cost
    assert check.main([]) == status
    assert said in capsys.readouterr().out


def test_a_cost_that_another_layout_of_memory_does_not_have_is_none(counting, monkeypatch, capsys):
    assert check.main(["--update"]) == 0
    count = check.SchedulingRow.count
    monkeypatch.setattr(
        check.SchedulingRow,
        "count",
        lambda row, *args: Count(user=1100.0) if row.layout == 0 else count(row, *args),
    )
    assert check.main([]) == 0
    assert "all within 3%" in capsys.readouterr().out


def test_an_update_keeps_what_was_counted_in_other_ways(counting):
    check.BASELINE.write_text('{"perf, Python 3.9": {"sleep_zero": 7}}')
    assert check.main(["--update"]) == 0
    kept = json.loads(check.BASELINE.read_text())
    assert kept.pop("perf, Python 3.9") == {"sleep_zero": 7}
    assert list(kept.values()) == [dict.fromkeys(counting, 1000)]


def test_nothing_is_kept_of_an_update_that_fails(counting):
    counting["sleep_zero"] = Failed("hangs")
    assert check.main(["--update"]) == 1
    assert not check.BASELINE.exists()


def test_a_row_that_the_baseline_lacks_is_no_failure(counting, capsys):
    check.main(["--update"])
    kept = json.loads(check.BASELINE.read_text())
    for figures in kept.values():
        del figures["gather"]
    check.BASELINE.write_text(json.dumps(kept))
    assert check.main([]) == 0
    assert "not in baseline.json: gather" in capsys.readouterr().out


def test_without_a_baseline_or_a_counter_nothing_is_checked(counting, monkeypatch, capsys):
    assert check.main([]) == 0
    assert "no figures for valgrind" in capsys.readouterr().out
    monkeypatch.setattr(counters, "available", lambda: [counters.Strace()])
    assert check.main([]) == 0
    assert "neither perf nor valgrind" in capsys.readouterr().out


def test_rows_that_are_not_steady_are_not_checked():
    names = {row.name for row in check.rows()}
    assert "sleep_zero" in names
    assert not names & {"call_soon_threadsafe", "run_in_executor", "subprocess_true", "echo_64"}


def test_loops_with_other_transports_are_compared_over_tls_only():
    compared = [row for row in ROWS if row.compares("asyncio+aiofastnet")]
    assert {row.group for row in compared} == {"tls", "bulk"}
    assert all(row.name.startswith("bulk_tls") for row in compared if row.group == "bulk")
    assert all(row.compares("hotloop") for row in ROWS)


def test_processor_time_is_of_all_requests_that_were_answered():
    outcome = Outcome(1000, 500.0, 10.0, answered=1250)
    before, after = ProcessorTime(1_000_000, 10, 20), ProcessorTime(3_500_000, 40, 30)
    used = outcome.with_processor(before, after)
    assert (used.processor, used.user, used.kernel) == (2.0, 1.5, 0.5)
    assert outcome.with_processor(None, None) == outcome


def test_a_loop_that_no_row_of_a_table_has_is_not_in_it():
    found = measured({"hotloop": result(100), "asyncio": result(50)})
    found.results["tls_echo", "asyncio+aiofastnet"] = result(70)
    found.results["tls_echo", "hotloop"] = result(90)
    text = tables.table(tables.RATES, found)
    assert "aiofastnet" not in text
    assert "| asyncio+aiofastnet |" in tables.table(tables.TLS_RATES, found)
