"""The load generators: the one in load/ and, for HTTP, wrk."""

import functools
import json
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.children import CLIENT_PROCESSOR, ROOT, Failed, ProcessorTime, run

PACKAGE = ROOT / "benchmarks" / "load"
UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 60e6}


@dataclass(frozen=True)
class Outcome:
    requests: int
    rate: float
    """Requests answered per second."""
    p99: float
    """The latency that 99 % of them did not exceed, in microseconds."""
    processor: float | None = None
    """Microseconds of processor time of the measured process per request."""
    answered: int = 0
    """Requests with those of the warm-up."""
    user: float | None = None
    """The part of `processor` in user mode."""
    kernel: float | None = None
    """The part of `processor` in the kernel."""

    def with_processor(self, before: ProcessorTime | None, after: ProcessorTime | None) -> "Outcome":
        """Of a server with this processor time before and after it."""
        if before is None or after is None or not self.answered:
            return self
        both, user, kernel = (time / 1000 / self.answered for time in after.since(before))
        return replace(self, processor=both, user=user, kernel=kernel)


@dataclass(frozen=True)
class Paced:
    """Latency at a fixed rate, from when each request was due, in microseconds."""

    wanted: float
    """Requests due per second."""
    rate: float
    """Requests answered in time, per second."""
    p50: float
    p99: float
    p999: float
    requests: int
    """Requests that were counted in the round."""
    late: float
    """How late the generator itself dealt with 99 % of the requests, in microseconds."""


@dataclass(frozen=True)
class Load:
    """Connections, bytes of an echo request, requests in flight per connection, idle connections."""

    connections: int = 64
    size: int = 1024
    depth: int = 1
    idle: int = 0
    anew: str = ""
    """The handshake ("full" or "resumed") of a TLS connection that is made for each request."""

    def arguments(self) -> list[str]:
        busy = ["--connections", str(self.connections), "--size", str(self.size), "--depth", str(self.depth)]
        anew = ["--anew", self.anew] if self.anew else []
        return [*busy, "--idle", str(self.idle), *anew]


@functools.cache
def build(program: str = "load") -> str:
    """Builds a program of the load generator and returns its path. Raises SystemExit if that fails."""
    command = ["cargo", "build", "--release", "--quiet", "-j1"]
    if not shutil.which("cargo"):
        raise SystemExit("the load generator in benchmarks/load needs cargo to be built")
    if subprocess.run(command, cwd=PACKAGE).returncode:
        raise SystemExit("the load generator in benchmarks/load does not build")
    metadata = subprocess.run(
        ["cargo", "metadata", "--no-deps", "--format-version=1"], cwd=PACKAGE, capture_output=True, check=True
    )
    target: str = json.loads(metadata.stdout)["target_directory"]
    return f"{target}/release/{program}"


def for_requests(address: str, load: Load, requests: int, timeout: float, trust: str = "") -> Outcome:
    """Sends requests in lockstep, so that the server's iterations do not depend on its speed."""
    length = ["--requests", str(requests), "--lockstep", "--patience", str(timeout)]
    return _ours(address, load, length, timeout, trust)


def for_seconds(address: str, load: Load, seconds: float, trust: str = "") -> Outcome:
    """Returns what is counted after a warm-up."""
    return _ours(address, load, ["--seconds", str(seconds), "--warmup", "0.2"], seconds + 20, trust)


def at_rate(address: str, load: Load, seconds: float, rate: int, trust: str = "") -> Paced:
    """Makes requests at a fixed rate, after a warm-up of the same rate."""
    length = ["--rate", str(rate), "--seconds", str(seconds), "--warmup", "0.2"]
    report = _report(address, load, length, 2 * seconds + 20, trust)
    latency = report["latency_us"]
    return Paced(
        rate,
        report["in_time"] / report["seconds"],
        latency["p50"],
        latency["p99"],
        latency["p999"],
        report["requests"],
        report["late_us"]["p99"],
    )


def _ours(address: str, load: Load, length: list[str], timeout: float, trust: str) -> Outcome:
    report = _report(address, load, length, timeout, trust)
    rate, p99 = report["rate"], report["latency_us"]["p99"]
    return Outcome(report["requests"], rate, p99, answered=report["answered"])


def _report(address: str, load: Load, length: list[str], timeout: float, trust: str) -> dict[str, Any]:
    command = [build(), address, *load.arguments(), *length, *(["--trust", trust] if trust else [])]
    report: dict[str, Any] = json.loads(run(command, timeout=timeout, processor=CLIENT_PROCESSOR))
    return report


def has_wrk() -> bool:
    return shutil.which("wrk") is not None


def wrk(url: str, load: Load, seconds: float, threads: int = 1) -> Outcome:
    """Runs wrk, which takes whole seconds. With several threads it may use all processors."""
    whole = max(1, round(seconds))
    size = [f"-t{threads}", f"-c{load.connections}", f"-d{whole}s"]
    command = ["wrk", *size, "--timeout", "10s", "--latency", url]
    printed = run(command, timeout=whole + 30, processor=CLIENT_PROCESSOR if threads == 1 else None)
    for complaint in ("Socket errors", "Non-2xx"):
        if complaint in printed:
            raise Failed(next(line.strip() for line in printed.splitlines() if complaint in line))
    requests = re.search(r"(\d+) requests in", printed)
    rate = re.search(r"Requests/sec: +([\d.]+)", printed)
    p99 = re.search(r"99% +([\d.]+)([a-z]+)", printed)
    if not (requests and rate and p99) or requests[1] == "0":
        raise Failed("no request answered")
    return Outcome(int(requests[1]), float(rate[1]), float(p99[1]) * UNITS[p99[2]], answered=int(requests[1]))
