"""Processes that accept from one socket: python -m benchmarks.growth.work_shares LOOP PROCESSES CONNECTIONS

Prints how many connections each process got.
"""

import asyncio
import json
import os
import signal
import socket
import sys
import time
from typing import cast

from benchmarks import loops

INTERVAL = 0.001
SETTLING = 0.3
"""Seconds in which the processes begin to accept."""


async def serve(sock: socket.socket, number: int) -> None:
    class Answer(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            cast(asyncio.Transport, transport).write(bytes([number]))

    server = await asyncio.get_running_loop().create_server(Answer, sock=sock)
    await server.serve_forever()


def connect(address: tuple[str, int]) -> int:
    with socket.create_connection(address, timeout=10) as client:
        return client.recv(1)[0]


def main() -> None:
    name, processes, connections = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    sock = socket.create_server(("127.0.0.1", 0), backlog=1024)
    children = []
    for number in range(processes):
        child = os.fork()
        if child == 0:
            with asyncio.Runner(loop_factory=loops.factory(name)) as runner:
                runner.run(serve(sock, number))
        children.append(child)
    try:
        connect(sock.getsockname())
        time.sleep(SETTLING * processes)
        shares = [0] * processes
        for _ in range(connections):
            shares[connect(sock.getsockname())] += 1
            time.sleep(INTERVAL)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    print(json.dumps(shares))


if __name__ == "__main__":
    main()
