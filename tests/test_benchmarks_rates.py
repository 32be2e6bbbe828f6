"""How the benchmarks compare rates: medians and ties, lost rows, latency at fixed rates. Nothing is measured
here."""

import dataclasses

import pytest

from benchmarks import (
    children,
    generator,
    latency,
    losses,
    malloc,
    report,
    results,
    run,
    tables,
)
from benchmarks.counters import Count
from benchmarks.generator import Outcome, Paced
from benchmarks.growth_result import Growth
from benchmarks.loops import CONTROL
from benchmarks.notes import Notes, read
from benchmarks.results import Measured, Result, Run
from benchmarks.row import LIMIT
from benchmarks.rows import ROWS
from benchmarks.spread import Spread, are_tied, difference

ROW = {row.name: row for row in ROWS}
TITLE = ROW["echo_64"].title


def rates(*figures, keeping=(), user=None, failure=""):
    """A result with these rates, one for each round."""
    outcomes = [Outcome(1000, rate, 500.0, 1e6 / rate, 1000) for rate in figures]
    kept = [Outcome(1000, rate, 500.0, 1e6 / rate, 1000) for rate in keeping]
    return Result(outcomes, Count(user=user), failure, kept)


def measured(of_loops, row="echo_64", growths=()):
    made = Run({"Date": "2026-11-21"}, [row], list(of_loops), ["rates"])
    return Measured([made], {(row, loop): of for loop, of in of_loops.items()}, list(growths))


def line(of_loops, quantity=tables.RATES):
    return tables.line(ROW["echo_64"], quantity, measured(of_loops))


# --- Medians, quartiles, ties ---


def test_the_spread_of_several_rounds():
    assert Spread.of([7, 1, 3, 2, 6, 5, 4]) == Spread(2.5, 4, 5.5)
    assert Spread.of([1, 2]) == Spread(1.25, 1.5, 1.75)
    assert Spread.of([3]) == Spread(3, 3, 3)
    assert Spread.of([]) is None
    assert Spread(90, 100, 110).relative == 0.1
    assert Spread(3, 3, 3).relative is None


@pytest.mark.parametrize(
    ("one", "other", "tolerance", "tied"),
    [
        (Spread(90, 100, 110), Spread(110, 120, 130), 0.0, True),
        (Spread(90, 100, 109), Spread(110, 120, 130), 0.0, False),
        (Spread(90, 100, 109), Spread(110, 120, 130), 0.2, True),
        (Spread(90, 100, 109), Spread(110, 120, 130), 0.19, False),
        (Spread(90, 100, 109), None, 9.0, False),
    ],
)
def test_what_is_a_tie(one, other, tolerance, tied):
    assert are_tied(one, other, tolerance) == tied
    assert are_tied(other, one, tolerance) == tied


def test_the_difference_does_not_depend_on_the_order():
    assert difference(Spread(1, 80, 100), Spread(1, 100, 200)) == 0.25
    assert difference(Spread(1, 100, 200), Spread(1, 80, 100)) == 0.25
    assert difference(Spread(0, 0, 0), Spread(1, 80, 100)) is None


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ([130, 140, 150], "is_first"),
        ([104, 110, 114], "is_tied"),
        ([90, 96, 100], "is_tied"),
        ([70, 80, 85], "is_behind"),
    ],
)
def test_hotloop_is_first_or_tied_or_behind(ours, verdict):
    compared = line({"hotloop": rates(*ours), "uvloop": rates(95, 100, 115), "asyncio": rates(10)})
    found = [name for name in ("is_first", "is_tied", "is_behind") if getattr(compared, name)]
    assert found == [verdict]


def test_what_is_within_the_difference_of_two_equal_loops_is_a_tie():
    loops = {"hotloop": rates(100), "uvloop": rates(104)}
    assert line(loops).is_behind
    assert line(loops | {CONTROL: rates(95)}).is_tied
    assert line(loops | {CONTROL: rates(97)}).is_behind


