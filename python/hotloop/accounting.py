"""What loop.accounting() returns: who has used an event loop, and for how long."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ._observing import flames
from ._observing.awaiting import awaiting_task, coroutines, name_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .loop import Loop

# The order is that of the extension's kinds.
KINDS = ("callback", "task", "protocol", "loop")
# The extension counts the time of so many chains, which are kept; of one, so many coroutines are.
CHAINS = 1 << 13
DEEPEST = 64
LOOP = "the loop itself"
UNNAMED = "others"


@dataclass(frozen=True, slots=True)
class Account:
    """What the loop ran of one kind of work: a coroutine's tasks, a function's callbacks, a protocol's class.

    A poll is a step of a task, a call of a callback, or an event of a transport with what its protocol does.
    The names are those of Rust's tokio-metrics. Times are in seconds.
    """

    kind: str
    """"task", "callback", "protocol", or "loop": that is polling and sending, between the callbacks. Other
    objects of the loop that wait for events, such as servers, count as protocols."""
    name: str
    """The qualified name of the coroutine, function or class."""
    file: str
    """Where it is defined; of what was not written in Python, and of classes, the module."""
    line: int
    """The line; 0 if there is none."""
    total_poll_count: int
    """How often it ran; of the loop, iterations."""
    total_poll_duration: float
    """For how long it ran."""
    total_processor_time: float
    """For how long its thread computed meanwhile. That is measured for a millisecond of work, or one longer
    poll, and shared among its polls."""
    longest_poll_duration: float
    total_slow_poll_count: int
    """Polls of at least the *slow* seconds of loop.account()."""
    total_slow_poll_duration: float
    total_scheduled_duration: float
    """How long the polls waited until they ran, since they were ready. See Metrics.delay."""
    longest_scheduled_duration: float
    first_poll_count: int
    """Tasks that have begun."""
    total_first_poll_delay: float
    """How long these waited for their first step."""

    @property
    def mean_poll_duration(self) -> float:
        """The average of a poll."""
        return self.total_poll_duration / self.total_poll_count if self.total_poll_count else 0.0

    @property
    def mean_scheduled_duration(self) -> float:
        """The average time that a poll waited."""
        return self.total_scheduled_duration / self.total_poll_count if self.total_poll_count else 0.0

    @property
    def mean_first_poll_delay(self) -> float:
        """The average time that a task waited for its first step."""
        return self.total_first_poll_delay / self.first_poll_count if self.first_poll_count else 0.0

    @property
    def slow_poll_ratio(self) -> float:
        """The share of slow polls, between 0.0 and 1.0."""
        return self.total_slow_poll_count / self.total_poll_count if self.total_poll_count else 0.0

    @property
    def where(self) -> str:
        """The file's name and the line."""
        return f"{os.path.basename(self.file)}:{self.line}" if self.line else self.file

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What tells accounts apart."""
        return self.kind, self.name, self.file, self.line


TOTALS = (
    *("total_poll_count", "total_poll_duration", "total_processor_time"),
    *("total_slow_poll_count", "total_slow_poll_duration", "total_scheduled_duration"),
    *("first_poll_count", "total_first_poll_delay"),
)
LONGEST = ("longest_poll_duration", "longest_scheduled_duration")


def combine(one: Account, other: Account) -> Account:
    """Return the account of both, with the name of the first."""
    totals = {name: getattr(one, name) + getattr(other, name) for name in TOTALS}
    return replace(one, **totals, **{name: max(getattr(one, name), getattr(other, name)) for name in LONGEST})


@dataclass(frozen=True, slots=True)
class Chain:
    """The part of an account's time that was spent for one chain of who awaits whom, outermost first."""

    key: tuple[str, str, str, int]
    frames: tuple[str, ...]
    weight: float
    """Its share of the account's time, if it is divided by the sum of the account's chains."""


