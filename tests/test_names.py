"""Name look-ups: in threads of their own, one for all who ask the same, and none behind slow ones."""

import asyncio
import concurrent.futures
import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref

import helpers
import hotloop
import pytest
from hotloop import _names

pytestmark = pytest.mark.hotloop_only
ANSWER = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 80))]
PATIENCE = 10
MOST_SLOW = 16


class Resolver:
    """In the place of socket.getaddrinfo(): does not answer what begins with "slow" until it is released."""

    def __init__(self):
        self.asked = []
        self.released = threading.Event()

    def __call__(self, host, *others):
        self.asked.append(host)
        if host.startswith("slow"):
            assert self.released.wait(PATIENCE)
        if host.startswith("no"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return list(ANSWER)


@pytest.fixture
def resolver(monkeypatch, names):
    resolver = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    yield resolver
    resolver.released.set()


@pytest.fixture(autouse=True)
def names(monkeypatch):
    """The module, with threads that end soon, and none of earlier tests."""
    monkeypatch.setattr(_names, "IDLE", 0.05)
    monkeypatch.setattr(_names, "look_ups", _names.LookUps())
    yield _names
    deadline = time.monotonic() + PATIENCE
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("hotloop names")]


async def until_no_thread_is_left():
    async with asyncio.timeout(PATIENCE):
        while threads():
            await asyncio.sleep(0.01)


async def test_a_look_up_does_not_wait_for_the_executor(loop, resolver):
    go_on = threading.Event()
    jobs = [loop.run_in_executor(None, go_on.wait) for _ in range(1000)]
    try:
        async with asyncio.timeout(PATIENCE):
            assert await loop.getaddrinfo("name", 80) == ANSWER
            assert await loop.getnameinfo(("127.0.0.1", 80), socket.NI_NUMERICHOST) == ("127.0.0.1", "http")
    finally:
        go_on.set()
        await asyncio.gather(*jobs)


async def test_look_ups_that_ask_the_same_are_one(loop, resolver):
    tasks = [loop.create_task(loop.getaddrinfo("slow", 80)) for _ in range(50)]
    other = loop.create_task(loop.getaddrinfo("slow", 80, type=socket.SOCK_STREAM))
    await helpers.iterations(3)
    resolver.released.set()
    results = await asyncio.gather(*tasks, other)
    assert resolver.asked == ["slow", "slow"]
    assert results == [ANSWER] * 51
    # Each may change its own.
    assert len(set(map(id, results))) == 51
    await loop.getaddrinfo("slow", 80)
    assert resolver.asked == ["slow", "slow", "slow"]


async def test_everyone_who_asks_the_same_gets_an_error(loop, resolver):
    errors = await asyncio.gather(*[loop.getaddrinfo("no", 80) for _ in range(5)], return_exceptions=True)
    assert resolver.asked == ["no"]
    assert [type(error) for error in errors] == [socket.gaierror] * 5
    assert {error.args for error in errors} == {(socket.EAI_NONAME, "Name or service not known")}
    assert len(set(map(id, errors))) == 5


async def test_one_of_several_who_ask_the_same_is_cancelled(loop, resolver):
    first, second = (loop.create_task(loop.getaddrinfo("slow", 80)) for _ in range(2))
    await helpers.iterations(2)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    resolver.released.set()
    assert await second == ANSWER
    assert resolver.asked == ["slow"]


async def test_cancelled_look_ups_free_their_callers_and_leave_no_thread(loop, resolver, names):
    tasks = [loop.create_task(loop.getaddrinfo(f"slow {number}", 80)) for number in range(200)]
    async with asyncio.timeout(PATIENCE):
        while len(resolver.asked) < MOST_SLOW:
            await asyncio.sleep(0.01)
    begin = time.monotonic()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)
    assert time.monotonic() - begin < 1
    assert len(threads()) <= MOST_SLOW
    resolver.released.set()
    await until_no_thread_is_left()
    # What had not begun was not made.
    assert len(resolver.asked) == MOST_SLOW
    assert loop._look_ups == {}


