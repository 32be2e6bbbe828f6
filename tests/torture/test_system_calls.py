"""Each system call that the event loop makes fails in turn, with each error that its manual page names.

It takes an extension that was built with the cargo feature `faults`. A failure names its faults as
call/error/after/times; HOTLOOP_FAULT runs one alone:

    HOTLOOP_FAULT=epoll_add/ENOMEM/1/ever python -m pytest tests/torture -k 'fails[connect]'
"""

import asyncio
import errno
import os
import re

import helpers
import pytest

from . import other_operations  # noqa: F401 (its operations are in OPERATIONS then)
from .bench import EVER, Case, Fault
from .effort import effort
from .operations import OPERATIONS

hotloop = pytest.importorskip("hotloop")
core = hotloop._core
pytestmark = [
    pytest.mark.skipif(not hasattr(core, "_inject"), reason="built without the cargo feature `faults`"),
    pytest.mark.timeout(900),
]

# The errors of the manual pages. 0 is a transfer of one byte.
_EXHAUSTED = (errno.ENOMEM, errno.EMFILE, errno.ENFILE)
_NETWORK = (errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ETIMEDOUT)
_READS = (0, errno.EAGAIN, errno.EINTR, errno.EBADF, errno.ENOMEM)
_SENDS = (errno.EAGAIN, errno.EINTR, errno.EBADF, errno.ENOMEM, errno.ENOBUFS, errno.EPERM)
ERRORS = {
    "accept4": (
        *(
            errno.EAGAIN,
            errno.EINTR,
            errno.ECONNABORTED,
            errno.EPERM,
            errno.EPROTO,
            errno.EINVAL,
            errno.EBADF,
        ),
        *(*_EXHAUSTED, errno.ENOBUFS, *_NETWORK),
    ),
    "connect": (
        *(
            errno.EAGAIN,
            errno.EINTR,
            errno.EINPROGRESS,
            errno.ECONNREFUSED,
            errno.EADDRNOTAVAIL,
            errno.EACCES,
        ),
        *(errno.EPERM, errno.EBADF, *_NETWORK),
    ),
    "epoll_add": (errno.ENOMEM, errno.ENOSPC, errno.EPERM, errno.EBADF),
    "epoll_create": _EXHAUSTED,
    "epoll_del": (errno.ENOENT, errno.EBADF, errno.ENOMEM),
    # The others say that the descriptor is another file's by now, which is then believed.
    "epoll_mod": (errno.ENOMEM,),
    "epoll_pwait2": (errno.EINTR, errno.EBADF),
    "epoll_wait": (errno.EINTR, errno.EBADF),
    "eventfd": _EXHAUSTED,
    "fcntl": (errno.EBADF, errno.EPERM),
    "fstat": (errno.EBADF, errno.ENOMEM),
    "getpeername": (errno.ENOTCONN, errno.ENOBUFS, errno.EBADF),
    "getsockname": (errno.ENOBUFS, errno.EBADF),
    "getsockopt": (errno.ENOBUFS, errno.EBADF),
    "read": (*_READS, errno.EIO),
    "recv": (*_READS, errno.ECONNRESET, errno.ECONNREFUSED, errno.ENOTCONN, *_NETWORK),
    "recvmmsg": (*_READS, errno.ECONNREFUSED, *_NETWORK),
    "recvmsg": (*_READS, errno.ECONNRESET, errno.ECONNREFUSED, errno.ENOTCONN, *_NETWORK),
    "send": (0, *_SENDS, errno.EPIPE, errno.ECONNRESET, *_NETWORK),
    "sendmsg": (0, *_SENDS, errno.EPIPE, errno.ECONNRESET, *_NETWORK),
    "sendto": (*_SENDS, errno.EMSGSIZE, errno.ECONNREFUSED, *_NETWORK),
    "setsockopt": (errno.ENOPROTOOPT, errno.ENOMEM),
    "shutdown": (errno.ENOTCONN, errno.ENOBUFS, errno.EBADF),
    "socket": (*_EXHAUSTED, errno.ENOBUFS, errno.EACCES, errno.EAFNOSUPPORT),
    "wake": (errno.EAGAIN, errno.EINTR, errno.EBADF),
    "writev": (0, errno.EAGAIN, errno.EINTR, errno.EPIPE, errno.EIO, errno.ENOSPC, errno.EBADF),
}


