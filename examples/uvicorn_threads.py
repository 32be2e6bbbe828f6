"""Serve an ASGI application through uvicorn, with a thread and an event loop on each core of one process.

On a Python without the GIL the threads run at the same time. The application is shared: what it keeps must be
for several threads.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
import threading

import hotloop
import uvicorn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("application", help="such as app:app, of a module in the current directory")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default: one a processor")
    options = parser.parse_args()

    sys.path.insert(0, "")
    # The application is imported once, here. uvicorn leaves signals alone in other threads.
    config = uvicorn.Config(options.application, ws="none", lifespan="off", log_level="warning")
    config.load()

    def listen(port: int) -> socket.socket:
        return socket.create_server((options.host, port), backlog=2048, reuse_port=True)

    first = listen(options.port)
    sockets = [first, *(listen(first.getsockname()[1]) for _ in range(options.threads - 1))]
    servers = [uvicorn.Server(config) for _ in sockets]
    received = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, received)

    def serve(server: uvicorn.Server, listening: socket.socket) -> None:
        with asyncio.Runner(loop_factory=hotloop.new_event_loop) as runner:
            runner.run(server.serve(sockets=[listening]))

    threads = [
        threading.Thread(target=serve, args=pair, name=f"uvicorn-{number}")
        for number, pair in enumerate(zip(servers, sockets, strict=True))
    ]
    for thread in threads:
        thread.start()
    print(f"http://{options.host}:{first.getsockname()[1]}", flush=True)
    signal.sigwait(received)
    for server in servers:
        server.should_exit = True
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
