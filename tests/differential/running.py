"""Run a program on a loop within a time limit, write down what it saw, and compare two loops."""

import asyncio
import contextlib
import contextvars
import dataclasses
import difflib
import gc
import logging
import re
import signal
import ssl
import time
import warnings

SLOT = 0.003  # asyncio waits for whole milliseconds
LIMIT = 2.0  # seconds for one program
ATTEMPTS = 3  # a difference that is one must show each time
LONGEST = 3000  # notes; a program that sees more than that goes round in circles

value = contextvars.ContextVar("value", default=0)  # what programs set and look at


class Stuck(KeyboardInterrupt):
    """The program took too long. A KeyboardInterrupt leaves the loop from wherever it is."""


class Leave(SystemExit):
    """What a program raises to leave run_forever."""


class Failure(Exception):
    """What a program raises otherwise."""


EXCEPTIONS = {
    "Failure": Failure,
    "Leave": Leave,
    "OSError": OSError,
    "CancelledError": asyncio.CancelledError,
}


def scrub(text):
    """Without what differs between two runs on the same loop."""
    text = re.sub(r"0x[0-9a-f]+", "0x", str(text))
    text = re.sub(r"\bTask-\d+", "Task", text)
    # In 3.11 asyncio's writelines() is a write().
    text = text.replace("call writelines() after", "call write() after")
    return re.sub(r"fd=\d+|File descriptor \d+|\(\d+, <", "fd", text)


def told(exc):
    """An exception, as far as a program can rely on it."""
    if exc is None:
        return None
    if isinstance(exc, ssl.SSLError):
        return type(exc).__name__, exc.reason
    if isinstance(exc, OSError):
        return type(exc).__name__, exc.errno
    if isinstance(exc, BaseExceptionGroup):
        return type(exc).__name__, [told(each) for each in exc.exceptions]
    return type(exc).__name__, scrub(exc)


class Trace:
    """What a program saw: notes, in order, about each thing it dealt with."""

    def __init__(self):
        self.about = {}
        self.count = 0

    def note(self, about, *what):
        self.count += 1
        if self.count == LONGEST:
            raise Stuck
        self.about.setdefault(about, []).append(what)

    def amount(self, about, kind, number):
        """A number of bytes: how a stream was cut into pieces is not comparable."""
        self.count += 1
        notes = self.about.setdefault(about, [])
        if notes and notes[-1][0] == kind:
            notes[-1] = (kind, notes[-1][1] + number)
        else:
            notes.append((kind, number))

    def much(self, about):
        """So much that it is up to the kernel how much; and so it is what came before, just now."""
        self.count += 1
        notes = self.about.setdefault(about, [])
        if notes and notes[-1][0] == "data":
            notes.pop()
        if not notes or notes[-1] != ("much",):
            notes.append(("much",))

    def once(self, about, *what):
        """What comes again and again while it holds."""
        notes = self.about.setdefault(about, [])
        if not notes or notes[-1] != what:
            self.note(about, *what)

    def lines(self):
        return [
            f"{about}: {' '.join(map(str, what))}"
            for about, notes in sorted(self.about.items())
            for what in notes
        ]


class Reports:
    """Takes what the exception handler and asyncio's logger are told into a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __call__(self, loop, context):
        message = re.sub(r"(Exception in callback).*", r"\1", scrub(context["message"]))
        keys = set(context) - {"source_traceback"}
        if message == "Exception in callback":
            # hotloop has no handle for what a transport calls; it names the transport and the protocol.
            keys -= {"handle", "transport", "protocol"}
        self.trace.note("handler", message, told(context.get("exception")), sorted(keys))


class Logged(logging.Handler):
    def __init__(self, trace):
        super().__init__(logging.WARNING)
        self.trace = trace

    def emit(self, record):
        self.trace.once("log", record.levelname, record.msg)


@contextlib.contextmanager
def time_limit(seconds):
    """Raise Stuck after so long, also out of a loop that hangs or spins; pytest-timeout's alarm is kept."""

    def stuck(signum, frame):
        raise Stuck

    start = time.monotonic()
    handler = signal.signal(signal.SIGALRM, stuck)
    before, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, handler)
        left = max(before - (time.monotonic() - start), 0.001) if before else 0
        signal.setitimer(signal.ITIMER_REAL, left, interval)


@contextlib.contextmanager
def watched(loop, trace):
    logger = logging.getLogger("asyncio")
    logged = Logged(trace)
    logger.addHandler(logged)
    propagate, logger.propagate = logger.propagate, False
    loop.set_exception_handler(Reports(trace))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.propagate = propagate
        logger.removeHandler(logged)


class Machine:
    """What runs a program on a loop."""

    def __init__(self, loop, trace, debug):
        self.loop, self.trace = loop, trace
        loop.set_debug(debug)
        loop.slow_callback_duration = 60

    def note(self, *what):
        self.trace.note("program", *what)


def run_all(loop, coro, note):
    """Run to the end what may be stopped, or left by exceptions, in between."""
    task = loop.create_task(coro)
    task.add_done_callback(lambda task: loop.stop())
    while not task.done():
        try:
            loop.run_forever()
        except Leave:
            note("program", "left")
        else:
            note("program", "stopped")
    task.result()


async def rest(trace, rounds=20):
    """Come to rest: nothing was seen for some iterations, in which the loop has looked at its descriptors."""
    quiet = 0
    while quiet < rounds:
        before = trace.count
        await asyncio.sleep(0)
        quiet = quiet + 1 if trace.count == before else 0


def run(machine, program, factory, slowness=1):
    """The trace of a program on a loop; *slowness* is by how much its timers are drawn apart."""
    trace = getattr(machine, "tracing", Trace)()
    loop = factory()
    asyncio.set_event_loop(None)
    gc.disable()  # what is reported when something goes must not depend on when garbage is collected
    try:
        with watched(loop, trace), time_limit(LIMIT):
            try:
                machine(loop, trace, program, slowness)
            except Stuck:
                trace.note("program", "stuck")
    finally:
        loop.close()
        gc.enable()
    return trace.lines() if trace.count < LONGEST else ["too long"]


def written(program):
    """The program, one operation a line where that helps."""
    if not dataclasses.is_dataclass(program):
        return repr(program)
    parts = []
    for field in dataclasses.fields(program):
        value = getattr(program, field.name)
        if isinstance(value, tuple) and value:
            inside = "".join(f"        {item!r},\n" for item in value)
            parts.append(f"    {field.name}=(\n{inside}    ),\n")
        else:
            parts.append(f"    {field.name}={value!r},\n")
    return f"{type(program).__name__}(\n{''.join(parts)})"


unsteady = []  # programs that differed once and then did not: a busy machine, or a race


def compare(machine, program, reference, other):
    """Fail if the program sees something else on the one loop than on the other, time after time."""
    for attempt in range(ATTEMPTS):
        expected = run(machine, program, reference, 4**attempt)
        seen = run(machine, program, other, 4**attempt)
        if seen == expected:
            if attempt:
                unsteady.append(program)
            return
    difference = "\n".join(difflib.unified_diff(expected, seen, "asyncio", "other", "", "", 30, ""))
    raise AssertionError(f"the loops differ in\n\n{written(program)}\n\n{difference}")
