"""Forks at any moment: the child ends, or runs loops of its own, and the parent notices nothing."""

import pytest

from torture import programs
from torture.effort import FULL, seeded

PROGRAM = (
    programs.SERVE_ONCE
    + """
import faulthandler
statuses = []
parent = os.getpid()
async def everything():
    loop = asyncio.get_running_loop()
    await asyncio.sleep(0.001)
    await serve_once()
    assert await loop.run_in_executor(None, lambda: 42) == 42
    assert await (await asyncio.create_subprocess_exec("true")).wait() == 0
    if threading.current_thread() is threading.main_thread():
        signalled = asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR1, signalled.set)
        os.kill(os.getpid(), signal.SIGUSR1)
        await asyncio.wait_for(signalled.wait(), 10)
        loop.remove_signal_handler(signal.SIGUSR1)
def fork():
    if os.getpid() != parent:
        return
    pid = os.fork()
    if pid:
        statuses.append(pid)
        return
    # A child that hangs says where.
    faulthandler.dump_traceback_later(20, exit=True)
    {end}
def fork_and_exit():
    # SystemExit ends nothing where an executor hands it on, or in the child of a task, from 3.14 on.
    try:
        fork()
    except SystemExit as exit:
        os._exit(exit.code)
def reap():
    for pid in statuses:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status == 0, status
    assert statuses
{moment}
if os.getpid() != parent:
    sys.stdout.flush()
    os._exit(0)
reap()
loop.run_until_complete(everything())
loop.close()
run(everything())
print("end")
"""
)

ENDS = {
    "exits at once": "os._exit(0)",
    "exits": "sys.exit(0)",
    "executes another program": "os.execv('/bin/true', ['true'])",
    "runs a loop": "run(everything()); os._exit(0)",
    "runs a loop and exits": "run(everything()); sys.exit(0)",
    "makes a loop": "other = new_event_loop(); other.run_until_complete(everything()); os._exit(0)",
}

# Other children close their parent's loop, and asyncio's own then takes the parent's descriptors out of the
# poller that the two share.
LEAVES_POLLER = ("exits at once", "executes another program", "runs a loop", "makes a loop")

MOMENTS = {
    "a callback": """
loop = new_event_loop()
loop.call_soon(fork)
loop.call_later(0.01, loop.stop)
loop.run_forever()
""",
    "a task with work in an executor": """
loop = new_event_loop()
async def main():
    await loop.run_in_executor(None, int)
    future = loop.run_in_executor(None, time.sleep, 0.02)
    fork_and_exit()
    await future
loop.run_until_complete(main())
""",
    "a write": """
loop = new_event_loop()
ours, peer = socket.socketpair()
peer.settimeout(10)
async def main():
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
    transport.write(b"once")
    fork_and_exit()
    await asyncio.sleep(0.01)
    transport.close()
loop.run_until_complete(main())
if os.getpid() == parent:
    data = b""
    reap()
    statuses = [os.posix_spawn("/bin/true", ["true"], {})]
    while chunk := peer.recv(100):
        data += chunk
    assert data == b"once", data
""",
    "a write in a callback": """
loop = new_event_loop()
ours, peer = socket.socketpair()
peer.settimeout(10)
async def connect():
    return (await loop.create_connection(asyncio.Protocol, sock=ours))[0]
transport = loop.run_until_complete(connect())
def write():
    transport.write(b"once")
    fork()
loop.call_soon(write)
loop.call_later(0.01, loop.stop)
loop.run_forever()
if os.getpid() == parent:
    data = b""
    reap()
    statuses = [os.posix_spawn("/bin/true", ["true"], {})]
    transport.close()
    loop.run_until_complete(asyncio.sleep(0))
    while chunk := peer.recv(100):
        data += chunk
    assert data == b"once", data
""",
    "a storm of calls from threads": """
loop = new_event_loop()
going = True
def call():
    while going:
        loop.call_soon_threadsafe(int)
        time.sleep(0.0001)
threads = [threading.Thread(target=call, daemon=True) for _ in range(2)]
for thread in threads:
    thread.start()
def forks(count):
    fork()
    if count and os.getpid() == parent:
        loop.call_later(0.001, forks, count - 1)
    else:
        loop.stop()
loop.call_soon(forks, 5)
loop.run_forever()
going = False
""",
    "handlers of signals": """
loop = new_event_loop()
loop.add_signal_handler(signal.SIGUSR1, fork)
signal.signal(signal.SIGUSR2, lambda number, frame: fork())
loop.call_soon(os.kill, parent, signal.SIGUSR1)
loop.call_soon(os.kill, parent, signal.SIGUSR2)
async def main():
    while os.getpid() == parent and len(statuses) < 2:
        await asyncio.sleep(0.001)
loop.run_until_complete(main())
""",
    "data_received with a child": """
loop = new_event_loop()
ours, peer = socket.socketpair()
class Protocol(asyncio.Protocol):
    def data_received(self, data):
        fork()
async def main():
    await loop.create_connection(Protocol, sock=ours)
    child = await asyncio.create_subprocess_exec("sleep", "0.02")
    peer.send(b"x")
    assert await child.wait() == 0
loop.run_until_complete(main())
""",
    "__del__ of a callback": """
class Destroyed:
    def __call__(self):
        pass
    def __del__(self, fork=fork):
        fork()
loop = new_event_loop()
loop.call_soon(Destroyed())
loop.call_later(0.01, loop.stop)
loop.run_forever()
""",
    "a loop that is watched": """
loop = new_event_loop()
if hasattr(loop, "watch_blocking"):
    loop.watch_blocking(0.001, lambda block: fork())
def block():
    time.sleep(0.01)
    fork()
loop.call_soon(block)
loop.call_later(0.05, loop.stop)
loop.run_forever()
""",
    "a loop in another thread": """
loop = new_event_loop()
async def work():
    while True:
        await asyncio.sleep(0)
async def main():
    task = asyncio.create_task(work())
    await asyncio.sleep(0.05)
    task.cancel()
thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
thread.start()
for _ in range(3):
    fork()
    time.sleep(0.005)
thread.join()
""",
    "a server's protocol factory": """
loop = new_event_loop()
def factory():
    fork()
    return asyncio.Protocol()
async def main():
    server = await loop.create_server(factory, "127.0.0.1", 0)
    for _ in range(3):
        transport, _ = await loop.create_connection(asyncio.Protocol, *server.sockets[0].getsockname())
        await asyncio.sleep(0.001)
        transport.abort()
    server.close()
loop.run_until_complete(main())
""",
    "work in an executor": """
loop = new_event_loop()
async def main():
    await asyncio.gather(*(loop.run_in_executor(None, fork_and_exit) for _ in range(3)))
loop.run_until_complete(main())
""",
}

ROWS = [(moment, end) for moment in MOMENTS for end in ENDS]


@pytest.mark.parametrize(("moment", "end"), ROWS if FULL else seeded("forks").sample(ROWS, 20))
def test_a_fork_in(moment, end):
    for name in programs.LOOPS if end in LEAVES_POLLER else ["hotloop"]:
        programs.check(name, PROGRAM.format(moment=MOMENTS[moment], end=ENDS[end]), quiet=False)


@pytest.mark.parametrize("moment", ["a callback", "a write in a callback", "__del__ of a callback"])
def test_a_child_that_goes_on(moment):
    """With its parent's loop: it has its own copy of what was scheduled, and sends nothing of its."""
    programs.check("hotloop", PROGRAM.format(moment=MOMENTS[moment], end="return"), quiet=False)
