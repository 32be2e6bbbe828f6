"""The rows of the comparison: how one loop's rate and cost are measured in each."""

import abc
import contextlib
import http.client
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
from benchmarks.children import CLIENT_PROCESSOR, SERVER_PROCESSOR, Failed, python, run, running
from benchmarks.counters import Count, Counter
from benchmarks.generator import Load, Outcome
from benchmarks.scheduling import CASES, Case
from benchmarks.servers import BODY

PATIENCE = 20.0
"""Seconds to start and do the work, after which a loop counts as hung."""
COUNTING_PATIENCE = 120.0
"""PATIENCE under a counting tool, which is slower."""

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
    group: ClassVar[str]

    @abc.abstractmethod
    def rate(self, loop: str, seconds: float) -> Outcome:
        """One timed round. Raises Failed."""

    @abc.abstractmethod
    def count(self, loop: str, counter: Counter) -> Count:
        """The cost per request or iteration, from the difference between two runs. Raises Failed."""

    def is_named(self, wanted: str) -> bool:
        return wanted in (self.name, self.group)

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
    group: ClassVar[str] = "scheduling"

    @classmethod
    def of(cls, name: str, case: Case) -> "SchedulingRow":
        target = Target(user=case.target, has_children=case.has_children)
        return cls(name, case.title, case, target=target)

    @property
    def is_steady(self) -> bool:
        return self.case.is_steady

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
        return python("scheduling", loop, self.name, str(times), *options)


@dataclass(frozen=True)
class ServerRow(Row):
    server: str
    load: Load
    counted: int
    """Requests of a run that counts instructions."""

    def rate(self, loop: str, seconds: float) -> Outcome:
        with self._serving(loop, None) as address:
            return self._drive_for(address, seconds)

    def count(self, loop: str, counter: Counter) -> Count:
        warmup = max(300, 4 * self.load.connections * self.load.depth)
        start, answered_at_start = self._counted(loop, counter, warmup)
        whole, answered = self._counted(loop, counter, warmup + self.counted)
        return steady(whole.per_request(start, answered - answered_at_start))

    def _counted(self, loop: str, counter: Counter, requests: int) -> tuple[Count, int]:
        with tempfile.NamedTemporaryFile() as output:
            with self._serving(loop, (counter, output.name)) as address:
                answered = self._drive_until(address, requests, COUNTING_PATIENCE).requests
            return counter.read(output.name), answered

    @contextlib.contextmanager
    def _serving(self, loop: str, counted: tuple[Counter, str] | None, *arguments: str) -> Iterator[str]:
        address = self._free_address()
        command = self._command(loop, address, *arguments)
        timeout = PATIENCE
        if counted:
            counter, output = counted
            command = counter.wrap(command, output)
            timeout = COUNTING_PATIENCE
        with running(command, timeout=timeout, processor=None if counted else SERVER_PROCESSOR):
            yield address

    def _command(self, loop: str, address: str, *arguments: str) -> list[str]:
        return python("servers", loop, self.server, address, *arguments)

    def _free_address(self) -> str:
        return free_address()

    @abc.abstractmethod
    def _drive_for(self, address: str, seconds: float) -> Outcome: ...

    @abc.abstractmethod
    def _drive_until(self, address: str, requests: int, timeout: float) -> Outcome: ...


@dataclass(frozen=True)
class EchoRow(ServerRow):
    scheme: str = "tcp://"
    group: ClassVar[str] = "echo"

    def _command(self, loop: str, address: str, *arguments: str) -> list[str]:
        if loop == LIMIT:
            return [generator.build(LIMIT), self.scheme + address]
        return super()._command(loop, address, *arguments)

    def _drive_for(self, address: str, seconds: float) -> Outcome:
        return generator.for_seconds(self.scheme + address, self.load, seconds)

    def _drive_until(self, address: str, requests: int, timeout: float) -> Outcome:
        return generator.for_requests(self.scheme + address, self.load, requests, timeout)


