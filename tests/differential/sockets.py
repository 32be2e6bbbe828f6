"""add_reader, add_writer and the sock_* methods on plain sockets; StreamReader and StreamWriter over a pair.

Each step acts on one of two connected sockets, at once, with the loop at rest before and after. At most one
operation a direction waits on a socket: what two of them do is nobody's promise.
"""

import asyncio
import contextlib
import socket
from dataclasses import dataclass

from hypothesis import strategies as st

from . import running
from .generating import tuples
from .transports import BIG, SENT, Received, connected


@dataclass(frozen=True)
class Op:
    """A method of Socket, for one end, and a number of bytes for it."""

    end: str
    what: str
    size: int = 0


@dataclass(frozen=True)
class Program:
    kind: str
    steps: tuple  # of tuples of operations that are done without a break
    debug: bool = False


@dataclass(frozen=True)
class Streams:
    """What a task on each end does, with a StreamReader and a StreamWriter."""

    kind: str
    left: tuple
    right: tuple
    limit: int = 1 << 16


OPERATIONS = (
    "recv", "recv_into", "sendall", "sendall_big", "cancel_reading", "cancel_writing", "cancel_writing",
    "add_reader", "add_reader_once", "add_reader_raising", "remove_reader", "add_writer",
    "add_writer_raising", "remove_writer", "send", "send", "shutdown", "drain", "drain", "add_both", "yield_",
)  # fmt: skip
READS = ("read", "readexactly", "readline", "readuntil", "read_all")
WRITES = ("write", "write", "writelines", "write_line", "write_big")
OTHERS = ("drain", "write_eof", "close", "wait_closed", "sleep", "at_eof", "fail", "is_closing")


def _strategy():
    operation = st.builds(
        Op, st.sampled_from(["left", "right"]), st.sampled_from(OPERATIONS), st.sampled_from([1, 10, 100])
    )
    step = tuples(operation, min_size=1, max_size=3)
    kinds = st.sampled_from(["unix", "tcp"])
    return st.builds(
        Program,
        kinds,
        tuples(step, min_size=1, max_size=10),
        st.sampled_from([False, False, True]),
    )


def _streams():
    doing = st.builds(
        Op, st.just("task"), st.sampled_from(READS * 2 + WRITES * 2 + OTHERS), st.sampled_from([1, 5, 20])
    )
    script = tuples(doing, max_size=8)
    kinds, limits = st.sampled_from(["unix", "tcp"]), st.sampled_from([16, 1 << 16])
    # What is sent to a peer that closes brings an error with one write or with the next.
    sending = script.map(lambda script: tuple(op for op in script if op.what not in ("close", "wait_closed")))
    reading = script.map(lambda script: tuple(op for op in script if op.what not in (*WRITES, "close")))
    return st.one_of(
        st.builds(Streams, kinds, sending, sending, limits),
        st.builds(Streams, kinds, script, reading, limits),
    )


programs = st.one_of(_strategy(), _streams())


class Socket:
    """One end."""

    def __init__(self, machine, name, sock):
        self.loop, self.trace = machine.loop, machine.trace
        self.name, self.sock = name, sock
        self.sent = 0
        self.full = False  # a large amount was begun: how much of it was sent is up to the kernel
        self.received = Received(machine.trace, name)
        self.reading = self.writing = None  # the task of an operation, or "watched"

    def note(self, *what):
        self.trace.note(self.name, *what)

    def busy(self, user):
        return user == "watched" or (user is not None and not user.done())

    async def run(self, name, coro):
        try:
            self.note(name, await coro)
        except asyncio.CancelledError:
            self.note(name, "cancelled")
        except Exception as exc:
            self.note(name, "fails", running.told(exc))

    async def receive(self, size):
        data = await self.loop.sock_recv(self.sock, size)
        self.received.take(data)
        return bool(data)

    async def receive_into(self, size):
        buffer = bytearray(size)
        count = await self.loop.sock_recv_into(self.sock, buffer)
        self.received.take(bytes(buffer[:count]))
        return bool(count)

    def recv(self, size):
        if not self.busy(self.reading):
            self.reading = self.loop.create_task(self.run("recv", self.receive(size)))

    def recv_into(self, size):
        if not self.busy(self.reading):
            self.reading = self.loop.create_task(self.run("recv_into", self.receive_into(size)))

    def sendall(self, size):
        if not self.busy(self.writing) and not self.full:
            data = SENT[self.sent : self.sent + size]
            self.sent += size
            self.full = size >= BIG
            self.writing = self.loop.create_task(self.run("sendall", self.loop.sock_sendall(self.sock, data)))

    def sendall_big(self, size):
        self.sendall(BIG)

    def cancel_reading(self, size):
        if self.busy(self.reading) and self.reading != "watched":
            self.note("cancel", self.reading.cancel())

    def cancel_writing(self, size):
        if self.busy(self.writing) and self.writing != "watched":
            self.note("cancel", self.writing.cancel())

    def readable(self, once, raising):
        self.trace.once(self.name, "readable")
        if once:
            self.remove_reader()
        try:
            data = self.sock.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError as exc:
            self.note("error", running.told(exc))
            data = b""
        self.received.take(data)
        if not data and not once:
            self.remove_reader()
        if raising:
            self.remove_reader()  # how often it is called for a lot of data is up to the kernel
            raise running.Failure("reader")

    def writable(self, raising):
        self.trace.once(self.name + " writable", "writable")
        if raising:
            self.remove_writer()
            raise running.Failure("writer")

    def add_reader(self, size=0, once=False, raising=False):
        if not self.busy(self.reading) or self.reading == "watched":
            self.reading = "watched"
            self.loop.add_reader(self.sock, self.readable, once, raising)

    def add_reader_once(self, size):
        self.add_reader(once=True)

    def add_reader_raising(self, size):
        self.add_reader(raising=True)

    def add_writer(self, size=0, raising=False):
        if not self.busy(self.writing) or self.writing == "watched":
            self.writing = "watched"
            self.loop.add_writer(self.sock.fileno(), self.writable, raising)

    def add_writer_raising(self, size):
        self.add_writer(raising=True)

    def add_both(self, size):
        self.add_reader()
        self.add_writer(raising=True)

    def remove_reader(self, size=0):
        if self.reading == "watched" or not self.busy(self.reading):
            self.note("remove_reader", self.loop.remove_reader(self.sock))
            self.reading = None

    def remove_writer(self, size=0):
        if self.writing == "watched" or not self.busy(self.writing):
            self.note("remove_writer", self.loop.remove_writer(self.sock))
            self.writing = None

    def send(self, size):
        if not self.busy(self.writing) and not self.full:
            with contextlib.suppress(OSError):
                self.sent += self.sock.send(SENT[self.sent : self.sent + size])

    def shutdown(self, size):
        if not self.busy(self.writing) and not self.full:
            self.full = True  # nothing comes after it
            self.sock.shutdown(socket.SHUT_WR)

    def drain(self, size):
        pass  # the machine does

    def yield_(self, size):
        pass


