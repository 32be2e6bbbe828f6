"""What an event loop did, and how long that took: the snapshot that loop.metrics() returns."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Histogram:
    """Durations in seconds, counted by size.

    From a microsecond to over an hour a bucket is at most a sixteenth wide, and what is told is within 4 %.
    What is shorter is all in the first bucket.
    """

    buckets: tuple[tuple[float, float, int], ...]
    """Those buckets that have anything: from which duration on, up to which, how many."""
    max: float
    """The longest; 0.0 as long as none took a microsecond."""

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(count for _, _, count in self.buckets)

    @property
    def sum(self) -> float:
        """All durations together."""
        return sum(self._middle(low, high) * count for low, high, count in self.buckets)

    @property
    def mean(self) -> float:
        """The average; 0.0 if there is none."""
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
        """Return what was counted after an earlier snapshot of the same histogram.

        Its max is that of all, or the end of the last bucket that has anything, if that is less.
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
        """What the durations in a bucket are taken for."""
        return min((low + high) / 2, self.max) if low else high / 2


@dataclass(frozen=True, slots=True)
class Metrics:
    """What an event loop did since it was made, or since reset_metrics(). Times are in seconds."""

    io_events: int
    """Descriptors that were found ready."""
    timers_fired: int
    timers_cancelled: int
    tasks_created: int
    """Calls of create_task()."""
    wakeups: int
    """Times that another thread woke the loop while it slept."""
    idle: float
    """Waiting, with nothing to do."""
    busy: float
    """Running callbacks, and looking for more."""
    iteration_duration: Histogram
    """How long each turn took, without the wait."""
    delay: Histogram
    """How late callbacks that were ready, and timers that were due, ran."""
    ready: int
    """Callbacks that are ready now."""
    ready_highest: int
    """The most that ever were, at the beginning of a turn."""
    transports: int
    """Open transports: connections, datagram endpoints, pipes."""
    bytes_read: int
    bytes_written: int
    bytes_waiting: int
    """What was written to transports, and is not sent yet."""
    accepted: int
    """Connections that servers accepted."""
    connected: int
    """Connections that were made to others."""

    @property
    def iterations(self) -> int:
        """Turns of the loop: a look for what is ready, then the callbacks that are."""
        return self.iteration_duration.count

    @property
    def callbacks(self) -> int:
        """Callbacks that were run: handles, steps of tasks, events of transports."""
        return self.delay.count

    @property
    def utilization(self) -> float:
        """The share of the time that the loop was busy, between 0.0 and 1.0."""
        total = self.busy + self.idle
        return self.busy / total if total else 0.0

    def since(self, earlier: Metrics) -> Metrics:
        """Return what the loop did after an earlier snapshot of it, with no reset_metrics() in between.

        What is open, ready or waiting, and the most that was ready, stay as they are.
        """
        totals = {
            name: getattr(self, name) - getattr(earlier, name)
            for name in (
                *("io_events", "timers_fired", "timers_cancelled", "tasks_created", "wakeups"),
                *("idle", "busy", "bytes_read", "bytes_written", "accepted", "connected"),
            )
        }
        return replace(
            self,
            **totals,
            iteration_duration=self.iteration_duration.since(earlier.iteration_duration),
            delay=self.delay.since(earlier.delay),
        )