@pytest.fixture
def unused_port():
    return helpers.unused_port()


@pytest.fixture(autouse=True)
def short_rest(monkeypatch):
    """How long a server rests that has no descriptors left."""
    monkeypatch.setattr(asyncio.constants, "ACCEPT_RETRY_DELAY", 0.02)


def faults(counts):
    """The faults for an operation that makes so many calls."""
    for call, made in sorted(counts.items()):
        occurrences = range(min(made, int(effort(2, 5))))
        for number in ERRORS[call] if made else ():
            times = EVER
            if number == errno.EINTR:
                times = 200  # Python's own sockets go on for ever, too, if each attempt is interrupted
            elif call in ("epoll_wait", "epoll_pwait2"):
                times = 3  # a poller is made anew, which helps in the end
            yield Fault(call, number, 0, times)
            for after in occurrences:
                yield Fault(call, number, after, 1)
            if made > 1:
                yield Fault(call, number, 1, times)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_while_a_system_call_fails(name, tls, unused_port):
    def run(fault):
        case = Case(core, hotloop.new_event_loop, OPERATIONS[name], fault, tls, unused_port)
        case.run()
        return case

    sound = run(None)
    assert not sound.problems, sound.problems
    only = os.environ.get("HOTLOOP_FAULT")
    wanted = [Fault.parse(only)] if only else list(faults(sound.counts))
    found = {}
    for fault in wanted:
        for problem in run(fault).problems:
            found.setdefault(re.sub(r"0x[0-9a-f]+|\d+", "*", problem), []).append((str(fault), problem))
    print(f"{len(wanted)} faults")
    assert not found, "\n".join(
        f"{problem} [{', '.join(fault for fault, _ in faults)}]"
        for faults in found.values()
        for _, problem in faults[:1]
    )


@pytest.mark.parametrize("call", ["epoll_create", "eventfd", "epoll_add"])
def test_loop_that_cannot_be_made(call):
    before = helpers.open_descriptors()
    for number in ERRORS[call]:
        core._reset_faults()
        core._inject(call, number, 0, EVER)
        try:
            with pytest.raises(OSError, match=re.escape(os.strerror(number))) as raised:
                hotloop.new_event_loop()
        finally:
            core._reset_faults()
        assert raised.value.errno == number
        del raised
        loop = hotloop.new_event_loop()
        loop.run_until_complete(asyncio.sleep(0.001))
        loop.close()
    assert not helpers.opened_since(before)


@pytest.mark.parametrize("name", ["ENOSYS", "EPERM"])
def test_kernel_without_epoll_pwait2(name):
    """In a process of its own: what the kernel lacks is remembered."""
    helpers.run_script(
        "hotloop",
        f"""
        import errno
        from hotloop import _core
        loop = new_event_loop()
        _core._inject("epoll_pwait2", errno.{name}, 0, 1)
        start = time.monotonic()
        loop.run_until_complete(asyncio.sleep(0.0105))
        loop.run_until_complete(asyncio.sleep(0.0105))
        assert time.monotonic() - start >= 0.021
        calls = _core._calls()
        assert calls["epoll_pwait2"] == 1, calls
        assert calls["epoll_wait"] < 30, calls
        """,
    )


@pytest.mark.parametrize("name", ["ENOMEM", "ENOSPC"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_shared_socket_that_cannot_be_registered_anew(name, times):
    """The next connection waits until that is tried again."""
    helpers.run_script(
        "hotloop",
        f"""
        import errno
        from hotloop import _core

        class Protocol(asyncio.Protocol):
            def connection_made(self, transport):
                transport.write(b"x")

        def connect(address):
            with socket.create_connection(address, timeout=10) as client:
                assert client.recv(1) == b"x"

        async def main():
            loop = asyncio.get_running_loop()
            sock = socket.socket()
            sock.bind(("127.0.0.1", 0))
            async with await loop.create_server(Protocol, sock=sock):
                _core._inject("epoll_add", errno.{name}, 0, {times})
                for _ in range(4):
                    await loop.run_in_executor(None, connect, sock.getsockname())
            _core._reset_faults()

        run(main())
        """,
    )
