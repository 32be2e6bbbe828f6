"""The command `python -m hotloop`, or `hotloop`: a program with asyncio's loops replaced, and nothing else.

What a program can see of how it was started is as it is with `python` in place of `python -m hotloop`.
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
       {name} --version | --help

Run a Python program on hotloop: asyncio.run(), asyncio.Runner, asyncio.new_event_loop() and what builds on
them, anyio for one, make hotloop's event loop. FILE can be -, for standard input, or a directory or zip file
with a __main__.py.

  --debug              turn asyncio's debug mode on, as PYTHONASYNCIODEBUG=1 does
  --watch[=SECONDS]    report callbacks that block an event loop for so long, or 0.1 seconds, and where
  --stats              print what each event loop did when it is closed
  --stats-signal=NAME  print it, with the tasks, at this signal; with --watch and --stats it is SIGUSR2
  --version            print the versions of hotloop and of Python, and how the loop waits for events

top shows what a process does that was started with --watch: the one with that number, or at that socket, or
the only one. It needs the package rich: pip install 'hotloop[top]'. A program of that name is ./top.

  --interval=SECONDS   how often it looks: every second
  --once               look once, and print what there is to see
  --picture=FILE       the same, and save it as an SVG image
"""

DEBUG = "PYTHONASYNCIODEBUG"

# What type checkers do not know of the standard library.
_linecache: Any = linecache
_runpy: Any = runpy

# What Python itself calls for -m, for directories and for archives.
run_module_as_main = _runpy._run_module_as_main


class Refused(Exception):
    """What is asked for can't be done: the reason, in a line."""


def main() -> None:
    """Run the program that sys.argv names; exit with status 2 if there is no such program."""
    name = "python -m hotloop" if os.path.basename(sys.argv[0]) == "__main__.py" else "hotloop"
    try:
        run = chosen(sys.argv[1:], name)
        if run is not None:
            run()
    except Refused as refused:
        reason = str(refused)
    else:
        return
    print(f"hotloop: {reason}", file=sys.stderr)
    raise SystemExit(2)


def chosen(arguments: list[str], name: str) -> Callable[[], None] | None:
    """What runs the program that the arguments name; None if they ask for something else, which is done."""
    if arguments[:1] == ["top"]:
        return lambda: top(arguments[1:], name)
    for position, argument in enumerate(arguments):
        rest = arguments[position + 1 :]
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
                raise Refused(f"{argument} needs a {what} ({name} --help)")
            start = run_module if argument[:2] == "-m" else run_code
            return lambda: start(*rest)
        if argument == "-" or not argument.startswith("-"):
            return lambda: run_file(argument, *rest)
        if argument == "--":
            if not rest:
                break
            return lambda: run_file(*rest)
        if is_of_stats(argument, name):
            continue
        if argument != "--debug":
            raise Refused(f"unknown option {argument} ({name} --help)")
        if sys.flags.ignore_environment:
            raise Refused(f"--debug sets {DEBUG}, which -E and -I have Python ignore")
        os.environ[DEBUG] = "1"
    raise Refused(f"there is no program to run ({name} --help)")


observing: dict[str, float | int] = {}
"""The options that have loops observed, with their values: seconds, or the number of a signal."""


def is_of_stats(argument: str, name: str) -> bool:
    """Whether an argument is such an option, which is noted then."""
    option, given, value = argument.partition("=")
    if option == "--watch":
        observing["watch"] = seconds(option, value, name) if given else 0.1
    elif option == "--stats-signal":
        import signal

        try:
            observing["signal"] = signal.Signals[value]
        except KeyError:
            raise Refused(
                f"--stats-signal takes the name of a signal, not {value!r} ({name} --help)"
            ) from None
    elif argument == "--stats":
        observing["stats"] = 1
    else:
        return False
    return True


def observe(options: dict[str, float | int]) -> None:
    """Do what those options say, in this process and those that multiprocessing starts."""
    if not options:
        return
    import signal

    from ._observing import serving, summaries
    from ._observing.loops import whenever_made

    observing.update(options)
    if "watch" in options:
        whenever_made(lambda loop: loop.watch_blocking(options["watch"]))
        serving.serve_when_there_is_a_loop()
    if "stats" in options:
        summaries.tell_at_the_end()
    summaries.tell_on_signal(int(options.get("signal", signal.SIGUSR2)))


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
            raise Refused(f"unknown option {argument} of top ({name} --help)")
        else:
            targets.append(argument)
    if len(targets) > 1:
        raise Refused(f"top shows one process, not {len(targets)} ({name} --help)")
    try:
        from ._observing.asking import Unavailable
        from ._observing.top import watch
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "rich":
            raise
        raise Refused("top needs the package rich: pip install 'hotloop[top]'") from None
    try:
        watch(targets[0] if targets else None, interval, once=once, picture=picture)
    except Unavailable as error:
        raise Refused(str(error)) from None
    except KeyboardInterrupt:
        # Python would end with this, too, after a traceback that tells nobody anything.
        raise SystemExit(130) from None


def seconds(option: str, value: str, name: str) -> float:
    """The number of seconds that an option was given."""
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise Refused(f"{option} takes a number of seconds, not {value!r} ({name} --help)")
    return number


