"""The median of several rounds with their interquartile range, and when two medians count as equal."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    low: float
    """The first quartile."""
    median: float
    high: float
    """The third quartile."""

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Spread | None":
        """None without samples. The quartiles are interpolated between samples."""
        if not samples:
            return None
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0])
        return cls(*statistics.quantiles(samples, n=4, method="inclusive"))

    @property
    def relative(self) -> float | None:
        """Half of the interquartile range, as a share of the median."""
        return (self.high - self.low) / 2 / self.median if self.median > 0 and self.high > self.low else None

    def overlaps(self, other: "Spread") -> bool:
        return self.low <= other.high and other.low <= self.high


def difference(one: Spread | None, other: Spread | None) -> float | None:
    """By which share of the smaller median the larger one is above it."""
    if one is None or other is None:
        return None
    small, large = sorted((one.median, other.median))
    return large / small - 1 if small > 0 else None


def are_tied(one: Spread | None, other: Spread | None, tolerance: float = 0.0) -> bool:
    """Whether the interquartile ranges overlap, or the medians differ by no more than `tolerance`."""
    if one is None or other is None:
        return False
    between = difference(one, other)
    return one.overlaps(other) or (between is not None and between <= tolerance)
