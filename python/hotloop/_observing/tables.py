"""The look of the tables of `hotloop top`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable


def new_table(title: str, figures: Iterable[str]) -> Table:
    """Return a table without rows, with columns of figures."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        expand=True,
        pad_edge=False,
    )
    for figure in figures:
        table.add_column(figure, justify="right", no_wrap=True)
    return table
