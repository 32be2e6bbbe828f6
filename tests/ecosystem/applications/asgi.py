"""An ASGI application with what applications do: JSON, bodies, streams, websockets, work after the answer."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

facts = {"started": 0, "begun": 0, "in_flight": 0, "background": 0}


@contextlib.asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    await asyncio.sleep(0.01)
    facts["started"] += 1
    yield
    await asyncio.sleep(0.01)
    print(f"the lifespan is over, {facts['begun']} slow requests were begun", flush=True)


async def about(_: Request) -> JSONResponse:
    return JSONResponse({"loop": type(asyncio.get_running_loop()).__module__, **facts})


async def echo(request: Request) -> Response:
    return Response(await request.body(), media_type="application/octet-stream")


async def stream(request: Request) -> StreamingResponse:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(int(request.query_params["pieces"])):
            yield b"%d\n" % number
            if number % 10 == 0:
                await asyncio.sleep(0)

    return StreamingResponse(pieces(), media_type="text/plain")


async def slow(request: Request) -> Response:
    facts["begun"] += 1
    facts["in_flight"] += 1
    await asyncio.sleep(float(request.query_params["seconds"]))
    facts["in_flight"] -= 1
    return Response("done")


async def count() -> None:
    await asyncio.sleep(0.05)
    facts["background"] += 1


async def background(_: Request) -> Response:
    return Response("accepted", status_code=202, background=BackgroundTask(count))


async def websocket(socket: WebSocket) -> None:
    await socket.accept()
    with contextlib.suppress(WebSocketDisconnect):
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                break
            if message.get("text") is not None:
                await socket.send_text(message["text"].upper())
            else:
                await socket.send_bytes(message["bytes"][::-1])


app = Starlette(
    routes=[
        Route("/", about),
        Route("/echo", echo, methods=["POST"]),
        Route("/stream", stream),
        Route("/slow", slow),
        Route("/background", background, methods=["POST"]),
        WebSocketRoute("/websocket", websocket),
    ],
    lifespan=lifespan,
)
