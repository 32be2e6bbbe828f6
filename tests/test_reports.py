"""Reports to the exception handler: what each kind of failure tells it, and what is logged without one."""

import asyncio
import gc
import re

import helpers
import pytest
from helpers import BufferedRecorder, Recorder


class Broken(Exception):
    pass


def fail(*args):
    raise Broken("broken")


@pytest.fixture(params=[False, True], ids=["quiet", "debug"])
def debug(request, loop):
    loop.set_debug(request.param)
    return request.param


# The keys of a report


def test_a_callback(loop, reports, debug):
    for schedule in (
        loop.call_soon,
        loop.call_soon_threadsafe,
        lambda function, *args: loop.call_later(0, function, *args),
    ):
        handle = schedule(fail, 1)
        helpers.run_once(loop, 2)
        report = reports.take()
        assert isinstance(report["exception"], Broken)
        assert report["handle"] is handle
        shown = "1" if debug or helpers.PYTHON < (3, 13) else ""  # arguments are long, and may be secret
        assert report["message"].startswith(f"Exception in callback fail({shown})")
        assert report.keys() == {"message", "exception", "handle"} | (
            {"source_traceback"} if debug else set()
        )


@pytest.mark.parametrize("side", ["reader", "writer"])
def test_a_watcher(loop, reports, debug, side):
    ours, peer = helpers.unix_pair()
    peer.send(b"x")
    with ours, peer:
        getattr(loop, f"add_{side}")(ours, fail)
        helpers.run_once(loop, 2)
        getattr(loop, f"remove_{side}")(ours)
    report = reports[0]
    reports.clear()
    assert report["message"].startswith("Exception in callback fail()")
    assert report["handle"]._callback is None or report["handle"]._callback is fail
    assert report.keys() == {"message", "exception", "handle"} | ({"source_traceback"} if debug else set())


def test_a_callback_of_a_future(loop, reports, debug):
    future = loop.create_future()
    future.add_done_callback(fail)
    future.set_result(None)
    helpers.run_once(loop, 2)
    report = reports.take()
    assert report["message"].startswith("Exception in callback fail(")
    assert report.keys() == {"message", "exception", "handle"} | ({"source_traceback"} if debug else set())


def test_an_exception_that_nobody_retrieved(loop, reports, debug):
    async def failing():
        raise Broken

    loop.create_task(failing())
    helpers.run_once(loop, 3)
    gc.collect()
    report = reports.take()
    assert report["message"] == "Task exception was never retrieved"
    assert isinstance(report["exception"], Broken)
    assert isinstance(report["future"], asyncio.Task)
    assert report.keys() == {"message", "exception", "future"} | ({"source_traceback"} if debug else set())
    future = loop.create_future()
    future.set_exception(Broken())
    del future, report
    gc.collect()
    assert reports.take()["message"] == "Future exception was never retrieved"


def test_a_pending_task_that_is_dropped(loop, reports, debug):
    async def wait():
        await asyncio.get_running_loop().create_future()

    loop.create_task(wait())
    helpers.run_once(loop, 3)
    gc.collect()
    report = reports.take()
    assert report["message"] == "Task was destroyed but it is pending!"
    assert report.keys() == {"message", "task"} | ({"source_traceback"} if debug else set())


CALLBACKS = {
    "connection_made": (Recorder, "Exception in callback "),
    "data_received": (Recorder, "Fatal error: protocol.data_received() call failed."),
    "eof_received": (Recorder, "Fatal error: protocol.eof_received() call failed."),
    "connection_lost": (Recorder, "Exception in callback "),
    "pause_writing": (Recorder, "protocol.pause_writing() failed"),
    "resume_writing": (Recorder, "protocol.resume_writing() failed"),
    "get_buffer": (BufferedRecorder, "Fatal error: protocol.get_buffer() call failed."),
    "buffer_updated": (BufferedRecorder, "Fatal error: protocol.buffer_updated() call failed."),
}


@pytest.mark.parametrize("name", CALLBACKS)
def test_the_callbacks_of_a_protocol(loop, reports, pair, name):
    make, said = CALLBACKS[name]
    protocol = make(**{name: fail})
    ours, peer = pair

    async def main():
        transport, _ = await loop.create_connection(lambda: protocol, sock=ours)
        transport.write(helpers.TOO_MUCH)
        await helpers.read_exactly(peer, len(helpers.TOO_MUCH))
        await helpers.iterations(3)
        peer.send(b"x")
        peer.close()
        await protocol.lost()
        await helpers.iterations(2)
        return transport

    transport = loop.run_until_complete(main())
    report = reports.take()
    assert report["message"].startswith(said)
    assert isinstance(report["exception"], Broken)
    if said.startswith("Exception in callback"):
        assert report.keys() == {"message", "exception", "handle"}
        assert name in report["message"]
    else:
        assert report.keys() == {"message", "exception", "transport", "protocol"}
        assert report["transport"] is transport
        assert report["protocol"] is protocol


