"""os.fork(): the child has loops of its own, and does its parent's no harm."""

import os
import sys

import helpers
import pytest

# Every program forks, and the child ends with os._exit(): 0 if all went well there.
CHILD = """
def in_child(function):
    '''Run the function in a forked child, and return the child's status.'''
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

async def exchange():
    '''Use a loop: tasks, timers, sockets, threads.'''
    loop = asyncio.get_running_loop()
    ours, peer = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    peer.setblocking(False)
    await asyncio.sleep(0.001)
    await loop.sock_sendall(peer, b"hello")
    assert await reader.readexactly(5) == b"hello"
    assert await loop.run_in_executor(None, lambda: 42) == 42
    writer.close()
    await writer.wait_closed()
    peer.close()
    return "exchanged"

def woken(loop):
    '''A call from another thread reaches the loop while it waits.'''
    timer = threading.Timer(0.02, lambda: loop.call_soon_threadsafe(loop.stop))
    timer.start()
    alarm = loop.call_later(10, lambda: os._exit(99))
    loop.run_forever()
    alarm.cancel()
    timer.join()
"""


def run(loop_name, source):
    result = helpers.run_script(loop_name, CHILD + source, "-W", "ignore::DeprecationWarning")
    assert result.stderr == ""
    return result.stdout


def test_a_child_of_a_program_that_has_run_a_loop(loop_name):
    assert run(
        loop_name,
        """
print(run(exchange()))
assert in_child(lambda: run(exchange())) == 0
print(run(exchange()))
""",
    ) == ("exchanged\nexchanged\n")


def test_a_child_of_a_program_that_has_a_loop(loop_name):
    run(
        loop_name,
        """
loop = new_event_loop()
loop.run_until_complete(exchange())
assert in_child(lambda: run(exchange())) == 0
assert in_child(lambda: new_event_loop().run_until_complete(exchange())) == 0
woken(loop)
loop.run_until_complete(exchange())
loop.close()
""",
    )


def test_a_child_of_a_running_loop(loop_name):
    run(
        loop_name,
        """
def child():
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise AssertionError("the child believes that it runs a loop")
    run(exchange())
    loop = new_event_loop()
    loop.run_until_complete(exchange())
    loop.close()

async def main():
    await exchange()
    assert in_child(child) == 0
    await exchange()

run(main())
""",
    )


@pytest.mark.hotloop_only
def test_a_child_that_closes_its_parents_loop(loop_name):
    """asyncio's own loop takes the parent's registrations away with it."""
    run(
        loop_name,
        """
loop = new_event_loop()
ours, peer = socket.socketpair()
got = []
loop.add_reader(ours, lambda: (got.append(ours.recv(10)), loop.stop()))
loop.run_until_complete(exchange())
assert in_child(loop.close) == 0
woken(loop)
threading.Timer(0.02, peer.send, (b"hello",)).start()
loop.run_forever()
assert got == [b"hello"], got
loop.remove_reader(ours)
loop.run_until_complete(exchange())
loop.close()
""",
    )


@pytest.mark.hotloop_only
def test_a_child_that_closes_its_parents_running_loop(loop_name):
    run(
        loop_name,
        """
async def main():
    loop = asyncio.get_running_loop()
    reader, writer = await asyncio.open_connection(sock=ours)

    def child():
        try:
            loop.close()
        except RuntimeError:
            pass

    assert in_child(child) == 0
    peer.send(b"hello")
    assert await reader.readexactly(5) == b"hello"
    assert await asyncio.to_thread(lambda: 42) == 42
    writer.write(b"goodbye")
    writer.close()
    await writer.wait_closed()
    assert peer.recv(10) == b"goodbye"

ours, peer = socket.socketpair()
run(main())
""",
    )


