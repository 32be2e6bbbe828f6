"""A database server for the rows of databases: python -m benchmarks.database_servers SERVER PORT FOLDER

SERVER is "postgres" or "redis". It has its files in the FOLDER. Prints "ready" and this process's number when
the server accepts connections, and ends it when it is told to end, or when the process that started this one
has ended.
"""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

USER = "benchmark"
ACCOUNT = "postgres"
"""Whom PostgreSQL runs as if this process is root, which it refuses to."""
PATIENCE = 20.0
"""Seconds in which a server accepts connections."""


def postgres_binaries() -> Path | None:
    """The folder with initdb and postgres: that of the newest version where Debian keeps them, or in PATH."""
    in_debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    in_path = [Path(found).parent for found in [shutil.which("initdb")] if found]
    complete = [path for path in [*in_path, *in_debian] if (path / "initdb").exists()]
    return next((path for path in reversed(complete) if (path / "postgres").exists()), None)


def is_account_there() -> bool:
    try:
        return bool(pwd.getpwnam(ACCOUNT))
    except KeyError:
        return False


def missing(server: str) -> list[str]:
    """What the server needs that is not installed."""
    if server == "redis":
        return [] if shutil.which("redis-server") else ["redis-server"]
    if postgres_binaries() is None:
        return ["postgres"]
    return [] if os.geteuid() or is_account_there() else [f"the account {ACCOUNT}"]


def postgres(port: int, folder: Path) -> subprocess.Popen[bytes]:
    binaries = postgres_binaries()
    if binaries is None:
        raise SystemExit("postgres is not installed")
    account = None if os.geteuid() else ACCOUNT
    if account is not None:
        shutil.chown(folder, account, account)
    data = folder / "data"
    making: list[str | Path] = [
        binaries / "initdb",
        "--pgdata",
        data,
        "--auth=trust",
        f"--username={USER}",
        "--no-sync",
    ]
    subprocess.run(
        making, user=account, group=account, cwd="/", stdout=subprocess.DEVNULL, check=True, timeout=PATIENCE
    )
    settings = {
        "port": port,
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": folder,
        "fsync": "off",
        "autovacuum": "off",
    }
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    command: list[str | Path] = [binaries / "postgres", "-D", data, *options]
    return subprocess.Popen(command, user=account, group=account, cwd="/", stdout=sys.stderr)


def redis(port: int, folder: Path) -> subprocess.Popen[bytes]:
    settings = {"port": port, "bind": "127.0.0.1", "save": "", "dir": folder}
    options = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    return subprocess.Popen(["redis-server", *options], stdout=sys.stderr)


SERVERS: dict[str, Callable[[int, Path], subprocess.Popen[bytes]]] = {"postgres": postgres, "redis": redis}


def wait_until_it_accepts(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with status {process.returncode}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"the server accepts no connection after {PATIENCE:.0f} s")
        time.sleep(0.02)


def wait_while_parent_lives(process: subprocess.Popen[bytes], parent: int) -> None:
    while os.getppid() == parent:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)
            return


def end(process: subprocess.Popen[bytes]) -> None:
    # To PostgreSQL: end now, without waiting for the clients. To Redis it means the same as SIGTERM.
    process.send_signal(signal.SIGINT)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main() -> None:
    server, port, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    parent = os.getppid()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    process = SERVERS[server](port, folder)
    try:
        wait_until_it_accepts(process, port)
        print("ready", os.getpid(), flush=True)
        wait_while_parent_lives(process, parent)
    finally:
        end(process)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
