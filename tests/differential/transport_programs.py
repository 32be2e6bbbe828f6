"""Programs for `transports.py`: their operations, and how they are generated."""

import dataclasses
from dataclasses import dataclass

from hypothesis import strategies as st

from .generating import rarely, tuples

BIG = 3 << 20


@dataclass(frozen=True)
class Write:
    size: int


@dataclass(frozen=True)
class WriteLines:
    sizes: tuple


@dataclass(frozen=True)
class Limits:
    high: int | None
    low: int | None = None


@dataclass(frozen=True)
class Act:
    """A method of a transport, or `stop`, `raise` and the like: see End."""

    what: str


@dataclass(frozen=True)
class Soon:
    actions: tuple


@dataclass(frozen=True)
class SetProtocol:
    """From here on another protocol, of one kind or the other, which reacts in its own way."""

    buffered: bool
    reactions: tuple


@dataclass(frozen=True)
class On:
    """What a protocol does when one of its methods is called for the first time."""

    call: str
    actions: tuple


@dataclass(frozen=True)
class Step:
    """One end acts. A plain socket understands the actions that make sense for it."""

    end: str
    actions: tuple


@dataclass(frozen=True)
class Program:
    kind: str
    left: tuple  # of reactions
    right: tuple | None  # None: a plain socket
    steps: tuple
    buffered: bool = False
    debug: bool = False
    early: int = 0  # bytes that the peer sent before there was a transport


CALLS = (
    "connection_made",
    "data_received",
    "eof_received",
    "connection_lost",
    "pause_writing",
    "resume_writing",
)
ACTS = (
    "write_eof", "close", "abort", "pause_reading", "resume_reading", "get_write_buffer_size",
    "get_write_buffer_limits", "stop", "raise_failure", "raise_leave", "raise_oserror",
)  # fmt: skip


def _strategy():
    sizes = st.sampled_from([0, 1, 7, 100, 100, BIG])
    small = st.sampled_from([0, 1, 7, 100])
    limits = st.builds(
        Limits, st.sampled_from([None, 0, 1, 50, 10 * BIG]), st.sampled_from([None, None, 0, 20])
    )
    simple = st.one_of(
        st.builds(Write, sizes),
        st.builds(Write, small),
        st.builds(WriteLines, tuples(small.filter(bool), max_size=3)),
        st.builds(Act, st.sampled_from(ACTS)),
        st.builds(Act, st.sampled_from(ACTS)),
        limits,
    )
    reacting = st.one_of(simple, st.builds(Soon, tuples(simple, max_size=2)), st.just(Act("keep_open")))

    def reactions(actions, most):
        on = st.builds(On, st.sampled_from(CALLS), tuples(actions, min_size=1, max_size=3))
        return tuples(on, max_size=most, unique_by=lambda on: on.call)

    switch = st.builds(SetProtocol, st.booleans(), reactions(reacting, 2))
    every = st.one_of(reacting, reacting, reacting, switch)
    step = st.builds(Step, st.sampled_from(["left", "left", "right"]), tuples(every, min_size=1, max_size=3))
    plain = st.builds(
        Step,
        st.just("right"),
        tuples(
            st.one_of(
                st.builds(Write, sizes),
                st.builds(
                    Act,
                    st.sampled_from(["write_eof", "close", "abort", "drain", "drain", "shutdown_reading"]),
                ),
            ),
            min_size=1,
            max_size=2,
        ),
    )
    common = {
        "kind": st.sampled_from(["unix", "tcp", "served"]),
        "left": reactions(every, 4),
        "buffered": st.booleans(),
        "debug": rarely,
    }
    both = st.builds(Program, right=reactions(every, 4), steps=tuples(step, min_size=1, max_size=7), **common)
    against_plain = st.builds(
        Program,
        right=st.none(),
        steps=tuples(st.one_of(step.filter(lambda step: step.end == "left"), plain), min_size=1, max_size=8),
        early=st.sampled_from([0, 0, 10]),
        **common,
    )
    return st.one_of(both, against_plain).map(tame)


ENDING = {
    Act(what) for what in ("close", "abort", "pause_reading", "raise_failure", "raise_leave", "raise_oserror")
}


def visit(thing, leaf):
    """A program in which each operation was replaced by what `leaf` makes of it, the innermost first."""
    if isinstance(thing, tuple):
        return tuple(visit(each, leaf) for each in thing)
    if dataclasses.is_dataclass(thing):
        return leaf(
            dataclasses.replace(thing, **{name: visit(value, leaf) for name, value in vars(thing).items()})
        )
    return thing


def ends(program, call):
    """Whether some protocol ends its connection, or pauses, when that is called."""
    found = []

    def look(thing):
        if isinstance(thing, On) and thing.call == call:
            visit(thing.actions, lambda inner: found.append(inner in ENDING) or inner)
        return thing

    visit(program, look)
    return any(found)


def tame(program):
    """Keep two things from happening at once whose order decides what is received, or how it ends."""
    if ends(program, "data_received"):
        # All data come at once.
        def small(thing):
            if isinstance(thing, Write):
                return Write(min(thing.size, 100))
            return Soon(()) if isinstance(thing, Soon) else thing

        program = visit(program, small)
    if program.right and (ends(program, "data_received") or ends(program, "connection_made")):
        # Nothing is sent while the other end is still being made.
        def silent(thing):
            if isinstance(thing, On) and thing.call == "connection_made":
                return On(thing.call, visit(thing.actions, nothing))
            return thing

        def nothing(thing):
            return Soon(()) if isinstance(thing, (Write, WriteLines)) else thing

        program = visit(program, silent)
    return program


programs = _strategy()
