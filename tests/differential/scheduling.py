"""call_soon, call_later, call_at, call_soon_threadsafe, cancelling, stopping, exceptions, contexts.

Timers are made comparable by slots: a timer that is not yet due comes up in a slot of some milliseconds, in
which everything that is ready has run before the next. call_at() puts its timers nanoseconds apart, so that
those of a slot are due at once, in order of their deadlines; a relative delay has a slot for itself. Timers
that are due already are ordered by deadlines thousands of seconds ago. Equal deadlines are left out, since
asyncio's heap has no order for them.
"""

import contextvars
import time
from dataclasses import dataclass

from hypothesis import strategies as st

from . import running
from .generating import rarely, trees, tuples
from .running import value


@dataclass(frozen=True)
class Soon:
    """call_soon, with a number of arguments, in the current context or one of two others."""

    body: tuple
    args: int = 0
    context: int | None = None
    threadsafe: bool = False


@dataclass(frozen=True)
class At:
    """call_at, so many slots from now; 0 and less are in the past."""

    body: tuple
    slots: int
    context: int | None = None


@dataclass(frozen=True)
class Later:
    """call_later, in a slot of its own; 0 and less are in the past."""

    body: tuple
    slots: int


@dataclass(frozen=True)
class Cancel:
    """Cancel one of the handles made so far, counted from the last."""

    back: int


@dataclass(frozen=True)
class Look:
    """What a handle, counted from the last, says of itself."""

    back: int


@dataclass(frozen=True)
class SetVar:
    value: int


@dataclass(frozen=True)
class Raise:
    what: str


@dataclass(frozen=True)
class Stop:
    pass


@dataclass(frozen=True)
class Block:
    """Keep the loop from running until so many slots have passed."""

    slots: int


@dataclass(frozen=True)
class Program:
    """Each body runs outside the loop, which then runs until it is stopped or has nothing left to do."""

    bodies: tuple
    debug: bool = False


def _operations():
    back = st.integers(0, 4)
    contexts = st.sampled_from([None, None, 0, 1])
    leaves = st.one_of(
        st.builds(Cancel, back),
        st.builds(Look, back),
        st.builds(SetVar, st.integers(1, 9)),
        st.builds(Raise, st.sampled_from(["Failure", "Leave", "OSError", "CancelledError"])),
        st.just(Stop()),
        st.builds(Look, back),
        st.builds(Block, st.integers(1, 2)),
    )

    def nested(operations):
        body = tuples(operations, max_size=4)
        return st.one_of(
            st.builds(Soon, body, st.integers(0, 3), contexts, st.booleans()),
            st.builds(Soon, body),
            st.builds(At, body, st.sampled_from([-3, -2, -1, 0, 0, 1]), contexts),
            st.builds(Later, body, st.sampled_from([-2, -1, 0, 0, 1])),
        )

    return trees(leaves, nested, max_leaves=8)


programs = st.builds(
    Program,
    tuples(tuples(_operations(), min_size=1, max_size=6), min_size=1, max_size=3),
    rarely,
)


class Machine(running.Machine):
    """What runs such a program."""

    def __init__(self, loop, trace, program, slowness):
        super().__init__(loop, trace, program.debug)
        self.slot = running.SLOT * slowness
        self.start = loop.time()
        self.now = 0  # the slot of the last timer that came up
        self.taken = set()
        self.handles = []  # with the number of slots at which they come up
        self.pending = set()
        self.contexts = [contextvars.copy_context() for _ in range(2)]
        for body in program.bodies:
            self.outside(body)
            self.forever()
        while self.pending:
            self.forever()

    def outside(self, body):
        """The body of a program sees its own exceptions."""
        try:
            self.perform(body)
        except BaseException as exc:
            if isinstance(exc, running.Stuck):
                raise
            self.note("raised", *running.told(exc))

    def forever(self):
        if not self.pending:
            self.loop.call_soon(self.loop.stop)
        try:
            self.loop.run_forever()
        except (running.Leave, running.asyncio.CancelledError) as exc:
            self.note("left", *running.told(exc))
        else:
            self.note("stopped")

    def called(self, number, body, slot, args):
        self.pending.discard(number)
        self.now = max(self.now, slot)
        self.note("runs", number, args, value.get())
        early = self.handles[number].when() - self.loop.time() if hasattr(self.handles[number], "when") else 0
        if early > 1e-9:
            self.note("early")
        try:
            self.perform(body)
        finally:
            if not self.pending:
                self.loop.stop()

    def perform(self, body):
        for operation in body:
            getattr(self, type(operation).__name__.lower())(operation)

    def made(self, schedule, body, slot=0, args=(), context=None):
        number = len(self.handles)
        self.pending.add(number)
        context = None if context is None else self.contexts[context]
        self.handles.append(schedule(self.called, number, body, slot, args, context=context))

    def soon(self, it):
        call = self.loop.call_soon_threadsafe if it.threadsafe else self.loop.call_soon
        self.made(call, it.body, 0, tuple(range(it.args)), it.context)

    def at(self, it):
        slot = 0
        when = self.start + 1000 * (it.slots - 1) + len(self.handles) * 1e-6
        if it.slots > 0:
            slot = self.now + it.slots
            slot += slot % 2  # the even ones are shared
            when = self.start + slot * self.slot + len(self.handles) * 1e-8
        self.made(
            lambda *args, **kwargs: self.loop.call_at(when, *args, **kwargs), it.body, slot, (), it.context
        )

    def later(self, it):
        slot, delay = 0, 1000 * it.slots - (500 if it.slots else 0)
        if it.slots > 0:
            slot = self.now + it.slots
            while slot in self.taken or slot % 2 == 0:
                slot += 1
            self.taken.add(slot)
            delay = self.start + slot * self.slot - self.loop.time()
        self.made(lambda *args, **kwargs: self.loop.call_later(delay, *args, **kwargs), it.body, slot)

    def cancel(self, it):
        if self.handles:
            number = max(len(self.handles) - 1 - it.back, 0)
            self.handles[number].cancel()
            self.pending.discard(number)
            self.note("cancels", number)

    def look(self, it):
        if self.handles:
            handle = self.handles[max(len(self.handles) - 1 - it.back, 0)]
            self.note("looks", handle.cancelled(), value.get())

    def setvar(self, it):
        value.set(it.value)

    def stop(self, it):
        self.loop.stop()

    def block(self, it):
        self.now += it.slots
        time.sleep(max(self.start + (self.now + 0.2) * self.slot - self.loop.time(), 0))

    def raise_(self, it):
        raise running.EXCEPTIONS[it.what](it.what)


setattr(Machine, "raise", Machine.raise_)


def machine(loop, trace, program, slowness):
    contextvars.copy_context().run(Machine, loop, trace, program, slowness)
