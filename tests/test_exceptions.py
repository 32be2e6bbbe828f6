"""What becomes of an exception that a callback raises, and of an exit or interrupt."""

import socket

import helpers
import pytest


def run_once(loop):
    """One iteration."""
    loop.call_soon(loop.stop)
    loop.run_forever()


def test_an_exception_is_reported_and_the_loop_goes_on(loop, reports):
    ran = []
    error = ValueError("broken")

    def fail():
        raise error

    handle = loop.call_soon(fail)
    loop.call_soon(ran.append, 1)
    run_once(loop)
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
    run_once(loop)
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
        run_once(loop)
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
    run_once(loop)
    assert ran == [1, 2, 3]


def test_the_exception_handler_may_itself_fail(loop, logged):
    def broken(loop, context):
        raise TypeError("handler")

    loop.set_exception_handler(broken)
    loop.call_soon(lambda: 1 / 0)
    run_once(loop)
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
    run_once(loop)
    (line,) = logged()
    assert line.startswith("Exception in callback ")
    with pytest.raises(TypeError):
        loop.set_exception_handler(42)
