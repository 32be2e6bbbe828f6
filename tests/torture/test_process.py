"""What else a program, or its process, can do to a loop: each in a process of its own."""

import os
import sys

import pytest

from torture import programs
from torture.effort import effort

PROGRAMS = {
    # --- Descriptors that are closed behind the loop's back ---
    "all descriptors closed while it runs": """
lost = []
class Protocol(asyncio.Protocol):
    def connection_lost(self, exc):
        lost.append(exc)
async def main():
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: None)
    ours, peer = socket.socketpair()
    transport, _ = await loop.create_connection(Protocol, sock=ours)
    await asyncio.sleep(0.001)
    os.closerange(3, 300)
    transport.write(b"x")
    transport.abort()
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(lost) == 1
try:
    run(main())
except OSError as error:
    # Its poller is gone.
    assert error.errno == 9, error
print("end", flush=True)
os._exit(0)
""",
    "all descriptors closed between runs": """
loop = new_event_loop()
loop.run_until_complete(asyncio.sleep(0.001))
os.closerange(3, 300)
threading.Timer(0.01, loop.call_soon_threadsafe, [loop.stop]).start()
loop.call_later(0.5, loop.stop)
try:
    loop.run_forever()
except OSError as error:
    assert error.errno == 9, error
try:
    loop.close()
except OSError as error:
    assert error.errno == 9, error
other = new_event_loop()
other.run_until_complete(asyncio.sleep(0.001))
other.close()
print("end")
""",
    "everything open and closed behind its back": """
loop = new_event_loop()
loop.set_exception_handler(lambda loop, context: None)
async def main():
    async def serve(reader, writer):
        pass
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    endpoint, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0))
    child = await asyncio.create_subprocess_exec("sleep", "0.1", stdin=-1, stdout=-1)
    loop.add_signal_handler(signal.SIGUSR1, int)
    await asyncio.sleep(0.001)
    os.closerange(3, 300)
    for call in (
        lambda: writer.write(b"x"),
        lambda: endpoint.sendto(b"x", ("127.0.0.1", 9)),
        lambda: child.stdin.write(b"x"),
        *(server.close, writer.close, endpoint.close, child.kill),
    ):
        try:
            call()
        except (OSError, ValueError):
            pass
    for _ in range(50):
        await asyncio.sleep(0)
try:
    loop.run_until_complete(main())
except OSError as error:
    assert error.errno == 9, error
try:
    loop.close()
except (OSError, ValueError):
    pass
print("end", flush=True)
os._exit(0)
""",
    "its numbers taken by other files": """
loop = new_event_loop()
loop.add_signal_handler(signal.SIGUSR1, int)
loop.run_until_complete(asyncio.sleep(0.001))
os.closerange(3, 300)
files = [os.open("/dev/zero", os.O_RDONLY) for _ in range(20)]
loop.call_later(0.01, loop.stop)
try:
    loop.run_forever()
except OSError:
    pass
try:
    loop.close()
except OSError:
    pass
print("end", flush=True)
os._exit(0)
""",
    # --- The limits of Python ---
    "recursion in callbacks": """
loop = new_event_loop()
got = []
loop.set_exception_handler(lambda loop, context: got.append(type(context["exception"])))
def deeper():
    deeper()
class Destroyed:
    def __call__(self):
        pass
    def __del__(self):
        try:
            deeper()
        except RecursionError:
            got.append(RecursionError)
loop.call_soon(deeper)
loop.call_later(0.001, deeper)
loop.call_soon(Destroyed())
loop.call_soon_threadsafe(deeper)
loop.call_later(0.02, loop.stop)
loop.run_forever()
assert got == [RecursionError] * 4, got
print("end")
""",
    "methods called at the limit of recursion": """
loop = new_event_loop()
loop.set_exception_handler(lambda loop, context: None)
ours, other = (sock for sock in socket.socketpair())
peer, unused = socket.socketpair()
for sock in (other, peer):
    sock.setblocking(False)
async def main():
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
    endpoint, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0))
    calls = [
        lambda: loop.call_soon(int), lambda: loop.call_later(0, int), lambda: loop.call_at(0, int).cancel(),
        lambda: loop.call_soon_threadsafe(int), lambda: transport.write(b"x"), lambda: repr(transport),
        lambda: repr(loop), lambda: loop.create_future(), lambda: loop.create_task(asyncio.sleep(0)),
        lambda: transport.get_extra_info("sockname"), lambda: loop.add_reader(peer, int),
        lambda: loop.remove_reader(peer), lambda: transport.pause_reading(),
        lambda: transport.resume_reading(), lambda: endpoint.sendto(b"x", ("127.0.0.1", 9)),
        lambda: transport.set_protocol(asyncio.Protocol()),
        lambda: loop.call_exception_handler({"message": "x"}), lambda: loop.time(),
        lambda: loop.run_in_executor(None, int), lambda: loop.sock_recv(peer, 1).close(),
        lambda: getattr(loop, "metrics", int)(),
    ]
    def deeper(call):
        try:
            deeper(call)
        finally:
            try:
                call()
            except RecursionError:
                pass
    for call in calls:
        try:
            deeper(call)
        except RecursionError:
            pass
        await asyncio.sleep(0)
    transport.abort()
    endpoint.abort()
    await asyncio.sleep(0.001)
loop.run_until_complete(main())
loop.run_until_complete(loop.shutdown_default_executor())
loop.close()
print("end")
""",
    "an exception handler that fails": """
import logging
logging.disable(logging.CRITICAL)
loop = new_event_loop()
failures = 0
def handler(loop, context):
    global failures
    failures += 1
    raise [RecursionError, ValueError, asyncio.CancelledError, MemoryError, GeneratorExit][failures % 5]
loop.set_exception_handler(handler)
for _ in range(20):
    loop.call_soon(lambda: 1 / 0)
loop.call_later(0.01, loop.stop)
while True:
    try:
        loop.run_forever()
        break
    except GeneratorExit:
        pass
assert failures == 20, failures
print("end")
""",
    "writes in pause_writing": """
loop = new_event_loop()
loop.set_exception_handler(lambda loop, context: None)
ours, peer = socket.socketpair()
class Protocol(asyncio.Protocol):
    depth = 0
    def connection_made(self, transport):
        self.transport = transport
        transport.set_write_buffer_limits(0)
    def pause_writing(self):
        self.depth += 1
        if self.depth < 100:
            self.transport.set_write_buffer_limits(1 << 30)
            self.transport.set_write_buffer_limits(0)
            self.transport.write(b"x" * 100)
        self.transport.abort()
    def connection_lost(self, exc):
        loop.stop()
async def main():
    transport, _ = await loop.create_connection(Protocol, sock=ours)
    transport.write(b"x" * (1 << 24))
loop.create_task(main())
loop.run_forever()
print("end")
""",
    # --- Imports and interpreters ---
    "imported again and again": """
async def main():
    await asyncio.sleep(0.001)
    assert await asyncio.get_running_loop().run_in_executor(None, lambda: 42) == 42
    assert await (await asyncio.create_subprocess_exec("true")).wait() == 0
for _ in range(3):
    run(main())
    if new_event_loop is not asyncio.new_event_loop:
        for name in [name for name in sys.modules if name.startswith("hotloop")]:
            del sys.modules[name]
        import hotloop
        hotloop.run(main())
print("end")
""",
    # --- Threads ---
    "threads that misuse it": """
import random
loop = new_event_loop()
loop.set_exception_handler(lambda loop, context: None)
ours, peer = socket.socketpair()
class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        self.transport.write(data)
async def setup():
    await loop.create_connection(Echo, sock=peer)
    transport, _ = await loop.create_connection(Echo, sock=ours)
    transport.write(b"x")
    return transport
transport = loop.run_until_complete(setup())
going = True
def misuse(seed):
    choose = random.Random(seed)
    sock, other = socket.socketpair()
    handles = []
    calls = [
        lambda: loop.call_soon(int), lambda: handles.append(loop.call_later(choose.random() / 100, int)),
        lambda: handles and handles.pop().cancel(), lambda: transport.write(b"y"), lambda: loop.close(),
        lambda: transport.pause_reading(), lambda: transport.resume_reading(),
        lambda: loop.add_reader(sock, int), lambda: loop.remove_reader(sock),
        lambda: loop.add_writer(sock, int), lambda: loop.remove_writer(sock),
        lambda: loop.call_soon_threadsafe(int), lambda: transport.get_write_buffer_size(), lambda: repr(loop),
        lambda: loop.run_forever(), lambda: loop.create_future(), lambda: loop.run_until_complete(None),
        lambda: getattr(loop, "metrics", int)(), lambda: transport.set_protocol(transport.get_protocol()),
        lambda: loop._run_once(), lambda: transport.get_extra_info("socket").getsockname(),
    ]
    while going:
        try:
            choose.choice(calls)()
        except Exception:
            pass
threads = [threading.Thread(target=misuse, args=[seed]) for seed in range(4)]
def tick():
    loop.call_later(0.001, tick)
def end():
    global going
    time.sleep({seconds})
    going = False
    for thread in threads:
        thread.join()
    loop.call_soon_threadsafe(loop.stop)
ender = threading.Thread(target=end)
def begin():
    # Now that it runs, nobody else may close it.
    tick()
    for thread in [*threads, ender]:
        thread.start()
loop.call_soon(begin)
loop.run_forever()
ender.join()
print("end")
""",
    # --- Clocks ---
    "clocks that go back or jump": """
loop = new_event_loop()
class Backwards(type(loop)):
    now = 1000.0
    def time(self):
        self.now -= 0.01
        return self.now
class Jumping(type(loop)):
    now = 0.0
    def time(self):
        self.now = {{0.0: 1e9, 1e9: -5.0, -5.0: float("inf")}}.get(self.now, 0.0)
        return self.now
for kind in (Backwards, Jumping):
    other = kind()
    ran = []
    def again():
        ran.append(1)
        other.call_soon(again) if len(ran) < 100 else other.stop()
    other.call_soon(again)
    other.call_later(-1000, ran.append, 1)
    other.call_at(float("-inf"), ran.append, 1)
    other.call_later(1e300, ran.append, 1)
    other.run_forever()
    assert len(ran) >= 100
    other.close()
# One that stands still, and then goes on.
time.monotonic, real = lambda: 0.0, time.monotonic
late = []
loop.call_later(0.001, late.append, 1)
loop.run_until_complete(asyncio.sleep(0))
assert not late
time.monotonic = real
loop.run_until_complete(asyncio.sleep(0.001))
assert late
print("end")
""",
    # --- Subclasses ---
    "methods that fail": """
loop = new_event_loop()
loop.set_exception_handler(lambda loop, context: None)
class Failing(asyncio.Protocol):
    def __getattribute__(self, name):
        raise ValueError(name)
ours, peer = socket.socketpair()
async def main():
    transport = None
    try:
        transport, _ = await asyncio.wait_for(loop.create_connection(Failing, sock=ours), 1)
    except (ValueError, TimeoutError):
        pass
    try:
        peer.send(b"x")
    except BrokenPipeError:
        pass
    await asyncio.sleep(0.001)
    peer.close()
    await asyncio.sleep(0.001)
loop.run_until_complete(main())
print("end")
""",
}


