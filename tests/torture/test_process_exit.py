"""The end of the interpreter, with loops in every state: the process ends with the status of its program."""

import helpers
import pytest

from torture import programs
from torture.effort import effort, seeded

# A daemon thread does something with a loop while the main thread ends. `slow` is destroyed when the
# interpreter finalizes its modules, and releases the GIL meanwhile: who asks for the GIL then is ended there.
DAEMON = """
import gc, random, weakref
there = threading.Event()
class Slow:
    def __init__(self, sleep=time.sleep):
        self.sleep = sleep
    def __del__(self):
        self.sleep(0.05)
slow = Slow()
class Callback:
    def __call__(self):
        pass
class Destroyed(Callback):
    def __del__(self, there=there, sleep=time.sleep):
        there.set()
        sleep(pause)
pause = {pause}
def wait():
    there.set()
    time.sleep(pause)
class Protocol(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
async def connected(protocol):
    loop = asyncio.get_running_loop()
    ours, peer = socket.socketpair()
    peer.setblocking(False)
    await loop.create_connection(lambda: protocol, sock=ours)
    return peer
def forever(*callbacks):
    loop = new_event_loop()
    for callback in callbacks:
        loop.call_soon(callback)
    loop.run_forever()
async def steps(seconds=0):
    there.set()
    while True:
        await asyncio.sleep(0)
        if seconds:
            time.sleep(seconds)
{body}
thread = threading.Thread(target=body, daemon=True)
thread.start()
assert there.wait(20)
time.sleep({delay})
"""

BODIES = {
    "a callback": """
def body():
    forever(wait)
""",
    "nothing": """
def body():
    forever(there.set)
""",
    "callbacks": """
def body():
    loop = new_event_loop()
    def again():
        loop.call_soon(again)
    loop.call_soon(again)
    loop.call_soon(there.set)
    loop.run_forever()
""",
    "steps of tasks": """
def body():
    run(steps())
""",
    "steps that sleep": """
def body():
    run(steps(0.001))
""",
    "a step with finally": """
def body():
    async def main():
        try:
            wait()
            await asyncio.sleep(0)
        finally:
            time.sleep(pause)
    run(main())
""",
    "timers": """
def body():
    async def main():
        loop = asyncio.get_running_loop()
        def again():
            loop.call_later(0.0001, again)
            time.sleep(0.0001)
        for _ in range(10):
            again()
        there.set()
        await asyncio.sleep(100)
    run(main())
""",
    "data_received": """
def body():
    async def main():
        protocol = Protocol()
        protocol.data_received = lambda data: wait()
        peer = await connected(protocol)
        peer.send(b"x")
        await asyncio.sleep(100)
    run(main())
""",
    "an echo": """
def body():
    class Echo(Protocol):
        def data_received(self, data):
            time.sleep(0.0005)
            self.transport.write(data)
    async def main():
        loop = asyncio.get_running_loop()
        a, b = socket.socketpair()
        await loop.create_connection(Echo, sock=a)
        transport, _ = await loop.create_connection(Echo, sock=b)
        transport.write(b"x")
        await asyncio.sleep(0.02)
        there.set()
        await asyncio.sleep(100)
    run(main())
""",
    "get_buffer": """
def body():
    class Buffered(asyncio.BufferedProtocol):
        def get_buffer(self, sizehint):
            wait()
            return bytearray(100)
    async def main():
        peer = await connected(Buffered())
        peer.send(b"x")
        await asyncio.sleep(100)
    run(main())
""",
    "datagram_received": """
def body():
    class Datagrams(asyncio.DatagramProtocol):
        def datagram_received(self, data, addr):
            wait()
    async def main():
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(Datagrams, local_addr=("127.0.0.1", 0))
        for _ in range(40):
            transport.sendto(b"x", transport.get_extra_info("sockname"))
        await asyncio.sleep(100)
    run(main())
""",
    "connection_lost": """
def body():
    async def main():
        protocol = Protocol()
        protocol.connection_lost = lambda exc: wait()
        (await connected(protocol)).close()
        await asyncio.sleep(100)
    run(main())
""",
    "pause_writing": """
def body():
    async def main():
        protocol = Protocol()
        protocol.pause_writing = wait
        peer = await connected(protocol)
        protocol.transport.write(b"x" * (1 << 24))
        await asyncio.sleep(100)
    run(main())
""",
    "a protocol factory": """
def body():
    async def main():
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: (wait(), Protocol())[1], "127.0.0.1", 0)
        sock = socket.create_connection(server.sockets[0].getsockname())
        await asyncio.sleep(100)
    run(main())
""",
    "__del__ of a callback": """
def body():
    loop = new_event_loop()
    loop.call_soon(Destroyed())
    loop.run_forever()
""",
    "__del__ of a timer's callback": """
def body():
    loop = new_event_loop()
    loop.call_soon(loop.call_later(100, Destroyed()).cancel)
    loop.run_forever()
""",
    "a weak reference's callback": """
def body():
    callback = Callback()
    kept.append(weakref.ref(callback, lambda reference: wait()))
    loop = new_event_loop()
    loop.call_soon(callback)
    del callback
    loop.run_forever()
kept = []
""",
    "a weak reference to a handle": """
def body():
    loop = new_event_loop()
    handle = loop.call_soon(int)
    kept.append(weakref.ref(handle, lambda reference: wait()))
    del handle
    loop.run_forever()
kept = []
""",
    "the garbage collector": """
def body():
    def collect():
        cycle = Destroyed()
        cycle.cycle = cycle
        del cycle
        gc.collect()
    forever(collect)
""",
    "the exception handler": """
def body():
    loop = new_event_loop()
    loop.set_exception_handler(lambda loop, context: wait())
    loop.call_soon(lambda: 1 / 0)
    loop.run_forever()
""",
    "an executor": """
def body():
    async def main():
        loop = asyncio.get_running_loop()
        async def work():
            while True:
                await loop.run_in_executor(None, time.sleep, 0.0005)
        tasks = [asyncio.create_task(work()) for _ in range(4)]
        await asyncio.sleep(0.02)
        there.set()
        await asyncio.sleep(100)
    run(main())
""",
    "operations on sockets": """
def body():
    async def main():
        loop = asyncio.get_running_loop()
        pair = socket.socketpair()
        async def talk(sock):
            sock.setblocking(False)
            while True:
                await loop.sock_sendall(sock, b"x" * 10)
                await loop.sock_recv(sock, 100)
                time.sleep(0.0002)
        tasks = [asyncio.create_task(talk(sock)) for sock in pair]
        await asyncio.sleep(0.02)
        there.set()
        await asyncio.sleep(100)
    run(main())
""",
    "calls from another thread": """
def body():
    loop = new_event_loop()
    def feed():
        while True:
            loop.call_soon_threadsafe(there.set)
    threading.Thread(target=feed, daemon=True).start()
    loop.run_forever()
""",
    "a storm of signals": """
signal.signal(signal.SIGUSR1, lambda number, frame: None)
def body():
    loop = new_event_loop()
    def again():
        os.kill(os.getpid(), signal.SIGUSR1)
        loop.call_soon(again)
    loop.call_soon(again)
    loop.call_soon(there.set)
    loop.run_forever()
""",
    "the watchdog": """
def body():
    loop = new_event_loop()
    if hasattr(loop, "watch_blocking"):
        loop.watch_blocking(0.001, lambda block: time.sleep(0.005))
    def block():
        time.sleep(0.005)
        there.set()
        loop.call_soon(block)
    loop.call_soon(block)
    loop.run_forever()
""",
    "sixteen loops": """
def body():
    async def main(number):
        there.set()
        while True:
            await asyncio.sleep(0.0001 * (number % 3))
            time.sleep(0.0001)
    for number in range(16):
        threading.Thread(target=lambda number=number: run(main(number)), daemon=True).start()
""",
    "handlers of exit that use loops": """
import atexit
def at_exit():
    run(asyncio.sleep(0.01))
atexit.register(at_exit)
def body():
    run(steps(0.0001))
""",
    "children": """
def body():
    async def main():
        async def child():
            while True:
                await (await asyncio.create_subprocess_exec("true")).wait()
        task = asyncio.create_task(child())
        await asyncio.sleep(0.02)
        there.set()
        await asyncio.sleep(100)
    run(main())
""",
}


