"""The result of measuring how cost grows with size."""

from dataclasses import dataclass

MEMORY = "_memory"
"""The end of the names of growths that are bytes of memory, which have one table."""


@dataclass(frozen=True)
class Growth:
    name: str
    """Used in file names: connections_active, connections_memory, timers_insert, timers_cancel, flood, ..."""
    title: str
    x_label: str
    y_label: str
    x_values: tuple[float, ...]
    """Sizes, for example 100, 1,000 and 10,000; one value where nothing grows."""
    series: dict[str, tuple[float | None, ...]]
    """A loop's figures, one for each size; None where it has none. The lowest is the best."""
    failures: dict[str, str]
    """Why a loop has no figures."""
    note: str
    """How it was measured, in a sentence or two."""

    @property
    def is_of_memory(self) -> bool:
        return self.name.endswith(MEMORY)
