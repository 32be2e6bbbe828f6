"""The clients of databases for clients.py: asyncpg and redis-py."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from benchmarks.database_servers import USER

POOL = 10
ROWS_OF_A_QUERY = 1_000
PIPELINE = 100
KEY, VALUE = "key", b"x" * 64

Ask = Callable[[], Awaitable[object]]


@contextlib.asynccontextmanager
async def asyncpg(number: int, host: str, port: int) -> AsyncIterator[list[Ask]]:
    """Tasks that share a pool, or a single one with a connection of its own."""
    import asyncpg

    async with asyncpg.create_pool(
        host=host, port=port, user=USER, database="postgres", ssl=False, min_size=POOL, max_size=POOL
    ) as pool:
        if number > 1:
            yield [lambda: pool.fetchval("SELECT 1")] * number
        else:
            async with pool.acquire() as connection:
                yield [lambda: connection.fetchval("SELECT 1")]


@contextlib.asynccontextmanager
async def asyncpg_rows(number: int, host: str, port: int) -> AsyncIterator[list[Ask]]:
    import asyncpg

    connection = await asyncpg.connect(host=host, port=port, user=USER, database="postgres", ssl=False)
    await connection.execute(
        "CREATE TEMPORARY TABLE things AS "
        f"SELECT i AS id, 'thing ' || i AS name FROM generate_series(1, {ROWS_OF_A_QUERY}) AS i"
    )

    async def ask() -> object:
        rows = await connection.fetch("SELECT id, name FROM things")
        return len(rows), rows[-1]["id"], rows[-1]["name"]

    yield [ask]
    await connection.close()


@contextlib.asynccontextmanager
async def redis_of(number: int, host: str, port: int) -> AsyncIterator[Any]:
    from redis.asyncio import Redis

    async with Redis(host=host, port=port, max_connections=number) as client:
        await client.set(KEY, VALUE)
        yield client


@contextlib.asynccontextmanager
async def redis(number: int, host: str, port: int) -> AsyncIterator[list[Ask]]:
    async with redis_of(number, host, port) as client:
        yield [lambda: client.get(KEY)] * number


@contextlib.asynccontextmanager
async def redis_pipeline(number: int, host: str, port: int) -> AsyncIterator[list[Ask]]:
    async with redis_of(number, host, port) as client:

        async def ask() -> object:
            pipeline = client.pipeline(transaction=False)
            for _ in range(PIPELINE):
                pipeline.get(KEY)
            return await pipeline.execute()

        yield [ask] * number


CLIENTS: dict[str, tuple[Any, object]] = {
    "asyncpg": (asyncpg, 1),
    "asyncpg_rows": (asyncpg_rows, (ROWS_OF_A_QUERY, ROWS_OF_A_QUERY, f"thing {ROWS_OF_A_QUERY}")),
    "redis": (redis, VALUE),
    "redis_pipeline": (redis_pipeline, [VALUE] * PIPELINE),
}
