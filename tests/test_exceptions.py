"""What becomes of an exception that a callback raises, and of an exit or interrupt."""

import asyncio
import importlib.util
import shutil
import socket
import subprocess
import sysconfig
import threading

import helpers
import pytest

BROKEN = """
#include <Python.h>

static PyObject *left_behind(PyObject *module, PyObject *argument)
{
    PyErr_SetString(PyExc_ValueError, "left behind");
    Py_RETURN_NONE;
}

static PyObject *unsaid(PyObject *module, PyObject *argument)
{
    return NULL;
}

static PyMethodDef functions[] = {
    {"left_behind", left_behind, METH_NOARGS, NULL},
    {"unsaid", unsaid, METH_NOARGS, NULL},
    {NULL},
};

static struct PyModuleDef broken = {PyModuleDef_HEAD_INIT, "broken", NULL, -1, functions};

PyMODINIT_FUNC PyInit_broken(void)
{
    PyObject *module = PyModule_Create(&broken);
#ifdef Py_GIL_DISABLED
    if (module != NULL)
        PyUnstable_Module_SetGIL(module, Py_MOD_GIL_NOT_USED);
#endif
    return module;
}
"""


def test_an_exception_is_reported_and_the_loop_goes_on(loop, reports):
    ran = []
    error = ValueError("broken")

    def fail():
        raise error

    handle = loop.call_soon(fail)
    loop.call_soon(ran.append, 1)
    helpers.run_once(loop)
    report = reports.take()
    assert report["exception"] is error
    assert report["handle"] is handle
    assert report["message"].startswith("Exception in callback ")
    assert "fail" in report["message"]
    assert ran == [1]


def test_a_base_exception_of_the_users_own_is_reported_too(loop, reports):
    class Odd(BaseException):
        pass

    def fail():
        raise Odd

    loop.call_soon(fail)
    helpers.run_once(loop)
    assert isinstance(reports.take()["exception"], Odd)


@pytest.mark.parametrize("kind", [helpers.Leave, helpers.Interrupt])
@pytest.mark.parametrize(
    "place", ["soon", "threadsafe", "timer", "reader", "writer", "done callback", "task"]
)
def test_exit_and_interrupt_leave_the_loop_which_can_go_on(loop, kind, place):
    ran = []
    ours, peer = socket.socketpair()
    peer.send(b"x")

    def leave(*args):
        loop.remove_reader(ours)
        loop.remove_writer(ours)
        loop.call_soon(ran.append, place)
        raise kind

    async def leaving():
        leave()

    with ours, peer:
        if place == "soon":
            loop.call_soon(leave)
        elif place == "threadsafe":
            loop.call_soon_threadsafe(leave)
        elif place == "timer":
            loop.call_later(0.001, leave)
        elif place == "reader":
            loop.add_reader(ours, leave)
        elif place == "writer":
            loop.add_writer(ours, leave)
        elif place == "done callback":
            future = loop.create_future()
            future.add_done_callback(leave)
            future.set_result(None)
        else:
            task = loop.create_task(leaving())
        with pytest.raises(kind):
            loop.run_forever()
        assert not loop.is_running()
        if place == "task":
            assert isinstance(task.exception(), kind)
        helpers.run_once(loop)
        assert ran == [place]


def test_what_stood_behind_an_exit_runs_when_the_loop_goes_on(loop):
    ran = []

    def leave():
        raise helpers.Leave

    loop.call_soon(ran.append, 1)
    loop.call_soon(leave)
    loop.call_soon(ran.append, 2)
    loop.call_soon(ran.append, 3)
    with pytest.raises(helpers.Leave):
        loop.run_forever()
    assert ran == [1]
    helpers.run_once(loop)
    assert ran == [1, 2, 3]


def test_the_exception_handler_may_itself_fail(loop, logged):
    def broken(loop, context):
        raise TypeError("handler")

    loop.set_exception_handler(broken)
    loop.call_soon(lambda: 1 / 0)
    helpers.run_once(loop)
    assert any("Unhandled error in exception handler" in line for line in logged())


def test_the_exception_handler_may_leave(loop):
    def leaving(loop, context):
        raise helpers.Leave

    loop.set_exception_handler(leaving)
    loop.call_soon(lambda: 1 / 0)
    with pytest.raises(helpers.Leave):
        loop.run_forever()


def test_without_a_handler_exceptions_are_logged(loop, logged):
    def fail():
        raise ValueError("broken")

    loop.set_exception_handler(None)
    assert loop.get_exception_handler() is None
    loop.call_soon(fail)
    helpers.run_once(loop)
    (line,) = logged()
    assert line.startswith("Exception in callback ")
    with pytest.raises(TypeError):
        loop.set_exception_handler(42)


