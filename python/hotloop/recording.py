"""What loop.recording() returns: what an event loop did in the last seconds."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import gc
import gzip
import io
import json
import os
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ._observing.awaiting import name_of
from ._observing.tracing import TRACKS, Clock, Trace

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .loop import Loop

# Bytes of a record, and of the ring unless the program says otherwise.
RECORD = 32
MEMORY = 8 * 1024 * 1024
# Garbage collections that are kept, for all loops.
COLLECTIONS = 4096


@dataclass(frozen=True, slots=True)
class Collection:
    """A garbage collection. Times are those of time.monotonic()."""

    began: float
    ended: float
    generation: int
    collected: int
    thread: int


_collections: deque[Collection] = deque(maxlen=COLLECTIONS)
_collecting_since: dict[int, float] = {}
_recorded: weakref.WeakSet[Loop] = weakref.WeakSet()


def _note_collection(phase: str, info: dict[str, int]) -> None:
    thread = threading.get_ident()
    if phase == "start":
        _collecting_since[thread] = time.monotonic()
        return
    now = time.monotonic()
    began = _collecting_since.pop(thread, now)
    _collections.append(Collection(began, now, info["generation"], info["collected"], thread))


def record(loop: Loop, seconds: float | None, memory: int) -> None:
    """Implement loop.record()."""
    if seconds is None:
        loop._record(None)
        loop._recorded_seconds = None
        _recorded.discard(loop)
        _note_no_more_collections()
        return
    if not 0 < seconds < float("inf"):
        raise ValueError(f"the time must be a positive number of seconds, not {seconds!r}")
    if memory < RECORD:
        raise ValueError(f"the memory must be {RECORD} bytes or more, not {memory!r}")
    loop._record(memory)
    loop._recorded_seconds = seconds
    if loop not in _recorded:
        _recorded.add(loop)
        # A loop that is destroyed may have been recorded until then.
        weakref.finalize(loop, _note_no_more_collections).atexit = False
    if _note_collection not in gc.callbacks:
        gc.callbacks.append(_note_collection)


def _note_no_more_collections() -> None:
    """Note garbage collections only while a loop is recorded."""
    # Not by len(): the one whose end this is may be in it.
    if not any(True for _ in _recorded):
        with contextlib.suppress(ValueError):
            gc.callbacks.remove(_note_collection)
        _collections.clear()


def _forget_in_child() -> None:
    """Leave out what the parent process has recorded."""
    _collections.clear()
    for loop in list(_recorded):
        # A loop that another thread of the parent ran is of no use here.
        with contextlib.suppress(RuntimeError):
            loop._forget_recorded()


os.register_at_fork(after_in_child=_forget_in_child)


class Recording:
    """What an event loop did in the last seconds, as it was when the recording was taken.

    It holds nothing of the program alive.
    """

    seconds: float
    """How far the records reach back, in seconds: up to those of loop.record()."""
    records: int
    """How many records there are of that time."""
    lost: int
    """How many records were overwritten since loop.record() was called, if the memory was too small for all
    of that time; 0 if the recording is complete."""

    def __init__(self, loop: Loop, name: str = "") -> None:
        recorded = loop._recorded()
        seconds = loop._recorded_seconds
        if recorded is None or seconds is None:
            raise RuntimeError("the event loop does not record: call loop.record() first")
        first, records, self._names, ticks, now, tick = recorded
        self._clock = Clock(ticks, now, tick)
        self._since = now - seconds
        self._name = name or f"{id(loop):#x}"
        self._collections = list(_collections)
        # By address. Another thread can be making tasks meanwhile.
        self._live = {id(task): (task.get_name(), name_of(task)) for task in asyncio.all_tasks(loop)}
        self._thread = loop._thread_id
        begin = self._since_when(records)
        self._bytes = records[begin * RECORD :]
        self.records = len(self._bytes) // RECORD
        is_cut = begin == 0 and first > 0
        self.lost = first if is_cut else 0
        self.seconds = min(now - self._clock.time(self._ticks(records, 0)), seconds) if records else 0.0

    def _ticks(self, records: bytes, index: int) -> int:
        return int.from_bytes(records[index * RECORD : index * RECORD + 8], sys.byteorder)

    def _since_when(self, records: bytes) -> int:
        """Return the index of the first record of the time that was asked for."""
        return bisect.bisect_left(
            range(len(records) // RECORD),
            self._since,
            key=lambda index: self._clock.time(self._ticks(records, index)),
        )

    def _events(self, base: int) -> Iterator[dict[str, Any]]:
        trace = Trace(self._names, self._clock, base=base, live=self._live, thread=self._thread)
        return trace.read(self._bytes, self._name, self._collections, self._since)

    def events(self) -> list[dict[str, Any]]:
        """Return the events in the Trace Event format, as save() writes them."""
        return list(_process_name()) + list(self._events(0))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the recording in the Trace Event format, which https://ui.perfetto.dev opens.

        The file is compressed if its name ends in ".gz". It takes some seconds for a large recording: on a
        loop that is to go on, call it with asyncio.to_thread(). Raise OSError if the file can't be written;
        a former one stays then.
        """
        save([self], path)

    def __repr__(self) -> str:
        lost = f", {self.lost:,} lost" if self.lost else ""
        return f"<Recording of {self.seconds:.3f} s, {self.records:,} records{lost}>"


def _process_name() -> Iterator[dict[str, Any]]:
    name = " ".join(sys.orig_argv) or "python"
    yield {"ph": "M", "name": "process_name", "pid": os.getpid(), "tid": 0, "args": {"name": name}}


def save(recordings: Iterable[Recording], path: str | os.PathLike[str]) -> None:
    """Write recordings of several loops into one file. See Recording.save()."""
    recordings = list(recordings)
    target = os.path.abspath(os.fspath(path))
    descriptor, temporary = tempfile.mkstemp(prefix=".", suffix=".part", dir=os.path.dirname(target))
    try:
        with os.fdopen(descriptor, "wb") as raw:
            if target.endswith(".gz"):
                with gzip.open(raw, "wt", encoding="utf-8", compresslevel=3) as file:
                    _write(recordings, file)
            else:
                with io.TextIOWrapper(raw, encoding="utf-8") as file:
                    _write(recordings, file)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _write(recordings: list[Recording], file: Any) -> None:
    from . import __version__

    about = {
        "hotloop": __version__,
        "python": sys.version,
        "recordings": [repr(recording) for recording in recordings],
    }
    encode = json.JSONEncoder(separators=(",", ":")).encode
    file.write('{"displayTimeUnit":"ms","otherData":' + encode(about) + ',"traceEvents":[\n')
    file.write(",\n".join(map(encode, _process_name())))
    for index, recording in enumerate(recordings):
        for event in recording._events(index * TRACKS):
            file.write(",\n" + encode(event))
    file.write("\n]}\n")
