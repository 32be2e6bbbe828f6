"""Starts children as subprocess.Popen does, in fewer steps.

Popen's constructor is skipped from Python 3.13 on for a program, its environment and its standard streams, no
more. All else is left to it, and so is everything if the program has patched it. The child's object is a
Popen, with the attributes that the constructor sets. A program that is not looked for in PATH is started by
posix_spawn(), as by the constructor; any other by Popen's own method.
"""

from __future__ import annotations

import contextlib
import io
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
# open() is looked up there, as by Popen.
_io: Any = io
_unix: Any = unix_events
_Popen: Any = subprocess.Popen
_ORIGINALS = Originals(_Popen, _unix._UnixSubprocessTransport)

# Of each stream, from the child's input to its errors: the child's end and this process's end, -1 for none.
_NO_HANDLES = (-1, -1, -1, -1, -1, -1)
# Signals that the interpreter ignores, and its children do not.
_SIGNALS = [getattr(signal, name) for name in ("SIGPIPE", "SIGXFZ", "SIGXFSZ") if hasattr(signal, name)]
# What posix_spawn() does in the child at last.
_CLOSE_OTHERS = (getattr(os, "POSIX_SPAWN_CLOSEFROM", None), 3)
# The private names in the methods that are replaced, from Python 3.13 to 3.15; None for any.
_EXPECTED = {
    "__init__": "_can_fork_exec _cleanup _closed_child_pipe_fds _communication_started _devnull "
    "_execute_child _get_handles _input _mswindows _sigint_wait_secs _text_encoding _waitpid_lock",
    "_posix_spawn": "_child_created _close_pipe_fds",
    "_execute_child": None,
    "_get_handles": None,
    "_close_pipe_fds": None,
}


def _is_as_expected() -> bool:
    """Whether Popen is the standard library's, uses posix_spawn(), and has no attributes not known here."""
    if not getattr(subprocess, "_HAVE_POSIX_SPAWN_CLOSEFROM", False):
        return False
    if original_or_none(vars(_unix._UnixSubprocessTransport).get("_start"), _unix) is None:
        return False
    for name, known in _EXPECTED.items():
        method = original_or_none(vars(_Popen).get(name), subprocess)
        if method is None or (known is not None and private_names(method) != set(known.split())):
            return False
    return True


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


def _is_patched(loop: Loop) -> bool:
    return (
        subprocess.Popen is not _Popen
        or _unix.subprocess is not subprocess
        or _Popen.__new__ is not object.__new__
        or not _subprocess._USE_POSIX_SPAWN
        or _ORIGINALS.are_patched(loop)
    )


def start(
    loop: Loop, args: Any, shell: Any, stdin: Any, stdout: Any, stderr: Any, env: Any = None, **others: Any
) -> Any:
    """Start a child. Returns its Popen, or None if Popen's constructor has to; raises what that raises."""
    if not _IS_ON or others or stdout is subprocess.STDOUT or _is_patched(loop):
        return None
    if shell and type(args) in (str, bytes):
        command = ["/bin/sh", "-c", args]
    elif not shell and type(args) is tuple and type(args[0]) is str:
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
            process.stdin = _io.open(handles[1], "wb", 0)
        if handles[2] != -1:
            process.stdout = _io.open(handles[2], "rb", 0)
        if handles[4] != -1:
            process.stderr = _io.open(handles[4], "rb", 0)
        _execute(process, command, shell, env, handles)
    except BaseException:
        _close(process, stdin, stdout, stderr, handles)
        raise
    return process


def _execute(process: Any, command: list[Any], shell: Any, env: Any, handles: tuple[int, ...]) -> None:
    """Popen._execute_child(), which is called itself where it would not use posix_spawn()."""
    actions: list[Any] = []
    p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite = handles
    if "/" not in command[0] or not all(each == -1 or each > 2 for each in (p2cread, c2pwrite, errwrite)):
        given = command[2:] if shell else command
        process._execute_child(
            *(given, None, None, True, (), None, env, None, 0, shell),
            *handles,
            *(True, None, None, None, -1, False, -1),
        )
        return
    if handles is not _NO_HANDLES:
        actions = [(os.POSIX_SPAWN_CLOSE, ours) for ours in (p2cwrite, c2pread, errread) if ours != -1]
        for number, theirs in enumerate((p2cread, c2pwrite, errwrite)):
            if theirs != -1:
                actions.append((os.POSIX_SPAWN_DUP2, theirs, number))
    actions.append(_CLOSE_OTHERS)
    # A hook may change the command.
    program = command[0]
    sys.audit("subprocess.Popen", program, command, None, env)
    process.pid = os.posix_spawn(program, command, env, file_actions=actions, setsigdef=_SIGNALS)
    process._child_created = True
    if handles is _NO_HANDLES:
        process._closed_child_pipe_fds = True
    else:
        process._close_pipe_fds(*handles)


def _close(process: Any, stdin: Any, stdout: Any, stderr: Any, handles: tuple[int, ...]) -> None:
    """What Popen's constructor closes if a child could not be started."""
    for file in (process.stdin, process.stdout, process.stderr):
        if file is not None:
            _close_one(file.close)
    if process._closed_child_pipe_fds:
        return
    if stdin == subprocess.PIPE:
        _close_one(os.close, handles[0])
    if stdout == subprocess.PIPE:
        _close_one(os.close, handles[3])
    if stderr == subprocess.PIPE:
        _close_one(os.close, handles[5])
    if hasattr(process, "_devnull"):
        _close_one(os.close, process._devnull)


def _close_one(close: Any, *args: int) -> None:
    with contextlib.suppress(OSError):
        close(*args)
