"""The benchmark of several loops in one process: what it makes of pieces, its section of the page, and short
runs."""

import asyncio
import itertools
import json
import shutil
import sys
import time

import pytest

from benchmarks import report
from benchmarks.results import Measured
from benchmarks.threads import pieces, section, work_pieces
from benchmarks.threads.__main__ import IS_FREE_THREADED, main
from benchmarks.threads.figures import Figure, Figures, read
from benchmarks.threads.pieces import Piece
from benchmarks.threads.rows import HttpRow, PiecesRow, Sample, Workers

PIECES = PiecesRow("create_task", "await create_task(nothing())")
ALONE, THREADS, PROCESSES = WORKERS = [Workers(), Workers(threads=2), Workers(processes=2)]


def piece(start, end, operations=10, *, processor=None):
    return Piece(start, end, end - start if processor is None else processor, operations)


def figures(found, *, has_gil=False, left_out=None):
    loops = list(dict.fromkeys(loop for _, loop, _ in found))
    return Figures({"Date": "2026-11-26"}, has_gil, WORKERS, loops, left_out or {}, [], found)


SCALING = {
    ("create_task", "hotloop", "1 thread"): Figure(500.0, 2e6),
    ("create_task", "hotloop", "2 threads"): Figure(625.0, 3e6, rate_spread=0.02),
    ("create_task", "hotloop", "2 processes"): Figure(None, 4e6),
    ("create_task", "other", "1 thread"): Figure(400.0, 1e6),
    ("create_task", "other", "2 threads"): Figure(failure="aborts"),
}


def test_one_worker_has_the_costs_of_its_undisturbed_pieces():
    assert pieces.costs([[piece(0, 100), piece(100, 300, processor=100), piece(300, 500)]]) == [10, 20]


def test_a_piece_counts_only_if_the_other_worker_ran_undisturbed_all_the_time():
    steady = [piece(0, 100), piece(100, 300, 20), piece(300, 400), piece(400, 500)]
    other = [piece(50, 150, 1), piece(150, 310, 1), piece(310, 420, 1, processor=20)]
    # The first began before the other worker, the third and the fourth met its disturbed piece.
    assert pieces.costs([steady, other]) == [10, 100, 160]


def test_threads_that_take_turns_have_no_cost():
    one = [piece(0, 200, processor=100), piece(200, 400, processor=100)]
    assert pieces.costs([one, one]) == []
    assert Figure.of([Sample([], 5.0)], PIECES) == Figure(None, 5.0)


def test_nothing_can_interrupt_a_worker_between_two_pieces():
    async def work(operations):
        assert operations == 7

    found = asyncio.run(work_pieces.timed(work, 7, time.perf_counter() + 0.5))
    assert len(found) > 1
    assert all(former.end == latter.start for former, latter in itertools.pairwise(found))


def test_a_rate_is_of_the_time_in_which_all_were_at_work():
    first = [piece(0, 1000), piece(1000, 2000)]
    second = [piece(1500, 2500, 40), piece(2500, 3500, 40)]
    # In the 500 ns that both have: 5 and 20.
    assert pieces.rate([first, second]) == pytest.approx(25 / 500e-9)
    assert pieces.rate([first, [piece(2000, 3000)]]) is None


def test_a_figure_is_the_lower_decile_of_all_pieces_and_the_median_rate():
    samples = [
        Sample([float(cost) for cost in range(20, 40)], 7.0),
        Sample([1.0, 2.0], 9.0),
        Sample([], None),
        Sample([], 11.0),
    ]
    assert Figure.of(samples, PIECES) == Figure(20.0, 9.0, rate_spread=pytest.approx(1 / 9))


def test_a_figure_of_servers_is_the_median_of_the_rounds():
    samples = [Sample([cost], 1.0) for cost in (9.0, 5.0, 6.0)]
    assert Figure.of(samples, HttpRow("http", "HTTP")) == Figure(6.0, 1.0)


