"""The rows of databases, other projects, competing tasks and bulk transfers run, once each, for a moment; and
what is not installed is left out."""

import asyncio
import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import bulk_work, concurrency, counters, databases, generator, malloc, measuring, report, run
from benchmarks import split as splitting
from benchmarks.children import python
from benchmarks.children import run as run_to_end
from benchmarks.clients import requests_with_warmup
from benchmarks.growth_result import Growth
from benchmarks.results import Measured
from benchmarks.row import ClientRow, Row, SchedulingRow, ServerRow
from benchmarks.rows import ROWS, rank
from benchmarks.steps import Plan, of_row

SECONDS = 0.05
TIMES = {"sleepers": 5_000, "executor_jobs": 1_000, "subprocess_output": 2}
"""Repetitions, where 100 are too many or too few."""
PRINT_ENVIRONMENT = [sys.executable, "-c", "import os; print(dict(os.environ))"]
GROUPS = ("programs", "databases", "bulk")
NEW = [
    row
    for row in ROWS
    if row.group in GROUPS
    or row.name in concurrency.CASES
    or row.name.startswith(("client_aiohttp", "client_httpx", "tls_aiohttp", "tls_httpx"))
]


@pytest.fixture(autouse=True, scope="module")
def no_server_left() -> Iterator[None]:
    yield
    databases.RUNNING.close()


def is_built() -> bool:
    target = os.environ.get("CARGO_TARGET_DIR") or generator.PACKAGE / "target"
    return all((Path(target) / "release" / program).exists() for program in ("load", "limit"))


def shortened(row: Row) -> Row:
    if isinstance(row, SchedulingRow):
        times = TIMES.get(row.name, 100)
        case = dataclasses.replace(row.case, timed=times, counted=times)
        return dataclasses.replace(row, case=case)
    if isinstance(row, ClientRow):
        return dataclasses.replace(row, timed=row.connections * 2)
    return row


@pytest.mark.parametrize("row", NEW, ids=lambda row: row.name)
def test_a_row_has_a_rate(row: Row) -> None:
    pytest.importorskip("hotloop._core")
    if row.missing:
        pytest.skip(f"needs {' and '.join(row.missing)}")
    needs_generator = isinstance(row, ServerRow) or row.group in ("client", "tls")
    if needs_generator and not is_built():
        pytest.skip("the load generator is not built: cargo build --release, in benchmarks/load")
    outcome = shortened(row).rate("hotloop", SECONDS)
    assert outcome.rate > 0
    assert isinstance(row, SchedulingRow) or outcome.processor is None or outcome.processor > 0


@pytest.mark.parametrize(("work", "times"), [("datagram", 100), ("loop", 20), ("import", 1)])
def test_memory_is_measured(work: str, times: int) -> None:
    pytest.importorskip("hotloop._core")
    assert float(run_to_end(python("growth.work_memory", "hotloop", work, str(times)), timeout=20)) > 0


def test_what_is_not_installed_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "available", list)
    row = next(row for row in ROWS if row.name == "echo_64")
    needy = dataclasses.replace(row, name="needy", packages=("asyncio", "no_such_package"))
    monkeypatch.setattr(run, "ROWS", [row, needy])
    plan = run.plan_of(run.parser().parse_args(["--loops", "asyncio"]))
    assert plan.rows == [row]
    assert plan.left_out == {"needy": "no_such_package"}
    assert run.run_of(plan).facts["Left out"] == "needy needs no_such_package"


def test_what_is_left_out_is_said_before_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan([], ["asyncio"], 1, 1.0, [], left_out={"needy": "no_such_package"})
    measuring.measure(plan, Measured([], {}), lambda: None)
    assert capsys.readouterr().err.splitlines()[0] == "needy: left out, needs no_such_package"


def test_rows_without_counts_have_only_rates() -> None:
    tool = splitting.Callgrind()
    plan = Plan(ROWS, ["asyncio", "hotloop"], 1, 1.0, [tool], tool)
    parts = {row.name: {step.part for step in of_row(row, plan)} for row in ROWS}
    assert parts["grpc"] == parts["bulk_tcp_receive"] == {"rates"}
    assert parts["websockets"] == parts["asyncpg_1"] == {"rates", "counts", "split"}


@pytest.mark.skipif(len(malloc.settings("echo")) == 1, reason="needs glibc")
def test_bulk_has_both_settings_of_malloc() -> None:
    row = next(row for row in ROWS if row.name == "bulk_tcp_receive")
    turns = Plan([row], ["asyncio", "hotloop"], 1, 1.0, []).turns(row)
    assert ("asyncio", malloc.KEEPING) in turns
    assert ("asyncio", malloc.DEFAULT) in turns


def test_a_database_has_the_default_malloc(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    @contextlib.contextmanager
    def printing(command: list[str], **options: object) -> Iterator[int]:
        started.append(run_to_end(PRINT_ENVIRONMENT, timeout=20))
        yield 1

    monkeypatch.setattr(databases, "running", printing)
    with malloc.set_to(malloc.KEEPING):
        databases.start("redis")
        assert "MALLOC_TOP_PAD_" in run_to_end(PRINT_ENVIRONMENT, timeout=20)
    assert len(started) == 1
    assert "MALLOC_TOP_PAD_" not in started[0]


def test_the_rows_that_people_know_come_after_those_of_http() -> None:
    ranked = ["http_aiohttp", "asyncpg_1", "redis_1", "websockets", "fastapi", "bulk_tcp_receive"]
    assert [rank(name) - rank("http_aiohttp") for name in ranked] == list(range(6))


def test_a_meter_leaves_the_warm_up_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 10.0
    monkeypatch.setattr(bulk_work.time, "perf_counter", lambda: now)
    meter = bulk_work.Meter(1.0)
    sizes = [(10.05, 7, True), (10.2, 7, True), (10.7, 100, True), (11.3, 20, False)]
    for moment, size, goes_on in sizes:
        now = moment
        assert meter.goes_on(size) is goes_on
    assert meter.bytes == 120
    assert meter.taken == pytest.approx(1.1)


@pytest.mark.parametrize(("number", "times", "sent"), [(1, 100, 111), (50, 100, 150), (50, 1_000, 1_150)])
def test_requests_are_counted_with_those_of_the_warm_up(number: int, times: int, sent: int) -> None:
    assert requests_with_warmup(number, times) == sent


def test_memory_has_one_table() -> None:
    loop = Growth("loop_memory", "A loop", "loops", "bytes", (9.0,), {"a": (7.0,), "b": (900.0,)}, {}, "So.")
    tls = Growth(
        "tls_memory", "TLS", "open", "bytes", (8.0,), {"a": (None,), "b": (5.0,)}, {"a": "no"}, "Thus."
    )
    other = dataclasses.replace(loop, name="flood")
    assert report.memory_section([loop, other, tls]).splitlines()[2:] == [
        "| bytes | a | b |",
        "|---|---:|---:|",
        "| A loop | **7.00** | 900 |",
        "| TLS | fails | **5.00** |",
        "",
        "- A loop, of 9: So.",
        "- TLS, of 8: Thus.",
        "- TLS: a fails: no",
    ]
    assert report.memory_section([other]) == ""


def test_the_lock_is_held_as_often_as_it_is_asked_for() -> None:
    asyncio.run(concurrency.lock_contended(concurrency.LOCK_TASKS * 2))
