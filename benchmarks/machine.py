"""The machine and the versions of a run."""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from benchmarks import database_servers, loops

SERVERS = ("uvicorn", "httptools", "aiohttp")
PACKAGES = ("asyncpg", "redis", "httpx", "websockets", "fastapi", "pydantic", "grpcio")
# Commands that print each tool's version.
TOOLS = {
    "wrk": ["wrk", "-v"],
    "perf": ["perf", "--version"],
    "valgrind": ["valgrind", "--version"],
    "strace": ["strace", "-V"],
}


def machine() -> dict[str, str]:
    return {
        "Processors": f"{os.cpu_count()}, {processor()}",
        "Memory": memory(),
        "Kernel": f"{platform.system()} {platform.release()}",
    }


def versions(names: list[str]) -> dict[str, str]:
    made_by_others = [name for name in names if name != "asyncio"]
    servers = [name for name in SERVERS if version_of_server(name)]
    packages = [name for name in PACKAGES if version_of_server(name)]
    tools = [f"{name} {version}" for name in TOOLS if (version := version_of_tool(name))]
    return {
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "Loops": ", ".join(f"{name} {loops.version(name)}" for name in made_by_others) or "asyncio's only",
        "HTTP servers": ", ".join(f"{name} {version_of_server(name)}" for name in servers) or "none",
        "Other packages": ", ".join(f"{name} {version_of_server(name)}" for name in packages) or "none",
        "Databases": ", ".join(databases()) or "none",
        "Tools": ", ".join(tools) or "none",
    }


def processor() -> str:
    """The processor's name as the kernel gives it."""
    return from_kernel("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()


def memory() -> str:
    total = from_kernel("/proc/meminfo", "MemTotal")
    return f"{int(total.removesuffix('kB')) / 1024**2:.0f} GiB" if total else "unknown"


def from_kernel(path: str, name: str) -> str:
    if os.path.exists(path):
        for line in Path(path).read_text().splitlines():
            if line.startswith(name):
                return line.partition(":")[2].strip()
    return ""


def version_of_server(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def databases() -> list[str]:
    binaries = database_servers.postgres_binaries()
    found = [f"PostgreSQL {printed_version([str(binaries / 'postgres'), '--version'])}"] if binaries else []
    if shutil.which("redis-server"):
        found.append(f"Redis {printed_version(['redis-server', '--version'])}")
    return found


def version_of_tool(name: str) -> str:
    return printed_version(TOOLS[name]) if shutil.which(name) else ""


def printed_version(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    number = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)
    return number[0] if number else "of an unknown version"