@pytest.mark.hotloop_only
def test_a_child_that_drops_its_parents_loop_and_transports(loop_name):
    run(
        loop_name,
        """
import gc
warnings.simplefilter("ignore", ResourceWarning)

class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)

loop = new_event_loop()
ours, peer = socket.socketpair()
transport, protocol = loop.run_until_complete(loop.create_connection(Echo, sock=ours))

def child():
    global loop, transport, protocol, ours
    transport.abort()
    del loop, transport, protocol, ours
    gc.collect()

assert in_child(child) == 0
peer.send(b"hello")
peer.setblocking(False)
assert loop.run_until_complete(loop.sock_recv(peer, 10)) == b"hello"
woken(loop)
transport.close()
loop.run_until_complete(asyncio.sleep(0.001))
loop.close()
""",
    )


def test_what_was_written_before_the_fork_is_sent_once(loop_name):
    run(
        loop_name,
        """
import gc

ours, peer = socket.socketpair()

def child():
    gc.collect()
    run(exchange())

async def main():
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
    transport.write(b"once")
    assert in_child(child) == 0
    transport.close()
    await asyncio.sleep(0.001)

run(main())
peer.settimeout(5)
data = b""
while chunk := peer.recv(100):
    data += chunk
assert data == b"once", data
""",
    )


def test_a_childs_loop_does_not_run_its_parents_callbacks(loop_name):
    assert (
        run(
            loop_name,
            """
def child():
    sys.stdout = open(os.devnull, "w")
    run(asyncio.sleep(0.05))

def show(text):
    os.write(1, text.encode() + b"\\n")

async def main():
    loop = asyncio.get_running_loop()
    ours, peer = socket.socketpair()
    loop.add_reader(ours, lambda: (loop.remove_reader(ours), show("reader")))
    loop.call_later(0.02, show, "timer")
    loop.call_soon(show, "soon")
    peer.send(b"x")
    assert in_child(child) == 0
    await asyncio.sleep(0.1)

run(main())
""",
        )
        == "soon\nreader\ntimer\n"
    )


def test_signals_in_a_child_are_not_its_parents(loop_name):
    run(
        loop_name,
        """
calls = []

def child():
    # What was the parent's handler must not reach the parent's loop from here.
    async def wait():
        got = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, got.set)
        os.kill(os.getpid(), signal.SIGUSR1)
        await asyncio.wait_for(got.wait(), 10)
    run(wait())

async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, calls.append, 1)
    assert in_child(child) == 0
    await asyncio.sleep(0.01)
    assert calls == []
    os.kill(os.getpid(), signal.SIGUSR1)
    await asyncio.sleep(0.01)
    assert calls == [1]

run(main())
""",
    )


def skip_if_asyncio_forgets_signals(loop_name):
    if loop_name == "asyncio" and sys.version_info >= (3, 12):
        pytest.skip("asyncio's loop hears of no signal in a child that goes on with it")


@pytest.mark.parametrize("has_run", [False, True])
def test_a_daemon_hears_of_signals_that_its_parent_has_asked_for(loop_name, has_run):
    skip_if_asyncio_forgets_signals(loop_name)
    run(
        loop_name,
        f"""
loop = new_event_loop()
stopped = []

def stop(name):
    stopped.append(name)
    loop.stop()

def terminate():
    os.kill(os.getpid(), signal.SIGTERM)

loop.add_signal_handler(signal.SIGTERM, stop, "terminated")
if {has_run}:
    loop.run_until_complete(asyncio.sleep(0.001))

def daemon():
    # One comes before the loop runs, and one while it waits.
    terminate()
    alarm = loop.call_later(10, lambda: os._exit(99))
    loop.run_forever()
    timer = threading.Timer(0.05, terminate)
    timer.start()
    loop.run_forever()
    alarm.cancel()
    timer.join()
    assert stopped == ["terminated"] * 2
    loop.close()

def session():
    os.setsid()
    assert in_child(daemon) == 0

assert in_child(session) == 0
assert stopped == []
loop.close()
""",
    )


