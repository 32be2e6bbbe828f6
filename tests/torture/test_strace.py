"""Real programs on the extension as it is released, while strace makes their system calls fail.

The same is done to asyncio's own loop. hotloop may not crash, hang, be busy, or let an error out of
run_forever(), where asyncio does not.
"""

import json
import os
import shutil
import subprocess
import sys

import helpers
import pytest

from .effort import FULL

# Hundreds of attempts in a second at the most, even for a program that tries again and again.
BUSY = 1.0
PROGRAM = os.path.join(os.path.dirname(__file__), "strace_programs.py")

WAITS = "epoll_wait,epoll_pwait,epoll_pwait2"
# Program, calls, error, and which calls fail: strace's `when`, counted from when the program is ready.
USUAL = [
    ("echo", "epoll_ctl", "ENOMEM", "2"),
    ("echo", "accept4", "EMFILE", "1"),
    ("echo", "recvfrom", "ECONNRESET", "2"),
    ("echo", WAITS, "EINTR", "1+2"),
    ("threads", WAITS, "EINTR", "1+2"),
    ("subprocess", "pidfd_open", "EMFILE", "1+"),
    ("datagrams", "sendto", "ENOBUFS", "1+2"),
]
_EXHAUSTED = ("ENOMEM", "EMFILE", "ENFILE")
_WHENS = ("1", "2", "4", "2+")
_FULL = {
    "echo": {
        "accept4": (*_EXHAUSTED, "ENOBUFS", "ECONNABORTED", "EPERM", "EINTR"),
        "connect": ("ECONNREFUSED", "EADDRNOTAVAIL", "ENETUNREACH", "ETIMEDOUT"),
        "socket": (*_EXHAUSTED, "EACCES"),
        "getsockopt": ("ENOBUFS",),
        "setsockopt": ("ENOMEM", "ENOPROTOOPT"),
        "getsockname": ("ENOBUFS",),
        "getpeername": ("ENOTCONN",),
        "recvfrom": ("ECONNRESET", "ENOMEM", "ETIMEDOUT", "EAGAIN", "EINTR"),
        "sendto": ("ECONNRESET", "EPIPE", "ENOBUFS", "EHOSTUNREACH", "EAGAIN", "EINTR"),
        "epoll_ctl": ("ENOMEM", "ENOSPC", "EBADF", "ENOENT"),
        "close": ("EINTR", "EIO"),
        "bind": ("EADDRINUSE",),
        "listen": ("EADDRINUSE",),
        WAITS: ("EINTR", "ENOSYS", "EPERM"),
    },
    "long_echo": {
        "recvfrom": ("EAGAIN", "EINTR", "ECONNRESET"),
        "sendto,sendmsg": ("EAGAIN", "EINTR", "EPIPE"),
        "epoll_ctl": ("ENOMEM",),
    },
    "tls_echo": {
        "recvfrom": ("ECONNRESET", "EAGAIN"),
        "sendto,sendmsg": ("EPIPE", "EAGAIN"),
        "epoll_ctl": ("ENOMEM",),
        "accept4": ("EMFILE",),
        "fcntl,ioctl": ("EBADF",),
    },
    "datagrams": {
        "recvmmsg,recvfrom": ("ECONNREFUSED", "ENOMEM", "EAGAIN", "EINTR"),
        "sendto": ("ENOBUFS", "EPERM", "ENETUNREACH", "EAGAIN", "EINTR", "EMSGSIZE"),
        "epoll_ctl": ("ENOMEM",),
    },
    "subprocess": {
        "pidfd_open": ("EMFILE", "ENOSYS", "EPERM", "ENOMEM"),
        "socketpair": ("EMFILE",),
        "pipe2": ("EMFILE",),
        "read": ("EIO", "EAGAIN", "EINTR"),
        "writev,write": ("EIO", "EAGAIN", "EINTR"),
        "epoll_ctl": ("ENOMEM",),
        "wait4,waitid": ("ECHILD", "EINTR"),
        "vfork,clone,clone3": ("EAGAIN",),
    },
    "threads": {
        "write,sendto": ("EAGAIN", "EINTR"),
        WAITS: ("EINTR",),
        "clone,clone3": ("EAGAIN",),
    },
    "timers": {WAITS: ("EINTR", "ENOSYS", "EPERM")},
}
CASES = (
    [
        (program, calls, error, when)
        for program, all_calls in _FULL.items()
        for calls, errors in all_calls.items()
        for error in errors
        for when in _WHENS
        if not (error in ("EINTR", "EAGAIN") and when == "2+")  # nobody could do anything then
        if not (calls == WAITS and when == "2+")
    ]
    if FULL
    else USUAL
)


def _can_trace():
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, text=True)
    return None if tried.returncode == 0 else f"strace cannot trace: {tried.stderr.strip()}"


@pytest.fixture(scope="module", autouse=True)
def tracing():
    if reason := _can_trace():
        pytest.skip(reason)


@pytest.fixture
def environment(certificates, tmp_path):
    return {
        **os.environ,
        **certificates,
        "TORTURE_OUTCOME": str(tmp_path / "outcome"),
    }


def run(loop_name, program, calls, error, when, environment):
    """Run a program while its calls fail, and return the outcome; a string if it did not end by itself."""
    known = ",".join(f"?{call}" for call in calls.split(","))
    path = environment["TORTURE_OUTCOME"]
    command = [sys.executable, "-X", "faulthandler", PROGRAM, loop_name, program]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment
    ) as process:
        tracer = None
        try:
            if process.stdout.readline() != "ready\n":
                return f"did not begin: {process.communicate(timeout=20)}"
            options = ["-f", "-qq", "-o", os.devnull, "-e", f"trace={known}", "-e", "signal=none"]
            inject = f"inject={known}:error={error}:when={when}"
            # Without -q it tells when it is attached.
            options[1:2] = []
            tracer = subprocess.Popen(
                ["strace", *options, "-e", inject, "-p", str(process.pid)], stderr=pipe, text=True
            )
            while "attached" not in (line := tracer.stderr.readline()):
                if not line:
                    pytest.skip("strace cannot attach to another process")
            try:
                _, errors = process.communicate("go\n", timeout=25)
            except subprocess.TimeoutExpired:
                return "hangs"
        finally:
            process.kill()
            if tracer is not None:
                tracer.communicate()
    if process.returncode != 0 or "panicked" in errors:
        return f"ended with status {process.returncode}: {errors[-2000:]}"
    with open(path) as file:
        return json.load(file)


@pytest.mark.hotloop_only
@pytest.mark.skipif("hotloop" not in helpers.FACTORIES, reason="hotloop is not under test")
@pytest.mark.parametrize(("program", "calls", "error", "when"), CASES)
def test_program_while_system_calls_fail(program, calls, error, when, environment):
    ours = run("hotloop", program, calls, error, when, environment)
    is_sound = isinstance(ours, dict) and ours["ended"] == "well" and not ours["left"] and ours["busy"] < BUSY
    if is_sound:
        return
    asyncios = run("asyncio", program, calls, error, when, environment)
    context = f"hotloop: {ours}\nasyncio: {asyncios}"
    assert isinstance(ours, dict) or isinstance(asyncios, str), context
    if isinstance(ours, dict) and isinstance(asyncios, dict):
        assert ours["ended"] != "never" or asyncios["ended"] == "never", context
        assert not ours["left"] or asyncios["left"], context
        assert ours["busy"] < BUSY or asyncios["busy"] >= BUSY / 2, context
