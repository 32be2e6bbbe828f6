"""The measurements of growth: what they make of figures and of failures, on processes that end at once."""

import asyncio
import struct

import pytest

from benchmarks.children import Failed
from benchmarks.growth import connections, flood, timers, work_flood, work_timers
from benchmarks.growth.__main__ import table
from benchmarks.growth.figures import Figures

SHAPE = {"title": "A thing", "x_label": "things", "y_label": "seconds", "note": "With a watch."}


def figures_of(found: dict[tuple[str, int], float | str], rounds: int = 1) -> Figures:
    """Figures of loops a and b at 10 and 100, each measured or failing as given."""

    def measured(loop: str, size: int) -> float:
        figure = found[loop, size]
        if isinstance(figure, str):
            raise Failed(figure)
        return figure

    figures = Figures("thing", ["a", "b"], (10, 100))
    figures.collect(rounds, measured)
    return figures


def test_a_growth_has_a_figure_for_each_loop_and_size() -> None:
    found = {("a", 10): 1.0, ("a", 100): 2.0, ("b", 10): 3.0, ("b", 100): 4.0}
    growth = figures_of(found).growth(**SHAPE)
    assert growth.name == "thing"
    assert growth.x_values == (10, 100)
    assert growth.series == {"a": (1, 2), "b": (3, 4)}
    assert growth.failures == {}


def test_a_loop_that_fails_is_not_measured_at_larger_sizes_and_the_others_go_on() -> None:
    growth = figures_of({("a", 10): "hangs", ("b", 10): 3.0, ("b", 100): 4.0}).growth(**SHAPE)
    assert growth.series == {"a": (None, None), "b": (3, 4)}
    assert growth.failures == {"a": "at 10: hangs"}


def test_a_failure_leaves_the_figures_of_smaller_sizes() -> None:
    found = {("a", 10): 1.0, ("a", 100): "lost a connection", ("b", 10): 3.0, ("b", 100): 4.0}
    assert figures_of(found).growth(**SHAPE).series["a"] == (1, None)


def test_a_round_that_fails_takes_the_rounds_before_with_it() -> None:
    figures = Figures("thing", ["a"], (1,))
    figures.add("a", 1, 5.0)
    figures.fail("a", 1, "hangs")
    assert figures.growth(**SHAPE).series == {"a": (None,)}
    assert figures.failures == {"a": "hangs"}


def test_rounds_are_interleaved() -> None:
    turns = list(Figures("thing", ["a", "b"], (10,)).turns(2))
    assert turns == [("a", 10), ("b", 10), ("a", 10), ("b", 10)]


def test_the_median_round_counts_unless_chosen_otherwise() -> None:
    figures = Figures("thing", ["a"], (1,))
    for figure in (7.0, 2.0, 3.0):
        figures.add("a", 1, figure)
    assert figures.growth(**SHAPE).series == {"a": (3,)}
    assert figures.growth(**SHAPE, choose=min).series == {"a": (2,)}


def test_a_table_shows_figures_failures_and_how_it_was_measured() -> None:
    found = {("a", 10): 1.234, ("a", 100): 5678.0, ("b", 10): 3.0, ("b", 100): "hangs"}
    title, head, a, b, failure, note = table(figures_of(found).growth(**SHAPE)).splitlines()
    assert title == "thing: A thing, seconds"
    assert head.split() == ["things", "10", "100"]
    assert a.split() == ["a", "1.23", "5,678"]
    assert b.split() == ["b", "3.00", "-"]
    assert failure.split() == ["b", "fails", "at", "100:", "hangs"]
    assert note == "With a watch."


def test_idle_connections_and_busy_ones_make_the_size() -> None:
    assert connections.load_among(1_000).arguments()[-2:] == ["--idle", "900"]
    assert connections.load_among(100).idle == 0


def test_sizes_beyond_the_limit_of_descriptors_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(connections.resource, "getrlimit", lambda kind: (256, 4_000))
    monkeypatch.setattr(connections.resource, "setrlimit", lambda kind, limits: asked.append(limits))
    assert connections.within_limit((100, 1_000, 10_000)) == (100, 1_000)
    assert asked == [(4_000, 4_000)]


@pytest.mark.parametrize("pending", timers.SIZES)
def test_enough_is_cancelled_for_cancelled_timers_to_be_cleared_away(pending: int) -> None:
    more = work_timers.more(pending)
    assert more > pending
    assert pending + more > 100


def test_replacing_timers_measures_both_halves() -> None:
    insertion, cancellation = asyncio.run(work_timers.replace(pending=10, times=200))
    assert insertion > 0
    assert cancellation > 0


def test_messages_that_arrive_in_pieces_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_flood.time, "monotonic_ns", lambda: 1_000)
    receiver = work_flood.Receiver()
    data = struct.pack("!qqq", 100, 200, 300)
    for piece in (data[:3], data[3:20], data[20:]):
        receiver.data_received(piece)
    assert receiver.delays == [900, 800, 700]


def test_a_flood_that_lets_no_message_through_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flood, "run", lambda command, timeout: "[3, 10.0, 20.0]")
    most, worst = flood.measure(["a"], quick=True)
    assert most.failures == {"a": "at 1: starves: 3 messages arrived in 0.5 s"}
    assert most.series == worst.series == {"a": (None, None, None)}


def test_a_flood_gives_most_and_worst(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flood, "run", lambda command, timeout: "[500, 10.0, 20.0]")
    most, worst = flood.measure(["a"], quick=True)
    assert most.series == {"a": (10, 10, 10)}
    assert worst.series == {"a": (20, 20, 20)}
