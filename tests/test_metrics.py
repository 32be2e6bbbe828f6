"""What loop.metrics() tells, beside what happened."""

import asyncio
import dataclasses
import math
import random
import socket
import threading
import time

import helpers
import hotloop
import pytest
from hotloop.metrics import Histogram, Metrics

pytestmark = [pytest.mark.timeout(60), pytest.mark.hotloop_only]


def spin(seconds):
    """Compute for so long, and return for how long that was."""
    start = time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        pass
    return passed


def quantile(durations, p):
    """The least that *p* percent do not exceed."""
    return sorted(durations)[math.ceil(len(durations) * p / 100) - 1]


# --- The snapshot ---


def test_a_loop_that_did_nothing(loop):
    metrics = loop.metrics()
    for field in dataclasses.fields(Metrics):
        value = getattr(metrics, field.name)
        assert value == (Histogram((), 0.0) if field.type == "Histogram" else 0), field.name
    assert metrics.iterations == metrics.callbacks == 0
    assert metrics.utilization == 0.0


def test_a_snapshot_stays_as_it_is(loop):
    before = loop.metrics()
    helpers.run_once(loop)
    assert before.iterations == 0
    assert loop.metrics().iterations == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.idle = 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.delay.max = 1.0


def test_of_a_closed_loop(loop):
    helpers.run_once(loop)
    loop.close()
    assert loop.metrics().callbacks == 1


# --- Histograms ---


def test_an_empty_histogram():
    histogram = Histogram((), 0.0)
    assert histogram.count == 0
    assert histogram.mean == 0.0
    assert histogram.percentile(50) == histogram.percentile(100) == 0.0


@pytest.mark.parametrize("p", [-1, 100.1, float("nan")])
def test_percentiles_that_there_are_not(p):
    with pytest.raises(ValueError, match="between 0 and 100"):
        Histogram((), 0.0).percentile(p)


def test_percentiles():
    histogram = Histogram(((0.0, 1e-6, 50), (1.0, 1.0625, 49), (8.0, 8.5, 1)), 8.2)
    assert histogram.count == 100
    assert histogram.sum == pytest.approx(50 * 5e-7 + 49 * 1.03125 + 8.2)
    assert histogram.mean == histogram.sum / 100
    assert histogram.percentile(0) == histogram.percentile(50) == 5e-7
    assert histogram.percentile(50.5) == histogram.percentile(99) == 1.03125
    assert histogram.percentile(99.5) == histogram.percentile(100) == 8.2


@helpers.whenever_quiet
def test_iterations_agree_with_a_stopwatch(loop):
    """Durations over four orders of magnitude."""
    durations = []
    wanted = [10 ** random.Random(number).uniform(-5, -1.5) for number in range(300)]

    def work():
        durations.append(spin(wanted.pop()))
        if wanted:
            loop.call_soon(work)
        else:
            loop.stop()

    loop.call_soon(work)
    loop.reset_metrics()
    loop.run_forever()
    histogram = loop.metrics().iteration_duration
    assert histogram.count == 300
    # What an iteration takes besides is some microseconds, or more where others want the processor.
    for p in (25, 50, 75, 95):
        assert histogram.percentile(p) == pytest.approx(quantile(durations, p), rel=0.05, abs=20e-6)
    assert histogram.sum == pytest.approx(sum(durations), rel=0.05)
    assert histogram.max >= max(durations) * 0.999


@helpers.whenever_quiet
def test_since(loop):
    loop.call_soon(spin, 0.05)
    helpers.run_once(loop)
    first = loop.metrics()
    assert first.since(first).callbacks == 0
    assert first.since(first).delay == Histogram((), 0.0)
    for seconds in (0.01, 0.02):
        loop.call_soon(spin, seconds)
        helpers.run_once(loop)
    later = loop.metrics().since(first)
    assert later.callbacks == 4
    assert later.iterations == 2
    assert later.iteration_duration.max == pytest.approx(0.02, rel=0.1)
    assert later.iteration_duration.sum == pytest.approx(0.03, rel=0.1)
    assert later.busy == pytest.approx(0.03, rel=0.1)
    loop.call_soon(spin, 0.1)
    helpers.run_once(loop)
    assert loop.metrics().since(first).iteration_duration.max == loop.metrics().iteration_duration.max > 0.1
    everything = first.since(hotloop.new_event_loop().metrics())
    assert everything == first


# --- Time ---


