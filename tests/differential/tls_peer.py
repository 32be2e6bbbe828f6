"""The peer of `tls.py`: a socket and the ssl module alone; and what both ends share."""

import functools
import random
import socket
import ssl
import zlib

import helpers
import helpers_tls
import trustme

from . import openssl, running

FLIGHTS = 6  # how often the peer answers while hands are shaken; it needs fewer
PATIENCE = 5  # tries to send what the kernel does not take
WINDOW = 32 << 10  # when TCP delivers what is beyond its window is up to the kernel
PATTERN = random.Random(1).randbytes(65521)
SENT = PATTERN * 40
# With OpenSSL from 3.2 on, data that cross a renegotiation make an SSLEOFError of the ssl object's methods;
# hotloop's direct engine asks OpenSSL again, and goes on.
RENEGOTIATES_ALONE = ssl.OPENSSL_VERSION_INFO >= (3, 2)


@functools.cache
def contexts(version):
    """A server's and a client's, for that version alone."""
    authority = trustme.CA()
    both = helpers_tls.server_context(authority), helpers_tls.client_context(authority)
    for context in both:
        context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
        context.options |= openssl.ALLOW_CLIENT_RENEGOTIATION
    return both


class Stream:
    """Bytes of one direction: how many there were, and their checksum."""

    def __init__(self):
        self.count = self.checksum = 0

    def take(self, data):
        self.count += len(data)
        self.checksum = zlib.crc32(data, self.checksum)

    def state(self):
        return self.count, f"{self.checksum:08x}"


class Sent:
    """What is to be sent next."""

    def __init__(self):
        self.position = 0

    def next(self, size):
        start = self.position % len(PATTERN)
        self.position += size
        return SENT[start : start + size]


class Peer(helpers_tls.Peer):
    """The other end: a socket that does not block, and an SSLObject."""

    def __init__(self, machine, sock, program):
        server, client = contexts(program.version)
        if program.server_side:
            super().__init__(sock, client, server_hostname="localhost")
        else:
            super().__init__(sock, server, server_side=True)
        self.machine, self.version = machine, program.version
        self.window = WINDOW if program.kind == "tcp" else None
        self.unsent = bytearray()  # records
        self.received, self.sent = Stream(), Sent()
        self.has_shaken_hands = self.has_renegotiated = False
        self.seen = set()

    def note(self, *what):
        self.machine.trace.note("peer", *what)

    def sees(self, *what):
        """What may be seen again with each attempt."""
        if what not in self.seen:
            self.seen.add(what)
            self.note(*what)

    def perform(self, do):
        if self.sock.fileno() < 0:
            return
        try:
            getattr(self, do.what)(*do.arguments)
        except OSError as exc:  # an SSLError is one
            self.note(do.what, running.told(exc))

    def read(self):
        """Read all that has come by now."""
        while self.sock.fileno() >= 0:
            try:
                data = self.sock.recv(1 << 20)
            except BlockingIOError:
                break
            except OSError as exc:
                self.sees("receives", running.told(exc))
                break
            if not data:
                self.sees("end of file")
                break
            self.incoming.write(data)
        self.decrypt()
        self.send()

    def decrypt(self):
        try:
            if not self.has_shaken_hands:
                self.object.do_handshake()
                self.has_shaken_hands = True
            while data := self.object.read(1 << 16):
                self.received.take(data)
            self.sees("close_notify")
        except ssl.SSLWantReadError:
            pass
        except OSError as exc:
            self.sees("reads", running.told(exc))

    def send(self, most=None, but=0):
        self.unsent += self.outgoing.read()
        left = len(self.unsent) - but if most is None else min(most, len(self.unsent))
        tries = PATIENCE
        while left > 0 and tries and self.sock.fileno() >= 0:
            try:
                count = self.sock.send(self.unsent[: self.may_send(left)])
            except BlockingIOError:
                self.machine.rest()
                tries -= 1
            except OSError as exc:
                self.sees("sends", running.told(exc))
                self.sock.close()
            else:
                del self.unsent[:count]
                left -= count
                tries = PATIENCE if count else tries - 1
                if left > 0:
                    self.machine.rest()

    def may_send(self, size):
        """How much of that, with what our end has not received, is within a window."""
        if self.window is None:
            return size
        return max(min(size, self.window - self.machine.not_received()), 0)

    def send_part(self, size):
        self.send(most=size)

    def send_but(self, size):
        self.send(but=size)

    def wait(self):
        pass

    def write(self, size, send):
        try:
            self.object.write(self.sent.next(size))
        finally:
            if send:
                self.send()

    def write_nothing(self):
        self.object.write(b"")
        self.send()

    def key_update(self, ask, send):
        if self.version == "TLSv1_3" and self.has_shaken_hands:
            self.note("updates", openssl.key_update(self.object, ask))
        if send:
            self.send()

    def renegotiate(self, send):
        if self.version == "TLSv1_2" and self.has_shaken_hands:
            if RENEGOTIATES_ALONE and not self.is_alone():
                return
            self.has_renegotiated = True
            openssl.renegotiate(self.object)
            self.decrypt()
            if RENEGOTIATES_ALONE:
                self.shake_hands()
        if send:
            self.send()

    def is_alone(self):
        """Whether no data are under way."""
        self.send()
        self.machine.rest()
        self.read()
        self.machine.rest()
        return not self.unsent and self.machine.ours.is_quiet()

    def shake_hands(self):
        """Answer what comes."""
        for _ in range(FLIGHTS):
            self.read()
            self.machine.rest()

    def notify(self, size):
        """Send close_notify, behind so much data."""
        try:
            if size:
                self.object.write(self.sent.next(size))
            self.object.unwrap()
        finally:
            self.send()

    def write_eof(self, send):
        if send:
            self.send()
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self, send=False):
        if send:
            self.send()
        helpers.reset(self.sock)

    def close(self, send=False):
        if send:
            self.send()
        self.sock.close()

    def garbage(self, data, apart=True):
        if apart:
            self.send()
        self.unsent += self.outgoing.read() + data
        self.send()

    def change_cipher_spec(self, send):
        self.unsent += self.outgoing.read() + b"\x14\x03\x03\x00\x01\x01"
        if send:
            self.send()
