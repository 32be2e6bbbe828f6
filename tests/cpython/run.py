"""Runs CPython's own asyncio tests, those of the interpreter that runs this file, on hotloop.

    python tests/cpython/run.py [--loop hotloop|asyncio] [--jobs N] [--timeout SECONDS] [TESTS ...]

TESTS are modules (test_events), classes (test_events.PolicyTests) or tests (test_locks.LockTests.test_repr);
without any, every module that is not in NOT_RUN. With --loop asyncio nothing is replaced, which tells a
failure of the machine's (no IPv6, another OpenSSL) from one of the loop's.

Each module runs in a process of its own. Where a test hangs or crashes, the rest of its module runs in
another.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import importlib
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

HERE = Path(__file__).parent

# Modules that test the classes the standard library builds its own loops from, member by member.
NOT_RUN = {
    "test_base_events": "BaseEventLoop by itself, its selector and sockets mocked",
    "test_selector_events": "BaseSelectorEventLoop and _SelectorTransport, their sockets mocked",
    "test_unix_events": "_UnixSelectorEventLoop, its pipe transports and child watchers",
    "test_proactor_events": "BaseProactorEventLoop, its proactor mocked",
    "test_windows_events": "ProactorEventLoop, on Windows",
    "test_windows_utils": "asyncio.windows_utils, on Windows",
    "test_tools": "the command `python -m asyncio ps`",
}

# Modules that make no loop, or only loops of the test's own class. Any other module that made none of ours
# has tested something else, and fails.
WITHOUT_LOOP = {"test_futures", "test_pep492", "test_protocols", "test_transports"}
if sys.version_info < (3, 13):
    WITHOUT_LOOP.add("test_runners")

# The longest modules start first, so that none is left running alone at the end.
LONGEST = ["test_events", "test_tasks", "test_taskgroups", "test_ssl", "test_subprocess"]

# A module is given up after so many hangs and crashes.
MAX_ATTEMPTS = 10


def main():
    options = parse_options()
    python = platform.python_version()
    modules = find_modules()
    if not modules:
        print(f"Python {python} was built without its test package: CPython's asyncio tests are skipped.")
        return 0
    tests = options.tests or [name for name in modules if name not in NOT_RUN]
    if unknown := [name for name in tests if name.split(".")[0] not in modules]:
        print(f"Python {python} has no {', '.join(unknown)}", file=sys.stderr)
        return 2
    if options.loop == "hotloop":
        # Said now, once, rather than by every module.
        importlib.import_module("hotloop")

    print(f"CPython's asyncio tests: Python {python}, every loop {options.loop}'s", flush=True)
    results = run_all([Module(name, options) for name in tests], options.jobs)
    print_summary(results, options.loop)
    return 1 if any(module.troubles for module in results) else 0


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loop", choices=["hotloop", "asyncio"], default="hotloop")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="modules run at a time (default: 1)")
    parser.add_argument(
        "--timeout", type=float, default=120, metavar="SECONDS", help="what one test may take (default: 120)"
    )
    parser.add_argument("tests", nargs="*", metavar="TESTS")
    return parser.parse_args()


def find_modules():
    """The names of all test modules of asyncio's that this interpreter has."""
    try:
        spec = importlib.util.find_spec("test.test_asyncio")
    except ImportError:
        spec = None
    if spec is None:
        return []
    (folder,) = spec.submodule_search_locations
    return sorted(path.stem for path in Path(folder).glob("test_*.py"))


def left_out_of(name):
    """What left_out.toml leaves out of a module on this Python: patterns of ids, each with its reason."""
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    entries = tomllib.loads((HERE / "left_out.toml").read_text()).get("left_out", [])
    return {
        entry["test"]: f"tests {entry['member']}" if "member" in entry else f"not yet: {entry['not_yet']}"
        for entry in entries
        if entry["test"].split(".")[0] == name and python in entry.get("python", [python])
    }


