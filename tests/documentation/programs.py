"""What makes a program of each example that is none by itself, and what is changed to have it end soon."""

import contextlib
import socket
import ssl
import threading

import helpers
import trustme

from .running import Program


def program(this, text):
    """How an example with this text is run, or None if it is no program."""
    if this in LEFT_OUT:
        return None
    if this in PROGRAMS:
        choice = [program for program in PROGRAMS[this] if program.holds in text]
        return choice[0] if choice else None
    if "asyncio.run(" in text or "asyncio.Runner(" in text or "run_forever()" in text:
        return Program("<<this>>" if "import asyncio" in text else "import asyncio\n<<this>>")
    return None


def may_run(text):
    """Whether there is what the program uses, in this Python and on this machine."""
    return (
        all(version <= helpers.PYTHON for use, version in SINCE.items() if use in text)
        and all(version > helpers.PYTHON for use, version in UNTIL.items() if use in text)
        and (helpers.HAS_IPV6 or "::1" not in text)
        # Interrupted, it waits for a connection that has ended: CPython 3.12 mended that late.
        and not (helpers.PYTHON == (3, 12) and "srv.serve_forever()" in text)
    )


SINCE = {
    "loop_factory": (3, 12),
    "async for earliest_connect": (3, 13),
    "q.shutdown": (3, 13),
    "runner.run(anext": (3, 14),
    "InterpreterPoolExecutor": (3, 14),
    "print_call_graph": (3, 14),
    "PID: {os.getpid()}": (3, 14),  # for `python -m asyncio pstree`
}
UNTIL = {"DefaultEventLoopPolicy": (3, 16)}


# Programs that run until they are interrupted.


def interrupted(text):
    """Interrupt it once it has printed that."""

    def talk(running):
        running.wait_for_output(text)
        running.interrupt()

    return talk


def with_client(client, port):
    """Have another example talk to the server at that port, then interrupt the server."""

    def talk(running):
        running.wait_for_port(running.ports[port])
        running.run_other(client)
        running.interrupt()

    return talk


def send_line(running):
    port = running.ports["8888"]
    running.wait_for_port(port)
    with socket.create_connection(("127.0.0.1", int(port))) as sock:
        sock.sendall(b"hello\n")
        running.wait_for_output("hello")
        running.interrupt()
    # CPython 3.12 waits for it to be closed.


def introspected(running):
    running.wait_for_output("PID")

    def ask(command):
        return running.python("-m", "asyncio", command, str(running.process.pid))

    # Not all tasks have begun yet.
    running.wait_for(lambda: ask("ps").count("sleep -> play") == 4)
    running.others = ask("pstree") + ask("ps")
    running.interrupt()


# What stands for servers on the Internet.


@contextlib.contextmanager
def listening(addresses, answer, context=None):
    """Servers that answer each connection; the port of the first, for all of them."""
    servers = []
    port = 0

    def serve(server):
        with contextlib.suppress(OSError):
            while True:
                sock, _ = server.accept()
                with contextlib.ExitStack() as stack:
                    stack.enter_context(sock)
                    if context is not None:
                        sock = stack.enter_context(context.wrap_socket(sock, server_side=True))
                    answer(sock)

    try:
        for family, host in addresses:
            servers.append(helpers.listener(family, (host, port)))
            servers[-1].setblocking(True)
            port = servers[0].getsockname()[1]
        threads = [threading.Thread(target=serve, args=[server]) for server in servers]
        for thread in threads:
            thread.start()
        yield port
    finally:
        for server in servers:
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            server.close()
    for thread in threads:
        thread.join()


def answer_head(sock):
    request = b""
    while not request.endswith(b"\r\n\r\n"):
        request += sock.recv(1000)
    assert request.startswith(b"HEAD /path/page.html HTTP/1.0\r\nHost: localhost\r\n"), request
    sock.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\nContent-Length: 1234\r\n\r\n")


@contextlib.contextmanager
def http():
    with listening([(socket.AF_INET, "127.0.0.1")], answer_head) as port:
        yield {"hostname, 80)": f"hostname, {port})"}, {}


@contextlib.contextmanager
def https():
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with (
        authority.cert_pem.tempfile() as path,
        listening([(socket.AF_INET, "127.0.0.1")], answer_head, context) as port,
    ):
        yield {"hostname, 443": f"hostname, {port}"}, {"SSL_CERT_FILE": path}


