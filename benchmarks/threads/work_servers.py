"""HTTP servers in threads, each on a loop of its own.

python -m benchmarks.threads.work_servers LOOP THREADS ADDRESS [CERTIFICATE]

All listen at ADDRESS, HOST:PORT, with SO_REUSEPORT: the kernel gives each a share of the connections. With a
CERTIFICATE (and its key, in one file) they use TLS. Instead of a loop, LOOP can be "granian", a server with
threads of its own. Prints "ready" and its process's number when it accepts connections, and serves until it
is killed.
"""

import asyncio
import os
import signal
import socket
import ssl
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import loops
from benchmarks.servers import BACKLOG, BODY, BareHttp, host_and_port

GRANIAN = "granian"


async def serve(listening: socket.socket, certificate: str | None, started: threading.Barrier) -> None:
    context = None
    if certificate:
        # One for each thread: what threads share, they contend for.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(BareHttp, sock=listening, ssl=context, backlog=BACKLOG)
    started.wait()
    await asyncio.Event().wait()
    del server


def serve_in_threads(
    make: Callable[[], asyncio.AbstractEventLoop], threads: int, address: str, certificate: str | None = None
) -> None:
    started = threading.Barrier(threads + 1)

    def run() -> None:
        try:
            listening = socket.create_server(host_and_port(address), reuse_port=True, backlog=BACKLOG)
            listening.setblocking(False)
            with asyncio.Runner(loop_factory=make) as runner:
                runner.run(serve(listening, certificate, started))
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    for _ in range(threads):
        threading.Thread(target=run, daemon=True).start()
    started.wait()
    print("ready", os.getpid(), flush=True)
    signal.pause()


async def answer(scope: object, protocol: Any) -> None:
    """An application for granian, by its own interface, which is the one that costs it least."""
    protocol.response_bytes(200, [("content-type", "text/plain")], BODY)


def serve_by_granian(threads: int, address: str, certificate: str | None = None) -> None:
    from granian import Granian
    from granian.constants import Interfaces, Loops

    host, port = host_and_port(address)
    path = Path(certificate) if certificate else None

    def announce() -> None:
        while True:
            try:
                # create_connection() imports an extension, which enables the GIL meanwhile: granian refuses
                # to start then.
                with socket.socket() as connection:
                    connection.connect((host, port))
            except OSError:
                time.sleep(0.01)
            else:
                print("ready", os.getpid(), flush=True)
                return

    threading.Thread(target=announce, daemon=True).start()
    Granian(
        f"{__spec__.name}:{answer.__name__}",
        host,
        port,
        interface=Interfaces.RSGI,
        loop=Loops.asyncio,
        workers=threads,
        backlog=BACKLOG,
        log_enabled=False,
        ssl_cert=path,
        ssl_key=path,
    ).serve()


def main() -> None:
    loop, threads, *address = sys.argv[1:]
    if loop == GRANIAN:
        serve_by_granian(int(threads), *address)
    else:
        serve_in_threads(loops.factory(loop), int(threads), *address)


if __name__ == "__main__":
    main()
