"""The metrics of event loops for Prometheus. Needs prometheus_client: pip install 'hotloop[prometheus]'.

Collector(loop)        # in the program, once
start_http_server(...) # or another way to serve prometheus_client's registry
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector as _Collector
from prometheus_client.registry import CollectorRegistry

from ._observing.exported import Exported

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from .accounting import Account
    from .loop import Loop
    from .metrics import Histogram, Metrics

__all__ = ["Collector"]

_COUNTERS = {
    "iterations": ("hotloop_iterations", "Iterations of the event loop"),
    "callbacks": ("hotloop_callbacks", "Callbacks run: handles, steps of tasks, events of transports"),
    "io_events": ("hotloop_io_events", "Descriptors found ready"),
    "timers_fired": ("hotloop_timers_fired", "Timers that came due"),
    "timers_cancelled": ("hotloop_timers_cancelled", "Timers cancelled before they came due"),
    "tasks_created": ("hotloop_tasks_created", "Calls of create_task()"),
    "wakeups": ("hotloop_wakeups", "Waits ended by another thread"),
    "busy": ("hotloop_busy_seconds", "Time spent running callbacks and looking for more"),
    "idle": ("hotloop_idle_seconds", "Time spent waiting with nothing to do"),
    "bytes_read": ("hotloop_read_bytes", "Bytes received by transports"),
    "bytes_written": ("hotloop_written_bytes", "Bytes sent by transports"),
    "accepted": ("hotloop_connections_accepted", "Connections that came in"),
    "accept_pauses": ("hotloop_accept_pauses", "Times that a limit paused the accepting of a server"),
    "accept_paused": ("hotloop_accept_paused_seconds", "Time for which limits did, summed over servers"),
    "connected": ("hotloop_connections_made", "Connections made to others"),
}
_GAUGES = {
    "ready": ("hotloop_ready_callbacks", "Callbacks ready to be run"),
    "ready_highest": (
        "hotloop_ready_callbacks_highest",
        "The most callbacks ready at the beginning of a turn",
    ),
    "transports": ("hotloop_open_transports", "Open connections, datagram endpoints and pipes"),
    "bytes_waiting": ("hotloop_waiting_bytes", "Bytes written to transports and not sent yet"),
}
_HISTOGRAMS = {
    "iteration_duration": (
        "hotloop_iteration_duration_seconds",
        "How long iterations took, without the wait",
    ),
    "delay": ("hotloop_delay_seconds", "How late callbacks that were ready, and timers that were due, ran"),
}

# Of each account: see hotloop.accounting.Account.
_ACCOUNTS = {
    "total_poll_count": ("hotloop_account_polls", "Steps, calls and events of one kind of work"),
    "total_poll_duration": ("hotloop_account_seconds", "For how long they ran"),
    "total_processor_time": ("hotloop_account_processor_seconds", "For how long they computed"),
    "total_slow_poll_count": ("hotloop_account_slow_polls", "How many of them were slow"),
    "total_scheduled_duration": ("hotloop_account_scheduled_seconds", "How long they were ready before"),
}

# Powers of two, from a microsecond to a minute: bounds of the loop's own buckets.
_BOUNDS = [2.0**power for power in range(-20, 7)]


class Collector(_Collector):
    """Collects the metrics of event loops, each labelled `loop` with its name.

    It does not keep a loop alive. It drops loops that are closed or destroyed.

    Of a loop with loop.account(), up to *accounts* accounts that have used it most are collected, labelled
    `kind`, `name` and `where`, and those that were before, up to ten times as many.
    """

    def __init__(
        self,
        loop: Loop | None = None,
        name: str = "main",
        *,
        registry: CollectorRegistry | None = REGISTRY,
        accounts: int = 20,
    ) -> None:
        self._accounts = accounts
        self._exported: dict[str, Exported] = {}
        self._loops: dict[str, weakref.ref[Loop]] = {}
        self._lock = threading.Lock()
        if loop is not None:
            self.add(loop, name)
        if registry is not None:
            registry.register(self)

    def add(self, loop: Loop, name: str) -> None:
        """Collect another loop's metrics, too. Raise ValueError if there is an open loop of that name."""
        with self._lock:
            if name in self._open():
                raise ValueError(f"there is an event loop named {name!r} already")
            self._loops[name] = weakref.ref(loop)
            self._exported[name] = Exported(self._accounts)

    def _open(self) -> dict[str, Loop]:
        loops = {name: reference() for name, reference in self._loops.items()}
        found = {name: loop for name, loop in loops.items() if loop is not None and not loop.is_closed()}
        self._loops = {name: self._loops[name] for name in found}
        return found

    def describe(self) -> Iterator[Metric]:
        """Name the metrics, so that registering does not collect them."""
        return self._families({}, {})

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of all open loops."""
        with self._lock:
            loops = self._open()
            accounts = {name: self._exported[name].choose_of(loop) for name, loop in loops.items()}
        return self._families({name: loop.metrics() for name, loop in loops.items()}, accounts)

    def _families(
        self, all_metrics: dict[str, Metrics], all_accounts: dict[str, list[Account]]
    ) -> Iterator[Metric]:
        for field, (name, text) in _COUNTERS.items():
            counter = CounterMetricFamily(name, text, labels=["loop"])
            for loop, metrics in all_metrics.items():
                counter.add_metric([loop], getattr(metrics, field))
            yield counter
        for field, (name, text) in _GAUGES.items():
            gauge = GaugeMetricFamily(name, text, labels=["loop"])
            for loop, metrics in all_metrics.items():
                gauge.add_metric([loop], getattr(metrics, field))
            yield gauge
        for field, (name, text) in _HISTOGRAMS.items():
            histogram = HistogramMetricFamily(name, text, labels=["loop"])
            for loop, metrics in all_metrics.items():
                counted: Histogram = getattr(metrics, field)
                histogram.add_metric([loop], _cumulated(counted), counted.sum)
            yield histogram
        labels = ["loop", "kind", "name", "where"]
        for field, (name, text) in _ACCOUNTS.items():
            counter = CounterMetricFamily(name, text, labels=labels)
            for loop, accounts in all_accounts.items():
                for account in accounts:
                    counter.add_metric(
                        [loop, account.kind, account.name, account.where], getattr(account, field)
                    )
            yield counter


def _cumulated(histogram: Histogram) -> list[tuple[str, float]]:
    """The number of durations up to each bound."""
    cumulated = []
    for bound in _BOUNDS:
        cumulated.append((str(bound), float(sum(n for _, high, n in histogram.buckets if high <= bound))))
    cumulated.append(("+Inf", float(histogram.count)))
    return cumulated
