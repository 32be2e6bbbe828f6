"""Runs a program as a user does, and keeps what it printed and its status."""

import contextlib
import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import typing

import helpers

PATIENCE = 30.0
"""Seconds that anything may take."""
COMMANDS = {"asyncio": [], "hotloop": ["-m", "hotloop"]}
"""What stands between `python` and the program."""
ENVIRONMENT = dict(os.environ)
"""Read once: programs are started in threads, and pytest changes variables meanwhile."""
NORMAL = {
    # From one run to the next.
    r"0x[0-9a-f]+": "0x...",
    r"\d\d:\d\d:\d\d(\.\d+)?": "TIME",
    r"\d{4}-\d\d-\d\d": "DATE",
    r"\d+\.\d+ seconds": "SOME seconds",
    r"\('127\.0\.0\.1', \d+\)": "ADDRESS",
    # From one loop to the other: its class, what it waits with, and who called the callbacks.
    r"<_UnixSelectorEventLoop ": "<Loop ",
    r"DEBUG:asyncio:Using selector: EpollSelector\n": "",
    r'  File "[^"]*/(asyncio/base_events|asyncio/events|selectors)\.py", line \d+, in '
    r"(run_forever|_run_once|_run|select)\n(    .*\n)*": "",
    r'  File "([^"]*/hotloop/.*|<frozen runpy>)", line .*\n(    .*\n)*': "",
}
"""What differs, and what is compared in its place."""


@contextlib.contextmanager
def nothing():
    yield {}, {}


@dataclasses.dataclass(frozen=True)
class Program:
    """What makes a program of an example."""

    text: str = "<<this>>"
    """A line with a name in angle brackets stands for that example, as indented as the line."""
    changes: dict[str, str] = dataclasses.field(default_factory=dict)
    """What is put in place of a part of the examples."""
    holds: str = ""
    """It is for an example with this text; another version of the documentation has another example there."""
    command: tuple[str, ...] = ("example.py",)
    typed: bool = False
    """Whether what follows the example's prompts is typed."""
    talk: typing.Callable[["Running"], None] | None = None
    """Talks to the running program, and ends one that does not end by itself."""
    around: typing.Callable[[], contextlib.AbstractContextManager] = nothing
    """A context in which it runs, for what it connects to: it gives more changes, and more environment."""
    unordered: bool = False
    """Whether the order of its lines is up to threads."""
    fails: bool = False
    """Whether it ends with an error."""
    differs: str = ""
    """A pattern of what the loops print to standard error in different words."""

    def source(self, this, examples, changes):
        def inserted(match):
            indent, name = match.groups()
            text = examples[this if name == "this" else name]
            for old, new in {**self.changes, **changes}.items():
                text = text.replace(old, new)
            return textwrap.indent(text.strip("\n"), indent)

        return re.sub(r"^( *)<<(.+)>>$", inserted, textwrap.dedent(self.text), flags=re.MULTILINE)


@dataclasses.dataclass
class Outcome:
    output: str
    errors: str
    status: int


class Running:
    """A program that runs, in a folder of its own."""

    def __init__(
        self, loop_name, examples, ports, source, command=("example.py",), typed="", env=None, unbuffered=True
    ):
        self.loop_name = loop_name
        self.examples = examples
        self.ports = ports
        self.others = ""
        self._folder = tempfile.TemporaryDirectory()
        self.folder = pathlib.Path(self._folder.name).resolve()
        (self.folder / "example.py").write_text(source)
        (self.folder / "input").write_text(typed)
        with (
            (self.folder / "input").open() as stdin,
            (self.folder / "output").open("w") as stdout,
            (self.folder / "errors").open("w") as stderr,
        ):
            self.process = subprocess.Popen(
                [sys.executable, *COMMANDS[loop_name], *command],
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                cwd=self.folder,
                env={**ENVIRONMENT, "PYTHONUNBUFFERED": "1" if unbuffered else "", **(env or {})},
            )

    def wait_for(self, condition):
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None, (self.folder / "errors").read_text()
            assert time.monotonic() < deadline, "timed out"
            time.sleep(0.01)

    def wait_for_output(self, text):
        self.wait_for(lambda: text in (self.folder / "output").read_text())

    def wait_for_port(self, port):
        """Wait until a TCP server listens there, or a UDP socket is bound."""
        entry = re.compile(rf"^ *\d+: \w+:{int(port):04X} \w+:0000 0[A7] ", re.MULTILINE)
        files = [pathlib.Path("/proc/net/tcp"), pathlib.Path("/proc/net/udp")]
        self.wait_for(lambda: any(entry.search(file.read_text()) for file in files))

    def interrupt(self):
        time.sleep(0.1)  # for it to come to rest
        self.process.send_signal(signal.SIGINT)

    def run_other(self, name):
        """Run another example to its end, beside this one and on the same loop."""
        source = Program().source(name, self.examples, self.ports)
        with contextlib.closing(Running(self.loop_name, self.examples, self.ports, source)) as other:
            self.others += f"\n{name}: {other.outcome()}"

    def python(self, *arguments):
        """What `python ARGUMENTS` prints."""
        result = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=True
        )
        return result.stdout

    def outcome(self):
        """How it ended, in words that are the same each time."""
        self.process.wait(PATIENCE)
        output, errors = ((self.folder / name).read_text() for name in ("output", "errors"))
        return Outcome(self._normal(output + self.others), self._normal(errors), self.process.returncode)

    def _normal(self, text):
        text = text.replace(f"{self.folder}/", "")
        text = re.sub(rf"(^|pid |PID: ){self.process.pid}\b", r"\1NUMBER", text, flags=re.MULTILINE)
        for pattern, replacement in NORMAL.items():
            text = re.sub(pattern, replacement, text)
        for old, new in self.ports.items():
            text = text.replace(new, old)
        return text

    def close(self):
        self.process.kill()
        self.process.wait()
        self._folder.cleanup()


def run(program, this, examples, loop_name):
    """Run an example, and return how it ended."""
    with program.around() as (changes, env):
        # Those that examples have, which may be somebody else's.
        ports = {port: str(helpers.unused_port()) for port in ("8888", "9999")}
        source = program.source(this, examples, {**ports, **changes})
        typed = ""
        if program.typed:
            typed = "".join(f"{line}\n" for line in re.findall("^>>> (.*)", source, re.MULTILINE))
        # A line of a thread is printed in two pieces where it is not buffered.
        unbuffered = not program.unordered
        with contextlib.closing(
            Running(loop_name, examples, ports, source, program.command, typed, env, unbuffered)
        ) as running:
            if program.talk is not None:
                program.talk(running)
            outcome = running.outcome()
    if program.differs:
        outcome.errors = re.sub(program.differs, "", outcome.errors, flags=re.DOTALL)
    if program.unordered:
        outcome.output = "\n".join(sorted(outcome.output.splitlines()))
    return outcome
