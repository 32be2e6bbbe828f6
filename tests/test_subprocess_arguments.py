"""The arguments of subprocess_exec() and subprocess_shell(): those of subprocess.Popen, and those refused."""

import asyncio
import contextlib
import errno
import fcntl
import gc
import os
import pathlib
import resource
import signal
import socket
import subprocess
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT

import helpers
import pytest
from helpers import ProcessRecorder

pytestmark = pytest.mark.usefixtures("no_child_left")

as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root may")


async def output(script, *args, **kwargs):
    """What a shell script writes to its output."""
    kwargs = {"stdin": DEVNULL, "stdout": PIPE, **kwargs}
    process = await asyncio.create_subprocess_exec("/bin/sh", "-c", script, "sh", *args, **kwargs)
    result, _ = await process.communicate()
    assert process.returncode == 0
    return result.decode().rstrip("\n")


# The program


@pytest.mark.parametrize(
    "program", ["/bin/sh", b"/bin/sh", pathlib.Path("/bin/sh"), "sh"], ids=["str", "bytes", "path", "name"]
)
async def test_the_kinds_of_program(loop, program):
    process = await asyncio.create_subprocess_exec(program, "-c", b"exit $1", "sh", pathlib.Path("5"))
    assert await process.wait() == 5


@pytest.mark.parametrize(
    "command", ["echo \u00e9; exit 5", "echo \u00e9; exit 5".encode()], ids=["str", "bytes"]
)
async def test_the_kinds_of_command(loop, command):
    process = await asyncio.create_subprocess_shell(command, stdout=PIPE)
    assert await process.communicate() == ("\u00e9\n".encode(), None)
    assert process.returncode == 5


async def test_executable_is_what_runs_whatever_its_name(loop):
    process = await asyncio.create_subprocess_exec(
        "a name", "-c", "echo $0", executable="/bin/sh", stdout=PIPE
    )
    assert await process.communicate() == (b"a name\n", None)


async def test_executable_is_the_shell_of_a_command(loop, tmp_path):
    own = tmp_path / "own shell"
    own.symlink_to("/bin/sh")
    process = await asyncio.create_subprocess_shell("echo $0", executable=own, stdout=PIPE)
    assert await process.communicate() == (os.fsencode(own) + b"\n", None)


async def test_the_program_is_looked_for_in_the_childs_path(loop, tmp_path):
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nexit 6\n")
    program.chmod(0o755)
    process = await asyncio.create_subprocess_exec("program", env={"PATH": str(tmp_path)})
    assert await process.wait() == 6


# Where it reads and writes


async def test_descriptors(loop):
    read, write = os.pipe()
    process = await asyncio.create_subprocess_exec("cat", stdin=read, stdout=PIPE)
    os.close(read)
    os.write(write, b"through a descriptor")
    os.close(write)
    assert process.stdin is None
    assert await process.communicate() == (b"through a descriptor", None)


@pytest.mark.parametrize("errors", ["the same file", "its output"])
async def test_files(loop, tmp_path, errors):
    (tmp_path / "in").write_text("from a file\n")
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as target:
        process = await asyncio.create_subprocess_exec(
            *("/bin/sh", "-c", "cat; echo error >&2"),
            stdin=source,
            stdout=target,
            stderr=target if errors == "the same file" else STDOUT,
        )
        assert (process.stdin, process.stdout, process.stderr) == (None, None, None)
        assert await process.communicate() == (None, None)
    assert (tmp_path / "out").read_text() == "from a file\nerror\n"


async def test_sockets(loop):
    ours, theirs = helpers.unix_pair()
    theirs.setblocking(True)
    with ours:
        with theirs:
            process = await asyncio.create_subprocess_exec("cat", stdin=theirs, stdout=theirs)
        await loop.sock_sendall(ours, b"through a socket")
        ours.shutdown(socket.SHUT_WR)
        assert await helpers.read_to_end(ours) == b"through a socket"
        assert await process.wait() == 0


async def test_the_null_device(loop):
    process = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", "cat; echo out; echo err >&2; readlink /proc/self/fd/0"),
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=PIPE,
    )
    assert await process.communicate() == (None, b"err\n")
    assert await output("cat; readlink /proc/self/fd/0") == "/dev/null"


async def test_nothing_given_is_inherited(loop):
    ours = [os.readlink(f"/proc/self/fd/{number}") for number in (0, 2)]
    script = "readlink /proc/$$/fd/0; readlink /proc/$$/fd/2"
    assert (await output(script, stdin=None)).split("\n") == ours


