"""hotloop.opentelemetry, read by the SDK."""

import asyncio
import gc
import sys
import time

import hotloop
import pytest

pytest.importorskip("opentelemetry.sdk.metrics")
from hotloop.opentelemetry import instrument
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

pytestmark = pytest.mark.hotloop_only


@pytest.fixture
def reader():
    return InMemoryMetricReader()


@pytest.fixture
def provider(reader):
    provider = MeterProvider([reader], shutdown_on_exit=False)
    yield provider
    provider.shutdown()


def read(reader):
    """All values, by the name of the metric and its attribute besides the loop's name."""
    data = reader.get_metrics_data()
    values = {}
    for resource in data.resource_metrics if data else []:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    attributes = dict(point.attributes)
                    name = attributes.pop("hotloop.eventloop.name")
                    which = next(iter(attributes.values()), None)
                    values[name, metric.name.removeprefix("hotloop.eventloop."), which] = point.value
    return values


def test_all_that_there_is(loop, reader, provider):
    instrument(loop, "web", meter_provider=provider)

    async def main():
        loop.call_soon(time.sleep, 0.05)
        loop.call_later(3600, int).cancel()
        await asyncio.sleep(0.01)
        return await asyncio.to_thread(read, reader)

    values = loop.run_until_complete(main())
    metrics = loop.metrics()
    assert 0.05 <= values["web", "time", "active"] <= metrics.busy
    assert values["web", "time", "idle"] <= metrics.idle
    assert values["web", "timers", "fired"] == values["web", "timers", "cancelled"] == 1
    assert values["web", "tasks", None] == metrics.tasks_created
    assert values["web", "accept.pauses", None] == values["web", "accept.paused", None] == 0
    assert 0 < values["web", "callbacks", None] <= metrics.callbacks
    assert values["web", "transports", None] == 0
    assert values["web", "network.io", "receive"] == values["web", "network.io", "transmit"] == 0
    assert 0 < values["web", "utilization", None] <= 1
    assert values["web", "delay", "max"] >= 0.03
    assert values["web", "iteration.duration", "max"] == pytest.approx(0.05, rel=0.2)


def test_gauges_are_of_the_time_since_the_last_collection(loop, reader, provider):
    instrument(loop, meter_provider=provider)
    loop.call_soon(time.sleep, 0.2)
    loop.run_until_complete(asyncio.sleep(0))
    assert read(reader)["main", "iteration.duration", "max"] >= 0.2
    loop.run_until_complete(asyncio.sleep(0.1))
    second = read(reader)
    assert second["main", "iteration.duration", "max"] < 0.05
    assert second["main", "utilization", None] < 0.3
    assert second["main", "time", "active"] >= 0.2
    time.sleep(0.1)
    loop.reset_metrics()
    assert read(reader)["main", "delay", "max"] == 0.0


def test_a_loop_that_is_closed_or_gone(loop, reader, provider):
    instrument(loop, "one", meter_provider=provider)
    instrument(hotloop.new_event_loop(), "two", meter_provider=provider)
    gc.collect()
    assert {name for name, _, _ in read(reader)} == {"one"}
    loop.close()
    assert read(reader) == {}


def test_the_accounts_that_have_used_the_loop_most(loop, reader, provider):
    instrument(loop, "web", meter_provider=provider, accounts=1)
    loop.account()

    async def busy():
        await asyncio.sleep(0)
        time.sleep(0.02)

    loop.run_until_complete(busy())
    points = {
        metric.name: point
        for resource in reader.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
        if metric.name.startswith("hotloop.eventloop.account.")
    }
    assert set(points) == {
        f"hotloop.eventloop.account.{name}"
        for name in ("polls", "time", "processor_time", "slow_polls", "scheduled_time")
    }
    point = points["hotloop.eventloop.account.polls"]
    assert point.value == 2
    assert dict(point.attributes) == {
        "hotloop.eventloop.name": "web",
        "hotloop.eventloop.account.kind": "task",
        "code.function.name": busy.__qualname__,
        "code.file.path": __file__,
        "code.line.number": busy.__code__.co_firstlineno,
    }
    assert 0.02 <= points["hotloop.eventloop.account.time"].value < 0.5


