"""Many timers pending: what it costs to insert one and to cancel one."""

import json
import tempfile

from benchmarks.children import Failed, python, run
from benchmarks.counters import Counter
from benchmarks.growth.figures import Figures
from benchmarks.growth.work_timers import BATCH, more
from benchmarks.growth_result import Growth

SIZES = (10, 1_000, 100_000, 1_000_000)
COUNTED = (10, 1_000, 100_000)
"""Under valgrind, a million timers take minutes."""
PATIENCE = 120.0
COUNTING_PATIENCE = 300.0
INSERTED = 10_000
"""So many insertions are counted, at the least."""

X_LABEL = "timers pending"
INSERTION = "Inserting a timer among many"
CANCELLATION = "Cancelling a timer among many"


def measure(names: list[str], counter: Counter | None, *, quick: bool) -> list[Growth]:
    counted = instructions(names, COUNTED[:2] if quick else COUNTED, counter) if counter else []
    return [*counted, *nanoseconds(names, SIZES[:3] if quick else SIZES, rounds=1 if quick else 5)]


def replacements(pending: int) -> int:
    """So many that a loop which clears cancelled timers away when most are, does so once or more."""
    return max(INSERTED, 2 * pending)


def instructions(names: list[str], sizes: tuple[int, ...], counter: Counter) -> list[Growth]:
    inserting, cancelling = (Figures(name, names, sizes) for name in ("timers_insert", "timers_cancel"))
    inserting.collect_with(cancelling, 1, lambda loop, pending: counted(loop, pending, counter))
    y_label = "user instructions"
    return [
        inserting.growth(
            title=INSERTION,
            x_label=X_LABEL,
            y_label=y_label,
            note="call_later with a random delay that does not come, for as many timers again. No garbage "
            f"collection. {counter.name}, with and without.",
        ),
        cancelling.growth(
            title=CANCELLATION,
            x_label=X_LABEL,
            y_label=y_label,
            note="Cancelling these again, somewhat more than half of all, and an iteration. No garbage "
            f"collection. {counter.name}, with and without.",
        ),
    ]


def counted(loop: str, pending: int, counter: Counter) -> tuple[float, float]:
    """What one insertion costs, and one cancellation."""
    times = -(-INSERTED // more(pending))
    set_up, inserted, cancelled = (
        whole_count(loop, counter, work, pending, times) for work in ("set_up", "insert", "cancel")
    )
    if not set_up < inserted < cancelled:
        raise Failed("the count is not steady")
    timers = times * more(pending)
    return (inserted - set_up) / timers, (cancelled - inserted) / timers


def whole_count(loop: str, counter: Counter, work: str, pending: int, times: int) -> float:
    with tempfile.NamedTemporaryFile() as output:
        run(counter.wrap(command(loop, work, pending, times), output.name), timeout=COUNTING_PATIENCE)
        user = counter.read(output.name).user
    if user is None:
        raise Failed("nothing was counted")
    return user


def command(loop: str, work: str, pending: int, times: int) -> list[str]:
    return python("growth.work_timers", loop, work, str(pending), str(times))


def nanoseconds(names: list[str], sizes: tuple[int, ...], rounds: int) -> list[Growth]:
    inserting, cancelling = (Figures(name, names, sizes) for name in ("timers_insert_ns", "timers_cancel_ns"))

    def timed(loop: str, pending: int) -> tuple[float, float]:
        printed = run(command(loop, "replace", pending, replacements(pending)), timeout=PATIENCE)
        insertion, cancellation = json.loads(printed)
        return insertion, cancellation

    inserting.collect_with(cancelling, rounds, timed)
    note = f"{BATCH} timers at a time, inserted with a random delay that does not come, then cancelled, then "
    note += "an iteration, which counts as cancelling. No garbage collection. "
    note += f"Median of {rounds} interleaved rounds."
    y_label = "nanoseconds"
    return [
        inserting.growth(title=INSERTION, x_label=X_LABEL, y_label=y_label, note=note),
        cancelling.growth(title=CANCELLATION, x_label=X_LABEL, y_label=y_label, note=note),
    ]