@dataclass(frozen=True, slots=True)
class Accounting:
    """Who has used an event loop since loop.account() was called, as it was when the accounting was made."""

    seconds: float
    """The time since loop.account() was called."""
    accounts: tuple[Account, ...]
    """The one with the longest total_poll_duration comes first."""
    chains: tuple[Chain, ...]
    """Of tasks, how their time is divided by who awaits them: see flame()."""

    @classmethod
    def of(cls, loop: Loop) -> Accounting:
        """Implement loop.accounting()."""
        accounted = loop._accounted
        if accounted is None:
            raise RuntimeError("the event loop keeps no accounts: call loop.account() first")
        chains = list(accounted.chains)
        names, rows, seconds = loop._accounts(len(chains))
        by_number = {row[0]: _account(names, *row) for row in rows}
        merged: dict[tuple[str, str, str, int], Account] = {}
        for account in by_number.values():
            former = merged.get(account.key)
            merged[account.key] = combine(former, account) if former else account
        divided = [
            Chain(by_number[number].key, frames, weight)
            for (number, frames), weight in zip(chains, seconds, strict=True)
            if weight and number in by_number
        ]
        return cls(time.monotonic() - accounted.began, _sorted(merged.values()), tuple(divided))

    @property
    def busy(self) -> float:
        """The sum of all accounts' total_poll_duration: close to the increase of Metrics.busy."""
        return sum(account.total_poll_duration for account in self.accounts)

    def top(self, count: int) -> tuple[Account, ...]:
        """Return up to *count* accounts, and the sum of the others, if there are any, as one."""
        rest = self.accounts[count:]
        if not rest:
            return self.accounts
        others = replace(rest[0], kind="others", name=UNNAMED, file="", line=0)
        for account in rest[1:]:
            others = combine(others, account)
        return (*self.accounts[:count], others)

    def since(self, earlier: Accounting) -> Accounting:
        """Return the difference from an earlier accounting, with no call of loop.account() in between.

        The longest durations are those since loop.account().
        """
        before = {account.key: account for account in earlier.accounts}
        chains = {(chain.key, chain.frames): chain.weight for chain in earlier.chains}
        accounts = [_less(account, before.get(account.key)) for account in self.accounts]
        divided = [
            replace(chain, weight=chain.weight - chains.get((chain.key, chain.frames), 0.0))
            for chain in self.chains
        ]
        return Accounting(
            self.seconds - earlier.seconds,
            _sorted(account for account in accounts if account.total_poll_count),
            tuple(chain for chain in divided if chain.weight > 0),
        )

    def flame(self, path: str | os.PathLike[str]) -> None:
        """Write a flame graph of the loop's time, by the chain of who awaits whom.

        As an SVG image if the name ends in ".svg", and otherwise as collapsed stacks in microseconds, which
        https://www.speedscope.app and FlameGraph read. A chain has the tasks that wait for the task, and the
        coroutines of each. An account's time is exact. How it is divided among chains is exact for coroutines
        with long steps; for others it is estimated by some steps: many of the first, and then one in some
        thousand. Raise OSError if the file can't be written.
        """
        flames.save(list(self.stacks()), path)

    def stacks(self) -> Iterator[tuple[tuple[str, ...], float]]:
        """Yield the stacks of flame(), outermost frame first, each with its seconds."""
        weights: dict[tuple[str, str, str, int], float] = {}
        for chain in self.chains:
            weights[chain.key] = weights.get(chain.key, 0.0) + chain.weight
        durations = {account.key: account.total_poll_duration for account in self.accounts}
        for chain in self.chains:
            yield chain.frames, durations.get(chain.key, 0.0) * chain.weight / weights[chain.key]
        for account in self.accounts:
            if account.key not in weights:
                yield (
                    (frame(account.name, account.file if account.line else ""),),
                    account.total_poll_duration,
                )

    def __str__(self) -> str:
        return "\n".join(table(self, 20))


def _account(names: tuple[tuple[str, str, int], ...], number: int, kind: int, *counted: Any) -> Account:
    if KINDS[kind] == "loop":
        return Account(KINDS[kind], LOOP, "", 0, *counted)
    named = names[number - 1] if number else (UNNAMED, "", 0)
    return Account(KINDS[kind], *named, *counted)


def _sorted(accounts: Any) -> tuple[Account, ...]:
    return tuple(sorted(accounts, key=lambda account: account.total_poll_duration, reverse=True))


def _less(account: Account, earlier: Account | None) -> Account:
    if earlier is None:
        return account
    return replace(account, **{name: getattr(account, name) - getattr(earlier, name) for name in TOTALS})


def table(accounting: Accounting, count: int) -> list[str]:
    """Return lines that show the first accounts."""
    from ._observing.summaries import duration

    busy = accounting.busy
    share = f"{busy / accounting.seconds:.1%}" if accounting.seconds > 0 else "0.0%"
    lines = [f"accounts of {duration(accounting.seconds)}, {share} of it used"]
    lines.append(f"  {'used':>6} {'time':>10} {'computing':>10} {'steps':>9} {'longest':>10} {'waited':>10}")
    for account in accounting.top(count):
        used = account.total_poll_duration / busy if busy else 0.0
        lines.append(
            f"  {used:>6.1%} {duration(account.total_poll_duration):>10}"
            f" {duration(account.total_processor_time):>10} {account.total_poll_count:>9,}"
            f" {duration(account.longest_poll_duration):>10} {duration(account.mean_scheduled_duration):>10}"
            f"  {account.kind} {account.name}" + (f" ({account.where})" if account.line else "")
        )
    return lines


# --- What the loop asks for ---


class Accounted:
    """The state of loop.account(): the chains that were found, each with the number of its account."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.chains: list[tuple[int, tuple[str, ...]]] = []
        self.numbers: dict[tuple[int, tuple[str, ...]], int] = {}


def account(loop: Loop, on: bool, slow: float) -> None:
    """Implement loop.account()."""
    if not on:
        loop._account(None)
        loop._accounted = None
        return
    if not 0 < slow < float("inf"):
        raise ValueError(f"slow must be a positive number of seconds, not {slow!r}")
    # The extension clears its sums of the former chains.
    loop._account(slow)
    loop._accounted = Accounted()


def frame(name: str, file: str) -> str:
    """Return the name of a frame in a flame graph."""
    return f"{name} ({file.rpartition(os.sep)[2]})" if file else name


def find_chain(task: Any, number: int) -> int | None:
    """Return the number of the chain of who awaits a task whose step begins; None for no more of them."""
    accounted = task.get_loop()._accounted
    if accounted is None:
        return None
    frames: list[str] = []
    seen: set[int] = set()
    while task is not None and len(frames) < DEEPEST and id(task) not in seen:
        seen.add(id(task))
        # A coroutine that is not written in Python has only a name.
        frames[:0] = [frame(each.name, each.file) for each in coroutines(task)] or [name_of(task)]
        task = awaiting_task(task)
    # Those closest to the step. Coroutines can call themselves.
    key = (number, tuple(frames[-DEEPEST:]))
    found: int | None = accounted.numbers.get(key)
    if found is None and len(accounted.chains) < CHAINS:
        found = accounted.numbers[key] = len(accounted.chains)
        accounted.chains.append(key)
    return found
