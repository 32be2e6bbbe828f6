"""A process whose address space is used up: what finds no memory raises MemoryError, and the process goes on.

These limit the address space of a process, so that the system itself has no memory; tests/torture/memory has
Python's own allocations fail.
"""

import sys

import helpers
import pytest

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's"),
    # On some Pythons asyncio's own loop loses data here, or ends.
    pytest.mark.hotloop_only,
]

FILL = """
    import resource

    def fill(*smaller):
        # No block of 128 KiB is left, or of the last of the smaller sizes, but many small ones are.
        resource.setrlimit(resource.RLIMIT_AS, (600 << 20, 600 << 20))
        small = [bytes(400) for _ in range(4000)]
        kept = [small[::200]]  # so that no large block becomes free with the others
        sizes = (64 << 20, 16 << 20, 4 << 20, 1 << 20, 512 << 10, 256 << 10, 192 << 10, 136 << 10)
        for size in sizes + smaller:
            while True:
                try:
                    kept.append(bytearray(size))
                except MemoryError:
                    break
        del small
        return kept
"""


def run_main(loop_name, source):
    """Run the main() of a program that can fill() its memory."""
    helpers.run_script(loop_name, f"{FILL}{source}\n    run(main())\n")


def test_the_first_receive_of_a_transport(loop_name):
    run_main(
        loop_name,
        """
    import asyncio, socket

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: None)
        ours, peer = socket.socketpair()
        told = loop.create_future()

        class Protocol(asyncio.Protocol):
            def data_received(self, data):
                told.set_result(data)

            def connection_lost(self, error):
                told.done() or told.set_result(error)

        await loop.create_connection(Protocol, sock=ours)
        kept = fill()
        peer.send(b"data")
        result = await told
        del kept
        assert result == b"data" or isinstance(result, MemoryError), result
    """,
    )


@helpers.with_gil
def test_the_first_sock_recv(loop_name):
    run_main(
        loop_name,
        """
    import asyncio, socket

    async def main():
        loop = asyncio.get_running_loop()
        ours, peer = socket.socketpair()
        ours.setblocking(False)
        kept = fill()
        peer.send(b"data")
        assert await loop.sock_recv(ours, 1000) == b"data"
        peer.send(b"more")
        try:
            result = await loop.sock_recv(ours, 1 << 18)
        except MemoryError:
            del kept
            # Nothing was taken out of the socket.
            result = await loop.sock_recv(ours, 1 << 18)
        assert result == b"more"
    """,
    )


def test_the_first_datagram(loop_name):
    run_main(
        loop_name,
        """
    import asyncio, socket

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: None)
        told = loop.create_future()

        class Protocol(asyncio.DatagramProtocol):
            def datagram_received(self, data, address):
                told.set_result(data)

            def connection_lost(self, error):
                told.done() or told.set_result(error)

        transport, _ = await loop.create_datagram_endpoint(Protocol, local_addr=("127.0.0.1", 0))
        address = transport.get_extra_info("sockname")
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        kept = fill()
        sender.sendto(b"data", address)
        result = await told
        del kept
        assert result == b"data" or isinstance(result, MemoryError), result
    """,
    )


CALLS = {
    "call_soon": "loop.call_soon(nothing)",
    "call_later": "handles.append(loop.call_later(1000, nothing))",
    "call_soon_threadsafe": "loop.call_soon_threadsafe(nothing)",
    "write": "transport.write(b'x' * 40)",
    "pipe": "pipe.write(b'x' * 40)",
}


@pytest.mark.parametrize("call", CALLS)
def test_what_is_queued_until_there_is_no_memory(loop_name, call):
    source = f"""
    import asyncio, os, resource, socket

    def nothing():
        pass

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: None)
        ours, peer = socket.socketpair()
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        reader, writer = os.pipe()
        pipe, _ = await loop.connect_write_pipe(asyncio.Protocol, open(writer, "wb", 0))
        transport.write(bytes(1 << 24))
        pipe.write(bytes(1 << 20))
        handles = []
        reserve = bytearray(16 << 20)
        limit = (int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()) + (200 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            while True:
                {CALLS[call]}
        except MemoryError:
            del reserve
        for handle in handles:
            handle.cancel()
        transport.abort()
        pipe.abort()
        await asyncio.sleep(0)
        assert await loop.create_task(asyncio.sleep(0.01, "on")) == "on"
    """
    helpers.run_script(loop_name, source + "\n    run(main())\n")


