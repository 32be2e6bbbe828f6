"""hotloop's SSLProtocol and asyncio's, by themselves: whatever happens, both do the same."""

import asyncio
import pathlib
import random
import ssl
import types
from asyncio import sslproto

import helpers
import helpers_tls
import pytest
import test_tls_upgrades
from hotloop import _core, _tls

PROTOCOLS = {"asyncio": sslproto.SSLProtocol, "hotloop": _tls.make_protocol}


class Wire(asyncio.Transport):
    """The transport below TLS. What is written waits until the peer reads it."""

    def __init__(self, events):
        super().__init__()
        self.events = events
        self.written = bytearray()
        self.closing = False

    def write(self, data):
        assert data
        self.written += data

    def pause_reading(self):
        self.events.append("pause_reading")

    def resume_reading(self):
        self.events.append("resume_reading")

    def is_closing(self):
        return self.closing

    def close(self):
        self.closing = True
        self.events.append("close")

    def abort(self):
        self._force_close(None)

    def _force_close(self, exception):
        self.closing = True
        details = [getattr(exception, name, None) for name in ("library", "reason", "args")]
        self.events.append(("force_close", type(exception), str(exception), details))


class Application(asyncio.Protocol):
    """Writes down what it is told, and does something in between if it is told to."""

    def __init__(self, events):
        self.events = events
        self.reactions = []

    def note(self, *event):
        self.events.append(event)
        if self.reactions:
            self.reactions.pop()()

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        assert type(data) is bytes
        self.note("data_received", data)

    def eof_received(self):
        self.note("eof_received")

    def pause_writing(self):
        self.note("pause_writing")

    def resume_writing(self):
        self.note("resume_writing")


class BufferedApplication(Application, asyncio.BufferedProtocol):
    """The same, through get_buffer and buffer_updated."""

    def __init__(self, events):
        super().__init__(events)
        self.buffer = bytearray(50)

    def get_buffer(self, sizehint):
        self.note("get_buffer", sizehint)
        return memoryview(self.buffer)

    def buffer_updated(self, nbytes):
        self.note("buffer_updated", bytes(self.buffer[:nbytes]))


class Conversation:
    """A protocol under test, a wire, and a peer that does what it is told."""

    def __init__(self, loop, protocol_class, tls, buffered=False):
        self.loop = loop
        self.events = []
        self.wire = Wire(self.events)
        self.application = (BufferedApplication if buffered else Application)(self.events)
        self.to_peer, self.from_peer = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.peer = tls[0].wrap_bio(self.to_peer, self.from_peer, server_side=True)
        self.protocol = protocol_class(
            loop, self.application, tls[1], loop.create_future(), server_hostname="localhost"
        )
        loop.set_exception_handler(
            lambda _, context: self.events.append((context["message"], type(context["exception"])))
        )
        self.protocol.connection_made(self.wire)
        self.shake_hands()
        self.events.clear()

    def shake_hands(self):
        done = False
        while not done:
            self.settle()
            self.drain_wire()
            try:
                self.peer.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                pass
            self.feed(self.from_peer.read())
        self.settle()

    def settle(self):
        for _ in range(3):
            self.loop.run_until_complete(asyncio.sleep(0))

    def drain_wire(self):
        self.to_peer.write(bytes(self.wire.written))
        self.wire.written.clear()

    def feed(self, data):
        while data and not self.wire.closing:
            buffer = self.protocol.get_buffer(-1)
            piece, data = data[: len(buffer)], data[len(buffer) :]
            buffer[: len(piece)] = piece
            self.protocol.buffer_updated(len(piece))

    def queued(self):
        """What waits to be written, if the transport is not lost."""
        transport = self.application.transport
        return transport._ssl_protocol and transport.get_write_buffer_size()

    def read_as_peer(self):
        """What of the application's data has come to the peer by now."""
        self.drain_wire()
        data = bytearray()
        try:
            while chunk := self.peer.read(1 << 16):
                data += chunk
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError, ssl.SSLError):
            pass
        return bytes(data)


def payload(chance):
    size = chance.choice([1, 7, 100, 1024, 5000, 16384, 16385, 40_000])
    return bytes([chance.randrange(256)]) * size


def write_as_peer(talk, chance):
    for _ in range(chance.choice([1, 1, 1, 3])):
        talk.peer.write(payload(chance))


def feed_all(talk, chance):
    data = talk.from_peer.read()
    while data:
        size = chance.choice([1, 5, 6, 50, 1000, 17_000, len(data)])
        talk.feed(data[:size])
        data = data[size:]


def write(talk, chance):
    sort = chance.choice([bytes, bytearray, memoryview])
    talk.application.transport.write(sort(payload(chance)))


def write_lines(talk, chance):
    talk.application.transport.writelines([payload(chance) for _ in range(3)])


