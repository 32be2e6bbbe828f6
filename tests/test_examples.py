"""The programs in examples/ that need nothing but hotloop."""

import collections
import contextlib
import pathlib
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


@contextlib.contextmanager
def running(*command):
    """A program, and what it prints first."""
    program = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    try:
        yield program, program.stdout.readline().strip()
    finally:
        program.kill()
        program.stdout.close()
        program.wait()


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_a_server_with_a_thread_and_a_loop_a_core(end):
    with running(EXAMPLES / "threads.py", "--port", "0", "--threads", "3") as (program, url):
        seen = collections.Counter()
        for _ in range(100):
            with urllib.request.urlopen(url, timeout=10) as response:
                seen[response.read().decode()] += 1
        assert set(seen) <= {f"hello from loop-{number}\n" for number in range(3)}
        assert len(seen) > 1, "the kernel distributes the connections"
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as idle:
            idle.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert idle.recv(1000).startswith(b"HTTP/1.1 200 OK")
            program.send_signal(end)
            assert idle.recv(1000) == b"", "a connection that is idle is closed"
        assert program.wait(20) == 0


def test_the_slow_service_and_the_mended_one():
    worst = {}
    for option in ((), ("--mended",)):
        with running(EXAMPLES / "slow.py", "--port", "0", *option) as (program, url):
            port = url.rpartition(":")[2]
            load = [sys.executable, EXAMPLES / "slow.py", "--load", "--port", port, "--seconds", "3"]
            printed = subprocess.run(load, capture_output=True, text=True, timeout=60, check=True).stdout
            found = re.findall(r"^/(\w+) +(\d+) answers, .* 99 % within +([\d.]+) ms$", printed, re.MULTILINE)
            assert [(path, int(answers) > 5) for path, answers, _ in found] == [
                ("product", True),
                ("report", True),
            ]
            worst[option] = float(found[0][2])
            program.send_signal(signal.SIGTERM)
            assert program.wait(20) == 0
    assert worst[()] > 10
    assert worst[("--mended",)] < worst[()]
