"""A flood of callbacks: by how much it delays a message that comes in meanwhile."""

import json

from benchmarks.children import Failed, python, run
from benchmarks.growth.figures import Figures
from benchmarks.growth_result import Growth

SIZES = (1, 100, 10_000)
PATIENCE = 20.0


def measure(names: list[str], *, quick: bool) -> list[Growth]:
    rounds, seconds = (1, 0.5) if quick else (7, 1.0)
    most, worst = (Figures(name, names, SIZES) for name in ("flood", "flood_worst"))

    def delays(loop: str, alive: int) -> tuple[float, float]:
        command = python("growth.work_flood", loop, str(alive), str(seconds))
        arrived, delay_of_most, worst_delay = json.loads(run(command, timeout=PATIENCE + seconds))
        if arrived < 50 * seconds:
            raise Failed(f"starves: {arrived} messages arrived in {seconds:g} s")
        return delay_of_most, worst_delay

    most.collect_with(worst, rounds, delays)
    x_label = "callbacks alive"
    note = "Callbacks of about a microsecond, each of which has itself called again; another process sends a "
    note += f"message every millisecond. {seconds:g} s; median of {rounds} interleaved rounds."
    return [
        most.growth(
            title="Delay of a message during a flood of callbacks, 99th percentile",
            x_label=x_label,
            y_label="microseconds",
            note=note,
        ),
        worst.growth(
            title="Delay of a message during a flood of callbacks, the worst",
            x_label=x_label,
            y_label="microseconds",
            note=note,
        ),
    ]