def test_counts_within_a_hundredth_are_tied():
    loops = {"hotloop": rates(user=1000), "uvloop": rates(user=995), "rloop": rates(user=980)}
    compared = line(loops, tables.SERVERS_USER)
    assert compared.best_other == ("rloop", 980)
    assert compared.is_behind
    assert compared.are_tied("hotloop", "uvloop")


def test_a_table_has_medians_with_their_spread_and_the_second_measurement():
    found = measured({"hotloop": rates(90, 100, 110), "uvloop": rates(98, 98, 98), CONTROL: rates(80)})
    text = tables.table(tables.RATES, found)
    assert f"| {TITLE} | **100** ±5.0% | **98.00** | 1.02 tie | 1.25 |" in text
    assert "| hotloop | uvloop | against the best other | against itself |" in text
    assert CONTROL not in text
    assert "differ by 25.0% in the median row" in report.summary(found)


def test_processor_time_is_shown_with_its_parts():
    used = Result([Outcome(1, 1.0, 1.0, 5.0, 1, 2.0, 3.0)])
    text = tables.table(tables.PROCESSOR, measured({"hotloop": used}))
    assert "**5.00**<br>2.00 + 3.00" in text


# --- malloc ---


def test_python_is_started_with_the_setting_of_malloc_and_other_programs_are_not():
    say = "import os; print(os.environ.get('MALLOC_TOP_PAD_'))"
    python = [children.sys.executable, "-c", say]
    with malloc.set_to(malloc.KEEPING):
        assert children.run(python, timeout=20).strip() == malloc.ENVIRONMENT["MALLOC_TOP_PAD_"]
        assert children.run(["env", *python], timeout=20).strip() == "None"
    with malloc.set_to(malloc.DEFAULT):
        assert children.run(python, timeout=20).strip() == "None"


def test_only_servers_and_clients_on_glibc_are_measured_twice(monkeypatch):
    monkeypatch.setattr(malloc.sys, "platform", "linux")
    monkeypatch.setattr(malloc.platform, "libc_ver", lambda: ("glibc", "2.36"))
    assert malloc.settings("echo") == [malloc.DEFAULT, malloc.KEEPING]
    assert malloc.settings("scheduling") == [malloc.DEFAULT]
    monkeypatch.setattr(malloc.platform, "libc_ver", lambda: ("", ""))
    assert malloc.settings("echo") == [malloc.DEFAULT]


def test_the_page_tells_how_much_each_loop_depends_on_malloc():
    found = measured({"asyncio": rates(100, keeping=[400]), "hotloop": rates(500, keeping=[505])})
    text = report.page(found, [])
    assert f"| asyncio | 4.00 | 4.00 | 4.00 | 4.00 | {TITLE} |" in text
    assert f"| hotloop | 1.01 | 1.01 | 1.01 | 1.01 | {TITLE} |" in text
    assert "| asyncio | hotloop |" in text.partition(tables.RATES_KEEPING.title)[2]
    assert "- Dependence on malloc's settings, 1 is none (see below): hotloop 1.01, asyncio 4.00." in text
    assert "Dependence on malloc" not in report.page(measured({"hotloop": rates(500)}), [])


# --- The rows that hotloop loses ---

MEMORY = Growth(
    "idle_memory",
    "An idle connection",
    "connections",
    "bytes of memory",
    (10.0, 100.0),
    {"hotloop": (500.0, 500.0), "uvloop": (500.0, 400.0), "rloop": (None, 600.0)},
    {},
    "",
)


def lost(found, notes=None):
    text = losses.section(found, notes or Notes("", {}))
    return {part.partition("\n")[0]: part.partition("\n")[2].strip() for part in text.split("### ")[1:]}


