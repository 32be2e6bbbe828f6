"""What instances of the classes in Rust share with any Python object: weak references, dicts, cycles,
being freed.
"""

import asyncio
import contextvars
import copy
import gc
import os
import socket
import sys
import threading
import warnings
import weakref

import helpers
import hotloop
import pytest

pytestmark = pytest.mark.hotloop_only


class Owner:
    """What refers to an instance, and what the instance refers to."""

    def method(self, *args):
        return self


def collect():
    for _ in range(3):  # what a finalizer has touched goes one collection later
        gc.collect()


@pytest.fixture
def closing():
    """Closes what a test opened."""
    opened = []
    yield lambda *things: opened.extend(things)
    for thing in opened:
        thing.close()


def handle(loop, owner, **options):
    return loop.call_soon(owner.method, **options)


def timer(loop, owner, **options):
    return loop.call_later(0, owner.method, **options)


def threadsafe(loop, owner, **options):
    return loop.call_soon_threadsafe(owner.method, **options)


HANDLES = [handle, timer, threadsafe]


def stream(loop, protocol):
    ours, peer = helpers.unix_pair()
    return loop._make_socket_transport(ours, protocol), [peer]


def datagram(loop, protocol):
    ours, peer = helpers.datagram_pair()
    return loop._make_datagram_transport(ours, protocol), [peer]


def read_pipe(loop, protocol):
    reader, writer = helpers.os_pipe()
    return loop._make_read_pipe_transport(reader, protocol), [writer]


def write_pipe(loop, protocol):
    reader, writer = helpers.os_pipe()
    return loop._make_write_pipe_transport(writer, protocol), [reader]


TRANSPORTS = [stream, datagram, read_pipe, write_pipe]


@pytest.fixture(params=TRANSPORTS, ids=lambda make: make.__name__)
def make_transport(request, loop, closing):
    """Makes a transport of each kind that nobody but the test and the loop refers to."""

    def make():
        transport, others = request.param(loop, helpers.Recorder())
        closing(*others)
        helpers.run_once(loop)
        return transport

    return make


@pytest.fixture
def transport(make_transport):
    return make_transport()


# Weak references


@pytest.mark.parametrize("make", HANDLES)
def test_a_weak_reference_to_a_handle(loop, make):
    said = []
    thing = make(loop, Owner())
    ref = weakref.ref(thing, lambda ref: said.append(ref()))
    helpers.run_once(loop)
    assert ref() is thing
    del thing
    assert ref() is None
    assert said == [None]


@helpers.over_unix
def test_a_weak_reference_to_an_operation(loop, pair):
    said = []
    operation = loop.sock_recv(pair[0], 1)
    ref = weakref.ref(operation, lambda ref: said.append(ref()))
    operation.close()
    del operation
    assert ref() is None
    assert said == [None]


def test_a_weak_reference_to_a_transport(loop, make_transport):
    transport = make_transport()
    said = []
    ref = weakref.ref(transport, lambda ref: said.append(ref()))
    transport.close()
    helpers.run_once(loop)
    transport.get_protocol()
    del transport
    collect()
    assert ref() is None
    assert said == [None]


@pytest.mark.parametrize("members", [{}, {"__slots__": ("__weakref__",)}], ids=["dict", "slots"])
def test_a_weak_reference_to_a_loop_that_is_in_no_cycle(loop, members):
    """Its last reference goes, without the collector."""
    from hotloop import _core

    said = []
    bare = type("Bare", (_core.Loop,), members)()
    ref = weakref.ref(bare, lambda ref: said.append(ref()))
    del bare
    assert ref() is None
    assert said == [None]


@helpers.over_unix
def test_memory_that_is_used_again_is_another_object_to_weak_references(loop, pair):
    for _ in range(3):
        first = [loop.call_soon(int) for _ in range(50)] + [loop.sock_recv(pair[0], 1) for _ in range(50)]
        helpers.run_once(loop)
        for operation in first[50:]:
            operation.close()
        refs = [weakref.ref(thing) for thing in first]
        del operation
        first.clear()
        second = [loop.call_soon(int) for _ in range(50)] + [loop.sock_recv(pair[0], 1) for _ in range(50)]
        assert [ref() for ref in refs] == [None] * 100
        again = [weakref.ref(thing) for thing in second]
        assert [ref() for ref in again] == second
        for operation in second[50:]:
            operation.close()
        helpers.run_once(loop)


# Attributes


def test_the_dict_of_a_transport(loop, transport):
    transport.mine = 1
    assert vars(transport)["mine"] == 1
    transport.__dict__ = {"other": 2}
    assert transport.other == 2
    assert not hasattr(transport, "mine")
    with pytest.raises(TypeError):
        transport.__dict__ = 5
    del transport.other
    with pytest.raises(AttributeError):
        transport.other  # noqa: B018  (it raises)
    transport.close()
    helpers.run_once(loop)