@pytest.fixture
def spans(loop, provider):
    """Spans by name, of a loop that is watched."""
    exporter = InMemorySpanExporter()
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    instrument(loop, "web", meter_provider=provider, tracer_provider=tracers)
    loop.watch_blocking(0.05, lambda block: None)

    def finished():
        return {span.name: span for span in exporter.get_finished_spans()}

    yield tracers.get_tracer("test"), finished
    tracers.shutdown()


def test_a_slow_step_belongs_to_the_request(loop, spans):
    tracer, finished = spans

    async def handle():
        with tracer.start_as_current_span("request"):
            await asyncio.sleep(0)
            time.sleep(0.2)
            # The request goes on.
            await asyncio.sleep(0.001)

    began = time.time()
    loop.run_until_complete(handle())
    request, step = finished()["request"], finished()["eventloop.slow_step"]
    assert step.parent == request.context
    assert [link.context for link in step.links] == [request.context]
    assert 0.2e9 <= step.end_time - step.start_time < 2e9
    assert began * 1e9 - 1e6 <= step.start_time < step.end_time <= time.time() * 1e9
    assert step.attributes["hotloop.eventloop.name"] == "web"
    assert step.attributes["code.function.name"] == "handle"
    assert step.attributes["code.file.path"] == __file__
    assert "time.sleep(0.2)" in step.attributes["code.stacktrace"]
    assert "handle" in step.attributes["hotloop.eventloop.block.what"]
    assert step.attributes["hotloop.eventloop.block.before"] >= 0


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the context of a running task is not to be had")
@pytest.mark.skipif(not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="another thread changes it")
def test_a_request_that_ends_in_its_slow_step(loop, spans):
    tracer, finished = spans

    async def handle():
        await asyncio.sleep(0)
        with tracer.start_as_current_span("request"):
            time.sleep(0.2)

    loop.run_until_complete(handle())
    assert finished()["eventloop.slow_step"].parent == finished()["request"].context


def test_a_callback_that_blocks(loop, spans):
    tracer, finished = spans

    async def main():
        with tracer.start_as_current_span("request"):
            # A callback has the context of what has queued it.
            loop.call_later(0.001, block)
        await asyncio.sleep(0.05)

    def block():
        time.sleep(0.2)

    loop.run_until_complete(main())
    step = finished()["eventloop.block"]
    assert step.attributes["code.function.name"] == "block"
    assert step.parent == finished()["request"].context


def test_a_block_without_a_request(loop, spans):
    _, finished = spans
    loop.call_soon(time.sleep, 0.2)
    loop.run_until_complete(asyncio.sleep(0.01))
    step = finished()["eventloop.block"]
    assert step.parent is None
    assert not step.links


def test_a_loop_that_is_gone_makes_no_spans():
    from hotloop._observing import watching

    before = list(watching.on_block)
    loop = hotloop.new_event_loop()
    instrument(loop, "web")
    assert len(watching.on_block) == len(before) + 1
    loop.close()
    del loop
    gc.collect()
    assert watching.on_block == before


def test_an_error_of_the_tracer_keeps_no_block_from_being_reported(loop, provider, caplog):
    class Failing(TracerProvider):
        def get_tracer(self, *_, **__):
            return None

    instrument(loop, "web", meter_provider=provider, tracer_provider=Failing(shutdown_on_exit=False))
    reported = []
    loop.watch_blocking(0.05, reported.append)
    loop.call_soon(time.sleep, 0.2)
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.run_until_complete(asyncio.sleep(0.01))
    assert len(reported) == 1
    assert "no span for a block" in caplog.text
