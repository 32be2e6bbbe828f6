"""The test suites of other projects, from their source distributions, on asyncio and on hotloop.

Those of anyio and aiohttp know uvloop, and find hotloop under that name. What passes on asyncio must pass on
hotloop. The others are a part of what `make test-suites` runs, in the same way.
"""

import contextlib
import importlib.metadata
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree
from pathlib import Path

import programs
import pytest

sys.path.append(str(Path(__file__).parents[1] / "suites"))

import catalogue
import comparing

STAND_INS = Path(__file__).parent / "stand_ins"
# Seconds, for all tests and for one.
PATIENCE = 600
PATIENCE_FOR_ONE = 120


def sources(package: str, folder: Path) -> Path:
    """The source distribution of what is installed."""
    release = f"{package}=={importlib.metadata.version(package)}"
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", package]
    subprocess.run([*download, "--dest", str(folder), release], check=True, timeout=PATIENCE)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return archive.with_name(archive.name.removesuffix(".tar.gz"))


def outcomes(folder: Path, *options: str) -> dict[str, str]:
    """What became of each test."""
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:asyncio", f"--timeout={PATIENCE_FOR_ONE}"]
    command += [f"--junitxml={report}", *options]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": programs.search_path(STAND_INS)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            # Also what it has started: a child can outlive it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        problem = f"not done within {PATIENCE} s" if code is None else f"exit code {code}"
        assert code in (0, 1), f"{problem}\n{output.read()[-10000:]}"
    found = {}
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        problem = next(
            (child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed"
        )
        found[f"{case.get('classname')}::{case.get('name')}"] = problem
    return found


def compare(folder: Path, options: list[str], theirs: str, ours: str, least: int) -> None:
    """What passes under the one name passes under the other.

    Some of the tests look at the time, and fail now and then on any loop: a difference is one that is there
    three times.
    """
    found = outcomes(folder, *options)
    mine = re.compile(rf"\b{re.escape(ours)}\b")
    ran = [name for name in found if mine.search(name) and found[name] == "passed"]
    assert len(ran) >= least, f"only {len(ran)} tests ran on hotloop"

    def worse() -> list[str]:
        failed = [name for name in found if mine.search(name) and found[name] in ("failure", "error")]
        return [name for name in failed if found.get(name.replace(ours, theirs)) == "passed"]

    for _ in range(2):
        if worse():
            found |= outcomes(folder, *options, "--last-failed")
    assert not worse(), "\n".join(worse())


@pytest.mark.timeout(2 * PATIENCE)
@pytest.mark.software("anyio")
def test_anyio(tmp_path: Path) -> None:
    """Its own test suite."""
    folder = sources("anyio", tmp_path)
    compare(folder, ["-m", "not network", "-k", "asyncio"], "asyncio", "asyncio+uvloop", 700)


@pytest.mark.timeout(2 * PATIENCE)
@pytest.mark.software("aiohttp")
def test_aiohttp(tmp_path: Path) -> None:
    """The functional tests of its own test suite."""
    folder = sources("aiohttp", tmp_path)
    # The sources would hide the package that is installed.
    (folder / "aiohttp").rename(folder / "aiohttp-sources")
    files = sorted(str(path.relative_to(folder)) for path in (folder / "tests").glob("test_*functional.py"))
    compare(folder, ["--aiohttp-loop=pyloop,uvloop", "-o", "addopts=", *files], "pyloop", "uvloop", 700)


@pytest.mark.timeout(2 * PATIENCE)
@pytest.mark.parametrize("package", ["httpcore", "hypercorn", "janus"])
def test_suite(package: str, tmp_path: Path) -> None:
    """One that needs nothing else and takes less than a minute."""
    (suite,) = (suite for suite in catalogue.SUITES if suite.package == package)
    comparing.run(suite, tmp_path).check()
