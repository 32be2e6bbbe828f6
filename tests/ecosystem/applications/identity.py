"""A bare ASGI application that says which process and loop answers."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable

VERSION = 1

Message = dict[str, object]


async def app(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    loop = type(asyncio.get_running_loop()).__module__
    body = json.dumps({"pid": os.getpid(), "loop": loop, "version": VERSION}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
