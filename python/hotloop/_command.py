"""The command `python -m hotloop`, or `hotloop`: runs a program with asyncio's loops replaced.

The program sees the same sys.argv, sys.path, __main__ and tracebacks as when it is started with `python`.
"""

from __future__ import annotations

import builtins
import io
import linecache
import os
import pkgutil
import runpy
import sys
import textwrap
from importlib.machinery import BuiltinImporter, SourceFileLoader, SourcelessFileLoader
from importlib.util import MAGIC_NUMBER
from types import ModuleType

from ._policy import install
from ._servers import install as adapt_servers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, TracebackType
    from typing import Any

USAGE = """\
usage: {name} [OPTION ...] FILE [ARGUMENT ...]
       {name} [OPTION ...] -m MODULE [ARGUMENT ...]
       {name} [OPTION ...] -c CODE [ARGUMENT ...]
       {name} top [--interval=SECONDS] [--once] [--picture=FILE] [PID | SOCKET]
       {name} record [--seconds SECONDS] [PID | SOCKET]
       {name} flame [--seconds SECONDS] [PID | SOCKET]
       {name} --version | --help

Run a Python program on hotloop: asyncio.run(), asyncio.Runner, asyncio.new_event_loop() and what builds on
them, anyio for one, make hotloop's event loop; uvicorn, gunicorn and granian choose it unless they are told
which to take. FILE can be -, for standard input, or a directory or zip file
with a __main__.py.

  --debug                   turn asyncio's debug mode on, as PYTHONASYNCIODEBUG=1 does
  --watch[=SECONDS]         report callbacks that block an event loop for so long, or 0.1 seconds, and where
  --stats                   print what each event loop did when it is closed
  --stats-signal=NAME       print it, with the tasks, at this signal; with --watch and --stats it is SIGUSR2
  --account                 count who uses each event loop, for --stats, --stats-signal and top
  --record[=SECONDS]        record what each event loop does, and keep the last 10 seconds, or as many
  --record-to=FOLDER        save recordings there, not in the current folder
  --record-signal=NAME      save at this signal, in place of SIGUSR1
  --limit-connections=N     have each server pause accepting while it has N connections or more
  --limit-delay=SECONDS     have each server pause accepting while its event loop is later than that
  --version                 print the versions of hotloop and of Python, and how the loop waits for events

Recordings are saved at the signal, when the program ends, and, with --watch, when a callback has blocked a
loop; https://ui.perfetto.dev shows them.

The limits are those of hotloop.limit(). Each process of a server has its own.

top shows what a process does that was started with --watch: the one with that number, or at that socket, or
the only one. From Python 3.14 on, it can be any process on hotloop with that number. It needs the package
rich: pip install 'hotloop[top]'.

record has such a process record for 5 seconds, or as many, and save the recording in its current folder;
flame, count who uses its loops, and save a flame graph. Programs of these names are ./top, ./record, ./flame.

  --interval=SECONDS   how often it looks: every second
  --once               look once, and print what there is to see
  --picture=FILE       the same, and save it as an SVG image
"""

DEBUG = "PYTHONASYNCIODEBUG"

# Private names of the standard library are unknown to type checkers.
_linecache: Any = linecache
_runpy: Any = runpy

# Python itself calls this for -m, for directories and for archives.
run_module_as_main = _runpy._run_module_as_main


class CommandError(Exception):
    """The command can't be run. The message is the reason, in one line."""


def main() -> None:
    """Run the program that sys.argv names; exit with status 2 if there is no such program."""
    name = "python -m hotloop" if os.path.basename(sys.argv[0]) == "__main__.py" else "hotloop"
    try:
        run = parse(sys.argv[1:], name)
        if run is not None:
            run()
    except CommandError as error:
        reason = str(error)
    else:
        return
    print(f"hotloop: {reason}", file=sys.stderr)
    raise SystemExit(2)