async def test_names_that_need_no_server_do_not_wait_for_slow_ones(
    loop, resolver, names, monkeypatch, tmp_path
):
    hosts = tmp_path / "hosts"
    hosts.write_text("# nobody commented\n192.0.2.1 here.test alias # comment\n2001:db8::1 six.test\n")
    monkeypatch.setattr(names, "HOSTS", str(hosts))
    slow = [loop.create_task(loop.getaddrinfo(f"slow {number}", 80)) for number in range(100)]
    await asyncio.sleep(0.05)
    quick = [
        ("localhost", 80),
        ("HERE.test", 80),
        ("alias", 80),
        ("six.test", 80),
        (b"here.test", 80),
        ("127.0.0.1", "http"),
        ("::1", "http"),
        ("fe80::1%lo", 80),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: list(ANSWER))
    async with asyncio.timeout(PATIENCE / 2):
        for host, port in quick:
            assert await loop.getaddrinfo(host, port) == ANSWER
        assert await loop.getaddrinfo("name", 80, flags=socket.AI_NUMERICHOST) == ANSWER
        assert await loop.getaddrinfo("six.test", 80, family=socket.AF_INET6) == ANSWER
    # The file has no such address, so name servers are asked.
    for family, host in [(socket.AF_INET, "six.test"), (socket.AF_INET6, "here.test"), (0, "commented")]:
        waiting = loop.create_task(loop.getaddrinfo(host, 80, family=family))
        await asyncio.sleep(0.02)
        assert not waiting.done()
        waiting.cancel()
    hosts.write_text("192.0.2.1 another.test\n")
    async with asyncio.timeout(PATIENCE / 2):
        assert await loop.getaddrinfo("another.test", 80) == ANSWER
    for task in slow:
        task.cancel()
    resolver.released.set()
    await until_no_thread_is_left()


async def test_a_large_file_of_hosts_is_read_in_a_thread(loop, resolver, names, monkeypatch, tmp_path):
    hosts = tmp_path / "hosts"
    lines = [f"0.0.0.0 advertiser{number}.test\n" for number in range(100_000)]
    hosts.write_text("".join(lines))
    monkeypatch.setattr(names, "HOSTS", str(hosts))
    assert await loop.getaddrinfo("one", 80) == ANSWER
    async with asyncio.timeout(PATIENCE):
        while not names.look_ups.hosts.has("advertiser99999.test", socket.AF_INET):
            await asyncio.sleep(0.01)
    await until_no_thread_is_left()


async def test_an_executor_that_the_program_has_set_looks_up(loop, resolver):
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="own") as executor:
        loop.set_default_executor(executor)
        seen = []
        socket.getaddrinfo = lambda *_: seen.append(threading.current_thread().name) or list(ANSWER)
        assert await loop.getaddrinfo("name", 80) == ANSWER
        assert seen == ["own_0"]
        assert not threads()


@pytest.mark.parametrize("how", ["instance", "subclass", "base"])
def test_a_replaced_run_in_executor_is_called(resolver, monkeypatch, how):
    seen = []

    def run_in_executor(*arguments):
        seen.append(arguments[-7:-5])
        future = loop.create_future()
        future.set_result("replaced")
        return future

    members = {"run_in_executor": run_in_executor} if how == "subclass" else {}
    with contextlib.closing(type("Own", (hotloop.Loop,), members)()) as loop:
        if how == "instance":
            monkeypatch.setattr(loop, "run_in_executor", run_in_executor)
        if how == "base":
            monkeypatch.setattr(asyncio.BaseEventLoop, "run_in_executor", run_in_executor)
        assert loop.run_until_complete(loop.getaddrinfo("name", 80)) == "replaced"
    assert seen == [(socket.getaddrinfo, "name")]


