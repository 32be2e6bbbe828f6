"""Every operation of an event loop, some rounds of each, for a tool that watches the process from outside.

Run as `python -m torture.operate ROUNDS [NAME...]` in the folder of the tests. TORTURE_CERTIFICATE and
TORTURE_AUTHORITY name the files of a certificate and of who signed it; without them TLS is left out. Each
operation gets TORTURE_LIMIT seconds, or 4; tools make programs some 30 times slower.
"""

from __future__ import annotations

import os
import ssl
import sys

import helpers
import hotloop

from . import bench, other_operations  # noqa: F401 (its operations are in OPERATIONS then)
from .operations import OPERATIONS


class NoFaults:
    """Stands for an extension without the cargo feature `faults`, whose system calls do not fail."""

    def _reset_faults(self):
        pass

    def _calls(self):
        return dict.fromkeys(("epoll_wait", "epoll_pwait2"), 0)


def contexts():
    """The TLS contexts of a server and of a client that trusts it."""
    certificate = os.environ.get("TORTURE_CERTIFICATE")
    if certificate is None:
        return None
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate)
    client = ssl.create_default_context(cafile=os.environ["TORTURE_AUTHORITY"])
    return server, client


def main(rounds, *names):
    bench.MENDED = float(os.environ.get("TORTURE_LIMIT", bench.MENDED))
    tls = contexts()
    failed = 0
    for name in names or OPERATIONS:
        if tls is None and "tls" in name:
            continue
        for _ in range(int(rounds)):
            case = bench.Case(
                NoFaults(), hotloop.new_event_loop, OPERATIONS[name], None, tls, helpers.unused_port()
            )
            for problem in case.run():
                failed += 1
                print(f"{name}: {problem}", flush=True)
        print(f"{name} done", flush=True)
    return failed != 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
