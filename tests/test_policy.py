"""EventLoopPolicy and install(), where Python has policies: asyncio's default policy with another loop."""

import asyncio

import helpers
import pytest

pytestmark = pytest.mark.skipif("hotloop" not in helpers.LOOP_NAMES, reason="hotloop is not under test")

# Prints what a policy answers, step by step, with the warnings that it gives.
QUESTIONS = """
import asyncio, re, sys, threading, warnings
warnings.simplefilter("ignore")
with warnings.catch_warnings():
    if {ours}:
        import hotloop
        policy = hotloop.EventLoopPolicy()
        kind = hotloop.Loop
    else:
        policy = asyncio.DefaultEventLoopPolicy()
        kind = asyncio.SelectorEventLoop
known = []

def tell(what, function):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            answer = function()
        except BaseException as error:
            text = f"{{type(error).__name__}}: {{error}}"
        else:
            if isinstance(answer, asyncio.AbstractEventLoop):
                if answer not in known:
                    known.append(answer)
                text = f"loop {{known.index(answer)}} of its class: {{isinstance(answer, kind)}}"
            else:
                text = repr(answer)
    said = [f"{{w.category.__name__}}: {{w.message}} at {{w.filename}}:{{w.lineno}}" for w in caught]
    print(what, "->", text, said)

def ask(where):
    tell(where + " get", lambda: policy.get_event_loop())
    tell(where + " get again", lambda: policy.get_event_loop())
    tell(where + " set", lambda: policy.set_event_loop(policy.new_event_loop()))
    tell(where + " get what was set", lambda: policy.get_event_loop())
    tell(where + " set nothing", lambda: policy.set_event_loop(None))
    tell(where + " get nothing", lambda: policy.get_event_loop())
    tell(where + " set nonsense", lambda: policy.set_event_loop(42))
    tell(where + " new", lambda: policy.new_event_loop())

{body}
for loop in known:
    loop.close()
"""

BODIES = {
    "main thread": 'ask("main")',
    "other thread": """
thread = threading.Thread(target=ask, args=("other",), name="Other"); thread.start(); thread.join()
""",
    "other thread after the main thread": """
ask("main")
thread = threading.Thread(target=ask, args=("other",), name="Other"); thread.start(); thread.join()
""",
    "nothing set at first": """
tell("set nothing", lambda: policy.set_event_loop(None))
ask("main")
""",
    "installed": """
asyncio.set_event_loop_policy(policy)
tell("get", asyncio.get_event_loop)
tell("new", asyncio.new_event_loop)
tell("set", lambda: asyncio.set_event_loop(asyncio.new_event_loop()))
tell("get", asyncio.get_event_loop)
async def main():
    tell("running", asyncio.get_event_loop)
    tell("running, of the policy", policy.get_event_loop)
tell("run", lambda: asyncio.run(main()))
tell("get after run", asyncio.get_event_loop)
""",
    "installed, in another thread": """
asyncio.set_event_loop_policy(policy)
def work():
    tell("get", asyncio.get_event_loop)
    tell("run", lambda: asyncio.run(asyncio.sleep(0)))
    tell("get", asyncio.get_event_loop)
thread = threading.Thread(target=work, name="Other"); thread.start(); thread.join()
tell("get in main", asyncio.get_event_loop)
""",
    "child watchers": """
print("there are any:", hasattr(policy, "get_child_watcher"))
if hasattr(policy, "get_child_watcher"):
    tell("watcher", lambda: type(policy.get_child_watcher()).__name__)
    tell("set watcher", lambda: policy.set_child_watcher(None))
""",
}

needs_policies = pytest.mark.skipif(
    helpers.PYTHON >= (3, 16) or not hasattr(asyncio, "set_event_loop_policy"),
    reason="asyncio has no policies any more",
)


@needs_policies
@pytest.mark.parametrize("body", BODIES)
def test_a_policy_answers_as_asyncios_does(body):
    answers = [
        helpers.run_script(
            "hotloop" if ours else "asyncio", QUESTIONS.format(ours=ours, body=BODIES[body])
        ).stdout
        for ours in (False, True)
    ]
    assert answers[0].strip()
    assert answers[1] == answers[0]


@needs_policies
def test_install():
    assert (
        helpers.run_script(
            "hotloop",
            """
            hotloop.install()
            loop = asyncio.new_event_loop()
            assert type(loop) is hotloop.Loop, loop
            loop.close()

            async def main():
                assert type(asyncio.get_running_loop()) is hotloop.Loop
                await asyncio.sleep(0)
                return "ran"

            print(asyncio.run(main()))
            with asyncio.Runner() as runner:
                print(runner.run(main()))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert isinstance(asyncio.get_event_loop_policy(), hotloop.EventLoopPolicy)
            """,
        ).stdout
        == "ran\nran\n"
    )


@needs_policies
def test_a_policy_is_one_of_asyncios():
    helpers.run_script(
        "hotloop",
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert issubclass(hotloop.EventLoopPolicy, asyncio.AbstractEventLoopPolicy)
            assert issubclass(hotloop.EventLoopPolicy, asyncio.DefaultEventLoopPolicy)

            class Mine(hotloop.EventLoopPolicy):
                pass

            asyncio.set_event_loop_policy(Mine())
            assert type(asyncio.new_event_loop()) is hotloop.Loop
        """,
    )


def test_nothing_of_ours_is_deprecated():
    """Importing, running and installing give no warning on any Python."""
    result = helpers.run_script(
        "hotloop",
        """
        import hotloop

        async def main():
            ours, peer = socket.socketpair()
            reader, writer = await asyncio.open_connection(sock=ours)
            peer.send(b"hello")
            assert await reader.readexactly(5) == b"hello"
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, print)
            assert await asyncio.to_thread(lambda: 42) == 42
            writer.close()
            await writer.wait_closed()
            peer.close()

        hotloop.run(main())
        loop = hotloop.new_event_loop()
        loop.run_until_complete(main())
        loop.close()
        if hasattr(hotloop, "install"):
            hotloop.install()
            hotloop.EventLoopPolicy().new_event_loop().close()
        asyncio.run(main())
        for name in hotloop.__all__:
            getattr(hotloop, name)
        """,
        "-W",
        "error",
        "-X",
        "dev",
    )
    assert result.stderr == ""


def test_the_names_of_policies_are_there_where_asyncio_has_them():
    import hotloop

    for name in ("EventLoopPolicy", "install"):
        assert hasattr(hotloop, name) is (helpers.PYTHON < (3, 16))
        assert (name in hotloop.__all__) is (helpers.PYTHON < (3, 16))
