"""The rows of other projects' servers: websockets, FastAPI and gRPC."""

import json
from dataclasses import dataclass
from typing import ClassVar

from benchmarks.children import CLIENT_PROCESSOR, Failed, environment, python, run
from benchmarks.counters import Count, Counter
from benchmarks.generator import Load, Outcome
from benchmarks.program_servers import ITEM_AS_JSON
from benchmarks.row import PATIENCE, EchoRow, HttpRow, Row, ServerRow

GROUP = "programs"
CLIENT_STARTING = 0.2
"""About how many seconds it takes to start and end gRPC's client, and to warm up."""


@dataclass(frozen=True)
class WebSocketRow(EchoRow):
    """Its clients are the load generator's."""

    scheme: str = "ws://"
    group: ClassVar[str] = GROUP


@dataclass(frozen=True)
class FrameworkRow(HttpRow):
    group: ClassVar[str] = GROUP


@dataclass(frozen=True)
class GrpcRow(ServerRow):
    """Its client is gRPC's own, in Python: a call costs it about as much as the server.

    It has malloc's default setting, also if the server has another one."""

    group: ClassVar[str] = GROUP

    @property
    def is_counted(self) -> bool:
        """Threads of gRPC's own do a part of the work, at their own pace."""
        return False

    def round_takes(self, seconds: float) -> float:
        return super().round_takes(seconds) + CLIENT_STARTING

    def count(self, loop: str, counter: Counter) -> Count:
        raise Failed("the count is not steady")

    def _url(self, address: str) -> str:
        return address

    def _drive_for(self, address: str, seconds: float) -> Outcome:
        arguments = [self._url(address), str(self.load.connections), str(self.load.size), str(seconds)]
        command = python("grpc_client", *arguments)
        with environment({}):
            found = json.loads(run(command, timeout=PATIENCE + seconds, processor=CLIENT_PROCESSOR))
        rate = found["requests"] / found["seconds"]
        return Outcome(found["requests"], rate, found["p99"], answered=found["answered"])

    def _drive_until(self, address: str, requests: int, timeout: float) -> Outcome:
        raise Failed("the client stops after a time")


ROWS: list[Row] = [
    WebSocketRow(
        "websockets",
        "websockets, echo 1 KiB, 64 connections",
        "websockets",
        Load(),
        3_000,
        packages=("websockets",),
    ),
    WebSocketRow(
        "websockets_1",
        "websockets, echo 1 KiB, 1 connection",
        "websockets",
        Load(connections=1),
        2_000,
        packages=("websockets",),
    ),
    FrameworkRow(
        "fastapi",
        "FastAPI under uvicorn + httptools, a pydantic model as JSON, 64 connections",
        "fastapi",
        Load(),
        600,
        body=ITEM_AS_JSON,
        packages=("fastapi", "uvicorn", "httptools"),
    ),
    GrpcRow(
        "grpc",
        "gRPC (grpc.aio), unary call of 1 KiB, 16 tasks",
        "grpc",
        Load(connections=16),
        0,
        packages=("grpc",),
    ),
]
