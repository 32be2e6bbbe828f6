"""Empty environments, in which things are installed as a user would: from a file, not from the checkout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
EVERYTHING = CHECKOUT / "tests/typed/everything.py"
PATIENCE = 600
"""Seconds that a command may take. The longest build hotloop from its sources."""


def check(module: str, *arguments: str | Path, folder: Path = CHECKOUT) -> None:
    """Run a checker of the environment that runs the tests. It must find nothing."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr


class Environment:
    """A virtual environment of the Python that runs the tests, and an empty folder to work in."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "environment/bin"
        self.work = folder / "work"
        self.work.mkdir(parents=True)
        subprocess.run([sys.executable, "-m", "venv", folder / "environment"], check=True, timeout=PATIENCE)

    def command(self, name: str, *arguments: str | Path) -> tuple[list[str], dict[str, str]]:
        """How to run it, and in what environment: what the tests were started with must not show."""
        hidden = ("PYTHON", "VIRTUAL_ENV", "HOTLOOP")
        variables = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
        variables["PATH"] = f"{self.bin}{os.pathsep}{os.environ['PATH']}"
        return [str(self.bin / name), *map(str, arguments)], variables

    def run(self, name: str, *arguments: str | Path) -> str:
        """Run it and return what it writes. It must succeed."""
        command, variables = self.command(name, *arguments)
        done = subprocess.run(
            command, cwd=self.work, env=variables, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
        assert name == "pip" or not done.stderr, done.stderr
        return done.stdout

    def install(self, *what: str | Path) -> None:
        self.run("pip", "install", "--quiet", "--disable-pip-version-check", *what)

    def site(self) -> Path:
        return Path(
            self.run("python", "-c", "import sysconfig; print(sysconfig.get_path('platlib'))").strip()
        )

    def try_everything(self) -> None:
        """hotloop works there, whatever is asked of it."""
        shutil.copy(EVERYTHING, self.work)
        assert self.run("python", "-W", "error", EVERYTHING.name).startswith("hotloop ")