def test_what_is_received_without_memory_for_it_stays_whole(loop_name):
    run_main(
        loop_name,
        """
    import asyncio, fcntl, os, socket

    DATA = os.urandom(180_000)

    class Protocol(asyncio.Protocol):
        def __init__(self):
            self.received = []

        def data_received(self, data):
            self.received.append(data)

        def connection_lost(self, error):
            self.received.append(error)

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: None)
        ours, peer = socket.socketpair()
        ours.setblocking(False)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        reader, writer = os.pipe()
        fcntl.fcntl(writer, 1031, 1 << 20)  # F_SETPIPE_SZ
        _, protocol = await loop.connect_read_pipe(Protocol, open(reader, "rb", 0))
        # What is set aside once is there by now.
        peer.send(b"x")
        assert await loop.sock_recv(ours, 1000) == b"x"
        os.write(writer, b"x")
        while not protocol.received:
            await asyncio.sleep(0)

        peer.send(DATA)
        os.write(writer, DATA)
        kept = fill()
        received = b""
        try:
            received += await loop.sock_recv(ours, len(DATA))
        except MemoryError:
            pass
        await asyncio.sleep(0.01)
        del kept
        while len(received) < len(DATA):
            received += await asyncio.wait_for(loop.sock_recv(ours, len(DATA)), 5)
        assert received == DATA
        os.write(writer, b"end")
        while protocol.received[-1][-3:] != b"end":
            await asyncio.sleep(0.001)
        assert b"".join(protocol.received) == b"x" + DATA + b"end"
    """,
    )


def test_a_loop_with_many_timers_is_closed(loop_name):
    source = (
        FILL
        + """
    loop = new_event_loop()
    for _ in range(200_000):
        loop.call_later(1000, print)
    kept = fill()
    loop.close()
    """
    )
    helpers.run_script(loop_name, source)


FLOOD = """
    import asyncio, resource, threading, time

    called = 0

    def call():
        global called
        called += 1

    def limit(free):
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + free, resource.RLIM_INFINITY))

    def flood(count):
        loop = asyncio.get_running_loop()
        posted = 0

        def post():
            nonlocal posted
            try:
                while posted < count:
                    loop.call_soon_threadsafe(call)
                    posted += 1
            except MemoryError:
                pass

        thread = threading.Thread(target=post)
        thread.start()
        # The loop cannot run any of them.
        thread.join()
        return posted

    async def all_called(count):
        async with asyncio.timeout(10):
            while called < count:
                await asyncio.sleep(0)
        assert called == count
"""


def test_what_another_thread_has_queued_until_there_was_no_memory_is_called(loop_name):
    helpers.run_script(
        loop_name,
        f"""{FLOOD}
    async def main():
        reserve = bytearray(1 << 20)
        limit(100 << 20)
        times = [time.monotonic()]
        posted = flood(1 << 30)
        times.append(time.monotonic())
        # Enough for what the program itself does.
        del reserve
        await all_called(posted)
        times.append(time.monotonic())
        # What they cost does not depend on how often memory is asked for in vain.
        assert times[2] - times[1] < 1 + 4 * (times[1] - times[0]), times

    run(main())
    """,
    )


@pytest.mark.skipif(not helpers.FREE_THREADED, reason="the GIL is the rule here")
def test_threads_that_queue_at_the_same_time_until_there_is_no_memory(loop_name):
    helpers.run_script(
        loop_name,
        f"""{FLOOD}
    loop = new_event_loop()
    go, over = [], []
    refused = [0] * 4

    def busy():
        # Until there is no memory.
        call()
        if called % 1000 == 1 and not over:
            before, end = sum(refused), time.monotonic() + 0.5
            while sum(refused) < before + 4 and time.monotonic() < end:
                time.sleep(0.0005)

    def post(number):
        while not go:
            time.sleep(0.001)
        while not over:
            try:
                # It makes no handle: what needs memory is the queue.
                loop._add_callback(handle)
            except MemoryError:
                refused[number] += 1

    def end():
        time.sleep(2)
        over.append(True)
        limit(1 << 30)
        for thread in threads:
            thread.join()
        loop.call_soon_threadsafe(loop.stop)

    handle = loop.call_soon(busy)
    threads = [threading.Thread(target=post, args=(number,), daemon=True) for number in range(4)]
    ending = threading.Thread(target=end, daemon=True)
    for thread in [*threads, ending]:
        thread.start()
    limit(20 << 20)
    go.append(True)
    loop.run_forever()
    assert all(refused), refused
    """,
    )


