"""asyncio.create_subprocess_exec() and create_subprocess_shell(): a Process and its streams."""

import asyncio
import errno
import inspect
import os
import signal
import sys
from asyncio import base_subprocess
from asyncio.subprocess import DEVNULL, PIPE, STDOUT

import helpers
import pytest

pytestmark = pytest.mark.usefixtures("no_child_left")

# More than a pipe holds.
MUCH = 1 << 20
# From some patch release of each Python on, wait() does not wait for the pipes.
WAITS_FOR_PIPES = "gh-119710" not in inspect.getsource(base_subprocess)


def shell(script, *args, **kwargs):
    """Start a shell with a script of its own, and arguments for it."""
    return asyncio.create_subprocess_exec("/bin/sh", "-c", script, "sh", *args, **kwargs)


def until_exited(process):
    return helpers.until(lambda: process.returncode is not None)


# Output and input


async def test_the_output_of_a_program(loop):
    process = await asyncio.create_subprocess_exec("printf", "%s-", "one", "two words", "", stdout=PIPE)
    assert await process.communicate() == (b"one-two words--", None)
    assert process.returncode == 0


async def test_the_output_of_a_shell_command(loop):
    process = await asyncio.create_subprocess_shell(
        "echo out; echo err >&2; exit 7", stdout=PIPE, stderr=PIPE
    )
    assert await process.communicate() == (b"out\n", b"err\n")
    assert process.returncode == 7


async def test_errors_in_the_stream_of_the_output(loop):
    process = await shell("echo out; echo err >&2; echo out", stdout=PIPE, stderr=STDOUT)
    assert await process.communicate() == (b"out\nerr\nout\n", None)
    assert process.stderr is None


async def test_only_what_is_asked_for_is_a_pipe(loop):
    process = await shell("exit 0", stdin=DEVNULL, stdout=DEVNULL)
    assert (process.stdin, process.stdout, process.stderr) == (None, None, None)
    assert await process.communicate() == (None, None)
    process = await shell("exit 0", stdin=PIPE, stderr=PIPE)
    assert isinstance(process.stdin, asyncio.StreamWriter)
    assert isinstance(process.stderr, asyncio.StreamReader)
    assert process.stdout is None
    assert await process.communicate(b"") == (None, b"")


async def test_much_in_every_direction_at_once(loop):
    content = os.urandom(MUCH)
    process = await shell("exec tee /dev/stderr", stdin=PIPE, stdout=PIPE, stderr=PIPE)
    output, errors = await process.communicate(content)
    assert output == content
    assert errors == content
    assert process.returncode == 0


@pytest.mark.parametrize("content", [b"bytes", bytearray(b"bytearray"), memoryview(b"memoryview"), b""])
async def test_what_communicate_takes(loop, content):
    process = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
    assert await process.communicate(content) == (bytes(content), None)


@pytest.mark.asyncio_from(3, 12)
async def test_communicate_without_input_closes_the_childs_input(loop):
    process = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
    assert await process.communicate() == (b"", None)
    assert process.stdin.is_closing()


async def test_a_conversation(loop):
    process = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
    for number in range(20):
        process.stdin.write(b"line %d\n" % number)
        assert await process.stdout.readline() == b"line %d\n" % number
    process.stdin.writelines([b"one\n", b"two\n"])
    process.stdin.write_eof()
    assert [line async for line in process.stdout] == [b"one\n", b"two\n"]
    await process.stdin.wait_closed()
    assert await process.wait() == 0


async def test_the_input_of_one_program_is_the_output_of_another(loop):
    read, write = os.pipe()
    first = await asyncio.create_subprocess_exec("echo", "through", stdout=write)
    os.close(write)
    second = await asyncio.create_subprocess_exec("cat", stdin=read, stdout=PIPE)
    os.close(read)
    assert await second.communicate() == (b"through\n", None)
    assert await first.wait() == 0