async def test_the_loops_own_functions_make_pipes_unless_told(loop):
    transport, protocol = await loop.subprocess_shell(ProcessRecorder, "cat; echo err >&2")
    for number in (0, 1, 2):
        assert transport.get_pipe_transport(number) is not None
    transport.get_pipe_transport(0).write(b"text")
    transport.get_pipe_transport(0).close()
    await protocol.lost()
    assert protocol.output == {1: b"text", 2: b"err\n"}


async def test_pipesize(loop):
    process = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE, pipesize=4096)
    ends = [process.stdin.transport, process._transport.get_pipe_transport(1)]
    sizes = [fcntl.fcntl(end.get_extra_info("pipe").fileno(), fcntl.F_GETPIPE_SZ) for end in ends]
    assert sizes == [4096, 4096]
    content = os.urandom(50_000)
    assert await process.communicate(content) == (content, None)


# Its surroundings


@pytest.mark.parametrize("kind", [str, os.fsencode, pathlib.Path])
async def test_cwd(loop, tmp_path, kind):
    assert await output("pwd -P", cwd=kind(tmp_path)) == str(tmp_path.resolve())


async def test_env(loop, monkeypatch):
    monkeypatch.setenv("OF_THE_PARENT", "here")
    assert await output('echo "$OF_THE_PARENT"') == "here"
    assert await output('echo "$OF_THE_PARENT$OWN"', env={"OWN": "only"}) == "only"
    assert await output('echo "$OWN"', env={b"OWN": b"bytes"}) == "bytes"
    assert await output('echo "<$OWN$OF_THE_PARENT>"', env={}) == "<>"


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
async def test_preexec_fn(loop, tmp_path):
    assert await output("pwd -P", preexec_fn=lambda: os.chdir(tmp_path)) == str(tmp_path.resolve())


async def test_close_fds_and_pass_fds(loop):
    read, write = os.pipe()
    script = "for fd; do [ -e /proc/self/fd/$fd ] && echo $fd; done; exit 0"
    args = [script, str(read), str(write)]
    try:
        assert await output(*args) == ""
        os.set_inheritable(read, True)
        assert await output(*args) == ""
        assert await output(*args, close_fds=False) == str(read)
        assert await output(*args, pass_fds=[write]) == str(write)
        assert await output(*args, pass_fds=(read, write)) == f"{read}\n{write}"
        with pytest.warns(RuntimeWarning, match="pass_fds overriding close_fds"):
            assert await output(*args, pass_fds=[write], close_fds=False) == str(write)
    finally:
        os.close(read)
        os.close(write)


async def test_no_child_inherits_the_pipes_of_another(loop):
    """Else the first would not get its end of file."""
    first = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
    second = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE, close_fds=False)
    assert await first.communicate(b"first") == (b"first", None)
    assert second.returncode is None
    assert await second.communicate(b"second") == (b"second", None)


async def test_start_new_session(loop):
    process = await asyncio.create_subprocess_exec("cat", stdin=PIPE, start_new_session=True)
    assert os.getsid(process.pid) == process.pid
    process.kill()
    await process.wait()
    process = await asyncio.create_subprocess_exec("cat", stdin=PIPE)
    assert os.getsid(process.pid) == os.getsid(0)
    process.kill()
    await process.wait()


async def test_process_group(loop):
    first = await asyncio.create_subprocess_exec("cat", stdin=PIPE, process_group=0)
    second = await asyncio.create_subprocess_exec("cat", stdin=PIPE, process_group=first.pid)
    assert os.getpgid(first.pid) == first.pid
    assert os.getpgid(second.pid) == first.pid
    os.killpg(first.pid, signal.SIGTERM)
    assert await asyncio.gather(first.wait(), second.wait()) == [-signal.SIGTERM] * 2


async def test_umask(loop):
    before = os.umask(0o022)
    try:
        assert int(await output("umask", umask=0o077), 8) == 0o077
        assert int(await output("umask"), 8) == 0o022
    finally:
        os.umask(before)


async def test_restore_signals(loop):
    """Python ignores SIGPIPE; what it starts shall not."""
    script = "while read name mask; do [ $name = SigIgn: ] && echo $mask; done </proc/$$/status; exit 0"
    pipe = 1 << (signal.SIGPIPE - 1)
    assert int(await output(script), 16) & pipe == 0
    assert int(await output(script, restore_signals=False), 16) & pipe == pipe


