"""Database servers of the tests' own: on private ports, in folders that are deleted afterwards.

Where a server is not installed, what needs it is skipped with a line that says how to get it: whoever runs
these tests need not have all of them. `.ci/run` installs them first.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import programs
import pytest
from helpers import unused_port

POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))


@dataclass
class Server:
    port: int
    tls_port: int | None = None


def unprivileged() -> str | None:
    """Whom to run PostgreSQL as, for it refuses to run as root."""
    return "postgres" if os.geteuid() == 0 else None


@contextlib.contextmanager
def postgres(folder: Path, certificate: dict[str, str]) -> Iterator[Server]:
    binaries = POSTGRES[-1] if POSTGRES else None
    if binaries is None:
        found = shutil.which("initdb")
        if found is None:
            pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
        binaries = Path(found).parent
    user = unprivileged()
    folder.mkdir()
    for name in ("certificate", "key"):
        shutil.copy(certificate[name], folder / f"{name}.pem")
        (folder / f"{name}.pem").chmod(0o600)
    if user is not None:
        for path in [folder, *folder.iterdir()]:
            shutil.chown(path, user, user)
        # Whoever runs it must get to its folder, and pytest's are for nobody but root.
        for parent in folder.parents:
            if parent.owner() == "root" and parent.stat().st_mode & 0o001 == 0:
                parent.chmod(parent.stat().st_mode | 0o011)
    data = folder / "data"
    run([binaries / "initdb", "--pgdata", data, "--auth=trust", "--username=tester", "--no-sync"], user)
    port = unused_port()
    settings = {
        "port": port,
        "listen_addresses": "localhost",
        "unix_socket_directories": folder,
        "fsync": "off",
        "ssl": "on",
        "ssl_cert_file": folder / "certificate.pem",
        "ssl_key_file": folder / "key.pem",
        "max_connections": 50,
    }
    command: list[str | Path] = [binaries / "postgres", "-D", data]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    with serving(command, port, user, folder):
        run([binaries / "createdb", "-h", "localhost", "-p", port, "-U", "tester", "tests"], user)
        yield Server(port)


@contextlib.contextmanager
def redis(folder: Path, certificate: dict[str, str]) -> Iterator[Server]:
    if shutil.which("redis-server") is None:
        pytest.skip("Redis is not installed: apt-get install redis-server")
    folder.mkdir()
    port, tls_port = unused_port(), unused_port()
    settings = {
        "port": port,
        "tls-port": tls_port,
        "bind": "127.0.0.1",
        "save": "",
        "dir": folder,
        "tls-cert-file": certificate["certificate"],
        "tls-key-file": certificate["key"],
        "tls-ca-cert-file": certificate["authority"],
        "tls-auth-clients": "no",
    }
    command: list[str | Path] = ["redis-server"]
    for name, value in settings.items():
        command += [f"--{name}", str(value)]
    with serving(command, port, None, folder):
        yield Server(port, tls_port)


def run(command: Sequence[object], user: str | None) -> None:
    words = [str(word) for word in command]
    done = subprocess.run(words, user=user, group=user, cwd="/", capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(f"{words[0]}: {done.stdout}{done.stderr}")


@contextlib.contextmanager
def serving(command: Sequence[str | Path], port: int, user: str | None, folder: Path) -> Iterator[None]:
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(word) for word in command],
            user=user,
            group=user,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def ready() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"{command[0]} ended with {process.returncode}:\n{log.read_text()}")
        return programs.listens(port)

    try:
        programs.wait_until(ready, f"{command[0]} at port {port}")
        yield
    finally:
        process.terminate()
        try:
            process.wait(programs.PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
