"""`python -m hotloop top`: a live view of a process that was started with --watch."""

import fcntl
import json
import os
import pathlib
import pty
import re
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import termios
import textwrap
import threading
import time

import helpers_recording as traces
import hotloop
import pytest
from hotloop._observing import asking

pytestmark = pytest.mark.timeout(120)

SERVING = """
    import asyncio, sys, time

    def block():
        time.sleep(0.2)

    async def echo(reader, writer):
        while data := await reader.read(1000):
            writer.write(data)

    async def main():
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        await asyncio.sleep(0.01)
        block()
        await asyncio.sleep(0.01)
        print("ready", flush=True)
        # Until it is told to end.
        reading = asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        while not reading.done():
            writer.write(b"x" * 100)
            await reader.readexactly(100)
            await asyncio.sleep(0.001)
        if await reading == "block\\n":
            print("blocking", flush=True)
            time.sleep(3)

    asyncio.run(main())
"""


@pytest.fixture
def environment(tmp_path):
    """An environment in which no other process can be found."""
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "XDG_RUNTIME_DIR": str(runtime),
        "TMPDIR": str(tmp_path),
        "COLUMNS": "100",
    }


@pytest.fixture
def start(tmp_path, environment):
    """Start a program with --watch, and wait until it says "ready"."""
    processes = []

    def start(program, **changes):
        file = tmp_path / "program.py"
        file.write_text(textwrap.dedent(program))
        process = subprocess.Popen(
            [sys.executable, "-m", "hotloop", "--watch", file],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment | changes,
            cwd=tmp_path,
        )
        processes.append(process)
        assert process.stdout.readline() == "ready\n", process.communicate(timeout=30)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate(timeout=30)


# Processes of this user that are no part of the test are not looked for.
ALONE = """
import sys
from hotloop import _command
from hotloop._observing import asking, serving

asking.folders = lambda: serving.folders()[:2]
sys.argv[0] = "__main__.py"
_command.main()
"""