def react(talk, chance):
    """Something that the application does the next time that it is told something."""
    transport = talk.application.transport

    def fail():
        raise ValueError("the application fails")

    reactions = [transport.pause_reading, transport.close, transport.abort, fail]
    reactions += [lambda: transport.write(b"answer")] * 4
    talk.application.reactions.append(chance.choice(reactions))


def pause_wire(talk, chance):
    if not talk.protocol._ssl_writing_paused:
        talk.protocol.pause_writing()


def resume_wire(talk, chance):
    if talk.protocol._ssl_writing_paused:
        talk.protocol.resume_writing()


def limit_writing(talk, chance):
    talk.application.transport.set_write_buffer_limits(high=chance.choice([0, 1, 1000, 65536]))


def limit_reading(talk, chance):
    talk.application.transport.set_read_buffer_limits(high=chance.choice([0, 1, 1000, 65536]))


ACTIONS = [
    *[write_as_peer, feed_all] * 5,
    *[write] * 5,
    write_lines,
    lambda talk, chance: talk.application.transport.pause_reading(),
    lambda talk, chance: talk.application.transport.resume_reading(),
    lambda talk, chance: talk.application.transport.resume_reading(),
    react,
    pause_wire,
    resume_wire,
    limit_writing,
    limit_reading,
]
ENDS = [
    lambda talk, chance: talk.application.transport.close(),
    lambda talk, chance: talk.peer.unwrap(),
    lambda talk, chance: talk.feed(b"garbage that is no record"),
    lambda talk, chance: talk.protocol.eof_received(),
    lambda talk, chance: None,
]


def converse(loop, name, tls, seed):
    """Everything that could be seen of a conversation."""
    chance = random.Random(seed)
    talk = Conversation(loop, PROTOCOLS[name], tls, buffered=seed % 3 == 2)
    seen = []
    actions = [chance.choice(ACTIONS) for _ in range(40)]
    for action in [*actions, chance.choice(ENDS), feed_all, resume_wire]:
        try:
            action(talk, chance)
        except (ssl.SSLError, AssertionError, AttributeError) as error:
            # What a transport that is lost does, too, is the same.
            seen.append(type(error))
        talk.settle()
        seen.append((list(talk.events), len(talk.wire.written), talk.queued()))
        talk.events.clear()
        if chance.random() < 0.3:
            seen.append(talk.read_as_peer())
    talk.application.transport.abort()
    talk.protocol.connection_lost(None)
    talk.settle()
    return seen


@pytest.mark.hotloop_only
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
@pytest.mark.parametrize("seed", range(25))
def test_both_do_the_same(new_loop, authority, version, seed, tls_engine):
    tls = helpers_tls.server_context(authority), helpers_tls.client_context(authority)
    for context in tls:
        context.maximum_version = context.minimum_version = version
    loop = new_loop()
    seen = {name: converse(loop, name, tls, seed) for name in PROTOCOLS}
    assert seen["hotloop"] == seen["asyncio"]
    assert any(type(part) is tuple and part[0] for part in seen["asyncio"])


def engines(*protocols):
    """What encrypts."""
    found = [protocol.transport._ssl_protocol for protocol in protocols]
    return {tls.engine if isinstance(tls, _core.SSLProtocol) else type(tls).__module__ for tls in found}


@pytest.mark.hotloop_only
async def test_every_connection_has_the_engine_that_was_asked_for(loop, tls, tls_engine):
    expected = {"asyncio.sslproto" if tls_engine == "asyncio" else tls_engine}
    async with helpers_tls.both_ends(loop, tls) as (client, server):
        assert engines(client, server) == expected
    async with test_tls_upgrades.plain_pair(loop, "tcp") as (client, server):
        await test_tls_upgrades.upgrade(loop, tls, client, server)
        assert engines(client, server) == expected


@pytest.mark.hotloop_only
def test_another_openssl_in_front_of_the_interpreters(loop_name, authority, tls_engine, tmp_path):
    """The functions that `_ssl` calls are those of the other one then."""
    if tls_engine == "asyncio":
        pytest.skip("has no engine")
    name = "libcrypto.so.3"
    with open("/proc/self/maps") as maps:
        paths = {line.split()[-1] for line in maps if line.rstrip().endswith("/" + name)}
    if len(paths) != 1:
        pytest.skip("OpenSSL 3 as a library of its own")
    other = tmp_path / "other"
    # The name that it has for the dynamic linker, too.
    other.write_bytes(pathlib.Path(paths.pop()).read_bytes().replace(name.encode(), b"libcrypto.so.X"))
    certificate, trusted = tmp_path / "certificate", tmp_path / "trusted"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    authority.cert_pem.write_to_path(str(trusted))
    source = f"""
        import ctypes
        ctypes.CDLL({str(other)!r}, ctypes.RTLD_GLOBAL)
        import ssl
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain({str(certificate)!r})
        client = ssl.create_default_context(cafile={str(trusted)!r})

        async def echo(reader, writer):
            writer.write(await reader.readexactly(8))
            writer.close()

        async def main():
            serving = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=server)
            address = serving.sockets[0].getsockname()
            reader, writer = await asyncio.open_connection(*address, ssl=client, server_hostname="localhost")
            writer.write(b"question")
            print(await reader.read(), writer.get_extra_info("tls_engine"))
            writer.close()

        run(main())
        """
    result = helpers.run_script(loop_name, source, env={"HOTLOOP_TLS": tls_engine})
    assert result.stdout == "b'question' portable\n"


