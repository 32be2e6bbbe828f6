"""What hotloop.snapshot() returns: the tasks, transports and timers of a loop; and what grew between two.

All of it is text and numbers: a snapshot keeps nothing of the program alive.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._observing.awaiting import Coroutine

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Coroutine", "Grown", "Growth", "Snapshot", "Task", "TaskName", "Timer", "Transport"]

# Kinds per table, and examples per kind.
_MOST_KINDS = 20
_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class TaskName:
    """The name of a task, and the qualified name of its coroutine."""

    name: str
    coroutine: str

    def __str__(self) -> str:
        return f"{self.name} ({self.coroutine})"


@dataclass(frozen=True, slots=True)
class Task:
    """A task that has not ended."""

    serial: int
    """A number that this task has in all snapshots, and nothing else has."""
    name: str
    coroutine: str
    """The qualified name of its coroutine, or of that one's type if it is not written in Python."""
    stack: tuple[Coroutine, ...]
    """The coroutine and those that it awaits, outermost first."""
    age: float | None
    """Seconds since a snapshot of the loop first listed the task, which is at least so old. None in that
    one: asyncio does not note when a task is made."""
    awaited_by: TaskName | None
    """The task that waits for this one, also if it does so in a TaskGroup, gather(), wait() or the like."""

    @property
    def kind(self) -> str:
        """By what snapshots count tasks: the coroutine."""
        return self.coroutine

    @property
    def where(self) -> str | None:
        """The file and the line that the innermost coroutine has come to; None if that is not known."""
        return f"{self.stack[-1].file}:{self.stack[-1].line}" if self.stack else None

    def __str__(self) -> str:
        parts = [self.name]
        if self.stack:
            # As in the summaries of --stats.
            parts.append(
                " < ".join(
                    f"{each.name} {os.path.basename(each.file)}:{each.line}" for each in reversed(self.stack)
                )
            )
        if self.awaited_by is not None:
            parts.append(f"awaited by {self.awaited_by}")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Transport:
    """An open transport, or the socket of a server."""

    serial: int
    """A number that this transport has in all snapshots, and nothing else has."""
    transport: str
    """tcp, unix, tls, datagram, read pipe, write pipe, subprocess, server, or a class of asyncio's."""
    peer: str | None
    """The peer's address, that of a server itself, or the number of a subprocess; None without one."""
    fd: int | None
    """The file descriptor; None if it has none of its own."""
    protocol: str
    """The qualified name of the protocol's class: over TLS, the program's. Empty if there is none."""
    age: float | None
    """Seconds since it was made. Of servers, subprocesses and transports of asyncio's own: since a snapshot
    first listed it, None in that one."""
    idle: float | None
    """Seconds since bytes were last read or written, or since it was made; None if that is not counted."""
    bytes_read: int | None
    """None if that is not counted, as of bytes_written."""
    bytes_written: int | None
    bytes_waiting: int
    """Bytes written to it and not sent yet."""
    is_paused: bool
    """Whether pause_reading() is in force."""
    is_closing: bool

    @property
    def kind(self) -> str:
        """By what snapshots count transports: what it is, and the class of the protocol."""
        return f"{self.transport} {self.protocol}".rstrip()

    def __str__(self) -> str:
        parts = [] if self.fd is None else [f"fd {self.fd}"]
        if self.peer is not None:
            parts.append(self.peer)
        if self.bytes_read is not None and self.bytes_written is not None:
            parts.append(f"{self.bytes_read:,} bytes read, {self.bytes_written:,} written")
        if self.bytes_waiting:
            parts.append(f"{self.bytes_waiting:,} waiting")
        if self.idle is not None:
            parts.append(f"idle for {self.idle:.1f} s")
        parts += ["paused"] * self.is_paused + ["closing"] * self.is_closing
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Timer:
    """A callback of call_later() or call_at() that has not been called."""

    serial: int
    """A number that this timer has in all snapshots, and nothing else has."""
    callback: str
    """The qualified name of what is called."""
    due: float
    """Seconds until it is due; negative if it is late."""
    cancelled: bool
    """Whether it was cancelled, by another thread: a timer that the loop's own thread cancels is gone."""
    task: TaskName | None
    """The task that it wakes, or that it is the timeout of, if that is known."""

    @property
    def kind(self) -> str:
        """By what snapshots count timers: the callback."""
        return self.callback

    def __str__(self) -> str:
        parts = [f"due in {self.due:.1f} s"] + ["cancelled"] * self.cancelled
        if self.task is not None:
            parts.append(f"for {self.task}")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Grown:
    """A kind of task, transport or timer of which there are more than before."""

    what: str
    """task, transport or timer."""
    kind: str
    """The coroutine of tasks, the callback of timers; for transports, see Transport.kind."""
    before: int
    now: int
    new: int
    """How many of those that there are now are not in the earlier snapshot."""
    examples: tuple[str, ...]
    """Up to three of the new ones, in a line each."""

    @property
    def growth(self) -> int:
        """How many more there are."""
        return self.now - self.before