@helpers.whenever_quiet
def test_a_busy_loop(loop):
    async def main():
        for _ in range(10):
            spin(0.01)
            await asyncio.sleep(0)

    loop.run_until_complete(main())
    metrics = loop.metrics()
    assert metrics.utilization > 0.95
    assert 0.1 <= metrics.busy < 1.0


@helpers.whenever_quiet
def test_an_idle_loop(loop):
    loop.run_until_complete(asyncio.sleep(0.2))
    metrics = loop.metrics()
    assert metrics.utilization < 0.2
    assert metrics.idle == pytest.approx(0.2, abs=0.05)


@helpers.whenever_quiet
def test_half_and_half(loop):
    async def main():
        for _ in range(10):
            spin(0.01)
            await asyncio.sleep(0.01)

    loop.run_until_complete(main())
    assert 0.35 < loop.metrics().utilization < 0.65


@helpers.whenever_quiet
def test_a_loop_that_is_not_running_is_neither(loop):
    helpers.run_once(loop)
    before = loop.metrics()
    time.sleep(0.05)
    after = loop.metrics()
    assert after.idle == before.idle
    assert after.busy == before.busy
    loop.call_soon(print)
    time.sleep(0.05)
    loop.reset_metrics()
    helpers.run_once(loop)
    assert loop.metrics().busy < 0.02


@helpers.whenever_quiet
def test_the_wait_that_is_under_way(loop):
    """A loop that waits is asked by another thread, as scrapers do."""
    answers = []

    def ask():
        time.sleep(0.05)
        answers.append(loop.metrics())
        time.sleep(0.05)
        answers.append(loop.metrics())
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=ask)
    thread.start()
    loop.run_forever()
    thread.join()
    first, second = answers
    assert second.idle - first.idle == pytest.approx(0.05, abs=0.03)
    assert second.busy < 0.05
    assert loop.metrics().wakeups >= 1


def test_the_work_that_is_under_way(loop):
    answers = []

    def work():
        spin(0.05)
        answers.append(loop.metrics())

    loop.call_soon(work)
    helpers.run_once(loop)
    assert answers[0].busy >= 0.05
    assert answers[0].idle == 0.0


@helpers.whenever_quiet
def test_reset(loop):
    async def main():
        spin(0.05)
        await asyncio.sleep(0.05)
        loop.reset_metrics()
        metrics = loop.metrics()
        assert metrics.busy < 0.02
        assert metrics.idle == 0.0
        assert metrics.callbacks == metrics.timers_fired == metrics.tasks_created == 0
        assert metrics.iteration_duration == Histogram((), 0.0)
        spin(0.03)

    loop.run_until_complete(main())
    assert 0.03 <= loop.metrics().busy < 0.05


# --- Delay ---


@helpers.whenever_quiet
def test_whoever_waits_behind_a_blocking_callback(loop):
    loop.call_soon(spin, 0.05)
    loop.call_soon(int)
    helpers.run_once(loop)
    delay = loop.metrics().delay
    assert delay.count == 3
    assert delay.percentile(10) < 0.01
    assert delay.percentile(50) == pytest.approx(0.05, rel=0.05, abs=0.002)
    assert 0.05 <= delay.max < 0.07


@helpers.whenever_quiet
def test_whoever_is_scheduled_afterwards_does_not_wait(loop):
    def after():
        loop.call_soon(loop.stop)

    loop.call_soon(spin, 0.05)
    loop.call_soon(after)
    loop.run_forever()
    # The first, `after` behind it, and the stop that it schedules.
    delays = loop.metrics().delay.buckets
    assert sum(count for low, _, count in delays if low < 0.02) == 2
    assert sum(count for low, _, count in delays if low > 0.04) == 1


@helpers.whenever_quiet
def test_timers_that_fire_late(loop):
    loop.call_later(0.02, loop.stop)
    loop.call_soon(spin, 0.05)
    loop.run_forever()
    assert loop.metrics().delay.max == pytest.approx(0.03, abs=0.005)


@helpers.whenever_quiet
def test_timers_that_fire_in_time(loop):
    loop.run_until_complete(asyncio.sleep(0.05))
    assert loop.metrics().delay.max < 0.02


@pytest.mark.parametrize("when", [0, -1e9, float("-inf")])
@helpers.whenever_quiet
def test_timers_of_the_past_are_due_when_they_are_made(loop, when):
    loop.call_soon(loop.call_at, when, loop.stop)
    loop.run_forever()
    metrics = loop.metrics()
    assert metrics.timers_fired == 1
    assert metrics.delay.max < 0.02


