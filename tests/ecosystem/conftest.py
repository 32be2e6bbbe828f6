"""The tests of other people's software, and the page that says what ran.

A test is marked with the software that it exercises, by the names of its packages, and says in the first line
of its docstring what it does. `--compatibility FILE` writes a page with all of that.
"""

import datetime
import importlib.metadata
import platform
import re
import subprocess
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from helpers import unused_port


@dataclass
class Exercise:
    packages: tuple[str, ...]
    what: str
    outcome: str = "not run"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--compatibility", type=Path, metavar="FILE", help="write what ran, and how it went")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "software(*packages): what the test exercises")
    config.stash[EXERCISES] = {}


EXERCISES = pytest.StashKey[dict[str, Exercise]]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        marker = item.get_closest_marker("software")
        if marker is None:
            continue
        function = getattr(item, "function", None)
        if not (function and function.__doc__):
            raise pytest.UsageError(f"{item.nodeid} does not say in its docstring what it does")
        what = function.__doc__.strip().split("\n")[0].rstrip(".")
        config.stash[EXERCISES][item.nodeid] = Exercise(marker.args, what)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    exercise = item.config.stash[EXERCISES].get(item.nodeid)
    if exercise is not None:
        if report.skipped:
            exercise.outcome = f"skipped: {report.longrepr[2].removeprefix('Skipped: ')}"
        elif report.failed:
            exercise.outcome = "**fails**"
        elif report.when == "call":
            exercise.outcome = "passes"
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("--compatibility")
    if path is not None:
        former = path.read_text() if path.exists() else ""
        # The suites write a section of their own; those after it are written by hand.
        _, heading, suites = former.partition(SUITES)
        path.write_text(page(list(session.config.stash[EXERCISES].values())) + heading + suites)


HEAD = """\
# Compatibility

<!-- Written by `make compatibility`. The words come from tests/ecosystem. -->

What people run on an event loop, run on hotloop: real servers, real clients, real databases. Each line is a
test in [tests/ecosystem](../tests/ecosystem), which fails when the software does not do what it should,
and also when it logs an exception or ends with another status than it should.

"""


SUITES = "\n## Test suites of their own\n"


def page(exercises: list[Exercise]) -> str:
    import hotloop

    facts = [
        f"{datetime.date.today():%Y-%m-%d}, hotloop {hotloop.__version__}, "
        f"CPython {platform.python_version()}, {platform.system()} {platform.machine()}"
    ]
    lines = ["| software | what was done | result |", "|---|---|---|"]
    for exercise in sorted(exercises, key=lambda exercise: exercise.packages[0].lower()):
        names = ", ".join(f"{package} {version(package)}" for package in exercise.packages)
        lines.append(f"| {names} | {exercise.what} | {exercise.outcome} |")
    return HEAD + "\n".join([*facts, "", *lines]) + "\n"


SERVERS = {
    "PostgreSQL": ["postgres", "--version"],
    "Redis": ["redis-server", "--version"],
}


def version(package: str) -> str:
    if package in SERVERS:
        try:
            printed = subprocess.run(SERVERS[package], capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            return "(not installed)"
        found = re.search(r"\d+\.[\d.]+", printed)
        return found.group() if found else "(unknown)"
    return importlib.metadata.version(package)


@pytest.fixture
def port() -> int:
    """A port that nobody listens to."""
    return unused_port()


@pytest.fixture(scope="session")
def certificate(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files of a certificate for localhost: its authority, itself, its key."""
    folder = tmp_path_factory.mktemp("certificate")
    leaf = authority.issue_cert("localhost", "127.0.0.1")
    paths = {name: str(folder / f"{name}.pem") for name in ("authority", "certificate", "key")}
    authority.cert_pem.write_to_path(paths["authority"])
    for position, pem in enumerate(leaf.cert_chain_pems):
        pem.write_to_path(paths["certificate"], append=position > 0)
    leaf.private_key_pem.write_to_path(paths["key"])
    return paths
