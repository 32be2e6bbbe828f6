"""gunicorn's ASGI worker on hotloop: `gunicorn app:app --worker-class hotloop.gunicorn.Worker`.

For uvicorn's worker see hotloop.uvicorn.
"""

from __future__ import annotations

import asyncio

# Type checkers know it only where gunicorn is installed, and then as untyped.
from gunicorn.workers.gasgi import ASGIWorker  # type: ignore[import-not-found, import-untyped, unused-ignore]

from .loop import Loop

__all__ = ["Worker"]


class Worker(ASGIWorker):  # type: ignore[misc, unused-ignore]
    """gunicorn's ASGIWorker, whatever its setting `asgi_loop` says, on hotloop."""

    def _setup_event_loop(self) -> None:
        self.loop = Loop()
        asyncio.set_event_loop(self.loop)
