"""Errors of the event loop's own steps: they are reported, and the loop goes on."""

import asyncio
import contextlib
import errno
import itertools
import os
import socket
import subprocess
import sys
import threading
import time

import helpers
import pytest


async def open_pair(loop, protocol):
    """A transport with that protocol, and its peer's socket, which blocks."""
    ours, peer = helpers.tcp_pair()
    ours.setblocking(False)
    transport, _ = await loop.create_connection(lambda: protocol, sock=ours)
    peer.setblocking(True)
    return transport, peer


# --- What a peer can do ---


async def test_a_reset_while_the_last_bytes_before_write_eof_are_sent(loop, reports):
    protocol = helpers.Recorder()
    transport, peer = await open_pair(loop, protocol)
    transport.write(helpers.TOO_MUCH)
    transport.write_eof()
    while transport.get_write_buffer_size() > 1 << 20:
        peer.recv(1 << 16)
        await asyncio.sleep(0)
    # The rest fits into the buffers by now, or will soon: the reset comes before or after the shutdown.
    helpers.reset(peer)
    await helpers.until(lambda: "connection_lost" in protocol.calls)
    assert protocol.calls.count("connection_lost") == 1
    # asyncio reports a shutdown() that fails.
    for report in reports:
        assert isinstance(report["exception"], OSError)
    reports.clear()
    await asyncio.sleep(0)


@pytest.mark.parametrize("first", [100, 1024, 2048, 4096])
async def test_a_reset_behind_data_is_told(loop, first):
    """The kernel tells it once: to the attempt to receive that follows the data."""
    protocol = helpers.Recorder()
    _, peer = await open_pair(loop, protocol)
    peer.sendall(b"x" * first)
    await helpers.until(lambda: len(protocol.data) == first)
    # As much as the transport expects by now.
    second = first + first // 4
    peer.sendall(b"y" * second)
    helpers.reset(peer)
    await helpers.until(lambda: "connection_lost" in protocol.calls)
    assert len(protocol.data) in (first, first + second)
    assert isinstance(protocol.exception, ConnectionResetError)
    assert "eof_received" not in protocol.calls


async def test_a_reset_behind_data_is_told_to_sock_recv(loop):
    size = 1024
    for _ in range(3):
        ours, peer = helpers.tcp_pair()
        ours.setblocking(False)
        peer.setblocking(True)
        with ours, peer:
            peer.sendall(b"x" * size)
            assert len(await loop.sock_recv(ours, 1 << 16)) == size
            size = size + size // 4
            peer.sendall(b"y" * size)
            helpers.reset(peer)
            received = 0
            with contextlib.suppress(ConnectionResetError):
                while data := await loop.sock_recv(ours, 1 << 16):
                    received += len(data)
                pytest.fail("the reset was taken for the end of the stream")
            assert received in (0, size)


async def test_a_socket_that_is_closed_behind_our_back(loop, reports):
    protocol = helpers.Recorder()
    transport, peer = await open_pair(loop, protocol)
    os.close(transport.get_extra_info("socket").fileno())
    transport.abort()
    await helpers.until(lambda: "connection_lost" in protocol.calls)
    report = reports.take()
    assert report["exception"].errno == errno.EBADF
    peer.close()


@pytest.mark.hotloop_only
async def test_a_report_names_transport_and_protocol(loop, reports):
    protocol = helpers.Recorder()
    transport, peer = await open_pair(loop, protocol)
    os.close(transport.get_extra_info("socket").fileno())
    transport.abort()
    await helpers.until(lambda: "connection_lost" in protocol.calls)
    await asyncio.sleep(0)
    report = reports.take()
    assert report["transport"] is transport
    assert repr(transport) in report["message"]
    peer.close()


async def test_a_protocol_without_connection_lost(loop, reports):
    class Protocol:
        def connection_made(self, transport):
            pass

        def data_received(self, data):
            pass

        def eof_received(self):
            pass

    transport, peer = await open_pair(loop, Protocol())
    transport.abort()
    await helpers.until(lambda: reports)
    assert isinstance(reports.take()["exception"], AttributeError)
    assert peer.recv(1) == b""
    peer.close()


@pytest.mark.hotloop_only
async def test_a_report_that_fails(loop, reports, capsys):
    """What cannot be reported is unraisable."""
    unraisable = []

    class Protocol(asyncio.Protocol):
        def __getattribute__(self, name):
            if name == "connection_lost":
                raise RuntimeError("no such method")
            return super().__getattribute__(name)

    def fail(loop, context):
        raise RuntimeError("no report")

    loop.set_exception_handler(fail)
    hook, sys.unraisablehook = sys.unraisablehook, unraisable.append
    try:
        transport, peer = await open_pair(loop, Protocol())
        transport.abort()
        assert await loop.run_in_executor(None, peer.recv, 1) == b""
        await asyncio.sleep(0.01)
    finally:
        sys.unraisablehook = hook
        loop.set_exception_handler(reports.handler)
    peer.close()


# --- Descriptors ---

STALE_REGISTRATIONS = """
    import asyncio, os, resource, socket, time

    loop = new_event_loop()
    reports = []
    loop.set_exception_handler(lambda loop, context: reports.append(context))

    async def main():
        # A registration that outlives its descriptor, because a duplicate of that is still open.
        ours, peer = socket.socketpair()
        loop.add_reader(ours.fileno(), lambda: None)
        duplicate = ours.dup()
        fd = ours.detach()
        os.close(fd)
        loop.remove_reader(fd)
        await asyncio.sleep(0)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        taken = []
        try:
            while True:
                taken.append(os.dup(0))
        except OSError:
            pass
        peer.send(b"x")
        for _ in range(20):
            await asyncio.sleep(0.01)
        for fd in taken:
            os.close(fd)
        await asyncio.sleep(0.05)
        begun = time.process_time()
        await asyncio.sleep(0.5)
        assert time.process_time() - begun < 0.25, "the loop spins"

    loop.run_until_complete(main())
    print(len(reports))
"""