@pytest.mark.parametrize("megabytes", [3, 4, 5, 6])
def test_what_another_thread_has_queued_is_called_where_nothing_large_is_free(loop_name, megabytes):
    helpers.run_script(
        loop_name,
        f"""{FLOOD}
    async def main():
        await asyncio.sleep(0.01)
        posted = flood(100_000)
        hole = bytearray({megabytes} << 20)
        limit(0)
        kept = []
        for size in (16 << 20, 4 << 20, 1 << 20, 256 << 10, 64 << 10, 16 << 10):
            while True:
                try:
                    kept.append(bytearray(size))
                except MemoryError:
                    break
        del hole
        await all_called(posted)

    run(main())
    """,
    )


@helpers.with_gil
@pytest.mark.parametrize("high", [False, True])
def test_descriptors_that_are_watched_until_there_is_no_memory(loop_name, high):
    helpers.run_script(
        loop_name,
        f"""{FILL}
    import asyncio, os, socket

    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)

    async def main():
        loop = asyncio.get_running_loop()
        ours, peer = socket.socketpair()
        pairs = [os.dup(ours.fileno()) for _ in range(4000)]
        if {high}:
            # More than a block of 128 KiB has room for, with the numbers that come before it.
            highest = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 1
            pairs.append(os.dup2(ours.fileno(), highest))
            pairs.reverse()
        for descriptor in pairs[:10]:
            {high} or loop.add_reader(descriptor, print)
        kept = fill()
        refused = 0
        for descriptor in pairs:
            try:
                loop.add_reader(descriptor, print)
            except MemoryError:
                refused += 1
        del kept
        assert refused
        for descriptor in pairs:
            loop.add_reader(descriptor, print)
            assert loop.remove_reader(descriptor)

    run(main())
    """,
    )


@pytest.mark.parametrize("by", ["a transport", "a reader"])
def test_descriptors_that_are_ready_at_once_where_nothing_large_is_free(loop_name, by):
    helpers.run_script(
        loop_name,
        f"""{FILL}
    import asyncio, socket

    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    received = 0

    def receive(data):
        # Without a list, which would need memory.
        global received
        assert data == b"x"
        received += 1

    class Protocol(asyncio.Protocol):
        def data_received(self, data):
            receive(data)

    async def main():
        loop = asyncio.get_running_loop()
        peers = []
        for _ in range(600):
            ours, peer = socket.socketpair()
            ours.setblocking(False)
            if {by == "a transport"}:
                await loop.create_connection(Protocol, sock=ours)
            else:
                loop.add_reader(ours, lambda ours=ours: receive(ours.recv(10)))
            peers.append(peer)
        peers[0].send(b"x")
        await asyncio.sleep(0.01)
        kept = fill(64 << 10, 32 << 10, 17 << 10)
        for peer in peers:
            peer.send(b"x")
        async with asyncio.timeout(10):
            while received <= len(peers):
                await asyncio.sleep(0.001)
        del kept
        assert received == len(peers) + 1

    run(main())
    """,
    )


@pytest.mark.parametrize("method", ["abort", "close"])
def test_transports_that_are_closed_at_once_where_nothing_large_is_free(loop_name, method):
    helpers.run_script(
        loop_name,
        f"""{FILL}
    import asyncio, socket

    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    COUNT = 3000
    calls = bytearray(COUNT)
    lost = 0

    class Protocol(asyncio.Protocol):
        def __init__(self, number):
            self.number = number

        def connection_lost(self, error):
            global lost
            # In the order of the calls.
            calls[self.number] += lost == self.number
            lost += 1
            if lost == COUNT:
                kept.clear()
                done.set_result(None)

    async def main():
        global done, kept
        loop = asyncio.get_running_loop()
        transports, peers = [], []
        for number in range(COUNT):
            ours, peer = socket.socketpair()
            transport, _ = await loop.create_connection(lambda number=number: Protocol(number), sock=ours)
            transports.append(transport)
            peers.append(peer)
        await asyncio.sleep(0.01)
        done = loop.create_future()
        kept = fill(64 << 10, 32 << 10, 17 << 10)
        for transport in transports:
            transport.{method}()
        await done
        assert calls == b"\\1" * COUNT

    run(main())
    """,
    )


