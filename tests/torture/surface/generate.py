"""Draws programs: each line is one call, one look at an attribute or one change of it."""

from __future__ import annotations

import inspect
import itertools

from hotloop import _core

SLOTS = [
    "repr({0})",
    "hash({0})",
    "{0} == {1}",
    "{0} < {1}",
    "{0}.__sizeof__()",
    "weakrefs.append(__import__('weakref').ref({0}, Acts({act})))",
    "{0}.__class__ = type({1})",
    "{0}.__init__({1})",
    "new = type({0}).__new__(type({0}))",
    "new = object.__new__(type({0}))",
    "new = type({0})()",
    "type('Sub', (type({0}),), {{}})",
    "type({0}).anything = {1}",
    "{0}.anything = {1}",
    "del {0}.anything",
    "{0}.__dict__ = {1}",
    "vars({0}).update(cycle=[{0}, {1}])",
    "new = __import__('copy').copy({0})",
    "new = __import__('copy').deepcopy({0})",
    "__import__('pickle').dumps({0})",
    "{0}.__reduce_ex__(4)",
    "for _ in zip({0}, range(5)): pass",
    "next({0})",
    "gc.get_referents({0})",
    "dir({0})",
    "del {0}",
    "{0} = {1}",
]

ACTIONS = [
    "int",
    "gc.collect",
    "loop.stop",
    "loop.close",
    "loop.run_forever",
    "lambda: loop.call_soon(int)",
    "lambda: loop.call_later(0, int)",
    "lambda: loop.call_soon_threadsafe(int)",
    "lambda: run(loop, 1)",
    "lambda: 1 / 0",
    "lambda: streamtransport.close()",
    "lambda: streamtransport.abort()",
    "lambda: streamtransport.write(b'x' * 100_000)",
    "lambda: streamtransport.pause_reading()",
    "lambda: streamtransport.set_protocol(Protocol(int))",
    "lambda: streamtransport.set_protocol(BufferedProtocol(int))",
    "lambda: datagramtransport.sendto(b'x' * 1000)",
    "lambda: datagramtransport.abort()",
    "lambda: readpipetransport.close()",
    "lambda: writepipetransport.abort()",
    "lambda: writepipetransport.write(bytearray(100_000))",
    "lambda: handle.cancel()",
    "lambda: timerhandle.cancel()",
    "lambda: socketoperation.send(None)",
    "lambda: socketoperation.close()",
    "lambda: socketoperation.throw(ValueError)",
    "lambda: connection.transport(Protocol)",
    "lambda: connection.close()",
    "lambda: loop.remove_reader(ours[1])",
    "lambda: loop.add_reader(ours[1], int)",
    "lambda: loop.add_writer(ours[2], int)",
    "lambda: loop.remove_writer(ours[2])",
    "lambda: loop._stop_serving(server)",
    "lambda: peers[0].send(b'hello')",
    "lambda: ours[0].close()",
    "lambda: os.close(ours[2].fileno())",
    "lambda: loop.set_debug(True)",
    "lambda: loop._metrics()",
    "lambda: names_now.clear()",
    "lambda: in_thread(lambda: loop.call_soon(int))",
    "lambda: gc.set_threshold(1)",
]

SPECIALS = {
    "__eq__": ("True", "False", "NotImplemented", "None"),
    "__hash__": ("1", "'text'"),
    "fileno": ("ours[1].fileno()", "ours[0].fileno()", "-1", "1 << 31", "(1 << 31) - 1", "'text'", "None"),
    "__index__": ("1", "-1", "1 << 70", "'text'", "ours[1].fileno()"),
    "__float__": ("1.0", "float('nan')", "'text'"),
    "__bool__": ("True", "False", "'text'"),
    "__iter__": ("iter([b'x'])", "iter(())", "5"),
    "__len__": ("5", "0", "-1", "1 << 70"),
    "__repr__": ("'text'", "'\\ud800'", "5"),
    "__str__": ("'text'", "5"),
    "__await__": ("iter(())", "iter([future])", "5"),
    "__call__": ("None", "5", "Protocol(int)"),
    "__getattribute__": ("None", "int", "5"),
    "__getitem__": ("None", "5"),
    "__instancecheck__": ("True",),
    "__buffer__": ("memoryview(b'x')", "5"),
    "family": ("5",),
}

