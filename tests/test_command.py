"""python -m hotloop, and the console script: a program sees hotloop's loop, and nothing else that differs.

Most tests run a program with plain Python and on hotloop, and compare all that comes out.
"""

import importlib.util
import os
import py_compile
import re
import signal
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Sequence
from pathlib import Path

import helpers
import pytest

pytestmark = pytest.mark.skipif("hotloop" not in helpers.LOOP_NAMES, reason="hotloop is not under test")

HOTLOOP = ["-m", "hotloop"]

Outcome = tuple[int, str, str]

TELLS = """
import asyncio, sys

async def main():
    print(type(asyncio.get_running_loop()).__module__)
"""


def run(arguments: Sequence[str], directory: Path, *, text: str = "", **environment: str) -> Outcome:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        input=text,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=50,
    )
    # How deep a recursion gets depends on where it starts.
    error = re.sub("repeated [0-9]+ more times", "repeated", done.stderr)
    return done.returncode, done.stdout, error


def check_same(
    program: Sequence[str], directory: Path, *, options: Sequence[str] = (), text: str = "", status: int = 0
) -> Outcome:
    """The program does on hotloop what it does by itself."""
    plain = run([*options, *program], directory, text=text)
    ours = run([*options, *HOTLOOP, *program], directory, text=text)
    assert ours == plain
    assert plain[0] == status, plain[2]
    return ours


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path


def write(directory: Path, source: str, name: str = "program.py") -> str:
    (directory / name).parent.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text(source)
    return name


# --- Which loop it is ---

MAKERS = {
    "run": "asyncio.run(main())",
    "runner": "with asyncio.Runner() as runner: runner.run(main())",
    "new_event_loop": "loop = asyncio.new_event_loop(); loop.run_until_complete(main()); loop.close()",
    "set_event_loop": """
asyncio.set_event_loop(asyncio.new_event_loop())
loop = asyncio.get_event_loop(); loop.run_until_complete(main()); loop.close()""",
    "other thread": """
import threading
thread = threading.Thread(target=asyncio.run, args=[main()]); thread.start(); thread.join()""",
    "isolated test case": """
import unittest
class Case(unittest.IsolatedAsyncioTestCase):
    async def test(self): await main()
unittest.TextTestRunner(stream=__import__("io").StringIO()).run(Case("test"))""",
    "anyio": "import anyio; anyio.run(main)",
}


@pytest.mark.parametrize("how", MAKERS)
@pytest.mark.parametrize("options", [[], ["-W", "error"]], ids=["", "warnings are errors"])
def test_every_way_to_a_loop_leads_to_hotloop(directory: Path, how: str, options: list[str]) -> None:
    if how == "anyio":
        pytest.importorskip("anyio")
    program = write(directory, TELLS + MAKERS[how])
    assert run([*options, *HOTLOOP, program], directory) == (0, "hotloop.loop\n", "")


# What chooses the event loop in servers: their modules, and a program that has them choose.
CHOOSING = {
    "uvicorn": (
        "uvicorn/loops/auto.py",
        "import asyncio\ndef auto_loop_factory(use_subprocess=False): return asyncio.SelectorEventLoop\n",
        "from uvicorn.loops.auto import auto_loop_factory as choose; loop = choose()()",
    ),
    "gunicorn": (
        "gunicorn/workers/gasgi.py",
        "import asyncio\n"
        "class ASGIWorker:\n"
        "    def _setup_event_loop(self): self.loop = asyncio.SelectorEventLoop()\n",
        "import types; from gunicorn.workers.gasgi import ASGIWorker; worker = ASGIWorker()\n"
        "worker.cfg = types.SimpleNamespace(asgi_loop=sys.argv[1]); worker._setup_event_loop()\n"
        "loop = worker.loop",
    ),
    "granian": (
        "granian/_loops.py",
        "import asyncio\n"
        "class Registry(dict):\n"
        "    def register(self, name): return lambda builder: self.update({name: builder})\n"
        "loops = Registry(auto=asyncio.SelectorEventLoop)\n"
        "def build_asyncio_loop(): return asyncio.new_event_loop()\n",
        "from granian._loops import loops; loop = loops['auto']()",
    ),
}


def write_module(directory: Path, source: str, name: str) -> None:
    """Also its packages, which are found before those that are installed."""
    write(directory, source, name)
    for package in Path(name).parents[:-1]:
        write(directory, "", f"{package}/__init__.py")