def test_a_buffer_of_no_size(loop, reports, pair):
    protocol = BufferedRecorder(size=0)
    ours, peer = pair

    async def main():
        await loop.create_connection(lambda: protocol, sock=ours)
        peer.send(b"x")
        return await protocol.lost()

    error = loop.run_until_complete(main())
    report = reports.take()
    assert report["message"] == "Fatal error: protocol.get_buffer() call failed."
    assert report["exception"] is error
    assert isinstance(error, RuntimeError)
    assert str(error) == "get_buffer() returned an empty buffer"


# What the default handler logs


@pytest.fixture
def unhandled(loop):
    loop.set_exception_handler(None)
    return loop


def test_the_text_of_a_report(unhandled, logged, caplog):
    unhandled.call_exception_handler({"message": "said", "zebra": 1, "aardvark": "two", "exception": None})
    assert logged() == ["said\naardvark: 'two'\nzebra: 1"]
    assert not caplog.records[-1].exc_info


def test_a_report_without_a_message(unhandled, logged, caplog):
    error = Broken("broken")
    unhandled.call_exception_handler({"exception": error})
    assert logged() == ["Unhandled exception in event loop"]
    assert caplog.records[-1].exc_info[1] is error
    assert caplog.records[-1].levelname == "ERROR"


def test_the_text_for_a_callback(unhandled, logged, caplog, debug):
    handle = unhandled.call_soon(fail)
    helpers.run_once(unhandled)
    (text,) = logged()
    first, second, *rest = text.split("\n")
    assert first.startswith("Exception in callback fail() at ")
    assert second.startswith("handle: <Handle fail() at ")
    if debug:
        assert "Object created at (most recent call last):" in text
        assert "in test_the_text_for_a_callback" in text
    else:
        assert rest == []
    assert isinstance(caplog.records[-1].exc_info[1], Broken)
    assert handle.cancelled() is False


def test_in_debug_mode_a_report_tells_which_callback_was_running(unhandled, logged):
    unhandled.set_debug(True)
    unhandled.call_soon(lambda: unhandled.call_exception_handler({"message": "said"}))
    helpers.run_once(unhandled)
    (text,) = logged()
    assert text.startswith("said\nhandle_traceback: Handle created at (most recent call last):\n")
    assert "in test_in_debug_mode_a_report_tells_which_callback_was_running" in text


def test_a_handler_may_leave_it_to_the_default(loop, logged):
    def handler(loop, context):
        seen.append(context)
        loop.default_exception_handler(context)

    seen = []
    loop.set_exception_handler(handler)
    assert loop.get_exception_handler() is handler
    loop.call_soon(fail)
    helpers.run_once(loop)
    assert seen[0]["message"] == logged()[0].split("\n")[0]


# Handlers


@pytest.mark.parametrize("bad", [42, "handler", object(), []])
def test_what_is_no_handler(loop, bad):
    before = loop.get_exception_handler()
    with pytest.raises(TypeError, match=re.escape(f"A callable object or None is expected, got {bad!r}")):
        loop.set_exception_handler(bad)
    assert loop.get_exception_handler() == before


def test_a_handler_that_fails(loop, logged, caplog):
    def handler(loop, context):
        raise LookupError("handler")

    loop.set_exception_handler(handler)
    loop.call_soon(fail)
    helpers.run_once(loop)
    (text,) = logged()
    assert text.startswith(
        "Unhandled error in exception handler\ncontext: {'message': 'Exception in callback fail()"
    )
    assert isinstance(caplog.records[-1].exc_info[1], LookupError)


@pytest.mark.parametrize("error", [helpers.Leave, helpers.Interrupt])
def test_a_handler_may_leave_the_loop(loop, error):
    def handler(loop, context):
        raise error

    ran = []
    loop.set_exception_handler(handler)
    with pytest.raises(error):
        loop.call_exception_handler({"message": "said"})
    loop.call_soon(fail)
    loop.call_soon(ran.append, 1)
    with pytest.raises(error):
        loop.run_forever()
    assert not loop.is_running()
    helpers.run_once(loop)
    assert ran == [1]


def test_a_default_handler_that_fails(loop_name, logged):
    class Loop(type(helpers.FACTORIES[loop_name]())):
        def default_exception_handler(self, context):
            raise LookupError("default")

    loop = Loop()
    loop.call_soon(fail)
    helpers.run_once(loop)
    assert logged() == ["Exception in default exception handler"]
    loop.set_exception_handler(fail)
    loop.call_soon(fail)
    helpers.run_once(loop)
    loop.close()
    said = "while handling an unexpected error in custom exception handler"
    assert logged()[1:] == [f"Exception in default exception handler {said}"]
    gc.collect()


@pytest.mark.hotloop_only  # asyncio's loop ends its run with the error of the repr().
def test_a_callback_that_cannot_be_shown(loop, reports, debug):
    class Hidden:
        def __call__(self):
            raise Broken

        def __repr__(self):
            raise KeyError

    loop.call_soon(Hidden())
    helpers.run_once(loop)
    report = reports.take()
    assert isinstance(report["exception"], Broken)
    assert report["message"] == "Exception in callback <Hidden, whose repr() raised KeyError>"
