"""Runs an operation on an event loop while a system call fails, and checks everything afterwards."""

from __future__ import annotations

import asyncio
import errno
import gc
import shutil
import sys
import tempfile
import traceback
import typing
import warnings

import helpers

EVER = 1 << 62
# Calls of the poller while nothing happens, above which a loop is busy.
BUSY = 30
IDLE = 0.006
# Seconds for an operation while a fault is there for good, and when there is none any more.
FAULTY, MENDED = 0.1, 4.0
# What the kernel may answer at any time, and nobody needs to notice.
TRANSPARENT = {errno.EAGAIN, errno.EINTR, 0}


class Lost(OSError):
    """A connection, or what it carried, was lost."""


class Fault(typing.NamedTuple):
    """How a system call fails: `errno` 0 is a transfer of one byte."""

    call: str
    errno: int
    after: int
    times: int

    def __str__(self):
        name = errno.errorcode[self.errno] if self.errno else "short"
        return f"{self.call}/{name}/{self.after}/{'ever' if self.times >= EVER else self.times}"

    @classmethod
    def parse(cls, text):
        call, name, after, times = text.split("/")
        number = 0 if name == "short" else getattr(errno, name)
        return cls(call, number, int(after), EVER if times == "ever" else int(times))

    @property
    def is_for_good(self):
        return self.times >= EVER

    @property
    def is_transparent(self):
        """Whether the operation must succeed, because the call is made again; connect() is not."""
        return self.errno in TRANSPARENT and self.call not in ("connect", "wake")


def until(protocol, condition):
    """Wait for a condition, or raise Lost."""
    if isinstance(condition, str):
        name = condition

        def condition(protocol):
            return name in protocol.calls

    return _until(protocol, condition)


async def _until(protocol, condition):
    await protocol.until(lambda protocol: condition(protocol) or "connection_lost" in protocol.calls)
    if not condition(protocol):
        raise Lost(f"connection lost: {protocol.exception!r}")


class Bench:
    """What an operation is given: a loop, and someone to clean up."""

    def __init__(self, loop, tls, unused_port):
        self.loop = loop
        self.tls = tls
        self.unused_port = unused_port
        self._directory = None
        self._kept = []
        self._protocols = []

    @property
    def directory(self):
        if self._directory is None:
            self._directory = tempfile.mkdtemp()
        return self._directory

    def keep(self, thing):
        """Close or abort it in the end."""
        self._kept.append(thing)
        return thing

    def watch(self, protocol):
        """Check in the end what the protocol was told."""
        self._protocols.append(protocol)
        return protocol

    def end_everything(self):
        for protocol in self._protocols:
            if protocol.transport is not None:
                self._kept.append(protocol.transport)
        for thing in self._kept:
            if hasattr(thing, "abort"):
                thing.abort()
            else:
                thing.close()
        if self._directory is not None:
            shutil.rmtree(self._directory)

    def told_wrongly(self):
        for protocol in self._protocols:
            calls = protocol.calls
            made, lost = calls.count("connection_made"), calls.count("connection_lost")
            if made != lost or made > 1:
                yield f"connection_made {made} times, connection_lost {lost} times: {calls}"
            elif made and (calls[0] != "connection_made" or calls[-1] != "connection_lost"):
                yield f"told in a wrong order: {calls}"
            flow = [name for name in calls if name in ("pause_writing", "resume_writing")]
            if any(name != ("pause_writing", "resume_writing")[i % 2] for i, name in enumerate(flow)):
                yield f"flow control: {flow}"