@helpers.over_unix
def test_an_operation_does_not_inherit_attributes(loop, pair):
    """Its memory may be that of one that had some."""
    for number in range(200):
        operation = loop.sock_recv(pair[0], 1)
        assert vars(operation) == {}
        operation.mine = number
        operation.close()


def test_the_dict_of_a_transport_in_a_cycle(loop, make_transport):
    transport = make_transport()
    owner = Owner()
    owner.transport = transport
    transport.owner = owner
    ref = weakref.ref(owner)
    transport.close()
    helpers.run_once(loop)
    del owner, transport
    collect()
    assert ref() is None


def test_the_class_of_an_instance_can_not_be_changed(loop, transport):
    for thing in (transport, loop.call_soon(int)):
        with pytest.raises(TypeError):
            thing.__class__ = Owner
        with pytest.raises(TypeError):
            thing.__class__ = asyncio.Handle
    transport.close()
    helpers.run_once(loop)


# Classes


def classes():
    if "hotloop" not in helpers.FACTORIES:
        return []
    from hotloop import _core

    return [found for found in vars(_core).values() if isinstance(found, type) and found is not _core.Loop]


@pytest.mark.parametrize("made", classes(), ids=lambda made: made.__name__)
def test_a_class_whose_instances_come_from_the_loop_alone(loop, made):
    with pytest.raises(TypeError):
        made()
    with pytest.raises(TypeError):
        object.__new__(made)
    with pytest.raises(TypeError):
        made.__base__.__new__(made)
    with pytest.raises(TypeError):
        type("Sub", (made,), {})


def test_the_class_of_loops_can_be_derived_from(loop):
    from hotloop import _core

    class Sub(_core.Loop):
        __slots__ = ("mine",)

        def time(self):
            return 5.0

    sub = Sub()
    # What BaseEventLoop.__init__() does.
    sub._closed = False
    sub.mine = sub
    assert sub.call_later(1, int).when() == 6.0
    ref = weakref.finalize(sub.call_soon(int), int)
    sub._close()
    del sub
    collect()
    assert not ref.alive
    with pytest.raises(TypeError):
        type("Both", (_core.Loop, int), {})


def test_copies(loop):
    ran = []
    for one in (loop.call_soon(ran.append, 1), loop.call_later(60, ran.append, 2)):
        other = copy.copy(one)
        assert type(other) is type(one)
        other.cancel()
        assert not one.cancelled()
        one.cancel()
    helpers.run_once(loop)
    assert ran == []


def test_a_loop_has_few_attributes(loop):
    """CPython 3.13 and later remember where they found a method while the object has at most 30 attributes.

    Those that the class's own methods assign count, too. The program may add some.
    """
    if sys.version_info < (3, 13):
        pytest.skip("until 3.12, a class has no __static_attributes__")
    loop.run_until_complete(asyncio.sleep(0))
    assert len(set(vars(loop)) | set(vars(hotloop.Loop)["__static_attributes__"])) <= 27


# Finalizers