@pytest.mark.parametrize("server", CHOOSING)
def test_servers_that_choose_take_hotloop(directory: Path, server: str) -> None:
    module, source, choice = CHOOSING[server]
    write_module(directory, source, module)
    ending = "\nprint(type(loop).__module__, __import__('inspect').getsource(sys.modules[%r]) != '')"
    name = module.removesuffix(".py").replace("/", ".")
    program = write(directory, f"import sys\n{choice}{ending % name}\nloop.close()\n")
    assert run([*HOTLOOP, program, "auto"], directory) == (0, "hotloop.loop True\n", "")
    assert run([program, "auto"], directory) == (0, "asyncio.unix_events True\n", "")
    if server == "gunicorn":
        assert run([*HOTLOOP, program, "asyncio"], directory) == (0, "asyncio.unix_events True\n", "")


@pytest.mark.parametrize("server", ["gunicorn", "granian"])
def test_servers_that_choose_in_another_way(directory: Path, server: str) -> None:
    module, _, _ = CHOOSING[server]
    write_module(directory, "answer = 42\n", module)
    name = module.removesuffix(".py").replace("/", ".")
    program = write(directory, f"from {name} import answer; print(answer)")
    status, printed, warned = run([*HOTLOOP, program], directory)
    assert (status, printed) == (0, "42\n")
    assert f"UserWarning: {name} chooses the event loop in another way" in warned


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="there is no loop unless one was made")
def test_get_event_loop_makes_it(directory: Path) -> None:
    program = write(
        directory, TELLS + "loop = asyncio.get_event_loop(); loop.run_until_complete(main()); loop.close()"
    )
    assert run(["-W", "ignore", *HOTLOOP, program], directory) == (0, "hotloop.loop\n", "")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_of_multiprocessing_run_on_it(directory: Path, method: str) -> None:
    """Their children too; and what they are told about __main__ is right, so that its classes come and go."""
    program = write(
        directory,
        f"""
import asyncio, multiprocessing

class Answer:
    def __init__(self, text):
        self.text = text

async def main():
    return Answer(type(asyncio.get_running_loop()).__module__)

def work(queue, depth):
    queue.put(asyncio.run(main()))
    if depth:
        start(queue, depth - 1)

def start(queue, depth):
    process = multiprocessing.get_context({method!r}).Process(target=work, args=(queue, depth))
    process.start()
    process.join()

if __name__ == "__main__":
    queue = multiprocessing.get_context({method!r}).Queue()
    start(queue, 1)
    print(queue.get().text, queue.get().text)
""",
    )
    for way in ([program], ["-m", "program"]):
        assert run([*HOTLOOP, *way], directory) == (0, "hotloop.loop hotloop.loop\n", "")


def test_debug_mode(directory: Path) -> None:
    program = write(
        directory, "import asyncio\nasync def main(): return asyncio.get_running_loop().get_debug()\n"
    )
    code = "import asyncio, program; print(asyncio.run(program.main()))"
    assert run([*HOTLOOP, "--debug", "-c", code], directory)[:2] == (0, "True\n")
    assert run([*HOTLOOP, "-c", code], directory)[:2] == (0, "False\n")
    status, _, error = run(["-E", *HOTLOOP, "--debug", program], directory)
    assert (status, error.count("\n")) == (2, 1)
    assert error.startswith("hotloop: --debug sets PYTHONASYNCIODEBUG")


# --- What else a program sees ---

SEES = """
import sys
print(sys.argv)
print(sys.path)
for name, value in sorted(globals().items()):
    if name not in ("__builtins__", "__loader__", "__spec__", "sys", "name", "value"):
        print(name, repr(value))
print(type(__builtins__), __loader__ if isinstance(__loader__, type) else type(__loader__))
print(__spec__ and (__spec__.name, __spec__.origin))
print(sys.modules["__main__"].__dict__ is globals())
def function(): pass
print(function.__module__, sys.modules["__main__"].function is function)
"""


def compiled(directory: Path) -> str:
    py_compile.compile(str(directory / "program.py"), str(directory / "program.pyc"), doraise=True)
    return "program.pyc"


def archive(directory: Path) -> str:
    with zipfile.ZipFile(directory / "program.zip", "w") as file:
        file.writestr("__main__.py", SEES)
    return "program.zip"


def linked(directory: Path) -> str:
    write(directory, SEES, "elsewhere/real.py")
    (directory / "link.py").symlink_to("elsewhere/real.py")
    return "link.py"


