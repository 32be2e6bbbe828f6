"""Processes that were started with --watch, as others see them: what they answer, and what changed since."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from .. import __version__
from ..metrics import Histogram, Metrics
from .serving import folders, is_ours_alone

# Seconds that an answer may take. A C function that holds the GIL keeps a process from answering, and so does
# SIGSTOP.
PATIENCE = 5.0


class Unavailable(Exception):
    """A process does not answer: the reason, in a line."""


@dataclass(frozen=True)
class State:
    """One answer."""

    told: dict[str, Any]
    metrics: dict[str, Metrics]
    """What each loop did since it was made or reset, by its name."""

    def since(self, earlier: State) -> dict[str, tuple[Metrics, float]]:
        """What each loop did after an earlier answer, and in how many seconds."""
        seconds = self.told["clock"] - earlier.told["clock"]
        return {
            name: (_since(metrics, earlier.metrics[name]), seconds)
            for name, metrics in self.metrics.items()
            if name in earlier.metrics
        }


def _since(later: Metrics, earlier: Metrics) -> Metrics:
    # The time that was counted never falls, unless it was reset.
    is_reset = later.busy + later.idle < earlier.busy + earlier.idle or later.callbacks < earlier.callbacks
    return later if is_reset else later.since(earlier)


def _metrics(told: dict[str, Any]) -> Metrics:
    histograms = {
        name: Histogram(tuple((low, high, count) for low, high, count in value["buckets"]), value["max"])
        for name, value in told.items()
        if isinstance(value, dict)
    }
    return Metrics(**{**told, **histograms})


def _understood(line: bytes) -> State:
    try:
        told = json.loads(line)
        version = told["version"]
    except (ValueError, TypeError, KeyError):
        raise Unavailable("what answers is not hotloop") from None
    if version != __version__:
        raise Unavailable(f"the process runs hotloop {version}, and this is {__version__}")
    return State(told, {name: _metrics(loop["metrics"]) for name, loop in told["loops"].items()})


class Process:
    """A connection to a process."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.received = b""
        self.is_asked = False
        try:
            self.socket.connect(path)
        except OSError as error:
            self.socket.close()
            raise Unavailable(f"{path}: {error.strerror or error}") from error

    def ask(self, patience: float = PATIENCE) -> State | None:
        """What it does; None if it does not answer within *patience* seconds: ask again.

        Raise Unavailable if it has ended.
        """
        self.socket.settimeout(patience)
        try:
            if not self.is_asked:
                self.socket.sendall(b"state\n")
                self.is_asked = True
            while b"\n" not in self.received:
                received = self.socket.recv(1 << 16)
                if not received:
                    raise Unavailable("the process has ended")
                self.received += received
        except TimeoutError:
            return None
        except OSError:
            raise Unavailable("the process has ended") from None
        line, _, self.received = self.received.partition(b"\n")
        self.is_asked = False
        return _understood(line)

    def close(self) -> None:
        self.socket.close()


def find(target: str) -> str:
    """The path of the socket that a process number or a path means. Raise Unavailable if there is none."""
    if not target.isdecimal():
        return target
    for path in _paths():
        if os.path.basename(path) == f"{target}.sock":
            return path
    raise Unavailable(
        f"no process {target} of this user was started with `hotloop --watch` and has made an event loop"
    )


def find_all() -> list[tuple[str, State]]:
    """The processes that answer, each after the path of its socket. What others left behind is removed."""
    found = []
    for path in _paths():
        try:
            process = Process(path)
        except Unavailable as error:
            if isinstance(error.__cause__, ConnectionRefusedError):
                with suppress(OSError):
                    os.unlink(path)
            continue
        with suppress(Unavailable):
            state = process.ask(1.0)
            if state is not None:
                found.append((path, state))
        process.close()
    return found


def _paths() -> list[str]:
    # Who else could enter the folder could have put anything there.
    return [
        os.path.join(folder, name)
        for folder in folders()
        if is_ours_alone(folder)
        for name in sorted(os.listdir(folder))
        if name.endswith(".sock")
    ]
