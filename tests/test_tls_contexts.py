"""TLS contexts: whatever they ask for happens, and what they refuse reaches the caller."""

import asyncio
import ssl
import sys

import helpers
import pytest
from helpers import Recorder
from helpers_tls import both_ends, client_context, echo, server_context, serving

TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


def only(context, version):
    context.minimum_version = context.maximum_version = version
    return context


def ssl_object(protocol):
    return protocol.transport.get_extra_info("ssl_object")


async def refused(connecting, reason):
    """Wait for a handshake that the server ends: asyncio hangs up without the alert that would tell why."""
    with pytest.raises((ssl.SSLError, ConnectionResetError)) as caught:
        await connecting
    assert reason in getattr(caught.value, "reason", reason)


async def say(sender, receiver, message=b"hello"):
    sender.transport.write(message)
    assert await receiver.received(len(receiver.data) + len(message))


# Who is trusted


async def test_ssl_true_means_the_default_context(loop, authority, tls, monkeypatch, tmp_path):
    async with serving(loop, tls) as (connect, _protocols):
        with pytest.raises(ssl.SSLCertVerificationError):
            await connect(Recorder(), ssl=True)
        trusted = tmp_path / "trusted.pem"
        authority.cert_pem.write_to_path(str(trusted))
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        protocol = Recorder()
        transport = await connect(protocol, ssl=True)
        context = transport.get_extra_info("sslcontext")
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            await connect(Recorder(), ssl=True, server_hostname="example.org")
        transport.close()
        await protocol.lost()


async def test_the_default_context_without_a_name_checks_none(loop, authority, tls, monkeypatch, tmp_path):
    trusted = tmp_path / "trusted.pem"
    authority.cert_pem.write_to_path(str(trusted))
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    async with both_ends(loop, tls, client_options={"ssl": True, "server_hostname": ""}) as (client, _):
        context = client.transport.get_extra_info("sslcontext")
        assert not context.check_hostname
        assert context.verify_mode is ssl.CERT_REQUIRED


