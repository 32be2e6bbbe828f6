"""Work that was timed in short pieces, and the figures that come from it."""

import bisect
from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

UNDISTURBED = 0.9
"""The least share of its time that an undisturbed piece has a processor."""


class Piece(NamedTuple):
    """Operations that a worker timed together. All times are in nanoseconds."""

    start: int
    """On a clock that all processes share, as `end`."""
    end: int
    processor: int
    """Processor time of the worker's thread."""
    operations: int

    @property
    def cost(self) -> float:
        """Nanoseconds of processor time per operation."""
        return self.processor / self.operations

    @property
    def is_undisturbed(self) -> bool:
        return self.processor >= UNDISTURBED * (self.end - self.start)


Pieces = Sequence[Piece]
"""One worker's, in order. Each begins where the former ends."""


def costs(workers: Sequence[Pieces]) -> list[float]:
    """The costs of the pieces that ran undisturbed while all other workers did, too."""
    found = []
    for number, pieces in enumerate(workers):
        others = [*workers[:number], *workers[number + 1 :]]
        for piece in pieces:
            if piece.is_undisturbed and all(ran_throughout(other, piece) for other in others):
                found.append(piece.cost)
    return found


def ran_throughout(worker: Pieces, piece: Piece) -> bool:
    """Whether the worker ran undisturbed from the piece's start to its end."""
    first = bisect.bisect_right(worker, piece.start, key=attrgetter("start")) - 1
    last = bisect.bisect_left(worker, piece.end, key=attrgetter("end"))
    if first < 0 or last == len(worker):
        return False
    return all(other.is_undisturbed for other in worker[first : last + 1])


def rate(workers: Sequence[Pieces]) -> float | None:
    """Operations per second of all workers while all of them were at work. None if they never were."""
    start = max(pieces[0].start for pieces in workers)
    end = min(pieces[-1].end for pieces in workers)
    if start >= end:
        return None
    return sum(operations_between(pieces, start, end) for pieces in workers) / (end - start) * 1e9


def operations_between(pieces: Pieces, start: int, end: int) -> float:
    """Operations of the pieces, and of those that are partly within that time, their share."""
    done = 0.0
    for piece in pieces:
        within = min(piece.end, end) - max(piece.start, start)
        done += piece.operations * max(within, 0) / (piece.end - piece.start)
    return done


def lower_decile(figures: Sequence[float]) -> float:
    return sorted(figures)[len(figures) // 10]