def test_a_factor_of_two_threads_is_two_if_they_cost_no_more_than_one():
    assert figures(SCALING).factor("create_task", "hotloop", THREADS) == pytest.approx(1.6)
    assert figures(SCALING).factor("create_task", "hotloop", ALONE) == 1.0
    assert figures(SCALING).factor("create_task", "hotloop", PROCESSES) is None
    assert figures(SCALING).factor("create_task", "other", THREADS) is None


def test_threads_that_take_turns_have_no_factor():
    assert figures(SCALING, has_gil=True).factor("create_task", "hotloop", THREADS) is None


def test_the_section_has_a_table_for_each_row_and_says_what_is_missing():
    text = section.section(figures(SCALING, left_out={"talyn": "not installed"}))
    rates = "**2,000,000** | **3,000,000** ±2.0% | **4,000,000** |"
    assert f"| hotloop | 500 | **625** | 1.60 | - | - | {rates}" in text
    assert "| other | **400** | - | - | - | - | 1,000,000 | - | - |" in text
    assert "- talyn: not installed\n- other, await create_task(nothing()), 2 threads: aborts\n" in text
    assert "call_soon chain" not in text


@pytest.mark.parametrize("has_gil", [True, False])
def test_the_section_says_that_there_is_a_gil(has_gil):
    assert ("This Python has a GIL" in section.section(figures(SCALING, has_gil=has_gil))) == has_gil


def test_figures_are_kept(tmp_path):
    kept = figures(SCALING, left_out={"talyn": "not installed"})
    kept.write(tmp_path / "kept.json")
    assert read(tmp_path / "kept.json") == kept


def test_the_section_replaces_the_one_before_and_stays_when_the_page_is_written_again(tmp_path, capsys):
    page, results = tmp_path / "benchmarks.md", tmp_path / "benchmarks.json"
    page.write_text("# Benchmarks\n\nA table.\n")
    path = section.of_page(results)
    for failure in ("aborts", "hangs"):
        figures({("http", "hotloop", "1 thread"): Figure(failure=failure)}).write(path)
        assert main(["--render", str(path)]) == 0
    assert page.read_text() == "# Benchmarks\n\nA table.\n\n" + section.kept_for(results)
    assert "hangs" in page.read_text()
    report.write(Measured([], {}), results, print)
    assert page.read_text().endswith("\n\n" + section.kept_for(results))


def test_a_quick_run_measures_threads_and_processes(tmp_path, capsys):
    path = tmp_path / "threads.json"
    arguments = ["--quick", "--rows", "echo_pairs", "--loops", "asyncio,hotloop,not_a_loop"]
    assert main([*arguments, "--without", "not_a_loop=it is none", "--output", str(path)]) == 0
    found = read(path)
    assert (found.loops, found.left_out) == (["asyncio", "hotloop"], {"not_a_loop": "it is none"})
    assert set(found.found) == {
        ("echo_pairs", loop, workers.title) for loop in found.loops for workers in WORKERS
    }
    assert [figure.failure for figure in found.found.values()] == [""] * 6
    assert all(found.of("echo_pairs", loop, ALONE).rate > 0 for loop in found.loops)
    assert found.has_gil == (not IS_FREE_THREADED or sys._is_gil_enabled())
    assert capsys.readouterr().out == section.section(found) + "\n"


@pytest.mark.skipif(not (shutil.which("wrk") and sys.platform == "linux"), reason="needs wrk")
def test_a_quick_run_serves_http_in_threads(tmp_path, capsys):
    path = tmp_path / "threads.json"
    assert main(["--quick", "--rows", "http", "--loops", "hotloop", "--output", str(path)]) == 0
    found = read(path)
    assert [(figure.failure, figure.cost > 0, figure.rate > 0) for figure in found.found.values()] == [
        ("", True, True)
    ] * 3


def test_a_loop_that_fails_is_named_with_its_reason(tmp_path, capsys):
    path = tmp_path / "threads.json"
    arguments = ["--rows", "create_task", "--loops", "benchmarks.threads:no_loop", "--quick"]
    assert main([*arguments, "--output", str(path)]) == 0
    failures = {figure["failure"] for *_, figure in json.loads(path.read_text())["found"]}
    assert len(failures) == 1
    assert "has no attribute 'no_loop'" in failures.pop()
