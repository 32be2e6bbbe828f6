"""Processes that accept from one listening socket: how evenly connections are shared out."""

import json

from benchmarks.children import python, run
from benchmarks.growth.figures import Figures
from benchmarks.growth_result import Growth

PROCESSES = (2, 4, 8)
CONNECTIONS = 400
PATIENCE = 60.0


def measure(names: list[str], *, quick: bool) -> list[Growth]:
    rounds, sizes = (1, PROCESSES[:1]) if quick else (5, PROCESSES)
    figures = Figures("accept_shares", names, sizes)

    def most(loop: str, processes: int) -> float:
        command = python("growth.work_shares", loop, str(processes), str(CONNECTIONS))
        shares = json.loads(run(command, timeout=PATIENCE))
        return 100 * max(shares) / sum(shares)

    figures.collect(rounds, most)
    even = " %, ".join(f"{100 / size:g}" for size in sizes)
    note = f"{CONNECTIONS} connections, a millisecond apart, to a socket from which all processes accept. "
    note += f"An even share is {even} %. Median of {rounds} interleaved rounds."
    return [
        figures.growth(
            title="The process that gets most connections of a shared listening socket",
            x_label="processes",
            y_label="per cent of the connections",
            note=note,
        )
    ]