@helpers.whenever_quiet
def test_what_was_scheduled_before_the_loop_ran_is_not_late(loop):
    loop.call_soon(loop.stop)
    loop.call_later(0.01, int)
    time.sleep(0.05)
    loop.run_forever()
    assert loop.metrics().delay.max < 0.02


@helpers.whenever_quiet
def test_messages_of_other_threads(loop):
    """They wait from the moment when they are sent."""

    def block():
        thread = threading.Thread(target=loop.call_soon_threadsafe, args=(loop.stop,))
        thread.start()
        thread.join()
        time.sleep(0.05)

    loop.call_soon(block)
    loop.run_forever()
    assert 0.05 <= loop.metrics().delay.max < 0.08


@helpers.whenever_quiet
def test_each_message_of_another_thread_waits_from_its_own_moment(loop):
    def send():
        for number in range(40):
            if number == 20:
                time.sleep(0.05)
            loop.call_soon_threadsafe(int)

    def block():
        thread = threading.Thread(target=send)
        thread.start()
        thread.join()
        time.sleep(0.05)
        loop.call_soon(loop.stop)

    loop.call_soon(block)
    loop.run_forever()
    delay = loop.metrics().delay
    assert 0.1 <= delay.max < 0.13
    assert delay.percentile(40) == pytest.approx(0.05, abs=0.015)
    assert delay.percentile(60) == pytest.approx(0.1, abs=0.015)


@helpers.whenever_quiet
def test_many_callbacks_an_iteration(loop):
    """The clock is not read between any two of them, but often enough."""
    for _ in range(1000):
        loop.call_soon(spin, 20e-6)
    helpers.run_once(loop)
    metrics = loop.metrics()
    assert metrics.callbacks == 1001
    assert metrics.iterations == 1
    assert metrics.ready_highest == 1001
    assert metrics.delay.percentile(50) == pytest.approx(metrics.busy / 2, rel=0.1)
    assert metrics.delay.max == pytest.approx(metrics.busy, rel=0.05)


# --- Counts ---


def test_scheduling_is_counted(loop):
    async def nothing():
        pass

    async def main():
        loop.call_later(3600, int).cancel()
        timer = loop.call_later(3600, int)
        timer.cancel()
        timer.cancel()
        await asyncio.sleep(0.001)
        await asyncio.gather(*(nothing() for _ in range(5)))
        for _ in range(3):
            loop.call_soon(int)
        return loop.metrics()

    metrics = loop.run_until_complete(main())
    assert metrics.tasks_created == 6
    assert metrics.timers_fired == 1
    assert metrics.timers_cancelled == 2
    assert metrics.ready == 3


def test_a_timer_that_fired_cannot_be_cancelled(loop):
    timer = loop.call_later(0, loop.stop)
    loop.run_forever()
    timer.cancel()
    assert loop.metrics().timers_cancelled == 0


def test_wakeups_are_counted(loop):
    async def main():
        for _ in range(10):
            await loop.run_in_executor(None, time.sleep, 0.001)

    loop.run_until_complete(main())
    assert 5 <= loop.metrics().wakeups <= 30


def test_streams_are_counted(loop):
    async def main():
        async def serve(reader, writer):
            writer.write(await reader.readexactly(1000))
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        for _ in range(3):
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"x" * 1000)
            await reader.read()
            assert loop.metrics().transports >= 1
            writer.close()
            await writer.wait_closed()
        server.close()
        await server.wait_closed()

    loop.run_until_complete(main())
    metrics = loop.metrics()
    assert metrics.accepted == metrics.connected == 3
    assert metrics.bytes_read == metrics.bytes_written == 6000
    assert metrics.bytes_waiting == 0
    assert metrics.transports == 0
    assert metrics.io_events >= 9