def run_all(modules, jobs):
    """Run the modules, so many at a time, and print how each went as it ends."""
    modules.sort(key=lambda module: (module.name not in LONGEST, module.tests))
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(module.run) for module in modules]
        try:
            for future in concurrent.futures.as_completed(running):
                future.result().print_outcome()
        except KeyboardInterrupt:
            for module in modules:
                module.stop()
            raise
    return sorted(modules, key=lambda module: module.tests)


@dataclasses.dataclass
class Outcome:
    """What became of one test: passed, failed, skipped or left out, and why."""

    state: str
    text: str


class Module:
    """A test module, or the part of one that was asked for."""

    def __init__(self, tests, options):
        self.tests = tests
        self.name = tests.split(".")[0]
        self.is_whole = tests == self.name
        self.options = options
        self.left_out = left_out_of(self.name) if options.loop == "hotloop" else {}
        self.outcomes = {}
        self.loops = collections.Counter()
        self.seconds = 0
        self.attempts_left = MAX_ATTEMPTS
        self.process = None
        # What is wrong with the module as a whole, in a few words each.
        self.faults = []

    @property
    def troubles(self):
        """All that is wrong with the module, in a few words each. Empty if it passed."""
        failed = self.count("failed")
        return [*self.faults, *([f"{failed} failed"] if failed else [])]

    @property
    def ran(self):
        return len(self.outcomes) - self.count("left out")

    def count(self, state):
        return len(self.tests_that(state))

    def tests_that(self, state):
        return {test: outcome.text for test, outcome in self.outcomes.items() if outcome.state == state}

    def run(self):
        start = time.monotonic()
        while self.attempts_left:
            self.attempts_left -= 1
            if self.attempt():
                break
        else:
            self.faults.append(f"given up after {MAX_ATTEMPTS} hangs and crashes")
        self.seconds = time.monotonic() - start
        if not self.outcomes and not self.faults:
            self.faults.append("no tests")
        if self.options.loop == "hotloop" and not self.troubles:
            self.check_loops()
        return self

    def stop(self):
        self.attempts_left = 0
        if self.process:
            kill_group(self.process)

    def check_loops(self):
        needs_loop = self.is_whole and self.name not in WITHOUT_LOOP and self.count("passed")
        if escaped := self.loops["asyncio"]:
            self.faults.append(f"{escaped} of asyncio's own loops made")
        elif needs_loop and not self.loops["hotloop"]:
            self.faults.append("no hotloop loop made")

    def attempt(self):
        """Run what has not run yet. False if a hang or a crash left more to run."""
        with tempfile.TemporaryDirectory(prefix="hotloop-") as folder:
            order, report, output = (Path(folder, name) for name in ("order", "report", "output"))
            work = Path(folder, "work")
            work.mkdir()
            report.touch()
            what_to_do = {
                "loop": self.options.loop,
                "tests": self.tests,
                "left_out": self.left_out,
                "done": list(self.outcomes),
                "timeout": self.options.timeout,
                "report": str(report),
                "output": str(output),
            }
            order.write_text(json.dumps(what_to_do))
            with output.open("wb") as sink:
                self.process = subprocess.Popen(
                    [sys.executable, HERE / "one_module.py"],
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                    cwd=work,
                    env=os.environ | {"HOTLOOP_CPYTHON_ORDER": str(order), "TMPDIR": str(work)},
                    start_new_session=True,
                )
                # The process keeps the time itself, but may have become unable to.
                ending = wait_while_growing(self.process, report, self.options.timeout + 10)
            return self.read(report.read_text().splitlines(), ending, output.read_bytes())

    def read(self, events, ending, output):
        """Take in what a process reported. False if it ended before its time."""
        running, output_start, ended = None, 0, False
        for event in map(json.loads, events):
            match event["event"]:
                case "start":
                    running, output_start = event["test"], event["output_start"]
                case "end":
                    running, ended = None, True
                    self.loops.update(event["loops"])
                    if event["unmatched"] and self.is_whole:
                        self.faults.append(f"left_out.toml names no test: {', '.join(event['unmatched'])}")
                case state:
                    self.note(event["test"], state, event.get("text", ""))
        if ended and ending == "exited with status 0":
            return True
        text = output[output_start:].decode(errors="backslashreplace")
        if "Timeout (" in text and ending == "exited with status 1":
            ending = f"hung for {self.options.timeout:g} seconds"
        self.note(running or f"{self.tests} outside of its tests", "failed", f"{ending}\n{text}")
        return running is None

    def note(self, test, state, text):
        """Note what became of a test. It can fail more than once: in itself, its subtests, its cleanup."""
        outcome = self.outcomes.setdefault(test, Outcome(state, ""))
        if state == "failed":
            outcome.state = state
        outcome.text += text

    def print_outcome(self):
        for test, text in self.tests_that("failed").items():
            print(f"{'-' * 79}\n{test}\n{text}")
        result = "; ".join(self.troubles) or "ok"
        print(f"{self.tests}: {result} ({self.ran} tests, {self.seconds:.1f} s)", flush=True)


