"""The wheel, in an environment that has nothing else."""

import contextlib
import email
import email.message
import shutil
import subprocess
import sys
import sysconfig
import time
import urllib.request
import zipfile
from pathlib import Path

import pytest
from environments import CHECKOUT, EVERYTHING, PATIENCE, Environment, check
from helpers import unused_port

pytestmark = pytest.mark.timeout(PATIENCE)


@pytest.fixture(scope="module")
def installed(environment: Environment, wheel: Path) -> Environment:
    # Without an index: it depends on nothing.
    environment.install("--no-index", wheel)
    return environment


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_everything_works(installed: Environment) -> None:
    installed.try_everything()


def test_command(installed: Environment) -> None:
    program = "import asyncio; print(asyncio.Runner().get_loop().__class__.__module__)"
    (installed.work / "program.py").write_text(program)
    assert installed.run("python", "-m", "hotloop", "program.py") == "hotloop.loop\n"
    assert installed.run("hotloop", "program.py") == "hotloop.loop\n"
    assert "hotloop " in installed.run("hotloop", "--version")


def test_extras(installed: Environment, wheel: Path) -> None:
    """Each brings what its module needs."""
    installed.install(f"{wheel}[top,prometheus,opentelemetry]")
    for module in ("_observing.top", "prometheus", "opentelemetry"):
        installed.run("python", "-W", "error", "-c", f"import hotloop.{module}")


def test_types_are_found(installed: Environment) -> None:
    """By whoever checks a program against what is installed."""
    shutil.copy(EVERYTHING, installed.work)
    check(
        "mypy",
        "--strict",
        "--python-executable",
        installed.bin / "python",
        EVERYTHING.name,
        folder=installed.work,
    )


def test_files(wheel: Path) -> None:
    """The package, once compiled, its types and its licences; nothing of the checkout's besides."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    extension = f"hotloop/_core{sysconfig.get_config_var('EXT_SUFFIX')}"
    assert [name for name in names if name.endswith((".so", ".pyd", ".dylib"))] == [extension]
    sources = CHECKOUT / "python/hotloop"
    modules = [
        path.relative_to(sources).as_posix() for path in sources.rglob("*") if path.suffix in (".py", ".pyi")
    ]
    package = [name.removeprefix("hotloop/") for name in names if name.startswith("hotloop/")]
    assert sorted([*modules, "py.typed"]) == sorted(name for name in package if not name.endswith(".so"))
    # pytest's plugin, which must not import the extension.
    assert [name for name in names if name.startswith("pytest_hotloop/")] == ["pytest_hotloop/__init__.py"]
    others = {name.partition("/")[0] for name in names} - {"hotloop", "pytest_hotloop"}
    assert [name.endswith(".dist-info") for name in others] == [True]
    assert {name.rpartition("/")[2] for name in names} >= {
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "py.typed",
        "_core.pyi",
    }


def test_metadata(metadata: email.message.Message) -> None:
    assert metadata["Name"] == "hotloop"
    assert metadata["Requires-Python"] == ">=3.11"
    # It depends on nothing unless that is asked for.
    requirements = metadata.get_all("Requires-Dist", [])
    assert {requirement.partition(" ; ")[2] for requirement in requirements} == {
        "extra == 'prometheus'",
        "extra == 'opentelemetry'",
        "extra == 'top'",
        "extra == 'pytest'",
    }
    assert metadata["License-Expression"] == "MIT OR Apache-2.0"
    assert set(metadata.get_all("License-File", [])) == {"LICENSE-APACHE", "LICENSE-MIT"}
    links = dict(entry.split(", ") for entry in metadata.get_all("Project-URL", []))
    assert set(links) == {"Source", "Documentation", "Changelog", "Issues"}
    classifiers = metadata.get_all("Classifier", [])
    running = "{}.{}".format(*sys.version_info[:2])
    assert f"Programming Language :: Python :: {running}" in classifiers
    assert metadata["Description-Content-Type"].startswith("text/markdown")
    assert str(metadata.get_payload()).startswith("# hotloop")


def test_twine_accepts_it(wheel: Path) -> None:
    check("twine", "check", "--strict", wheel)


def test_a_server_that_others_wrote(installed: Environment) -> None:
    """The first thing that many will try."""
    installed.install("uvicorn")
    (installed.work / "web.py").write_text(
        "import asyncio\n"
        "async def application(scope, receive, send):\n"
        "    await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n"
        "    body = type(asyncio.get_running_loop()).__module__.encode()\n"
        "    await send({'type': 'http.response.body', 'body': body})\n"
    )
    port = unused_port()
    options = ("--loop", "hotloop:new_event_loop", "--lifespan", "off", "--port", str(port))
    command, variables = installed.command("uvicorn", "web:application", *options)
    server = subprocess.Popen(
        command,
        cwd=installed.work,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 30
        answer = None
        while answer is None and server.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(ConnectionRefusedError, urllib.error.URLError):
                answer = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30).read()
            time.sleep(0.05)
    finally:
        server.terminate()
        written, _ = server.communicate(timeout=30)
    assert answer == b"hotloop.loop", written
    assert "Traceback" not in written


def test_it_leaves_nothing_behind(environment: Environment, installed: Environment) -> None:
    site = environment.site()
    assert (site / "hotloop").is_dir()
    environment.run("pip", "uninstall", "--quiet", "--yes", "hotloop")
    assert not list(site.glob("hotloop*"))
    assert not (environment.bin / "hotloop").exists()
