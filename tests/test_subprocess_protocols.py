"""loop.subprocess_exec() and subprocess_shell() with protocols: transports, pipes, the order of calls."""

import asyncio
import contextvars
import logging
import os
import signal

import helpers
import pytest
from helpers import ProcessRecorder

pytestmark = pytest.mark.usefixtures("no_child_left")

MUCH = 1 << 20
variable = contextvars.ContextVar("variable", default=None)


def shell(loop, script, protocol=None, *args, **kwargs):
    """Start a shell with a script of its own."""
    protocol = ProcessRecorder() if protocol is None else protocol
    return loop.subprocess_exec(lambda: protocol, "/bin/sh", "-c", script, "sh", *args, **kwargs)


def without_pipes(**options):
    return {"stdin": None, "stdout": None, "stderr": None, **options}


# The calls, and their order


async def test_the_calls_of_a_process_without_pipes(loop):
    _, protocol = await shell(loop, "exit 0", **without_pipes())
    assert await protocol.lost() is None
    assert protocol.calls == ["connection_made", "process_exited", "connection_lost"]


async def test_the_calls_of_a_process_with_pipes(loop):
    transport, protocol = await shell(loop, "read line; echo $line; echo err >&2; exit 3")
    transport.get_pipe_transport(0).write(b"line\n")
    assert await protocol.lost() is None
    assert protocol.calls[0] == "connection_made"
    assert protocol.calls[-1] == "connection_lost"
    assert sorted(protocol.calls) == [
        *("connection_lost", "connection_made", "pipe_connection_lost 0", "pipe_connection_lost 1"),
        *("pipe_connection_lost 2", "pipe_data_received 1", "pipe_data_received 2", "process_exited"),
    ]
    for number in (1, 2):
        data, lost = (
            protocol.calls.index(f"pipe_{what} {number}") for what in ("data_received", "connection_lost")
        )
        assert data < lost
    assert protocol.output == {1: b"line\n", 2: b"err\n"}
    assert protocol.pipe_exceptions == {0: None, 1: None, 2: None}
    assert transport.get_returncode() == 3


async def test_connection_made_comes_before_the_function_returns_and_with_the_pipes(loop):
    pipes = []

    def made(protocol, transport):
        pipes.extend(transport.get_pipe_transport(number) for number in range(3))

    transport, protocol = await shell(loop, "cat", ProcessRecorder(connection_made=made))
    assert protocol.transport is transport
    assert transport.get_protocol() is protocol
    assert None not in pipes
    assert pipes == [transport.get_pipe_transport(number) for number in range(3)]
    pipes[0].close()
    await protocol.lost()


async def test_data_that_is_there_at_once_comes_after_connection_made(loop):
    for _ in range(10):
        _, protocol = await shell(loop, "echo out; echo err >&2", stdin=None)
        await protocol.lost()
        assert protocol.calls[0] == "connection_made"
        assert protocol.output == {1: b"out\n", 2: b"err\n"}


async def test_all_the_data_comes_before_connection_lost(loop):
    _, protocol = await shell(loop, "head -c 1048576 /dev/zero; head -c 1048576 /dev/zero >&2", stdin=None)
    await protocol.lost()
    assert [len(protocol.output[number]) for number in (1, 2)] == [MUCH, MUCH]
    assert protocol.calls.count("connection_lost") == 1


async def test_connection_lost_waits_for_the_pipes(loop, gate):
    """A process has exited, and its child has its output open still."""
    script = "{ read line </proc/self/fd/$1; echo late; } & exit 2"
    transport, protocol = await shell(loop, script, None, str(gate[0]), stdin=None, pass_fds=gate[:1])
    await protocol.until("process_exited")
    await helpers.iterations(5)
    assert transport.get_returncode() == 2
    assert protocol.calls == ["connection_made", "process_exited"]
    os.write(gate[1], b"\n")
    await protocol.lost()
    assert protocol.output[1] == b"late\n"
    assert protocol.calls[-1] == "connection_lost"


async def test_connection_lost_waits_for_the_process(loop, gate):
    """The pipes are closed, and the process goes on."""
    script = "exec 0<&- 1>&- 2>&-; read line </proc/self/fd/$1; exit 2"
    transport, protocol = await shell(loop, script, None, str(gate[0]), pass_fds=gate[:1])
    await protocol.until(lambda protocol: len(protocol.pipe_exceptions) == 3)
    await helpers.iterations(5)
    assert "process_exited" not in protocol.calls
    assert transport.get_returncode() is None
    os.write(gate[1], b"\n")
    await protocol.lost()
    assert protocol.calls[-2:] == ["process_exited", "connection_lost"]
    assert transport.get_returncode() == 2


async def test_the_return_code_is_known_in_process_exited(loop):
    seen = []
    _, protocol = await shell(
        loop,
        "exit 9",
        ProcessRecorder(process_exited=lambda protocol: seen.append(protocol.transport.get_returncode())),
        **without_pipes(),
    )
    await protocol.lost()
    assert seen == [9]


