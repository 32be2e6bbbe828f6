"""The rows of bulk transfers: how many MB a second one loop sends or receives."""

import json
from dataclasses import dataclass
from typing import ClassVar

from benchmarks.children import Failed, python, run
from benchmarks.counters import Count, Counter
from benchmarks.generator import Outcome
from benchmarks.row import PATIENCE, STARTING, Row
from benchmarks.tls import certificate

MB = 1e6
"""Bytes."""


@dataclass(frozen=True)
class BulkRow(Row):
    """The process at the other end has a processor of its own. Rates and costs are for 1 MB."""

    work: str
    group: ClassVar[str] = "bulk"

    @property
    def has_tls(self) -> bool:
        return self.work.startswith("tls")

    @property
    def is_counted(self) -> bool:
        """How much is read at once depends on the speed of both ends."""
        return False

    def compares(self, loop: str) -> bool:
        return self.has_tls or super().compares(loop)

    def round_takes(self, seconds: float) -> float:
        return seconds + STARTING

    def rate(self, loop: str, seconds: float) -> Outcome:
        arguments = [self.work, str(seconds), *([certificate()] if self.has_tls else [])]
        # It binds itself to a processor when it has started the other end.
        command = python("bulk_work", loop, *arguments)
        found = json.loads(run(command, timeout=PATIENCE + seconds))
        transferred = found["bytes"] / MB
        user, kernel = (1e6 * found[part] / transferred for part in ("user", "kernel"))
        rate = transferred / found["seconds"]
        return Outcome(round(transferred), rate, 0.0, user + kernel, round(transferred), user, kernel)

    def count(self, loop: str, counter: Counter) -> Count:
        raise Failed("the count is not steady")


def row(work: str, title: str) -> BulkRow:
    return BulkRow(f"bulk_{work}", title, work)


OVER = {"tcp": "TCP", "unix": "Unix socket", "tls": "TLS"}

ROWS: list[Row] = [
    *[
        row(f"{kind}_{work}", f"{over}, {title}")
        for kind, over in OVER.items()
        for work, title in (
            ("send_64k", "streams send 64 KiB and drain"),
            ("send_1m", "streams send 1 MiB and drain"),
            ("receive", "streams read up to 256 KiB"),
        )
    ],
    row("pipe_send", "pipe, streams send 64 KiB and drain"),
    row("pipe_receive", "pipe, streams read up to 256 KiB"),
    row("subprocess_receive", "subprocess's output, streams read up to 256 KiB"),
    row("sendfile", "TCP, loop.sendfile of a file of 16 MiB"),
    row("sock_recv_into", "TCP, sock_recv_into of 256 KiB"),
    row("datagrams", "UDP, datagrams of 1 KiB that are received"),
]
