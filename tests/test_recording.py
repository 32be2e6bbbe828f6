"""The flight recorder: what loop.record() records, and what loop.recording() makes of it."""

import asyncio
import collections
import functools
import gc
import gzip
import json
import os
import socket
import subprocess
import sys
import threading
import time
import weakref

import helpers
import helpers_recording as traces
import hotloop
import pytest

pytestmark = [pytest.mark.timeout(60), pytest.mark.hotloop_only]


def first():
    pass


def second():
    pass


@pytest.fixture
def recorded(loop):
    loop.record()
    return loop


def events_of(loop):
    return traces.check(loop.recording().events())


def run(loop):
    """Run what is queued, and what that queues."""
    loop.run_until_complete(asyncio.sleep(0.001))


# --- Callbacks ---


def test_callbacks_in_their_order_with_what_queued_them(recorded):
    loop = recorded

    def parent():
        loop.call_soon(first)
        loop.call_soon(second)

    loop.call_soon(parent)
    helpers.run_once(loop, times=3)
    events = events_of(loop)
    parent_name = parent.__qualname__
    assert traces.names(events, "callback")[:1] == [parent_name]
    assert [name for name in traces.names(events) if name in ("first", "second")] == ["first", "second"]
    causes = traces.caused(events)
    assert (parent_name, "first") in causes
    assert (parent_name, "second") in causes
    queued = next(each for each in traces.slices(events) if each["name"] == "first")["args"]
    assert queued["source"].endswith(f"test_recording.py:{first.__code__.co_firstlineno}")
    assert queued["queued for at most ms"] >= 0


def test_the_sums_agree_with_the_metrics(recorded):
    loop = recorded
    before = loop.metrics()

    async def main():
        for _ in range(10):
            loop.call_soon(first)
            await asyncio.sleep(0)
            await asyncio.sleep(0.001)
        loop.call_later(100, first).cancel()

    loop.run_until_complete(main())
    done = loop.metrics().since(before)
    events = events_of(loop)
    assert len(traces.names(events)) == done.callbacks
    assert len(traces.slices(events, "timer")) == done.timers_fired
    assert [event["name"] for event in traces.slices(events, "loop")].count("iteration") == done.iterations
    assert sum(event["dur"] for event in traces.slices(events) if event["name"] == "wait") == pytest.approx(
        done.idle * 1e6, rel=0.05, abs=300
    )


def test_how_long_callbacks_take(recorded):
    loop = recorded

    def slow():
        time.sleep(0.02)

    loop.call_soon(first)
    loop.call_soon(slow)
    loop.call_soon(second)
    run(loop)
    took = {event["name"]: event["dur"] / 1e6 for event in traces.slices(events_of(loop))}
    assert 0.02 <= took[slow.__qualname__] < 0.2
    assert took["first"] < 0.01
    assert took["second"] < 0.01


class Callable:
    def __call__(self):
        pass

    def method(self):
        pass


def test_the_names_of_callbacks(recorded):
    loop = recorded
    queue = collections.deque()
    callbacks = [
        (first, "first"),
        (Callable().method, "Callable.method"),
        (Callable(), "Callable"),
        (functools.partial(functools.partial(first)), "first"),
        (queue.clear, "deque.clear"),
        (lambda: None, "test_the_names_of_callbacks.<locals>.<lambda>"),
        (gc.isenabled, "isenabled"),
    ]
    for _ in range(3):
        for callback, _ in callbacks:
            loop.call_soon(callback)
    run(loop)
    names = traces.names(events_of(loop), "callback")
    assert [name for name in names if "run_until" not in name][: 3 * len(callbacks)] == [
        name for _, name in callbacks
    ] * 3


def test_a_function_that_is_gone_keeps_its_name_and_another_at_its_address_gets_its_own(recorded):
    loop = recorded
    for number in range(200):
        namespace = {}
        exec(f"def made_{number}(): pass", namespace)
        loop.call_soon(namespace.pop(f"made_{number}"))
        run(loop)
        del namespace
    names = [name for name in traces.names(events_of(loop)) if name.startswith("made_")]
    assert names == [f"made_{number}" for number in range(200)]


