"""The page of `hotloop top` with the accounts: who uses the loops."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from .summaries import duration
from .tables import new_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.table import Table

    from ..accounting import Account, Accounting

# By the title of the column, how accounts are sorted; s goes on to the next.
ORDERS: dict[str, Callable[[Account], float]] = {
    "used": lambda account: account.total_poll_duration,
    "computing": lambda account: account.total_processor_time,
    "steps": lambda account: account.total_poll_count,
    "longest": lambda account: account.longest_poll_duration,
    "slow": lambda account: account.total_slow_poll_count,
    "waited": lambda account: account.mean_scheduled_duration,
}
ROWS = 30


def accounts_table(accountings: dict[str, Accounting], order: str, rows: int = ROWS) -> Table:
    """Draw the accounts of all loops, of the time since the last query."""
    several = len(accountings) > 1
    title = "Who uses the loop" + "s" * several + f", by {order}"
    table = new_table(title, (each + " ▼" * (each == order) for each in ORDERS))
    table.add_column("what", ratio=1, overflow="fold")
    found = [
        (name, account, accounting.seconds)
        for name, accounting in accountings.items()
        for account in accounting.accounts
    ]
    found.sort(key=lambda each: ORDERS[order](each[1]), reverse=True)
    for name, account, seconds in found[:rows]:
        table.add_row(
            _share(account.total_poll_duration, seconds),
            _share(account.total_processor_time, seconds),
            f"{account.total_poll_count:,}",
            _late(account.longest_poll_duration),
            f"{account.total_slow_poll_count:,}" if account.total_slow_poll_count else "",
            _late(account.mean_scheduled_duration),
            Text.assemble(
                (f"{name} " if several else "", "dim"),
                (f"{account.kind} ", "dim"),
                account.name,
                (f"  {account.where}" if account.line else "", "dim"),
            ),
        )
    return table


def _share(seconds: float, of: float) -> Text:
    share = seconds / of if of > 0 else 0.0
    return Text(f"{share:.1%}", style="red" if share >= 0.5 else "yellow" if share >= 0.2 else "")


def _late(seconds: float) -> Text:
    return Text(duration(seconds), style="red" if seconds >= 0.1 else "yellow" if seconds >= 0.01 else "")
