"""Counts a process's instructions with perf or, where perf can't, valgrind, and its system calls with strace.

A count includes the start of Python. The difference between two runs of different length does not.
"""

import abc
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar


@dataclass(frozen=True)
class Count:
    """Instructions in user mode and in the kernel, and system calls; None is not counted."""

    user: float | None = None
    kernel: float | None = None
    calls: float | None = None
    split: dict[str, float] | None = None
    """User instructions by the part of the process that executes them."""

    def per_request(self, start: "Count", requests: int) -> "Count":
        def share(whole: float | None, of_start: float | None) -> float | None:
            return None if whole is None or of_start is None else (whole - of_start) / requests

        return Count(
            share(self.user, start.user),
            share(self.kernel, start.kernel),
            share(self.calls, start.calls),
            {part: (whole - start.split[part]) / requests for part, whole in self.split.items()}
            if self.split and start.split
            else None,
        )

    def merged_with(self, other: "Count") -> "Count":
        return Count(
            self.user if other.user is None else other.user,
            self.kernel if other.kernel is None else other.kernel,
            self.calls if other.calls is None else other.calls,
            self.split if other.split is None else other.split,
        )


class Counter(abc.ABC):
    """A tool that runs a command and leaves its count in a file when the command ends or is terminated."""

    name: str
    counts_instructions: ClassVar[bool] = True

    @abc.abstractmethod
    def works(self) -> bool: ...

    @abc.abstractmethod
    def wrap(self, command: Sequence[str], output: str) -> list[str]: ...

    @abc.abstractmethod
    def read(self, output: str) -> Count: ...


class Perf(Counter):
    name = "perf stat"

    def works(self) -> bool:
        if not shutil.which("perf"):
            return False
        with tempfile.NamedTemporaryFile() as output:
            subprocess.run(self.wrap(["true"], output.name), capture_output=True)
            count = self.read(output.name)
        return count.user is not None and count.kernel is not None

    def wrap(self, command: Sequence[str], output: str) -> list[str]:
        events = "instructions:u,instructions:k"
        return ["perf", "stat", "-x", ",", "-e", events, "-o", output, "--", *command]

    def read(self, output: str) -> Count:
        counts: dict[str, float] = {}
        for line in Path(output).read_text().splitlines():
            value, _, rest = line.partition(",")
            for mode in ("u", "k"):
                if f"instructions:{mode}" in rest and value.isdigit():
                    counts[mode] = float(value)
        return Count(user=counts.get("u"), kernel=counts.get("k"))


TUNABLES = ":".join(f"glibc.cpu.x86_rep_{name}_threshold=0x7fffffff" for name in ("movsb", "stosb"))
WITHOUT_REP = ["env", f"GLIBC_TUNABLES={TUNABLES}"]
"""Keeps glibc from using "rep movsb": it is one instruction, but valgrind counts one per byte."""


class Valgrind(Counter):
    name = "valgrind --tool=cachegrind --cache-sim=no"

    def works(self) -> bool:
        return shutil.which("valgrind") is not None

    def wrap(self, command: Sequence[str], output: str) -> list[str]:
        files = ["--cachegrind-out-file=/dev/null", f"--log-file={output}"]
        return [*WITHOUT_REP, *self.name.split(), *files, *command]

    def read(self, output: str) -> Count:
        total = re.search(r"I +refs: +([\d,]+)", Path(output).read_text())
        return Count(user=float(total[1].replace(",", "")) if total else None)


class Strace(Counter):
    name = "strace -f -c"
    counts_instructions = False

    def works(self) -> bool:
        return shutil.which("strace") is not None

    def wrap(self, command: Sequence[str], output: str) -> list[str]:
        return ["strace", "-f", "-c", "-o", output, *command]

    def read(self, output: str) -> Count:
        lines = Path(output).read_text().splitlines()
        total = next((line.split() for line in lines if line.endswith(" total")), None)
        # % time, seconds, usecs/call, calls, errors if there were any, "total"
        return Count(calls=float(total[3]) if total else None)


def available() -> list[Counter]:
    """perf alone if it counts here, or else valgrind and strace, if installed."""
    if os.name != "posix":
        return []
    perf = Perf()
    if perf.works():
        return [perf]
    return [counter for counter in (Valgrind(), Strace()) if counter.works()]
