"""An event loop that nobody closes, and that goes with the interpreter."""

import textwrap

import helpers
import pytest

USES = {
    "nothing": "",
    "an iteration": "loop.run_until_complete(asyncio.sleep(0))",
    "a timer": "loop.call_later(3600, print)",
    "debug mode": "loop.set_debug(True); loop.call_soon(print)",
    "a signal handler": "loop.add_signal_handler(signal.SIGUSR1, print)",
    "an executor": "loop.run_until_complete(loop.run_in_executor(None, int))",
    "a child": """
        async def main():
            child = await asyncio.create_subprocess_exec("true")
            await child.wait()
        loop.run_until_complete(main())
    """,
    "a server": """
        async def main():
            global server, client
            server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
            client = await asyncio.open_connection(*server.sockets[0].getsockname())
            await asyncio.sleep(0.01)
        loop.run_until_complete(main())
    """,
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("current", ["current", "not current"])
def test_the_interpreter_ends_without_a_word(loop_name, use, current):
    """A current loop lives longer than the module that it comes from."""
    source = f"""
        import asyncio, signal
        loop = new_event_loop()
        {"asyncio.set_event_loop(loop)" if current == "current" else ""}
    """
    result = helpers.run_script(loop_name, textwrap.dedent(source) + textwrap.dedent(USES[use]))
    assert result.stderr == ""


def test_a_runner_that_is_forgotten(loop_name):
    result = helpers.run_script(
        loop_name, "import asyncio; asyncio.Runner(loop_factory=new_event_loop).get_loop()"
    )
    assert result.stderr == ""