# What ends asyncio's own loop.
ONLY_HOTLOOP = ("threads that misuse it",)
# Where destructors find what the program has done, and Python says so.
NOISY = ["all descriptors closed between runs", "methods called at the limit of recursion"]
if not hasattr(os, "pidfd_open"):
    # The thread that waits for a child may come late, and says that the loop is closed.
    NOISY.append("everything open and closed behind its back")


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_with(program):
    source = PROGRAMS[program].replace("{seconds}", str(effort(0.3, 5))).replace("{{", "{").replace("}}", "}")
    for name in programs.LOOPS:
        if name == "hotloop" or program not in ONLY_HOTLOOP:
            programs.check(name, source, quiet=name == "hotloop" and program not in NOISY)


SUBINTERPRETERS = """
try:
    import _interpreters
except ImportError:
    import _xxsubinterpreters as _interpreters
source = f'''
import os
import sys
sys.path[:] = {sys.path!r}
import asyncio
try:
    {import_}
    loop = {module}.new_event_loop()
except ImportError:
    pass
else:
    async def main():
        await asyncio.sleep(0.001)
    loop.run_until_complete(main())
    loop.close()
'''
run_string = getattr(_interpreters, "exec", None) or _interpreters.run_string
kinds = ["legacy", "isolated"] if sys.version_info >= (3, 13) else [None]
"""

