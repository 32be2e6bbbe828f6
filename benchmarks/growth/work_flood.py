"""A flood of callbacks while messages come in: python -m benchmarks.growth.work_flood LOOP ALIVE SECONDS

ALIVE callbacks work for about a microsecond each and have themselves called again, endlessly. Another process
sends a message every millisecond or so, in which is the time. Prints how many arrived, and by how many
microseconds the messages were late: 99 % of them at the most, and the worst.
"""

import asyncio
import json
import os
import random
import socket
import struct
import sys
import time

from benchmarks import loops
from benchmarks.children import CLIENT_PROCESSOR, SERVER_PROCESSOR, pin

TIME = struct.Struct("!q")
INTERVAL = 0.001
WARMUP = 0.3
"""Messages of so many seconds do not count."""


class Receiver(asyncio.Protocol):
    def __init__(self) -> None:
        self.unfinished = b""
        self.delays: list[int] = []

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        data = self.unfinished + data
        whole = len(data) // TIME.size * TIME.size
        self.unfinished = data[whole:]
        self.delays += [now - sent for (sent,) in TIME.iter_unpack(data[:whole])]


def send_messages(port: int) -> None:
    """Until the connection ends."""
    chance = random.Random(1)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            time.sleep(chance.uniform(0.5, 1.5) * INTERVAL)
            connection.sendall(TIME.pack(time.monotonic_ns()))


def start_flood(loop: asyncio.AbstractEventLoop, alive: int) -> None:
    def flood() -> None:
        sum(range(40))
        loop.call_soon(flood)

    for _ in range(alive):
        loop.call_soon(flood)


async def receive(port: int, alive: int, seconds: float) -> list[int]:
    loop = asyncio.get_running_loop()
    receiver = Receiver()
    server = await loop.create_server(lambda: receiver, "127.0.0.1", port)
    while not receiver.delays:
        await asyncio.sleep(0.01)
    start_flood(loop, alive)
    await asyncio.sleep(WARMUP)
    receiver.delays.clear()
    await asyncio.sleep(seconds)
    server.close()
    return receiver.delays


def main() -> None:
    name, alive, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    if os.fork() == 0:
        pin(0, CLIENT_PROCESSOR)
        connect_and_send(port)
    pin(0, SERVER_PROCESSOR)
    delays = sorted(loops.factory(name)().run_until_complete(receive(port, alive, seconds)))
    if not delays:
        raise SystemExit("starves: no message arrived")
    print(json.dumps([len(delays), delays[len(delays) * 99 // 100] / 1e3, delays[-1] / 1e3]), flush=True)
    # The callbacks are still alive.
    os._exit(0)


def connect_and_send(port: int) -> None:
    """What the other process does, once the server listens."""
    while True:
        try:
            send_messages(port)
        except ConnectionRefusedError:
            time.sleep(0.05)
        except OSError:
            os._exit(0)


if __name__ == "__main__":
    main()