async def test_another_protocol(loop):
    transport, first = await shell(loop, "read line; echo answer")
    second = ProcessRecorder()
    transport.set_protocol(second)
    assert transport.get_protocol() is second
    transport.get_pipe_transport(0).write(b"\n")
    await second.lost()
    assert first.calls == ["connection_made"]
    assert second.output[1] == b"answer\n"


@pytest.mark.parametrize(
    "name", ["connection_made", "pipe_data_received 1", "process_exited", "connection_lost"]
)
async def test_a_protocol_that_fails_is_reported(loop, reports, name):
    """And the process is waited for all the same."""

    def fail(protocol, *args):
        raise LookupError("of the protocol")

    transport, protocol = await shell(loop, "echo out; exit 3", ProcessRecorder(**{name: fail}), stdin=None)
    await protocol.until(lambda protocol: name in protocol.calls and "connection_lost" in protocol.calls)
    await helpers.iterations(2)
    assert isinstance(reports.take()["exception"], LookupError)
    assert transport.get_returncode() == 3
    transport.close()


async def test_contexts(loop):
    """Where the process was started is where its protocol is called, with what was set then."""
    seen = {}

    def note(name):
        return lambda protocol, *args: seen.setdefault(name, variable.get())

    names = ["connection_made", "pipe_data_received 1", "pipe_connection_lost 0", "pipe_connection_lost 1"]
    protocol = ProcessRecorder(**{name: note(name) for name in names})
    variable.set("started")
    transport, _ = await shell(loop, "read line; echo $line", protocol)
    variable.set("later")
    transport.get_pipe_transport(0).write(b"line\n")
    await protocol.lost()
    assert seen == dict.fromkeys(names, "started")


@pytest.mark.asyncio_bug("the thread that waits has a context of its own", (3, 11))
async def test_the_context_of_the_end(loop):
    seen = []
    protocol = ProcessRecorder(
        process_exited=lambda protocol: seen.append(variable.get()),
        connection_lost=lambda protocol, exc: seen.append(variable.get()),
    )
    variable.set("started")
    transport, _ = await shell(loop, "read line", protocol)
    variable.set("later")
    transport.get_pipe_transport(0).write(b"line\n")
    await protocol.lost()
    assert seen == ["started", "started"]


# The transport


async def test_what_a_transport_knows(loop):
    transport, protocol = await shell(loop, "exec cat", stderr=None)
    assert isinstance(transport, asyncio.SubprocessTransport)
    process = transport.get_extra_info("subprocess")
    assert transport.get_pid() == process.pid
    assert os.readlink(f"/proc/{transport.get_pid()}/cwd") == os.getcwd()
    assert transport.get_returncode() is None
    assert isinstance(transport.get_pipe_transport(0), asyncio.WriteTransport)
    assert isinstance(transport.get_pipe_transport(1), asyncio.ReadTransport)
    assert transport.get_pipe_transport(2) is None
    assert transport.get_pipe_transport(3) is None
    assert not transport.is_closing()
    assert transport.get_extra_info("unknown", "default") == "default"
    transport.get_pipe_transport(0).close()
    await protocol.lost()
    assert transport.get_returncode() == 0
    assert process.returncode == 0
    assert transport.get_pid() == process.pid


async def test_its_representation(loop):
    transport, protocol = await shell(loop, "exec cat")
    running = repr(transport)
    for part in (f"pid={transport.get_pid()}", "running", "stdin=<", "stdout=<", "stderr=<"):
        assert part in running
    assert "closed" not in running.split()
    transport.get_pipe_transport(0).close()
    await protocol.until("process_exited")
    assert "returncode=0" in repr(transport)
    assert "running" not in repr(transport).split()
    await protocol.lost()
    transport.close()
    assert "closed" in repr(transport).split()
    assert f"pid={transport.get_pid()}" in repr(transport)


async def test_close_kills_a_running_process(loop):
    transport, protocol = await shell(loop, "exec cat")
    transport.close()
    assert transport.is_closing()
    transport.close()
    await protocol.lost()
    assert transport.get_returncode() == -signal.SIGKILL
    assert sorted(protocol.calls) == [
        *("connection_lost", "connection_made", "pipe_connection_lost 0", "pipe_connection_lost 1"),
        *("pipe_connection_lost 2", "process_exited"),
    ]
    assert protocol.calls[-1] == "connection_lost"


async def test_close_after_the_end_does_nothing(loop):
    transport, protocol = await shell(loop, "exit 5")
    await protocol.lost()
    calls = list(protocol.calls)
    transport.close()
    await helpers.iterations(5)
    assert protocol.calls == calls
    assert transport.get_returncode() == 5


async def test_close_in_process_exited(loop):
    protocol = ProcessRecorder(process_exited=lambda protocol: protocol.transport.close())
    transport, _ = await shell(loop, "exit 5", protocol)
    await protocol.lost()
    assert transport.get_returncode() == 5


async def test_close_in_connection_made(loop):
    protocol = ProcessRecorder(connection_made=lambda protocol, transport: transport.close())
    transport, _ = await shell(loop, "exec cat", protocol)
    await protocol.lost()
    assert transport.get_returncode() == -signal.SIGKILL