def test_endpoints_that_get_their_first_datagram_where_nothing_large_is_free(loop_name):
    helpers.run_script(
        loop_name,
        f"""{FILL}
    import asyncio, socket

    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    COUNT = 200
    received = 0

    class Protocol(asyncio.DatagramProtocol):
        def datagram_received(self, data, address):
            global received
            received += 1

    async def main():
        loop = asyncio.get_running_loop()
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        transports = []
        for _ in range(COUNT + 1):
            transport, _ = await loop.create_datagram_endpoint(Protocol, local_addr=("127.0.0.1", 0))
            transports.append(transport)
        addresses = [transport.get_extra_info("sockname") for transport in transports]
        sender.sendto(b"x", addresses.pop())
        await asyncio.sleep(0.01)
        kept = fill(64 << 10, 32 << 10, 17 << 10, 9 << 10)
        for address in addresses:
            sender.sendto(b"x", address)
        async with asyncio.timeout(10):
            while received <= COUNT:
                await asyncio.sleep(0.001)
        del kept

    run(main())
    """,
    )


def test_readers_that_were_cancelled_are_dropped_where_nothing_large_is_free(loop_name):
    helpers.run_script(
        loop_name,
        f"""{FILL}
    import asyncio, os

    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    called = 0

    def count():
        global called
        called += 1

    async def main():
        loop = asyncio.get_running_loop()
        descriptors = [os.eventfd(0) for _ in range(2000)]
        handles = [loop._add_reader(descriptor, count) for descriptor in descriptors]
        # A first poll, with room in the queue for all of them.
        for descriptor in descriptors:
            os.eventfd_write(descriptor, 1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert called
        for handle in handles:
            handle.cancel()
        del handles
        kept = fill(64 << 10, 32 << 10, 17 << 10)
        before = called
        for _ in range(20):
            await asyncio.sleep(0)
        del kept
        assert called == before
        for descriptor in descriptors:
            loop.remove_reader(descriptor)
            os.close(descriptor)

    run(main())
    """,
    )


def test_many_handles_are_destroyed_deep_in_a_chain_where_nothing_large_is_free(loop_name):
    run_main(
        loop_name,
        """
    import asyncio

    def nothing(*args):
        pass

    async def main():
        loop = asyncio.get_running_loop()
        chain = tuple(loop.call_soon(nothing) for _ in range(50_000))
        for _ in range(100):
            chain = loop.call_soon(nothing, chain)
        await asyncio.sleep(0)
        kept = fill(64 << 10, 32 << 10, 17 << 10)
        del chain
        del kept
    """,
    )


CALLS_OF_SIX = {
    "call_soon": "loop.call_soon(nothing, 1, 2, 3, 4, 5, 6)",
    "call_later": "handles.append(loop.call_later(1000, nothing, 1, 2, 3, 4, 5, 6))",
    "call_soon_threadsafe": "loop.call_soon_threadsafe(nothing, 1, 2, 3, 4, 5, 6)",
    "close": "transports[number].abort()",
}


@pytest.mark.parametrize("call", CALLS_OF_SIX)
def test_small_blocks_of_which_the_system_has_none(loop_name, call):
    helpers.run_script(
        loop_name,
        f"""{FILL}
    import asyncio, ctypes, socket

    malloc = ctypes.CDLL(None).malloc
    malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]

    def nothing(*args):
        pass

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: None)
        transports, peers = [], []
        for _ in range(300):
            ours, peer = socket.socketpair()
            transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
            transports.append(transport)
            peers.append(peer)
        handles = []
        freed = loop.create_future()

        def free():
            kept.clear()
            freed.set_result(None)

        loop.call_later(0.2, free)
        kept = fill(64 << 10, 16 << 10, 4 << 10, 2 << 10, 1 << 10, 700, 600, 530)
        for size in (512, 400, 300, 200, 160, 136, 100, 80, 64, 48, 32, 16):
            # Smaller objects are not malloc's, and there is room for them.
            while malloc(size):
                pass
        for number in range(300):
            try:
                {CALLS_OF_SIX[call]}
            except MemoryError:
                pass
        await freed

    run(main())
    """,
    )