@dataclass(frozen=True)
class UnixEchoRow(EchoRow):
    @contextlib.contextmanager
    def _serving(self, loop: str, counted: tuple[Counter, str] | None, *arguments: str) -> Iterator[str]:
        with super()._serving(loop, counted, *arguments) as address:
            yield address
        Path(address).unlink(missing_ok=True)

    def _free_address(self) -> str:
        return tempfile.mktemp(prefix="echo-", suffix=".sock")


@dataclass(frozen=True)
class HttpRow(ServerRow):
    group: ClassVar[str] = "http"

    def _drive_for(self, address: str, seconds: float) -> Outcome:
        url = f"http://{address}/"
        if not generator.has_wrk():
            check_body(url)
            return generator.for_seconds(url, self.load, seconds)
        outcome = checked_wrk(url, self.load, seconds)
        # wrk does not check the answers. The other generator does.
        generator.for_requests(url, self.load, 10 * self.load.connections, PATIENCE)
        return outcome

    def _drive_until(self, address: str, requests: int, timeout: float) -> Outcome:
        return generator.for_requests(f"http://{address}/", self.load, requests, timeout)


@dataclass(frozen=True)
class HttpsRow(ServerRow):
    group: ClassVar[str] = "http"

    @contextlib.contextmanager
    def _serving(self, loop: str, counted: tuple[Counter, str] | None, *arguments: str) -> Iterator[str]:
        with certificate() as path, super()._serving(loop, counted, path) as address:
            yield address

    def _drive_for(self, address: str, seconds: float) -> Outcome:
        if not generator.has_wrk():
            raise Failed("needs wrk")
        return checked_wrk(f"https://{address}/", self.load, seconds)

    def _drive_until(self, address: str, requests: int, timeout: float) -> Outcome:
        """Runs wrk, which stops after a time and not a number of requests, for a time in proportion."""
        return self._drive_for(address, 4 + 10 * requests / self.counted)