def test_what_is_recorded_is_not_kept_alive(recorded):
    loop = recorded

    def make():
        namespace = {}
        exec("def made(argument): pass\nasync def main(argument): pass", namespace)
        argument = Callable()
        loop.call_soon(namespace["made"], argument)
        loop.run_until_complete(namespace["main"](argument))
        kept = [namespace["made"], namespace["made"].__code__, namespace["main"].__code__, argument]
        return [weakref.ref(each) for each in kept]

    references = make()
    recording = loop.recording()
    helpers.run_once(loop)
    gc.collect()
    assert [reference() for reference in references] == [None] * 4
    assert {"made", "main"} <= set(traces.names(traces.check(recording.events())))


def test_cancelled_callbacks_are_not_recorded(recorded):
    loop = recorded
    loop.call_soon(first).cancel()
    loop.call_soon(second)
    run(loop)
    names = traces.names(events_of(loop))
    assert "second" in names
    assert "first" not in names


def test_a_callback_that_raises_is_over_when_it_raised(recorded):
    loop = recorded
    reported = []
    loop.set_exception_handler(lambda _, context: reported.append(context))

    def fail():
        raise ZeroDivisionError

    loop.call_soon(fail)
    loop.call_soon(first)
    run(loop)
    names = traces.names(events_of(loop))
    assert names.index(fail.__qualname__) + 1 == names.index("first")
    assert len(reported) == 1


def test_timers_that_are_late(recorded):
    loop = recorded
    loop.call_later(0.01, first)
    loop.call_soon(time.sleep, 0.04)
    loop.run_until_complete(asyncio.sleep(0.05))
    late = [args for args in traces.instants(events_of(loop), "late timer") if args["callback"] == "first"]
    assert len(late) == 1
    assert 29 <= late[0]["late ms"] < 200


# --- Tasks ---


async def child(event):
    await event.wait()


def test_tasks_have_tracks_from_when_they_are_made_until_they_end(recorded):
    loop = recorded

    async def main():
        event = asyncio.Event()
        task = asyncio.create_task(child(event))
        await asyncio.sleep(0.01)
        event.set()
        await task

    loop.run_until_complete(main())
    events = events_of(loop)
    main_name = main.__qualname__
    assert traces.tracks(events) == [main_name, "child"]
    assert [len(traces.steps(events, name)) for name in (main_name, "child")] == [3, 2]
    lives = {event["name"]: event for event in events if event["ph"] == "X" and event["cat"] == "task"}
    alive = next(
        event for event in events if event["ph"] == "X" and event["name"] == "child" and event["tid"] > 1
    )
    assert 10_000 <= alive["dur"] < 1_000_000
    assert alive["ts"] + alive["dur"] == pytest.approx(
        traces.steps(events, "child")[-1]["ts"] + traces.steps(events, "child")[-1]["dur"], abs=0.01
    )
    assert {"step", main_name, "child"} <= set(lives)
    causes = traces.caused(events)
    # By create_task(); by the event's future; by the task, which is awaited.
    assert causes.count((main_name, "child")) == 2
    assert ("child", main_name) in causes


def test_each_task_has_its_own_track_though_their_memory_is_used_again(recorded):
    loop = recorded

    async def nothing():
        pass

    async def another():
        await asyncio.sleep(0)

    async def main():
        for _ in range(100):
            await asyncio.create_task(nothing())
            await asyncio.create_task(another())

    loop.run_until_complete(main())
    names = [name.rpartition(".")[2] for name in traces.tracks(events_of(loop))]
    assert names == ["main", *["nothing", "another"] * 100]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are from Python 3.12 on")