SHAPES = {
    "file": lambda directory: ["program.py"],
    "file in a folder": lambda directory: [write(directory, SEES, "folder/program.py")],
    "file not in its shortest form": lambda directory: [f"./../{directory.name}/program.py"],
    "absolute file": lambda directory: [str(directory / "program.py")],
    "link": lambda directory: [linked(directory)],
    "compiled file": lambda directory: [compiled(directory)],
    "directory": lambda directory: [str(Path(write(directory, SEES, "folder/__main__.py")).parent)],
    "archive": lambda directory: [archive(directory)],
    "module": lambda directory: ["-m", "program"],
    "module in one word": lambda directory: ["-mprogram"],
    "package": lambda directory: ["-m", write(directory, SEES, "package/__main__.py").split("/")[0]],
    "submodule": lambda directory: ["-m", write(directory, SEES, "package/part.py")[:-3].replace("/", ".")],
    "code": lambda directory: ["-c", SEES],
    "standard input": lambda directory: ["-"],
}


@pytest.mark.parametrize("options", [[], ["-P"], ["-I"], ["-O"], ["-X", "dev"]], ids=" ".join)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_a_program_sees_of_its_start(directory: Path, shape: str, options: list[str]) -> None:
    write(directory, SEES)
    program = SHAPES[shape](directory)
    if program[0].startswith("-m") and options and options[0] in ("-P", "-I"):
        # The current directory is not searched.
        assert run([*options, *HOTLOOP, *program, "--debug"], directory)[0] == 2
        return
    check_same([*program, "--debug", "-m", "x"], directory, options=options, text=SEES)


ENDS = {
    "exit": ("import sys; sys.exit()", 0),
    "status": ("import sys; sys.exit(3)", 3),
    "message": ("import sys; sys.exit('a message')", 1),
    "SystemExit in a coroutine": (
        "import asyncio\nasync def main(): raise SystemExit(4)\nasyncio.run(main())",
        4,
    ),
    "exception": ("def function(): raise ValueError('text')\n\nfunction()", 1),
    "exception in a coroutine": ("import asyncio\nasync def main(): 1 / 0\nasyncio.run(main())", 1),
    "exception with a cause": (
        "def function():\n    try: 1 / 0\n"
        "    except ArithmeticError as error: raise ValueError from error\nfunction()",
        1,
    ),
    "exception group": ("raise ExceptionGroup('several', [ValueError(1), TypeError(2)])", 1),
    "exception with notes": ("error = ValueError(1)\nerror.add_note('a note')\nraise error", 1),
    "syntax error": ("x = = 1", 1),
    "syntax error elsewhere": ("exec('x = = 1')", 1),
    "wrong indentation": ("if 1:\nx", 1),
    "import error": ("import no_such_module", 1),
    "recursion": ("def function(): function()\nfunction()", 1),
    "KeyboardInterrupt": ("raise KeyboardInterrupt", -signal.SIGINT),
    "own hook": (
        "import sys, traceback\n"
        "def hook(kind, value, tb):\n"
        "    print(kind, value, len(traceback.extract_tb(tb)), value.__traceback__ is tb)\n"
        "sys.excepthook = hook\nraise ValueError(1)",
        1,
    ),
    "hook that was taken away": ("import sys\ndel sys.excepthook\nsys.exit(5)", 5),
    "last exception": (
        "import atexit, sys, traceback\n"
        "def tell(): print(len(traceback.extract_tb(sys.last_traceback)), sys.last_value)\n"
        "atexit.register(tell)\nraise ValueError(1)",
        1,
    ),
    "atexit and threads": (
        "import atexit, threading, time\natexit.register(print, 'exit')\n"
        "threading.Thread(target=lambda: (time.sleep(0.1), print('thread'))).start()\nprint('end')",
        0,
    ),
    "exception in a thread": (
        "import threading\nthreading.Thread(target=lambda: 1 / 0, name='T').start()",
        0,
    ),
    "hook afterwards": (
        "import atexit, sys\nhook = sys.excepthook\n"
        "atexit.register(lambda: print(sys.excepthook is hook))\n1 / 0",
        1,
    ),
    "ended by a signal": ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
    "os._exit": ("import os; os._exit(9)", 9),
    "module that is gone": ("import sys; del sys.modules['__main__']; raise ValueError(1)", 1),
}


@pytest.mark.parametrize("how", ["file", "code", "module", "standard input"])
@pytest.mark.parametrize("end", ENDS)
def test_how_a_program_ends(directory: Path, end: str, how: str) -> None:
    source, status = ENDS[end]
    write(directory, source)
    program = {
        "file": ["program.py"],
        "code": ["-c", source],
        "module": ["-m", "program"],
        "standard input": ["-"],
    }[how]
    check_same(program, directory, text=source, status=status)


