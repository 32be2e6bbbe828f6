"""Event loops in OpenTelemetry: metrics, and spans of what blocks.

Needs its API: pip install 'hotloop[opentelemetry]'.

instrument(loop)    # in the program, once, when the providers are set up
"""

from __future__ import annotations

import time
import weakref
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import Context, get_current
from opentelemetry.metrics import Observation, get_meter_provider
from opentelemetry.trace import Link, get_tracer_provider

from . import __version__
from ._observing import watching
from ._observing.exported import Exported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from opentelemetry.metrics import CallbackOptions, MeterProvider
    from opentelemetry.trace import Tracer, TracerProvider
    from opentelemetry.util.types import AttributeValue

    from .accounting import Account
    from .blocking import Block
    from .loop import Loop
    from .metrics import Histogram, Metrics

    # Maps a snapshot to values by the instrument's attribute, or to one value without an attribute.
    Observe = Callable[[Metrics], Mapping[str, float] | float]

__all__ = ["instrument"]

# Name: unit, description, attribute, observed value.
_COUNTERS: dict[str, tuple[str, str, str, Observe]] = {
    "time": ("s", "Time in each state", "state", lambda m: {"active": m.busy, "idle": m.idle}),
    "iterations": ("{iteration}", "Iterations of the event loop", "", lambda m: m.iterations),
    "callbacks": ("{callback}", "Callbacks run", "", lambda m: m.callbacks),
    "io_events": ("{event}", "Descriptors found ready", "", lambda m: m.io_events),
    "timers": (
        "{timer}",
        "Timers that came due, or were cancelled before",
        "outcome",
        lambda m: {"fired": m.timers_fired, "cancelled": m.timers_cancelled},
    ),
    "tasks": ("{task}", "Calls of create_task()", "", lambda m: m.tasks_created),
    "wakeups": ("{wakeup}", "Waits ended by another thread", "", lambda m: m.wakeups),
    "network.io": (
        "By",
        "Bytes received and sent by transports",
        "direction",
        lambda m: {"receive": m.bytes_read, "transmit": m.bytes_written},
    ),
    "network.connections": (
        "{connection}",
        "Connections that came in, and that were made",
        "direction",
        lambda m: {"inbound": m.accepted, "outbound": m.connected},
    ),
    "accept.pauses": (
        "{pause}",
        "Times that a limit paused the accepting of a server",
        "",
        lambda m: m.accept_pauses,
    ),
    "accept.paused": (
        "s",
        "Time for which limits paused accepting, summed over servers",
        "",
        lambda m: m.accept_paused,
    ),
}
_LEVELS: dict[str, tuple[str, str, str, Observe]] = {
    "ready": ("{callback}", "Callbacks ready to be run", "", lambda m: m.ready),
    "transports": ("{transport}", "Open transports", "", lambda m: m.transports),
    "network.waiting": ("By", "Bytes written and not sent yet", "", lambda m: m.bytes_waiting),
}
# Values of the time since the previous collection.
_GAUGES: dict[str, tuple[str, str, str, Observe]] = {
    "utilization": ("1", "Share of the time that the event loop was busy", "", lambda m: m.utilization),
    "delay": (
        "s",
        "How late callbacks that were ready, and timers that were due, ran",
        "statistic",
        lambda m: _statistics(m.delay),
    ),
    "iteration.duration": (
        "s",
        "How long iterations took, without the wait",
        "statistic",
        lambda m: _statistics(m.iteration_duration),
    ),
}

# Of each account: see hotloop.accounting.Account.
_ACCOUNTS: dict[str, tuple[str, str, str]] = {
    "polls": ("{poll}", "Steps, calls and events of one kind of work", "total_poll_count"),
    "time": ("s", "For how long they ran", "total_poll_duration"),
    "processor_time": ("s", "For how long they computed", "total_processor_time"),
    "slow_polls": ("{poll}", "How many of them were slow", "total_slow_poll_count"),
    "scheduled_time": ("s", "How long they were ready before", "total_scheduled_duration"),
}

# Callbacks within this many seconds belong to one collection.
_ONE_COLLECTION = 0.05


def _statistics(histogram: Histogram) -> dict[str, float]:
    percentiles = {f"p{p}": histogram.percentile(p) for p in (50, 90, 99)}
    return {"mean": histogram.mean, **percentiles, "max": histogram.max}


class _Source:
    """The last two snapshots of one loop, and its accounts. It does not keep the loop alive."""

    def __init__(self, loop: Loop, name: str, accounts: int) -> None:
        self.exported = Exported(accounts)
        self.accounts: list[Account] = []
        self.loop = weakref.ref(loop)
        self.name = name
        self.taken = float("-inf")
        self.total = self.before = loop.metrics()

    def refresh(self) -> bool:
        """Take a snapshot if a collection begins. Return False if the loop is closed or destroyed."""
        loop = self.loop()
        if loop is None or loop.is_closed():
            return False
        now = time.monotonic()
        if now - self.taken > _ONE_COLLECTION:
            self.before, self.total = self.total, loop.metrics()
            if self.total.callbacks < self.before.callbacks:
                # reset_metrics() was called.
                self.before = self.total
            self.accounts = self.exported.choose_of(loop)
            self.taken = now
        return True


