"""call_soon_threadsafe, and loops in several threads."""

import asyncio
import concurrent.futures
import contextlib
import gc
import os
import queue
import random
import signal
import socket
import threading
import time

import helpers
import pytest


def in_thread(function, *args):
    thread = threading.Thread(target=function, args=args)
    thread.start()
    return thread


# call_soon_threadsafe


def test_a_call_from_another_thread_wakes_an_idle_loop(loop):
    delays = []

    def work():
        for _ in range(20):
            time.sleep(0.001)
            loop.call_soon_threadsafe(lambda start: delays.append(time.monotonic() - start), time.monotonic())
        loop.call_soon_threadsafe(loop.stop)

    loop.call_later(20, loop.stop)
    thread = in_thread(work)
    loop.run_forever()
    thread.join()
    assert len(delays) == 20
    assert min(delays) < 0.1


@pytest.mark.parametrize("busy", [False, True])
def test_no_call_is_lost_and_each_threads_keep_their_order(loop, busy):
    threads, calls = 8, 2000
    seen = [[] for _ in range(threads)]
    running = True

    def work(number):
        for call in range(calls):
            loop.call_soon_threadsafe(seen[number].append, call)
            if call % 500 == 0:
                time.sleep(0.001)
        loop.call_soon_threadsafe(finished.append, number)

    def spin():
        if running:
            loop.call_soon(spin)

    async def main():
        nonlocal running
        if busy:
            spin()
        workers = [in_thread(work, number) for number in range(threads)]
        await helpers.until(lambda: len(finished) == threads, timeout=30)
        running = False
        for worker in workers:
            worker.join()

    finished = []
    loop.run_until_complete(main())
    assert seen == [list(range(calls))] * threads


def test_calls_made_before_the_loop_runs(loop):
    ran = []
    for number in range(3):
        thread = in_thread(loop.call_soon_threadsafe, ran.append, number)
        thread.join()
    loop.call_soon(ran.append, "soon")
    loop.call_soon_threadsafe(loop.stop)
    loop.run_forever()
    assert ran == [0, 1, 2, "soon"]


def test_calls_made_while_the_loop_rests_between_two_runs(loop):
    ran = []
    for number in range(50):
        loop.run_until_complete(asyncio.sleep(0))
        thread = in_thread(loop.call_soon_threadsafe, lambda number=number: (ran.append(number), loop.stop()))
        if number % 2:
            thread.join()
        loop.run_forever()
        thread.join()
    assert ran == list(range(50))


async def test_calls_from_the_loops_own_thread(loop):
    ran = []
    loop.call_soon(ran.append, 1)
    handle = loop.call_soon_threadsafe(ran.append, 2)
    loop.call_soon(ran.append, 3)
    assert isinstance(handle, asyncio.Handle)
    await asyncio.sleep(0)
    assert ran == [1, 2, 3]
    async with helpers.idle(0.1):
        pass


async def test_a_call_can_be_cancelled_from_its_thread(loop):
    ran = []
    go = threading.Event()

    def work():
        handles = [loop.call_soon_threadsafe(ran.append, number) for number in range(10)]
        for handle in handles[::2]:
            handle.cancel()
        go.set()

    thread = in_thread(work)
    thread.join()  # the loop does not run until it has cancelled
    await asyncio.sleep(0.002)
    assert ran == [1, 3, 5, 7, 9]


def test_stopping_from_another_thread(loop):
    for _ in range(20):
        thread = in_thread(lambda: loop.call_soon_threadsafe(loop.stop))
        loop.run_forever()
        thread.join()


def test_calls_to_a_loop_that_closes_meanwhile(new_loop):
    """They are either taken or refused with a RuntimeError."""
    for _ in range(30):
        loop = new_loop()
        errors = []
        started = threading.Event()

        def work(loop=loop, errors=errors, started=started):
            try:
                while True:
                    loop.call_soon_threadsafe(int)
                    started.set()
            except BaseException as exc:
                errors.append(exc)

        thread = in_thread(work)
        started.wait(10)
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        thread.join()
        assert [str(error) for error in errors] == ["Event loop is closed"]


