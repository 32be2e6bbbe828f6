"""A child that is started without Popen's constructor is like one that was started with it."""

import asyncio
import os
import subprocess
import sys
from asyncio import unix_events
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from unittest import mock

import helpers
import pytest

pytestmark = pytest.mark.usefixtures("no_child_left")

# What differs from child to child.
OWN = {"pid", "_waitpid_lock", "stdin", "stdout", "stderr", "_devnull"}
STREAMS = {
    "none": {},
    "pipes": {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE},
    "output": {"stdout": PIPE},
    "together": {"stdout": PIPE, "stderr": STDOUT},
    "errors to the output": {"stderr": STDOUT},
    "null": {"stdin": DEVNULL, "stdout": DEVNULL, "stderr": DEVNULL},
    "null and pipes": {"stdin": DEVNULL, "stdout": PIPE, "stderr": PIPE},
}
# Of its signals, those that it blocks, ignores and handles.
SCRIPT = "cat; echo $NAME; ls -l /proc/self/fd | wc -l; grep Sig[BIC] /proc/self/status; echo error >&2"


class Descriptor:
    """What has a fileno(), which may be anything."""

    def __init__(self, number):
        self.number = number

    def fileno(self):
        return self.number


@pytest.fixture
def spawned(monkeypatch):
    """The arguments of each posix_spawn()."""
    calls = []
    original = os.posix_spawn

    def posix_spawn(*args, **kwargs):
        calls.append((args, kwargs))
        return original(*args, **kwargs)

    monkeypatch.setattr(os, "posix_spawn", posix_spawn)
    return calls


def by_constructor():
    """Popen's constructor is called: something patches the class."""
    original = subprocess.Popen.__init__
    return mock.patch.object(subprocess.Popen, "__init__", autospec=True, side_effect=original)


async def ended(loop, command, **options):
    """What Popen knows of a child, what it has written, and how it ended."""
    if isinstance(command, str):
        process = await asyncio.create_subprocess_shell(command, **options)
    else:
        process = await asyncio.create_subprocess_exec(*command, **options)
    popen = process._transport.get_extra_info("subprocess")
    kinds = {name: type(value) for name, value in vars(popen).items() if name in OWN}
    written = await process.communicate(b"input" if options.get("stdin") == PIPE else None)
    assert type(popen) is subprocess.Popen
    assert popen.pid == process.pid
    return {name: value for name, value in vars(popen).items() if name not in OWN}, kinds, written


def without_numbers(calls):
    """Arguments of posix_spawn(), with descriptors numbered as they come."""
    order = {}

    def of(action):
        what, *descriptors = action
        return [what, *(each if each <= 3 else order.setdefault(each, len(order)) for each in descriptors)]

    return [
        (args, {**kwargs, "file_actions": [of(action) for action in kwargs.get("file_actions", ())]})
        for args, kwargs in calls
    ]


@pytest.mark.parametrize("streams", STREAMS)
@pytest.mark.parametrize("how", ["program", "command", "environment", "name", "folder"])
async def test_the_same_as_by_the_constructor(loop, spawned, streams, how, tmp_path):
    options = dict(STREAMS[streams])
    if "stdin" not in options:
        options["stdin"] = DEVNULL
    command = SCRIPT if how == "command" else ("sh" if how == "name" else "/bin/sh", "-c", SCRIPT)
    if how == "environment":
        options["env"] = {"NAME": "value", "PATH": os.environ["PATH"]}
    if how == "folder":
        options["cwd"] = tmp_path
    with by_constructor() as constructor:
        expected = await ended(loop, command, **options)
        assert constructor.called
    calls = without_numbers(spawned)
    spawned.clear()
    found = await ended(loop, command, **options)
    assert found == expected
    assert list(found[0]) == list(expected[0])
    assert without_numbers(spawned) == calls


@pytest.mark.hotloop_only
@pytest.mark.skipif(
    not getattr(subprocess, "_HAVE_POSIX_SPAWN_CLOSEFROM", False),
    reason="Popen uses posix_spawn() from Python 3.13 on, where the C library closes descriptors then",
)
async def test_the_constructor_is_not_called(loop, spawned):
    """Nor is anything patched: the other tests compare two ways."""
    called = []

    def profile(frame, event, argument):
        if event == "call" and frame.f_code is subprocess.Popen.__init__.__code__:
            called.append(frame)

    sys.setprofile(profile)
    try:
        await ended(loop, ("/bin/true",))
        assert (len(spawned), called) == (1, [])
        await ended(loop, ("true",))
        assert (len(spawned), called) == (1, [])
        await ended(loop, ("/bin/true",), cwd="/")
        assert len(called) == 1
    finally:
        sys.setprofile(None)