@pytest.fixture
def top(environment):
    def top(*arguments, **changes):
        return subprocess.run(
            [sys.executable, "-c", ALONE, "top", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=60,
            env=environment | changes,
        )

    return top


def socket_of(environment, process):
    return os.path.join(environment["XDG_RUNTIME_DIR"], "hotloop", f"{process.pid}.sock")


def test_long_iterations(start, top):
    process = start(
        SERVING.replace("        block()\n", "        for _ in range(30): loop.call_soon(short)\n")
        .replace(
            "    def block():\n        time.sleep(0.2)\n",
            "    def short():\n        time.sleep(0.01)\n",
        )
        .replace(
            "    async def main():\n", "    async def main():\n        loop = asyncio.get_running_loop()\n"
        )
    )
    shown = top("--once", process.pid)
    assert (shown.returncode, shown.stderr) == (0, "")
    text = shown.stdout
    assert "0 callbacks blocked a loop for 100.0 ms or longer" in text
    assert "Longest iterations whose other callbacks took 100.0 ms or longer together" in text
    assert re.search(r"ended +took +callbacks +computing +asleep +where", text)
    row = r"\d\d:\d\d:\d\d +3\d\d\.\d ms +3\d +\S+ .s +\d\d\d\.\d ms +program\.py:5 in short +\n"
    assert re.search(row, text)


def test_what_is_shown(start, top):
    process = start(SERVING)
    shown = top("--once", process.pid)
    assert (shown.returncode, shown.stderr) == (0, "")
    text = shown.stdout
    assert f"process {process.pid}, Python {sys.version.split()[0]}" in text
    assert "--watch" in text
    assert "loop MainThread-1" in text
    assert re.search(r"utilization .*\d\.\d%", text)
    assert re.search(r"delay +p50 \d+ µs +p90 .* p99 .* max", text)
    assert re.search(r"iterations +[\d.]+k?/s", text)
    assert re.search(r"read +[\d.]+ kB/s +written +[\d.]+ kB/s", text)
    # Both ends of the connection.
    assert re.search(r"transports +2 ", text)
    assert "1 callback blocked a loop for 100.0 ms or longer" in text
    assert re.search(r"\d\d:\d\d:\d\d +2\d\d\.\d ms +\S+ .s +2\d\d\.\d ms +program\.py:5 in block +\n", text)
    assert re.search(r"ended +took +computing +asleep +where", text)
    assert "Longest iterations" not in text
    process.communicate("\n", timeout=30)
    assert process.returncode == 0


def test_a_socket_and_the_only_process(start, top, environment):
    process = start(SERVING)
    for target in [(), (socket_of(environment, process),)]:
        shown = top("--interval=0.1", *target)
        # Not a terminal, so it is shown once.
        assert (shown.returncode, shown.stderr) == (0, "")
        assert shown.stdout.count(f"process {process.pid},") == 1


def test_several_processes(start, top):
    processes = [start(SERVING), start(SERVING)]
    refused = top()
    assert refused.returncode == 2
    assert "which process?" in refused.stderr
    for process in processes:
        assert re.search(
            rf"^ +{process.pid}  -m hotloop --watch \S*program\.py$", refused.stderr, re.MULTILINE
        )


def test_a_picture(start, top, tmp_path):
    process = start(SERVING)
    shown = top("--interval=0.1", f"--picture={tmp_path / 'top.svg'}", process.pid)
    assert shown.returncode == 0, shown.stderr
    picture = (tmp_path / "top.svg").read_text()
    assert picture.startswith("<svg")
    assert "utilization" in picture
    # It can be shown where nothing may be fetched.
    assert "url(http" not in picture
    refused = top("--interval=0.1", f"--picture={tmp_path}", process.pid)
    assert (refused.returncode, refused.stderr) == (2, f"hotloop: {tmp_path}: Is a directory\n")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        # It is not attached to: there is no such process, or it is not Python, or no permission.
        (["1"], ""),
        ([], "no process of this user was started with"),
        (["nowhere.sock"], "nowhere.sock: No such file or directory"),
        (["1", "2"], "top shows one process, not 2"),
        (["--often"], "unknown option --often of top"),
        (["--interval=0"], "--interval takes a number of seconds, not '0'"),
        (["--interval"], "--interval takes a number of seconds, not ''"),
    ],
)
def test_what_cannot_be_shown(top, arguments, reason):
    refused = top(*arguments)
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert refused.stderr.startswith(f"hotloop: {reason}")
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "what answers is not hotloop"),
        (b"[]\n", "what answers is not hotloop"),
        (b'{"version": "0.0.1"}\n', f"the process runs hotloop 0.0.1, and this is {hotloop.__version__}"),
        (b"", "the process has ended"),
    ],
)
def test_what_is_not_understood(top, tmp_path, answer, reason):
    path = tmp_path / "other.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve():
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        refused = top(path)
        thread.join()
    assert (refused.returncode, refused.stderr) == (2, f"hotloop: {reason}\n")


def test_without_rich(top, tmp_path, environment):
    (tmp_path / "rich.py").write_text("raise ModuleNotFoundError('No module named rich', name='rich')")
    refused = top(PYTHONPATH=os.pathsep.join([str(tmp_path), environment["PYTHONPATH"]]))
    assert refused.returncode == 2
    assert refused.stderr == "hotloop: top needs the package rich: pip install 'hotloop[top]'\n"


# --- In a terminal ---


ESCAPE = re.compile(r"\x1b\[[?0-9;]*[a-zA-Z]")


class Terminal:
    """`top` in a pseudo-terminal."""

    def __init__(self, environment, *arguments):
        self.ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        self.former = termios.tcgetattr(theirs)
        self.theirs = theirs
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hotloop", "top", "--interval=0.1", *map(str, arguments)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment | {"TERM": "xterm-256color"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self.text = ""

    def read_until(self, pattern):
        deadline = time.monotonic() + 30
        while not re.search(pattern, self.text):
            assert time.monotonic() < deadline, self.text
            if select.select([self.ours], [], [], 0.1)[0]:
                self.read()

    def read(self):
        self.text += ESCAPE.sub("", os.read(self.ours, 1 << 16).decode(errors="replace"))

    def press(self, key):
        self.text = ""
        os.write(self.ours, key)

    def end(self):
        """Its status, when it has left the terminal as it was."""
        deadline = time.monotonic() + 30
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.text
            if select.select([self.ours], [], [], 0.02)[0]:
                self.read()
        assert termios.tcgetattr(self.theirs) == self.former
        return self.process.returncode


@pytest.fixture
def terminal(environment):
    terminals = []

    def open_terminal(*arguments):
        terminals.append(Terminal(environment, *arguments))
        return terminals[-1]

    yield open_terminal
    for terminal in terminals:
        terminal.process.kill()
        terminal.process.wait(30)
        os.close(terminal.ours)
        os.close(terminal.theirs)


