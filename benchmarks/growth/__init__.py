"""How a loop's cost grows with what it has to look after: python -m benchmarks.growth

Each module measures one thing, each figure in a fresh process of one loop; those named work_... are what
these processes do.
"""

from benchmarks.growth_result import Growth


def measure(names: list[str], *, quick: bool = False) -> list[Growth]:
    """Measure these loops. A loop that fails has None from there on, and the others go on."""
    # Only here: the processes that do the work import this package, too, and are counted from their start.
    from benchmarks import counters
    from benchmarks.growth import connections, flood, memory, shares, start_up, timers

    # System calls do not grow with anything here: only what counts instructions is of use.
    counter = next((one for one in counters.available() if not isinstance(one, counters.Strace)), None)
    return [
        *connections.measure(names, counter, quick=quick),
        *timers.measure(names, counter, quick=quick),
        *memory.measure(names, quick=quick),
        *flood.measure(names, quick=quick),
        *shares.measure(names, quick=quick),
        *start_up.measure(names, quick=quick),
    ]


def measure_tls(names: list[str], *, quick: bool = False) -> list[Growth]:
    """As measure(), of what only TLS has."""
    from benchmarks.growth import memory

    return memory.measure_tls(names, quick=quick)
