"""Files of recordings: at a signal, after a block, at the end, and when `hotloop top` asks."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

# Not in the signal handler, which may run during another import.
from .. import recording
from ..loop import Loop
from . import flames, watching
from .loops import name_loop, on_loop_created, open_loops
from .stderr import print_error

if TYPE_CHECKING:
    from types import FrameType

    from ..accounting import Accounting
    from ..blocking import Block

# Seconds between two files because of blocks.
BLOCK_INTERVAL = 30.0
# What recordings reach back to, unless the user says otherwise.
SECONDS = 10.0
# Loops that were closed, of which the recordings are kept for the file at the end.
CLOSED = 4


class Saver:
    """Records all loops of this process, and writes their recordings into a folder."""

    def __init__(self, seconds: float, folder: str) -> None:
        self.seconds = seconds
        self.folder = folder
        self.last_block = float("-inf")
        self.number = 0
        self.closed: deque[recording.Recording] = deque(maxlen=CLOSED)
        self.lock = threading.Lock()
        # The process that saves when it ends: this one, or one that was forked.
        self.ending: int | None = None

    def start(self, number: int) -> None:
        """Record loops that are made from now on; save at this signal."""
        on_loop_created(name_loop)
        on_loop_created(lambda loop: loop.record(self.seconds))
        on_loop_created(self._note_end)
        watching.on_block.append(self._on_block)
        signal.signal(number, self._on_signal)
        signal.siginterrupt(number, False)
        original = Loop.close

        keep = self._keep

        def close(self: Loop) -> None:
            if not self.is_running():
                keep(self)
            original(self)

        # As for --stats: this is for all loops of the process.
        Loop.close = close  # type: ignore[method-assign]
        atexit.register(self._at_end)
        os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        self.lock = threading.Lock()
        self.closed.clear()
        self.last_block = float("-inf")
        self.number = 0

    def _note_end(self, _: Loop) -> None:
        if self.ending != os.getpid():
            self.ending = os.getpid()
            if "multiprocessing.util" in sys.modules:
                # Children of multiprocessing do not run atexit functions.
                sys.modules["multiprocessing.util"].Finalize(None, self._at_end, exitpriority=0)

    def _keep(self, loop: Loop) -> None:
        for name, each in open_loops():
            if each is loop and loop._recorded_seconds is not None:
                self.closed.append(recording.Recording(loop, name))

    def _on_signal(self, _: int, __: FrameType | None) -> None:
        self._save_apart(take(), "signal")

    def _on_block(self, _: Loop, __: Block) -> None:
        now = time.monotonic()
        if now - self.last_block >= BLOCK_INTERVAL:
            self.last_block = now
            try:
                self._save_apart(take(), "block")
            except Exception as error:
                # The block is reported nevertheless.
                print_error(f"hotloop: the recording can't be saved: {error!r}")

    def _at_end(self) -> None:
        if self.ending != os.getpid():
            return
        self.ending = None
        recordings = [*self.closed, *take()]
        if any(each.records for each in recordings):
            self._save(recordings, "end")

    def _save_apart(self, recordings: list[recording.Recording], reason: str) -> None:
        """Save in a thread, as it takes long; the program ends when that is done."""
        thread = threading.Thread(target=self._save, args=(recordings, reason), name="hotloop-recording")
        try:
            thread.start()
        except RuntimeError:
            self._save(recordings, reason)

    def _save(self, recordings: list[recording.Recording], reason: str) -> None:
        try:
            path = self.save(recordings, reason)
        except OSError as error:
            print_error(f"hotloop: the recording can't be saved: {error}")
        else:
            print_error(f"hotloop: recorded {path}: open it at https://ui.perfetto.dev")

    def save(self, recordings: list[recording.Recording], reason: str) -> str:
        """Write a file; return its path."""
        path = self.path(reason, ".json")
        recording.save(recordings, path)
        return path

    def path(self, reason: str, ending: str) -> str:
        """Return the path of a new file, in the folder, which is made."""
        with self.lock:
            self.number += 1
            name = f"hotloop-{os.getpid()}-{self.number}-{reason}{ending}"
        os.makedirs(self.folder, exist_ok=True)
        return os.path.join(self.folder, name)


_saver: Saver | None = None
# Of a process without --record.
_asked: Saver | None = None


def record_all(seconds: float, folder: str, number: int) -> None:
    """Record all loops, and save at this signal, after blocks and at the end."""
    global _saver
    _saver = Saver(seconds, os.path.abspath(folder))
    _saver.start(number)


def _saver_for_others() -> Saver:
    global _asked
    if _saver is not None:
        return _saver
    # One, so that each file has another number. A forked child has another process number.
    if _asked is None:
        _asked = Saver(SECONDS, os.getcwd())
    return _asked


def take() -> list[recording.Recording]:
    """Return recordings of all loops that record."""
    return [
        recording.Recording(loop, name) for name, loop in open_loops() if loop._recorded_seconds is not None
    ]


def answer(arguments: list[str]) -> dict[str, str]:
    """Save for another process. Loops that did not record do so from now on, or for so many seconds."""
    seconds = float(arguments[0]) if arguments else 0.0
    if seconds:
        started = [loop for _, loop in open_loops() if loop._recorded_seconds is None]
        _call(started, "record", seconds)
        time.sleep(seconds)
    recordings = take()
    if seconds:
        _call(started, "record", None)
    elif not recordings:
        _call([loop for _, loop in open_loops()], "record", SECONDS)
        return {"failed": "nothing was recorded yet: it is from now on"}
    if not recordings:
        return {"failed": "no event loop has run a callback in that time"}
    try:
        return {"saved": _saver_for_others().save(recordings, "asked")}
    except OSError as error:
        return {"failed": f"the recording can't be saved: {error}"}


def answer_with_flames(arguments: list[str]) -> dict[str, str]:
    """Draw for another process who uses the loops, in so many seconds, or else since they keep accounts."""
    seconds = float(arguments[0]) if arguments else 0.0
    started = [loop for _, loop in open_loops() if loop._accounted is None]
    if seconds:
        _call(started, "account")
        # They begin with their next callback.
        earlier = _accountings()
        time.sleep(seconds)
    later = _accountings()
    if seconds:
        _call(started, "account", False)
        later = {
            loop: accounting.since(earlier[loop]) if loop in earlier else accounting
            for loop, accounting in later.items()
        }
    elif not later:
        _call(started, "account")
        return {"failed": "there were no accounts yet: they are kept from now on"}
    if not any(accounting.busy for accounting in later.values()):
        return {"failed": "no event loop has run a callback in that time"}
    names = {loop: name for name, loop in open_loops()}
    stacks = [
        ((f"loop {names.get(loop, '')}", *frames) if len(later) > 1 else frames, duration)
        for loop, accounting in later.items()
        for frames, duration in accounting.stacks()
    ]
    try:
        path = _saver_for_others().path("flame", ".svg")
        flames.save(stacks, path)
    except OSError as error:
        return {"failed": f"the flame graph can't be saved: {error}"}
    return {"saved": path}


def _accountings() -> dict[Loop, Accounting]:
    found = {}
    for _, loop in open_loops():
        # It keeps none, or no longer.
        with suppress(RuntimeError):
            found[loop] = loop.accounting()
    return found


def _call(loops: list[Loop], method: str, *arguments: Any) -> None:
    for loop in loops:
        # It may have been closed.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(getattr(loop, method), *arguments)
