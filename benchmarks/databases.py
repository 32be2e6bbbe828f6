"""The rows of databases: the loop runs clients of a server that is not measured."""

import atexit
import contextlib
import functools
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from benchmarks import database_servers
from benchmarks.children import SERVER_PROCESSOR, environment, python, running
from benchmarks.database_clients import PIPELINE, POOL, ROWS_OF_A_QUERY
from benchmarks.row import PATIENCE, ClientRow, Row, free_address
from benchmarks.tls import once

START = 3 * PATIENCE
"""Seconds in which a database server is made and accepts connections."""


@dataclass(frozen=True)
class DatabaseRow(ClientRow):
    server: str = ""
    group: ClassVar[str] = "databases"

    @property
    def missing(self) -> list[str]:
        return super().missing + database_servers.missing(self.server)

    @contextlib.contextmanager
    def _answering(self) -> Iterator[str]:
        yield ADDRESSES[self.server]()


def start(server: str) -> str:
    """Starts a server that ends with this process, and returns its address. Raises Failed.

    It has malloc's default setting, also if the loop has another one in this round."""
    folder = tempfile.mkdtemp(prefix=f"{server}-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    address = free_address()
    command = python("database_servers", server, address.rpartition(":")[2], folder)
    with environment({}):
        RUNNING.enter_context(running(command, timeout=START, processor=SERVER_PROCESSOR))
    return address


RUNNING = contextlib.ExitStack()
"""The servers that run. It is closed when no row needs them any more, at the latest when the process ends."""
atexit.register(RUNNING.close)


ADDRESSES = {name: once(functools.partial(start, name)) for name in database_servers.SERVERS}
"""One server of each kind serves all loops in turn: it is started when it is needed first."""


def row(name: str, title: str, tasks: int, timed: int, counted: int, client: str) -> DatabaseRow:
    of_postgres = client.startswith("asyncpg")
    server, package = ("postgres", "asyncpg") if of_postgres else ("redis", "redis")
    return DatabaseRow(name, title, tasks, timed, counted, client, server, packages=(package,))


ROWS: list[Row] = [
    row("asyncpg_1", "asyncpg, SELECT 1, one after another", 1, 4_000, 500, "asyncpg"),
    row("asyncpg_50", f"asyncpg, SELECT 1, pool of {POOL}, 50 tasks", 50, 10_000, 500, "asyncpg"),
    row("asyncpg_rows", f"asyncpg, SELECT of {ROWS_OF_A_QUERY:,} rows", 1, 1_000, 50, "asyncpg_rows"),
    row("redis_1", "redis-py, GET, one after another", 1, 4_000, 500, "redis"),
    row("redis_50", "redis-py, GET, 50 tasks", 50, 10_000, 1_000, "redis"),
    row("redis_pipeline", f"redis-py, pipeline of {PIPELINE} GETs", 1, 500, 50, "redis_pipeline"),
]
