"""hotloop under uvloop's name, for test suites that run on asyncio and on uvloop."""

import sys

from hotloop import EventLoopPolicy, Loop, __version__, install, new_event_loop, run

loop = sys.modules[__name__]
__all__ = ["EventLoopPolicy", "Loop", "__version__", "install", "loop", "new_event_loop", "run"]
