"""The processes that a benchmark runs: what they print, how they fail, and which processor each has."""

import contextlib
import contextvars
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).parent.parent

SERVER_PROCESSOR = 0
CLIENT_PROCESSOR = 1


class Failed(Exception):
    """A loop has no figure in a row. The message is the reason, in one line."""


_alive: set[subprocess.Popen[str]] = set()
_of_python: contextvars.ContextVar[dict[str, str]] = contextvars.ContextVar("_of_python")


@contextlib.contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Adds environment variables to the Python processes that are started until the block ends.

    Other programs, as the load generator, are started without them."""
    token = _of_python.set(variables)
    try:
        yield
    finally:
        _of_python.reset(token)


def python(module: str, *arguments: str, layout: int = 0) -> list[str]:
    """A command. With another `layout`, Python's objects are at other addresses."""
    options = [part for number in range(layout) for part in ("-X", f"layout_{number}=otherwise")]
    return [sys.executable, *options, "-m", f"benchmarks.{module}", *arguments]


def pin(pid: int, processor: int) -> None:
    """Binds a process to one processor, if there are several and the platform supports it."""
    with contextlib.suppress(AttributeError, OSError):
        if processor in os.sched_getaffinity(0):
            os.sched_setaffinity(pid, {processor})


def run(command: Sequence[str], *, timeout: float, processor: int | None = None) -> str:
    """Run a command to its end and return what it printed."""
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = _start(command, errors)
        if processor is not None:
            pin(process.pid, processor)
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise Failed(f"hangs: not done after {timeout:.0f} s") from None
        finally:
            _end(process)
        if process.returncode:
            raise Failed(_reason(errors, process.returncode))
        return output


@contextlib.contextmanager
def running(command: Sequence[str], *, timeout: float, processor: int | None = None) -> Iterator[int]:
    """Runs a server until the block ends. Yields its process's number, which it prints with "ready".

    Only the server gets SIGTERM. A counting tool around it ends after it, with its count.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = _start(command, errors)
        if processor is not None:
            pin(process.pid, processor)
        try:
            assert process.stdout is not None
            readable, _, _ = select.select([process.stdout], [], [], timeout)
            if not readable:
                raise Failed(f"hangs: not serving after {timeout:.0f} s")
            ready, _, server = process.stdout.readline().partition(" ")
            if ready != "ready":
                raise Failed(_reason(errors, process.wait()))
            try:
                yield int(server)
                _end_server(int(server), process)
            except Failed as failure:
                said = _last_line(errors) or _end_of(process)
                raise Failed(f"{failure} ({said})" if said else str(failure)) from None
        finally:
            _end(process)


def processor_time(pid: int) -> int | None:
    """Processor time of another process, in nanoseconds. None where its clock cannot be read."""
    if sys.platform != "linux":
        return None
    try:
        # The clock that clock_getcpuclockid() gives for a process.
        return time.clock_gettime_ns(~pid << 3 | 2)
    except OSError as error:
        raise Failed(f"the process is gone: {error}") from None


@dataclass(frozen=True)
class ProcessorTime:
    """Processor time of a process so far, in nanoseconds."""

    both: int
    """In user mode and in the kernel, from the process's clock."""
    user: int
    """In user mode, in whole ticks of the kernel's accounting."""
    kernel: int
    """In the kernel, in whole ticks of the kernel's accounting."""

    def since(self, before: "ProcessorTime") -> tuple[float, float, float]:
        """The time since then: both, in user mode, and in the kernel. The ticks divide the clock's sum."""
        both = self.both - before.both
        user, kernel = self.user - before.user, self.kernel - before.kernel
        share = user / (user + kernel) if user + kernel > 0 else 1.0
        return both, both * share, both * (1 - share)


def processor_times(pid: int) -> ProcessorTime | None:
    """Processor time of another process with its division. None where it cannot be read."""
    both = processor_time(pid)
    if both is None:
        return None
    try:
        # The name of the program, in brackets, may have spaces in it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError as error:
        raise Failed(f"the process is gone: {error}") from None
    # Fields 14 and 15 in proc_pid_stat(5).
    tick = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    return ProcessorTime(both, int(fields[11]) * tick, int(fields[12]) * tick)


def end_all() -> None:
    """Kills the processes that other threads run, whose run() then fails."""
    for process in list(_alive):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def _start(command: Sequence[str], errors: TextIO) -> subprocess.Popen[str]:
    # Random hash seeds would change the instruction counts.
    variables = {**os.environ, "PYTHONHASHSEED": "0"}
    if command[0] == sys.executable:
        variables |= _of_python.get({})
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=variables,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        start_new_session=True,
    )
    _alive.add(process)
    return process


def _end_server(server: int, process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(server, signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        raise Failed("hangs: does not end when it is told to") from None


def _end(process: subprocess.Popen[str]) -> None:
    """Kills a command and its children, if they still run."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()
    _alive.discard(process)


def _reason(errors: TextIO, status: int) -> str:
    return _last_line(errors) or f"ends with status {status}"


def _end_of(process: subprocess.Popen[str]) -> str:
    """Why the server ended before it was stopped, if it did."""
    try:
        return f"the server ended with status {process.wait(0.5)}"
    except subprocess.TimeoutExpired:
        return ""


def _last_line(errors: TextIO) -> str:
    errors.seek(0)
    lines = [line.strip() for line in errors if line.strip()]
    return lines[-1] if lines else ""
