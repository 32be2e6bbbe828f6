"""What it takes to start: importing a loop's package and making a loop, and making one more."""

import statistics
import sys
import tempfile
import time

from benchmarks import loops
from benchmarks.children import SERVER_PROCESSOR, Failed, python, run
from benchmarks.growth.figures import Figures
from benchmarks.growth_result import Growth

PATIENCE = 30.0
BARE = "import asyncio"
STARTED = """
import {module}
async def nothing(): pass
loop = {module}.{attribute}()
loop.run_until_complete(nothing())
loop.close()
"""


def measure(names: list[str], *, quick: bool) -> list[Growth]:
    return [start_up(names, 3 if quick else 10), create(names, rounds=1 if quick else 7)]


def start_up(names: list[str], rounds: int) -> Growth:
    figures = Figures("start_up", names, (1,))
    bare: list[float] = []
    with tempfile.TemporaryDirectory() as compiled:

        def started(loop: str, _size: int) -> float:
            module, _, attribute = loops.FACTORIES.get(loop, loop).partition(":")
            bare.append(milliseconds(BARE, compiled))
            return milliseconds(STARTED.format(module=module, attribute=attribute), compiled)

        # The first round compiles, so it is one more.
        figures.collect(rounds + 1, started)
    return figures.growth(
        title="Importing the package, making a loop, running nothing on it and closing it",
        x_label="",
        y_label="milliseconds",
        note="A whole process, less one that only imports asyncio, both the median of "
        f"{rounds} interleaved rounds. Every module is compiled before.",
        choose=lambda took: statistics.median(took[1:]) - statistics.median(bare),
    )


def milliseconds(program: str, compiled: str) -> float:
    """What a process takes that keeps compiled modules in this folder."""
    environment = ["env", "-u", "PYTHONDONTWRITEBYTECODE", f"PYTHONPYCACHEPREFIX={compiled}"]
    start = time.perf_counter()
    run([*environment, sys.executable, "-c", program], timeout=PATIENCE, processor=SERVER_PROCESSOR)
    return (time.perf_counter() - start) * 1e3


def create(names: list[str], *, rounds: int) -> Growth:
    figures = Figures("loop_create", names, (1,))

    def made(loop: str, _size: int) -> float:
        printed = run(python("growth.work_loops", loop, "100"), timeout=PATIENCE, processor=SERVER_PROCESSOR)
        try:
            return float(printed)
        except ValueError:
            raise Failed(f"prints {printed.strip()!r}") from None

    figures.collect(rounds, made)
    return figures.growth(
        title="Making one more loop, running nothing on it and closing it",
        x_label="",
        y_label="microseconds",
        note=f"100 loops, one after the other, in one process; median of {rounds} interleaved rounds.",
    )