def versions() -> str:
    import platform

    from . import Loop, __version__

    loop = Loop()
    backend = loop._poller
    loop.close()
    return f"hotloop {__version__}, {platform.python_implementation()} {platform.python_version()}, {backend}"


# --- Programs, in the ways that Python's own command line has ---


def run_file(path: str, *arguments: str) -> None:
    if path == "-":
        prepare("", path, arguments)
        run_source(sys.stdin.buffer.read(), "<stdin>", __file__="<stdin>")
        return
    # As Python names it: absolute, but not in its shortest form.
    filename = os.path.join(os.getcwd(), path)
    if pkgutil.get_importer(path) is not None:
        # A directory or an archive, which is searched even in safe mode.
        prepare(filename, path, arguments, is_searched=True)
        run_main_of("__main__", alter_argv=False)
        return
    try:
        with open(filename, "rb") as file:
            source = file.read()
    except OSError as error:
        raise Refused(f"can't open file {filename!r}: [Errno {error.errno}] {error.strerror}") from None
    prepare(os.path.dirname(os.path.realpath(filename)), path, arguments)
    if source.startswith(MAGIC_NUMBER):
        run_compiled(source, __file__=filename, __loader__=SourcelessFileLoader("__main__", filename))
    else:
        run_source(source, filename, __file__=filename, __loader__=SourceFileLoader("__main__", filename))


def run_module(name: str, *arguments: str) -> None:
    prepare(os.getcwd(), "-m", arguments)
    run_main_of(name, alter_argv=True)


def run_code(code: str, *arguments: str) -> None:
    prepare("", "-c", arguments)
    run_source(code, "<string>")


def prepare(directory: str, name: str, arguments: tuple[str, ...], *, is_searched: bool = False) -> None:
    """Make the process look as if the program had been started by itself, on hotloop."""
    if is_searched and sys.flags.safe_path:
        sys.path.insert(0, directory)
    elif not sys.flags.safe_path:
        # Python put the directory of the program there that it was started with.
        sys.path[0] = directory
    sys.argv[:] = [name, *arguments]
    module = ModuleType("__main__")
    module.__dict__.update(__builtins__=builtins, __loader__=BuiltinImporter)
    if sys.version_info < (3, 14):
        module.__annotations__ = {}
    former_main.append(sys.modules["__main__"])
    sys.modules["__main__"] = module
    install()
    observe(observing)
    # It gives the module a second name when it is imported, which is now.
    follow_into_children()


former_main: list[ModuleType] = []
"""The module that Python started, kept as it would have been."""


def run_main_of(name: str, *, alter_argv: bool) -> None:
    try:
        with Unseen():
            run_module_as_main(name, alter_argv)
    except SystemExit as error:
        if innermost_code(error.__traceback__) is not run_module_as_main.__code__:
            raise
        reason = str(error.code).removeprefix(f"{sys.executable}: ")
    else:
        return
    raise Refused(reason)


def run_source(source: str | bytes, filename: str, **attributes: object) -> None:
    with Unseen():
        if isinstance(source, str) and sys.version_info >= (3, 14):
            source = textwrap.dedent(source)
        code = compile(source, filename, "exec", dont_inherit=True)
        if isinstance(source, str) and sys.version_info >= (3, 13):
            # Tracebacks show what was given with -c, too.
            key = code if sys.version_info >= (3, 14) else filename
            _linecache._register_code(key, source, filename)
        exec(code, main_namespace(attributes))


def run_compiled(compiled: bytes, **attributes: object) -> None:
    with Unseen():
        exec(pkgutil.read_code(io.BytesIO(compiled)), main_namespace(attributes))


def main_namespace(attributes: dict[str, object]) -> dict[str, object]:
    namespace = sys.modules["__main__"].__dict__
    if "__file__" in attributes and sys.version_info < (3, 15):
        namespace["__cached__"] = None
    namespace.update(attributes)
    return namespace


class Unseen:
    """Takes frames of this package, and those before them, out of the traceback that ends the program."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        # What exits without a traceback needs no help, and a program may have taken the hook away.
        if error is None or isinstance(error, SystemExit) or not hasattr(sys, "excepthook"):
            return
        hook = sys.excepthook

        def excepthook(
            kind: type[BaseException], value: BaseException, traceback: TracebackType | None
        ) -> None:
            sys.excepthook = hook
            if value is error:
                value.__traceback__ = sys.last_traceback = traceback = after_ours(traceback)
            hook(kind, value, traceback)

        sys.excepthook = excepthook


def after_ours(traceback: TracebackType | None) -> TracebackType | None:
    """The part of a traceback that comes after the first frames of this module."""
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


# --- Processes that multiprocessing starts anew ---


class Installation:
    """Installs hotloop where it is unpickled, with the same options."""

    def __reduce__(self) -> tuple[Callable[[dict[str, float | int]], None], tuple[dict[str, float | int]]]:
        return install_in_child, (observing,)


def install_in_child(options: dict[str, float | int]) -> None:
    install()
    observe(options)
    follow_into_children()


def follow_into_children() -> None:
    """Have multiprocessing's children use hotloop as forked ones do, by what they get to unpickle first."""
    try:
        from multiprocessing import spawn
    except ImportError:
        return
    prepare = spawn.get_preparation_data

    def get_preparation_data(name: str) -> dict[str, object]:
        return {**prepare(name), "hotloop": Installation()}

    spawn.get_preparation_data = get_preparation_data
