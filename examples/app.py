"""A small ASGI application, without a framework, that shows the event loop it runs on.

/ is a page with a live count of requests, /json has its facts as JSON, /plaintext is a minimal answer, and
/events streams the count as server-sent events.
"""

import asyncio
import json
import platform
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import hotloop
import uvicorn

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

PAGE = Path(__file__).with_name("page.html").read_text()
EVENT_INTERVAL = 0.25


class Application:
    def __init__(self) -> None:
        self.requests = 0
        self.stopping = False
        """Set when the server stops, so that open event streams end."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        self.requests += 1
        if scope["method"] not in ("GET", "HEAD"):
            await respond(send, 405, "text/plain", "Only GET and HEAD are answered here.\n")
        elif scope["path"] == "/":
            await respond(send, 200, "text/html; charset=utf-8", self.page())
        elif scope["path"] == "/json":
            await respond(send, 200, "application/json", json.dumps(self.facts()))
        elif scope["path"] == "/plaintext":
            await respond(send, 200, "text/plain", "Hello, World!")
        elif scope["path"] == "/events":
            await self.stream_events(send)
        else:
            await respond(send, 404, "text/plain", "There is nothing here.\n")

    def facts(self) -> dict[str, str | int]:
        loop = type(asyncio.get_running_loop())
        return {
            "loop": f"{loop.__module__}.{loop.__qualname__}",
            "hotloop": hotloop.__version__,
            "python": platform.python_version(),
            "uvicorn": uvicorn.__version__,
            "requests": self.requests,
        }

    def page(self) -> str:
        page = PAGE
        for name, fact in self.facts().items():
            page = page.replace("{{" + name + "}}", str(fact))
        return page

    async def stream_events(self, send: Send) -> None:
        """Send the count when it changes, until the client disconnects or the server stops."""
        await start(send, 200, [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")])
        shown = None
        while not self.stopping:
            if shown != self.requests:
                shown = self.requests
                await send(body(f"data: {shown}\n\n", more=True))
            await asyncio.sleep(EVENT_INTERVAL)
        await send(body("", more=False))


async def respond(send: Send, status: int, content_type: str, text: str) -> None:
    length = str(len(text.encode())).encode()
    await start(send, status, [(b"content-type", content_type.encode()), (b"content-length", length)])
    await send(body(text, more=False))


async def start(send: Send, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})


def body(text: str, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": text.encode(), "more_body": more}