async def test_our_own_user_and_group(loop):
    ids = f"{os.getuid()} {os.getgid()}"
    assert await output("echo $(id -u) $(id -g)", user=os.getuid(), group=os.getgid()) == ids


@as_root
async def test_another_user_and_group(loop):
    script = "echo $(id -u) $(id -g) $(id -G)"
    assert await output(script, user=12345, group=23456, extra_groups=[]) == "12345 23456 23456"
    assert await output(script, group=23456, extra_groups=[34567, 45678]) == "0 23456 23456 34567 45678"
    assert await output("id -un", user="nobody", cwd="/") == "nobody"


@pytest.mark.parametrize("argument", ["user", "group"])
async def test_a_user_or_group_that_does_not_exist(loop, argument):
    with pytest.raises(KeyError):
        await output("exit 0", **{argument: "there is nobody of that name"})
    with pytest.raises(ValueError, match="ID cannot be negative"):
        await output("exit 0", **{argument: -1})


@pytest.mark.skipif(os.getuid() == 0, reason="root may")
async def test_another_user_is_for_root(loop):
    with pytest.raises(PermissionError):
        await output("exit 0", user=0)


async def test_arguments_for_windows(loop):
    assert await output("echo ran", creationflags=0, startupinfo=None) == "ran"
    with pytest.raises(ValueError, match="creationflags is only supported on Windows"):
        await output("echo ran", creationflags=1)
    with pytest.raises(ValueError, match="startupinfo is only supported on Windows"):
        await output("echo ran", startupinfo=object())


# What is refused

REFUSED = [
    ({"universal_newlines": True}, "universal_newlines must be False"),
    ({"text": True}, "text must be False"),
    ({"encoding": "utf-8"}, "encoding must be None"),
    ({"errors": "strict"}, "errors must be None"),
    ({"bufsize": 1}, "bufsize must be 0"),
    ({"bufsize": -1}, "bufsize must be 0"),
    ({"bufsize": None}, "bufsize must be 0"),
]


@pytest.mark.parametrize(
    ("how", "options", "message"),
    [
        *(("exec", *refused) for refused in [*REFUSED, ({"shell": True}, "shell must be False")]),
        *(("shell", *refused) for refused in [*REFUSED, ({"shell": False}, "shell must be True")]),
    ],
)
async def test_what_is_refused(loop, how, options, message):
    made = []
    with pytest.raises(ValueError, match=f"^{message}$"):
        await getattr(loop, f"subprocess_{how}")(lambda: made.append(1), "true", **options)
    with pytest.raises(ValueError, match=f"^{message}$"):
        await getattr(asyncio, f"create_subprocess_{how}")("true", **options)
    assert made == []


async def test_the_values_that_change_nothing(loop):
    options = {"universal_newlines": False, "text": False, "encoding": None, "errors": None, "bufsize": 0}
    process = await asyncio.create_subprocess_exec("true", shell=False, **options)
    assert await process.wait() == 0
    process = await asyncio.create_subprocess_shell("true", shell=True, **options)
    assert await process.wait() == 0


@pytest.mark.parametrize("command", [["true"], pathlib.Path("true"), 1, None], ids=repr)
async def test_a_command_is_a_string(loop, command):
    with pytest.raises(ValueError, match="cmd must be a string"):
        await loop.subprocess_shell(ProcessRecorder, command)


@pytest.mark.parametrize("arguments", [(1,), ("true", 1), ("true", None), (["true"],)], ids=repr)
async def test_arguments_are_strings(loop, arguments):
    with pytest.raises(TypeError):
        await loop.subprocess_exec(ProcessRecorder, *arguments)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"unknown": 1}, TypeError),
        ({"stdout": "a string"}, AttributeError),
        ({"pass_fds": ["a string"]}, (TypeError, ValueError)),
        ({"pass_fds": [-1]}, ValueError),
        ({"env": {"A=B": "C"}}, ValueError),
        ({"env": {"A": "\0"}}, ValueError),
        ({"cwd": "\0"}, ValueError),
        ({"process_group": "a string"}, TypeError),
        ({"pipesize": "a string"}, TypeError),
    ],
    ids=repr,
)
async def test_what_popen_refuses(loop, options, error):
    protocol = ProcessRecorder()
    with pytest.raises(error):
        await loop.subprocess_exec(lambda: protocol, "true", **options)
    await helpers.iterations(3)
    assert protocol.calls == []


