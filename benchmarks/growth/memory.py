"""Memory: what an idle connection takes, a datagram endpoint, a loop, and the import of its package."""

import os
import socket
import ssl
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks.children import Failed, python, run, running
from benchmarks.growth.connections import free_host_and_port, settle, within_limit
from benchmarks.growth.figures import Figures
from benchmarks.growth_result import MEMORY, Growth
from benchmarks.row import PATIENCE
from benchmarks.tls import certificate

CONNECTIONS = 2_000
LOOPS = 100
Y_LABEL = "bytes of memory"

Connect = Callable[[tuple[str, int]], socket.socket]


def measure(names: list[str], *, quick: bool) -> list[Growth]:
    size, rounds = (200, 1) if quick else (CONNECTIONS, 3)
    return [
        of_connections("connections", "An idle connection, Protocol", names, size, rounds, "protocol"),
        of_connections("streams", "An idle connection, asyncio.start_server", names, size, rounds, "streams"),
        of_work(
            "datagram",
            "A datagram endpoint",
            names,
            size,
            rounds,
            "Each has received a byte.",
        ),
        of_work("loop", "A loop", names, LOOPS, rounds, "Each has run a coroutine that does nothing."),
        of_work(
            "import", "Importing the package", names, 1, rounds, "Beyond a process that imports asyncio."
        ),
    ]


def measure_tls(names: list[str], *, quick: bool) -> list[Growth]:
    size, rounds = (200, 1) if quick else (CONNECTIONS, 3)
    context = ssl.create_default_context(cafile=certificate())

    def connect_tls(address: tuple[str, int]) -> socket.socket:
        plain = plainly(address)
        try:
            return context.wrap_socket(plain, server_hostname=address[0])
        except OSError as error:
            raise Failed(f"refuses a connection: {error}") from None

    title = "An idle TLS connection, Protocol"
    of_openssl = f"A part of it is {ssl.OPENSSL_VERSION}: structures, buffers, keys."
    return [
        of_connections("tls", title, names, size, rounds, "protocol", of_openssl, connect_tls, certificate())
    ]


def of_connections(
    name: str,
    title: str,
    names: list[str],
    size: int,
    rounds: int,
    server: str,
    remark: str = "",
    connect: Connect | None = None,
    *certificate: str,
) -> Growth:
    figures = Figures(name + MEMORY, names, within_limit((size,)))

    def measured(loop: str, size: int) -> float:
        return bytes_a_connection(loop, size, server, connect or plainly, *certificate)

    figures.collect(rounds, measured)
    note = "By how much the server's resident memory grows, after a first one. Each has echoed a byte."
    return growth(figures, title, f"{note} {remark}".strip(), rounds)


def of_work(name: str, title: str, names: list[str], size: int, rounds: int, note: str) -> Growth:
    figures = Figures(name + MEMORY, names, within_limit((size,)))

    def measured(loop: str, size: int) -> float:
        printed = run(python("growth.work_memory", loop, name, str(size)), timeout=3 * PATIENCE)
        try:
            return float(printed)
        except ValueError:
            raise Failed(f"prints {printed.strip()!r}") from None

    figures.collect(rounds, measured)
    return growth(figures, title, f"By how much the process's resident memory grows. {note}", rounds)


def growth(figures: Figures, title: str, note: str, rounds: int) -> Growth:
    note += f" Median of {rounds} interleaved round{'s' * (rounds > 1)}."
    return figures.growth(title=title, x_label="how many", y_label=Y_LABEL, note=note)


def plainly(address: tuple[str, int]) -> socket.socket:
    try:
        return socket.create_connection(address, timeout=PATIENCE)
    except OSError as error:
        raise Failed(f"refuses a connection: {error}") from None


def bytes_a_connection(loop: str, size: int, server: str, connect: Connect, *certificate: str) -> float:
    """Warmed up by one connection, so that what is allocated for the first does not count."""
    host, port = address = free_host_and_port()
    command = python("servers", loop, server, f"{host}:{port}", *certificate)
    with running(command, timeout=PATIENCE) as process, ExitStack() as stack:
        echo(stack.enter_context(connect(address)))
        before = resident_bytes(process)
        clients = [stack.enter_context(connect(address)) for _ in range(size)]
        # It accepts in order: when the last one is answered, all are open. What is made for the first bytes
        # of one is a part of it.
        for client in clients:
            echo(client)
        settle(process)
        after = resident_bytes(process)
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
        raise Failed(f"the process's memory can't be read: {error}") from None
    return pages * os.sysconf("SC_PAGE_SIZE")
