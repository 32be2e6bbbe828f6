"""Many open connections: what a request on one of the busy ones costs."""

import resource
import socket
import tempfile
import time

from benchmarks import generator
from benchmarks.children import SERVER_PROCESSOR, Failed, processor_time, python, running
from benchmarks.counters import Counter
from benchmarks.generator import Load
from benchmarks.growth.figures import Figures, progress
from benchmarks.growth_result import Growth
from benchmarks.row import COUNTING_PATIENCE, PATIENCE

BUSY = 100
SPARE = 200
"""Descriptors that a process needs for other than the connections."""
RESTING = 10_000_000
"""Nanoseconds of processor time, between two looks, of a process that has nothing to do."""
SETTLING = 20.0
"""How long a server may be busy with connections that were opened or closed, in seconds."""


def measure(names: list[str], counter: Counter | None, *, quick: bool) -> list[Growth]:
    generator.build()
    sizes = within_limit((100, 1_000) if quick else (100, 1_000, 10_000))
    growths = [instructions(names, sizes, counter, quick=quick)] if counter else []
    return [*growths, microseconds(names, sizes, quick=quick)]


def within_limit(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes for which this process, and those that it starts, may have enough descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = max(sizes) + SPARE
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < needed:
            progress(
                f"connections: the hard limit of descriptors is {hard:,}: fewer sizes than there should be"
            )
    return tuple(size for size in sizes if soft == resource.RLIM_INFINITY or size + SPARE <= soft)


def load_among(size: int) -> Load:
    return Load(connections=BUSY, idle=size - BUSY)


def instructions(names: list[str], sizes: tuple[int, ...], counter: Counter, *, quick: bool) -> Growth:
    figures = Figures("connections_active", names, sizes)
    least = 4_000 if quick else 20_000

    def counted(loop: str, size: int) -> float:
        # Accepting costs more for each open connection, and not quite the same each time.
        requests = max(least, 10 * size)
        start = instructions_of_server(loop, size, counter, 5 * BUSY)
        whole = instructions_of_server(loop, size, counter, 5 * BUSY + requests)
        if whole <= start:
            raise Failed("the count is not steady")
        return (whole - start) / requests

    figures.collect(1, counted)
    return figures.growth(
        title=f"A request on one of {BUSY} busy connections among many open ones",
        x_label="connections open",
        y_label="user instructions a request",
        note=f"Protocol echo of 1 KiB, closed loop. {counter.name}: the difference of two runs of different "
        f"length ({least:,} requests or more) that open the same connections.",
    )


def instructions_of_server(loop: str, size: int, counter: Counter, requests: int) -> float:
    address = free_address()
    with tempfile.NamedTemporaryFile() as output:
        command = counter.wrap(python("servers", loop, "protocol", address), output.name)
        with running(command, timeout=COUNTING_PATIENCE) as server:
            load = load_among(size)
            generator.for_requests(f"tcp://{address}", load, requests, COUNTING_PATIENCE)
            # All connections end with the clients. It is told to end when it has seen to that.
            settle(server)
        user = counter.read(output.name).user
    if user is None:
        raise Failed("nothing was counted")
    return user


def microseconds(names: list[str], sizes: tuple[int, ...], *, quick: bool) -> Growth:
    figures = Figures("connections_active_us", names, sizes)
    rounds, seconds = (1, 1.0) if quick else (7, 0.5)

    def timed(loop: str, size: int) -> float:
        address = free_address()
        command = python("servers", loop, "protocol", address)
        with running(command, timeout=PATIENCE, processor=SERVER_PROCESSOR):
            return 1e6 / generator.for_seconds(f"tcp://{address}", load_among(size), seconds).rate

    figures.collect(rounds, timed)
    return figures.growth(
        title=f"A request on one of {BUSY} busy connections among many open ones",
        x_label="connections open",
        y_label="microseconds a request",
        note=f"Protocol echo of 1 KiB, closed loop, for {seconds:g} s; server and clients have a processor "
        f"each; median of {rounds} interleaved rounds.",
    )


def settle(pid: int) -> None:
    """Wait until a process has nothing to do; not for long, since some never rest."""
    deadline = time.monotonic() + SETTLING
    taken = processor_time(pid) or 0
    while time.monotonic() < deadline:
        time.sleep(0.3)
        before, taken = taken, processor_time(pid) or 0
        if taken - before < RESTING:
            break


def free_host_and_port() -> tuple[str, int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return "127.0.0.1", free.getsockname()[1]


def free_address() -> str:
    host, port = free_host_and_port()
    return f"{host}:{port}"