def test_an_exception_in_a_call_is_reported(loop, reports):
    def work():
        loop.call_soon_threadsafe(lambda: 1 / 0)
        loop.call_soon_threadsafe(loop.stop)

    thread = in_thread(work)
    loop.run_forever()
    thread.join()
    assert isinstance(reports.take()["exception"], ZeroDivisionError)


@pytest.mark.asyncio_from(3, 14)
@pytest.mark.parametrize("ask", ["cancel", "cancelled"])
def test_an_interrupt_while_a_callback_in_another_thread_is_waited_for(loop, ask):
    def interrupt(number, frame):
        raise helpers.Interrupt

    def callback():
        runs.set()
        done.wait(10)

    runs, done = threading.Event(), threading.Event()
    handle = loop.call_soon_threadsafe(callback)
    loop.call_soon(loop.stop)
    thread = in_thread(loop.run_forever)
    former = signal.signal(signal.SIGUSR1, interrupt)
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))
    try:
        assert runs.wait(10)
        timer.start()
        with pytest.raises(helpers.Interrupt):
            getattr(handle, ask)()
        assert not done.is_set()
    finally:
        done.set()
        timer.join()
        thread.join()
        signal.signal(signal.SIGUSR1, former)


def test_a_call_from_a_destructor(loop):
    """Which may run at any time, also while the loop is busy with its own queues."""
    ran = []

    class Last:
        def __init__(self, number):
            self.number = number
            self.cycle = self

        def __del__(self):
            loop.call_soon_threadsafe(ran.append, self.number)

    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for number in range(200):
            Last(number)
            loop.call_soon(int)
        loop.run_until_complete(asyncio.sleep(0.001))
        gc.collect()
        loop.run_until_complete(asyncio.sleep(0.001))
    finally:
        gc.set_threshold(*threshold)
    assert sorted(ran) == list(range(200))


async def test_run_coroutine_threadsafe(loop):
    async def add(one, other):
        await asyncio.sleep(0.001)
        return one + other

    async def fail():
        raise LookupError("failed")

    results = queue.Queue()

    def work():
        results.put(asyncio.run_coroutine_threadsafe(add(1, 2), loop).result(10))
        try:
            asyncio.run_coroutine_threadsafe(fail(), loop).result(10)
        except LookupError as error:
            results.put(error)
        future = asyncio.run_coroutine_threadsafe(asyncio.sleep(60), loop)
        time.sleep(0.005)
        results.put(future.cancel())

    await asyncio.to_thread(work)
    assert results.get() == 3
    assert isinstance(results.get(), LookupError)
    assert results.get() is True


# Loops and threads


def test_loops_in_several_threads(new_loop):
    async def echo(number):
        reader, writer = await asyncio.open_connection(*(await serve(number)))
        for turn in range(20):
            writer.write(b"%d %d\n" % (number, turn))
            assert await reader.readline() == b"%d %d\n" % (number, turn)
            await asyncio.sleep(random.random() / 1000)
        writer.close()
        await writer.wait_closed()
        return number, threading.get_ident()

    async def serve(number):
        async def handle(reader, writer):
            while line := await reader.readline():
                writer.write(line)
            writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        servers.append(server)
        return server.sockets[0].getsockname()

    def work(number):
        loop = new_loop()
        asyncio.set_event_loop(loop)
        try:
            return loop.run_until_complete(echo(number))
        finally:
            loop.run_until_complete(asyncio.sleep(0.005))
            asyncio.set_event_loop(None)

    servers = []
    with concurrent.futures.ThreadPoolExecutor(8) as executor:
        results = list(executor.map(work, range(8)))
    assert [number for number, _ in results] == list(range(8))
    for server in servers:
        server.close()


def test_a_loop_made_in_one_thread_and_run_in_another(loop):
    async def where():
        await asyncio.sleep(0.001)
        return threading.get_ident()

    async def connect():
        ours, peer = helpers.unix_pair()
        protocol = helpers.Recorder()
        transport, _ = await loop.create_connection(lambda: protocol, sock=ours)
        await loop.sock_sendall(peer, b"hello")
        assert await protocol.received(5) == b"hello"
        transport.close()
        await protocol.lost()
        peer.close()

    loop.call_soon(int)
    idents = []
    for _ in range(3):
        thread = in_thread(
            lambda: (loop.run_until_complete(connect()), idents.append(loop.run_until_complete(where())))
        )
        thread.join()
    idents.append(loop.run_until_complete(where()))
    assert len(idents) == 4
    assert idents[-1] == threading.get_ident()
    assert threading.get_ident() not in idents[:-1]


