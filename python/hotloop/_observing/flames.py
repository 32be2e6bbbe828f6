"""Flame graphs: collapsed stacks, as speedscope and FlameGraph read them, and SVG images."""

from __future__ import annotations

import os
import zlib
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Stacks = Iterable[tuple[tuple[str, ...], float]]

# Pixels.
WIDTH = 1200
ROW = 18
MARGIN = 10
TITLE = 34
CHARACTER = 6.6
# Frames that would be narrower are left out of the image.
NARROWEST = 0.3


def save(stacks: Stacks, path: str | os.PathLike[str]) -> None:
    """Write stacks, outermost frame first, each with its seconds: as an image if the name ends in ".svg"."""
    lines = image(stacks) if os.fspath(path).endswith(".svg") else collapsed(stacks)
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)


def collapsed(stacks: Stacks) -> Iterator[str]:
    """Yield a line for each stack: its frames, and its microseconds."""
    sums: dict[tuple[str, ...], float] = {}
    for frames, seconds in stacks:
        sums[frames] = sums.get(frames, 0.0) + seconds
    for frames, seconds in sorted(sums.items()):
        if microseconds := round(seconds * 1e6):
            # Names that a program makes can have anything in them.
            names = (" ".join(frame.replace(";", ",").split()) for frame in frames)
            yield f"{';'.join(names)} {microseconds}"


class _Frame:
    def __init__(self) -> None:
        self.seconds = 0.0
        self.children: dict[str, _Frame] = {}

    def depth(self) -> int:
        return 1 + max((child.depth() for child in self.children.values()), default=0)


def image(stacks: Stacks) -> Iterator[str]:
    """Yield the lines of an SVG image, with the outermost frames at the top."""
    root = _Frame()
    for frames, seconds in stacks:
        root.seconds += seconds
        frame = root
        for name in frames:
            frame = frame.children.setdefault(name, _Frame())
            frame.seconds += seconds
    height = TITLE + root.depth() * ROW + MARGIN
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}"'
        f' height="{height}" font-family="monospace" font-size="11">'
    )
    yield '<rect width="100%" height="100%" fill="#fdfdfd"/>'
    yield (
        f'<text x="{MARGIN}" y="22" font-size="14">Time of the event loop, by who awaits whom: '
        f"{root.seconds:.3f} s</text>"
    )
    if root.seconds > 0:
        scale = (WIDTH - 2 * MARGIN) / root.seconds
        yield from _frame("all", root, MARGIN, TITLE, scale, root.seconds)
    yield "</svg>"


def _frame(name: str, frame: _Frame, x: float, y: int, scale: float, all_seconds: float) -> Iterator[str]:
    width = frame.seconds * scale
    if width < NARROWEST:
        return
    # The same name has the same colour in each image.
    shade = zlib.crc32(name.encode())
    colour = f"hsl({20 + shade % 35},{70 + (shade >> 8) % 25}%,{62 + (shade >> 16) % 12}%)"
    told = escape(f"{name}: {frame.seconds * 1e3:,.3f} ms, {frame.seconds / all_seconds:.1%}")
    room = int((width - 4) / CHARACTER)
    shown = name if len(name) <= room else f"{name[: room - 1]}…" if room > 3 else ""
    yield (
        f'<g><title>{told}</title><rect x="{x:.1f}" y="{y}" width="{max(width - 0.5, 0.2):.1f}"'
        f' height="{ROW - 1}" rx="2" fill="{colour}"/>'
    )
    if shown:
        yield f'<text x="{x + 3:.1f}" y="{y + 12}">{escape(shown)}</text>'
    yield "</g>"
    for child_name, child in sorted(frame.children.items()):
        yield from _frame(child_name, child, x, y + ROW, scale, all_seconds)
        x += child.seconds * scale
