"""The two settings of glibc's malloc under which servers, clients and bulk transfers are measured.

By default glibc returns large blocks to the kernel when they are freed, and gets them from it again. A loop
that allocates a large buffer for each read, as asyncio does, spends most of its time on that.
"""

import contextlib
import math
import platform
import statistics
import sys
from collections.abc import Iterator

from benchmarks import children
from benchmarks.results import Measured, Result
from benchmarks.rows import ROWS
from benchmarks.spread import Spread

DEFAULT = ""
KEEPING = "keeping"
"""The names of the settings. KEEPING is malloc that keeps freed memory for the process."""

ENVIRONMENT = {
    "MALLOC_TOP_PAD_": str(16 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    "MALLOC_MMAP_THRESHOLD_": str(256 << 20),
}
GROUPS = ("echo", "client", "http", "tls", "programs", "databases", "bulk")
"""The groups of rows that are measured with both settings."""

REASON = """\
glibc's malloc returns large blocks to the kernel when they are freed, and each new one costs page faults;
asyncio and rloop allocate 256 KiB for each read. So servers, clients and bulk transfers are measured with
both settings: the default, and one with which malloc keeps freed memory ({environment}).

The figures tell how many times as good a loop is with that setting, in rate and in processor time per
request or MB. The nearer to 1, the less the loop depends on how malloc is set."""


def settings(group: str) -> list[str]:
    """The settings under which rows of this group are measured."""
    has_choice = sys.platform == "linux" and platform.libc_ver()[0] == "glibc" and group in GROUPS
    return [DEFAULT, KEEPING] if has_choice else [DEFAULT]


@contextlib.contextmanager
def set_to(setting: str) -> Iterator[None]:
    """Has the Python processes that are started meanwhile use this setting."""
    with children.environment(ENVIRONMENT if setting == KEEPING else {}):
        yield


def rate_gain(result: Result) -> float | None:
    """How many times as high the rate is with malloc that keeps memory."""
    return _ratio([each.rate for each in result.keeping], [each.rate for each in result.outcomes])


def processor_gain(result: Result) -> float | None:
    """By which factor a request takes less processor time with malloc that keeps memory."""
    default, keeping = (
        [each.processor for each in outcomes if each.processor is not None]
        for outcomes in (result.outcomes, result.keeping)
    )
    return _ratio(default, keeping)


def _ratio(samples: list[float], others: list[float]) -> float | None:
    one, other = Spread.of(samples), Spread.of(others)
    return one.median / other.median if one and other and other.median > 0 else None


def summary(measured: Measured) -> str:
    """The dependence of all loops, the least first; empty if only one setting was measured."""
    rows = [row.name for row in ROWS if row.group in GROUPS]
    medians = {}
    for loop in measured.loops:
        gains = [gain for row in rows if (gain := processor_gain(measured.of(row, loop)))]
        if gains:
            medians[loop] = statistics.median(gains)
    least_first = sorted(medians, key=lambda loop: abs(math.log(medians[loop])))
    listed = ", ".join(f"{loop} {medians[loop]:.2f}" for loop in least_first)
    return f"- Dependence on malloc's settings, 1 is none (see below): {listed}." if listed else ""


def section(measured: Measured) -> str:
    """How much each loop depends on the setting; empty if only one was measured."""
    lines = [line for loop in measured.loops if (line := _line(loop, measured))]
    if not lines:
        return ""
    figures = ["median of all rows", "most"]
    columns = [f"{what}, {figure}" for what in ("rate", "processor time") for figure in figures]
    head = ["| | " + " | ".join(columns) + " | in |", "|---|" + "---:|" * len(columns) + "---|"]
    environment = " ".join(f"`{name}={value}`" for name, value in ENVIRONMENT.items())
    table = "\n".join([*head, *lines])
    return "\n\n".join(["## Dependence on malloc", REASON.format(environment=environment), table])


def _line(loop: str, measured: Measured) -> str:
    """A loop's line, with the row in which its processor time depends on the setting most."""
    results = {row.title: measured.of(row.name, loop) for row in ROWS if row.group in GROUPS}
    cells, most = [], ""
    for gain in (rate_gain, processor_gain):
        gains = {title: times for title, result in results.items() if (times := gain(result))}
        if not gains:
            cells += ["-", "-"]
            continue
        most = max(gains, key=lambda title: abs(math.log(gains[title])))
        cells += [f"{statistics.median(gains.values()):.2f}", f"{gains[most]:.2f}"]
    return f"| {loop} | " + " | ".join([*cells, most]) + " |" if most else ""
