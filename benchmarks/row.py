"""The kinds of rows: how one loop's rate and cost are measured in each."""

import abc
import contextlib
import http.client
import importlib.util
import json
import socket
import ssl
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from benchmarks import generator
from benchmarks.case import Case
from benchmarks.children import (
    CLIENT_PROCESSOR,
    SERVER_PROCESSOR,
    Failed,
    processor_times,
    python,
    run,
    running,
)
from benchmarks.clients import requests_with_warmup
from benchmarks.counters import Count, Counter
from benchmarks.generator import Load, Outcome, Paced
from benchmarks.servers import BODY

PATIENCE = 20.0
"""Seconds to start and do the work, after which a loop counts as hung."""
COUNTING_PATIENCE = 120.0
"""PATIENCE under a counting tool, which is slower."""

STARTING = 0.3
"""About how many seconds it takes to start and end a server and its clients, with the warm-up."""

LIMIT = "limit"
"""Stands for a loop: the load generator's server, which only makes system calls."""


@dataclass(frozen=True)
class Target:
    """The most instructions that hotloop is to take per request or iteration."""

    user: float | None = None
    kernel: float | None = None
    below_best: float | None = None
    """Without `user`: the share of user instructions to be under the best other loop."""
    has_children: bool = False
    """Whether child processes do a part of the work, which only perf counts."""


