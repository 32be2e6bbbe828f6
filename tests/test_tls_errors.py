"""What OpenSSL finds wrong in the midst of a connection: the same error, whoever calls it."""

import ssl

import helpers_tls
import pytest
from test_tls_protocol import PROTOCOLS, Conversation

pytestmark = pytest.mark.hotloop_only


def flipped(record, at):
    return record[:at] + bytes([record[at] ^ 1]) + record[at + 1 :]


# What becomes of a record that the peer has sent.
DAMAGES = {
    "its content": lambda record: flipped(record, 20),
    "its tag": lambda record: flipped(record, len(record) - 1),
    "its type": lambda record: b"\x63" + record[1:],
    "its version": lambda record: flipped(record, 1),
    "its length": lambda record: record[:3] + b"\xff\xff" + record[5:],
    "too short": lambda record: record[:3] + b"\x00\x02xx",
    "empty": lambda record: record[:3] + b"\x00\x00",
    "a request of HTTP in its place": lambda record: b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an alert in plaintext": lambda record: b"\x15\x03\x03\x00\x02\x02\x28",
    "a handshake message in plaintext": lambda record: b"\x16\x03\x03\x00\x04\x00\x00\x00\x00",
    "twice": lambda record: record + record,
    "behind another one": lambda record: record + flipped(record, 20),
}


def converse(loop, name, tls, damage, buffered):
    talk = Conversation(loop, PROTOCOLS[name], tls, buffered=buffered)
    talk.peer.write(b"x" * 100)
    talk.feed(damage(talk.from_peer.read()))
    talk.settle()
    talk.application.transport.write(b"after that")
    talk.settle()
    talk.protocol.connection_lost(None)
    talk.settle()
    return list(talk.events)


@pytest.mark.parametrize("buffered", [False, True], ids=["protocol", "buffered"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_records(new_loop, authority, version, damage, buffered, tls_engine):
    tls = helpers_tls.server_context(authority), helpers_tls.client_context(authority)
    for context in tls:
        context.maximum_version = context.minimum_version = version
    loop = new_loop()
    seen = {name: converse(loop, name, tls, DAMAGES[damage], buffered) for name in PROTOCOLS}
    assert seen["hotloop"] == seen["asyncio"]
    assert any(isinstance(event, tuple) and event[0] == "force_close" for event in seen["asyncio"])