def test_a_loop_made_and_run_elsewhere_and_closed_here(new_loop):
    loops = []
    thread = in_thread(lambda: (loops.append(new_loop()), loops[0].run_until_complete(asyncio.sleep(0.001))))
    thread.join()
    loops[0].close()
    assert loops[0].is_closed()


@pytest.mark.asyncio_bug("3.13.0 takes the loop for stopped after the first refusal", (3, 13))
def test_two_threads_cannot_run_one_loop(loop):
    errors = []

    def work():
        for run in (loop.run_forever, lambda: loop.run_until_complete(loop.create_future())):
            try:
                run()
            except RuntimeError as error:
                errors.append(str(error))

    async def main():
        await asyncio.to_thread(work)
        await asyncio.sleep(0.001)
        return "went on"

    assert loop.run_until_complete(main()) == "went on"
    assert errors == ["This event loop is already running"] * 2


def test_the_loop_releases_the_interpreter_while_it_waits(loop):
    ticks = []

    def work():
        end = time.monotonic() + 0.05
        while time.monotonic() < end:
            ticks.append(1)
            time.sleep(0.0005)

    thread = in_thread(work)
    loop.run_until_complete(asyncio.sleep(0.1))
    thread.join()
    assert len(ticks) > 20


@pytest.mark.hotloop_only
def test_misuse_from_other_threads_never_crashes(loop_name):
    """It may raise or be lost; the process lives."""
    helpers.run_script(
        loop_name,
        """
        import faulthandler, logging, random
        faulthandler.enable()
        logging.disable(logging.CRITICAL)
        loop = new_event_loop()
        loop.set_exception_handler(lambda loop, context: None)

        class Echo(asyncio.Protocol):
            def connection_made(self, transport):
                self.transport = transport

            def data_received(self, data):
                self.transport.write(data)

        async def main():
            ours, peer = socket.socketpair()
            peer.setblocking(False)
            transport, _ = await loop.create_connection(Echo, sock=ours)
            watched, other = socket.socketpair()
            end = time.monotonic() + 1
            actions = [
                lambda: loop.call_soon(int),
                lambda: loop.call_later(random.random() / 100, int),
                lambda: loop.call_later(random.random() / 100, int).cancel(),
                lambda: loop.call_soon_threadsafe(int),
                lambda: transport.write(b"x" * random.choice([1, 1000, 100_000])),
                lambda: transport.writelines([b"x", b"y"]),
                lambda: transport.pause_reading(),
                lambda: transport.resume_reading(),
                lambda: transport.get_write_buffer_size(),
                lambda: loop.add_reader(watched, int),
                lambda: loop.remove_reader(watched),
                lambda: loop.add_writer(watched, int),
                lambda: loop.remove_writer(watched),
                lambda: peer.send(b"hello"),
                lambda: peer.recv(1 << 20),
                lambda: loop.create_future().set_result(None),
                lambda: repr(loop) + repr(transport),
                lambda: loop.time(),
                lambda: loop.set_debug(random.random() < 0.1),
            ]

            def misuse():
                while time.monotonic() < end:
                    try:
                        random.choice(actions)()
                    except Exception:
                        pass

            threads = [threading.Thread(target=misuse) for _ in range(4)]
            for thread in threads:
                thread.start()
            while time.monotonic() < end:
                await asyncio.sleep(0)
                try:
                    random.choice(actions)()
                except Exception:
                    pass
            for thread in threads:
                thread.join()
            os._exit(0)  # what state things are in is nobody's promise

        loop.call_later(20, os._exit, 0)
        threading.Timer(20, os._exit, (0,)).start()
        try:
            loop.run_until_complete(main())
        finally:
            os._exit(0)
        """,
    )