def parse(arguments: list[str], name: str) -> Callable[[], None] | None:
    """Return a function that runs the program; None for --help and --version, which are done here."""
    if arguments[:1] == ["top"]:
        return lambda: top(arguments[1:], name)
    if arguments[:1] in (["record"], ["flame"]):
        return lambda: save(arguments[0], arguments[1:], name)
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        position += 1
        if argument in LIMITS and position < len(arguments):
            # Their values may stand apart from them.
            argument = f"{argument}={arguments[position]}"
            position += 1
        rest = arguments[position:]
        if argument in ("-h", "--help"):
            print(USAGE.format(name=name), end="")
            return None
        if argument in ("-V", "--version"):
            print(versions())
            return None
        if argument[:2] in ("-m", "-c"):
            rest = [argument[2:], *rest] if argument[2:] else rest
            if not rest:
                what = "module" if argument == "-m" else "program"
                raise CommandError(f"{argument} needs a {what} ({name} --help)")
            start = run_module if argument[:2] == "-m" else run_code
            return lambda: start(*rest)
        if argument == "-" or not argument.startswith("-"):
            return lambda: run_file(argument, *rest)
        if argument == "--":
            if not rest:
                break
            return lambda: run_file(*rest)
        if parse_observing_option(argument, name) or parse_limit(argument, name):
            continue
        if argument != "--debug":
            raise CommandError(f"unknown option {argument} ({name} --help)")
        if sys.flags.ignore_environment:
            raise CommandError(f"--debug sets {DEBUG}, which -E and -I have Python ignore")
        os.environ[DEBUG] = "1"
    raise CommandError(f"there is no program to run ({name} --help)")


observing: dict[str, Any] = {}
"""Options that observe loops: "watch" and "record" in seconds, "stats", "account", "record-to", and "signal"
and "record-signal" as numbers."""


def parse_observing_option(argument: str, name: str) -> bool:
    """Record an option that observes loops; return whether the argument is one."""
    option, given, value = argument.partition("=")
    if option == "--watch":
        observing["watch"] = seconds(option, value, name) if given else 0.1
    elif option == "--stats-signal":
        observing["signal"] = signal_number(option, value, name)
    elif option == "--record":
        observing["record"] = seconds(option, value, name) if given else 10.0
    elif option == "--record-signal":
        observing["record-signal"] = signal_number(option, value, name)
    elif option == "--record-to":
        if not value:
            raise CommandError(f"{option} takes a folder ({name} --help)")
        observing["record-to"] = os.path.abspath(value)
    elif argument in ("--stats", "--account"):
        observing[argument[2:]] = 1
    else:
        return False
    return True


LIMITS = {"--limit-connections": "connections", "--limit-delay": "delay"}

limits: dict[str, Any] = {}
"""The arguments of hotloop.limit() for every server."""


def parse_limit(argument: str, name: str) -> bool:
    """Record an option that limits servers; return whether the argument is one."""
    option, _, value = argument.partition("=")
    if option == "--limit-connections":
        if not (value.isdecimal() and int(value)):
            raise CommandError(f"{option} takes a number of connections, not {value!r} ({name} --help)")
        limits["connections"] = int(value)
    elif option == "--limit-delay":
        limits["delay"] = seconds(option, value, name)
    else:
        return False
    return True


def apply_limits(arguments: dict[str, Any]) -> None:
    """Limit all servers. Processes that multiprocessing starts inherit the limits."""
    if arguments:
        from ._limits import limit_all

        limits.update(arguments)
        limit_all(**arguments)


def observe(options: dict[str, Any]) -> None:
    """Apply options that observe loops. Processes that multiprocessing starts inherit them."""
    if not options:
        return
    import signal

    from ._observing import serving, summaries
    from ._observing.loops import on_loop_created

    observing.update(options)
    if "watch" in options:
        on_loop_created(lambda loop: loop.watch_blocking(options["watch"]))
        serving.serve_on_first_loop()
    if "account" in options:
        on_loop_created(lambda loop: loop.account())
    if "stats" in options:
        summaries.print_at_end()
    summaries.print_on_signal(int(options.get("signal", signal.SIGUSR2)))
    if "record" in options or "record-to" in options or "record-signal" in options:
        from ._observing import saving

        number = int(options.get("record-signal", signal.SIGUSR1))
        saving.record_all(options.get("record", 10.0), options.get("record-to", os.getcwd()), number)


