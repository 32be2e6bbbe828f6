"""The snapshot of an event loop's counters and durations that loop.metrics() returns."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

if sys.version_info >= (3, 13) and not sys._is_gil_enabled():
    # dataclass() looks into it if it is imported, also if another thread is still importing it.
    import typing  # noqa: F401


@dataclass(frozen=True, slots=True)
class Histogram:
    """Durations in seconds, counted by size.

    From a microsecond to over an hour, the width of a bucket is at most a sixteenth of its start, and results
    are within 4 %. All shorter durations are in the first bucket.
    """

    buckets: tuple[tuple[float, float, int], ...]
    """Non-empty buckets: lower bound, upper bound, count."""
    max: float
    """The longest duration; 0.0 while none has reached a microsecond."""

    @property
    def count(self) -> int:
        """The number of durations."""
        return sum(count for _, _, count in self.buckets)

    @property
    def sum(self) -> float:
        """The sum of all durations, within 4 %."""
        return sum(self._middle(low, high) * count for low, high, count in self.buckets)

    @property
    def mean(self) -> float:
        """The average duration; 0.0 if there is none."""
        count = self.count
        return self.sum / count if count else 0.0

    def percentile(self, p: float) -> float:
        """The duration that *p* percent of all do not exceed; 0.0 if there is none.

        Raise ValueError unless 0 <= p <= 100.
        """
        if not 0 <= p <= 100:
            raise ValueError(f"a percentile is between 0 and 100, not {p}")
        if p == 100:
            return self.max
        rank = self.count * p / 100
        passed = 0
        for low, high, count in self.buckets:
            passed += count
            if passed >= rank:
                return self._middle(low, high)
        return self.max

    def since(self, earlier: Histogram) -> Histogram:
        """Return the durations that were added after an earlier snapshot of the same histogram.

        Its max is at most the overall max and the end of the last non-empty bucket.
        """
        counted = {low: count for low, _, count in earlier.buckets}
        buckets = tuple(
            (low, high, count - counted.get(low, 0))
            for low, high, count in self.buckets
            if count > counted.get(low, 0)
        )
        if self.max > earlier.max or not buckets or not buckets[-1][0]:
            return Histogram(buckets, self.max if self.max > earlier.max else 0.0)
        return Histogram(buckets, min(self.max, buckets[-1][1]))

    def _middle(self, low: float, high: float) -> float:
        """The duration that stands for those in a bucket."""
        return min((low + high) / 2, self.max) if low else high / 2


@dataclass(frozen=True, slots=True)
class Metrics:
    """Counters of an event loop since it was made, or since reset_metrics(). Times are in seconds."""

    io_events: int
    """Descriptors that polls found ready."""
    timers_fired: int
    timers_cancelled: int
    tasks_created: int
    """Calls of create_task()."""
    wakeups: int
    """Times that another thread woke the loop while it slept."""
    idle: float
    """Time spent waiting."""
    busy: float
    """Time spent running callbacks, and polling without a wait."""
    iteration_duration: Histogram
    """Durations of iterations, without the wait."""
    delay: Histogram
    """Delays of callbacks after they were ready, and of timers after they were due."""
    ready: int
    """Callbacks in the ready queue now."""
    ready_highest: int
    """The highest number of ready callbacks at the beginning of an iteration."""
    transports: int
    """Open transports: connections, datagram endpoints, pipes."""
    bytes_read: int
    bytes_written: int
    bytes_waiting: int
    """Bytes written to transports and not sent yet."""
    accepted: int
    """Connections accepted by servers."""
    accept_pauses: int
    """Times that hotloop.limit() paused the accepting of a server."""
    accept_paused: float
    """Time for which it did, summed over servers."""
    connected: int
    """Outgoing connections."""

    @property
    def iterations(self) -> int:
        """Iterations: a poll, then the callbacks that are ready."""
        return self.iteration_duration.count

    @property
    def callbacks(self) -> int:
        """Callbacks run: handles, steps of tasks, events of transports."""
        return self.delay.count

    @property
    def utilization(self) -> float:
        """The share of the time that the loop was busy, between 0.0 and 1.0."""
        total = self.busy + self.idle
        return self.busy / total if total else 0.0

    def since(self, earlier: Metrics) -> Metrics:
        """Return the difference from an earlier snapshot of the loop, with no reset_metrics() in between.

        ready, ready_highest, transports and bytes_waiting are those of this snapshot.
        """
        totals = {
            name: getattr(self, name) - getattr(earlier, name)
            for name in (
                *("io_events", "timers_fired", "timers_cancelled", "tasks_created", "wakeups"),
                *("idle", "busy", "bytes_read", "bytes_written", "accepted", "connected"),
                *("accept_pauses", "accept_paused"),
            )
        }
        return replace(
            self,
            **totals,
            iteration_duration=self.iteration_duration.since(earlier.iteration_duration),
            delay=self.delay.since(earlier.delay),
        )