class Case:
    """One operation with one fault; `problems` is what was wrong."""

    def __init__(self, core, new_loop, function, fault, tls, unused_port):
        self.core = core
        self.new_loop = new_loop
        self.function = function
        self.fault = fault
        self.tls = tls
        self.unused_port = unused_port
        self.problems = []
        self.reports = []
        self.counts = {}

    def problem(self, text):
        self.problems.append(text)

    def run(self):
        before = helpers.open_descriptors()
        hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        self.core._reset_faults()
        try:
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always", ResourceWarning)
                warnings.simplefilter("always", RuntimeWarning)
                self._run()
                gc.collect()
            for warning in warned:
                # asyncio's own classes warn of what a fault kept from them, on its loops, too.
                if "hotloop" in (text := str(warning.message)) or "never awaited" in text:
                    self.problem(f"warning: {text}")
        finally:
            self.core._reset_faults()
            sys.unraisablehook = hook
        left = helpers.opened_since(before)
        if left:
            gc.collect()
            left = helpers.opened_since(before)
        if left:
            self.problem(f"descriptors left open: {left}")
        self._look_at_reports()
        return self.problems

    def _unraisable(self, unraisable):
        error = unraisable.exc_value
        self.problem(f"unraisable: {error!r} {unraisable.err_msg} {unraisable.object!r}")

    def _run(self):
        loop = self.new_loop()
        loop.set_exception_handler(lambda loop, context: self.reports.append(context))
        asyncio.set_event_loop(loop)
        try:
            self._run_on(loop)
        finally:
            executor = loop._default_executor
            loop.close()
            asyncio.set_event_loop(None)
            if executor is not None:
                executor.shutdown()

    def _run_on(self, loop):
        main = loop.create_task(self._main(loop))
        main.add_done_callback(lambda main: loop.stop())
        while True:
            try:
                loop.run_forever()
            except Exception as error:
                self._left_the_loop(error)
                self.core._reset_faults()
            if main.done():
                break
        main.result()

    def _left_the_loop(self, error):
        """asyncio's run_forever() ends with an error of the selector's wait, too, but with nothing else."""
        fault = self.fault
        waits = fault is not None and fault.call in ("epoll_wait", "epoll_pwait2")
        if not waits or fault.errno in TRANSPARENT or getattr(error, "errno", None) != fault.errno:
            text = "".join(traceback.format_exception(error)[-2:]).strip()
            self.problem(f"an error left run_forever(): {text}")

    async def _main(self, loop):
        bench = Bench(loop, self.tls, self.unused_port)
        self.core._reset_faults()
        if self.fault is not None:
            self.core._inject(*self.fault)
        task = loop.create_task(self.function(bench))
        for_good = self.fault is not None and self.fault.is_for_good
        # One timer, which would also wake a loop that somebody else failed to wake.
        await asyncio.wait([task], timeout=FAULTY if for_good else MENDED)
        self.counts = self.core._calls()
        if task.done() and for_good and self.fault.errno not in TRANSPARENT:
            await self._check_idle("while the fault is there")
        self.core._reset_faults()
        if not task.done() and for_good:
            await asyncio.wait([task], timeout=MENDED)
        await self._look_at_outcome(task)
        bench.end_everything()
        await self._check_tasks()
        await self._check_protocols(bench)
        await self._check_idle("after the fault")
        await self._check_echo(loop)

    async def _check_idle(self, when):
        def polls():
            calls = self.core._calls()
            return calls["epoll_wait"] + calls["epoll_pwait2"]

        await helpers.iterations(5)
        before = polls()
        await asyncio.sleep(IDLE)
        if polls() - before > BUSY:
            self.problem(f"busy {when}: {polls() - before} calls of the poller in {IDLE} s")

    async def _look_at_outcome(self, task):
        if not task.done():
            stack = "".join(traceback.format_list(traceback.extract_stack(task.get_stack()[-1])[-1:]))
            self.problem(f"hangs: {stack.strip()}")
            task.cancel()
            await asyncio.wait([task], timeout=1)
            return
        error = None if task.cancelled() else task.exception()
        if task.cancelled() or not isinstance(error, (OSError, type(None))):
            self.problem(f"ended with {error!r}: {''.join(traceback.format_exception(error)[-2:]).strip()}")
        elif error is not None and (self.fault is None or self.fault.is_transparent):
            self.problem(f"failed, and need not have: {error!r}")

    async def _check_tasks(self):
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if not others:
            return
        _, pending = await asyncio.wait(others, timeout=3)
        for task in pending:
            self.problem(f"a task is left: {task!r}")
            task.cancel()

    async def _check_protocols(self, bench):
        for _ in range(200):
            if not list(bench.told_wrongly()):
                break
            await asyncio.sleep(0.005)
        for text in bench.told_wrongly():
            self.problem(text)

    async def _check_echo(self, loop):
        from .operations import echo

        bench = Bench(loop, self.tls, self.unused_port)
        task = loop.create_task(echo(bench))
        await asyncio.wait([task], timeout=MENDED)
        if not task.done() or task.exception() is not None:
            self.problem(f"no echo afterwards: {task!r}")
            task.cancel()
        bench.end_everything()
        await self._check_protocols(bench)

    def _look_at_reports(self):
        for context in self.reports:
            exception = context.get("exception")
            known = self.fault is not None and isinstance(exception, OSError)
            if not known or exception.errno != self.fault.errno:
                self.problem(f"reported: {context}")