@dataclass(frozen=True, slots=True)
class Growth:
    """What there is more of in a snapshot than in an earlier one."""

    seconds: float
    """Seconds from the earlier snapshot to the later one."""
    grown: tuple[Grown, ...]
    """Kinds that grew, the one that grew most first."""

    def __str__(self) -> str:
        if not self.grown:
            return f"nothing grew in {self.seconds:.1f} s"
        rows = []
        for each in self.grown[:_MOST_KINDS]:
            first, *others = each.examples or ("",)
            rows.append((f"{each.growth:+,}", f"{each.now:,}", f"{each.what} {each.kind}", first))
            rows += [("", "", "", example) for example in others]
        title = f"grew in {self.seconds:.1f} s:"
        return "\n".join([title, *_table(("", "now", "kind", "new"), rows), *_rest(self.grown)])


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The tasks, transports and timers of a loop at one moment."""

    time: float
    """When it was taken, by time.monotonic()."""
    loop: int
    """A number of the loop, which no other has."""
    tasks: tuple[Task, ...]
    """Tasks that have not ended, in the order of the numbers that asyncio names them by."""
    transports: tuple[Transport, ...]
    """Transports that are not closed, and the sockets of servers."""
    timers: tuple[Timer, ...]
    """Timers, the next one first."""

    def since(self, earlier: Snapshot) -> Growth:
        """Return what there is more of than in an earlier snapshot of the same loop.

        Raise ValueError if it is of another loop.
        """
        if self.loop != earlier.loop:
            raise ValueError("the snapshots are of different loops")
        grown: list[Grown] = []
        for (what, now), (_, before) in zip(self._lists(), earlier._lists(), strict=True):
            grown += _grown(what, now, before)
        # Those of equal growth: where more is new first.
        grown.sort(key=lambda each: (-each.growth, -each.new, each.what, each.kind))
        return Growth(self.time - earlier.time, tuple(grown))

    def _lists(self) -> list[tuple[str, Sequence[Task | Transport | Timer]]]:
        return [("task", self.tasks), ("transport", self.transports), ("timer", self.timers)]

    def __str__(self) -> str:
        lines: list[str] = []
        for what, listed in self._lists():
            lines.append(f"{len(listed):,} {what}{'s' * (len(listed) != 1)}")
            counts = Counter(each.kind for each in listed)
            first = {each.kind: str(each) for each in reversed(listed)}
            kinds = counts.most_common()
            rows = [(f"{count:,}", kind, first[kind]) for kind, count in kinds[:_MOST_KINDS]]
            if rows:
                lines += [*_table(("", "kind", "the first"), rows), *_rest(kinds)]
        return "\n".join(lines)


def _grown(
    what: str, now: Sequence[Task | Transport | Timer], before: Sequence[Task | Transport | Timer]
) -> Iterable[Grown]:
    former = {each.serial for each in before}
    counts, counts_before = Counter(each.kind for each in now), Counter(each.kind for each in before)
    new: dict[str, list[Task | Transport | Timer]] = {}
    for each in now:
        if each.serial not in former:
            new.setdefault(each.kind, []).append(each)
    for kind, count in counts.items():
        if count > counts_before[kind]:
            examples = tuple(str(each) for each in new[kind][:_EXAMPLES])
            yield Grown(what, kind, counts_before[kind], count, len(new[kind]), examples)


def _table(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of a table whose last column is as wide as it gets; those before the kind are of numbers."""
    widths = [max(len(row[column]) for row in (titles, *rows)) for column in range(len(titles) - 1)]
    lines = []
    for row in (titles, *rows):
        cells = [
            cell.ljust(width) if titles[column] == "kind" else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        lines.append("  ".join(["", *cells, row[-1]]).rstrip())
    return lines


def _rest(kinds: Sequence[object]) -> list[str]:
    return [f"  and {len(kinds) - _MOST_KINDS} more kinds"] if len(kinds) > _MOST_KINDS else []