@pytest.mark.parametrize(("key", "status"), [(b"q", 0), (b"\x1b", 0), (b"\x04", 0), (b"\x03", 130)])
def test_until_a_key_is_pressed(start, terminal, key, status):
    shown = terminal(start(SERVING).pid)
    shown.read_until("utilization(.|\n)*utilization")
    shown.press(b"x")
    shown.read_until("utilization")
    shown.press(key)
    assert shown.end() == status
    assert "Traceback" not in shown.text


def test_until_the_process_ends(start, terminal):
    process = start(SERVING)
    shown = terminal(process.pid)
    shown.read_until("utilization")
    process.communicate("\n", timeout=30)
    shown.read_until("hotloop: the process has ended")
    assert shown.end() == 0


def test_a_process_that_is_stopped(start, terminal):
    process = start(SERVING)
    shown = terminal(process.pid)
    shown.read_until("utilization")
    process.send_signal(signal.SIGSTOP)
    shown.read_until("no answer for .*: stopped, or something holds the GIL")
    process.send_signal(signal.SIGCONT)
    answered = r"(?s)hotloop top(?:(?!no answer).)*utilization"
    shown.text = ""
    shown.read_until(answered)
    shown.press(b"q")
    assert shown.end() == 0


def test_a_callback_that_is_blocking_now(start, terminal):
    process = start(SERVING)
    shown = terminal(process.pid)
    shown.read_until("utilization")
    process.stdin.write("block\n")
    process.stdin.flush()
    assert process.stdout.readline() == "blocking\n"
    shown.read_until(r"now\W.*program\.py:\d+ in main")
    shown.press(b"q")
    assert shown.end() == 0


# --- The socket ---


def test_only_the_same_user_may_open_it(start, environment):
    process = start(SERVING)
    path = socket_of(environment, process)
    folder = os.stat(os.path.dirname(path))
    assert stat.S_IMODE(folder.st_mode) == 0o700
    assert folder.st_uid == os.geteuid()
    process.communicate("\n", timeout=30)
    assert not os.path.exists(path)


def test_a_folder_that_others_may_enter_is_not_used(start, environment):
    unsafe = os.path.join(environment["XDG_RUNTIME_DIR"], "hotloop")
    os.mkdir(unsafe)
    os.chmod(unsafe, 0o755)
    process = start(SERVING)
    assert not os.listdir(unsafe)
    assert os.listdir(os.path.join(environment["TMPDIR"], f"hotloop-{os.geteuid()}")) == [
        f"{process.pid}.sock"
    ]


def test_without_a_folder_the_program_runs(start):
    program = """
    import hotloop._observing.serving as serving
    serving.folders = lambda: ["/proc/nowhere/hotloop"]
    """
    process = start(program + SERVING)
    _, errors = process.communicate("\n", timeout=30)
    assert process.returncode == 0
    assert "hotloop: no socket for `hotloop top`: [Errno 2] No such file or directory" in errors


def test_what_others_left_behind_is_removed(start, top, environment):
    process = start(SERVING)
    left = os.path.join(environment["XDG_RUNTIME_DIR"], "hotloop", "1.sock")
    with socket.socket(socket.AF_UNIX) as behind:
        behind.bind(left)
    assert top("--interval=0.1").returncode == 0
    assert not os.path.exists(left)
    assert os.path.exists(socket_of(environment, process))


def test_what_is_answered(start, environment):
    process = start(SERVING)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(socket_of(environment, process))
        client.sendall(b"whatever\n")
        with client.makefile() as answers:
            told = json.loads(answers.readline())
        assert told["process"] == process.pid
        assert told["version"] == hotloop.__version__
        assert list(told["loops"]) == ["MainThread-1"]
        # Half a question, and gone.
        client.sendall(b"x" * 5000)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(socket_of(environment, process))
    _, errors = process.communicate("\n", timeout=30)
    assert "serving.py" not in errors