def test_signals_and_threads_together(loop):
    """A flood of both wakes the loop for each."""
    calls = {"signal": 0, "thread": 0}

    def count(kind):
        calls[kind] += 1

    def work():
        for _ in range(200):
            loop.call_soon_threadsafe(count, "thread")
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.0001)

    loop.add_signal_handler(signal.SIGUSR1, count, "signal")
    thread = in_thread(work)
    loop.run_until_complete(helpers.until(lambda: calls["thread"] == 200 and not thread.is_alive()))
    loop.run_until_complete(asyncio.sleep(0.01))
    assert calls["thread"] == 200
    assert 1 <= calls["signal"] <= 200
    assert loop.remove_signal_handler(signal.SIGUSR1)


def test_what_a_thread_schedules_before_it_sends_runs_first(loop):
    """The loop finds both at the end of one wait."""
    ours, peer = helpers.unix_pair()
    order, rounds, again = [], 200, threading.Event()

    def note(what):
        order.append(what)
        if len(order) == 2 * rounds:
            loop.stop()
        if len(order) % 2 == 0:
            again.set()

    def received():
        ours.recv(1)
        note("received")

    def work():
        for _ in range(rounds):
            time.sleep(0.0002)
            loop.call_soon_threadsafe(note, "scheduled")
            peer.send(b"x")
            again.wait(10)
            again.clear()

    loop.add_reader(ours, received)
    thread = in_thread(work)
    loop.run_forever()
    thread.join()
    loop.remove_reader(ours)
    ours.close()
    peer.close()
    assert order == ["scheduled", "received"] * rounds


# A transport's socket


async def accepted(loop):
    """The protocol of an accepted connection, and its peer."""
    protocol = helpers.Recorder()
    server = await loop.create_server(lambda: protocol, "127.0.0.1", 0)
    peer = socket.create_connection(server.sockets[0].getsockname())
    await protocol.until("connection_made")
    server.close()
    return protocol, peer


async def test_two_threads_that_ask_for_a_socket_get_the_same(loop, monkeypatch):
    protocol, peer = await accepted(loop)
    transport = protocol.transport
    theirs = []
    thread = threading.Thread(target=lambda: theirs.append(transport.get_extra_info("socket").fileno()))
    setblocking = socket.socket.setblocking

    def set_while_others_run(sock, flag):
        setblocking(sock, flag)
        if thread.ident is None:
            thread.start()
            time.sleep(0.05)

    monkeypatch.setattr(socket.socket, "setblocking", set_while_others_run)
    ours = transport.get_extra_info("socket").fileno()
    monkeypatch.undo()
    if thread.ident is None:
        thread.start()
    thread.join()
    assert theirs == [ours]
    assert ours >= 0
    transport.write(b"hello")
    assert await asyncio.to_thread(peer.recv, 5) == b"hello"
    transport.close()
    await protocol.lost()
    peer.close()


async def test_an_interrupt_while_a_socket_is_asked_for_leaves_the_connection(loop, monkeypatch):
    protocol, peer = await accepted(loop)
    transport = protocol.transport

    def interrupt(*args):
        raise helpers.Interrupt

    monkeypatch.setattr(socket.socket, "setblocking", interrupt)
    with contextlib.suppress(helpers.Interrupt):
        transport.get_extra_info("socket")
    monkeypatch.undo()
    # They would get the number of a descriptor that was closed.
    others = socket.socketpair()
    transport.write(b"hello")
    assert await asyncio.to_thread(peer.recv, 5) == b"hello"
    assert transport.get_extra_info("socket").getpeername() == peer.getsockname()
    for sock in others:
        sock.close()
    peer.send(b"more")
    assert await protocol.received(4) == b"more"
    transport.close()
    await protocol.lost()
    peer.close()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("use", ["sock_recv", "add_reader", "create_connection"])