def test_interrupt_from_outside(directory: Path) -> None:
    program = write(
        directory,
        "import asyncio\nasync def main():\n"
        "    print('ready', flush=True)\n    await asyncio.sleep(30)\nasyncio.run(main())",
    )
    outcomes = []
    for command in ([], HOTLOOP):
        process = subprocess.Popen(
            [sys.executable, *command, program],
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=20)
        # Frames of the loop differ, and only those.
        frames = [line for line in error.splitlines() if "program.py" in line or not line.startswith(" ")]
        outcomes.append((process.returncode, frames))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][0] == -signal.SIGINT


def test_pickles_of_main(directory: Path) -> None:
    source = """
import pickle
class Thing:
    pass
thing = pickle.loads(pickle.dumps(Thing()))
print(type(thing) is Thing, pickle.dumps(Thing()))
"""
    for program in ([write(directory, source)], ["-m", "program"], ["-c", source]):
        check_same(program, directory)


# --- What can't be done ---

REFUSED = {
    (): "there is no program to run",
    ("--",): "there is no program to run",
    ("missing.py",): "can't open file '{directory}/missing.py': [Errno 2] No such file or directory",
    ("--", "--missing"): "can't open file '{directory}/--missing': [Errno 2] No such file or directory",
    ("-m", "missing"): "No module named missing",
    ("-m", "json.missing"): "No module named json.missing",
    (
        "-m",
        "package",
    ): "No module named package.__main__; 'package' is a package and cannot be directly executed",
    ("-m",): "-m needs a module",
    ("-c",): "-c needs a program",
    ("--missing",): "unknown option --missing",
    ("-x", "program.py"): "unknown option -x",
    ("package",): "can't find '__main__' module in '{directory}/package'",
}


@pytest.mark.parametrize("arguments", REFUSED, ids=" ".join)
def test_one_line_and_status_2_for_what_cannot_be_done(directory: Path, arguments: tuple[str, ...]) -> None:
    write(directory, "", "package/__init__.py")
    write(directory, "print('it ran')")
    status, output, error = run([*HOTLOOP, *arguments], directory)
    assert (status, output) == (2, "")
    assert error.startswith("hotloop: " + REFUSED[arguments].format(directory=directory))
    assert error.count("\n") == 1


def test_exits_of_modules_are_their_own(directory: Path) -> None:
    """What looks like Python's complaint about a module that is missing, but comes from the program."""
    write(directory, f"import sys; sys.exit({sys.executable + ': No module named x'!r})")
    check_same(["-m", "program"], directory, status=1)


def test_help_and_versions(directory: Path) -> None:
    import hotloop

    status, output, error = run([*HOTLOOP, "--help"], directory)
    assert (status, error) == (0, "")
    assert output.startswith("usage: python -m hotloop [OPTION ...] FILE")
    status, output, error = run([*HOTLOOP, "--version"], directory)
    assert (status, error) == (0, "")
    poller = "portable" if os.environ.get("HOTLOOP_POLLER") == "portable" else "epoll"
    python = ".".join(str(part) for part in sys.version_info[:3])
    assert re.fullmatch(
        rf"hotloop {re.escape(hotloop.__version__)}, CPython {re.escape(python)}\S*, {poller}\n", output
    )


SCRIPT = Path(sysconfig.get_path("scripts")) / "hotloop"


@pytest.mark.skipif(
    not SCRIPT.exists(), reason="the package was not installed by pip, which makes the script"
)
def test_the_console_script_does_the_same(directory: Path) -> None:
    def script(*arguments: str) -> tuple[int, str, str]:
        done = subprocess.run([SCRIPT, *arguments], cwd=directory, capture_output=True, text=True, timeout=50)
        return done.returncode, done.stdout, done.stderr

    write(directory, SEES + TELLS + MAKERS["run"])
    status, output, error = script("program.py", "1")
    assert (status, error) == (0, "")
    assert output.endswith("hotloop.loop\n")
    assert output.startswith(run(["program.py", "1"], directory)[1].rpartition("asyncio")[0])
    write(directory, "1 / 0")
    assert script("program.py") == run(["program.py"], directory)
    assert script("-m", "program") == run(["-m", "program"], directory)
    assert script("missing.py")[0] == 2
    assert script("--help")[1].startswith("usage: hotloop [OPTION ...] FILE")


def test_it_is_there_without_its_parts(directory: Path) -> None:
    """Importing the package does not import the command."""
    assert importlib.util.find_spec("hotloop.__main__") is not None
    assert (
        run(["-c", "import hotloop, sys; print('hotloop._command' in sys.modules)"], directory)[1]
        == "False\n"
    )
