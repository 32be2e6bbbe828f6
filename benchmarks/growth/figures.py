"""What is collected while a growth is measured."""

import statistics
import sys
from collections.abc import Callable, Iterator, Sequence

from benchmarks.children import Failed
from benchmarks.growth_result import Growth


class Figures:
    """The figures of one growth, by loop and size. A loop that failed at a size is not measured from there
    on."""

    def __init__(self, name: str, names: Sequence[str], sizes: Sequence[int]) -> None:
        self.name = name
        self.names = names
        self.sizes = sizes
        self.failures: dict[str, str] = {}
        self._failed_at: dict[str, int] = {}
        self._found: dict[tuple[str, int], list[float]] = {}

    def add(self, loop: str, size: int, figure: float) -> None:
        self._found.setdefault((loop, size), []).append(figure)

    def fail(self, loop: str, size: int, reason: str) -> None:
        """The loop has no figure of this size, whatever earlier rounds found."""
        self.failures[loop] = f"at {size:,}: {reason}" if len(self.sizes) > 1 else reason
        self._failed_at[loop] = size
        progress(f"{self.name}: {loop} FAILS {self.failures[loop]}")

    def goes_on(self, loop: str, size: int) -> bool:
        return size < self._failed_at.get(loop, size + 1)

    def turns(self, rounds: int) -> Iterator[tuple[str, int]]:
        """Rounds are interleaved, so that a slow spell of the machine hits every loop."""
        for size in self.sizes:
            for number in range(1, rounds + 1):
                for loop in self.names:
                    if self.goes_on(loop, size):
                        of_rounds = f", round {number} of {rounds}" if rounds > 1 else ""
                        progress(f"{self.name}: {loop}, {size:,}{of_rounds}")
                        yield loop, size

    def collect(self, rounds: int, measured: Callable[[str, int], float]) -> None:
        for loop, size in self.turns(rounds):
            try:
                self.add(loop, size, measured(loop, size))
            except Failed as failure:
                self.fail(loop, size, str(failure))

    def collect_with(
        self, other: "Figures", rounds: int, measured: Callable[[str, int], tuple[float, float]]
    ) -> None:
        """Of a measurement that gives a figure for each of two growths."""
        for loop, size in self.turns(rounds):
            try:
                figure, others = measured(loop, size)
            except Failed as failure:
                self.fail(loop, size, str(failure))
                other.fail(loop, size, str(failure))
            else:
                self.add(loop, size, figure)
                other.add(loop, size, others)

    def of(self, loop: str, size: int, choose: Callable[[list[float]], float]) -> float | None:
        found = self._found.get((loop, size))
        return choose(found) if found and self.goes_on(loop, size) else None

    def growth(
        self,
        *,
        title: str,
        x_label: str,
        y_label: str,
        note: str,
        choose: Callable[[list[float]], float] = statistics.median,
    ) -> Growth:
        series = {loop: tuple(self.of(loop, size, choose) for size in self.sizes) for loop in self.names}
        x_values = tuple(float(size) for size in self.sizes)
        return Growth(self.name, title, x_label, y_label, x_values, series, dict(self.failures), note)


def progress(text: str) -> None:
    sys.stderr.write(text + "\n")
