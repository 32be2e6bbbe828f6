"""python -m hotloop --limit-connections and --limit-delay."""

import subprocess
import sys

import helpers
import pytest
from helpers_limits import PATIENCE

pytestmark = pytest.mark.skipif("hotloop" not in helpers.LOOP_NAMES, reason="hotloop is not under test")

PROGRAM = """
import asyncio, hotloop

async def main():
    most = now = 0

    async def handle(reader, writer):
        nonlocal now, most
        now += 1
        most = max(now, most)
        await reader.read()
        now -= 1
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    own = await asyncio.start_server(handle, "127.0.0.1", 0, start_serving=False)
    hotloop.limit(own, connections=7)
    await own.start_serving()
    address = server.sockets[0].getsockname()

    async def client():
        reader, writer = await asyncio.open_connection(*address)
        await asyncio.sleep(0.01)
        writer.close()

    await asyncio.gather(*(client() for _ in range(30)))
    limit = server._hotloop_limit
    print(limit.connections, limit.delay, most, own._hotloop_limit.connections)
    server.close(), own.close()
"""


def run_command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "hotloop", *arguments], capture_output=True, text=True, timeout=PATIENCE
    )


@pytest.mark.parametrize(
    "options",
    [["--limit-connections=5", "--limit-delay=20"], ["--limit-connections", "5", "--limit-delay", "20"]],
)
def test_the_command_limits_every_server(options):
    done = run_command(*options, "-c", PROGRAM + "asyncio.run(main())")
    assert (done.stdout, done.stderr) == ("5 20.0 5 7\n", "")


def test_the_command_limits_processes_of_multiprocessing(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        PROGRAM
        + """
def child():
    asyncio.run(main())

if __name__ == "__main__":
    import multiprocessing
    process = multiprocessing.get_context("spawn").Process(target=child)
    process.start()
    process.join()
"""
    )
    done = run_command("--limit-connections=5", str(program))
    assert (done.stdout, done.stderr) == ("5 None 5 7\n", "")


@pytest.mark.parametrize(
    "option",
    [
        *(
            "--limit-connections=0",
            "--limit-connections=x",
            "--limit-connections=",
            "--limit-connections=1.5",
        ),
        *("--limit-delay=0", "--limit-delay=x", "--limit-delay=inf"),
    ],
)
def test_wrong_options_of_the_command(option):
    done = run_command(option, "-c", "print(1)")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"hotloop: {option.partition('=')[0]} takes a number of ")
