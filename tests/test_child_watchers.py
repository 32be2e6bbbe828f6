"""Child watchers, which Python had until 3.13: one that the program sets is the one that its loops use.

MultiLoopChildWatcher is left out: now and then it misses a child, on asyncio's own loop, too.
"""

import sys

import helpers
import pytest

pytestmark = pytest.mark.skipif(
    sys.version_info >= (3, 14), reason="child watchers are gone from Python 3.14 on"
)

WATCHERS = [
    "SafeChildWatcher",
    "FastChildWatcher",
    "ThreadedChildWatcher",
    "PidfdChildWatcher",
]

SOURCE = """
warnings.simplefilter("ignore")
watched = []

class Watcher(asyncio.{name}):
    def add_child_handler(self, pid, callback, *args):
        watched.append(pid)
        super().add_child_handler(pid, callback, *args)

async def status_of(number):
    process = await asyncio.create_subprocess_shell(f"read line; exit {{number}}", stdin=-1)
    process.stdin.write(b"\\n")
    status = await process.wait()
    return status, process.pid

async def main():
    results = await asyncio.gather(*(status_of(number) for number in range(8)))
    assert [status for status, _ in results] == list(range(8)), results
    assert sorted(pid for _, pid in results) == sorted(watched), (results, watched)
"""


def run_with(watcher, loop_name, source):
    """Run a program whose Watcher derives from that watcher of asyncio, and whose main() has children."""
    helpers.run_script(loop_name, SOURCE.format(name=watcher) + source)


@pytest.mark.parametrize("name", WATCHERS)
def test_a_watcher_of_the_programs_own(loop_name, name):
    run_with(
        name,
        loop_name,
        """
loop = new_event_loop()
asyncio.set_event_loop(loop)
watcher = Watcher()
watcher.attach_loop(loop)
asyncio.set_child_watcher(watcher)
assert asyncio.get_child_watcher() is watcher
loop.run_until_complete(main())
loop.close()
""",
    )


@pytest.mark.parametrize("name", ["SafeChildWatcher", "FastChildWatcher"])
def test_a_watcher_that_the_policy_attaches(loop_name, name):
    run_with(
        name,
        loop_name,
        """
asyncio.set_child_watcher(Watcher())
loop = new_event_loop()
asyncio.set_event_loop(loop)
loop.run_until_complete(main())
assert signal.getsignal(signal.SIGCHLD) is not signal.SIG_DFL
asyncio.set_child_watcher(None)
assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL
loop.close()
""",
    )


def test_a_watcher_and_a_runner(loop_name):
    run_with(
        "ThreadedChildWatcher",
        loop_name,
        """
watcher = Watcher()
watcher.attach_loop(None)
asyncio.set_child_watcher(watcher)
run(main())
watched.clear()
run(main())
""",
    )


@pytest.mark.parametrize("name", ["SafeChildWatcher", "FastChildWatcher"])
def test_a_watcher_without_a_loop_starts_nothing(loop_name, name):
    run_with(
        name,
        loop_name,
        """
asyncio.set_child_watcher(Watcher())
loop = new_event_loop()
try:
    loop.run_until_complete(main())
except RuntimeError as error:
    assert "not activated" in str(error), error
else:
    raise AssertionError("it was started")
assert watched == []
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    pass
else:
    raise AssertionError("there is a child")
loop.close()
""",
    )


def test_the_watcher_of_a_policy_of_the_programs_own(loop_name):
    run_with(
        "ThreadedChildWatcher",
        loop_name,
        """
class Policy(asyncio.DefaultEventLoopPolicy):
    watcher = Watcher()

    def get_child_watcher(self):
        return self.watcher

asyncio.set_event_loop_policy(Policy())
loop = new_event_loop()
loop.run_until_complete(main())
loop.close()
""",
    )


def test_a_watcher_that_is_none_of_asyncios(loop_name):
    helpers.run_script(
        loop_name,
        """
warnings.simplefilter("ignore")
calls = []

class Watcher(asyncio.AbstractChildWatcher):
    def __enter__(self):
        calls.append("enter")
        return self

    def __exit__(self, *args):
        calls.append("exit")

    def is_active(self):
        return True

    def close(self):
        calls.append("close")

    def attach_loop(self, loop):
        pass

    def add_child_handler(self, pid, callback, *args):
        calls.append(pid)

        def wait():
            _, status = os.waitpid(pid, 0)
            callback(pid, 100 + os.waitstatus_to_exitcode(status), *args)

        threading.Thread(target=wait).start()

async def main():
    process = await asyncio.create_subprocess_shell("exit 5")
    assert await process.wait() == 105
    return process.pid

asyncio.set_child_watcher(Watcher())
loop = new_event_loop()
pid = loop.run_until_complete(main())
assert calls == ["enter", pid, "exit"], calls
asyncio.set_child_watcher(None)
assert calls[-1] == "close"
loop.close()
""",
    )


def test_a_watcher_that_is_set_between_two_children(loop_name):
    run_with(
        "ThreadedChildWatcher",
        loop_name,
        """
loop = new_event_loop()
assert loop.run_until_complete(status_of(3))[0] == 3
assert watched == []
asyncio.set_child_watcher(Watcher())
loop.run_until_complete(main())
asyncio.set_child_watcher(None)
watched.clear()
assert loop.run_until_complete(status_of(4))[0] == 4
assert watched == []
loop.close()
""",
    )