OF_SUBINTERPRETERS = {
    "that import it": "pass",
    "while a loop runs": "run(asyncio.sleep(0.001))",
    "that end first": "threading.Thread(target=lambda: run(asyncio.sleep(0.001))).start()",
}


@pytest.mark.parametrize("first", OF_SUBINTERPRETERS)
def test_subinterpreters(first):
    """They run loops or are told by an ImportError that they cannot; the main interpreter's go on."""
    for name in programs.LOOPS:
        source = SUBINTERPRETERS.replace("{import_}", f"import {name}").replace("{module}", name)
        source += f"""
{OF_SUBINTERPRETERS[first]}
for kind in kinds:
    try:
        interpreter = _interpreters.create(*([kind] if kind else []))
    except ValueError:
        continue
    error = None
    try:
        error = run_string(interpreter, source)
    except Exception as exc:
        error = exc
    _interpreters.destroy(interpreter)
    assert error is None, error
run(asyncio.sleep(0.001))
print("end")
"""
        programs.check(name, source, quiet=False)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl and unshare are Linux's")
def test_a_wall_clock_that_is_set_back():
    """Timers are the monotonic clock's: one in a new time namespace starts before this one's, and runs on."""
    source = """
import ctypes, time
CLONE_NEWTIME = 0x80
libc = ctypes.CDLL(None, use_errno=True)
loop = new_event_loop()
loop.run_until_complete(asyncio.sleep(0.001))
before = time.monotonic()
if libc.unshare(CLONE_NEWTIME):
    # Not allowed here.
    print("end")
    sys.exit()
with open("/proc/self/timens_offsets", "w") as file:
    file.write(f"monotonic {-int(before) + 1} 0\\n")
pid = os.fork()
if not pid:
    # The child is in the namespace: its clock stands at about a second.
    assert time.monotonic() < before
    other = new_event_loop()
    other.run_until_complete(asyncio.sleep(0.01))
    other.close()
    # The parent's loop has timers of a time that is long to come.
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
loop.run_until_complete(asyncio.sleep(0.01))
loop.close()
print("end")
"""
    for name in programs.LOOPS:
        programs.check(name, source)