def test_eager_tasks(recorded):
    loop = recorded

    async def waiting():
        await asyncio.sleep(0)

    async def other():
        await asyncio.sleep(0)

    async def main():
        for _ in range(50):
            await asyncio.create_task(other())
            await asyncio.Task(waiting(), loop=loop, eager_start=True)

    loop.run_until_complete(main())
    names = [name.rpartition(".")[2] for name in traces.tracks(events_of(loop))]
    assert names == ["main", *["other", "waiting"] * 50]


def test_tasks_that_are_not_done_have_their_names(recorded):
    loop = recorded

    async def main():
        task = asyncio.create_task(child(asyncio.Event()), name="consumer")
        await asyncio.sleep(0.001)
        events = events_of(loop)
        task.cancel()
        return events

    events = loop.run_until_complete(main())
    assert f"{main.__qualname__}" in traces.tracks(events)[0]
    assert ": " in traces.tracks(events)[0]
    assert traces.tracks(events)[1] == "consumer: child"


@pytest.mark.parametrize("class_name", ["Subclass", "_PyTask"])
def test_other_classes_of_tasks(recorded, class_name):
    loop = recorded

    class Subclass(asyncio.Task):
        def get_coro(self):
            return super().get_coro()

    cls = Subclass if class_name == "Subclass" else asyncio.tasks._PyTask

    async def main():
        await asyncio.sleep(0)
        await asyncio.sleep(0.001)

    loop.run_until_complete(cls(main(), loop=loop))
    names = traces.names(events_of(loop))
    # A task that is written in Python runs by methods of its own.
    assert any("main" in name if class_name == "Subclass" else "Task" in name for name in names)


def test_generators_as_coroutines_and_asynchronous_generators(recorded):
    loop = recorded

    async def agen():
        yield 1
        await asyncio.sleep(0)

    async def main():
        async for _ in agen():
            pass

    loop.run_until_complete(main())
    assert set(traces.tracks(events_of(loop))) >= {main.__qualname__}


def test_debug_mode(loop):
    loop.set_debug(True)
    loop.record()

    async def nothing():
        pass

    async def main():
        for _ in range(5):
            await asyncio.create_task(nothing())

    loop.call_soon(first)
    loop.run_until_complete(main())
    events = events_of(loop)
    assert "first" in traces.names(events)
    assert [name.rpartition(".")[2] for name in traces.tracks(events)] == ["main", *["nothing"] * 5]


def test_while_it_is_watched(loop, caplog):
    loop.watch_blocking(0.02)
    loop.record()

    def blocks():
        time.sleep(0.1)

    loop.call_soon(blocks)
    loop.call_soon(first)
    run(loop)
    events = events_of(loop)
    block = next(each for each in traces.slices(events) if each["name"] == blocks.__qualname__)
    assert block["args"]["blocked"]
    assert "first" in traces.names(events)
    assert not any("blocked" in event["args"] for event in traces.slices(events) if event["name"] == "first")


# --- Other threads, descriptors, garbage collections ---


def test_what_other_threads_queue(recorded):
    loop = recorded

    async def main():
        done = asyncio.Event()

        def call():
            # The loop waits by then.
            time.sleep(0.05)
            loop.call_soon_threadsafe(first)
            loop.call_soon_threadsafe(done.set)

        thread = threading.Thread(target=call)
        thread.start()
        await done.wait()
        thread.join()

    loop.run_until_complete(main())
    events = events_of(loop)
    assert ("another thread", "first") in traces.caused(events)
    assert "call_soon_threadsafe" in [event["name"] for event in events if event["tid"] == 2]
    waits = [event for event in traces.slices(events) if event["name"] == "wait"]
    assert any(event["args"].get("woken") for event in waits)


def test_descriptors(recorded):
    loop = recorded
    near, far = socket.socketpair()
    with near, far:

        def readable():
            near.recv(10)
            loop.remove_reader(near)
            loop.stop()

        loop.add_reader(near, readable)
        loop.call_later(0.01, far.send, b"x")
        loop.run_forever()
        found = [e for e in traces.slices(events_of(loop)) if e["name"] == readable.__qualname__]
        assert [each["args"]["fd"] for each in found] == [near.fileno()]
        assert found[0]["args"]["ready to"] == "read"


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


