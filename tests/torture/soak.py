"""A mixed load on one loop: run `python -m torture.soak --seconds 600` in tests/.

Connections, datagrams, pipes, children, timers, threads and executors, which are ended, reset and cancelled
at random moments, seeded with --seed. Rates are printed as it goes. The exit code is 1 if a connection that
was made was not lost, if anything was reported to the exception handler, if an activity failed or hung, or if
descriptors, objects or memory grew after the first third.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import os
import random
import signal
import socket
import ssl
import sys
import tempfile
import threading
import time

import helpers
import helpers_leaks
import trustme

# How many activities go on at a time.
WORKERS = 24
# After so many seconds an activity hangs.
HANGS = 40
# What grows once, whatever the load: caches of the interpreter's and malloc()'s, in objects and in bytes.
OBJECTS, BYTES = 2000, 24 << 20


class Load:
    """The servers, the activities, and what is counted of both."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.counts = collections.Counter()
        self.reports = []
        self.servers = []
        self.addresses = {}
        self.over = False
        self.activities = [
            *(self.echo, self.echo, self.echo, self.streams, self.slow_reader, self.resets, self.half_closes),
            *(
                self.datagrams,
                self.pipe,
                self.child,
                self.timers,
                self.threads,
                self.executor,
                self.operations,
            ),
            *(self.watchers, self.refused),
        ]

    def protocol(self, **hooks):
        """A protocol whose connections are counted, with hooks like a Recorder's."""
        return _Counted(self.counts, **hooks)

    def data(self, limit=100_000):
        return self.random.randbytes(int(limit ** self.random.random()))

    async def start(self, directory):
        loop = asyncio.get_running_loop()
        authority = trustme.CA()
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(server)
        self.client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority.configure_trust(self.client_context)
        path = os.path.join(directory, "socket")

        def echo():
            return self.protocol(data_received=_echo, pause_writing=_pause, resume_writing=_resume)

        tcp = await loop.create_server(echo, "127.0.0.1", 0, backlog=200)
        tls = await loop.create_server(echo, "127.0.0.1", 0, ssl=server, backlog=200)
        self.servers = [tcp, tls, await loop.create_unix_server(echo, path)]
        self.addresses = {
            "tcp": tcp.sockets[0].getsockname(),
            "tls": tls.sockets[0].getsockname(),
            "unix": path,
        }
        self.echoing, _ = await loop.create_datagram_endpoint(
            lambda: helpers.DatagramRecorder(datagram_received=_return), local_addr=("127.0.0.1", 0)
        )

    async def stop(self):
        for server in self.servers:
            server.close()
        self.echoing.abort()
        await asyncio.sleep(0.01)

    async def connect(self, kind, protocol):
        loop = asyncio.get_running_loop()
        if kind == "unix":
            return await loop.create_unix_connection(lambda: protocol, self.addresses["unix"])
        options = {"ssl": self.client_context, "server_hostname": "localhost"} if kind == "tls" else {}
        return await loop.create_connection(lambda: protocol, *self.addresses[kind], **options)

    # --- Activities ---

    async def echo(self):
        """What is sent comes back, until this side closes or aborts."""
        protocol = self.protocol()
        try:
            await self.connect(self.random.choice(["tcp", "tls", "unix"]), protocol)
            for _ in range(self.random.randrange(5)):
                data = self.data()
                protocol.data.clear()
                protocol.transport.write(data)
                assert await protocol.received(len(data)) == data
            if self.random.random() < 0.7:
                protocol.transport.close()
                await protocol.lost()
        finally:
            protocol.end()

    async def streams(self):
        """The same with asyncio's streams, to which lines are written, and a limit that stops reading."""
        reader, writer = await asyncio.open_connection(*self.addresses["tcp"], limit=4096)
        try:
            lines = [
                self.random.randbytes(100).hex().encode() + b"\n" for _ in range(self.random.randrange(100))
            ]
            writer.writelines(lines)
            await writer.drain()
            for line in lines:
                assert await reader.readline() == line
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def slow_reader(self):
        """More is written than the peer, which takes its time, can take; then it goes, or reads all."""
        protocol = self.protocol()
        ours, peer = helpers.PAIRS[self.random.choice(["tcp", "unix"])]()
        with peer:
            try:
                loop = asyncio.get_running_loop()
                await loop.create_connection(lambda: protocol, sock=ours)
                size = self.random.randrange(1 << 20)
                protocol.transport.write(b"x" * size)
                for _ in range(self.random.randrange(10)):
                    if size:
                        size -= len(await loop.sock_recv(peer, min(size, 50_000)))
                    await asyncio.sleep(self.random.random() / 1000)
                if self.random.random() < 0.5:
                    await helpers.read_exactly(peer, size)
                    protocol.transport.close()
            finally:
                # A connection that was not made has no transport that closes it.
                if protocol.transport is None:
                    ours.close()
                protocol.end()

    async def resets(self):
        """A raw socket that goes by a reset at some moment, to servers that may speak TLS."""
        loop = asyncio.get_running_loop()
        sock = socket.socket()
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, self.addresses[self.random.choice(["tcp", "tls"])])
            if self.random.random() < 0.7:
                await loop.sock_sendall(sock, self.data())
        finally:
            helpers.reset(sock)

    async def half_closes(self):
        loop = asyncio.get_running_loop()
        with socket.socket() as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, self.addresses["tcp"])
            data = self.data(20_000)
            await loop.sock_sendall(sock, data)
            sock.shutdown(socket.SHUT_WR)
            assert data.startswith(await helpers.read_to_end(sock))

    async def datagrams(self):
        loop = asyncio.get_running_loop()
        got = self.protocol_of_datagrams()
        transport, _ = await loop.create_datagram_endpoint(
            lambda: got, remote_addr=self.echoing.get_extra_info("sockname")
        )
        try:
            for _ in range(self.random.randrange(50)):
                transport.sendto(self.random.randbytes(self.random.randrange(1, 1400)))
            await asyncio.sleep(self.random.random() / 100)
        finally:
            transport.abort()

    def protocol_of_datagrams(self):
        counts = self.counts

        class Datagrams(asyncio.DatagramProtocol):
            def connection_made(self, transport):
                counts["made"] += 1

            def connection_lost(self, exc):
                counts["lost"] += 1

        return Datagrams()

    async def pipe(self):
        """A pipe through this loop: what is written arrives, unless one of its ends goes before."""
        loop = asyncio.get_running_loop()
        reader, writer = self.protocol(), self.protocol()
        source, sink = helpers.os_pipe()
        try:
            await loop.connect_read_pipe(lambda: reader, source)
            await loop.connect_write_pipe(lambda: writer, sink)
            data = self.data()
            writer.transport.write(data)
            if self.random.random() < 0.7:
                assert await reader.received(len(data)) == data
                writer.transport.close()
                await reader.lost()
        finally:
            for protocol, file in ((reader, source), (writer, sink)):
                if protocol.transport is None:
                    file.close()
                protocol.end()

    async def child(self):
        """A child that returns what it is given, or is killed meanwhile."""
        if self.counts["children"] >= 4 or self.random.random() < 0.7:
            return
        self.counts["children"] += 1
        try:
            process = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
            try:
                data = self.data()
                if self.random.random() < 0.3:
                    process.kill()
                output, _ = await process.communicate(data)
                assert data.startswith(output)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await asyncio.shield(process.wait())
                process._transport.close()
        finally:
            self.counts["children"] -= 1

    async def timers(self):
        loop = asyncio.get_running_loop()
        fired = []
        handles = [loop.call_later(self.random.random() / 100, fired.append, n) for n in range(200)]
        for handle in self.random.sample(handles, 120):
            handle.cancel()
        await asyncio.sleep(0.012)
        assert len(fired) == 80, len(fired)

    async def threads(self):
        """Calls from a thread, in its order."""
        loop = asyncio.get_running_loop()
        got = []
        done = loop.create_future()
        count = self.random.randrange(1, 300)

        def call():
            for number in range(count):
                loop.call_soon_threadsafe(got.append, number)
            loop.call_soon_threadsafe(lambda: done.done() or done.set_result(None))

        thread = threading.Thread(target=call)
        thread.start()
        try:
            await done
            assert got == list(range(count))
        finally:
            thread.join()

    async def executor(self):
        loop = asyncio.get_running_loop()
        delays = [self.random.random() / 1000 for _ in range(self.random.randrange(1, 10))]
        await asyncio.gather(*(loop.run_in_executor(None, time.sleep, delay) for delay in delays))

    async def operations(self):
        """sock_sendall() against sock_recv()."""
        loop = asyncio.get_running_loop()
        ours, peer = helpers.unix_pair()
        with ours, peer:
            data = self.data(1 << 20)
            received, _ = await asyncio.gather(
                helpers.read_exactly(peer, len(data)), loop.sock_sendall(ours, data)
            )
            assert received == data

    async def watchers(self):
        ours, peer = helpers.unix_pair()
        loop = asyncio.get_running_loop()
        with ours, peer:
            ready = asyncio.Event()
            loop.add_reader(ours, ready.set)
            loop.add_writer(peer, loop.remove_writer, peer)
            try:
                peer.send(b"x")
                await ready.wait()
            finally:
                loop.remove_reader(ours)
                loop.remove_writer(peer)

    async def refused(self):
        with contextlib.suppress(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", 9)

    # --- Running them ---

    async def one(self):
        """One activity, which a timeout may cancel at any moment."""
        activity = self.random.choice(self.activities)
        is_cancelled = self.random.random() < 0.3
        task = asyncio.ensure_future(activity())
        if is_cancelled:
            await asyncio.wait([task], timeout=self.random.random() / 50)
            task.cancel()
        await asyncio.wait([task], timeout=HANGS)
        if not task.done():
            raise TimeoutError(f"{activity.__name__} hangs: {task.get_stack()}")
        self.counts[activity.__name__] += 1
        if task.cancelled():
            self.counts["cancelled"] += 1
        elif (exception := task.exception()) is not None and not is_cancelled:
            raise exception

    async def work(self, until):
        while time.monotonic() < until:
            await self.one()

    async def load(self, seconds):
        """Work for some time, then until all that was begun has come to its end."""
        until = time.monotonic() + seconds
        tasks = [asyncio.ensure_future(self.work(until)) for _ in range(WORKERS)]
        before, start = self.done(), time.monotonic()
        while time.monotonic() < until:
            await asyncio.sleep(max(0.0, min(5.0, until - time.monotonic())))
            now = time.monotonic()
            self.say(f"{(self.done() - before) / (now - start):7.0f} activities/s")
            before, start = self.done(), now
        await asyncio.gather(*tasks)
        await helpers.until(lambda: self.counts["made"] == self.counts["lost"], timeout=30)
        # Handshakes that a reset ended, and what closes in the iterations that follow.
        await helpers.until(lambda: len(asyncio.all_tasks()) == 1, timeout=70)
        await helpers.iterations(5)

    def done(self):
        return sum(self.counts[activity.__name__] for activity in set(self.activities))

    def say(self, text):
        print(
            f"{text}  {self.counts['made']:8} connections  {self.counts['cancelled']:6} cancelled"
            f"  {len(helpers.open_descriptors()):4} descriptors  {helpers_leaks.resident() >> 20:4} MiB",
            flush=True,
        )


class _Counted(helpers.Recorder):
    def __init__(self, counts, **hooks):
        super().__init__(**hooks)
        self.counts = counts
        self.ended = False

    def connection_made(self, transport):
        self.counts["made"] += 1
        super().connection_made(transport)
        if self.ended:
            self.end()

    def connection_lost(self, exc):
        self.counts["lost"] += 1
        super().connection_lost(exc)

    def end(self):
        """Abort the connection, now or when it is made."""
        self.ended = True
        if self.transport is not None and not self.transport.is_closing():
            # Pipes that are read have no abort().
            getattr(self.transport, "abort", self.transport.close)()


def _echo(protocol, data):
    protocol.data.clear()
    protocol.transport.write(data)


def _return(protocol, data, addr):
    protocol.datagrams.clear()
    # What is written down of an endpoint that lives as long as the soak would be most of what grows.
    protocol.calls.clear()
    protocol.transport.sendto(data, addr)


def _pause(protocol):
    protocol.transport.pause_reading()


def _resume(protocol):
    protocol.transport.resume_reading()


def judge(load, before, after, activities):
    """What is wrong, in sentences."""
    wrong = [f"reported: {report}" for report in load.reports]
    if load.counts["made"] != load.counts["lost"]:
        wrong.append(f"{load.counts['made']} connections made, {load.counts['lost']} lost")
    grown = {name: after[name] - before[name] for name in before}
    print("grown: " + ", ".join(f"{name} {value:+}" for name, value in grown.items()))
    if grown["descriptors"] > 0:
        wrong.append(f"{grown['descriptors']} descriptors more")
    if grown["objects"] > OBJECTS + activities / 20:
        wrong.append(f"{grown['objects']} objects more")
    if grown["resident"] > BYTES + 16 * activities:
        wrong.append(f"{grown['resident'] >> 20} MiB more")
    return wrong


async def soak(seconds, seed):
    load = Load(seed)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: load.reports.append(context))
    with tempfile.TemporaryDirectory() as directory:
        await load.start(directory)
        try:
            await load.load(seconds / 3)
            before, warm = helpers_leaks.usage(), load.done()
            await load.load(seconds * 2 / 3)
            after = helpers_leaks.usage()
        finally:
            await load.stop()
    wrong = judge(load, before, after, load.done() - warm)
    for activity in sorted({activity.__name__ for activity in load.activities}):
        print(f"{load.counts[activity]:8} {activity}")
        if not load.counts[activity] and load.done() > 1000:
            wrong.append(f"never {activity}")
    return wrong


def main():
    parser = argparse.ArgumentParser(prog="python -m torture.soak", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("HOTLOOP_SEED", "1")))
    parser.add_argument("--loop", choices=list(helpers.FACTORIES), default=list(helpers.FACTORIES)[-1])
    options = parser.parse_args()
    # Should a loop hang, this tells where, and ends it.
    import faulthandler

    faulthandler.dump_traceback_later(options.seconds + 240, exit=True)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    with asyncio.Runner(loop_factory=helpers.FACTORIES[options.loop]) as runner:
        wrong = runner.run(soak(options.seconds, options.seed))
    for sentence in wrong:
        print(sentence)
    print("failed" if wrong else "passed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
