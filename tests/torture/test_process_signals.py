"""Signals in storms, handlers that raise, Ctrl-C at any moment, processes that are stopped for a while."""

import pytest

from torture import programs
from torture.effort import effort

# Two connections that talk for as long as the loop runs, timers, and a task.
BUSY = """
seconds = {seconds}
loop = new_event_loop()
reports = []
loop.set_exception_handler(lambda loop, context: reports.append(context))
ours, peer = socket.socketpair()
talked = ticked = stepped = 0
class Echo(asyncio.Protocol):
    lost = 0
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        global talked
        talked += 1
        self.transport.write(b"x")
    def connection_lost(self, exc):
        Echo.lost += 1
def tick():
    global ticked
    loop.call_later(0.0005, tick)
    ticked += 1
async def step():
    global stepped
    while True:
        await asyncio.sleep(0)
        stepped += 1
async def setup():
    await loop.create_connection(Echo, sock=ours)
    transport, _ = await loop.create_connection(Echo, sock=peer)
    transport.write(b"x")
loop.run_until_complete(setup())
tick()
"""

STORMS = {
    "Ctrl-C": """
def storm():
    while going:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.0007)
going = True
thread = threading.Thread(target=storm)
caught = 0
end = time.monotonic() + seconds
while True:
    try:
        thread.start()
        break
    except KeyboardInterrupt:
        if thread.ident:
            break
while time.monotonic() < end:
    try:
        try:
            loop.run_forever()
        except KeyboardInterrupt:
            caught += 1
    except KeyboardInterrupt:
        pass
while thread.is_alive():
    try:
        going = False
        thread.join()
    except KeyboardInterrupt:
        pass
for _ in range(3):
    try:
        time.sleep(0.01)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:
        pass
assert caught > 5, caught
""",
    "a handler that raises": """
class Oops(Exception):
    pass
def handler(number, frame):
    raise Oops
caught = 0
end = time.monotonic() + seconds
while True:
    try:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0007)
        while time.monotonic() < end:
            try:
                loop.run_forever()
            except Oops:
                caught += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        time.sleep(0.001)
        break
    except Oops:
        pass
signal.signal(signal.SIGALRM, signal.SIG_IGN)
signal.setitimer(signal.ITIMER_REAL, 0)
""",
    "handlers of the loop": """
counts = {}
def count(number):
    counts[number] = counts.get(number, 0) + 1
numbers = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGCHLD, signal.SIGINT, signal.SIGRTMIN]
for number in numbers:
    loop.add_signal_handler(number, count, number)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
def storm():
    while going:
        for number in numbers:
            os.kill(os.getpid(), number)
        time.sleep(0.0001)
going = True
thread = threading.Thread(target=storm)
thread.start()
async def main():
    end = time.monotonic() + seconds
    while time.monotonic() < end or min(counts.get(number, 0) for number in numbers) < 5:
        assert await (await asyncio.create_subprocess_exec("true")).wait() == 0
        await asyncio.sleep(0.001)
loop.run_until_complete(main())
going = False
thread.join()
signal.setitimer(signal.ITIMER_REAL, 0)
for number in numbers:
    signal.signal(number, signal.SIG_IGN)
    loop.remove_signal_handler(number)
    signal.signal(number, signal.SIG_IGN)
""",
    "handlers of the loop that raise": """
def fail():
    raise ValueError
loop.add_signal_handler(signal.SIGUSR1, fail)
end = time.monotonic() + seconds
def again():
    os.kill(os.getpid(), signal.SIGUSR1)
    loop.call_later(0.0005, again) if time.monotonic() < end else loop.stop()
again()
loop.run_forever()
loop.remove_signal_handler(signal.SIGUSR1)
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
assert len(reports) > 10 and {type(report["exception"]) for report in reports} == {ValueError}
reports.clear()
""",
    "handlers that come and go": """
got = 0
def count():
    global got
    got += 1
end = time.monotonic() + seconds
def again():
    loop.add_signal_handler(signal.SIGUSR1, count)
    os.kill(os.getpid(), signal.SIGUSR1)
    loop.remove_signal_handler(signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, lambda number, frame: count())
    os.kill(os.getpid(), signal.SIGUSR1)
    loop.call_soon(again) if time.monotonic() < end else loop.stop()
again()
loop.run_forever()
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
assert got > 100
""",
    "stopped and continued": """
parent = os.getpid()
child = os.fork()
if not child:
    for _ in range(max(2, int(seconds * 20))):
        time.sleep(0.01)
        os.kill(parent, signal.SIGSTOP)
        time.sleep(0.03)
        os.kill(parent, signal.SIGCONT)
    os._exit(0)
async def main():
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        await asyncio.sleep(0.001)
loop.run_until_complete(main())
""",
    "SIGPIPE's default": """
signal.signal(signal.SIGPIPE, signal.SIG_IGN)
async def main():
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        a, b = socket.socketpair()
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=a)
        transport.pause_reading()
        b.close()
        for _ in range(3):
            transport.write(b"x")
            await asyncio.sleep(0)
        transport.abort()
        os.kill(os.getpid(), signal.SIGPIPE)
loop.run_until_complete(main())
""",
    "children by the dozen": """
signal.signal(signal.SIGCHLD, lambda number, frame: None)
async def child(delay):
    process = await asyncio.create_subprocess_exec("sleep", str(delay), stdout=asyncio.subprocess.PIPE)
    if delay > 0.01:
        process.kill()
    await process.communicate()
async def main():
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.gather(*(child(number / 1000) for number in range(12)))
loop.run_until_complete(main())
""",
}

AFTERWARDS = """
assert not reports, reports
loop.run_until_complete(asyncio.sleep(0.001))
async def settle():
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
loop.run_until_complete(settle())
loop.close()
print("end")
"""


@pytest.mark.parametrize("storm", STORMS)
def test_a_storm(storm):
    interrupted = storm in ("Ctrl-C", "a handler that raises")
    # A callback in which the handler raises is lost: which, only the moment tells.
    afterwards = AFTERWARDS if not interrupted else AFTERWARDS.replace("assert not reports, reports", "")
    program = BUSY.format(seconds=effort(0.2, 3)) + STORMS[storm] + afterwards
    for name in programs.LOOPS:
        # asyncio's own loop says when the wakeup descriptor takes no more signals.
        programs.check(name, program, quiet=name == "hotloop", faulthandler=False)


INTERRUPTED = """
# Ctrl-C arrives after each of many numbers of instructions; run() ends with it, or has ended by then.
import random
random = random.Random({seed})
async def main():
    loop = asyncio.get_running_loop()
    async def serve(reader, writer):
        try:
            writer.write(await reader.read(100))
        finally:
            writer.close()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    while True:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"x")
        await reader.read()
        writer.close()
        async with asyncio.timeout(1):
            await asyncio.sleep(0)
        await loop.run_in_executor(None, int)
for _ in range({rounds}):
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.01))
            run(main())
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        pass
    except asyncio.CancelledError:
        # asyncio.Runner forgets an interrupt between its handler's installation and its count's reset.
        pass
print("end")
"""


def test_an_interrupt_at_any_moment():
    """However far run() has come, it ends with KeyboardInterrupt, and the next one works."""
    source = """
def interrupt(number, frame):
    os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGALRM, interrupt)
"""
    for name in programs.LOOPS:
        program = source + INTERRUPTED.format(seed=1, rounds=int(effort(40, 1000)))
        programs.check(name, program, quiet=False)