def test_lost_rows_are_listed_with_the_reason():
    found = measured(
        {"hotloop": rates(80, keeping=[90], user=300), "uvloop": rates(100, keeping=[120], user=200)},
        growths=[MEMORY],
    )
    lists = lost(found, Notes("", {"echo_64": "Because.\n\nOf that."}))
    times = lists["Rates and times"]
    assert f"- **{TITLE}**\n  - rate: 0.80 against uvloop (80.00, not 100)\n" in times
    assert "\n  - rate with malloc that keeps memory: 0.75 against uvloop (90.00, not 120)" in times
    assert "\n  - processor time: 0.80 against uvloop" in times
    assert "\n\n  Because.\n\n  Of that." in lists["Rates and times"]
    assert lists["Instructions"] == f"- **{TITLE}**: 0.67 against uvloop (300, not 200)\n\n  Why: see above."
    assert lists["Memory"] == (
        "- **An idle connection**: at 100 connections: 0.80 against uvloop (500, not 400 bytes of memory)\n\n"
        f"  {losses.UNKNOWN}"
    )


@pytest.mark.parametrize("figure", [0.0, -1.5])
def test_what_is_measured_beyond_asyncio_is_not_compared_with_it(figure):
    beyond = dataclasses.replace(
        MEMORY, x_values=(1.0,), series={"asyncio": (figure,), "hotloop": (500.0,), "uvloop": (400.0,)}
    )
    times = lost(measured({"hotloop": rates(100), "uvloop": rates(50)}, growths=[beyond]))["Memory"]
    assert times.startswith("- **An idle connection**: 0.80 against uvloop (500, not 400 bytes of memory)")


def test_rows_that_are_won_or_tied_are_not_lost():
    lists = lost(measured({"hotloop": rates(95, 105), "uvloop": rates(90, 111), "rloop": rates(50)}))
    assert lists == {"Rates and times": "None.", "Instructions": "Not measured.", "Memory": "Not measured."}


def test_the_page_has_lost_rows_before_the_rest_and_their_notes_once(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "NOTES", tmp_path / "notes.md")
    report.NOTES.write_text("Of all rows.\n\n# echo_64\n\nBecause.\n\n# echo_1\n\nNo.\n")
    text = report.page(measured({"hotloop": rates(80), "uvloop": rates(100)}), [])
    assert text.index("## Summary") < text.index("## Where hotloop is behind") < text.index("## How it was")
    assert text.count("Because.") == 1
    end = text.partition("## Why some targets are missed")[2]
    assert "Of all rows." in end
    assert f"### {ROW['echo_1'].title}\n\nNo." in end


def test_notes_are_read_by_row(tmp_path):
    (tmp_path / "notes.md").write_text("First.\n\n# echo_64\n\nOne.\n\nTwo.\n\n# echo_1\nThree.\n")
    assert read(tmp_path / "notes.md") == Notes("First.", {"echo_64": "One.\n\nTwo.", "echo_1": "Three."})
    assert read(tmp_path / "none.md") == Notes("", {})


def test_a_note_can_be_of_several_rows(tmp_path):
    (tmp_path / "notes.md").write_text("# echo_64, echo_1\n\nOne.\n\n# echo_8\n\nTwo.\n")
    assert read(tmp_path / "notes.md") == Notes("", {"echo_64": "One.", "echo_1": "One.", "echo_8": "Two."})


# --- Latency at fixed rates ---


def paced(rate, *, wanted=1000.0, p99=50.0, requests=1000):
    return Paced(wanted, rate, 10.0, p99, 90.0, requests, 1.0)


def test_the_capacity_is_the_median_of_the_slowest_loop():
    assert latency.capacity({"a": [5.0, 100.0, 30.0], "b": [20.0, 25.0, 90.0], "c": []}) == ("b", 25.0)
    assert latency.capacity({}) is None
    assert latency.capacity({"a": [100.0], "b": [90.0], "c": [8.9]}) == ("b", 90.0)
    assert latency.capacity({"a": [100.0], "b": [90.0], "c": [9.1]}) == ("c", 9.1)
    assert [latency.rate_of(40_001, share) for share in latency.SHARES] == [10_000, 20_000, 30_000]
    assert latency.rate_of(0.1, 25) == 1


