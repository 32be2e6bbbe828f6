"""The kinds of rows over TLS, and what their servers and clients need."""

import atexit
import functools
import re
import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from benchmarks import generator
from benchmarks.children import Failed, python, run
from benchmarks.generator import Outcome
from benchmarks.row import LIMIT, PATIENCE, ClientRow, ServerRow, checked_wrk

GROUP = "tls"
LIBRARY = "libssl.so.3"
"""What is used where the interpreter has OpenSSL within itself."""

_making = threading.Lock()


def once(make: Callable[[], str]) -> Callable[[], str]:
    """What is made on the first call, of whatever thread."""
    cached = functools.cache(make)

    def made() -> str:
        with _making:
            return cached()

    return made


@once
def certificate() -> str:
    """The path of a file with a new certificate and its key. Raises Failed without openssl."""
    directory = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    path = f"{directory}/certificate.pem"
    subject = ["-subj", "/CN=localhost", "-days", "2", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    # Clients trust it and it is the server's own, which strict ones allow if it is not an authority's.
    end = ["-addext", "basicConstraints=critical,CA:FALSE"]
    try:
        run(
            ["openssl", "req", "-x509", *subject, *key, *end, "-out", path, "-keyout", path], timeout=PATIENCE
        )
    except FileNotFoundError:
        raise Failed("needs openssl to make a certificate") from None
    return path


@once
def library() -> str:
    """The path of the OpenSSL that the interpreter uses, if it is a library of its own."""
    import ssl

    assert ssl.OPENSSL_VERSION
    maps = Path("/proc/self/maps")
    found = re.search(r"/\S*/libssl\.so\S*", maps.read_text()) if maps.exists() else None
    return found[0] if found else LIBRARY


def limit(scheme: str, address: str) -> list[str]:
    """The command of a server on OpenSSL alone."""
    return [generator.build(LIMIT), scheme + address, certificate(), library()]


@dataclass(frozen=True)
class TlsEchoRow(ServerRow):
    scheme: ClassVar[str] = "tls://"
    group: ClassVar[str] = GROUP

    def compares(self, loop: str) -> bool:
        return True

    @property
    def is_limit_counted(self) -> bool:
        return self.has_limit

    def _command(self, loop: str, address: str) -> list[str]:
        if loop == LIMIT:
            return limit(self.scheme, address)
        return python("servers", loop, self.server, address, certificate())

    def _url(self, address: str) -> str:
        return self.scheme + address

    def _trust(self) -> str:
        return certificate()

    def _drive_for(self, address: str, seconds: float) -> Outcome:
        return generator.for_seconds(self._url(address), self.load, seconds, self._trust())

    def _drive_until(self, address: str, requests: int, timeout: float) -> Outcome:
        return generator.for_requests(self._url(address), self.load, requests, timeout, self._trust())


@dataclass(frozen=True)
class HttpsRow(TlsEchoRow):
    scheme: ClassVar[str] = "https://"

    def _drive_for(self, address: str, seconds: float) -> Outcome:
        if not generator.has_wrk():
            return super()._drive_for(address, seconds)
        return checked_wrk(self.scheme + address + "/", self.load, seconds)


@dataclass(frozen=True)
class TlsClientRow(ClientRow):
    """As HttpClientRow, over TLS."""

    scheme: ClassVar[str] = "https://"
    group: ClassVar[str] = GROUP

    def compares(self, loop: str) -> bool:
        return True

    def _command(self, loop: str, times: int, address: str) -> list[str]:
        return [*super()._command(loop, times, address), certificate()]

    def _server(self, address: str) -> list[str]:
        return limit(self.scheme, address)
