"""Servers of other projects for servers.py: websockets, FastAPI and gRPC."""

import json
from typing import Any

from benchmarks.servers import Server, host_and_port, under_uvicorn

ITEM = {"id": 1, "name": "x" * 64, "price": 9.5, "tags": ["one", "two", "three"]}
ITEM_AS_JSON = json.dumps(ITEM, separators=(",", ":")).encode()

GRPC_SERVICE, GRPC_METHOD = "benchmarks.Echo", "Echo"


async def websockets(address: str) -> object:
    from websockets.asyncio.server import ServerConnection, serve

    async def echo(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    host, port = host_and_port(address)
    return await serve(echo, host, port)


async def fastapi(address: str) -> object:
    from fastapi import FastAPI
    from pydantic import BaseModel

    class Item(BaseModel):
        id: int
        name: str
        price: float
        tags: list[str]

    application = FastAPI()

    async def item() -> Any:
        return Item.model_validate(ITEM)

    application.add_api_route("/", item, response_model=Item)
    return await under_uvicorn(application, address)


async def grpc(address: str) -> object:
    import grpc

    async def echo(request: bytes, context: object) -> bytes:
        return request

    # Without serializers, messages are bytes.
    handler = grpc.unary_unary_rpc_method_handler(echo)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(GRPC_SERVICE, {GRPC_METHOD: handler})]
    )
    server.add_insecure_port(address)
    await server.start()
    return server


SERVERS: dict[str, Server] = {"websockets": websockets, "fastapi": fastapi, "grpc": grpc}
