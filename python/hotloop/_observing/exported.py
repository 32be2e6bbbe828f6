"""Which accounts Prometheus and OpenTelemetry get: a bounded number, and those that they got before."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..accounting import Account, Accounting
    from ..loop import Loop

# Of one loop, over its life, as many times the number that one collection has.
LIMIT = 10


class Exported:
    """Chooses accounts of one loop. One that was exported stays: its end would look like a restart."""

    def __init__(self, count: int) -> None:
        if count < 0:
            raise ValueError(f"the number of accounts must not be negative, not {count!r}")
        self.count = count
        self.keys: set[tuple[str, str, str, int]] = set()

    def choose(self, accounting: Accounting) -> list[Account]:
        """Return those with the longest total_poll_duration, and those that were returned before."""
        for account in accounting.accounts[: self.count]:
            if len(self.keys) < LIMIT * self.count:
                self.keys.add(account.key)
        return [account for account in accounting.accounts if account.key in self.keys]

    def choose_of(self, loop: Loop) -> list[Account]:
        """Return those of a loop; none if it keeps no accounts."""
        try:
            accounting = loop.accounting() if self.count else None
        except RuntimeError:
            return []
        return [] if accounting is None else self.choose(accounting)
