"""Programs whose system calls strace makes fail: run as `strace_programs.py LOOP PROGRAM`.

Each prints a line when it is ready, waits for one, works for a bounded time and leaves its outcome in a file.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import ssl
import sys
import time

MESSAGE = b"0123456789abcdef" * 64
LONG = MESSAGE * 2000
# Seconds for a program, and then for one that works while nothing fails any more.
PATIENCE = 3.0


async def _exchange(reader, writer, data):
    try:
        writer.write(data)
        await writer.drain()
        received = await reader.readexactly(len(data))
        assert received == data, "other data"
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _handle(reader, writer):
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _echo(data, **tls):
    server_tls, client_tls = tls.get("server"), tls.get("client")
    server = await asyncio.start_server(_handle, "127.0.0.1", 0, ssl=server_tls)
    try:
        address = server.sockets[0].getsockname()
        name = "localhost" if client_tls else None
        for _ in range(3):
            reader, writer = await asyncio.open_connection(*address, ssl=client_tls, server_hostname=name)
            await _exchange(reader, writer, data)
    finally:
        server.close()


async def echo():
    await _echo(MESSAGE)


async def long_echo():
    await _echo(LONG)


async def tls_echo():
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(os.environ["TORTURE_CERTIFICATE"])
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(os.environ["TORTURE_AUTHORITY"])
    await _echo(MESSAGE, server=server, client=client)


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, answers=False):
        self.answers = answers
        self.received = 0

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        self.received += 1
        if self.answers:
            self.transport.sendto(data, addr)


async def datagrams():
    loop = asyncio.get_running_loop()
    served, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(True), local_addr=("127.0.0.1", 0))
    try:
        address = served.get_extra_info("sockname")
        asked, client = await loop.create_datagram_endpoint(_Datagrams, remote_addr=address)
        try:
            for _ in range(100):
                asked.sendto(MESSAGE)
                await asyncio.sleep(0.005)
                if client.received >= 5:
                    return
            raise OSError("no answers")
        finally:
            asked.close()
    finally:
        served.close()


async def subprocess():
    for _ in range(2):
        process = await asyncio.create_subprocess_exec(
            "cat", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        try:
            output, _ = await process.communicate(MESSAGE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if output != MESSAGE:
            raise OSError("not all came back")


async def threads():
    loop = asyncio.get_running_loop()
    for number in range(20):
        assert await loop.run_in_executor(None, abs, -number) == number


async def timers():
    for _ in range(20):
        await asyncio.sleep(0.0015)


PROGRAMS = (echo, long_echo, tls_echo, datagrams, subprocess, threads, timers)


def _name(error):
    return type(error).__name__


def main(loop_name, program):
    # Whoever starts this may attach a tracer even where only a parent could.
    ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)
    if loop_name == "hotloop":
        import hotloop

        loop = hotloop.new_event_loop()
    else:
        loop = asyncio.SelectorEventLoop()
    asyncio.set_event_loop(loop)
    outcome = {"ended": "well", "left": [], "reported": []}
    loop.set_exception_handler(
        lambda loop, context: outcome["reported"].append(_name(context.get("exception")))
    )

    outcome_file = os.open(os.environ["TORTURE_OUTCOME"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    function = {function.__name__: function for function in PROGRAMS}[program]
    loop.run_until_complete(asyncio.sleep(0))  # whatever is done once is done
    print("ready", flush=True)
    sys.stdin.readline()
    start, used = time.monotonic(), time.process_time()

    async def bounded():
        try:
            await asyncio.wait_for(function(), PATIENCE)
        except TimeoutError:
            outcome["ended"] = "never"
        except (OSError, EOFError) as error:
            outcome["ended"] = _name(error)

    async def rest():
        """Idle, as the loop is to be: what is left of tasks ends, or is ended."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            _, pending = await asyncio.wait(others, timeout=0.2)
            for task in pending:
                task.cancel()
        await asyncio.sleep(0.01)

    for part in (bounded, rest):
        task = None
        for _ in range(5):
            # An error of the loop's, not of the task, is tried again.
            try:
                task = task or loop.create_task(part())
                loop.run_until_complete(task)
                break
            except Exception as error:
                outcome["left"].append(f"{_name(error)}: {error}")
                if task is not None and task.done():
                    break
    outcome["seconds"], outcome["busy"] = time.monotonic() - start, time.process_time() - used
    executor = loop._default_executor
    loop.close()
    if executor is not None:
        executor.shutdown()
    # By a system call that no test has fail.
    os.pwrite(outcome_file, json.dumps(outcome).encode(), 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