def test_without_descriptors_and_without_a_folder(start, top):
    """Whoever asks waits until there is a descriptor, and nobody spins meanwhile."""
    process = start("""
        import asyncio, os, resource, sys, time

        async def main():
            os.mkdir("gone")
            os.chdir("gone")
            os.rmdir("../gone")
            before = resource.getrlimit(resource.RLIMIT_NOFILE)
            free = os.dup(0)
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
            time.sleep(0.2)
            await asyncio.sleep(0)
            print("ready", flush=True)
            used = time.process_time()
            await asyncio.sleep(3)
            print(time.process_time() - used, flush=True)
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)

        asyncio.run(main())
    """)
    shown = top("--once", process.pid)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "program.py:12inmain" in "".join(shown.stdout.split())
    assert float(process.stdout.readline()) < 1
    _, errors = process.communicate("\n", timeout=30)
    assert "Traceback" not in errors


def test_metrics_arrive_as_they_are(start, environment):
    """What is told is what loop.metrics() returns, and rates are of the time in between."""
    process = asking.Process(socket_of(environment, start(SERVING)))
    first = process.ask()
    time.sleep(0.3)
    second = process.ask()
    process.close()
    change, seconds = second.since(first)["MainThread-1"]
    assert seconds == pytest.approx(0.3, abs=0.2)
    assert change.busy + change.idle == pytest.approx(seconds, abs=0.05)
    assert (
        0
        < change.callbacks
        == second.metrics["MainThread-1"].callbacks - first.metrics["MainThread-1"].callbacks
    )
    assert second.metrics["MainThread-1"].delay.count == second.metrics["MainThread-1"].callbacks
    assert change.accepted == 0
    assert second.metrics["MainThread-1"].accepted == 1


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_have_sockets_of_their_own(start, environment, method):
    folder = os.path.join(environment["XDG_RUNTIME_DIR"], "hotloop")
    program = f"""
        import asyncio, multiprocessing, os, sys

        async def wait():
            print(os.getpid(), *os.listdir({folder!r}), flush=True)
            await asyncio.sleep(0.1)

        def child():
            asyncio.run(wait())

        if __name__ == "__main__":
            asyncio.run(asyncio.sleep(0))
            print("ready", flush=True)
            process = multiprocessing.get_context({method!r}).Process(target=child)
            process.start()
            process.join()
            asyncio.run(wait())
    """
    process = start(program, PYTHONWARNINGS="ignore")
    out, errors = process.communicate(timeout=60)
    assert errors == ""
    first, second = [line.split() for line in out.splitlines()]
    child, *sockets = first
    assert sorted(sockets) == sorted([f"{child}.sock", f"{process.pid}.sock"])
    # The child's is gone, the parent's is not.
    assert second == [str(process.pid), f"{process.pid}.sock"]


def test_a_recording_is_saved_by_a_key(start, terminal, tmp_path):
    shown = terminal(start(SERVING).pid)
    shown.read_until("utilization")
    shown.press(b"r")
    shown.read_until("nothing was recorded yet: it is from now on")
    shown.press(b"r")
    # The path is on a line of its own where it does not fit beside the word.
    shown.read_until(r"saved\s")
    path = next(tmp_path.glob("hotloop-*-asked.json"))
    assert any(
        "main" in name for name in traces.tracks(traces.check(json.loads(path.read_text())["traceEvents"]))
    )
    shown.press(b"q")
    assert shown.end() == 0


def test_the_accounts_by_a_key(start, terminal):
    shown = terminal(start(SERVING).pid)
    shown.read_until("utilization")
    shown.press(b"a")
    shown.read_until("Who uses the loop, by used(.|\n)*used ▼")
    shown.read_until(r"task main +program\.py:11")
    shown.read_until("protocol StreamReaderProtocol")
    shown.press(b"s")
    shown.read_until("by computing(.|\n)*computing ▼")
    shown.press(b"a")
    shown.read_until("utilization")
    shown.press(b"q")
    assert shown.end() == 0


def test_the_accounts_when_it_looks_once(start, top):
    begins = "async def main():\n        asyncio.get_running_loop().account()"
    process = start(SERVING.replace("async def main():", begins))
    shown = top("--once", process.pid)
    assert shown.returncode == 0, shown.stderr
    assert re.search(r" \d+\.\d% +\d+\.\d% +[\d,]+ .* task main +program\.py:11", shown.stdout)


def test_a_flame_graph_by_a_key(start, terminal, tmp_path):
    shown = terminal(start(SERVING).pid)
    shown.read_until("utilization")
    shown.press(b"f")
    shown.read_until(r"there were no accounts yet: they are kept from\s")
    shown.press(b"f")
    shown.read_until(r"saved\s")
    image = next(tmp_path.glob("hotloop-*-flame.svg")).read_text()
    assert re.search(r"<title>main \(program\.py\): ", image)
    shown.press(b"q")
    assert shown.end() == 0


