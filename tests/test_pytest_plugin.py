"""The pytest fixture hotloop_leaks: it fails tests that leave something behind, and says where that was made.

Each program is a file of tests, run by a pytest of its own.
"""

import os
import re
import subprocess
import sys
import textwrap

import pytest

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(not os.path.isdir("/proc/self/fd") and not os.path.isdir("/dev/fd"), reason="no list"),
]

IMPORTS = """
import asyncio, os, socket, threading, time
import hotloop, pytest

"""


class Outcome:
    """What pytest said of a file."""

    def __init__(self, output, file):
        self.output = output
        self.lines = file.read_text().splitlines()
        counts = re.search(r"=+ (?:(\d+) failed)?,? ?(?:(\d+) passed)?.*?(?:(\d+) errors?)? in ", output)
        assert counts, output
        self.passed = int(counts[2] or 0)
        found = re.search(r"(?m)^.*the test left (.*) behind\n((?:.*\n)*?)(?==|_)", output)
        self.left = found and found[1]
        self.report = found[2] if found else ""

    def line_of(self, text):
        """The number of the only line that has a text."""
        (number,) = [number for number, line in enumerate(self.lines, 1) if text in line]
        return number


@pytest.fixture
def judge(tmp_path):
    """Run tests, and return their Outcome."""

    def judge(program, *options, imports=IMPORTS):
        file = tmp_path / "test_program.py"
        file.write_text(imports + textwrap.dedent(program))
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-p",
                "no:cacheprovider",
                "-p",
                "no:rerunfailures",
                *options,
                file,
            ],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
        )
        return Outcome(done.stdout + done.stderr, file)

    return judge


def test_a_test_that_leaves_nothing(judge):
    outcome = judge("""
        @pytest.fixture
        def server():
            sock = socket.create_server(("127.0.0.1", 0))
            yield sock
            sock.close()

        async def main(address):
            async def handle(reader, writer):
                writer.write(await reader.readline())
                writer.close()

            server = await asyncio.start_server(handle, "127.0.0.1", 0)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"hello\\n")
            await reader.read()
            writer.close()
            server.close()
            await asyncio.to_thread(time.sleep, 0.01)
            process = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
            await process.communicate(b"hello")
            await asyncio.open_connection(*address)
            # Cancelled by run().
            asyncio.create_task(asyncio.sleep(60))

        def test_run(hotloop_leaks, server):
            hotloop.run(main(server.getsockname()))

        def test_asyncio(hotloop_leaks, server):
            asyncio.run(main(server.getsockname()))

        def test_threads_and_files(hotloop_leaks, tmp_path):
            thread = threading.Thread(target=time.sleep, args=(0.01,))
            thread.start()
            (tmp_path / "file").write_text("")
            with open(tmp_path / "file"):
                pass
            for end in os.pipe():
                os.close(end)

        def test_what_ends_soon(hotloop_leaks):
            threading.Thread(target=time.sleep, args=(0.1,)).start()
            loop = hotloop.new_event_loop()
            task = loop.create_task(asyncio.sleep(60))
            loop.call_later(0.1, loop.stop)
            loop.run_forever()
            task.cancel()
            loop.close()
            del task
    """)
    assert (outcome.left, outcome.passed) == (None, 4), outcome.output


@pytest.mark.parametrize("loop", ["hotloop.new_event_loop", "asyncio.SelectorEventLoop"])
def test_tasks(judge, loop):
    outcome = judge(f"""
        loop = {loop}()

        async def leaked():
            await asyncio.get_running_loop().create_future()

        def start():
            return loop.create_task(leaked(), name="mine")  # made here

        async def main():
            global task
            task = start()  # called here
            await asyncio.sleep(0)

        def test(hotloop_leaks):
            loop.run_until_complete(main())
    """)
    assert outcome.left == "1 task"
    made, awaits = outcome.line_of("# made here"), outcome.line_of("create_future()")
    line, caller = outcome.report.splitlines()[:2]
    assert line.startswith("  task mine (leaked), at ")
    assert re.search(rf"test_program\.py:{awaits}, made at .*test_program\.py:{made} in start$", line)
    assert re.search(rf" called at .*test_program\.py:{outcome.line_of('# called here')} in main$", caller)


def test_a_task_of_a_closed_loop_and_one_of_another_thread(judge):
    outcome = judge("""
        kept = []

        async def leaked():
            await asyncio.sleep(600)

        def run():
            loop = hotloop.new_event_loop()
            kept.append(loop.create_task(leaked()))
            loop.call_soon(loop.stop)
            loop.run_forever()
            loop.close()

        def test(hotloop_leaks):
            run()
            thread = threading.Thread(target=run)
            thread.start()
            thread.join()
    """)
    assert outcome.left == "2 tasks"
    assert len(re.findall(r"task Task-\d+ \(leaked\)", outcome.report)) == 2


def test_transports(judge):
    outcome = judge("""
        loop = hotloop.new_event_loop()
        kept = []

        async def main():
            ours, theirs = socket.socketpair()
            kept.append(theirs)
            transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)  # made here
            kept.append(transport)
            closed, _ = await loop.create_datagram_endpoint(
                asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)
            )
            closed.close()

        def test(hotloop_leaks):
            loop.run_until_complete(main())
            kept[0].close()
            loop.call_soon(lambda: None)
    """)
    # Its peer is closed, but nothing reads that before the half second is over: the loop runs, and closes it.
    assert (outcome.left, outcome.passed) == (None, 1), outcome.output
    outcome = judge("""
        loop = hotloop.new_event_loop()
        kept = []

        async def main():
            ours, theirs = socket.socketpair()
            kept.append(theirs)  # the peer
            transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)  # made here
            kept.append(transport)

        def test(hotloop_leaks):
            loop.run_until_complete(main())
    """)
    assert outcome.left == "1 transport and 1 descriptor"
    made = outcome.line_of("# made here")
    assert re.search(rf"transport <StreamTransport .*, made at .*:{made} in main", outcome.report)
    assert re.search(r"descriptor \d+, socket", outcome.report)