@pytest.mark.parametrize("body", BODIES)
def test_a_daemon_thread_in(body):
    random = seeded(body)
    for _ in range(int(effort(1, 5))):
        source = DAEMON.format(
            body=BODIES[body], pause=random.uniform(0.001, 0.06), delay=random.uniform(0, 0.03)
        )
        for name in programs.LOOPS:
            programs.check(name, source, output="", quiet=False)


CONNECTED = """
async def connected():
    global server, reader, writer
    async def serve(reader, writer):
        await reader.read()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"x")
    await asyncio.sleep(0.01)
loop = new_event_loop()
loop.run_until_complete(connected())
"""


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("", 0),
        ("loop.call_soon(sys.exit, 5); loop.run_forever()", 5),
        ("loop.call_soon(os._exit, 5); loop.run_forever()", 5),
        ("loop.call_later(0.001, sys.exit, 5); loop.run_forever()", 5),
        ("del loop", 0),
        ("loop.close()", 0),
        ("threading.Thread(target=loop.run_forever, daemon=True).start(); time.sleep(0.01)", 0),
        ("sys.modules.clear()", 0),
        ("import gc; gc.disable(); loop.cycle = loop; del loop", 0),
    ],
)
def test_a_server_that_is_not_closed(end, status):
    for name in programs.LOOPS:
        programs.check(name, CONNECTED + end, output="", status=status, quiet=False)


AT_EXIT = {
    "atexit": programs.SERVE_ONCE
    + """
import atexit
loop = new_event_loop()
def at_exit():
    loop.run_until_complete(asyncio.sleep(0.001))
    async def main():
        assert await (await asyncio.create_subprocess_exec("true")).wait() == 0
        await serve_once()
    run(main())
    print("end")
atexit.register(at_exit)
loop.run_until_complete(asyncio.sleep(0.001))
""",
    "__del__ in a module that is cleared": """
class Last:
    def __init__(self):
        self.loop = new_event_loop()
        self.loop.call_later(100, int)
    def __del__(self, write=os.write):
        self.loop.call_soon(int)
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()
        self.loop.close()
        write(1, b"end\\n")
last = Last()
last.loop.run_until_complete(last.loop.create_task(asyncio.sleep(0)))
""",
    "threading._register_atexit": """
def at_exit():
    loop.run_until_complete(asyncio.sleep(0.001))
    loop.close()
    print("end")
threading._register_atexit(at_exit)
loop = new_event_loop()
""",
    "a thread that is not a daemon": """
def body():
    async def main():
        await asyncio.sleep(0.1)
        print("end")
    run(main())
threading.Thread(target=body).start()
""",
}


@pytest.mark.parametrize("moment", AT_EXIT)
def test_loops_that_run_in(moment):
    if helpers.FREE_THREADED and "module that is cleared" in moment:
        pytest.skip("the collector comes first, and ends the loop, asyncio's as well")
    for name in programs.LOOPS:
        programs.check(name, AT_EXIT[moment])
