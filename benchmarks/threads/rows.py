"""The rows: how one loop is measured in each, in one or several threads or processes."""

import abc
import contextlib
import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import generator
from benchmarks.children import processor_time, python, run, running
from benchmarks.generator import Load
from benchmarks.row import PATIENCE, check_body, free_address
from benchmarks.threads import pieces
from benchmarks.threads.pieces import Piece
from benchmarks.threads.work_pieces import CASES
from benchmarks.threads.work_servers import GRANIAN
from benchmarks.tls import certificate

CLIENT_THREADS = max((os.cpu_count() or 1) // 2, 1)
"""Threads of wrk, which leave as many processors to the server."""


@dataclass(frozen=True)
class Workers:
    """Processes with as many threads each, and in each thread a loop."""

    threads: int = 1
    processes: int = 1

    @property
    def number(self) -> int:
        return self.threads * self.processes

    @property
    def title(self) -> str:
        if self.processes > 1:
            return f"{self.processes} processes"
        return f"{self.threads} thread{'s' * (self.threads > 1)}"


@dataclass(frozen=True)
class Sample:
    """What a round finds."""

    costs: list[float]
    """Nanoseconds of processor time per operation or request."""
    rate: float | None
    """Operations or requests per second of all workers."""


@dataclass(frozen=True)
class Row(abc.ABC):
    name: str
    title: str

    @abc.abstractmethod
    def measure(self, loop: str, workers: Workers, seconds: float) -> Sample:
        """One round. Raises Failed."""

    @abc.abstractmethod
    def fits(self, loop: str, workers: Workers) -> bool:
        """Whether the row can be measured so."""

    @property
    @abc.abstractmethod
    def least(self) -> int:
        """The least number of costs in all rounds that make a figure."""

    @abc.abstractmethod
    def choose(self, costs: Sequence[float]) -> float:
        """The figure of the costs of all rounds."""


@dataclass(frozen=True)
class PiecesRow(Row):
    least = 10

    def choose(self, costs: Sequence[float]) -> float:
        return pieces.lower_decile(costs)

    def fits(self, loop: str, workers: Workers) -> bool:
        return loop != GRANIAN

    def measure(self, loop: str, workers: Workers, seconds: float) -> Sample:
        arguments = [loop, self.name, str(workers.threads), str(workers.processes), str(seconds)]
        printed = run(python("threads.work_pieces", *arguments), timeout=PATIENCE + seconds)
        found = [[Piece(*piece) for piece in of_thread] for of_thread in json.loads(printed)]
        return Sample(pieces.costs(found), pieces.rate(found))


@dataclass(frozen=True)
class HttpRow(Row):
    has_tls: bool = False
    least = 1

    def choose(self, costs: Sequence[float]) -> float:
        return statistics.median(costs)

    def fits(self, loop: str, workers: Workers) -> bool:
        return loop != GRANIAN or workers.processes == 1

    def measure(self, loop: str, workers: Workers, seconds: float) -> Sample:
        address = free_address()
        with contextlib.ExitStack() as stack:
            arguments = [loop, str(workers.threads), address]
            if self.has_tls:
                arguments.append(certificate())
            command = python("threads.work_servers", *arguments)
            servers = [
                stack.enter_context(running(command, timeout=PATIENCE)) for _ in range(workers.processes)
            ]
            return self._drive(f"{'https' if self.has_tls else 'http'}://{address}/", servers, seconds)

    def _drive(self, url: str, servers: list[int], seconds: float) -> Sample:
        check_body(url)
        before = processor_times(servers)
        if generator.has_wrk():
            outcome = generator.wrk(url, Load(), seconds, CLIENT_THREADS)
        else:
            outcome = generator.for_seconds(url, Load(), seconds, certificate() if self.has_tls else "")
        after = processor_times(servers)
        check_body(url)
        costs = [] if before is None or after is None else [(after - before) / outcome.answered]
        return Sample(costs, outcome.rate)


def processor_times(processes: list[int]) -> int | None:
    """Processor time of other processes, in nanoseconds. None where their clocks cannot be read."""
    times = [processor_time(process) for process in processes]
    return None if None in times else sum(time for time in times if time is not None)


ROWS: list[Row] = [
    *[PiecesRow(name, case.title) for name, case in CASES.items()],
    HttpRow("http", "bare HTTP Protocol, 1 KiB body, 64 connections"),
    HttpRow("http_tls", "bare HTTP Protocol over TLS, 64 connections", has_tls=True),
]
