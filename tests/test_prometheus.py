"""hotloop.prometheus, scraped over HTTP."""

import asyncio
import gc
import time
import urllib.request

import hotloop
import pytest

prometheus_client = pytest.importorskip("prometheus_client")
from hotloop.prometheus import Collector  # noqa: E402
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

pytestmark = pytest.mark.hotloop_only


@pytest.fixture
def registry():
    return prometheus_client.CollectorRegistry()


@pytest.fixture
def scrape(registry):
    server, thread = prometheus_client.start_http_server(0, "127.0.0.1", registry=registry)

    def scrape():
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics") as answer:
            families = text_string_to_metric_families(answer.read().decode())
            return {
                (sample.name, sample.labels.get("loop"), sample.labels.get("le")): sample.value
                for family in families
                for sample in family.samples
            }

    yield scrape
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_scrape_of_a_loop_that_runs(loop, registry, scrape):
    Collector(loop, "web", registry=registry)

    async def main():
        loop.call_soon(time.sleep, 0.05)
        await asyncio.sleep(0.01)
        return await asyncio.to_thread(scrape)

    samples = loop.run_until_complete(main())
    metrics = loop.metrics()
    value = {name: value for (name, loop, le), value in samples.items() if loop == "web" and le is None}
    assert 0 < value["hotloop_callbacks_total"] <= metrics.callbacks
    assert value["hotloop_timers_fired_total"] == 1
    assert value["hotloop_tasks_created_total"] == metrics.tasks_created
    assert 0.05 <= value["hotloop_busy_seconds_total"] <= metrics.busy
    assert value["hotloop_open_transports"] == 0
    assert value["hotloop_accept_pauses_total"] == value["hotloop_accept_paused_seconds_total"] == 0
    assert value["hotloop_delay_seconds_count"] == value["hotloop_callbacks_total"]
    assert value["hotloop_iteration_duration_seconds_sum"] > 0.04


def test_buckets(loop, registry, scrape):
    """They are cumulative, and a block is in the one where it belongs."""
    Collector(loop, registry=registry)
    loop.call_soon(time.sleep, 0.05)
    loop.call_soon(loop.stop)
    loop.run_forever()
    samples = scrape()
    name = "hotloop_iteration_duration_seconds_bucket"
    buckets = sorted((float(le), value) for (sample, _, le), value in samples.items() if sample == name)
    assert [value for _, value in buckets] == sorted(value for _, value in buckets)
    assert dict(buckets)[2**-5] == 0
    assert dict(buckets)[2**-4] == dict(buckets)[float("inf")] == 1


def test_several_loops(loop, registry, scrape):
    collector = Collector(loop, "one", registry=registry)
    other = hotloop.new_event_loop()
    collector.add(other, "two")
    with pytest.raises(ValueError, match="named 'two' already"):
        collector.add(loop, "two")
    names = {loop for _, loop, _ in scrape() if loop}
    assert names == {"one", "two"}
    other.close()
    assert {loop for _, loop, _ in scrape() if loop} == {"one"}
    collector.add(hotloop.new_event_loop(), "two")
    gc.collect()
    assert {loop for _, loop, _ in scrape() if loop} == {"one"}


def test_registering_asks_no_loop(loop, registry):
    asked = []
    loop.metrics = lambda: asked.append(1)
    Collector(loop, registry=registry)
    assert not asked


async def busy(seconds):
    await asyncio.sleep(0)
    time.sleep(seconds)


async def seldom():
    pass


def accounts(registry):
    """Values of accounts by metric and name."""
    return {
        (sample.name.removeprefix("hotloop_account_"), sample.labels["name"]): sample
        for family in registry.collect()
        for sample in family.samples
        if sample.name.startswith("hotloop_account_")
    }


def test_the_accounts_that_have_used_the_loop_most(loop, registry):
    Collector(loop, "web", registry=registry, accounts=1)
    assert not accounts(registry)
    loop.account()
    loop.run_until_complete(busy(0.02))
    loop.run_until_complete(seldom())
    found = accounts(registry)
    assert {name for _, name in found} == {"busy"}
    sample = found["polls_total", "busy"]
    assert sample.value == 2
    assert sample.labels == {
        **{"loop": "web", "kind": "task", "name": "busy"},
        "where": f"test_prometheus.py:{busy.__code__.co_firstlineno}",
    }
    assert 0.02 <= found["seconds_total", "busy"].value < 0.5
    assert found["processor_seconds_total", "busy"].value <= found["seconds_total", "busy"].value
    assert found["slow_polls_total", "busy"].value == 1
    assert found["scheduled_seconds_total", "busy"].value >= 0
    loop.account(False)
    assert not accounts(registry)


def test_an_account_that_was_collected_stays(loop, registry):
    Collector(loop, "web", registry=registry, accounts=1)
    loop.account()
    loop.run_until_complete(busy(0.01))
    assert {name for _, name in accounts(registry)} == {"busy"}

    async def more():
        time.sleep(0.05)

    loop.run_until_complete(more())
    assert {name.rpartition(".")[2] for _, name in accounts(registry)} == {"busy", "more"}


def test_no_accounts(loop, registry):
    Collector(loop, "web", registry=registry, accounts=0)
    loop.account()
    loop.run_until_complete(busy(0.01))
    assert not accounts(registry)
    with pytest.raises(ValueError, match="negative"):
        Collector(loop, "other", registry=None, accounts=-1)
