"""The open file descriptors of this process, on systems that list them in a folder."""

from __future__ import annotations

import os
import socket
import stat
import sys
from contextlib import suppress
from dataclasses import dataclass

_FOLDERS = ("/proc/self/fd", "/dev/fd")


@dataclass(frozen=True, slots=True)
class Identity:
    """What a descriptor is of. What gets its number later has another, except for some that have no name."""

    device: int
    inode: int
    mode: int
    link: str
    """What Linux calls it; the path of a file on macOS, "" for others."""

    def describe(self, fd: int) -> str:
        """Describe it; *fd* is the descriptor."""
        if stat.S_ISSOCK(self.mode):
            return f"socket {_addresses(fd)}".rstrip()
        return self.link or ("pipe" if stat.S_ISFIFO(self.mode) else "file")


def identify(fd: int) -> Identity | None:
    """Return what a descriptor is of; None if it is not open."""
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return Identity(status.st_dev, status.st_ino, status.st_mode, _link(fd))


def all_open() -> dict[int, Identity]:
    """Return all open descriptors. Empty on a system that does not list them."""
    for folder in _FOLDERS:
        with suppress(OSError):
            numbers = [int(name) for name in os.listdir(folder)]
            break
    else:
        return {}
    # The folder's own is closed by now.
    identities = ((fd, identify(fd)) for fd in numbers)
    return {fd: identity for fd, identity in identities if identity is not None}


def _link(fd: int) -> str:
    if sys.platform == "darwin":
        import fcntl

        try:
            return fcntl.fcntl(fd, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0").decode(errors="replace")
        except OSError:
            return ""
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


def _addresses(fd: int) -> str:
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            names = [sock.getsockname()]
            with suppress(OSError):
                names.append(sock.getpeername())
    except OSError:
        return ""
    texts = [":".join(map(str, name[:2])) if isinstance(name, tuple) else str(name) for name in names]
    return " to ".join(text for text in texts if text)


def of_the_interpreter() -> set[int]:
    """Descriptors that modules of the standard library keep for the process."""
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    fd = getattr(getattr(tracker, "_resource_tracker", None), "_fd", None)
    return set() if fd is None else {fd}