def test_a_running_loop_that_becomes_a_daemon_hears_of_signals(loop_name):
    skip_if_asyncio_forgets_signals(loop_name)
    run(
        loop_name,
        """
loop = new_event_loop()
loop.add_signal_handler(signal.SIGTERM, loop.stop)
children = []

def fork():
    children.append(os.fork())
    if children == [0]:
        loop.call_later(0.05, os.kill, os.getpid(), signal.SIGTERM)
        loop.call_later(10, os._exit, 99)
    else:
        loop.stop()

loop.call_soon(fork)
loop.run_forever()
if children == [0]:
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0
loop.close()
""",
    )


@pytest.mark.hotloop_only
def test_parent_and_child_do_not_take_each_others_signals(loop_name):
    """They go on with the same loop."""
    run(
        loop_name,
        """
loop = new_event_loop()
got = []
loop.add_signal_handler(signal.SIGUSR1, got.append, 1)

async def hear():
    for count in range(1, 101):
        os.kill(os.getpid(), signal.SIGUSR1)
        while len(got) < count:
            await asyncio.sleep(0)
        assert len(got) == count
    await asyncio.sleep(0.01)
    assert len(got) == 100

def child():
    loop.run_until_complete(asyncio.wait_for(hear(), 10))

pid = os.fork()
if pid == 0:
    status = 1
    try:
        child()
        status = 0
    finally:
        os._exit(status)
child()
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
loop.close()
""",
    )


@pytest.mark.parametrize("forks", [1, 2])
def test_signals_are_not_written_to_the_files_of_a_child_that_has_closed_all_others(loop_name, forks):
    run(
        loop_name,
        f"""
import tempfile

def work():
    heard = []
    os.closerange(3, 64)
    files = [tempfile.TemporaryFile() for _ in range(32)]
    signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    os.kill(os.getpid(), signal.SIGTERM)
    assert heard == [signal.SIGTERM]
    assert [os.fstat(file.fileno()).st_size for file in files] == [0] * 32

def session():
    assert in_child(work) == 0

async def main():
    assert in_child(work if {forks} == 1 else session) == 0

run(main())
""",
    )


@pytest.mark.hotloop_only
def test_a_running_loop_of_a_childs_own_that_becomes_a_daemon_hears_of_signals(loop_name):
    run(
        loop_name,
        """
def session():
    loop = new_event_loop()
    calls = []
    loop.add_signal_handler(signal.SIGUSR1, calls.append, 1)

    def fork():
        pid = os.fork()
        if pid == 0:
            os.kill(os.getpid(), signal.SIGUSR1)
            loop.call_later(0.05, os.kill, os.getpid(), signal.SIGUSR1)
            loop.call_later(0.1, lambda: os._exit(0 if calls == [1, 1] else 98))
            return
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        loop.stop()

    loop.call_soon(fork)
    loop.run_forever()
    assert calls == []

async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, print, "the parent's")
    assert in_child(session) == 0

run(main())
""",
    )


@pytest.mark.hotloop_only
def test_a_signal_between_a_fork_and_the_childs_next_iteration_is_heard_of_once(loop_name):
    run(
        loop_name,
        """
loop = new_event_loop()
calls = []
loop.add_signal_handler(signal.SIGUSR1, calls.append, 1)
children = []

def fork():
    for _ in range(2):
        children.append(os.fork())
        if children[-1]:
            return loop.stop()
    os.kill(os.getpid(), signal.SIGUSR1)
    loop.call_later(0.05, os.kill, os.getpid(), signal.SIGUSR1)
    loop.call_later(0.1, loop.stop)

loop.call_soon(fork)
loop.run_forever()
if children[-1]:
    assert os.waitstatus_to_exitcode(os.waitpid(children[-1], 0)[1]) == 0
    assert calls == [], calls
else:
    os._exit(0 if calls == [1, 1] else 98)
if len(children) > 1:
    os._exit(0)
loop.close()
""",
    )


