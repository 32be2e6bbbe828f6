"""Runs a suite on both loops, and tells what differs."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
# Where `databases` and what that imports are.
sys.path += [str(HERE.parent / "ecosystem"), str(HERE.parent)]

import hotloop  # noqa: E402
from catalogue import Suite  # noqa: E402

LOOPS = ("asyncio", "hotloop")
ENVIRONMENTS = Path(sys.prefix) / "suites"
# Seconds for all tests of a suite, and for one of them.
PATIENCE = 1800
PATIENCE_FOR_ONE = 120
ATTEMPTS = 3
WORKS = ("passed", "skipped", "expected to fail")


@dataclass
class Result:
    suite: Suite
    outcomes: dict[str, dict[str, str]] = field(default_factory=dict)
    """What became of each test, on each loop."""
    loops: dict[str, dict[str, int]] = field(default_factory=dict)
    """How many loops of each kind were made in each run."""

    def failed(self, loop: str) -> list[str]:
        return sorted(test for test, outcome in self.outcomes[loop].items() if outcome not in WORKS)

    def different(self) -> dict[str, str]:
        """The tests that end otherwise on hotloop, each with what became of it on both loops."""
        theirs, ours = (self.outcomes[loop] for loop in LOOPS)
        found = {}
        for test in sorted(theirs.keys() | ours.keys()):
            here, there = ours.get(test, "not run"), theirs.get(test, "not run")
            if here != there and there not in ("failed", "unfinished"):
                found[test] = f"{there} on asyncio, {here} on hotloop"
        return found

    def unknown(self) -> dict[str, str]:
        return {test: what for test, what in self.different().items() if test not in self.suite.known}

    def check(self) -> None:
        """Raise an AssertionError that says what is wrong, if anything is."""
        for loop in LOOPS:
            other = LOOPS[loop == LOOPS[0]]
            made = self.loops[loop]
            assert made[loop] > 0, f"no loop of {loop} was made"
            assert not made[other], f"{made[other]} loops of {other} were made on {loop}"
        assert any(outcome == "passed" for outcome in self.outcomes["asyncio"].values()), "no test passes"
        problems = [f"{test}: {what}" for test, what in self.unknown().items()]
        problems += [
            f"{test} is the same on both loops" for test in self.suite.known.keys() - self.different()
        ]
        assert not problems, "\n".join(problems)


def run(suite: Suite, keep: Path | None = None) -> Result:
    """Run a suite on both loops. What it writes is kept in a folder, if one is given."""
    result = Result(suite)
    python, archive = prepare(suite)
    with (
        tempfile.TemporaryDirectory(prefix="hotloop-suite-") as name,
        server(suite, Path(name)) as (
            arguments,
            environment,
        ),
    ):
        folder = Path(name)
        # Tests that are run as another user find all of it, too.
        folder.chmod(0o755)
        in_each = shutil.copytree(HERE / "in_each", folder / "in_each")
        (in_each / "hotloop").symlink_to(Path(hotloop.__file__).parent)
        for loop in LOOPS:
            started = time.monotonic()
            with tarfile.open(archive) as file:
                file.extractall(folder / loop, filter="data")
            (sources,) = (folder / loop).iterdir()
            if suite.hidden:
                (sources / suite.hidden).rename(sources / f"{suite.hidden}-sources")
            counts = folder / f"{loop}-loops"
            counts.mkdir()
            counts.chmod(0o777)
            variables = {
                **os.environ,
                **environment,
                **suite.environment,
                "PYTHONPATH": str(in_each),
                "HOTLOOP_SUITES_LOOP": loop,
                "HOTLOOP_SUITES_COUNTS": str(counts),
            }
            outcomes: dict[str, str] = {}
            for attempt in range(1, ATTEMPTS + 1):
                tests = [test for test in outcomes if outcomes[test] not in WORKS]
                if attempt > 1 and not tests:
                    break
                log = (keep or folder) / f"{suite.package}-{loop}-{attempt}.log"
                found = attempt_once(suite, python, arguments, tests, sources, variables, log)
                outcomes |= {test: outcome for test, outcome in found.items() if not tests or test in tests}
            result.outcomes[loop] = outcomes
            result.loops[loop] = {
                kind: (counts / kind).stat().st_size if (counts / kind).exists() else 0 for kind in LOOPS
            }
            print(
                f"{suite.package} on {loop}: {len(outcomes)} tests, {len(result.failed(loop))} failed, "
                f"{result.loops[loop][loop]} loops, {time.monotonic() - started:.0f} s",
                flush=True,
            )
    return result


def attempt_once(
    suite: Suite,
    python: Path,
    arguments: list[str],
    tests: list[str],
    sources: Path,
    variables: dict[str, str],
    log: Path,
) -> dict[str, str]:
    """Run those tests, or all if there are none, and return what became of them."""
    written = sources.parent / "outcomes"
    written.unlink(missing_ok=True)
    chosen = sources.parent / "chosen"
    chosen.write_text("".join(f"{test}\n" for test in tests))
    command = [*confined(suite), str(python), *suite.runner, *suite.arguments, *arguments]
    command += [f"@{chosen}"] if tests else suite.tests
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=sources,
            env={**variables, "HOTLOOP_SUITES_OUTCOMES": str(written)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            output.write(f"\nnot done within {PATIENCE} s\n".encode())
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    outcomes: dict[str, str] = {}
    for line in written.read_text().splitlines() if written.exists() else ():
        test, outcome = json.loads(line)
        # Names with a parameter in them: objects have other addresses in each process, loops another class.
        test = re.sub(r"\b0x[0-9a-f]{6,}\b", "0x...", test)
        test = re.sub(r"\b_UnixSelectorEventLoop\b", "Loop", test)
        # A test has several reports, of which a failure is the one that counts.
        if outcome != "finished" and outcomes.get(test) != "failed":
            outcomes[test] = outcome
    if not outcomes:
        raise RuntimeError(f"{' '.join(command)} ran no test:\n{log.read_text(errors='replace')[-4000:]}")
    return outcomes


@functools.cache
def can_unshare() -> bool:
    """Whether root may do that here, which in some containers it may not."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "--mount", "--propagation=private", "true"]).returncode == 0


