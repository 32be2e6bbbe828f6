"""Running out of descriptors, and having them again."""

import contextlib
import os
import resource


@contextlib.contextmanager
def no_descriptors(left=0):
    """Take all descriptors of the process but *left*, and give them back afterwards."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    taken = []
    try:
        # Few enough to take quickly; those that are open stay below.
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(highest + 64, limits[1]), limits[1]))
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(2))
        for _ in range(left):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in taken:
            os.close(fd)
