"""Processes that accept from one listening socket: each gets its share."""

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time

import helpers
import pytest

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="EPOLLEXCLUSIVE is Linux's"),
    pytest.mark.hotloop_only,
]

WORKERS = 4
CONNECTIONS = 400

WORKER = """
number, fd = int(sys.argv[1]), int(sys.argv[2])

class Protocol(asyncio.Protocol):
    def connection_made(self, transport):
        transport.write(bytes([number]))

async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Protocol, sock=socket.socket(fileno=fd))
    %s
    print("ready", flush=True)
    await server.serve_forever()

run(main())
"""

BUSY = """
    def work():
        time.sleep(0.02)
        loop.call_later(0.001, work)
    if number == 0:
        work()
"""


@contextlib.contextmanager
def workers(loop_name, then="", count=WORKERS):
    """Processes that accept from a socket, and its address. Each answers a connection with its number."""
    with socket.socket() as sock, contextlib.ExitStack() as stack:
        sock.bind(("127.0.0.1", 0))
        sock.listen(1024)
        started = []
        for number in range(count):
            program = helpers.script(loop_name, WORKER % then.strip())
            command = [sys.executable, "-c", program, str(number), str(sock.fileno())]
            worker = stack.enter_context(
                subprocess.Popen(command, pass_fds=[sock.fileno()], stdout=subprocess.PIPE)
            )
            stack.callback(worker.kill)
            started.append(worker)
        for worker in started:
            assert worker.stdout.readline() == b"ready\n"
        yield started, sock.getsockname()


def accepted_by(address):
    """Connect, and return the number of the worker that accepts, and after how many seconds it did."""
    start = time.monotonic()
    with socket.create_connection(address, timeout=20) as client:
        return client.recv(1)[0], time.monotonic() - start


def shares(address, count=CONNECTIONS, workers=WORKERS):
    """How many of these connections each worker accepts, one after the other."""
    got = [0] * workers
    for _ in range(count):
        got[accepted_by(address)[0]] += 1
        time.sleep(0.001)
    return got


def assert_one_of(attempts, is_right):
    """Who runs is the system's choice, too: of several attempts, one has to succeed."""
    seen = []
    for _ in range(5):
        seen.append(attempts())
        if is_right(seen[-1]):
            return
    raise AssertionError(seen)


def test_each_process_gets_its_share(loop_name):
    with workers(loop_name) as (_, address):
        assert_one_of(lambda: shares(address), lambda got: min(got) >= 80 and max(got) <= 120)


def test_a_busy_process_gets_fewer(loop_name):
    with workers(loop_name, BUSY) as (_, address):
        assert_one_of(lambda: shares(address), lambda got: got[0] <= 50 and min(got[1:]) >= 80)


def test_connections_that_come_at_once_are_all_accepted(loop_name):
    with workers(loop_name) as (_, address), contextlib.ExitStack() as stack:
        clients = [socket.create_connection(address, timeout=20) for _ in range(CONNECTIONS)]
        got = [0] * WORKERS
        for client in clients:
            stack.callback(client.close)
        for client in clients:
            got[client.recv(1)[0]] += 1
    assert sum(got) == CONNECTIONS
    assert max(got) < CONNECTIONS, got


def test_a_process_that_is_stopped_gets_none(loop_name):
    with workers(loop_name) as (started, address):
        started[1].send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, started[1].pid, os.WSTOPPED | os.WNOWAIT)
        assert_one_of(
            lambda: shares(address, 300), lambda got: got[1] == 0 and sum(number >= 80 for number in got) == 3
        )
        started[1].send_signal(signal.SIGCONT)
        assert_one_of(lambda: shares(address), lambda got: min(got) >= 80)


def test_processes_that_end_leave_none_waiting(loop_name):
    with workers(loop_name) as (started, address):
        for worker in started[1:]:
            worker.kill()
            for _ in range(5):
                assert accepted_by(address)[1] < 5
            worker.wait()
        assert shares(address, 20) == [20, 0, 0, 0]


def test_a_loop_that_is_woken_and_then_blocks_leaves_the_connection_to_another(loop_name):
    # Two threads, because what one of them posts comes before the connection that has woken the loop.
    with socket.socket() as sock, contextlib.ExitStack() as stack:
        sock.bind(("127.0.0.1", 0))
        sock.listen(100)
        loops = []
        ready = threading.Barrier(3)

        class Protocol(asyncio.Protocol):
            def connection_made(self, transport):
                transport.write(b"x")

        async def main():
            loop = asyncio.get_running_loop()
            loops.append(loop)
            ending = loop.create_future()
            stack.callback(loop.call_soon_threadsafe, ending.set_result, None)
            async with await loop.create_server(Protocol, sock=sock.dup()):
                ready.wait(20)
                await ending

        def run():
            loop = helpers.FACTORIES[loop_name]()
            loop.run_until_complete(main())
            loop.close()

        for _ in range(2):
            thread = threading.Thread(target=run)
            # The loops are ended before that.
            stack.callback(thread.join)
            thread.start()
        ready.wait(20)

        def block(unblocked):
            time.sleep(2)
            unblocked.set()

        late = 0
        for turn in range(6):
            time.sleep(0.05)
            unblocked = threading.Event()
            with socket.socket() as client:
                client.setblocking(False)
                client.connect_ex(sock.getsockname())
                loops[turn % 2].call_soon_threadsafe(block, unblocked)
                late += not select.select([client], [], [], 1.5)[0]
            assert unblocked.wait(20)
        # Now and then it has accepted just before, and then blocks.
        assert late < 3, late


def test_a_socket_that_the_loop_made_and_gave_away(loop_name):
    """Nothing tells that it is shared, but that others take its connections."""
    helpers.run_script(
        loop_name,
        f"""
    import subprocess, sys

    CHILD = {helpers.script(loop_name, WORKER % "")!r}

    async def main():
        loop = asyncio.get_running_loop()

        class Protocol(asyncio.Protocol):
            def connection_made(self, transport):
                transport.write(bytes([0]))

        server = await loop.create_server(Protocol, "127.0.0.1", 0)
        listening = server.sockets[0]
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, "1", str(listening.fileno())],
            pass_fds=[listening.fileno()],
            stdout=subprocess.PIPE,
        )
        await loop.run_in_executor(None, child.stdout.readline)

        def connect():
            with socket.create_connection(listening.getsockname()) as client:
                return client.recv(1)[0]

        def shares():
            got = [0, 0]
            for _ in range(200):
                got[connect()] += 1
                time.sleep(0.001)
            return got

        reader, writer = socket.socketpair()

        def continue_child():
            reader.recv(1)
            child.send_signal(signal.SIGCONT)
            time.sleep(0.2)

        loop.add_reader(reader, continue_child)

        async def lose_one():
            # The loop sees a connection that the child then takes.
            child.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
            writer.send(b"x")
            with socket.create_connection(listening.getsockname()) as client:
                client.setblocking(False)
                await loop.sock_recv(client, 1)

        for _ in range(5):
            await lose_one()
            got = await loop.run_in_executor(None, shares)
            if min(got) >= 60:
                break
        else:
            raise AssertionError(got)
        loop.remove_reader(reader)
        child.kill()
        child.wait()
        server.close()

    run(main())
    """,
    )