@pytest.mark.hotloop_only  # Handlers of Python's do not wake asyncio's loop.
def test_a_loop_of_the_childs_own_is_woken_by_signals(loop_name):
    """Beside that of its parent, which has signal handlers."""
    run(
        loop_name,
        """
async def wait():
    loop = asyncio.get_running_loop()
    got = asyncio.Event()
    former = signal.signal(signal.SIGTERM, lambda *_: loop.call_soon(got.set))
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
    await asyncio.wait_for(got.wait(), 10)
    signal.signal(signal.SIGTERM, former)

async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, print, "the parent's")
    assert in_child(lambda: run(wait())) == 0

run(main())
""",
    )


def test_a_child_of_a_daemon_that_has_closed_a_loops_descriptors(loop_name):
    """They are files of the program's by now, which has forgotten the loop."""
    run(
        loop_name,
        """
import tempfile

forgotten = new_event_loop()
forgotten.add_signal_handler(signal.SIGUSR1, print)
os.closerange(3, 64)
files = [tempfile.TemporaryFile() for _ in range(16)]

def write():
    for number, file in enumerate(files):
        file.write(b"%d" % number)
        file.flush()

assert in_child(write) == 0
for number, file in enumerate(files):
    file.seek(0)
    assert file.read() == b"%d" % number, number
sys.stdout.flush()
# The loop would close the files as its own.
os._exit(0)
""",
    )


def test_multiprocessing_with_fork(loop_name):
    run(
        loop_name,
        """
import multiprocessing

def work(queue):
    queue.put(run(exchange()))

async def main():
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=work, args=(queue,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        await asyncio.to_thread(process.join)
        assert process.exitcode == 0
        assert queue.get() == "exchanged"

run(main())
""",
    )


@pytest.mark.hotloop_only
def test_a_child_that_goes_on_with_its_parents_loop(loop_name):
    """A server that forks its workers after it has made its loop."""
    run(
        loop_name,
        """
loop = new_event_loop()

def child():
    loop.run_until_complete(exchange())
    loop.close()

assert in_child(child) == 0
woken(loop)
loop.run_until_complete(exchange())
loop.close()
""",
    )


@pytest.mark.hotloop_only
def test_descriptors_do_not_add_up_from_child_to_child(loop_name):
    """Each child goes on with its parent's loop, and leaves the rest to a child of its own."""
    assert (
        run(
            loop_name,
            """
loop = new_event_loop()
counts = []
for _ in range(5):
    loop.run_until_complete(asyncio.sleep(0.001))
    counts.append(len(os.listdir("/proc/self/fd")))
    if pid := os.fork():
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
woken(loop)
loop.close()
assert counts == counts[:1] * 5, counts
print("woken", flush=True)
""",
        )
        == "woken\n"
    )


def test_parent_and_child_can_close_the_same_loop_at_the_same_moment(loop_name):
    """Whoever closes it looks whether its descriptors are still there: the other one must not be misled."""
    run(
        loop_name,
        """
import mmap
flags = mmap.mmap(-1, 4096)  # shared with the child
def meet(mine, other):
    flags[mine] = 1
    while not flags[other]:
        pass
def descriptors():
    return len(os.listdir("/proc/self/fd"))
before = descriptors()
for _ in range(1000):
    loop = new_event_loop()
    flags[0] = flags[1] = 0
    pid = os.fork()
    if pid == 0:
        meet(0, 1)
        loop.close()
        os._exit(descriptors() - before)
    meet(1, 0)
    loop.close()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert (status, descriptors()) == (0, before), (status, descriptors(), before)
""",
    )


def test_no_descriptor_of_a_loop_is_inherited_by_another_program(new_loop):
    before = helpers.open_descriptors()
    loop = new_loop()
    loop.run_until_complete(loop.create_server(helpers.Recorder, "127.0.0.1", 0)).close()
    made = set(helpers.open_descriptors()) - set(before)
    assert made
    for descriptor in made:
        assert not os.get_inheritable(descriptor)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="fork() is for Unix")
def test_many_forks(loop_name):
    run(
        loop_name,
        """
async def main():
    for _ in range(10):
        assert in_child(lambda: run(asyncio.sleep(0.001))) == 0
        await asyncio.sleep(0)
    await exchange()

run(main())
""",
    )