def top(arguments: list[str], name: str) -> None:
    """Show a process that is observed."""
    interval, once, picture, targets = 1.0, False, None, []
    for argument in arguments:
        option, _, value = argument.partition("=")
        if option == "--interval":
            interval = seconds(option, value, name)
        elif argument == "--once":
            once = True
        elif option == "--picture" and value:
            picture = value
        elif argument.startswith("-"):
            raise CommandError(f"unknown option {argument} of top ({name} --help)")
        else:
            targets.append(argument)
    if len(targets) > 1:
        raise CommandError(f"top shows one process, not {len(targets)} ({name} --help)")
    try:
        from ._observing.asking import Unavailable
        from ._observing.top import watch
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "rich":
            raise
        raise CommandError("top needs the package rich: pip install 'hotloop[top]'") from None
    try:
        watch(targets[0] if targets else None, interval, once=once, picture=picture)
    except Unavailable as error:
        raise CommandError(str(error)) from None
    except KeyboardInterrupt:
        # Python's own exit status for Ctrl-C, without the traceback.
        raise SystemExit(130) from None


def save(what: str, arguments: list[str], name: str) -> None:
    """Have a process record or count for some seconds, and print where it has saved that."""
    length, targets = 5.0, []
    given = iter(arguments)
    for argument in given:
        option, equals, value = argument.partition("=")
        if option == "--seconds":
            value = value if equals else next(given, "")
            length = seconds(option, value, name)
        elif argument.startswith("-"):
            raise CommandError(f"unknown option {argument} of {what} ({name} --help)")
        else:
            targets.append(argument)
    if len(targets) > 1:
        raise CommandError(f"{what} takes one process, not {len(targets)} ({name} --help)")
    from ._observing.asking import Unavailable, find, find_only, have_saved

    try:
        print(have_saved(what, find(targets[0]) if targets else find_only(), length))
    except Unavailable as error:
        raise CommandError(str(error)) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def signal_number(option: str, value: str, name: str) -> int:
    """Parse an option's name of a signal."""
    import signal

    try:
        return signal.Signals[value]
    except KeyError:
        raise CommandError(f"{option} takes the name of a signal, not {value!r} ({name} --help)") from None


def seconds(option: str, value: str, name: str) -> float:
    """Parse an option's number of seconds."""
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise CommandError(f"{option} takes a number of seconds, not {value!r} ({name} --help)")
    return number


def versions() -> str:
    import platform

    from . import Loop, __version__

    loop = Loop()
    backend = loop._poller
    loop.close()
    return f"hotloop {__version__}, {platform.python_implementation()} {platform.python_version()}, {backend}"


# --- Running a program: a file, a module or code ---


def run_file(path: str, *arguments: str) -> None:
    if path == "-":
        prepare("", path, arguments)
        run_source(sys.stdin.buffer.read(), "<stdin>", __file__="<stdin>")
        return
    # Python's __file__ is absolute, but not normalized.
    filename = os.path.join(os.getcwd(), path)
    if pkgutil.get_importer(path) is not None:
        # A directory or an archive, which is in sys.path even in safe mode.
        prepare(filename, path, arguments, in_safe_mode=True)
        run_as_main("__main__", alter_argv=False)
        return
    try:
        with open(filename, "rb") as file:
            source = file.read()
    except OSError as error:
        raise CommandError(f"can't open file {filename!r}: [Errno {error.errno}] {error.strerror}") from None
    prepare(os.path.dirname(os.path.realpath(filename)), path, arguments)
    if source.startswith(MAGIC_NUMBER):
        run_compiled(source, __file__=filename, __loader__=SourcelessFileLoader("__main__", filename))
    else:
        run_source(source, filename, __file__=filename, __loader__=SourceFileLoader("__main__", filename))


def run_module(name: str, *arguments: str) -> None:
    prepare(os.getcwd(), "-m", arguments)
    run_as_main(name, alter_argv=True)


def run_code(code: str, *arguments: str) -> None:
    prepare("", "-c", arguments)
    run_source(code, "<string>")