def confined(suite: Suite) -> list[str]:
    """What has a command of root's change no device, and do without root's capabilities.

    A test of Twisted's changes the mode of /dev/null where it can. Many expect that files can be unreadable.
    """
    if os.geteuid() != 0 or not can_unshare():
        return []
    read_only = 'mount --rbind /dev /dev && mount -o remount,bind,ro /dev && exec "$@"'
    command = ["unshare", "--mount", "--propagation=private", "sh", "-c", read_only, "sh"]
    if suite.server != "PostgreSQL":  # which is run as yet another user
        command += ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    return command


def prepare(suite: Suite) -> tuple[Path, Path]:
    """The Python of the suite's environment and its source distribution, both made if they are not there."""
    requirements = HERE / "requirements" / f"{suite.package}.txt"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    home = ENVIRONMENTS / suite.package
    done, python, sources = home / "done", home / "bin/python", home / "sources"
    if not done.exists() or done.read_text() != digest:
        shutil.rmtree(home, ignore_errors=True)
        call(sys.executable, "-m", "venv", home)
        pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        call(*pip, "install", "--requirement", requirements)
        options = ["--no-deps", "--no-binary", suite.package, "--dest", sources]
        call(*pip, "download", *options, f"{suite.package}=={version_of(suite)}")
        done.write_text(digest)
    (archive,) = sources.glob("*.tar.gz")
    return python, archive


def version_of(suite: Suite) -> str:
    requirements = (HERE / "requirements" / f"{suite.package}.txt").read_text()
    (version,) = re.findall(rf"^{suite.package}(?:\[.*\])?==(.*)$", requirements, re.MULTILINE)
    return version


def call(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, timeout=PATIENCE)


# --- Servers ---


@contextlib.contextmanager
def server(suite: Suite, folder: Path) -> Iterator[tuple[list[str], dict[str, str]]]:
    """The arguments and the environment by which the tests find the server that they need."""
    if suite.server == "Redis":
        with redis(folder) as arguments:
            yield arguments, {}
    elif suite.server == "PostgreSQL":
        # The tests make their data directories where they find TMPDIR.
        yield [], {"PGINSTALLATION": str(postgres(folder)), "TMPDIR": str(folder / "temporary")}
    else:
        yield [], {}


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[list[str]]:
    import databases
    import trustme

    authority = trustme.CA()
    leaf = authority.issue_cert("localhost", "127.0.0.1")
    paths = {name: str(folder / f"{name}.pem") for name in ("authority", "certificate", "key")}
    authority.cert_pem.write_to_path(paths["authority"])
    leaf.cert_chain_pems[0].write_to_path(paths["certificate"])
    leaf.private_key_pem.write_to_path(paths["key"])
    with databases.redis(folder / "redis", paths) as found:
        yield [f"--redis-url=redis://localhost:{found.port}/0"]


def postgres(folder: Path) -> Path:
    """A folder with PostgreSQL's programs, for tests that start it themselves. They can't do it as root."""
    import databases

    if not databases.POSTGRES:
        raise SystemExit("PostgreSQL is not installed: apt-get install postgresql")
    binaries = databases.POSTGRES[-1]
    user = databases.unprivileged()
    if user is None:
        return binaries
    wrappers = folder / "postgres"
    wrappers.mkdir()
    temporary = folder / "temporary"
    temporary.mkdir()
    for binary in binaries.iterdir():
        wrapper = wrappers / binary.name
        wrapper.write_text(
            "#!/bin/sh\n"
            "# It refuses to run as root. In this user namespace root's files are that user's.\n"
            f'exec unshare --user --map-user={user} --map-group={user} {binary} "$@"\n'
        )
        wrapper.chmod(0o755)
    return wrappers
