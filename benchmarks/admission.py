"""A flood of connections, on a server without a limit and with limits: python -m benchmarks.admission

Each request to the server takes four milliseconds of its processor. Clients that were connected before the
flood go on asking during it; how long they wait for each answer is drawn over time, for each limit. Prints a
table for docs/servers.md, and draws docs/charts/admission.svg where matplotlib is installed.
"""

import argparse
import asyncio
import datetime
import hashlib
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import charts
from benchmarks.children import CLIENT_PROCESSOR, SERVER_PROCESSOR, pin
from benchmarks.machine import machine

LIMITS: dict[str, dict[str, Any]] = {
    "without a limit": {},
    "connections=30": {"connections": 30},
    "delay=0.05": {"delay": 0.05},
}
"""The arguments of hotloop.limit()."""

WORK = 0.004
"""Seconds of the processor for a request."""
REGULARS = 10
"""Connections from before the flood."""
EACH = 0.25
"""Seconds from one request of them to the next."""
RATE = 500
"""New connections per second of the flood, each for one request."""
BEGINS, ENDS, LASTS = 3.0, 9.0, 18.0
"""Seconds at which the flood begins and ends, and at which all ends."""
PATIENCE = 2.0
"""Seconds that a client of the flood waits for its answer before it gives up."""

CHART = Path(__file__).parent.parent / "docs" / "charts" / "admission.svg"

REQUEST = ANSWER = b"x" * 16


@dataclass
class Outcome:
    """What came of one run."""

    waits: list[tuple[float, float]]
    """When a regular client asked, and how long it waited, in seconds."""
    answered: int
    """Clients of the flood that got an answer in time,"""
    given_up: int
    """and those that did not."""
    most: int
    """The most connections that the server had at a time."""
    memory: float
    """MiB that the server had at most."""

    def during(self) -> list[float]:
        """How long those waited that asked during the flood, but for its beginning."""
        return sorted(wait for asked, wait in self.waits if BEGINS + 0.5 <= asked < ENDS)

    def median(self) -> float:
        return statistics.median(self.during())


# --- The server ---


def work_units() -> int:
    """How many rounds of a hash take as long as a request is to take."""

    def seconds() -> float:
        began = time.perf_counter()
        hashlib.pbkdf2_hmac("sha256", b"password", b"salt", 10_000)
        return time.perf_counter() - began

    return round(10_000 * WORK / min(seconds() for _ in range(20)))


async def serve(limits: dict[str, Any]) -> None:
    import hotloop

    units = work_units()
    now = most = 0

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            nonlocal now, most
            self.transport = transport
            now += 1
            most = max(most, now)

        def data_received(self, data: bytes) -> None:
            hashlib.pbkdf2_hmac("sha256", b"password", b"salt", units)
            self.transport.write(ANSWER)

        def connection_lost(self, exc: Exception | None) -> None:
            nonlocal now
            now -= 1

    loop = asyncio.get_running_loop()
    server = await loop.create_server(Protocol, "127.0.0.1", 0)
    hotloop.limit(server, **limits)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"most": most, "memory": memory}), flush=True)


# --- The clients ---