def test_a_loop_that_is_closed_meanwhile(new_loop, resolver, names):
    loop = new_loop()
    task = loop.create_task(loop.getaddrinfo("slow", 80))
    waiting = [loop.create_task(loop.getaddrinfo(f"slow {number}", 80)) for number in range(30)]
    loop.run_until_complete(asyncio.sleep(0.05))
    begin = time.monotonic()
    loop.close()
    assert time.monotonic() - begin < 1
    resolver.released.set()
    deadline = time.monotonic() + PATIENCE
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not threads()
    assert len(resolver.asked) <= MOST_SLOW
    for each in [task, *waiting]:
        each._log_destroy_pending = False
        with contextlib.suppress(RuntimeError):
            each.get_coro().close()


async def test_no_name_is_looked_up_after_the_executor_is_shut_down(loop, resolver):
    await loop.shutdown_default_executor()
    with pytest.raises(RuntimeError, match="Executor shutdown has been called"):
        await loop.getaddrinfo("name", 80)
    assert resolver.asked == []


async def test_no_thread_can_be_started(loop, resolver, names, monkeypatch):
    await until_no_thread_is_left()

    def start(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        await loop.getaddrinfo("name", 80)
    monkeypatch.undo()
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    assert await loop.getaddrinfo("name", 80) == ANSWER
    assert resolver.asked == ["name"]


def test_no_thread_can_be_started_for_two_loops(new_loop, resolver, names, monkeypatch):
    begun, errors = threading.Barrier(2), []
    start = threading.Thread.start

    def fail(thread):
        if not thread.name.startswith("hotloop names"):
            return start(thread)
        begun.wait(PATIENCE)
        raise RuntimeError("can't start new thread")

    def ask(name):
        loop = new_loop()
        try:
            loop.run_until_complete(asyncio.wait_for(loop.getaddrinfo(name, 80), PATIENCE))
        except Exception as error:
            errors.append(str(error))

    monkeypatch.setattr(threading.Thread, "start", fail)
    askers = [threading.Thread(target=ask, args=(name,)) for name in ("one", "other")]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert errors == ["can't start new thread"] * 2
    assert resolver.asked == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
def test_a_forked_child_looks_up_anew(new_loop, resolver):
    loop = new_loop()
    task = loop.create_task(loop.getaddrinfo("slow", 80))
    loop.run_until_complete(asyncio.sleep(0.05))
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            resolver.released.set()
            child = new_loop()
            if child.run_until_complete(asyncio.wait_for(child.getaddrinfo("slow", 80), PATIENCE)) == ANSWER:
                status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    resolver.released.set()
    assert loop.run_until_complete(task) == ANSWER


def test_a_collection_in_a_thread_that_has_the_lock_ends_a_look_up(new_loop, resolver, names):
    loop = new_loop()
    tasks = [loop.create_task(loop.getaddrinfo(f"slow {number}", 80)) for number in range(3)]
    loop.run_until_complete(asyncio.sleep(0.05))
    loop.close()
    resolver.released.set()
    for task in tasks:
        task._log_destroy_pending = False
    ended = [weakref.ref(task) for task in tasks]
    del task, tasks
    deadline = time.monotonic() + PATIENCE
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)

    def collect():
        with names.look_ups.slow._changed:
            gc.collect()

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert [task() for task in ended] == [None] * 3