async def test_signals_to_a_process_that_has_ended(loop):
    transport, protocol = await shell(loop, "exit 5")
    await protocol.lost()
    await helpers.iterations(2)
    for send in (transport.kill, transport.terminate, lambda: transport.send_signal(signal.SIGHUP)):
        with pytest.raises(ProcessLookupError):
            send()


async def test_signals_in_process_exited_go_to_nobody(loop):
    """The number of the process may be somebody else's by then."""

    def send(protocol):
        protocol.transport.kill()
        protocol.transport.terminate()
        protocol.transport.send_signal(signal.SIGHUP)

    transport, protocol = await shell(loop, "exit 5", ProcessRecorder(process_exited=send))
    await protocol.lost()
    assert transport.get_returncode() == 5


# Pipes


async def test_closing_an_output_pipe(loop):
    transport, protocol = await shell(loop, "trap '' PIPE; read line; echo line; exit 4", stderr=None)
    transport.get_pipe_transport(1).close()
    await protocol.until("pipe_connection_lost 1")
    assert "process_exited" not in protocol.calls
    transport.get_pipe_transport(0).write(b"\n")
    await protocol.lost()
    assert protocol.output[1] == b""
    assert transport.get_returncode() == 4


async def test_aborting_the_input(loop):
    transport, protocol = await shell(loop, "exec wc -c", stderr=None)
    pipe = transport.get_pipe_transport(0)
    pipe.write(b"x" * 100)
    await helpers.iterations(2)
    assert pipe.can_write_eof()
    pipe.abort()
    await protocol.lost()
    assert protocol.output[1].strip() == b"100"


async def test_a_paused_output_pipe(loop):
    transport, protocol = await shell(loop, "echo first; read line; echo second", stderr=None)
    pipe = transport.get_pipe_transport(1)
    await protocol.until("pipe_data_received 1")
    pipe.pause_reading()
    assert not pipe.is_reading()
    transport.get_pipe_transport(0).write(b"\n")
    await protocol.until("process_exited")
    await helpers.iterations(5)
    assert protocol.output[1] == b"first\n"
    assert "connection_lost" not in protocol.calls
    pipe.resume_reading()
    await protocol.lost()
    assert protocol.output[1] == b"first\nsecond\n"


async def test_flow_control_of_the_input(loop, gate):
    script = "read line </proc/self/fd/$1; exec wc -c"
    transport, protocol = await shell(loop, script, None, str(gate[0]), pass_fds=gate[:1])
    pipe = transport.get_pipe_transport(0)
    pipe.write(b"x" * MUCH)
    await protocol.until("pause_writing")
    assert pipe.get_write_buffer_size() > 0
    await helpers.iterations(5)
    assert "resume_writing" not in protocol.calls
    os.write(gate[1], b"\n")
    await protocol.until("resume_writing")
    pipe.write_eof()
    await protocol.lost()
    assert protocol.output[1].strip() == b"%d" % MUCH
    assert [name for name in protocol.calls if name.endswith("writing")] == [
        "pause_writing",
        "resume_writing",
    ]


async def test_an_input_that_the_child_closes(loop):
    transport, protocol = await shell(loop, "exec 0<&-; echo closed; exec sleep 60")
    await protocol.until("pipe_connection_lost 0")
    assert protocol.pipe_exceptions[0] is None
    assert transport.get_pipe_transport(0).is_closing()
    assert "process_exited" not in protocol.calls
    transport.kill()
    await protocol.lost()


async def test_an_input_that_the_child_closes_with_data_on_its_way(loop, gate):
    script = "read line </proc/self/fd/$1; exit 0"
    transport, protocol = await shell(loop, script, None, str(gate[0]), pass_fds=gate[:1])
    transport.get_pipe_transport(0).write(b"x" * MUCH)
    os.write(gate[1], b"\n")
    assert await protocol.lost() is None
    assert isinstance(protocol.pipe_exceptions[0], BrokenPipeError)
    assert protocol.pipe_exceptions[1] is None
    assert transport.get_returncode() == 0


# Debug mode


async def test_debug_mode_logs_the_life_of_a_process(loop, logged):
    loop.set_debug(True)
    transport, protocol = await shell(loop, "exit 3")
    await protocol.lost()
    lines = logged(logging.DEBUG)
    pid = transport.get_pid()
    assert any(line.startswith("execute program '/bin/sh' stdin=<pipe> stdout=<pipe>") for line in lines), (
        lines
    )
    assert f"process '/bin/sh' created: pid {pid}" in lines
    assert any(f"pid={pid}" in line and line.endswith("exited with return code 3") for line in lines), lines
    assert logged() == []


async def test_debug_mode_says_whom_close_kills(loop, logged):
    loop.set_debug(True)
    transport, protocol = await loop.subprocess_shell(ProcessRecorder, "exec cat")
    transport.close()
    await protocol.lost()
    (line,) = logged()
    assert line.startswith("Close running child process: kill <")
    assert f"pid={transport.get_pid()}" in line
    assert any(line.startswith("run shell command 'exec cat' stdin=<pipe>") for line in logged(logging.DEBUG))
