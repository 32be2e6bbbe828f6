"""Many open connections: what a request on one of the busy ones costs, and what an idle one weighs."""

import os
import resource
import socket
import ssl
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks import generator
from benchmarks.children import SERVER_PROCESSOR, Failed, processor_time, python, running
from benchmarks.counters import Counter
from benchmarks.generator import Load
from benchmarks.growth.figures import Figures, median, progress
from benchmarks.growth_result import Growth
from benchmarks.row import COUNTING_PATIENCE, PATIENCE
from benchmarks.tls import certificate

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
    return [*growths, microseconds(names, sizes, quick=quick), memory(names, sizes[-1:], quick=quick)]


def measure_tls(names: list[str], *, quick: bool) -> list[Growth]:
    figures = Figures("tls_memory", names, within_limit((200 if quick else 2_000,)))
    rounds = 1 if quick else 3
    context = ssl.create_default_context(cafile=certificate())

    def connect_tls(address: tuple[str, int]) -> socket.socket:
        plain = connect(address)
        try:
            return context.wrap_socket(plain, server_hostname=address[0])
        except OSError as error:
            raise Failed(f"refuses a connection: {error}") from None

    def measured(loop: str, size: int) -> float:
        return bytes_a_connection(loop, size, connect_tls, certificate())

    figures.collect(rounds, measured)
    return [
        figures.growth(
            title="An idle TLS connection",
            x_label="connections open",
            y_label="bytes of memory",
            note=f"Each has echoed a byte. A part of it is {ssl.OPENSSL_VERSION}: structures, buffers, keys. "
            f"Median of {rounds}.",
            choose=median,
        )
    ]


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
    rounds = 1 if quick else 3

    def timed(loop: str, size: int) -> float:
        address = free_address()
        command = python("servers", loop, "protocol", address)
        with running(command, timeout=PATIENCE, processor=SERVER_PROCESSOR):
            return 1e6 / generator.for_seconds(f"tcp://{address}", load_among(size), 1).rate

    figures.collect(rounds, timed)
    return figures.growth(
        title=f"A request on one of {BUSY} busy connections among many open ones",
        x_label="connections open",
        y_label="microseconds a request",
        note="Protocol echo of 1 KiB, closed loop, for a second; server and clients have a processor each; "
        f"best of {rounds} interleaved rounds.",
    )


def memory(names: list[str], sizes: tuple[int, ...], *, quick: bool) -> Growth:
    figures = Figures("connections_memory", names, sizes)
    rounds = 1 if quick else 3
    figures.collect(rounds, bytes_a_connection)
    return figures.growth(
        title="An idle connection",
        x_label="connections open",
        y_label="bytes of memory",
        note="By how much the server's resident memory grows while the connections are opened, after a first "
        f"one; median of {rounds}.",
        choose=median,
    )


def connect(address: tuple[str, int]) -> socket.socket:
    try:
        return socket.create_connection(address, timeout=PATIENCE)
    except OSError as error:
        raise Failed(f"refuses a connection: {error}") from None


def bytes_a_connection(
    loop: str,
    size: int,
    connect: Callable[[tuple[str, int]], socket.socket] = connect,
    *certificate: str,
) -> float:
    """Warmed up by one connection, so that what is allocated for the first does not count."""
    host, port = address = free_host_and_port()
    command = python("servers", loop, "protocol", f"{host}:{port}", *certificate)
    with running(command, timeout=PATIENCE) as server, ExitStack() as stack:
        echo(stack.enter_context(connect(address)))
        before = resident_bytes(server)
        clients = [stack.enter_context(connect(address)) for _ in range(size)]
        # It accepts in order: when the last one is answered, all are open. What is made for the first bytes
        # of one is a part of it.
        for client in clients:
            echo(client)
        settle(server)
        after = resident_bytes(server)
        for client in clients:
            echo(client)
    return (after - before) / size


def echo(client: socket.socket) -> None:
    try:
        client.sendall(b"x")
        right = client.recv(2) == b"x"
    except OSError as error:
        raise Failed(f"lost a connection: {error}") from None
    if not right:
        raise Failed("lost a connection: closed, or wrong bytes")


def resident_bytes(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError as error:
        raise Failed(f"the server's memory can't be read: {error}") from None
    return pages * os.sysconf("SC_PAGE_SIZE")


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