def prepare(directory: str, name: str, arguments: tuple[str, ...], *, in_safe_mode: bool = False) -> None:
    """Set sys.path, sys.argv and __main__ as Python does, and install hotloop."""
    if in_safe_mode and sys.flags.safe_path:
        sys.path.insert(0, directory)
    elif not sys.flags.safe_path:
        # Python has put this command's directory there.
        sys.path[0] = directory
    sys.argv[:] = [name, *arguments]
    module = ModuleType("__main__")
    module.__dict__.update(__builtins__=builtins, __loader__=BuiltinImporter)
    if sys.version_info < (3, 14):
        module.__annotations__ = {}
    original_main.append(sys.modules["__main__"])
    sys.modules["__main__"] = module
    install()
    adapt_servers()
    observe(observing)
    apply_limits(limits)
    # After __main__ is set: multiprocessing.spawn gives it a second name when it is imported.
    install_in_spawned()


original_main: list[ModuleType] = []
"""Keeps the __main__ module of this command alive."""


def run_as_main(name: str, *, alter_argv: bool) -> None:
    try:
        with TracebackTrimmer():
            run_module_as_main(name, alter_argv)
    except SystemExit as error:
        if innermost_code(error.__traceback__) is not run_module_as_main.__code__:
            raise
        reason = str(error.code).removeprefix(f"{sys.executable}: ")
    else:
        return
    raise CommandError(reason)


def run_source(source: str | bytes, filename: str, **attributes: object) -> None:
    with TracebackTrimmer():
        if isinstance(source, str) and sys.version_info >= (3, 14):
            source = textwrap.dedent(source)
        code = compile(source, filename, "exec", dont_inherit=True)
        if isinstance(source, str) and sys.version_info >= (3, 13):
            # For tracebacks of code from -c. The first releases of 3.13 have a file name as the key.
            key = code if hasattr(_linecache, "_interactive_cache") else filename
            _linecache._register_code(key, source, filename)
        exec(code, main_namespace(attributes))


def run_compiled(compiled: bytes, **attributes: object) -> None:
    with TracebackTrimmer():
        exec(pkgutil.read_code(io.BytesIO(compiled)), main_namespace(attributes))


def main_namespace(attributes: dict[str, object]) -> dict[str, object]:
    namespace = sys.modules["__main__"].__dict__
    if "__file__" in attributes and sys.version_info < (3, 15):
        namespace["__cached__"] = None
    namespace.update(attributes)
    return namespace


class TracebackTrimmer:
    """Removes this command's frames, and the ones before them, from the traceback that ends the program."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        # SystemExit prints no traceback. The program may have deleted the hook.
        if error is None or isinstance(error, SystemExit) or not hasattr(sys, "excepthook"):
            return
        hook = sys.excepthook

        def excepthook(
            kind: type[BaseException], value: BaseException, traceback: TracebackType | None
        ) -> None:
            sys.excepthook = hook
            if value is error:
                value.__traceback__ = sys.last_traceback = traceback = without_own_frames(traceback)
            hook(kind, value, traceback)

        sys.excepthook = excepthook


def without_own_frames(traceback: TracebackType | None) -> TracebackType | None:
    """The part of a traceback after the first frames of this module."""
    entry, found = traceback, False
    while entry is not None:
        ours = entry.tb_frame.f_globals is globals()
        if found and not ours:
            return entry
        found = found or ours
        entry = entry.tb_next
    return None if found else traceback


def innermost_code(traceback: TracebackType | None) -> CodeType | None:
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback.tb_frame.f_code if traceback is not None else None


# --- Processes that multiprocessing spawns ---


class Installation:
    """Installs hotloop in the process that unpickles this, with this process's options."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[dict[str, Any], dict[str, Any]]]:
        return install_in_child, (observing, limits)


def install_in_child(options: dict[str, Any], limit_arguments: dict[str, Any]) -> None:
    install()
    adapt_servers()
    observe(options)
    apply_limits(limit_arguments)
    install_in_spawned()


def install_in_spawned() -> None:
    """Use hotloop in processes that multiprocessing spawns, by an object that they unpickle first."""
    try:
        from multiprocessing import spawn
    except ImportError:
        return
    original = spawn.get_preparation_data

    def get_preparation_data(name: str) -> dict[str, object]:
        return {**original(name), "hotloop": Installation()}

    spawn.get_preparation_data = get_preparation_data
