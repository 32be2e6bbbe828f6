"""Datagrams: the standard library's transport over this loop's watchers, for now."""

from asyncio import selector_events
from typing import Any

_Base: Any = selector_events._SelectorDatagramTransport  # type: ignore[attr-defined]


class DatagramTransport(_Base):  # type: ignore[misc]  # the base is private to asyncio
    def __repr__(self) -> str:
        state = " closed" if self._sock is None else " closing" if self._closing else ""
        return f"<{type(self).__name__}{state} fd={self._sock_fd} bufsize={self.get_write_buffer_size()}>"
