"""Clients of an echo server in another process: python -m benchmarks.clients LOOP CONNECTIONS TIMES ADDRESS

Each connection has a task that waits for the answer to a request before it sends the next one, as clients of
databases do. Prints the seconds for TIMES requests, over all connections.
"""

import asyncio
import json
import sys
import time

from benchmarks import loops

REQUEST = b"x" * 1024


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, times: int) -> None:
    for _ in range(times):
        writer.write(REQUEST)
        answer = await reader.readexactly(len(REQUEST))
        if answer != REQUEST:
            raise ValueError("the answer is another one")


async def ask_all(connections: int, times: int, host: str, port: int) -> float:
    streams = [await asyncio.open_connection(host, port) for _ in range(connections)]
    each = times // connections

    async def round_of(times: int) -> None:
        await asyncio.gather(*(ask(reader, writer, times) for reader, writer in streams))

    await round_of(each // 10 + 1)
    begin = time.perf_counter()
    await round_of(each)
    seconds = time.perf_counter() - begin
    for _, writer in streams:
        writer.close()
        await writer.wait_closed()
    return seconds


def main() -> None:
    loop, connections, times, address = sys.argv[1:]
    host, _, port = address.rpartition(":")
    with asyncio.Runner(loop_factory=loops.factory(loop)) as runner:
        seconds = runner.run(ask_all(int(connections), int(times), host, int(port)))
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
