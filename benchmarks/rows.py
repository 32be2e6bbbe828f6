"""The rows of the comparison."""

from benchmarks import bulk, concurrency, databases, programs, scheduling
from benchmarks.generator import Load
from benchmarks.row import ClientRow, EchoRow, HttpClientRow, HttpRow, Row, SchedulingRow, Target, UnixEchoRow
from benchmarks.tls import HttpsRow, TlsClientRow, TlsEchoRow

UVICORN = ("uvicorn", "httptools")
AIOHTTP = ("aiohttp",)

ROWS: list[Row] = [
    *[SchedulingRow.of(name, case) for name, case in (scheduling.CASES | concurrency.CASES).items()],
    EchoRow(
        "echo_1",
        "Protocol echo 1 KiB, 1 connection",
        "protocol",
        Load(connections=1),
        6_000,
        target=Target(2_200, 16_600),
        has_limit=True,
    ),
    EchoRow(
        "echo_64",
        "Protocol echo 1 KiB, 64 connections",
        "protocol",
        Load(),
        12_000,
        target=Target(1_700, 12_200),
        has_limit=True,
    ),
    EchoRow(
        "echo_pipelined",
        "Protocol echo 64 B, 64 connections, 16 in flight",
        "protocol",
        Load(size=64, depth=16),
        100_000,
        target=Target(110, 760),
        has_limit=True,
    ),
    EchoRow(
        "echo_100k",
        "Protocol echo 100 KiB, 16 connections",
        "protocol",
        Load(16, 100 * 1024),
        2_000,
        target=Target(2_200, 34_000),
        has_limit=True,
    ),
    EchoRow(
        "echo_buffered",
        "BufferedProtocol echo 1 KiB, 64 connections",
        "buffered",
        Load(),
        8_000,
        target=Target(3_300, 12_200),
    ),
    EchoRow(
        "echo_streams",
        "asyncio.start_server echo 1 KiB, 64 connections",
        "streams",
        Load(),
        4_000,
        target=Target(11_500, 12_500),
    ),
    EchoRow(
        "echo_sockets",
        "sock_recv and sock_sendall echo 1 KiB, 64 connections",
        "sockets",
        Load(),
        4_000,
        target=Target(13_000, 13_200),
    ),
    EchoRow(
        "echo_datagram",
        "datagram echo 1 KiB, 64 clients",
        "datagram",
        Load(),
        8_000,
        "udp://",
        target=Target(below_best=0.2),
        has_limit=True,
    ),
    UnixEchoRow("echo_unix", "Unix socket echo 1 KiB, 64 connections", "unix", Load(), 12_000, "unix:"),
    ClientRow(
        "client_1",
        "streams to an echo server, 1 KiB, 1 connection",
        1,
        10_000,
        2_000,
    ),
    ClientRow(
        "client_50",
        "streams to an echo server, 1 KiB, 50 tasks",
        50,
        30_000,
        4_000,
    ),
    HttpRow(
        "http_bare",
        "bare HTTP Protocol, 1 KiB body, 64 connections",
        "http",
        Load(),
        8_000,
        target=Target(2_300, 12_300),
    ),
    HttpRow(
        "http_bare_1", "bare HTTP Protocol, 1 KiB body, 1 connection", "http", Load(connections=1), 6_000
    ),
    HttpRow(
        "http_bare_8", "bare HTTP Protocol, 1 KiB body, 8 connections", "http", Load(connections=8), 8_000
    ),
    HttpRow(
        "http_uvicorn",
        "uvicorn + httptools, 64 connections",
        "uvicorn",
        Load(),
        1_500,
        target=Target(88_500, 12_300),
        packages=UVICORN,
    ),
    HttpRow(
        "http_uvicorn_1",
        "uvicorn + httptools, 1 connection",
        "uvicorn",
        Load(connections=1),
        1_500,
        packages=UVICORN,
    ),
    HttpRow(
        "http_uvicorn_8",
        "uvicorn + httptools, 8 connections",
        "uvicorn",
        Load(connections=8),
        1_500,
        packages=UVICORN,
    ),
    HttpRow(
        "http_aiohttp",
        "aiohttp, 64 connections",
        "aiohttp",
        Load(),
        1_500,
        target=Target(132_000, 12_700),
        packages=AIOHTTP,
    ),
    HttpRow(
        "http_aiohttp_1", "aiohttp, 1 connection", "aiohttp", Load(connections=1), 1_500, packages=AIOHTTP
    ),
    HttpRow(
        "http_aiohttp_8", "aiohttp, 8 connections", "aiohttp", Load(connections=8), 1_500, packages=AIOHTTP
    ),
    HttpsRow(
        "http_tls",
        "bare HTTP Protocol over TLS, 1 KiB body, 64 connections",
        "http",
        Load(),
        4_000,
        target=Target(18_000),
        has_limit=True,
    ),
    TlsEchoRow(
        "tls_echo", "Protocol echo 1 KiB over TLS, 64 connections", "protocol", Load(), 4_000, has_limit=True
    ),
    TlsEchoRow(
        "tls_echo_1",
        "Protocol echo 1 KiB over TLS, 1 connection",
        "protocol",
        Load(connections=1),
        3_000,
        has_limit=True,
    ),
    TlsEchoRow(
        "tls_echo_100k",
        "Protocol echo 100 KiB over TLS, 16 connections",
        "protocol",
        Load(16, 100 * 1024),
        500,
        has_limit=True,
    ),
    TlsEchoRow(
        "tls_streams", "asyncio.start_server echo 1 KiB over TLS, 64 connections", "streams", Load(), 3_000
    ),
    TlsEchoRow(
        "tls_handshakes",
        "TLS connection with a full handshake, echo 1 KiB, 16 at a time",
        "protocol",
        Load(16, anew="full"),
        400,
        has_limit=True,
    ),
    TlsEchoRow(
        "tls_resumed",
        "TLS connection with a resumed handshake, echo 1 KiB, 16 at a time",
        "protocol",
        Load(16, anew="resumed"),
        400,
        has_limit=True,
    ),
    *[
        kind(
            f"{prefix}{client}_{tasks}",
            f"{client}'s client{over}, {'one request after another' if tasks == 1 else f'{tasks} tasks'}",
            tasks,
            timed,
            counted,
            client,
            packages=(client,),
        )
        for kind, prefix, over in [(HttpClientRow, "client_", ""), (TlsClientRow, "tls_", " over TLS")]
        for client, tasks, timed, counted in [
            ("aiohttp", 1, 3_000, 300),
            ("aiohttp", 50, 5_000, 500),
            ("httpx", 1, 500, 100),
            ("httpx", 50, 200, 100),
        ]
    ],
    *programs.ROWS,
    *databases.ROWS,
    *bulk.ROWS,
]

RANKED = (
    "echo_64",
    "http_uvicorn",
    "http_bare",
    "sleep_zero",
    "call_soon_chain",
    "client_50",
    "client_1",
    "http_tls",
    "tls_echo",
    "http_aiohttp",
    "asyncpg_1",
    "redis_1",
    "websockets",
    "fastapi",
    "bulk_tcp_receive",
    "create_task",
    "echo_streams",
    "echo_1",
    "run_in_executor",
    "subprocess_true",
    "echo_buffered",
    "call_soon_batch",
    "call_later_fires",
    "call_soon_threadsafe",
    "threadsafe_flood",
    "tls_streams",
    "tcp_connect",
)
"""Rows that matter most, the first one most of all. The others follow in the order of ROWS."""


def rank(row: str) -> int:
    """The place of a row where time does not suffice for all of them."""
    names = [*RANKED, *[each.name for each in ROWS if each.name not in RANKED]]
    return names.index(row) if row in names else len(names)