@pytest.mark.parametrize("end", ["close", "abort"])
def test_what_waits_to_be_sent(loop, end):
    async def main():
        ours, theirs = socket.socketpair()
        with theirs:
            transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
            assert loop.metrics().transports == 1
            transport.write(b"x" * 5_000_000)
            transport.writelines([b"y" * 1_000_000, b""])
            await asyncio.sleep(0)
            waiting = loop.metrics().bytes_waiting
            assert waiting == transport.get_write_buffer_size()
            assert waiting + loop.metrics().bytes_written == 6_000_000
            getattr(transport, end)()
            if end == "close":
                theirs.settimeout(10)
                await asyncio.to_thread(lambda: [None for _ in iter(lambda: theirs.recv(1 << 20), b"")])
            await asyncio.sleep(0.01)

    loop.run_until_complete(main())
    metrics = loop.metrics()
    assert metrics.bytes_waiting == metrics.transports == 0
    assert (metrics.bytes_written == 6_000_000) == (end == "close")


def test_a_connection_that_is_lost_with_something_to_send(loop):
    async def main():
        ours, theirs = socket.socketpair()
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        transport.write(b"x" * 5_000_000)
        await asyncio.sleep(0)
        theirs.close()
        await asyncio.sleep(0.05)
        assert transport.is_closing()

    loop.run_until_complete(main())
    assert loop.metrics().bytes_waiting == loop.metrics().transports == 0


def test_buffered_protocols_are_counted(loop):
    class Protocol(asyncio.BufferedProtocol):
        def get_buffer(self, sizehint):
            return bytearray(100)

        def buffer_updated(self, nbytes):
            loop.stop()

    ours, theirs = socket.socketpair()
    with theirs:
        transport, _ = loop.run_until_complete(loop.create_connection(Protocol, sock=ours))
        theirs.send(b"x" * 70)
        loop.run_forever()
        transport.close()
        loop.run_until_complete(asyncio.sleep(0))
    assert loop.metrics().bytes_read == 70


def test_datagrams_are_counted(loop):
    async def main():
        class Protocol(asyncio.DatagramProtocol):
            def __init__(self):
                self.received = loop.create_future()

            def datagram_received(self, data, addr):
                self.received.set_result(data)

        server, protocol = await loop.create_datagram_endpoint(Protocol, local_addr=("127.0.0.1", 0))
        client, _ = await loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, remote_addr=server.get_extra_info("sockname")
        )
        client.sendto(b"x" * 300)
        await protocol.received
        assert loop.metrics().transports == 2
        client.close()
        server.close()
        await asyncio.sleep(0)

    loop.run_until_complete(main())
    metrics = loop.metrics()
    assert metrics.bytes_written == metrics.bytes_read == 300
    assert metrics.transports == 0


def test_pipes_are_counted(loop):
    async def main():
        process = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
        assert loop.metrics().transports == 2
        out, _ = await process.communicate(b"x" * 5000)
        assert len(out) == 5000

    loop.run_until_complete(main())
    metrics = loop.metrics()
    assert metrics.bytes_written == metrics.bytes_read == 5000
    assert metrics.transports == metrics.bytes_waiting == 0


def test_socket_operations_are_counted(loop):
    async def main():
        with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as client:
            listening.setblocking(False)
            client.setblocking(False)
            connecting = asyncio.ensure_future(loop.sock_connect(client, listening.getsockname()))
            server, _ = await loop.sock_accept(listening)
            server.close()
            await connecting

    loop.run_until_complete(main())
    assert loop.metrics().accepted == loop.metrics().connected == 1


def test_asking_from_another_thread_all_the_time(loop):
    """While the loop counts: nothing goes wrong, and nothing goes backwards."""
    stop = threading.Event()
    problems = []

    def ask():
        callbacks = 0
        try:
            while not stop.is_set():
                metrics = loop.metrics()
                assert metrics.callbacks >= callbacks
                assert 0 <= metrics.utilization <= 1
                callbacks = metrics.callbacks
        except BaseException as error:
            problems.append(error)

    async def main():
        deadline = loop.time() + 0.5
        while loop.time() < deadline:
            await asyncio.sleep(0)
            await asyncio.sleep(0.0001)

    thread = threading.Thread(target=ask)
    thread.start()
    loop.run_until_complete(main())
    stop.set()
    thread.join()
    assert not problems


def test_iterations_within_iterations(loop):
    """Nobody should, but counting is not what goes wrong then."""
    seen = []

    def nested(number):
        seen.append(number)
        if number < 3:
            loop.call_soon(seen.append, number)
            loop._run_once()
        loop.call_soon(seen.append, number)

    for number in range(5):
        loop.call_soon(nested, number)
    for number in range(20):
        loop.call_soon(seen.append, number)
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    helpers.run_once(loop)
    assert len(seen) == 33
    assert loop.metrics().delay.max < 1
