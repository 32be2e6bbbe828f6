"""PostgreSQL, Redis and SQLite, through their asyncio clients on hotloop."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiosqlite
import asyncpg
import databases
import hotloop
import psycopg
import psycopg_pool
import pytest
import redis.asyncio
from databases import Server
from helpers_tls import client_context
from trustme import CA

Certificate = dict[str, str]


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory, certificate: Certificate) -> Iterator[Server]:
    with databases.postgres(tmp_path_factory.mktemp("postgres") / "server", certificate) as server:
        yield server


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory, certificate: Certificate) -> Iterator[Server]:
    with databases.redis(tmp_path_factory.mktemp("redis") / "server", certificate) as server:
        yield server


def options(server: Server) -> dict[str, object]:
    return {"host": "localhost", "port": server.port, "user": "tester", "database": "tests"}


@pytest.mark.software("asyncpg", "PostgreSQL")
def test_asyncpg(postgres: Server) -> None:
    """Prepared statements, transactions, cursors, COPY both ways, a pool under 50 tasks."""

    async def main() -> None:
        connection = await asyncpg.connect(**options(postgres), ssl=False)
        assert await connection.fetchval("select $1::int + 1", 41) == 42
        await connection.execute("create table things (id int primary key, name text)")
        records = [(number, f"name {number}") for number in range(20_000)]
        await connection.copy_records_to_table("things", records=records)
        rows = await connection.fetch("select id, name from things order by id")
        assert [tuple(row) for row in rows] == records
        copied = bytearray()

        async def take(data: bytes) -> None:
            copied.extend(data)

        await connection.copy_from_query("select id from things order by id", output=take)
        assert copied == b"".join(b"%d\n" % number for number in range(20_000))

        async def fail_midway() -> None:
            async with connection.transaction():
                await connection.execute("insert into things values (-1, 'x')")
                await connection.execute("insert into things values (1, 'again')")

        with pytest.raises(asyncpg.UniqueViolationError):
            await fail_midway()
        assert await connection.fetchval("select count(*) from things where id = -1") == 0
        async with connection.transaction():
            ids = [
                row["id"] async for row in connection.cursor("select id from things order by id", prefetch=50)
            ]
        assert ids == list(range(20_000))
        await connection.close()
        async with asyncpg.create_pool(**options(postgres), ssl=False, min_size=2, max_size=8) as pool:

            async def work(number: int) -> int:
                return await pool.fetchval("select id from things where id = $1", number)

            assert await asyncio.gather(*map(work, range(50))) == list(range(50))
            await pool.execute("drop table things")

    hotloop.run(main())


@pytest.mark.software("asyncpg", "PostgreSQL")
def test_asyncpg_listens(postgres: Server) -> None:
    """LISTEN and NOTIFY between two connections."""

    async def main() -> None:
        listener, teller = [await asyncpg.connect(**options(postgres), ssl=False) for _ in range(2)]
        heard: asyncio.Queue[str] = asyncio.Queue()
        await listener.add_listener("news", lambda *arguments: heard.put_nowait(arguments[-1]))
        for number in range(100):
            await teller.execute("select pg_notify('news', $1)", str(number))
        assert [await asyncio.wait_for(heard.get(), 10) for _ in range(100)] == [str(n) for n in range(100)]
        await listener.close()
        await teller.close()

    hotloop.run(main())


@pytest.mark.software("asyncpg", "PostgreSQL")
def test_asyncpg_cancels(postgres: Server) -> None:
    """A running query is cancelled by a timeout and by its task; the connection is of use afterwards."""

    async def main() -> None:
        connection = await asyncpg.connect(**options(postgres), ssl=False)
        with pytest.raises(asyncio.TimeoutError):
            await connection.execute("select pg_sleep(30)", timeout=0.1)
        task = asyncio.create_task(connection.execute("select pg_sleep(30)"))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await connection.fetchval("select 42") == 42
        busy = (
            "select count(*) from pg_stat_activity where query = 'select pg_sleep(30)' and state = 'active'"
        )
        assert await connection.fetchval(busy) == 0
        await connection.close()

    hotloop.run(main())


@pytest.mark.software("asyncpg", "PostgreSQL")
def test_asyncpg_tls(postgres: Server, authority: CA) -> None:
    """TLS, begun within a connection: 16 connections, large results, an untrusted certificate."""

    async def main() -> None:
        context = client_context(authority)

        async def work(number: int) -> None:
            connection = await asyncpg.connect(**options(postgres), ssl=context)
            assert await connection.fetchval("select ssl from pg_stat_ssl where pid = pg_backend_pid()")
            text = await connection.fetchval("select repeat($1, 300000)", str(number % 10))
            assert text == str(number % 10) * 300_000
            await connection.close()

        await asyncio.gather(*map(work, range(16)))
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncpg.connect(**options(postgres), ssl=ssl.create_default_context())

    hotloop.run(main())


def dsn(server: Server, **more: object) -> str:
    parts = {"host": "localhost", "port": server.port, "user": "tester", "dbname": "tests", **more}
    return " ".join(f"{name}={value}" for name, value in parts.items())


@pytest.mark.software("psycopg", "PostgreSQL")
def test_psycopg(postgres: Server) -> None:
    """Cursors, COPY both ways, a pipeline, transactions, LISTEN and NOTIFY, a query cancelled."""

    async def main() -> None:
        async with await psycopg.AsyncConnection.connect(
            dsn(postgres, sslmode="disable"), autocommit=True
        ) as db:
            await db.execute("create table goods (id int, name text)")
            async with db.cursor() as cursor, cursor.copy("copy goods from stdin") as copy:
                for number in range(5_000):
                    await copy.write_row((number, f"name {number}"))
            async with db.cursor() as cursor:
                await cursor.execute("select id from goods order by id")
                assert [row[0] async for row in cursor] == list(range(5_000))
                async with cursor.copy("copy goods (id) to stdout") as copy:
                    assert len([row async for row in copy.rows()]) == 5_000
            async with db.pipeline():
                results = [await db.execute("select %s::int", [number]) for number in range(200)]
            assert [(await result.fetchone())[0] for result in results] == list(range(200))
            with contextlib.suppress(ZeroDivisionError):
                async with db.transaction():
                    await db.execute("delete from goods")
                    raise ZeroDivisionError
            assert (await (await db.execute("select count(*) from goods")).fetchone()) == (5_000,)
            await db.execute("listen news")
            await db.execute("notify news, 'hello'")
            assert [note.payload async for note in db.notifies(timeout=10, stop_after=1)] == ["hello"]
            task = asyncio.create_task(db.execute("select pg_sleep(30)"))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await (await db.execute("select 42")).fetchone()) == (42,)
            await db.execute("drop table goods")

    hotloop.run(main())


@pytest.mark.software("psycopg", "PostgreSQL")
def test_psycopg_pool_and_tls(postgres: Server, certificate: Certificate) -> None:
    """A pool of TLS connections under 60 tasks, of which some are cancelled."""

    async def main() -> None:
        secure = dsn(postgres, sslmode="verify-full", sslrootcert=certificate["authority"])
        async with psycopg_pool.AsyncConnectionPool(secure, min_size=2, max_size=6, open=False) as pool:

            async def work(number: int) -> int:
                async with pool.connection() as db:
                    result = await db.execute("select %s::int from pg_sleep(0.01)", [number])
                    row = await result.fetchone()
                    assert row is not None
                    return int(row[0])

            tasks = [asyncio.create_task(work(number)) for number in range(60)]
            await asyncio.sleep(0.05)
            for task in tasks[::7]:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            for number, result in enumerate(results):
                if number % 7:
                    assert result == number
            async with pool.connection() as db:
                row = await (
                    await db.execute("select ssl from pg_stat_ssl where pid = pg_backend_pid()")
                ).fetchone()
                assert row == (True,)

    hotloop.run(main())


@pytest.mark.software("redis", "Redis")
def test_redis(redis_server: Server, certificate: Certificate) -> None:
    """Commands, pipelines, transactions, blocking reads, 100 tasks at a pool; plain and over TLS."""

    async def main() -> None:
        plain = redis.asyncio.Redis(port=redis_server.port)
        assert redis_server.tls_port is not None
        secure = redis.asyncio.Redis(
            host="localhost", port=redis_server.tls_port, ssl=True, ssl_ca_certs=certificate["authority"]
        )
        for client in (plain, secure):
            await client.flushdb()
            await client.set("key", b"x" * 2_000_000)
            assert await client.get("key") == b"x" * 2_000_000
            async with client.pipeline(transaction=True) as pipeline:
                for number in range(1_000):
                    pipeline.set(f"key {number}", number)
                    pipeline.incr("count")
                answers = await pipeline.execute()
            assert answers == [item for number in range(1, 1_001) for item in (True, number)]
            values = await asyncio.gather(*(client.get(f"key {number}") for number in range(100)))
            assert values == [b"%d" % number for number in range(100)]
            waiting = asyncio.create_task(client.blpop(["list"], timeout=20))
            await asyncio.sleep(0.05)
            await client.rpush("list", "item")
            assert await waiting == [b"list", b"item"] or waiting.result() == (b"list", b"item")
            cancelled = asyncio.create_task(client.blpop(["list"], timeout=20))
            await asyncio.sleep(0.05)
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            assert await client.ping()
            await client.aclose()

    hotloop.run(main())


@pytest.mark.software("redis", "Redis")
def test_redis_publishes(redis_server: Server) -> None:
    """Publishers and subscribers, by name and by pattern."""

    async def main() -> None:
        client = redis.asyncio.Redis(port=redis_server.port, decode_responses=True)
        async with client.pubsub() as subscriber:
            await subscriber.subscribe("news")
            await subscriber.psubscribe("topic.*")

            async def messages() -> AsyncIterator[str]:
                async for message in subscriber.listen():
                    if message["type"].endswith("message"):
                        yield message["data"]

            stream = messages()

            async def publish() -> None:
                for number in range(500):
                    await client.publish("news" if number % 2 else "topic.x", str(number))

            publishing = asyncio.create_task(publish())
            heard = [await asyncio.wait_for(anext(stream), 10) for _ in range(500)]
            assert heard == [str(number) for number in range(500)]
            await publishing
            await stream.aclose()
        await client.aclose()

    hotloop.run(main())


@pytest.mark.software("aiosqlite")
def test_aiosqlite(tmp_path: Path) -> None:
    """A database in a thread of its own: many rows, transactions, a query interrupted."""

    async def main() -> None:
        async with aiosqlite.connect(tmp_path / "database") as db:
            await db.execute("create table things (id integer primary key, name text)")
            await db.executemany("insert into things values (?, ?)", [(n, f"name {n}") for n in range(2_000)])
            await db.commit()
            async with db.execute("select id from things order by id") as cursor:
                assert [row[0] async for row in cursor] == list(range(2_000))
            await db.execute("delete from things")
            await db.rollback()
            counts = await asyncio.gather(
                *(db.execute_fetchall("select count(*) from things where id < ?", [n]) for n in range(100))
            )
            assert [next(iter(rows))[0] for rows in counts] == list(range(100))
            endless = "with recursive n(i) as (select 1 union all select i + 1 from n) select max(i) from n"
            task = asyncio.create_task(db.execute_fetchall(endless))
            await asyncio.sleep(0.1)
            await db.interrupt()
            with pytest.raises(aiosqlite.OperationalError, match="interrupted"):
                await task

    hotloop.run(main())