class Client(asyncio.Protocol):
    def __init__(self):
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport
        transport.write(b"data")

    def data_received(self, data):
        self.transport.close()

    def connection_lost(self, exception):
        self.closed.set_result(None)


def test_connections(recorded):
    loop = recorded

    async def main():
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        transport, client = await loop.create_connection(Client, *server.sockets[0].getsockname())
        numbers = transport.get_extra_info("socket").fileno()
        await client.closed
        await asyncio.sleep(0.01)
        server.close()
        return numbers

    fd = loop.run_until_complete(main())
    events = events_of(loop)
    assert len(traces.instants(events, "accepted")) == 1
    assert traces.instants(events, "connected") == [{"fd": fd}]
    opened = traces.instants(events, "opened")
    assert sorted(each["protocol"] for each in opened) == ["Client", "Echo"]
    assert {"fd": fd, "protocol": "Client"} in opened
    assert sorted(each["fd"] for each in traces.instants(events, "closed")) == sorted(
        each["fd"] for each in opened
    )
    assert {"Echo", "Client"} <= set(traces.names(events, "event"))
    assert max(traces.counted(events, "transports")) <= 2


def test_a_class_that_can_not_be_named_keeps_no_connection_from_being_made(recorded):
    loop = recorded

    class Nameless(type):
        def __getattribute__(cls, name):
            if name == "__qualname__":
                raise ZeroDivisionError
            return super().__getattribute__(name)

    class Protocol(asyncio.Protocol, metaclass=Nameless):
        def data_received(self, data):
            received.append(data)

    class Call(metaclass=Nameless):
        def __call__(self):
            received.append("called")

    received = []

    async def main():
        near, far = socket.socketpair()
        with far:
            transport, _ = await loop.create_connection(Protocol, sock=near)
            far.send(b"data")
            loop.call_soon(Call())
            await asyncio.sleep(0.01)
            transport.close()
            await asyncio.sleep(0)

    loop.run_until_complete(main())
    assert sorted(map(str, received)) == ["b'data'", "called"]
    assert "unnamed" in traces.names(events_of(loop))


def test_socket_operations(recorded):
    loop = recorded

    async def main(listening):
        client = socket.socket()
        client.setblocking(False)
        accepting = loop.create_task(loop.sock_accept(listening))
        await loop.sock_connect(client, listening.getsockname())
        served, _ = await accepting
        found = served.fileno(), client.fileno()
        served.close()
        client.close()
        return found

    with helpers.listener() as listening:
        listening.setblocking(False)
        served, client = loop.run_until_complete(main(listening))
    events = events_of(loop)
    assert "SocketOperation" in traces.tracks(events)
    assert traces.instants(events, "accepted") == [{"fd": served}]
    assert traces.instants(events, "connected") == [{"fd": client}]


def test_garbage_collections(recorded):
    loop = recorded

    def collect():
        gc.collect()

    loop.call_soon(collect)
    run(loop)
    events = events_of(loop)
    callback = next(each for each in traces.slices(events) if each["name"] == collect.__qualname__)
    found = [
        each
        for each in traces.slices(events, "gc")
        if callback["ts"] <= each["ts"] <= callback["ts"] + callback["dur"]
    ]
    assert [each["args"]["generation"] for each in found] == [2]


def test_bytes_that_wait(recorded):
    loop = recorded

    async def main():
        near, far = socket.socketpair()
        with far:
            transport, _ = await loop.create_connection(Echo, sock=near)
            transport.write(bytes(4_000_000))
            await asyncio.sleep(0.05)
            transport.abort()
            await asyncio.sleep(0)

    loop.run_until_complete(main())
    assert max(traces.counted(events_of(loop), "bytes waiting")) > 1_000_000


