"""What CPython itself does wrong when it has no memory: programs without any event loop that crash or hang.

`python -m torture.memory.crashes` says which of them crash the running Python.
"""

from __future__ import annotations

import _testcapi
import asyncio
import collections
import functools
import gc
import importlib.machinery
import os
import pathlib
import signal
import sys
import threading
import types

# Allocations of which each fails in turn.
ALLOCATIONS = 300


def dict_iterator():
    """dictiter_new() destroys an iterator over items that is not tracked yet, for which there is no tuple."""
    dicts = [{} for _ in range(3000)]
    return lambda: collections.deque(iter(d.items()) for d in dicts), None


def code_of_function():
    """MAKE_FUNCTION of 3.12.1 and 3.13.0 releases a function's code twice if there is no memory for the
    function: whatever looks at the constants of the code around it crashes, the collector for one.
    """
    code = compile("def f(): pass\n", "<string>", "exec")
    return lambda: exec(code, {}), lambda: repr(code.co_consts)


def thread_start():
    """threading.Thread.start() waits for good for a thread that has no memory to say that it has started."""
    return lambda: threading.Thread(target=int).start(), None


def condition_exit():
    """threading.Condition.__exit__() does not release the lock if there is no memory to call its method:
    whoever acquires it next waits for good. An executor's futures have one.
    """
    condition = threading.Condition(threading.Lock())

    def act():
        with condition:
            pass

    return act, condition.acquire


def growing_dict():
    """PyDict_SetDefaultRef() of 3.13.0 goes on where a dict could not grow, and counts an item that is not
    there: whatever looks at the dict crashes, as at asyncio's current tasks and at the namespaces of classes.
    """
    dicts = [dict.fromkeys("abcde") for _ in range(100)]

    def act():
        for each in dicts:
            each.setdefault("f")

    return act, lambda: [each.update(g=None) for each in dicts]


def formatted_string():
    """fstring_compile_expr() of 3.11 does not look whether there was memory for a parser of its own;
    optimize_and_assemble_code_unit() of 3.12.1 releases a control flow graph that was never made;
    compiler_enter_scope() of 3.13.0 adds to a sequence of instructions that was never made.
    """
    source = "def f(self): return f'{self.one!r}, {self.two!r}'"

    def act():
        compile(source, "<string>", "exec")

    act()
    return act, None


def new_list():
    """Without the GIL, PyList_New() destroys a list before it has set that there is no memory for items."""
    return lambda: collections.deque([[each] for each in range(1000)]), None


def class_with_attributes():
    """From 3.14 on, _PyDict_NewKeysForClass() adds the attributes that the class's methods set to a table for
    which there was no memory.
    """
    return lambda: type("C", (), {"__static_attributes__": ("one",)}), None


# More than one attempt makes of one function.
RELEASES = 100
# So many leave room for more steps of tasks than an attempt makes.
TASKS = 6000
_kept: list[list[types.CodeType]] = []


def keep_codes(found):
    """Have code_of_function() do no harm to functions that these codes make."""
    while found:
        found = [each for code in found for each in code.co_consts if isinstance(each, types.CodeType)]
        _kept.append(found * RELEASES)


def get_code(self, fullname, get_code=importlib.machinery.SourceFileLoader.get_code):
    code = get_code(self, fullname)
    keep_codes([code])
    return code


def circumvent():
    """Have code_of_function() do no harm to what was imported or will be, and growing_dict() none to
    asyncio.
    """
    if not (3, 12) <= sys.version_info < (3, 14):
        return
    keep_codes([each.__code__ for each in gc.get_objects() if isinstance(each, types.FunctionType)])
    importlib.machinery.SourceFileLoader.get_code = get_code
    asyncio.tasks._current_tasks.update(dict.fromkeys(range(TASKS)))


# What is printed where it hangs.
STARTING = r'threading\.py", line \d+ in start\b'
LEAVING = r'threading\.py", line \d+,? in __exit__\n( .*\n)*MemoryError'
# By the functions of which one is among the innermost of the backtrace.
IN_COLLECTOR = ("_PyObject_IS_GC", "visit_decref", "visit_reachable", "tupletraverse", "dict_traverse")
IN_DICT = ("unicode_get_hash", "build_indices_unicode", "build_indices_generic", "dictresize", "dict_dealloc")
CRASHES = {
    thread_start: (STARTING,),
    condition_exit: (LEAVING,),
    # The last is what is seen of it in an interpreter without symbols.
    dict_iterator: ("dictiter_dealloc", "PyObject_GetIter"),
    code_of_function: (*IN_COLLECTOR, "code_dealloc", "tupledealloc"),
    growing_dict: (*IN_COLLECTOR, *IN_DICT),
    formatted_string: ("fstring_compile_expr", "fstring_find_expr", "_PyCfgBuilder_Fini", "codegen_addop_i"),
    new_list: ("list_dealloc", "PyList_New"),
    # So is the last here.
    class_with_attributes: ("insert_split_key", "_PyDict_NewKeysForClass", "PyType_Ready"),
}


def crashes(program):
    """Whether it crashes the running Python, or never ends."""
    act, look = program()
    gc.collect()
    gc.freeze()
    for number in range(ALLOCATIONS):
        pid = os.fork()
        if pid == 0:
            signal.alarm(2)
            try:
                _testcapi.set_nomemory(number, number + 1)
                try:
                    act()
                except BaseException:
                    pass
                finally:
                    _testcapi.remove_mem_hooks()
                if look is not None:
                    look()
            finally:
                os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) < 0:
            return True
    return False


@functools.cache
def of_this_python():
    """The functions of the interpreter in which a crash is its own, and what is printed where it hangs."""
    import subprocess

    # In that folder, `torture` is found.
    result = subprocess.run(
        [sys.executable, "-m", __name__],
        cwd=pathlib.Path(__file__).parents[2],
        env={**os.environ, "PYTHONMALLOC": "debug"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result
    said = result.stdout.split()
    return {name for program, names in CRASHES.items() if program.__name__ in said for name in names}


def main():
    for program in CRASHES:
        if crashes(program):
            print(program.__name__, flush=True)


if __name__ == "__main__":
    main()