class Machine(running.Machine):
    """What runs such a program."""

    def __init__(self, loop, trace, program, slowness):
        super().__init__(loop, trace, isinstance(program, Program) and program.debug)
        running.run_all(loop, getattr(self, type(program).__name__.lower())(program), trace.once)

    async def program(self, program):
        left, right = connected(program.kind)
        ends = {"left": Socket(self, "left", left), "right": Socket(self, "right", right)}
        for number, step in enumerate(program.steps):
            for operation in step:
                try:
                    getattr(ends[operation.end], operation.what)(operation.size)
                except Exception as exc:
                    self.trace.note(operation.end, operation.what, running.told(exc))
                if operation.what == "yield_":
                    await running.rest(self.trace)
            await running.rest(self.trace)
            for operation in step:
                if operation.what == "drain":
                    await self.drain(ends[operation.end])
            for name in ends:
                self.trace.note(name, "-- step", number)
                self.trace.note(name + " received", "-- step", number)
                self.trace.note(name + " writable", "-- step", number)
        for end in ends.values():
            end.cancel_reading(0)
            end.cancel_writing(0)
        await running.rest(self.trace)
        for end in ends.values():
            end.remove_reader()
            end.remove_writer()
            end.sock.close()

    async def drain(self, end):
        """Take all that comes, if nobody else reads."""
        count = -1
        while count != end.received.count and not end.busy(end.reading):
            count = end.received.count
            with contextlib.suppress(OSError):
                while data := end.sock.recv(1 << 20):
                    end.received.take(data)
            await running.rest(self.trace)

    # Streams

    async def streams(self, program):
        tasks, writers = {}, {}
        for name, sock in zip(("left", "right"), connected(program.kind), strict=True):
            reader, writers[name] = await asyncio.open_connection(sock=sock, limit=program.limit)
            script = getattr(program, name)
            tasks[name] = self.loop.create_task(self.script(name, reader, writers[name], script))
        await running.rest(self.trace, 1000)  # a lot of data may be on its way without anything to be seen
        for name, task in tasks.items():
            self.trace.note(name, "stuck", task.cancel())
            await running.rest(self.trace)
        for name, task in tasks.items():
            self.trace.note(name, "ended", task.cancelled() or running.told(task.exception()))
            with contextlib.suppress(AttributeError):  # asyncio's own, of a transport that is gone
                writers[name].transport.abort()
        await running.rest(self.trace)

    async def script(self, name, reader, writer, script):
        written = 0
        for step in script:
            size = BIG if step.what == "write_big" else step.size
            data = SENT[written : written + size]
            try:
                result = None
                if step.what in ("write", "write_big"):
                    writer.write(data)
                elif step.what == "writelines" and not writer.is_closing():
                    writer.writelines([data[:2], data[2:]] if size > 2 else [data])
                elif step.what == "write_line":
                    writer.write(b"-" * size + b"\n")
                elif step.what == "readexactly":
                    result = await reader.readexactly(size)
                elif step.what == "readuntil":
                    result = await reader.readuntil(b"--\n")
                elif step.what == "readline":
                    result = await reader.readline()
                elif step.what == "read":
                    result = bool(await reader.read(1))  # how much there is, is up to the kernel
                elif step.what == "read_all":
                    result = len(await reader.read())
                elif step.what == "sleep":
                    for _ in range(3):
                        await asyncio.sleep(0)
                elif step.what == "fail":
                    raise running.Failure("script")
                elif step.what in ("drain", "wait_closed"):
                    await getattr(writer, step.what)()
                elif step.what == "at_eof":
                    result = reader.at_eof() or None
                elif step.what != "writelines":
                    result = getattr(writer, step.what)()
                if step.what.startswith("write"):
                    written += size
            except running.Failure:
                raise
            except Exception as exc:
                result = running.told(exc)
            self.trace.note(name, step.what, result)


machine = Machine