@pytest.mark.hotloop_only
def test_strays_while_there_are_no_descriptors(loop_name):
    result = helpers.run_script(loop_name, STALE_REGISTRATIONS)
    assert int(result.stdout) <= 1


# --- The end ---


def test_a_transport_that_is_closed_after_its_loop(new_loop):
    loop = new_loop()
    transport, peer = loop.run_until_complete(open_pair(loop, asyncio.Protocol()))
    fd = transport.get_extra_info("socket").fileno()
    loop.close()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        transport.close()
    transport.close()
    assert transport.is_closing()
    if isinstance(loop, asyncio.SelectorEventLoop):
        transport._sock.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    peer.close()


# --- Arguments ---


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"high": 1e6}, (250_000, 1_000_000)),
        ({"low": 10.0}, (10, 40)),
        ({"high": 2**130, "low": 2**120}, None),
        ({"low": 2**126}, None),
    ],
)
async def test_write_buffer_limits_of_any_number(loop, limits, expected):
    transport, peer = await open_pair(loop, asyncio.Protocol())
    transport.set_write_buffer_limits(**limits)
    low, high = transport.get_write_buffer_limits()
    assert 0 < low < high or (low, high) == (sys.maxsize * 2 + 1,) * 2
    if expected is not None:
        assert (low, high) == expected
    for wrong in [{"high": float("nan")}, {"low": float("nan")}, {"high": -1}, {"high": 1, "low": 2}]:
        with pytest.raises(ValueError, match="must be >= "):
            transport.set_write_buffer_limits(**wrong)
    transport.abort()
    peer.close()


# --- Others ---


@helpers.whenever_quiet
@pytest.mark.hotloop_only
def test_other_threads_have_their_turns_while_the_loop_is_busy(new_loop):
    loop = new_loop()
    ran = 0
    done = threading.Event()

    def thread():
        nonlocal ran
        reader, writer = os.pipe()
        while not done.is_set():
            os.write(writer, b"x")
            os.read(reader, 1)
            time.sleep(0.0001)
            ran += 1
        os.close(reader)
        os.close(writer)

    def busy():
        if time.monotonic() < end:
            loop.call_soon(busy)
        else:
            loop.stop()

    other = threading.Thread(target=thread)
    end = time.monotonic() + 1
    other.start()
    loop.call_soon(busy)
    loop.run_forever()
    done.set()
    other.join()
    # It was 170 to 280 when the loop kept the GIL.
    assert ran > 500


@pytest.mark.hotloop_only
def test_a_peer_that_reads_fast_does_not_stop_the_loop(loop):
    """What is sent in one turn is bounded, however fast it is taken."""
    reader = "import socket; s = socket.socket(fileno=0); b = bytearray(1 << 20)\nwhile s.recv_into(b): pass"

    async def main():
        ours, peer = socket.socketpair()
        with peer, subprocess.Popen([sys.executable, "-c", reader], stdin=peer.fileno()):
            peer.close()
            ours.setblocking(False)
            transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
            sizes = [256 << 20]
            transport.write(bytes(sizes[0]))
            while sizes[-1]:
                sizes.append(transport.get_write_buffer_size())
                await asyncio.sleep(0)
            # The reader ends when the socket is closed.
            transport.abort()
            await asyncio.sleep(0.01)
            return sizes

    sizes = loop.run_until_complete(main())
    largest = max(before - after for before, after in itertools.pairwise(sizes))
    # get_write_buffer_size() sends, too.
    assert largest <= 2 * ((4 << 20) + (1 << 20))


@pytest.mark.skipif(not helpers.FREE_THREADED, reason="this Python has the GIL")
@pytest.mark.parametrize("gil", [None, "0", "1"])
def test_importing_leaves_the_gil_as_it_is(loop_name, gil):
    result = helpers.run_script(
        loop_name,
        """
        import sys
        async def main():
            return await asyncio.to_thread(sys._is_gil_enabled)
        print(run(main()))
        """,
        env={} if gil is None else {"PYTHON_GIL": gil},
    )
    assert result.stdout == f"{gil == '1'}\n"
    assert not result.stderr


def test_a_loop_that_runs_first_when_no_descriptor_is_left(loop_name):
    result = helpers.run_script(
        loop_name,
        """
        import asyncio, contextlib, os, resource
        loop = new_event_loop()
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 4096))
        with contextlib.suppress(OSError):
            while True:
                os.dup(0)
        loop.run_until_complete(asyncio.sleep(0.01))
        print("ran")
        """,
    )
    assert result.stdout == "ran\n"


async def test_a_file_without_a_descriptor_to_duplicate(loop, tmp_path):
    import resource

    path = tmp_path / "file"
    path.write_bytes(b"file")
    protocol = helpers.Recorder()
    transport, peer = await open_pair(loop, protocol)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    with path.open("rb") as file:
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, limits[1]))
        try:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.dup(0))
            assert await loop.sendfile(transport, file) == 4
        finally:
            for fd in taken:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert peer.recv(10) == b"file"
    transport.abort()
    peer.close()
