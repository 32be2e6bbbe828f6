"""Objects that do something unexpected when they are used, and the things that every case begins with."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import os
import signal
import socket
import sys
import threading

import hotloop
from hotloop import _core as core  # noqa: F401  (for the programs)

# What nothing may raise, whatever it was called with.
FORBIDDEN = (SystemError,)
# How often one object does what it does: it may be used by that, again.
TIMES = 3


class Overdue(KeyboardInterrupt):
    """A program that waits for nothing has been interrupted."""


wrongs = []


def check(error):
    """Note an exception that says that hotloop is at fault."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, FORBIDDEN) or type(error).__name__ == "PanicException":
            wrongs.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or error.__context__


class Acts:
    """Calls what it was made with, a few times."""

    def __init__(self, act, result=None):
        self.act = act
        self.result = result
        self.left = TIMES

    def __call__(self, *args, **kwargs):
        if self.left > 0:
            self.left -= 1
            self.act()
        return self.result


def special(name, act, result, base=object):
    """An instance of a subclass whose special method does something before it returns `result`."""
    acts = Acts(act, result)
    members = {name: lambda self, *args: acts()}
    if name == "__eq__":
        members["__hash__"] = lambda self: 0
    with contextlib.suppress(TypeError):
        return type("Special", (base,), members)()
    return type("Special", (), members)()


class Finalized:
    """Does something when it is dropped."""

    def __init__(self, act):
        self.acts = Acts(act)

    def __del__(self):
        self.acts()


class Everything:
    """Has every attribute, each of which does something."""

    def __init__(self, act):
        self.__dict__["acts"] = Acts(act)

    def __getattr__(self, name):
        acts = self.__dict__["acts"]
        acts()
        return acts


class Text(str):
    pass


class Binary(bytes):
    pass


class Integer(int):
    def __index__(self):
        return 1 << 70


class Pair(tuple):
    pass


class Names(dict):
    def __missing__(self, key):
        return None


class Lent(bytearray):
    """A buffer that can't be resized while it is lent; it tries to be."""

    def __len__(self):
        with contextlib.suppress(BufferError):
            self.clear()
        return 5


def released(act):
    view = memoryview(bytearray(100))
    view.release()
    return view


def endless(act):
    """An iterator of data that ends after it did something."""
    yield b"first"
    act()
    yield bytearray(b"second")
    yield "third"


class Protocol(asyncio.Protocol, asyncio.DatagramProtocol, asyncio.SubprocessProtocol):
    """Does something in each call that it gets."""

    def __init__(self, act):
        self.acts = Acts(act)

    def __getattribute__(self, name):
        if name.startswith("_") or name == "acts":
            return super().__getattribute__(name)
        return self.acts


class BufferedProtocol(asyncio.BufferedProtocol):
    """Lends a buffer, and takes it back."""

    def __init__(self, act):
        self.acts = Acts(act)
        self.buffer = bytearray(1000)

    def get_buffer(self, sizehint):
        self.acts()
        return self.buffer

    def buffer_updated(self, nbytes):
        self.buffer.clear()
        self.acts()


def entered():
    """A context that is entered already."""
    context = contextvars.copy_context()
    generator = context.run(lambda: (value for value in [context]))
    return next(generator)


async def coroutine(act):
    act()
    await asyncio.sleep(0)
    act()


def overriding(base, name, act, result):
    """A class of loops with a method of its own."""
    acts = Acts(act, result)

    def init(self):
        base.__init__(self)
        self._closed = False  # which the core alone is until asyncio's half has been made, too

    return type("Overriding", (base,), {"__init__": init, name: lambda self, *args, **kwargs: acts()})


def in_thread(act):
    """Do it in another thread, and wait a moment for it."""

    def run():
        try:
            act()
        except BaseException as error:
            check(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(0.05)


def handle_exception(loop, context):
    check(context.get("exception"))


def run(loop, times=3):
    """Let the loop go round."""
    for _ in range(times):
        loop.call_soon(loop.stop)
        loop.run_forever()


def interrupt(signum, frame):
    raise Overdue


def pair(kind=socket.SOCK_STREAM):
    both = socket.socketpair(socket.AF_UNIX, kind)
    for sock in both:
        sock.setblocking(False)
    return both


def things(loop):
    """An instance of each class of the extension that Python can reach, and what they work with."""
    made = {"loop": loop, "ours": [], "peers": []}
    quiet = Protocol(int)
    for kind in (socket.SOCK_STREAM, socket.SOCK_STREAM, socket.SOCK_STREAM, socket.SOCK_DGRAM):
        ours, peer = pair(kind)
        made["ours"].append(ours)
        made["peers"].append(peer)
    server = socket.create_server(("127.0.0.1", 0))
    server.setblocking(False)
    reader, writer = (os.fdopen(end, mode, 0) for end, mode in zip(os.pipe(), ("rb", "wb"), strict=True))
    made["keep"] = [
        loop.call_soon(int),
        loop.call_later(0.001, int),
        loop.call_soon_threadsafe(int),
        loop._make_socket_transport(made["ours"][0], quiet),
        loop._make_datagram_transport(made["ours"][3], quiet),
        loop._make_read_pipe_transport(reader, quiet),
        loop._make_write_pipe_transport(writer, quiet),
        loop.sock_recv(made["ours"][1], 100),
        loop._start_serving(lambda: Protocol(int), server),
        loop._connect(*server.getsockname()),
    ]
    made.update(server=server, reader=reader, writer=writer, future=loop.create_future())
    for found in gc.get_objects():
        if type(found).__module__ == "hotloop._core" and type(found).__name__.lower() not in made:
            made[type(found).__name__.lower()] = found
    return made


def begin(frequent):
    """The names that a program uses."""
    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2, 0.1)
    sys.unraisablehook = lambda found: check(found.exc_value)
    threading.excepthook = lambda found: check(found.exc_value)
    loop = hotloop.new_event_loop()
    loop.set_exception_handler(handle_exception)
    names = {**globals(), **things(loop)}
    if frequent:
        gc.set_threshold(1)
    return names


def end(names):
    """Collect what is left, and see whether memory still is what it should be."""
    gc.set_threshold(700, 10, 10)
    loop = names.get("loop")
    for step in (run, hotloop.Loop.close):
        try:
            step(loop)
        except BaseException as error:
            check(error)
    del loop, step
    names.clear()
    for _ in range(3):
        gc.collect()
    filled = [(bytes(size), [size], {size: size}) for size in range(600)]
    assert all(len(data) == size == sizes[0] for size, (data, sizes, _) in enumerate(filled))


def execute(lines, frequent):
    """Carry out a program. Returns what hotloop did wrong."""
    names = begin(frequent)
    for line in lines:
        try:
            exec(compile(line, line, "exec"), names)
        except BaseException as error:
            check(error)
    names.pop("__builtins__", None)
    end(names)
    return wrongs
