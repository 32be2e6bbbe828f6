"""uvicorn's worker for gunicorn, on hotloop."""

import warnings
from typing import ClassVar

with warnings.catch_warnings():
    # It is deprecated in favour of a package that has the same class.
    warnings.simplefilter("ignore", DeprecationWarning)
    from uvicorn.workers import UvicornWorker


class HotloopWorker(UvicornWorker):
    CONFIG_KWARGS: ClassVar = {**UvicornWorker.CONFIG_KWARGS, "loop": "hotloop:new_event_loop"}
