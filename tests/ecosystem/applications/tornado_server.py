"""Tornado with what its applications do: tornado_server.py PORT [--autoreload]

With --autoreload it chooses its loop itself, for Tornado executes it anew without the options of a command.
"""

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import tornado.autoreload
import tornado.ioloop
import tornado.web
import tornado.websocket

VERSION = 1
ticks = 0


class About(tornado.web.RequestHandler):
    async def get(self) -> None:
        loop = tornado.ioloop.IOLoop.current()
        number = await loop.run_in_executor(ThreadPoolExecutor(1), lambda: 42)
        module = type(asyncio.get_running_loop()).__module__
        self.write({"loop": module, "answer": number, "ticks": ticks, "version": VERSION, "pid": os.getpid()})


class Echo(tornado.web.RequestHandler):
    def post(self) -> None:
        self.write(self.request.body)


class Stream(tornado.web.RequestHandler):
    async def get(self) -> None:
        for number in range(int(self.get_argument("pieces"))):
            self.write(f"{number}\n")
            if number % 50 == 0:
                await self.flush()


class Websocket(tornado.websocket.WebSocketHandler):
    def on_message(self, message: str | bytes) -> None:
        self.write_message(message.upper())


def tick() -> None:
    global ticks
    ticks += 1


async def main() -> None:
    application = tornado.web.Application(
        [("/", About), ("/echo", Echo), ("/stream", Stream), ("/websocket", Websocket)]
    )
    server = application.listen(int(sys.argv[1]), "127.0.0.1")
    tornado.ioloop.PeriodicCallback(tick, 20).start()
    if "--autoreload" in sys.argv:
        tornado.autoreload.start(check_time=100)
    end = asyncio.Event()
    for number in (15, 2):
        asyncio.get_running_loop().add_signal_handler(number, end.set)
    await end.wait()
    server.stop()
    await server.close_all_connections()


if "--autoreload" in sys.argv:
    import hotloop

    hotloop.run(main())
else:
    asyncio.run(main())