async def test_nothing_redirected(loop, spawned):
    with by_constructor():
        expected = await ended(loop, ("/bin/true",)), without_numbers(spawned)
    spawned.clear()
    assert (await ended(loop, ("/bin/true",)), without_numbers(spawned)) == expected


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (("/no/such/program",), {}),
        (("no such program",), {}),
        (("",), {}),
        (("passwd",), {"env": {"PATH": "/nowhere:/etc"}}),
        (("true", "with\0null"), {}),
        (("true", 1), {}),
        (("/etc/passwd",), {}),
        (("/bin/true", "with\0null"), {}),
        (("/bin/true", 1), {}),
        (("/bin/true",), {"env": {"A=B": "C"}}),
        (("/bin/true",), {"env": 1}),
        (("/bin/true",), {"stdin": 1 << 20}),
        (("/bin/true",), {"stdin": "a name"}),
        (("/bin/true",), {"stdout": STDOUT}),
        (("/bin/true",), {"stdin": Descriptor(None)}),
        (("/bin/true",), {"stderr": Descriptor("a")}),
        (("/bin/true",), {"bufsize": 0.0}),
    ],
)
@pytest.mark.parametrize("streams", ["none", "pipes", "null"])
async def test_what_is_not_started(loop, spawned, command, options, streams):
    options = {**STREAMS[streams], **options}

    async def fails():
        before = helpers.open_descriptors()
        with pytest.raises(Exception) as caught:  # noqa: PT011  (whatever Popen raises)
            await asyncio.create_subprocess_exec(*command, **options)
        assert not helpers.opened_since(before)
        return type(caught.value), str(caught.value), getattr(caught.value, "filename", None)

    with by_constructor():
        expected = await fails()
    assert await fails() == expected


async def test_audit_events(loop, spawned):
    """A hook sees the same, and may forbid it."""
    seen, forbidden, is_on = [], [], [True]

    def hook(event, args):
        if is_on and event in ("subprocess.Popen", "os.posix_spawn"):
            seen.append((event, args))
            if forbidden:
                raise PermissionError("forbidden")

    sys.addaudithook(hook)
    try:
        for program in ("/bin/true", "true"):
            for options in ({}, {"stdout": PIPE}, {"env": {}}):
                with by_constructor():
                    await ended(loop, (program, "a"), **options)
                expected = list(seen)
                assert expected
                seen.clear()
                await ended(loop, (program, "a"), **options)
                assert seen == expected
                seen.clear()
        forbidden.append(True)
        before = helpers.open_descriptors()
        for program in ("/bin/true", "true"):
            for options in STREAMS.values():
                with pytest.raises(PermissionError, match="forbidden"):
                    await asyncio.create_subprocess_exec(program, **options)
        assert not helpers.opened_since(before)
    finally:
        is_on.clear()


async def test_an_audit_hook_that_changes_the_arguments(loop, spawned):
    """The program is that which was asked for."""
    is_on = [True]

    def hook(event, args):
        if is_on and event == "subprocess.Popen":
            args[1][:] = ["/bin/no such program", "hello"]

    sys.addaudithook(hook)
    try:
        *_, written = await ended(loop, ("/bin/echo", "a"), stdout=PIPE)
    finally:
        is_on.clear()
    assert written == (b"hello\n", None)


@pytest.mark.parametrize("name", ["_execute_child", "_get_handles", "_posix_spawn", "_close_pipe_fds"])
@pytest.mark.parametrize("program", ["/bin/true", "true"])
async def test_a_patched_method_is_called(loop, spawned, name, program):
    if not hasattr(subprocess.Popen, name):
        pytest.skip("no such method in this Python")
    original = getattr(subprocess.Popen, name)
    with mock.patch.object(subprocess.Popen, name, autospec=True, side_effect=original) as patched:
        await ended(loop, (program,))
    assert patched.called or (name == "_posix_spawn" and not spawned)


