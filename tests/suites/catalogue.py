"""The suites: of which package, how they are run, and where hotloop is known to differ."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Suite:
    package: str
    """Its name on the package index. requirements/ has a file of that name, which fixes the versions."""
    arguments: tuple[str, ...] = ()
    """What is given to pytest besides the tests."""
    tests: tuple[str, ...] = ()
    """Files and folders of the source distribution; those that its own settings name if there are none."""
    runner: tuple[str, ...] = ("-m", "pytest", "-p", "suite_outcomes", "--timeout=120")
    hidden: str | None = None
    """A folder of the sources that would hide the installed package, which has its extension module."""
    server: str | None = None
    """What the tests need: `Redis` or `PostgreSQL`."""
    environment: dict[str, str] = field(default_factory=dict)
    known: dict[str, str] = field(default_factory=dict)
    """The tests that pass on asyncio only, each with the reason."""


SUITES = (
    Suite("aioquic", tests=("tests/test_asyncio.py",)),
    Suite("aiosmtpd", ("-o", "addopts=", "-o", "asyncio_default_fixture_loop_scope=function")),
    Suite("aiosmtplib"),
    Suite("asyncpg", hidden="asyncpg", server="PostgreSQL"),
    Suite("asyncssh"),
    Suite("httpcore"),
    Suite(
        "hypercorn",
        (
            "-o",
            "addopts=",
        ),
    ),
    Suite(
        "janus",
        (
            "-o",
            "addopts=",
        ),
    ),
    Suite("prompt_toolkit"),
    Suite(
        "redis",
        # What needs modules of Redis, a cluster or somebody's cloud is left out.
        ("-m", "not redismod and not onlycluster and not cp_integration and not multidb_integration"),
        tests=("tests/test_asyncio",),
        server="Redis",
    ),
    Suite("starlette"),
    Suite(
        "tornado",
        ("-o", "python_files=*_test.py", "--log-disable=tornado.access"),
        tests=("tornado/test",),
        environment={"ASYNC_TEST_TIMEOUT": "25"},
    ),
    Suite(
        "twisted",
        runner=("-m", "trial_outcomes"),
        tests=("twisted.internet", "twisted.test", "twisted.protocols", "twisted.web", "twisted.conch"),
    ),
    Suite(
        "uvicorn",
        ("-n", "0"),
        known={
            "tests/test_auto_detection.py::test_loop_auto": "asks whether the loop's class is in `asyncio`"
        },
    ),
)
