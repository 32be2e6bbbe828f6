"""What is told on standard error of a program that is observed."""

from __future__ import annotations

import sys


def tell(text: str) -> None:
    """Print a text, if that can be done: the program need not have a standard error that anybody reads."""
    stream = sys.stderr
    if stream is None:
        return
    try:
        print(text, file=stream, flush=True)
    except Exception:
        # It was closed, its disk is full, or its reader is gone. Neither close() nor a signal handler is to
        # raise that.
        return