@contextlib.contextmanager
def both_families():
    addresses = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
    with listening(addresses, lambda sock: sock.recv(100)) as port:
        yield {", 80)": f", {port})"}, {}


# What several programs are made with.

STREAMS = """
import asyncio
import socket

async def main():
    ours, peer = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    stream = writer
    data = b"data"
    lines = [b"one", b"two"]
    <<this>>
    writer.close()
    await writer.wait_closed()
    with peer, peer.makefile("rb") as file:
        print(file.read())

asyncio.run(main())
"""

LOCK = """
import asyncio

async def main():
    <<this>>
    print(lock)

asyncio.run(main())
"""

SEMAPHORE = LOCK.replace("lock", "sem")

CONDITION = """
import asyncio

async def notify(cond):
    async with cond:
        print(cond)
        cond.notify_all()

async def main():
    <<this>>
    print(cond)
    await task

asyncio.run(main())
"""

SAY_AFTER = """
<<asyncio-task#coroutines/3>>
<<this>>
asyncio.run(main())
"""

LONG_RUNNING = """
import asyncio
from asyncio import get_running_loop

async def long_running_task():
    await asyncio.sleep(3600)

<<this>>
asyncio.run(main())
"""

TASK_GROUP = """
import asyncio

async def some_coro(result):
    return result

async def another_coro(result):
    return result

<<this>>
asyncio.run(main())
"""

PLANT_A_TREE = """
import asyncio

async def dig_the_hole():
    print("dug")

<<this>>
asyncio.run(plant_a_tree())
"""

CONNECTING = """
from asyncio import as_completed, create_task, open_connection, run

async def main():
    <<this>>
    for task in tasks:
        reader, writer = await task
        writer.close()

run(main())
"""

THREADSAFE_RESULT = Program(
    """
    import asyncio

    async def fail():
        raise OSError("it fails")

    def in_another_thread(loop):
        for coro, timeout in (asyncio.sleep(0, 3), 5), (asyncio.sleep(3600), 0.1), (fail(), 5):
            future = asyncio.run_coroutine_threadsafe(coro, loop)
            <<this>>

    async def main():
        await asyncio.to_thread(in_another_thread, asyncio.get_running_loop())

    asyncio.run(main())
    """,
    holds="The coroutine took too long",
)

SESSION = '''
"""
<<this>>
"""
import doctest
import sys
sys.exit(doctest.testmod(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).failed)
'''
"""It runs what is typed at the prompts, and compares what is printed with what the documentation says."""


def session_after(definition):
    """A session that uses what that example defines."""
    return Program(
        SESSION.replace("import doctest\n", f"<<{definition}>>\nimport doctest\n"),
        {"0x104ed2740": "0x...", "0x1048671c0": "0x..."},
    )


def client_of(server, client, port, **options):
    """A client that talks to the server of another example, which is interrupted then."""
    return Program(f"<<{server}>>", talk=with_client(client, port), fails=True, **options)


ASYNC_SLEEP = """
import asyncio
import datetime
import time

<<a-conceptual-overview-of-asyncio#a-homemade-asyncio-sleep/3>>
<<a-conceptual-overview-of-asyncio#a-homemade-asyncio-sleep/2>>
<<a-conceptual-overview-of-asyncio#a-homemade-asyncio-sleep/5>>
<<a-conceptual-overview-of-asyncio#a-homemade-asyncio-sleep/1>>

asyncio.run(main())
"""

SLOW = r"(WARNING:asyncio:)?Executing <[^\n]* took [^\n]*\n"
"""What debug mode prints besides on a busy machine."""
OLD_QUOTES = {'strftime("%H:%M:%S")': "strftime('%H:%M:%S')"}
"""What Python has within an f-string before 3.12."""
DEBUG = {"asyncio.run(main())": "asyncio.run(main(), debug=True)"}
NOT_RUN = {"asyncio.run(main())": ""}