async def test_a_number_of_a_transport_that_another_thread_has_found_to_be_garbage(loop, use):
    """The collector closes the socket. Another file has the number before the transport is finalized."""

    async def abandon():
        abandoned, peer = socket.socketpair()
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=abandoned)
        transport.pause_reading()
        await asyncio.sleep(0)
        cycle = [transport]
        cycle.append(cycle)
        return abandoned.fileno(), peer

    ours, other = socket.socketpair()
    number, peer = await abandon()
    in_thread(gc.collect).join()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    os.dup2(ours.fileno(), number)
    with peer, ours, other, socket.socket(fileno=number) as sock:
        sock.setblocking(False)
        got = loop.create_future()
        if use == "sock_recv":
            got = asyncio.ensure_future(loop.sock_recv(sock, 10))
        elif use == "add_reader":
            loop.add_reader(sock, lambda: got.done() or got.set_result(sock.recv(10)))
        else:
            reader, writer = await asyncio.open_connection(sock=sock)
            got = asyncio.ensure_future(reader.read(10))
        # Meanwhile the loop finalizes the transport.
        for _ in range(3):
            await asyncio.sleep(0)
        other.send(b"hello")
        assert await asyncio.wait_for(got, 5) == b"hello"
        if use == "add_reader":
            loop.remove_reader(sock)
        elif use == "create_connection":
            writer.close()
            await writer.wait_closed()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_a_stream_that_another_thread_has_found_to_be_garbage(loop):
    """StreamWriter's destructor closes the transport, which the loop keeps alive."""
    ours, peer = socket.socketpair()

    async def abandon():
        _, writer = await asyncio.open_connection(sock=ours)
        writer.cycle = writer

    with peer:
        await abandon()
        in_thread(gc.collect).join()
        peer.setblocking(False)
        assert await asyncio.wait_for(loop.sock_recv(peer, 1), 5) == b""


@pytest.mark.parametrize("end", ["close", "abort"])
async def test_a_transport_is_ended_by_another_thread(loop, end):
    ours, peer = socket.socketpair()
    lost = loop.create_future()

    class Protocol(asyncio.Protocol):
        def connection_lost(self, exception):
            lost.set_result((exception, threading.current_thread()))

    with peer:
        transport, _ = await loop.create_connection(Protocol, sock=ours)
        for _ in range(2):
            in_thread(getattr(transport, end)).join()
        assert await asyncio.wait_for(lost, 5) == (None, threading.current_thread())
        in_thread(getattr(transport, end)).join()
        assert transport.is_closing()


def test_a_patch_is_removed_by_loops_in_several_threads(new_loop, monkeypatch):
    """The patch is of all of asyncio's loops, and each loop that is made or begins to run notices."""
    original = asyncio.BaseEventLoop.call_soon
    threads, rounds = 4, 200
    barrier = threading.Barrier(threads)

    def patched(self, *args, **options):
        return original(self, *args, **options)

    def work(is_first):
        for count in range(rounds):
            barrier.wait()
            if is_first:
                monkeypatch.setattr(asyncio.BaseEventLoop, "call_soon", original if count % 2 else patched)
            barrier.wait()
            loop = new_loop()
            loop.call_soon(loop.stop)
            loop.run_forever()
            loop.close()

    with concurrent.futures.ThreadPoolExecutor(threads) as executor:
        for work_done in [executor.submit(work, number == 0) for number in range(threads)]:
            work_done.result(30)


@pytest.mark.skipif(not helpers.FREE_THREADED, reason="this Python has the GIL")
def test_metrics_while_another_thread_imports_typing():
    """dataclass() looks into the typing module, however much of it there is."""
    helpers.run_script(
        "hotloop",
        """
        import importlib.machinery

        class Slow(importlib.machinery.SourceFileLoader):
            def exec_module(self, module):
                begun.set()
                time.sleep(0.5)
                super().exec_module(module)

        class Finder:
            def find_spec(self, name, path=None, target=None):
                if name != "typing":
                    return None
                spec = importlib.machinery.PathFinder.find_spec(name)
                spec.loader = Slow(name, spec.origin)
                return spec

        begun = threading.Event()
        sys.meta_path.insert(0, Finder())
        sys.modules.pop("typing", None)
        thread = threading.Thread(target=__import__, args=("typing",))
        thread.start()
        begun.wait()
        sys.modules.pop("hotloop.metrics", None)
        new_event_loop().metrics()
        thread.join()
        """,
    )
