"""The code in the documentation does what the page says, each page in a folder of its own.

A fenced block of Python with a title is a file of that name. A comment before a block says what to do:

    <!-- run -->              run it; it succeeds
    <!-- prints: TEXT -->     run it; this is all that it prints
    <!-- serves: URL -->      run it until it has answered a request there
    <!-- runs: ADDRESS -->    run it beside the rest of the page, once it listens there, if it says where
    <!-- not run: REASON -->  leave it

Shell commands are run in any case. Blocks of Python that have no title are one program. `in the checkout`, or
`in FOLDER` of it, after the verb is where a command runs.
"""

import contextlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import programs
import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(ROOT.glob("*/README.md")),
    ROOT / "benchmarks/reactor/README.md",
]

FENCE = re.compile(
    r"(?:<!-- (?P<verb>run|prints|serves|runs|not run)(?: in (?P<place>[\w/ ]+))?"
    r"(?:: (?P<object>.*?))? -->\n)?"
    r'```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?\n(?P<code>.*?)\n```',
    re.DOTALL,
)
PATIENCE = 240.0
"""Seconds that a command may take, some of which build something first."""


@dataclass
class Block:
    line: int
    language: str
    title: str | None
    code: str
    verb: str | None
    place: str | None
    object: str | None

    def folder(self, page: Path) -> Path:
        """Where its commands run, on a page whose files are in this folder."""
        match self.place:
            case None:
                return page
            case "the checkout":
                return ROOT
            case place:
                return ROOT / place


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(
            text.count("\n", 0, found.start("code")) + 1,
            found["language"],
            found["title"],
            found["code"],
            found["verb"],
            found["place"],
            found["object"],
        )
        for found in FENCE.finditer(text)
    ]


class Reader:
    """Somebody who follows a page."""

    def __init__(self, folder: Path, background: contextlib.ExitStack) -> None:
        self.folder = folder
        self.background = background
        self.program: list[str] = []

    def follow(self, block: Block) -> None:
        if block.verb == "not run" or block.language not in ("python", "sh"):
            return
        if block.language == "python":
            if block.title is None:
                self.program.append(block.code)
                return
            (self.folder / block.title).write_text(block.code + "\n")
            if block.verb is None:
                return
            commands = [f"python {block.title}"]
        else:
            commands = [line for line in block.code.splitlines() if line and not line.startswith("#")]
        for command in commands:
            self.execute(command, block)

    def execute(self, command: str, block: Block) -> None:
        if block.verb in ("serves", "runs"):
            assert block.object is not None
            address = urlsplit(block.object)
            program = self.background.enter_context(started(command, block.folder(self.folder)))
            port = address.port
            if port is not None:
                program.wait_until(lambda: programs.listens(port), f"{command} at {block.object}", PATIENCE)
            if block.verb == "serves":
                assert port is not None
                answer = httpx.get(block.object)
                assert answer.status_code == 200
                assert answer.text.startswith("hello") or "hotloop" in answer.text
                program.kill()
                programs.wait_until(lambda: not programs.listens(port), f"the end of {command}")
            return
        done = subprocess.run(
            command,
            shell=True,
            cwd=block.folder(self.folder),
            env=environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
        if block.verb == "prints":
            assert done.stdout.strip() == block.object, done.stderr

    def finish(self) -> None:
        if self.program:
            done = subprocess.run(
                [sys.executable, "-c", "\n".join(self.program)],
                cwd=self.folder,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
            )
            assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def started(command: str, folder: Path) -> Iterator[programs.Program]:
    program = programs.Program(shlex.split(command, comments=True), folder, **environment())
    try:
        yield program
    finally:
        program.kill()


def environment() -> dict[str, str]:
    """Commands are those of the Python that runs the tests, and make finds hotloop installed there."""
    folder = Path(sys.executable).parent
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "VENV": str(folder.parent)}


@pytest.mark.timeout(2 * PATIENCE)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_of_a_page(page: Path, tmp_path: Path) -> None:
    with contextlib.ExitStack() as background:
        reader = Reader(tmp_path, background)
        for block in blocks(page):
            try:
                reader.follow(block)
            except Exception as error:
                error.add_note(f"in {page.name}, line {block.line}")
                raise
        reader.finish()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_all_code_of_a_page_is_seen(page: Path) -> None:
    """Each block of code is of a language that is run, or is not code; none is only indented."""
    assert {block.language for block in blocks(page)} <= {"python", "sh", "text"}
    beside = FENCE.sub("", page.read_text())
    assert "```" not in beside
    assert not re.search(r"\n\n {4}\S", beside)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page(page: Path) -> None:
    """They lead to files that are there, and to headings in them."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        name, _, heading = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
            assert heading in anchors, target
