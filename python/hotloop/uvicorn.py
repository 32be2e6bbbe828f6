"""uvicorn's worker for gunicorn on hotloop: `gunicorn app:app --worker-class hotloop.uvicorn.Worker`.

It is that of the package uvicorn-worker, or the one within uvicorn. uvicorn alone takes hotloop by
`uvicorn app:app --loop hotloop:new_event_loop`.
"""

from __future__ import annotations

import warnings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    UvicornWorker: Any
else:
    try:
        from uvicorn_worker import UvicornWorker
    except ModuleNotFoundError:
        with warnings.catch_warnings():
            # It recommends the other package.
            warnings.simplefilter("ignore", DeprecationWarning)
            from uvicorn.workers import UvicornWorker

__all__ = ["Worker"]


# To type checkers its base is Any: which package has it is known at run time. uvicorn declares the settings
# as a plain attribute of the class.
class Worker(UvicornWorker):  # type: ignore[misc]
    """UvicornWorker, whose setting `loop` is hotloop's."""

    CONFIG_KWARGS = {**UvicornWorker.CONFIG_KWARGS, "loop": "hotloop:new_event_loop"}  # noqa: RUF012
