"""What takes memory: python -m benchmarks.growth.work_memory LOOP WORK TIMES

WORK is "datagram", which opens so many datagram endpoints on one loop; "loop", which makes so many loops; or
"import", which imports the loop's package. Prints by how many bytes the process's resident memory grows for
each, after a first one, which an import has not.
"""

import asyncio
import importlib
import os
import socket
import sys

from benchmarks import loops
from benchmarks.growth.memory import resident_bytes
from benchmarks.growth.work_loops import nothing


class Waiting(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.received = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.received.set_result(data)


async def opened(sender: socket.socket) -> asyncio.DatagramTransport:
    """An endpoint that has received a byte."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(Waiting, local_addr=("127.0.0.1", 0))
    sender.sendto(b"x", transport.get_extra_info("sockname"))
    await protocol.received
    return transport


async def endpoints(times: int) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        open_ones = [await opened(sender)]
        before = resident_bytes(os.getpid())
        open_ones += [await opened(sender) for _ in range(times)]
        grown = resident_bytes(os.getpid()) - before
        for transport in open_ones:
            transport.close()
    return grown


def datagram(loop: str, times: int) -> int:
    with asyncio.Runner(loop_factory=loops.factory(loop)) as runner:
        return runner.run(endpoints(times))


def used(loop: str) -> asyncio.AbstractEventLoop:
    made = loops.factory(loop)()
    made.run_until_complete(nothing())
    return made


def loop(name: str, times: int) -> int:
    made = [used(name)]
    before = resident_bytes(os.getpid())
    made += [used(name) for _ in range(times)]
    grown = resident_bytes(os.getpid()) - before
    for each in made:
        each.close()
    return grown


def import_package(loop: str, times: int) -> int:
    before = resident_bytes(os.getpid())
    importlib.import_module(loops.package(loop))
    return resident_bytes(os.getpid()) - before


WORKS = {"datagram": datagram, "loop": loop, "import": import_package}


def main() -> None:
    loop, work, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
    print(WORKS[work](loop, times) / times)


if __name__ == "__main__":
    main()
