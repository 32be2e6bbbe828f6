"""The client of `hotloop top`: finds processes that were started with --watch, and queries them."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from .. import __version__
from ..accounting import Account, Accounting
from ..metrics import Histogram, Metrics
from .attaching import CantAttach, attach
from .serving import folders, is_private

# Seconds to wait for an answer. SIGSTOP, or a C function that holds the GIL, keeps a process from answering.
TIMEOUT = 5.0
# And to wait for a recording, which can be large.
SAVING = 120.0


class Unavailable(Exception):
    """A process does not answer. The message is the reason, in one line."""


@dataclass(frozen=True)
class State:
    """An answer of a process."""

    fields: dict[str, Any]
    """The answer's JSON: see serving.state()."""
    metrics: dict[str, Metrics]
    """Metrics of each loop, by its name, since it was made or reset."""
    accountings: dict[str, Accounting]
    """Of each loop that keeps accounts, since it does."""

    def accountings_since(self, earlier: State) -> dict[str, Accounting]:
        """Accounts of each loop after an earlier answer, or since it keeps them."""
        return {
            name: later.since(before)
            if (before := earlier.accountings.get(name)) and before.seconds < later.seconds
            else later
            for name, later in self.accountings.items()
        }

    def since(self, earlier: State) -> dict[str, tuple[Metrics, float]]:
        """Metrics of each loop after an earlier answer, and the seconds in between."""
        seconds = self.fields["clock"] - earlier.fields["clock"]
        return {
            name: (_since(metrics, earlier.metrics[name]), seconds)
            for name, metrics in self.metrics.items()
            if name in earlier.metrics
        }


def _since(later: Metrics, earlier: Metrics) -> Metrics:
    # Counters only fall by a reset.
    is_reset = later.busy + later.idle < earlier.busy + earlier.idle or later.callbacks < earlier.callbacks
    return later if is_reset else later.since(earlier)


def _metrics(fields: dict[str, Any]) -> Metrics:
    histograms = {
        name: Histogram(tuple((low, high, count) for low, high, count in value["buckets"]), value["max"])
        for name, value in fields.items()
        if isinstance(value, dict)
    }
    return Metrics(**{**fields, **histograms})


def _parse(line: bytes) -> State:
    try:
        fields = json.loads(line)
        version = fields["version"]
    except (ValueError, TypeError, KeyError):
        raise Unavailable("what answers is not hotloop") from None
    if version != __version__:
        raise Unavailable(f"the process runs hotloop {version}, and this is {__version__}")
    loops = fields["loops"]
    return State(
        fields,
        {name: _metrics(loop["metrics"]) for name, loop in loops.items()},
        {name: _accounting(loop["accounting"]) for name, loop in loops.items() if "accounting" in loop},
    )


def _accounting(fields: dict[str, Any]) -> Accounting:
    return Accounting(fields["seconds"], tuple(Account(**account) for account in fields["accounts"]), ())


class Process:
    """A connection to a process. It has at most one request in flight."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(TIMEOUT)
        self.received = b""
        self.is_pending = False
        try:
            self.socket.connect(path)
        except OSError as error:
            self.socket.close()
            raise Unavailable(f"{path}: {error.strerror or error}") from error

    def ask(self, timeout: float = TIMEOUT) -> State | None:
        """Return its state; None if there is no answer within *timeout* seconds: call again to go on waiting.

        Raise Unavailable if it has ended.
        """
        line = self._exchange(b"state\n", timeout)
        return None if line is None else _parse(line)

    def ask_growth(self, timeout: float = TIMEOUT) -> dict[str, Any] | None:
        """As ask(), for what piles up: see census.answer(). Not for a connection that ask() is called of."""
        line = self._exchange(b"growth\n", timeout)
        try:
            return None if line is None else dict(json.loads(line))
        except ValueError:
            raise Unavailable("what answers is not hotloop") from None

    def _exchange(self, request: bytes, timeout: float) -> bytes | None:
        self.socket.settimeout(timeout)
        try:
            if not self.is_pending:
                self.socket.sendall(request)
                self.is_pending = True
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
        self.is_pending = False
        return line

    def close(self) -> None:
        self.socket.close()


def begin_accounts(path: str) -> None:
    """Have the loops of the process at a socket keep accounts. Raise Unavailable if it does not answer."""
    process = Process(path)
    try:
        process.socket.sendall(b"account\n")
        process.socket.makefile("rb").readline()
    except OSError:
        raise Unavailable("the process has not answered") from None
    finally:
        process.close()


def have_saved(what: str, path: str, seconds: float = 0.0) -> str:
    """Have the process at a socket save a "record" or a "flame", or begin it and save it after some seconds.

    Return the file's path. Raise Unavailable if there is none.
    """
    process = Process(path)
    try:
        process.socket.settimeout(seconds + SAVING)
        process.socket.sendall(f"{what} {seconds}\n".encode() if seconds else f"{what}\n".encode())
        answer = json.loads(process.socket.makefile("rb").readline())
    except (OSError, ValueError):
        raise Unavailable("the process has not answered") from None
    finally:
        process.close()
    if "saved" not in answer:
        raise Unavailable(str(answer.get("failed", "the process can't do that")))
    return str(answer["saved"])


def find(target: str) -> str:
    """Return the socket's path for a process number, or a path itself. Raise Unavailable if there is none.

    A process that has none is attached to.
    """
    if not target.isdecimal():
        return target
    for path in _paths():
        if os.path.basename(path) == f"{target}.sock":
            return path
    try:
        return attach(int(target))
    except CantAttach as error:
        raise Unavailable(str(error)) from None


def find_only() -> str:
    """Return the socket's path of the only process that answers. Raise Unavailable if there is not one."""
    found = find_all()
    if len(found) == 1:
        return found[0][0]
    if not found:
        raise Unavailable("no process of this user was started with `hotloop --watch`")
    lines = [f"  {state.fields['process']:>8}  {state.fields['command']}" for _, state in found]
    raise Unavailable("\n".join(["which process?", *lines]))


def find_all() -> list[tuple[str, State]]:
    """Return the socket path and state of each process that answers. Remove sockets of ended processes."""
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
    # Other users could put sockets into a folder that is not private.
    return [
        os.path.join(folder, name)
        for folder in folders()
        if is_private(folder)
        for name in sorted(os.listdir(folder))
        if name.endswith(".sock")
    ]
