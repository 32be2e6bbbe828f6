"""A service in which one kind of request holds up all others: found and mended in docs/observability.md.

slow.py               serve at http://127.0.0.1:8001; --port=PORT for another
slow.py --mended      the same, with reports made in another process
slow.py --load        send it requests for 5 seconds, or --seconds=N, and print how long they take
"""

import argparse
import asyncio
import hashlib
import signal
import statistics
import time
from concurrent.futures import ProcessPoolExecutor

PRODUCTS = 200


def make_report():
    """Some 50 ms of computing."""
    report = b""
    for product in range(PRODUCTS):
        report = hashlib.pbkdf2_hmac("sha256", report, b"product %d" % product, 400)
    return report.hex().encode()


class Service:
    def __init__(self, workers):
        self.workers = workers

    async def query(self, seconds):
        """Stand for a database, which answers after some milliseconds."""
        await asyncio.sleep(seconds)

    async def product(self):
        await self.query(0.002)
        return b"hello, a product"

    async def report(self):
        await self.query(0.005)
        if self.workers is None:
            return make_report()
        return await asyncio.get_running_loop().run_in_executor(self.workers, make_report)

    async def answer(self, path):
        return await (self.report() if path == b"/report" else self.product())

    async def serve(self, reader, writer):
        try:
            while request := await reader.readuntil(b"\r\n\r\n"):
                body = await self.answer(request.split(b" ", 2)[1])
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        except (asyncio.IncompleteReadError, ConnectionError):
            # The client has gone.
            pass
        finally:
            writer.close()


async def serve(port, workers):
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = await asyncio.start_server(Service(workers).serve, "127.0.0.1", port)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await stop.wait()
    server.close()


async def request_again_and_again(port, path, pause, end, took):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while (began := time.perf_counter()) < end:
        writer.write(b"GET %b HTTP/1.1\r\n\r\n" % path)
        header = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(header.split()[-1]))
        took.append(time.perf_counter() - began)
        await asyncio.sleep(pause)
    writer.close()


async def load(port, seconds):
    end = time.perf_counter() + seconds
    took = {b"/product": [], b"/report": []}
    clients = [request_again_and_again(port, b"/product", 0.005, end, took[b"/product"]) for _ in range(8)]
    clients.append(request_again_and_again(port, b"/report", 0.2, end, took[b"/report"]))
    await asyncio.gather(*clients)
    for path, each in took.items():
        half, late = statistics.median(each), statistics.quantiles(each, n=100)[-1]
        print(
            f"{path.decode():8} {len(each):5} answers, half within {half * 1e3:5.1f} ms,"
            f" 99 % within {late * 1e3:5.1f} ms"
        )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--mended", action="store_true")
    parser.add_argument("--load", action="store_true")
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    if arguments.load:
        asyncio.run(load(arguments.port, arguments.seconds))
    elif arguments.mended:
        with ProcessPoolExecutor(1) as workers:
            asyncio.run(serve(arguments.port, workers))
    else:
        asyncio.run(serve(arguments.port, None))


if __name__ == "__main__":
    main()