@pytest.mark.parametrize("exit", [helpers.Leave, helpers.Interrupt])
def test_an_exit_in_connection_made_leaves_the_connection_in_order(loop, pair, exit):
    """Whoever runs the loop again gets the transport, and the protocol its data."""
    ours, peer = pair

    def leave(protocol, transport):
        raise exit

    protocol = helpers.Recorder(connection_made=leave)
    connecting = loop.create_task(loop.create_connection(lambda: protocol, sock=ours))
    with pytest.raises(exit):
        loop.run_until_complete(connecting)
    transport, _ = loop.run_until_complete(asyncio.wait_for(connecting, 5))
    peer.send(b"data")
    loop.run_until_complete(asyncio.wait_for(protocol.received(4), 5))
    transport.close()
    loop.run_until_complete(asyncio.wait_for(protocol.lost(), 5))


def test_an_exit_in_pause_writing_in_connection_made(loop, pair):
    """The write has happened: what could not be sent goes out when the loop runs again."""
    ours, peer = pair

    def leave(protocol):
        raise helpers.Leave

    protocol = helpers.Recorder(
        connection_made=lambda protocol, transport: transport.write(helpers.TOO_MUCH), pause_writing=leave
    )
    connecting = loop.create_task(loop.create_connection(lambda: protocol, sock=ours))
    with pytest.raises(helpers.Leave):
        loop.run_until_complete(connecting)
    transport, _ = loop.run_until_complete(asyncio.wait_for(connecting, 5))
    size = len(helpers.TOO_MUCH)
    received = loop.run_until_complete(asyncio.wait_for(helpers.read_exactly(peer, size), 10))
    assert received == helpers.TOO_MUCH
    transport.close()
    loop.run_until_complete(asyncio.wait_for(protocol.lost(), 5))


def test_an_exit_in_connection_made_of_an_accepted_connection(loop):
    def leave(protocol, transport):
        raise helpers.Leave

    protocol = helpers.Recorder(connection_made=leave)
    server = loop.run_until_complete(loop.create_server(lambda: protocol, "127.0.0.1", 0))
    with socket.create_connection(server.sockets[0].getsockname()) as peer:
        with pytest.raises(helpers.Leave):
            loop.run_until_complete(protocol.until("connection_made"))
        peer.send(b"data")
        loop.run_until_complete(asyncio.wait_for(protocol.received(4), 5))
    loop.run_until_complete(asyncio.wait_for(protocol.lost(), 5))
    server.close()


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A module with functions in C that do not keep to the protocol of calls."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("broken")
    (folder / "broken.c").write_text(BROKEN)
    include = sysconfig.get_path("include")
    library = folder / "broken.so"
    command = [compiler, "-shared", "-fPIC", "-w", f"-I{include}", folder / "broken.c", "-o", library]
    subprocess.run(command, check=True)
    spec = importlib.util.spec_from_file_location("broken", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["left_behind", "unsaid"])
@pytest.mark.parametrize("schedule", ["call_soon", "call_later", "call_soon_threadsafe"])
def test_a_function_that_breaks_the_protocol_of_calls(loop, reports, broken, schedule, name):
    """Whoever comes after it must not get its exception."""
    task = loop.create_task(asyncio.sleep(0.02, "result"))
    delay = [0] if schedule == "call_later" else []
    getattr(loop, schedule)(*delay, getattr(broken, name))
    assert loop.run_until_complete(task) == "result"
    error = reports.take()["exception"]
    assert isinstance(error, SystemError)
    if name == "left_behind":
        assert str(error).endswith("returned a result with an exception set")
        assert str(error.__cause__) == "left behind"


@pytest.mark.parametrize("name", ["left_behind", "unsaid"])
def test_a_function_of_another_thread_that_breaks_the_protocol_of_calls(loop, reports, broken, name):
    """Its handle is not kept: the thread schedules others after it."""

    def work():
        loop.call_soon_threadsafe(getattr(broken, name))
        loop.call_soon_threadsafe(loop.stop)

    def schedule():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    loop.call_soon(schedule)
    loop.run_forever()
    assert isinstance(reports.take()["exception"], SystemError)


def test_a_function_that_breaks_the_protocol_of_calls_as_the_last(loop, reports, broken):
    loop.call_soon(loop.stop)
    loop.call_soon(broken.left_behind)
    loop.run_forever()
    assert isinstance(reports.take()["exception"], SystemError)
