"""Programs that the tests start: servers in processes of their own, and what they say on their way."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

APPLICATIONS = Path(__file__).parent / "applications"
PATIENCE = 30.0
"""Seconds that a program may take to start, to answer or to end."""

# Signs of trouble in what a program wrote, even if it went on.
TROUBLE = (
    "Traceback (most recent",
    "Exception ignored",
    "Exception in callback",
    "was never",
    "was destroyed",
    "panicked",
    "Fatal Python error",
    "ResourceWarning",
    "DeprecationWarning: 'asyncio",
)


def wait_until(what: Callable[[], bool], reason: str, patience: float = PATIENCE) -> None:
    deadline = time.monotonic() + patience
    while not what():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{reason} not within {patience:g} s")
        time.sleep(0.02)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Program:
    """A process, with all that it writes."""

    def __init__(
        self, command: Sequence[str | Path], directory: Path, known: str = "(?!)", **environment: str
    ) -> None:
        self.known = re.compile(known, re.DOTALL)
        # Not read through the descriptor that the program writes to, for they would share a position.
        # Open for as long as the program runs: kill() closes it.
        self.output = tempfile.NamedTemporaryFile("ab")  # noqa: SIM115
        self.process = subprocess.Popen(
            [str(part) for part in command],
            cwd=directory,
            env={
                **os.environ,
                "PYTHONUNBUFFERED": "1",
                "PYTHONPATH": search_path(APPLICATIONS),
                **environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            # Ctrl-C at the tests is not for it, and whatever it starts can be ended with it.
            start_new_session=True,
        )

    def written(self) -> str:
        return Path(self.output.name).read_text(errors="replace")

    def wait_until(self, what: Callable[[], bool], reason: str, patience: float = PATIENCE) -> None:
        def happened() -> bool:
            if self.process.poll() is not None:
                raise RuntimeError(f"ended with {self.process.returncode}:\n{self.written()}")
            return what()

        try:
            wait_until(happened, reason, patience)
        except TimeoutError as error:
            raise TimeoutError(f"{error}:\n{self.written()}") from None

    def stop(self) -> None:
        """Ask it to end. It must end well, and what it wrote must show no trouble but the known."""
        if self.process.poll() is None:
            self.process.terminate()
        status = self.process.wait(PATIENCE)
        written = self.written()
        # Some end by the signal, once they have done what is to be done.
        if status not in (0, -signal.SIGTERM):
            raise RuntimeError(f"ended with {status}:\n{written}")
        unknown = self.known.sub("", written)
        trouble = [sign for sign in TROUBLE if sign in unknown]
        if trouble:
            raise RuntimeError(f"{', '.join(trouble)} in what it wrote:\n{written}")

    def kill(self) -> None:
        """End it and its children, if they have not ended."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE)
        self.output.close()


def search_path(folder: Path) -> str:
    """A PYTHONPATH with that folder before what is there."""
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


@contextmanager
def running(
    *command: str | Path,
    port: int | None = None,
    directory: Path = APPLICATIONS,
    known: str = "(?!)",
    **environment: str,
) -> Iterator[Program]:
    """A Python program with `command` as arguments, ready when it listens at `port`, stopped at the end.

    `known` is a regular expression for what it may write on any event loop though it looks like trouble.
    """
    program = Program([sys.executable, *command], directory, known, **environment)
    try:
        if port is not None:
            program.wait_until(lambda: listens(port), f"listening at port {port}")
        yield program
        program.stop()
    finally:
        program.kill()