@pytest.mark.parametrize("module", ["io", "builtins"])
async def test_a_patched_open(loop, spawned, module):
    """Popen opens its ends of pipes by io.open()."""
    opened = []

    def fake(*args, original=open, **kwargs):
        opened.append(args)
        return original(*args, **kwargs)

    with mock.patch(f"{module}.open", fake):
        process = await asyncio.create_subprocess_exec("/bin/echo", "hi", stdout=PIPE)
    assert len(opened) == (module == "io")
    assert await process.communicate() == (b"hi\n", None)


async def test_a_patched_start_gets_keywords(loop):
    started = []
    original = unix_events._UnixSubprocessTransport._start

    def start(self, **kwargs):
        started.append(kwargs["args"])
        original(self, **kwargs)

    with mock.patch.object(unix_events._UnixSubprocessTransport, "_start", start):
        process = await asyncio.create_subprocess_exec("/bin/true")
    await process.wait()
    assert started == [("/bin/true",)]


EARLY = {
    "_execute_child": """
def patched(self, *args, original=subprocess.Popen._execute_child):
    print("called", flush=True)
    original(self, *args)
subprocess.Popen._execute_child = patched
""",
    "_start": """
from asyncio import unix_events
def patched(self, original=unix_events._UnixSubprocessTransport._start, **kwargs):
    print("called", flush=True)
    original(self, **kwargs)
unix_events._UnixSubprocessTransport._start = patched
""",
    "Popen": """
class Popen(subprocess.Popen):
    def _execute_child(self, *args):
        print("called", flush=True)
        super()._execute_child(*args)
subprocess.Popen = Popen
""",
}


@pytest.mark.hotloop_only
@pytest.mark.parametrize("patch", EARLY)
def test_a_patch_from_before_hotloop_is_imported(patch):
    script = f"""
import asyncio, subprocess
{EARLY[patch]}
import hotloop
async def main():
    process = await asyncio.create_subprocess_exec("/bin/true")
    await process.wait()
hotloop.run(main())
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert (result.returncode, result.stdout, result.stderr) == (0, "called\n", "")


async def test_a_name_that_is_replaced_in_asyncio(loop, spawned):
    class Module:
        PIPE = PIPE
        called = False

        def Popen(self, *args, **kwargs):
            self.called = True
            return subprocess.Popen(*args, **kwargs)

    with mock.patch.object(unix_events, "subprocess", Module()) as module:
        await ended(loop, ("/bin/true",))
    assert module.called


async def test_a_patched_class_is_called(loop, spawned):
    class Popen(subprocess.Popen):
        pass

    with mock.patch.object(subprocess, "Popen", Popen):
        process = await asyncio.create_subprocess_exec("/bin/true")
        assert type(process._transport.get_extra_info("subprocess")) is Popen
        await process.wait()


async def test_the_switch_of_posix_spawn(loop, spawned):
    with mock.patch.object(subprocess, "_USE_POSIX_SPAWN", False):
        await ended(loop, ("/bin/true",))
    assert spawned == []


def test_standard_streams_that_are_closed():
    """The child's ends of pipes may then be 0, 1 or 2, and posix_spawn() would mix them up."""
    script = """
import asyncio, os, sys
loop = asyncio.SelectorEventLoop if sys.argv[1] == "asyncio" else __import__("hotloop").new_event_loop
report = os.dup(1)
async def main():
    process = await asyncio.create_subprocess_exec("/bin/true")
    await process.wait()
    for closed in ([0], [1], [0, 1], [2], [0, 1, 2]):
        kept = {each: os.dup(each) for each in closed}
        for each in closed:
            os.close(each)
        process = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", "cat; echo out; echo err >&2", stdin=-1, stdout=-1, stderr=-1)
        result = await process.communicate(b"in ")
        for each in kept:
            os.dup2(kept[each], each)
        os.write(report, repr((closed, result)).encode() + b"\\n")
asyncio.Runner(loop_factory=loop).run(main())
"""
    expected, found = (
        subprocess.run([sys.executable, "-c", script, name], capture_output=True, text=True, timeout=30)
        for name in ("asyncio", "hotloop")
    )
    assert expected.returncode == 0, expected
    assert expected.stdout.count("in out") == 5
    assert (found.returncode, found.stdout, found.stderr) == (0, expected.stdout, expected.stderr)
