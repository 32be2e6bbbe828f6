"""Stream transports: two ends of a connection, each a transport with a protocol, or a plain socket.

A step of a program acts on one end; then the loop comes to rest. Protocols react to their calls with actions
of their own. What is compared is, for each end, the order of its protocol's calls, what was received, and
what the end looks like after each step. An amount of data is either so small that every buffer takes it, or
so large that none does; what is received is checked against what was sent, byte for byte.
"""

import asyncio
import contextlib
import functools
import os
import socket

import helpers

from . import running
from .transport_programs import BIG, Act, Write, programs

__all__ = ["machine", "programs"]

MUCH = 1 << 14  # from here on it is up to the kernel how much comes
PATTERN = os.urandom(65521)
SENT = PATTERN * (20 * BIG // len(PATTERN))


def connected(kind):
    """Two connected sockets of that kind."""
    both = helpers.PAIRS[kind]()
    if kind == "tcp":
        # asyncio leaves it out for a socket that was made without naming TCP.
        for sock in both:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    return both


class Received:
    """Checks what comes against what was sent."""

    def __init__(self, note, name):
        self.note, self.name = note, name
        self.count = 0

    def take(self, data):
        expected = SENT[self.count : self.count + len(data)]
        if data != expected:
            self.note.note(self.name, "corrupt", self.count, len(data))
        self.count += len(data)
        if self.count >= MUCH:
            self.note.much(self.name + " received")
        else:
            self.note.amount(self.name + " received", "data", len(data))


class _Calls:
    """A protocol that notes its calls, and reacts."""

    def __init__(self, end, reactions):
        self.end = end
        self.number = end.protocols
        end.protocols += 1
        self.reactions = {on.call: on.actions for on in reactions}

    def called(self, call, *what):
        self.end.machine.trace.once(self.end.name, self.number, call, *what)
        actions = self.reactions.pop(call, ())
        if call == "resume_writing":
            # If it exits, asyncio goes on watching a socket that it has nothing to send on, and spins. If it
            # closes or aborts, asyncio says twice that the connection is lost.
            wrong = (Act("raise_leave"), Act("close"), Act("abort"))
            actions = [action for action in actions if action not in wrong]
        return self.end.react(actions)

    def connection_made(self, transport):
        self.end.transport = transport
        self.called("connection_made")

    def connection_lost(self, exc):
        self.end.lost = True
        self.called("connection_lost", running.told(exc))

    def eof_received(self):
        count = self.end.received.count
        return self.called("eof_received", "after", count if count < MUCH else "much")

    def pause_writing(self):
        self.called("pause_writing")

    def resume_writing(self):
        self.called("resume_writing")

    def data(self, data):
        self.end.received.take(data)
        actions = self.reactions.pop("data_received", None)
        if actions is not None:
            self.called("data_received", "first")
            self.end.react(actions)


class Streamed(_Calls, asyncio.Protocol):
    def data_received(self, data):
        self.data(data)


class Buffered(_Calls, asyncio.BufferedProtocol):
    def __init__(self, *args):
        super().__init__(*args)
        self.buffer = bytearray(1 << 16)

    def get_buffer(self, sizehint):
        return self.buffer

    def buffer_updated(self, nbytes):
        self.data(bytes(self.buffer[:nbytes]))


class End:
    """One end, with a transport."""

    def __init__(self, machine, name):
        self.machine, self.name = machine, name
        self.transport = None
        self.lost = False
        self.protocols = 0
        self.sent = 0
        self.in_vain = None  # the step in which it wrote to a peer that is gone
        self.received = Received(machine.trace, name)

    def note(self, *what):
        self.machine.trace.note(self.name, *what)

    def protocol(self, buffered, reactions):
        return (Buffered if buffered else Streamed)(self, reactions)

    def react(self, actions):
        """A reaction sees the exceptions of what it calls, but those that it raises itself are its own."""
        result = None
        for action in actions:
            if isinstance(action, Act) and action.what.startswith("raise_"):
                raise running.EXCEPTIONS[
                    {"failure": "Failure", "leave": "Leave", "oserror": "OSError"}[action.what[6:]]
                ]("raised")
            if action == Act("keep_open"):
                result = True
            elif action == Act("stop"):
                self.machine.loop.stop()
            else:
                self.perform(action)
        return result

    def perform(self, action):
        name = getattr(action, "what", type(action).__name__)
        try:
            result = getattr(self, type(action).__name__.lower())(action)
        except Exception as exc:
            result = running.told(exc)
        if result is not None:
            self.note("  ", name, result)

    def may_write(self, size):
        """Whether asyncio determines what comes of a write.

        After connection_lost it may fail in its own insides. What is sent to a peer that is gone brings an
        error with the next system call: whether that is in the same write, or comes later, is not comparable.
        """
        if self.lost or self.transport.is_closing():
            return not self.lost and size < BIG
        if not self.other.is_gone():
            return True
        if size >= BIG or self.in_vain == self.machine.now:
            return False
        self.in_vain = self.machine.now
        return True

    def is_gone(self):
        return self.transport is not None and self.transport.is_closing()

    def write(self, action):
        if self.may_write(action.size):
            self.sending(self.transport.write, SENT[self.sent : self.sent + action.size], action.size)

    def sending(self, method, data, size):
        self.sent += size
        try:
            method(data)
        except Exception:
            self.sent -= size  # refused
            raise

    def writelines(self, action):
        if self.transport.is_closing() or not self.may_write(1):
            return  # in 3.12 and 3.13 asyncio does not look whether it is closing
        lines, position = [], self.sent
        for size in action.sizes:
            lines.append(SENT[position : position + size])
            position += size
        self.sending(self.transport.writelines, lines, position - self.sent)

    def limits(self, action):
        self.transport.set_write_buffer_limits(action.high, action.low)

    def soon(self, action):
        if self.in_vain == self.machine.now:
            return  # an error at once comes before it, and a later one behind
        self.machine.loop.call_soon(self.react, action.actions)

    def setprotocol(self, action):
        self.transport.set_protocol(self.protocol(action.buffered, action.reactions))

    def act(self, action):
        if self.lost and action.what == "abort":
            return None  # asyncio may fail in its own insides
        result = getattr(self.transport, action.what)()
        return result > 0 if action.what == "get_write_buffer_size" else result

    def state(self):
        transport = self.transport
        if transport is None:
            return ("never made",)
        sock = transport.get_extra_info("socket")
        return (
            "closing" if transport.is_closing() else "open",
            "reading" if transport.is_reading() else "not reading",
            "buffer" if transport.get_write_buffer_size() else "no buffer",
            "gone" if sock is None or sock.fileno() < 0 else "there",
        )

    def finish(self):
        if self.transport is not None and not self.lost:
            self.transport.abort()


class Plain(End):
    """One end, a plain socket that does not block."""

    sock = None
    deaf = False

    def is_gone(self):
        return self.deaf or self.sock.fileno() < 0

    def perform(self, action):
        if self.sock.fileno() < 0:
            return
        super().perform(action)

    def write(self, action):
        """What does not fit is not sent."""
        with contextlib.suppress(BlockingIOError):
            while action.size:
                sent = self.sock.send(SENT[self.sent : self.sent + action.size])
                self.sent += sent
                if action.size < BIG:
                    break

    def act(self, action):
        return getattr(self, action.what, lambda: None)()

    def write_eof(self):
        self.sock.shutdown(socket.SHUT_WR)

    def shutdown_reading(self):
        self.deaf = True
        self.sock.shutdown(socket.SHUT_RD)

    def close(self):
        self.sock.close()

    def abort(self):
        if self.sock.family == socket.AF_INET:
            helpers.reset(self.sock)
        self.sock.close()

    def drain(self):
        """Read what there is; `rest` comes back for more."""
        while self.sock.fileno() >= 0:
            try:
                data = self.sock.recv(1 << 20)
            except BlockingIOError:
                return
            except OSError as exc:
                self.note("error", running.told(exc))
                return
            if not data:
                self.machine.trace.once(self.name, "end of file")
                return
            self.received.take(data)

    def state(self):
        return ()

    def finish(self):
        self.sock.close()


class Machine(running.Machine):
    """What runs such a program."""

    def __init__(self, loop, trace, program, slowness):
        super().__init__(loop, trace, program.debug)
        self.left = End(self, "left")
        self.right = (Plain if program.right is None else End)(self, "right")
        self.left.other, self.right.other = self.right, self.left
        self.now = -1  # the step
        running.run_all(loop, self.main(program), trace.once)

    async def main(self, program):
        await self.connect(program)
        await running.rest(self.trace)
        self.mark(-1)
        for number, step in enumerate(program.steps):
            self.now = number
            end = getattr(self, step.end)
            if isinstance(end, Plain) or end.transport is not None:
                self.loop.call_soon(self.step, end, step.actions)
            await running.rest(self.trace)
            if isinstance(end, Plain) and Act("drain") in step.actions:
                await self.drain(end)
            self.mark(number)
        for end in (self.left, self.right):
            end.finish()
        await running.rest(self.trace)
        self.mark("end")

    async def drain(self, end):
        count = -1
        while count != end.received.count:
            count = end.received.count
            end.drain()
            await running.rest(self.trace)

    def step(self, end, actions):
        if isinstance(end, Plain):
            for action in actions:
                end.perform(action)
        else:
            end.react(actions)

    def mark(self, number):
        for end in (self.left, self.right):
            self.trace.note(end.name, "-- step", number, *end.state())
            self.trace.note(end.name + " received", "-- step", number)

    async def connect(self, program):
        makers = {
            "left": functools.partial(self.left.protocol, program.buffered, program.left),
            "right": program.right is not None
            and functools.partial(self.right.protocol, program.buffered, program.right),
        }
        if program.kind == "served":
            await self.serve(makers)
            return
        ours, peer = connected(program.kind)
        if program.right is None:
            self.right.sock = peer
            self.right.perform(Write(program.early))
        else:
            await self.loop.create_connection(makers["right"], sock=peer)
        await self.loop.create_connection(makers["left"], sock=ours)

    async def serve(self, makers):
        """The left end is accepted by a server, the right one connects."""
        server = await self.loop.create_server(makers["left"], "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        if makers["right"]:
            await self.loop.create_connection(makers["right"], *address)
        else:
            self.right.sock = socket.create_connection(address)
            self.right.sock.setblocking(False)
            self.right.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        await running.rest(self.trace)
        server.close()


machine = Machine
