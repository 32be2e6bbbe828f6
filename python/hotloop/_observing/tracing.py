"""Turns what the flight recorder has recorded into the Trace Event format, which Perfetto and Chrome open.

The records are described in src/core/recorder/mod.rs. The format is that of
https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU: times are in
microseconds, and a track is a "thread". A loop has the track 1, and the wake-ups by other threads 2; each
task has one of its own.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ..recording import Collection

Event = dict[str, Any]

# Kinds of records, in the order of the extension's.
(
    RUN_BEGAN,
    RUN_ENDED,
    CALLBACK,
    SENDING,
    POLL,
    READY,
    TIMER,
    INJECTED,
    ACCEPTED,
    CONNECTED,
    OPENED,
    CLOSED,
    COUNTS,
    BLOCKED,
    LONG_ITERATION,
) = range(1, 16)

# Sorts of callbacks, and their category in the trace.
CATEGORIES = ("callback", "timer", "from thread", "task", "step", "event")
FIRST, NEW = 0x80, 0x40
WAITED, WOKEN = 1, 2
READABLE, WRITABLE = 1, 2

# The parts of a duration that the watchdog has noticed, in the order of the record; one that is not known.
PARTS = ("computing ms", "waiting for the GIL ms", "not scheduled ms", "asleep ms")
UNKNOWN = 0xFFFFFFFF

HAPPENINGS = {ACCEPTED: "accepted", CONNECTED: "connected", OPENED: "opened", CLOSED: "closed"}

# Tracks of a loop. Those of tasks follow, and each loop has so many.
MAIN, THREADS, COLLECTOR, FIRST_TASK = 1, 2, 3, 10
TRACKS = 10_000_000

# Seconds from which on a timer is called late.
LATE = 1e-3
RECORD = struct.Struct("=4Q")
# Events that are kept before they are yielded.
SEVERAL = 256


@dataclass(frozen=True)
class Clock:
    """A reading of the tick counter and of time.monotonic(), and the seconds of a tick."""

    ticks: int
    seconds: float
    tick: float

    def time(self, ticks: int) -> float:
        """Return a time in seconds. The counter may have been read before or after."""
        return self.seconds - ((self.ticks - ticks + 2**63) % 2**64 - 2**63) * self.tick


@dataclass
class _Slice:
    """A callback that runs, or an iteration."""

    began: float
    name: str
    category: str
    arguments: dict[str, Any] = field(default_factory=dict)
    task: _Task | None = None


@dataclass
class _Task:
    track: int
    name: str
    began: float
    # When its last step ended.
    ended: float
    address: int


class Trace:
    """Reads the records of one loop. Tracks begin at *base*."""

    def __init__(
        self,
        names: tuple[tuple[str, str, int], ...],
        clock: Clock,
        *,
        base: int,
        live: Mapping[int, tuple[str, str]],
        thread: int | None,
    ) -> None:
        self.names = names
        self.clock = clock
        self.base = base
        self.live = live
        self.process = os.getpid()
        # What is to be yielded, and the callbacks of the iteration that is read, which comes first.
        self.events: list[Event] = []
        self.within: list[Event] = []
        self.tasks: dict[int, _Task] = {}
        self.task_count = 0
        self.running: _Slice | None = None
        self.iteration: _Slice | None = None
        # Callbacks and iterations in which other runs of the loop are nested.
        self.outer: list[tuple[_Slice | None, _Slice | None]] = []
        self.sending: float | None = None
        # When the last poll had ended.
        self.polled = 0.0
        # The end of the queue when the callback began that is running, and the position of the last callback.
        self.queue_end: int | None = None
        self.position = 0
        # By position: what has queued it, what it waited for, how late it was.
        self.causes: dict[int, tuple[float, int]] = {}
        self.descriptors: dict[int, tuple[int, int]] = {}
        self.lateness: dict[int, float] = {}
        self.flows = 0
        self.last_ready: int | None = None
        self.thread = thread
        self.has_threads = False

    def read(
        self, records: bytes, name: str, collections: Iterable[Collection], since: float
    ) -> Iterator[Event]:
        """Yield the events of the records, and the garbage collections since a time."""
        for words in RECORD.iter_unpack(records):
            self._read(*words)
            if len(self.events) >= SEVERAL:
                yield from self._take()
        now = self.clock.seconds
        self._end(now, unfinished=True)
        for task in list(self.tasks.values()):
            self._end_task(task, now if self._is_live(task) else task.ended)
        self._finish(name, collections, since)
        yield from self._take()

    def _take(self) -> list[Event]:
        events, self.events = self.events, []
        return events

    def _read(self, ticks: int, first: int, second: int, last: int) -> None:
        kind, flags, number = last & 0xFF, last >> 8 & 0xFF, last >> 32
        at = self.clock.time(ticks)
        if kind == CALLBACK:
            self._begin_callback(at, first, second & 0xFFFFFFFF, second >> 32, flags, number)
        elif kind == POLL:
            self._poll(at, self.clock.time(first), second & 0xFFFFFFFF, second >> 32, flags, number)
        elif kind == READY:
            self.descriptors[second & 0xFFFFFFFF] = (_descriptor(first), flags)
        elif kind == TIMER:
            self.lateness[second & 0xFFFFFFFF] = first * self.clock.tick
        elif kind == INJECTED:
            position = second & 0xFFFFFFFF
            self.has_threads = True
            self._slice(THREADS, "call_soon_threadsafe", "wake-up", at, at + 1e-6, {})
            self.causes[position] = (at, THREADS)
        elif kind == SENDING:
            self._end_callback(at)
            self.sending = at
        elif kind in HAPPENINGS:
            protocol = {"protocol": self._name(number)} if number else {}
            self._instant(HAPPENINGS[kind], at, {"fd": _descriptor(first), **protocol})
        elif kind == COUNTS:
            self._counter("transports", at, second)
            self._counter("bytes waiting", at, first)
        elif kind == BLOCKED:
            if self.running is not None:
                self.running.arguments |= {
                    "blocked": True,
                    "before ms": number / 1e3,
                    **_parts(first, second),
                }
            self._end_callback(at)
        elif kind == LONG_ITERATION:
            self._end_callback(at)
            self._end_sending(at)
            if self.iteration is not None:
                self.iteration.arguments |= {"long": True, "callbacks": number, **_parts(first, second)}
        elif kind == RUN_BEGAN:
            self.thread = first
            self.outer.append((self.running, self.iteration))
            self.running = self.iteration = None
        elif kind == RUN_ENDED:
            self._end(at)
            self.running, self.iteration = self.outer.pop() if self.outer else (None, None)

    # --- What the loop does, one after the other ---

    def _begin_callback(
        self, at: float, address: int, position: int, queue_end: int, flags: int, number: int
    ) -> None:
        self._note_queued(queue_end)
        # The clock is not read again after a poll that did not wait.
        at = max(at, self.polled)
        self._end_callback(at)
        self._end_sending(at)
        if flags & FIRST:
            self._end_iteration(at)
            self.iteration = _Slice(at, "iteration", "loop")
        sort = flags & 0x0F
        name = self._name(number)
        running = _Slice(at, name, CATEGORIES[sort])
        if number:
            _, file, line = self.names[number - 1]
            if line:
                running.arguments["source"] = f"{file}:{line}"
        descriptor = self.descriptors.pop(position, None)
        if descriptor is not None:
            fd, ready = descriptor
            wants = [word for bit, word in ((READABLE, "read"), (WRITABLE, "write")) if ready & bit]
            running.arguments |= {"fd": fd, "ready to": " and ".join(wants)}
        late = self.lateness.pop(position, None)
        if late is not None:
            running.arguments["late ms"] = round(late * 1e3, 3)
            if late >= LATE:
                self._instant("late timer", at, {"late ms": round(late * 1e3, 3), "callback": name})
        if address:
            task = self.tasks.get(address)
            if task is None or flags & NEW:
                # It was made when its first step was queued.
                task = self._begin_task(address, self.causes.get(position, (at, MAIN))[0], number)
            running.task = task
            running.arguments["task"] = task.name
        cause = self.causes.pop(position, None)
        if cause is not None:
            self._flow(cause, at)
            running.arguments["queued for at most ms"] = round((at - cause[0]) * 1e3, 3)
        self.running = running
        self.queue_end, self.position = queue_end, position

    def _end_callback(self, at: float) -> None:
        running, self.running = self.running, None
        if running is None:
            return
        callback = self._event(MAIN, running.name, running.category, running.began, at, running.arguments)
        self.within.append(callback)
        task = running.task
        if task is not None:
            self._slice(task.track, "step", "task", running.began, at, {})
            task.ended = at

    def _end_sending(self, at: float) -> None:
        if self.sending is not None:
            self.within.append(self._event(MAIN, "send", "loop", self.sending, at, {}))
            self.sending = None

    def _end_iteration(self, at: float) -> None:
        iteration, self.iteration = self.iteration, None
        if iteration is not None:
            self._slice(MAIN, iteration.name, iteration.category, iteration.began, at, iteration.arguments)
        self.events += self.within
        self.within.clear()

    def _end(self, at: float, *, unfinished: bool = False) -> None:
        if unfinished and self.running is not None:
            self.running.arguments["unfinished"] = True
        while True:
            self._end_callback(at)
            self._end_sending(at)
            self._end_iteration(at)
            if not (unfinished and self.outer):
                return
            self.running, self.iteration = self.outer.pop()

    def _poll(self, began: float, ended: float, before: int, after: int, flags: int, number: int) -> None:
        self._note_queued(before)
        self._end(began)
        arguments = {"events": number} | ({"woken": True} if flags & WOKEN else {})
        self._slice(MAIN, "wait" if flags & WAITED else "poll", "loop", began, ended, arguments)
        self._count_ready(began, before)
        self._count_ready(ended, after)
        self.queue_end = None
        self.polled = ended

    def _count_ready(self, at: float, queue_end: int) -> None:
        ready = (queue_end - self.position - 1) & 0xFFFFFFFF
        if ready != self.last_ready and ready < 1 << 31:
            self._counter("ready", at, ready)
            self.last_ready = ready

    def _note_queued(self, queue_end: int) -> None:
        """Note that the callback that is running has queued what is between the ends of the queue."""
        if self.running is None or self.queue_end is None:
            return
        count = (queue_end - self.queue_end) & 0xFFFFFFFF
        if count < 1 << 31:
            for position in range(self.queue_end, self.queue_end + count):
                self.causes.setdefault(position & 0xFFFFFFFF, (self.running.began, MAIN))

    # --- Tasks ---

    def _begin_task(self, address: int, at: float, number: int) -> _Task:
        former = self.tasks.get(address)
        if former is not None:
            # Its memory is another task's by now.
            del self.tasks[address]
            self._end_task(former, former.ended, was_replaced=True)
        self.task_count += 1
        task = _Task(FIRST_TASK + self.task_count, self._name(number), at, at, address)
        self.tasks[address] = task
        return task

    def _is_live(self, task: _Task) -> bool:
        """Whether it is not done. The address can be a later task's, which has not begun."""
        name = self.live.get(task.address)
        return name is not None and name[1] == task.name

    def _end_task(self, task: _Task, at: float, *, was_replaced: bool = False) -> None:
        # The name that the task has itself is known of those that live.
        name = (
            f"{self.live[task.address][0]}: {task.name}"
            if not was_replaced and self._is_live(task)
            else task.name
        )
        # It begins a nanosecond or two before its first step, so that the step is within it.
        self._slice(task.track, name, "task", task.began - 1.5e-9, at, {})
        self._describe("thread_name", task.track, name=name)
        self._describe("thread_sort_index", task.track, sort_index=self.base + task.track)

    # --- Events of the trace ---

    def _name(self, number: int) -> str:
        return self.names[number - 1][0] if 0 < number <= len(self.names) else "unnamed"

    def _slice(
        self, track: int, name: str, category: str, began: float, ended: float, arguments: dict[str, Any]
    ) -> None:
        self.events.append(self._event(track, name, category, began, ended, arguments))

    def _event(
        self, track: int, name: str, category: str, began: float, ended: float, arguments: dict[str, Any]
    ) -> Event:
        # Whole nanoseconds, so that a slice ends where the next one begins.
        start = round(began * 1e9)
        duration = max(round(ended * 1e9) - start, 0) / 1000
        event: Event = {"ph": "X", "name": name, "cat": category, "ts": start / 1000, "dur": duration}
        event |= {"pid": self.process, "tid": self.base + track}
        return event | {"args": arguments} if arguments else event

    def _instant(self, name: str, at: float, arguments: dict[str, Any]) -> None:
        event = {"ph": "i", "s": "t", "name": name, "cat": "loop", "ts": _micro(at)}
        self.events.append({**event, "pid": self.process, "tid": self.base + MAIN, "args": arguments})

    def _counter(self, name: str, at: float, value: int) -> None:
        event = {"ph": "C", "name": name, "ts": _micro(at), "pid": self.process, "tid": self.base + MAIN}
        self.events.append({**event, "id": self.base, "args": {"value": value}})

    def _flow(self, cause: tuple[float, int], at: float) -> None:
        self.flows += 1
        event = {"name": "queued", "cat": "flow", "id": self.base + self.flows, "pid": self.process}
        self.events.append({**event, "ph": "s", "ts": _micro(cause[0]), "tid": self.base + cause[1]})
        self.events.append({**event, "ph": "f", "bp": "e", "ts": _micro(at), "tid": self.base + MAIN})

    def _describe(self, what: str, track: int, **arguments: object) -> None:
        event = {"ph": "M", "name": what, "pid": self.process, "tid": self.base + track}
        self.events.append({**event, "args": arguments})

    def _finish(self, name: str, collections: Iterable[Collection], since: float) -> None:
        """Add the garbage collections, and the names of the tracks."""
        self._describe("thread_name", MAIN, name=f"loop {name}")
        self._describe("thread_sort_index", MAIN, sort_index=self.base + MAIN)
        if self.has_threads:
            self._describe("thread_name", THREADS, name=f"other threads of loop {name}")
            self._describe("thread_sort_index", THREADS, sort_index=self.base + THREADS)
        elsewhere = False
        for collection in collections:
            if collection.began < since:
                continue
            arguments = {"generation": collection.generation, "collected": collection.collected}
            here = collection.thread == self.thread
            elsewhere = elsewhere or not here
            track = MAIN if here else COLLECTOR
            self._slice(track, "garbage collection", "gc", collection.began, collection.ended, arguments)
        if elsewhere:
            self._describe("thread_name", COLLECTOR, name="garbage collections by other threads")
            self._describe("thread_sort_index", COLLECTOR, sort_index=self.base + COLLECTOR)


def _descriptor(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


def _parts(first: int, second: int) -> dict[str, float]:
    """The parts of the duration of a callback or an iteration, of which each word has two."""
    parts = (first & UNKNOWN, first >> 32, second & UNKNOWN, second >> 32)
    return {name: part / 1e3 for name, part in zip(PARTS, parts, strict=True) if part != UNKNOWN}


def _micro(seconds: float) -> float:
    return round(seconds * 1e9) / 1000
