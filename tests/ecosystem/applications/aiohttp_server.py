"""The same as asgi.py by aiohttp's server: aiohttp_server.py PORT"""

import asyncio
import sys

from aiohttp import WSMsgType, web

facts = {"started": 1, "begun": 0, "in_flight": 0, "background": 0}
tasks: set[asyncio.Task[None]] = set()


async def about(_: web.Request) -> web.Response:
    return web.json_response({"loop": type(asyncio.get_running_loop()).__module__, **facts})


async def echo(request: web.Request) -> web.Response:
    return web.Response(body=await request.read())


async def stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for number in range(int(request.query["pieces"])):
        await response.write(b"%d\n" % number)
    await response.write_eof()
    return response


async def slow(request: web.Request) -> web.Response:
    facts["begun"] += 1
    facts["in_flight"] += 1
    await asyncio.sleep(float(request.query["seconds"]))
    facts["in_flight"] -= 1
    return web.Response(text="done")


async def count() -> None:
    await asyncio.sleep(0.05)
    facts["background"] += 1


async def background(_: web.Request) -> web.Response:
    task = asyncio.create_task(count())
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return web.Response(status=202)


async def websocket(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse(max_msg_size=0)
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            await socket.send_str(message.data.upper())
        else:
            await socket.send_bytes(message.data[::-1])
    return socket


async def end(_: web.Application) -> None:
    print(f"the lifespan is over, {facts['begun']} slow requests were begun", flush=True)


app = web.Application(client_max_size=8 << 20)
app.add_routes(
    [
        web.get("/", about),
        web.post("/echo", echo),
        web.get("/stream", stream),
        web.get("/slow", slow),
        web.post("/background", background),
        web.get("/websocket", websocket),
    ]
)
app.on_cleanup.append(end)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