def wait_while_growing(process, report, timeout):
    """Wait for the process and say how it ended. It is killed once its report has not grown for so long."""
    size, since = 0, time.monotonic()
    hung = False
    while not hung:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
            break
        if report.stat().st_size > size:
            size, since = report.stat().st_size, time.monotonic()
        hung = time.monotonic() - since > timeout
    # After a good end, too: the tests may have left processes behind.
    kill_group(process)
    status = process.wait()
    if hung:
        return f"hung for {timeout:g} seconds"
    if status < 0:
        return f"crashed with {signal.Signals(-status).name}"
    return f"exited with status {status}"


def kill_group(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def print_summary(modules, loop):
    print()
    print_table(modules, loop)

    print("\nLeft out, by left_out.toml:")
    left_out = [item for module in modules for item in module.tests_that("left out").items()]
    for test, reason in left_out:
        print(f"  {test}: {reason}")
    if not left_out:
        print("  nothing")

    print("Modules not run, because they test the standard library's own loops:")
    for name, subject in NOT_RUN.items():
        print(f"  {name}: {subject}")

    troubled = [module for module in modules if module.troubles]
    if troubled:
        print("Not passed:")
    for module in troubled:
        print(f"  {module.tests}: {'; '.join(module.troubles)}")
        for test, text in module.tests_that("failed").items():
            print(f"    {test}: {last_line(text)}")

    passed, failed, skipped = (
        sum(module.count(state) for module in modules) for state in ("passed", "failed", "skipped")
    )
    # What is wrong with a module as a whole counts as a failed test.
    failed += sum(len(module.faults) for module in modules)
    python = platform.python_version()
    print(f"Total: {len(modules)} modules on {loop}, Python {python}, {len(left_out)} tests left out")
    print(f"{passed} passed, {failed} failed, {skipped} skipped")


def last_line(text):
    """What a failure came to: how the process ended, or the last line of the traceback."""
    lines = text.partition("printed meanwhile:")[0].splitlines()
    if lines[0].startswith(("hung for", "crashed with", "exited with")):
        return lines[0]
    return next((line for line in reversed(lines) if line.strip()), "")[:100]


def print_table(modules, loop):
    rows = [("module", "run", "failed", "skipped", "left out", f"{loop} loops", "seconds")]
    for module in modules:
        counts = (module.count("failed"), module.count("skipped"), module.count("left out"))
        rows.append((module.tests, module.ran, *counts, module.loops[loop], f"{module.seconds:.1f}"))
    first, *others = (max(len(str(cell)) for cell in column) for column in zip(*rows, strict=True))
    for name, *cells in rows:
        cells = (str(cell).rjust(width) for cell, width in zip(cells, others, strict=True))
        print(name.ljust(first), *cells, sep="  ")


if __name__ == "__main__":
    sys.exit(main())