async def test_a_subprocess_in_a_subprocess(loop, loop_name):
    source = """
    async def main():
        process = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
        output, _ = await process.communicate(b"deeper")
        print(output.decode(), process.returncode, flush=True)
        process = await asyncio.create_subprocess_shell("exit 9")
        sys.exit(await process.wait())

    run(main())
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", helpers.script(loop_name, source), stdout=PIPE, stderr=PIPE
    )
    assert await process.communicate() == (b"deeper 0\n", b"")
    assert process.returncode == 9


# A child that does not read


async def test_drain_waits_for_a_child_that_does_not_read(loop, gate):
    process = await shell(
        "read go </proc/self/fd/$1; exec wc -c", str(gate[0]), stdin=PIPE, stdout=PIPE, pass_fds=gate[:1]
    )
    process.stdin.write(b"x" * MUCH)
    draining = asyncio.create_task(process.stdin.drain())
    await helpers.iterations(10)
    assert not draining.done()
    assert process.stdin.transport.get_write_buffer_size() > 65536
    os.write(gate[1], b"go\n")
    await draining
    process.stdin.close()
    assert (await process.stdout.read()).strip() == b"%d" % MUCH
    assert await process.wait() == 0


async def test_communicate_with_a_child_that_has_closed_its_input(loop):
    process = await shell("exec 0<&-; echo done", stdin=PIPE, stdout=PIPE)
    assert await process.communicate(b"x" * MUCH) == (b"done\n", None)
    assert process.returncode == 0


async def test_communicate_with_a_child_that_has_ended(loop):
    process = await shell("exit 3", stdin=PIPE, stdout=PIPE)
    await until_exited(process)
    assert await process.communicate(b"x" * MUCH) == (b"", None)
    assert process.returncode == 3


async def test_writing_to_a_child_that_has_closed_its_input(loop):
    process = await shell("exec 0<&-; echo closed; read line", stdin=PIPE, stdout=PIPE)
    assert await process.stdout.readline() == b"closed\n"

    async def write_on():
        while True:
            process.stdin.write(b"x" * MUCH)
            await process.stdin.drain()

    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        await write_on()
    assert process.stdin.is_closing()
    assert await process.wait() != 0


# Lines longer than the limit


async def test_a_line_longer_than_the_limit(loop):
    process = await shell("echo 123456789; echo 12; echo 3", stdout=PIPE, limit=4)
    with pytest.raises(ValueError, match="limit"):
        await process.stdout.readline()
    assert (await process.stdout.read()).endswith(b"12\n3\n")
    assert await process.wait() == 0


@pytest.mark.parametrize("command", ["printf 123456789:rest", "printf 123456789; printf :rest"])
async def test_readuntil_beyond_the_limit(loop, command):
    process = await shell(command, stdout=PIPE, limit=4)
    with pytest.raises(asyncio.LimitOverrunError) as caught:
        await process.stdout.readuntil(b":")
    assert caught.value.consumed >= 4
    assert await process.stdout.readexactly(9) == b"123456789"
    assert await process.stdout.readuntil(b":") == b":"
    with pytest.raises(asyncio.IncompleteReadError) as caught:
        await process.stdout.readexactly(100)
    assert caught.value.partial == b"rest"
    assert await process.wait() == 0


async def test_a_child_that_writes_much_more_than_the_limit_waits_for_its_reader(loop):
    process = await shell("head -c 1048576 /dev/zero; echo written >&2", stdout=PIPE, stderr=PIPE, limit=1024)
    first = asyncio.create_task(process.stderr.readline())
    assert await process.stdout.readexactly(1) == b"\0"
    await helpers.iterations(10)
    assert not first.done()
    assert len(await process.stdout.read()) == MUCH - 1
    assert await first == b"written\n"
    assert await process.wait() == 0


# The end of a process


@pytest.mark.parametrize("status", [0, 1, 42, 127, 255])
async def test_the_return_code(loop, status):
    process = await asyncio.create_subprocess_shell(f"read line; exit {status}", stdin=PIPE)
    assert process.returncode is None
    process.stdin.write(b"\n")
    assert await process.wait() == status
    assert process.returncode == status


async def test_a_process_that_ended_before_anyone_waited(loop):
    process = await asyncio.create_subprocess_shell("exit 3", stdout=PIPE)
    await until_exited(process)
    assert await process.wait() == 3
    assert await process.wait() == 3
    assert await process.communicate() == (b"", None)


async def test_several_tasks_wait(loop):
    process = await asyncio.create_subprocess_exec("cat", stdin=PIPE)
    waiting = [asyncio.create_task(process.wait()) for _ in range(5)]
    await helpers.iterations(3)
    assert not any(task.done() for task in waiting)
    process.kill()
    assert await asyncio.gather(*waiting) == [-signal.SIGKILL] * 5


async def test_a_wait_that_is_cancelled(loop):
    process = await asyncio.create_subprocess_exec("cat", stdin=PIPE)
    cancelled = asyncio.create_task(process.wait())
    other = asyncio.create_task(process.wait())
    await helpers.iterations(3)
    await helpers.cancel(cancelled)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(process.wait(), 0.001)
    assert process.returncode is None
    process.stdin.close()
    assert await other == 0
    assert await process.wait() == 0


async def test_communicate_cancelled_and_called_again(loop):
    process = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
    task = asyncio.create_task(process.communicate(b"x" * (MUCH * 4)))
    await asyncio.sleep(0)
    await helpers.cancel(task)
    assert process.returncode is None
    process.kill()
    output, _ = await process.communicate()
    assert not output.strip(b"x")
    assert process.returncode == -signal.SIGKILL


SIGNALS = {
    "kill": (lambda process: process.kill(), signal.SIGKILL),
    "terminate": (lambda process: process.terminate(), signal.SIGTERM),
    "send_signal": (lambda process: process.send_signal(signal.SIGHUP), signal.SIGHUP),
    "a number": (lambda process: process.send_signal(10), signal.SIGUSR1),
}


@pytest.mark.parametrize("name", SIGNALS)
async def test_signals(loop, name):
    send, number = SIGNALS[name]
    process = await asyncio.create_subprocess_exec("cat", stdin=PIPE)
    assert send(process) is None
    assert await process.wait() == -number
    assert process.returncode == -number


async def test_a_signal_that_the_child_handles(loop):
    process = await shell("trap 'echo caught; exit 5' USR1; echo ready; read line", stdin=PIPE, stdout=PIPE)
    assert await process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGUSR1)
    process.stdin.write(b"\n")
    assert await process.communicate(b"") == (b"caught\n", None)
    assert process.returncode == 5


async def test_stopping_a_child_does_not_end_it(loop):
    process = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    process.stdin.write(b"line\n")
    reading = asyncio.create_task(process.stdout.readline())
    await asyncio.sleep(0.01)
    assert not reading.done()
    assert process.returncode is None
    process.send_signal(signal.SIGCONT)
    assert await reading == b"line\n"
    assert await process.communicate(b"") == (b"", None)
    assert process.returncode == 0


@pytest.mark.parametrize("name", ["kill", "terminate"])
async def test_signals_to_a_process_that_has_ended_and_that_nobody_refers_to(loop, name):
    process = await asyncio.create_subprocess_shell("exit 4")
    assert await process.wait() == 4
    await helpers.iterations(3)  # the transport has let go of it then
    with pytest.raises(ProcessLookupError):
        getattr(process, name)()
    assert process.returncode == 4


@pytest.mark.asyncio_from(3, 13)
async def test_a_signal_to_a_child_that_has_ended_unnoticed_leaves_its_return_code(loop, logged, gate):
    process = await asyncio.create_subprocess_shell("read line; exit 4", stdin=gate[0])
    os.write(gate[1], b"\n")
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    process.send_signal(signal.SIGTERM)
    process.kill()
    assert await process.wait() == 4
    assert logged() == []


async def test_the_representation_of_a_process(loop):
    process = await asyncio.create_subprocess_exec("cat", stdin=PIPE)
    assert repr(process) == f"<Process {process.pid}>"
    process.kill()
    await process.wait()


# Grandchildren


async def test_a_grandchild_keeps_the_output_open(loop, gate):
    """communicate() waits for the end of the output, whoever writes it."""
    script = "{ read line </proc/self/fd/$1; echo late; } & echo early; exit 3"
    process = await shell(script, str(gate[0]), stdout=PIPE, pass_fds=gate[:1])
    assert await process.stdout.readline() == b"early\n"
    await until_exited(process)
    reading = asyncio.create_task(process.communicate())
    await helpers.iterations(5)
    assert process.returncode == 3
    assert await process.wait() == 3
    assert not reading.done()
    os.write(gate[1], b"\n")
    assert await reading == (b"late\n", None)


async def test_a_wait_that_began_before_the_end_while_a_grandchild_keeps_the_output_open(loop, gate):
    script = "{ read line </proc/self/fd/$1; } & read line; exit 3"
    process = await shell(script, str(gate[0]), stdin=PIPE, stdout=PIPE, pass_fds=gate[:1])
    waiting = asyncio.create_task(process.wait())
    await asyncio.sleep(0)
    process.stdin.write(b"\n")
    if WAITS_FOR_PIPES:
        await until_exited(process)
        await helpers.iterations(5)
        assert not waiting.done()
        os.write(gate[1], b"\n")
        assert await waiting == 3
    else:
        assert await waiting == 3
        os.write(gate[1], b"\n")
    assert await process.communicate(b"") == (b"", None)


async def test_a_grandchild_keeps_the_input_open(loop, gate):
    script = "{ read line </proc/self/fd/$1; exec wc -c; } & exit 3"
    # Not from the null device, as a shell has it for what runs in the background.
    script = "exec 3<&0; " + script.replace("wc -c", "wc -c <&3")
    process = await shell(script, str(gate[0]), stdin=PIPE, stdout=PIPE, pass_fds=gate[:1])
    await until_exited(process)
    assert process.returncode == 3
    os.write(gate[1], b"\n")
    output, _ = await process.communicate(b"x" * MUCH)
    assert output.strip() == b"%d" % MUCH


@pytest.mark.hotloop_only
@helpers.with_pidfd
async def test_a_child_whose_pidfd_cannot_be_watched_is_watched_in_another_way(loop, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOSPC, "no room")

    before = helpers.open_descriptors()
    monkeypatch.setattr(loop, "_add_reader", refuse)
    process = await shell("exit 3")
    async with asyncio.timeout(5):
        assert await process.wait() == 3
    assert not loop._children
    await helpers.until(lambda: not helpers.opened_since(before))


@pytest.mark.hotloop_only
@helpers.with_pidfd
@pytest.mark.parametrize("what", ["its reader", "its entry"])
async def test_a_child_that_cannot_be_watched_is_killed_and_its_creator_told(loop, monkeypatch, what):
    class Full(dict):
        def __setitem__(self, key, value):
            raise MemoryError

    def refuse(*args):
        raise MemoryError

    before = helpers.open_descriptors()
    if what == "its reader":
        monkeypatch.setattr(loop, "_add_reader", refuse)
    else:
        monkeypatch.setattr(loop, "_children", Full())
    async with asyncio.timeout(5):
        with pytest.raises(MemoryError):
            await asyncio.create_subprocess_exec("sleep", "60", stdin=PIPE, stdout=PIPE)
    _, status = os.waitpid(-1, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    monkeypatch.undo()
    # The pipes end with the child.
    await helpers.until(lambda: not loop._transports)
    await helpers.until(lambda: not helpers.opened_since(before))
