"""Output of reports to standard error."""

from __future__ import annotations

import sys


def print_error(text: str) -> None:
    """Print a text to standard error, and ignore errors."""
    stream = sys.stderr
    if stream is None:
        return
    try:
        print(text, file=stream, flush=True)
    except Exception:
        # It was closed, its disk is full, or its pipe is broken. close() and signal handlers must not raise.
        return