PROGRAMS = {
    # asyncio-dev
    "asyncio-dev#debug-mode/1": [
        Program(
            """
            import asyncio
            import logging
            <<this>>
            asyncio.run(asyncio.sleep(0), debug=True)
            """,
            differs=SLOW,
        )
    ],
    "asyncio-dev#concurrency-and-multithreading/1": [
        Program(
            """
            import asyncio

            def in_another_thread(loop, callback, *args):
                <<this>>

            async def main():
                loop = asyncio.get_running_loop()
                future = loop.create_future()
                await asyncio.to_thread(in_another_thread, loop, future.set_result, "called")
                print(await future)

            asyncio.run(main())
            """
        )
    ],
    "asyncio-dev#concurrency-and-multithreading/2": [
        Program(
            """
            import asyncio

            def in_another_thread(loop, fut):
                <<this>>

            async def main():
                loop = asyncio.get_running_loop()
                fut = loop.create_future()
                await asyncio.gather(fut, asyncio.to_thread(in_another_thread, loop, fut))

            asyncio.run(main())
            """,
            fails=True,
        )
    ],
    "asyncio-dev#concurrency-and-multithreading/3": [
        Program(
            """
            import asyncio

            def in_another_thread(loop):
                <<this>>
                print(result)

            async def main():
                await asyncio.to_thread(in_another_thread, asyncio.get_running_loop())

            asyncio.run(main())
            """
        )
    ],
    "asyncio-dev#logging/1": [
        Program(
            """
            import asyncio
            import logging
            import time
            logging.basicConfig(level=logging.DEBUG)
            <<this>>

            async def main():
                time.sleep(0.2)

            asyncio.run(main(), debug=True)
            """,
            differs=SLOW.replace("<", "(?!<Task finished name='Task-1')<"),
        )
    ],
    # What debug mode prints.
    "asyncio-dev#detect-never-awaited-coroutines/3": [
        Program("<<asyncio-dev#detect-never-awaited-coroutines/1>>", changes=DEBUG, differs=SLOW)
    ],
    "asyncio-dev#detect-never-awaited-coroutines/4": [
        Program(
            """
            <<asyncio-dev#detect-never-awaited-coroutines/1>>
            <<this>>
            asyncio.run(main())
            """,
            changes=NOT_RUN,
        )
    ],
    "asyncio-dev#detect-never-retrieved-exceptions/3": [
        Program(
            """
            <<asyncio-dev#detect-never-retrieved-exceptions/1>>
            <<this>>
            """,
            changes=NOT_RUN,
            differs=SLOW,
        )
    ],
    "asyncio-dev#close-asynchronous-generators-explicitly/4": [
        Program(
            """
            import contextlib
            <<asyncio-dev#close-asynchronous-generators-explicitly/2>>
            <<this>>
            asyncio.run(main())
            """,
            changes=NOT_RUN,
        )
    ],
    "asyncio-dev#avoid-concurrent-iteration-and-closure-of-the-same-generator/1": [Program(fails=True)],
    # asyncio-eventloop
    "asyncio-eventloop#asyncio.loop.shutdown_asyncgens/1": [
        Program(
            """
            import asyncio

            async def numbers():
                try:
                    yield 1
                finally:
                    await asyncio.sleep(0)
                    print("closed")

            async def main():
                asyncio.get_running_loop().numbers = numbers()
                print(await anext(asyncio.get_running_loop().numbers))
                loop.stop()

            loop = asyncio.new_event_loop()
            task = loop.create_task(main())
            <<this>>
            print(loop)
            """
        )
    ],
    "asyncio-eventloop#asyncio.loop.call_soon_threadsafe/1": [
        Program(
            """
            import asyncio
            import functools
            loop = asyncio.new_event_loop()
            <<this>>
            loop.call_soon(loop.stop)
            loop.run_forever()
            loop.close()
            """
        )
    ],
    "asyncio-eventloop#asyncio.loop.run_in_executor/1": [
        Program(changes={"f.read(100)": "len(f.read(100))", "10 ** 7": "10 ** 4"})
    ],
    "asyncio-eventloop#asyncio.Server/1": [
        Program(
            """
            import asyncio

            async def main():
                loop = asyncio.get_running_loop()
                <<this>>
                print(srv.is_serving(), srv.sockets)

            asyncio.run(main())
            """,
            changes={
                "...": "asyncio.Protocol, '127.0.0.1', 0",
                "# some code": "print(srv.is_serving(), len(srv.sockets))",
            },
        )
    ],
    "asyncio-eventloop#asyncio.Server.serve_forever/1": [
        Program(
            "import asyncio\n<<this>>",
            changes={
                "'127.0.0.1', 0": "'127.0.0.1', 8888",
                "await reader.readline()": "print(await reader.readline())",
            },
            talk=send_line,
            fails=True,
        )
    ],
    "asyncio-eventloop#asyncio.SelectorEventLoop/1": [
        Program(
            """
            <<this>>

            async def main():
                print(type(asyncio.get_running_loop()))

            asyncio.run(main())
            """,
            holds="MyPolicy",
        ),
        Program(),
    ],
    "asyncio-eventloop#set-signal-handlers-for-sigint-and-sigterm/1": [
        Program(
            changes={"await asyncio.sleep(3600)": "print('waiting'); await asyncio.sleep(3600)"},
            talk=interrupted("waiting"),
            fails=True,
        )
    ],
    # asyncio-future
    "asyncio-future#asyncio.Future.cancelled/1": [
        Program(
            """
            import asyncio

            async def main():
                fut = asyncio.get_running_loop().create_future()
                <<this>>
                print(await fut)

            asyncio.run(main())
            """
        )
    ],
    "asyncio-future#asyncio.Future.add_done_callback/1": [
        Program(
            """
            import asyncio
            import functools

            async def main():
                fut = asyncio.get_running_loop().create_future()
                <<this>>
                fut.set_result(42)
                await asyncio.sleep(0)

            asyncio.run(main())
            """
        )
    ],
    # asyncio-platforms
    "asyncio-platforms#macos/1": [
        Program(
            """
            <<this>>
            print(type(loop))
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()
            """
        )
    ],
    # asyncio-policy
    "asyncio-policy#custom-policies/1": [
        Program(
            """
            import asyncio
            <<this>>

            async def main():
                print(asyncio.get_event_loop() is asyncio.get_running_loop())

            asyncio.run(main())
            loop = asyncio.new_event_loop()
            asyncio.set_event_loop(loop)
            print(asyncio.get_event_loop() is loop)
            loop.close()
            """
        )
    ],
    # asyncio-protocol
    "asyncio-protocol#asyncio.BaseTransport.get_extra_info/1": [
        Program(
            """
            import asyncio
            import socket

            async def main():
                ours, peer = socket.socketpair()
                transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
                <<this>>
                transport.close()
                peer.close()

            asyncio.run(main())
            """,
            changes={"...": "socket.SOL_SOCKET, socket.SO_TYPE"},
        )
    ],
    "asyncio-protocol#tcp-echo-client/1": [
        client_of("asyncio-protocol#tcp-echo-server/1", "asyncio-protocol#tcp-echo-client/1", "8888")
    ],
    "asyncio-protocol#udp-echo-client/1": [
        client_of(
            "asyncio-protocol#udp-echo-server/1",
            "asyncio-protocol#udp-echo-client/1",
            "9999",
            # Its protocol has no connection_lost(), which each loop reports.
            differs=".*(?=AttributeError: 'EchoServerProtocol' object has no attribute 'connection_lost')",
        )
    ],
    # asyncio-queue
    "asyncio-queue#examples/1": [
        Program(changes={"(0.05, 1.0)": "(0.01, 0.2)", "f'{name} has": "f'worker has"})
    ],
    # asyncio-stream
    "asyncio-stream#streams/1": [
        client_of("asyncio-stream#tcp-echo-server-using-streams/1", "asyncio-stream#streams/1", "8888")
    ],
    "asyncio-stream#tcp-echo-client-using-streams/1": [
        client_of(
            "asyncio-stream#tcp-echo-server-using-streams/1",
            "asyncio-stream#tcp-echo-client-using-streams/1",
            "8888",
        )
    ],
    "asyncio-stream#asyncio.StreamWriter.write/1": [Program(STREAMS)],
    "asyncio-stream#asyncio.StreamWriter.writelines/1": [Program(STREAMS)],
    "asyncio-stream#asyncio.StreamWriter.close/1": [Program(STREAMS)],
    "asyncio-stream#asyncio.StreamWriter.drain/1": [Program(STREAMS)],
    "asyncio-stream#get-http-headers/2": [
        Program(
            "<<asyncio-stream#get-http-headers/1>>",
            command=("example.py", "http://localhost/path/page.html"),
            around=http,
        )
    ],
    "asyncio-stream#get-http-headers/3": [
        Program(
            "<<asyncio-stream#get-http-headers/1>>",
            command=("example.py", "https://localhost/path/page.html"),
            around=https,
        )
    ],
    # asyncio-subprocess
    "asyncio-subprocess#subprocesses/3": [
        Program(
            """
            <<asyncio-subprocess#subprocesses/1>>
            <<this>>
            """,
            changes={"asyncio.run(run('ls /zzz'))": ""},
        )
    ],
    # asyncio-sync
    "asyncio-sync#asyncio.Lock/1": [Program(LOCK, {"# access shared state": "print(lock)"})],
    "asyncio-sync#asyncio.Lock/2": [Program(LOCK, {"# access shared state": "print(lock)"})],
    "asyncio-sync#asyncio.Condition/1": [
        Program(CONDITION, {"# ... later": "task = asyncio.create_task(notify(cond))"})
    ],
    "asyncio-sync#asyncio.Condition/2": [
        Program(CONDITION, {"# ... later": "task = asyncio.create_task(notify(cond))"})
    ],
    "asyncio-sync#asyncio.Semaphore/1": [Program(SEMAPHORE, {"# work with shared resource": "print(sem)"})],
    "asyncio-sync#asyncio.Semaphore/2": [Program(SEMAPHORE, {"# work with shared resource": "print(sem)"})],
    "asyncio-sync#asyncio.Barrier.wait/1": [
        Program(
            """
            import asyncio

            async def wait(barrier):
                <<this>>

            async def main():
                barrier = asyncio.Barrier(3)
                await asyncio.gather(*(wait(barrier) for _ in range(3)))

            asyncio.run(main())
            """
        )
    ],
    # asyncio-task
    "asyncio-task#coroutines/1": [Program(SESSION)],
    "asyncio-task#coroutines/2": [
        Program(
            SESSION.replace("<<this>>", "<<asyncio-task#coroutines/1>>\n<<this>>"), {"0x1053bb7c8": "0x..."}
        )
    ],
    "asyncio-task#coroutines/5": [Program(SAY_AFTER, NOT_RUN)],
    "asyncio-task#coroutines/7": [Program(SAY_AFTER, NOT_RUN)],
    "asyncio-task#awaitables/3": [
        Program(
            """
            import asyncio

            def function_that_returns_a_future_object():
                future = asyncio.get_running_loop().create_future()
                future.add_done_callback(print)
                asyncio.get_running_loop().call_soon(future.set_result, 1)
                return future

            async def some_python_coroutine():
                print("in the coroutine")

            <<this>>
            asyncio.run(main())
            """
        )
    ],
    "asyncio-task#asyncio.create_task/1": [
        Program(
            """
            import asyncio

            async def some_coro(param):
                print(param)

            async def main():
                <<this>>
                await asyncio.sleep(0.1)
                print(background_tasks)

            asyncio.run(main())
            """
        )
    ],
    "asyncio-task#asyncio.create_task/2": [
        Program(
            """
            import asyncio

            async def some_coro(param):
                print(param)

            async def main():
                <<this>>

            asyncio.run(main())
            """
        )
    ],
    "asyncio-task#asyncio.TaskGroup.create_task/1": [Program(TASK_GROUP)],
    "asyncio-task#asyncio.TaskGroup.cancel/1": [Program(TASK_GROUP)],
    "asyncio-task#asyncio.shield/1": [
        Program(
            """
            import asyncio
            from asyncio import shield

            async def something():
                await event.wait()
                print("something")

            async def caller():
                <<this>>

            async def main():
                calling = asyncio.create_task(caller())
                await asyncio.sleep(0.01)
                calling.cancel()
                await asyncio.wait([calling])
                print(calling)
                event.set()
                await asyncio.sleep(0.01)

            event = asyncio.Event()
            asyncio.run(main())
            """
        )
    ],
    "asyncio-task#asyncio.shield/2": [
        Program(
            """
            import asyncio

            async def something():
                return "something"

            async def main():
                <<this>>
                print(res)

            asyncio.run(main())
            """
        )
    ],
    "asyncio-task#asyncio.shield/3": [
        Program(
            """
            import asyncio
            from asyncio import CancelledError, shield

            async def something():
                await asyncio.sleep(3600)

            async def main():
                asyncio.get_running_loop().call_soon(asyncio.current_task().cancel)
                <<this>>
                print(res, task)

            asyncio.run(main())
            """
        )
    ],
    "asyncio-task#asyncio.timeout/1": [Program(LONG_RUNNING, {"timeout(10)": "timeout(0.1)"}, fails=True)],
    "asyncio-task#asyncio.timeout/2": [Program(LONG_RUNNING, {"timeout(10)": "timeout(0.1)"})],
    "asyncio-task#asyncio.Timeout.expired/1": [Program(LONG_RUNNING, {"+ 10": "+ 0.1"})],
    "asyncio-task#asyncio.timeout_at/1": [Program(LONG_RUNNING, {"+ 20": "+ 0.1"})],
    "asyncio-task#asyncio.wait/1": [
        Program(
            """
            import asyncio

            async def main():
                aws = [asyncio.create_task(asyncio.sleep(0.01 * number, number)) for number in range(3)]
                <<this>>
                print(sorted(task.result() for task in done), pending)

            asyncio.run(main())
            """
        )
    ],
    "asyncio-task#asyncio.as_completed/1": [
        Program(
            """
            import asyncio
            from asyncio import as_completed

            async def main():
                aws = [asyncio.sleep(0.1 * number, number) for number in (2, 0, 1)]
                <<this>>
                    print(earliest_result)

            asyncio.run(main())
            """,
            holds="for coro in",
        ),
        Program(CONNECTING, around=both_families, unordered=True),
    ],
    "asyncio-task#asyncio.as_completed/2": [Program(CONNECTING, around=both_families, unordered=True)],
    "asyncio-task#asyncio.to_thread/1": [Program("import asyncio\nimport time\n<<this>>")],
    "asyncio-task#asyncio.run_coroutine_threadsafe/1": [
        Program(
            """
            import asyncio
            import pathlib
            <<this>>
            asyncio.run(amain())
            print(pathlib.Path("example.txt").read_text())
            """,
            holds="in_thread",
        ),
        Program(
            """
            import asyncio

            def in_another_thread(loop, timeout):
                <<this>>

            async def main():
                await asyncio.to_thread(in_another_thread, asyncio.get_running_loop(), 5)

            asyncio.run(main())
            """
        ),
    ],
    "asyncio-task#asyncio.run_coroutine_threadsafe/2": [
        THREADSAFE_RESULT,
        Program(
            """
            import asyncio
            import concurrent.futures
            import contextlib
            from collections.abc import Generator
            <<this>>
            print(future)
            """
        ),
    ],
    "asyncio-task#asyncio.run_coroutine_threadsafe/3": [THREADSAFE_RESULT],
    "asyncio-task#asyncio.Task.uncancel/1": [
        Program(
            """
            import asyncio

            log = print

            async def make_request():
                print("a request")

            async def make_another_request():
                await asyncio.sleep(3600)

            async def unrelated_code():
                await asyncio.sleep(0)
                print(asyncio.current_task().cancelling())

            <<this>>
            asyncio.run(make_request_with_timeout())
            """
        )
    ],
    # asyncio-threading
    "asyncio-threading#using-asyncio-with-threads/1": [Program(unordered=True)],
    "asyncio-threading#producer-consumer-across-threads/1": [
        Program(changes={"sleep(item)": "sleep(item / 100)"}, unordered=True)
    ],
    # asyncio-tools
    "asyncio-tools#command-line-introspection-tools/2": [Program(talk=introspected, fails=True)],
    # asyncio
    "asyncio#module-asyncio/2": [Program(changes={"10": "0.1"}, command=("-m", "asyncio"), typed=True)],
    # a-conceptual-overview-of-asyncio
    "a-conceptual-overview-of-asyncio#event-loop/1": [
        Program(
            changes={"event_loop.run": "event_loop.call_soon(print, 'running')\nevent_loop.run"},
            talk=interrupted("running"),
            fails=True,
        )
    ],
    "a-conceptual-overview-of-asyncio#asynchronous-functions-and-coroutines/2": [
        session_after("a-conceptual-overview-of-asyncio#asynchronous-functions-and-coroutines/1")
    ],
    "a-conceptual-overview-of-asyncio#asynchronous-functions-and-coroutines/4": [
        session_after("a-conceptual-overview-of-asyncio#asynchronous-functions-and-coroutines/3")
    ],
    "a-conceptual-overview-of-asyncio#asynchronous-functions-and-coroutines/6": [
        session_after("a-conceptual-overview-of-asyncio#asynchronous-functions-and-coroutines/5")
    ],
    "a-conceptual-overview-of-asyncio#asynchronous-functions-and-coroutines/7": [
        session_after("a-conceptual-overview-of-asyncio#asynchronous-functions-and-coroutines/5")
    ],
    "a-conceptual-overview-of-asyncio#tasks/1": [
        Program(
            """
            import asyncio
            <<a-conceptual-overview-of-asyncio#asynchronous-functions-and-coroutines/3>>

            async def main():
                <<this>>
                await task

            asyncio.run(main())
            """
        )
    ],
    "a-conceptual-overview-of-asyncio#await/1": [
        Program(
            """
            import asyncio

            async def main():
                task = asyncio.create_task(asyncio.sleep(0.01))
                coroutine = asyncio.sleep(0.01)
                <<this>>
                print(task)

            asyncio.run(main())
            """
        )
    ],
    "a-conceptual-overview-of-asyncio#await/2": [Program(PLANT_A_TREE)],
    "a-conceptual-overview-of-asyncio#awaiting-tasks/1": [Program(PLANT_A_TREE)],
    "a-conceptual-overview-of-asyncio#the-inner-workings-of-coroutines/1": [Program()],
    "a-conceptual-overview-of-asyncio#a-homemade-asyncio-sleep/1": [
        Program(ASYNC_SLEEP, {"async_sleep(3)": "async_sleep(0.1)", **OLD_QUOTES})
    ],
    "a-conceptual-overview-of-asyncio#a-homemade-asyncio-sleep/5": [
        Program(ASYNC_SLEEP, {"async_sleep(3)": "simpler_async_sleep(0.1)", **OLD_QUOTES})
    ],
}