async def regular(port: int, number: int, began: float, waits: list[tuple[float, float]]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    planned = began + number * EACH / REGULARS
    while planned < began + LASTS:
        await asyncio.sleep(planned - time.monotonic())
        asked = time.monotonic()
        writer.write(REQUEST)
        answer = asyncio.ensure_future(reader.readexactly(len(ANSWER)))
        await asyncio.wait([answer], timeout=began + LASTS + 5.0 - asked)
        waits.append((asked - began, time.monotonic() - asked))
        if not answer.done():
            answer.cancel()
            break
        planned = max(planned + EACH, time.monotonic())
    writer.close()


class Asking(asyncio.Protocol):
    """Asks once, and is `done` when the answer has come, or when there will be none."""

    def __init__(self, done: "asyncio.Future[bool]") -> None:
        self.done = done

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
        self.finish(True)

    def connection_lost(self, exc: Exception | None) -> None:
        self.finish(False)

    def finish(self, answered: bool) -> None:
        if not self.done.done():
            self.done.set_result(answered)


async def ask_once(port: int) -> bool:
    """Connect, ask, and return whether the answer came in time."""
    loop = asyncio.get_running_loop()
    protocol = Asking(loop.create_future())
    transport = None
    try:
        async with asyncio.timeout(PATIENCE):
            transport, _ = await loop.create_connection(lambda: protocol, "127.0.0.1", port)
            return await protocol.done
    except (OSError, TimeoutError):
        return False
    finally:
        if transport is not None:
            transport.abort()


async def flood(port: int, began: float) -> list[bool]:
    await asyncio.sleep(began + BEGINS - time.monotonic())
    clients = []
    while (now := time.monotonic()) < began + ENDS:
        behind = round((now - began - BEGINS) * RATE) - len(clients)
        clients += [asyncio.ensure_future(ask_once(port)) for _ in range(behind)]
        await asyncio.sleep(0.002)
    return await asyncio.gather(*clients)


async def ask_all(port: int) -> dict[str, Any]:
    began = time.monotonic() + 0.5
    waits: list[tuple[float, float]] = []
    regulars = [regular(port, number, began, waits) for number in range(REGULARS)]
    asked, *_ = await asyncio.gather(flood(port, began), *regulars)
    return {"waits": waits, "answered": sum(asked), "given_up": len(asked) - sum(asked)}


# --- The runs ---


def measure(limits: dict[str, Any]) -> Outcome:
    command = [sys.executable, "-m", "benchmarks.admission"]
    with subprocess.Popen(
        [*command, "--serve", json.dumps(limits)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin
        assert server.stdout
        port = server.stdout.readline().strip()
        asked = subprocess.run([*command, "--ask", port], stdout=subprocess.PIPE, text=True, check=True)
        server.stdin.close()
        served = json.loads(server.stdout.read())
    found = json.loads(asked.stdout)
    waits = sorted((asked, wait) for asked, wait in found.pop("waits"))
    return Outcome(waits=waits, **found, **served)


def table(outcomes: dict[str, Outcome]) -> str:
    lines = [
        "| | " + " | ".join(outcomes) + " |",
        "|---|" + "---:|" * len(outcomes),
    ]

    def line(title: str, figures: list[str]) -> None:
        lines.append(f"| {title} | " + " | ".join(figures) + " |")

    every = list(outcomes.values())
    line("a client from before waits, median", [_milliseconds(o.median()) for o in every])
    line("99th percentile", [_milliseconds(o.during()[len(o.during()) * 99 // 100]) for o in every])
    line("the longest", [_milliseconds(max(wait for _, wait in o.waits)) for o in every])
    line(
        f"of the flood, answered within {PATIENCE:g} s",
        [f"{o.answered / (o.answered + o.given_up):.0%}" for o in every],
    )
    line("connections at a time, at most", [f"{o.most:,}" for o in every])
    line("memory of the server, at most", [f"{o.memory:.0f} MiB" for o in every])
    return "\n".join(lines)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f} ms" if seconds >= 0.01 else f"{seconds * 1e3:.1f} ms"


def draw(outcomes: dict[str, Outcome], path: Path) -> None:
    """The waits of clients from before the flood, over time: the longest of each tenth of a second."""
    if importlib.util.find_spec("matplotlib") is None:
        print("no chart without matplotlib", file=sys.stderr)
        return
    import matplotlib
    import matplotlib.pyplot as plt

    colours = ["#3b4652", charts.STRONG, "#4f7ea8"]
    with matplotlib.rc_context(charts.STYLE):
        figure, panel = plt.subplots(figsize=(8, 3.6))
        panel.axvspan(BEGINS, ENDS, color=charts.FAINT, alpha=0.5, linewidth=0)
        panel.annotate("the flood", (BEGINS, 1), xycoords=("data", "axes fraction"), xytext=(4, -12),
                       textcoords="offset points", color=charts.TEXT)  # fmt: skip
        for (name, outcome), colour in zip(outcomes.items(), colours, strict=False):
            longest: dict[int, float] = {}
            for asked, wait in outcome.waits:
                tenth = int(asked * 10)
                longest[tenth] = max(longest.get(tenth, 0.0), wait * 1e3)
            tenths = sorted(longest)
            panel.plot([t / 10 for t in tenths], [longest[t] for t in tenths], color=colour, label=name)
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        panel.set_xlim(0, LASTS)
        panel.set_xlabel("seconds")
        panel.set_ylabel("milliseconds until the answer")
        charts.legend_above(figure, panel)
        charts.save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.admission", description=__doc__)
    parser.add_argument("--chart", type=Path, default=CHART, help="where to draw it")
    parser.add_argument("--rounds", type=int, default=5, help="of which the middle one counts")
    parser.add_argument("--serve", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--ask", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is None and options.ask is None:
        found: dict[str, list[Outcome]] = {name: [] for name in LIMITS}
        for number in range(options.rounds):
            for name, limits in LIMITS.items():
                print(f"{name}: {LASTS:g} s, round {number + 1} of {options.rounds}", file=sys.stderr)
                found[name].append(measure(limits))
        outcomes = {
            name: sorted(rounds, key=Outcome.median)[len(rounds) // 2] for name, rounds in found.items()
        }
        draw(outcomes, options.chart)
        facts = ", ".join(machine().values())
        print(f"{table(outcomes)}\n\n{datetime.date.today()}, {facts}, Python {sys.version.split()[0]}")
        return
    import hotloop

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.serve is not None:
        pin(0, SERVER_PROCESSOR)
        hotloop.run(serve(options.serve))
    else:
        pin(0, CLIENT_PROCESSOR)
        print(json.dumps(hotloop.run(ask_all(options.ask))))


if __name__ == "__main__":
    main()