# --- The ring ---


def test_a_ring_that_overflows_says_what_was_lost(loop):
    loop.record(memory=32 * 64)
    for _ in range(1000):
        loop.call_soon(first)
    run(loop)
    recording = loop.recording()
    assert recording.records == 63
    assert recording.lost >= 1000 - 64
    assert f"{recording.lost:,} lost" in repr(recording)
    names = traces.names(traces.check(recording.events()))
    assert 40 < len(names) < 64


def test_only_the_last_seconds_are_there(loop):
    loop.record(0.1)
    loop.call_soon(first)
    run(loop)
    time.sleep(0.15)
    loop.call_soon(second)
    run(loop)
    recording = loop.recording()
    names = traces.names(traces.check(recording.events()))
    assert "second" in names
    assert "first" not in names
    assert recording.lost == 0
    assert recording.seconds <= 0.1


def test_a_callback_that_was_queued_before_the_oldest_record(loop):
    loop.call_soon(loop.record)
    loop.call_soon(first)
    helpers.run_once(loop)
    assert "first" in traces.names(events_of(loop))


def test_nothing_is_recorded_yet(recorded):
    recording = recorded.recording()
    assert (recording.records, recording.lost, recording.seconds) == (0, 0, 0.0)
    assert not traces.slices(traces.check(recording.events()))


def test_it_starts_anew_and_stops(recorded):
    loop = recorded
    loop.call_soon(first)
    run(loop)
    loop.record()
    loop.call_soon(second)
    run(loop)
    names = traces.names(events_of(loop))
    assert "second" in names
    assert "first" not in names
    loop.record(None)
    with pytest.raises(RuntimeError, match="does not record"):
        loop.recording()
    loop.record(None)
    run(loop)


def test_a_loop_that_does_not_record(loop):
    with pytest.raises(RuntimeError, match="does not record"):
        loop.recording()


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
def test_seconds_that_can_not_be(loop, seconds):
    with pytest.raises(ValueError, match="positive number of seconds"):
        loop.record(seconds)


def test_memory_that_can_not_be(loop):
    with pytest.raises(ValueError, match="32 bytes or more"):
        loop.record(memory=31)
    with pytest.raises((MemoryError, OverflowError)):
        loop.record(memory=2**62)
    with pytest.raises(RuntimeError, match="does not record"):
        loop.recording()


def test_a_callback_that_turns_it_on_and_off(loop):
    def switch(seconds):
        loop.record(seconds)

    for seconds in (1, None, 1, 1, None, 1):
        loop.call_soon(switch, seconds)
        loop.call_soon(first)
    run(loop)
    assert "first" in traces.names(events_of(loop))


def test_a_recording_made_within_a_callback(recorded):
    loop = recorded
    made = []

    def record_now():
        made.append(loop.recording())

    loop.call_soon(record_now)
    run(loop)
    last = traces.slices(traces.check(made[0].events()), "callback")[-1]
    assert last["name"] == record_now.__qualname__
    assert last["args"]["unfinished"]


def test_a_closed_loop_can_still_be_asked(recorded):
    loop = recorded
    loop.call_soon(first)
    run(loop)
    loop.close()
    assert "first" in traces.names(events_of(loop))


def test_a_run_within_a_callback(recorded):
    loop = recorded

    def nested():
        asyncio._set_running_loop(None)
        other = hotloop.new_event_loop()
        other.run_until_complete(asyncio.sleep(0))
        other.close()
        asyncio._set_running_loop(loop)
        loop._run_once()

    def before():
        loop.call_soon(first)

    loop.call_soon(before)
    loop.call_soon(nested)
    loop.call_soon(second)
    run(loop)
    names = traces.names(events_of(loop))
    assert {before.__qualname__, nested.__qualname__, "first", "second"} <= set(names)


# --- Threads and processes ---


