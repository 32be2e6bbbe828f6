"""A FastAPI application: typed parameters, dependencies, background tasks, a stream, a websocket."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, WebSocket, WebSocketDisconnect
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import BaseModel

done: list[str] = []
facts = {"begun": 0, "in_flight": 0}


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    yield
    print(f"the lifespan is over, {facts['begun']} slow requests were begun", flush=True)


app = FastAPI(lifespan=lifespan)


class Item(BaseModel):
    name: str
    price: float


async def resource() -> AsyncIterator[str]:
    await asyncio.sleep(0)
    yield type(asyncio.get_running_loop()).__module__


def blocking() -> int:
    """Run in a thread by FastAPI, for it is no coroutine function."""
    return 21


@app.get("/")
async def about(
    loop: Annotated[str, Depends(resource)], half: Annotated[int, Depends(blocking)]
) -> dict[str, object]:
    return {"loop": loop, "answer": 2 * half, "done": done, **facts}


@app.get("/thread")
def in_a_thread() -> dict[str, bool]:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return {"thread": True}
    return {"thread": False}


@app.get("/slow", response_class=PlainTextResponse)
async def slow(seconds: float) -> str:
    facts["begun"] += 1
    facts["in_flight"] += 1
    await asyncio.sleep(seconds)
    facts["in_flight"] -= 1
    return "done"


@app.post("/items/{number}")
async def items(number: int, item: Item, tasks: BackgroundTasks) -> Item:
    if number == 404:
        raise HTTPException(404, "no such item")
    tasks.add_task(done.append, f"{number}: {item.name}")
    return Item(name=item.name.title(), price=item.price * number)


@app.get("/events")
async def events() -> StreamingResponse:
    async def pieces() -> AsyncIterator[str]:
        for number in range(20):
            yield f"data: {number}\n\n"
            await asyncio.sleep(0.001)

    return StreamingResponse(pieces(), media_type="text/event-stream")


@app.websocket("/websocket")
async def websocket(socket: WebSocket) -> None:
    await socket.accept()
    try:
        while True:
            await socket.send_json({"got": await socket.receive_json()})
    except WebSocketDisconnect:
        pass