async def test_a_null_byte_in_an_argument(loop):
    with pytest.raises(ValueError, match="null byte"):
        await loop.subprocess_exec(ProcessRecorder, "tr\0ue")
    with pytest.raises(ValueError, match="null byte"):
        await loop.subprocess_exec(ProcessRecorder, "true", "\0")


# What cannot be started


@pytest.fixture
def unusable(tmp_path):
    """What cannot be started, and why: arguments, options, the errno and the file that it is about."""
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\n")
    plain.chmod(0o644)
    no_format = tmp_path / "no format"
    no_format.write_bytes(b"\x01\x02\x03")
    no_format.chmod(0o755)
    missing = str(tmp_path / "missing")
    return {
        "missing": ([missing], {}, errno.ENOENT, missing),
        "missing name": (["no such program"], {"env": {"PATH": os.defpath}}, errno.ENOENT, "no such program"),
        "missing executable": (["true"], {"executable": missing}, errno.ENOENT, missing),
        "not executable": ([str(plain)], {}, errno.EACCES, str(plain)),
        "a directory": ([str(tmp_path)], {}, errno.EACCES, str(tmp_path)),
        "no format": ([str(no_format)], {}, errno.ENOEXEC, str(no_format)),
        "missing cwd": (["true"], {"cwd": missing}, errno.ENOENT, missing),
        "no directory": (["true"], {"cwd": str(plain)}, errno.ENOTDIR, str(plain)),
    }


UNUSABLE = [
    *("missing", "missing name", "missing executable", "not executable", "a directory"),
    *("no format", "missing cwd", "no directory"),
]


@pytest.mark.parametrize("name", UNUSABLE)
async def test_what_cannot_be_started(loop, unusable, name):
    arguments, options, number, filename = unusable[name]
    protocol = ProcessRecorder()
    before = helpers.open_descriptors()
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        await loop.subprocess_exec(lambda: protocol, *arguments, **options)
    assert caught.value.errno == number
    assert type(caught.value) is type(OSError(number, ""))
    assert caught.value.filename == filename
    await helpers.iterations(3)
    assert protocol.calls == []
    assert helpers.opened_since(before) == {}


async def test_a_bad_descriptor(loop):
    with pytest.raises(OSError, match="Bad file descriptor"):
        await loop.subprocess_exec(ProcessRecorder, "true", stdout=1_000_000)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
async def test_a_preexec_fn_that_fails(loop):
    with pytest.raises(subprocess.SubprocessError, match="Exception occurred in preexec_fn"):
        await loop.subprocess_exec(ProcessRecorder, "true", preexec_fn=lambda: 1 / 0)


async def test_a_protocol_factory_that_fails(loop):
    with pytest.raises(ZeroDivisionError):
        await loop.subprocess_exec(lambda: 1 / 0, "true")


async def test_nothing_is_left_of_many_that_cannot_be_started(loop, unusable, recwarn):
    """No descriptor, no zombie, no transport that somebody forgot to close."""
    before = helpers.open_descriptors()
    for name in ("missing", "not executable", "missing cwd"):
        arguments, options, _, _ = unusable[name]
        for _ in range(100):
            with pytest.raises((FileNotFoundError, PermissionError)):
                await loop.subprocess_exec(ProcessRecorder, *arguments, **options)
    assert helpers.opened_since(before) == {}
    gc.collect()
    assert [str(warning.message) for warning in recwarn if warning.category is ResourceWarning] == []


@pytest.mark.parametrize("program", ["cat", "/bin/cat"])
async def test_when_there_are_no_descriptors_left(loop, program):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = helpers.open_descriptors()
    taken, outcomes = [], []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before) + 20, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(1))
        for _ in range(15):
            try:
                transport, protocol = await loop.subprocess_exec(ProcessRecorder, program)
            except OSError as error:
                outcomes.append(error.errno)
            else:
                outcomes.append("started")
                transport.close()
                await protocol.lost()
            os.close(taken.pop())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)
    assert set(outcomes) == {errno.EMFILE, "started"}
    assert outcomes[0] == errno.EMFILE
    assert outcomes[-1] == "started"
    await helpers.iterations(3)
    gc.collect()
    assert helpers.opened_since(before) == {}


def test_this_interpreter(loop):
    """sys.executable with arguments, as programs start their workers."""
    code = "import sys; sys.stdout.write(sys.stdin.read().upper()); sys.exit(3)"

    async def main():
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-ISc", code), stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        assert await process.communicate(b"text") == (b"TEXT", b"")
        return process.returncode

    assert loop.run_until_complete(main()) == 3
