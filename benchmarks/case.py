"""What a scheduling row does: a coroutine function that does its work a given number of times."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    title: str
    run: Callable[[int], Awaitable[None]]
    timed: int
    """Repetitions of a timed run: about a quarter of a second on asyncio's own loop."""
    counted: int
    """Repetitions of a run that counts instructions."""
    target: float | None = None
    """The most user instructions that hotloop is to take."""
    is_steady: bool = True
    """Whether counts are reproducible, which they are not with threads or child processes."""
    has_children: bool = False
    """Whether child processes do a part of the work."""

    @property
    def warmup(self) -> int:
        """Repetitions after which the interpreter has specialised the code."""
        return max(self.counted // 4, 4)


Run = Callable[[int], Awaitable[None]]


class Cases(dict[str, Case]):
    """Cases by the names of their functions."""

    def add(
        self,
        title: str,
        *,
        timed: int,
        counted: int,
        target: float | None = None,
        is_steady: bool = True,
        has_children: bool = False,
    ) -> Callable[[Run], Run]:
        """A decorator that makes a case of a function."""

        def register(run: Run) -> Run:
            self[run.__name__] = Case(title, run, timed, counted, target, is_steady, has_children)
            return run

        return register


def nothing() -> None:
    pass


async def nothing_async() -> None:
    pass


def check(right: bool) -> None:
    if not right:
        raise RuntimeError("wrong outcome")
