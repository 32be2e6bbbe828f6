"""granian with hotloop in the place of asyncio's loop: granian_server.py PORT"""

import asyncio
import sys

import hotloop
from granian._loops import loops
from granian.constants import Interfaces, Loops
from granian.server import Server


# The workers are processes that import this file anew, and register it there.
@loops.register("asyncio")
def new_loop() -> asyncio.AbstractEventLoop:
    loop = hotloop.new_event_loop()
    asyncio.set_event_loop(loop)
    return loop


if __name__ == "__main__":
    Server(
        "asgi:app", port=int(sys.argv[1]), interface=Interfaces.ASGI, loop=Loops.asyncio, workers=1
    ).serve()