@pytest.mark.hotloop_only
async def test_a_record_for_which_there_was_no_memory_is_sent_later(loop, tls, tls_engine):
    if tls_engine == "asyncio":
        pytest.skip("asyncio's may lose it")
    testcapi = pytest.importorskip("_testcapi")
    async with helpers_tls.both_ends(loop, tls) as (client, server):
        protocol = client.transport._ssl_protocol
        sent = 0
        for count in range(8):
            protocol.pause_writing()
            client.transport.write(b"x" * 1000)
            sent += 1000
            testcapi.set_nomemory(count, count + 1)
            try:
                protocol.resume_writing()
            except MemoryError:
                pass
            finally:
                testcapi.remove_mem_hooks()
        client.transport.write(b"the end")
        assert await server.received(sent + 7) == b"x" * sent + b"the end"


@pytest.mark.hotloop_only
def test_an_engine_that_is_not_known_is_an_error(new_loop, tls, monkeypatch):
    monkeypatch.setenv("HOTLOOP_TLS", "quick")
    with pytest.raises(ValueError, match="HOTLOOP_TLS='quick': expected direct, portable or asyncio"):
        _tls.make_protocol(new_loop(), asyncio.Protocol(), tls[1], None)


async def test_a_program_may_have_an_ssl_object_of_its_own(loop, tls, monkeypatch):
    read, written = [], []

    class Spying(ssl.SSLObject):
        def read(self, len=1024, buffer=None):
            data = super().read(len, buffer)
            read.append(data)
            return data

        def write(self, data):
            written.append(bytes(data))
            return super().write(data)

    monkeypatch.setattr(tls[1], "sslobject_class", Spying)
    async with helpers_tls.serving(loop, tls, data_received=helpers_tls.echo) as (connect, _protocols):
        protocol = helpers_tls.Recorder()
        transport = await connect(protocol)
        transport.write(b"question")
        assert await protocol.received(8) == b"question"
        assert written == [b"question"]
        assert b"question" in read
        transport.abort()
        await protocol.lost()


async def test_an_ssl_object_may_keep_what_it_has_read(loop, tls, monkeypatch):
    class Keeping(ssl.SSLObject):
        kept = b""

        def read(self, len=1024, buffer=None):
            self.kept = self.kept or super().read(len)
            chunk, self.kept = self.kept[:3], self.kept[3:]
            return chunk

    monkeypatch.setattr(tls[1], "sslobject_class", Keeping)
    async with helpers_tls.both_ends(loop, tls) as (client, server):
        server.transport.write(b"0123456789")
        assert await client.received(10) == b"0123456789"


async def test_an_ssl_object_has_only_the_methods_that_asyncio_calls(loop, tls):
    names = ("read", "write", "do_handshake", "unwrap", "getpeercert", "cipher", "compression")

    class Context(ssl.SSLContext):
        def wrap_bio(self, *args, **options):
            made = super().wrap_bio(*args, **options)
            return types.SimpleNamespace(**{name: getattr(made, name) for name in names})

    context = Context(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with helpers_tls.both_ends(loop, (tls[0], context)) as (client, server):
        server.transport.write(b"question")
        assert await client.received(8) == b"question"
        client.transport.write(b"answer")
        assert await server.received(6) == b"answer"
        server.transport.close()
        assert await client.lost() is None


@pytest.mark.hotloop_only
@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("SSLProtocol", "_fatal_error"),
        ("SSLProtocol", "max_size"),
        ("_SSLProtocolTransport", "write"),
    ],
)
async def test_a_program_may_patch_asyncios_classes(loop, tls, monkeypatch, where, name):
    kind = getattr(sslproto, where)
    original = getattr(kind, name)
    patched = original // 2 if name == "max_size" else lambda *args: original(*args)
    monkeypatch.setattr(kind, name, patched)
    async with helpers_tls.both_ends(loop, tls) as (client, server):
        assert engines(client, server) == {"asyncio.sslproto"}
