"""Starts children as subprocess.Popen does with posix_spawn(), in fewer steps.

Popen's constructor is skipped for arguments with which it calls posix_spawn() from Python 3.13 on: a program
that is not looked for in PATH, its environment and its standard streams, no more. All others are left to it,
and so is everything if the program has patched it. The child's object is a Popen, with the attributes that
the constructor sets.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
from asyncio import unix_events

from ._support import Originals, original_or_none, private_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .loop import Loop

_subprocess: Any = subprocess
_unix: Any = unix_events
_Popen: Any = subprocess.Popen
_ORIGINALS = Originals(_Popen, _unix._UnixSubprocessTransport)

# Of each stream, from the child's input to its errors: the child's end and this process's end, -1 for none.
_NO_HANDLES = (-1, -1, -1, -1, -1, -1)
# Signals that the interpreter ignores, and its children do not.
_SIGNALS = [getattr(signal, name) for name in ("SIGPIPE", "SIGXFZ", "SIGXFSZ") if hasattr(signal, name)]
# What posix_spawn() does in the child at last.
_CLOSE_OTHERS = (getattr(os, "POSIX_SPAWN_CLOSEFROM", None), 3)
# The private names in the methods that are replaced, from Python 3.13 to 3.15.
_EXPECTED = {
    "__init__": "_can_fork_exec _cleanup _closed_child_pipe_fds _communication_started _devnull "
    "_execute_child _get_handles _input _mswindows _sigint_wait_secs _text_encoding _waitpid_lock",
    "_posix_spawn": "_child_created _close_pipe_fds",
}


def _is_as_expected() -> bool:
    """Whether Popen is the standard library's, uses posix_spawn(), and has no attributes not known here."""
    if not getattr(subprocess, "_HAVE_POSIX_SPAWN_CLOSEFROM", False):
        return False
    methods = {name: original_or_none(getattr(_Popen, name, None), subprocess) for name in _EXPECTED}
    return all(
        method is not None and private_names(method) == set(_EXPECTED[name].split())
        for name, method in methods.items()
    )


_IS_ON = _is_as_expected()


def _new(args: Any) -> Any:
    """A Popen with the attributes that its constructor sets before it makes pipes."""
    process = _Popen.__new__(_Popen)
    # Not by way of __dict__: where there is no memory, an object that has made one loses the exception by
    # which it ends, from CPython 3.13 on.
    process._waitpid_lock = threading.Lock()
    process._input = None
    process._communication_started = False
    process.args = args
    process.stdin = process.stdout = process.stderr = None
    process.pid = process.returncode = None
    process.encoding = process.errors = None
    process.pipesize = -1
    process.text_mode = False
    process._sigint_wait_secs = 0.25
    process._closed_child_pipe_fds = False
    return process


def start(
    loop: Loop, args: Any, shell: bool, stdin: Any, stdout: Any, stderr: Any, env: Any = None, **others: Any
) -> Any:
    """Start a child. Returns its Popen, or None if Popen's constructor has to; raises what that raises."""
    if not _IS_ON or others or not _subprocess._USE_POSIX_SPAWN or stdout is subprocess.STDOUT:
        return None
    if subprocess.Popen is not _Popen or _ORIGINALS.are_patched(loop):
        return None
    if shell:
        command = ["/bin/sh", "-c", args]
    elif type(args) is tuple and type(args[0]) is str and "/" in args[0]:
        command = list(args)
    else:
        return None
    if _subprocess._active:
        _subprocess._cleanup()
    process = _new(args)
    if stdin is None and stdout is None and stderr is None:
        _execute(process, command, shell, env, _NO_HANDLES)
        return process
    # What Popen's constructor does with its streams.
    handles = process._get_handles(stdin, stdout, stderr)
    try:
        if handles[1] != -1:
            process.stdin = open(handles[1], "wb", 0)  # noqa: SIM115  (it is the process's)
        if handles[2] != -1:
            process.stdout = open(handles[2], "rb", 0)  # noqa: SIM115
        if handles[4] != -1:
            process.stderr = open(handles[4], "rb", 0)  # noqa: SIM115
        _execute(process, command, shell, env, handles)
    except BaseException:
        _close(process, stdin, stdout, stderr, handles)
        raise
    return process


def _execute(process: Any, command: list[Any], shell: bool, env: Any, handles: tuple[int, ...]) -> None:
    """Popen._execute_child(), which is called itself where it would not use posix_spawn()."""
    actions: list[Any] = []
    if handles is not _NO_HANDLES:
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite = handles
        if 0 <= p2cread < 3 or 0 <= c2pwrite < 3 or 0 <= errwrite < 3:
            given = command[2:] if shell else command
            process._execute_child(
                *(given, None, None, True, (), None, env, None, 0, shell),
                *handles,
                *(True, None, None, None, -1, False, -1),
            )
            return
        actions = [(os.POSIX_SPAWN_CLOSE, ours) for ours in (p2cwrite, c2pread, errread) if ours != -1]
        for number, theirs in enumerate((p2cread, c2pwrite, errwrite)):
            if theirs != -1:
                actions.append((os.POSIX_SPAWN_DUP2, theirs, number))
    actions.append(_CLOSE_OTHERS)
    sys.audit("subprocess.Popen", command[0], command, None, env)
    process.pid = os.posix_spawn(command[0], command, env, file_actions=actions, setsigdef=_SIGNALS)
    process._child_created = True
    if handles is _NO_HANDLES:
        process._closed_child_pipe_fds = True
    else:
        process._close_pipe_fds(*handles)


def _close(process: Any, stdin: Any, stdout: Any, stderr: Any, handles: tuple[int, ...]) -> None:
    """What Popen's constructor closes if a child could not be started."""
    left = [file.close for file in (process.stdin, process.stdout, process.stderr) if file is not None]
    if not process._closed_child_pipe_fds:
        theirs = (handles[0], stdin), (handles[3], stdout), (handles[5], stderr)
        pipes = [each for each, given in theirs if given == subprocess.PIPE]
        if hasattr(process, "_devnull"):
            pipes.append(process._devnull)
        left += [functools.partial(os.close, each) for each in pipes]
    for close in left:
        with contextlib.suppress(OSError):
            close()