@pytest.mark.parametrize("debug", [False, True])
async def test_a_client_that_trusts_nobody_is_told_and_so_is_the_server_in_debug_mode(
    loop, tls, reports, debug
):
    loop.set_debug(debug)
    async with serving(loop, tls) as (connect, protocols):
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            await connect(Recorder(), ssl=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        assert caught.value.reason == "CERTIFICATE_VERIFY_FAILED"
        assert caught.value.verify_code in (18, 19, 20)
        await helpers.until(lambda: reports or not debug)
    if debug:
        report = reports.take()
        assert report["message"] == "Error on transport creation for incoming connection"
        assert isinstance(report["exception"], (ssl.SSLError, ConnectionResetError))
        assert report["protocol"] is protocols[0]
        assert report["transport"].is_closing()
        assert report.keys() == {"message", "exception", "transport", "protocol"}
    assert protocols[0].calls == []


async def test_a_failed_client_gets_no_callback(loop, tls):
    protocol = Recorder()
    async with serving(loop, tls) as (connect, _protocols):
        with pytest.raises(ssl.SSLCertVerificationError):
            await connect(protocol, ssl=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        await helpers.iterations(5)
    assert protocol.calls == []


async def test_a_context_that_verifies_nothing(loop, tls):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    async with both_ends(loop, tls, client_options={"ssl": context}) as (client, server):
        assert client.transport.get_extra_info("peercert") == {}
        await say(client, server)


# Names


async def test_a_name_that_is_not_checked(loop, tls, authority):
    context = client_context(authority)
    context.check_hostname = False
    async with serving(loop, tls) as (connect, _protocols):
        transport = await connect(Recorder(), ssl=context, server_hostname="example.org")
        assert transport.get_extra_info("ssl_object").server_hostname == "example.org"
        transport.abort()


async def test_without_a_name_none_is_sent_or_checked(loop, authority):
    names = []
    served, context = server_context(authority, "example.org"), client_context(authority)
    served.sni_callback = lambda sslobj, name, context: names.append(name)
    context.check_hostname = False
    options = {"server_hostname": ""}
    async with both_ends(loop, (served, context), client_options=options) as (client, server):
        await say(client, server)
        assert ssl_object(client).server_hostname is None
    assert names == [None]


async def test_the_name_is_the_host_unless_it_is_given(loop, tls):
    async with serving(loop, tls) as (connect, _protocols):
        transport = await connect(Recorder(), server_hostname=None)
        assert transport.get_extra_info("ssl_object").server_hostname == "127.0.0.1"
        transport.abort()


async def test_a_socket_needs_a_name(loop, tls):
    ours, peer = helpers.tcp_pair()
    said = "You must set server_hostname when using ssl without a host"
    with ours, peer, pytest.raises(ValueError, match=said):
        await loop.create_connection(Recorder, sock=ours, ssl=tls[1])


async def test_a_unix_socket_needs_a_name(loop, tls, tmp_path):
    with pytest.raises(ValueError, match="you have to pass server_hostname when using ssl"):
        await loop.create_unix_connection(Recorder, str(tmp_path / "socket"), ssl=tls[1])


@pytest.mark.parametrize("name", ["switch", "stay"])
async def test_a_server_with_two_names(loop, authority, name):
    outer, inner = server_context(authority, "stay"), server_context(authority, "switch")
    seen = []

    def choose(sslobj, name, context):
        seen.append((sslobj, name, context))
        if name == "switch":
            sslobj.context = inner

    outer.sni_callback = choose
    tls = outer, client_context(authority)
    async with both_ends(loop, tls, client_options={"server_hostname": name}) as (client, server):
        names = client.transport.get_extra_info("peercert")["subjectAltName"]
        assert names == (("DNS", name),)
        assert seen == [(ssl_object(server), name, outer)]
        assert ssl_object(server).context is (inner if name == "switch" else outer)
        assert server.transport.get_extra_info("sslcontext") is outer
        await say(client, server)


async def test_a_name_that_the_server_refuses(loop, authority, tls):
    refusing = server_context(authority)
    refusing.sni_callback = lambda sslobj, name, context: ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
    async with serving(loop, (refusing, tls[1])) as (connect, protocols):
        await refused(connect(Recorder()), "UNRECOGNIZED_NAME")
        assert protocols[0].calls == []


async def test_an_sni_callback_that_fails(loop, authority, tls, monkeypatch):
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", lambda hook: unraisable.append(hook.exc_type))
    failing = server_context(authority)
    failing.sni_callback = lambda sslobj, name, context: 1 / 0
    async with serving(loop, (failing, tls[1])) as (connect, _protocols):
        await refused(connect(Recorder()), "HANDSHAKE_FAILURE")
    assert unraisable == [ZeroDivisionError]


# The certificates of clients


def asking(authority, mode):
    context = server_context(authority)
    authority.configure_trust(context)
    context.verify_mode = mode
    return context


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
@pytest.mark.parametrize("mode", [ssl.CERT_REQUIRED, ssl.CERT_OPTIONAL])
async def test_the_certificate_of_a_client(loop, authority, version, mode):
    tls = asking(authority, mode), only(client_context(authority, "somebody"), version)
    async with both_ends(loop, tls) as (client, server):
        names = server.transport.get_extra_info("peercert")["subjectAltName"]
        assert names == (("DNS", "somebody"),)
        await say(server, client)


async def test_a_certificate_that_need_not_be(loop, authority):
    tls = asking(authority, ssl.CERT_OPTIONAL), client_context(authority)
    async with both_ends(loop, tls) as (client, server):
        assert server.transport.get_extra_info("peercert") is None
        await say(server, client)


async def test_a_missing_certificate_in_tls_1_2_fails_the_clients_handshake(loop, authority):
    tls = asking(authority, ssl.CERT_REQUIRED), only(client_context(authority), TLS_1_2)
    async with serving(loop, tls) as (connect, protocols):
        await refused(connect(Recorder()), "HANDSHAKE_FAILURE")
        assert protocols[0].calls == []


async def test_a_missing_certificate_in_tls_1_3_ends_the_clients_connection(loop, authority, reports):
    """The client has done with its handshake before the server has seen that there is no certificate."""
    loop.set_debug(True)
    tls = asking(authority, ssl.CERT_REQUIRED), only(client_context(authority), TLS_1_3)
    async with serving(loop, tls) as (connect, protocols):
        client = Recorder()
        await connect(client)
        error = await client.lost()
        assert error is None or error.reason == "TLSV13_ALERT_CERTIFICATE_REQUIRED"
        assert client.data == b""
        assert protocols[0].calls == []
    report = reports.take()
    assert report["message"] == "Error on transport creation for incoming connection"
    assert report["exception"].reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE"


async def test_a_certificate_that_is_asked_for_later(loop, authority):
    context = only(client_context(authority, "somebody"), TLS_1_3)
    context.post_handshake_auth = True
    tls = asking(authority, ssl.CERT_REQUIRED), context
    tls[0].post_handshake_auth = True
    async with both_ends(loop, tls) as (client, server):
        assert ssl_object(server).getpeercert() is None
        ssl_object(server).verify_client_post_handshake()
        await say(server, client, b"who is there?")
        await say(client, server, b"see for yourself")
        assert ssl_object(server).getpeercert()["subjectAltName"] == (("DNS", "somebody"),)


# What is negotiated


@pytest.mark.parametrize(
    ("offered", "known", "agreed"),
    [
        (["h2", "http/1.1"], ["http/1.1", "h2"], "http/1.1"),
        (["h2"], ["h2"], "h2"),
        (["h2"], ["spdy/3"], None),
        (["h2"], [], None),
        ([], ["h2"], None),
    ],
)
async def test_the_protocol_agreed_on(loop, authority, offered, known, agreed):
    """The server's order counts."""
    tls = server_context(authority), client_context(authority)
    if known:
        tls[0].set_alpn_protocols(known)
    if offered:
        tls[1].set_alpn_protocols(offered)
    chosen = []

    def made(protocol, transport):
        chosen.append(ssl_object(protocol).selected_alpn_protocol())

    pair = Recorder(connection_made=made), Recorder(connection_made=made)
    async with both_ends(loop, tls, client=pair[0], server=pair[1]):
        assert chosen == [agreed, agreed]


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(("version", "name"), [(TLS_1_2, "TLSv1.2"), (TLS_1_3, "TLSv1.3")])
async def test_the_version_of_either_side(loop, authority, kind, side, version, name):
    tls = server_context(authority), client_context(authority)
    only(tls[side], version)
    async with both_ends(loop, tls, kind) as (client, server):
        assert ssl_object(client).version() == ssl_object(server).version() == name
        assert client.transport.get_extra_info("cipher")[1] == name
        await say(client, server)


async def test_no_version_in_common(loop, authority):
    tls = only(server_context(authority), TLS_1_3), only(client_context(authority), TLS_1_2)
    async with serving(loop, tls) as (connect, protocols):
        await refused(connect(Recorder()), "TLSV1_ALERT_PROTOCOL_VERSION")
        assert protocols[0].calls == []


async def test_the_ciphers_of_a_context(loop, authority):
    tls = server_context(authority), only(client_context(authority), TLS_1_2)
    names = [cipher["name"] for cipher in tls[1].get_ciphers() if "ECDHE-ECDSA" in cipher["name"]][-1:]
    tls[1].set_ciphers(names[0])
    async with both_ends(loop, tls) as (client, server):
        assert client.transport.get_extra_info("cipher")[0] == names[0]
        assert server.transport.get_extra_info("cipher") == client.transport.get_extra_info("cipher")
    tls[0].set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
    tls[1].set_ciphers("ECDHE-ECDSA-AES256-GCM-SHA384")
    async with serving(loop, tls) as (connect, _protocols):
        await refused(connect(Recorder()), "HANDSHAKE_FAILURE")


@pytest.mark.parametrize("count", [0, 2])
async def test_the_number_of_tickets(loop, authority, count):
    tls = only(server_context(authority), TLS_1_3), client_context(authority)
    tls[0].num_tickets = count
    async with both_ends(loop, tls) as (client, server):
        await say(server, client)
        assert ssl_object(client).session.has_ticket is (count > 0)


async def test_a_session_that_a_context_resumes(loop, authority):
    """There is no argument for it; a context's wrap_bio can see to it, for it makes every SSLObject."""

    class Resuming(ssl.SSLContext):
        session = None

        def wrap_bio(self, *args, **kwargs):
            made = super().wrap_bio(*args, **kwargs)
            if self.session is not None:
                made.session = self.session
            return made

    context = Resuming(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    reused = []
    async with serving(loop, (server_context(authority), context), data_received=echo) as (connect, _):
        for _ in range(2):
            client = Recorder()
            await connect(client)
            client.transport.write(b"hello")
            await client.received(5)
            reused.append(ssl_object(client).session_reused)
            context.session = ssl_object(client).session
            client.transport.close()
            assert await client.lost() is None
    assert reused == [False, True]


@pytest.mark.asyncio_from(3, 13)
async def test_a_key_that_both_know_in_advance(loop):
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    for context in (server, client):
        only(context, TLS_1_2).set_ciphers("PSK")
    client.set_psk_client_callback(lambda hint: ("somebody", b"secret"))
    asked = []
    server.set_psk_server_callback(lambda identity: asked.append(identity) or b"secret")
    async with both_ends(loop, (server, client)) as protocols:
        assert "PSK" in ssl_object(protocols[0]).cipher()[0]
        await say(*protocols)
    assert asked == ["somebody"]


# The context itself


async def test_the_keys_are_logged_where_the_context_says(loop, authority, tmp_path):
    tls = server_context(authority), client_context(authority)
    for context, name in zip(tls, ("server", "client"), strict=True):
        context.keylog_filename = str(tmp_path / name)
    async with both_ends(loop, tls) as (client, server):
        await say(client, server)
    keys = [
        [line for line in (tmp_path / name).read_text().splitlines() if line.startswith("CLIENT_")]
        for name in ("server", "client")
    ]
    assert keys[0] == keys[1] != []


@pytest.mark.parametrize("side", [0, 1])
async def test_the_class_of_a_contexts_objects(loop, authority, kind, side):
    """SSLSockets are for blocking programs: their class is not used."""

    class Object(ssl.SSLObject):
        pass

    class Socket(ssl.SSLSocket):
        def __init__(self, *args, **kwargs):
            raise AssertionError("never made")

    tls = server_context(authority), client_context(authority)
    tls[side].sslobject_class = Object
    tls[side].sslsocket_class = Socket
    async with both_ends(loop, tls, kind) as protocols:
        assert [type(ssl_object(protocol)) for protocol in reversed(protocols)] == [
            Object if number == side else ssl.SSLObject for number in (0, 1)
        ]
        await say(*protocols)


async def test_a_contexts_wrap_bio_is_what_is_called(loop, authority):
    calls = []

    class Context(ssl.SSLContext):
        def wrap_bio(self, incoming, outgoing, **options):
            calls.append((type(incoming), type(outgoing), options))
            return super().wrap_bio(incoming, outgoing, **options)

    context = Context(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    async with both_ends(loop, (server_context(authority), context)) as protocols:
        await say(*protocols)
    options = {"server_side": False, "server_hostname": "localhost"}
    assert calls == [(ssl.MemoryBIO, ssl.MemoryBIO, options)]


async def test_a_new_certificate_for_a_running_server(loop, authority):
    served = server_context(authority, "localhost", "old")
    seen = []
    async with serving(loop, (served, client_context(authority))) as (connect, _protocols):
        for _ in range(2):
            transport = await connect(Recorder())
            seen.append(transport.get_extra_info("peercert")["subjectAltName"][1])
            transport.abort()
            authority.issue_cert("localhost", "new").configure_cert(served)
    assert seen == [("DNS", "old"), ("DNS", "new")]


# What is no context


@pytest.mark.parametrize("bad", [1, "yes", object()])
async def test_what_is_no_context_is_found_out(loop, bad):
    ours, peer = helpers.tcp_pair()
    with ours, peer, pytest.raises(AttributeError, match="wrap_bio"):
        await loop.create_connection(Recorder, sock=ours, ssl=bad, server_hostname="localhost")


async def test_a_server_needs_a_context(loop, tmp_path):
    for bad in (True, False):
        with pytest.raises(TypeError, match="ssl argument must be an SSLContext"):
            await loop.create_server(Recorder, "127.0.0.1", 0, ssl=bad)
        with pytest.raises(TypeError, match="ssl argument must be an SSLContext or None"):
            await loop.create_unix_server(Recorder, str(tmp_path / "socket"), ssl=bad)
    ours, peer = helpers.tcp_pair()
    with ours, peer, pytest.raises(ValueError, match="Server side SSL needs a valid SSLContext"):
        await loop.connect_accepted_socket(Recorder, ours, ssl=True)


@pytest.mark.parametrize("option", ["ssl_handshake_timeout", "ssl_shutdown_timeout", "server_hostname"])
async def test_options_of_tls_without_tls(loop, tmp_path, option):
    path, option = str(tmp_path / "socket"), {option: "name" if option == "server_hostname" else 1.0}
    (name,) = option
    ours, peer = helpers.tcp_pair()
    calls = [
        lambda: loop.create_connection(Recorder, "127.0.0.1", 80, **option),
        lambda: loop.create_unix_connection(Recorder, path, **option),
    ]
    if name != "server_hostname":
        calls += [
            lambda: loop.create_server(Recorder, "127.0.0.1", 0, **option),
            lambda: loop.create_unix_server(Recorder, path, **option),
            lambda: loop.connect_accepted_socket(Recorder, ours, **option),
        ]
    with ours, peer:
        for call in calls:
            with pytest.raises(ValueError, match=f"{name} is only meaningful with ssl"):
                await call()


async def test_the_streams_take_the_options_too(loop, tls):
    server = await asyncio.start_server(lambda *ends: None, "127.0.0.1", 0, ssl=tls[0])
    async with helpers.running(server) as address:
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection(*address, ssl=tls[1], server_hostname="example.org")
