"""The command: python -m benchmarks.growth"""

import argparse
import signal
import sys
from collections.abc import Sequence

from benchmarks import loops
from benchmarks.growth import measure, measure_tls
from benchmarks.growth_result import Growth


def main(arguments: Sequence[str] | None = None) -> int:
    installed = [name for name in loops.FACTORIES if loops.is_installed(name)]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth", description="Compare how cost grows."
    )
    parser.add_argument("--loops", default=",".join(installed), help="comma-separated (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds, to try it")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    names = options.loops.split(",")
    plain = [name for name in names if "+" not in name]
    for growth in [*measure(plain, quick=options.quick), *measure_tls(names, quick=options.quick)]:
        print(table(growth), end="\n\n")
    return 0


def table(growth: Growth) -> str:
    """One line a loop, one column a size."""
    columns = ["" if len(growth.x_values) == 1 else growth.x_label, *(f"{x:,.0f}" for x in growth.x_values)]
    lines = [f"{growth.name}: {growth.title}, {growth.y_label}", row(columns)]
    for name, figures in growth.series.items():
        lines.append(row([name, *("-" if figure is None else number(figure) for figure in figures)]))
    lines += [f"  {name} fails {reason}" for name, reason in growth.failures.items()]
    return "\n".join([*lines, growth.note])


def row(cells: Sequence[str]) -> str:
    first, *others = cells
    return "  ".join([f"{first:24}", *(f"{cell:>10}" for cell in others)])


def number(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.2f}"


if __name__ == "__main__":
    sys.exit(main())