def test_a_flame_graph_of_some_seconds(start, environment, tmp_path):
    process = start(SERVING)
    command = [sys.executable, "-m", "hotloop", "flame", "--seconds=0.3", socket_of(environment, process)]
    for _ in range(2):
        saved = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
        assert (saved.returncode, saved.stderr) == (0, "")
        image = pathlib.Path(saved.stdout.strip()).read_text()
        seconds = float(re.search(r"who awaits whom: ([\d.]+) s<", image)[1])
        # Only that time, in which it mostly sleeps.
        assert 0 < seconds < 0.3
    assert len(list(tmp_path.glob("hotloop-*-flame.svg"))) == 2


@pytest.mark.parametrize("what", ["flame", "record"])
def test_a_process_whose_folder_is_gone_says_why_it_saves_nothing(start, environment, tmp_path, what):
    folder = tmp_path / "gone"
    folder.mkdir()
    process = start(
        SERVING.replace(
            "import asyncio, sys, time", f"import asyncio, os, sys, time; os.chdir({str(folder)!r})"
        )
    )
    folder.rmdir()
    command = [sys.executable, "-m", "hotloop", what, "--seconds=0.1", socket_of(environment, process)]
    failed = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert failed.returncode == 2
    assert "can't be saved: [Errno 2]" in failed.stderr


def test_a_flame_graph_that_cannot_be_saved(start, environment, tmp_path):
    process = start(SERVING)
    command = [sys.executable, "-m", "hotloop", "flame", "--seconds=0.1", socket_of(environment, process)]
    blocked = tmp_path / f"hotloop-{process.pid}-1-flame.svg"
    blocked.mkdir()
    failed = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert failed.returncode == 2
    assert failed.stderr.startswith("hotloop: the flame graph can't be saved: ")


# --- What piles up ---

LEAKING = """
    import asyncio, sys, threading, time

    async def leaked(event):
        await event.wait()

    async def main():
        event, tasks = asyncio.Event(), [asyncio.create_task(leaked(asyncio.Event()))]
        print("ready", flush=True)
        reading = asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        while not reading.done():
            tasks.append(asyncio.create_task(leaked(event)))
            await asyncio.sleep(0.02)
        if await reading == "block\\n":
            print("blocking", flush=True)
            time.sleep(3)
        event.set()

    def idle():
        loop = asyncio.new_event_loop()
        time.sleep(60)

    threading.Thread(target=idle, daemon=True).start()
    time.sleep(0.1)
    asyncio.run(main())
"""


def test_what_piles_up_is_shown_by_a_key(start, terminal):
    shown = terminal(start(LEAKING).pid)
    shown.read_until("utilization")
    shown.press(b"g")
    # In place of the figures.
    page = r"(?s)hotloop top(?:(?!utilization).)*what piles up, in [\d.]+ m?s(?:(?!utilization).)*"
    shown.read_until(page + r"\+\d+ +\d+ +task +leaked +Task-\d+, Event\.wait")
    shown.press(b"g")
    shown.read_until("utilization")
    shown.press(b"q")
    assert shown.end() == 0


def counts_of(growth, name):
    return {(what, kind): count for what, kind, count, _ in growth[name]["kinds"]}


def test_counts_of_what_there_is(start, environment):
    process = asking.Process(socket_of(environment, start(LEAKING)))
    first = process.ask_growth()["growth"]
    # The loop that does not run has no count.
    assert sorted(first) == ["MainThread-2", "Thread-1 (idle)-1"]
    assert first["Thread-1 (idle)-1"] is None
    time.sleep(0.2)
    second = process.ask_growth()["growth"]
    first, second = (counts_of(each, "MainThread-2") for each in (first, second))
    assert first["task", "main"] == second["task", "main"] == 1
    assert second["task", "leaked"] > first["task", "leaked"] >= 1
    process.close()


def test_a_loop_that_is_blocked_is_not_counted(start, environment):
    program = start(LEAKING)
    path = socket_of(environment, program)
    process = asking.Process(path)
    program.stdin.write("block\n")
    program.stdin.flush()
    assert program.stdout.readline() == "blocking\n"
    began = time.monotonic()
    assert process.ask_growth()["growth"]["MainThread-2"] is None
    assert 0.4 < time.monotonic() - began < 2.5
    process.close()