# Expressions of what a parameter of some name is meant to get.
MEANT = {
    "callback": ["int", "Acts({act})", "special('__call__', {act}, None)", "streamtransport.close"],
    "protocol": ["Protocol({act})", "BufferedProtocol({act})", "Everything({act})"],
    "protocol_factory": ["lambda: Protocol({act})", "Acts({act}, Protocol(int))", "lambda: 1 / 0"],
    "sock": [
        "ours[1]",
        "ours[2]",
        "ours[0]",
        "server",
        "pair()[0]",
        "special('fileno', {act}, ours[2].fileno())",
    ],
    "fd": [
        "ours[1]",
        "ours[2].fileno()",
        "peers[1]",
        "special('fileno', {act}, ours[2].fileno())",
        "(1 << 31) - 1",
    ],
    "pipe": ["reader", "writer", "ours[2]", "special('fileno', {act}, ours[2].fileno())"],
    "data": [
        "b'x' * 1000",
        "b'x' * 1_000_000",
        "bytearray(b'x' * 1000)",
        "memoryview(bytearray(1000))[::2]",
        "released({act})",
        "Lent(b'x' * 100)",
        "Binary(b'x' * 100)",
        "__import__('array').array('d', [1.0])",
    ],
    "list_of_data": [
        "[b'x', bytearray(10), 'x']",
        "endless({act})",
        "special('__iter__', {act}, iter([b'x']))",
    ],
    "buf": ["bytearray(100)", "b'x'", "released({act})", "Lent(100)", "memoryview(bytearray(100))[::3]"],
    "n": ["1", "100", "0", "-1", "1 << 70", "special('__index__', {act}, 10)"],
    "delay": ["0", "0.001", "-1", "float('nan')", "float('inf')", "special('__float__', {act}, 0.0)"],
    "context": ["contextvars.copy_context()", "entered()", "None"],
    "waiter": ["loop.create_future()", "None", "Everything({act})"],
    "extra": ["{{}}", "Names()", "None", "{{'socket': Finalized({act})}}"],
    "name": ["'socket'", "'peername'", "Text('socket')", "special('__eq__', {act}, True)"],
    "coro": ["coroutine({act})", "special('__await__', {act}, iter(()))", "endless({act})"],
    "address": ["'/nowhere'", "server.getsockname()", "('127.0.0.1', 1 << 20)", "Pair(('127.0.0.1', 9))"],
    "handle": ["handle", "timerhandle", "asyncio.Handle(int, (), loop)", "Everything({act})"],
    "high": ["0", "1", "1 << 70", "-1", "None"],
    "threshold": ["0.001", "None", "-1.0", "float('nan')"],
    "id": ["1", "1 << 70", "-1"],
    "host": ["'127.0.0.1'", "'::1'", "'name'", "None"],
    "port": ["server.getsockname()[1]", "1 << 20", "'80'"],
}
MEANT |= {
    "when": MEANT["delay"],
    "file": MEANT["fd"],
    "addr": MEANT["address"],
    "bufsize": MEANT["n"],
    "nbytes": MEANT["n"],
    "low": MEANT["high"],
}

ANYTHING = [
    "None",
    "0",
    "-1",
    "1 << 70",
    "Integer(5)",
    "1.5",
    "Text('text')",
    "b''",
    "()",
    "[]",
    "{{}}",
    "int",
    "ValueError('x')",
    "Everything({act})",
    "Finalized({act})",
    "Acts({act})",
    "endless({act})",
    "Protocol({act})",
    "hotloop.new_event_loop()",
]


