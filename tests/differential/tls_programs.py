"""Programs for `tls.py`: their operations, and how a seed makes them."""

import random
from dataclasses import dataclass

GARBAGE = (
    b"garbage that is no record",
    b"GET / HTTP/1.0\r\n\r\n",
    b"\x17\x03\x03\x00\x20" + bytes(32),  # data that nobody has encrypted
    b"\x17\x03\x03\xff\xff",  # a record that is too long
    b"\x17\x03\x03\x00\x00",  # an empty one
    b"\x16\x03\x03\x00\x04\x00\x00\x00\x00",  # a HelloRequest
    b"\x15\x03\x03\x00\x02\x02\x28",  # a fatal alert
    b"\x15\x03\x03\x00\x02\x01\x00",  # close_notify
)


@dataclass(frozen=True)
class Do:
    """A method of an end in `tls.py`, and its arguments."""

    what: str
    arguments: tuple = ()


@dataclass(frozen=True)
class On:
    """What a protocol does in its first call from that step on."""

    step: int
    do: Do


@dataclass(frozen=True)
class Step:
    """What one end does: at once, while the loop does not run, or soon, in a callback."""

    end: str
    do: Do
    soon: bool = False


@dataclass(frozen=True)
class Program:
    seed: int
    kind: str  # of the sockets
    version: str
    server_side: bool
    upgraded: bool  # by start_tls()
    buffered: bool
    room: int  # bytes in a BufferedProtocol's buffer
    keep_open: bool  # what eof_received() returns
    debug: bool
    interruption: str | None  # of the handshake
    reactions: tuple
    steps: tuple


# How often something is chosen, and its arguments.
OURS = {
    "write": (3, lambda choose: (_bytes_type(choose), choose.choice([1, 100, 16384, 16385, 50_000]))),
    "write_much": (1, lambda choose: (choose.choice([300_000, 700_000, 2_000_000]),)),
    "writelines": (1, lambda choose: (tuple(choose.choice([0, 1, 100, 20_000]) for _ in range(4)),)),
    "pause_reading": (1, None),
    "resume_reading": (2, None),
    "set_write_buffer_limits": (1, lambda choose: (choose.choice([0, 1, 1000, 65536]),)),
    "set_read_buffer_limits": (1, lambda choose: (choose.choice([0, 1, 1000, 65536]),)),
    "set_protocol": (1, lambda choose: (choose.random() < 0.5,)),
    "close": (1, None),
    "abort": (1, None),
}
REACTIONS = {
    "write": (4, lambda choose: (_bytes_type(choose), 100)),
    "write_much": (1, lambda choose: (700_000,)),
    "write_and_close": (1, lambda choose: (40_000,)),
    "pause_reading": (1, None),
    "resume_reading": (1, None),
    "set_write_buffer_limits": (1, lambda choose: (0,)),
    "set_protocol": (1, lambda choose: (choose.random() < 0.5,)),
    "close": (1, None),
    "close_soon": (1, None),
    "abort": (1, None),
    "abort_below": (1, None),
    "object_read": (1, None),
    "object_write": (1, None),
    "object_pending": (1, None),
    "object_unwrap": (1, None),
    "fail": (1, lambda choose: (choose.choice(["Failure", "Unusual"]),)),
    "stop": (1, None),
}
PEER = {
    "write": (6, lambda choose: (_peer_size(choose), choose.random() < 0.6)),
    "write_nothing": (1, None),
    "read": (4, None),
    "send": (2, None),
    "send_part": (2, lambda choose: (choose.choice([1, 4, 5, 6, 100, 17_000]),)),
    "send_but": (1, lambda choose: (choose.choice([1, 5, 17]),)),
    "wait": (1, None),
    "key_update": (1, lambda choose: (choose.random() < 0.5, choose.random() < 0.5)),
    "renegotiate": (1, lambda choose: (choose.random() < 0.5,)),
}
# By these the peer ends the connection, or breaks it.
ENDS = {
    "notify": (1, lambda choose: (_last_size(choose),)),
    "write_eof": (1, lambda choose: (choose.random() < 0.5,)),
    "reset": (1, lambda choose: (choose.random() < 0.5,)),
    "close": (1, lambda choose: (choose.random() < 0.5,)),
    "garbage": (1, lambda choose: (choose.choice(GARBAGE), choose.random() < 0.5)),
    "change_cipher_spec": (1, lambda choose: (choose.random() < 0.6,)),
}


def _bytes_type(choose):
    return choose.choice(["bytes", "bytearray", "memoryview"])


def _peer_size(choose):
    return choose.choice([1, 100, 5000, 16384, 16385, 40_000, 100_000])


def _last_size(choose):
    return choose.choice([0, 100, 40_000])


def _one_of(choose, table, without=()):
    names = [name for name in table if name not in without]
    (name,) = choose.choices(names, [table[name][0] for name in names])
    arguments = table[name][1]
    return Do(name, arguments(choose) if arguments is not None else ())


def _steps(choose, count):
    # Many errors are ends: in some conversations nobody makes one.
    is_peaceful = choose.random() < 0.4
    for _ in range(count):
        if choose.random() < 0.6:
            yield Step("peer", _one_of(choose, PEER if is_peaceful else PEER | ENDS))
        else:
            do = _one_of(choose, OURS, ("close", "abort") if is_peaceful else ())
            yield Step("ours", do, soon=choose.random() < 0.5)


def _last_steps(choose):
    steps = [
        Step("ours", Do(choose.choice(["close", "close", "abort"])), soon=choose.random() < 0.5),
        Step("peer", Do("read")),
        Step("peer", Do("notify", (_last_size(choose),))),
        Step("peer", Do("read")),
        Step("peer", Do("close", (False,))),
    ]
    if choose.random() < 0.5:
        choose.shuffle(steps)
    return steps


def _reactions(choose, count):
    """Of protocols to what is called, in the order of the steps."""
    steps = sorted(choose.randrange(count) for _ in range(choose.choice([0, 1, 2, 4])))
    if choose.random() < 0.15:
        steps.insert(0, 0)  # to connection_made()
    return tuple(On(step, _one_of(choose, REACTIONS)) for step in steps)


def program(seed):
    choose = random.Random(seed)
    count = choose.choice([5, 15, 40])
    return Program(
        seed=seed,
        kind=choose.choice(["unix", "tcp"]),
        version=choose.choice(["TLSv1_2", "TLSv1_3"]),
        server_side=choose.random() < 0.5,
        upgraded=choose.random() < 0.4,
        buffered=choose.random() < 0.5,
        room=choose.choice([1000, 5000, 16384, 70_000]),
        keep_open=choose.random() < 0.2,
        debug=choose.random() < 0.15,
        interruption=choose.choice([None] * 12 + ["write_eof", "reset", "garbage", "cancel"]),
        reactions=_reactions(choose, count),
        steps=(*_steps(choose, count), *_last_steps(choose)),
    )