OUTPUT = "what the example before it prints"
WITH_CLIENT = "run with the client"
PART = "run as a part of another"
HOWTO = "a-conceptual-overview-of-asyncio"
LEFT_OUT = {
    "asyncio-dev#detect-never-awaited-coroutines/2": OUTPUT,
    "asyncio-dev#detect-never-retrieved-exceptions/2": OUTPUT,
    "asyncio-dev#detect-never-retrieved-exceptions/4": OUTPUT,
    "asyncio-dev#close-asynchronous-generators-explicitly/3": OUTPUT,
    "asyncio-dev#create-asynchronous-generators-only-when-the-event-loop-is-running/2": OUTPUT,
    "asyncio-dev#avoid-concurrent-iteration-and-closure-of-the-same-generator/2": OUTPUT,
    "asyncio-graph#asyncio.print_call_graph/2": OUTPUT,
    "asyncio-protocol#asyncio.Protocol.eof_received/1": "the calls of a protocol",
    "asyncio-protocol#asyncio.BufferedProtocol.eof_received/1": "the calls of a protocol",
    "asyncio-protocol#tcp-echo-server/1": WITH_CLIENT,
    "asyncio-protocol#udp-echo-server/1": WITH_CLIENT,
    "asyncio-stream#tcp-echo-server-using-streams/1": WITH_CLIENT,
    "asyncio-stream#get-http-headers/1": "run with the commands that follow",
    "asyncio-subprocess#subprocesses/2": OUTPUT,
    "asyncio-sync#asyncio.Barrier/2": OUTPUT,
    "asyncio-task#coroutines/4": OUTPUT,
    "asyncio-task#coroutines/6": OUTPUT,
    "asyncio-task#terminating-a-task-group/2": OUTPUT,
    "asyncio-tools#command-line-introspection-tools/1": PART,
    "asyncio-tools#command-line-introspection-tools/3": OUTPUT,
    "asyncio-tools#cmdoption-arg-pstree/1": PART,
    "asyncio-tools#cmdoption-arg-pstree/2": OUTPUT,
    "asyncio-tools#cmdoption-arg-ps/1": PART,
    f"{HOWTO}#asynchronous-functions-and-coroutines/1": PART,
    f"{HOWTO}#asynchronous-functions-and-coroutines/3": PART,
    f"{HOWTO}#asynchronous-functions-and-coroutines/5": PART,
    f"{HOWTO}#await/4": OUTPUT,
    f"{HOWTO}#await/5": OUTPUT,
    f"{HOWTO}#awaiting-coroutines/2": OUTPUT,
    f"{HOWTO}#awaiting-coroutines/3": OUTPUT,
    f"{HOWTO}#the-inner-workings-of-coroutines/2": OUTPUT,
    f"{HOWTO}#a-homemade-asyncio-sleep/2": PART,
    f"{HOWTO}#a-homemade-asyncio-sleep/3": PART,
    f"{HOWTO}#a-homemade-asyncio-sleep/4": OUTPUT,
}
"""Examples that are no programs by themselves, and why."""
