"""Under `python -m hotloop`, servers that choose an event loop by themselves choose hotloop's.

uvicorn, gunicorn's ASGI worker and granian by default take uvloop or rloop, where these are installed, or
asyncio's own class. Their `auto` means hotloop here. A loop that is named to them is the one they take.
"""

from __future__ import annotations

import asyncio
import sys

from .loop import Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any


def _adapt_uvicorn(auto: Any) -> None:
    def auto_loop_factory(use_subprocess: bool = False) -> Callable[[], asyncio.AbstractEventLoop]:
        return Loop

    auto.auto_loop_factory = auto_loop_factory


def _adapt_gunicorn(gasgi: Any) -> None:
    original = gasgi.ASGIWorker._setup_event_loop

    def _setup_event_loop(self: Any) -> None:
        if getattr(self.cfg, "asgi_loop", None) != "auto":
            original(self)
            return
        self.loop = Loop()
        asyncio.set_event_loop(self.loop)

    gasgi.ASGIWorker._setup_event_loop = _setup_event_loop


def _adapt_granian(loops: Any) -> None:
    # Its `asyncio` is what asyncio.new_event_loop() makes.
    loops.loops.register("auto")(loops.build_asyncio_loop)


# By the module in which the choice is made.
_ADAPTED: dict[str, Callable[[Any], None]] = {
    "uvicorn.loops.auto": _adapt_uvicorn,
    "gunicorn.workers.gasgi": _adapt_gunicorn,
    "granian._loops": _adapt_granian,
}


def _adapt(module: ModuleType, adapt: Callable[[Any], None]) -> None:
    try:
        adapt(module)
    except AttributeError as error:
        import warnings

        warnings.warn(f"{module.__name__} chooses the event loop in another way: {error}", stacklevel=2)


class _Finder:
    """Finds the modules that are adapted as others do, and has them adapted when they are executed."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        adapt = _ADAPTED.get(name)
        if adapt is None:
            return None
        for finder in sys.meta_path:
            find_spec = getattr(finder, "find_spec", None)
            if finder is self or find_spec is None:
                continue
            spec: ModuleSpec | None = find_spec(name, path, target)
            if spec is not None:
                self._adapt_when_executed(spec.loader, adapt)
                return spec
        return None

    def _adapt_when_executed(self, loader: Any, adapt: Callable[[Any], None]) -> None:
        original = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            original(module)
            _adapt(module, adapt)

        loader.exec_module = exec_module


def install() -> None:
    """Adapt the servers, those that are imported and those that will be."""
    for name, adapt in _ADAPTED.items():
        if name in sys.modules:
            _adapt(sys.modules[name], adapt)
    finder: Any = _Finder()
    sys.meta_path.insert(0, finder)