@helpers.over_unix
def test_each_operation_that_is_not_awaited_is_warned_of(loop, pair):
    """Those, too, whose memory was that of one that was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(300):
            loop.sock_recv(pair[0], 1)
    assert len([one for one in caught if "never awaited" in str(one.message)]) == 300


def test_a_transport_that_is_resurrected(loop, make_transport, monkeypatch):
    """Whoever is warned of it may keep it: it is closed, and is not warned of again."""
    transport = make_transport()
    caught = []
    loop.close()
    with warnings.catch_warnings(), monkeypatch.context() as patch:
        warnings.simplefilter("always")
        patch.setattr(warnings, "showwarning", lambda message, *_: caught.append(message))
        patch.setattr(warnings, "_showwarnmsg_impl", lambda found: caught.append(found.source))
        del transport
        collect()
        (kept,) = [one for one in caught if isinstance(one, asyncio.BaseTransport)] or [None]
        if kept is not None:
            assert kept.is_closing()
            repr(kept)
        caught.clear()
        del kept
        collect()
    assert caught == []


# Cycles


CYCLES = {
    "callback": lambda make, loop, owner: make(loop, owner),
    "context": lambda make, loop, owner: (
        owner.context.run(owner.variable.set, owner) and make(loop, Owner(), context=owner.context)
    ),
}


@pytest.mark.parametrize("through", CYCLES)
@pytest.mark.parametrize("make", HANDLES)
def test_a_handle_in_a_cycle(loop, make, through):
    owner = Owner()
    owner.context, owner.variable = contextvars.copy_context(), contextvars.ContextVar("owner")
    owner.handle = CYCLES[through](make, loop, owner)
    helpers.run_once(loop)
    ref = weakref.ref(owner)
    del owner
    collect()
    assert ref() is None


@pytest.mark.parametrize("count", [1, 2, 3, 9])
@pytest.mark.parametrize("schedule", ["call_soon", "call_soon_threadsafe", "call_later", "call_at"])
def test_a_handle_in_a_cycle_through_its_arguments(loop, schedule, count):
    owner = Owner()
    when = [0] if schedule in ("call_later", "call_at") else []
    owner.handle = getattr(loop, schedule)(*when, max, *[owner] * count)
    owner.handle.cancel()
    owner.other = getattr(loop, schedule)(*when, id, *[owner] * count)
    loop.set_exception_handler(lambda loop, context: None)
    helpers.run_once(loop)
    ref = weakref.ref(owner)
    del owner
    collect()
    assert ref() is None


OPERATIONS = {
    "sock_recv": lambda loop, owner: loop.sock_recv(owner, 1),
    "size": lambda loop, owner: loop.sock_recv(None, owner),
    "sock_recv_into": lambda loop, owner: loop.sock_recv_into(None, owner),
    "sock_recvfrom": lambda loop, owner: loop.sock_recvfrom(None, owner),
    "sock_recvfrom_into": lambda loop, owner: loop.sock_recvfrom_into(None, owner, 1),
    "number": lambda loop, owner: loop.sock_recvfrom_into(None, b"", owner),
    "sock_sendall": lambda loop, owner: loop.sock_sendall(None, owner),
    "sock_sendto": lambda loop, owner: loop.sock_sendto(None, owner, None),
    "address": lambda loop, owner: loop.sock_sendto(None, b"", owner),
    "sock_accept": lambda loop, owner: loop.sock_accept(owner),
    "sock_connect": lambda loop, owner: loop._sock_connect(None, owner),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_an_operation_in_a_cycle(loop, name):
    owner = Owner()
    owner.operation = OPERATIONS[name](loop, owner)
    ref = weakref.ref(owner)
    del owner
    collect()
    assert ref() is None


@helpers.over_unix
def test_an_operation_that_waits_in_a_cycle(loop, pair):
    class Socket(socket.socket):
        pass

    ours = Socket(fileno=os.dup(pair[0].fileno()))
    ours.setblocking(False)
    ours.operation = loop.sock_recv(ours, 1)
    future = ours.operation.send(None)
    future.ours = weakref.ref(ours)
    ref = weakref.ref(ours)
    loop.remove_reader(ours)
    ours.operation.close()
    ours.close()
    del ours, future
    collect()
    assert ref() is None


@pytest.mark.parametrize("make", TRANSPORTS)
@pytest.mark.parametrize("through", ["protocol", "extra"])
def test_a_transport_in_a_cycle_with_a_closed_loop(new_loop, closing, make, through):
    loop = new_loop()
    owner = helpers.Recorder()
    transport, others = make(loop, owner if through == "protocol" else helpers.Recorder())
    closing(*others)
    helpers.run_once(loop)
    if through == "extra":
        transport._extra["owner"] = owner
        transport.get_protocol().transport = None
    owner.mine = transport
    ref = weakref.ref(owner)
    loop.close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del owner, transport
        collect()
    assert ref() is None


def test_a_loop_in_a_cycle_through_what_another_thread_has_scheduled(loop):
    """It stopped before it saw that."""
    other = helpers.FACTORIES["hotloop"]()
    owner = Owner()
    owner.loop = other

    def schedule(owner):
        thread = threading.Thread(target=owner.loop.call_soon_threadsafe, args=(owner.method, owner))
        thread.start()
        thread.join()
        owner.loop.stop()

    other.call_soon(schedule, owner)
    other.run_forever()
    ref = weakref.ref(owner)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del owner, other, schedule
        collect()
    assert ref() is None


# Attributes


def test_attributes_that_are_not_to_be_deleted(loop, transport):
    with pytest.raises(AttributeError):
        del transport._protocol
    with pytest.raises(AttributeError):
        del loop._thread_id
    transport.close()
    helpers.run_once(loop)


def test_references_are_kept_in_number(loop):
    """Getting, setting and failing to set attributes takes none, and gives none back."""
    value = object()
    before = sys.getrefcount(value)
    for _ in range(100):
        one = loop.call_soon(id, value)
        assert one._args == (value,)
        with pytest.raises(AttributeError):
            one._args = value
        one.cancel()
    helpers.run_once(loop)
    del one
    assert sys.getrefcount(value) == before