async def test_a_look_up_that_is_cancelled_while_a_thread_has_the_lock_is_not_made(loop, resolver, names):
    slow = [loop.create_task(loop.getaddrinfo(f"slow {number}", 80)) for number in range(MOST_SLOW)]
    async with asyncio.timeout(PATIENCE):
        while len(resolver.asked) < MOST_SLOW:
            await asyncio.sleep(0.01)
    late = loop.create_task(loop.getaddrinfo("late", 80))
    await helpers.iterations(2)
    with names.look_ups.slow._changed:
        late.cancel()
        with pytest.raises(asyncio.CancelledError):
            await late
    resolver.released.set()
    await asyncio.gather(*slow)
    assert await loop.getaddrinfo("last", 80) == ANSWER
    assert "late" not in resolver.asked


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
def test_a_forked_child_cancels_a_look_up_while_a_thread_has_the_lock(new_loop, resolver, names):
    loop = new_loop()
    task = loop.create_task(loop.getaddrinfo("slow", 80))
    loop.run_until_complete(asyncio.sleep(0.05))
    has_lock, is_forked = threading.Event(), threading.Event()

    def keep_lock():
        with names.look_ups.slow._changed:
            has_lock.set()
            is_forked.wait(PATIENCE)

    thread = threading.Thread(target=keep_lock)
    thread.start()
    has_lock.wait(PATIENCE)
    pid = os.fork()
    if pid == 0:
        signal.alarm(PATIENCE)
        status = 1
        try:
            task.cancel()
            loop.run_until_complete(asyncio.wait([task]))
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    is_forked.set()
    thread.join()
    resolver.released.set()
    assert loop.run_until_complete(task) == ANSWER


async def test_a_thread_goes_on_if_there_is_no_memory_to_tell_of_an_end(loop, resolver, monkeypatch, caplog):
    def fail(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(loop, "call_soon_threadsafe", fail)
        task = loop.create_task(loop.getaddrinfo("name", 80))
        await helpers.until(lambda: caplog.messages == ["the end of a name look-up was lost"], PATIENCE)
    before = threads()
    assert await loop.getaddrinfo("another", 80) == ANSWER
    assert threads() == before
    assert not task.done()
    task.cancel()


def test_a_program_ends_though_a_look_up_does_not(loop_name):
    source = """
        import contextlib, socket, time

        socket.getaddrinfo = lambda *arguments: time.sleep(60)

        async def main():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.get_running_loop().getaddrinfo("name", 80), 0.1)
            print("done")

        run(main())
    """
    begin = time.monotonic()
    result = helpers.run_script(loop_name, source)
    assert result.stdout == "done\n", result
    assert time.monotonic() - begin < 30


SILENT = """
import asyncio, hotloop, pathlib, socket, subprocess, sys, threading, time

# In a network and with files of its own.
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
pathlib.Path(sys.argv[1]).write_text("nameserver 127.0.0.1\\n")
subprocess.run(["mount", "--bind", sys.argv[1], "/etc/resolv.conf"], check=True)
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
print("ready", flush=True)

async def main():
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(loop.getaddrinfo(f"name{number}.test", 80)) for number in range(200)]
    await loop.run_in_executor(None, server.recv, 1024)
    begin = time.monotonic()
    found = await loop.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)
    assert {address[0] for *_, address in found} & {"127.0.0.1", "::1"}, found
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)
    assert threading.active_count() < 25, threading.enumerate()
    assert time.monotonic() - begin < 3
    print("done", flush=True)

begin = time.monotonic()
hotloop.run(main())
assert time.monotonic() - begin < 4
"""


def test_a_name_server_that_does_not_answer(tmp_path):
    """The system's own resolver waits for it for 10 s."""
    command = ["unshare", "--map-root-user", "--net", "--mount", sys.executable, "-c", SILENT]
    begin = time.monotonic()
    try:
        result = subprocess.run(
            [*command, str(tmp_path / "resolv.conf")], capture_output=True, text=True, timeout=30
        )
    except FileNotFoundError:
        pytest.skip("needs unshare")
    if "ready" not in result.stdout:
        pytest.skip(f"no network of its own: {result.stderr}")
    assert result.stdout == "ready\ndone\n", result
    assert result.returncode == 0
    assert time.monotonic() - begin < 9


async def test_in_debug_mode_asyncio_looks_up_and_tells(loop, resolver, caplog):
    loop.set_debug(True)
    with caplog.at_level("DEBUG", "asyncio"):
        assert await loop.getaddrinfo("name", 80) == ANSWER
    assert any("Get address info name:80" in message for message in caplog.messages)
    assert not threads()