@dataclass(frozen=True)
class ClientRow(Row):
    """The loop runs clients, which send a request when the former is answered."""

    connections: int
    timed: int
    counted: int
    group: ClassVar[str] = "client"

    def rate(self, loop: str, seconds: float) -> Outcome:
        with self._answering() as address:
            command = self._command(loop, self.timed, address)
            taken = json.loads(run(command, timeout=PATIENCE, processor=CLIENT_PROCESSOR))["seconds"]
        return Outcome(self.timed, self.timed / taken, 0.0)

    def count(self, loop: str, counter: Counter) -> Count:
        start, whole = (self._counted(loop, counter, times) for times in (self.counted, 2 * self.counted))
        # The warm-up is a tenth of the requests.
        return steady(whole.per_request(start, self.counted + self.counted // 10))

    def _counted(self, loop: str, counter: Counter, times: int) -> Count:
        with tempfile.NamedTemporaryFile() as output, self._answering() as address:
            command = counter.wrap(self._command(loop, times, address), output.name)
            run(command, timeout=COUNTING_PATIENCE)
            return counter.read(output.name)

    def _command(self, loop: str, times: int, address: str) -> list[str]:
        return python("clients", loop, str(self.connections), str(times), address)

    @contextlib.contextmanager
    def _answering(self) -> Iterator[str]:
        address = free_address()
        command = [generator.build(LIMIT), f"tcp://{address}"]
        with running(command, timeout=PATIENCE, processor=SERVER_PROCESSOR):
            yield address


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


@contextlib.contextmanager
def certificate() -> Iterator[str]:
    """Makes a file with a new certificate and its key."""
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/certificate.pem"
        subject = ["-subj", "/CN=localhost", "-days", "1"]
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        try:
            run(["openssl", "req", "-x509", *subject, *key, "-out", path, "-keyout", path], timeout=PATIENCE)
        except FileNotFoundError:
            raise Failed("needs openssl to make a certificate") from None
        yield path


def checked_wrk(url: str, load: Load, seconds: float) -> Outcome:
    """Runs wrk, and checks an answer before and after."""
    check_body(url)
    outcome = generator.wrk(url, load, seconds)
    check_body(url)
    return outcome


def check_body(url: str) -> None:
    """Raises Failed unless the server answers with the expected body."""
    context = ssl._create_unverified_context() if url.startswith("https") else None
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE, context=context) as response:
            right = response.read() == BODY
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Failed(f"no right answer: {error!r}") from None
    if not right:
        raise Failed("wrong bytes")


ROWS: list[Row] = [
    *[SchedulingRow.of(name, case) for name, case in CASES.items()],
    EchoRow(
        "echo_1",
        "Protocol echo 1 KiB, 1 connection",
        "protocol",
        Load(connections=1),
        6_000,
        target=Target(2_200, 16_600),
        has_limit=True,
    ),
    EchoRow(
        "echo_64",
        "Protocol echo 1 KiB, 64 connections",
        "protocol",
        Load(),
        12_000,
        target=Target(1_700, 12_200),
        has_limit=True,
    ),
    EchoRow(
        "echo_pipelined",
        "Protocol echo 64 B, 64 connections, 16 in flight",
        "protocol",
        Load(size=64, depth=16),
        100_000,
        target=Target(110, 760),
        has_limit=True,
    ),
    EchoRow(
        "echo_100k",
        "Protocol echo 100 KiB, 16 connections",
        "protocol",
        Load(16, 100 * 1024),
        2_000,
        target=Target(2_200, 34_000),
        has_limit=True,
    ),
    EchoRow(
        "echo_buffered",
        "BufferedProtocol echo 1 KiB, 64 connections",
        "buffered",
        Load(),
        8_000,
        target=Target(3_300, 12_200),
    ),
    EchoRow(
        "echo_streams",
        "asyncio.start_server echo 1 KiB, 64 connections",
        "streams",
        Load(),
        4_000,
        target=Target(11_500, 12_500),
    ),
    EchoRow(
        "echo_sockets",
        "sock_recv and sock_sendall echo 1 KiB, 64 connections",
        "sockets",
        Load(),
        4_000,
        target=Target(13_000, 13_200),
    ),
    EchoRow(
        "echo_datagram",
        "datagram echo 1 KiB, 64 clients",
        "datagram",
        Load(),
        8_000,
        "udp://",
        target=Target(below_best=0.2),
        has_limit=True,
    ),
    UnixEchoRow("echo_unix", "Unix socket echo 1 KiB, 64 connections", "unix", Load(), 12_000, "unix:"),
    ClientRow(
        "client_1",
        "streams to an echo server, 1 KiB, 1 connection",
        1,
        10_000,
        2_000,
    ),
    ClientRow(
        "client_50",
        "streams to an echo server, 1 KiB, 50 tasks",
        50,
        30_000,
        4_000,
    ),
    HttpRow(
        "http_bare",
        "bare HTTP Protocol, 1 KiB body, 64 connections",
        "http",
        Load(),
        8_000,
        target=Target(2_300, 12_300),
    ),
    HttpsRow("http_tls", "bare HTTP Protocol over TLS, 64 connections", "http", Load(), 4_000),
    HttpRow(
        "http_uvicorn",
        "uvicorn + httptools, 64 connections",
        "uvicorn",
        Load(),
        1_500,
        target=Target(88_500, 12_300),
    ),
    HttpRow("http_uvicorn_1", "uvicorn + httptools, 1 connection", "uvicorn", Load(connections=1), 1_500),
    HttpRow("http_uvicorn_8", "uvicorn + httptools, 8 connections", "uvicorn", Load(connections=8), 1_500),
    HttpRow(
        "http_aiohttp",
        "aiohttp, 64 connections",
        "aiohttp",
        Load(),
        1_500,
        target=Target(132_000, 12_700),
    ),
    HttpRow("http_aiohttp_1", "aiohttp, 1 connection", "aiohttp", Load(connections=1), 1_500),
    HttpRow("http_aiohttp_8", "aiohttp, 8 connections", "aiohttp", Load(connections=8), 1_500),
]