def surface():
    """The classes of the extension with the names of what each has, and its functions."""
    classes = {
        name.lower(): (found, [attribute for attribute in vars(found) if not attribute.startswith("__")])
        for name, found in vars(_core).items()
        if isinstance(found, type)
    }
    functions = [name for name, found in vars(_core).items() if inspect.isbuiltin(found)]
    return classes, functions


CLASSES, FUNCTIONS = surface()
# What would end the process by design, or wait where no signal gets through.
LEFT_OUT = {"_begin_fork"}


def parameters(function):
    try:
        return [name for name in inspect.signature(function).parameters if name not in ("self", "kwargs")]
    except (TypeError, ValueError):
        return []


class Draw:
    """Expressions and lines drawn from a source of random numbers."""

    def __init__(self, random):
        self.random = random
        self.numbers = itertools.count()

    def action(self):
        return f"({self.random.choice(ACTIONS)})"

    def fill(self, template):
        return template.replace("{{", "{").replace("}}", "}").replace("{act}", self.action())

    def thing(self):
        """An instance of one of the classes."""
        return self.random.choice([*CLASSES, "new", "loop", "future"])

    def value(self, name=None):
        kind = self.random.random()
        if name in MEANT and kind < 0.75:
            return self.fill(self.random.choice(MEANT[name]))
        if kind < 0.85:
            return self.fill(self.random.choice(ANYTHING))
        if kind < 0.92:
            method = self.random.choice(list(SPECIALS))
            result = self.random.choice(SPECIALS[method])
            base = self.random.choice(["object", "object", "str", "bytes", "int", "dict", "tuple", "type"])
            return f"special({method!r}, {self.action()}, {result}, {base})"
        return self.thing()

    def arguments(self, function):
        names = parameters(function)
        chance = self.random.random()
        if chance < 0.1:
            names = names[:-1]
        elif chance < 0.2:
            names = [*names, None]
        given = []
        for index, name in enumerate(names):
            if name == "args":
                given += [self.value() for _ in range(self.random.choice([0, 0, 1, 2, 5, 300]))][:8]
            elif name == "context" or (name and index > 1 and self.random.random() < 0.3):
                if self.random.random() < 0.5:
                    given.append(f"**dict({name}={self.value(name)})")
            elif not given or not given[-1].startswith("**"):
                given.append(self.value(name))
        return ", ".join(given)

    def line(self):
        random = self.random
        name = random.choice([*CLASSES, "loop", "streamtransport"])
        found, attributes = CLASSES[name]
        kind = random.random()
        if kind < 0.1:
            return random.choice(["run(loop)", "run(loop)", "peers[0].send(b'x' * 100)", "gc.collect()"])
        if kind < 0.2:
            return random.choice(SLOTS).format(name, self.value(), act=self.action())
        if kind < 0.22:
            return f"core.{random.choice([n for n in FUNCTIONS if n not in LEFT_OUT])}({self.value()})"
        if kind < 0.26:
            base = random.choice(["core.Loop", "hotloop.Loop"])
            method = random.choice(CLASSES["loop"][1])
            return f"loop = overriding({base}, {method!r}, {self.action()}, {self.value()})(); things(loop)"
        if kind < 0.28:
            return f"def names_now(): pass\nin_thread(lambda: {name}.{random.choice(attributes)})"
        attribute = random.choice(attributes)
        target = "new" if random.random() < 0.03 else name
        member = vars(found)[attribute]
        if not callable(member):
            if kind < 0.6:
                return f"new = {target}.{attribute}"
            return f"del {target}.{attribute}" if kind < 0.65 else f"{target}.{attribute} = {self.value()}"
        call = f"{target}.{attribute}({self.arguments(member)})"
        if random.random() < 0.07:
            return f"in_thread(lambda: {call})"
        return f"new = {call}"


def draw(random, length):
    """A program, as a list of lines."""
    source = Draw(random)
    return ["weakrefs, names_now, new = [], {}, None", *(source.line() for _ in range(length))]
