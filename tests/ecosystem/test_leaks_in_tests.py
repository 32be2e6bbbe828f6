"""The fixture hotloop_leaks in tests that pytest-asyncio and anyio run."""

import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    import asyncio, socket, threading
    import anyio, hotloop, pytest

    {prelude}

    async def echo(reader, writer):
        writer.write(await reader.readline())
        writer.close()

    {marker}
    async def test_clean(hotloop_leaks):
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"hello\\n")
        assert await reader.read() == b"hello\\n"
        writer.close()
        server.close()
        await server.wait_closed()
        await asyncio.to_thread(int)
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 0)
        await anyio.to_thread.run_sync(int)
        assert isinstance(asyncio.get_running_loop(), hotloop.Loop)

    kept = []

    {marker}
    async def test_leaking(hotloop_leaks):
        kept.append(socket.socketpair())  # made here
        thread = threading.Thread(target=threading.Event().wait, daemon=True)
        thread.start()
"""

PLUGINS = {
    "pytest-asyncio": (
        """
    @pytest.fixture
    def event_loop_policy():
        return hotloop.EventLoopPolicy()
    """,
        "@pytest.mark.asyncio",
    ),
    "anyio": (
        """
    @pytest.fixture
    def anyio_backend():
        return "asyncio", {"loop_factory": hotloop.new_event_loop}
    """,
        "@pytest.mark.anyio",
    ),
}


@pytest.mark.parametrize("plugin", PLUGINS)
def test_the_fixture_judges_what_a_test_left(tmp_path, plugin):
    prelude, marker = PLUGINS[plugin]
    file = tmp_path / "test_program.py"
    program = PROGRAM.replace("{prelude}", prelude.strip()).replace("{marker}", marker)
    file.write_text(textwrap.dedent(program))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "ignore", file],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=tmp_path,
    )
    assert "2 passed, 1 error" in done.stdout, done.stdout + done.stderr
    assert "the test left 1 thread and 2 descriptors behind" in done.stdout, done.stdout
    assert "ERROR test_program.py::test_leaking" in done.stdout
