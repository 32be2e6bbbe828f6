"""Peers that others wrote: openssl's s_client and s_server, curl, and GnuTLS, which is no OpenSSL."""

import asyncio
import contextlib
import shutil
import socket
import ssl

import helpers
import helpers_tls
import pytest
from helpers import Recorder

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
needs_gnutls = pytest.mark.skipif(shutil.which("gnutls-cli") is None, reason="gnutls-bin is not installed")
versions = pytest.mark.parametrize("version", ["1_2", "1_3"])
LATEST = {"1_2": ssl.TLSVersion.TLSv1_2, "1_3": ssl.TLSVersion.TLSv1_3}
ALLOW_RENEGOTIATION = getattr(ssl, "OP_ALLOW_CLIENT_RENEGOTIATION", 1 << 8)
PATIENCE = 20


@pytest.fixture
def files(authority, tmp_path):
    """Names of files: the authority's certificate, a certificate with its key."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued = authority.issue_cert("localhost", "127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "own.pem")
    return str(tmp_path / "ca.pem"), str(tmp_path / "own.pem")


class Tool:
    """A program that runs, what it has printed so far, and what it is told."""

    def __init__(self, process):
        self.process = process
        self.output = b""

    async def prints(self, text):
        async with asyncio.timeout(PATIENCE):
            while text not in self.output:
                data = await self.process.stdout.read(1 << 16)
                assert data, self.output
                self.output += data
        self.output = self.output.partition(text)[2]

    async def say(self, line):
        self.process.stdin.write(line)
        await self.process.stdin.drain()

    async def end(self):
        self.process.stdin.close()
        async with asyncio.timeout(PATIENCE):
            self.output += await self.process.stdout.read()
            return await self.process.wait()


@contextlib.asynccontextmanager
async def running(*command):
    pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.STDOUT, **pipes)
    try:
        yield Tool(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def client_of(server_port, version, files, *options):
    """The command of a client."""
    connect = ["-connect", f"localhost:{server_port}", "-servername", "localhost", "-CAfile", files[0]]
    return ["openssl", "s_client", *connect, f"-tls{version}", "-verify_return_error", *options]


async def port_of(connect):
    """The port of a server that only `connect` knows."""
    protocol = Recorder()
    transport = await connect(protocol)
    port = transport.get_extra_info("peername")[1]
    transport.abort()
    await protocol.lost()
    return port


@needs_openssl
@versions
async def test_a_client_that_changes_its_keys(loop, authority, files, version):
    tls = helpers_tls.server_context(authority), helpers_tls.client_context(authority)
    tls[0].options |= ALLOW_RENEGOTIATION
    async with helpers_tls.serving(loop, tls, data_received=helpers_tls.echo) as (connect, _):
        port = await port_of(connect)
        async with running(*client_of(port, version, files)) as client:
            await client.prints(b"Verify return code: 0 (ok)")
            await client.say(b"hello\n")
            await client.prints(b"hello")
            # Renegotiation, or new keys of one side and of both.
            for change in [b"R\n"] if version == "1_2" else [b"k\n", b"K\n", b"K\n"]:
                await client.say(change)
                await client.prints(b"RENEGOTIATING" if version == "1_2" else b"KEYUPDATE")
                await client.say(b"and on\n")
                await client.prints(b"and on")
            await client.say(b"Q\n")
            assert await client.end() == 0


@needs_openssl
@versions
async def test_clients_that_come_again_with_their_sessions(loop, tls, files, version):
    async with helpers_tls.serving(loop, tls, data_received=helpers_tls.echo) as (connect, protocols):
        port = await port_of(connect)
        async with running(*client_of(port, version, files, "-reconnect")) as client:
            await client.say(b"Q\n")
            assert await client.end() == 0
            if version == "1_2":
                assert client.output.count(b"Reused, TLSv1.2") == 5
        async with asyncio.timeout(PATIENCE):
            while len(protocols) < 7 or any("connection_lost" not in each.calls for each in protocols):
                await asyncio.sleep(0.001)


@needs_openssl
@versions
@pytest.mark.parametrize("certificate", [False, True], ids=["without", "with"])
async def test_a_server_that_asks_for_a_certificate(loop, tls, files, version, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(files[0])
    context.maximum_version = LATEST[version]
    if certificate:
        context.load_cert_chain(files[1])
    accept = ["-accept", "127.0.0.1:0", "-cert", files[1], "-CAfile", files[0], "-Verify", "1", "-rev"]
    async with running("openssl", "s_server", *accept, "-verify_return_error") as server:
        await server.prints(b"ACCEPT 127.0.0.1:")
        while b"\n" not in server.output:
            await server.prints(b"")
            server.output += await server.process.stdout.read(1)
        port = int(server.output.split()[0])
        protocol = Recorder()
        options = {"ssl": context, "server_hostname": "localhost"}
        if certificate:
            transport, _ = await loop.create_connection(lambda: protocol, "127.0.0.1", port, **options)
            transport.write(b"drawer\n")
            assert await protocol.received(7) == b"reward\n"
            transport.close()
            await protocol.lost()
        elif version == "1_2":
            with pytest.raises(ssl.SSLError, match=r"(?i)handshake failure|certificate required"):
                await loop.create_connection(lambda: protocol, "127.0.0.1", port, **options)
        else:
            # The client's handshake is over before the server has looked at it.
            transport, _ = await loop.create_connection(lambda: protocol, "127.0.0.1", port, **options)
            transport.write(b"drawer\n")
            error = await protocol.lost()
            assert error is None or isinstance(error, OSError)
            assert protocol.data == b""


# How GnuTLS is told which version it may use.
PRIORITIES = {"1_2": "NORMAL:-VERS-ALL:+VERS-TLS1.2", "1_3": "NORMAL:-VERS-ALL:+VERS-TLS1.3"}


@needs_gnutls
@versions
@pytest.mark.parametrize("resumes", [False, True], ids=["once", "resumed"])
async def test_a_client_of_gnutls(loop, tls, files, version, resumes):
    async with helpers_tls.serving(loop, tls, data_received=helpers_tls.echo) as (connect, protocols):
        port = await port_of(connect)
        command = ["gnutls-cli", "--x509cafile", files[0], "--priority", PRIORITIES[version]]
        command += ["--port", str(port), *(["--resume"] if resumes else []), "localhost"]
        async with running(*command) as client:
            await client.prints(b"Handshake was completed")
            if resumes:
                await client.prints(b"Resume Handshake was completed")
                await client.prints(b"This is a resumed session")
            await client.say(b"hello\n")
            await client.prints(b"hello")
            await client.say(b"x" * 3000 + b"\n")
            await client.prints(b"x" * 3000)
            await client.end()
        async with asyncio.timeout(PATIENCE):
            while any("connection_lost" not in protocol.calls for protocol in protocols):
                await asyncio.sleep(0.001)
        assert protocols[-1].exception is None


@needs_gnutls
@versions
async def test_a_server_of_gnutls(loop, tls, files, version):
    port = helpers.unused_port()
    command = ["gnutls-serv", "--echo", "--x509certfile", files[1], "--x509keyfile", files[1]]
    command += ["--priority", PRIORITIES[version], "--disable-client-cert", "--port", str(port)]

    def listens():
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    async with running(*command):
        await helpers.until(listens, PATIENCE)
        protocol = Recorder()
        options = {"ssl": tls[1], "server_hostname": "localhost"}
        transport, _ = await loop.create_connection(lambda: protocol, "127.0.0.1", port, **options)
        assert transport.get_extra_info("ssl_object").version() == f"TLSv{version.replace('_', '.')}"
        for data in (b"hello\n", b"y" * 10_000 + b"\n"):
            before = len(protocol.data)
            transport.write(data)
            assert (await protocol.received(before + len(data)))[before:] == data
        transport.close()
        await protocol.lost()


@needs_curl
async def test_curl(loop, tls, files):
    body = bytes(range(256)) * 4096

    def answer(protocol, data):
        if data.endswith(b"\r\n\r\n"):
            protocol.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
            protocol.transport.write(body)

    async with helpers_tls.serving(loop, tls, data_received=answer) as (connect, _):
        url = f"https://localhost:{await port_of(connect)}/"
        resolve = ["--resolve", f"localhost:{url.rpartition(':')[2].strip('/')}:127.0.0.1"]
        command = ["curl", "--silent", "--show-error", "--http1.1", "--cacert", files[0], *resolve, url, url]
        async with running(*command) as curl:
            assert await curl.end() == 0, curl.output
            assert curl.output == body * 2