def test_threads(judge):
    outcome = judge("""
        class Thread(threading.Thread):
            def start(self):
                super().start()

        event = threading.Event()

        def test(hotloop_leaks):
            Thread(target=event.wait, name="mine", daemon=True).start()  # made here
    """)
    assert outcome.left == "1 thread"
    made = outcome.line_of("# made here")
    line, caller = outcome.report.splitlines()
    assert re.match(r"  thread <Thread\(mine, .* in Thread\.start$", line)
    assert re.search(rf"called at .*:{made} in test$", caller)


def test_descriptors(judge):
    outcome = judge("""
        kept = []

        def test(hotloop_leaks, tmp_path):
            kept.append(open(tmp_path / "file", "w"))  # a file
            kept.append(os.open(tmp_path / "other", os.O_CREAT))  # another
            kept.append(socket.create_server(("127.0.0.1", 0)))  # a socket
            kept.append(os.pipe())  # a pipe
            kept.append(hotloop.new_event_loop())  # a loop
    """)
    assert re.fullmatch(r"\d+ descriptors", outcome.left)
    for pattern, mark in (
        (r"/file", "# a file"),
        (r"/other", "# another"),
        (r"socket 127\.0\.0\.1:\d+", "# a socket"),
        (r"(?:pipe\S*)", "# a pipe"),
        (r"anon_inode\S*", "# a loop"),
    ):
        line = outcome.line_of(mark)
        assert re.search(rf"descriptor \d+, \S*{pattern}, made at .*:{line} in test", outcome.report), pattern


def test_a_number_that_another_descriptor_had(judge):
    outcome = judge("""
        before = os.open(os.devnull, os.O_RDONLY)
        kept = []

        def test(hotloop_leaks, tmp_path):
            os.close(before)
            kept.append(os.open(tmp_path / "file", os.O_CREAT))
            assert kept == [before]
    """)
    assert outcome.left == "1 descriptor"


def test_what_is_garbage_is_not_left(judge):
    outcome = judge("""
        def test(hotloop_leaks):
            class Cycle:
                pass

            cycle = Cycle()
            cycle.me, cycle.socket = cycle, socket.socketpair()
            cycle.loop = hotloop.new_event_loop()
            cycle.loop.close()
    """)
    assert (outcome.left, outcome.passed) == (None, 1), outcome.output


def test_a_test_that_fails_is_not_judged(judge):
    outcome = judge("""
        def test(hotloop_leaks):
            kept.append(os.pipe())
    """)
    assert outcome.left is None
    assert "NameError" in outcome.output


def test_a_test_without_the_fixture_is_not_judged(judge):
    outcome = judge("""
        def test():
            global kept
            kept = os.pipe()
    """)
    assert (outcome.left, outcome.passed) == (None, 1)


def test_the_test_after_one_that_leaks_is_judged_for_itself(judge):
    outcome = judge("""
        kept = []

        def test_one(hotloop_leaks):
            kept.append(os.pipe())

        def test_two(hotloop_leaks):
            pass
    """)
    assert outcome.left == "2 descriptors"
    assert "2 passed, 1 error" in outcome.output


def test_what_a_test_sees_is_not_changed(judge):
    outcome = judge("""
        pipe, start, thread_class = os.pipe, threading.Thread.start, threading.Thread
        task_class = asyncio.Task

        def test(hotloop_leaks):
            assert threading.Thread.start is start and threading.Thread is thread_class
            assert asyncio.Task is task_class
            assert (os.pipe.__name__, os.pipe.__doc__) == (pipe.__name__, pipe.__doc__)

            async def main():
                task = asyncio.create_task(asyncio.sleep(0))
                assert type(task) is asyncio.Task
                assert asyncio.get_running_loop().get_task_factory() is None
                assert not asyncio.get_running_loop().get_debug()
                await task
            hotloop.run(main())

        def test_afterwards():
            assert os.pipe is pipe
            assert hotloop.Loop._on_created is None
            import sys
            assert sys.get_coroutine_origin_tracking_depth() == 0
    """)
    assert outcome.passed == 2, outcome.output


def test_the_plugin_imports_nothing_until_the_fixture_is_requested(judge):
    outcome = judge(
        """
        import sys

        def test():
            loaded = [name for name in sys.modules if name.split(".")[0] == "hotloop"]
            assert "pytest_hotloop" in sys.modules and loaded == []
        """,
        imports="",
    )
    assert outcome.passed == 1, outcome.output


def test_pytest_warns_of_nothing_where_hotloop_is_imported_before_it(tmp_path):
    """It warns of packages with plugins that were imported before, as by `python -m hotloop -m pytest`."""
    (tmp_path / "test_it.py").write_text("def test():\n    pass\n")
    command = [sys.executable, "-m", "hotloop", "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"]
    # Which warns of what it is not told.
    command += ["-p", "no:asyncio"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert "warning" not in done.stdout
