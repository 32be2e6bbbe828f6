"""Splits instructions by the file that the code is in, with valgrind's callgrind.

The split shows what would remain of a row if the loop itself cost nothing.
"""

import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.counters import WITHOUT_REP, Count, Counter

PARTS = {
    "interpreter": re.compile(r"/(lib)?python[\d.]*t?(\.so[\d.]*)?$"),
    "asyncio's C module": re.compile(r"/_asyncio\.[^/]*$"),
    "hotloop": re.compile(r"/hotloop/_core\.[^/]*$"),
    "C library": re.compile(r"/(libc|libm|libpthread|ld)[-.][^/]*$"),
    "other": re.compile(""),
}
"""Parts with patterns of their files' paths. The first that matches counts."""


class Callgrind(Counter):
    """Only splits. The total is that of the other tools, from which callgrind's differs a little."""

    name = "valgrind --tool=callgrind"
    counts_instructions = False

    def works(self) -> bool:
        return shutil.which("valgrind") is not None

    def wrap(self, command: Sequence[str], output: str) -> list[str]:
        files = [f"--callgrind-out-file={output}", "--log-file=/dev/null"]
        return [*WITHOUT_REP, *self.name.split(), "--dump-instr=no", *files, *command]

    def read(self, output: str) -> Count:
        with Path(output).open() as profile:
            found = by_file(profile)
        return Count(split=by_part(found) if found else None)


def available() -> Counter | None:
    callgrind = Callgrind()
    return callgrind if callgrind.works() else None


def by_part(instructions: dict[str, float]) -> dict[str, float]:
    parts = dict.fromkeys(PARTS, 0.0)
    for path, executed in instructions.items():
        parts[next(part for part, looks in PARTS.items() if looks.search(path))] += executed
    return parts


def by_file(profile: Iterable[str]) -> dict[str, float]:
    """The instructions in each executable and library, from a profile in callgrind's format."""
    names: dict[str, str] = {}
    found: dict[str, float] = {}
    current = ""
    lines = iter(profile)
    for line in lines:
        key, _, value = line.rstrip("\n").partition("=")
        if key in ("ob", "cob"):
            # "(number) name", and after the first time "(number)".
            number, _, name = value.partition(" ")
            names.setdefault(number, name)
            current = names[number] if key == "ob" else current
        elif key == "calls":
            next(lines, "")  # The cost of the callee, which is also listed as its own.
        elif line[0] in "0123456789+-*":
            # A line of the source, absolute or relative, and the cost.
            found[current] = found.get(current, 0.0) + float(line.split()[1])
    return found