@dataclass(frozen=True)
class Row(abc.ABC):
    name: str
    title: str
    target: Target = field(default=Target(), kw_only=True)
    has_limit: bool = field(default=False, kw_only=True)
    packages: tuple[str, ...] = field(default=(), kw_only=True)
    """Python packages that the row needs."""
    group: ClassVar[str]

    @abc.abstractmethod
    def rate(self, loop: str, seconds: float) -> Outcome:
        """One timed round. Raises Failed."""

    @abc.abstractmethod
    def count(self, loop: str, counter: Counter) -> Count:
        """The cost per request or iteration, from the difference between two runs. Raises Failed."""

    def round_takes(self, seconds: float) -> float:
        """About how many seconds a round of one loop takes, with the start of its processes.

        A server is under load for `seconds`."""
        return seconds + STARTING

    def is_named(self, wanted: str) -> bool:
        return wanted in (self.name, self.group)

    def compares(self, loop: str) -> bool:
        """Whether the loop is measured in this row. One with other transports is only where these matter."""
        return "+" not in loop

    @property
    def missing(self) -> list[str]:
        """What the row needs that is not installed."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]

    @property
    def is_counted(self) -> bool:
        """Whether instructions are counted."""
        return True

    @property
    def is_limit_counted(self) -> bool:
        """Whether the limit has a count: the cost of a library that every loop calls."""
        return False

    @property
    def is_steady(self) -> bool:
        """Whether counts are reproducible."""
        return True


def steady(count: Count) -> Count:
    """Returns the count. Raises Failed if it is empty, or not positive as the start of Python varies."""
    if any(instructions is not None and instructions <= 0 for instructions in (count.user, count.kernel)):
        raise Failed("the count is not steady")
    if count == Count():
        raise Failed("nothing was counted")
    return count


@dataclass(frozen=True)
class SchedulingRow(Row):
    case: Case
    layout: int = 0
    group: ClassVar[str] = "scheduling"

    @classmethod
    def of(cls, name: str, case: Case) -> "SchedulingRow":
        target = Target(user=case.target, has_children=case.has_children)
        return cls(name, case.title, case, target=target)

    @property
    def is_steady(self) -> bool:
        return self.case.is_steady

    def round_takes(self, seconds: float) -> float:
        return 0.4

    def rate(self, loop: str, seconds: float) -> Outcome:
        times = self.case.timed
        taken = json.loads(run(self._command(loop, times), timeout=PATIENCE))["seconds"]
        return Outcome(times, times / taken, 0.0)

    def count(self, loop: str, counter: Counter) -> Count:
        start, whole = (
            self._counted(loop, counter, times) for times in (self.case.counted, 2 * self.case.counted)
        )
        return steady(whole.per_request(start, self.case.counted))

    def _counted(self, loop: str, counter: Counter, times: int) -> Count:
        with tempfile.NamedTemporaryFile() as output:
            command = counter.wrap(self._command(loop, times, "--no-gc"), output.name)
            run(command, timeout=COUNTING_PATIENCE)
            return counter.read(output.name)

    def _command(self, loop: str, times: int, *options: str) -> list[str]:
        return python("scheduling", loop, self.name, str(times), *options, layout=self.layout)


@dataclass(frozen=True)
class ServerRow(Row):
    server: str
    load: Load
    counted: int
    """Requests of a run that counts instructions."""

    def rate(self, loop: str, seconds: float) -> Outcome:
        address = self._free_address()
        with self._serving(loop, address) as server:
            before = processor_times(server)
            outcome = self._drive_for(address, seconds)
            return outcome.with_processor(before, processor_times(server))

    def latency(self, loop: str, rate: int, seconds: float) -> Paced:
        """One timed round with requests at a fixed rate. Raises Failed."""
        address = self._free_address()
        with self._serving(loop, address):
            return generator.at_rate(self._url(address), self.load, seconds, rate, self._trust())

    def count(self, loop: str, counter: Counter) -> Count:
        warmup = max(300, 4 * self.load.connections * self.load.depth)
        start, answered_at_start = self._counted(loop, counter, warmup)
        whole, answered = self._counted(loop, counter, warmup + self.counted)
        return steady(whole.per_request(start, answered - answered_at_start))

    def _counted(self, loop: str, counter: Counter, requests: int) -> tuple[Count, int]:
        with tempfile.NamedTemporaryFile() as output:
            address = self._free_address()
            with self._serving(loop, address, (counter, output.name)):
                answered = self._drive_until(address, requests, COUNTING_PATIENCE).requests
            return counter.read(output.name), answered

    @contextlib.contextmanager
    def _serving(self, loop: str, address: str, counted: tuple[Counter, str] | None = None) -> Iterator[int]:
        """Yields the number of the server's process."""
        command = self._command(loop, address)
        timeout = PATIENCE
        if counted:
            counter, output = counted
            command = counter.wrap(command, output)
            timeout = COUNTING_PATIENCE
        with running(command, timeout=timeout, processor=None if counted else SERVER_PROCESSOR) as server:
            yield server

    def _command(self, loop: str, address: str) -> list[str]:
        return python("servers", loop, self.server, address)

    def _free_address(self) -> str:
        return free_address()

    @abc.abstractmethod
    def _url(self, address: str) -> str:
        """The load generator's address of the server."""

    def _trust(self) -> str:
        """The path of the server's certificate, if it has one."""
        return ""

    @abc.abstractmethod
    def _drive_for(self, address: str, seconds: float) -> Outcome: ...

    @abc.abstractmethod
    def _drive_until(self, address: str, requests: int, timeout: float) -> Outcome: ...


@dataclass(frozen=True)
class EchoRow(ServerRow):
    scheme: str = "tcp://"
    group: ClassVar[str] = "echo"

    def _command(self, loop: str, address: str) -> list[str]:
        if loop == LIMIT:
            return [generator.build(LIMIT), self.scheme + address]
        return super()._command(loop, address)

    def _url(self, address: str) -> str:
        return self.scheme + address

    def _drive_for(self, address: str, seconds: float) -> Outcome:
        return generator.for_seconds(self._url(address), self.load, seconds)

    def _drive_until(self, address: str, requests: int, timeout: float) -> Outcome:
        return generator.for_requests(self._url(address), self.load, requests, timeout)


@dataclass(frozen=True)
class UnixEchoRow(EchoRow):
    @contextlib.contextmanager
    def _serving(self, loop: str, address: str, counted: tuple[Counter, str] | None = None) -> Iterator[int]:
        with super()._serving(loop, address, counted) as server:
            yield server
        Path(address).unlink(missing_ok=True)

    def _free_address(self) -> str:
        return tempfile.mktemp(prefix="echo-", suffix=".sock")


