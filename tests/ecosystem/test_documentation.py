"""The code in the documentation does what the page says, each page in a folder of its own.

A fenced block of Python with a title is a file of that name. A comment before a block says what to do:

    <!-- prints: TEXT -->     run it; this is all that it prints
    <!-- serves: URL -->      run it until it has answered a request there
    <!-- runs: ADDRESS -->    run it beside the rest of the page, once it listens there, if it says where
    <!-- not run: REASON -->  leave it

Shell commands are run in any case, and succeed. Blocks of Python that have no title are one program.
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
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*/README.md"))]

FENCE = re.compile(
    r"(?:<!-- (?P<verb>[a-z ]+)(?:: (?P<object>.*?))? -->\n)?"
    r'```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?\n(?P<code>.*?)\n```',
    re.DOTALL,
)
SHELLS = ("sh", "console", "bash")


@dataclass
class Block:
    line: int
    language: str
    title: str | None
    code: str
    verb: str | None
    object: str | None


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(
            text.count("\n", 0, found.start("code")) + 1,
            found["language"],
            found["title"],
            found["code"],
            found["verb"],
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
        if block.verb == "not run" or block.language not in ("python", *SHELLS):
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
            program = self.background.enter_context(self.started(command))
            port = address.port
            if port is not None:
                program.wait_until(lambda: programs.listens(port), f"{command} at {block.object}")
            if block.verb == "serves":
                assert port is not None
                answer = httpx.get(block.object)
                assert answer.status_code == 200
                assert answer.text.startswith("hello") or answer.text == "hotloop.loop"
                program.kill()
                programs.wait_until(lambda: not programs.listens(port), f"the end of {command}")
            return
        done = subprocess.run(
            command,
            shell=True,
            cwd=self.folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=programs.PATIENCE,
        )
        assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
        if block.verb == "prints":
            assert done.stdout.strip() == block.object, done.stderr

    @contextlib.contextmanager
    def started(self, command: str) -> Iterator[programs.Program]:
        words = shlex.split(command)
        words[0] = str(Path(sys.executable).parent / words[0]) if words[0] != "python" else sys.executable
        program = programs.Program(words, self.folder)
        try:
            yield program
        finally:
            program.kill()

    def finish(self) -> None:
        if self.program:
            done = subprocess.run(
                [sys.executable, "-c", "\n".join(self.program)],
                cwd=self.folder,
                capture_output=True,
                text=True,
                timeout=programs.PATIENCE,
            )
            assert done.returncode == 0, done.stderr


def environment() -> dict[str, str]:
    """Commands are those of the Python that runs the tests."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.timeout(180)
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
