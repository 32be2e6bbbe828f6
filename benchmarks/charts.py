"""The charts of the page, drawn with matplotlib where it is installed.

They have a white background and dark text, so that they read on a dark page as well; hotloop has the strong
colour, the others are muted and differ in shape, too. The same figures give the same file.
"""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.growth_result import Growth
from benchmarks.loops import OURS
from benchmarks.results import Measured
from benchmarks.rows import ROWS
from benchmarks.spread import Spread
from benchmarks.tables import Line, Quantity

OVERVIEW = "overview"
OF_QUANTITIES = {
    tables.SCHEDULING_USER.title: "instructions-scheduling",
    tables.SERVERS_USER.title: "instructions-servers",
}
# Rows of the overview, and their titles there.
REPRESENTATIVE = {
    "echo_64": "TCP echo, Protocol",
    "echo_streams": "TCP echo, streams",
    "echo_sockets": "TCP echo, sock_recv",
    "echo_datagram": "UDP echo",
    "http_uvicorn": "uvicorn",
    "sleep_zero": "await sleep(0)",
}
UNITS = ("uvloop", "asyncio")
"""The first of these loops that was measured has rate 1 in the overview."""

WIDE = 50
"""The ratio of figures of growth from which the axis is logarithmic."""

STRONG = "#c8102e"
MUTED = "#b4bec8"
TEXT = "#24292f"
FAINT = "#dfe4e9"
# A loop's colour and shape where it is points and lines; bars have their names beside them.
STYLES = {
    OURS: (STRONG, "D"),
    "asyncio": ("#3b4652", "o"),
    "uvloop": ("#4f7ea8", "s"),
    "rloop": ("#5fa593", "^"),
    "rsloop": ("#b89b45", "v"),
    "blazio": ("#8a78ad", "p"),
    "talyn": ("#94a1ae", "X"),
    "zuvloop": ("#b0746a", "P"),
    "loopmini": ("#7d8f5c", "h"),
}
OTHER_STYLE = ("#79828c", "*")

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "hotloop",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": TEXT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "text.color": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}

# Any: type checks also run where matplotlib is not installed.
Figure = Any
Axes = Any


def draw_all(measured: Measured, directory: Path, warn: Callable[[str], None]) -> list[str]:
    """Draws all charts that have figures, and returns their names."""
    if importlib.util.find_spec("matplotlib") is None:
        warn("no charts without matplotlib: those that are there are left as they are")
        return [name for name in names(measured) if (directory / f"{name}.svg").exists()]
    import matplotlib

    directory.mkdir(parents=True, exist_ok=True)
    drawn = []
    with matplotlib.rc_context(STYLE):
        for name, figure in figures(measured):
            save(figure, directory / f"{name}.svg")
            drawn.append(name)
    return drawn


def names(measured: Measured) -> list[str]:
    return [OVERVIEW, *OF_QUANTITIES.values(), *[of_growth(growth) for growth in drawn_growths(measured)]]


def drawn_growths(measured: Measured) -> list[Growth]:
    """Those of memory are in a table."""
    return [growth for growth in measured.growths if not growth.is_of_memory]


def of_growth(growth: Growth) -> str:
    return f"growth-{growth.name.replace('_', '-')}"


def figures(measured: Measured) -> Sequence[tuple[str, Figure]]:
    drawn = [(OVERVIEW, overview(measured))]
    for quantity in (tables.SCHEDULING_USER, tables.SERVERS_USER):
        drawn.append((OF_QUANTITIES[quantity.title], instructions(quantity, measured)))
    for growth in drawn_growths(measured):
        draw = growth_lines if len(growth.x_values) > 1 else growth_bars
        drawn.append((of_growth(growth), draw(growth)))
    return [(name, figure) for name, figure in drawn if figure is not None]


def save(figure: Figure, path: Path) -> None:
    """Saves a chart as SVG, without dates and random identifiers."""
    import matplotlib.pyplot as plt

    figure.savefig(path, metadata={"Date": None, "Creator": None}, bbox_inches="tight", pad_inches=0.12)
    plt.close(figure)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line.rstrip() for line in lines) + "\n")


def style(name: str) -> tuple[str, str]:
    return STYLES.get(name, OTHER_STYLE)