@dataclass(frozen=True)
class HttpRow(ServerRow):
    body: bytes = field(default=BODY, kw_only=True)
    """The server's right answer."""
    group: ClassVar[str] = "http"

    def _url(self, address: str) -> str:
        return f"http://{address}/"

    def _drive_for(self, address: str, seconds: float) -> Outcome:
        url = self._url(address)
        if not generator.has_wrk() or seconds < 1:
            # wrk takes whole seconds.
            check_body(url, self.body)
            return generator.for_seconds(url, self.load, seconds)
        outcome = checked_wrk(url, self.load, seconds, self.body)
        # wrk does not check the answers. The other generator does.
        generator.for_requests(url, self.load, 10 * self.load.connections, PATIENCE)
        return outcome

    def _drive_until(self, address: str, requests: int, timeout: float) -> Outcome:
        return generator.for_requests(self._url(address), self.load, requests, timeout)


@dataclass(frozen=True)
class ClientRow(Row):
    """The loop runs clients, which send a request when the former is answered."""

    connections: int
    """Tasks, each with a connection, unless the client's tasks share some."""
    timed: int
    counted: int
    client: str = "streams"
    scheme: ClassVar[str] = "tcp://"
    group: ClassVar[str] = "client"

    def round_takes(self, seconds: float) -> float:
        return 1.0

    def rate(self, loop: str, seconds: float) -> Outcome:
        with self._answering() as address:
            command = self._command(loop, self.timed, address)
            found = json.loads(run(command, timeout=PATIENCE, processor=CLIENT_PROCESSOR))
        user, kernel = (1e6 * found[part] / self.timed for part in ("user", "kernel"))
        rate = self.timed / found["seconds"]
        return Outcome(self.timed, rate, 0.0, user + kernel, self.timed, user, kernel)

    def count(self, loop: str, counter: Counter) -> Count:
        start, whole = (self._counted(loop, counter, times) for times in (self.counted, 2 * self.counted))
        sent_at_start, sent = (
            requests_with_warmup(self.connections, times) for times in (self.counted, 2 * self.counted)
        )
        return steady(whole.per_request(start, sent - sent_at_start))

    def _counted(self, loop: str, counter: Counter, times: int) -> Count:
        with tempfile.NamedTemporaryFile() as output, self._answering() as address:
            command = counter.wrap(self._command(loop, times, address), output.name)
            run(command, timeout=COUNTING_PATIENCE)
            return counter.read(output.name)

    def _command(self, loop: str, times: int, address: str) -> list[str]:
        return python("clients", loop, self.client, str(self.connections), str(times), address)

    @contextlib.contextmanager
    def _answering(self) -> Iterator[str]:
        address = free_address()
        with running(self._server(address), timeout=PATIENCE, processor=SERVER_PROCESSOR):
            yield address

    def _server(self, address: str) -> list[str]:
        return [generator.build(LIMIT), self.scheme + address]


@dataclass(frozen=True)
class HttpClientRow(ClientRow):
    """The requests go to the limit's HTTP server, as it leaves the client most of the time."""

    scheme: ClassVar[str] = "http://"


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


def checked_wrk(url: str, load: Load, seconds: float, body: bytes = BODY) -> Outcome:
    """Runs wrk, and checks an answer before and after."""
    check_body(url, body)
    outcome = generator.wrk(url, load, seconds)
    check_body(url, body)
    return outcome


def check_body(url: str, body: bytes = BODY) -> None:
    """Raises Failed unless the server answers with the expected body."""
    context = ssl._create_unverified_context() if url.startswith("https") else None
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE, context=context) as response:
            right = response.read() == body
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Failed(f"no right answer: {error!r}") from None
    if not right:
        raise Failed("wrong bytes")