def test_a_loop_that_fails_and_the_limit_have_no_capacity():
    found = {
        ("echo_64", "a"): rates(100),
        ("echo_64", "b"): rates(20, failure="hangs"),
        ("echo_64", LIMIT): rates(10),
        ("echo_64", CONTROL): rates(15),
    }
    assert latency.capacity_in("echo_64", ["a", "b", LIMIT, CONTROL], found) == ("a", 100.0)


def test_a_loop_that_does_not_keep_up_has_no_latency():
    keeps = dataclasses.replace(rates(4000), paced={"25": [paced(1000.0), paced(990.0), paced(500.0)]})
    behind = dataclasses.replace(rates(4100), paced={"25": [paced(940.0, p99=1.0)]})
    found = measured({"hotloop": keeps, "uvloop": behind})
    text = latency.section(found)
    assert "| 25 %: 1,000 a second, 99 % | **50.00** | behind: 940 |" in text
    assert "The slowest loop is hotloop, with 4,000 a second." in text
    assert "within 1.0 µs" in text
    assert not latency.section(measured({"hotloop": rates(4000)}))


def test_a_percentile_needs_enough_requests():
    few = dataclasses.replace(rates(4000), paced={"25": [paced(1000.0), paced(1000.0, requests=999)]})
    text = latency.section(measured({"hotloop": few}))
    assert "a second, 99 % | **50.00** |" in text
    assert "99.9 % |" not in text


def test_a_rate_with_which_only_hotloop_does_not_keep_up_is_lost():
    loops = {
        "hotloop": dataclasses.replace(rates(5000), paced={"75": [paced(900.0)]}),
        "uvloop": dataclasses.replace(rates(4000), paced={"75": [paced(1000.0)]}),
    }
    assert (
        "rate reached at 75 %: 0.90 against uvloop (900, not 1,000)"
        in lost(measured(loops))["Rates and times"]
    )


def test_the_generators_report_is_read(monkeypatch):
    printed = (
        '{"requests": 1000, "answered": 1200, "seconds": 2.0, "rate": 500.0, "latency_us": {"p50": 1.0,'
        ' "p90": 2.0, "p99": 3.0, "p999": 4.0, "max": 5.0}, "in_time": 980, "unanswered": 3,'
        ' "late_us": {"p50": 0.1, "p99": 0.2, "max": 0.3}}'
    )
    commands = []
    monkeypatch.setattr(generator, "build", lambda program="load": program)
    monkeypatch.setattr(generator, "run", lambda command, **_: commands.append(command) or printed)
    found = generator.at_rate("tcp://127.0.0.1:1", generator.Load(), 2.0, 500)
    assert found == Paced(500, 490.0, 1.0, 3.0, 4.0, 1000, 0.2)
    assert commands[0][-6:] == ["--rate", "500", "--seconds", "2.0", "--warmup", "0.2"]


# --- Results of former versions ---


def test_the_committed_results_have_a_page():
    found = results.read(run.KEPT)
    text = report.page(found, [])
    assert "## Where hotloop is behind, and why" in text
    assert tables.RATES.title in text


@pytest.mark.parametrize(("seconds", "used"), [(0.25, "load"), (1.0, "wrk"), (2.0, "wrk")])
def test_wrk_is_used_for_whole_seconds(monkeypatch, seconds, used):
    asked = []

    def answering(name):
        def answer(url, load, seconds):
            asked.append((name, seconds))
            return Outcome(1, 1.0, 1.0)

        return answer

    monkeypatch.setattr(generator, "has_wrk", lambda: True)
    monkeypatch.setattr(generator, "wrk", answering("wrk"))
    monkeypatch.setattr(generator, "for_seconds", answering("load"))
    monkeypatch.setattr(generator, "for_requests", lambda *_: None)
    monkeypatch.setattr("benchmarks.row.check_body", lambda *_: None)
    ROW["http_bare"]._drive_for("127.0.0.1:1", seconds)
    assert asked == [(used, seconds)]