def overview(measured: Measured) -> Figure | None:
    """A panel per row of the overview, with each loop's rate relative to one loop's."""
    import matplotlib.pyplot as plt

    unit = next((name for name in UNITS if name in measured.loops), "")
    rows = {row.name: row for row in ROWS}
    quantities = (tables.TIMES, tables.RATES)
    lines = [
        tables.line(rows[name], quantity, measured)
        for name in REPRESENTATIVE
        for quantity in quantities
        if rows[name].group in quantity.groups
    ]
    lines = [line for line in lines if line.figures.get(unit) is not None]
    if not lines:
        return None
    loops = [
        name
        for name in sorted(measured.loops, key=lambda name: name != OURS)
        if any(not measured.of(line.row.name, name).is_empty for line in lines)
    ]
    keeping = [relative_keeping(line, unit, measured) for line in lines]
    across = min(3, len(lines))
    down = -(-len(lines) // across)
    height = 0.75 + 0.2 * len(loops)
    figure, panels = plt.subplots(
        down, across, figsize=(3.1 * across, height * down), sharex=True, sharey=True, squeeze=False
    )
    for panel, line, others in zip(panels.flat, lines, keeping, strict=False):
        missing = {name: tables.missing(measured.of(line.row.name, name)) for name in loops}
        rates_of(panel, line, unit, loops, others, missing)
    for panel in panels.flat[len(lines) :]:
        panel.set_visible(False)
    most = [times.high for line in lines for times in relative(line, unit).values()]
    most += [times for others in keeping for times in others.values()]
    panels[0, 0].set_xlim(0, 1.25 * max(most))
    title = f"Median rate, {unit} = 1 (longer is faster; lines: interquartile ranges"
    title += f"; diamonds and brackets: {tables.KEEPING_TITLE})" if any(keeping) else ")"
    figure.suptitle(title, x=0.02, ha="left", fontsize=11)
    figure.tight_layout(w_pad=1.5, h_pad=1.2)
    return figure


def relative(line: Line, unit: str) -> dict[str, Spread]:
    """Each loop's rate divided by the unit's median one."""
    of_unit = line.figures[unit]
    assert of_unit is not None
    known = {name: spread for name, spread in line.spreads.items() if spread and spread.low > 0}
    if line.quantity.lowest_is_best:
        return {
            name: Spread(of_unit / spread.high, of_unit / spread.median, of_unit / spread.low)
            for name, spread in known.items()
        }
    return {
        name: Spread(spread.low / of_unit, spread.median / of_unit, spread.high / of_unit)
        for name, spread in known.items()
    }


def relative_keeping(line: Line, unit: str, measured: Measured) -> dict[str, float]:
    """Each loop's median rate with malloc that keeps memory, divided by the unit's default one."""
    of_unit = line.figures[unit]
    if line.quantity is not tables.RATES or not of_unit:
        return {}
    figures = tables.line(line.row, tables.RATES_KEEPING, measured).figures
    return {name: figure / of_unit for name, figure in figures.items() if figure is not None}


def rates_of(
    panel: Axes,
    line: Line,
    unit: str,
    names: list[str],
    keeping: dict[str, float],
    missing: dict[str, str],
) -> None:
    """Draws the bars of a panel. The order of the loops is that of all panels."""
    times = relative(line, unit)
    ends = {}
    for place, name in enumerate(names):
        if name in times:
            spread = times[name]
            panel.hlines(place, spread.low, spread.high, color=TEXT, linewidth=1.2, zorder=3)
            ends[name] = max(spread.high, keeping.get(name, 0.0))
        if name in keeping:
            panel.scatter(
                keeping[name],
                place,
                s=20,
                marker="D",
                color="white",
                edgecolors=TEXT,
                linewidths=0.9,
                zorder=4,
            )
    medians = [times[name].median if name in times else None for name in names]
    texts = missing | {name: f"{spread.median:.2f}" for name, spread in times.items()}
    texts |= {name: f"{texts[name]} ({figure:.2f})" for name, figure in keeping.items() if name in times}
    bars(panel, names, medians, texts, ends)
    panel.axvline(1, color=TEXT, linewidth=0.8, linestyle=(0, (2, 2)))
    panel.set_title(REPRESENTATIVE[line.row.name])


def bars(
    panel: Axes,
    names: list[str],
    values: Sequence[float | None],
    texts: dict[str, str],
    ends: dict[str, float] | None = None,
) -> None:
    """Draws a bar for each name. Its text is right of the bar or, if there is one, of its end."""
    places = range(len(names))
    panel.barh(
        places,
        [value or 0 for value in values],
        height=0.74,
        color=[STRONG if name == OURS else MUTED for name in names],
    )
    for place, name, value in zip(places, names, values, strict=True):
        weight = "bold" if name == OURS else "normal"
        # White around the figure hides the lines behind it.
        around = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
        panel.annotate(
            texts[name],
            ((ends or {}).get(name, value or 0), place),
            xytext=(6 if ends else 4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            fontweight=weight,
            bbox=around,
        )
    panel.set_yticks(places, names)
    panel.set_ylim(len(names) - 0.4, -0.6)
    panel.grid(axis="y", visible=False)
    for tick, name in zip(panel.get_yticklabels(), names, strict=False):
        tick.set_fontweight("bold" if name == OURS else "normal")


def instructions(quantity: Quantity, measured: Measured) -> Figure | None:
    """A line per row, with a point per loop: its instructions divided by hotloop's."""
    import matplotlib.pyplot as plt

    lines = [line for line in tables.lines(quantity, measured) if line.ours]
    if not lines:
        return None
    figure, panel = plt.subplots(figsize=(9, 0.9 + 0.34 * len(lines)))
    # hotloop is last, and so drawn on top.
    for name in sorted(measured.loops, key=lambda name: name == OURS):
        points(panel, name, lines)
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.set_yticks(range(len(lines)), [f"{line.row.title}: {number(line.ours)}" for line in lines])
    panel.set_ylim(len(lines) - 0.4, -0.6)
    what = quantity.title.partition(": ")[2]
    panel.set_xlabel(f"{what}, hotloop = 1 (its figure is beside each name; further right is worse)")
    legend_above(figure, panel)
    return figure


def points(panel: Axes, name: str, lines: list[Line]) -> None:
    known = [(times, place) for place, line in enumerate(lines) if (times := times_ours(line, name))]
    colour, shape = style(name)
    ours = name == OURS
    panel.scatter(
        [times for times, _ in known],
        [place for _, place in known],
        s=64 if ours else 48,
        color=colour,
        marker=shape,
        edgecolors="white",
        linewidths=0.5,
        label=name,
        zorder=4 if ours else 3,
    )


def times_ours(line: Line, name: str) -> float | None:
    figure = line.figures[name]
    return figure / line.ours if line.ours and figure else None


def number(figure: float | None) -> str:
    return tables.number(tables.rounded(figure))


def legend_above(figure: Figure, panel: Axes) -> None:
    """Draws the legend in one line, with hotloop first."""
    handles, labels = panel.get_legend_handles_labels()
    ordered = sorted(zip(handles, labels, strict=True), key=lambda pair: pair[1] != OURS)
    panel.legend(
        [handle for handle, _ in ordered],
        [label for _, label in ordered],
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=len(ordered),
        columnspacing=1.4,
        handletextpad=0.4,
        borderaxespad=0.2,
    )


def growth_lines(growth: Growth) -> Figure:
    import matplotlib.pyplot as plt

    figure, panel = plt.subplots(figsize=(8, 3.6))
    for name, values in sorted(growth.series.items(), key=lambda item: item[0] == OURS):
        if not any(values):
            continue
        colour, shape = style(name)
        ours = name == OURS
        panel.plot(
            growth.x_values,
            [float("nan") if value is None else value for value in values],
            color=colour,
            marker=shape,
            markersize=7 if ours else 5.5,
            markeredgecolor="white",
            linewidth=2.6 if ours else 1.4,
            label=name,
            zorder=4 if ours else 3,
        )
    panel.set_xscale("log")
    panel.set_xticks(growth.x_values, [f"{x:,.10g}" for x in growth.x_values])
    panel.set_xticks([], minor=True)
    known = [value for values in growth.series.values() for value in values if value]
    if known and max(known) > WIDE * min(known):
        panel.set_yscale("log")
    else:
        panel.set_ylim(bottom=0)
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    panel.set_xlabel(growth.x_label)
    panel.set_ylabel(growth.y_label)
    legend_above(figure, panel)
    return figure


def growth_bars(growth: Growth) -> Figure:
    import matplotlib.pyplot as plt

    figures = {name: values[0] for name, values in growth.series.items()}
    names = sorted(
        [*figures, *[name for name in growth.failures if name not in figures]], key=lambda n: n != OURS
    )
    figure, panel = plt.subplots(figsize=(8, 0.9 + 0.28 * len(names)))
    known = [value for value in figures.values() if value is not None]
    bars(
        panel,
        names,
        [figures.get(name) for name in names],
        {name: "fails" if figures.get(name) is None else number(figures[name]) for name in names},
    )
    panel.set_xlim(0, 1.15 * max(known, default=1))
    panel.set_xlabel(growth.y_label)
    return figure