def test_another_thread_asks_while_the_loop_is_blocked(recorded):
    loop = recorded
    made = []

    def blocks():
        thread = threading.Thread(target=lambda: made.append(loop.recording()))
        thread.start()
        time.sleep(0.1)
        thread.join()

    loop.call_soon(first)
    loop.call_soon(blocks)
    run(loop)
    events = traces.check(made[0].events())
    assert traces.names(events)[-1] == blocks.__qualname__


def test_another_thread_asks_again_and_again(loop):
    loop.record(memory=32 * 256)
    over = threading.Event()
    checked = []

    def ask():
        while not over.is_set():
            checked.append(traces.names(traces.check(loop.recording().events())))

    async def main():
        end = time.monotonic() + 1
        while time.monotonic() < end:
            loop.call_soon(first)
            await asyncio.gather(*(asyncio.sleep(0) for _ in range(20)))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        loop.run_until_complete(main())
    finally:
        over.set()
        thread.join()
    assert sum(map(len, checked)) > 100


def test_loops_in_several_threads(tmp_path):
    recordings = []

    def work():
        loop = hotloop.new_event_loop()
        loop.record()
        for _ in range(200):
            loop.call_soon(first)
            run(loop)
        recordings.append(loop.recording())
        loop.close()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for recording in recordings:
        assert traces.names(traces.check(recording.events())).count("first") == 200
    path = tmp_path / "all.json"
    hotloop.recording.save(recordings, path)
    events = traces.check(json.loads(path.read_text())["traceEvents"])
    assert traces.names(events).count("first") == 600


def test_a_forked_child_records_for_itself(recorded):
    loop = recorded
    loop.call_soon(first)
    run(loop)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            loop.call_soon(second)
            run(loop)
            os.write(writing, json.dumps(traces.names(events_of(loop))).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as file:
        names = json.load(file)
    assert "second" in names
    assert "first" not in names
    assert "first" in traces.names(events_of(loop))


# --- Files ---


def test_saving(recorded, tmp_path):
    loop = recorded
    loop.call_soon(first)
    run(loop)
    recording = loop.recording()
    for name, opener in (("trace.json", open), ("trace.json.gz", gzip.open)):
        path = tmp_path / name
        recording.save(path)
        with opener(path, "rt", encoding="utf-8") as file:
            trace = json.load(file)
        assert trace["displayTimeUnit"] == "ms"
        assert trace["otherData"]["recordings"] == [repr(recording)]
        assert "first" in traces.names(traces.check(trace["traceEvents"]))
    assert (tmp_path / "trace.json").stat().st_mode & 0o777 == 0o666 & ~_umask()
    assert len(os.listdir(tmp_path)) == 2


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_saving_where_it_can_not_be(recorded, tmp_path):
    recording = recorded.recording()
    with pytest.raises(FileNotFoundError):
        recording.save(tmp_path / "missing" / "trace.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        recording.save(tmp_path / "folder")
    assert os.listdir(tmp_path) == ["folder"]


def test_what_was_saved_before_stays_if_it_can_not_be_replaced(recorded, tmp_path, monkeypatch):
    path = tmp_path / "trace.json"
    path.write_text("before")

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hotloop.recording, "_write", fail)
    with pytest.raises(OSError, match="No space"):
        recorded.recording().save(path)
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["trace.json"]


@pytest.mark.parametrize("end", ["loop.record(None)", "pass"])
def test_garbage_collections_are_noted_only_while_a_loop_is_recorded(end):
    source = f"""
import gc, hotloop
before = list(gc.callbacks)
loops = [hotloop.new_event_loop() for _ in range(2)]
for loop in loops:
    loop.record()
    loop.record()
while loops:
    assert len(gc.callbacks) == len(before) + 1
    loop = loops.pop()
    {end}
    loop.close()
    del loop
    gc.collect()
assert gc.callbacks == before, gc.callbacks
"""
    subprocess.run([sys.executable, "-c", source], check=True, timeout=30)