def instrument(
    loop: Loop,
    name: str = "main",
    *,
    meter_provider: MeterProvider | None = None,
    tracer_provider: TracerProvider | None = None,
    accounts: int = 20,
) -> None:
    """Collect a loop's metrics, with its name as the attribute `hotloop.eventloop.name`.

    Counters are cumulative; utilization, delay and duration are those since the previous collection by any
    reader. A loop that is closed or destroyed is not reported any more.

    Of a loop with loop.account(), up to *accounts* accounts that have used it most are collected, and those
    that were before, up to ten times as many.

    Of a loop with loop.watch_blocking(), each callback that blocks it is a span: `eventloop.slow_step` if it
    is a step of a task, and otherwise `eventloop.block`. If the context of the callback has a span, such as
    that of a request, it is its child, and has a link to it.
    """
    _Spans(loop, name, (tracer_provider or get_tracer_provider()).get_tracer("hotloop", __version__))
    source = _Source(loop, name, accounts)
    meter = (meter_provider or get_meter_provider()).get_meter("hotloop", __version__)
    kinds: tuple[tuple[Callable[..., object], dict[str, tuple[str, str, str, Observe]], bool], ...] = (
        (meter.create_observable_counter, _COUNTERS, False),
        (meter.create_observable_up_down_counter, _LEVELS, False),
        (meter.create_observable_gauge, _GAUGES, True),
    )
    for create, instruments, recent in kinds:
        for metric, (unit, text, attribute, observe) in instruments.items():
            callback = _callback(source, attribute, observe, recent)
            create(f"hotloop.eventloop.{metric}", callbacks=[callback], unit=unit, description=text)
    for metric, (unit, text, field) in _ACCOUNTS.items():
        meter.create_observable_counter(
            f"hotloop.eventloop.account.{metric}",
            callbacks=[_account_callback(source, field)],
            unit=unit,
            description=text,
        )


def _account_callback(source: _Source, field: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observations(_: CallbackOptions) -> Iterable[Observation]:
        if not source.refresh():
            return []
        return [
            Observation(getattr(account, field), _account_attributes(source.name, account))
            for account in source.accounts
        ]

    return observations


def _account_attributes(name: str, account: Account) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {
        "hotloop.eventloop.name": name,
        "hotloop.eventloop.account.kind": account.kind,
        "code.function.name": account.name,
    }
    if account.line:
        attributes |= {"code.file.path": account.file, "code.line.number": account.line}
    return attributes


def _callback(
    source: _Source, attribute: str, observe: Observe, recent: bool
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observations(_: CallbackOptions) -> Iterable[Observation]:
        if not source.refresh():
            return []
        values = observe(source.total.since(source.before) if recent else source.total)
        named = {"hotloop.eventloop.name": source.name}
        if isinstance(values, (int, float)):
            return [Observation(values, named)]
        key = f"hotloop.eventloop.{attribute}"
        return [Observation(value, {**named, key: which}) for which, value in values.items()]

    return observations


class _Spans:
    """Makes a span of each block of one loop. It does not keep the loop alive."""

    def __init__(self, loop: Loop, name: str, tracer: Tracer) -> None:
        self.loop = weakref.ref(loop, self._end)
        self.name = name
        self.tracer = tracer
        watching.on_block.append(self._on_block)

    def _end(self, _: object) -> None:
        watching.on_block.remove(self._on_block)

    def _on_block(self, loop: Loop, block: Block) -> None:
        if loop is not self.loop():
            return
        end = time.time_ns()
        try:
            self._make_span(block, end - round(block.duration * 1e9), end)
        except Exception:
            # The block is reported nevertheless.
            watching.logger.exception("no span for a block of the event loop")

    def _make_span(self, block: Block, begin: int, end: int) -> None:
        context, links = Context(), []
        if block.context is not None:
            # In a copy: the context may be entered already.
            current = block.context.copy().run(get_current)
            requested = trace.get_current_span(current).get_span_context()
            if requested.is_valid:
                context, links = current, [Link(requested)]
        span = self.tracer.start_span(
            "eventloop.block" if block.task is None else "eventloop.slow_step",
            context,
            links=links,
            start_time=begin,
            attributes=_block_attributes(self.name, block),
        )
        span.end(end)


def _block_attributes(name: str, block: Block) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        "hotloop.eventloop.name": name,
        "hotloop.eventloop.block.what": block.what,
    }
    if block.line is not None:
        attributes["code.function.name"] = block.line.name
        attributes["code.file.path"] = block.line.filename
        if block.line.lineno is not None:
            attributes["code.line.number"] = block.line.lineno
    stack = block.later_stack or block.stack
    if stack:
        attributes["code.stacktrace"] = "".join(stack.format())
    parts = ("before", "processor", "collecting", "waiting_for_gil", "not_scheduled", "asleep")
    for part in parts:
        seconds = getattr(block, part)
        if seconds is not None:
            attributes[f"hotloop.eventloop.block.{part}"] = seconds
    return attributes
