"""Measuring while nothing else slows the processors, as another guest of a shared host may."""

import contextlib
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from benchmarks.children import CLIENT_PROCESSOR, SERVER_PROCESSOR, pin

SLOW = 1.25
"""The processors are slowed if a fixed computation takes more than so many times its shortest time."""
TRIES = 4
"""How often something is measured at most."""
SHARE = 0.5
"""The most time that waiting and repeating may take, as a share of that of the measurements themselves."""
PAUSE = 0.05
"""Seconds between two looks at the processors."""
SAMPLES = 5
STEPS = 40_000
"""Of a sample, which takes about a millisecond."""

Found = TypeVar("Found")


def probe() -> float:
    """Seconds of the computation, in the median, on that of the two processors where it takes longer."""
    if not hasattr(os, "sched_getaffinity"):
        return statistics.median(compute() for _ in range(SAMPLES))
    before = os.sched_getaffinity(0)
    found = []
    try:
        for processor in (SERVER_PROCESSOR, CLIENT_PROCESSOR):
            pin(0, processor)
            found.append(statistics.median(compute() for _ in range(SAMPLES)))
    finally:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, before)
    return max(found)


def compute() -> float:
    started = time.perf_counter()
    total = 0
    for step in range(STEPS):
        total += step
    return time.perf_counter() - started


@dataclass
class Watch:
    """Looks at the processors before and after each measurement, and repeats it if they were slowed.

    Whether something is repeated does not depend on what was measured, so that it favours no loop."""

    probe: Callable[[], float] = probe
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _fastest: float = field(default=float("inf"), init=False)
    _measuring: float = field(default=0.0, init=False)
    """Seconds of the first try of each measurement."""
    _extra: float = field(default=0.0, init=False)
    """Seconds of waiting and repeating."""

    def measure(self, take: Callable[[], Found]) -> tuple[Found, bool]:
        """What `take` returned the last time, and whether the processors were slowed then."""
        for number in range(TRIES):
            was_quiet = self._wait()
            began = self.clock()
            found = take()
            taken = self.clock() - began
            if number:
                self._extra += taken
            else:
                self._measuring += taken
            was_quiet = self._is_quiet() and was_quiet
            if was_quiet or not self._has_time:
                break
        return found, not was_quiet

    def _wait(self) -> bool:
        """Whether the processors are not slowed, or not any more."""
        began = self.clock()
        while not (quiet := self._is_quiet()) and self._has_time:
            self.sleep(PAUSE)
            self._extra += self.clock() - began
            began = self.clock()
        return quiet

    def _is_quiet(self) -> bool:
        taken = self.probe()
        self._fastest = min(self._fastest, taken)
        return taken <= SLOW * self._fastest

    @property
    def _has_time(self) -> bool:
        return self._extra < SHARE * self._measuring
